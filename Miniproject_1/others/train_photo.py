"""Trains `photomodel.pth`: one blind network for the noise of photographs at full resolution, of any level.

    python -m Miniproject_1.others.train_photo PHOTOS --leave-out cbsd68.txt --out new.pth

Patches of the photographs get fresh noise all the time, of the mixture in `photo_noise.py`. Only noisy images are ever
drawn: the target of each is the mean of other draws of its patch. The first run below used the defaults of `Settings`;
every field is also an option of the command.

The run may be stopped at any time; the same command resumes it exactly, from its checkpoint `new.pth.checkpoint`: the
patches and the noise of a step depend only on the seed and the number of the step. `new.pth` always holds the averaged
weights so far. The learning rate rises and falls once over all the steps asked for. If a run is resumed with another
number of steps, it falls more slowly or faster from there on.

The shipped weights come from seven runs on one core, each from the end of the one before, on 1,132 photographs. The
first five had a mixture of --others 8 and qualities of JPEG spread evenly from 50 to 98 (higher ones are more frequent
now):

    35 minutes with the settings as they stand here: the first 800 steps on a schedule of 4,000
     5 minutes: --steps 750 --muon-lr 8e-4 --adam-lr 4e-4 --ema-decay 0.995 --seed 1
    75 minutes: --inner-blocks 4 --patch 96 --batch-size 3 --steps 20000 --adam-lr 7e-4 --seed 2
    88 minutes: --inner-blocks 4 --patch 128 --batch-size 3 --steps 32000 --adam-lr 2e-4 --ema-decay 0.999 --seed 4;
                before it the last two inner blocks, all units dead, were reset to the identity
   113 minutes: --inner-blocks 4 --patch 128 --batch-size 4 --steps 23500 --muon-lr 1e-3 --adam-lr 2e-4
                --ema-decay 0.999 --variance-floor 4e-3 --max-level 60 --seed 5 --revive; its first 3,000 steps
                were on a schedule of 30,000 steps and the next 7,500 on one of 26,500

    75 minutes: --inner-blocks 4 --gates --border 32 --patch 128 --batch-size 4 --steps 8750 --muon-lr 1.5e-3
                --adam-lr 3e-4 --variance-floor 4e-3 --max-level 60 --seed 21; its first 3,900 steps were on a
                schedule of 11,000; its end is the mean with the weights of the fifth, with gates that are all 1, with
                a share of 0.3
    95 minutes: the same with --steps 18000 --seed 22; its first 1,000 steps were on a schedule of 17,000, the next
                9,500 on one of 20,000

The shipped file is a mean of the weights of the last two, those of the sixth with a share of 0.2: without them, real
pairs gain 0.14 dB less. A border does nothing in training. What they give on CBSD68 and on real pairs is in the README,
and is printed by `score_photo.py`. Three runs from the end of the fifth gained nothing, and one from the shipped file
only on one side:

    17,500 steps with the mixture as it stands here, --muon-lr 1.5e-3, --camera 0.3 and later --flat 0.06
        (CBSD68 33.59, 30.86, 27.41 dB; real pairs 38.19), and on from these 6,800 steps with --no-equivariant
        (33.54, 30.80, 27.33; 38.16)
    18,500 steps with --no-equivariant --inner-blocks 6 --patch 128 --batch-size 4 --muon-lr 6e-4 --adam-lr 1e-4
        --camera 0.3 --flat 0.03 (every fourth image of CBSD68 33.59, 30.86, 27.49 dB, the shipped ones 33.60, 30.87,
        27.50; every second real pair 38.27, the shipped ones 38.30)
    20,000 steps, as the last one, with --seed 31 (crops of 24 photographs with noise of 15, 25, 50: 32.53, 30.06, 26.85
        dB, the shipped ones 32.48, 30.00, 26.80; but real pairs 38.24, the shipped ones 38.35; means of both sets of
        weights were no better)
"""

import argparse
import dataclasses
import hashlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

