"""Trains the weights that ship as `bestmodel.pth`, on photographs, with fresh crops and fresh noise all the time.

    python -m Miniproject_1.others.train_best PHOTOS --pairs 2000000 --validate val_data.pkl --out new.pth

`shipped_weights.sh`, beside this file, holds the runs that made them. Only noisy images are ever drawn: no clean one
takes part. With `--draws 8` every crop is drawn eight times. Each draw is learnt from against the mean of the other
seven: seven pairs for the price of one, and much less noise in the gradients. With `--inputs 2` only two of the eight
are learnt from, so that there are four times as many crops. With `--other-noise 0.1` a tenth of the pairs has other
noise; see `data.other_noises_and_mean`. With `--large 0.1` a tenth of the work goes to pairs of 96 x 96: a network that
sees 40 pixels far, but has only seen images of 32 x 32, knows only pixels near a border, and fails elsewhere.

The run may be stopped at any time; the same command resumes it exactly, from its checkpoint `new.pth.checkpoint`. The
learning rate rises and falls once over all the pairs asked for, so choose `--pairs` to fit the time available.
`new.pth` always holds the averaged weights so far.
"""

import argparse
import functools
import math
import os
import sys
import time
from pathlib import Path

import torch

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import (
    Model,
    Recipe,
    ResidualBlock,
    Training,
    conv,
    forward_any_size,
    lr_factor,
    read_weights,
    save_atomically,
    to_device,
)
from Miniproject_1.others.command_line import count, exit_on_error, positive, share, some_path, summary
from Miniproject_1.others.data import CELLS, draw_pairs, noisy_and_mean, noisy_pairs, other_noises_and_mean, read_pairs
from Miniproject_1.others.files import check_writable, checkpoint_path, read_checkpoint
from Miniproject_1.others.metrics import psnr
from Miniproject_1.others.photos import load_photos

RECIPE_OPTIONS = {
    "batch_size": "pairs a step",
    "muon_lr": "peak rate of the hidden weights",
    "adam_lr": "peak rate of all others",
    "ema_decay": "of the averaged weights",
    "variance_floor": "of the loss's weighting",
}


def shared_parser(description):
    """A parser of what the commands of both projects take."""
    parser = argparse.ArgumentParser(description=summary(description))
    parser.add_argument("photos", type=some_path, help="folder of photographs to learn from")
    parser.add_argument("--out", type=some_path, required=True, help="weights file to write")
    parser.add_argument("--pairs", type=positive, required=True, help="noisy pairs to learn from, in whole rounds")
    parser.add_argument(
        "--draws", type=positive, default=8, help="of each crop; 1: a new crop for each pair (default 8)"
    )
    parser.add_argument("--inputs", type=positive, help="draws of each crop that are learnt from (default: all)")
    parser.add_argument(
        "--other-noise", type=share, default=0.0, help="share of pairs that have other noise (default 0)"
    )
    parser.add_argument("--round", type=positive, default=20_000, help="pairs between checkpoints (default 20000)")
    parser.add_argument("--validate", type=some_path, help="a val_data.pkl to report the PSNR on after each round")
    parser.add_argument("--seed", type=count, default=0, help="of the first weights and all draws (default 0)")
    return parser


def parse_arguments(arguments=None):
    parser = shared_parser(__doc__)
    parser.add_argument(
        "--start", type=some_path, help="weights to begin with, of as many blocks or fewer (default: fresh)"
    )
    for name in ("width", "blocks", "inner_blocks", "levels"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive, help="of the network; see ResidualUNet")
    parser.add_argument("--large", type=share, default=0.0, help="share of the work on large pairs (default 0)")
    parser.add_argument("--large-side", type=positive, default=96, help="cells a side of these pairs (default 96)")
    parser.add_argument(
        "--flat", type=share, default=0.1, help="flat images per photograph among large pairs (default 0.1)"
    )
    parser.add_argument("--revive", action="store_true", help="restart dead blocks and hidden units")
    parser.add_argument("--gates", action="store_true", default=None, help="of the network; see ResidualUNet")
    for name, text in RECIPE_OPTIONS.items():
        default = getattr(Recipe, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"{text} (default {default})")
    return parser.parse_args(arguments)


def exchangeable(options):
    """Whether the noise of both images of a pair is alike, so that their pixels may be swapped."""
    return options.draws == 1 and not options.other_noise


def make_model(options):
    """The model that the options ask for; ValueError where `--start` holds no weights for it."""
    chosen = {name: getattr(options, name) for name in RECIPE_OPTIONS}
    alike = exchangeable(options)
    recipe = Recipe(swap_pixels=alike, both_directions=alike, last_lr_scale=1.0, **chosen)
    start = read_weights(options.start) if options.start else {"sizes": {}}
    given = {name: getattr(options, name) for name in ("width", "blocks", "inner_blocks", "levels", "gates")}
    sizes = start["sizes"] | {name: size for name, size in given.items() if size is not None}
    model = Model(recipe=recipe, seed=options.seed, **sizes)
    if options.start:
        try:
            grow(model.network, start["weights"])
        except RuntimeError as error:
            raise ValueError(f"{options.start} holds weights of another network, not of {sizes}: {error}") from error
        model.pairs_seen = start["pairs_seen"]
    return model


