"""Project 1's model: its API, its training recipe and its weights file."""

import ast
import copy
import functools
import itertools
import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from Miniproject_1 import model as project
from Miniproject_1.model import NETWORKS, ORIGINAL_RECIPE, Model, Recipe, Training

ROOT = Path(__file__).resolve().parents[2]
SHORT = Recipe(min_steps=8, min_pairs=0)  # as many passes as asked for, in few steps
find_device = project.default_device


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """These tests compare exactly, so they run on the CPU also where there is a GPU; for that see test_cuda.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "default_device", lambda: torch.device("cpu"))
        yield


def smooth_images(count, height=32, width=32, seed=0):
    """Clean images (count, 3, height, width) in [0, 255] that a denoiser can learn."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 255
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


def noisy_versions(clean, seed=0, sigma=25.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple((clean + sigma * torch.randn(clean.shape, generator=generator)).clamp(0, 255) for _ in range(2))


def squared_error(images, clean):
    return (images - clean).square().mean().item()


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.fixture(scope="module")
def trained(on_the_cpu):
    """A small network with gates that has learnt from 64 pairs of 32 x 32."""
    model = Model(width=8, gates=True)
    model.train(*noisy_versions(smooth_images(64)), epochs=6)
    return model


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 5), (33, 47)])
def test_predict_takes_any_size(network, size):
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    for ensemble in (None, True, False):
        result = Model(network).predict(images, ensemble)
        assert result.shape == images.shape and result.dtype == torch.float32
        assert result.isfinite().all() and result.min() >= 0 and result.max() <= 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64])
def test_predict_takes_any_real_type_and_layout(trained, dtype):
    images = torch.randint(0, 256, (3, 3, 12, 10)).to(dtype)
    expected = trained.predict(images.float())
    assert torch.equal(trained.predict(images), expected)
    strided = images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    assert torch.equal(trained.predict(strided), expected)


def test_predict_gives_plain_tensors_and_leaves_its_input_alone(trained):
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    before = images.detach().clone()
    result = trained.predict(images)
    assert not result.requires_grad
    result /= 255  # an inference tensor would refuse this
    assert torch.equal(images.detach(), before)


@pytest.mark.parametrize("size", [(5, 21), (40, 33), (290, 6)])
def test_a_border_is_mirrored_around_an_image(size, monkeypatch):
    """Also one wider than the image, and where there are tiles."""
    monkeypatch.setattr(project, "TILE", 192)
    model, bordered = (Model(width=8, border=border, precision="float32") for border in (0, 8))
    torch.nn.init.normal_(model.network.last.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    bordered.network.load_state_dict(model.network.state_dict())
    images = around = 255 * torch.rand(2, 3, *size)
    for axis in (2, 3):
        turns = torch.cat(4 * [around, around.flip(axis)], axis)
        around = turns.narrow(axis, 4 * images.shape[axis] - 8, images.shape[axis] + 16)
    expected = model.predict(around, ensemble=False)[:, :, 8:-8, 8:-8]
    torch.testing.assert_close(bordered.predict(images, ensemble=False), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"border": 3}, "a multiple of 2"),
        ({"border": -2}, "at least 0"),
        ({"border": 8, "gates": True}, "a multiple of 32"),
    ],
)
def test_borders_that_would_move_the_grid_of_cells_are_refused(sizes, rule):
    with pytest.raises(ValueError, match=f"border must be {rule}"):
        Model(width=8, **sizes)


def test_predict_does_not_round(trained):
    result = trained.predict(smooth_images(2))
    assert (result != result.round()).any()


def test_batches_and_chunks_do_not_change_a_prediction(trained, monkeypatch):
    images = smooth_images(7, 16, 12)
    whole = trained.predict(images)
    monkeypatch.setattr(project, "CHUNK", 2 * 16 * 12)
    torch.testing.assert_close(trained.predict(images), whole)
    torch.testing.assert_close(torch.cat([trained.predict(image[None]) for image in images]), whole)


def test_tiles_change_next_to_nothing(trained, monkeypatch):
    images = noisy_versions(smooth_images(1, 150, 301))[0]
    shipped = Model(precision="float32")
    shipped.load_pretrained_model()
    whole, of_shipped = trained.predict(images), shipped.predict(images)
    monkeypatch.setattr(project, "TILE", 192)
    torch.testing.assert_close(trained.predict(images), whole, atol=0.05, rtol=0)
    difference = (shipped.predict(images) - of_shipped).abs()  # its gates know a little of what is farther away
    assert difference.mean() < 0.1 and difference.max() < 5  # grey values, where the noise has 25


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        ("residual_unet", {"width": 8}),
        ("residual_unet", {"width": 8, "levels": 3, "blocks": 1, "inner_blocks": 4}),
        ("residual_unet", {"width": 8, "levels": 4, "blocks": 2, "inner_blocks": 1}),
        ("unet", {"width": 2}),
        ("noise2noise", {"width": 2}),
    ],
)
@torch.no_grad()
def test_networks_see_as_far_as_their_reach(network, sizes):
    """A dot spreads through positive weights; where it is on the grid of the lower resolutions tells how far."""
    network = Model(network, **sizes).network.double()
    for parameter in network.parameters():
        parameter.fill_(1 / parameter[0].numel() if parameter.ndim == 4 else 0)
    size, step = 512, network.multiple
    grey = torch.full((1, 3, 32, size), 0.5, dtype=torch.float64)
    before, spread = network(grey), []
    for at in range(256, 256 + step):
        dot = grey.clone()
        dot[:, :, :, at] = 1.0
        changed = (network(dot) != before).any(2).any(1)[0].nonzero()
        spread.append((changed - at).abs().max().item())
    assert max(spread) == network.reach


@pytest.mark.parametrize("weights", sorted(path.name for path in project.PRETRAINED.parent.glob("*.pth")))
def test_shipped_networks_have_tiles_of_704_pixels(weights):
    tiling = project.Tiling.of(Model(**project.read_weights(project.PRETRAINED.with_name(weights))["sizes"]).network)
    assert tiling == project.Tiling(side=704, overlap=128, margin=56)


@pytest.mark.parametrize("network", ["unet", "noise2noise"])
def test_tiles_of_the_original_networks_do_not_show(network, monkeypatch):
    image, model = noisy_versions(smooth_images(1, 1000, 33))[0], Model(network, width=8, precision="float32")
    tiles = model.predict(image, False)
    assert len(project.Tiling.of(model.network).starts(1000)) == 2
    monkeypatch.setattr(project, "TILE", 4096)
    torch.testing.assert_close(tiles, model.predict(image, False), atol=0.02, rtol=0)


def gating_block():
    block = project.ResidualBlock(8, cell=16)
    torch.nn.init.normal_(block.gate.weight, generator=torch.Generator().manual_seed(0))
    return block


@torch.no_grad()
def test_gates_of_a_small_image_know_its_means():
    block, hidden = gating_block(), torch.rand(2, 8, 23, 9)
    weight = block.gate.weight.flatten(1)
    gates = 2 * (hidden.mean(dim=(2, 3)) @ weight.T).sigmoid()
    torch.testing.assert_close(block.gated(hidden), hidden * gates[:, :, None, None])


@torch.no_grad()
def test_gates_of_a_large_image_know_what_is_around():
    block, hidden = gating_block(), torch.rand(1, 8, 16, 128)
    expected = block.gated(hidden[..., :16])
    torch.testing.assert_close(block.gated(hidden)[..., :8], expected[..., :8])  # up to the middle of the first cell
    tile = block.gated(hidden[..., 32:])
    torch.testing.assert_close(tile[..., 8:], block.gated(hidden)[..., 40:])
    elsewhere = hidden.clone()
    elsewhere[..., 64:] = 0
    torch.testing.assert_close(block.gated(elsewhere)[..., :56], block.gated(hidden)[..., :56])
    assert not torch.allclose(block.gated(elsewhere)[..., 56:64], block.gated(hidden)[..., 56:64])


def test_tiles_go_to_the_device_one_at_a_time(trained, monkeypatch):
    sizes = []
    original = Model._denoise
    monkeypatch.setattr(Model, "_denoise", lambda self, x, e: sizes.append(x.shape[2:]) or original(self, x, e))
    trained.predict(torch.zeros(1, 3, 710, 1290))
    assert len(sizes) == 2 * 3 and all(max(size) <= 704 for size in sizes)


