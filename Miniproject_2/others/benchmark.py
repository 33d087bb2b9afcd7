"""Time our training step against torch.nn with autograd: same network, batch, optimiser and process.

    python -m Miniproject_2.others.benchmark --repeats 30 --threads 2

Both sides take turns, so that a busy moment hits both; the table shows medians in milliseconds. For torch it shows the
faster overall of contiguous and channels-last tensors; its Muon is our own code on torch's parameters and gradients.
For a network, neither side computes the gradient of the input. In the bfloat16 line torch runs under autocast. The
last line compares a whole training step in float32 and one direction, from drawing the pairs to averaging the weights.
"""

import argparse
import itertools
import random
import statistics
import time

import torch
from torch import nn

from Miniproject_2 import model as ours

LR = 1e-9  # else the repeated random gradient saturates the sigmoid, and the tiny gradients then are slow to multiply


def torch_network(architecture):
    """The layers of our `Network` out of torch.nn."""
    a = architecture

    def down(inputs, outputs):
        return nn.Conv2d(inputs, outputs, a.kernel, stride=2, padding=(a.kernel - 1) // 2)

    def up(inputs, outputs):
        k = a.up_kernel
        if a.upsampling == "transposed":
            return nn.ConvTranspose2d(inputs, outputs, k, stride=2, padding=k // 2 - 1)
        return nn.Sequential(nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(inputs, outputs, k, padding="same"))

    return nn.Sequential(
        down(a.in_channels, a.width),
        nn.ReLU(inplace=True),
        down(a.width, a.deep_width),
        nn.ReLU(inplace=True),
        up(a.deep_width, a.width),
        nn.ReLU(inplace=True),
        up(a.width, a.in_channels),
        nn.Sigmoid(),
    )


class TorchStep:
    """forward(x), backward(gradient), update() of a torch module, in float32 or in bfloat16 by autocast."""

    def __init__(self, layer, channels_last, make_optimiser=None, dtype=torch.float32):
        self.dtype, self.format = dtype, torch.channels_last if channels_last else torch.contiguous_format
        self.layer = layer.to(memory_format=self.format)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pairs = [(parameter, parameter.grad) for parameter in layer.parameters()]
        self.optimiser = make_optimiser(pairs) if make_optimiser else None

    def prepare(self, x):
        """A network trains without the gradient of its input, a block has it measured."""
        return x.contiguous(memory_format=self.format).requires_grad_(not isinstance(self.layer, nn.Sequential))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            self.output = self.layer(x).float()
        return self.output

    def backward(self, gradient):
        self.output.backward(gradient)

    def update(self):
        self.optimiser.step()
        self.optimiser.zero_grad()


class OurStep:
    """The same of one of our modules, in channels-last memory as `Model` uses it.

    A network's update symmetrises the gradients as `Training` does; torch's side is spared that.
    """

    def __init__(self, block, make_optimiser=None):
        self.block = block
        self.optimiser = make_optimiser(block.param()) if make_optimiser else None
        self.orbits = block.orbits() if make_optimiser else []

    def prepare(self, x):
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x):
        return self.block(x)

    def backward(self, gradient):
        backward = self.block.add_gradients if isinstance(self.block, ours.Network) else self.block.backward
        backward(gradient)

    def update(self):
        for (_, gradient), orbit in zip(self.block.param(), self.orbits, strict=True):
            gradient.copy_(ours.symmetrised(gradient, orbit))
        self.optimiser.step()
        self.optimiser.zero_grad()


def measure(contenders, shape, repeats, clock=time.perf_counter):
    """{name: {phase: median milliseconds}}, the contenders taking turns; `clock` gives seconds.

    Freed memory is kept for both sides, as `Training` keeps it: else the page faults of one are timed with the other.
    """
    ours.keep_freed_memory()
    x = torch.randn(shape)
    inputs = {name: step.prepare(x) for name, step in contenders.items()}
    gradients = {
        name: step.prepare(torch.randn(step.forward(inputs[name]).shape)).detach() for name, step in contenders.items()
    }
    times = {name: {"forward": [], "backward": [], "update": []} for name in contenders}
    for repeat in range(repeats + 3):
        for name, step in contenders.items():
            marks = [clock()]
            step.forward(inputs[name])
            marks.append(clock())
            step.backward(gradients[name])
            marks.append(clock())
            if step.optimiser:
                step.update()
            marks.append(clock())
            if repeat >= 3:
                for phase, (start, end) in zip(times[name], itertools.pairwise(marks), strict=True):
                    times[name][phase].append(1e3 * (end - start))
    return {name: {phase: statistics.median(t) for phase, t in phases.items()} for name, phases in times.items()}


def faster_torch(results):
    """The times of the faster of torch's two formats."""
    return min((results["torch"], results["torch channels-last"]), key=lambda phases: sum(phases.values()))


def report(title, results):
    """One line: ours, the faster of torch's two formats by phase, and the ratios."""
    mine, torchs = results["ours"], faster_torch(results)
    cells = [f"{mine[p]:8.2f} {torchs[p]:8.2f} {mine[p] / torchs[p]:6.2f}" for p in ("forward", "backward")]
    total, reference = sum(mine.values()), sum(torchs.values())
    print(f"{title:36} {'  '.join(cells)}  {total:8.2f} {reference:8.2f} {total / reference:6.2f}", flush=True)


class WholeSteps:
    """What `Model.train` does in a step, by `Training` or by torch: draw pairs, learn from them, average."""

    def __init__(self, batch, size, architecture):
        self.batch, self.network = batch, ours.Network(architecture, random.Random(0))
        self.recipe = ours.Recipe(swap_pixels=True)
        noisy = torch.randint(0, 256, (16 * batch, architecture.in_channels, size, size), dtype=torch.uint8)
        self.pairs = ours.Pairs(noisy, noisy, "cpu")
        self.training = ours.Training(self.network, self.recipe, 0, 1000)
        self.steps = {
            name: TorchStep(torch_network(architecture), last, lambda params: ours.Muon(params, 1e-3))
            for name, last in (("torch", False), ("torch channels-last", True))
        }
        self.averages = {
            name: [p.detach().clone() for p in step.layer.parameters()] for name, step in self.steps.items()
        }

    def take(self, name):
        generator = self.training.generator
        noisy_a, noisy_b = self.pairs.batch(generator.sample(range(len(self.pairs)), self.batch), generator)
        if name == "ours":
            self.training.step(noisy_a, noisy_b, 0.1)
            return
        step = self.steps[name]
        noisy_a, noisy_b = ours.augment(noisy_a, noisy_b, self.recipe, generator)
        x, y = self.network.prepared(noisy_a), ours.channels_last(noisy_b)
        nn.functional.mse_loss(step.forward(step.prepare(x)), y).backward()
        step.update()
        torch._foreach_lerp_(self.averages[name], [p.detach() for p in step.layer.parameters()], 1e-3)

    def milliseconds(self, repeats):
        """{name: median}, taking turns."""
        times = {name: [] for name in ("ours", *self.steps)}
        for repeat in range(repeats + 3):
            for name, passed in times.items():
                start = time.perf_counter()
                self.take(name)
                if repeat >= 3:
                    passed.append(1e3 * (time.perf_counter() - start))
        return {name: statistics.median(passed) for name, passed in times.items()}


def contenders(make_block, make_layer, make_optimiser=None, dtype=torch.float32):
    return {
        "ours": OurStep(make_block(), make_optimiser),
        "torch": TorchStep(make_layer(), False, make_optimiser, dtype),
        "torch channels-last": TorchStep(make_layer(), True, make_optimiser, dtype),
    }


def networks(architecture, make_optimiser, dtype):
    """The contenders of whole networks, their large products in a dtype."""
    network = ours.Network(architecture, random.Random(0))
    network.round_products(dtype == torch.bfloat16)
    return contenders(lambda: network, lambda: torch_network(architecture), make_optimiser, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images a batch (default 32)")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each (default 20)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    n, size, a = options.batch, options.size, ours.Architecture()
    w, d, k = a.width, a.deep_width, a.kernel
    blocks = [
        (f"Conv2d {a.in_channels} to {w}, stride 2", "Conv2d", "Conv2d", (a.in_channels, w, k, 2, 1), size),
        (f"Conv2d {w} to {d}, stride 2", "Conv2d", "Conv2d", (w, d, k, 2, 1), size // 2),
        (
            f"TransposeConv2d {d} to {w}, stride 2",
            "TransposeConv2d",
            "ConvTranspose2d",
            (d, w, 4, 2, 1),
            size // 4,
        ),
        (
            f"TransposeConv2d {w} to {a.in_channels}, stride 2",
            "TransposeConv2d",
            "ConvTranspose2d",
            (w, a.in_channels, 4, 2, 1),
            size // 2,
        ),
        (f"Conv2d {w} to {w}, stride 1, kernel 3", "Conv2d", "Conv2d", (w, w, 3, 1, 1), size // 2),
    ]
    print(f"torch {torch.__version__}, {options.threads} threads, batch {n}, images {size}x{size}; milliseconds")
    print(f"{'':36} {'forward':^24}  {'backward':^24}  {'together':^24}")
    print(f"{'':36} {'    ours    torch  ratio  ' * 3}")
    for title, block, layer, arguments, side in blocks:
        both = contenders(
            lambda b=block, v=arguments: getattr(ours, b)(*v), lambda n=layer, v=arguments: getattr(nn, n)(*v)
        )
        report(title, measure(both, (n, arguments[0], side, side), options.repeats))
    for title, block, layer, shape in [
        ("ReLU", ours.ReLU, nn.ReLU, (n, w, size // 2, size // 2)),
        ("Sigmoid", ours.Sigmoid, nn.Sigmoid, (n, a.in_channels, size, size)),
        (
            "NearestUpsampling 2",
            lambda: ours.NearestUpsampling(2),
            lambda: nn.UpsamplingNearest2d(scale_factor=2),
            (n, w, 8, 8),
        ),
    ]:
        report(title, measure(contenders(block, layer), shape, options.repeats))
    for title, optimiser, dtype in [
        ("network, no optimiser", None, torch.float32),
        ("network, SGD momentum: a step", lambda params: ours.SGD(params, LR, 0.9), torch.float32),
        ("network, Muon: a step", lambda params: ours.Muon(params, LR), torch.float32),
        ("the same in bfloat16", lambda params: ours.Muon(params, LR), torch.bfloat16),
    ]:
        both = networks(a, optimiser, dtype)
        report(title, measure(both, (n, a.in_channels, size, size), options.repeats))
    steps = WholeSteps(n, size, a).milliseconds(options.repeats)
    mine, torchs = steps.pop("ours"), min(steps.values())
    print(f"{'a step of an epoch, with everything':36} {'':52} {mine:8.2f} {torchs:8.2f} {mine / torchs:6.2f}")


if __name__ == "__main__":
    main()
