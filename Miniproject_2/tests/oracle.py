"""The one oracle: a block of ours against the layer of torch.nn, forward, backward and accumulation."""

import torch

from Miniproject_2 import model as ours


def close(actual, expected, what, tolerance=1e-5):
    """Fail if `actual` differs from `expected` by more than `tolerance` of its largest value."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    assert actual.dtype == expected.dtype and not actual.requires_grad, what
    error = (actual - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: differs by {error:.2e}"


def compare(block, layer, *shape, dtype=torch.float64, channels_last=False, tolerance=1e-5):
    """Run `block` and the torch layer on the same random input and gradient, twice without zeroing."""
    torch.manual_seed(0)
    layer = layer.to(dtype)
    if isinstance(block, ours.Convolution):
        block.weight, block.bias = layer.weight, layer.bias
    for _ in range(2):
        x = torch.randn(*shape, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        reference = x.clone().requires_grad_()
        expected = layer(reference)
        gradient = torch.randn_like(expected)
        expected.backward(gradient)
        output = block(x.clone())
        close(output, expected.detach(), "forward", tolerance)
        close(block.backward(gradient), reference.grad, "gradient of the input", tolerance)
        assert output.is_contiguous(memory_format=torch.channels_last) or not channels_last
        assert output.is_contiguous() or channels_last
    for (parameter, accumulated), expected in zip(block.param(), layer.parameters(), strict=True):
        close(accumulated, expected.grad, f"accumulated gradient of {tuple(parameter.shape)}", tolerance)


def our_convolution(layer, **settings):
    """The block with the arguments of the torch class `layer`."""
    names = {torch.nn.Conv2d: ours.Conv2d, torch.nn.ConvTranspose2d: ours.TransposeConv2d}
    return names[layer](**settings)
