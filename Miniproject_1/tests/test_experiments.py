"""The experiment command: every variant learns, results are kept, none is run twice, the table averages seeds."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from Miniproject_1.model import Model, Recipe, Training
from Miniproject_1.others import data, experiments, results
from Miniproject_1.others.metrics import psnr

RESULTS = Path(experiments.__file__).resolve().parents[2] / "report" / "results" / "project_1.jsonl"

ROW = {"variant": "one direction", "pairs": 10, "epochs": 1, "parameters": 5000, "multiply_adds": 7_000_000}
ROW |= {"ensemble": 25.0, "seconds": 2.0}


@pytest.fixture(scope="module")
def photos():
    return [data.render_scene(seed, side=96) for seed in range(2)]


GRID = {
    "unet": experiments.grid("U-Net", "unet"),
    "noise2noise": experiments.grid("Noise2Noise network", "noise2noise"),
}
EACH = [name for name in experiments.VARIANTS if all(name not in grid for grid in GRID.values())]


@pytest.mark.parametrize("name", EACH)
def test_every_variant_learns_and_is_scored(photos, name):
    validation = data.noisy_and_clean(photos[0], 2, seed=0)
    row = experiments.run(name, 0, photos, 16, 1, validation)
    assert row["parameters"] > 1000 and row["multiply_adds"] > 1e6
    assert 5 < row["single"] < 60 and 5 < row["ensemble"] < 60
    variant = experiments.VARIANTS[name]
    fresh, noisy = experiments.make_model(variant, 0), validation[0]
    assert round(psnr(fresh.predict(noisy, ensemble=False), validation[1]), 3) != row["single"]


@pytest.mark.parametrize("size", [(8, 8), (7, 13)])
def test_networks_of_the_study_keep_any_size(size):
    for name in EACH:
        variant, images = experiments.VARIANTS[name], torch.rand(1, 3, *size) * 255
        assert experiments.make_model(variant, 0).predict(images, ensemble=False).shape == images.shape


@pytest.mark.parametrize("network", GRID)
def test_the_grid_has_every_rate_and_batch_size(network):
    grid = GRID[network]
    assert grid.items() <= experiments.VARIANTS.items() and len(grid) == 20
    for name, variant in grid.items():
        model = experiments.make_model(variant, 0)
        _, rate, batch = name.split(", ")
        assert model.name == network
        assert (float(rate.split()[1]), int(batch.split()[1])) == (model.recipe.adam_lr, model.recipe.batch_size)


@torch.no_grad()
def test_parts_of_the_u_net_are_replaced():
    images, plain = torch.rand(2, 3, 8, 8), experiments.UNet()

    def output(**settings):
        network = experiments.unet(**settings)
        network.load_state_dict(plain.state_dict())
        return network(images)

    torch.testing.assert_close(output(), plain(images))
    assert not torch.allclose(output(pool=torch.nn.MaxPool2d(2)), plain(images))
    assert not torch.allclose(output(slope=0.0), plain(images))
    kinds = [type(layer) for layer in experiments.unet(norm=experiments.BatchNorm).encode2]
    assert kinds == 2 * [type(plain.last), experiments.BatchNorm, torch.nn.LeakyReLU]


def test_batch_normalisation_takes_the_batch_in_training_alone():
    layer, images = experiments.BatchNorm(3), 5 + torch.randn(16, 3, 8, 8)
    assert layer(images).mean().abs() < 1e-5
    with torch.no_grad():
        assert layer(images).mean() > 1  # its running mean has made one step of a tenth
        torch.testing.assert_close(layer(images)[:1], layer(images[:1]))


@pytest.mark.parametrize("draw", [experiments.noisier_half, experiments.blurred_half])
def test_half_of_the_inputs_are_changed(draw, photos):
    plain, changed = data.noisy_pairs(photos[0], 6, 1), draw(photos[0], 6, 1)
    assert torch.equal(changed[1], plain[1])
    assert (changed[0] != plain[0]).flatten(1).any(1).tolist() == 3 * [True] + 3 * [False]
    difference = changed[0][:3].float() - plain[0][:3].float()
    assert difference.mean().abs() < 3 and 5 < difference.std() < 80


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
    experiments.main([*command, "--pairs", "8", "--seeds", "0", "1", "1"])
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 0, 0, 0, 1, 1]
    capsys.readouterr()
    experiments.main(["table", str(out)])
    assert capsys.readouterr().out.count("width 24") == 2


def test_ours_is_the_network_of_the_model_and_variants_change_another():
    ours, one, wider = (
        experiments.make_model(experiments.VARIANTS[name], 0) for name in ("ours", experiments.ONE, "width 64")
    )
    assert ours.sizes == Model().sizes
    assert one.sizes == ours.sizes | experiments.BASE and wider.sizes == one.sizes | {"width": 64}
    assert ours.recipe.both_directions is None and one.recipe.both_directions is False
    assert experiments.with_blocks(experiments.PreActivated).first.out_channels == experiments.BASE["width"]


def test_multiply_adds_of_a_convolution():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert experiments.multiply_adds(layer, side=8) == 8 * 8 * 5 * 3 * 9


def test_table_has_the_standard_errors_of_the_seeds_and_puts_the_best_first():
    rows = [ROW | {"seed": seed, "single": 24.0 + seed} for seed in range(4)]
    rows += [ROW | {"seed": seed, "variant": "better", "single": 25.0 + seed} for seed in range(1, 4)]
    rows.append(ROW | {"seed": 9, "variant": "other", "pairs": 20, "single": 20.0})
    lines = experiments.table(rows).splitlines()
    assert lines[2] == "| better | 5,000 | 7 M | 10 | 1 | 3 | 27.000 ± 0.577 | +1.000 ± 0.000 | 25.000 | 2 |"
    assert lines[3] == "| one direction | 5,000 | 7 M | 10 | 1 | 4 | 25.500 ± 0.645 |  | 25.000 | 2 |"
    assert lines[4] == "| other | 5,000 | 7 M | 20 | 1 | 1 | 20.000 |  | 25.000 | 2 |"
    assert len(lines) == 5 and lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


def test_a_result_of_nan_is_shown_as_one_and_comes_last():
    rows = [
        {"variant": name, "seed": seed, "pairs": 8, "epochs": 1, "parameters": 1, "multiply_adds": 1, "seconds": 1.0}
        | {"single": single, "ensemble": single}
        for name, seed, single in (("a", 0, math.nan), ("a", 1, 20.0), ("b", 0, 19.0), ("b", 1, 18.0))
    ]
    *_, first, last = experiments.table(rows).splitlines()
    assert first.startswith("| b |") and "18.500 ± 0.500" in first
    assert last.startswith("| a |") and "| nan |" in last


def test_results_say_how_they_were_made(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "load_photos", lambda folder: photos)
    torch.save(data.noisy_and_clean(photos[0], 2, seed=0), tmp_path / "val_data.pkl")
    command = ["run", "x", "--validate", str(tmp_path / "val_data.pkl"), "--only", "width 24", "--pairs", "2"]
    experiments.main([*command, "--out", str(tmp_path / "new" / "results.jsonl")])
    (row,) = results.read_results(tmp_path / "new" / "results.jsonl")
    assert row["recipe"]["batch_size"] == Recipe.batch_size and row["network"]["width"] == 24
    assert row["torch"] == torch.__version__ and row["machine"] and row["python"]
    assert row["commit"] == results.commit() and len(row["recorded"].split("-")) == 3


def test_outside_of_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert results.commit() is None
    monkeypatch.setenv("PATH", "")
    assert results.commit() is None


def test_recorded_results_are_of_variants_that_there_are(capsys):
    rows = results.read_results(RESULTS)
    assert rows and {row["variant"] for row in rows} <= experiments.VARIANTS.keys()
    experiments.main(["table", str(RESULTS)])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len({(r["variant"], r["pairs"], r["epochs"]) for r in rows})


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"variant": "ours"}', json.dumps(ROW | {"seed": 0, "single": "25"})])
def test_damaged_lines_are_named(line, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(ROW | {"seed": 0, "single": 25.0}) + "\n" + line + "\n")
    with pytest.raises(SystemExit, match=r"experiments\.py: line 2 of .*results\.jsonl is damaged"):
        experiments.main(["table", str(path)])


def test_lines_of_several_runs_do_not_mix(tmp_path):
    path, row = tmp_path / "results.jsonl", ROW | {"seed": 0, "single": 25.0}
    path.write_text(json.dumps(row))  # without the end of its line, as editors may leave it
    rows = [row | {"seed": seed, "variant": "long " * 3000} for seed in range(50)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: results.append_result(path, row), rows))
    assert sorted(row["seed"] for row in results.read_results(path)[1:]) == list(range(50))


@pytest.mark.parametrize("option", ["--validate", "--out"])
def test_files_that_do_not_fit_are_told_before_the_work(option, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "load_photos", lambda folder: pytest.fail("the work has begun"))
    torch.save(2 * (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),), tmp_path / "val_data.pkl")
    (tmp_path / "bad").write_bytes(b"PK no")
    (tmp_path / "folder").mkdir()
    command = ["run", "x", "--validate", str(tmp_path / "val_data.pkl"), "--out", str(tmp_path / "results.jsonl")]
    for path in ("bad", "folder", "bad/below"):
        with pytest.raises(SystemExit, match=rf"experiments\.py: .*{path}"):
            experiments.main([*command, option, str(tmp_path / path)])
    with pytest.raises(SystemExit, match=r"experiments\.py: .*missing"):
        experiments.main(["table", str(tmp_path / "missing.jsonl")])


class Brightness(torch.nn.Module):
    """The smallest network that learns."""

    multiple = 1
    first = last = torch.nn.Identity()

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images * self.factor


def test_averages_of_the_weights_differ_from_ours_after_as_few_pairs_as_the_variants_learn_from():
    """A decay of 0.999 would not: the average of a short training is over a tenth of its steps at most."""

    def averaged(recipe):
        training = Training(Brightness(), recipe, 0)
        images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for _ in range(7_800 // recipe.batch_size):
            training.step(images, images / 2, 1.0)
        training.finish()
        return training.network.factor.item()

    decays = [variant.recipe for variant in experiments.VARIANTS.values() if variant.recipe.keys() == {"ema_decay"}]
    scores = [averaged(Recipe(swap_pixels=False, **recipe)) for recipe in ({}, *decays)]
    assert len(set(scores)) == len(scores) == 4
