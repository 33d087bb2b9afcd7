"""Measures how recipe, network and data affect the score, by training named variants of them.

    python -m Miniproject_1.others.experiments run PHOTOS --validate val_data.pkl --seeds 0 1 2 --out results.jsonl
    python -m Miniproject_1.others.experiments table report/results/project_1.jsonl

The pairs are drawn from a folder of photographs. A seed gives all variants the same pairs, except those of the data.
Every run appends one line of JSON; a run whose line the file already holds is not repeated. Several `--pairs` give
the curve of the score against the seconds of training. Networks without a gain are here, not in `model.py`. Variants
change the network of BASE, from which ours was developed; BASE is as good, a fifth slower.

Sources of the networks' parts: K. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016 (pre-activation);
L. Chen et al., "Simple Baselines for Image Restoration", ECCV 2022 (multiplied halves, 1 x 1 and depthwise
convolutions around layer norm).
"""

import argparse
import functools
import itertools
import math
import operator
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
    ORIGINAL_RECIPE,
    Denoiser,
    DoubleConv,
    Model,
    Recipe,
    ResidualBlock,
    ResidualUNet,
    UNet,
    all_sizes,
    conv,
    he_initialised,
    make_equivariant,
    zero_initialised,
)
from Miniproject_1.others.command_line import count, draw_progress, exit_on_error, positive, some_path, summary
from Miniproject_1.others.data import add_noise, draw_pairs, noisy_and_clean, noisy_and_mean, noisy_pairs, read_pairs
from Miniproject_1.others.files import check_writable
from Miniproject_1.others.metrics import psnr
from Miniproject_1.others.photos import load_photos
from Miniproject_1.others.results import append_result, now_and_where, processor, read_results

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
        self.first = conv(width, 2 * width)

    def forward(self, x):
        u, v = self.first(x).chunk(2, dim=1)
        return x + self.second(self.gated(u * v))


class Depthwise(nn.Module):
    """NAFNet's block: layer norm, 1 x 1, depthwise 3 x 3, gate, 1 x 1; then layer norm, 1 x 1, gate, 1 x 1.

    It is not equivariant: the depthwise kernels of each eight features would have to be turned copies of one another.
    So the variant is compared with ours without equivariance.
    """

    def __init__(self, width, cell):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.widen1, self.widen2 = (conv(width, 2 * width, kernel=1) for _ in range(2))
        self.across = he_initialised(nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width))
        self.narrow1, self.narrow2 = (conv(width, width, kernel=1) for _ in range(2))

    def forward(self, x):
        u, v = self.across(self.widen1(self.norm1(x))).chunk(2, dim=1)
        x = x + self.narrow1(u * v)
        u, v = self.widen2(self.norm2(x)).chunk(2, dim=1)
        return x + self.narrow2(u * v)


# ---------------------------------------------------------------------------------------------- networks


BASE = {"width": 40, "inner_blocks": 1}  # sizes of the network that variants change


def with_blocks(block, equivariant=True, **sizes):
    """The network of BASE with every residual block replaced by `block(width, cell)`."""
    network = ResidualUNet(equivariant=False, **BASE, **sizes)
    for stage in (network.encode, network.inner, network.decode):
        for index, old in enumerate(stage):
            stage[index] = block(old.first.in_channels, old.cell)
    if equivariant:
        make_equivariant(network)
    return network


class Scaled(ResidualUNet):
    """The network of BASE with the weights of its first layer times `scale / 4`."""

    def __init__(self, scale):
        super().__init__(**BASE)
        with torch.no_grad():
            self.first.weight.mul_(scale / 4)


