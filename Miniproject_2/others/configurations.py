"""Settings of both convolutions drawn at random, for the tests and for the report's check against torch."""

import random

from torch import nn


def random_configurations(count, seed):
    """Yields `count` of (class of torch.nn, its arguments, (N, H, W) of an input whose output is not empty)."""
    draw = random.Random(seed).randint
    while count:
        groups = draw(1, 3)
        options = {"in_channels": draw(1, 4) * groups, "out_channels": draw(1, 4) * groups, "groups": groups}
        options["bias"] = bool(draw(0, 1))
        for name, low, high in (("kernel_size", 1, 5), ("stride", 1, 4), ("padding", 0, 3), ("dilation", 1, 3)):
            options[name] = (draw(low, high), draw(low, high))
        layer = nn.ConvTranspose2d if draw(0, 1) else nn.Conv2d
        if layer is nn.ConvTranspose2d:
            limits = [max(steps) for steps in zip(options["stride"], options["dilation"], strict=True)]
            options["output_padding"] = tuple(draw(0, limit - 1) for limit in limits)
        n, height, width = draw(1, 3), draw(1, 17), draw(1, 17)
        if output_side(height, options, 0) > 0 and output_side(width, options, 1) > 0:
            yield layer, options, (n, height, width)
            count -= 1


def output_side(side, options, axis):
    """Pixels of the output along an axis, as torch.nn documents it; less than 1 where there is none."""
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (options[name][axis] for name in names)
    window = dilation * (kernel - 1) + 1
    if "output_padding" in options:
        return (side - 1) * stride - 2 * padding + window + options["output_padding"][axis]
    return (side + 2 * padding - window) // stride + 1
