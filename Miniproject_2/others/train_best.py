"""Trains the weights that ship as `bestmodel.pth`, on photographs, with fresh crops and fresh noise all the time.

    python -m Miniproject_2.others.train_best PHOTOS --pairs 600000 --draws 32 --inputs 8 --negatives 0.25 \\
        --width 160 --deep-width 320 --seed 1 --validate val_data.pkl --out new.pth

is the first of four runs (with a larger `--pairs` until the rate began to fall, so its warm-up was longer). Each of
the others began with the weights of the one before (`--start`), and learnt flat pairs as well, since those of the first
run shifted saturated colours by up to 75 grey values. They changed these options:

    --pairs 60000 --round 10000 --flat-pairs 0.03 --lr 4e-3 --decay 0.9 --warm-up 0.05 --seed 2
    --pairs 100000 --round 10000 --flat-pairs 0.06 --lr 6e-3 --decay 0.9 --warm-up 0.05 --seed 3
    --pairs 250000 --round 10000 --flat-pairs 0.06 --lr 6e-3 --decay 0.9 --warm-up 0.05 --seed 4

Only noisy pairs are ever drawn; `--draws` is explained in project 1's `train_best.py`. The run may be stopped at any
time; the same command resumes it exactly, from its checkpoint `new.pth.checkpoint`. The learning rate rises, stays
constant and falls to zero over the last part of the pairs. `new.pth` always holds the averaged weights so far. With
`--negatives 0.25` a quarter of the batches are negatives: dark, saturated colours become bright and pale.
"""

import torch

from Miniproject_1.others.command_line import exit_on_error, positive, share, some_path
from Miniproject_1.others.data import read_pairs
from Miniproject_1.others.photos import load_photos
from Miniproject_1.others.train_best import (
    check_weights_writable,
    draw_round,
    exchangeable,
    pairs_in_rounds,
    run_rounds,
    seed_of,
    shared_parser,
)
from Miniproject_2.model import RATES, Model, Pairs, Recipe, Training

EMA_STEPS = 1_000
SIZES = ("width", "deep_width", "kernel", "up_kernel")


def parse_arguments(arguments=None):
    parser = shared_parser(__doc__)
    parser.add_argument("--start", type=some_path, help="weights to begin with; they set the sizes (default: fresh)")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step (default 32)")
    parser.add_argument("--lr", type=float, default=RATES["muon"], help="peak learning rate of Muon (default 0.015)")
    parser.add_argument(
        "--decay", type=share, default=0.4, help="share of the pairs in which the rate falls (default 0.4)"
    )
    parser.add_argument(
        "--warm-up", type=share, default=0.01, help="share of the pairs in which it rises (default 0.01)"
    )
    parser.add_argument("--negatives", type=share, default=0.0, help="share of batches shown as negatives (default 0)")
    parser.add_argument(
        "--flat-pairs", type=share, default=0.0, help="share of pairs of one colour, without noise (default 0)"
    )
    for name in SIZES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, help="of the network; see Architecture")
    return parser.parse_args(arguments)


def lr_factor(done, warm_up, decay):
    """Share of the peak rate after the share `done` of the pairs: up, constant, linearly down to zero."""
    rising = done / warm_up if warm_up else 1.0
    falling = (1 - done) / decay if decay else 1.0
    return max(0.0, min(rising, 1.0, falling))


def flatten_pairs(noisy_a, noisy_b, count, generator):
    """Puts one colour, without noise, into both images of the first `count` pairs. A third of its values are 0 or 255.

    Point samples of such a picture have no noise. In photographs saturated colours are so rare that weights shift them.
    """
    colours = torch.randint(-64, 320, (count, 3, 1, 1), generator=generator).clamp(0, 255).to(torch.uint8)
    for images in (noisy_a, noisy_b):
        images[:count] = colours


def train_round(model, training, photos, number, options):
    """Learns from one round of fresh pairs; returns the mean loss."""
    noisy_a, noisy_b = draw_round(photos, options.round, number, options)
    generator = torch.Generator().manual_seed(seed_of(number, options))
    flatten_pairs(noisy_a, noisy_b, round(options.flat_pairs * len(noisy_a)), generator)
    pairs, losses = Pairs(noisy_a, noisy_b, model.device), []
    order = training.generator.sample(range(len(pairs)), len(pairs))
    for start in range(0, len(pairs), options.batch_size):
        done = min(1.0, training.steps * options.batch_size / pairs_in_rounds(options))
        batch = pairs.batch(order[start : start + options.batch_size], training.generator)
        if training.generator.random() < options.negatives:
            batch = [1 - images for images in batch]
        losses.append(training.step(*batch, lr_factor(done, options.warm_up, options.decay)))
    return sum(losses).item() / len(losses)


def make_model(options):
    """The model that the options ask for; ValueError where `--start` holds no weights for it."""
    recipe = Recipe(batch_size=options.batch_size, lr=options.lr, swap_pixels=exchangeable(options))
    sizes = {name: getattr(options, name) for name in SIZES if getattr(options, name)}
    model = Model(seed=options.seed, recipe=recipe, **sizes)
    if options.start:
        if sizes:
            raise ValueError(
                "the network of --start has its own sizes: leave out --" + ", --".join(sizes).replace("_", "-")
            )
        model.load(options.start)
        if model.architecture.in_channels != 3:
            raise ValueError(f"--start must be for photographs; {options.start} has not 3 channels")
    return model


def train(options, validation):
    """Trains a network as the options say."""
    check_weights_writable(options.out)
    model = make_model(options)
    training = Training(model.network, model.recipe, options.seed, EMA_STEPS)
    run_rounds(model, training, train_round, load_photos(options.photos), options, validation)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("train_best.py"):
        train(options, read_pairs(options.validate) if options.validate else None)


if __name__ == "__main__":
    main()
