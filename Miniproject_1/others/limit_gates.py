"""Sets how far the gates of `bestmodel.pth` may open: as far as on images like those that it learnt from.

    python -m Miniproject_1.others.limit_gates PHOTOS weights.pth --out new.pth

On some textures that no training pair has, such as stripes of single pixels, gates of the shipped weights opened that
had always been nearly shut, features grew from block to block, and pictures became black and white. The images are
drawn from the photographs, all noisy: with the course's noise, with less of it, and with each noise of LEVELS on means
of many draws. Scores on these stay the same; see `ResidualBlock`.
"""

import argparse
import functools
import sys
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import Model
from Miniproject_1.others.command_line import count, exit_on_error, positive, some_path, summary
from Miniproject_1.others.data import add_noise, draw_pairs, noisy_and_mean
from Miniproject_1.others.files import check_writable
from Miniproject_1.others.photos import load_photos
from Miniproject_1.others.train_best import residual_blocks

LEVELS = {"gaussian": (10.0, 25.0, 50.0), "poisson": (30.0,), "bernoulli": (0.5,), "impulse": (0.3,)}


def noisy_images(photos, number, seed):
    """Yields batches of `number` noisy images (N, 3, 32, 32), one of each kind."""
    noisy, means_of_3 = draw_pairs(photos, number, seed, functools.partial(noisy_and_mean, draws=4))
    yield from (noisy, means_of_3)
    _, means = draw_pairs(photos, number, seed + 1, functools.partial(noisy_and_mean, draws=32))
    generator = torch.Generator().manual_seed(seed)
    yield from (add_noise(means, kind, level, generator) for kind, levels in LEVELS.items() for level in levels)


def limit_gates(model, batches):
    """Sets the ceiling of each gate to its highest value before the sigmoid in the predictions of these images."""
    blocks = residual_blocks(model.network)
    highest = {name: torch.full_like(block.ceiling, -torch.inf) for name, block in blocks.items()}

    def watch(name):
        def hook(gate, inputs, logits):
            highest[name] = highest[name].maximum(logits.float().amax((0, 2, 3))[:, None, None])

        return blocks[name].gate.register_forward_hook(hook)

    hooks = [watch(name) for name in blocks]
    for images in batches:
        model.predict(images, ensemble=False)
    for hook in hooks:
        hook.remove()
    group = 8 if model.network.equivariant else 1  # symmetries turn the gates of a group into each other
    for name, block in blocks.items():
        block.ceiling.copy_(highest[name].view(-1, group).amax(1).repeat_interleave(group)[:, None, None])


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("photos", type=some_path, help="folder of photographs that the images are drawn from")
    parser.add_argument("weights", type=some_path, help="weights of a network with gates")
    parser.add_argument("--out", type=some_path, required=True, help="weights file to write")
    parser.add_argument("--number", type=positive, default=1_500, help="images of each kind (default 1500)")
    parser.add_argument("--seed", type=count, default=0, help="of the images (default 0)")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("limit_gates.py"):
        check_writable(options.out)
        model = Model()
        model.load(options.weights)
        if not model.sizes.get("gates"):
            raise ValueError(f"{options.weights} has no gates to limit")
        limit_gates(model, noisy_images(load_photos(options.photos), options.number, options.seed))
        model.save(options.out)


if __name__ == "__main__":
    main()
