"""How often our convolutions pass plain `allclose` against torch in float32 on a CPU.

    python -m Miniproject_2.others.rounding --threads 2 --seeds 3

A configuration passes if all its seeds do. torch sums one small image in its own order, as we do; for the rest
it calls the processor's library, whose order we share only in short sums.
"""

import argparse
import itertools
from collections import defaultdict

import torch
from torch import nn

from Miniproject_2 import model as ours

WINDOWS = [(3, 1, 0), (3, 1, 1), (3, 2, 1), (4, 2, 1), (2, 2, 0), (5, 1, 2), (5, 2, 2), (3, 3, 0), (1, 1, 0)]
CHANNELS = [(3, 3), (1, 4), (5, 7), (8, 16), (16, 8), (64, 24), (48, 100)]
TWINS = {"Conv2d": nn.Conv2d, "TransposeConv2d": nn.ConvTranspose2d}
PARTS = ("forward", "input gradient", "weight gradient", "bias gradient")


def passes(block, layer, n, size):
    """(forward, input gradient, weight gradient, bias gradient): plain allclose."""
    block.weight, block.bias = layer.weight, layer.bias
    x = torch.randn(n, layer.in_channels, size, size, requires_grad=True)
    expected = layer(x)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    pairs = [
        (block(x), expected),
        (block.backward(gradient), x.grad),
        (block.weight_grad, layer.weight.grad),
        (block.bias_grad, layer.bias.grad),
    ]
    return [torch.allclose(mine, other) for mine, other in pairs]


def configurations():
    """Yields (group of the table, positional arguments, keyword arguments) for either convolution."""
    for (inputs, outputs), (kernel, stride, padding) in itertools.product(CHANNELS, WINDOWS):
        group = "kernel 1" if kernel == 1 else "plain"
        yield group, (inputs, outputs, kernel), {"stride": stride, "padding": padding}
    for (inputs, outputs), stride in itertools.product(CHANNELS[:5], (1, 2)):
        yield (
            f"dilation 2, stride {stride}",
            (inputs, outputs, 3),
            {"stride": stride, "padding": 2, "dilation": 2},
        )
    for channels, groups in [((8, 8), 8), ((16, 16), 2), ((32, 64), 4), ((4, 4), 2), ((6, 12), 3)]:
        kind = "depthwise" if channels[0] == groups else "of 8" if channels[0] // groups == 8 else "of 2"
        for stride in (1, 2):
            yield f"groups, {kind}", (*channels, 3), {"stride": stride, "padding": 1, "groups": groups}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="that a configuration has to pass (default 3)")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels (default 32)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="images a batch (default 1 and 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    counts, passed = defaultdict(int), defaultdict(lambda: [0] * len(PARTS))
    for group, arguments, settings in configurations():
        for n, name in itertools.product(options.batches, TWINS):
            results = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                layer = TWINS[name](*arguments, **settings)
                block = getattr(ours, name)(*arguments, **settings)
                results.append(passes(block, layer, n, options.size))
            counts[name, group, n] += 1
            for index, column in enumerate(zip(*results, strict=True)):
                passed[name, group, n][index] += all(column)
    print(
        f"torch {torch.__version__}, {options.threads} threads, {sum(counts.values())} configurations x {options.seeds}"
    )
    print(f"{'block':16} {'group':22} {'batch':>5} {'number':>6}  " + "  ".join(f"{part:>15}" for part in PARTS))
    for key in sorted(counts):
        name, group, n = key
        shares = "  ".join(f"{100 * part / counts[key]:13.0f} %" for part in passed[key])
        print(f"{name:16} {group:22} {n:5} {counts[key]:6}  {shares}")


if __name__ == "__main__":
    main()
