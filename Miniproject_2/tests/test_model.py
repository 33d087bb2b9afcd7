"""Model: predict on anything, train, save and load, errors."""

import copy
import hashlib
import math
import os
import pickle
import random
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from Miniproject_2 import model as ours

SMALL = {"width": 8, "deep_width": 12}
EQUIVARIANT = {"width": 8, "deep_width": 16}
NEAREST = {"width": 8, "deep_width": 12, "kernel": 3, "up_kernel": 3, "upsampling": "nearest"}


def small(seed=0, **settings):
    """A small network that passes over the pairs as often as it is asked to."""
    return ours.Model(**SMALL | {"seed": seed, "device": "cpu", "recipe": ours.Recipe(min_pairs=0)} | settings)


def weights(model):
    return torch.cat([parameter.flatten() for parameter, _ in model.network.param()])


def pictures(n, h=32, w=32, seed=0):
    """Smooth clean pictures and two noisy ones of each, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, max(2, h // 8), max(2, w // 8), generator=generator)
    clean = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear") * 255
    noisy = [(clean + 25 * torch.randn(clean.shape, generator=generator)) for _ in range(2)]
    return (*(x.clamp(0, 255).byte() for x in noisy), clean)


def psnr(model, noisy, clean):
    """Mean over images, in dB, of a model's or a function's predictions."""
    error = ((getattr(model, "predict", model)(noisy) - clean) / 255).square().mean((1, 2, 3))
    return (-10 * error.log10()).mean().item()


# prediction


@pytest.mark.parametrize("sizes", [SMALL, NEAREST])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 4), (31, 33), (64, 20)])
@pytest.mark.parametrize("ensemble", [None, True, False])
def test_any_size(sizes, size, ensemble):
    model = ours.Model(**sizes)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    output = model.predict(images, ensemble)
    assert output.shape == images.shape and output.dtype == torch.float32 and not output.requires_grad
    assert output.min() >= 0 and output.max() <= 255 and images.dtype == torch.uint8


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.uint16, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64],
)
def test_any_real_dtype(dtype):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    exact = images.to(dtype).to(torch.float32)
    assert torch.allclose(small().predict(images.to(dtype)), small().predict(exact), atol=1e-4)


def test_inputs_are_left_alone():
    images = torch.rand(2, 3, 8, 9, requires_grad=True)
    before = images.detach().clone()
    small().predict(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("size", "ensemble"), [((150, 122), False), ((152, 124), True)])
def test_chunks_and_tiles_equal_the_whole(monkeypatch, size, ensemble):
    images, model = torch.rand(3, 3, *size) * 255, small()
    whole = model.predict(images, ensemble)
    for chunk in (20_000, 5_000):
        monkeypatch.setattr(ours, "CHUNK", chunk)
        monkeypatch.setattr(ours, "TILE", 32)
        assert torch.allclose(model.predict(images, ensemble), whole, atol=1e-3)


def test_a_training_that_ends_with_nan_is_an_error():
    model = small()
    model.network.param()[0][0].fill_(math.nan)
    with pytest.raises(RuntimeError, match="no longer finite: begin with others"):
        model.train(*pictures(8)[:2], 1)


def test_a_hot_pixel_changes_little_around_it():
    image = torch.linspace(60, 180, 64).expand(1, 3, 64, 64).clone()
    model = ours.Model(device="cpu")
    model.load_pretrained_model()
    expected, changed = model.predict(image), []
    for value in (510, 1e4, 1e30):
        image[:, :, 32, 32] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the range
            changed.append(model.predict(image))
    assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
    assert ((changed[0] - expected).abs() > 20).any(1).sum() < 30


def test_a_training_in_vain_gives_a_warning():
    noisy_a, noisy_b, _ = pictures(8)
    shipped = ours.Model(device="cpu")
    shipped.load_pretrained_model()
    for model, warned in ((small(), True), (shipped, False)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model.train(noisy_a, noisy_b, 1)
        assert any("gained hardly anything" in str(one.message) for one in said) == warned


@pytest.mark.parametrize("reverse", [False, True])
def test_a_copy_with_added_noise_is_warned_of(reverse):
    a = pictures(64)[0].float()
    pairs = [a, a + 20 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))]
    first = "noisy_b" if reverse else "noisy_a"
    with pytest.warns(UserWarning, match=f"{first} has hardly any noise that"):
        small().train(*(pairs[::-1] if reverse else pairs))


def test_numbers_of_any_kind_are_saved_as_plain_ones(tmp_path):
    class Five:
        def __index__(self):
            return 5

    model, loaded = small(), small()
    model.pairs_seen, model.chosen_views = Five(), (0, 1)
    model.save(tmp_path / "a.pth")
    loaded.load(tmp_path / "a.pth")
    assert (loaded.pairs_seen, loaded.chosen_views) == (5, [0, 1])
    model.chosen_views = [1]
    with pytest.raises(ValueError, match="views"):
        model.save(tmp_path / "b.pth")


@pytest.mark.parametrize(("imbalance", "warned"), [(0.0, True), (-99 / 101, False)])
def test_noisy_targets_hide_what_a_training_has_gained(imbalance, warned):
    """Of targets with a hundred times the noise, half of the noise removed leaves 99.5 %."""
    assert bool(ours.no_gain_warning(0.995, imbalance)) == warned


def test_the_shipped_weights_keep_the_colour_of_small_images():
    """Of a yellow that is no photograph's, one to three pixels a side, and photograph-like noise is no worse."""
    model = ours.Model(device="cpu")
    model.load_pretrained_model()
    for h, w in ((1, 1), (2, 2), (3, 3), (2, 32), (32, 1)):
        yellow = torch.tensor([255.0, 230.0, 40.0]).view(1, 3, 1, 1).expand(1, 3, h, w)
        assert (model.predict(yellow) - yellow).abs().max() < 15
    clean = pictures(200, 2, 32)[2]
    noisy = clean + 25 * torch.randn(clean.shape)
    assert psnr(model, noisy, clean) > psnr(lambda x: x, noisy, clean) + 1


