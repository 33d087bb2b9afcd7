"""PSNR on noisy photographs; time and memory of prediction.

    python -m Miniproject_1.others.score_photo score PHOTOS --names cbsd68.txt --pairs polyu [--json FILE]
    python -m Miniproject_1.others.score_photo time

`score` adds Gaussian noise to the named photographs, neither clipped nor rounded, as is usual for CBSD68, and takes
pairs of one noisy picture, `*_real.*`, and the mean of many shots, `*_mean.*`, as they are. PSNR is the mean over
images of each one's PSNR in [0, 255]; predictions are not rounded. The last column counts the images whose PSNR the
single pass lowers.

`time` runs one picture through both shipped weights and through a stand-in for FFDNet (K. Zhang, W. Zuo, L. Zhang,
"FFDNet: Toward a fast and flexible solution for CNN-based image denoising", TIP 2018) of random weights, in turns, in
each precision that the processor multiplies; and prints the memory that a process needs for pictures of two sizes.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import re
import sys
import time
from pathlib import Path

import torch
from torch import nn

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import PRETRAINED, Model, autocast, has_native_bfloat16
from Miniproject_1.others.command_line import exit_on_error, positive, some_path, summary
from Miniproject_1.others.files import check_writable, read_names
from Miniproject_1.others.metrics import psnr_of_each
from Miniproject_1.others.photos import load_photo, photo_files

PHOTOMODEL = PRETRAINED.with_name("photomodel.pth")
LEVELS = (15.0, 25.0, 50.0)  # standard deviations in grey values, as the literature has them
SEED = 0  # of the noise: the same for every file of weights


# ---------------------------------------------------------------------------------------------- scores


def with_gaussian_noise(photos, level, seed=SEED):
    """(noisy, clean) of each photo, float32 (1, 3, H, W); neither clipped nor rounded."""
    generator = torch.Generator().manual_seed(seed)
    for photo in photos:
        clean = photo[None].float()
        yield clean + level * torch.randn(clean.shape, generator=generator), clean


def real_pairs(folder):
    """(noisy, mean of many shots) of each scene of a folder, float32 (1, 3, H, W); ValueError where one is missing."""
    files = photo_files(folder)
    noisy = [path for path in files if path.stem.endswith("_real")]
    if not noisy:
        raise ValueError(f"no pair in {str(folder)!r}: expected files *_real.* and *_mean.*")
    for path in noisy:
        mean = path.with_name(f"{path.stem.removesuffix('_real')}_mean{path.suffix}")
        if not mean.exists():
            raise ValueError(f"{path.name} has no {mean.name} beside it")
        yield load_photo(path)[None].float(), load_photo(mean)[None].float()


def scored(model, pairs, ensemble=False):
    """Per image the PSNR in dB before and after: {'noisy': [..], 'single': [..]}, and 'ensemble' where asked for."""
    scores = {"noisy": [], "single": []} | ({"ensemble": []} if ensemble else {})
    for noisy, clean in pairs:
        scores["noisy"].append(psnr_of_each(noisy, clean).item())
        scores["single"].append(psnr_of_each(model.predict(noisy, ensemble=False), clean).item())
        if ensemble:
            scores["ensemble"].append(psnr_of_each(model.predict(noisy, ensemble=True), clean).item())
    return scores


def row(name, scores):
    """One line of the table, of means over images."""
    means = {way: sum(values) / len(values) for way, values in scores.items()}
    worse = sum(after < before for before, after in zip(scores["noisy"], scores["single"], strict=True))
    ensemble = f"{means['ensemble']:.2f}" if "ensemble" in means else ""
    return f"| {name} | {len(scores['noisy'])} | {means['noisy']:.2f} | {means['single']:.2f} | {ensemble} | {worse} |"


def conditions(options):
    """(name, pairs of noisy and clean) of every row that is asked for."""
    if options.photos:
        names = set(read_names(options.names)) if options.names else None
        files = [path for path in photo_files(options.photos) if names is None or path.name in names]
        if not files:
            raise ValueError(f"no photo in {str(options.photos)!r} has a name in {str(options.names)!r}")
        photos = [load_photo(path) for path in files[: options.first]]
        for level in options.levels:
            yield f"Gaussian {level:g}", with_gaussian_noise(photos, level)
    if options.pairs:
        yield "real pairs", real_pairs(options.pairs)


def score(options):
    if not options.photos and not options.pairs:
        raise ValueError("nothing to score: give a folder of photographs, --pairs, or both")
    model = Model()
    model.load(options.weights)
    print("| noise | images | noisy | single pass | self-ensemble | made worse |\n" + 6 * "|---" + "|")
    table = {}
    for name, pairs in conditions(options):
        table[name] = scored(model, pairs, options.ensemble)
        print(row(name, table[name]), flush=True)
    return {"weights": options.weights.name, "pairs_seen": model.pairs_seen, "seed": SEED, "psnr": table}


# ---------------------------------------------------------------------------------------------- time


class FFDNetStandIn(nn.Sequential):
    """As many multiply-adds as FFDNet for colour: 12 convolutions of 96 features at half resolution; random weights."""

    def __init__(self, width=96, convolutions=12):
        sizes = [12 + 3, *[width] * (convolutions - 1), 12]  # the noise level comes in as three further channels
        layers = [nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(sizes)]
        active = [module for layer in layers[:-1] for module in (layer, nn.ReLU(inplace=True))]
        super().__init__(*active, layers[-1])

    def forward(self, images):  # (B, 3, H, W), H and W even
        half = nn.functional.pixel_unshuffle(images, 2)
        level = torch.full_like(half[:, :3], 25 / 255)
        return nn.functional.pixel_shuffle(super().forward(torch.cat([half, level], 1)), 2)


def contenders(weights, side):
    """(name, precision, what to time) of everything that is timed: a picture of `side` pixels a side, on the CPU."""
    picture = torch.rand(1, 3, side, side) * 255
    stand_in = FFDNetStandIn().to(memory_format=torch.channels_last)
    device = torch.device("cpu")

    @torch.no_grad()
    def run_stand_in(precision):
        with autocast(device, precision):
            stand_in(picture.contiguous(memory_format=torch.channels_last) / 255)

    for precision in ("float32", "bfloat16")[: 1 + has_native_bfloat16(device)]:
        for path in weights:
            model = Model(device=device, precision=precision)
            model.load(path)
            yield path.name, precision, functools.partial(model.predict, picture, ensemble=False)
        yield "FFDNet stand-in", precision, functools.partial(run_stand_in, precision)


def peak_memory(weights, side):
    """Peak memory in MB of a fresh process that denoises a picture of `side` pixels a side."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(denoise_and_tell_memory, (weights, side))


