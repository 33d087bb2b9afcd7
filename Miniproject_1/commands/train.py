"""Learns to denoise from pairs of noisy pictures of the same scenes; no clean picture is needed.

    noise2noise train first/ second/ -o mine.pth --minutes 30 --start photo
    noise2noise train train_data.pkl -o mine.pth --epochs 10 --validate val_data.pkl

Pictures are cut into squares of 128 pixels; one of 20, of at most 128, is not learnt from. After each epoch these say
where training stands. Their loss is the mean squared difference of the prediction and the other noisy picture. Its
floor is the noise of that picture, half the mean squared difference of the pairs, and what is left is the error against
the clean pictures that nobody has: so the dB are known without them.

WEIGHTS always holds the averaged weights of the last epoch. WEIGHTS.checkpoint, removed at the end, holds all that
--resume needs to go on as if nothing had happened, to the last bit on the same machine.
"""

import copy
import itertools
import math
import sys
import time
from pathlib import Path

import torch

from Miniproject_1.commands.denoise import add_limit
from Miniproject_1.commands.evaluate import mean_squared_error, psnr
from Miniproject_1.commands.inspect import FINE, fit, inspect_pairs, say
from Miniproject_1.commands.pairs import PAIRS_HELP, Stack, add_pairs, open_pairs
from Miniproject_1.commands.progress import progress_bar
from Miniproject_1.commands.weights import PURPOSES, add_device, load_model
from Miniproject_1.model import Model, Pairs, Training, batch_size_and_peak, lr_factor, measure_noise, save_atomically

SQUARE = 128  # pixels a side: large pictures are cut into such squares
HELD_SHARE, HELD_MOST = 20, 128  # one square of so many, and at most so many, are not learnt from
TIMED = 20  # steps whose time tells how many fit into --minutes
CHECKPOINT_SECONDS = 300  # between two checkpoints, at most, beside those after each epoch
VALIDATED = 100  # pictures, at most