if __name__ == "__main__" and not __package__:  # run as a file: begin the path as `python -m` in the root does
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from Miniproject_1.model import (
    D4,
    Model,
    Recipe,
    Symmetric,
    Training,
    apply_d4,
    lr_factor,
    read_weights,
    save_atomically,
)
from Miniproject_1.others.command_line import exit_on_error, positive, some_path, summary, tell
from Miniproject_1.others.files import checkpoint_path, read_checkpoint, read_names
from Miniproject_1.others.photo_noise import Mixture, noisy_and_mean, uniform
from Miniproject_1.others.photos import load_photo, photo_files
from Miniproject_1.others.train_best import check_weights_writable, grow, revive


@dataclass(frozen=True)
class Settings:
    """Everything the weights depend on besides the photographs and the mixture of noises."""

    width: int = 32  # this and the next three are sizes of ResidualUNet
    levels: int = 3
    blocks: int = 1
    inner_blocks: int = 2
    border: int = 16  # pixels mirrored around a picture, a size of ResidualUNet: flat colours shift less at its edges
    gates: bool = False  # on the hidden features, another size; the border is then a multiple of 32
    equivariant: bool = True  # without it free weights, eight times as many, and patches turned at random
    patch: int = 64  # pixels a side, a multiple of 16: whole blocks of JPEG, whole cells of the network
    batch_size: int = 6  # patches a step
    steps: int = 4_800  # over which the rates rise and fall
    muon_lr: float = 2e-3
    adam_lr: float = 1e-3  # at 5e-3, with muon_lr 4e-3, biases fell until no unit of the lowest level was ever on
    ema_decay: float = 0.998
    variance_floor: float = 2e-3  # inverse-variance weighting of the patches
    reduced: float = 0.5  # share of the patches that come from reduced photographs
    smallest: float = 0.4  # the smallest factor by which a photograph is reduced
    flat: float = 0.0  # share of the patches that hold flat colours, which photographs hardly have
    revive: bool = False  # restart dead blocks and hidden units; see `revive` in train_best.py
    seed: int = 0

    def __post_init__(self):
        if self.patch < 16 or self.patch % 16:
            raise ValueError(f"patch must be a positive multiple of 16; got {self.patch}")
        if min(self.batch_size, self.steps) < 1:
            raise ValueError(f"batch_size and steps must be at least 1; got {self.batch_size} and {self.steps}")
        if not 0 <= self.reduced <= 1 or not 0 < self.smallest <= 1 or not 0 <= self.flat <= 1:
            got = f"{self.reduced}, {self.smallest}, {self.flat}"
            raise ValueError(f"reduced and flat must be in [0, 1], smallest in (0, 1]; got {got}")

    def recipe(self):
        return Recipe(
            muon_lr=self.muon_lr,
            adam_lr=self.adam_lr,
            ema_decay=self.ema_decay,
            variance_floor=self.variance_floor,
            last_lr_scale=1.0,
            swap_pixels=False,
            both_directions=False,
            negatives=False,
        )


# ---------------------------------------------------------------------------------------------- photographs


def files_to_learn_from(folder, left_out=()):
    """The photographs below a folder, except those with the names given and exact copies of them."""
    files, left_out = photo_files(folder), set(left_out)
    unknown = left_out - {path.name for path in files}
    if unknown:
        raise ValueError(f"no photo of the name {sorted(unknown)[0]!r} in {str(folder)!r} to leave out")
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in files} if left_out else {}
    forbidden = {digests[path] for path in files if path.name in left_out}
    return [path for path in files if path.name not in left_out and digests.get(path) not in forbidden]


def reduced_photo(photo, factor):
    """uint8 (3, H, W) reduced by a factor in (0, 1], each side at least 1 pixel, without aliases."""
    size = [max(1, round(side * factor)) for side in photo.shape[1:]]
    smaller = F.interpolate(photo[None].float(), size=size, mode="bicubic", antialias=True, align_corners=False)
    return smaller[0].clamp(0, 255).round().to(torch.uint8)


