"""Scores and times of weights on photographs."""

import itertools
import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from Miniproject_1.model import Model
from Miniproject_1.others import score_photo
from Miniproject_1.others.data import render_scene
from Miniproject_1.others.metrics import psnr_of_each

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def weights(tmp_path):
    """A file of an untrained network, which returns its input."""
    path = tmp_path / "untrained.pth"
    Model(width=8).save(path)
    return path


def write_photo(path, photo):
    Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy()).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        write_photo(folder / f"{number}.png", render_scene(number, side=64))
    return folder


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    scene = render_scene(5, side=64)
    write_photo(folder / "scene_mean.png", scene)
    write_photo(folder / "scene_real.png", scene ^ 4)  # 4 grey values off: 36.09 dB
    return folder


def test_gaussian_noise_is_neither_clipped_nor_rounded_and_always_the_same():
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    (noisy, clean), (again, _) = (next(score_photo.with_gaussian_noise([black], 25.0)) for _ in range(2))
    assert torch.equal(noisy, again) and not clean.any()
    assert noisy.std().item() == pytest.approx(25, rel=0.02) and noisy.min() < -50
    assert (noisy != noisy.round()).float().mean() > 0.9


def test_nothing_to_score_is_an_error(weights, photos, tmp_path):
    with pytest.raises(SystemExit, match="nothing to score"):
        score_photo.main(["score", "--weights", str(weights)])
    (tmp_path / "names.txt").write_text("none.png")
    with pytest.raises(SystemExit, match=r"no photo in .* has a name in"):
        score_photo.main(["score", str(photos), "--names", str(tmp_path / "names.txt"), "--weights", str(weights)])


def test_scores_are_those_of_each_image(weights, photos, pairs, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("0.png\n2.png\n")
    command = f"score {photos} --names {tmp_path / 'names.txt'} --levels 10 --pairs {pairs} --ensemble"
    score_photo.main([*command.split(), "--weights", str(weights), "--json", str(tmp_path / "scores.json")])
    table = json.loads((tmp_path / "scores.json").read_text())["psnr"]
    assert {name: len(scores["single"]) for name, scores in table.items()} == {"Gaussian 10": 2, "real pairs": 1}
    assert table["real pairs"]["noisy"] == pytest.approx([36.09], abs=0.01)
    assert table["real pairs"]["single"] == pytest.approx([36.09], abs=0.01)
    scenes = [render_scene(number, side=64) for number in (0, 2)]
    for scores, (noisy, clean) in zip(
        table["Gaussian 10"]["noisy"], score_photo.with_gaussian_noise(scenes, 10.0), strict=True
    ):
        assert scores == pytest.approx(psnr_of_each(noisy, clean).item(), abs=1e-4)
    assert "| real pairs | 1 | 36.09 | 36.09 | 36.09 |" in capsys.readouterr().out


def test_the_table_counts_images_made_worse():
    scores = {"noisy": [30.0, 30.0, 30.0], "single": [31.0, 29.0, 30.0]}
    assert score_photo.row("x", scores) == "| x | 3 | 30.00 | 30.00 |  | 1 |"


def test_a_pair_without_its_mean_is_named(pairs):
    (pairs / "scene_mean.png").unlink()
    with pytest.raises(ValueError, match=r"scene_mean\.png"):
        list(score_photo.real_pairs(pairs))
    (pairs / "scene_real.png").rename(pairs / "other.png")
    with pytest.raises(ValueError, match="no pair"):
        list(score_photo.real_pairs(pairs))


def test_the_stand_in_has_the_multiply_adds_of_ffdnet():
    network = score_photo.FFDNetStandIn()
    with FlopCounterMode(display=False) as counter:
        assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    a_pixel = 9 * (15 * 96 + 10 * 96**2 + 96 * 12) / 4
    assert counter.get_total_flops() == 2 * 32 * 32 * a_pixel
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(0.85e6, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_time_and_memory_are_told(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score_photo, "has_native_bfloat16", lambda device: True)
    file = tmp_path / "times.json"
    score_photo.main(["time", "--side", "64", "--turns", "2", "--weights", str(weights), "--json", str(file)])
    told = json.loads(file.read_text())
    names = {(row["name"], row["precision"]) for row in told["times"]}
    assert names == set(itertools.product(["untrained.pth", "FFDNet stand-in"], ["float32", "bfloat16"]))
    assert min(row["seconds_per_megapixel"] for row in told["times"]) > 0
    small, large = told["memory"]["untrained.pth"]
    assert 50 < small < 2000 and 50 < large < 2000
    assert capsys.readouterr().out.count("s a megapixel") == 4
