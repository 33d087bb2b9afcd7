"""Trains on pairs of noisy pictures of the same scenes; no clean picture is needed.

    noise2noise train first/ second/ -o mine.pth --minutes 30 --start photo
    noise2noise train train_data.pkl -o mine.pth --epochs 10 --validate val_data.pkl
    noise2noise train first/ second/ third/ -o mine.pth     # more versions of each scene
    noise2noise train scenes/ -o mine.pth                   # scenes/1/*.png: versions of one scene; scenes/2/*.png ...
    noise2noise train pictures/ -o mine.pth                 # pictures/*.png: single ones, each a scene of its own

Each of k versions of a scene is paired with the next, and the last with the first: k pairs; two make one pair. Memory
and time grow with k, not with its square.

Single pictures become pairs of half the size: one pixel of each 2 x 2 cell goes into the first image, a neighbour
into the second (Huang et al., "Neighbor2Neighbor", CVPR 2021, without its regulariser). The noise must be independent
between pixels, which it is not in most camera files; these are refused, unless --no-inspect is given. Use real pairs
if you have any: the results are better.

Pictures are cut into squares of 128 pixels. One in 20, at most 128 in all, is held out in all its versions, with all
that overlaps it. After each epoch these squares measure the progress. Their loss is the mean squared difference of
the prediction and the other noisy picture. Its floor is that picture's noise variance, half the mean squared
difference of the pairs; the rest is the error against the unknown clean pictures, so the dB are known without them.
If the two are unequally noisy, only the first is predicted, and the floor is the second's share of the difference.
The training loss is the mean over the epoch, in which pictures with less noise weigh more.

--loss l2 removes noise whose mean is 0; l1 noise whose median is 0, such as text over less than half of a picture; l0
noise whose mode is 0: random values in more than half of the pixels, given many pictures and long training (if short,
l2 does better), but not text or lines of one colour, which become the mode themselves. There is no floor for l1 and
l0, nor for single pictures, whose neighbours differ. The same difference between the noisy pictures is printed
instead: for l1 the mean absolute one, for l0 the share of values more than 10 of 255 apart. Use --validate for the
dB then.

On several GPUs, each computes part of every batch; the result is the same except for rounding:

    torchrun --nproc-per-node 2 -m Miniproject_1 train first/ second/ -o mine.pth

WEIGHTS always holds the averaged weights of the last epoch and the range of the files' values, which `denoise`,
`evaluate` and `--start` then use. WEIGHTS.checkpoint, removed at the end, holds all that --resume needs to continue as
if uninterrupted, to the last bit on the same machine.
"""

import contextlib
import copy
import itertools
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

from Miniproject_1.commands.inspect import BAD, FINE, fit, inspect_pairs, on_single, print_findings
from Miniproject_1.commands.support.arguments import add_max_megapixels, check_outputs
from Miniproject_1.commands.support.distributed import (
    SharedTraining,
    from_first,
    in_group,
    is_first,
    process_group,
    wait_for_others,
)
from Miniproject_1.commands.support.pairs import (
    PAIRS_HELP,
    SOURCES_HELP,
    NeighbourPairs,
    PairsInMemory,
    Scale,
    add_common_range,
    evenly_spaced,
    open_pairs,
    open_sources,
)
from Miniproject_1.commands.support.plots import check_figure, need_figure, save_figure
from Miniproject_1.commands.support.progress import progress_bar
from Miniproject_1.commands.support.weights import PURPOSES, add_device, load_model, weights_file
from Miniproject_1.model import (
    FORMAT,
    LOSSES,
    NARROW,
    Model,
    Pairs,
    Recipe,
    Training,
    batch_size_and_peak,
    least_epochs,
    lr_factor,
    no_gain_warning,
    save_atomically,
    whole_number,
)
from Miniproject_1.others.command_line import some_path, tell
from Miniproject_1.others.files import check_writable, checkpoint_path, read_checkpoint
from Miniproject_1.others.metrics import mean_squared_error, psnr, psnr_of_mse

