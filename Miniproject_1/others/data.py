"""Makes `train_data.pkl` and `val_data.pkl` in the course's format.

    python -m Miniproject_1.others.data photos FOLDER --out DATA --pairs 50000   # from photographs; needs Pillow
    python -m Miniproject_1.others.data scenes --out DATA --pairs 4000           # from procedural scenes
    python -m Miniproject_1.others.data noise gaussian --data DATA --out OTHER   # another noise, same clean images

The course's noise is Monte-Carlo point sampling. A square crop of a picture is cut into 32 x 32 cells. Every noisy
pixel is one picture pixel, drawn at random from its cell; the clean image is the mean of each cell. Two noisy images
are two independent draws. No picture is resized before it is sampled: that would remove most of the noise.

`train_data.pkl` holds `(noisy_1, noisy_2)`, `val_data.pkl` holds `(noisy, clean)`: uint8 tensors (N, 3, 32, 32).
Files that exist are overwritten only with `--force`; the folder of `--data` is never written to.

Shapes: N pairs, C = 3 channels, H W picture, S = 32 cells a side.

Sources of the procedural scenes: A. B. Lee, D. Mumford, J. Huang, "Occlusion models for natural images", IJCV 2001
(discs that occlude each other, radii with density r^-3, have the statistics of natural images); R. Achddou,
Y. Gousseau, S. Ladjal, "Fully synthetic training for image restoration tasks", CVIU 2023 (colour and texture in
the leaves are what a denoiser needs to learn from). The other noises: J. Lehtinen et al., "Noise2Noise", ICML 2018,
section 3.
"""

import argparse
import itertools
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.others.command_line import (
    count,
    draw_progress,
    exit_on_error,
    some_path,
    summary,
    watched,
)
from Miniproject_1.others.files import check_new, check_writable, user_cache
from Miniproject_1.others.metrics import psnr
from Miniproject_1.others.photos import (  # scripts elsewhere import load_photos and photo_files from here
    PHOTO_THREADS,
    load_photo,
    load_photos,  # noqa: F401
    of_readable_photos,
    photo_files,  # noqa: F401
)

ROOT = Path(__file__).resolve().parents[2]
TRAIN, VALIDATION = "train_data.pkl", "val_data.pkl"

CELLS = 32  # cells, that is output pixels, a side
SMALLEST_CROP = 0.6  # of the picture's shorter side; training crops are drawn between this and 1
CROPS_PER_SCENE = 20  # validation images and training pairs drawn from one procedural scene
DEFAULT_PAIRS, DEFAULT_VALIDATION, DEFAULT_SEED = 4000, 1000, 0  # of the data the grader makes for itself
CACHE = ROOT / ".cache" / "default_data"

WINDOWS_WORKERS = 61  # Windows waits for 63 handles at most; two are the pool's own

SCENE_SIDE = 384  # pixels: cells of 12 pixels, as an ImageNet photo of 500 x 375 has
LEAF_RADII = (8.0, 200.0)  # pixels, the range of the power law
LEAF_COVER = 4.0  # total area of discs with the leaves' radii, in scenes; about half of it covers pixels


# ---------------------------------------------------------------------------------------------- point sampling


def point_sample(picture, crops, generator, cells=CELLS):
    """One noisy image of each crop of a picture; another call draws another.

    Args:
        picture: uint8 (C, H, W).
        crops: int64 (N, 3), rows of (top, left, side) in pixels, side >= cells, inside the picture.
        generator: `torch.Generator` that draws the samples.
        cells: cells a side S.

    Returns uint8 (N, C, S, S).
    """
    channels, _, width = picture.shape
    rows, columns = cell_edges(crops, cells)
    y = _inside(rows.unsqueeze(2), 1, generator)
    x = _inside(columns.unsqueeze(1), 2, generator)
    return picture.reshape(channels, -1)[:, y * width + x].transpose(0, 1)


def draws_of_each(picture, crops, draws, generator, cells=CELLS):
    """`draws` noisy images of each crop, uint8 (draws, N, C, S, S); other arguments as for `point_sample`."""
    return torch.stack([point_sample(picture, crops, generator, cells) for _ in range(draws)])


def cell_means(picture, crops, cells=CELLS):
    """The clean image of each crop, uint8 (N, C, S, S); arguments as for `point_sample`."""
    rows, columns = cell_edges(crops, cells)
    sums = torch.stack([_cell_sums(picture, *edges) for edges in zip(rows, columns, strict=True)])  # (N, C, S, S)
    area = rows.diff(dim=1).unsqueeze(2) * columns.diff(dim=1).unsqueeze(1)
    return (sums / area.unsqueeze(1)).round().to(torch.uint8)


