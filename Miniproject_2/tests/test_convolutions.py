"""Conv2d and TransposeConv2d against torch: a grid, all options, hand-computed cases, rounding, errors."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from torch.nn import Conv2d, ConvTranspose2d
from torch.nn.functional import conv2d, conv_transpose2d

from Miniproject_2 import model as ours
from Miniproject_2.tests.oracle import compare, our_convolution

WINDOWS = [  # kernel, stride, padding, dilation
    (1, 1, 0, 1),
    (2, 2, 0, 1),
    (3, 1, 1, 1),
    (3, 2, 1, 1),
    (4, 2, 1, 1),
    (5, 3, 2, 1),
    (3, 1, 2, 2),
    (3, 2, 0, 3),
    (1, 3, 1, 1),
    (2, 3, 0, 1),
    ((3, 2), (1, 2), (0, 1), (2, 1)),
    ((1, 4), (3, 1), (2, 0), (1, 2)),
]
CHANNELS = [(3, 5, 1), (1, 1, 1), (4, 6, 2), (6, 6, 6), (3, 6, 3)]  # in, out, groups
SIZES = [(2, 11, 8), (1, 9, 13)]  # images, height, width


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_agrees_with_torch_on_the_grid(layer, window, dtype):
    """12 windows x 5 channel counts x 2 sizes x bias or not x 2 memory formats, each forward and backward."""
    kernel, stride, padding, dilation = window
    for (inputs, outputs, groups), size, bias, last in itertools.product(CHANNELS, SIZES, (True, False), (True, False)):
        if last and (inputs == 1 or outputs == 1):
            continue  # one channel is in both formats at once
        settings = {
            "in_channels": inputs,
            "out_channels": outputs,
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "bias": bias,
        }
        n, h, w = size
        block = our_convolution(layer, **settings)
        compare(block, layer(**settings), n, inputs, h, w, dtype=dtype, channels_last=last)


@pytest.mark.filterwarnings("ignore:Using padding=.same.:UserWarning")
@pytest.mark.parametrize("kernel", [1, 2, 3, (4, 5)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_named_padding(kernel, padding, dilation):
    settings = {"kernel_size": kernel, "padding": padding, "dilation": dilation}
    compare(ours.Conv2d(2, 3, **settings), Conv2d(2, 3, **settings), 2, 2, 15, 16)


@pytest.mark.parametrize(("stride", "dilation", "extra"), [(2, 1, 1), (3, 1, (2, 1)), (2, 3, 2), (1, 2, (0, 1))])
def test_output_padding(stride, dilation, extra):
    settings = {
        "kernel_size": 3,
        "stride": stride,
        "padding": 1,
        "output_padding": extra,
        "dilation": dilation,
    }
    compare(ours.TransposeConv2d(3, 4, **settings), ConvTranspose2d(3, 4, **settings), 2, 3, 5, 6)
    compare(
        ours.TransposeConv2d(3, 4, **settings),
        ConvTranspose2d(3, 4, **settings),
        1,
        3,
        5,
        6,
        dtype=torch.float32,
    )


def test_positional_arguments_are_torchs():
    compare(ours.Conv2d(4, 6, 3, 2, 1, 1, 2, False), Conv2d(4, 6, 3, 2, 1, 1, 2, False), 2, 4, 9, 9)
    arguments = (4, 6, 3, 2, 1, 1, 2, False, 1)
    compare(ours.TransposeConv2d(*arguments), ConvTranspose2d(*arguments), 2, 4, 5, 5)


@pytest.mark.parametrize("block", [ours.Conv2d(3, 4, 3), ours.TransposeConv2d(3, 4, 3)])
def test_patches_are_gathered_once_for_all_products(block, monkeypatch):
    gathered, original = [], ours.gather_patches
    monkeypatch.setattr(ours, "gather_patches", lambda *arguments: gathered.append(1) or original(*arguments))
    for _ in range(2):
        output = block(ours.channels_last(torch.randn(2, 3, 8, 8)))
        block.backward(torch.randn(output.shape))
    assert len(gathered) == 2  # one for each forward and backward


@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d])
def test_long_sums(layer):
    for window in [(3, 1, 1), (4, 2, 1), (3, 2, 0)]:
        settings = {"in_channels": 40, "out_channels": 67, "bias": True}
        settings |= dict(zip(("kernel_size", "stride", "padding"), window, strict=True))
        compare(our_convolution(layer, **settings), layer(**settings), 2, 40, 9, 8, dtype=torch.float32, tolerance=1e-4)


def test_hand_computed_convolution():
    conv = ours.Conv2d(1, 1, 2)
    conv.weight = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    conv.bias = torch.tensor([0.5])
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert conv(x).tolist() == [[[[27.5, 37.5], [57.5, 67.5]]]]
    assert conv.backward(torch.ones(1, 1, 2, 2)).tolist() == [[[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]]
    assert conv.weight_grad.tolist() == [[[[8, 12], [20, 24]]]] and conv.bias_grad.tolist() == [4]


def test_hand_computed_transposed_convolution():
    conv = ours.TransposeConv2d(1, 1, 2, stride=2)
    conv.weight = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    conv.bias = torch.tensor([1.0])
    assert conv(torch.tensor([[[[2.0, 10.0]]]])).tolist() == [[[[3, 5, 11, 21], [7, 9, 31, 41]]]]
    assert conv.backward(torch.ones(1, 1, 2, 4)).tolist() == [[[[10, 10]]]]
    assert conv.weight_grad.tolist() == [[[[12, 12], [12, 12]]]] and conv.bias_grad.tolist() == [8]


@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d])
def test_products_in_bfloat16(layer):
    """Near torch's float32, and equal to it where no number and no sum needs more than eight bits."""
    settings = {"in_channels": 4, "out_channels": 6, "kernel_size": 4, "stride": 2, "padding": 1}
    block = our_convolution(layer, **settings)
    block.rounds = True
    compare(block, layer(**settings), 3, 4, 9, 10, dtype=torch.float32, tolerance=0.02)
    assert block.weight_grad.dtype == torch.float32
    block = our_convolution(layer, **settings, dtype=torch.float64)
    block.rounds = True
    compare(block, layer(**settings), 3, 4, 9, 10)  # only float32 is rounded
    results = []
    for rounds in (False, True):
        block, generator = our_convolution(layer, **settings), torch.Generator().manual_seed(0)
        block.rounds = rounds
        for parameter, _ in block.param():
            parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=generator))
        y = block(torch.randint(-1, 2, (1, 4, 6, 6), generator=generator).float())
        image = block.backward(torch.randint(-1, 2, y.shape, generator=generator).float())
        results.append([y, image, block.weight_grad, block.bias_grad])
    assert all(torch.equal(*pair) and pair[0].dtype == torch.float32 for pair in zip(*results, strict=True))


