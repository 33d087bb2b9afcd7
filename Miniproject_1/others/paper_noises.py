"""The Noise2Noise paper's own experiments on photographs: noisy against clean targets, at the same budget.

    python -m Miniproject_1.others.paper_noises PHOTOS --names cbsd68.txt --out results.jsonl

For each noise of EXPERIMENTS a fresh network learns from crops of the photographs against noisy targets, with the loss
that the paper has for this noise; another one against clean targets, with L2. Where that loss is not L2, a third one
shows what L2 makes of the noisy targets. The named photographs are not learnt from: they are the test set, scored
whole, by mean PSNR. Every run appends one line of JSON; a run whose line the file already holds is not repeated.

Source: J. Lehtinen et al., "Noise2Noise", ICML 2018, section 3. Unlike there, training uses the level of the test,
except for "blind" and text; network, crops and training time are ours.
"""

import argparse
import functools
import itertools
import math
import string
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import COURSE_PIXELS, Model, Pairs, Recipe, Training, lr_factor
from Miniproject_1.others.command_line import count, draw_progress, exit_on_error, positive, some_path, summary
from Miniproject_1.others.data import NOISES
from Miniproject_1.others.files import check_writable, read_names
from Miniproject_1.others.metrics import psnr_of_each
from Miniproject_1.others.photos import load_photo, photo_files
from Miniproject_1.others.results import append_result, now_and_where, processor, read_results

SIDE = 64  # pixels a side of the crops
TEXT_SIZES = (8, 32)  # points


class Experiment(NamedTuple):
    """A noise, the levels that are learnt from, drawn anew for each crop, the one that is tested, and a loss."""

    kind: str
    learnt: tuple[float, float]
    tested: float
    loss: str = "l2"


EXPERIMENTS = {
    "Gaussian 25": Experiment("gaussian", (25.0, 25.0), 25.0),
    "Gaussian 0 to 50, blind": Experiment("gaussian", (0.0, 50.0), 25.0),
    "Poisson, 30 photons": Experiment("poisson", (30.0, 30.0), 30.0),
    "Bernoulli, half": Experiment("bernoulli", (0.5, 0.5), 0.5),
    "text, a quarter": Experiment("text", (0.0, 0.5), 0.25, "l1"),
    "impulses, half": Experiment("impulse", (0.5, 0.5), 0.5, "l0"),
}
NOISY, NOISY_L2, CLEAN = "noisy", "noisy, L2", "clean"

# ---------------------------------------------------------------------------------------------- noise


