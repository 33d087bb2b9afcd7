"""The command that trains the shipped weights: it goes on, exactly, where it was stopped."""

import pytest
import torch

from Miniproject_1.others import data
from Miniproject_2.model import Model, Pairs
from Miniproject_2.others import train_best


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on a procedural picture; gives the model it wrote and its weights, flattened."""
    monkeypatch.setattr(train_best, "load_photos", lambda folder: [data.render_scene(1, side=64)])
    validation = tmp_path / "val_data.pkl"
    torch.save(data.noisy_and_clean(data.render_scene(2, side=64), 2, seed=0), validation)

    def call(name, draws, *options):
        path = tmp_path / name
        options = options or ("--width", "16", "--deep-width", "24")
        often = ["--pairs", "96", "--round", "32", "--batch-size", "16", "--draws", str(draws), "--negatives", "0.5"]
        train_best.main([str(tmp_path), "--out", str(path), "--validate", str(validation), *often, *options])
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

        patch.setattr("Miniproject_1.others.train_best.validation_psnr", stop)  # after the first round's checkpoint
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


def test_a_training_begins_with_given_weights(run, tmp_path, monkeypatch):
    first, weights = run("first.pth", 1)
    monkeypatch.setattr(train_best.Training, "step", lambda self, *_: torch.zeros(()))
    second, same = run("second.pth", 1, "--start", str(tmp_path / "first.pth"))
    assert torch.equal(same, weights) and second.architecture == first.architecture
    assert second.pairs_seen == first.pairs_seen + 96
    with pytest.raises(SystemExit, match="leave out --width, --deep-width, --kernel"):
        sizes = ["--width", "24", "--deep-width", "48", "--kernel", "6"]
        run("third.pth", 1, "--start", str(tmp_path / "first.pth"), *sizes)


def test_a_share_of_the_pairs_has_one_colour(run, monkeypatch):
    seen = []

    def recorded(noisy_a, noisy_b, device):
        assert torch.equal(noisy_a[:8], noisy_b[:8]) and not torch.equal(noisy_a[8:], noisy_b[8:])
        assert noisy_a.flatten(2).float().std(2).gt(0).any(1).tolist() == 8 * [False] + 24 * [True]
        seen.append(noisy_a[:8, :, 0, 0])
        return Pairs(noisy_a, noisy_b, device)

    monkeypatch.setattr(train_best, "Pairs", recorded)
    run("new.pth", 4, "--flat-pairs", "0.25", "--width", "16")
    assert len(torch.cat(seen).unique(dim=0)) == 24  # other colours in each round
    assert {0, 255} < set(torch.cat(seen).flatten().tolist())


def test_the_rate_rises_and_falls_over_shares_of_the_pairs():
    assert [train_best.lr_factor(done, 0.2, 0.5) for done in (0, 0.1, 0.3, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert [train_best.lr_factor(done, 0, 0) for done in (0, 0.5, 1)] == [1, 1, 1]


def test_a_run_that_diverges_leaves_finite_weights(run, tmp_path):
    with pytest.raises(SystemExit, match=r"the loss is (nan|inf)"):
        run("a.pth", 1, "--width", "16", "--deep-width", "24", "--lr", "1e30")
    Model().load(tmp_path / "a.pth")  # of a round before


def test_weights_that_are_not_for_photographs_are_refused(run, tmp_path):
    Model(in_channels=1, width=8, deep_width=16).save(tmp_path / "grey.pth")
    with pytest.raises(SystemExit, match="--start must be for photographs"):
        run("a.pth", 1, "--start", str(tmp_path / "grey.pth"))