def _cell_sums(picture, rows, columns):
    """Sums over the cells of one crop, int64 (C, S, S), one row of cells at a time to save memory."""
    first, last = columns[0].item(), columns[-1].item()
    strips = [picture[:, top:bottom, first:last].sum(1) for top, bottom in itertools.pairwise(rows.tolist())]
    totals = F.pad(torch.stack(strips, dim=1).cumsum(2), (1, 0))  # (C, S, side + 1), up to each column
    return totals[:, :, columns - first].diff(dim=2)


def cell_edges(crops, cells=CELLS):
    """First row and first column of the cells of each crop, and the ends: two int64 (N, S + 1)."""
    steps = torch.arange(cells + 1)
    top, left, side = crops[:, 0:1], crops[:, 1:2], crops[:, 2:3]
    return top + steps * side // cells, left + steps * side // cells


def _inside(edges, axis, generator):
    """A random coordinate inside every cell, (N, S, S), from edges that run along the axis."""
    size = edges.diff(dim=axis)
    cells = size.shape[axis]
    uniform = torch.rand(len(edges), cells, cells, generator=generator)
    return edges.narrow(axis, 0, cells) + (uniform * size).long()


def random_crops(count, height, width, generator, cells=CELLS):
    """`count` random crops of at least `cells` pixels a side inside a picture, int64 (count, 3): top, left, side."""
    short = min(height, width)
    smallest = min(short, max(cells, round(SMALLEST_CROP * short)))
    side = torch.randint(smallest, short + 1, (count,), generator=generator)
    top = (torch.rand(count, generator=generator) * (height - side + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - side + 1)).long()
    return torch.stack([top, left, side], dim=1)