def with_text(images, level, generator):
    """Text in random places, sizes and colours over about a share `level` of the pixels; in grey values, as NOISES."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise ImportError("text needs Pillow: pip install 'noise2noise-miniproject[images]'") from error
    font = functools.cache(ImageFont.load_default)
    result = images.clone()
    for image, share in zip(result, torch.as_tensor(level).expand(len(images), 1, 1, 1).flatten(), strict=True):
        height, width = image.shape[1:]
        covered = torch.zeros(height, width, dtype=torch.bool)
        while covered.float().mean() < share:
            down, right, size, *colour = torch.rand(6, generator=generator).tolist()
            letters = torch.randint(len(string.ascii_letters), (12,), generator=generator).tolist()
            mask = Image.new("L", (width, height))
            pen = ImageDraw.Draw(mask)
            pen.fontmode = "1"  # each pixel is covered or not
            place = (right * 1.5 - 0.5) * width, (down * 1.2 - 0.2) * height
            text = "".join(string.ascii_letters[number] for number in letters)
            size = round(TEXT_SIZES[0] + size * (TEXT_SIZES[1] - TEXT_SIZES[0]))
            pen.text(place, text, 255, font(size))
            drawn = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8).view(height, width) > 0
            image[:, drawn] = (torch.tensor(colour) * 255)[:, None]
            covered |= drawn
    return result


def noisy_version(clean, kind, level, generator):
    """A noisy version of (N, C, H, W) in [0, 255]: float32, neither clipped nor rounded, so that its mean is kept."""
    function = with_text if kind == "text" else NOISES[kind].function
    return function(clean.float(), level, generator)


def target_of(noisy, kind):
    """A noisy image as a target: pixels that Bernoulli noise has set to 0 become NaN, which is ignored."""
    return noisy.masked_fill((noisy == 0).all(1, keepdim=True), math.nan) if kind == "bernoulli" else noisy


def draw(photos, experiment, target, number, seed):
    """(inputs, targets) of `number` crops, float32 (N, 3, SIDE, SIDE), spread evenly over the photographs."""
    generator, crops = torch.Generator().manual_seed(seed), []
    order = torch.randperm(len(photos), generator=generator).tolist()
    for photo in (photos[order[place % len(photos)]] for place in range(number)):
        top, left = (int(torch.randint(size - SIDE + 1, (), generator=generator)) for size in photo.shape[1:])
        crops.append(photo[:, top : top + SIDE, left : left + SIDE])
    clean, (low, high) = torch.stack(crops).float(), experiment.learnt
    levels = low + (high - low) * torch.rand(number, 1, 1, 1, generator=generator)
    noisy = noisy_version(clean, experiment.kind, levels, generator)
    if target == CLEAN:
        return noisy, clean
    return noisy, target_of(noisy_version(clean, experiment.kind, levels, generator), experiment.kind)


# ---------------------------------------------------------------------------------------------- training


class MaskedTraining(Training):
    """Training with L2 that ignores the missing pixels of the targets, marked NaN."""

    def loss(self, prediction, noisy_a, noisy_b, done):
        return (prediction - noisy_b)[noisy_b.isfinite()].square().mean()


def learn(model, inputs, targets):
    """One pass of `Model.train`, on targets that may have missing pixels."""
    pairs = Pairs(inputs, targets, model.device)
    kind = Training if targets.isfinite().all() else MaskedTraining
    training = kind(model.network, model.recipe, model.seed)
    batches = torch.randperm(len(pairs), generator=training.generator).split(
        model.recipe.batch_size * COURSE_PIXELS // SIDE**2
    )
    for index in batches:
        batch = pairs.batch(index, training.generator)
        factor = lr_factor(training.steps, len(batches))
        training.step(*batch, factor, training.steps / len(batches))
        draw_progress(training.steps, len(batches))
    training.finish()


def judged(model, photos, experiment):
    """Mean PSNR of the noisy photographs and of the predictions."""
    generator, found = torch.Generator().manual_seed(0), []
    for photo in photos:
        clean = photo[None].float()
        noisy = noisy_version(clean, experiment.kind, experiment.tested, generator)
        images = noisy, model.predict(noisy, ensemble=False)
        found.append([psnr_of_each(image, clean).item() for image in images])
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


def run(name, target, learnt_from, judged_on, number, seed):
    """Trains for one experiment; returns what came out."""
    experiment = EXPERIMENTS[name]
    loss = experiment.loss if target == NOISY else "l2"
    recipe = Recipe(swap_pixels=False, negatives=False, variance_floor=None, loss=loss)
    model = Model(recipe=recipe, seed=seed)
    inputs, targets = draw(learnt_from, experiment, target, number, seed)
    began = time.monotonic()
    learn(model, inputs, targets)
    seconds = time.monotonic() - began
    noisy, single = judged(model, judged_on, experiment)
    row = {"loss": loss, "photos": len(judged_on), "noisy": round(noisy, 3), "single": round(single, 3)}
    return row | {"seconds": round(seconds, 1), "machine": processor(model.device)}


# ---------------------------------------------------------------------------------------------- the command


def targets_of(experiment):
    return (NOISY, CLEAN) if experiment.loss == "l2" else (NOISY, NOISY_L2, CLEAN)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=summary(__doc__))
    parser.add_argument("photos", type=some_path, help="folder of photographs")
    parser.add_argument("--names", type=some_path, required=True, help="file with the names of the test photographs")
    parser.add_argument("--out", type=some_path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--pairs", type=positive, default=12_000, help=f"crops of {SIDE} x {SIDE} (default 12000)")
    parser.add_argument("--seeds", type=count, nargs="+", default=[0], help="of crops, weights and draws (default 0)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=EXPERIMENTS,
        metavar="NAME",
        default=list(EXPERIMENTS),
        help="these noises (default: all)",
    )
    return parser.parse_args(arguments)


def run_all(options):
    """Runs what is asked for and not done yet."""
    check_writable(options.out)
    names = set(read_names(options.names))
    files = photo_files(options.photos)
    judged_on = [load_photo(path) for path in files if path.name in names]
    others = [load_photo(path) for path in files if path.name not in names]
    others = [photo for photo in others if min(photo.shape[1:]) >= SIDE]
    if not judged_on or not others:
        raise ValueError(
            f"of {len(files)} photographs {len(judged_on)} are named and {len(others)} are to be learnt from"
        )
    keys = {"experiment": str, "target": str, "pairs": int, "seed": int}
    rows = read_results(options.out, keys) if options.out.exists() else []
    done = {(row["experiment"], row["target"], row["pairs"], row["seed"]) for row in rows}
    for seed, name in itertools.product(options.seeds, options.only):
        for target in targets_of(EXPERIMENTS[name]):
            if (name, target, options.pairs, seed) in done:
                continue
            row = {"experiment": name, "target": target, "pairs": options.pairs, "seed": seed}
            row |= run(name, target, others, judged_on, options.pairs, seed)
            append_result(options.out, row | now_and_where())
            print(f"{name}, {target}: {row['noisy']:.2f} -> {row['single']:.2f} dB, {row['seconds']:.0f} s", flush=True)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("paper_noises.py"):
        run_all(options)


if __name__ == "__main__":
    main()