@pytest.mark.parametrize("block", [ours.Conv2d(2, 3, 3, 2, 1), ours.TransposeConv2d(2, 3, 3, 2, 1)])
def test_finite_differences(block):
    """<gradient, direction> against a central difference in float64, for the input and every parameter."""
    block.to(torch.float64)
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    weights = torch.randn_like(block(x))
    input_gradient = block.backward(weights)
    for tensor, gradient in [(x, input_gradient), *block.param()]:
        direction, step = torch.randn_like(tensor), 1e-5
        values = []
        for sign in (1, -1):
            tensor.add_(direction, alpha=sign * step)
            values.append((block(x) * weights).sum())
            tensor.sub_(direction, alpha=sign * step)
        assert torch.allclose((values[0] - values[1]) / (2 * step), (gradient * direction).sum(), rtol=1e-7)


@pytest.mark.parametrize("window", [(3, 1, 0), (3, 1, 1), (3, 2, 1), (3, 3, 2), (2, 2, 0)], ids=str)
def test_one_small_image_rounds_like_torch(window):
    """Plain allclose in float32, the course's check, forward and for the gradients."""
    for seed in range(60):
        torch.manual_seed(seed)
        x = torch.randn(1, 3, 32, 32, requires_grad=True)
        conv = ours.Conv2d(3, 3, *window)
        expected = conv2d(x, conv.weight, conv.bias, *window[1:])
        gradient = torch.randn_like(expected)
        assert torch.allclose(conv(x), expected)
        assert torch.allclose(conv.backward(gradient), torch.autograd.grad(expected, x, gradient)[0])
        transposed = ours.TransposeConv2d(3, 3, *window)
        expected = conv_transpose2d(x, transposed.weight, transposed.bias, *window[1:])
        gradient = torch.randn_like(expected)
        assert torch.allclose(transposed(x), expected)
        assert torch.allclose(transposed.backward(gradient), torch.autograd.grad(expected, x, gradient)[0])


