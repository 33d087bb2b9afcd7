"""Finds out what the score depends on: trains named variants of recipe, network and data, each on its own.

    python Miniproject_1/others/experiments.py run PHOTOS --validate val_data.pkl --seeds 0 1 --out results.jsonl
    python Miniproject_1/others/experiments.py table results.jsonl

The pairs are drawn from a folder of photographs, the same for every variant but for those of the data. Every run
appends one line of JSON; a run whose line the file already holds is not repeated. Several `--pairs` give the curve of
the score against the seconds of training. Networks that did not pay live here, not in `model.py`.

Sources of the networks' parts: K. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation);
L. Chen et al., "Simple Baselines for Image Restoration", ECCV 2022 (multiplied halves, 1 x 1 and depthwise
convolutions around layer norm).
"""

import argparse
import functools
import itertools
import json
import math
import operator
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import (
    REPORT_RECIPE,
    Model,
    Recipe,
    ResidualBlock,
    ResidualUNet,
    convolution,
    he_initialised,
    make_equivariant,
    zero_initialised,
)
from Miniproject_1.others.data import (
    draw_pairs,
    load_photos,
    noisy_and_clean,
    noisy_and_mean,
    noisy_pairs,
    progress_bar,
    psnr,
    summary,
)

# ---------------------------------------------------------------------------------------------- blocks


class Activated(ResidualBlock):
    """The residual block of `model.py` with another activation."""

    def __init__(self, width, cell, activation):
        super().__init__(width, cell)
        self.activation = activation

    def forward(self, x):
        return x + self.second(self.gated(self.activation(self.first(x))))


class PreActivated(ResidualBlock):
    """x + conv(g * relu(conv(relu(x))))."""

    def forward(self, x):
        return x + self.second(self.gated(F.relu(self.first(F.relu(x)))))


class GatedOutput(ResidualBlock):
    """x + g * conv(relu(conv(x)))."""

    def forward(self, x):
        return x + self.gated(self.second(F.relu(self.first(x), inplace=True)))


class Multiplied(ResidualBlock):
    """x + conv(g * u * v), u and v the two halves of a convolution to twice the features."""

    def __init__(self, width, cell):
        super().__init__(width, cell)
        self.first = convolution(width, 2 * width)

    def forward(self, x):
        u, v = self.first(x).chunk(2, dim=1)
        return x + self.second(self.gated(u * v))


class Depthwise(nn.Module):
    """NAFNet's block: layer norm, 1 x 1, depthwise 3 x 3, gate, 1 x 1; then layer norm, 1 x 1, gate, 1 x 1.

    Eights of features in the depthwise convolution would need kernels that are turned into each other: it is not
    equivariant, and the variant is compared with ours without equivariance.
    """

    def __init__(self, width, cell):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.widen1, self.widen2 = (convolution(width, 2 * width, kernel=1) for _ in range(2))
        self.across = he_initialised(nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width))
        self.narrow1, self.narrow2 = (convolution(width, width, kernel=1) for _ in range(2))

    def forward(self, x):
        u, v = self.across(self.widen1(self.norm1(x))).chunk(2, dim=1)
        x = x + self.narrow1(u * v)
        u, v = self.widen2(self.norm2(x)).chunk(2, dim=1)
        return x + self.narrow2(u * v)


# ---------------------------------------------------------------------------------------------- networks


def with_blocks(block, equivariant=True, **sizes):
    """Our network with every residual block replaced by `block(width, cell)`."""
    network = ResidualUNet(equivariant=False, **sizes)
    for stage in (network.encode, network.inner, network.decode):
        for index, old in enumerate(stage):
            stage[index] = block(old.first.in_channels, old.cell)
    return made_equivariant(network) if equivariant else network


def with_activation(activation):
    return Variant(network=lambda: with_blocks(functools.partial(Activated, activation=activation)))


def made_equivariant(network):
    make_equivariant(network)
    return network


