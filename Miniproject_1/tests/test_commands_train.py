"""`train`, `evaluate`, `info` and `data`: what they say is true, and an interrupted training loses nothing."""

import functools
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import torch

from Miniproject_1.__main__ import main
from Miniproject_1.commands import evaluate, pairs, train
from Miniproject_1.model import Model, read_weights

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
        evaluate.psnr(evaluate.mean_squared_error(model.predict(a[None], False), b[None]))
        for a, b in zip(noisy, clean, strict=True)
    ]
    assert sum(psnrs) / len(psnrs) == pytest.approx(valid, abs=0.01)
    assert valid > 20 * math.log10(255 / 30) + 1.5
    assert not (files / "new.pth.checkpoint").exists()


@pytest.mark.parametrize("stop", [1, 19, 25])
def test_resumed_is_uninterrupted_to_the_last_bit(files, stop, monkeypatch, capsys):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0)
    torch.save(
        [part[:20, :, :16, :16] for part in torch.load(files / "train.pkl")], files / "train.pkl"
    )  # 19 steps an epoch
    arguments = "--epochs", "2", "--no-inspect"
    assert main(command(files, *arguments, out="whole.pth")) == 0
    said = [line.rpartition(";")[0] for line in capsys.readouterr().out.splitlines()]
    step, taken = train.Run.step, []

    def interrupted(self):
        if len(taken) == stop:
            raise KeyboardInterrupt
        taken.append(1)
        return step(self)

    with monkeypatch.context() as patched:
        patched.setattr(train.Run, "step", interrupted)
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
    assert not said.out and "BAD  exposure" in said.err and "not fit" in said.err and "fine" not in said.err


def test_it_starts_from_other_weights(files, capsys):
    torch.save([part[:3] for part in torch.load(files / "train.pkl")], files / "train.pkl")
    assert main(command(files, "--start", "course", "--no-inspect", "--quiet")) == 0
    started, course = read_weights(files / "new.pth"), read_weights(ROOT / "Miniproject_1" / "bestmodel.pth")
    assert started["sizes"] == course["sizes"] and started["pairs_seen"] == course["pairs_seen"] + 3
    _, a, b = data(channels=1, count=4)
    torch.save((a, b), files / "train.pkl")
    assert main(command(files, "--start", "course", "--force")) == 1
    assert "for 3 channels; the pairs have 1" in capsys.readouterr().err


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


@pytest.mark.parametrize(("more", "reason"), [(("--epochs", "0"), "at least 1"), (("--minutes", "-1"), "more than 0")])
def test_wrong_lengths(files, more, reason, capsys):
    assert main(command(files, *more)) == 1
    assert reason in capsys.readouterr().err


def test_minutes_become_steps(monkeypatch):
    """By a clock on which every step takes a tenth of a second."""
    now = itertools.count()
    monkeypatch.setattr(train.time, "monotonic", lambda: next(now) / 10)
    stack = pairs.Stack(*(part.round().byte() for part in data()[1:]))
    fresh, run = (train.Run(Model(width=8), stack, 0) for _ in range(2))
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


def test_pictures_are_learnt_from(tmp_path, capsys):
    pytest.importorskip("PIL")
    numpy = pytest.importorskip("numpy")
    from Miniproject_1.commands import images

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


def test_the_floor_holds_for_unequal_noise():
    """A model that returns its input: its error is its own noise, whatever the other one's."""
    clean, _, _ = data(30, 32)
    generator = torch.Generator().manual_seed(5)
    first, second = (clean + level * torch.randn(clean.shape, generator=generator) for level in (5, 25))
    loss, floor = train.standing(Model(width=8), pairs.Stack(first.clamp(0, 255), second.clamp(0, 255)))
    assert floor == pytest.approx((5**2 + 25**2) / 2 / 255**2, rel=0.03)
    assert loss - floor == pytest.approx((5**2 + 25**2) / 2 / 255**2, rel=0.03)


# ---------------------------------------------------------------------------------------------- evaluate


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
    before = evaluate.mean_squared_error(noisy, clean)
    found = evaluate.classics(noisy, clean)
    assert list(found) == ["non-local means", "wavelets", "total variation"]
    for image in found.values():
        assert image.shape == clean.shape and evaluate.mean_squared_error(image, clean) < before / 2


def test_equal_pictures_are_said_to_be_equal(files, capsys):
    clean = torch.load(files / "val.pkl")[1][:1]
    torch.save((clean, clean), files / "val.pkl")
    assert main(["evaluate", f"{files}/val.pkl", "--weights", "course"]) == 0
    assert "noisy equal" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- info, data


def test_info_says_what_a_file_holds(files, capsys):
    Model(width=8, in_channels=2).save(files / "a.pth")
    assert main(["info", f"{files}/a.pth", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["in_channels"] == 2 and facts["sizes"]["width"] == 8 and facts["pairs_seen"] == 0
    inner = 2 * 16 * 16 * 9 + 2 * 8 * 16 * 4  # of a quarter of the pixels: blocks, down and up
    assert facts["multiply_adds_a_pixel"] == 2 * 2 * 8 * 9 + 4 * 8 * 8 * 9 + inner / 4
    assert main(["info", "course"]) == 0
    assert re.search(r"parameters +829,347", capsys.readouterr().out)


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