class Patches:
    """Random patches of photographs, which are read once and kept as they are and reduced."""

    def __init__(self, files, settings):
        self.settings, self.photos, self.reduced = settings, [], []
        generator = torch.Generator().manual_seed(settings.seed)
        for path in files:
            factor = uniform(settings.smallest, 1, (), generator).item()
            try:
                photo = load_photo(path)
            except ValueError as error:
                tell(f"skipped: {error}")
                continue
            short = min(photo.shape[1:])
            if short < settings.patch:
                tell(f"skipped: {path.name} has fewer than {settings.patch} pixels a side")
                continue
            self.photos.append(photo)
            self.reduced.append(reduced_photo(photo, max(factor, settings.patch / short)))
        if not self.photos:
            raise ValueError(f"no photo of at least {settings.patch} pixels a side could be read")

    def draw(self, generator):
        """float32 (batch, 3, patch, patch) in [0, 1]."""
        count, side = self.settings.batch_size, self.settings.patch
        numbers = torch.randint(len(self.photos), (count,), generator=generator).tolist()
        reduced = (torch.rand(count, generator=generator) < self.settings.reduced).tolist()
        places = torch.rand(count, 2, generator=generator).tolist()
        patches = []
        for number, small, place in zip(numbers, reduced, places, strict=True):
            photo = (self.reduced if small else self.photos)[number]
            top, left = (int(share * (size - side + 1)) for share, size in zip(place, photo.shape[1:], strict=True))
            patches.append(photo[:, top : top + side, left : left + side])
        patches = torch.stack(patches).float() / 255
        if self.settings.flat:
            for number in (torch.rand(count, generator=generator) < self.settings.flat).nonzero().flatten().tolist():
                patches[number] = flat_colours(side, generator)
        if not self.settings.equivariant:
            numbers = torch.randint(8, (count,), generator=generator).tolist()
            patches = torch.cat([apply_d4(patches[[place]], D4[number]) for place, number in enumerate(numbers)])
        return patches


def flat_colours(side, generator):
    """A patch (3, side, side) of one colour, or of up to 8 x 8 of them; a third of their values are 0 or 1."""
    squares = 2 ** torch.randint(4, (), generator=generator).item()
    colours = uniform(-0.25, 1.25, (3, squares, squares), generator).clamp(0, 1)
    return colours.repeat_interleave(side // squares, 1).repeat_interleave(side // squares, 2)


# ---------------------------------------------------------------------------------------------- training


def learn(training, patches, settings, mixture, steps):
    """Takes the next `steps` steps; returns the mean loss. Each one's random numbers depend on its number alone."""
    losses = []
    for _ in range(steps):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + training.steps)
        pairs = noisy_and_mean(patches.draw(generator), generator, mixture)
        losses.append(training.step(*pairs, lr_factor(training.steps, settings.steps)))
    return torch.stack(losses).mean().item()


def resume(training, path, settings, mixture):
    """Takes over a checkpoint, if there is one, of the same settings but for the number of steps.

    More or fewer steps than before only make the rate fall more slowly or faster from here on.
    """
    if not path.exists():
        return
    state, given = read_checkpoint(path), recorded(settings, mixture)
    saved = {name: state.get(name) for name in given}
    if saved | {"settings": (saved["settings"] or {}) | {"steps": settings.steps}} != given:
        raise ValueError(f"{path.name} is of other settings, {saved}; give the same ones, or another --out")
    training.load_state_dict(state["training"])


def recorded(settings, mixture):
    """What a checkpoint says of its run."""
    return {"settings": dataclasses.asdict(settings), "mixture": dataclasses.asdict(mixture)}


def noisy_patches(patches, settings, mixture, count=8):
    """`count` batches as the network sees them: float32 (B, 3, patch, patch)."""
    generator = torch.Generator().manual_seed(settings.seed)
    batches = [noisy_and_mean(patches.draw(generator), generator, mixture)[0] for _ in range(count)]
    return torch.cat(batches)