class Scaled(ResidualUNet):
    """Our network with its input features multiplied by `scale / 4` more."""

    def __init__(self, scale):
        super().__init__()
        with torch.no_grad():
            self.first.weight.mul_(scale / 4)


class Flat(nn.Module):
    """Residual blocks at full resolution only."""

    multiple = 1

    def __init__(self, width, blocks):
        super().__init__()
        self.first, self.last = convolution(3, width), zero_initialised(convolution(width, 3))
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        make_equivariant(self)

    def forward(self, images):
        return images + self.last(F.relu(self.blocks(F.relu(self.first(4 * (images - 0.5))))))


class Levels(nn.Module):
    """Our network with any number of levels; `blocks[k]` residual blocks on each side of level k."""

    def __init__(self, width, blocks):
        super().__init__()
        self.multiple = 2 ** (len(blocks) - 1)
        self.first, self.last = convolution(3, width), zero_initialised(convolution(width, 3))
        self.level = Level(width, blocks)
        with torch.no_grad():
            self.first.weight.div_(6**0.5)
        make_equivariant(self)

    def forward(self, images):
        return images + self.last(F.relu(self.level(F.relu(self.first(4 * (images - 0.5))))))


class Level(nn.Module):
    """Residual blocks around the next level, at half the resolution with twice the features."""

    def __init__(self, width, blocks):
        super().__init__()
        chains = [nn.Sequential(*(ResidualBlock(width) for _ in range(blocks[0]))) for _ in range(2)]
        self.encode, self.decode = chains if len(blocks) > 1 else (chains[0], nn.Identity())
        self.inner = None
        if len(blocks) > 1:
            self.down = convolution(width, 2 * width, kernel=2, stride=2)
            self.inner = Level(2 * width, blocks[1:])
            self.up = he_initialised(nn.ConvTranspose2d(2 * width, width, 2, stride=2))
            with torch.no_grad():
                for layer in (self.down, self.up):
                    layer.weight.div_(6**0.5)

    def forward(self, x):
        x = self.encode(x)
        if self.inner is not None:
            x = x + self.up(self.inner(F.relu(self.down(x))))
        return self.decode(x)


# ---------------------------------------------------------------------------------------------- variants


@dataclass(frozen=True)
class Variant:
    """What differs from the default: fields of the recipe, name and sizes of the network, the network, the data."""

    recipe: dict = field(default_factory=dict)
    name: str = "residual_unet"
    sizes: dict = field(default_factory=dict)
    network: Callable | None = None  # makes another network than `Model` has
    draw: Callable = noisy_pairs  # makes the pairs of a photograph
    photos: float = 1.0  # share of the photographs that are drawn from
    pairs: float = 1.0  # share of the pairs asked for that are drawn


def only_adam(rate):
    return Variant({"muon_rate": 0, "adam_rate": rate})


def averaged(draws, inputs=None):
    """Targets that are means of draws - 1 noisy images: not exchangeable with the one noisy image."""
    return Variant({"exchange": False}, draw=functools.partial(noisy_and_mean, draws=draws, inputs=inputs))


