"""Makes `train_data.pkl` and `val_data.pkl` in the course's format.

    python Miniproject_1/others/data.py photos FOLDER --out DATA --pairs 50000   # from photographs (needs Pillow)
    python Miniproject_1/others/data.py scenes --out DATA --pairs 4000           # procedural, needs nothing
    python Miniproject_1/others/data.py noise gaussian --data DATA --out OTHER   # another noise, same clean images

The course's noise is Monte-Carlo point sampling: a square of a picture is cut into 32 x 32 cells, every noisy pixel
is ONE picture pixel drawn at random from its cell, and the clean image is the mean of each cell. Two noisy images
are two independent draws. No picture is resized before it is sampled: that would remove most of the noise.

`train_data.pkl` holds `(noisy_1, noisy_2)`, `val_data.pkl` holds `(noisy, clean)`: uint8 tensors (N, 3, 32, 32).

Shapes: N pairs, C = 3 channels, H W picture, S = 32 cells a side.

Sources of the procedural scenes: A. B. Lee, D. Mumford, J. Huang, "Occlusion models for natural images", IJCV 2001
(discs that occlude each other, radii with density r^-3, have the statistics of natural images); R. Achddou,
Y. Gousseau, S. Ladjal, "Fully synthetic training for image restoration tasks", CVIU 2023 (colour and texture in
the leaves are what a denoiser needs to learn from). The other noises: J. Lehtinen et al., "Noise2Noise", ICML 2018,
section 3.
"""

import argparse
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

CELLS = 32  # cells, that is output pixels, a side
SMALLEST_CROP = 0.6  # of the picture's shorter side; training crops are drawn between this and 1
CROPS_PER_SCENE = 20  # validation images and training pairs drawn from one procedural scene
DEFAULT_PAIRS, DEFAULT_VALIDATION, DEFAULT_SEED = 4000, 1000, 0  # of the data the grader makes for itself
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "default_data"

SCENE_SIDE = 384  # pixels: cells of 12 pixels, as an ImageNet photo of 500 x 375 has
LEAF_RADII = (8.0, 200.0)  # pixels, the range of the power law
LEAF_COVER = 4.0  # area of discs as large as the leaves are long, in scenes; about half of it covers pixels


# ---------------------------------------------------------------------------------------------- point sampling


def point_sample(picture, boxes, generator, cells=CELLS):
    """One noisy image of each square of a picture; another call draws another.

    Args:
        picture: uint8 (C, H, W).
        boxes: int64 (N, 3), rows of (top, left, side) in pixels, side >= cells, inside the picture.
        generator: `torch.Generator` that draws the samples.
        cells: cells a side S.

    Returns uint8 (N, C, S, S).
    """
    channels, _, width = picture.shape
    rows, columns = cell_edges(boxes, cells)
    y = _inside(rows.unsqueeze(2), 1, generator)
    x = _inside(columns.unsqueeze(1), 2, generator)
    return picture.reshape(channels, -1)[:, y * width + x].transpose(0, 1)


def draws_of_each(picture, boxes, draws, generator, cells=CELLS):
    """`draws` noisy images of each square, uint8 (draws, N, C, S, S); other arguments as for `point_sample`."""
    return torch.stack([point_sample(picture, boxes, generator, cells) for _ in range(draws)])


def cell_means(picture, boxes):
    """The clean image of each square, uint8 (N, C, 32, 32); arguments as for `point_sample`."""
    rows, columns = cell_edges(boxes)
    table = torch.zeros(picture.shape[0], picture.shape[1] + 1, picture.shape[2] + 1, dtype=torch.int64)
    table[:, 1:, 1:] = picture.long().cumsum(1).cumsum(2)  # summed-area table
    sums = table[:, rows.unsqueeze(2), columns.unsqueeze(1)].diff(dim=2).diff(dim=3)  # (C, N, S, S)
    area = rows.diff(dim=1).unsqueeze(2) * columns.diff(dim=1).unsqueeze(1)
    return (sums / area).round().to(torch.uint8).transpose(0, 1)


def cell_edges(boxes, cells=CELLS):
    """First row and first column of the cells of each square, and the ends: two int64 (N, S + 1)."""
    steps = torch.arange(cells + 1)
    top, left, side = boxes[:, 0:1], boxes[:, 1:2], boxes[:, 2:3]
    return top + steps * side // cells, left + steps * side // cells


def _inside(edges, axis, generator):
    """A random coordinate inside every cell, (N, S, S), from edges that run along the axis."""
    size = edges.diff(dim=axis)
    cells = size.shape[axis]
    uniform = torch.rand(len(edges), cells, cells, generator=generator)
    return edges.narrow(axis, 0, cells) + (uniform * size).long()


