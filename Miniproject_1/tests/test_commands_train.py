"""`train`, `evaluate`, `info` and `data`: what they say is true, and an interrupted training loses nothing."""

import functools
import itertools
import json
import math
import pickle
import re
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from Miniproject_1 import model as project
from Miniproject_1.__main__ import main
from Miniproject_1.commands import evaluate, inspect, train
from Miniproject_1.commands.support import pairs
from Miniproject_1.model import Model, read_weights
from Miniproject_1.others import metrics

ROOT = Path(__file__).resolve().parents[2]


def data(count=40, size=24, channels=3, level=30, seed=0):
    """Smooth images and two noisy versions of them: three float (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    clean = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic") * 120 + 60
    noisy = (clean + level * torch.randn(2, *clean.shape, generator=generator)).clamp(0, 255)
    return clean.clamp(0, 255), noisy[0], noisy[1]


@pytest.fixture
def files(tmp_path):
    clean, a, b = (part.round().byte() for part in data())
    torch.save((a, b), tmp_path / "train.pkl")
    torch.save((a, clean), tmp_path / "val.pkl")
    return tmp_path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Trainings start from a small network, which takes a twentieth of the time."""
    monkeypatch.setattr(train, "Model", functools.partial(Model, width=8))


def command(folder, *more, out="new.pth"):
    return ["train", f"{folder}/train.pkl", "-o", f"{folder}/{out}", *more]


def weights(path):
    return read_weights(path)["weights"]


