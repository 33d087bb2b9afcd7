"""The blocks without weights, and Sequential, against torch."""

import math

import pytest
import torch
from torch import nn

from Miniproject_2 import model as ours
from Miniproject_2.tests.oracle import close, compare

FUNCTIONS = [
    (ours.ReLU(), nn.ReLU()),
    (ours.ReLU(inplace=True), nn.ReLU()),
    (ours.Sigmoid(), nn.Sigmoid()),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("block", "layer"), FUNCTIONS, ids=lambda b: type(b).__name__)
def test_functions(block, layer, dtype):
    for shape in [(2, 3, 5, 7), (4,), (3, 1)]:
        compare(block, layer, *shape, dtype=dtype, tolerance=1e-6)
    compare(block, layer, 2, 3, 5, 7, dtype=dtype, channels_last=True)


def test_functions_at_the_edges():
    x = torch.tensor([-1e4, -1.0, -0.0, 0.0, 1.0, 1e4])
    for block, layer in FUNCTIONS:
        reference = x.clone().requires_grad_()
        expected = layer(reference)
        expected.sum().backward()
        assert torch.equal(block(x.clone()), expected.detach())
        assert torch.equal(block.backward(torch.ones(6)), reference.grad)
    sigmoid = ours.Sigmoid()
    assert sigmoid(x).tolist()[::5] == [0, 1] and sigmoid(torch.tensor([0.0])).item() == 0.5
    assert math.isclose(sigmoid(torch.tensor([-2.0])).item(), 1 / (1 + math.exp(2)), rel_tol=1e-6)


def test_sigmoid_is_torchs_bit_for_bit():
    for seed in range(20):
        torch.manual_seed(seed)
        x = 10 * torch.randn(2, 3, 31, 33)
        assert torch.equal(ours.Sigmoid()(x), x.sigmoid())


def test_only_inplace_overwrites_its_input():
    x = torch.tensor([-1.0, 2.0])
    ours.ReLU()(x)
    assert x.tolist() == [-1, 2]
    assert ours.ReLU(inplace=True)(x) is not None and x.tolist() == [0, 2]


def test_backward_of_the_loss_takes_the_gradient_of_one_number():
    loss = ours.MSE()
    with pytest.raises(ValueError, match="with elements"):
        loss(torch.ones(0), torch.ones(0))
    loss(torch.ones(2), torch.zeros(2))
    assert loss.backward(3.0).tolist() == loss.backward(torch.tensor(3.0)).tolist() == [3, 3]
    with pytest.raises(ValueError, match="gradient of shape"):
        loss.backward(torch.ones(5, 2))


@pytest.mark.parametrize("scale", [1, 2, 3, (2, 3), 2.0])
def test_upsampling(scale):
    for last in (False, True):
        compare(
            ours.NearestUpsampling(scale),
            nn.UpsamplingNearest2d(scale_factor=scale),
            2,
            3,
            5,
            4,
            channels_last=last,
        )


def test_upsampling_by_hand():
    block = ours.NearestUpsampling(2)
    assert block(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    assert block.backward(torch.arange(8.0).view(1, 1, 2, 4)).tolist() == [[[[10, 18]]]]
    for wrong in (0, 1.5, (2, 2, 2), "2"):
        with pytest.raises((TypeError, ValueError), match="scale_factor"):
            ours.NearestUpsampling(wrong)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7,), ()])
def test_mse(shape):
    prediction, target = torch.randn(shape, requires_grad=True), torch.randn(shape)
    expected = nn.MSELoss()(prediction, target)
    expected.backward()
    loss = ours.MSE()
    close(loss(prediction, target), expected.detach(), "loss")
    close(loss.backward(), prediction.grad, "gradient")


def test_mse_by_hand():
    loss = ours.MSE()
    assert loss(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 2.0])).item() == 5
    assert loss.backward().tolist() == [1, 3]
    with pytest.raises(ValueError, match="equal shapes"):
        loss(torch.ones(2, 1), torch.ones(2))
    with pytest.raises(RuntimeError, match="call forward first"):
        ours.MSE().backward()