SQUARE = 128  # pixels a side: large pictures are cut into such squares
HELD_SHARE, HELD_MOST = 20, 128  # one in so many squares is held out, at most so many in all
TIMED = 20  # steps whose time tells how many fit into --minutes
CHECKPOINT_SECONDS = 300  # at most, between two checkpoints; also one after each epoch
VALIDATED = 100  # pictures, at most
SINGLES_LOOKED_AT = 20  # single pictures, at most, whose noise is measured
APART = 10  # grey values: larger differences count for the loss l0
UNEQUAL = 0.1  # imbalance of the noise: above it, only the first images are predicted, as only these are learnt from


def add_arguments(parser):
    parser.add_argument("sources", type=some_path, nargs="+", metavar="A", help=SOURCES_HELP)
    parser.add_argument("-o", "--out", type=some_path, required=True, metavar="WEIGHTS", help="weights file to write")
    add_common_range(parser, first="that of --start if it knows one, else ")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=int, help="passes over the pairs (default: 1; up to 20 for fresh weights, few pairs)"
    )
    length.add_argument("--minutes", type=float, help="train for about so long, judged by the first steps")
    parser.add_argument(
        "--start", metavar="photo|course|FILE", help=f"weights to begin with (default: fresh). {PURPOSES}"
    )
    parser.add_argument("--loss", choices=LOSSES, default="l2", help="what is learnt: mean, median or mode; see above")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    parser.add_argument(
        "--validate", type=some_path, nargs="+", metavar=("NOISY", "CLEAN"), help="also PSNR: " + PAIRS_HELP
    )
    parser.add_argument(
        "--plot", type=some_path, metavar="FILE", help="also draw the curve: .png or .svg; needs matplotlib"
    )
    parser.add_argument("--seed", type=int, default=0, help="for initial weights and all random draws (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite WEIGHTS and its checkpoint; never an input")
    parser.add_argument("--no-inspect", action="store_true", help="do not check the pictures first; refuse none")
    parser.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    add_device(parser)
    add_max_megapixels(parser)


# ---------------------------------------------------------------------------------------------- data


def squares(pairs):
    """All pairs as one `PairsInMemory` of equal squares; small pairs in memory stay as they are.

    Squares lie side by side; the last of a row or column is moved back inside. Integer values are kept as uint8.
    """
    if isinstance(pairs, PairsInMemory) and max(pairs.first.shape[2:]) <= SQUARE:
        return pairs
    channels, *size = pairs.pair(0)[0].shape[1:]
    side, largest, first, second, places = min(SQUARE, *size), 0, [], [], []
    scale = 2 if isinstance(pairs, NeighbourPairs) else 1  # pixels of the file: pairs have half of them
    for number in range(len(pairs)):
        a, b = pairs.pair(number)
        if a.shape[1] != channels or min(a.shape[2:]) < side:
            height, width, least = scale * a.shape[2], scale * a.shape[3], scale * side
            raise ValueError(
                f"{pairs.name(number)} has {width} x {height} pixels and {a.shape[1]} channels; all pictures must have "
                f"{channels} channels, as the first one, and at least {least} pixels a side"
            )
        for images, parts in ((a, first), (b, second)):
            parts.append(compact(cut(images, side)))
        places += [(pairs.scenes[number], *corner) for corner in corners(*a.shape[2:], side)]
        largest = max(largest, *a.shape[2:])
    if side < min(SQUARE, largest) // 2 and is_first():
        tell(f"{pairs.name(0)} is small, so all are cut into squares of {side} x {side}; leave it out for larger ones")
    return PairsInMemory(torch.cat(first), torch.cat(second), torch.tensor(places))


def cut(images, side):
    """(1, C, H, W) -> (M, C, side, side)."""
    places = corners(*images.shape[2:], side)
    return torch.cat([images[:, :, top : top + side, left : left + side] for top, left in places])


def corners(height, width, side):
    tops, lefts = (sorted({*range(0, size - side, side), size - side}) for size in (height, width))
    return list(itertools.product(tops, lefts))