class Flat(Denoiser):
    """Residual blocks at full resolution only."""

    multiple, predicts_noise = 1, True

    def __init__(self, width, blocks):
        super().__init__()
        self.first, self.last = conv(3, width), zero_initialised(conv(width, 3))
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.reach = 2 * blocks + 2
        make_equivariant(self)

    def forward(self, images):
        return images + self.last(F.relu(self.blocks(F.relu(self.first(4 * (images - 0.5))))))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that uses batch statistics while gradients are enabled: `Model` never switches modes."""

    def forward(self, x):
        self.training = torch.is_grad_enabled()
        return super().forward(x)


def unet(pool=None, slope=0.1, norm=None):
    """The original U-Net with another pooling, another slope of its activations, and a norm before each of them."""
    network = UNet()
    network.pool = pool or network.pool
    for name, layers in list(network.named_children()):
        if isinstance(layers, DoubleConv):
            convs = [he_initialised(layer, slope) for layer in layers if isinstance(layer, nn.Conv2d)]
            parts = ([layer, norm(layer.out_channels)] if norm else [layer] for layer in convs)
            setattr(network, name, nn.Sequential(*(m for part in parts for m in (*part, nn.LeakyReLU(slope)))))
    return network


# ---------------------------------------------------------------------------------------------- noisier inputs


def noisier_half(picture, count, seed, level=10):
    """`noisy_pairs`, half of whose first images have Gaussian noise of `level` grey values added."""
    noisy_a, noisy_b = noisy_pairs(picture, count, seed)
    noisier = add_noise(noisy_a, "gaussian", level, torch.Generator().manual_seed(seed))
    return torch.cat([noisier[: count // 2], noisy_a[count // 2 :]]), noisy_b


def blurred_half(picture, count, seed):
    """`noisy_pairs`, half of whose first images are blurred: means of 3 x 3 pixels."""
    noisy_a, noisy_b = noisy_pairs(picture, count, seed)
    blurred = F.avg_pool2d(F.pad(noisy_a.float(), (1, 1, 1, 1), mode="reflect"), 3, stride=1).round().to(torch.uint8)
    return torch.cat([blurred[: count // 2], noisy_a[count // 2 :]]), noisy_b


# ---------------------------------------------------------------------------------------------- variants


@dataclass(frozen=True)
class Variant:
    """What differs from BASE: fields of the recipe, name and sizes of the network, the network, the data."""

    recipe: dict = field(default_factory=dict)
    name: str = "residual_unet"
    sizes: dict = field(default_factory=dict)
    network: Callable | None = None  # makes another network than `Model` has
    draw: Callable = noisy_pairs  # makes the pairs of a photograph
    photos: float = 1.0  # share of the photographs that are drawn from
    pairs: float = 1.0  # share of the pairs asked for that are drawn


def only_adam(lr):
    return Variant({"muon_lr": 0, "adam_lr": lr})


def with_activation(activation):
    return Variant(network=lambda: with_blocks(functools.partial(Activated, activation=activation)))


def averaged(draws, inputs=None):
    """Targets that are means of draws - 1 noisy images; they have less noise, so no pixels are swapped."""
    return Variant({"swap_pixels": False}, draw=functools.partial(noisy_and_mean, draws=draws, inputs=inputs))


def original(name, recipe=(), **settings):
    """One of the original report's networks with its recipe, but for what is given."""
    return Variant(asdict(ORIGINAL_RECIPE) | dict(recipe), name, **settings)


GRID_RATES, GRID_BATCHES = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2"), (4, 8, 16, 32)


def grid(title, name):
    """One of the original's networks at every learning rate and batch size of its search."""
    return {
        f"the original's {title}, Adam {lr}, batch {batch}": original(name, {"adam_lr": float(lr), "batch_size": batch})
        for lr in GRID_RATES
        for batch in GRID_BATCHES
    }


ONE, BOTH = "one direction", "both directions"  # ONE, at half the work, is what each other variant differs from

