"""The experiment command of project 2: every variant learns, with the optimiser and the network that it names."""

import pytest

from Miniproject_1.others import data
from Miniproject_1.others.metrics import psnr
from Miniproject_2 import model as ours
from Miniproject_2.others import experiments


@pytest.fixture(scope="module")
def photos():
    return [data.render_scene(seed, side=64) for seed in range(2)]


@pytest.mark.parametrize("name", experiments.VARIANTS)
def test_every_variant_learns_and_is_scored(photos, name):
    validation = data.noisy_and_clean(photos[0], 2, seed=0)
    row = experiments.run(name, 0, photos, 16, 1, validation)
    assert row["parameters"] > 1000 and row["multiply_adds"] > 1e6 and row["seconds"] > 0
    fresh = experiments.make_model(experiments.VARIANTS[name], 0)
    assert round(psnr(fresh.predict(validation[0], ensemble=False), validation[1]), 3) != row["single"]
    assert 5 < row["single"] < 60 and 5 < row["ensemble"] < 60


@pytest.mark.parametrize(("name", "kind"), [("ours", ours.Muon), ("Adam 0.001", ours.Adam), ("momentum 1", ours.SGD)])
def test_the_named_optimiser_learns(name, kind):
    model = experiments.make_model(experiments.VARIANTS[name], 0)
    training = ours.Training(model.network, model.recipe, 0, 1)
    assert type(training.optimiser) is kind and (kind is ours.Adam or training.optimiser.momentum in (0.9, 0.95))


def test_multiply_adds_by_hand():
    network = ours.Model(device="cpu", width=8, deep_width=16).network
    first, second = 16 * 16 * 3 * 8 * 4**2, 8 * 8 * 8 * 16 * 4**2
    assert experiments.multiply_adds(network) == 2 * (first + second)