VARIANTS = {
    "ours": Variant(),
    "the report's U-Net and recipe": Variant(asdict(REPORT_RECIPE), "unet"),
    "the report's Noise2Noise network and recipe": Variant(asdict(REPORT_RECIPE), "noise2noise"),
    "width 24": Variant(sizes={"width": 24}),
    "width 32": Variant(sizes={"width": 32}),
    "width 48": Variant(sizes={"width": 48}),
    "width 64": Variant(sizes={"width": 64}),
    "not equivariant": Variant(sizes={"equivariant": False}),
    "not equivariant, width 24": Variant(sizes={"equivariant": False, "width": 24}),
    "not equivariant, flips alone": Variant({"transposed": False}, sizes={"equivariant": False}),
    "width 32, 2 blocks a stage": Variant(sizes={"width": 32, "blocks": 2}),
    "2 blocks a stage": Variant(sizes={"blocks": 2}),
    "2 inner blocks": Variant(sizes={"inner_blocks": 2}),
    "2 blocks a stage, 2 inner": Variant(sizes={"blocks": 2, "inner_blocks": 2}),
    "flat, 4 blocks": Variant(network=lambda: Flat(40, 4)),
    "three levels": Variant(network=lambda: Levels(40, (1, 1, 1))),
    "leaky ReLU": with_activation(nn.LeakyReLU(0.1)),
    "GELU": with_activation(nn.GELU()),
    "SiLU": with_activation(nn.SiLU()),
    "pre-activation": Variant(network=lambda: with_blocks(PreActivated)),
    "gates": Variant(sizes={"gates": True}),
    "gates on the output of a block": Variant(network=lambda: with_blocks(GatedOutput, gates=True)),
    "halves multiplied": Variant(network=lambda: with_blocks(Multiplied)),
    "depthwise, layer norm, not equivariant": Variant(network=lambda: with_blocks(Depthwise, False)),
    "inputs x1": Variant(network=lambda: Scaled(1)),
    "inputs x2": Variant(network=lambda: Scaled(2)),
    "inputs x8": Variant(network=lambda: Scaled(8)),
    "Muon 1e-3": Variant({"muon_rate": 1e-3}),
    "Muon 2e-3": Variant({"muon_rate": 2e-3}),
    "Muon 8e-3": Variant({"muon_rate": 8e-3}),
    "Adam 2e-3 beside Muon": Variant({"adam_rate": 2e-3}),
    "Adam 1e-2 beside Muon": Variant({"adam_rate": 1e-2}),
    "Adam alone 1e-3": only_adam(1e-3),
    "Adam alone 2e-3": only_adam(2e-3),
    "Adam alone 4e-3": only_adam(4e-3),
    "Adam alone 8e-3": only_adam(8e-3),
    "batch 8": Variant({"batch": 8}),
    "batch 32": Variant({"batch": 32}),
    "constant rate": Variant({"scheduled": False}),
    "no averaging": Variant({"averaging": 0.0}),
    "averaging 0.98": Variant({"averaging": 0.98}),
    "averaging 0.999": Variant({"averaging": 0.999}),
    "no exchange": Variant({"exchange": False}),
    "no negatives": Variant({"negatives": False}),
    "images weighted alike": Variant({"easy_first": 0.0}),
    "easy first 0.0005": Variant({"easy_first": 0.0005}),
    "easy first 0.01": Variant({"easy_first": 0.01}),
    "means of 3 noisy targets": averaged(4),
    "means of 7 noisy targets": averaged(8),
    "means of 7 noisy targets, gates": replace(averaged(8), sizes={"gates": True}),
    "means of 15 noisy targets": averaged(16),
    "means of 31 noisy targets, a quarter learnt from": averaged(32, inputs=8),
    "clean targets": Variant({"exchange": False}, draw=noisy_and_clean),
    "half of the photos": Variant(photos=0.5),
    "an eighth of the photos": Variant(photos=0.125),
    "64 x 64, a quarter of the pairs": Variant(draw=functools.partial(noisy_pairs, cells=64), pairs=0.25),
}


def make_model(variant, seed):
    model = Model(variant.name, recipe=Recipe(**variant.recipe), seed=seed, **variant.sizes)
    if variant.network is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = variant.network()
        model.network = network.to(model.device, memory_format=torch.channels_last)
    return model


# ---------------------------------------------------------------------------------------------- runs


def processor():
    capabilities = torch.cpu.get_capabilities()
    kind = "bfloat16" if capabilities.get("avx512_bf16") else "float32"
    return f"{torch.get_num_threads()} x {capabilities.get('cpu_name', platform.machine())}, {kind}"