def grow(network, weights):
    """Loads the weights of a network of the same width. Gates that they lack start as the identity.

    A block that they lack starts as a copy of the one before it, both at half strength: the output changes a little,
    and all units are active. Blocks that start as the identity do not last: what little they give at first is less
    than the noise of their updates, and they learn to be off.
    """
    unused = network.load_state_dict(weights, strict=False).unexpected_keys
    if unused:
        raise RuntimeError(f"the network has no parameters {', '.join(unused)}")
    for name in residual_blocks(network):
        if f"{name}.second.weight" not in weights:
            double_block_before(network, name)


def residual_blocks(network):
    """The residual blocks by name, such as 'inner.0', in the order of the network."""
    return {name: module for name, module in network.named_modules() if isinstance(module, ResidualBlock)}


@torch.no_grad()
def double_block_before(network, name):
    """Makes a block a copy of the one before it in its chain, both at half strength."""
    chain, _, number = name.rpartition(".")
    if number == "0":
        raise ValueError(f"there is no block before {name} to begin with")
    before = network.get_submodule(f"{chain}.{int(number) - 1}")
    before.second.weight.mul_(0.5)
    before.second.bias.mul_(0.5)
    network.get_submodule(name).load_state_dict(before.state_dict())


@torch.no_grad()
def revive(network, images, seed, least=0.01):
    """Restarts dead hidden units of the residual blocks, and freezes the biases of all hidden units.

    A unit is dead if it is on at less than a share `least` of the pixels. It gets fresh weights and no bias; its
    outgoing weights start at zero, so the output stays nearly the same. A block of dead units takes time and does
    nothing: it restarts as in `grow`. Sinking biases are one way in which units die.

    Args:
        images: noisy float32 (B, C, H, W) in [0, 1].
        seed: of the fresh weights.

    Returns how many units were dead, by block, where any were.
    """
    group = 8 if network.equivariant else 1  # units that the symmetries turn into each other die together
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name, shares in hidden_shares(network, images).items():
            block = network.get_submodule(name)
            asleep = (shares.view(-1, group).mean(1) < least).repeat_interleave(group)
            if asleep.all():
                double_block_before(network, name)
            else:
                restart_units(block, asleep, network.equivariant)
            block.first.bias.requires_grad_(False)
            found[name] = int(asleep.sum())
    return {name: count for name, count in found.items() if count}


@torch.no_grad()
def hidden_shares(network, images):
    """{residual block: share of the pixels at which each of its hidden units is on}."""
    shares = {}
    hooks = [
        block.first.register_forward_hook(
            lambda _, inputs, hidden, name=name: shares.update({name: (hidden > 0).float().mean((0, 2, 3))})
        )
        for name, block in residual_blocks(network).items()
    ]
    forward_any_size(network, images)
    for hook in hooks:
        hook.remove()
    return shares


def restart_units(block, which, equivariant):
    """Fresh weights and no bias for the hidden units of a bool mask, and zero weights out of them."""
    fresh = conv(len(which), len(which))
    if equivariant:
        fresh.make_equivariant()
    block.first.weight[which] = fresh.weight[which]
    block.first.bias[which] = 0
    block.second.weight[:, which] = 0


def seed_of(number, options):
    """The seed of everything that a round draws."""
    return 1000 * options.seed + number


def draw_round(photos, pairs, number, options):
    """Fresh pairs, those of other noise last: one draw of a crop and another, or the mean of its other draws."""
    draw, seed = noisy_pairs, seed_of(number, options)
    if options.draws > 1:
        draw = functools.partial(noisy_and_mean, draws=options.draws, inputs=options.inputs)
    others = round(options.other_noise * pairs)
    parts = (pairs - others, draw), (others, other_noises_and_mean)
    drawn = [draw_pairs(photos, size, seed, function) for size, function in parts if size]
    return tuple(map(torch.cat, zip(*drawn, strict=True)))


