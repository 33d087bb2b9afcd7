"""Finds out what the score of project 2 depends on: optimisers, kernels, widths, upsampling.

    python Miniproject_2/others/experiments.py run PHOTOS --validate val_data.pkl --out results.jsonl
    python Miniproject_2/others/experiments.py table results.jsonl

The command is that of project 1: the same options, the same lines of JSON, the same table.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from Miniproject_1.others import experiments
from Miniproject_1.others.data import draw_pairs
from Miniproject_2.model import SGD, Adam, Architecture, Model, Recipe, Trainer


@dataclass(frozen=True)
class Variant:
    """What differs from the default: fields of the architecture and of the recipe, the optimiser."""

    architecture: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    optimiser: Callable | None = None  # makes one of `network.param()`, instead of Muon; its rate is the recipe's


def momentum(params):
    return SGD(params, momentum=0.9)


VARIANTS = {
    "ours": Variant(),
    "SGD 0.5, momentum 0.9": Variant(recipe={"learning_rate": 0.5}, optimiser=momentum),
    "SGD 1, momentum 0.9": Variant(recipe={"learning_rate": 1.0}, optimiser=momentum),
    "SGD 2, momentum 0.9": Variant(recipe={"learning_rate": 2.0}, optimiser=momentum),
    "Adam 1e-3": Variant(recipe={"learning_rate": 1e-3}, optimiser=Adam),
    "Adam 2e-3": Variant(recipe={"learning_rate": 2e-3}, optimiser=Adam),
    "Adam 4e-3": Variant(recipe={"learning_rate": 4e-3}, optimiser=Adam),
    "Muon 7e-3": Variant(recipe={"learning_rate": 7e-3}),
    "Muon 3e-2": Variant(recipe={"learning_rate": 3e-2}),
    "kernel 2": Variant({"kernel": 2}),
    "kernel 6": Variant({"kernel": 6}),
    "upsampling kernel 2": Variant({"up_kernel": 2}),
    "upsampling kernel 6": Variant({"up_kernel": 6}),
    "nearest upsampling, kernel 3": Variant({"upsampling": "nearest", "up_kernel": 3}),
    "64 / 128 channels": Variant({"width": 64, "deep_width": 128}),
    "128 / 256 channels": Variant({"width": 128, "deep_width": 256}),
    "100 / 196 channels, not equivariant": Variant({"width": 100, "deep_width": 196}),
    "batch 16": Variant(recipe={"batch": 16}),
    "batch 64": Variant(recipe={"batch": 64}),
}


def make_model(variant, seed):
    model = Model(seed, Architecture(**variant.architecture), Recipe(**variant.recipe))

    def make_trainer(network, *arguments):
        trainer = Trainer(network, *arguments)
        trainer.optimiser = variant.optimiser(network.param())
        return trainer

    if variant.optimiser is not None:
        model.make_trainer = make_trainer
    return model


def run(name, seed, photos, count, epochs, validation):
    """Trains one variant; returns its size and what came out."""
    model = make_model(VARIANTS[name], seed)
    parameters = sum(parameter.numel() for parameter, _ in model.network.param())
    size = {"parameters": parameters, "multiply_adds": experiments.multiply_adds(model.network)}
    return size | experiments.trained_and_scored(model, draw_pairs(photos, count, seed), epochs, validation)


if __name__ == "__main__":
    experiments.main(variants=VARIANTS, run=run)
