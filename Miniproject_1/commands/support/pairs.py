"""Pairs of images for `inspect`, `train` and `evaluate`: two pictures, two folders, a .pkl, two arrays or stacks.

`train` also takes more than two versions of each scene, and single pictures, whose neighbouring pixels make a pair.
All kinds of pairs have `len(pairs)`, `pair(number)`, `name(number)` and `scenes`.

Shapes: N pairs, C channels, H x W pixels. Values are returned in [0, 255], scaled by one range for all files; see
`Scale`.
"""

import math
import sys
import unicodedata
import warnings

import torch

from Miniproject_1.commands.support.arguments import add_range, pictures_below
from Miniproject_1.commands.support.distributed import is_first
from Miniproject_1.commands.support.images import (
    DEFAULT_MEGAPIXELS,
    OUTLIERS,
    beside_training,
    check_size,
    check_trained_range,
    default_range,
    far_beyond,
    hidden_frames,
    nearly_all,
    need_numpy,
    need_tifffile,
    range_advice,
    range_in_words,
    read_picture,
    to_255,
)
from Miniproject_1.model import out_of_scale
from Miniproject_1.others.command_line import some_path

PAIRS_HELP = (
    "two pictures, or two folders whose files are paired by name; a .pkl alone, which holds two tensors (N, C, H, W) "
    "in [0, 255]; two .npy of (N, H, W), (N, C, H, W) or (N, H, W, C); two TIFFs of several pages"
)

SOURCES_HELP = (
    "two or more pictures of one scene, or folders with one version of each scene, paired by name; a .pkl alone, which "
    "holds two tensors (N, C, H, W) in [0, 255]; two or more .npy of (N, H, W), (N, C, H, W) or (N, H, W, C), or TIFFs "
    "of several pages. A folder alone: if its pictures lie in sub-folders, each of them has the versions of one scene; "
    "if in the folder itself, each is a scene of its own, like a picture, a .npy or a TIFF of several pages alone"
)
TENSORS = (".pkl", ".pt", ".pth")
RANGED = 100  # picture files, at most, that are read to find the range of values of all
DRAWS = 4  # pairs of half the size from a single picture: each two neighbours of a cell are in one of them


def add_pairs(parser, first="A", second="B"):
    parser.add_argument("first", type=some_path, metavar=first, help=PAIRS_HELP)
    parser.add_argument("second", type=some_path, metavar=second, nargs="?")


def add_common_range(parser, files="all files", first=""):
    """`first`: which range comes first by default."""
    add_range(parser, f"default: {first}for {files} together: ")


def kind_of(dtype):
    """The name of a numpy type as in the ranges of weights: 'float32' for any floating one, and no byte order."""
    return "float32" if dtype.kind == "f" else dtype.name


