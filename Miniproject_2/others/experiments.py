"""Measures what the score of project 2 depends on: optimisers, kernels, widths, upsampling, recipe.

    python -m Miniproject_2.others.experiments run PHOTOS --validate val_data.pkl --out results.jsonl
    python -m Miniproject_2.others.experiments table results.jsonl

The command is that of project 1: the same options, the same lines of JSON, the same table.
"""

from dataclasses import asdict, dataclass, field

import torch

from Miniproject_1.others import experiments
from Miniproject_1.others.data import draw_pairs
from Miniproject_2.model import Convolution, Model, Recipe


@dataclass(frozen=True)
class Variant:
    """What differs from the default: sizes of the network and its precision, fields of the recipe."""

    sizes: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)


OPTIMISERS = {  # recipe, and learning rates in steps of two, so that neither end is the best
    "SGD": ({"optimiser": "sgd", "momentum": 0.0}, (1, 2, 4, 8, 16, 32)),
    "momentum": ({"optimiser": "sgd", "momentum": 0.9}, (0.25, 0.5, 1, 2, 4, 8)),
    "Adam": ({"optimiser": "adam"}, (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)),
    "Muon": ({}, (3.75e-3, 7.5e-3, 1.5e-2, 3e-2, 6e-2)),
}
SWEEP = {
    f"{name} {lr:g}": Variant(recipe=recipe | {"lr": float(lr)})
    for name, (recipe, rates) in OPTIMISERS.items()
    for lr in rates
}
NETWORKS = {
    "kernel 2": Variant({"kernel": 2}),
    "kernel 6": Variant({"kernel": 6}),
    "nearest upsampling, kernel 3": Variant({"upsampling": "nearest", "up_kernel": 3}),
    "64 / 128 channels": Variant({"width": 64, "deep_width": 128}),
    "128 / 256 channels": Variant({"width": 128, "deep_width": 256}),
}
VARIANTS = {  # all but ours in float32
    "ours": Variant({"precision": None}, {"both_directions": None}),
    experiments.BOTH: Variant(recipe={"both_directions": None}),
    experiments.ONE: Variant(),
    **SWEEP,
    "no pixel swap": Variant(recipe={"swap_pixels": False}),
    "no averaging": Variant(recipe={"ema_share": 0.0}),
    "few pairs over again": Variant(recipe={"both_directions": None, "min_pairs": Recipe.min_pairs}),
    **NETWORKS,
    "upsampling kernel 2": Variant({"up_kernel": 2}),
    "upsampling kernel 6": Variant({"up_kernel": 6}),
    "100 / 196 channels, not equivariant": Variant({"width": 100, "deep_width": 196}),
    "batch 8": Variant(recipe={"batch_size": 8}),
    "batch 32": Variant(recipe={"batch_size": 32}),
}


def make_model(variant, seed):
    recipe = Recipe(**{"min_pairs": 0, "both_directions": False, **variant.recipe})  # as many passes as are asked for
    return Model(seed=seed, recipe=recipe, **{"precision": "float32"} | variant.sizes)


def multiply_adds(network, side=32):
    """Multiply-adds of one forward pass, `side` x `side`: a convolution uses all its weights at each position."""
    total, maps = 0, torch.zeros(1, network.architecture.in_channels, side, side)
    for block in network.leaves():
        image, maps = maps, block.apply(maps)
        if isinstance(block, Convolution):
            total += block.weight.numel() * min(image[0, 0].numel(), maps[0, 0].numel())
    return total


def run(name, seed, photos, count, epochs, validation):
    """Trains one variant; returns its size and what came out."""
    model = make_model(VARIANTS[name], seed)
    parameters = sum(parameter.numel() for parameter, _ in model.network.param())
    size = {"network": asdict(model.architecture), "parameters": parameters}
    size["multiply_adds"] = multiply_adds(model.network)
    row = size | experiments.trained_and_scored(model, draw_pairs(photos, count, seed), epochs, validation)
    row["recipe"]["lr"] = model.recipe.peak_lr
    return row


if __name__ == "__main__":
    experiments.main(variants=VARIANTS, run=run)