@pytest.mark.parametrize("size", [1, 128, 129, 703, 704, 705, 1280, 1281, 4000])
def test_tiles_cover_everything_and_overlap(size):
    tiling = project.Tiling.of(Model().network)
    starts = list(tiling.starts(size))
    covered = {i for start in starts for i in range(start, min(size, start + tiling.side))}
    assert covered == set(range(size))
    assert all(b - a == 576 for a, b in itertools.pairwise(starts))
    assert all(start % 32 == 0 for start in starts)
    total = torch.zeros(size)
    for start in starts:
        total[start : start + tiling.side] += tiling.weights(start, size)
    torch.testing.assert_close(total, torch.ones(size))


def largest_turn(model, images, ensemble):
    """How much the prediction changes, at most, if the images are turned before and back after it."""
    straight = model.predict(images, ensemble)
    turns = [(project.apply_d4(images, symmetry), symmetry) for symmetry in project.D4]
    back = [project.invert_d4(model.predict(turned, ensemble), symmetry) for turned, symmetry in turns]
    return max((image - straight).abs().max().item() for image in back)


def test_trained_network_turns_its_output_with_its_input(trained, monkeypatch):
    monkeypatch.setattr(trained, "precision", "float32")  # bfloat16 rounds otherwise where it sums in another order
    images = noisy_versions(smooth_images(2, 10, 14))[0]
    assert largest_turn(trained, images, ensemble=False) < 1e-2
    free = Model(width=8, equivariant=False)
    free.train(*noisy_versions(smooth_images(64)), epochs=1)
    assert largest_turn(free, images, ensemble=False) > 0.1
    with pytest.raises(ValueError, match="multiple of 8"):
        Model(width=12)


def test_ensemble_turns_the_output_of_any_network_with_its_input():
    model = Model(width=12, equivariant=False)
    model.train(*noisy_versions(smooth_images(64)), epochs=1)
    assert largest_turn(model, noisy_versions(smooth_images(2, 10, 14))[0], ensemble=True) < 1e-2


def test_ensemble_of_an_equivariant_network_commutes_with_negatives_and_channel_order(trained, monkeypatch):
    monkeypatch.setattr(trained, "chosen_views", None)
    images = noisy_versions(smooth_images(2, 10, 14))[0]
    together = trained.predict(images, ensemble=True)
    for ensemble, close in ((True, True), (False, False)):
        straight = trained.predict(images, ensemble)
        for other in (255 - trained.predict(255 - images, ensemble), trained.predict(images.flip(1), ensemble).flip(1)):
            assert torch.allclose(other, straight, atol=1e-2) is close
    assert not torch.equal(together, trained.predict(images, ensemble=False))


def test_orbits_share_a_weight_out_evenly():
    entries = project.orbits((16, 8, 3, 3), 8, 8)
    assert entries.shape == (8, 16 * 8 * 9 // 8)
    assert torch.equal(entries.flatten().sort().values, torch.arange(16 * 8 * 9))


def test_symmetrised_parameters_are_means_over_orbits_and_so_are_their_gradients():
    layer = project.conv(3, 16)
    layer.make_equivariant(out_group=8, in_group=1)
    weight, bias = layer.weight_and_bias()
    entries = project.orbits(weight.shape, 8, 1)
    assert all(weight.flatten()[orbit].std() < 1e-6 for orbit in entries.T)
    assert not torch.allclose(weight[:, 0], weight[:, 1])  # the channels of images stay apart
    (weight * torch.randn(weight.shape)).sum().backward()
    assert all(layer.weight.grad.flatten()[orbit].std() < 1e-6 for orbit in entries.T)
    with torch.no_grad():
        layer.weight.add_(torch.randn(weight.shape))  # no step of training can forget it
        layer.bias.copy_(torch.arange(16.0))
    again, bias = layer.weight_and_bias()
    torch.testing.assert_close(again.mean(), layer.weight.mean())
    assert all(again.flatten()[orbit].std() < 1e-6 for orbit in entries.T)
    assert bias.tolist() == 8 * [3.5] + 8 * [11.5]


def test_projection_is_its_own_adjoint():
    numbers = project.orbits((8, 8, 3, 3), 8, 8)
    layer = project.conv(8, 8)
    layer.make_equivariant()
    assert numbers.numel() == layer.weight.numel()
    values = torch.randn(8, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: project.Symmetrise.apply(x, layer.entries, layer.orbit), values)


def test_ensemble_is_left_to_the_size_by_default(trained):
    small, large = smooth_images(1, 64, 64), smooth_images(1, 64, 66)
    assert torch.equal(trained.predict(small), trained.predict(small, ensemble=True))
    assert torch.equal(trained.predict(large), trained.predict(large, ensemble=False))
    assert not torch.equal(trained.predict(small), trained.predict(small, ensemble=False))


def test_an_untrained_model_returns_its_input():
    images = torch.rand(2, 3, 9, 11) * 255
    torch.testing.assert_close(Model().predict(images), images)


def test_symmetries_are_eight_different_ones_with_inverses():
    images = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    turned = [project.apply_d4(images, symmetry) for symmetry in project.D4]
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    for symmetry, image in zip(project.D4, turned, strict=True):
        assert torch.equal(project.invert_d4(image, symmetry), images)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_augmentation_transforms_both_images_of_a_pair_alike(size):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(9, 3, *size)
    seen = set()
    for _ in range(64):
        x, y = project.flip_and_transpose(a, a + 1, generator)
        torch.testing.assert_close(y, x + 1)
        assert sorted(x.flatten().tolist()) == sorted(a.flatten().tolist())
        first = [s for s in project.D4 if torch.equal(project.apply_d4(a[:1], s), x[:1])]
        seen.add(first[0])
    assert seen == set(project.D4)  # the first image meets all eight


def test_report_augmentation_only_flips():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 3, 5)
    for _ in range(32):
        assert project.flip_and_transpose(a, a, generator, transpose=False)[0].shape == a.shape


def test_exchange_swaps_whole_pixels_half_the_time():
    a, b = torch.zeros(4, 3, 50, 50), torch.ones(4, 3, 50, 50)
    x, y = project.swap_pixels(a, b, torch.Generator().manual_seed(0))
    assert torch.equal(x + y, a + b)
    assert torch.equal(x.amax(1), x.amin(1))
    assert x.mean().item() == pytest.approx(0.5, abs=0.02)


def test_half_of_the_pairs_become_negatives():
    a, b = torch.rand(40, 3, 2, 2), torch.rand(40, 3, 2, 2)
    x, y = project.half_negative(a, b, torch.Generator().manual_seed(0))
    negative = torch.isclose(x, 1 - a).flatten(1).all(1)
    assert 10 < negative.sum() < 30
    assert torch.equal(x[~negative], a[~negative]) and torch.equal(y[~negative], b[~negative])
    assert torch.allclose(y[negative], 1 - b[negative])


def test_loss_weights_images_by_their_noise():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.tensor([0.1, 0.4]).view(2, 1, 1, 1).expand_as(a)
    plain = project.noise2noise_loss(a, a, b, variance_floor=None)
    assert plain.item() == pytest.approx((0.01 + 0.16) / 2)
    weighted = project.noise2noise_loss(a, a, b, variance_floor=0.02)
    assert weighted.item() == pytest.approx((0.01 * 0.02 / 0.025 + 0.16 * 0.02 / 0.1) / 2)


def test_an_image_that_goes_wrong_cannot_outweigh_the_others():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    for error in (0.0, 0.1, 1.0, 10.0, 1e3):  # the noisy image itself has 0.1
        loss = project.noise2noise_loss(b + error, a, b, variance_floor=0.02)
        assert loss.item() == pytest.approx(error**2 * 0.02 / (max(0.01, error**2) / 2 + 0.02))
    assert loss.item() == pytest.approx(2 * 0.02, rel=1e-3)  # at most


def test_powers_are_least_at_mean_median_and_mode():
    noisy = torch.tensor([0.2, 0.2, 0.3, 0.4, 1.0]).view(5, 1, 1, 1)
    guesses = torch.arange(101) / 100
    for power, best in ((2, 0.42), (1, 0.3), (0.05, 0.2)):
        losses = torch.stack([project.power_loss(guess, noisy, power) for guess in guesses])
        assert guesses[losses.argmin()].item() == pytest.approx(best)