def test_a_line_an_epoch_says_what_is_reached(files, capsys):
    assert main(command(files, "--epochs", "3", "--validate", f"{files}/val.pkl")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 3 of 3: training loss")
    pattern = r"held-out pairs: loss ([\d.]+), floor ([\d.]+), so ([\d.]+) dB; validation ([\d.]+) dB; \d+ s"
    loss, floor, reached, valid = map(float, re.search(pattern, lines[2]).groups())
    assert floor == pytest.approx((30 / 255) ** 2, rel=0.06)
    assert reached == pytest.approx(-10 * math.log10(loss - floor), abs=0.5)
    assert reached == pytest.approx(valid, abs=1.5)
    model = Model()
    model.load(files / "new.pth")
    noisy, clean = torch.load(files / "val.pkl")
    assert model.pairs_seen == 3 * 38  # two of 40 are held out
    psnrs = [
        metrics.psnr_of_mse(metrics.mean_squared_error(model.predict(a[None], False), b[None]))
        for a, b in zip(noisy, clean, strict=True)
    ]
    assert sum(psnrs) / len(psnrs) == pytest.approx(valid, abs=0.01)
    assert valid > 20 * math.log10(255 / 30) + 1.5
    assert not (files / "new.pth.checkpoint").exists()


def test_without_a_length_few_pairs_are_passed_over_again(files, capsys, monkeypatch):
    monkeypatch.setattr(train, "least_epochs", lambda pairs, recipe, seen: (len(pairs) + seen) // 19)  # 38 pairs
    for options, lines in (
        (["--out", f"{files}/a.pth"], 2),
        (["--out", f"{files}/b.pth", "--start", f"{files}/a.pth"], 6),
    ):
        assert main(["train", f"{files}/train.pkl", "--no-inspect", *options]) == 0
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_training_in_vain_is_said(files, capsys, monkeypatch):
    for limit, said in ((project.NO_GAIN, False), (0.0, True)):
        monkeypatch.setattr(project, "NO_GAIN", limit)
        assert main(command(files, "--epochs", "1", "--no-inspect", "--force")) == 0
        assert ("gained hardly anything" in capsys.readouterr().err) == said


@pytest.mark.parametrize("stop", [1, 19, 25])
def test_resumed_is_uninterrupted_to_the_last_bit(files, stop, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    torch.save(
        [part[:20, :, :16, :16] for part in torch.load(files / "train.pkl")], files / "train.pkl"
    )  # 19 steps an epoch
    arguments = "--epochs", "2", "--no-inspect"
    assert main(command(files, *arguments, out="whole.pth")) == 0
    said = [line.rpartition(";")[0] for line in capsys.readouterr().out.splitlines()]
    step, taken = train.Session.step, []

    def interrupted(self):
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(1)
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(train.Session, "step", interrupted)
        assert main(command(files, *arguments)) == 130
    assert main(command(files, *arguments)) == 1
    assert "--resume goes on with it" in capsys.readouterr().err
    assert main(command(files, "--epochs", "3", "--no-inspect", "--resume")) == 1
    assert "of another run" in capsys.readouterr().err
    assert main(command(files, *arguments, "--resume")) == 0
    whole, parts = weights(files / "whole.pth"), weights(files / "new.pth")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    resumed = [line.rpartition(";")[0] for line in capsys.readouterr().out.splitlines()]
    assert resumed and resumed == said[-len(resumed) :]


def test_pairs_that_are_unfit_are_warned_of(files, capsys):
    a, b = torch.load(files / "train.pkl")
    torch.save((a, (b.float() + 20).clamp(0, 255).byte()), files / "train.pkl")
    assert main(command(files, "--quiet", "--epochs", "1")) == 0
    said = capsys.readouterr()
    assert not said.out and "BAD     exposure" in said.err and "not fit" in said.err and "fine" not in said.err


def test_it_starts_from_other_weights(files, capsys):
    torch.save([part[:3] for part in torch.load(files / "train.pkl")], files / "train.pkl")
    assert main(command(files, "--start", "course", "--no-inspect", "--quiet")) == 0
    started, course = read_weights(files / "new.pth"), read_weights(ROOT / "Miniproject_1" / "bestmodel.pth")
    assert started["sizes"] == course["sizes"] | {"border": 0} and started["pairs_seen"] == course["pairs_seen"] + 3
    _, a, b = data(channels=1, count=4)
    torch.save((a, b), files / "train.pkl")
    assert main(command(files, "--start", "course", "--force")) == 1
    assert "for 3 channels; the pairs have 1" in capsys.readouterr().err


def test_started_weights_learn_by_the_loss_that_is_given(files, capsys):
    Model(width=8).save(files / "a.pth")
    assert main(command(files, "--start", f"{files}/a.pth", "--loss", "l1", "--epochs", "1", "--no-inspect")) == 0
    assert "mean difference" in capsys.readouterr().out


def test_another_loss_is_not_resumed(files, monkeypatch, capsys):
    def stopped(session, options, checkpoint, key, report):
        project.save_atomically(session.state_dict(key), checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "learn", stopped)
    assert main(command(files, "--no-inspect")) == 130
    assert main(command(files, "--no-inspect", "--resume", "--loss", "l1")) == 1
    assert "of another run" in capsys.readouterr().err


def test_weights_that_have_seen_much_go_on_at_a_lower_rate_with_other_draws():
    stack, found = pairs.PairsInMemory(*(part.byte() for part in data()[1:])), []
    for seen in (0, 1_000_000):
        model = Model(width=8)
        model.pairs_seen = seen
        session = train.Session(model, stack, 0)
        session.plan(1)
        found.append((session.peak, session.training.generator.initial_seed()))
    assert found[1][0] < 0.25 * found[0][0] and found[1][1] != found[0][1]


@pytest.mark.parametrize("call", ["evaluate val.pkl", "inspect train.pkl", "train train.pkl -o c.pth"])
def test_the_device_that_is_named_is_used(files, monkeypatch, capsys, call):
    monkeypatch.chdir(files)
    assert main([*call.split(), "--device", "banana"]) == 1
    assert "device 'banana' cannot be used" in capsys.readouterr().err


def test_an_empty_start_is_no_fresh_one(files, capsys):
    """As from a variable of the shell that is not set."""
    assert main(command(files, "--start", "", "--epochs", "1", "--no-inspect")) == 1
    assert "no weights file ''" in capsys.readouterr().err
    assert not (files / "new.pth").exists()


@pytest.mark.skipif(train.fcntl is None, reason="no locks of files here")
def test_one_run_at_a_time_trains_the_same_weights(files, capsys):
    with train.only_run(files / "new.pth"):
        assert main(command(files, "--epochs", "1", "--no-inspect")) == 1
    assert "another run is training" in capsys.readouterr().err and not (files / "new.pth").exists()
    assert main(command(files, "--epochs", "1", "--no-inspect")) == 0
    assert not (files / "new.pth.lock").exists()


def test_large_tensors_are_cut_into_squares_too():
    """Or few of them would leave nothing to be held out."""
    large = pairs.PairsInMemory(*torch.rand(2, 3, 1, 300, 260))
    cut = train.squares(large)
    assert len(cut) == 3 * 9 and cut.first.shape[2:] == (128, 128)
    assert torch.equal(cut.first[8], large.first[0, :, 172:, 132:]) and cut.places[8].tolist() == [0, 172, 132]
    assert train.held_out(cut, 0)[2]
    small = pairs.PairsInMemory(*torch.rand(2, 3, 1, 128, 100))
    assert train.squares(small) is small


def test_nothing_is_overwritten(files, capsys):
    (files / "new.pth").write_text("precious")
    assert main(command(files)) == 1
    assert "--force overwrites" in capsys.readouterr().err
    assert (files / "new.pth").read_text() == "precious"
    assert main(command(files, "--resume")) == 1
    assert "nothing to resume" in capsys.readouterr().err
    (files / "new.pth.checkpoint").write_text("damaged")
    assert main(command(files, "--resume", "--no-inspect")) == 1
    assert "not a readable checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("a.npy b.npy -o b.npy", "b.npy is an input, which is never overwritten"),
        ("a.npy b.npy -o link.npy", "link.npy is an input"),
        ("in -o in/1.png", "in/1.png is an input"),
        ("in -o new.pth --plot in/2.png", "in/2.png is an input"),
        ("new.checkpoint b.npy -o new", "new.checkpoint is an input"),
        ("a.npy b.npy -o val.pkl --validate val.pkl", "val.pkl is an input"),
        ("a.npy b.npy -o new.png --plot new.png", "the weights and the plot would both be written to new.png"),
    ],
)
def test_inputs_are_never_overwritten(tmp_path, monkeypatch, capsys, options, reason):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a.npy", "b.npy", "in/1.png", "in/2.png", "new.checkpoint", "val.pkl"):
        Path(name).write_text("precious")
    Path("link.npy").symlink_to("b.npy")
    assert main(["train", *options.split(), "--force"]) == 1
    assert reason in capsys.readouterr().err
    assert all(path.read_text() == "precious" for path in tmp_path.rglob("*.*"))
    assert not Path("new.png").exists() and not Path("new.pth").exists()


def test_what_cannot_be_written_is_told_before_training(files, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(train, "learn", lambda *_: pytest.fail("it has begun to train"))
    for folder in ("weights", "other.checkpoint", "plot.svg"):
        (files / folder).mkdir()
    (files / "file").touch()
    for out, more, reason in (
        ("weights", [], "weights is a folder"),
        ("other", [], "other.checkpoint is a folder"),
        ("new.pth", ["--plot", f"{files}/plot.svg"], "plot.svg is a folder"),
        ("file/new.pth", [], "new.pth cannot be written: Not a directory"),
    ):
        assert main(command(files, *more, "--force", out=out)) == 1
        assert reason in capsys.readouterr().err

    def refuses(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)  # permissions do not stop root
    assert main(command(files)) == 1
    assert "cannot be written: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--epochs", "0"), "at least 1"),
        (("--minutes", "-1"), "finite number above 0"),
        (("--minutes", "inf"), "finite number above 0; got inf"),
        (("--minutes", "nan"), "finite number above 0; got nan"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--seed", str(2**64)), "--seed must be at most"),
    ],
)
def test_wrong_numbers(files, more, reason, capsys):
    assert main(command(files, *more)) == 1
    assert reason in capsys.readouterr().err


def test_minutes_become_steps(monkeypatch):
    """By a clock on which every step takes a tenth of a second."""
    now = itertools.count()
    monkeypatch.setattr(train.time, "monotonic", lambda: next(now) / 10)
    stack = pairs.PairsInMemory(*(part.round().byte() for part in data()[1:]))
    fresh, run = (train.Session(Model(width=8), stack, 0) for _ in range(2))
    run.plan_minutes(0.5)
    assert run.steps == 300 - train.TIMED
    assert run.training.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(fresh.training.parameters, run.training.parameters, strict=True))
    assert torch.equal(run.training.generator.get_state(), fresh.training.generator.get_state())


def test_squares_cover_all_of_a_picture():
    image = torch.arange(150 * 300.0).view(1, 1, 150, 300)
    parts = train.cut(image, 128)
    assert parts.shape == (2 * 3, 1, 128, 128)
    assert torch.equal(parts.flatten().unique(), image.flatten())
    assert train.cut(image[:, :, :128, :128], 128).shape == (1, 1, 128, 128)


