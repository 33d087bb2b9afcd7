"""Damaged files: each is refused with a reason or denoised as a whole; nothing hangs, crashes or half appears.

A hundred of them here; more by hand:  python Miniproject_1/tests/test_commands_fuzz.py COUNT SEED
"""

import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":  # from the root of the project
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
Image = pytest.importorskip("PIL.Image")
numpy = pytest.importorskip("numpy")

from Miniproject_1.commands import denoise  # noqa: E402
from Miniproject_1.commands.support import images  # noqa: E402
from Miniproject_1.model import Model  # noqa: E402

LONGEST = 60  # seconds for one file; it takes milliseconds
COUNT = 100


def whole_files(folder):
    """One sound file of every kind: its name and its bytes."""
    ramp = numpy.linspace(0, 1, 33 * 21 * 4).reshape(33, 21, 4)
    kinds = [("RGB", False, 3), ("grey", False, 1), ("RGB", True, 4), ("CMYK", False, 4)]
    exif = Image.Exif()
    exif[0x010F], exif[images.ORIENTATION], exif[images.EXIF_IFD] = "Camera", 6, {0x829A: 0.01}
    for space, alpha, channels in kinds:
        for dtype, high in (("uint8", 255), ("uint16", 65535), ("float32", 1)):
            for ending in (".png", ".jpg", ".tif", ".webp"):
                pixels = numpy.ascontiguousarray((ramp[:, :, :channels] * high).astype(dtype))
                picture = images.Picture(pixels, space, alpha, (0, high), exif=exif, icc=b"profile" * 20, dpi=(72, 72))
                path = folder / f"{space}{channels}{dtype}{ending}"
                try:
                    images.write_picture(picture, path)
                except (ValueError, ImportError):  # a format that does not hold this, or no tifffile
                    continue
                yield path.name, path.read_bytes()
    Model(width=8).save(folder / "weights.pth")
    yield "weights.pth", (folder / "weights.pth").read_bytes()


def mutated(content, chance):
    """A copy with some bytes changed, cut out, doubled, put in, or the end cut off."""
    content = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(content))
        if chance.random() < 0.5:  # what matters most stands in front
            place = min(place, chance.randrange(400))
        length = chance.choice((1, 1, 2, 4, 4, 8, 50))
        kind = chance.randrange(5)
        if kind <= 1:
            content[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            content[place : place + length] = chance.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == 3:
            del content[place : place + length]
        else:
            content[place:place] = content[place : place + length]
        content = content or bytearray(b"\0")
    return bytes(content[: chance.randrange(1, len(content) + 1)] if chance.random() < 0.15 else content)


def fuzz(count, seed, folder):
    """Counts what became of so many mutated files: 'accepted' or 'refused'."""
    (folder / "whole").mkdir()
    sound = list(whole_files(folder / "whole"))
    chance, outcomes, identity = random.Random(seed), Counter(), Model(width=8)
    (folder / "out").mkdir()
    for _ in range(count):
        name, content = chance.choice(sound)
        source, target = folder / name, folder / "out" / name
        source.write_bytes(mutated(content, chance))
        began = time.monotonic()
        try:
            if name == "weights.pth":
                Model(width=8).load(source)
            else:
                picture = images.read_picture(source, max_megapixels=1)
                picture.pixels = denoise.denoised(identity, picture)
                images.write_picture(picture, target)
            outcomes["accepted"] += 1
        except (ValueError, ImportError):
            outcomes["refused"] += 1
        assert time.monotonic() - began < LONGEST, name
        if target.exists():
            assert images.read_picture(target).pixels.shape[:2] == picture.pixels.shape[:2], name
            target.unlink()
        assert not os.listdir(folder / "out"), name
        source.unlink()
    return outcomes


def test_damaged_files(tmp_path):
    outcomes = fuzz(COUNT, 0, tmp_path)
    assert outcomes.total() == COUNT
    assert outcomes["refused"] > COUNT // 4 and outcomes["accepted"] > 0


def test_a_damaged_file_among_sound_ones_is_the_only_one_that_is_named(tmp_path, capsys):
    from Miniproject_1.__main__ import main

    (tmp_path / "in").mkdir()
    sound = dict(whole_files(tmp_path / "in"))
    weights = tmp_path / "in" / "weights.pth"
    (tmp_path / "in" / "RGB3uint8.png").write_bytes(sound["RGB3uint8.png"][:200])
    assert main(["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(weights)]) == 1
    said = capsys.readouterr()
    assert "RGB3uint8.png: " in said.err and f"1 of {len(sound) - 1}" in said.err
    assert len(os.listdir(tmp_path / "out")) == len(sound) - 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        print(dict(fuzz(int(sys.argv[1]), int(sys.argv[2]), Path(scratch))))
