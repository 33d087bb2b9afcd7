"""The command that trains the shipped weights: it goes on, exactly, where it was stopped."""

import pytest
import torch

from Miniproject_1.model import Model
from Miniproject_1.others import data, train_best


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on procedural pictures; gives the weights it wrote, flattened."""
    monkeypatch.setattr(train_best, "load_photos", lambda folder: [data.render_scene(1, side=64)])

    def call(name, options=()):
        path = tmp_path / name
        sizes = ["--width", "8", "--blocks", "1", "--inner-blocks", "1"]
        train_best.main([str(tmp_path), "--out", str(path), "--pairs", "96", "--round", "32", *sizes, *options])
        model = Model()
        model.load(path)
        return model, torch.cat([p.detach().flatten() for p in model.network.parameters()])

    return call


def test_stopped_training_continues_exactly(run, monkeypatch):
    _, straight = run("straight.pth")
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(train_best, "report", stop)  # after the first round's checkpoint
        with pytest.raises(KeyboardInterrupt):
            run("stopped.pth")
    model, continued = run("stopped.pth")
    assert torch.equal(continued, straight)
    assert model.pairs_seen == 96


def test_finished_training_stays_as_it_is(run):
    _, first = run("a.pth")
    _, again = run("a.pth")
    assert torch.equal(first, again)


@pytest.mark.parametrize("options", [["--inputs", "2"], ["--draws", "1"], ["--other-noise", "0.25"]], ids=str)
def test_what_is_drawn_is_learnt_from(run, options):
    _, default = run("default.pth")
    _, other = run("other.pth", options=options)
    assert not torch.equal(default, other)


def test_a_share_of_a_round_has_other_noise(tmp_path):
    command = [str(tmp_path), "--out", "x", "--pairs", "1", "--round", "40", "--draws", "2", "--other-noise", "0.25"]
    flat = torch.full((3, 64, 64), 100, dtype=torch.uint8)  # without other noise, every draw is the same
    noisy, others = train_best.draw_round([flat], 0, train_best.parse_arguments(command))
    assert noisy.shape == others.shape == (40, 3, 32, 32)
    assert (noisy[:30] == 100).all() and (others == 100).all()
    assert 4 <= (noisy[30:] != 100).flatten(1).any(1).sum() <= 9  # a fifth of them are means of draws


@pytest.mark.parametrize(("options", "exchange"), [((1, 0), True), ((8, 0), False), ((1, 0.1), False)])
def test_only_draws_of_the_same_noise_exchange_pixels(options, exchange):
    draws, other = map(str, options)
    command = ["x", "--out", "x", "--pairs", "1", "--draws", draws, "--other-noise", other]
    assert train_best.make_model(train_best.parse_arguments(command)).recipe.exchange == exchange


def test_larger_network_grows_from_the_weights_of_a_smaller_one(run, tmp_path):
    small, _ = run("small.pth")
    command = [str(tmp_path), "--out", "x", "--pairs", "1", "--start", str(tmp_path / "small.pth")]
    noisy = torch.rand(2, 3, 16, 16) * 255
    for larger in ([], ["--blocks", "2", "--inner-blocks", "3", "--gates"]):
        grown = train_best.make_model(train_best.parse_arguments([*command, *larger]))
        torch.testing.assert_close(grown.predict(noisy), small.predict(noisy))
    assert grown.pairs_seen == small.pairs_seen
    assert len(list(grown.network.parameters())) > len(list(small.network.parameters()))