class Scale:
    """The values of black and white, one range for each type, see `kind_of`, so that pairs differ only in their noise.

    Args:
        given: (low, high) that the user chose; None: for each type that of the training, else what `decide` finds.
        trained: {type: (low, high)} that weights were trained with.

    Attributes:
        used: {type: (low, high)} of the arrays so far.
    """

    def __init__(self, given=None, trained=()):
        self.given, self.trained, self.ranges, self.used = given, dict(trained), {}, {}

    def known(self, dtype):
        kind = kind_of(dtype)
        return self.given is not None or kind in self.trained or kind in self.ranges

    def decide(self, ranges):
        """Takes (values, range) of some arrays, for types not known yet, and prints unusual ranges."""
        found, most = {}, {}
        for values, (low, high) in ranges:
            if not self.known(values.dtype):
                kind = kind_of(values.dtype)
                lowest, highest = found.get(kind, (low, high))
                found[kind] = min(low, lowest), max(high, highest)
                if kind != "uint8":
                    most[kind] = max(nearly_all(values), most.get(kind, -math.inf))
        self.ranges |= found
        for kind, one in found.items():
            notes = [range_in_words(one, kind), kind in most and range_advice(most[kind], one)]
            if any(notes) and is_first():
                print(f"{kind} values: {'; '.join(filter(None, notes))}", file=sys.stderr)

    def of(self, array, own, beside_clean=False):
        """The range of an array whose `default_range` is `own`. ValueError if that contradicts the others.

        Beside clean arrays, which set the range (`beside_clean`), noise may reach one width of it beyond white, where
        `to_255` clips it; a few outliers may lie farther.
        """
        kind = kind_of(array.dtype)
        found = self._of(array, own, beside_clean)
        why = beside_training(found, self.trained.get(kind), own)
        if why and kind not in self.used and is_first():
            print(f"{kind} values: {range_in_words(found, kind, why)}", file=sys.stderr)
        self.used[kind] = found
        self._check_floating()
        return found

    def _of(self, array, own, beside_clean):
        if self.given is not None:
            return self.given
        kind = kind_of(array.dtype)
        if trained := self.trained.get(kind):
            check_trained_range(array, trained)
            return trained
        low, high = self.ranges.get(kind, own)
        if kind == "float32" and not beside_clean and far_beyond(array, (low, high)):
            raise ValueError(
                f"its values reach from {array.min():g} to {array.max():g}, others only from {low:g} to {high:g}: give "
                "--range"
            )
        noise = beside_clean and (array > 2 * high - low).mean() <= OUTLIERS
        if kind == "uint16" and own[1] > high and not noise:
            raise ValueError(
                f"it has values up to {array.max()}, others only up to {high}: give --range with the camera's white"
            )
        return low, high

    def _check_floating(self):
        """ValueError if there are floating values, not in [0, 1], beside other types: nothing tells how they relate."""
        low, high = self.used.get("float32", (0, 1))
        others = [kind for kind, one in self.used.items() if one != (low, high)]
        if others and (low, high) != (0, 1):
            raise ValueError(
                f"floating values from {low:g} to {high:g} beside {' and '.join(others)}: their black and white are "
                "unknown; give one --range for all, or floating values in [0, 1]"
            )


class PairsInMemory:
    """Pairs of one size, in memory: two tensors (N, C, H, W) of any real dtype in [0, 255].

    `places` (N, 3): for each pair its scene and its top and left there; by default each is a scene.
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
        return PairsInMemory(self.first[index], self.second[index], self.places[index])

    @property
    def scenes(self):
        return self.places[:, 0].tolist()

    def name(self, number):
        return str(number)

    def pair(self, number):
        """The two images with a number: float32 (1, C, H, W) in [0, 255]."""
        return tuple(images[number : number + 1].float() for images in (self.first, self.second))


class PairsOnDisk:
    """Pairs of picture files, read when they are asked for.

    Args:
        versions: the files of each scene by its name.
        read: `Reader` of the files.
    """

    def __init__(self, versions, read):
        pairs = [(name, scene, pair) for scene, name in enumerate(versions) for pair in ring(versions[name])]
        self.names, self.scenes, self.files = zip(*pairs, strict=True)
        self.read = read

    def __len__(self):
        return len(self.files)

    def name(self, number):
        return self.names[number]

    def pair(self, number):
        """The two images with a number, without alpha: float32 (1, C, H, W) in [0, 255]."""
        read = [self.read(path) for path in self.files[number]]
        first, second = (picture.values() for picture in read)
        if first.shape != second.shape:
            raise ValueError(
                f"the two versions of {self.names[number]} must be of one size and kind; got "
                f"{size_in_words(read[0])} and {size_in_words(read[1])}"
            )
        return first, second


class Reader:
    """Reads picture files as `Picture`s of one `Scale`, which some of the files decide: all, or the clean ones.

    If these are none of 16 bits, the others decide what white is in 16 bits.
    """

    def __init__(self, files, deciding, max_megapixels, scale):
        self.deciding, self.max_megapixels, self.scale = deciding, max_megapixels, scale
        self.deciding_set = set(deciding)
        self.others = [path for path in files if path not in self.deciding_set]
        self.decided = False

    def __call__(self, path):
        try:
            return self._read(path)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _read(self, path):
        picture = read_picture(path, self.max_megapixels, self.scale.given)
        colours = picture.pixels[:, :, : picture.colours]
        if colours.dtype != "uint8" and not self.decided and not self.scale.known(colours.dtype):
            self.scale.decide(self._some(self.deciding))
            self.decided = True
        if colours.dtype == "uint16" and self.others and not self.scale.known(colours.dtype):
            self.scale.decide(one for one in self._some(self.others) if kind_of(one[0].dtype) == "uint16")
            self.others = []
        picture.value_range = self.scale.of(colours, picture.value_range, path not in self.deciding_set)
        return picture

    def _some(self, files):
        """Yields (values, range) of up to RANGED of the files."""
        for number in evenly_spaced(len(files), RANGED):
            picture = read_picture(files[number], self.max_megapixels)
            yield picture.pixels[:, :, : picture.colours], picture.value_range


class NeighbourPairs:
    """Single noisy pictures as pairs: one pixel of each 2 x 2 cell goes into the first image, a neighbour of it
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