@pytest.mark.parametrize("side", [2, 16, 65])
def test_the_shipped_weights_keep_saturated_colours(side):
    """The README's limit, with self-ensemble and, at 65 pixels a side, without."""
    model = ours.Model(device="cpu")
    model.load_pretrained_model()
    levels = torch.tensor([0.0, 64.0, 128.0, 255.0])
    clean = torch.cartesian_prod(levels, levels, levels).view(-1, 3, 1, 1).expand(-1, 3, side, side)
    assert (model.predict(clean) - clean).abs().max() < 15


def test_reach_is_enough_and_a_multiple_of_four():
    for sizes in (
        SMALL,
        NEAREST,
        SMALL | {"kernel": 2},
        SMALL | {"kernel": 6, "up_kernel": 6},
        NEAREST | {"up_kernel": 7},
    ):
        model = ours.Model(**sizes, precision="float32")
        reach = model.network.reach
        assert reach % 4 == 0 and reach <= 24
        grey = torch.full((1, 3, 8, 128), 100.0)
        before, farthest = model.predict(grey, False), 0
        for place in range(64, 68):
            changed = grey.clone()
            changed[..., place] = 255
            different = (model.predict(changed, False) != before).amax((0, 1, 2)).nonzero()
            farthest = max(farthest, (different - place).abs().max().item())
        assert 0.4 * reach <= farthest <= reach


@pytest.mark.parametrize("element", ours.D4)
def test_the_ensemble_commutes_with_the_symmetries(element):
    images = torch.rand(2, 3, 12, 17) * 255
    moved = small().predict(ours.apply_d4(images, element), ensemble=True)
    expected = ours.apply_d4(small().predict(images, ensemble=True), element)
    assert torch.allclose(moved, expected, atol=1e-3)
    assert torch.equal(ours.invert_d4(ours.apply_d4(images, element), element), images)


@pytest.mark.parametrize(
    ("settings", "turns"),
    [
        ({"width": 8, "deep_width": 16}, True),
        ({"width": 16, "deep_width": 8, "up_kernel": 3, "upsampling": "nearest"}, True),
        ({"width": 8, "deep_width": 12}, False),
        ({"width": 8, "deep_width": 8, "kernel": 3}, False),
    ],
)
def test_an_equivariant_network_turns_its_output_with_its_input(settings, turns):
    """Before training and after it, which the gradients' means over the symmetries must keep."""
    model = ours.Model(recipe=ours.Recipe(min_pairs=0), precision="float32", **settings)
    noisy_a, noisy_b, _ = pictures(32, 16, 16)
    for _ in range(2):
        straight = model.predict(noisy_a, ensemble=False)
        turned = [ours.invert_d4(model.predict(ours.apply_d4(noisy_a, g), ensemble=False), g) for g in ours.D4]
        largest = max((image - straight).abs().max().item() for image in turned)
        assert straight.std() > 1 and (largest < 0.01) is turns and model.architecture.equivariant is turns
        model.train(noisy_a, noisy_b, 4)


def test_training_computes_the_gradients_of_the_parameters_alone():
    networks = [ours.Network(ours.Architecture(**EQUIVARIANT), random.Random(0)) for _ in range(2)]
    x, gradient = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for network in networks:
        network(x)
    assert networks[0].backward(gradient).shape == x.shape and networks[1].add_gradients(gradient) is None
    for (_, full), (_, alone) in zip(*(network.param() for network in networks), strict=True):
        assert full.any() and torch.equal(full, alone)


def test_bfloat16_learns_as_well(tmp_path):
    noisy_a, noisy_b, _ = pictures(500, 16, 16)
    noisy, _, clean = pictures(50, 16, 16, seed=1)
    models = [small(precision=precision) for precision in ("float32", "bfloat16")]
    for model in models:
        model.train(noisy_a, noisy_b, 6)
        assert {(p.dtype, g.dtype) for p, g in model.network.param()} == {(torch.float32, torch.float32)}
    exact, rounded = (psnr(model, noisy, clean) for model in models)
    assert exact != rounded and abs(exact - rounded) < 0.2 and exact > psnr(torch.Tensor.float, noisy, clean) + 2
    models[1].save(tmp_path / "w")
    models[0].load(tmp_path / "w")  # the file fixes no precision
    predictions = [model.predict(noisy) for model in models]
    assert 0 < (predictions[0] - predictions[1]).abs().max() < 8