def test_l0_leaves_no_pixel_all_the_say():
    """Errors of a float32's last digit must not outweigh those of a grey value, at any power."""
    for power in (1.5, 1.0, 0.5, 1e-4):
        prediction = torch.tensor([1e-7, 1 / 255], requires_grad=True)
        loss = project.power_loss(prediction, torch.zeros(2), power)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert loss.isfinite() and 0 < gradient[0] < 10 * gradient[1]


def psnr_after(noise, loss, clean, epochs, width):
    """Mean PSNR of what is learnt from two noisy versions of clean images, on fresh noise."""
    model = Model(width=width, recipe=Recipe(loss=loss))
    model.train(noise(clean, 1), noise(clean, 2), epochs)
    errors = (model.predict(noise(clean, 3), False) - clean).div(255).square().mean((1, 2, 3))
    return -10 * errors.log10().mean().item()


def impulses(clean, seed):
    """60 % of the pixels have a random colour."""
    generator = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(clean), 1, *clean.shape[2:], generator=generator) < 0.6
    return torch.where(hit, 255 * torch.rand(clean.shape, generator=generator), clean)


def white_dashes(clean, seed):
    """A quarter of the pixels is covered by short white lines."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(len(clean), 1, *clean.shape[2:], generator=generator) < 0.06
    return clean.masked_fill(F.max_pool2d(start.float(), (1, 5), 1, (0, 2)) > 0, 255)


def test_the_mode_ignores_impulses_and_the_mean_does_not():
    tones = torch.rand(64, 1, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    clean = 30 + 200 * F.interpolate(tones.float(), (16, 16)).expand(-1, 3, -1, -1)
    mean, mode = (psnr_after(impulses, loss, clean, 40, 16) for loss in ("l2", "l0"))
    assert mode > mean + 2


def test_the_median_ignores_overlaid_lines_and_the_mean_does_not():
    mean, median = (psnr_after(white_dashes, loss, smooth_images(64), 8, 8) for loss in ("l2", "l1"))
    assert median > mean + 2


def test_newton_schulz_brings_singular_values_near_one():
    matrices = torch.randn(3, 24, 216, generator=torch.Generator().manual_seed(0))
    for m in (matrices, matrices.mT):
        values = torch.linalg.svdvals(project.newton_schulz(m))
        assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize(
    ("network", "sizes"),
    [("residual_unet", {}), ("residual_unet", {"equivariant": False}), ("unet", {}), ("noise2noise", {})],
)
def test_bfloat16_learns_as_well(monkeypatch, network, sizes):
    clean, errors = smooth_images(64), []
    for native in (False, True):
        monkeypatch.setattr(project, "has_native_bfloat16", lambda device, native=native: native)
        model = Model(network, width=8, recipe=SHORT, **sizes)
        model.train(*noisy_versions(clean), epochs=12)
        assert {p.dtype for p in model.network.parameters()} == {torch.float32}
        errors.append(squared_error(model.predict(noisy_versions(clean)[0]), clean))
    assert errors[0] != errors[1]  # the rounding shows
    assert errors[1] < 1.05 * errors[0]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2},
        {"muon_lr": 0},
        {"muon_lr": 1e-3},
        {"adam_lr": 1e-3},
        {"constant_lr": True},
        {"ema_decay": 0},
        {"min_steps": 256},
        {"min_pairs": 0},
        {"flips": False},
        {"transpose": False},
        {"swap_pixels": True},
        {"both_directions": False},
        {"negatives": False},
        {"variance_floor": None},
        {"loss": "l1"},
        {"loss": "l0"},
    ],
    ids=str,
)
def test_every_setting_of_the_recipe_counts(change):
    assert not torch.allclose(weights_learnt_by(), weights_learnt_by(**change))


@functools.cache
def weights_learnt_by(**settings):
    model = Model(width=8, recipe=Recipe(**({"batch_size": 1, "min_steps": 1} | settings)))
    model.train(*noisy_versions(smooth_images(64, 4, 8)), epochs=4)  # batches of 32 or less
    return weights(model)


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0},
        {"ema_decay": 1.0},
        {"muon_lr": -1e-3},
        {"muon_lr": math.nan},
        {"muon_lr": math.inf},
        {"min_steps": -1},
        {"adam_lr": 0},
        {"variance_floor": -1.0},
        {"loss": "l3"},
    ],
)
def test_settings_that_cannot_learn_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        Recipe(**setting)


def test_an_interrupted_step_leaves_no_gradient_for_the_next_call(trained):
    a, b = noisy_versions(smooth_images(8))
    learnt = []
    for interrupted in (False, True):
        model = copy.deepcopy(trained)
        if interrupted:
            model.network(torch.rand(1, 3, 8, 8)).sum().backward()
        model.train(a, b, 1)
        learnt.append(weights(model))
    assert torch.equal(*learnt)


def test_a_copy_of_an_equivariant_model_stays_so(trained):
    model = copy.deepcopy(trained)
    model.train(*noisy_versions(smooth_images(64)), 1)
    model.precision = "float32"  # bfloat16 may round a turned image to another neighbour
    assert largest_turn(model, noisy_versions(smooth_images(2, 10, 14))[0], False) < 0.01


def test_muon_agrees_with_torch():
    """torch.optim.Muon iterates in bfloat16: the steps agree to its precision."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.zeros(8, 24)) for _ in range(2))
    mine = project.Muon([ours], lr=0.1)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(8, 24, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_rate_rises_then_falls_to_zero():
    rates = [project.lr_factor(step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 20 < peak < 100 and 0 < rates[-1] < 0.01 and max(rates) > 0.9
    assert project.lr_factor(0, 1) > 0.5  # a single step learns too


def test_the_weight_of_an_image_has_no_gradient():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    prediction = (b + 1).requires_grad_()
    project.noise2noise_loss(prediction, a, b, variance_floor=0.02).backward()
    expected = torch.full_like(b, 2 / b.numel() * 0.02 / (0.5 + 0.02))
    torch.testing.assert_close(prediction.grad, expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_learns_by_its_report_recipe(network):
    clean = smooth_images(64)
    a, b = noisy_versions(clean)
    model = Model(network, recipe=ORIGINAL_RECIPE)
    model.train(a, b, 1)
    first = (model.predict(a, False) - b).square().mean()
    model.train(a, b, 2)
    assert (model.predict(a, False) - b).square().mean() < first


def test_one_epoch_of_few_pairs_denoises():
    clean = smooth_images(40)
    a, b = noisy_versions(clean)
    model = Model()
    model.train(a, b, 1)
    fresh = noisy_versions(clean, seed=1)[0]
    assert squared_error(model.predict(fresh), clean) < 0.5 * squared_error(fresh, clean)


def test_one_pair_teaches():
    clean = smooth_images(1, 70, 90)
    a, b = noisy_versions(clean)
    model = Model(width=8)
    model.train(a, b, 60)
    fresh = noisy_versions(clean, seed=1)[0]
    assert squared_error(model.predict(fresh), clean) < 0.5 * squared_error(fresh, clean)


@pytest.mark.parametrize("shape", [(3, 3, 1, 1), (5, 3, 7, 5), (2, 3, 70, 40), (7, 3, 65, 129)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_training_takes_any_size_and_number(shape, dtype):
    a, b = (torch.randint(0, 256, shape).to(dtype) for _ in range(2))
    model = Model(width=8, recipe=SHORT)
    before = weights(model)
    model.train(a, b, 1)
    assert weights(model).isfinite().all() and not torch.equal(weights(model), before)


def test_three_ways_to_say_epochs(trained):
    a, b = noisy_versions(smooth_images(8))
    results = []
    for arguments, options in [((2,), {}), ((), {"epochs": 2}), ((), {"num_epochs": 2})]:
        model = Model(width=8, recipe=SHORT)
        model.train(a, b, *arguments, **options)
        results.append(weights(model))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_training_is_deterministic_and_follows_the_seed():
    a, b = noisy_versions(smooth_images(8))
    results = []
    for seed in (1, 1, 2):
        model = Model(width=8, seed=seed, recipe=SHORT)
        model.train(a, b, 1)
        results.append(weights(model))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_training_goes_on_at_a_lower_rate(trained):
    """Loaded weights that have seen much are not thrown far away by a short training."""
    a, b = noisy_versions(smooth_images(16, seed=5), seed=5)
    distances = []
    for seen in (0, 10**9):
        model = Model(width=8, gates=True, recipe=SHORT)
        model.network.load_state_dict(trained.network.state_dict())
        model.pairs_seen = seen
        before = weights(model)
        model.train(a, b, 1)
        distances.append((weights(model) - before).norm().item())
    assert distances[1] < 0.05 * distances[0]


def test_interrupted_training_leaves_what_was_learnt():
    clean = smooth_images(64)
    a, b = noisy_versions(clean)
    model = Model(width=8)

    def interrupt(step, steps, loss):
        if step == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.train(a, b, 100, progress=interrupt)
    assert model.pairs_seen == 100 * 16
    assert squared_error(model.predict(a), clean) < squared_error(a, clean)


def test_progress_is_told_every_step_of_the_call():
    told = []
    model = Model(width=8, recipe=SHORT)
    model.train(*noisy_versions(smooth_images(10)), 2, progress=lambda *x: told.append(x))
    assert [x[0] for x in told] == list(range(1, told[0][1] + 1))
    assert all(math.isfinite(float(x[2])) for x in told)


def test_infinite_predictions_are_an_error_too():
    model = Model(width=8)
    torch.nn.init.constant_(model.network.last.bias, math.inf)
    with pytest.raises(RuntimeError, match="no longer finite"):
        model.error_left(*noisy_versions(smooth_images(8)))


@pytest.mark.parametrize(
    ("count", "size", "passes"), [(10, 32, 20), (400, 32, 5), (1_999, 32, 2), (2_000, 32, 1), (400, 64, 2), (1, 512, 8)]
)
def test_fresh_weights_pass_over_few_pairs_more_often(count, size, passes):
    pairs = project.Pairs(*torch.zeros(2, count, 1, size, size, dtype=torch.uint8), torch.device("cpu"))
    assert project.least_epochs(pairs, Recipe(), pairs_seen=0) == passes
    assert project.least_epochs(pairs, Recipe(), pairs_seen=1) == 1


def test_a_further_call_passes_as_often_as_asked():
    a, b = noisy_versions(smooth_images(10))
    model = Model(width=8, recipe=Recipe(min_steps=1))
    for epochs, seen in ((3, 200), (3, 230), (25, 480)):
        model.train(a, b, epochs)
        assert model.pairs_seen == seen


def test_training_works_inside_no_grad_and_inference_mode():
    a, b = noisy_versions(smooth_images(4))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            model = Model(width=8, recipe=SHORT)
            before = weights(model)
            model.train(a, b, 1)
            assert not torch.equal(weights(model), before)
            model.predict(a)


def test_nothing_global_changes():
    code = """
import os, random, torch
state = lambda: (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(),
    torch.random.get_rng_state().tolist(), random.getstate(), torch.are_deterministic_algorithms_enabled())
before = state()
from Miniproject_1.model import Model
a = torch.arange(2 * 3 * 8 * 8).to(torch.uint8).view(2, 3, 8, 8)
model = Model(); model.train(a, a.flip(0), 1); model.predict(a)
assert state() == before
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_default_dtype_of_the_caller_does_not_matter(trained):
    images = smooth_images(2)
    expected = trained.predict(images)
    torch.set_default_dtype(torch.float64)
    try:
        assert trained.predict(images).dtype == torch.float32
        torch.testing.assert_close(trained.predict(images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_training_does_not_depend_on_the_default_dtype(dtype):
    pairs = noisy_versions(smooth_images(20))

    def learnt():
        model = Model(width=8, seed=3, recipe=SHORT)
        model.train(*pairs, 1)
        return weights(model)

    tiling = project.Tiling.of(Model().network)
    expected, ramp = learnt(), tiling.weights(640, 900)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(learnt(), expected)
        assert torch.equal(tiling.weights(640, 900), ramp)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_value_out_of_all_proportion_does_no_harm_far_away(trained):
    images = torch.full((1, 3, 64, 64), 100.0)
    expected = trained.predict(images, ensemble=False)
    images[0, 1, 3, 3] = 1e30
    with pytest.warns(UserWarning, match=r"\[0, 255\]"):
        found = trained.predict(images, ensemble=False)
    assert found.isfinite().all() and (found - expected)[..., 32:, 32:].abs().max() < 8


def test_other_numbers_of_channels():
    images = torch.rand(2, 1, 8, 8) * 255
    model = Model(in_channels=1, width=8)
    model.train(images, images, 1)
    assert model.predict(images).shape == images.shape


# -------------------------------------------------------------------------------------------- weights files


def test_save_and_load_keep_everything(trained, tmp_path):
    trained.save(tmp_path / "w.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    other = Model()
    other.load(tmp_path / "w.pth")
    images = smooth_images(2)
    assert torch.equal(other.predict(images), trained.predict(images))
    assert (other.name, other.sizes, other.pairs_seen) == (trained.name, trained.sizes, trained.pairs_seen)
    torch.load(tmp_path / "w.pth", weights_only=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_files_describe_their_network_in_full(network, tmp_path):
    model = Model(network, seed=3)
    model.save(tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    assert content["network"] == network and "width" in content["sizes"]  # though it is the default
    loaded = Model()
    loaded.load(tmp_path / "a.pth")
    assert loaded.name == network and torch.equal(weights(loaded), weights(model))


def test_failed_save_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    trained.save(path)
    before = path.read_bytes()

    def crash(content, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        trained.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_may_not_be_read_is_not_called_damaged(trained, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no")

    trained.save(tmp_path / "w.pth")
    monkeypatch.setattr(torch, "load", refuse)  # root may read all
    with pytest.raises(PermissionError):
        Model().load(tmp_path / "w.pth")


def damaged_files(path, trained):
    trained.save(path)
    whole = path.read_bytes()
    yield whole[: len(whole) // 2]
    place = whole.index(bytes(trained.network.first.weight.detach().flatten().view(torch.uint8).tolist()))
    yield whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]  # one bit of a weight
    yield b""
    yield b"not a weights file at all"
    yield b"a."
    yield b"J\0"
    for content in ({"weights": {}}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        yield path.read_bytes()


def test_damaged_and_foreign_files_are_refused_and_change_nothing(trained, tmp_path):
    path, model = tmp_path / "w.pth", Model(width=8)
    before = weights(model)
    for content in damaged_files(path, trained):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.pth"):
            model.load(path)
        assert torch.equal(weights(model), before)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        model.load(tmp_path / "missing.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": {"width": 9}},
        {"network": "other"},
        {"sizes": {"depth": 1}},
        {"weights": 0},
        {"pairs_seen": "many"},
        {"views": [0, 1, 1]},
    ],
)
def test_mismatched_weights_are_refused(trained, tmp_path, change):
    path = tmp_path / "w.pth"
    trained.save(path)
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(ValueError, match=r"w\.pth"):
        Model().load(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    Model(width=8).save(tmp_path / "w.pth")
    content = project.read_weights(tmp_path / "w.pth")
    content["weights"]["first.bias"][0] = math.nan
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights are not finite"):
        Model().load(tmp_path / "w.pth")


def test_load_keeps_how_a_model_learns(tmp_path):
    Model(width=8).save(tmp_path / "w.pth")
    model = Model(recipe=Recipe(loss="l1"), seed=7, precision="float32")
    model.load(tmp_path / "w.pth")
    assert (model.recipe.loss, model.seed, model.precision) == ("l1", 7, "float32")


def test_weights_beyond_float32_are_refused(tmp_path):
    Model(width=8).save(tmp_path / "w.pth")
    content = project.read_weights(tmp_path / "w.pth")
    content["weights"]["first.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights are not finite"):
        Model().load(tmp_path / "w.pth")


def test_a_foreign_format_is_named(tmp_path):
    Model(width=8).save(tmp_path / "w.pth")
    torch.save(torch.load(tmp_path / "w.pth", weights_only=True) | {"format": "other"}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="expected the format"):
        Model().load(tmp_path / "w.pth")


def test_an_interrupt_that_torch_hides_gets_through(tmp_path, monkeypatch):
    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 2880 vs 2774")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Model(width=8).save(tmp_path / "w.pth")
    assert not list(tmp_path.iterdir())


def test_models_made_in_several_threads_have_the_weights_of_their_seeds():
    expected, state = [weights(Model(width=8, seed=seed)) for seed in range(4)], torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda number: weights(Model(width=8, seed=number % 4)), range(100)))
    assert all(torch.equal(found, expected[number % 4]) for number, found in enumerate(made))
    assert torch.equal(torch.get_rng_state(), state)


def test_initial_weights_leave_the_random_numbers_of_other_threads_alone(monkeypatch):
    seen, made = [], project.ResidualUNet

    def watched(*sizes, **named):
        seen.append(torch.get_rng_state())
        network = made(*sizes, **named)
        seen.append(torch.get_rng_state())
        return network

    before = torch.get_rng_state()
    monkeypatch.setitem(project.NETWORKS, "residual_unet", watched)
    monkeypatch.setattr(project, "all_sizes", lambda network, sizes: sizes)
    Model(width=8, seed=5)
    assert len(seen) == 2 and all(torch.equal(state, before) for state in seen)


def test_a_recipe_is_a_recipe():
    with pytest.raises(TypeError, match="recipe must be a Recipe or None; got dict"):
        Model(recipe={"loss": "l1"})


def test_the_file_needs_torch_alone():
    for node in ast.walk(ast.parse(Path(project.__file__).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert all(name.split(".")[0] in {"torch", *sys.stdlib_module_names} for name in names), names


def test_pretrained_loads_from_any_directory_under_either_name(tmp_path):
    for folder, name in ((ROOT, "Miniproject_1.model"), (ROOT / "Miniproject_1", "model")):
        code = f"""
import sys; sys.path.insert(0, {str(folder)!r})
from {name} import Model
model = Model(); model.load_pretrained_model()
"""
        quiet = [] if "." in name else ["-W", "ignore:Failed to initialize NumPy"]  # the package sees to it itself
        command = [sys.executable, *quiet, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# -------------------------------------------------------------------------------------------- bad input

GOOD = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("images", "error", "rule"),
    [
        ([[1.0]], TypeError, "torch.Tensor"),
        (GOOD.bool(), TypeError, "real numbers"),
        (GOOD.to(torch.complex64), TypeError, "real numbers"),
        (GOOD.to_sparse(), TypeError, "dense tensor with values; got torch.sparse_coo"),
        (GOOD.to("meta"), TypeError, "got torch.strided on meta"),
        (GOOD[0], ValueError, r"images\[None\]"),
        (GOOD[0, 0], ValueError, r"images\[None, None\]"),
        (GOOD[:, :1], ValueError, "3 channels"),
        (GOOD[:0], ValueError, "at least one"),
        (GOOD[..., :0], ValueError, "at least one"),
        (GOOD.log(), ValueError, "finite"),
        (GOOD * math.nan, ValueError, "finite"),
    ],
)
def test_bad_images_are_refused_with_the_rule(images, error, rule):
    with pytest.raises(error, match=rule):
        Model().predict(images)
    with pytest.raises(error, match=rule):
        Model().train(images, images, 1)
    with pytest.raises(error, match=rule):
        Model().train(GOOD, images, 1)


def test_pairs_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="same images"):
        Model().train(GOOD, GOOD[:1], 1)


@pytest.mark.parametrize("epochs", [0, -1])
def test_too_few_epochs_are_refused(epochs):
    with pytest.raises(ValueError, match="at least 1"):
        Model().train(GOOD, GOOD, epochs)


@pytest.mark.parametrize("options", [{"epochs": 2, "num_epochs": 1}, {"epochs": 1.5}, {"epochs": True}])
def test_unclear_epochs_are_refused(options):
    with pytest.raises(TypeError, match="epochs"):
        Model().train(GOOD, GOOD, **options)


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="residual_unet"):
        Model("resnet")


def test_lack_of_memory_says_what_to_do(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = Model()
    monkeypatch.setattr(Model, "_denoise", fail)
    with pytest.raises(RuntimeError, match="fewer images"):
        model.predict(GOOD)


def test_training_state_continues_exactly():
    recipe, a = Recipe(), torch.rand(8, 3, 8, 8)

    def begin():
        return Training(Model(width=8).network, recipe, seed=3)

    straight, first = begin(), begin()
    for _ in range(6):
        straight.step(a, a.flip(0), 0.5)
    for _ in range(3):
        first.step(a, a.flip(0), 0.5)
    second = begin()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.step(a, a.flip(0), 0.5)
    for x, y in zip(straight.parameters + straight.ema, second.parameters + second.ema, strict=True):
        assert torch.equal(x, y)


# -------------------------------------------------------------------------------------------- the noise of pairs


def gaussian(shape, seed):
    return 25 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blurred(shape, seed):
    return 3 * F.avg_pool2d(gaussian(shape, seed), 3, 1, 1)


def row_wise(shape, seed):
    return gaussian((*shape[:3], 1), seed).expand(shape)


def enlarged(shape, seed):
    return F.interpolate(gaussian((*shape[:2], shape[2] // 2, shape[3] // 2), seed), scale_factor=2)


def drifting(shape, seed):
    return gaussian(shape, seed) + 0.3 * gaussian((shape[0], 1, 1, 1), seed + 10)


def faint_stripes(shape, seed):
    return gaussian(shape, seed) + 0.2 * row_wise(shape, seed + 10)


@pytest.mark.parametrize("noise", [blurred, row_wise, enlarged, drifting, faint_stripes])
def test_correlated_noise_is_not_exchangeable(noise):
    clean = smooth_images(200)
    pairs = [clean + noise(clean.shape, seed) for seed in (1, 2)]
    assert not project.measure_noise(*pairs).exchangeable
    assert not project.measure_noise(*(images.transpose(2, 3) for images in pairs)).exchangeable


def test_white_noise_is_exchangeable_where_there_is_enough_of_it():
    clean = smooth_images(200)
    pairs = [clean + gaussian(clean.shape, seed) for seed in (1, 2)]
    noise = project.measure_noise(*pairs)
    assert noise.exchangeable and abs(noise.correlation) < 0.01 and abs(noise.imbalance) < 0.02
    assert project.measure_noise(*(images.round().clamp(0, 255).to(torch.uint8) for images in pairs)).exchangeable
    assert not project.measure_noise(*(images[:1] for images in pairs)).exchangeable  # too few to tell
    large = F.interpolate(clean[:1], size=(300, 200))
    assert project.measure_noise(*(large + gaussian(large.shape, seed) for seed in (1, 2))).exchangeable


def test_unequal_images_are_not_exchangeable():
    clean = smooth_images(200)
    a, b = (gaussian(clean.shape, seed) for seed in (1, 2))
    noisier = project.measure_noise(clean + a, clean + 0.5 * b)
    assert not noisier.exchangeable and noisier.imbalance == pytest.approx((1 - 0.25) / (1 + 0.25), abs=0.03)
    brighter = project.measure_noise(clean + a + 10, clean + b)
    assert not brighter.exchangeable
    assert brighter.offset == pytest.approx(10 / (25 * math.sqrt(2)), abs=0.02)
    much = project.measure_noise(clean + a + 100, clean + b)
    assert much.offset == pytest.approx(100 / (25 * math.sqrt(2)), abs=0.1)
    assert project.measure_noise(clean + 10, clean).offset > 1000 and not project.measure_noise(clean + 10, clean).alike
    assert not project.measure_noise(clean + a, 0.9 * clean + b).exchangeable
    assert not project.measure_noise(clean, clean).exchangeable


def test_noise_in_a_hand_computed_case():
    a = torch.zeros(8, 1, 1, 2)
    a[:, :, :, 0], a[:, :, :, 1] = 51.0, -51.0  # the two pixels of every row are opposite: 0.2 and -0.2
    noise = project.measure_noise(a, torch.zeros_like(a))
    assert noise.correlation == pytest.approx(-1, abs=1e-5) and noise.line_correlation == pytest.approx(-1, abs=1e-5)
    assert noise.imbalance == pytest.approx(1, abs=1e-5) and noise.offset == pytest.approx(0, abs=1e-6)


def test_ratio_of_the_channels_noise():
    clean = smooth_images(64)
    for strengths, expected in (((1, 1, 3), 3), ((0, 0, 1), math.inf), ((0, 0, 0), 1)):
        strength = torch.tensor(strengths).view(3, 1, 1)
        noise = project.measure_noise(*(clean + strength * gaussian(clean.shape, seed) for seed in (1, 2)))
        assert noise.channel_ratio == pytest.approx(expected, rel=0.1)


class Limited(torch.nn.Module):
    """A network that lets values up to a limit pass."""

    equivariant, multiple, reach = True, 1, 0

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def forward(self, images):
        return images.minimum(self.limit)


def test_views_that_take_an_image_away_from_the_other_one_are_not_averaged():
    model, dark = Model(width=8, precision="float32"), torch.rand(80, 3, 20, 20) * 70
    model.network = Limited(torch.tensor(0.3))
    model.choose_views(dark, dark)
    assert model.views() == [(project.D4[0], False, False), (project.D4[0], False, True)]
    red = torch.tensor([1.0, 0.3, 0.3]).view(3, 1, 1)
    model.network = Limited(red)
    model.choose_views(dark * 3 * red, dark * 3 * red)
    assert model.views() == [(project.D4[0], False, False)]


def test_little_noise_is_learnt_without_more_of_it_at_first():
    clean, losses = smooth_images(64), []
    a, b = noisy_versions(clean, sigma=1)
    model = Model(width=16, seed=1)
    model.train(a, b, 1, progress=lambda step, steps, loss: losses.append(loss.item()))
    assert max(losses) < 1.5 * losses[0]
    assert squared_error(model.predict(a, False), clean) < 0.8 * squared_error(a, clean)


def test_the_last_layer_learns_as_its_share_says():
    after = []
    for share in (1.0, 0.25, 0.0):
        model = Model(width=8, recipe=Recipe(last_lr_scale=share))
        training = Training(model.network, model.recipe, 0)
        before = model.network.last.weight.detach().clone()
        training.step(*(images / 255 for images in noisy_versions(smooth_images(4))), 1.0)
        after.append((model.network.last.weight - before).abs().max().item())
    assert after[1] == pytest.approx(after[0] / 4, rel=1e-3) and after[2] == 0 < after[0]
    with pytest.raises(ValueError, match="last_lr_scale"):
        Recipe(last_lr_scale=-1)


@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_a_training_in_vain_gives_a_warning(loss):
    pairs = noisy_versions(smooth_images(16))
    for rate, warned in ((0.0, loss == "l2"), (5e-3, False)):
        model = Model(width=8, recipe=Recipe(min_steps=50, loss=loss, muon_lr=0, adam_lr=rate))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.train(*pairs, 1)
        assert any("gained hardly anything" in str(one.message) for one in said) == warned


@pytest.mark.parametrize("reverse", [False, True])
def test_a_copy_with_added_noise_gives_a_warning(reverse):
    a = noisy_versions(smooth_images(64))[0].float()
    pairs = [a, a + gaussian(a.shape, 5)]
    first = "noisy_b" if reverse else "noisy_a"
    with pytest.warns(UserWarning, match=f"{first} has hardly any noise that"):
        Model(width=8, recipe=SHORT).train(*(pairs[::-1] if reverse else pairs))


def test_noisy_targets_hide_what_a_training_has_gained():
    """Of targets with a hundred times the noise, half of the noise removed leaves 99.5 %."""
    assert project.no_gain_warning(0.995, 0.0) and not project.no_gain_warning(0.995, -99 / 101)
    assert project.no_gain_warning(0.98, 1.0) == "" and project.no_gain_warning(0.985, 1.0)
    assert project.no_gain_warning(1.001, -1.3)  # an estimate may be out of range


def test_the_middle_of_large_images_tells_what_a_training_has_gained():
    model, clean = Model(width=8), smooth_images(1, 200, 200)
    clean[:, :, :64, :64] = 0
    assert model.error_left(clean, clean) == 0.0
    share = model.error_left(*noisy_versions(clean))
    assert share == pytest.approx(1, abs=0.01)  # fresh weights give back what they get
    model.load_pretrained_model()
    assert model.error_left(*noisy_versions(clean)) < 0.7


def test_numbers_of_any_type_are_saved_as_plain_ones(tmp_path):
    numpy = pytest.importorskip("numpy")
    model, loaded = Model(width=8), Model()
    model.pairs_seen, model.chosen_views = numpy.int64(5), tuple(numpy.arange(2))
    model.value_ranges = {"uint16": (numpy.uint16(0), numpy.uint16(4095))}
    model.save(tmp_path / "a.pth")
    loaded.load(tmp_path / "a.pth")
    assert (loaded.pairs_seen, loaded.chosen_views) == (5, [0, 1])
    assert loaded.value_ranges == {"uint16": (0, 4095)}
    for name, wrong in (("pairs_seen", 0.5), ("chosen_views", [1]), ("value_ranges", {"uint8": (255, 0)})):
        model.load(tmp_path / "a.pth")
        setattr(model, name, wrong)
        with pytest.raises((TypeError, ValueError), match=name.removeprefix("chosen_")):
            model.save(tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("place", ["missing/a.pth", "."])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    with pytest.raises(OSError, match="cannot be written: ") as error:
        Model(width=8).save(tmp_path / place)
    assert error.value.filename == str((tmp_path / place).resolve()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("loss", ["l2", "l0"])
def test_a_training_that_ends_with_nan_is_an_error(loss):
    model = Model(width=8, recipe=replace(SHORT, loss=loss))
    with torch.no_grad():
        model.network.first.bias.fill_(math.nan)
    with pytest.raises(RuntimeError, match="no longer finite: begin with others"):
        model.train(*noisy_versions(smooth_images(16)), 1)


def test_self_ensembles_leave_out_channels_that_are_no_colours(tmp_path):
    red, green, blue = smooth_images(64).unbind(1)
    clean = torch.stack([green, 128 + (red - green) / 2, 128 + (blue - green) / 2], 1) / 2
    a, b = (clean + gaussian(clean.shape, seed) for seed in (1, 2))
    model = Model(width=8)
    model.train(a, b, 6)
    assert squared_error(model.predict(a, True), clean) <= 1.02 * squared_error(model.predict(a, False), clean)
    model.chosen_views = [0, 2]
    model.save(tmp_path / "these.pth")
    again = Model()
    again.load(tmp_path / "these.pth")
    assert again.views() == [(project.D4[0], False, False), (project.D4[0], False, True)]


@pytest.mark.parametrize("loss", ["l1", "l0"])
def test_views_are_chosen_in_the_sense_of_the_loss(loss):
    model, dark = Model(width=8, precision="float32", recipe=Recipe(loss=loss)), torch.rand(80, 3, 20, 20) * 70
    model.network = Limited(torch.tensor(0.3))
    hit = torch.rand(80, 1, 20, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    model.choose_views(dark, dark.masked_fill(hit, 255.0))  # whose mean is nearer to what the negatives give
    assert model.views() == [(project.D4[0], False, False), (project.D4[0], False, True)]


def test_value_ranges_of_a_weights_file_are_kept_and_checked(tmp_path, monkeypatch):
    model, again = Model(width=8), Model()
    for ranges in ({}, {"uint16": (0, 4095), "float32": (-1.5, 2.0)}):
        model.value_ranges = ranges
        model.save(tmp_path / "a.pth")
        again.load(tmp_path / "a.pth")
        assert again.value_ranges == ranges
    for ranges in ({"uint16": (5, 5)}, {"uint16": (0, float("inf"))}, {3: (0, 1)}, {"uint16": 4095}, 7):
        model.value_ranges = ranges
        with monkeypatch.context() as unchecked:
            unchecked.setattr(project, "check_ranges", lambda ranges: ranges)
            model.save(tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=r"odd\.pth does not describe"):
            again.load(tmp_path / "odd.pth")
    assert again.value_ranges == {"uint16": (0, 4095), "float32": (-1.5, 2.0)}


@pytest.mark.parametrize(("noise", "swapped"), [(gaussian, True), (blurred, False)])
def test_pixels_are_swapped_where_the_noise_allows_it(noise, swapped, monkeypatch):
    clean, calls = smooth_images(128), []
    original = project.swap_pixels
    monkeypatch.setattr(project, "swap_pixels", lambda *x: calls.append(1) or original(*x))
    pairs = [clean + noise(clean.shape, seed) for seed in (1, 2)]
    model = Model(width=8, recipe=SHORT)
    model.train(*pairs, 1)
    assert bool(calls) is swapped is model.noise.exchangeable
    for forced in (True, False):
        calls.clear()
        Model(width=8, recipe=replace(SHORT, swap_pixels=forced)).train(*pairs, 1)
        assert bool(calls) is forced


def test_both_directions_turn_each_pair_round():
    recipe = Recipe(swap_pixels=True, both_directions=True)
    a, b = noisy_versions(smooth_images(8))
    inputs, targets = project.augment(a, b, recipe, torch.Generator().manual_seed(0))
    once = project.augment(a, b, replace(recipe, both_directions=False), torch.Generator().manual_seed(0))
    assert torch.equal(inputs, torch.cat(once)) and torch.equal(targets, torch.cat(once[::-1]))


@pytest.mark.parametrize(
    ("shift", "factor", "both"), [(0, 1, True), (0, 2, False), (20, 1, False)], ids=["alike", "noisier", "brighter"]
)
@pytest.mark.filterwarnings("ignore:noisy_a and noisy_b differ in brightness")
def test_pairs_are_learnt_in_both_directions_where_they_are_alike(shift, factor, both, monkeypatch):
    clean, seen = smooth_images(128), []
    original = Training.backward
    monkeypatch.setattr(Training, "backward", lambda self, a, *x: seen.append(len(a)) or original(self, a, *x))
    pairs = clean + blurred(clean.shape, 1), clean + factor * blurred(clean.shape, 2) + shift
    model = Model(width=8, recipe=SHORT)
    model.train(*pairs, 1)
    assert seen == 8 * [32 if both else 16] and model.noise.alike is both and model.pairs_seen == 128
    for forced in (True, False):
        seen.clear()
        Model(width=8, recipe=replace(model.recipe, both_directions=forced)).train(*pairs, 1)
        assert seen == 8 * [32 if forced else 16]


def test_correlated_noise_is_removed_as_well():
    clean = smooth_images(128)
    a, b = (clean + blurred(clean.shape, seed) for seed in (1, 2))
    errors = {}
    for swap in (None, True):
        model = Model(width=8, recipe=replace(SHORT, swap_pixels=swap))
        model.train(a, b, 12)
        errors[swap] = squared_error(model.predict(a, False), clean)
    assert errors[None] < 0.8 * errors[True]


def test_pairs_of_different_exposure_give_a_warning():
    clean = smooth_images(64)
    with pytest.warns(UserWarning, match="brightness"):
        Model(width=8, recipe=SHORT).train(clean + gaussian(clean.shape, 1) + 20, clean + gaussian(clean.shape, 2), 1)


def test_pairs_of_different_white_balance_give_a_warning():
    """Of a shift that cancels over the channels."""
    clean = smooth_images(64)
    noisy_a, noisy_b = (clean + gaussian(clean.shape, seed) for seed in (1, 2))
    shift = torch.tensor([20.0, 0, -20]).view(3, 1, 1)
    assert project.measure_noise(noisy_a, noisy_b).offset == pytest.approx(0, abs=0.03)
    expected = 20 / (25 * math.sqrt(2))
    assert abs(project.measure_noise(noisy_a + shift, noisy_b).offset) == pytest.approx(expected, abs=0.05)
    with pytest.warns(UserWarning, match="brightness"):
        Model(width=8, recipe=SHORT).train(noisy_a + shift, noisy_b, 1)


def test_the_same_images_twice_give_a_warning():
    noisy = noisy_versions(smooth_images(8))[0].clamp(0, 255).round()
    for again in (noisy.clone(), noisy.to(torch.uint8)):
        with pytest.warns(UserWarning, match="noisy_a and noisy_b are equal"):
            Model(width=8, recipe=SHORT).train(noisy, again, 1)


def test_some_of_the_images_twice_give_a_warning():
    noisy_a, noisy_b = noisy_versions(smooth_images(40))
    noisy_b[:3] = noisy_a[:3]
    with pytest.warns(UserWarning, match="3 of 40 pairs are equal"):
        Model(width=8, recipe=SHORT).train(noisy_a, noisy_b, 1)


def test_pairs_that_do_not_match_give_a_warning():
    noisy_a, noisy_b = noisy_versions(smooth_images(40))
    with pytest.warns(UserWarning, match="mirrored or turned"):
        Model(width=8, recipe=SHORT).train(noisy_a, noisy_b.flip(3), 1)
    with pytest.warns(UserWarning, match="different scenes"):
        Model(width=8, recipe=SHORT).train(noisy_a, noisy_b.roll(1, 0), 1)


def test_the_second_images_may_not_have_another_scale_either():
    noisy_a, noisy_b = noisy_versions(smooth_images(8))
    with pytest.warns(UserWarning, match=r"values must be in \[0, 255\]"):
        Model(width=8, recipe=SHORT).train(noisy_a, noisy_b / 255, 1)


def test_the_first_weights_do_not_depend_on_the_default_dtype():
    expected = weights(Model(width=8))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(weights(Model(width=8)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_seeds_are_whole_numbers_from_0():
    numpy = pytest.importorskip("numpy")
    assert torch.equal(weights(Model(width=8, seed=numpy.int64(3))), weights(Model(width=8, seed=3)))
    with pytest.raises(ValueError, match="seed must be at least 0"):
        Model(seed=-1)
    with pytest.raises(ValueError, match="seed must be at most"):
        Model(seed=2**64)


@pytest.mark.parametrize("network", ["residual_unet", "unet", "noise2noise"])
def test_sizes_are_whole_numbers_that_make_a_network(network):
    for width in (0, -8):
        with pytest.raises(ValueError, match="width must be at least 1"):
            Model(network, width=width)
    with pytest.raises(TypeError, match="width must be a whole number"):
        Model(network, width=8.0)
    with pytest.raises(ValueError, match="blocks must be at least 0"):
        Model(blocks=-1)


def test_names_of_files_may_be_as_long_as_the_system_takes(tmp_path):
    path = tmp_path / (80 * "模")  # 240 bytes
    Model(width=8).save(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("scale", "dtype", "warned"),
    [
        (1 / 255, torch.float32, True),
        (1 / 255, torch.float16, True),
        (2 / 255, torch.float32, True),
        (16, torch.float32, True),
        (16, torch.uint16, True),
        (16, torch.int32, True),
        (10 / 255, torch.float32, True),
        (255 / 65535 * 8, torch.float64, True),
        (1.9, torch.uint16, True),
        (1, torch.float32, False),
        (1, torch.uint8, False),
        (0.004, torch.uint8, False),
        (0, torch.float32, False),
    ],
)
def test_values_of_another_scale_give_a_warning(scale, dtype, warned):
    images = tuple((part.clamp(0, 255) * scale).to(dtype) for part in noisy_versions(smooth_images(8)))
    model = Model(width=8, recipe=SHORT)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.predict(images[0])
        model.train(*images)
    said = [str(one.message) for one in said if "values must be in [0, 255]" in str(one.message)]
    assert len(said) == 3 * warned  # one by predict, one for each of the pair


def test_dark_bright_and_single_values_are_of_the_right_scale():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    hot = torch.full((1, 3, 64, 64), 90.0)
    hot[0, 0, 5, 5] = 600
    for images in ((8 + 2 * noise).round(), 255 + 50 * noise, hot):
        assert not project.out_of_scale(images)
    assert project.out_of_scale(noise) and project.out_of_scale(7 + 2 * noise)


@pytest.mark.parametrize("network", ["residual_unet", "unet", "noise2noise"])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_layers_of_images_learn_by_adam_for_any_number_of_channels(network, channels):
    model = Model(network, in_channels=channels, width=16)
    training = Training(model.network, Recipe(), 0)
    muon, adam = (
        {id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in training.optimizers
    )
    weights = [p for p in model.network.parameters() if p.ndim == 4]
    of_images = [p for p in weights if id(p) in adam]
    assert {p.shape[1] for p in of_images} | {p.shape[0] for p in of_images} >= {channels} and len(of_images) == 2
    assert of_images[0].shape[1] == channels == of_images[1].shape[0]
    assert muon == {id(p) for p in weights} - adam


# -------------------------------------------------------------------------------------------- surroundings


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 2), (3, 3), (2, 32), (32, 2), (3, 32), (4, 4), (4, 32), (6, 5), (200, 130)]
)
def test_flat_images_of_any_size_get_no_worse(size):
    shipped = Model()
    shipped.load_pretrained_model()
    generator = torch.Generator().manual_seed(0)
    count = 60 if max(size) <= 32 else 4
    clean = (40 + 175 * torch.rand(count, 3, 1, 1, generator=generator)).expand(count, 3, *size)
    noisy = (clean + 25 * torch.randn(clean.shape, generator=generator)).clamp(0, 255)
    assert squared_error(shipped.predict(noisy), clean) < 1.01 * squared_error(noisy, clean)
    yellow = torch.tensor([255.0, 255.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, *size)
    assert (shipped.predict(yellow) - yellow).abs().max() < 6


@pytest.mark.parametrize(("side", "ensemble"), [(8, True), (17, False), (48, True), (80, False)])
@pytest.mark.parametrize(("name", "limit", "alone"), [("bestmodel.pth", 10, 24), ("photomodel.pth", 9, 11)])
def test_shipped_weights_keep_saturated_colours(name, limit, alone, side, ensemble):
    """The README's limits: up to 64 pixels a side `predict` averages several views, farther on it does not need to."""
    shipped = Model()
    shipped.load(project.PRETRAINED.with_name(name))
    levels = torch.tensor([0.0, 102.0, 204.0, 255.0])
    clean = torch.cartesian_prod(levels, levels, levels).view(-1, 3, 1, 1).expand(-1, 3, side, side)
    error = (shipped.predict(clean, ensemble) - clean).abs().max()
    assert error < (limit if ensemble or side > 64 else alone)


@pytest.mark.parametrize("name", ["bestmodel.pth", "photomodel.pth"])
def test_shipped_weights_keep_any_colour_far_from_borders(name, monkeypatch):
    """A small picture of one colour is an endless one where its convolutions go round its borders."""
    convolve = F.conv2d

    def endless(x, weight, bias, stride, padding):
        rows, columns = padding if isinstance(padding, tuple) else (padding, padding)
        return convolve(F.pad(x, (columns, columns, rows, rows), mode="circular"), weight, bias, stride)

    shipped = Model(precision="float32")
    shipped.load(project.PRETRAINED.with_name(name))
    levels = torch.linspace(0, 255, 5)
    clean = torch.cartesian_prod(levels, levels, levels).view(-1, 3, 1, 1).expand(-1, 3, 8, 8)
    at_border = shipped.predict(clean[::20], ensemble=False)
    monkeypatch.setattr(F, "conv2d", endless)
    found = shipped.predict(clean, ensemble=False)
    assert not torch.equal(found[::20], at_border)
    assert (found - clean).abs().max() < 5


def test_autocast_of_the_caller_does_not_matter(trained):
    images = smooth_images(2)
    expected, learnt = trained.predict(images), []
    for inside in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            assert torch.equal(trained.predict(images), expected)
            model = Model(width=8, recipe=SHORT)
            model.train(images, images.flip(0), 1)
        learnt.append(weights(model))
    assert torch.equal(*learnt)


class FactoriesOnAnotherDevice(torch.overrides.TorchFunctionMode):
    """What `torch.set_default_device` does to a call that names no device, where there is just one device."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        factories = (torch.randperm, torch.randint, torch.rand, torch.arange, torch.zeros, torch.ones, torch.empty)
        keywords = keywords or {}
        if function in factories and keywords.get("device") is None:
            keywords = {**keywords, "device": "meta"}
        return function(*arguments, **keywords)


def test_default_device_of_the_caller_does_not_matter():
    project.regular_representation.cache_clear()
    a, b = noisy_versions(smooth_images(4, 9, 7))
    results = []
    for inside in (False, True):
        with FactoriesOnAnotherDevice() if inside else torch.no_grad():
            model = Model(width=8, device="cpu", recipe=SHORT)
            model.train(a, b, 1)
            results.append((weights(model), model.predict(a)))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_models_made_in_inference_mode_learn_outside_of_it(trained, tmp_path):
    trained.save(tmp_path / "w.pth")
    with torch.inference_mode():
        model = Model(width=8, recipe=SHORT)
        model.load(tmp_path / "w.pth")
    before = weights(model)
    model.train(*noisy_versions(smooth_images(4)), 1)
    assert not torch.equal(weights(model), before)


def test_frozen_layers_stay_and_the_others_learn():
    model = Model(width=8, recipe=SHORT)
    model.network.encode.requires_grad_(False)
    before = {name: p.clone() for name, p in model.network.named_parameters()}
    model.train(*noisy_versions(smooth_images(16)), 1)
    for name, parameter in model.network.named_parameters():
        assert torch.equal(parameter, before[name]) is name.startswith("encode"), name
    model.network.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        model.train(*noisy_versions(smooth_images(16)), 1)


class Whole:
    """A whole number that is no int, as NumPy has them."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_whole_numbers_of_other_types_count(tmp_path):
    model = Model(width=Whole(8), in_channels=Whole(1))
    model.train(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), Whole(21))
    assert model.pairs_seen == 42
    model.save(tmp_path / "w.pth")
    Model().load(tmp_path / "w.pth")
    with pytest.raises(TypeError, match="depth"):
        Model(depth=3)


def test_a_gpu_without_kernels_is_left_alone(monkeypatch):
    def no_kernel(*_, **__):
        raise RuntimeError("no kernel image is available for execution on the device")

    find_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", no_kernel)
    with pytest.warns(UserWarning, match="no kernel image"):
        assert find_device().type == "cpu"
    find_device.cache_clear()


def test_weights_of_a_compiled_network_load_into_a_plain_one(tmp_path):
    model = Model(width=8)
    model.network = torch.compile(model.network)
    model.save(tmp_path / "w.pth")
    other = Model()
    other.load(tmp_path / "w.pth")
    assert torch.equal(weights(other), weights(model))


def test_what_was_measured_is_kept_in_the_file(tmp_path):
    model = Model(width=8, recipe=SHORT)
    model.train(*noisy_versions(smooth_images(4)), 1)
    model.save(tmp_path / "w.pth")
    other = Model()
    other.load(tmp_path / "w.pth")
    assert other.noise == model.noise


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_os_error(trained, tmp_path, monkeypatch):
    original = torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: original(content, "/dev/full"))
    with pytest.raises(OSError, match="disk full"):
        trained.save(tmp_path / "w.pth")
    assert not list(tmp_path.iterdir())


def test_saving_through_a_link_replaces_its_target(trained, tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "w.pth", tmp_path / "link.pth"
    target.write_bytes(b"old")
    link.symlink_to(target)
    trained.save(link)
    assert link.is_symlink() and [path.name for path in target.parent.iterdir()] == ["w.pth"]
    Model().load(target)


def test_two_savers_do_not_share_a_temporary_file(trained, tmp_path, monkeypatch):
    names, original = [], torch.save
    monkeypatch.setattr(torch, "save", lambda content, file: names.append(file.name) or original(content, file))
    for _ in range(2):
        trained.save(tmp_path / "w.pth")
    assert len(set(names)) == 2


def test_lack_of_memory_is_no_foreign_file(trained, tmp_path, monkeypatch):
    trained.save(tmp_path / "w.pth")

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trained.load(tmp_path / "w.pth")


def test_training_on_images_that_are_too_narrow_to_predict_gives_a_warning():
    lines = 128 + 15 * torch.randn(2, 50, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="less than 4 pixels"):
        Model(in_channels=1, width=8, recipe=SHORT).train(*lines, 1)


def test_the_last_layer_learns_slower_the_less_noise_there_is_all_over_large_images():
    noisy = 128 + 15 * torch.randn(2, 1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    noisy[..., :256, :256] = 0
    scale = Model(width=8).recipe_for(*noisy).last_lr_scale
    assert scale == pytest.approx(0.75 * (15 / 255 / project.LOW_NOISE) ** 2, rel=0.1)
