"""Shows what a weights file holds: network, sizes, parameters, work per pixel, pairs seen and their value ranges."""

import json

from Miniproject_1.commands.support.weights import PURPOSES, load_model, weights_file
from Miniproject_1.others.experiments import multiply_adds

SIDE = 32  # pixels, of the image whose multiply-adds are counted


def add_arguments(parser):
    parser.add_argument("weights", metavar="photo|course|FILE", help=PURPOSES)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def facts_of(name):
    """The facts about the weights that a user calls `name`."""
    path = weights_file(name)
    model = load_model(name, "cpu")
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "network": model.name,
        "in_channels": model.in_channels,
        "sizes": model.sizes,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "multiply_adds_a_pixel": round(multiply_adds(model.network, SIDE, model.in_channels) / SIDE**2),
        "pairs_seen": model.pairs_seen,
        "value_ranges": model.value_ranges,
    }


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