def test_bfloat16_is_taken_where_the_processor_multiplies_it(monkeypatch):
    for flags, native in (("flags : sse2 avx512f", False), ("flags : avx512f amx_bf16", True)):
        monkeypatch.setattr(Path, "read_text", lambda path, flags=flags: flags)
        ours.has_native_bfloat16.cache_clear()
        for precision, rounds in ((None, native), ("float32", False), ("bfloat16", True)):
            model = small(precision=precision)
            assert [block.rounds for block in model.network.convolutions()] == [False, rounds, rounds, False]
    ours.has_native_bfloat16.cache_clear()


def test_precision_may_be_changed_later():
    images, (model, exact) = pictures(2)[0], (small(precision=kind) for kind in ("bfloat16", "float32"))
    assert not torch.equal(model.predict(images), exact.predict(images))
    model.precision = "float32"
    assert torch.equal(model.predict(images), exact.predict(images))
    model.precision = "half"
    with pytest.raises(ValueError, match="precision must be"):
        model.predict(images)


def test_orbits_share_the_weights_out_evenly():
    network = ours.Network(ours.Architecture(**EQUIVARIANT), random.Random(0))
    orbits = network.orbits()
    assert [len(o) for o in orbits] == [8, 8, 8, 8, 8, 8, 8, 1]  # the last bias belongs to colours
    for (parameter, _), entries in zip(network.param(), orbits, strict=True):
        assert torch.equal(entries.flatten().sort().values, torch.arange(parameter.numel()))
        assert torch.allclose(parameter.flatten()[entries], parameter.flatten()[entries[:1]])


@pytest.mark.parametrize("view", [(0, False, False), (3, False, True), (6, True, False), (5, True, True)])
def test_views_have_inverses(view):
    images, view = torch.rand(2, 3, 5, 8), (ours.D4[view[0]], *view[1:])
    assert torch.allclose(ours.from_view(ours.to_view(images, *view), *view), images, atol=1e-6)
    assert torch.equal(ours.to_view(images, *view), images) is (view == (ours.D4[0], False, False))


def test_the_ensemble_of_an_equivariant_network_commutes_with_negatives_and_channel_order():
    model = ours.Model(**EQUIVARIANT)
    images = torch.rand(2, 3, 12, 16) * 255
    together = model.predict(images, ensemble=True)
    assert torch.allclose(255 - model.predict(255 - images, ensemble=True), together, atol=1e-3)
    assert torch.allclose(model.predict(images.flip(1), ensemble=True).flip(1), together, atol=1e-3)
    assert not torch.allclose(model.predict(images, ensemble=False), together, atol=1e-1)


def test_the_views_of_a_network_as_it_is():
    assert len(ours.Model(**EQUIVARIANT).views()) == 4 and len(small().views()) == 8
    assert len(ours.Model(in_channels=2, **EQUIVARIANT).views()) == 2


def test_views_that_take_an_image_away_from_the_other_one_are_not_averaged(monkeypatch):
    model = ours.Model(**EQUIVARIANT)
    monkeypatch.setattr(model.network, "denoised", lambda images: images.clamp(max=0.3))  # dark pictures come back
    dark = torch.rand(80, 3, 8, 8) * 70
    model.choose_views(dark, dark)
    assert model.views() == [(ours.D4[0], False, False), (ours.D4[0], False, True)]
    red = torch.tensor([1.0, 0.3, 0.3]).view(3, 1, 1)
    monkeypatch.setattr(model.network, "denoised", lambda images: images.minimum(red))
    model.choose_views(dark * 3 * red, dark * 3 * red)
    assert model.views() == [(ours.D4[0], False, False)]


def test_self_ensembles_of_what_learnt_from_dark_pictures_do_no_harm(tmp_path):
    clean = pictures(200, 16, 16)[2] / 5
    a, b = (clean + 10 * torch.randn(clean.shape) for _ in range(2))
    model = ours.Model(**EQUIVARIANT)
    model.train(a, b, 4)
    alone, together = ((model.predict(a, ensemble) - clean).square().mean() for ensemble in (False, True))
    assert together <= 1.02 * alone
    model.save(tmp_path / "dark.pth")
    again = ours.Model()
    again.load(tmp_path / "dark.pth")
    assert again.views() == model.views() and len(model.views()) < 4


def test_the_eight_symmetries_differ():
    image = torch.arange(9).view(1, 1, 3, 3)
    assert len({tuple(ours.apply_d4(image, g).flatten().tolist()) for g in ours.D4}) == 8
    assert ours.apply_d4(image, (True, (2,)))[0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]


def test_ensemble_none_follows_the_size(monkeypatch):
    monkeypatch.setattr(ours, "ENSEMBLE_SIDE", 16)
    for size in (16, 20):
        images = torch.rand(1, 3, size, size) * 255
        assert torch.equal(small().predict(images), small().predict(images, ensemble=size == 16))


def test_threads_may_share_a_model():
    model = small()
    images = [torch.rand(1, 3, 8 + 4 * i, 20) * 255 for i in range(6)]
    alone = [model.predict(image) for image in images]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(model.predict, 20 * images))
    assert all(torch.equal(mine, other) for mine, other in zip(together, 20 * alone, strict=True))


