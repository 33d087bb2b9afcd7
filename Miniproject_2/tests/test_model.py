"""Model: predict on anything, train, save and load, errors."""

import os

import pytest
import torch

from Miniproject_2 import model as ours

SMALL = ours.Architecture(width=8, deep_width=12)
NEAREST = ours.Architecture(width=8, deep_width=12, kernel=3, up_kernel=3, upsampling="nearest")


def small(seed=0, **settings):
    return ours.Model(seed, architecture=SMALL, **settings)


def pictures(n, h=32, w=32, seed=0):
    """Smooth clean pictures and two noisy ones of each, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, max(2, h // 8), max(2, w // 8), generator=generator)
    clean = torch.nn.functional.interpolate(coarse, (h, w), mode="bilinear") * 255
    noisy = [(clean + 25 * torch.randn(clean.shape, generator=generator)) for _ in range(2)]
    return (*(x.clamp(0, 255).byte() for x in noisy), clean)


def psnr(model, noisy, clean):
    error = ((model.predict(noisy) - clean) / 255).square().mean((1, 2, 3))
    return (-10 * error.log10()).mean().item()


# prediction


@pytest.mark.parametrize("architecture", [SMALL, NEAREST])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 4), (31, 33), (64, 20)])
@pytest.mark.parametrize("ensemble", [None, True, False])
def test_any_size(architecture, size, ensemble):
    model = ours.Model(architecture=architecture)
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


def test_chunks_and_tiles_equal_the_whole():
    images = torch.rand(3, 3, 150, 122) * 255
    whole = small().predict(images, ensemble=False)
    for settings in (ours.Prediction(chunk_pixels=20_000), ours.Prediction(chunk_pixels=5_000, tile=32)):
        parts = small(prediction=settings).predict(images, ensemble=False)
        assert torch.allclose(parts, whole, atol=1e-3)


def test_reach_is_enough_and_a_multiple_of_four():
    for architecture in (SMALL, NEAREST):
        model = ours.Model(architecture=architecture)
        reach = model.reach()
        assert reach % 4 == 0
        images = torch.full((1, 3, 128, 128), 100.0)
        changed = images.clone()
        changed[:, :, 64, 64] = 255
        difference = (model.predict(images, False) - model.predict(changed, False)).abs().amax((0, 1)).nonzero()
        assert len(difference) and (difference - 64).abs().max() <= reach


@pytest.mark.parametrize("symmetry", range(8))
def test_the_ensemble_commutes_with_the_symmetries(symmetry):
    images = torch.rand(2, 3, 12, 17) * 255
    moved = small().predict(ours.transform(images, symmetry), ensemble=True)
    expected = ours.transform(small().predict(images, ensemble=True), symmetry)
    assert torch.allclose(moved, expected, atol=1e-3)
    assert torch.equal(ours.transform_back(ours.transform(images, symmetry), symmetry), images)


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
    model = ours.Model(architecture=ours.Architecture(**settings))
    noisy_a, noisy_b, _ = pictures(32, 16, 16)
    for _ in range(2):
        straight = model.predict(noisy_a, ensemble=False)
        turned = [model.predict(ours.transform(noisy_a, s), ensemble=False) for s in range(8)]
        largest = max((ours.transform_back(image, s) - straight).abs().max().item() for s, image in enumerate(turned))
        assert straight.std() > 1 and (largest < 0.01) is turns and model.architecture.equivariant is turns
        model.train(noisy_a, noisy_b, 4)


def test_orbits_share_the_weights_out_evenly():
    network = ours.build_network(ours.Architecture(width=8, deep_width=16), ours.random.Random(0))
    orbits = ours.parameter_orbits(network)
    assert [len(o) for o in orbits] == [8, 8, 8, 8, 8, 8, 8, 1]  # the last bias belongs to colours
    for (parameter, _), entries in zip(network.param(), orbits, strict=True):
        assert torch.equal(entries.flatten().sort().values, torch.arange(parameter.numel()))
        assert torch.allclose(parameter.flatten()[entries], parameter.flatten()[entries[:1]])


@pytest.mark.parametrize("seen", [(0, False, False), (3, True, False), (6, False, True), (5, True, True)])
def test_views_have_inverses(seen):
    images = torch.rand(2, 3, 5, 8) * 255
    assert torch.allclose(ours.view_back(ours.view(images, *seen), *seen), images, atol=1e-4)
    assert torch.equal(ours.view(images, *seen), images) is (seen == (0, False, False))


def test_the_ensemble_of_an_equivariant_network_commutes_with_negatives_and_colour_order():
    model = ours.Model(architecture=ours.Architecture(width=8, deep_width=16))
    images = torch.rand(2, 3, 12, 16) * 255
    together = model.predict(images, ensemble=True)
    assert torch.allclose(255 - model.predict(255 - images, ensemble=True), together, atol=1e-3)
    assert torch.allclose(model.predict(images.flip(1), ensemble=True).flip(1), together, atol=1e-3)
    assert not torch.allclose(model.predict(images, ensemble=False), together, atol=1e-1)


def test_the_eight_symmetries_differ():
    image = torch.arange(9).view(1, 1, 3, 3)
    assert len({tuple(ours.transform(image, s).flatten().tolist()) for s in range(8)}) == 8


def test_ensemble_none_follows_the_size():
    limit = ours.Prediction(ensemble_side=16)
    for size in (16, 20):
        images = torch.rand(1, 3, size, size) * 255
        expected = small().predict(images, ensemble=size == 16)
        assert torch.equal(small(prediction=limit).predict(images), expected)


# training


def test_training_improves_pictures_it_never_saw():
    noisy_a, noisy_b, _ = pictures(500, 16, 16)
    noisy, _, clean = pictures(50, 16, 16, seed=1)
    model = small()
    model.train(noisy_a, noisy_b, 6)
    baseline = (-10 * ((noisy - clean) / 255).square().mean((1, 2, 3)).log10()).mean()
    assert psnr(model, noisy, clean) > baseline + 2
    assert model.pairs_seen == 3000


def test_more_training_goes_on_at_a_lower_rate():
    noisy_a, noisy_b, _ = pictures(200, 16, 16)
    noisy, _, clean = pictures(50, 16, 16, seed=1)
    model = small(recipe=ours.Recipe(reference_pairs=500))
    model.train(noisy_a, noisy_b, 8)
    before = psnr(model, noisy, clean)
    model.train(noisy_a, noisy_b, 4)
    assert psnr(model, noisy, clean) > before - 0.1


@pytest.mark.parametrize(
    "call", [lambda t, a: t(a, a, 2), lambda t, a: t(a, a, num_epochs=2), lambda t, a: t(a, a, epochs=2)]
)
def test_the_three_forms_of_epochs(call):
    model = small()
    call(model.train, pictures(7, 8, 8)[0])
    assert 14 <= model.pairs_seen <= 16


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
    model = ours.Model(architecture=NEAREST)
    model.train(noisy_a, noisy_b, 10, progress=lambda step, steps, loss: losses.append(loss.item()))
    assert sum(losses[-10:]) < sum(losses[:10])


def test_training_leaves_the_average_of_the_weights():
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    model, weights = small(recipe=ours.Recipe(average_share=1.0)), []
    copies = lambda: [parameter.clone() for parameter, _ in model.network.param()]  # noqa: E731
    model.train(noisy_a, noisy_b, 2, progress=lambda step, steps, loss: weights.append(copies()))
    assert len(weights) == 10
    for left, *passed in zip(copies(), *weights, strict=True):
        torch.testing.assert_close(left, sum(passed) / len(passed))


def test_the_default_dtype_of_the_caller_does_not_matter():
    noisy_a, noisy_b, _ = pictures(8, 16, 16)
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            model = small()
            model.train(noisy_a, noisy_b, 1)
            results.append(model.predict(noisy_a))
        finally:
            torch.set_default_dtype(torch.float32)
    assert {result.dtype for result in results} == {torch.float32}
    assert torch.allclose(*results, atol=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ours.Architecture(upsampling="transpose"), "'nearest', got 'transpose'"),
        (lambda: ours.Architecture(up_kernel=3), "must be even"),
        (lambda: ours.Architecture(up_kernel=4, upsampling="nearest"), "must be odd"),
        (lambda: ours.Prediction(tile=30), "multiple of 4"),
    ],
)
def test_unusable_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_same_seed_gives_the_same_weights():
    noisy_a, noisy_b, _ = pictures(20, 16, 16)
    weights = []
    for seed in (1, 1, 2):
        model = small(seed)
        torch.rand(3)  # the global generator has no part in it
        model.train(noisy_a, noisy_b, 1)
        weights.append(torch.cat([parameter.flatten() for parameter, _ in model.network.param()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


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


def test_exchange_moves_whole_pixels():
    a, b = torch.zeros(4, 3, 20, 20), torch.ones(4, 3, 20, 20)
    c, d = ours.exchange(a, b, ours.random.Random(0))
    assert torch.equal(c + d, a + b) and torch.equal(c[:, 0], c[:, 1]) and torch.equal(c[:, 0], c[:, 2])
    assert 0.45 < c.mean() < 0.55


def test_every_image_is_drawn_once_an_epoch():
    images = torch.arange(10).view(10, 1, 1, 1).expand(10, 3, 2, 2)
    batches = ours.Batches(images, images, 64, ours.random.Random(0))
    draws = torch.cat([batches.draw(4)[0][:, 0, 0, 0] for _ in range(5)])
    assert sorted(draws[:10].tolist()) == sorted(draws[10:].tolist()) == list(range(10))
    assert draws[:10].tolist() != draws[10:].tolist()


def test_large_images_are_cut_at_the_same_place():
    images = torch.arange(2 * 100 * 150).view(2, 1, 100, 150).expand(2, 3, 100, 150)
    batches = ours.Batches(images, images, 64, ours.random.Random(0))
    assert batches.length == 8
    a, b = batches.draw(3)
    assert a.shape == (3, 3, 64, 64) and torch.equal(a, b)


def test_schedule():
    rates = [ours.schedule(step, 100, 0.1) for step in range(100)]
    peak = rates.index(max(rates))
    assert 8 <= peak <= 10 and 0.98 < max(rates) <= 1 and rates[-1] < 0.02
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < ours.schedule(0, 1, 0.1) <= 1


def test_uniform_looks_uniform():
    draws = ours.uniform(100_000, ours.random.Random(3))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
    neighbours = ((draws[1:] - 0.5) * (draws[:-1] - 0.5)).mean() * 12
    other = ours.uniform(100_000, ours.random.Random(4))
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
    assert os.listdir(tmp_path) == ["weights.pth"]


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
    with pytest.raises(ValueError, match=r"truncated|not written by"):
        model.load(tmp_path / "w")
    assert torch.equal(model.predict(noisy), before)


def test_foreign_damaged_mismatched_and_missing_files(tmp_path):
    model, _ = trained()
    path = tmp_path / "w"
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not written by"):
        model.load(path)
    model.save(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        model.load(path)
    model.save(path)
    with pytest.raises(ValueError, match="another network: architecture"):
        ours.Model(architecture=NEAREST).load(path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights at"):
            model.load(missing)


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
        ([[1.0]], TypeError, "must be a tensor"),
        (torch.ones(3, 8, 8), ValueError, "batch dimension"),
        (torch.ones(1, 1, 8, 8), ValueError, r"\(N, 3, H, W\)"),
        (torch.ones(0, 3, 8, 8), ValueError, "at least one pixel"),
        (torch.ones(1, 3, 0, 8), ValueError, "at least one pixel"),
        (torch.ones(1, 3, 8, 8, dtype=torch.bool), TypeError, "real numbers"),
        (torch.ones(1, 3, 8, 8, dtype=torch.complex64), TypeError, "real numbers"),
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
    for other in (torch.ones(3, 3, 8, 8), torch.ones(2, 3, 8, 9), images.byte()):
        with pytest.raises(ValueError, match="must agree"):
            model.train(images, other, 1)
    for epochs, error in (
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        ("1", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="number of epochs"):
            model.train(images, images, epochs)
    with pytest.raises(TypeError, match="once"):
        model.train(images, images, 1, epochs=1)