def test_a_small_first_picture_is_named(capsys):
    """It decides how large all squares are."""
    large, small = torch.rand(1, 3, 200, 200), torch.rand(1, 3, 6, 6)

    class Mixed:
        scenes = (0, 1)

        def __len__(self):
            return 2

        def name(self, number):
            return f"picture {number}"

        def pair(self, number):
            return ((small, small), (large, large))[number]

    assert train.squares(Mixed()).first.shape[2:] == (6, 6)
    assert "picture 0 is small, so all are cut into squares of 6 x 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "advice"),
    [((10, 32, 32, 3), ". Turn (N, H, W, C) by tensor.permute"), ((10, 32, 32), ". Turn (N, H, W) by"), ((32, 32), "")],
)
def test_tensors_of_another_layout_are_refused(tmp_path, capsys, shape, advice):
    torch.save((torch.zeros(shape), torch.zeros(shape)), tmp_path / "a.pkl")
    assert main(["train", f"{tmp_path}/a.pkl", "-o", f"{tmp_path}/a.pth"]) == 1
    assert f"must hold tensors (N, C, H, W); got the shape {shape}{advice}" in capsys.readouterr().err


@pytest.mark.filterwarnings("error")
def test_a_pickle_of_foreign_code_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Path("x"), protocol=4))
    assert main(["train", f"{tmp_path}/a.pkl", "-o", f"{tmp_path}/a.pth"]) == 1
    assert "is not readable as two tensors" in capsys.readouterr().err


def test_pictures_are_learnt_from(tmp_path, capsys):
    pytest.importorskip("PIL")
    numpy = pytest.importorskip("numpy")
    from Miniproject_1.commands.support import images

    for number in range(3):
        _, *noisy = data(1, 140 + number, channels=1, seed=number)
        for folder, values in zip("ab", noisy, strict=True):
            pixels = numpy.ascontiguousarray(values[0].round().byte().permute(1, 2, 0).numpy())
            images.write_picture(images.Picture(pixels, "grey", False, (0, 255)), tmp_path / folder / f"{number}.png")
    opened = pairs.open_pairs(tmp_path / "a", tmp_path / "b")
    stack = train.squares(opened)
    assert stack.first.shape == (12, 1, 128, 128) and stack.first.dtype == torch.uint8
    assert main(["train", f"{tmp_path}/a", f"{tmp_path}/b", "-o", f"{tmp_path}/new.pth"]) == 0
    assert "same pairs: loss" in capsys.readouterr().out
    assert read_weights(tmp_path / "new.pth")["in_channels"] == 1
    small = numpy.zeros((100, 140, 1), "uint8")
    for folder in "ab":
        images.write_picture(images.Picture(small, "grey", False, (0, 255)), tmp_path / folder / "3.png")
    with pytest.raises(ValueError, match=r"3 has 140 x 100 pixels.*at least 128"):
        train.squares(pairs.open_pairs(tmp_path / "a", tmp_path / "b"))


@pytest.mark.parametrize(("both", "reached"), [(True, (5**2 + 25**2) / 2), (False, 5**2)])
def test_the_held_out_loss_is_of_the_images_that_are_learnt_from(both, reached):
    """A model that returns its input: its error is its own noise, whatever the other one's."""
    clean, _, _ = data(30, 32)
    generator = torch.Generator().manual_seed(5)
    first, second = (clean + level * torch.randn(clean.shape, generator=generator) for level in (5, 25))
    held = pairs.PairsInMemory(first.clamp(0, 255), second.clamp(0, 255))
    loss, noisy = train.held_out_loss(Model(width=8), held, both)
    assert noisy / 2 == pytest.approx((5**2 + 25**2) / 2 / 255**2, rel=0.03)
    floor = noisy / 2 if both else 25**2 / 255**2
    assert loss - floor == pytest.approx(reached / 255**2, rel=0.03 if both else 0.3)


@pytest.mark.parametrize("level", [3, 40], ids=["less-noisy-targets", "noisier-targets"])
def test_the_dB_hold_for_unequal_noise(tmp_path, capsys, level):
    clean, a, _ = data(200, 32, level=10)
    b = (clean + level * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 255)
    torch.save((a, b), tmp_path / "train.pkl")
    torch.save((a, clean), tmp_path / "val.pkl")
    assert main(command(tmp_path, "--epochs", "4", "--no-inspect", "--validate", f"{tmp_path}/val.pkl")) == 0
    said = capsys.readouterr()
    reached, valid = map(float, re.findall(r"(?:so|validation) ([\d.]+) dB", said.out.splitlines()[-1]))
    assert valid > 20 * math.log10(255 / 10) + 1
    assert reached == pytest.approx(valid, abs=1.5)
    assert "gained hardly anything" not in said.err


# ---------------------------------------------------------------------------------------------- several versions


def write(path, image):
    """A grey (1, H, W) in [0, 255] as a PNG."""
    pytest.importorskip("PIL")
    pytest.importorskip("numpy")
    from Miniproject_1.commands.support import images

    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    images.write_picture(images.Picture(pixels, "grey", False, (0, 255)), path)


def values(opened):
    """The mean grey values of all pairs, which tell the versions apart."""
    return [tuple(round(image.mean().item()) for image in opened.pair(number)) for number in range(len(opened))]


def flat(value, size=20):
    return torch.full((1, size, size), float(value))


@pytest.mark.parametrize(("count", "pairs_of"), [(2, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 0)]), (40, None)])
def test_versions_are_paired_in_a_ring(count, pairs_of):
    found = pairs.ring(list(range(count)))
    assert found == (pairs_of or [*((n, n + 1) for n in range(count - 1)), (count - 1, 0)])


def test_versions_come_in_folders_by_name_or_in_one_folder_a_scene(tmp_path):
    for folder, names in (("a", "xyz"), ("b", "xy"), ("c", "x")):
        for name in names:
            write(tmp_path / folder / f"{name}.png", flat({"a": 10, "b": 20, "c": 30}[folder] + ord(name) - ord("x")))
    opened = pairs.open_sources([tmp_path / name for name in "abc"])
    assert values(opened) == [(10, 20), (20, 30), (30, 10), (11, 21)]
    assert [opened.scenes, opened.names] == [(0, 0, 0, 1), ("x", "x", "x", "y")]
    opened = pairs.open_sources([tmp_path / name / "x.png" for name in "abc"])
    assert values(opened) == [(10, 20), (20, 30), (30, 10)]
    (tmp_path / "c" / "x.png").rename(tmp_path / "b" / "z.png")
    (tmp_path / "c").rmdir()
    opened = pairs.open_sources([tmp_path])
    assert opened.names == ("a", "a", "a", "b", "b", "b") and opened.scenes == (0, 0, 0, 1, 1, 1)