def open_pairs(first, second=None, max_megapixels=DEFAULT_MEGAPIXELS, scale=None, clean=False):
    """The pairs of a command line; see `PAIRS_HELP`. ValueError or OSError where there are none.

    Args:
        scale: `Scale` of all files; None: a new one.
        clean: whether the second images are clean: they alone then decide the range.
    """
    if second is None and first.exists() and first.suffix.lower() not in TENSORS:
        raise ValueError(f"pairs need two files or folders, or one .pkl; got {first} alone")
    return open_sources([first] if second is None else [first, second], max_megapixels, scale, clean)


def open_sources(paths, max_megapixels=DEFAULT_MEGAPIXELS, scale=None, clean=False):
    """The pairs of the command line of `train`; see `SOURCES_HELP`. Else as `open_pairs`."""
    scale = scale or Scale()
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    first, *others = paths
    if any(path.is_dir() != first.is_dir() for path in others):
        raise ValueError(f"versions are all files or all folders; got {' and '.join(map(str, paths))}")
    if not others and first.suffix.lower() in TENSORS:
        return PairsInMemory(*read_tensors(first, scale))
    if any(path.suffix.lower() in TENSORS for path in paths):
        raise ValueError("a .pkl holds both versions and is given alone; got " + " and ".join(map(str, paths)))
    if all(path.suffix.lower() == ".npy" for path in paths):
        return in_memory(scaled(list(map(read_array, paths)), scale, clean))
    if not first.is_dir() and all(pages(path) > 1 for path in paths):
        return in_memory(scaled([read_stack(path, max_megapixels) for path in paths], scale, clean))

    scenes = files_of_scenes(paths)
    deciding = [path for versions in scenes.values() for path in (versions[-1:] if clean else versions)]
    read = Reader([path for versions in scenes.values() for path in versions], deciding, max_megapixels, scale)
    if len(next(iter(scenes.values()))) > 1:
        return PairsOnDisk(scenes, read)
    return NeighbourPairs(list(scenes), lambda number: read(deciding[number]).values())


def in_memory(versions):
    """Pairs of tensors (N, C, H, W) in [0, 255], each another version of the same scenes, or of one's neighbours."""
    if len(versions) < 2:
        return NeighbourPairs(list(map(str, range(len(versions[0])))), lambda number: versions[0][number, None].float())
    stacks = [PairsInMemory(*pair) for pair in ring(versions)]
    if len(stacks) == 1:
        return stacks[0]
    return PairsInMemory(*(torch.cat([getattr(s, name) for s in stacks]) for name in ("first", "second", "places")))


def files_of_scenes(paths):
    """{name: [picture files]} of the scenes: all have several versions, or each has one."""
    if not paths[0].is_dir():
        return {paths[0].name: paths}
    return pair_folders(paths) if len(paths) > 1 else split_folder(paths[0])


def split_folder(folder):
    """Pictures in a folder itself are single ones; those in a sub-folder are the versions of one scene."""
    scenes = {}
    for path in pictures_below(folder):
        scenes.setdefault(str(path.parent.relative_to(folder)), []).append(path)
    if not scenes:
        raise ValueError(f"no picture in {folder}")
    if scenes.keys() == {"."}:
        return {path.name: [path] for path in scenes["."]}
    if "." in scenes:
        raise ValueError(
            f"{folder} must have its pictures either in sub-folders, one per scene, or all directly in it, each a "
            f"scene of its own; got {len(scenes['.'])} in itself and {len(scenes) - 1} sub-folders"
        )
    alone = [name for name, versions in scenes.items() if len(versions) < 2]
    if alone:
        raise ValueError(f"each sub-folder of {folder} needs two versions of its scene; {alone[0]} has one picture")
    return scenes


