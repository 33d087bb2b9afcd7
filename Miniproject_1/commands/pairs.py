"""Pairs of images for `inspect`, `train` and `evaluate`: two pictures, two folders, a .pkl, two arrays or stacks.

`train` also takes more than two versions of each scene, and single pictures, whose neighbouring pixels make a pair.

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

SOURCES_HELP = (
    "two or more pictures of one scene, or folders with one version of each scene, paired by name; a .pkl alone, which "
    "holds two tensors (N, C, H, W); two or more .npy of (N, H, W), (N, C, H, W) or (N, H, W, C), or TIFFs of several "
    "pages. A folder alone: if its pictures lie in sub-folders, each of these has the versions of one scene; if they "
    "lie in the folder itself, each is a scene of its own, as are a picture, a .npy or a TIFF of several pages alone"
)
TENSORS = (".pkl", ".pt", ".pth")
DRAWS = 4  # pairs of half the size that a single picture makes: each two neighbours of a cell are in one of them


def add_pairs(parser, first="A", second="B"):
    parser.add_argument("first", type=Path, metavar=first, help=PAIRS_HELP)
    parser.add_argument("second", type=Path, metavar=second, nargs="?")


class Stack:
    """Pairs of one size, in memory: two tensors (N, C, H, W) of any real dtype in [0, 255].

    `places` (N, 3) has of each pair its scene, and its top and left in it; by default each is a scene.
    """

    def __init__(self, first, second, places=None):
        if first.shape != second.shape or first.ndim != 4 or not first.numel():
            raise ValueError(
                f"pairs are two stacks (N, C, H, W) of one shape; got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        self.first, self.second = first, second
        self.places = torch.tensor([(n, 0, 0) for n in range(len(first))]) if places is None else places

    def __len__(self):
        return len(self.first)

    def __getitem__(self, index):
        return Stack(self.first[index], self.second[index], self.places[index])

    def name(self, number):
        return str(number)

    def pair(self, number):
        """The two images with a number: float32 (1, C, H, W) in [0, 255]."""
        return tuple(images[number : number + 1].float() for images in (self.first, self.second))


class Files:
    """Pairs of picture files, read when they are asked for: a dictionary has the versions of each scene by its name."""

    def __init__(self, versions, max_megapixels=DEFAULT_MEGAPIXELS):
        pairs = [(name, scene, pair) for scene, name in enumerate(versions) for pair in ring(versions[name])]
        self.names, self.scenes, self.files = zip(*pairs, strict=True)
        self.max_megapixels = max_megapixels

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


class Singles:
    """Single noisy pictures as pairs: of each cell of 2 x 2 pixels one goes into the first image, a neighbour of it
    into the second (T. Huang et al., "Neighbor2Neighbor", CVPR 2021). `read(number)` gives (1, C, H, W) in [0, 255].

    Their regulariser, which undoes the blur that comes from neighbours not being alike, is left out: it needs a second
    pass over the whole picture in every step.
    """

    def __init__(self, names, read):
        self.names, self.read = names, read
        self.scenes = [scene for scene in range(len(names)) for _ in range(DRAWS)]

    def __len__(self):
        return len(self.scenes)

    def name(self, number):
        return self.names[number // DRAWS]

    def pair(self, number):
        """The draw `number % DRAWS` of a picture: two float32 (1, C, H / 2, W / 2) in [0, 255]."""
        scene, draw = divmod(number, DRAWS)
        image = self.read(scene)
        channels, height, width = image.shape[1:]
        if min(height, width) < 2:
            raise ValueError(f"single pictures must be at least 2 pixels a side; {self.names[scene]} is not")
        cells = torch.nn.functional.pixel_unshuffle(image[:, :, : height - height % 2, : width - width % 2], 2)
        cells = cells.unflatten(1, (channels, 4))[:, :, [0, 1, 3, 2]]  # (1, C, 4, H / 2, W / 2), around the cell
        generator = torch.Generator().manual_seed(scene)
        start = torch.randint(4, (1, 1, 1, *cells.shape[3:]), generator=generator) + draw
        return tuple(cells.take_along_dim((start + step) % 4, 2)[:, :, 0] for step in (0, 1))


def ring(versions):
    """Pairs of k versions of a scene: each with the next, the last with the first; k, not all k (k - 1) / 2."""
    return list(zip(versions, [*versions[1:], versions[0]], strict=True))[: len(versions) if len(versions) > 2 else 1]


def size_in_words(picture):
    height, width = picture.pixels.shape[:2]
    return f"{width} x {height} {picture.space}"


def open_pairs(first, second=None, max_megapixels=DEFAULT_MEGAPIXELS):
    """The pairs of a command line; see `PAIRS_HELP`. ValueError or OSError where there are none."""
    if second is None and first.exists() and first.suffix.lower() not in TENSORS:
        raise ValueError(f"pairs need two files or folders, or one .pkl; got {first} alone")
    return open_sources([first] if second is None else [first, second], max_megapixels)


def open_sources(paths, max_megapixels=DEFAULT_MEGAPIXELS):
    """The pairs of the command line of `train`; see `SOURCES_HELP`. ValueError or OSError where there are none."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    first, *others = paths
    if any(path.is_dir() != first.is_dir() for path in others):
        raise ValueError(f"versions are all files or all folders; got {' and '.join(map(str, paths))}")
    if first.is_dir():
        return pair_folders(paths, max_megapixels) if others else open_folder(first, max_megapixels)
    if not others and first.suffix.lower() in TENSORS:
        return Stack(*read_tensors(first))
    if all(path.suffix.lower() == ".npy" for path in paths):
        return in_memory(scaled(*map(read_array, paths)))
    if all(pages(path) > 1 for path in paths):
        return in_memory(scaled(*(read_pages(path, max_megapixels) for path in paths)))
    return Files({first.name: paths}, max_megapixels) if others else single_files(paths, max_megapixels)