def test_a_folder_is_either_of_scenes_or_of_single_pictures(tmp_path):
    with pytest.raises(ValueError, match="no picture"):
        pairs.open_sources([tmp_path])
    write(tmp_path / "one" / "1.png", flat(1))
    with pytest.raises(ValueError, match="needs two versions of its scene; one has one picture"):
        pairs.open_sources([tmp_path])
    write(tmp_path / "2.png", flat(2))
    with pytest.raises(ValueError, match="got 1 in itself and 1 sub-folders"):
        pairs.open_sources([tmp_path])
    (tmp_path / "one" / "1.png").rename(tmp_path / "1.png")
    opened = pairs.open_sources([tmp_path])
    assert isinstance(opened, pairs.NeighbourPairs) and opened.names == ["1.png", "2.png"]


def test_arrays_have_versions_too(tmp_path):
    numpy = pytest.importorskip("numpy")
    for name in "abc":
        numpy.save(tmp_path / f"{name}.npy", numpy.full((2, 9, 7), ord(name), "uint8"))
    opened = pairs.open_sources([tmp_path / f"{name}.npy" for name in "abc"])
    assert values(opened) == [(97, 98)] * 2 + [(98, 99)] * 2 + [(99, 97)] * 2
    assert opened.places[:, 0].tolist() == [0, 1] * 3
    assert isinstance(pairs.open_sources([tmp_path / "a.npy"]), pairs.NeighbourPairs)
    numpy.save(tmp_path / "c.npy", numpy.full((2, 9, 7), 1.0))
    with pytest.raises(ValueError, match="one type of values; got uint8 and float64"):
        pairs.open_sources([tmp_path / f"{name}.npy" for name in "abc"])


def test_nothing_that_is_held_out_is_learnt_from():
    """Every pixel has a value of its own, the same in all versions."""
    size, versions = (700, 1000), 3
    image = torch.arange(math.prod(size), dtype=torch.float32).view(1, 1, *size) + 0.5

    class Versions:
        scenes = list(range(2)) * versions

        def __len__(self):
            return len(self.scenes)

        def name(self, number):
            return str(number)

        def pair(self, number):
            return 2 * (image + self.scenes[number] * image.numel(),)

    stack = train.squares(Versions())
    assert len(stack) == 2 * 6 * 8 * versions
    learnt, held, unseen = train.held_out(stack, seed=0)
    assert unseen and len(held) == 4 * versions  # one place of twenty
    assert not torch.isin(held.first, learnt.first).any()
    assert len(learnt) > 0.8 * len(stack)


def test_the_ring_is_trained_on(tmp_path, capsys):
    for number in range(3):
        clean = data(1, 150, channels=1, seed=number)[0]
        noise = torch.randn(3, 1, 150, 150, generator=torch.Generator().manual_seed(number))
        for version in range(3):
            write(tmp_path / "scenes" / str(number) / f"{version}.png", clean[0] + 25 * noise[version])
    assert main(["train", f"{tmp_path}/scenes", "-o", f"{tmp_path}/new.pth", "--epochs", "1"]) == 0
    assert read_weights(tmp_path / "new.pth")["pairs_seen"] > 100
    assert re.search(r"floor 0\.00[89]\d+, so \d+", capsys.readouterr().out)


# ---------------------------------------------------------------------------------------------- single pictures


def test_neighbours_of_a_cell_make_a_pair():
    image = torch.arange(3 * 8 * 7.0).view(1, 3, 8, 7)
    singles = pairs.NeighbourPairs(["one"], lambda number: image)
    assert len(singles) == pairs.DRAWS and singles.scenes == [0] * pairs.DRAWS
    seen = set()
    for number in range(len(singles)):
        first, second = singles.pair(number)
        assert first.shape == second.shape == (1, 3, 4, 3)
        cells = image[..., :6].unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
        assert (cells == first[..., None]).any(-1).all() and (cells == second[..., None]).any(-1).all()
        distance = (first - second).abs()
        assert torch.isin(distance, torch.tensor([1.0, 7.0])).all()  # beside or below each other, never diagonal
        assert torch.equal(distance, distance[:, :1].expand_as(distance))  # alike in all channels
        seen |= {frozenset(pair) for pair in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)}
    assert len(seen) == 3 * 4 * 3 * 4  # the four pairs of each cell, one in each draw
    with pytest.raises(ValueError, match="at least 2 pixels a side; thin is not"):
        pairs.NeighbourPairs(["thin"], lambda number: image[:, :, :1]).pair(0)


def single_pictures(folder, noise, count=8, size=192):
    """Writes noisy pictures and clean ones below a folder; returns the mean PSNR of the noisy ones."""
    found = []
    for number in range(count):
        clean = data(1, size, channels=1, seed=number)[0][0]
        noisy = clean + noise(torch.randn(clean.shape, generator=torch.Generator().manual_seed(number)))
        write(folder / "noisy" / f"{number}.png", noisy)
        write(folder / "clean" / f"{number}.png", clean)
        found.append(metrics.psnr_of_mse(metrics.mean_squared_error(noisy.clamp(0, 255), clean)))
    return sum(found) / count


def test_single_pictures_with_white_noise_teach(tmp_path, capsys):
    before = single_pictures(tmp_path, lambda white: 25 * white)
    command = ["train", f"{tmp_path}/noisy", "-o", f"{tmp_path}/new.pth", "--epochs", "6"]
    assert main([*command, "--validate", f"{tmp_path}/noisy", f"{tmp_path}/clean"]) == 0
    said = capsys.readouterr()
    assert "fine    independence" in said.err
    line = said.out.splitlines()[-1]
    loss, noisy, after = map(
        float, re.search(r"loss ([\d.]+), of the noisy ones ([\d.]+); .* ([\d.]+) dB", line).groups()
    )
    assert "floor" not in line and loss < 0.7 * noisy
    assert after > before + 6


def blurred(white):
    return 60 * torch.nn.functional.avg_pool2d(white[None], 3, 1, 1)[0]


def test_a_range_is_advised_for_dark_files(tmp_path, capsys):
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        values = numpy.random.default_rng(seed).poisson(600, (64, 64)).astype("uint16")
        values[5:9, 5:9] = 60_000
        tifffile.imwrite(tmp_path / folder / "sky.tif", values)
    assert main(["inspect", f"{tmp_path}/a", f"{tmp_path}/b", "--no-weights"]) == 0
    said = capsys.readouterr()
    assert re.search(r"99% of the values are below 6\d\d.*, where 65535 is white; --range 0 6\d0 may do", said.err)
    assert "If they are dark, see --range" in said.out