def test_nothing_but_the_weights_is_left_behind():
    model = small()
    before = len(pickle.dumps(model))
    model.predict(torch.zeros(20, 3, 32, 32))
    assert len(pickle.dumps(model)) == before
    model.train(*pictures(8, 32, 32)[:2])
    assert len(pickle.dumps(model)) < 1.1 * before + 1000
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(copy.deepcopy(model).predict(images), model.predict(images))


# what surrounds the call


def test_autocast_changes_nothing():
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            model = small(**EQUIVARIANT)
            model.train(noisy_a, noisy_b)
            results += [weights(model), model.predict(noisy_a)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])


def test_inference_mode_around_some_of_the_calls_changes_nothing(tmp_path):
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    expected = small()
    expected.save(tmp_path / "w")
    expected.train(noisy_a, noisy_b)
    for made, loaded, trained in ((True, None, False), (False, None, True), (True, True, False), (True, False, True)):
        with torch.inference_mode(made):
            model = small()
        if loaded is not None:
            with torch.inference_mode(loaded):
                model.load(tmp_path / "w")
        with torch.inference_mode(trained):
            model.train(noisy_a, noisy_b)
            assert torch.equal(model.predict(noisy_a), expected.predict(noisy_a))
        model.train(noisy_a, noisy_b)


def test_default_dtype_and_device_of_the_caller_do_not_matter(tmp_path):
    noisy_a, noisy_b, _ = pictures(8, 16, 16)
    expected = small(**EQUIVARIANT)
    expected.train(noisy_a, noisy_b)
    ours.regular_representation.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            model = small(**EQUIVARIANT)
            model.train(noisy_a, noisy_b)
            prediction = model.predict(noisy_a)
            model.save(tmp_path / "w")
            model.load(tmp_path / "w")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(weights(model), weights(expected), atol=1e-4)
    assert prediction.dtype == torch.float32 and prediction.device.type == "cpu"


def test_pairs_may_differ_in_dtype():
    noisy_a, noisy_b, _ = pictures(20, 8, 8)
    model, other = small(), small()
    model.train(noisy_a, noisy_b)
    other.train(noisy_a.double(), noisy_b.to(torch.int16))
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("runs", [True, False])
def test_the_default_device_is_a_gpu_that_runs_a_kernel(monkeypatch, runs):
    def fake_empty(*shape, device):
        if not runs:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return torch.empty(*shape)

    ours.default_device.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(ours, "empty", fake_empty)
        assert ours.default_device() == ("cuda" if runs else "cpu")
    ours.default_device.cache_clear()
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert ours.Model(**SMALL).device.type == ours.default_device() == expected
    assert isinstance(small(device="cpu").device, torch.device)


# training


def test_training_improves_pictures_it_never_saw():
    noisy_a, noisy_b, _ = pictures(500, 16, 16)
    noisy, _, clean = pictures(50, 16, 16, seed=1)
    model = small()
    model.train(noisy_a, noisy_b, 6)
    baseline = (-10 * ((noisy - clean) / 255).square().mean((1, 2, 3)).log10()).mean()
    assert psnr(model, noisy, clean) > baseline + 2
    assert model.pairs_seen == 3000


def test_more_training_goes_on_at_a_lower_rate(monkeypatch):
    noisy_a, noisy_b, _ = pictures(200, 16, 16)
    noisy, _, clean = pictures(50, 16, 16, seed=1)
    monkeypatch.setattr(ours, "LR_DECAY_PAIRS", 500)
    model = small()
    model.train(noisy_a, noisy_b, 8)
    before = psnr(model, noisy, clean)
    model.train(noisy_a, noisy_b, 4)
    assert psnr(model, noisy, clean) > before - 0.1


@pytest.mark.parametrize(
    "call",
    [
        lambda t, a: t(a, a, 2),
        lambda t, a: t(a, a, num_epochs=2),
        lambda t, a: t(a, a, epochs=2),
        lambda t, a: t(a, a, torch.tensor(2)),
    ],
)
def test_the_forms_of_epochs(call):
    model = small()
    call(model.train, pictures(7, 8, 8)[0])
    assert model.pairs_seen == 14


@pytest.mark.parametrize(
    "count, size, passes", [(10, 32, 10), (400, 32, 5), (1_999, 32, 2), (2_000, 32, 1), (400, 64, 2)]
)
def test_fresh_weights_pass_over_few_pairs_more_often(count, size, passes):
    pairs = ours.Pairs(*torch.zeros(2, count, 1, size, size, dtype=torch.uint8), torch.device("cpu"))
    assert ours.least_epochs(pairs, ours.Recipe(), pairs_seen=0) == passes
    assert ours.least_epochs(pairs, ours.Recipe(), pairs_seen=1) == 1


def test_a_further_call_passes_as_often_as_asked():
    a, b, _ = pictures(10, 32, 32)
    model = small(recipe=ours.Recipe())
    for epochs, seen in ((3, 100), (3, 130), (25, 380)):
        model.train(a, b, epochs)
        assert model.pairs_seen == seen


def test_numpys_whole_numbers():
    numpy = pytest.importorskip("numpy")
    model = ours.Model(width=numpy.int64(8), deep_width=numpy.uint8(12))
    model.train(*pictures(4, 8, 8)[:2], numpy.int32(21))
    assert model.pairs_seen == 84 and model.architecture == small().architecture
    assert type(model.architecture.width) is int


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (32, 32), (33, 65), (150, 90)])
@pytest.mark.parametrize("n", [1, 5])
def test_trains_on_any_size_and_number(n, size):
    noisy_a, noisy_b, _ = pictures(n, *size)
    model = small()
    model.train(noisy_a, noisy_b, 1)
    assert all(parameter.isfinite().all() for parameter, _ in model.network.param())


