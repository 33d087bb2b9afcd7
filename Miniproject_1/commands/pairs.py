"""Pairs of images for `inspect`, `train` and `evaluate`: two pictures, two folders, a .pkl, two arrays or stacks.

Shapes: N pairs, C channels, H W image. Values are in [0, 255] wherever they are handed out.
"""

import math
from pathlib import Path

import torch

from Miniproject_1.commands.denoise import pictures_below
from Miniproject_1.commands.images import (
    DEFAULT_MEGAPIXELS,
    check_size,
    float_range,
    need_numpy,
    need_tifffile,
    read_picture,
)

PAIRS_HELP = (
    "two pictures, or two folders whose files are paired by name; a .pkl alone, which holds two tensors (N, C, H, W); "
    "two .npy of (N, H, W), (N, C, H, W) or (N, H, W, C); two TIFFs of several pages. Floating values are taken as "
    "in `denoise`: [0, 1], or from the smallest to the largest"
)


def add_pairs(parser, first="A", second="B"):
    parser.add_argument("first", type=Path, metavar=first, help=PAIRS_HELP)
    parser.add_argument("second", type=Path, metavar=second, nargs="?")


class Stack:
    """Pairs of one size, in memory: two tensors (N, C, H, W) of any real dtype in [0, 255]."""

    def __init__(self, first, second):
        if first.shape != second.shape or first.ndim != 4 or not first.numel():
            raise ValueError(
                f"pairs are two stacks (N, C, H, W) of one shape; got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        self.first, self.second = first, second

    def __len__(self):
        return len(self.first)

    def name(self, number):
        return str(number)

    def pair(self, number):
        """The two images with a number: float32 (1, C, H, W) in [0, 255]."""
        return tuple(images[number : number + 1].float() for images in (self.first, self.second))


class Files:
    """Pairs of picture files, read when they are asked for."""

    def __init__(self, names, first, second, max_megapixels=DEFAULT_MEGAPIXELS):
        self.names, self.files, self.max_megapixels = names, list(zip(first, second, strict=True)), max_megapixels

    def __len__(self):
        return len(self.files)

    def name(self, number):
        return self.names[number]

    def pair(self, number):
        """The two images with a number, without alpha: float32 (1, C, H, W) in [0, 255]."""
        read = [read_picture(path, self.max_megapixels) for path in self.files[number]]
        if read[0].pixels.dtype == read[1].pixels.dtype == "float32":
            ranges = [picture.value_range for picture in read]
            common = min(low for low, _ in ranges), max(high for _, high in ranges)
            read[0].value_range = read[1].value_range = common
        first, second = (picture.values() for picture in read)
        if first.shape != second.shape:
            raise ValueError(
                f"the two versions of {self.names[number]} must be of one size and kind; got "
                f"{size_in_words(read[0])} and {size_in_words(read[1])}"
            )
        return first, second


def size_in_words(picture):
    height, width = picture.pixels.shape[:2]
    return f"{width} x {height} {picture.space}"


def open_pairs(first, second=None, max_megapixels=DEFAULT_MEGAPIXELS):
    """The pairs of a command line; see `PAIRS_HELP`. ValueError or OSError where there are none."""
    for path in (first, second):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if second is None:
        if first.suffix.lower() not in (".pkl", ".pt", ".pth"):
            raise ValueError(f"pairs need two files or folders, or one .pkl; got {first} alone")
        return Stack(*read_tensors(first))
    if first.is_dir() != second.is_dir():
        raise ValueError(f"pairs are two files or two folders; got {first} and {second}")
    if first.is_dir():
        return pair_folders(first, second, max_megapixels)
    if first.suffix.lower() == second.suffix.lower() == ".npy":
        return Stack(*scaled(read_array(first), read_array(second)))
    if all(pages(path) > 1 for path in (first, second)):
        return Stack(*scaled(read_pages(first, max_megapixels), read_pages(second, max_megapixels)))
    return Files([first.name], [first], [second], max_megapixels)


def pair_folders(first, second, max_megapixels):
    """Pictures with one name, whatever they end in, below two folders."""
    found = [
        {str(path.relative_to(folder).with_suffix("")): path for path in pictures_below(folder)}
        for folder in (first, second)
    ]
    names = sorted(found[0].keys() & found[1].keys())
    if not names:
        raise ValueError(f"no picture in {first} has a namesake in {second}; pairs have one name in both folders")
    return Files(names, *([paths[name] for name in names] for paths in found), max_megapixels)


def read_tensors(path):
    """The two tensors of a .pkl in the course's format."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path} is not readable as two tensors that torch.save wrote: {error}") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(map(torch.is_tensor, content)):
        raise ValueError(f"{path} must hold two tensors (N, C, H, W)")
    return content


def read_array(path):
    """A .npy as an array (N, C, H, W)."""
    numpy = need_numpy()
    try:
        array = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npy: {error}") from error
    return as_images(array, path)


def pages(path):
    """How many pages a TIFF has; 1 for anything else."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return 1
    with need_tifffile().TiffFile(path) as tiff:
        return len(tiff.pages)


def read_pages(path, max_megapixels):
    """The pages of a TIFF as an array (N, C, H, W)."""
    numpy = need_numpy()
    try:
        with need_tifffile().TiffFile(path) as tiff:
            page = tiff.pages[0]
            check_size(page.imagewidth, page.imagelength * len(tiff.pages), 100 * max_megapixels)
            array = numpy.stack([page.asarray() for page in tiff.pages])
    except (ValueError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable TIFF stack: {error}") from error
    return as_images(array, path)


def as_images(array, path):
    """(N, H, W), (N, C, H, W) or (N, H, W, C) of unsigned or floating values -> (N, C, H, W)."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] <= 4 < array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.itemsize > 2):
        raise ValueError(
            f"{path} must hold (N, H, W), (N, C, H, W) or (N, H, W, C), unsigned of 8 or 16 bits or floating; got "
            f"{array.dtype} {array.shape}"
        )
    return array


def scaled(first, second):
    """Two arrays of one type as tensors in [0, 255], by one rule for both."""
    numpy = need_numpy()
    if first.dtype != second.dtype:
        raise ValueError(f"both stacks must hold one type of values; got {first.dtype} and {second.dtype}")
    if first.dtype == "uint8":
        return tuple(torch.from_numpy(numpy.array(part)) for part in (first, second))
    low, high = 0, 65535
    if first.dtype.kind == "f":
        ends = [float(end) for part in (first, second) for end in (part.min(), part.max())]
        if not all(map(math.isfinite, ends)):
            raise ValueError("the stacks hold NaN or infinite values; replace them first")
        low, high = float_range(numpy.array(ends))
    return tuple(torch.from_numpy((part.astype("float32") - low) * (255 / (high - low))) for part in (first, second))


def blocks(pairs, side, count, overlap=1, seed=0):
    """Up to `count` random squares of up to `side` pixels a side from the pairs, spread evenly over them.

    Returns two float32 (M, C, s, s), of images with as many channels as the first; s is less than `side` where that
    image is smaller. They lie on a grid, `overlap` times as dense as they are large. One pair at a time is in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(pairs), generator=generator)[:count].tolist()
    channels, *size = pairs.pair(chosen[0])[0].shape[1:]
    side, result = min(side, *size), []
    for number in chosen:
        first, second = pairs.pair(number)
        if first.shape[1] == channels:
            for top, left in places(*first.shape[2:], side, -(-count // len(chosen)), overlap, generator):
                square = (..., slice(top, top + side), slice(left, left + side))
                result.append((first[square].clone(), second[square].clone()))
    return tuple(torch.cat(part) for part in zip(*result, strict=True))


def places(height, width, side, count, overlap, generator):
    """Corners of up to `count` different squares of a grid, in random order."""
    step = max(1, side // overlap)
    rows, columns = (height - side) // step + 1, (width - side) // step + 1
    for number in torch.randperm(rows * columns, generator=generator)[:count].tolist():
        yield number // columns * step, number % columns * step
