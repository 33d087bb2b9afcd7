"""The Noise2Noise paper's experiments: noise that keeps what its loss asks for, and only what is named is judged."""

import json
import math

import pytest
import torch

from Miniproject_1.model import Model, Recipe
from Miniproject_1.others import paper_noises
from Miniproject_1.others.data import render_scene
from Miniproject_1.others.metrics import psnr_of_each

Image = pytest.importorskip("PIL.Image")


def flat(value, count=40):
    return torch.full((count, 3, 64, 64), float(value))


@pytest.mark.parametrize(("kind", "level"), [("gaussian", 25.0), ("poisson", 30.0)])
@pytest.mark.parametrize("value", [3, 128, 252])
def test_noise_of_l2_keeps_the_mean(kind, level, value):
    noisy = paper_noises.noisy_version(flat(value), kind, level, torch.Generator().manual_seed(0))
    assert noisy.mean().item() == pytest.approx(value, abs=0.2)


def test_text_covers_about_as_much_as_it_is_told_and_leaves_the_rest():
    levels = torch.tensor([0.0, 0.1, 0.3, 0.5]).view(4, 1, 1, 1)
    clean = flat(100.5, 4)
    noisy = paper_noises.noisy_version(clean, "text", levels, torch.Generator().manual_seed(0))
    covered = (noisy != clean).any(1).float().mean((1, 2))
    assert covered[0] == 0 and (covered >= levels.flatten()).all() and (covered < levels.flatten() + 0.2).all()
    assert noisy.flatten(1)[1:].median().item() == 100.5
    again = paper_noises.noisy_version(clean, "text", levels, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)


def test_targets_of_bernoulli_noise_lack_what_is_lost():
    noisy = torch.tensor([[5.0, 0, 0], [0, 0, 7], [1, 0, 0]]).view(1, 3, 1, 3)
    target = paper_noises.target_of(noisy, "bernoulli")
    assert target.isnan().flatten().tolist() == 3 * [False, True, False]
    assert torch.equal(paper_noises.target_of(noisy, "gaussian"), noisy)


def test_missing_pixels_have_no_part_in_the_loss():
    model = Model(width=8, recipe=Recipe(swap_pixels=False, negatives=False), precision="float32")
    training = paper_noises.MaskedTraining(model.network, model.recipe, 0, "float32")
    noisy = torch.rand(2, 3, 8, 8)
    target = torch.full_like(noisy, math.nan)
    target[:, :, 2] = noisy[:, :, 2] + 0.25  # untrained, the network returns its input
    assert training.backward(noisy, target, 0.0).item() == pytest.approx(0.25**2, rel=1e-5)
    gradient = model.network.last.bias.grad
    assert torch.allclose(gradient, torch.full((3,), -2 * 0.25 / 3), rtol=1e-4)


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        scene = render_scene(number, side=72).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(scene).save(tmp_path / f"{number}.png")
    (tmp_path / "names.txt").write_text("1.png\n")
    return tmp_path


def test_every_run_is_recorded_once_and_what_is_judged_is_not_learnt_from(photos, monkeypatch):
    seen = {}

    def run(name, target, learnt_from, judged_on, number, seed):
        seen[name, target] = learnt_from, judged_on, number, seed
        return {"noisy": 1.0, "single": 2.0, "seconds": 3.0}

    monkeypatch.setattr(paper_noises, "run", run)
    command = [str(photos), "--names", f"{photos}/names.txt", "--out", f"{photos}/out.jsonl", "--pairs", "8"]
    paper_noises.main(command)
    rows = [json.loads(line) for line in (photos / "out.jsonl").read_text().splitlines()]
    assert [(row["experiment"], row["target"]) for row in rows] == list(seen) and len(seen) == 14
    for learnt_from, judged_on, number, seed in seen.values():
        assert len(learnt_from) == 3 and number == 8 and seed == 0
        assert [torch.equal(photo, render_scene(1, side=72)) for photo in judged_on] == [True]
        assert not any(torch.equal(photo, judged_on[0]) for photo in learnt_from)
    seen.clear()
    (photos / "out.jsonl").write_text("\n" + (photos / "out.jsonl").read_text())
    paper_noises.main(command)
    assert not seen
    paper_noises.main([*command, "--seeds", "0", "1", "--only", "Gaussian 25"])
    assert list(seen) == [("Gaussian 25", "noisy"), ("Gaussian 25", "clean")]
    (photos / "names.txt").write_text("none.png\n")
    with pytest.raises(SystemExit, match="0 are named"):
        paper_noises.main(command)


@pytest.mark.parametrize(("name", "target"), [("Gaussian 25", "noisy"), ("Bernoulli, half", "noisy")])
def test_a_run_learns(name, target, monkeypatch):
    monkeypatch.setattr(paper_noises, "Model", lambda **options: Model(width=8, **options))
    scenes = [render_scene(number, side=72) for number in range(8)]
    row = paper_noises.run(name, target, scenes[1:], scenes[:1], 160, 0)
    assert row["single"] > row["noisy"] + 1 and row["loss"] == "l2"
    experiment = paper_noises.EXPERIMENTS[name]
    noisy = paper_noises.noisy_version(
        scenes[0][None], experiment.kind, experiment.tested, torch.Generator().manual_seed(0)
    )
    assert row["noisy"] == pytest.approx(psnr_of_each(noisy, scenes[0][None].float()).item(), abs=1e-3)


def test_clean_targets_are_the_crops_and_losses_are_the_papers():
    scenes = [render_scene(0, side=72)]
    experiment = paper_noises.EXPERIMENTS["Gaussian 25"]
    noisy, clean = paper_noises.draw(scenes, experiment, "clean", 6, 0)
    again, target = paper_noises.draw(scenes, experiment, "noisy", 6, 0)
    assert torch.equal(noisy, again)
    for levels in (noisy - clean, target - clean):
        assert levels.std().item() == pytest.approx(25, rel=0.03)
    assert torch.isin(clean, scenes[0].float()).all()
    assert not torch.equal(noisy, target)
    losses = {name: experiment.loss for name, experiment in paper_noises.EXPERIMENTS.items()}
    assert (
        losses.pop("text, a quarter") == "l1"
        and losses.pop("impulses, half") == "l0"
        and set(losses.values()) == {"l2"}
    )
