"""The command that trains the shipped weights: it goes on, exactly, where it was stopped."""

import pytest
import torch

from Miniproject_1.others import data
from Miniproject_2.model import Model
from Miniproject_2.others import train_best


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on a procedural picture; gives the model it wrote and its weights, flattened."""
    monkeypatch.setattr(train_best, "load_photos", lambda folder: [data.render_scene(1, side=64)])
    validation = tmp_path / "val_data.pkl"
    torch.save(data.noisy_and_clean(data.render_scene(2, side=64), 2, seed=0), validation)

    def call(name, draws):
        path = tmp_path / name
        sizes = ["--pairs", "96", "--round", "32", "--batch-size", "16", "--draws", str(draws), "--negatives", "0.5"]
        sizes += ["--width", "16", "--deep-width", "24"]
        train_best.main([str(tmp_path), "--out", str(path), "--validate", str(validation), *sizes])
        model = Model()
        model.load(path)
        return model, torch.cat([parameter.flatten() for parameter, _ in model.network.param()])

    return call


@pytest.mark.parametrize("draws", [1, 4])
def test_stopped_training_continues_exactly(run, monkeypatch, draws):
    _, straight = run("straight.pth", draws)
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(train_best, "report", stop)  # after the first round's checkpoint
        with pytest.raises(SystemExit, match="130"):
            run("stopped.pth", draws)
    model, continued = run("stopped.pth", draws)
    assert torch.equal(continued, straight)
    assert model.pairs_seen == 96 and (model.architecture.width, model.architecture.deep_width) == (16, 24)
    fresh = Model(width=16, deep_width=24)
    assert not torch.equal(continued, torch.cat([p.flatten() for p, _ in fresh.network.param()]))


def test_a_share_of_the_batches_is_negatives(run, monkeypatch):
    seen, step = [], train_best.Training.step

    def recorded(training, noisy_a, noisy_b, factor):
        seen.append((noisy_a.mean() - noisy_b.mean()).abs().item() < 0.1 and noisy_a.mean().item())
        return step(training, noisy_a, noisy_b, factor)

    monkeypatch.setattr(train_best.Training, "step", recorded)
    monkeypatch.setattr(train_best, "load_photos", lambda folder: [torch.full((3, 64, 64), 51, dtype=torch.uint8)])
    run("new.pth", 1)
    assert {round(mean, 1) for mean in seen} == {0.2, 0.8}