def in_memory(versions):
    """Pairs of tensors (N, C, H, W) in [0, 255], each another version of the same scenes; of one alone: `Singles`."""
    if len(versions) < 2:
        return Singles(list(map(str, range(len(versions[0])))), lambda number: versions[0][number, None].float())
    stacks = [Stack(*pair) for pair in ring(versions)]
    if len(stacks) == 1:
        return stacks[0]
    return Stack(*(torch.cat([getattr(s, name) for s in stacks]) for name in ("first", "second", "places")))


def single_files(paths, max_megapixels):
    return Singles([path.name for path in paths], lambda number: read_picture(paths[number], max_megapixels).values())


def open_folder(folder, max_megapixels):
    """Pictures in a folder itself are single ones; those in a sub-folder are the versions of one scene."""
    scenes = {}
    for path in pictures_below(folder):
        scenes.setdefault(str(path.parent.relative_to(folder)), []).append(path)
    if not scenes:
        raise ValueError(f"no picture in {folder}")
    alone = [name for name, versions in scenes.items() if len(versions) < 2]
    if scenes.keys() == {"."}:
        return single_files(scenes["."], max_megapixels)
    if "." in scenes:
        raise ValueError(
            f"{folder} must have its pictures either in sub-folders, one for the versions of each scene, or all in "
            f"itself, each a scene of its own; got {len(scenes['.'])} in itself and {len(scenes) - 1} sub-folders"
        )
    if alone:
        raise ValueError(f"each sub-folder of {folder} needs two versions of its scene; {alone[0]} has one picture")
    return Files(scenes, max_megapixels)


def pair_folders(folders, max_megapixels):
    """Pictures with one name, whatever they end in, below at least two of the folders."""
    versions = {}
    for folder in folders:
        found = {str(path.relative_to(folder).with_suffix("")): path for path in pictures_below(folder)}
        for name, path in found.items():
            versions.setdefault(name, []).append(path)
    paired = {name: versions[name] for name in sorted(versions) if len(versions[name]) > 1}
    if not paired:
        first, *others = folders
        raise ValueError(
            f"no picture in {first} has a namesake in {', '.join(map(str, others))}; pairs have one name in two folders"
        )
    return Files(paired, max_megapixels)


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


def scaled(*arrays):
    """Arrays of one type as tensors in [0, 255], by one rule for all."""
    numpy = need_numpy()
    dtype = arrays[0].dtype
    for other in arrays[1:]:
        if other.dtype != dtype:
            raise ValueError(f"all stacks must hold one type of values; got {dtype} and {other.dtype}")
    if dtype == "uint8":
        return [torch.from_numpy(numpy.array(part)) for part in arrays]
    low, high = 0, 65535
    if dtype.kind == "f":
        ends = [float(end) for part in arrays for end in (part.min(), part.max())]
        if not all(map(math.isfinite, ends)):
            raise ValueError("the stacks hold NaN or infinite values; replace them first")
        low, high = float_range(numpy.array(ends))
    return [torch.from_numpy((part.astype("float32") - low) * (255 / (high - low))) for part in arrays]


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