def random_boxes(count, height, width, generator, cells=CELLS):
    """`count` random squares of at least `cells` pixels a side inside a picture, int64 (count, 3): top, left, side."""
    short = min(height, width)
    smallest = min(short, max(cells, round(SMALLEST_CROP * short)))
    side = torch.randint(smallest, short + 1, (count,), generator=generator)
    top = (torch.rand(count, generator=generator) * (height - side + 1)).long()
    left = (torch.rand(count, generator=generator) * (width - side + 1)).long()
    return torch.stack([top, left, side], dim=1)


def centre_box(height, width):
    """The largest centred square of a picture, int64 (1, 3): top, left, side."""
    side = min(height, width)
    return torch.tensor([[(height - side) // 2, (width - side) // 2, side]])


def noisy_pairs(picture, count, seed, cells=CELLS):
    """`count` pairs `(noisy_a, noisy_b)`, each cells x cells, from random squares of one picture."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, *picture.shape[1:], generator, cells)
    return tuple(draws_of_each(picture, boxes, 2, generator, cells))


def noisy_and_clean(picture, count, seed):
    """`count` times `(noisy, clean)`: of the largest centred square first, then of random squares."""
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, *picture.shape[1:], generator)
    boxes[:1] = centre_box(*picture.shape[1:])
    return point_sample(picture, boxes, generator), cell_means(picture, boxes)


def noisy_and_others(picture, count, seed, draws=8, inputs=None):
    """`count` pairs `(noisy, mean of others)`: squares of one picture are drawn `draws` times each (at least 2), and
    the first `inputs` of these draws (None: all) come with the rounded mean of the other draws of their square.

    To learn from the mean is to learn from all the pairs of the one draw with each of the others at once: the sum of
    their squared errors differs from the squared error against the mean by what no prediction can change.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = draws if inputs is None else inputs
    if not 1 <= inputs <= draws:
        raise ValueError(f"inputs must be between 1 and the number of draws, {draws}; got {inputs}")
    boxes = random_boxes(math.ceil(count / inputs), *picture.shape[1:], generator)
    every = draws_of_each(picture, boxes, draws, generator)
    noisy = every[:inputs]
    others = (every.sum(0, dtype=torch.int32) - noisy).float() / (draws - 1)
    return noisy.flatten(0, 1)[:count], others.round().to(torch.uint8).flatten(0, 1)[:count]


def draw_pairs(pictures, pairs, seed, draw=noisy_pairs):
    """Fresh training pairs from pictures in memory, in random order.

    Args:
        pictures: list of uint8 (C, H, W).
        pairs: number of pairs N.
        seed: another seed gives other squares and other noise.
        draw: `noisy_pairs`, `noisy_and_others`, `other_noises_and_others` or `noisy_and_clean`.

    Returns the two images of each pair: uint8 (N, C, 32, 32) twice.
    """
    jobs = _share(len(pictures), pairs, seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda job: draw(pictures[job[0]], job[1], job[2]), jobs))
    return _shuffled(parts, seed)


def _share(sources, pairs, seed):
    """Spreads `pairs` evenly over the sources: (source, count, seed) for each that gets any, in random order."""
    order = torch.randperm(sources, generator=torch.Generator().manual_seed(seed)).tolist()
    counts = [pairs // sources + (rank < pairs % sources) for rank in range(sources)]
    return [(s, n, seed * 1_000_003 + s) for s, n in zip(order, counts, strict=True) if n]


def _shuffled(parts, seed):
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = torch.randperm(len(columns[0]), generator=torch.Generator().manual_seed(seed))
    return tuple(column[order] for column in columns)


# ---------------------------------------------------------------------------------------------- photographs


def photo_files(folder):
    """The files below a folder that look like photographs, sorted. ValueError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"photos are read from a folder; {str(folder)!r} is not one")
    endings = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
    if not files:
        raise ValueError(f"no photo in {str(folder)!r}: expected files ending in {', '.join(sorted(endings))}")
    return files


def load_photo(path):
    """Reads a photograph as uint8 (3, H, W). ValueError where it cannot be read or is under 32 pixels a side."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading photos needs Pillow: pip install Pillow, or use `scenes`") from error
    try:
        image = Image.open(path)
        deep = image.mode[0] in "IF"
        image = image.convert("RGB")
    except Exception as error:  # damaged and oversized files make Pillow raise half a dozen kinds
        raise ValueError(f"{path.name} is not a readable photo: {error}") from error
    if deep:
        raise ValueError(f"{path.name} has more than 8 bits a channel, which are not read; convert it first")
    if min(image.size) < CELLS:
        raise ValueError(
            f"{path.name} has {image.size[0]} x {image.size[1]} pixels; each side must be at least {CELLS}"
        )
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.size[1], image.size[0], 3).permute(2, 0, 1).contiguous()


def load_photos(folder):
    """Every readable photo of a folder, a list of uint8 (3, H, W); the others are named on stderr."""
    return _of_readable_photos(folder, lambda path, photo: photo)


def _of_readable_photos(folder, function, progress=None):
    """`function(path, photo)` of each readable photo. ValueError where there is none."""
    files = photo_files(folder)

    def call(path):
        try:
            return [function(path, load_photo(path))]
        except ValueError as error:
            print(f"skipped: {error}", file=sys.stderr)
            return []

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [result for found in _watched(pool.map(call, files), len(files), progress) for result in found]
    if not results:
        raise ValueError(f"no photo in {str(folder)!r} could be read; see the names above")
    return results


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


def add_noise(clean, kind, level, generator):
    """One noisy version of clean images by a noise of the Noise2Noise paper (its section 3).

    Args:
        clean: (N, C, H, W) in [0, 255].
        kind: 'gaussian' (level: standard deviation in grey values), 'poisson' (level: photons at white),
            'bernoulli' (level: share of pixels set to 0) or 'impulse' (level: share of pixels replaced by a
            uniformly random colour).
        level: a number, or one for each image, (N, 1, 1, 1).
        generator: `torch.Generator`.

    Returns:
        uint8 (N, C, H, W). Rounding and clipping to 0..255 bias Gaussian and Poisson noise near black and white.
    """
    images = clean.float()
    if kind == "gaussian":
        images = images + level * torch.randn(images.shape, generator=generator)
    elif kind == "poisson":
        images = torch.poisson(images / 255 * level, generator=generator) / level * 255
    elif kind in ("bernoulli", "impulse"):
        hit = torch.rand(len(images), 1, *images.shape[2:], generator=generator) < level
        value = torch.rand(images.shape, generator=generator) * 256 if kind == "impulse" else torch.zeros(())
        images = torch.where(hit, value.floor(), images)
    else:
        raise ValueError(f"noise must be one of {', '.join(NOISE_LEVELS)}; got {kind!r}")
    return images.round().clamp(0, 255).to(torch.uint8)


NOISE_LEVELS = {
    "gaussian": 25.0,
    "poisson": 30.0,
    "bernoulli": 0.5,
    "impulse": 0.3,
}  # the levels the command uses
NOISE_RANGES = {  # the levels to learn from
    "gaussian": (3.0, 75.0),
    "poisson": (4.0, 400.0),
    "bernoulli": (0.1, 0.9),
    "impulse": (0.05, 0.6),
}


def other_noises_and_others(picture, count, seed, draws=32):
    """`count` pairs `(noisy, mean of others)` whose noisy images have other noise than one sample a pixel.

    Each random square of the picture is drawn `draws` times (at least 8). The last quarter's rounded mean is what the
    noisy images of the square come with. Those are, in random order: the mean of some of the other draws, and the mean
    of all of them with each kind of `add_noise` added, at levels between those of NOISE_RANGES, evenly in their
    logarithm. Noisy images are all that is drawn: a mean of draws stands in for the clean image that noise is added to.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(math.ceil(count / (1 + len(NOISE_RANGES))), *picture.shape[1:], generator)
    every = draws_of_each(picture, boxes, draws, generator).float()
    sources, others = every.split([draws - draws // 4, draws // 4])

    def levels(low, high):
        return low * (high / low) ** torch.rand(len(boxes), 1, 1, 1, generator=generator)

    samples = levels(2, len(sources) + 1).long()
    noisy = [(sources.cumsum(0)[samples.flatten() - 1, torch.arange(len(boxes))] / samples).round().to(torch.uint8)]
    noisy += [add_noise(sources.mean(0), kind, levels(*ends), generator) for kind, ends in NOISE_RANGES.items()]
    order = torch.randperm(len(noisy), generator=generator)
    target = others.mean(0).round().to(torch.uint8).expand(len(noisy), *every.shape[1:])
    return torch.stack(noisy)[order].flatten(0, 1)[:count], target.flatten(0, 1)[:count]


# ---------------------------------------------------------------------------------------------- data sets


def from_photos(folder, pairs, validation, seed, progress=None):
    """`(noisy_1, noisy_2), (noisy, clean)` from a folder of photographs; None for the one whose count is 0.

    Training takes random squares of each photo, validation its largest centred square before any other. Where both are
    asked for, every tenth photo is for validation and none is for both.
    """
    files = _of_readable_photos(folder, lambda path, photo: path, progress)
    for_training = for_validation = files
    if pairs and validation:
        for_training, for_validation = [f for n, f in enumerate(files) if n % 10], files[::10]
    if not for_training:
        raise ValueError("training pairs and validation images need two photos at least, to have none in both; got 1")

    def data(files, draw, count, seed):
        jobs = _share(len(files), count, seed)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(lambda job: draw(load_photo(files[job[0]]), *job[1:]), jobs)
            return _shuffled(list(_watched(parts, len(jobs), progress)), seed)

    return (
        data(for_training, noisy_pairs, pairs, seed) if pairs else None,
        data(for_validation, noisy_and_clean, validation, seed + 1) if validation else None,
    )


def from_scenes(pairs, validation, seed, progress=None):
    """The same from procedural scenes, without any photograph; validation has scenes of its own."""
    first = 2_000_000 * seed
    jobs = [(noisy_pairs, first + scene) for scene in range(math.ceil(pairs / CROPS_PER_SCENE))]
    jobs += [(noisy_and_clean, first + 1_000_000 + s) for s in range(math.ceil(validation / CROPS_PER_SCENE))]
    context = get_context("spawn")  # forked workers would inherit the thread pool of torch, and hang
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        parts = list(_watched(pool.map(_scene_job, jobs), len(jobs), progress))
    split = math.ceil(pairs / CROPS_PER_SCENE)
    return tuple(
        tuple(column[:count] for column in _shuffled(some, seed)) if count else None
        for some, count in ((parts[:split], pairs), (parts[split:], validation))
    )


def save_data(folder, train, validation):
    """Writes `train_data.pkl` and `val_data.pkl`, each to a temporary name first; None leaves a file alone."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in (("train_data.pkl", train), ("val_data.pkl", validation)):
        if tensors is not None:
            _save(folder / name, tensors)


def _save(path, tensors):
    """As `save_whole` of `model.py`, which the grader's data must not need."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(tuple(tensor.contiguous() for tensor in tensors), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def default_data(folder=CACHE, progress=None):
    """The folder of the embedded default data set, made from procedural scenes on first use (under a minute)."""
    folder = Path(folder)
    if not (folder / "train_data.pkl").exists() or not (folder / "val_data.pkl").exists():
        save_data(folder, *from_scenes(DEFAULT_PAIRS, DEFAULT_VALIDATION, DEFAULT_SEED, progress))
    return folder


def psnr(images, clean):
    """The grader's PSNR in dB: the mean over images of each one's PSNR; both (N, C, H, W) in [0, 255]."""
    return psnr_of_each(images, clean).mean().item()


def psnr_of_each(images, clean):
    """PSNR of each image in dB, (N,); inf where it equals the clean one."""
    error = ((images.float() - clean.float()) / 255).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


# ---------------------------------------------------------------------------------------------- command line


def progress_bar(done, total):
    """Draws a bar on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        filled = 40 * done // total
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def _watched(items, total, progress):
    for done, item in enumerate(items, start=1):
        if progress is not None:
            progress(done, total)
        yield item


def count(text):
    """A number of pairs or images, for the command line."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    photos = commands.add_parser("photos", help="from a folder of photographs")
    photos.add_argument("folder", type=Path)
    scenes = commands.add_parser("scenes", help="from procedural scenes")
    for command in (photos, scenes):
        command.add_argument("--pairs", type=count, default=50_000, help="training pairs; 0: no train_data.pkl")
        command.add_argument("--validation", type=count, default=1_000, help="images; 0: no val_data.pkl")
    noise = commands.add_parser("noise", help="another noise on the clean images of a val_data.pkl")
    noise.add_argument("kind", choices=NOISE_LEVELS)
    noise.add_argument("--data", type=Path, required=True, help="folder with the val_data.pkl to take images from")
    noise.add_argument("--level", type=float, help="strength; see add_noise")
    for command in (photos, scenes, noise):
        command.add_argument("--out", type=Path, required=True, help="folder to write to")
        command.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def make_data(options):
    """The two parts that the command asks for; see `from_photos`."""
    if options.command == "photos":
        return from_photos(options.folder, options.pairs, options.validation, options.seed, progress_bar)
    if options.command == "scenes":
        return from_scenes(options.pairs, options.validation, options.seed, progress_bar)
    _, clean = torch.load(options.data / "val_data.pkl", weights_only=True)
    level = NOISE_LEVELS[options.kind] if options.level is None else options.level
    generator = torch.Generator().manual_seed(options.seed)
    noisy_a, noisy_b = (add_noise(clean, options.kind, level, generator) for _ in range(2))
    return (noisy_a, noisy_b), (noisy_a, clean)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        train, validation = make_data(options)
    except (ValueError, ImportError, FileNotFoundError) as error:
        sys.exit(f"data.py: {error}")
    save_data(options.out, train, validation)
    if train is not None:
        print(f"train_data.pkl: {len(train[0])} pairs")
    if validation is not None:
        print(f"val_data.pkl: {len(validation[0])} images, the noisy ones at {psnr(*validation):.2f} dB")


if __name__ == "__main__":
    main()