def pair_folders(folders):
    """Pictures of the same name, whatever its ending and Unicode form, in at least two of the folders."""
    versions = {}
    for folder in folders:
        found = {}
        for path in pictures_below(folder):
            name = unicodedata.normalize("NFC", str(path.relative_to(folder).with_suffix("")))  # macOS may write NFD
            if name in found:
                raise ValueError(f"{found[name]} and {path} have one name: which one belongs to a pair?")
            found[name] = path
        for name, path in found.items():
            versions.setdefault(name, []).append(path)
    paired = {name: versions[name] for name in sorted(versions) if len(versions[name]) > 1}
    if paired and len(paired) < len(versions) and is_first():
        print(f"{len(versions) - len(paired)} pictures have no namesake and are left out", file=sys.stderr)
    if not paired:
        first, *others = folders
        raise ValueError(
            f"no picture in {first} has a namesake in {', '.join(map(str, others))}; pairs have one name in two folders"
        )
    return paired


def read_tensors(path, scale):
    """The two tensors of a .pkl in the course's format."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks for a report of files that it refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path} is not readable as two tensors that torch.save wrote") from error
    if not isinstance(content, (tuple, list)) or len(content) != 2 or not all(map(torch.is_tensor, content)):
        raise ValueError(f"{path} must hold two tensors (N, C, H, W)")
    content = [part.detach() for part in content]
    for part in content:
        check_tensor(part, path)
    if scale.given is not None:
        return [to_255(part.float(), scale.given) for part in content]
    if any(part.numel() and out_of_scale(part) for part in content):
        low, high = min(part.float().min() for part in content), max(part.float().max() for part in content)
        raise ValueError(
            f"{path} has values in [{low:g}, {high:g}], but tensors should be in [0, 255]; give their range, such as "
            "--range 0 1 or --range 0 65535"
        )
    return content


def check_tensor(tensor, path):
    """ValueError unless a tensor of a .pkl is dense, of the shape (N, C, H, W), and holds finite real numbers."""
    if tensor.ndim != 4 or tensor.shape[1] > 4 >= tensor.shape[3]:
        advice = {3: "(N, H, W) by tensor.unsqueeze(1)", 4: "(N, H, W, C) by tensor.permute(0, 3, 1, 2)"}
        advice = f". Turn {advice[tensor.ndim]} first" if tensor.ndim in advice else ""
        raise ValueError(f"{path} must hold tensors (N, C, H, W); got the shape {tuple(tensor.shape)}{advice}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(
            f"{path} must hold dense tensors with values; got {tensor.layout} on {tensor.device}. Convert them first, "
            "such as by tensor.to_dense()"
        )
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise ValueError(
            f"{path} must hold real numbers in [0, 255], uint8 or floating; got {tensor.dtype}. Convert them first, "
            "such as by 255 * tensor for bool or tensor.abs() for complex values"
        )
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise ValueError(f"{path} holds NaN or infinite values; replace them first, such as by tensor.nan_to_num()")


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
    tifffile = need_tifffile()
    try:
        with tifffile.TiffFile(path) as tiff:
            frames = hidden_frames(tiff.pages[0].description)
            if frames and len(tiff.pages) == 1:
                raise ValueError(
                    f"{path} is an ImageJ stack of {frames} pictures in one; save it as one of {frames} pages"
                )
            return len(tiff.pages)
    except tifffile.TiffFileError:  # a wrong name or a damaged file: the decoder says which
        return 1


def read_stack(path, max_megapixels):
    """The pages of a TIFF as an array (N, C, H, W)."""
    numpy = need_numpy()
    try:
        with need_tifffile().TiffFile(path) as tiff:
            page = tiff.pages[0]
            check_size(page.imagewidth, page.imagelength * len(tiff.pages), 100 * max_megapixels)
            if any((one.shape, one.photometric) != (page.shape, page.photometric) for one in tiff.pages):
                raise ValueError(f"{path} is no stack: its pages differ in size or kind")
            if page.photometric.name not in ("MINISBLACK", "RGB") or (page.photometric.name == "RGB") != (
                page.samplesperpixel == 3
            ):
                raise ValueError(
                    f"pages of stacks must be grey with 0 as black, or RGB without alpha; those of {path} are "
                    f"{page.photometric.name} with {page.samplesperpixel} channels. Save them in one of these ways"
                )
            array = numpy.stack([one.asarray() for one in tiff.pages])
    except (ValueError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable TIFF stack: {error}") from error
    return as_images(array, path)


def as_images(array, path):
    """(N, H, W), (N, C, H, W) or (N, H, W, C) of unsigned or floating values -> (N, C, H, W)."""
    if array.ndim == 3 and array.shape[2] <= 4:
        raise ValueError(
            f"{path} has the shape {array.shape}: one picture (H, W, C)? Save it as (1, H, W, C), which says so; grey "
            "images of up to 4 columns as (N, 1, H, W)"
        )
    if array.ndim not in (3, 4) or array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.itemsize > 2):
        raise ValueError(
            f"{path} must hold (N, H, W), (N, C, H, W) or (N, H, W, C), unsigned of 8 or 16 bits or floating; got "
            f"{array.dtype} {array.shape}"
        )
    if array.ndim == 3:
        return array[:, None]
    return array.transpose(0, 3, 1, 2) if array.shape[3] <= 4 < array.shape[1] else array


def scaled(arrays, scale, clean=False):
    """Arrays (N, C, H, W) of one type as tensors in [0, 255], by one range for all; if `clean`, the last decides it.

    uint8 stays uint8 if its range is 0 to 255.
    """
    numpy = need_numpy()
    for other in arrays[1:]:
        if other.dtype != arrays[0].dtype:
            raise ValueError(f"all stacks must hold one type of values; got {arrays[0].dtype} and {other.dtype}")
    if arrays[0].dtype.kind == "f" and not all(numpy.isfinite(part).all() for part in arrays):
        raise ValueError("the stacks hold NaN or infinite values; replace them first")
    own = [scale.given or default_range(part) for part in arrays]
    ranges = list(zip(arrays, own, strict=True))
    scale.decide(ranges[-1:] if clean else ranges)
    noisy = [clean] * (len(arrays) - 1) + [False]
    common = [scale.of(*part) for part in zip(arrays, own, noisy, strict=True)][-1]
    if arrays[0].dtype == "uint8" and common == (0, 255):
        return [torch.from_numpy(numpy.array(part)) for part in arrays]
    return [to_255(torch.from_numpy(part.astype("float32")), common) for part in arrays]


def evenly_spaced(count, most):
    """At most so many of the numbers below `count`, evenly spaced: a range."""
    return range(0, count, max(1, -(-count // most)))


def random_squares(pairs, side, count, overlap=1, seed=0):
    """Up to `count` random squares of up to `side` pixels a side from the pairs, spread evenly over them.

    Returns two float32 (M, C, s, s), of images with as many channels as the first; s is less than `side` if that
    image is smaller. Squares lie on a grid with a step of s / `overlap`. Only one pair at a time is in memory.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(pairs), generator=generator)[:count].tolist()
    channels, *size = pairs.pair(chosen[0])[0].shape[1:]
    side, result = min(side, *size), []
    for turn, number in enumerate(chosen):
        first, second = pairs.pair(number)
        share = count * (turn + 1) // len(chosen) - count * turn // len(chosen)
        if first.shape[1] == channels:
            for top, left in random_corners(*first.shape[2:], side, share, overlap, generator):
                square = (..., slice(top, top + side), slice(left, left + side))
                result.append((first[square].clone(), second[square].clone()))
    return tuple(torch.cat(part) for part in zip(*result, strict=True))


def random_corners(height, width, side, count, overlap, generator):
    """Corners of up to `count` different squares of a grid, in random order."""
    step = max(1, side // overlap)
    rows, columns = (max(0, (size - side) // step + 1) for size in (height, width))
    for number in torch.randperm(rows * columns, generator=generator)[:count].tolist():
        yield number // columns * step, number % columns * step
