"""`evaluate` on pictures and file names that are unusual but right."""

import json
import math
import os

import pytest
import torch

from Miniproject_1.__main__ import main
from Miniproject_1.commands import evaluate
from Miniproject_1.model import Model
from Miniproject_1.others import metrics


def pictures(channels, count=1, size=48):
    """Smooth clean pictures and noisy versions of them: two float (N, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    clean = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic") * 120 + 60
    noisy = clean + 30 * torch.randn(clean.shape, generator=generator)
    return clean.clamp(0, 255), noisy.clamp(0, 255)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_classics_take_any_number_of_channels(channels):
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    clean, noisy = pictures(channels)
    before = metrics.mean_squared_error(noisy, clean)
    for image in evaluate.classics(noisy, clean).values():
        assert image.shape == clean.shape and metrics.mean_squared_error(image, clean) < before / 2


@pytest.mark.parametrize("difference", [0, 10])
def test_classics_only_clip_a_picture_without_noise(difference):
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    clean = torch.linspace(0, 255, 24 * 24).round().view(1, 1, 24, 24)
    found = evaluate.classics(clean + difference, clean)
    assert list(found) == list(evaluate.CLASSICS)
    for image in found.values():
        assert torch.equal(image, (clean + difference).clamp(0, 255))


def test_equal_pictures_do_not_count_in_the_means_of_the_classics(tmp_path, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("pywt")
    clean, noisy = pictures(3, count=2, size=24)
    noisy[1] = clean[1]
    torch.save((noisy.round().byte(), clean.round().byte()), tmp_path / "val.pkl")
    Model(width=8).save(tmp_path / "mine.pth")
    call = ["evaluate", f"{tmp_path}/val.pkl", "--weights", f"{tmp_path}/mine.pth", "--classics", "--json"]
    assert main(call) == 0
    first, second, summary = map(json.loads, capsys.readouterr().out.splitlines())
    for name in evaluate.CLASSICS:
        assert second[name]["psnr"] is None and summary["mean"][name]["equal"] == 1
        assert summary["mean"][name]["psnr"] == first[name]["psnr"]


def test_a_sheet_shows_names_that_are_not_utf_8(tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    for folder, level in (("noisy", 90), ("clean", 80)):
        (tmp_path / folder).mkdir()
        image.new("RGB", (24, 24), (level, level, level)).save(tmp_path / folder / os.fsdecode(b"\xff.png"), "PNG")
    Model(width=8).save(tmp_path / "mine.pth")
    folders = [f"{tmp_path}/noisy", f"{tmp_path}/clean"]
    assert main(["evaluate", *folders, "--weights", f"{tmp_path}/mine.pth", "--sheet", f"{tmp_path}/sheet.png"]) == 0
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("title", ["\udcff.pth", "$_$.pth"])
def test_a_plot_shows_any_name_of_weights(tmp_path, title):
    pytest.importorskip("matplotlib")
    evaluate.plot(tmp_path / "psnr.png", [20.0, 21.0], [30.0, 30.0], title)
    assert (tmp_path / "psnr.png").read_bytes()[:4] == b"\x89PNG"


def test_means_of_pictures():
    found = evaluate.means([(0.01, 100), (0.04, 300)], [0.5, None, 0.7])
    assert found["psnr_of_pooled_error"] == pytest.approx(-10 * math.log10(0.0325), abs=1e-3)
    assert found["ssim"] == pytest.approx(0.6)
