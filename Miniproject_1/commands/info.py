"""Shows what a weights file holds: network, sizes, parameters, work per pixel, pairs seen and their value ranges."""

import json
from pathlib import Path

import torch

from Miniproject_1.commands.support.weights import PURPOSES, load_model, weights_file


def add_arguments(parser):
    parser.add_argument("weights", metavar="photo|course|FILE", help=PURPOSES)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def facts_of(name):
    """The facts about the weights that a user calls `name`."""
    path = weights_file(name)
    model = load_model(name, "cpu")
    return {
        "file": str(path),
        "bytes": Path(path).stat().st_size,
        "network": model.name,
        "in_channels": model.in_channels,
        "sizes": model.sizes,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "multiply_adds_a_pixel": multiply_adds(model),
        "pairs_seen": model.pairs_seen,
        "value_ranges": model.value_ranges,
    }


def multiply_adds(model, side=64):
    """Multiply-adds of the convolutions for each pixel that they see, those of a mirrored border included."""
    total, hooks = 0, []

    def count(layer, inputs, output):
        nonlocal total
        places = inputs[0] if isinstance(layer, torch.nn.ConvTranspose2d) else output
        total += places.shape[2] * places.shape[3] * layer.weight.numel()

    for layer in model.network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            hooks.append(layer.register_forward_hook(count))
    model.predict(torch.zeros(1, model.in_channels, side, side), ensemble=False)
    for hook in hooks:
        hook.remove()
    return round(total / (side + 2 * model.network.border) ** 2)


def run(options):
    facts = facts_of(options.weights)
    if options.json:
        print(json.dumps(facts))
        return 0
    ranges = {kind: f"{low:g} to {high:g}" for kind, (low, high) in facts["value_ranges"].items()}
    for name, value in (facts | {"value_ranges": ranges}).items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items()) or "unknown"
        print(f"{name.replace('_', ' '):22} {f'{value:,}' if isinstance(value, int) else value}")
    return 0