def centre_crop(height, width):
    """The largest centred crop of a picture, int64 (1, 3): top, left, side."""
    side = min(height, width)
    return torch.tensor([[(height - side) // 2, (width - side) // 2, side]])


def noisy_pairs(picture, count, seed, cells=CELLS):
    """`count` pairs `(noisy_a, noisy_b)`, each cells x cells, from random crops of one picture."""
    generator = torch.Generator().manual_seed(seed)
    crops = random_crops(count, *picture.shape[1:], generator, cells)
    return tuple(draws_of_each(picture, crops, 2, generator, cells))


def noisy_and_clean(picture, count, seed):
    """`count` images `(noisy, clean)`: of the largest centred crop first, then of random crops."""
    generator = torch.Generator().manual_seed(seed)
    crops = random_crops(count, *picture.shape[1:], generator)
    crops[:1] = centre_crop(*picture.shape[1:])
    return point_sample(picture, crops, generator), cell_means(picture, crops)


def noisy_and_mean(picture, count, seed, draws=8, inputs=None, cells=CELLS):
    """`count` pairs `(noisy, mean)`, each cells x cells, from random crops of one picture.

    Each crop is drawn `draws` times, at least twice. Each of its first `inputs` draws (None: all) comes with the
    rounded mean of its other draws. Learning from the mean is learning from all pairs of one draw with each of the
    others at once: the mean of their squared errors differs from the squared error against the mean by a constant.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = draws if inputs is None else inputs
    if draws < 2:
        raise ValueError(f"draws must be at least 2, one to learn from and one for the mean; got {draws}")
    if not 1 <= inputs <= draws:
        raise ValueError(f"inputs must be between 1 and the number of draws, {draws}; got {inputs}")
    crops = random_crops(math.ceil(count / inputs), *picture.shape[1:], generator, cells)
    every = draws_of_each(picture, crops, draws, generator, cells)
    noisy = every[:inputs]
    means = (every.sum(0, dtype=torch.int32) - noisy).float() / (draws - 1)
    return noisy.flatten(0, 1)[:count], means.round().to(torch.uint8).flatten(0, 1)[:count]


def draw_pairs(pictures, pairs, seed, draw=noisy_pairs):
    """Fresh training pairs from pictures in memory, in random order.

    Args:
        pictures: list of uint8 (C, H, W).
        pairs: number of pairs N.
        seed: another seed gives other crops and other noise.
        draw: `noisy_pairs`, `noisy_and_mean`, `other_noises_and_mean` or `noisy_and_clean`.

    Returns the two images of each pair: uint8 (N, C, S, S) twice, 32 cells a side where `draw` says nothing else.
    """
    jobs = _spread_evenly(len(pictures), pairs, seed)
    with ThreadPoolExecutor(_processors()) as pool:
        parts = list(pool.map(lambda job: draw(pictures[job[0]], job[1], job[2]), jobs))
    return _shuffled(parts, seed)


def _spread_evenly(sources, pairs, seed):
    """Spreads `pairs` evenly over the sources: (source, count, seed) for each that gets any, in random order."""
    order = torch.randperm(sources, generator=torch.Generator().manual_seed(seed)).tolist()
    counts = [pairs // sources + (rank < pairs % sources) for rank in range(sources)]
    return [(s, n, seed * 1_000_003 + s) for s, n in zip(order, counts, strict=True) if n]


def _shuffled(parts, seed):
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(seed))
    return tuple(column[order] for column in columns)


# ---------------------------------------------------------------------------------------------- procedural scenes


def render_scene(seed, side=SCENE_SIDE):
    """A picture of occluding, shaded, textured leaves (the dead-leaves model): uint8 (3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    small, large = LEAF_RADII
    mean_area = 2 * math.pi * small**2 * math.log(large / small)  # of radii with density r^-3
    count = int(LEAF_COVER * side**2 / mean_area)
    uniform = torch.rand(count, generator=generator)
    radii = (small**-2 - uniform * (small**-2 - large**-2)).rsqrt()
    leaves = torch.rand(count, 8, generator=generator)
    palette = _palette(count, generator)
    axis = torch.arange(side, dtype=torch.float32)
    scene = palette[0][:, None, None].expand(3, side, side).clone()
    for radius, leaf, colour in zip(radii.tolist(), leaves.tolist(), palette, strict=True):
        _paint(scene, axis, radius, leaf, colour)
    return (scene.clamp(0, 1) * 255).round().to(torch.uint8)


def _palette(count, generator):
    """Colours (count, 3) in [0, 1]: channels share most of their variance, as those of photographs do."""
    scene, leaf = torch.randn(1, 3, generator=generator), torch.randn(count, 1, generator=generator)
    tint = torch.randn(count, 3, generator=generator)
    return (0.45 + 0.16 * scene + 0.17 * leaf + 0.06 * tint).clamp(0, 1)


def _paint(scene, axis, radius, leaf, colour):
    """Paints one elliptic leaf with a gradient across it and a wave as texture."""
    side = scene.shape[-1]
    across, down, squeeze, angle, slope, wave, contrast, phase = leaf
    x0, y0 = (across * 1.2 - 0.1) * side, (down * 1.2 - 0.1) * side
    left, right = max(0, int(x0 - radius)), min(side, int(x0 + radius) + 1)
    top, bottom = max(0, int(y0 - radius)), min(side, int(y0 + radius) + 1)
    if left >= right or top >= bottom:
        return
    x, y = axis[left:right] - x0, axis[top:bottom, None] - y0
    cosine, sine = math.cos(math.pi * angle), math.sin(math.pi * angle)
    u, v = x * cosine + y * sine, (y * cosine - x * sine) / (0.4 + 0.6 * squeeze)
    period = 3.0 * 16.0**wave  # pixels
    shade = 0.3 * (slope - 0.5) * (u / radius) + 0.25 * contrast**3 * torch.sin(
        u * (2 * math.pi / period) + 2 * math.pi * phase
    )
    region = scene[:, top:bottom, left:right]
    inside = u * u + v * v < radius * radius
    region.copy_(torch.where(inside, colour[:, None, None] + shade, region))


def _scene_job(job):
    """Draws from one fresh scene; `job` is (`noisy_pairs` or `noisy_and_clean`, seed)."""
    torch.set_num_threads(1)  # this is a worker process, one for each core
    draw, seed = job
    return draw(render_scene(seed), CROPS_PER_SCENE, seed)


# ---------------------------------------------------------------------------------------------- other noises


def _gaussian(images, level, generator):
    return images + level * torch.randn(images.shape, generator=generator)


def _poisson(images, level, generator):
    return torch.poisson(images / 255 * level, generator=generator) / level * 255


def _bernoulli(images, level, generator):
    return images.masked_fill(_random_pixels(images, level, generator), 0)


def _impulse(images, level, generator):
    hit = _random_pixels(images, level, generator)
    return torch.where(hit, (torch.rand(images.shape, generator=generator) * 256).floor(), images)


def _random_pixels(images, level, generator):
    """A bool mask (N, 1, H, W), each pixel True with probability `level`."""
    return torch.rand(len(images), 1, *images.shape[2:], generator=generator) < level


class Noise(NamedTuple):
    """A noise that `add_noise` adds, and its levels."""

    function: Callable  # (images, level, generator) -> images, float32 in grey values
    level: float  # of the `noise` command
    learnt: tuple[float, float]  # the lowest and the highest level that the shipped weights learnt from
    limits: tuple[float, float]  # exclusive: at these levels or beyond, no image or no noise is left


NOISES = {
    "gaussian": Noise(_gaussian, 25.0, (3.0, 75.0), (0.0, 1000.0)),  # standard deviation in grey values
    "poisson": Noise(_poisson, 30.0, (4.0, 400.0), (0.01, 1e6)),  # photons at white
    "bernoulli": Noise(_bernoulli, 0.5, (0.1, 0.9), (0.0, 1.0)),  # share of the pixels set to 0
    "impulse": Noise(_impulse, 0.3, (0.05, 0.6), (0.0, 1.0)),  # share of the pixels set to a uniformly random colour
}


def add_noise(clean, kind, level, generator):
    """One noisy version of clean images by a noise of the Noise2Noise paper (its section 3).

    Args:
        clean: (N, C, H, W) in [0, 255].
        kind: a name in `NOISES`.
        level: a number between the limits of the noise, or one for each image, (N, 1, 1, 1).
        generator: `torch.Generator`.

    Returns:
        uint8 (N, C, H, W). Rounding and clipping to 0..255 bias Gaussian and Poisson noise near black and white.

    Raises ValueError for another kind or level.
    """
    check_noise(kind, level)
    return NOISES[kind].function(clean.float(), level, generator).round().clamp(0, 255).to(torch.uint8)


def check_noise(kind, level):
    """Raises ValueError unless `kind` is a name in `NOISES` and `level` one or more of its levels."""
    if kind not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {kind!r}")
    levels, (low, high) = torch.as_tensor(level), NOISES[kind].limits
    if not ((low < levels) & (levels < high)).all():  # NaN is not between them, either
        raise ValueError(f"the level of {kind} noise must lie between {low:g} and {high:g}; got {level}")


def other_noises_and_mean(picture, count, seed, draws=32, cells=CELLS):
    """`count` pairs `(noisy, mean)`, each cells x cells, with noise other than one sample per pixel.

    Each random crop of the picture is drawn `draws` times, at least 8. The rounded mean of the last quarter is the
    second image of each pair. The first images are, in random order: the mean of some of the other draws; and the mean
    of all of them with one of `NOISES` added, for each of these, at log-uniform levels in its range `learnt`.
    The noise is added to a mean of draws: no clean image is used.
    """
    if draws < 8:
        raise ValueError(f"draws must be at least 8; got {draws}")
    generator = torch.Generator().manual_seed(seed)
    crops = random_crops(math.ceil(count / (1 + len(NOISES))), *picture.shape[1:], generator, cells)
    every = draws_of_each(picture, crops, draws, generator, cells).float()
    sources, targets = every.split([draws - draws // 4, draws // 4])

    def levels(low, high):
        return low * (high / low) ** torch.rand(len(crops), 1, 1, 1, generator=generator)

    samples = levels(2, len(sources) + 1).long()
    noisy = [(sources.cumsum(0)[samples.flatten() - 1, torch.arange(len(crops))] / samples).round().to(torch.uint8)]
    noisy += [add_noise(sources.mean(0), kind, levels(*noise.learnt), generator) for kind, noise in NOISES.items()]
    order = torch.randperm(len(noisy), generator=generator)
    target = targets.mean(0).round().to(torch.uint8).expand(len(noisy), *every.shape[1:])
    return torch.stack(noisy)[order].flatten(0, 1)[:count], target.flatten(0, 1)[:count]


# ---------------------------------------------------------------------------------------------- data sets


def from_photos(folder, pairs, validation, seed, progress=None):
    """`(noisy_1, noisy_2), (noisy, clean)` from a folder of photographs; None for the one whose count is 0.

    Training takes random crops of each photo, validation its largest centred crop before any other. If both are asked
    for, every tenth photo is for validation, the rest for training.
    """
    files = of_readable_photos(folder, lambda path, photo: path, progress)
    for_training = for_validation = files
    if pairs and validation:
        for_training, for_validation = [f for n, f in enumerate(files) if n % 10], files[::10]
    if not for_training:
        raise ValueError("training and validation share no photo, so together they need at least two photos; got 1")

    def data(files, draw, count, seed):
        jobs = _spread_evenly(len(files), count, seed)
        with ThreadPoolExecutor(PHOTO_THREADS) as pool:
            parts = pool.map(lambda job: draw(load_photo(files[job[0]]), *job[1:]), jobs)
            return _shuffled(list(watched(parts, len(jobs), progress)), seed)

    return (
        data(for_training, noisy_pairs, pairs, seed) if pairs else None,
        data(for_validation, noisy_and_clean, validation, seed + 1) if validation else None,
    )


def from_scenes(pairs, validation, seed, progress=None):
    """The same from procedural scenes, without any photograph; validation has scenes of its own."""
    first = 2_000_000 * seed
    jobs = [(noisy_pairs, first + scene) for scene in range(math.ceil(pairs / CROPS_PER_SCENE))]
    jobs += [(noisy_and_clean, first + 1_000_000 + s) for s in range(math.ceil(validation / CROPS_PER_SCENE))]
    parts = _in_processes(_scene_job, jobs, progress)
    split = math.ceil(pairs / CROPS_PER_SCENE)
    return tuple(
        tuple(column[:count] for column in _shuffled(some, seed)) if count else None
        for some, count in ((parts[:split], pairs), (parts[split:], validation))
    )


def _in_processes(function, jobs, progress):
    """What the function returns for each job, by worker processes. RuntimeError if one of these is killed."""
    context = get_context("spawn")  # forked workers would inherit the thread pool of torch, and hang
    pool = ProcessPoolExecutor(_workers(len(jobs)), mp_context=context)
    try:
        with _ctrl_c_ignored():  # by the workers, which inherit that: this process ends them
            results = pool.map(function, jobs)
        return list(watched(results, len(jobs), progress))
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process was killed, perhaps because memory ran out") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_ignored():
    """Within the context, Ctrl-C does nothing; in a thread, which may not change that, it does what it did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _processors():
    """How many processors this process may use: `taskset` or a batch system may lend it only some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _workers(jobs):
    """How many processes to start for a number of jobs."""
    most = WINDOWS_WORKERS if sys.platform == "win32" else jobs
    return max(1, min(_processors(), jobs, most))


def default_data(folder=CACHE, progress=None):
    """The folder of the embedded default data set, made from procedural scenes on first use (under a minute).

    Where the folder cannot be written, the data are kept in the user's cache. ValueError where that cannot be, either.
    """
    for place in (Path(folder), user_cache() / "noise2noise" / "default_data"):
        if (place / TRAIN).is_file() and (place / VALIDATION).is_file():
            return place
        try:
            check_folder(place)
        except ValueError as error:
            reason = error
            continue
        try:
            save_data(place, *from_scenes(DEFAULT_PAIRS, DEFAULT_VALIDATION, DEFAULT_SEED, progress))
        except OSError as error:
            raise ValueError(f"the default data cannot be kept: {error}; use -d with data of your own") from error
        return place
    raise ValueError(
        f"no folder for the default data can be written: {reason}; use -d with data of your own"
    ) from reason


# ---------------------------------------------------------------------------------------------- files


def read_pairs(path):
    """The two tensors, uint8 (N, 3, H, W), of a `train_data.pkl` or `val_data.pkl`. ValueError for anything else."""
    path, expected = Path(path), "expected two uint8 tensors (N, 3, H, W) of one shape, as data.py writes them"
    if not path.is_file():
        raise ValueError(f"{path} is not a file; {expected}")
    try:
        pair = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises half a dozen kinds, some of which advise to run foreign code
        raise ValueError(f"{path} is damaged or something else; {expected}") from error
    if not isinstance(pair, tuple | list) or not all(isinstance(images, torch.Tensor) for images in pair):
        raise ValueError(f"{path} holds one {type(pair).__name__}; {expected}")
    found = [(images.dtype, *images.shape) for images in pair]
    if len(pair) != 2 or found[0] != found[1] or pair[0].dtype != torch.uint8 or pair[0].shape[1:2] != (3,):
        raise ValueError(f"{path} holds {', '.join(map(str, found)) or 'nothing'}; {expected}")
    if pair[0].ndim != 4 or not pair[0].numel():
        raise ValueError(f"{path} holds no images, but {found[0][1:]}; {expected}")
    return tuple(pair)


def save_data(folder, train, validation):
    """Writes `train_data.pkl` and `val_data.pkl`, each whole or not at all; None leaves a file alone."""
    from Miniproject_1.model import save_atomically  # only here: the grader reads data even if a model.py is broken

    folder = Path(os.path.realpath(folder))  # a link to a folder that is not there yet
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in ((TRAIN, train), (VALIDATION, validation)):
        if tensors is not None:
            # torch saves all of the memory that a slice is part of
            copies = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors)
            save_atomically(copies, folder / name)


def check_folder(folder, names=(TRAIN, VALIDATION), force=True):
    """Raises ValueError unless `save_data` can write the files; FileExistsError if one is there, unless `force`."""
    for path in (Path(folder) / name for name in names):
        check_writable(path)
        check_new(path, force)


# ---------------------------------------------------------------------------------------------- command line


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    photos = commands.add_parser("photos", help="from a folder of photographs")
    photos.add_argument("folder", type=some_path, help="folder of photographs; those in its subfolders count, too")
    scenes = commands.add_parser("scenes", help="from procedural scenes")
    for command in (photos, scenes):
        command.add_argument("--pairs", type=count, default=50_000, help="training pairs (default 50000); 0: none")
        command.add_argument("--validation", type=count, default=1_000, help="images (default 1000); 0: none")
    noise = commands.add_parser("noise", help="another noise on the clean images of a val_data.pkl")
    noise.add_argument("kind", choices=NOISES)
    noise.add_argument("--data", type=some_path, required=True, help="folder of the val_data.pkl")
    noise.add_argument("--level", type=float, help="standard deviation, photons at white, or share of the pixels")
    for command in (photos, scenes, noise):
        command.add_argument("--out", type=some_path, required=True, help="folder to write to")
        command.add_argument("--force", action="store_true", help="overwrite files that exist")
        command.add_argument("--seed", type=count, default=0, help="of all random draws (default 0)")
    return parser.parse_args(arguments)


def check_out(options):
    """Raises ValueError or FileExistsError unless the command may write all files that it makes."""
    names = [TRAIN, VALIDATION]
    if options.command != "noise":
        names = [name for name, size in zip(names, (options.pairs, options.validation), strict=True) if size]
    else:
        check_apart(options.data, options.out, names)
    check_folder(options.out, names, options.force)


def check_apart(data, out, names):
    """Raises ValueError if a file to write is that of `--data` or lies in that folder, be it by links."""
    read = os.path.realpath(data)
    if os.path.realpath(out) == read:
        raise ValueError("--data and --out are one folder, whose files would be overwritten; choose another")
    for path in (out / name for name in names):
        written = os.path.realpath(path)
        if written == os.path.realpath(data / VALIDATION) or os.path.dirname(written) == read:
            raise ValueError(f"{path} leads to {written}, which --data must keep; choose another --out")


def make_data(options):
    """The two parts that the command asks for; see `from_photos`."""
    if options.command == "noise":
        return with_noise(options.data, options.kind, options.level, options.seed)
    if not options.pairs and not options.validation:
        raise ValueError("--pairs and --validation are both 0: there is nothing to make")
    if options.command == "photos":
        return from_photos(options.folder, options.pairs, options.validation, options.seed, draw_progress)
    return from_scenes(options.pairs, options.validation, options.seed, draw_progress)


def with_noise(folder, kind, level, seed):
    """`(noisy_1, noisy_2), (noisy, clean)` with another noise on the clean images of a folder's `val_data.pkl`."""
    level = NOISES[kind].level if level is None else level
    check_noise(kind, level)
    if Path(folder).is_file():
        raise ValueError(f"--data takes the folder that holds {VALIDATION}; got the file {folder}")
    _, clean = read_pairs(Path(folder) / VALIDATION)
    generator = torch.Generator().manual_seed(seed)
    noisy_a, noisy_b = (add_noise(clean, kind, level, generator) for _ in range(2))
    if torch.equal(noisy_a, clean):
        raise ValueError(f"{kind} noise of the level {level:g} changes no pixel; give a higher one")
    return (noisy_a, noisy_b), (noisy_a, clean)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("data.py"):
        check_out(options)
        train, validation = make_data(options)
        save_data(options.out, train, validation)
        if train is not None:
            print(f"{TRAIN}: {len(train[0])} pairs")
        if validation is not None:
            print(f"{VALIDATION}: {len(validation[0])} images, the noisy ones at {psnr(*validation):.2f} dB")


if __name__ == "__main__":
    main()
