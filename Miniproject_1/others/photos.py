"""Reads folders of photographs, by Pillow."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from Miniproject_1.others.command_line import tell, watched
from Miniproject_1.others.files import say_left_out, visible_files

LEAST_SIDE = 32  # pixels: data.py draws from 32 x 32 cells of at least one
PHOTO_ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
PREVIEWS = {"@eaDir"}  # folders of them, which some servers put beside photos
PHOTO_THREADS = 4  # each holds a photo of any size, so there are as many on a machine of 100 cores


def photo_files(folder):
    """The photographs below a folder, by their endings, sorted, each file once; links are followed.

    Hidden files and folders, whose names start with a dot, and the previews in folders called @eaDir do not count. How
    many other files are left out is said on stderr, where photos that are not regular files are named: reading a pipe
    would never end. ValueError if there is no photo.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"photos are read from a folder; {str(folder)!r} is not one")
    files, others = {}, []

    def skipped(error):
        tell(f"skipped: {error.filename}: {error.strerror}")

    for path in sorted(visible_files(folder, skipped, PREVIEWS)):
        if path.suffix.lower() not in PHOTO_ENDINGS:
            others.append(path)
        elif path.is_file():
            files.setdefault(os.path.realpath(path), path)
        else:
            tell(f"skipped: {path} is not a regular file")
    say_left_out(folder, others, sorted(PHOTO_ENDINGS))
    if not files:
        endings = ", ".join(sorted(PHOTO_ENDINGS))
        raise ValueError(f"no photo in {str(folder)!r}: expected files ending in {endings}")
    return list(files.values())


def load_photo(path):
    """Reads a photograph as uint8 (3, H, W). ValueError where it cannot be read or is under 32 pixels a side."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading photographs needs Pillow: pip install Pillow") from error
    try:
        with Image.open(path) as file:
            deep = file.mode[0] in "IF"
            if file.format == "TIFF" and file.n_frames > 1:
                tell(f"{path.name}: only the first of its {file.n_frames} pictures is read")
            image = file.convert("RGBA") if "transparency" in file.info else file  # Pillow warns otherwise
            image = image.convert("RGB")
    except Exception as error:  # damaged and oversized files make Pillow raise half a dozen kinds
        raise ValueError(f"{path.name} is not a readable photo: {error}") from error
    if deep:
        raise ValueError(f"{path.name} has more than 8 bits a channel, which are not read; convert it first")
    if min(image.size) < LEAST_SIDE:
        raise ValueError(
            f"{path.name} has {image.size[0]} x {image.size[1]} pixels; each side must be at least {LEAST_SIDE}"
        )
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.size[1], image.size[0], 3).permute(2, 0, 1).contiguous()


def load_photos(folder):
    """Every readable photo of a folder, a list of uint8 (3, H, W); the others are named on stderr."""
    return of_readable_photos(folder, lambda path, photo: photo)


def of_readable_photos(folder, function, progress=None):
    """`function(path, photo)` of each readable photo; copies count once. ValueError if there is none.

    Else a photo could be in training and a copy in validation.
    """
    files, results = photo_files(folder), {}

    def call(path):
        try:
            result = function(path, load_photo(path))
            return [(hashlib.sha256(path.read_bytes()).digest(), result)]
        except (ValueError, OSError) as error:
            tell(f"skipped: {error}")
            return []

    with ThreadPoolExecutor(PHOTO_THREADS) as pool:
        found = [item for items in watched(pool.map(call, files), len(files), progress) for item in items]
    for digest, result in found:
        results.setdefault(digest, result)
    if not results:
        raise ValueError(f"no photo in {str(folder)!r} could be read; see the names above")
    if len(results) < len(found):
        tell(f"left out: {len(found) - len(results)} of {len(found)} photos, byte for byte copies of others")
    return list(results.values())