def test_other_architectures_train():
    noisy_a, noisy_b, _ = pictures(40, 16, 16)
    losses = []
    model = ours.Model(**NEAREST)
    model.train(noisy_a, noisy_b, 10, progress=lambda step, steps, loss: losses.append(loss.item()))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_training_leaves_the_average_of_the_weights():
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    for share, expected in ((1.0, lambda passed: sum(passed) / 10), (0.0, lambda passed: passed[-1])):
        model, passed = small(recipe=ours.Recipe(ema_share=share, min_pairs=0)), []
        record = lambda step, steps, loss: passed.append(weights(model))  # noqa: B023, E731
        model.train(noisy_a, noisy_b, 2, progress=record)
        assert len(passed) == 10
        torch.testing.assert_close(weights(model), expected(passed))


def test_predict_and_save_from_progress_do_not_disturb_the_training(tmp_path):
    noisy_a, noisy_b, _ = pictures(20, 16, 16)

    def look(step, steps, loss):
        assert model.predict(noisy_a[:1]).isfinite().all()
        model.save(tmp_path / "w")

    model, undisturbed = small(), small()
    model.train(noisy_a, noisy_b, progress=look)
    undisturbed.train(noisy_a, noisy_b)
    assert torch.equal(weights(model), weights(undisturbed))


def test_each_optimiser_has_a_rate_of_its_own():
    for optimiser, rate in ours.RATES.items():
        assert ours.Recipe(optimiser=optimiser).peak_lr == rate == replace(ours.Recipe(), optimiser=optimiser).peak_lr
        assert ours.Recipe(optimiser=optimiser, lr=0.5).peak_lr == 0.5


def test_training_state_continues_exactly():
    noisy = torch.rand(6, 2, 4, 3, 16, 16)
    for optimiser in ("muon", "adam", "sgd"):
        recipe = ours.Recipe(optimiser=optimiser, swap_pixels=True)
        model, ends = small(), []
        start = weights(model)
        for stop in (None, 3):
            model = small()
            training = ours.Training(model.network, recipe, 0, 4)
            for number, (noisy_a, noisy_b) in enumerate(noisy):
                if number == stop:
                    state = pickle.loads(pickle.dumps(training.state_dict()))
                    model = small(seed=5)
                    training = ours.Training(model.network, recipe, 1, 4)
                    training.load_state_dict(state)
                training.step(noisy_a, noisy_b, 0.1)
            training.finish()
            ends.append(weights(model))
        assert torch.equal(*ends) and not torch.equal(ends[0], start)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ours.Architecture(upsampling="transpose"), "'nearest'; got 'transpose'"),
        (lambda: ours.Architecture(up_kernel=3), "must be even"),
        (lambda: ours.Architecture(up_kernel=4, upsampling="nearest"), "must be odd"),
        (lambda: ours.Architecture(width=0), "width must be at least 1"),
        (lambda: ours.Recipe(optimiser="Adam"), "got 'Adam'"),
        (lambda: ours.Conv2d(3, 3, 3, padding_mode="reflect"), "padding_mode must be 'zeros'"),
        (lambda: ours.Model(precision="half"), "must be 'bfloat16', 'float32' or None; got 'half'"),
        (lambda: ours.Recipe(batch_size=0), "at least 1"),
        (lambda: ours.Recipe(ema_share=1.5), "ema_share"),
    ],
)
def test_unusable_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_same_seed_gives_the_same_weights():
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    ends = []
    for seed in (1, 1, 2):
        model = small(seed)
        torch.rand(3)  # the global generator has no part in it
        model.train(noisy_a, noisy_b, 1)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_interrupting_leaves_a_usable_model():
    noisy_a, noisy_b, _ = pictures(100, 16, 16)
    model, seen = small(), []

    def interrupt(step, steps, loss):
        seen.append((step, steps, loss.item()))
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.train(noisy_a, noisy_b, 1, progress=interrupt)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5] and seen[0][1] == 25
    assert model.predict(noisy_a).isfinite().all() and model.pairs_seen == 20


def test_swap_pixels_moves_whole_pixels():
    a, b = torch.zeros(4, 3, 20, 20), torch.ones(4, 3, 20, 20)
    c, d = ours.swap_pixels(a, b, random.Random(0))
    assert torch.equal(c + d, a + b) and torch.equal(c[:, 0], c[:, 1]) and torch.equal(c[:, 0], c[:, 2])
    assert 0.45 < c.mean() < 0.55


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("white", [True, False])
def test_pixels_are_swapped_where_the_noise_allows_it(monkeypatch, asked, white):
    swapped, original = [], ours.swap_pixels
    monkeypatch.setattr(ours, "swap_pixels", lambda *pairs: swapped.append(1) or original(*pairs))
    noisy_a, noisy_b, clean = pictures(100, 16, 16)
    if not white:
        noisy_a, noisy_b = (clean + blurred(100 * torch.randn(clean.shape)) for _ in range(2))
    model = small(recipe=ours.Recipe(swap_pixels=asked))
    assert model.noise is None
    model.train(noisy_a, noisy_b)
    assert bool(swapped) is (white if asked is None else asked) and model.noise.exchangeable is white