def add_arguments(parser):
    add_pairs(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="WEIGHTS", help="weights file to write")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="passes over the pairs (default: 1)")
    length.add_argument("--minutes", type=float, help="about so long, by the time that the first steps take")
    parser.add_argument(
        "--start", metavar="photo|course|FILE", help=f"weights to begin with (default: fresh). {PURPOSES}"
    )
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same command was")
    parser.add_argument("--validate", type=Path, nargs="+", metavar=("NOISY", "CLEAN"), help="also PSNR: " + PAIRS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and all random draws (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite WEIGHTS and its checkpoint")
    parser.add_argument("--no-inspect", action="store_true", help="do not look at the pairs first")
    parser.add_argument("--quiet", action="store_true", help="say nothing but warnings and errors")
    add_device(parser)
    add_limit(parser)


# ---------------------------------------------------------------------------------------------- data


def squares(pairs):
    """All pairs as one `Stack` of equal squares; pairs in memory stay as they are.

    Squares lie side by side, the last ones of a row or column back within the picture. Whole values are kept as uint8.
    """
    if isinstance(pairs, Stack):
        return pairs
    channels, *size = pairs.pair(0)[0].shape[1:]
    side, first, second = min(SQUARE, *size), [], []
    for number in range(len(pairs)):
        a, b = pairs.pair(number)
        if a.shape[1] != channels or min(a.shape[2:]) < side:
            raise ValueError(
                f"{pairs.name(number)} has {a.shape[3]} x {a.shape[2]} pixels and {a.shape[1]} channels; all pictures "
                f"must have {channels} channels, as the first one, and at least {side} pixels a side"
            )
        for images, parts in ((a, first), (b, second)):
            parts.append(compact(cut(images, side)))
    return Stack(torch.cat(first), torch.cat(second))


def cut(images, side):
    """(1, C, H, W) -> (M, C, side, side)."""
    tops, lefts = (sorted({*range(0, size - side, side), size - side}) for size in images.shape[2:])
    return torch.cat([images[:, :, top : top + side, left : left + side] for top in tops for left in lefts])


def compact(values):
    return values.to(torch.uint8) if torch.equal(values, values.round()) else values


def held_out(stack, seed):
    """Two `Stack`s: what is learnt from, and what is not; with few squares the latter is learnt from, too."""
    order = torch.randperm(len(stack), generator=torch.Generator().manual_seed(seed))
    count = min(HELD_MOST, len(stack) // HELD_SHARE)
    if count == 0:
        return stack, Stack(stack.first[:HELD_MOST], stack.second[:HELD_MOST]), False
    held, learnt = order[:count], order[count:].sort().values
    return Stack(stack.first[learnt], stack.second[learnt]), Stack(stack.first[held], stack.second[held]), True


# ---------------------------------------------------------------------------------------------- training


class Run:
    """A training that stops and goes on: its steps, its place in the epoch, and its checkpoint."""

    def __init__(self, model, learnt, seed):
        self.model, self.start = model, model.pairs_seen
        model.noise = measure_noise(learnt.first, learnt.second)
        recipe = model.recipe.decided(model.noise)
        self.pairs = Pairs(learnt.first, learnt.second, model.device)
        self.training = Training(model.network, recipe, seed + model.pairs_seen)
        self.steps, self.place, self.losses, self.order, self.epoch = None, 0, [], None, 0

    def plan(self, epochs):
        """Chooses the batch size and the rates for so many passes, as `Model.train` does."""
        plan = batch_size_and_peak(self.pairs, epochs, self.training.recipe, self.start)
        self.batch_size, self.peak = plan
        self.steps = max(1, round(epochs * self.steps_an_epoch))

    def plan_minutes(self, minutes):
        """As many steps as fit into the time, by the median of a few, which are undone."""
        self.plan(1e9)
        before = copy.deepcopy(self.training.state_dict())
        times = [time.monotonic()]
        for _ in range(TIMED):
            index = torch.arange(self.batch_size) % len(self.pairs)
            self.training.step(*self.pairs.batch(index, self.training.generator), 0.0).item()
            times.append(time.monotonic())
        self.training.load_state_dict(before)
        seconds = sorted(after - first for first, after in itertools.pairwise(times))[TIMED // 2]
        self.steps = max(1, round((60 * minutes - (times[-1] - times[0])) / seconds))

    @property
    def steps_an_epoch(self):
        return math.ceil(len(self.pairs) / self.batch_size)

    def step(self):
        """Learns from the next batch; returns whether an epoch, or the run, ends with it."""
        training = self.training
        if self.order is None:
            self.order = torch.randperm(len(self.pairs), generator=training.generator)
        index = self.order[self.place : self.place + self.batch_size]
        factor = self.peak * lr_factor(training.steps, self.steps)
        self.losses.append(training.step(*self.pairs.batch(index, training.generator), factor))
        self.model.pairs_seen += len(index)
        self.place += len(index)
        if self.place < len(self.pairs) and training.steps < self.steps:
            return False
        self.order, self.place, self.epoch = None, 0, self.epoch + 1
        return True

    def mean_loss(self):
        mean, self.losses = torch.stack(self.losses).mean().item(), []
        return mean

    def state_dict(self, key):
        names = ("steps", "place", "epoch", "start", "batch_size", "peak")
        state = {name: getattr(self, name) for name in names}
        order = torch.empty(0, dtype=torch.int64) if self.order is None else self.order
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        state |= {"order": order, "losses": losses, "pairs_seen": self.model.pairs_seen, "key": key}
        return {**state, "training": self.training.state_dict()}

    def load_state_dict(self, state, key):
        if state["key"] != key:
            raise ValueError(f"the checkpoint is of another run ({state['key']}, now {key}); --force starts anew")
        for name in ("steps", "place", "epoch", "start", "batch_size", "peak"):
            setattr(self, name, state[name])
        self.order = state["order"] if len(state["order"]) else None
        self.losses = list(state["losses"].to(self.model.device))
        self.model.pairs_seen = state["pairs_seen"]
        self.training.load_state_dict(state["training"])


def standing(model, held):
    """(loss, floor) of pairs, mean squared differences in [0, 1]: of predictions and the other image, and of noise.

    Each image of a pair is predicted and compared with the other one, so that the floor, half the mean squared
    difference of the pairs, holds for noise of unequal levels, too.
    """
    losses, count = 0.0, min(len(held), HELD_MOST)
    first, second = (part[:count].float() for part in (held.first, held.second))
    for noisy, other in ((first, second), (second, first)):
        losses += mean_squared_error(model.predict(noisy, ensemble=False).cpu(), other) / 2
    return losses, mean_squared_error(first, second) / 2


def validate(model, pairs):
    """Mean PSNR of the first pictures in dB, single pass."""
    numbers = range(min(len(pairs), VALIDATED))
    images = (pairs.pair(number) for number in numbers)
    return sum(psnr(mean_squared_error(model.predict(a, ensemble=False).cpu(), b)) for a, b in images) / len(numbers)


def report(run, held, unseen, validation, seconds):
    """The line that is said after an epoch; the network has its averaged weights."""
    loss, floor = standing(run.model, held)
    left = f"{psnr(loss - floor):.2f} dB" if loss > floor else "more dB than can be told"
    line = f"epoch {run.epoch} of {math.ceil(run.steps / run.steps_an_epoch)}: training loss {run.mean_loss():.5f}; "
    line += f"{'held-out' if unseen else 'same'} pairs: loss {loss:.5f}, floor {floor:.5f}, so {left}"
    if validation is not None:
        line += f"; validation {validate(run.model, validation):.2f} dB"
    return f"{line}; {seconds:.0f} s"


# ---------------------------------------------------------------------------------------------- the command


def run(options):
    checkpoint = options.out.with_name(options.out.name + ".checkpoint")
    check_files(options, checkpoint)
    pairs = open_pairs(options.first, options.second, options.max_megapixels)
    validation = open_pairs(*options.validate) if options.validate else None
    if not options.no_inspect:
        warn(pairs, options)
    learnt, held, unseen = held_out(squares(pairs), options.seed)
    training = Run(make_model(options, learnt.first.shape[1]), learnt, options.seed)
    key = f"{tuple(learnt.first.shape)}, seed {options.seed}, start {options.start}, length {length(options)}"
    if options.resume:
        training.load_state_dict(read_checkpoint(checkpoint), key)
    elif options.minutes:
        training.plan_minutes(options.minutes)
    else:
        training.plan(options.epochs or 1)
    learn(training, options, checkpoint, key, lambda seconds: report(training, held, unseen, validation, seconds))
    checkpoint.unlink(missing_ok=True)
    return 0


def check_files(options, checkpoint):
    if (options.epochs is not None and options.epochs < 1) or (options.minutes is not None and not options.minutes > 0):
        raise ValueError("--epochs takes at least 1, --minutes more than 0")
    if options.resume and not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} does not exist")
    if not options.resume and not options.force:
        if checkpoint.exists():
            raise FileExistsError(f"{checkpoint} exists; --resume goes on with it, --force starts anew")
        if options.out.exists():
            raise FileExistsError(f"{options.out} exists; --force overwrites, --start learns on from it")
    options.out.parent.mkdir(parents=True, exist_ok=True)


def length(options):
    return f"{options.minutes} minutes" if options.minutes else f"{options.epochs or 1} epochs"


def warn(pairs, options):
    """Says what `inspect` finds; what is not fine is said even when quiet."""
    findings = inspect_pairs(pairs, try_weights=False)
    say([f for f in findings if f.verdict != FINE or not options.quiet], file=sys.stderr)
    if not fit(findings):
        print("warning: these pairs are not fit for Noise2Noise as they are; see BAD above", file=sys.stderr)


def make_model(options, channels):
    if options.start is None:
        return Model(in_channels=channels, seed=options.seed, device=options.device)
    model = load_model(options.start, options.device)
    if model.in_channels != channels:
        raise ValueError(f"--start {options.start} is for {model.in_channels} channels; the pairs have {channels}")
    return model


def read_checkpoint(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path} is not a readable checkpoint: {error}; --force starts anew") from error


def learn(training, options, checkpoint, key, report):
    """Steps to the end; writes weights after each epoch, and checkpoints."""
    began = saved = time.monotonic()
    with progress_bar(training.steps, options.quiet) as bar:
        bar.done = training.training.steps
        while training.training.steps < training.steps:
            ended = training.step()
            bar.next()
            if ended:
                with training.training.averaged():
                    line = report(time.monotonic() - began)
                    training.model.save(options.out)
                if not options.quiet:
                    bar.write(line)
            if ended or time.monotonic() - saved > CHECKPOINT_SECONDS:
                save_atomically(training.state_dict(key), checkpoint)
                saved = time.monotonic()
