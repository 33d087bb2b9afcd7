"""Trains the weights that ship as `bestmodel.pth`, on photographs, with fresh squares and fresh noise all the time.

    python Miniproject_1/others/train_best.py PHOTOS --pairs 2000000 --validate val_data.pkl --out new.pth

Only noisy images are ever drawn: no clean one takes part. With `--draws 8` every square is drawn eight times, and each
draw is learnt from against the other seven at once, by their mean: seven pairs for the price of one, and so much less
noise in the gradients. With `--inputs 2` only two of the eight are, so that there are four times as many squares. With
`--other-noise 0.1` a tenth of the pairs has other noise; see `data.other_noises_and_mean`.

The run stops at any time and goes on, exactly, from its checkpoint `new.pth.checkpoint` when the same command is given
again. The learning rate rises and falls once over all the pairs asked for, so `--pairs` is chosen by the time there is.
`new.pth` always holds the averaged weights so far.

The shipped weights come from five runs, each started from the one before: 360,000 pairs with 8 draws at width 48 with 2
blocks and 2 inner ones; 420,000 more with gates and a third block; then, with 32 draws, 8 inputs, batches of 32, an
`easy_first` of 0.001 and rates of 2.5e-3 for Muon and 3e-3 for Adam, 100,000 and 400,000 with an eighth of other noise;
in the same way, with a third inner block, an `averaging` of 0.998 and a sixteenth of other noise, 540,000.
"""

import argparse
import dataclasses
import functools
import sys
import time
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import (
    Model,
    Pairs,
    Recipe,
    ResidualBlock,
    Training,
    rate,
    read_weights,
    save_whole,
    zero_initialised,
)
from Miniproject_1.others.data import (
    draw_pairs,
    load_photos,
    noisy_and_mean,
    noisy_pairs,
    other_noises_and_mean,
    psnr,
    summary,
)


def shared_parser(description):
    """A parser of what the commands of both projects take."""
    parser = argparse.ArgumentParser(description=summary(description))
    parser.add_argument("photos", type=Path, help="folder of photographs to learn from")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write")
    parser.add_argument("--pairs", type=int, required=True, help="noisy pairs to learn from, all in all")
    parser.add_argument("--draws", type=int, default=8, help="of each square; 1: a new square for every pair")
    parser.add_argument("--inputs", type=int, help="draws of each square that are learnt from; default: all")
    parser.add_argument("--other-noise", type=float, default=0.0, help="share of the pairs that have another noise")
    parser.add_argument("--round", type=int, default=20_000, help="pairs between two checkpoints")
    parser.add_argument("--validate", type=Path, help="a val_data.pkl to report the PSNR on after each round")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def parse_arguments(arguments=None):
    parser = shared_parser(__doc__)
    parser.add_argument("--start", type=Path, help="weights to begin with, of as many blocks or fewer; default: fresh")
    for name in ("width", "blocks", "inner_blocks"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="of the network; see ResidualUNet")
    parser.add_argument("--gates", action="store_true", default=None, help="of the network; see ResidualUNet")
    for name in ("batch", "muon_rate", "adam_rate", "averaging", "easy_first"):
        field = {field.name: field for field in dataclasses.fields(Recipe)}[name]
        parser.add_argument(f"--{name.replace('_', '-')}", type=field.type, default=field.default)
    return parser.parse_args(arguments)


def exchangeable(options):
    """Whether the noise of both images of a pair is alike, so that they may exchange pixels."""
    return options.draws == 1 and not options.other_noise


def make_model(options):
    recipe = Recipe(
        batch=options.batch,
        muon_rate=options.muon_rate,
        adam_rate=options.adam_rate,
        averaging=options.averaging,
        easy_first=options.easy_first,
        exchange=exchangeable(options),
    )
    start = read_weights(options.start) if options.start else {"sizes": {}}
    given = {name: getattr(options, name) for name in ("width", "blocks", "inner_blocks", "gates")}
    sizes = start["sizes"] | {name: size for name, size in given.items() if size is not None}
    model = Model(recipe=recipe, seed=options.seed, **sizes)
    if options.start:
        grow(model.network, start["weights"])
        model.pairs_seen = start["pairs_seen"]
    return model


def grow(network, weights):
    """Takes over the weights of a network of the same width; blocks and gates that it lacks begin as the identity."""
    network.load_state_dict(weights, strict=False)
    for name, block in network.named_modules():
        if isinstance(block, ResidualBlock) and f"{name}.second.weight" not in weights:
            zero_initialised(block.second)


def draw_round(photos, number, options):
    """The fresh pairs of one round, those of other noise last: one draw of a square and another, or others' mean."""
    draw = noisy_pairs
    if options.draws > 1:
        draw = functools.partial(noisy_and_mean, draws=options.draws, inputs=options.inputs)
    others, seed = round(options.other_noise * options.round), 1000 * options.seed + number
    pairs = draw_pairs(photos, options.round - others, seed, draw)
    if not others:
        return pairs
    return tuple(map(torch.cat, zip(pairs, draw_pairs(photos, others, seed, other_noises_and_mean), strict=True)))


def train_round(model, training, photos, number, options):
    """Learns from one round of fresh pairs; returns the mean loss."""
    pairs = Pairs(*draw_round(photos, number, options), model.device)
    steps = max(1, options.pairs // options.batch)
    losses = []
    for index in torch.randperm(len(pairs), generator=training.generator).split(options.batch):
        factor = rate(min(training.steps, steps), steps)
        losses.append(training.step(*pairs.batch(index, training.generator), factor))
    return torch.stack(losses).mean().item()


def write_averaged(model, training, path):
    """Writes the averaged weights; the network itself keeps its own."""
    own = [p.detach().clone() for p in training.parameters]
    training.finish()
    model.save(path)
    with torch.no_grad():
        torch._foreach_copy_(training.parameters, own)


def report(path, validation):
    """PSNR of a weights file in dB, single pass; nan without validation data."""
    if validation is None:
        return float("nan")
    model = Model()
    model.load(path)
    return psnr(model.predict(validation[0], ensemble=False), validation[1])


def main(arguments=None):
    options = parse_arguments(arguments)
    model = make_model(options)
    training = Training(model.network, model.recipe, options.seed)
    checkpoint, first = options.out.with_name(options.out.name + ".checkpoint"), 0
    start = model.pairs_seen
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        training.load_state_dict(state["training"])
        first, start = state["round"], state["start"]
    validation = torch.load(options.validate, weights_only=True) if options.validate else None
    photos = load_photos(options.photos)
    for number in range(first, -(-options.pairs // options.round)):
        began = time.monotonic()
        loss = train_round(model, training, photos, number, options)
        model.pairs_seen = start + (number + 1) * options.round
        write_averaged(model, training, options.out)
        save_whole({"training": training.state_dict(), "round": number + 1, "start": start}, checkpoint)
        decibels = report(options.out, validation)
        seconds = time.monotonic() - began
        print(f"{model.pairs_seen} pairs, loss {loss:.5f}, {decibels:.3f} dB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