def test_both_directions_turn_each_pair_round():
    a, b, _ = pictures(8, 16, 16)
    recipe = ours.Recipe(swap_pixels=True, both_directions=True)
    inputs, targets = ours.augment(a, b, recipe, random.Random(0))
    once = ours.augment(a, b, replace(recipe, both_directions=False), random.Random(0))
    assert torch.equal(inputs, torch.cat(once)) and torch.equal(targets, torch.cat(once[::-1]))


@pytest.mark.parametrize(
    ("shift", "factor", "both"), [(0, 1, True), (0, 2, False), (20, 1, False)], ids=["alike", "noisier", "brighter"]
)
@pytest.mark.filterwarnings("ignore:noisy_a and noisy_b differ in brightness")
def test_pairs_are_learnt_in_both_directions_where_they_are_alike(shift, factor, both, monkeypatch):
    clean, seen = pictures(128)[2], []
    original = ours.Network.prepared
    a, b = clean + 20 * torch.randn(clean.shape), clean + factor * 20 * torch.randn(clean.shape) + shift
    monkeypatch.setattr(ours.Model, "choose_views", lambda *pairs: None)
    monkeypatch.setattr(ours.Model, "error_left", lambda *pairs: 0.5)
    monkeypatch.setattr(ours.Network, "prepared", lambda self, x: seen.append(len(x)) or original(self, x))
    for asked in (None, True, False):
        seen.clear()
        model = small(recipe=ours.Recipe(min_steps=1, min_pairs=0, both_directions=asked))
        model.train(a, b)
        assert model.noise.alike is both and model.pairs_seen == 128
        assert seen == 8 * [32 if (both if asked is None else asked) else 16]


def blurred(noise):
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)


def test_blurred_noise_is_learnt():
    """The swap of pixels would ruin it: what stays in an image tells the noise of the neighbours that went."""
    clean, held_out = pictures(300, 16, 16)[2], pictures(50, 16, 16, seed=1)[2]
    noisy = held_out + blurred(90 * torch.randn(held_out.shape))
    results = {}
    for swap in (None, True):
        model = small(recipe=ours.Recipe(swap_pixels=swap))
        model.train(*(clean + blurred(90 * torch.randn(clean.shape)) for _ in range(2)), 6)
        results[swap] = psnr(model, noisy, held_out)
    assert results[None] > results[True] + 1


def test_brighter_partners_are_warned_of():
    noisy_a, noisy_b, _ = pictures(100, 16, 16)
    with pytest.warns(UserWarning, match="differ in brightness"):
        small().train(noisy_a, noisy_b.float() + 20)
    shift = torch.tensor([20.0, 0, -20]).view(3, 1, 1)  # cancels over the channels
    with pytest.warns(UserWarning, match="differ in brightness"):
        small().train(noisy_a, noisy_b.float() + shift)


def test_the_same_images_twice_are_warned_of():
    noisy_a, *_ = pictures(8, 16, 16)
    for again in (noisy_a.clone(), noisy_a.float()):
        with pytest.warns(UserWarning, match="noisy_a and noisy_b are equal"):
            small().train(noisy_a, again)


def test_some_of_the_images_twice_are_warned_of():
    noisy_a, noisy_b, _ = pictures(40, 16, 16)
    noisy_b[:3] = noisy_a[:3]
    with pytest.warns(UserWarning, match="3 of 40 pairs are equal"):
        small().train(noisy_a, noisy_b)


def test_pairs_that_do_not_match_are_warned_of():
    noisy_a, noisy_b, _ = pictures(40, 32, 32)
    with pytest.warns(UserWarning, match="mirrored or turned"):
        small().train(noisy_a, noisy_b.flip(3))
    with pytest.warns(UserWarning, match="different scenes"):
        small().train(noisy_a, noisy_b.roll(1, 0))


def test_predictions_made_in_inference_mode_can_be_changed_outside():
    with torch.inference_mode():
        prediction = small().predict(torch.full((1, 3, 8, 8), 9.0))
    prediction.add_(1)


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0])
def test_input_scales_are_finite(scale):
    with pytest.raises(ValueError, match="input_scale must be a finite number other than 0"):
        small(input_scale=scale)


def test_seeds_are_whole_numbers_from_0():
    """-1 would be 1 to Python's generator."""
    numpy = pytest.importorskip("numpy")
    assert torch.equal(weights(small(seed=numpy.int64(3))), weights(small(seed=3)))
    with pytest.raises(ValueError, match="seed must be at least 0"):
        small(seed=-1)


def test_rates_that_are_no_numbers_are_refused():
    for lr in (math.nan, math.inf):
        with pytest.raises(ValueError, match="lr >= 0"):
            ours.Recipe(lr=lr)
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        ours.Recipe(batch_size=4.5)


