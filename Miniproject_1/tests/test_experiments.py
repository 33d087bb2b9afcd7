"""The experiment command: every variant learns, results are kept, none is run twice, the table averages seeds."""

import json

import pytest
import torch

from Miniproject_1.others import data, experiments

ROW = {"variant": "ours", "pairs": 10, "epochs": 1, "parameters": 5000, "multiply_adds": 7_000_000}
ROW |= {"ensemble": 25.0, "seconds": 2.0}


@pytest.fixture(scope="module")
def photos():
    return [data.render_scene(seed, side=96) for seed in range(2)]


@pytest.mark.parametrize("name", experiments.VARIANTS)
def test_every_variant_learns_and_is_scored(photos, name):
    validation = data.noisy_and_clean(photos[0], 2, seed=0)
    row = experiments.run(name, 0, photos, 16, 1, validation)
    assert row["parameters"] > 1000 and row["multiply_adds"] > 1e6
    assert 5 < row["single"] < 60 and 5 < row["ensemble"] < 60
    variant = experiments.VARIANTS[name]
    fresh, noisy = experiments.make_model(variant, 0), validation[0]
    assert round(data.psnr(fresh.predict(noisy, ensemble=False), validation[1]), 3) != row["single"]


@pytest.mark.parametrize("size", [(8, 8), (7, 13)])
def test_networks_of_the_study_keep_any_size(size):
    for variant in experiments.VARIANTS.values():
        images = torch.rand(1, 3, *size) * 255
        assert experiments.make_model(variant, 0).predict(images, ensemble=False).shape == images.shape


def test_variants_may_draw_from_fewer_photos_or_draw_fewer_pairs(photos, monkeypatch):
    asked = []

    def draw_pairs(some, count, seed, draw):
        asked.append((len(some), count))
        return data.draw_pairs(some, count, seed, draw)

    monkeypatch.setattr(experiments, "draw_pairs", draw_pairs)
    validation = data.noisy_and_clean(photos[0], 1, seed=0)
    for name in ("half of the photos", "64 x 64, a quarter of the pairs"):
        experiments.run(name, 0, photos, 16, 1, validation)
    assert asked == [(1, 16), (2, 4)]


def test_results_are_appended_and_not_repeated(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "load_photos", lambda folder: photos)
    torch.save(data.noisy_and_clean(photos[0], 2, seed=0), tmp_path / "val_data.pkl")
    out = tmp_path / "results.jsonl"
    command = [
        "run",
        "x",
        "--validate",
        str(tmp_path / "val_data.pkl"),
        "--out",
        str(out),
        "--only",
        "ours",
        "width 24",
    ]
    experiments.main([*command, "--pairs", "8", "12"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["variant"], row["pairs"]) for row in rows] == [
        ("ours", 8), ("width 24", 8), ("ours", 12), ("width 24", 12)
    ]  # fmt: skip
    experiments.main([*command, "--pairs", "8", "--seeds", "0", "1"])
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 0, 0, 0, 1, 1]
    capsys.readouterr()
    experiments.main(["table", str(out)])
    assert capsys.readouterr().out.count("width 24") == 2


def test_multiply_adds_of_a_convolution():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert experiments.multiply_adds(layer, side=8) == 8 * 8 * 5 * 3 * 9


def test_table_has_mean_and_deviation_of_the_seeds_and_puts_the_best_first():
    rows = [ROW | {"seed": seed, "single": 24.0 + seed} for seed in (0, 1)]
    rows.append(ROW | {"seed": 0, "variant": "better", "single": 25.0})
    lines = experiments.table(rows).splitlines()
    assert lines[2] == "| better | 5,000 | 7 M | 10 | 1 | 1 | 25.000 | 25.000 | 2 |"
    assert lines[3] == "| ours | 5,000 | 7 M | 10 | 1 | 2 | 24.500 ± 0.707 | 25.000 | 2 |"
    assert len(lines) == 4
