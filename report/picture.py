"""Makes the README's picture: a photograph with noise, denoised, and clean. Needs Pillow and scikit-image.

    python -m report.picture

The photograph is "Chelsea", by Stefan van der Walt, in the public domain (CC0), from scikit-image.
"""

import os
from pathlib import Path

import torch
from PIL import Image
from skimage.data import chelsea

from Miniproject_1.model import Model

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parent / "Miniproject_1" / "photomodel.pth"
LEVEL = 40  # standard deviation of the noise, in grey values
CROP = (slice(20, 240), slice(110, 350))  # the face
GAP = 8  # white pixels between the three


def panels():
    """Noisy, denoised and clean, uint8 (3, H, W) each."""
    clean = torch.tensor(chelsea()).permute(2, 0, 1).float()
    noise = LEVEL * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean + noise).clamp(0, 255).round()
    model = Model()
    model.load(WEIGHTS)
    images = noisy, model.predict(noisy[None])[0], clean
    return [image[(slice(None), *CROP)].round().to(torch.uint8) for image in images]


def main():
    white = torch.full((3, CROP[0].stop - CROP[0].start, GAP), 255, dtype=torch.uint8)
    noisy, denoised, clean = panels()
    picture = torch.cat([noisy, white, denoised, white, clean], dim=2).permute(1, 2, 0)
    temporary = HERE / f"picture.{os.getpid()}.tmp"
    Image.fromarray(picture.numpy()).save(temporary, "PNG", optimize=True)
    os.replace(temporary, HERE / "picture.png")


if __name__ == "__main__":
    main()