@pytest.mark.parametrize(
    ("scale", "dtype", "warned"),
    [
        (1 / 255, torch.float32, True),
        (2 / 255, torch.float32, True),
        (16, torch.float32, True),
        (16, torch.uint16, True),
        (10 / 255, torch.float32, True),
        (1.9, torch.uint16, True),
        (1, torch.float32, False),
        (1, torch.uint8, False),
        (0.004, torch.uint8, False),
        (0, torch.float32, False),
    ],
)
def test_values_of_another_scale_are_warned_of(scale, dtype, warned):
    images = [(part.float() * scale).to(dtype) for part in pictures(8, 16, 16)[:2]]
    model = small()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.predict(images[0])
        model.train(*images)
    said = [str(one.message) for one in said if "values must be in [0, 255]" in str(one.message)]
    assert len(said) == 3 * warned  # one by predict, one for each of the pair


def test_every_image_is_drawn_once_an_epoch():
    images = torch.arange(10).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    drawn = []

    class Spy(ours.Pairs):
        def batch(self, numbers, generator):
            drawn.extend(numbers)
            return super().batch(numbers, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "Pairs", Spy)
        small().train(images, images, 2)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10)) and drawn[:10] != drawn[10:]
    a, b = ours.Pairs(images, images, "cpu").batch([3, 7], random.Random(0))
    assert torch.equal(a, b) and torch.allclose(a[:, 0, 0, 0] * 255, torch.tensor([3.0, 7.0]))


def test_large_images_are_cut_at_the_same_place():
    images = torch.arange(2 * 100 * 150).view(2, 1, 100, 150).expand(2, 3, 100, 150)
    pairs = ours.Pairs(images, images, "cpu")
    assert len(pairs) == 8
    a, b = pairs.batch([0, 3, 4], random.Random(0))
    assert a.shape == (3, 3, 64, 64) and torch.equal(a, b)
    numbers = (a[:, 0] * 255).round().long()
    assert (numbers[:2] < 15000).all() and (numbers[2] >= 15000).all()
    assert torch.equal(numbers[0] - numbers[0, 0, 0], torch.arange(64).view(-1, 1) * 150 + torch.arange(64))


def test_lr_factor():
    rates = [ours.lr_factor(step, 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert 4 <= peak <= 6 and 0.9 < max(rates) <= 1 and rates[-1] < 0.02
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < ours.lr_factor(0, 1) <= 1


def test_uniform_looks_uniform():
    draws = ours.uniform(100_000, random.Random(3), "cpu")
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
    neighbours = ((draws[1:] - 0.5) * (draws[:-1] - 0.5)).mean() * 12
    other = ours.uniform(100_000, random.Random(4), "cpu")
    assert abs(neighbours) < 0.02 and abs(((other - 0.5) * (draws - 0.5)).mean() * 12) < 0.02


# files


def trained():
    noisy, *_ = pictures(10, 8, 8)
    model = small()
    model.train(noisy, noisy, 1)
    return model, noisy


def test_save_and_load(tmp_path):
    model, noisy = trained()
    model.save(tmp_path / "weights.pth")
    other = small(seed=9)
    other.load(str(tmp_path / "weights.pth"))
    assert torch.equal(other.predict(noisy), model.predict(noisy)) and other.pairs_seen == model.pairs_seen
    assert other.noise == model.noise and model.noise is not None
    assert os.listdir(tmp_path) == ["weights.pth"]


def test_load_rebuilds_the_network_of_the_file(tmp_path):
    model = ours.Model(in_channels=2, input_scale=3.0, seed=4, **NEAREST)
    model.save(tmp_path / "w")
    other = ours.Model(recipe=ours.Recipe(lr=0.1), seed=7)
    other.load(tmp_path / "w")
    images = torch.rand(2, 2, 9, 8) * 255
    assert torch.equal(other.predict(images), model.predict(images)) and other.architecture == model.architecture
    assert other.seed == 7 and other.recipe.lr == 0.1


def test_a_link_stays_a_link(tmp_path):
    model, _ = trained()
    target, link = tmp_path / "folder" / "w", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for _ in range(2):
        model.save(link)
        assert link.is_symlink() and not target.is_symlink()
        small().load(target)
    assert os.listdir(target.parent) == ["w"]


def test_many_may_save_at_once(tmp_path):
    models = [small(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: model.save(tmp_path / "w"), 10 * models))
    read = small()
    read.load(tmp_path / "w")
    assert any(torch.equal(weights(read), weights(model)) for model in models) and os.listdir(tmp_path) == ["w"]


def test_several_processes_may_save_at_once(tmp_path):
    code = (
        "import sys; from Miniproject_2.model import Model; m = Model(width=8, deep_width=8, seed=int(sys.argv[1]))\n"
    )
    code += f"for _ in range(30): m.save({str(tmp_path / 'w')!r})"
    root = Path(__file__).resolve().parents[2]
    runs = [subprocess.Popen([sys.executable, "-c", code, str(seed)], cwd=root) for seed in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    read = small()
    read.load(tmp_path / "w")
    assert read.architecture.width == 8 and os.listdir(tmp_path) == ["w"]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "w", tmp_path / "file" / "w", tmp_path):
        with pytest.raises(OSError, match="cannot be written") as caught:
            small().save(path)
        assert str(path) in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"momentum": 0.5},
        {"optimiser": "adam"},
        {"min_steps": 1},
        {"batch_size": 2, "min_batch_size": 2},
    ],
    ids=str,
)
def test_every_setting_of_the_recipe_counts(change):
    ends = []
    for settings in ({}, change):
        model = small(recipe=ours.Recipe(**{"min_pairs": 0} | settings))
        model.train(*pictures(20, 8, 8)[:2], 1)
        ends.append(weights(model))
    assert not torch.equal(*ends)