def networks():
    """The fixed network, nested, in both forms: (ours, torch's)."""
    blocks = ours.Sequential(
        ours.Sequential(ours.Conv2d(3, 5, 3, 2, 1), ours.ReLU()),
        ours.Conv2d(5, 8, 3, 2, 1),
        ours.ReLU(inplace=True),
        ours.TransposeConv2d(8, 5, 4, 2, 1),
        ours.ReLU(inplace=True),
        ours.Sequential(ours.NearestUpsampling(2), ours.Conv2d(5, 3, 3, padding="same")),
        ours.Sigmoid(),
    )
    layers = nn.Sequential(
        nn.Conv2d(3, 5, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(5, 8, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 5, 4, 2, 1),
        nn.ReLU(),
        nn.UpsamplingNearest2d(scale_factor=2),
        nn.Conv2d(5, 3, 3, padding="same"),
        nn.Sigmoid(),
    )
    for (parameter, _), expected in zip(blocks.param(), layers.parameters(), strict=True):
        parameter.copy_(expected.detach())
    return blocks, layers


@pytest.mark.parametrize("channels_last", [False, True])
def test_sequential(channels_last):
    blocks, layers = networks()
    compare(blocks.to(torch.float64), layers, 2, 3, 12, 20, channels_last=channels_last)


def test_the_courses_check():
    """Plain allclose in float32, which the sums pass in torch's own order alone."""
    for seed in range(300):
        torch.manual_seed(seed)
        x, conv = torch.randn(1, 3, 32, 32), ours.Conv2d(3, 3, 3)
        expected = torch.nn.functional.conv2d(x, conv.weight, conv.bias)
        assert torch.allclose(conv(x), expected)
        assert torch.allclose(ours.Sequential(conv, ours.Sigmoid())(x), expected.sigmoid())


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (ours.Conv2d(2, 3, 3), (2, 2, 6, 5)),
        (ours.TransposeConv2d(2, 3, 4, 2, 1), (2, 2, 6, 5)),
        (ours.NearestUpsampling(2), (1, 2, 3, 4)),
        (ours.ReLU(), (5,)),
        (ours.Sigmoid(), (5,)),
        (ours.Sequential(ours.Conv2d(2, 2, 3), ours.Sequential(ours.ReLU(True)), ours.Sigmoid()), (1, 2, 8, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_apply_gives_the_output_and_keeps_nothing(block, shape):
    with pytest.raises(RuntimeError, match="call forward first"):
        block.apply(torch.randn(shape))
        block.backward(torch.ones(1))
    x, other = torch.randn(shape), torch.randn(shape)
    expected = block(x)
    gradient = torch.randn_like(expected)
    before = block.backward(gradient)
    assert torch.equal(block.apply(x), expected)
    block.apply(other)
    assert torch.equal(block.backward(gradient), before)  # still that of x
    block.forget()
    with pytest.raises(RuntimeError, match="call forward first"):
        block.backward(gradient)


@pytest.mark.parametrize("kind", [ours.Conv2d, ours.TransposeConv2d])
def test_autocast_changes_nothing(kind):
    block, x = kind(3, 8, 3, 2, 1), torch.randn(4, 3, 12, 12)
    expected = block(x)
    gradient = torch.randn_like(expected)
    results = [expected, block.backward(gradient), block.weight_grad.clone()]
    block.weight_grad.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [block(x), block.backward(gradient), block.weight_grad]
    assert all(map(torch.equal, results, inside))


@pytest.mark.parametrize("optimiser", [ours.SGD, ours.Adam, ours.Muon])
def test_blocks_made_in_inference_mode_learn_outside(optimiser):
    with torch.inference_mode():
        conv = ours.Conv2d(2, 2, 3)
        conv.weight = torch.ones(2, 2, 3, 3)
        conv.to(torch.float64)
    before = conv.weight.clone()
    conv.backward(conv(torch.randn(1, 2, 5, 5, dtype=torch.float64)))
    optimiser(conv.param(), 0.1).step()
    assert not torch.equal(conv.weight, before) and conv.weight.dtype == torch.float64


def test_blocks_follow_torchs_defaults_and_settings():
    with torch.device("meta"):
        assert ours.Conv2d(1, 1, 1).weight.device.type == "meta"
        assert ours.Conv2d(1, 1, 1, device="cpu", dtype=torch.float64).weight.dtype == torch.float64
    assert ours.Conv2d(1, 1, 1).weight.dtype == torch.get_default_dtype()


def test_sequential_refuses_a_module_twice():
    relu = ours.ReLU()
    with pytest.raises(ValueError, match="only once"):
        ours.Sequential(relu, ours.Sequential(ours.Sigmoid(), relu))
    with pytest.raises(TypeError, match="as separate arguments; got list"):
        ours.Sequential([ours.ReLU(), ours.Sigmoid()])


def test_a_block_with_forward_and_backward_alone_learns_in_a_sequential():
    class Doubled(ours.Module):
        def forward(self, x):
            return 2 * x

        def backward(self, gradient):
            return 2 * gradient

    blocks = ours.Sequential(Doubled(), ours.ReLU())
    assert blocks(torch.tensor([1.0, -1.0])).tolist() == [2, 0]
    assert blocks.backward(torch.ones(2)).tolist() == [2, 0]
    with pytest.raises(NotImplementedError, match="Doubled needs run"):
        blocks.apply(torch.ones(2))


def test_blocks_without_parameters():
    assert ours.Module().param() == ours.ReLU().param() == ours.Sequential().param() == []
    for method in (ours.Module().forward, ours.Module().backward, ours.Module()):
        with pytest.raises(NotImplementedError):
            method(torch.ones(1))


def test_upsampling_by_one_is_a_copy():
    x = torch.full((1, 1, 2, 2), -1.0)
    ours.Sequential(ours.NearestUpsampling(1), ours.ReLU(inplace=True))(x)
    assert (x == -1).all()


@pytest.mark.parametrize("block", [ours.ReLU(), ours.Sigmoid(), ours.NearestUpsampling(1)])
def test_backward_needs_forward_and_its_shape(block):
    with pytest.raises(RuntimeError, match="call forward first"):
        block.backward(torch.ones(1, 1, 2, 2))
    block(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="gradient of shape"):
        block.backward(torch.ones(1, 1, 1, 1))


@pytest.mark.parametrize("block", [ours.ReLU(), ours.Sigmoid(), ours.NearestUpsampling(2)])
def test_no_graph_is_built(block):
    y = block(torch.ones(1, 1, 2, 2, requires_grad=True))
    assert not y.requires_grad and not block.backward(torch.ones_like(y).requires_grad_()).requires_grad


def test_a_sequential_takes_modules_not_their_classes():
    with pytest.raises(TypeError, match=r"such as ReLU\(\), as separate arguments; got ReLU, Sigmoid"):
        ours.Sequential(ours.ReLU, ours.Sigmoid)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_the_gradient_of_the_loss_has_the_dtype_of_the_prediction(dtypes):
    prediction, target = (torch.rand(2, 3, 4, 4, dtype=dtype) for dtype in dtypes)
    loss = ours.MSE()
    loss(prediction, target)
    assert loss.backward().dtype == prediction.dtype