@torch.no_grad()
def multiply_adds(network, device="cpu", side=32):
    """Of one forward pass of an image of `side` x `side`."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, side, side, device=device))
    return counter.get_total_flops() // 2


def run(name, seed, photos, count, epochs, validation):
    """Trains one variant; returns its size and what came out."""
    variant = VARIANTS[name]
    model = make_model(variant, seed)
    some = photos[: math.ceil(variant.photos * len(photos))]
    pairs = draw_pairs(some, math.ceil(variant.pairs * count), seed, variant.draw)
    parameters = sum(p.numel() for p in model.network.parameters())
    size = {"parameters": parameters, "multiply_adds": multiply_adds(model.network, model.device)}
    return size | trained_and_scored(model, pairs, epochs, validation)


def trained_and_scored(model, pairs, epochs, validation):
    """Seconds of training and dB after it; the model is that of either project."""
    noisy, clean = validation
    began = time.monotonic()
    model.train(*pairs, epochs, progress=lambda step, steps, _: progress_bar(step, steps))
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "single": round(psnr(model.predict(noisy, ensemble=False), clean), 3),
        "ensemble": round(psnr(model.predict(noisy, ensemble=True), clean), 3),
    }


def read_results(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(options, variants, run):
    """Runs what is asked for and not done yet."""
    validation = torch.load(options.validate, weights_only=True)
    photos = load_photos(options.photos)
    identity = operator.itemgetter("seed", "pairs", "variant", "epochs")
    done = {identity(row) for row in read_results(options.out)}
    for job in itertools.product(options.seeds, options.pairs, options.only or variants, options.epochs):
        if job in done:
            continue
        seed, count, name, epochs = job
        row = {"variant": name, "seed": seed, "pairs": count, "epochs": epochs}
        row |= run(name, seed, photos, count, epochs, validation)
        row |= {"machine": processor(), "torch": torch.__version__}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        about = f"{name}, seed {seed}, {count} pairs, {epochs} epochs"
        print(f"{about}: {row['single']:.3f} dB, {row['seconds']:.0f} s", flush=True)


def table(rows):
    """A Markdown table: a line for each variant and number of pairs, means over the seeds, the best first.

    Where there are several seeds, the standard deviation of their single passes follows.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["pairs"], row["epochs"], row["variant"]), []).append(row)
    lines = [[-mean(group, "single"), *key, group] for key, group in groups.items()]
    lines.sort(key=lambda line: (line[1], line[2], line[0]))
    head = "| variant | parameters | multiply-adds | pairs | epochs | seeds | single pass | self-ensemble | s |\n"
    return head + 9 * "|---" + "|\n" + "\n".join(table_line(*line) for line in lines)


def table_line(score, pairs, epochs, name, rows):
    size = f"{rows[0]['parameters']:,} | {rows[0]['multiply_adds'] / 1e6:.0f} M"
    deviation = f" ± {statistics.stdev(row['single'] for row in rows):.3f}" if len(rows) > 1 else ""
    scores = f"{-score:.3f}{deviation} | {mean(rows, 'ensemble'):.3f} | {mean(rows, 'seconds'):.0f}"
    return f"| {name} | {size} | {pairs:,} | {epochs} | {len(rows)} | {scores} |"


def mean(rows, name):
    return sum(row[name] for row in rows) / len(rows)


def parse_arguments(arguments, variants):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help="train the variants")
    training.add_argument("photos", type=Path, help="folder of photographs to draw the pairs from")
    training.add_argument("--validate", type=Path, required=True, help="a val_data.pkl to score on")
    training.add_argument("--pairs", type=int, nargs="+", default=[15_600])
    training.add_argument("--epochs", type=int, nargs="+", default=[1])
    training.add_argument("--seeds", type=int, nargs="+", default=[0])
    training.add_argument("--only", nargs="+", choices=variants, metavar="NAME", help="these variants instead of all")
    training.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    commands.add_parser("table", help="print the results as a table").add_argument("results", type=Path)
    return parser.parse_args(arguments)


def main(arguments=None, variants=VARIANTS, run=run):
    options = parse_arguments(arguments, variants)
    if options.command == "run":
        run_all(options, variants, run)
    else:
        print(table(read_results(options.results)))


if __name__ == "__main__":
    main()