def compact(values):
    return values.to(torch.uint8) if torch.equal(values, values.round().clamp(0, 255)) else values


def held_out(stack, seed):
    """The training and the held-out `PairsInMemory`, and whether the latter is unseen: with few squares it is not.

    Squares are held out by place: with all pairs of their versions, and with all that overlaps them.
    """
    places, numbers = stack.places.unique(dim=0, return_inverse=True)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    chosen = order[: min(HELD_MOST, len(places) // HELD_SHARE)]
    if not len(chosen):
        return stack, evenly(stack), False
    learnt = torch.ones(len(stack), dtype=torch.bool)
    size = torch.tensor([1, *stack.first.shape[2:]])
    for place in places[chosen]:
        learnt &= ((stack.places - place).abs() >= size).any(1)
    return stack[learnt], evenly(stack[torch.isin(numbers, chosen)]), True


def evenly(stack):
    """At most HELD_MOST of the pairs."""
    return stack[list(evenly_spaced(len(stack), HELD_MOST))]


# ---------------------------------------------------------------------------------------------- training


class Session:
    """A training that can be resumed: its steps, its place in the epoch, and its checkpoint."""

    KEPT = ("steps", "place", "epoch", "start", "batch_size", "peak", "curve")

    def __init__(self, model, learnt, seed):
        self.model, self.start = model, model.pairs_seen
        recipe = model.recipe_for(learnt.first, learnt.second)
        self.pairs = Pairs(learnt.first, learnt.second, model.device)
        kind = SharedTraining if in_group() else Training
        self.training = kind(model.network, recipe, seed + model.pairs_seen)
        self.steps, self.place, self.losses, self.order, self.epoch = None, 0, [], None, 0
        self.curve = []  # metrics of each epoch, by name

    def plan(self, epochs):
        """Chooses the batch size and the rates for so many passes, as `Model.train` does."""
        plan = batch_size_and_peak(self.pairs, epochs, self.training.recipe, self.start)
        self.batch_size, self.peak = plan
        self.steps = max(1, round(epochs * self.steps_an_epoch))

    def plan_minutes(self, minutes):
        """As many steps as fit into the time, by the median of a trial that is undone."""
        self.plan(1e9)  # so many passes that batches are full; the steps follow below
        before = copy.deepcopy(self.training.state_dict())
        times = [time.monotonic()]
        for _ in range(TIMED):
            index = torch.arange(self.batch_size) % len(self.pairs)
            self.training.step(*self.pairs.batch(index, self.training.generator), 0.0).item()
            times.append(time.monotonic())
        self.training.load_state_dict(before)
        seconds = sorted(after - first for first, after in itertools.pairwise(times))[TIMED // 2]
        steps = max(1, round((60 * minutes - (times[-1] - times[0])) / seconds))
        self.steps = from_first(steps, self.model.device)

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
        batch = self.pairs.batch(index, training.generator)
        self.losses.append(training.step(*batch, factor, training.steps / self.steps))
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
        state = {name: getattr(self, name) for name in self.KEPT}
        order = torch.empty(0, dtype=torch.int64) if self.order is None else self.order
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        state |= {"order": order, "losses": losses, "pairs_seen": self.model.pairs_seen, "key": key}
        return {**state, "training": self.training.state_dict()}

    def load_state_dict(self, state, key):
        if state["key"] != key:
            raise ValueError(f"the checkpoint is of another run ({state['key']}, now {key}); --force starts anew")
        for name in self.KEPT:
            setattr(self, name, state[name])
        self.order = state["order"] if len(state["order"]) else None
        self.losses = list(state["losses"].to(self.model.device))
        self.model.pairs_seen = state["pairs_seen"]
        self.training.load_state_dict(state["training"])


def resume(session, path, key):
    """Continues from a checkpoint. ValueError if the file is something else, incomplete, or of another run."""
    state = read_checkpoint(path)
    if state.get("format") == FORMAT:
        raise ValueError(f"{path} is a weights file, no checkpoint; move it elsewhere, --start learns on from it there")
    try:
        session.load_state_dict(state, key)
    except KeyError as error:
        raise ValueError(
            f"{path} is no checkpoint of `train`, or an incomplete one: it lacks {error}; --force starts anew"
        ) from error


DIFFERENCES = {  # of two images in [0, 255], for each loss
    "l2": mean_squared_error,
    "l1": lambda image, other: (image - other).abs().mean().item() / 255,
    "l0": lambda image, other: ((image - other).abs() > APART).float().mean().item(),
}


def held_out_loss(model, held, both):
    """Difference of predictions and the other noisy image, and of the two noisy images, as in DIFFERENCES.

    If `both`, each image of a pair is predicted and compared with the other one: half the mean squared difference of
    the noisy ones is then exactly the floor of the loss. Otherwise only the first is predicted.
    """
    first, second = (images.float().clamp(0, 255) for images in (held.first, held.second))
    difference = DIFFERENCES[model.recipe.loss]
    directions = ((first, second), (second, first)) if both else ((first, second),)
    losses = [difference(model.predict(noisy, ensemble=False).cpu(), other) for noisy, other in directions]
    return sum(losses) / len(losses), difference(first, second)


def check_validation(model, pairs):
    """ValueError if one of the pictures that `validate` takes does not fit: now, not after an epoch."""
    for number in range(min(len(pairs), VALIDATED)):
        channels = pairs.pair(number)[0].shape[1]
        if channels != model.in_channels:
            raise ValueError(
                f"{pairs.name(number)} of --validate has {channels} channels; the pairs to learn from have "
                f"{model.in_channels}"
            )


def validate(model, pairs):
    """Mean PSNR of the first pictures in dB, single pass."""
    numbers = range(min(len(pairs), VALIDATED))
    images = (pairs.pair(number) for number in numbers)
    return sum(psnr(model.predict(a, ensemble=False).cpu(), b) for a, b in images) / len(numbers)


def epoch_metrics(session, held, floored, validation):
    """The metrics of an epoch by name; the network has its averaged weights. `floored`: the loss has a floor."""
    noise = session.model.noise
    unequal = noise.at_least("imbalance") > UNEQUAL
    loss, noisy = held_out_loss(session.model, held, both=not unequal)
    metrics = {"training loss": session.mean_loss(), "loss": loss}
    floor = noisy / 2 * (1 - noise.imbalance if unequal else 1)  # the noise of the images predicted against
    metrics |= {"floor": floor} if floored else {"noisy": noisy}
    if floored and not loss <= floor:  # so that NaN remains one
        metrics["dB"] = psnr_of_mse(loss - floor)
    if validation is not None:
        metrics["validation"] = validate(session.model, validation)
    return metrics


def in_words(metrics, session, unseen, seconds):
    """The line that is said after an epoch."""
    line = f"epoch {session.epoch} of {math.ceil(session.steps / session.steps_an_epoch)}: "
    line += f"training loss {metrics['training loss']:.4g}; {'held-out' if unseen else 'same'} pairs: "
    if "floor" in metrics:
        left = f"{metrics['dB']:.2f} dB" if "dB" in metrics else "too many dB to measure"
        line += f"loss {metrics['loss']:.4g}, floor {metrics['floor']:.4g}, so {left}"
    else:
        what = {"l2": "loss", "l1": "mean difference", "l0": f"share more than {APART} of 255 apart"}
        line += f"{what[session.model.recipe.loss]} {metrics['loss']:.4g}, of the noisy ones {metrics['noisy']:.4g}"
    if "validation" in metrics:
        line += f"; validation {metrics['validation']:.2f} dB"
    return f"{line}; {seconds:.0f} s"


def plot(path, curve):
    """Draws the metrics of the epochs, those in dB below the others; the file appears whole or not at all."""
    figure = need_figure()(figsize=(7, 6), layout="constrained")
    panels = [("training loss", "loss", "floor", "noisy"), ("dB", "validation")]
    panels = [names for names in panels if any(name in metrics for name in names for metrics in curve)]
    for axes, names in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name in names:
            points = [(epoch, metrics[name]) for epoch, metrics in enumerate(curve, 1) if name in metrics]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_ylabel("dB" if "dB" in names else "loss")
        axes.set_xlabel("epoch")
        axes.legend()
    save_figure(figure, path)


# ---------------------------------------------------------------------------------------------- the command


def run(options):
    checkpoint = checkpoint_path(options.out)
    with process_group(options.device) as device:
        options.device = device  # that of this process
        options.quiet = options.quiet or not is_first()
        check_files(options, checkpoint)
        with only_run(options.out) if is_first() else contextlib.nullcontext():
            train(options, checkpoint)
    return 0


@contextlib.contextmanager
def only_run(path):
    """Keeps other runs from training the weights at `path` meanwhile; FileExistsError if one does already.

    The lock ends with the process, however that ends. Windows has none.
    """
    if fcntl is None:
        yield
        return
    name = path.with_name(path.name + ".lock")
    with open(name, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"another run is training {path}; give another -o, or wait for its end") from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            name.unlink(missing_ok=True)


def train(options, checkpoint):
    started = load_model(options.start, options.device) if options.start is not None else None
    scale = Scale(options.range, started.value_ranges if started else {})
    pairs = open_sources(options.sources, options.max_megapixels, scale)
    singles = isinstance(pairs, NeighbourPairs)
    if not options.no_inspect and is_first():
        look = check_singles if singles else warn_of_findings
        look(pairs, options)
    learnt, held, unseen = held_out(squares(pairs), options.seed)
    if min(learnt.first.shape[2:]) < NARROW and is_first():
        tell(f"warning: pictures less than {NARROW} pixels high or wide are only clipped: these teach only larger ones")
    value_ranges = dict(scale.used)
    validation = open_validation(options, scale) if options.validate else None  # with the scale that training decided
    session = Session(make_model(options, started, learnt.first.shape[1]), learnt, options.seed)
    session.model.value_ranges |= value_ranges
    if validation:
        check_validation(session.model, validation)
    key = f"{tuple(learnt.first.shape)}, seed {options.seed}, start {options.start}, length {length(options)}"
    key += f", loss {options.loss}, values {checksum(learnt)}"
    if options.resume:
        resume(session, checkpoint, key)
    elif options.minutes:
        session.plan_minutes(options.minutes)
    else:
        session.plan(options.epochs or least_epochs(session.pairs, session.training.recipe, session.start))
    floored = options.loss == "l2" and not singles

    def report(seconds):
        session.curve.append(epoch_metrics(session, held, floored, validation))
        if options.plot:
            plot(options.plot, session.curve)
        return in_words(session.curve[-1], session, unseen, seconds)

    wait_for_others()  # they look for files, too
    learn(session, options, checkpoint, key, report)
    wait_for_others()  # the first one is still writing
    if is_first():
        checkpoint.unlink(missing_ok=True)


def checksum(stack):
    """Identifies pictures, their order and their scale, by the sums of their values."""
    sums = torch.stack([images.sum((1, 2, 3), dtype=torch.float64) for images in (stack.first, stack.second)])
    order = torch.arange(1, len(stack.first) + 1, dtype=torch.float64)
    return " and ".join(f"{value:.9g}" for value in (*sums.sum(1).tolist(), *(sums @ order).tolist()))


def check_files(options, checkpoint):
    """Raises ValueError or OSError for what would stop the training, or its files from being written, later."""
    whole_number(options.seed, "--seed", 0, 2**62)
    if options.epochs is not None and options.epochs < 1:
        raise ValueError(f"--epochs takes at least 1; got {options.epochs}")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        raise ValueError(f"--minutes takes a finite number above 0; got {options.minutes:g}")
    outputs = {"the weights": options.out, "the checkpoint": checkpoint, "the plot": options.plot}
    start = [weights_file(options.start)] if options.start is not None else []
    check_outputs(outputs.items(), [*options.sources, *(options.validate or []), *start])
    if options.plot:
        check_figure("--plot", options.plot, options.resume or options.force)
    if options.resume and not checkpoint.exists():
        raise FileNotFoundError(f"nothing to resume: {checkpoint} does not exist")
    if not options.resume and not options.force:
        if checkpoint.exists():
            raise FileExistsError(f"{checkpoint} exists; --resume goes on with it, --force starts anew")
        if options.out.exists():
            raise FileExistsError(f"{options.out} exists; --force overwrites, --start learns on from it")
    for path in filter(None, outputs.values()):
        check_writable(path)
        Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)


def open_validation(options, scale):
    noisy, *clean = options.validate
    if len(clean) > 1:
        raise ValueError(f"--validate takes NOISY and CLEAN, or a .pkl; got {len(options.validate)} files or folders")
    return open_pairs(noisy, *(clean or [None]), options.max_megapixels, scale, clean=True)


def length(options):
    return f"{options.minutes} minutes" if options.minutes else f"{options.epochs or 'default'} epochs"


def warn_of_findings(pairs, options):
    """Prints what `inspect` finds; if quiet, only what is not fine."""
    findings = inspect_pairs(pairs, try_weights=False)
    print_findings([f for f in findings if f.verdict != FINE or not options.quiet], file=sys.stderr)
    if not fit(findings):
        note = "" if options.loss == "l2" else f"; exposure and clipping matter less to --loss {options.loss}"
        print(f"warning: these pairs are not fit for Noise2Noise as they are; see BAD above{note}", file=sys.stderr)


def check_singles(singles, options):
    """Prints whether neighbouring pixels make pairs; ValueError if they do not."""
    numbers = evenly_spaced(len(singles.names), SINGLES_LOOKED_AT)
    finding = on_single(map(singles.read, numbers))
    if finding.verdict == BAD:
        raise ValueError(f"{len(singles.names)} single pictures: {finding.text}")
    if not options.quiet:
        print_findings([finding], file=sys.stderr)


def make_model(options, started, channels):
    """The model that began as weights of `--start`, or a fresh one for images of so many channels."""
    if started is None:
        recipe = Recipe(loss=options.loss)
        return Model(in_channels=channels, recipe=recipe, seed=options.seed, device=options.device)
    if started.in_channels != channels:
        raise ValueError(f"--start {options.start} is for {started.in_channels} channels; the pairs have {channels}")
    started.recipe = replace(started.recipe, loss=options.loss)
    return started


def check_losses(session):
    """RuntimeError if a loss of the epoch is not finite: no later step can repair that."""
    if not torch.stack(session.losses).isfinite().all():
        raise RuntimeError(
            "the training loss is no longer finite; WEIGHTS and its checkpoint, if they exist, are from before"
        )


def learn(session, options, checkpoint, key, report):
    """Steps to the end; writes weights after each epoch, and checkpoints. RuntimeError as `check_losses`."""
    began = saved = time.monotonic()
    share = 0.0
    with progress_bar(session.steps, options.quiet) as bar:
        bar.done = session.training.steps
        while session.training.steps < session.steps:
            ended = session.step()
            bar.next()
            if not is_first():
                session.losses.clear()
                continue
            due = ended or time.monotonic() - saved > CHECKPOINT_SECONDS
            if due:
                check_losses(session)
            if ended:
                with session.training.averaged():
                    session.model.choose_views(session.pairs.noisy_a, session.pairs.noisy_b)
                    share = session.model.error_left(session.pairs.noisy_a, session.pairs.noisy_b)
                    session.model.save(options.out)
                    line = report(time.monotonic() - began)
                if not options.quiet:
                    bar.write(line)
            if due:
                save_atomically(session.state_dict(key), checkpoint)
                saved = time.monotonic()
    if options.loss == "l2" and (warning := no_gain_warning(share, session.model.noise.imbalance)):
        print(f"warning: {warning}", file=sys.stderr)