def test_single_pictures_with_correlated_noise_are_refused(tmp_path, capsys):
    single_pictures(tmp_path, blurred, count=2)
    command = ["train", f"{tmp_path}/noisy", "-o", f"{tmp_path}/new.pth"]
    assert main(command) == 1
    assert "not independent between pixels" in capsys.readouterr().err
    assert not (tmp_path / "new.pth").exists()
    assert main([*command, "--no-inspect", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("noise", "verdict"),
    [
        (lambda white: 5 * white, "fine"),
        (lambda white: 40 * white, "fine"),
        (blurred, "BAD"),
        (lambda white: 20 * (white + 0.3 * white.roll(1, 2)), "BAD"),
        (lambda white: 20 * white[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2), "BAD"),
        (lambda white: 20 * white + 20 * white.roll(2, 1), "BAD"),
    ],
)
def test_independence_is_told_from_single_pictures(noise, verdict):
    clean = data(1, 256)[0]
    white = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(1))
    finding = inspect.on_single([clean + noise(white)])
    assert finding.verdict == verdict, finding


@pytest.mark.parametrize("axis", [1, 2])
def test_colours_at_half_the_size_are_not_independent(axis):
    """As JPEG and video store them: brightness has white noise."""
    clean = data(1, 256)[0][0]
    noisy = clean + 12 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    brightness = noisy.mean(0)
    colours = noisy - brightness
    halved = (colours + colours.roll(1, axis)) / 2
    stored = torch.where(torch.arange(256).unsqueeze(2 - axis) % 2 == 0, halved, halved.roll(-1, axis))
    assert inspect.on_single([(brightness + colours)[None]]).verdict == "fine"
    assert inspect.on_single([(brightness + stored)[None]]).verdict == "BAD"


@pytest.mark.parametrize("picture", [flat(255, 200), flat(100, 30)])
def test_what_cannot_be_told_is_refused(picture):
    finding = inspect.on_single([picture[None]])
    assert finding.verdict == "BAD" and "too small" in finding.text


# ---------------------------------------------------------------------------------------------- losses and the plot


@pytest.mark.parametrize(("loss", "what"), [("l1", "mean difference"), ("l0", "share more than 10 of 255 apart")])
def test_other_losses_have_no_floor(files, loss, what, capsys):
    assert main(command(files, "--loss", loss, "--no-inspect")) == 0
    line = capsys.readouterr().out
    assert re.search(rf"{what} [\d.]+, of the noisy ones [\d.]+; \d+ s", line) and "floor" not in line
    level = 30 * math.sqrt(2)  # of the difference of two noisy ones
    expected = {"l1": level * math.sqrt(2 / math.pi) / 255, "l0": 1 - math.erf(10.5 / level / math.sqrt(2))}[loss]
    assert float(re.search(r"noisy ones ([\d.]+)", line).group(1)) == pytest.approx(expected, rel=0.05)