def denoise_and_tell_memory(weights, side):
    model = Model(device="cpu")
    model.load(weights)
    model.predict(torch.zeros(1, 3, side, side, dtype=torch.uint8), ensemble=False)
    status = Path("/proc/self/status").read_text()  # Linux; getrusage would tell the parent's peak, too
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def time_all(weights=(PHOTOMODEL, PRETRAINED), side=1536, turns=3):
    """Seconds a megapixel, the least of several turns, and MB for pictures of this side and of twice as much."""
    runs, megapixels = list(contenders(weights, side)), side**2 / 1e6
    seconds = {run[:2]: [] for run in runs}
    for _ in range(turns):
        for name, precision, function in runs:
            began = time.perf_counter()
            function()
            seconds[name, precision].append(time.perf_counter() - began)
    times = [
        {"name": name, "precision": precision, "seconds_per_megapixel": round(min(values) / megapixels, 3)}
        for (name, precision), values in seconds.items()
    ]
    memory = {path.name: [round(peak_memory(path, size)) for size in (side, 2 * side)] for path in weights}
    threads = torch.get_num_threads()
    return {"threads": threads, "megapixels": megapixels, "turns": turns, "times": times, "memory": memory}


def print_times(told):
    for row in told["times"]:
        seconds = row["seconds_per_megapixel"]
        print(f"{row['name']}, {row['precision']}: {seconds} s a megapixel on {told['threads']} threads")
    for name, (small, large) in told["memory"].items():
        size = told["megapixels"]
        print(f"{name}: {small} MB for {size:.1f} megapixels, {large} MB for {4 * size:.1f}")


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    commands = parser.add_subparsers(dest="command", required=True)
    quality = commands.add_parser("score", help="PSNR with added noise and on real pairs")
    quality.add_argument("photos", type=some_path, nargs="?", help="folder of clean photographs to add noise to")
    quality.add_argument("--names", type=some_path, help="text file of the names to take, one a line; default: all")
    quality.add_argument("--levels", type=float, nargs="+", default=LEVELS, help="of the noise, in grey values")
    quality.add_argument("--first", type=positive, help="take only so many photographs")
    quality.add_argument("--pairs", type=some_path, help="folder of real pairs, *_real.* and *_mean.*")
    quality.add_argument("--ensemble", action="store_true", help="also with self-ensemble")
    quality.add_argument("--weights", type=some_path, default=PHOTOMODEL, help="default: photomodel.pth")
    quality.add_argument("--json", type=some_path, help="file to write the numbers to, those of each image included")
    speed = commands.add_parser("time", help="seconds a megapixel and memory, beside a stand-in for FFDNet")
    speed.add_argument(
        "--weights", type=some_path, nargs="+", default=[PHOTOMODEL, PRETRAINED], help="default: both shipped"
    )
    speed.add_argument("--side", type=positive, default=1536, help="pixels of the square picture")
    speed.add_argument("--turns", type=positive, default=3, help="predictions, of which the fastest counts (default 3)")
    speed.add_argument("--json", type=some_path, help="file to write the numbers to")
    return parser.parse_args(arguments)


def run(options):
    if options.json:
        check_writable(options.json)
    if options.command == "score":
        result = score(options)
    else:
        result = time_all(options.weights, options.side, options.turns)
        print_times(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.json.with_name(options.json.name + ".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(options.json)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("score_photo.py"):
        run(options)


if __name__ == "__main__":
    main()