def draw_large(photos, pairs, number, options):
    """Fresh large pairs, half of them of other noise, on photographs and flat images."""
    side = options.large_side
    photos = [photo for photo in photos if min(photo.shape[1:]) >= side]
    if not photos:
        raise ValueError(f"--large needs photographs of at least {side} pixels a side")
    seed = seed_of(number, options)
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (round(options.flat * len(photos)), 3, 1, 1), generator=generator).to(torch.uint8)
    flat = list(colours.expand(-1, 3, side, side))
    sampled = functools.partial(noisy_and_mean, draws=max(2, options.draws), inputs=1, cells=side)
    others = functools.partial(other_noises_and_mean, cells=side)
    halves = draw_pairs(photos, pairs // 2, seed, sampled), draw_pairs(photos + flat, pairs // 2, seed, others)
    return tuple(map(torch.cat, zip(*halves, strict=True)))


def draw_batches(photos, number, options, generator):
    """The batches of one round in random order, each a pair of uint8 tensors. A large pair counts by its area."""
    area = max(1, round((options.large_side / CELLS) ** 2))
    large = 2 * (round(options.large * options.round) // (2 * area))
    groups = [(draw_round(photos, options.round - area * large, number, options), options.batch_size)]
    if large:
        groups.append((draw_large(photos, large, number, options), math.ceil(options.batch_size / area)))
    batches = [
        (pairs, index)
        for pairs, batch_size in groups
        for index in torch.randperm(len(pairs[0]), generator=generator).split(batch_size)
    ]
    for place in torch.randperm(len(batches), generator=generator).tolist():
        pairs, index = batches[place]
        yield tuple(images[index] for images in pairs)


def train_round(model, training, photos, number, options):
    """Learns from one round of fresh pairs; returns the mean loss."""
    steps, losses = max(1, pairs_in_rounds(options) // options.batch_size), []
    for batch in draw_batches(photos, number, options, training.generator):
        noisy_a, noisy_b = (to_device(images, model.device).float() / 255 for images in batch)
        losses.append(training.step(noisy_a, noisy_b, lr_factor(min(training.steps, steps), steps)))
    return torch.stack(losses).mean().item()


def validation_psnr(path, validation, model_class):
    """PSNR of a weights file in dB, single pass; nan without validation data."""
    if validation is None:
        return float("nan")
    model = model_class()
    model.load(path)
    return psnr(model.predict(validation[0], ensemble=False), validation[1])


FREE = ("photos", "out", "pairs", "validate")  # options that a resumed run may change


def settings_of(options):
    """What a checkpoint says of its run."""
    settings = {name: value for name, value in vars(options).items() if name not in FREE}
    return {
        name: os.path.realpath(value) if isinstance(value, Path) else str(value) for name, value in settings.items()
    }


def check_loss(loss):
    """RuntimeError if a round's mean loss is not finite; the files are then still those of the round before."""
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}; begin again with lower rates")


def checkpoint_of(training, rounds, start, options):
    """What `resume` needs, after so many rounds on weights that had seen `start` pairs before them."""
    return {"training": training.state_dict(), "round": rounds, "start": start, "settings": settings_of(options)}


def pairs_in_rounds(options):
    """How many pairs are learnt: whole rounds that hold those asked for."""
    return -(-options.pairs // options.round) * options.round


def rounds_left(done, options):
    """The numbers of the rounds that are still to be run; says so if there are none."""
    numbers = range(done, pairs_in_rounds(options) // options.round)
    if not numbers:
        print(f"nothing left to do: {done * options.round} pairs are learnt; a larger --pairs goes on", flush=True)
    return numbers


def resume(training, checkpoint, options):
    """Resumes the training from a checkpoint; returns (rounds done, pairs seen before them).

    ValueError if it is of a run with other options than these, but for FREE.
    """
    state, settings = read_checkpoint(checkpoint), settings_of(options)
    if "settings" not in state:
        raise ValueError(f"{checkpoint} is of an older version of this command; give another --out, or remove it")
    saved = state["settings"]
    if other := [f"{name} {saved.get(name)}" for name in settings if saved.get(name) != settings[name]]:
        raise ValueError(f"{checkpoint} is of a run with {', '.join(other)}; give that, another --out, or remove it")
    try:
        training.load_state_dict(state["training"])
        return state["round"], state["start"]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint} is of a run with other settings; give those, another --out, or remove it"
        ) from error


def check_weights_writable(out):
    """ValueError where the weights or their checkpoint cannot be written."""
    for path in (out, checkpoint_path(out)):
        check_writable(path)


def run_rounds(model, training, train_round, photos, options, validation):
    """Runs the rounds that are not done yet; after each, writes weights and checkpoint and prints a line."""
    checkpoint = checkpoint_path(options.out)
    first, start = resume(training, checkpoint, options) if checkpoint.exists() else (0, model.pairs_seen)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for number in rounds_left(first, options):
        began = time.monotonic()
        loss = train_round(model, training, photos, number, options)
        check_loss(loss)
        model.pairs_seen = start + (number + 1) * options.round
        with training.averaged():
            model.save(options.out)
        save_atomically(checkpoint_of(training, number + 1, start, options), checkpoint)
        decibels = validation_psnr(options.out, validation, type(model))
        seconds = time.monotonic() - began
        print(f"{model.pairs_seen} pairs, loss {loss:.5f}, {decibels:.3f} dB, {seconds:.0f} s", flush=True)


def train(options, validation):
    """Trains a network as the options say."""
    check_weights_writable(options.out)
    model = make_model(options)
    photos = load_photos(options.photos)
    if options.revive:
        noisy = draw_pairs(photos, 256, options.seed, noisy_pairs)[0].float() / 255
        print(f"dead units: {revive(model.network, noisy, options.seed)}", flush=True)
    training = Training(model.network, model.recipe, options.seed)
    run_rounds(model, training, train_round, photos, options, validation)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("train_best.py"):
        train(options, read_pairs(options.validate) if options.validate else None)


if __name__ == "__main__":
    main()