def make_model(settings, start=None):
    """A fresh model, or that of a weights file; blocks that its network lacks begin as `grow` says.

    ValueError where the network of the file does not fit into that of the settings.
    """
    names = ("width", "levels", "blocks", "inner_blocks", "border", "gates", "equivariant")
    sizes = {name: getattr(settings, name) for name in names}
    model = Model(recipe=settings.recipe(), seed=settings.seed, **sizes)
    if start is not None:
        state = read_weights(start)
        try:
            if state["sizes"].get("equivariant") and not settings.equivariant:
                state["weights"] = without_symmetries(state)
            grow(model.network, state["weights"])
        except RuntimeError as error:
            theirs = state["sizes"]
            raise ValueError(f"{start.name} has a network of {theirs}, not to be grown to {model.sizes}") from error
        model.pairs_seen = state["pairs_seen"]
    return model


@torch.no_grad()
def without_symmetries(state):
    """The weights of an equivariant network as it uses them: those of one without symmetries that does the same."""
    network = Model(state["network"], **state["sizes"]).network
    network.load_state_dict(state["weights"])
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, Symmetric)}
    used = {name: layer.weight_and_bias() for name, layer in layers.items()}
    return {
        f"{name}.{part}": value
        for name, both in used.items()
        for part, value in zip(("weight", "bias"), both, strict=True)
    }


def train(patches, settings, mixture, out, *, start=None, every=250, limit=None):
    """Trains up to `settings.steps`, writing weights and checkpoint after every so many steps.

    Args:
        out: path of the weights; the checkpoint has `.checkpoint` appended.
        start: path of weights to begin with; None: fresh ones.
        limit: stop after this step, to be resumed later; None: train to the end.
    """
    checkpoint = checkpoint_path(out)
    check_weights_writable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    model = make_model(settings, start)
    seen_before = model.pairs_seen
    if settings.revive:
        noisy = noisy_patches(patches, settings, mixture)
        print(f"dead units: {revive(model.network, noisy, settings.seed)}", flush=True)
    training = Training(model.network, model.recipe, settings.seed)
    resume(training, checkpoint, settings, mixture)
    last = min(settings.steps, limit or settings.steps)
    while training.steps < last:
        began, count = time.monotonic(), min(every, last - training.steps)
        loss = learn(training, patches, settings, mixture, count)
        model.pairs_seen = seen_before + training.steps * settings.batch_size
        with training.averaged():
            model.save(out)
        save_atomically({"training": training.state_dict(), **recorded(settings, mixture)}, checkpoint)
        seconds = time.monotonic() - began
        pixels = count * settings.batch_size * settings.patch**2
        print(
            f"step {training.steps} of {settings.steps}, loss {loss:.4e}, {pixels / seconds:.3g} pixels/s, "
            f"about {(last - training.steps) * seconds / count / 60:.0f} minutes to go",
            flush=True,
        )
    return model


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=summary(__doc__),
        epilog="The other options are fields of Settings, here, and of photo_noise.Mixture.",
    )
    parser.add_argument("photos", type=some_path, help="folder of photographs to learn from")
    parser.add_argument("--out", type=some_path, required=True, help="weights file to write")
    parser.add_argument(
        "--leave-out", type=some_path, help="text file of names of photographs not to learn from, one a line"
    )
    parser.add_argument("--start", type=some_path, help="weights to begin with, of as many blocks or fewer")
    parser.add_argument("--every", type=positive, default=250, help="steps between two checkpoints")
    for kind in (Settings, Mixture):
        for field in dataclasses.fields(kind):
            option = f"--{field.name.replace('_', '-')}"
            how = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
            parser.add_argument(option, **how, default=field.default, help=f"default {field.default}")
    return parser.parse_args(arguments)


def run(options):
    settings, mixture = (
        kind(**{field.name: getattr(options, field.name) for field in dataclasses.fields(kind)})
        for kind in (Settings, Mixture)
    )
    left_out = read_names(options.leave_out) if options.leave_out else ()
    files = files_to_learn_from(options.photos, left_out)
    print(f"{len(files)} photographs; {settings}; {mixture}", flush=True)
    train(Patches(files, settings), settings, mixture, options.out, start=options.start, every=options.every)


def main(arguments=None):
    options = parse_arguments(arguments)
    with exit_on_error("train_photo.py"):
        run(options)


if __name__ == "__main__":
    main()