def is_known_processor():
    """Whether torch's library sums here in the order that was found on Intel's processors with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    vendor = cpuinfo.read_text() if cpuinfo.exists() else ""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" in vendor


@pytest.mark.skipif(not is_known_processor(), reason="others, AMD's with AVX-512 too, sum in other orders")
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (8, 3, 16, 20), (1, 3, 100, 100), (4, 16, 9, 9)], ids=str)
@pytest.mark.parametrize("window", [(3, 1, 0), (3, 1, 1), (2, 1, 0), (3, 2, 1), (3, 3, 2), (2, 2, 0)], ids=str)
def test_batches_and_large_images_round_like_torch(shape, window):
    """Plain allclose in float32, where the library sums straight on: all but the gradients of strided convolutions."""
    for seed in range(10):
        torch.manual_seed(seed)
        x = torch.randn(shape, requires_grad=True)
        conv = ours.Conv2d(shape[1], 5, *window)
        expected = conv2d(x, conv.weight, conv.bias, *window[1:])
        gradient = torch.randn_like(expected)
        assert torch.allclose(conv(x), expected)
        if window[1] == 1:
            assert torch.allclose(conv.backward(gradient), torch.autograd.grad(expected, x, gradient)[0])
        transposed = ours.TransposeConv2d(shape[1], 5, *window)
        expected = conv_transpose2d(x, transposed.weight, transposed.bias, *window[1:])
        gradient = torch.randn_like(expected)
        assert torch.allclose(transposed(x), expected)
        assert torch.allclose(transposed.backward(gradient), torch.autograd.grad(expected, x, gradient)[0])


@pytest.mark.parametrize("window", [(3, 1, 0), (3, 1, 1), (3, 2, 1), (2, 2, 0), (2, 1, 0), (3, 3, 0)], ids=str)
def test_one_channels_last_image_rounds_like_torch(window):
    """torch sums kernel rows, columns and channels there, in that order."""
    for seed, (inputs, outputs) in enumerate([(3, 3), (5, 7), (8, 16), (3, 1)]):
        torch.manual_seed(seed)
        for block, layer in [
            (ours.Conv2d(inputs, outputs, *window), Conv2d(inputs, outputs, *window)),
            (ours.TransposeConv2d(inputs, outputs, *window), ConvTranspose2d(inputs, outputs, *window)),
        ]:
            block.weight, block.bias = layer.weight, layer.bias
            x = torch.randn(1, inputs, 19, 24).contiguous(memory_format=torch.channels_last).requires_grad_()
            expected = layer(x)
            gradient = torch.randn_like(expected)
            expected.backward(gradient)
            assert torch.allclose(block(x), expected)
            assert torch.allclose(block.backward(gradient), x.grad)
            assert torch.allclose(block.weight_grad, layer.weight.grad)


def test_default_initialisation_is_torchs():
    for layer in (Conv2d, ConvTranspose2d):
        torch.manual_seed(3)
        block = our_convolution(layer, in_channels=4, out_channels=6, kernel_size=3, groups=2)
        torch.manual_seed(3)
        expected = layer(4, 6, 3, groups=2)
        assert torch.equal(block.weight, expected.weight) and torch.equal(block.bias, expected.bias)


def test_private_initialisation_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again = (ours.Conv2d(8, 64, 5, generator=random.Random(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(first.weight, again.weight)
    bound = 200**-0.5
    assert first.weight.abs().max() <= bound and first.weight.abs().mean().sub(bound / 2).abs() < 0.01 * bound


def test_parameters_keep_their_identity_when_assigned():
    conv = ours.Conv2d(2, 3, 3)
    before = conv.param()
    conv.weight = torch.nn.Parameter(torch.ones(3, 2, 3, 3, dtype=torch.float64))
    conv.bias.copy_(torch.zeros(3))
    assert all(a is c and b is d for (a, b), (c, d) in zip(before, conv.param(), strict=True))
    assert conv.weight.dtype == conv.weight_grad.dtype == torch.float64 and not conv.weight.requires_grad


def test_assigned_gradients_are_those_that_an_optimiser_has():
    conv = ours.Conv2d(2, 3, 1)
    optimiser, before = ours.SGD(conv.param(), 1.0), conv.weight.clone()
    conv.weight_grad, conv.bias_grad = torch.zeros(3, 2, 1, 1), torch.zeros(3)
    conv.backward(torch.ones_like(conv(torch.ones(1, 2, 1, 1))))
    optimiser.step()
    assert torch.equal(conv.weight, before - 1)
    conv.weight_grad *= 0
    assert conv.param()[0][1].abs().sum() == 0
    for value, error in ((None, TypeError), (torch.zeros(3), ValueError)):
        with pytest.raises(error, match="weight_grad"):
            conv.weight_grad = value
    with pytest.raises(ValueError, match="bias=False"):
        ours.Conv2d(2, 3, 1, bias=False).bias_grad = torch.zeros(3)


def test_copying_from_a_parameter_builds_no_graph():
    conv = ours.Conv2d(2, 3, 3)
    conv.weight.copy_(torch.nn.Conv2d(2, 3, 3).weight)
    y = conv(torch.randn(1, 2, 4, 4, requires_grad=True))
    assert not y.requires_grad and not conv.backward(torch.ones_like(y)).requires_grad
    ours.SGD(conv.param(), 0.1).step()
    assert not conv.weight_grad.requires_grad


@pytest.mark.parametrize("kind", [ours.Conv2d, ours.TransposeConv2d])
def test_a_second_forward_is_the_one_that_counts(kind):
    conv = kind(1, 1, 1, bias=False)
    conv(torch.ones(1, 1, 2, 2))
    conv(torch.full((1, 1, 2, 2), 5.0))
    conv.backward(torch.ones(1, 1, 2, 2))
    assert conv.weight_grad.item() == 20
    conv.backward(torch.ones(1, 1, 2, 2))
    assert conv.weight_grad.item() == 40  # a second backward adds once more


@pytest.mark.parametrize("layer", [Conv2d, ConvTranspose2d])
def test_torchs_attributes_and_padding_mode(layer):
    settings = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "stride": 2, "padding": (1, 0), "groups": 2}
    block, reference = our_convolution(layer, **settings, padding_mode="zeros"), layer(**settings)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
        assert getattr(block, name) == getattr(reference, name)


@pytest.mark.parametrize("block", [ours.Conv2d(2, 3, 3), ours.TransposeConv2d(2, 3, 3)])
def test_clear_errors(block):
    with pytest.raises(RuntimeError, match="call forward first"):
        block.backward(torch.ones(1))
    for wrong in (torch.ones(2, 5, 5), torch.ones(1, 3, 5, 5), torch.ones(0, 2, 5, 5)):
        with pytest.raises(ValueError, match=r"\(N, 2, H, W\)"):
            block(wrong)
    with pytest.raises(ValueError, match="float64"):
        block(torch.ones(1, 2, 5, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match="tensor"):
        block([1.0])
    y = block(torch.ones(1, 2, 5, 5))
    with pytest.raises(TypeError, match="takes a tensor; got list"):
        block.backward([1.0])
    with pytest.raises(ValueError, match=r"a gradient of torch.float32, as its parameters are; got torch.float64"):
        block.backward(y.double())
    with pytest.raises(ValueError, match="gradient of shape"):
        block.backward(y[:, :, 1:])
    with pytest.raises(ValueError, match="shape"):
        block.weight = torch.ones(1)
    with pytest.raises(ValueError, match="bias"):
        block.bias = None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"kernel_size": 3, "stride": 0}, "stride"),
        ({"kernel_size": 3, "padding": -1}, "padding"),
        ({"kernel_size": 3, "padding": "full"}, "padding"),
        ({"kernel_size": 3, "padding": "same", "stride": 2}, "stride 1"),
        ({"kernel_size": 3, "groups": 2}, "multiple of groups"),
        ({"kernel_size": 3, "groups": 0}, "groups"),
        ({"kernel_size": 3.0}, "kernel_size"),
        ({"kernel_size": True}, "kernel_size"),
    ],
)
def test_clear_errors_in_the_arguments(arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        ours.Conv2d(3, 3, **arguments)


def test_whole_numbers_that_are_not_int():
    three, one = torch.tensor(3), torch.tensor(1)
    conv = ours.Conv2d(three, three, (three, three), one, one, one, one)
    assert conv.weight.shape == (3, 3, 3, 3) and conv(torch.ones(1, 3, 5, 5)).shape == (1, 3, 5, 5)
    assert ours.TransposeConv2d(three, three, three, output_padding=torch.tensor(0)).weight.shape == (3, 3, 3, 3)


def test_window_larger_than_the_image():
    with pytest.raises(ValueError, match="larger than the padded image"):
        ours.Conv2d(1, 1, 5)(torch.ones(1, 1, 4, 9))


@pytest.mark.parametrize("channels", [2, 3, 8, 15])
def test_bias_gradients_of_batches_round_like_the_library(channels):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        twin, block = torch.nn.Conv2d(3, channels, 3), ours.Conv2d(3, channels, 3)
        block.weight, block.bias = twin.weight, twin.bias
        x = torch.randn(32, 3, 20, 20)
        expected = twin(x)
        gradient = torch.randn_like(expected)
        expected.backward(gradient)
        block(x)
        block.backward(gradient)
    finally:
        torch.set_num_threads(threads)
    total = torch.zeros(channels)
    for pixel in gradient.permute(0, 2, 3, 1).reshape(-1, channels):
        total += pixel
    if not torch.equal(twin.bias.grad, total):
        pytest.skip("this processor's library does not sum pixel after pixel")
    assert torch.equal(block.bias_grad, total)
