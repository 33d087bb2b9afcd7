"""SGD, Adam and Muon step by step against torch.optim."""

import itertools
import math

import pytest
import torch

from Miniproject_1 import model as project_1
from Miniproject_2 import model as ours
from Miniproject_2.tests.oracle import close

SHAPES = [(6, 2, 3, 3), (6,), (4, 6, 2, 2), (4,), (9, 18), ()]


def compare(make, make_reference, shapes=SHAPES, tolerance=1e-6, dtype=torch.float64):
    """Eight steps on the same random gradients, from the same start."""
    torch.manual_seed(0)
    parameters = [torch.randn(shape, dtype=dtype) for shape in shapes]
    references = [parameter.clone().requires_grad_() for parameter in parameters]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    optimiser, reference = make(list(zip(parameters, gradients, strict=True))), make_reference(references)
    for _ in range(8):
        optimiser.zero_grad()
        for gradient, tensor in zip(gradients, references, strict=True):
            gradient.add_(torch.randn_like(gradient))
            tensor.grad = gradient.clone()
        optimiser.step()
        reference.step()
        for parameter, tensor in zip(parameters, references, strict=True):
            close(parameter, tensor.detach(), f"parameter {tuple(parameter.shape)}", tolerance)


@pytest.mark.parametrize(
    ("momentum", "dampening", "decay", "nesterov"),
    [
        (m, d, w, n)
        for m, d, w, n in itertools.product((0, 0.9), (0, 0.3), (0, 0.1), (False, True))
        if not n or (m > 0 and d == 0)
    ],
)
def test_sgd(momentum, dampening, decay, nesterov):
    arguments = (0.1, momentum, dampening, decay, nesterov)
    names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    compare(
        lambda params: ours.SGD(params, *arguments),
        lambda params: torch.optim.SGD(params, **dict(zip(names, arguments, strict=True))),
    )


def test_adam():
    arguments = (0.01, (0.8, 0.95), 1e-6)
    compare(lambda params: ours.Adam(params, *arguments), lambda params: torch.optim.Adam(params, *arguments))