VARIANTS = {
    "ours": Variant({"both_directions": None}, sizes=all_sizes(ResidualUNet, {})),
    BOTH: Variant({"both_directions": None}),
    ONE: Variant(),
    "the original's U-Net and recipe": original("unet"),
    "the original's Noise2Noise network and recipe": original("noise2noise"),
    **grid("U-Net", "unet"),
    **grid("Noise2Noise network", "noise2noise"),
    "the original's U-Net, batch normalisation": original("unet", network=lambda: unet(norm=BatchNorm)),
    "the original's U-Net, batch normalisation, batch 32": original(
        "unet", {"batch_size": 32}, network=lambda: unet(norm=BatchNorm)
    ),
    "the original's U-Net, max pooling": original("unet", network=lambda: unet(nn.MaxPool2d(2))),
    "the original's U-Net, ReLU": original("unet", network=lambda: unet(slope=0.0)),
    "the original's U-Net, no flips": original("unet", {"flips": False}),
    "the original's U-Net, noise on half of the inputs": original("unet", draw=noisier_half),
    "the original's U-Net, half of the inputs blurred": original("unet", draw=blurred_half),
    "the original's U-Net, our recipe": Variant(name="unet"),
    "the original's recipe": original("residual_unet"),
    "width 24": Variant(sizes={"width": 24}),
    "width 32": Variant(sizes={"width": 32}),
    "width 48": Variant(sizes={"width": 48}),
    "width 64": Variant(sizes={"width": 64}),
    "not equivariant": Variant(sizes={"equivariant": False}),
    "not equivariant, width 24": Variant(sizes={"equivariant": False, "width": 24}),
    "not equivariant, flips alone": Variant({"transpose": False}, sizes={"equivariant": False}),
    "width 32, 2 blocks a stage": Variant(sizes={"width": 32, "blocks": 2}),
    "2 blocks a stage": Variant(sizes={"blocks": 2}),
    "2 inner blocks": Variant(sizes={"inner_blocks": 2}),
    "2 blocks a stage, 2 inner": Variant(sizes={"blocks": 2, "inner_blocks": 2}),
    "flat, 4 blocks": Variant(network=lambda: Flat(40, 4)),
    "three levels": Variant(sizes={"levels": 3}),
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
    "Muon 1e-3": Variant({"muon_lr": 1e-3}),
    "Muon 2e-3": Variant({"muon_lr": 2e-3}),
    "Muon 8e-3": Variant({"muon_lr": 8e-3}),
    "Muon 1.6e-2": Variant({"muon_lr": 1.6e-2}),
    "Adam 2e-3 beside Muon": Variant({"adam_lr": 2e-3}),
    "Adam 1e-2 beside Muon": Variant({"adam_lr": 1e-2}),
    "Adam alone 1e-3": only_adam(1e-3),
    "Adam alone 2e-3": only_adam(2e-3),
    "Adam alone 4e-3": only_adam(4e-3),
    "Adam alone 8e-3": only_adam(8e-3),
    "batch 8": Variant({"batch_size": 8}),
    "batch 32": Variant({"batch_size": 32}),
    "constant rate": Variant({"constant_lr": True}),
    "no averaging": Variant({"ema_decay": 0.0}),
    "EMA decay 0.9": Variant({"ema_decay": 0.9}),
    "EMA decay 0.98": Variant({"ema_decay": 0.98}),
    "no pixel swap": Variant({"swap_pixels": False}),
    "no negatives": Variant({"negatives": False}),
    "few pairs over again": Variant({"both_directions": None, "min_pairs": Recipe.min_pairs}),
    "images weighted alike": Variant({"variance_floor": None}),
    "variance floor 0.0005": Variant({"variance_floor": 0.0005}),
    "variance floor 0.01": Variant({"variance_floor": 0.01}),
    "means of 3 noisy targets": averaged(4),
    "means of 7 noisy targets": averaged(8),
    "means of 7 noisy targets, gates": replace(averaged(8), sizes={"gates": True}),
    "means of 15 noisy targets": averaged(16),
    "means of 31 noisy targets, a quarter learnt from": averaged(32, inputs=8),
    "clean targets": Variant({"swap_pixels": False}, draw=noisy_and_clean),
    "half of the photos": Variant(photos=0.5),
    "an eighth of the photos": Variant(photos=0.125),
    "64 x 64, a quarter of the pairs": Variant(draw=functools.partial(noisy_pairs, cells=64), pairs=0.25),
}


def make_model(variant, seed):
    fixed = {"min_pairs": 0, "both_directions": False, "last_lr_scale": 1.0}  # as many passes as are asked for
    recipe = Recipe(**fixed | variant.recipe)
    sizes = (BASE if variant.name == "residual_unet" else {}) | variant.sizes
    model = Model(variant.name, recipe=recipe, seed=seed, **sizes)
    if variant.network is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = variant.network()
        model.network = network.to(model.device)
    return model


# ---------------------------------------------------------------------------------------------- runs


