"""What weights do to other noise: a table of PSNRs, noisy, single pass and self-ensemble.

    python Miniproject_1/others/other_noise.py PHOTOS [--weights FILE]

The images are random squares of the photographs, ten of each, 32 x 32 after sampling. Coarser and finer sampling: cells
of 4 to 24 pixels of the photo. Less noise: the mean of 2, 4 or 16 samples a pixel. Then the noises of the Noise2Noise
paper on the clean images of the largest squares. PSNR is the grader's, the mean over images; the last column is the
share of the images whose PSNR the single pass lowers.
"""

import argparse
import sys
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import PRETRAINED, Model
from Miniproject_1.others.data import (
    CELLS,
    NOISES,
    add_noise,
    cell_means,
    draws_of_each,
    load_photos,
    psnr_of_each,
    summary,
)

SQUARES = 10  # of each photograph


def squares(picture, side, generator):
    """SQUARES random squares of one side inside a picture, int64 (SQUARES, 3): top, left, side."""
    room = torch.tensor([size - side + 1 for size in picture.shape[1:]])
    corners = (torch.rand(SQUARES, 2, generator=generator) * room).long()
    return torch.cat([corners, torch.full((SQUARES, 1), side)], dim=1)


def sampled(pictures, cell=None, samples=1, seed=0):
    """(noisy, clean), uint8 (N, 3, 32, 32), of the pictures that are large enough.

    Args:
        cell: pixels a side that make one pixel; None: as many as the picture has room for.
        samples: of each cell, whose rounded mean is the noisy pixel.
    """
    generator, parts = torch.Generator().manual_seed(seed), []
    for picture in pictures:
        largest = min(picture.shape[1:])
        side = CELLS * cell if cell else largest
        if side <= largest:
            boxes = squares(picture, side, generator)
            draws = draws_of_each(picture, boxes, samples, generator)
            parts.append((draws.float().mean(0).round().to(torch.uint8), cell_means(picture, boxes)))
    if not parts:
        raise ValueError(f"no photograph has {CELLS * cell} pixels a side, as cells of {cell} pixels need")
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def conditions(pictures):
    """(name, noisy, clean) of every row of the table."""
    noisy, clean = sampled(pictures)
    yield "one sample a pixel, largest squares", noisy, clean
    for cell in (4, 8, 12, 16, 24):
        if CELLS * cell <= max(min(picture.shape[1:]) for picture in pictures):
            yield f"one sample a pixel, cells of {cell} pixels", *sampled(pictures, cell)
    for samples in (2, 4, 16):
        yield f"{samples} samples a pixel", *sampled(pictures, samples=samples)
    for kind, level in [("gaussian", 10), *((name, noise.level) for name, noise in NOISES.items()), ("gaussian", 50)]:
        noisy = add_noise(clean, kind, level, torch.Generator().manual_seed(0))
        yield f"{kind}, level {level:g}", noisy, clean


def row(name, noisy, clean, model):
    images = noisy, model.predict(noisy, ensemble=False), model.predict(noisy, ensemble=True)
    before, single, ensemble = (psnr_of_each(some, clean) for some in images)
    scores = " | ".join(f"{some.mean():.2f}" for some in (before, single, ensemble))
    return f"| {name} | {len(noisy)} | {scores} | {(single < before).float().mean():.1%} |"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("photos", type=Path, help="folder of photographs that were not trained on")
    parser.add_argument("--weights", type=Path, default=PRETRAINED, help="default: bestmodel.pth")
    options = parser.parse_args(arguments)
    model = Model()
    model.load(options.weights)
    print("| noise | images | noisy | single pass | self-ensemble | made worse |\n" + 6 * "|---" + "|")
    for condition in conditions(load_photos(options.photos)):
        print(row(*condition, model), flush=True)


if __name__ == "__main__":
    main()