def test_the_curve_is_drawn_and_survives_an_interruption(files, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    curves, plot = [], train.plot
    monkeypatch.setattr(train, "plot", lambda path, curve: curves.append(list(curve)) or plot(path, curve))
    arguments = "--epochs", "3", "--no-inspect", "--plot", f"{files}/curve.svg", "--loss", "l0"
    step = train.Session.step

    def interrupted(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(train.Session, "step", interrupted)
        assert main(command(files, *arguments)) == 130
    assert main(command(files, *arguments, "--resume")) == 0
    assert [len(curve) for curve in curves] == [1, 2, 3] and curves[2][:2] == curves[1]
    assert main(command(files, *arguments, "--force", out="other.pth")) == 0
    assert curves[5] == curves[2]  # the loss l0 anneals by the step, not by the start
    assert "training loss" in (files / "curve.svg").read_text() and not list(files.glob(".noise2noise*"))
    assert main(command(files, "--plot", f"{files}/curve.svg", out="third.pth")) == 1
    assert "curve.svg exists; --force" in capsys.readouterr().err
    assert main(command(files, "--plot", f"{files}/curve.jpg", out="third.pth")) == 1
    assert "ends in .png or .svg" in capsys.readouterr().err
    figures = {"training loss": 0.1, "loss": 0.2, "floor": 0.1, "dB": 20.0, "validation": 19.0}
    plot(files / "both.png", [figures, figures])
    assert (files / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_said_before_training(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(command(files, "--plot", f"{files}/curve.png")) == 1
    assert "noise2noise-miniproject[plot]" in capsys.readouterr().err
    assert not (files / "new.pth").exists()


def test_a_validation_that_does_not_fit_is_told_before_training(files, capsys):
    noisy, clean = torch.load(files / "val.pkl")
    torch.save((noisy[:, :1], clean[:, :1]), files / "grey.pkl")
    assert main(command(files, "--validate", f"{files}/grey.pkl")) == 1
    assert "0 of --validate has 1 channels; the pairs to learn from have 3" in capsys.readouterr().err
    assert not (files / "new.pth").exists()
    assert main(command(files, "--validate", *3 * [f"{files}/val.pkl"])) == 1
    assert "--validate takes NOISY and CLEAN, or a .pkl; got 3" in capsys.readouterr().err


def test_a_later_picture_of_a_validation_that_does_not_fit_is_told_before_training(files, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    for folder in ("noisy", "clean"):
        (tmp_path / folder).mkdir()
        image.new("RGB", (40, 40), "red").save(tmp_path / folder / "0.png")
        image.new("L", (40, 40), 90).save(tmp_path / folder / "1.png")
    assert main(command(files, "--validate", f"{tmp_path}/noisy", f"{tmp_path}/clean")) == 1
    assert "1 of --validate has 1 channels" in capsys.readouterr().err
    assert not (files / "new.pth").exists()


def test_pictures_that_predict_only_clips_are_told(tmp_path, capsys):
    torch.save(tuple(255 * torch.rand(2, 40, 3, 3, 50)), tmp_path / "low.pkl")
    assert main(["train", f"{tmp_path}/low.pkl", "-o", f"{tmp_path}/new.pth", "--no-inspect", "--epochs", "1"]) == 0
    assert "less than 4 pixels high or wide are only clipped" in capsys.readouterr().err


def test_the_size_of_a_single_picture_is_that_of_its_file(tmp_path):
    sizes = ((1, 3, 130, 130), (1, 3, 64, 300))
    images = [torch.rand(size, generator=torch.Generator().manual_seed(1)) for size in sizes]
    with pytest.raises(ValueError, match=r"small\.png has 300 x 64 pixels .* at least 130 pixels a side"):
        train.squares(pairs.NeighbourPairs(["large.png", "small.png"], images.__getitem__))


def test_values_above_white_do_not_wrap_around():
    values = torch.tensor([0.0, 255, 300, -20]).view(1, 1, 2, 2)
    assert torch.equal(train.compact(values), values) and train.compact(values.clamp(0, 255)).dtype == torch.uint8


def test_validation_has_the_range_of_training(tmp_path, capsys):
    numpy = pytest.importorskip("numpy")
    clean, a, b = (part.numpy() / 255 for part in data(60))
    for name, part, white in (("a", a, 4095), ("b", b, 4095), ("dark", a / 5, 4095), ("clean", clean / 5, 4095)):
        numpy.save(tmp_path / f"{name}.npy", (part * white).round().astype("uint16"))
    given = [f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "--epochs", "1", "-o", f"{tmp_path}/new.pth", "--force"]
    said = []
    for options in ([], ["--range", "0", "4095"]):
        assert main(["train", *given, "--validate", f"{tmp_path}/dark.npy", f"{tmp_path}/clean.npy", *options]) == 0
        said.append(re.search(r"validation ([\d.]+) dB", capsys.readouterr().out).group(1))
    assert said[0] == said[1]


def test_validation_does_not_set_the_range_of_training(tmp_path, capsys):
    """Files of pictures are read later than arrays are."""
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    clean, a, b = (part[0, 0].numpy() / 255 for part in data(1, 40))
    for name, part in (("a", a), ("b", b)):
        tifffile.imwrite(tmp_path / f"{name}.tif", (part * 4095).round().astype("uint16"))
    for name, part in (("dark", a / 5), ("clean", clean / 5)):
        numpy.save(tmp_path / f"{name}.npy", (part[None, None] * 4095).round().astype("uint16"))
    given = [f"{tmp_path}/a.tif", f"{tmp_path}/b.tif", "--epochs", "1", "-o", f"{tmp_path}/new.pth"]
    assert main(["train", *given, "--validate", f"{tmp_path}/dark.npy", f"{tmp_path}/clean.npy"]) == 0
    assert re.findall(r"(\d+) as white", capsys.readouterr().err) == ["4095"]


@pytest.mark.parametrize("change", [lambda images: 255 - images, lambda images: images.flip(0)], ids=["other", "order"])
def test_other_pictures_are_not_resumed(files, change, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "CHECKPOINT_SECONDS", -1)
        step, taken = train.Session.step, []
        patched.setattr(
            train.Session, "step", lambda self: interrupted(self) if taken else taken.append(1) or step(self)
        )
        assert main(command(files, "--no-inspect")) == 130
    a, b = torch.load(files / "train.pkl")
    torch.save((change(a), change(b)), files / "train.pkl")
    assert main(command(files, "--no-inspect", "--resume")) == 1
    assert "of another run" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_not_resumed(files, capsys):
    kept = {"key": "none", "steps": 3}
    for content, reason in (
        (None, "new.pth.checkpoint is a weights file, no checkpoint; move it elsewhere"),
        ({"steps": 3}, "or an incomplete one: it lacks 'key'; --force starts anew"),
        (kept, "of another run"),
    ):
        path = files / "new.pth.checkpoint"
        torch.save(content, path) if content else Model(width=8).save(path)
        assert main(command(files, "--no-inspect", "--resume")) == 1
        said = capsys.readouterr().err
        assert reason in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("seconds", [math.inf, -1])  # between checkpoints
def test_a_loss_that_is_not_finite_leaves_the_files_as_they_are(files, monkeypatch, capsys, seconds):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", seconds)
    assert main(command(files, "--epochs", "1", "--no-inspect")) == 0
    good, step = (files / "new.pth").read_bytes(), train.Training.step
    capsys.readouterr()
    monkeypatch.setattr(train.Training, "step", lambda *given: step(*given) * math.nan)
    assert main(command(files, "--epochs", "1", "--no-inspect", "--force")) == 1
    said = capsys.readouterr()
    assert "the training loss is no longer finite" in said.err and not said.out
    assert (files / "new.pth").read_bytes() == good and not (files / "new.pth.checkpoint").exists()


def test_a_held_out_loss_of_nan_is_said_to_be_one(files, monkeypatch, capsys):
    monkeypatch.setattr(train, "held_out_loss", lambda *_, **__: (math.nan, 0.02))
    assert main(command(files, "--epochs", "1", "--no-inspect")) == 0
    assert "loss nan, floor 0.01, so nan dB" in capsys.readouterr().out


def test_weights_are_written_before_they_are_judged(files, monkeypatch):
    def fails_after_an_epoch(*_):
        raise OSError("the picture has gone")

    monkeypatch.setattr(train, "validate", fails_after_an_epoch)
    assert main(command(files, "--epochs", "1", "--validate", f"{files}/val.pkl")) == 1
    assert read_weights(files / "new.pth")["pairs_seen"] == 38


@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_in_sixteen_teach_as_much_as_all(tmp_path, capsys, bits):
    numpy = pytest.importorskip("numpy")
    *noisy, clean = (part / 255 for part in reversed(data(60)))
    for name, part in zip(("b", "a", "clean"), (*noisy, clean), strict=True):
        numpy.save(tmp_path / f"{name}.npy", (part * (2**bits - 1)).round().numpy().astype("uint16"))
    given = [f"{tmp_path}/{name}.npy" for name in ("a", "b")]
    validate = ["--validate", f"{tmp_path}/a.npy", f"{tmp_path}/clean.npy"]
    found = []
    for options in ([], ["--range", "0", f"{2**bits - 1}"], ["--range", "0", "65535"]):
        out = ["-o", f"{tmp_path}/new.pth", "--force", "--epochs", "4"]
        assert main(["train", *given, *out, *validate, *options]) == 0
        said = capsys.readouterr()
        found.append(float(re.findall(r"validation ([\d.]+) dB", said.out)[-1]))
        assert (f"0 is taken as black, {2**bits - 1} as white" in said.err) == (not options)
    assert found[0] == found[1] > 20 * math.log10(255 / 30) + 2
    assert found[2] > found[0] + 19  # of 65535


# ---------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("ending", [".npy", ""])
def test_the_clean_pictures_set_the_range(tmp_path, capsys, ending):
    """Noise of level 0.1 that leaves [0, 1] has 20 dB."""
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    clean = numpy.random.default_rng(0).random((6, 40, 30), "float32")
    noisy = clean + 0.1 * numpy.random.default_rng(1).standard_normal(clean.shape, "float32")
    for name, stack in (("noisy", noisy), ("clean", clean)):
        numpy.save(tmp_path / f"{name}.npy", stack)
        (tmp_path / name).mkdir()
        for number, image in enumerate(stack):
            tifffile.imwrite(tmp_path / name / f"{number}.tif", image)
    given = [f"{tmp_path}/noisy{ending}", f"{tmp_path}/clean{ending}"]
    assert main(["evaluate", *given, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["mean"]["noisy"]["psnr"] == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("ending", [".npy", ""])
def test_noise_may_exceed_the_white_of_the_clean_pictures(tmp_path, capsys, ending):
    """Sensors of 10 bits: 1023 is the white of both, and noise of level 51.15 has 26 dB; nothing is clipped."""
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    clean = numpy.random.default_rng(0).integers(900, 1024, (6, 40, 30)).astype("uint16")
    noisy = (clean + 51.15 * numpy.random.default_rng(1).standard_normal(clean.shape)).round().astype("uint16")
    for name, stack in (("noisy", noisy), ("clean", clean), ("bright", 40 * noisy)):
        numpy.save(tmp_path / f"{name}.npy", stack)
        (tmp_path / name).mkdir()
        for number, image in enumerate(stack):
            tifffile.imwrite(tmp_path / name / f"{number}.tif", image)
    assert noisy.max() > 1100
    noisy, clean, bright = (f"{tmp_path}/{name}{ending}" for name in ("noisy", "clean", "bright"))
    assert main(["evaluate", noisy, clean, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["mean"]["noisy"]["psnr"] == pytest.approx(26.02, abs=0.1)
    for first, second in ((bright, clean), (clean, bright), (noisy, bright)):
        assert (main(["evaluate", first, second, "--json"]) == 1) == (first == bright)
    assert "others only up to 1023" in capsys.readouterr().err


def test_the_weights_to_start_from_are_never_overwritten(files, capsys):
    Model(width=8).save(files / "mine.pth")
    before = (files / "mine.pth").read_bytes()
    assert main(command(files, "--start", f"{files}/mine.pth", "--force", out="mine.pth")) == 1
    assert "is an input" in capsys.readouterr().err and (files / "mine.pth").read_bytes() == before


def test_a_picture_that_cannot_be_read_is_named(tmp_path, capsys):
    pytest.importorskip("PIL")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.png").write_bytes(b"no picture")
    assert main(["evaluate", f"{tmp_path}/a", f"{tmp_path}/b", "--weights", "course"]) == 1
    assert "one.png: not a readable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["noisy", "wavelets", "name"])
def test_weights_with_the_name_of_another_result_are_asked_for_otherwise(files, capsys, name):
    assert main(["evaluate", f"{files}/val.pkl", "--weights", name]) == 1
    assert f"give ./{name}" in capsys.readouterr().err


def test_evaluate_says_the_graders_psnr(files, capsys):
    torch.save([part[:10] for part in torch.load(files / "val.pkl")], files / "val.pkl")
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course", "--json"]) == 0
    *each, summary = map(json.loads, capsys.readouterr().out.splitlines())
    noisy, clean = (part.float() for part in torch.load(files / "val.pkl"))
    errors = ((noisy - clean) / 255).square().mean((1, 2, 3))
    assert len(each) == summary["images"] == 10
    assert each[7]["noisy"]["psnr"] == pytest.approx(-10 * errors[7].log10().item(), abs=1e-3)
    assert summary["mean"]["noisy"]["psnr"] == pytest.approx(-10 * errors.log10().mean().item(), abs=1e-3)
    assert summary["mean"]["noisy"]["psnr_of_pooled_error"] == pytest.approx(
        -10 * errors.mean().log10().item(), abs=1e-3
    )
    assert summary["mean"]["course"]["psnr"] > summary["mean"]["noisy"]["psnr"] + 3
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course", "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("0: noisy ") and "mean of 2" in said


def test_ssim_is_that_of_its_definition():
    """Wang et al., equation 13, in plain torch: the oracle."""
    pytest.importorskip("skimage")
    clean, noisy, _ = data(1, 40)
    x = torch.arange(-5, 6.0)
    window = torch.exp(-(x**2) / (2 * 1.5**2)).double()
    window = (window / window.sum())[:, None] * (window / window.sum())
    a, b = (part.double().transpose(0, 1) for part in (clean, noisy))

    def mean(values):
        return torch.nn.functional.conv2d(values, window[None, None])

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    assert evaluate.ssim(clean, noisy) == pytest.approx(expected.item(), abs=1e-4)
    assert evaluate.ssim(clean[..., :9], noisy[..., :9]) is None


def test_classics_are_better_than_noise(capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    clean, noisy, _ = data(1, 48)
    before = metrics.mean_squared_error(noisy, clean)
    found = evaluate.classics(noisy, clean)
    assert list(found) == ["non-local means", "wavelets", "total variation"]
    for image in found.values():
        assert image.shape == clean.shape and metrics.mean_squared_error(image, clean) < before / 2


def test_equal_pictures_are_said_to_be_equal(files, capsys):
    clean = torch.load(files / "val.pkl")[1][:1]
    torch.save((clean, clean), files / "val.pkl")
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course"]) == 0
    said = capsys.readouterr().out
    assert "noisy equal" in said and re.search(r"^noisy +equal +equal", said, re.MULTILINE) and "without" not in said


def test_some_equal_pictures_do_not_make_the_mean_equal(files, capsys):
    noisy, clean = (part[:3] for part in torch.load(files / "val.pkl"))
    noisy[1] = clean[1]
    torch.save((noisy, clean), files / "val.pkl")
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course", "--json"]) == 0
    *each, summary = map(json.loads, capsys.readouterr().out.splitlines())
    found = [each[number]["noisy"]["psnr"] for number in (0, 2)]
    assert each[1]["noisy"]["psnr"] is None
    assert summary["mean"]["noisy"]["psnr"] == pytest.approx(sum(found) / 2, abs=1e-3)
    assert (summary["mean"]["noisy"]["equal"], summary["mean"]["course"]["equal"]) == (1, 0)
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course", "--quiet"]) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert re.match(rf"noisy +{sum(found) / 2:.2f} ", first) and first.endswith("(PSNR without 1 equal to the clean)")
    assert second.startswith("course") and "without" not in second


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--plot noisy/0.png", "noisy/0.png is an input, which is never overwritten"),
        ("--sheet clean/0.png", "clean/0.png is an input"),
        ("--sheet link.png", "link.png is an input"),
        ("--plot new.png --sheet here/new.png", "the plot and the sheet would both be written to here/new.png"),
    ],
)
def test_figures_overwrite_no_pictures(tmp_path, monkeypatch, capsys, options, reason):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for folder in ("noisy", "clean"):
        write(tmp_path / folder / "0.png", flat(100))
    Path("link.png").symlink_to("noisy/0.png")
    Path("here").symlink_to(".")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    assert main(["evaluate", "noisy", "clean", "--weights", "course", "--force", *options.split()]) == 1
    assert reason in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


@pytest.mark.parametrize("given", [[], ["--range", "0", "5000"]], ids=["found", "given"])
def test_the_range_of_the_files_goes_with_the_weights(tmp_path, capsys, given):
    numpy = pytest.importorskip("numpy")
    clean, a, b = (part.numpy() * 10 for part in data(count=8))
    white = 5000 if given else 4095
    for name, images in (("a", a), ("b", b), ("dark", a[:4] / 5), ("clean", clean[:4] / 5)):
        numpy.save(tmp_path / f"{name}.npy", images.astype("uint16"))
    call = [f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", "--epochs", "1", "--no-inspect"]
    assert main(["train", *call, "-o", f"{tmp_path}/one.pth", *given]) == 0
    assert read_weights(tmp_path / "one.pth")["value_ranges"] == {"uint16": (0, white)}
    said = f"uint16 values: 0 is taken as black, {white} as white, as in the training of the weights"
    capsys.readouterr()
    evaluated = ["evaluate", f"{tmp_path}/dark.npy", f"{tmp_path}/clean.npy", "--weights", f"{tmp_path}/one.pth"]
    assert main([*evaluated, "--json"]) == 0  # by itself it would have 1023 as white
    output = capsys.readouterr()
    assert said in output.err
    assert main([*evaluated, "--json", "--range", "0", str(white)]) == 0
    given = capsys.readouterr()
    assert given.out == output.out and "training" not in given.err
    started = ["train", f"{tmp_path}/dark.npy", f"{tmp_path}/dark.npy", "--start", f"{tmp_path}/one.pth"]
    assert main([*started, "-o", f"{tmp_path}/two.pth", "--no-inspect"]) == 0
    assert said in capsys.readouterr().err
    assert read_weights(tmp_path / "two.pth")["value_ranges"] == {"uint16": (0, white)}
    assert main(["info", f"{tmp_path}/two.pth"]) == 0
    assert re.search(rf"value ranges +uint16 0 to {white}\n", capsys.readouterr().out)


# ---------------------------------------------------------------------------------------------- info, data


def test_info_says_what_a_file_holds(files, capsys):
    Model(width=8, in_channels=2, border=16).save(files / "a.pth")
    assert main(["info", f"{files}/a.pth", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["in_channels"] == 2 and facts["sizes"]["width"] == 8 and facts["pairs_seen"] == 0
    inner = 4 * 16 * 16 * 9 + 2 * 8 * 16 * 4  # of a quarter of the pixels: blocks, down and up
    assert facts["multiply_adds_a_pixel"] == 2 * 2 * 8 * 9 + 4 * 8 * 8 * 9 + inner / 4
    assert main(["info", "course"]) == 0
    shipped = Model()
    shipped.load_pretrained_model()
    parameters = sum(parameter.numel() for parameter in shipped.network.parameters())
    assert re.search(f"parameters +{parameters:,}", capsys.readouterr().out)


def test_damaged_weights_are_said(files, capsys):
    Model(width=8).save(files / "a.pth")
    (files / "a.pth").write_bytes((files / "a.pth").read_bytes()[:2000])
    assert main(["info", f"{files}/a.pth"]) == 1
    assert "not a readable weights file" in capsys.readouterr().err


def test_data_is_the_other_command(files, capsys):
    (files / "val.pkl").rename(files / "val_data.pkl")
    assert main(["data", "noise", "gaussian", "--data", str(files), "--out", f"{files}/out"]) == 0
    assert "40 pairs" in capsys.readouterr().out
    assert len(torch.load(files / "out" / "train_data.pkl")[0]) == 40
    with pytest.raises(SystemExit) as ended:
        main(["data", "--help"])
    assert ended.value.code == 0 and "scenes" in capsys.readouterr().out


def test_evaluate_draws_what_it_measured(files, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn, sheets, plot, shown = [], [], evaluate.plot, evaluate.shown
    monkeypatch.setattr(evaluate, "plot", lambda *given: drawn.append(given) or plot(*given))
    monkeypatch.setattr(evaluate, "shown", lambda image: sheets.append(image) or shown(image))
    figures = ["--plot", f"{files}/psnr.svg", "--sheet", f"{files}/sheet.png"]
    arguments = ["evaluate", f"{files}/val.pkl", "--weights", "course", "--json", *figures]
    assert main(arguments) == 0
    *images, _ = map(json.loads, capsys.readouterr().out.splitlines())
    (_, before, after, title) = drawn[0]
    assert title == "course"
    for values, name in ((before, "noisy"), (after, "course")):
        assert values == pytest.approx([image[name]["psnr"] for image in images], abs=1e-3)
    noisy, clean = torch.load(files / "val.pkl")
    order = sorted(range(40), key=lambda number: -after[number])
    expected = order[: evaluate.SHOWN] + order[-evaluate.SHOWN :]
    assert len(sheets) == 3 * len(expected)
    for number, first, last in zip(expected, sheets[::3], sheets[2::3], strict=True):
        assert torch.equal(first[0], noisy[number].float()) and torch.equal(last[0], clean[number].float())
    assert (files / "psnr.svg").read_bytes()[:5] == b"<?xml" and (files / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert main(arguments) == 1 and "--force overwrites" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0
    assert main(["evaluate", f"{files}/val.pkl", "--sheet", f"{files}/sheet.gif"]) == 1
    assert ".png or .svg" in capsys.readouterr().err


def test_a_sheet_shows_the_worst_square():
    clean, result = torch.zeros(2, 1, 3, 500, 300)
    result[..., 290:300, 60:70] = 200
    rows, columns = evaluate.worst_square(result, clean)
    assert (result[..., rows, columns] > 0).sum() == 300
    assert (rows.stop - rows.start, columns.stop - columns.start) == (128, 128)
    assert evaluate.worst_square(result[..., :9, :20], clean[..., :9, :20]) == (slice(0, 9), slice(0, 20))


def test_a_sheet_shows_any_kind_of_picture():
    grey, cmyk = torch.full((1, 1, 2, 3), 51.0), torch.tensor([0.0, 255, 51, 0]).view(1, 4, 1, 1)
    torch.testing.assert_close(torch.tensor(evaluate.shown(grey)), torch.full((2, 3), 0.2))
    torch.testing.assert_close(torch.tensor(evaluate.shown(cmyk)), torch.tensor([[[1.0, 0, 0.8]]]))
    assert evaluate.best_and_worst([3.0, 1.0, 2.0]) == [0, 2, 1]


def test_equal_pictures_have_no_place_in_the_plot(files):
    pytest.importorskip("matplotlib")
    for values in ([math.inf, 20.0], [math.inf, math.inf]):
        evaluate.plot(files / "psnr.png", values, [30.0, 30.0], "ours")