def test_lack_of_memory_is_not_a_foreign_file(tmp_path, monkeypatch):
    model, _ = trained()
    model.save(tmp_path / "w")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(ours, "Network", fail)
    with pytest.raises(MemoryError):
        model.load(tmp_path / "w")


def test_the_file_is_what_it_says(tmp_path):
    model, _ = trained()
    model.save(tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    length = int.from_bytes(content[8:16], "little")
    payload = content[16 + length : -32]
    values = torch.frombuffer(bytearray(payload), dtype=torch.float32)
    assert torch.equal(values, torch.cat([parameter.flatten() for parameter, _ in model.network.param()]))


@pytest.mark.parametrize("cut", [0, 5, 100, -40, -1])
def test_truncated_files(tmp_path, cut):
    model, noisy = trained()
    before = model.predict(noisy)
    model.save(tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"truncated|not a weights file"):
        model.load(tmp_path / "w")
    assert torch.equal(model.predict(noisy), before)


def test_foreign_damaged_mismatched_and_missing_files(tmp_path, monkeypatch):
    model, _ = trained()
    before = weights(model)
    path = tmp_path / "w"
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not a weights file"):
        model.load(path)
    model.save(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        model.load(path)
    for text in (b"[" * 200_000, b"no JSON"):
        content = ours.MAGIC + len(text).to_bytes(8, "little") + text
        path.write_bytes(content + hashlib.sha256(content).digest())
        with pytest.raises(ValueError, match="not a weights file"):
            model.load(path)
    header, values = {"architecture": SMALL, "pairs_seen": 0, "noise": None}, [0.0] * 3
    for wrong, words in (
        ({"architecture": {"wide": 8}}, "wide"),
        ({"noise": {"offset": 0}}, "errors"),
        ({"pairs_seen": "many"}, "pairs_seen must be a whole number"),
        ({"architecture": {"input_scale": "x"}}, "could not convert"),
        ({"architecture": {"input_scale": 10**400}}, "too large"),
        ({"architecture": {"width": 10**18}}, "does not describe a network"),
        ({}, "3 parameters"),
    ):
        monkeypatch.setattr(ours, "read_weights", lambda path, wrong=wrong: (header | wrong, values))
        with pytest.raises(ValueError, match=words):
            model.load(path)
    spoilt = [math.nan, *values[1:]]
    monkeypatch.setattr(ours, "read_weights", lambda path: (header, spoilt))
    with pytest.raises(ValueError, match="weights that are not finite"):
        model.load(path)
    monkeypatch.undo()
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights file"):
            model.load(missing)
    assert torch.equal(weights(model), before)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    model, _ = trained()
    model.save(tmp_path / "w")
    before = (tmp_path / "w").read_bytes()

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(ours.os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        model.save(tmp_path / "w")
    assert os.listdir(tmp_path) == ["w"] and (tmp_path / "w").read_bytes() == before


# bad input


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        ([[1.0]], TypeError, "must be a torch.Tensor"),
        (torch.ones(8, 8), ValueError, r"batch dimension with images\[None, None\]"),
        (torch.ones(3, 8, 8), ValueError, r"batch dimension with images\[None\]"),
        (torch.ones(1, 1, 8, 8), ValueError, "must have 3 channels"),
        (torch.ones(0, 3, 8, 8), ValueError, "at least one image of one pixel"),
        (torch.ones(1, 3, 0, 8), ValueError, "at least one image of one pixel"),
        (torch.ones(1, 3, 8, 8, dtype=torch.bool), TypeError, "real numbers"),
        (torch.ones(1, 3, 8, 8, dtype=torch.complex64), TypeError, "real numbers"),
        (torch.ones(1, 3, 8, 8).to_sparse(), TypeError, "dense tensor with values; got torch.sparse_coo"),
        (torch.ones(1, 3, 8, 8, device="meta"), TypeError, "got torch.strided on meta"),
        (torch.full((1, 3, 8, 8), float("nan")), ValueError, "finite"),
        (torch.full((1, 3, 8, 8), float("inf")), ValueError, "finite"),
    ],
)
def test_bad_images(images, error, words):
    good = torch.ones(1, 3, 8, 8)
    model = small()
    for call in (
        lambda: model.predict(images),
        lambda: model.train(images, good, 1),
        lambda: model.train(good, images, 1),
    ):
        with pytest.raises(error, match=words):
            call()


def test_bad_pairs_and_epochs():
    model, images = small(), torch.ones(2, 3, 8, 8)
    for other in (torch.ones(3, 3, 8, 8), torch.ones(2, 3, 8, 9)):
        with pytest.raises(ValueError, match="of one shape"):
            model.train(images, other, 1)
    for epochs in (0, -1):
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            model.train(images, images, epochs)
    for epochs in (1.5, "1", True, torch.tensor(1.0), None):
        with pytest.raises(TypeError, match="epochs must be a whole number"):
            model.train(images, images, epochs)
    with pytest.raises(TypeError, match="once"):
        model.train(images, images, 2, num_epochs=1)