def test_muon():
    """torch's iterates in bfloat16, hence the tolerance: two of its roundings of a step of at most lr * 1.2."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is newer than this torch")
    arguments = {"lr": 0.02, "momentum": 0.9}
    compare(
        lambda params: ours.Muon(params, **arguments),
        lambda params: torch.optim.Muon(params, weight_decay=0, **arguments),
        shapes=[(9, 18), (9, 18), (20, 5), (1, 7)],
        dtype=torch.float32,
        tolerance=8 * 0.02 * 2**-7,
    )


def test_muon_takes_adams_step_for_vectors():
    compare(
        lambda params: ours.Muon(params, lr=0.05, vector_lr=0.2),
        lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.9, 0.95)),
        shapes=[(6,), (4,)],
    )


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 1, 9), (2, 7, 7)])
def test_newton_schulz(shape):
    """All singular values between 1 and 1/50 come near 1, the singular vectors stay."""
    u, s, v = torch.linalg.svd(torch.randn(*shape), full_matrices=False)
    result = ours.newton_schulz((u * torch.logspace(0, -1.7, s.shape[1])) @ v)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3
    aligned = u.mT @ result @ v.mT
    close(aligned, torch.diag_embed(aligned.diagonal(dim1=1, dim2=2)), "singular vectors", 1e-3)


def test_newton_schulz_by_its_formula():
    a, b, c = 3.4445, -4.7750, 2.0315
    start = torch.randn(2, 12, 30, dtype=torch.float64)
    x = start / start.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    close(ours.newton_schulz(start), x, "iterate", 1e-9)


def test_newton_schulz_where_products_are_rounded():
    """A caller may have set this for a network of its own; training came out at 8 dB."""
    start = torch.randn(2, 64, 300)
    expected = ours.newton_schulz(start.double())
    torch.set_float32_matmul_precision("medium")
    try:
        close(ours.newton_schulz(start).double(), expected, "iterate", 1e-4)
        close(project_1.newton_schulz(start).double(), expected, "iterate", 1e-4)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_newton_schulz_nothing():
    assert torch.equal(ours.newton_schulz(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("optimiser", [ours.SGD, ours.Adam, ours.Muon])
def test_optimisers_take_each_parameter_once(optimiser):
    pairs = [(torch.ones(2, 3), torch.ones(2, 3))]
    with pytest.raises(ValueError, match="each parameter once"):
        optimiser(pairs + pairs)


@pytest.mark.parametrize("optimiser", [ours.SGD, ours.Adam, ours.Muon])
def test_optimisers_learn_and_zero(optimiser):
    torch.manual_seed(0)
    conv, loss = ours.Conv2d(2, 2, 3, padding=1), ours.MSE()
    steps, x = optimiser(conv.param(), 0.05), torch.randn(4, 2, 8, 8)
    losses = []
    for _ in range(60):
        steps.zero_grad()
        losses.append(loss(conv(x), x).item())
        conv.backward(loss.backward())
        steps.step()
    assert losses[-1] < losses[0] / 3
    steps.zero_grad()
    assert all(not gradient.any() for _, gradient in conv.param())


def test_clear_errors():
    for wrong in ([], [torch.ones(1)], [(torch.ones(1),)]):
        with pytest.raises(ValueError, match=r"module\.param"):
            ours.SGD(wrong, 0.1)
    good = ours.Conv2d(1, 1, 1).param()
    for kind in (ours.SGD, ours.Adam, ours.Muon):
        for lr in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match="lr must be at least 0"):
                kind(good, lr)
        for lr in (None, "0.1", torch.ones(2)):
            with pytest.raises(TypeError, match="lr must be a number"):
                kind(good, lr)
    for kind, setting, value in (
        (ours.SGD, "momentum", -1),
        (ours.SGD, "weight_decay", math.nan),
        (ours.SGD, "dampening", math.nan),
        (ours.Adam, "betas", (0.9, 1.0)),
        (ours.Adam, "eps", -1),
        (ours.Muon, "momentum", 1.0),
        (ours.Muon, "vector_lr", -1),
    ):
        with pytest.raises(ValueError, match=f"{setting.removesuffix('s')} must be|beta must be|eps must be"):
            kind(good, 0.1, **{setting: value})
    with pytest.raises(ValueError, match="nesterov"):
        ours.SGD(good, 0.1, nesterov=True)


@pytest.mark.parametrize("kind", [ours.SGD, ours.Adam, ours.Muon])
def test_gradients_from_before_do_not_matter(kind):
    parameter, gradient = torch.ones(3, 2), torch.full((3, 2), float("nan"))
    optimiser = kind([(parameter, gradient)], lr=0.1)
    optimiser.zero_grad()
    optimiser.step()
    assert parameter.isfinite().all()


@pytest.mark.parametrize("kind", [ours.SGD, ours.Adam, ours.Muon])
def test_state_dict_continues_exactly(kind):
    options = {"momentum": 0.9} if kind is ours.SGD else {}
    gradients = torch.randn(6, 3, 2)
    ends = []
    for stop in (None, 3):
        pairs = [(torch.ones(3, 2), torch.zeros(3, 2)), (torch.ones(3), torch.zeros(3))]
        optimiser = kind(pairs, 0.1, **options)
        for number, gradient in enumerate(gradients):
            if number == stop:
                state, optimiser = optimiser.state_dict(), kind(pairs, 0.1, **options)
                optimiser.load_state_dict(state)
            pairs[0][1].copy_(gradient)
            pairs[1][1].copy_(gradient[:, 0])
            optimiser.step()
        ends.append([parameter for parameter, _ in pairs])
    assert all(map(torch.equal, *ends))