@torch.no_grad()
def multiply_adds(network, side=32, in_channels=3):
    """Multiply-adds of one forward pass of an image of `side` x `side`."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, in_channels, side, side, device=device))
    return counter.get_total_flops() // 2


def run(name, seed, photos, count, epochs, validation):
    """Trains one variant; returns its settings, its size and what came out."""
    variant = VARIANTS[name]
    model = make_model(variant, seed)
    some = photos[: math.ceil(variant.photos * len(photos))]
    pairs = draw_pairs(some, math.ceil(variant.pairs * count), seed, variant.draw)
    row = {
        "network": {"class": type(model.network).__name__, **model.sizes},
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "multiply_adds": multiply_adds(model.network),
    }
    return row | trained_and_scored(model, pairs, epochs, validation)


def trained_and_scored(model, pairs, epochs, validation):
    """The recipe, the seconds of training and the dB after it; the model is that of either project."""
    noisy, clean = validation
    began = time.monotonic()
    model.train(*pairs, epochs, progress=lambda step, steps, _: draw_progress(step, steps))
    seconds = time.monotonic() - began
    return {
        "recipe": asdict(model.recipe),
        "machine": processor(model.device),
        "seconds": round(seconds, 1),
        "single": round(psnr(model.predict(noisy, ensemble=False), clean), 3),
        "ensemble": round(psnr(model.predict(noisy, ensemble=True), clean), 3),
    }


# ---------------------------------------------------------------------------------------------- results


def run_all(options, variants, run):
    """Runs what is asked for and not done yet."""
    check_writable(options.out)
    validation = read_pairs(options.validate)
    identity = operator.itemgetter("seed", "pairs", "variant", "epochs")
    done = set()
    if options.out.exists():
        done = {identity(row) for row in read_results(options.out)}
        options.out.open("ab").close()  # OSError now, not after the training
    photos = load_photos(options.photos)
    for job in itertools.product(options.seeds, options.pairs, options.only or variants, options.epochs):
        if job in done:
            continue
        seed, pairs, name, epochs = job
        row = {"variant": name, "seed": seed, "pairs": pairs, "epochs": epochs}
        row |= run(name, seed, photos, pairs, epochs, validation)
        append_result(options.out, row | now_and_where())
        done.add(job)
        title = f"{name}, seed {seed}, {pairs} pairs, {epochs} epochs"
        print(f"{title}: {row['single']:.3f} dB, {row['seconds']:.0f} s", flush=True)


def table(rows):
    """A Markdown table: a line for each variant and number of pairs, means over its n seeds, the best first.

    The single pass comes with its standard error over the seeds. The difference to ONE is taken over the seeds that
    the two have in common: most of a seed's effect is the same for both.
    """
    groups = {}
    for row in rows:
        groups.setdefault((row["pairs"], row["epochs"]), {}).setdefault(row["variant"], []).append(row)
    head = f"variant | parameters | multiply-adds | pairs | epochs | n | single pass | to {ONE} | self-ensemble | s"
    lines = [f"| {head} |\n{10 * '|---'}|"]
    for _, variants in sorted(groups.items()):
        by_score = sorted(variants.values(), key=lambda rows: order_of(statistics.fmean(values(rows, "single"))))
        lines += [table_line(rows, variants.get(ONE, [])) for rows in by_score]
    return "\n".join(lines)


def order_of(score):
    """Sorts the largest score first; what has diverged, NaN, comes last."""
    return math.isnan(score), -score


def table_line(rows, base):
    first, scores = rows[0], {row["seed"]: row["single"] for row in base}
    differences = [row["single"] - scores[row["seed"]] for row in rows if rows is not base and row["seed"] in scores]
    cells = [
        first["variant"],
        f"{first['parameters']:,}",
        f"{first['multiply_adds'] / 1e6:.0f} M",
        f"{first['pairs']:,}",
        first["epochs"],
        len(rows),
        with_error(values(rows, "single")),
        with_error(differences, "+"),
        f"{statistics.fmean(values(rows, 'ensemble')):.3f}",
        f"{statistics.fmean(values(rows, 'seconds')):.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def values(rows, key):
    return [row[key] for row in rows]


def with_error(numbers, sign=""):
    """The mean, with its standard error for two numbers or more; "" for none."""
    if not numbers:
        return ""
    if not all(map(math.isfinite, numbers)):
        return f"{statistics.fmean(numbers)}"
    error = f" ± {statistics.stdev(numbers) / math.sqrt(len(numbers)):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):{sign}.3f}{error}"


def parse_arguments(arguments, variants):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help="train the variants")
    training.add_argument("photos", type=some_path, help="folder of photographs to draw the pairs from")
    training.add_argument("--validate", type=some_path, required=True, help="a val_data.pkl to score on")
    training.add_argument("--pairs", type=positive, nargs="+", default=[15_600], help="training pairs (default 15600)")
    training.add_argument("--epochs", type=positive, nargs="+", default=[1], help="passes over the pairs (default 1)")
    training.add_argument("--seeds", type=count, nargs="+", default=[0], help="of pairs, weights and draws (default 0)")
    training.add_argument("--only", nargs="+", choices=variants, metavar="NAME", help="these variants instead of all")
    training.add_argument("--out", type=some_path, required=True, help="file of JSON lines to append to")
    printing = commands.add_parser("table", help="print the results as a table")
    printing.add_argument("results", type=some_path, help="file of JSON lines")
    return parser.parse_args(arguments)


def main(arguments=None, variants=VARIANTS, run=run):
    options = parse_arguments(arguments, variants)
    with exit_on_error("experiments.py"):
        if options.command == "run":
            run_all(options, variants, run)
        else:
            print(table(read_results(options.results)))


if __name__ == "__main__":
    main()
