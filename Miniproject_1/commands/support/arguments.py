"""Arguments that several commands take, and the files below folders."""

import argparse
import math
import os
import re

from Miniproject_1.commands.support.distributed import is_first
from Miniproject_1.commands.support.images import DEFAULT_MEGAPIXELS, ENDINGS
from Miniproject_1.others.files import say_left_out, visible_files

NEGATIVE = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


class Range(argparse.Action):
    """Two numbers as a tuple, the first the smaller one."""

    def __call__(self, parser, options, values, option=None):
        if not -math.inf < values[0] < values[1] < math.inf:
            parser.error(f"{option} takes black and a larger white; got {values[0]:g} {values[1]:g}")
        setattr(options, self.dest, tuple(values))


def add_range(parser, more):
    parser._negative_number_matcher = NEGATIVE  # argparse's own may take -1e-05, as we print it, for an option
    parser.add_argument(
        "--range",
        type=float,
        nargs=2,
        action=Range,
        metavar=("BLACK", "WHITE"),
        help=f"the values in the files that are black and white; {more}for 8 bits 0 255; for 16 bits 0 and the "
        "smallest of 255, 1023, 4095, 16383 and 65535 that no value exceeds; for floating point 0 1 if all values are "
        "within, else the smallest and the largest value. Outliers, such as hot pixels, do not count and are kept",
    )


def add_max_megapixels(parser):
    parser.add_argument(
        "--max-megapixels",
        type=megapixels,
        default=DEFAULT_MEGAPIXELS,
        help=f"refuse larger pictures before they are decoded (default: {DEFAULT_MEGAPIXELS})",
    )


def megapixels(text):
    value = float(text)
    if not value > 0:  # nor NaN, which no picture exceeds
        raise ValueError(text)
    return value


# ---------------------------------------------------------------------------------------------- files


def pictures_below(folder):
    """The pictures below a folder, sorted; says how many other files there are. OSError as `files_below`."""
    pictures, others = files_below(folder)
    if is_first():
        say_left_out(folder, others, ENDINGS)
    return pictures


def files_below(folder, out=None, failed=None):
    """The pictures below a folder, and the other files, both sorted.

    Those that `visible_files` finds, without the folder `out`. `failed` is called with the OSError of each folder
    that cannot be read; without it the first is raised.
    """
    pictures, others = [], []
    for path in visible_files(folder, failed or raise_error, entered=[os.path.realpath(out)] if out else []):
        (pictures if path.suffix.lower() in ENDINGS else others).append(path)
    return sorted(pictures), sorted(others)


def raise_error(error):
    raise error


def check_outputs(outputs, inputs):
    """ValueError if a file to write is an input, or two of them are the same.

    Args:
        outputs: (what is written, path) of each file to write; a path of None is skipped.
        inputs: files and folders; all pictures below a folder are inputs.
    """
    files = (file for path in inputs for file in (files_below(path)[0] if path.is_dir() else [path]))
    read, written = set(map(os.path.realpath, files)), {}
    for what, path in outputs:
        place = path and os.path.realpath(path)
        if place in written:
            raise ValueError(f"{written[place]} and {what} would both be written to {path}")
        if place in read:
            raise ValueError(f"{path} is an input, which is never overwritten; choose another name")
        if place:
            written[place] = what
