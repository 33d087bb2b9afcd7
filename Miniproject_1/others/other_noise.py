"""PSNR of a weights file on other kinds of noise: a table of PSNRs, noisy, single pass and self-ensemble.

    python -m Miniproject_1.others.other_noise PHOTOS [--weights FILE]

The images are random crops of the photographs, ten of each, 32 x 32 after sampling. CONDITIONS are the rows. PSNR is
the grader's, the mean over images; the last column is the share of the images whose PSNR the single pass lowers.
"""

import argparse
import sys
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import PRETRAINED, Model
from Miniproject_1.others.command_line import exit_on_error, some_path, summary
from Miniproject_1.others.data import CELLS, NOISES, add_noise, cell_means, draws_of_each
from Miniproject_1.others.metrics import psnr_of_each
from Miniproject_1.others.photos import load_photos

CROPS = 10  # of each photograph
CONDITIONS = (  # (name, arguments of `noisy_and_clean`)
    ("one sample a pixel, largest crops", {}),
    *((f"one sample a pixel, cells of {cell} pixels", {"cell": cell}) for cell in (4, 8, 12, 16, 24)),
    *((f"{samples} samples a pixel", {"samples": samples}) for samples in (2, 4, 16)),
    *(
        (f"{kind}, level {level:g}", {"noise": (kind, level)})
        for kind, level in (("gaussian", 10.0), *((kind, NOISES[kind].level) for kind in NOISES), ("gaussian", 50.0))
    ),
)


def crops_of_side(picture, side, generator):
    """CROPS random crops of one side inside a picture, int64 (CROPS, 3): top, left, side."""
    room = torch.tensor([size - side + 1 for size in picture.shape[1:]])
    corners = (torch.rand(CROPS, 2, generator=generator) * room).long()
    return torch.cat([corners, torch.full((CROPS, 1), side)], dim=1)


def noisy_and_clean(pictures, cell=None, samples=1, noise=None, seed=0):
    """(noisy, clean), uint8 (N, 3, 32, 32), of the pictures that are large enough; None where there are none.

    Args:
        cell: side of a cell in pixels; None: as large as the picture allows.
        samples: number per cell; the noisy pixel is their rounded mean.
        noise: (kind, level) of `add_noise` on the clean images, instead of sampling.
    """
    generator, parts = torch.Generator().manual_seed(seed), []
    for picture in pictures:
        largest = min(picture.shape[1:])
        side = CELLS * cell if cell else largest
        if side <= largest:
            crops = crops_of_side(picture, side, generator)
            draws = draws_of_each(picture, crops, samples, generator)
            parts.append((draws.float().mean(0).round().to(torch.uint8), cell_means(picture, crops)))
    if not parts:
        return None
    noisy, clean = (torch.cat(column) for column in zip(*parts, strict=True))
    return (add_noise(clean, *noise, torch.Generator().manual_seed(seed)) if noise else noisy), clean


def row(name, noisy, clean, model):
    images = noisy, model.predict(noisy, ensemble=False), model.predict(noisy, ensemble=True)
    before, single, ensemble = (psnr_of_each(some, clean) for some in images)
    scores = " | ".join(f"{some.mean():.2f}" for some in (before, single, ensemble))
    return f"| {name} | {len(noisy)} | {scores} | {(single < before).float().mean():.1%} |"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("photos", type=some_path, help="folder of photographs that were not learnt from")
    parser.add_argument("--weights", type=some_path, default=PRETRAINED, help="default: bestmodel.pth")
    return parser.parse_args(arguments)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("other_noise.py"):
        model = Model()
        model.load(options.weights)
        pictures = load_photos(options.photos)
        print("| noise | images | noisy | single pass | self-ensemble | made worse |\n" + 6 * "|---" + "|")
        for name, condition in CONDITIONS:
            images = noisy_and_clean(pictures, **condition)
            if images:
                print(row(name, *images, model), flush=True)


if __name__ == "__main__":
    main()
