"""The noises of photographs: each has the mean, the level and the correlations that it promises."""

import dataclasses

import pytest
import torch

from Miniproject_1.others import photo_noise
from Miniproject_1.others.photo_noise import AddedNoise, CameraNoise, FileFormat, Mixture, noisy_and_mean


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_file(count=1, **changes):
    """Files that keep the images as they are."""
    never = torch.zeros(count, dtype=torch.bool)
    plain = FileFormat(torch.zeros(count, dtype=torch.int64), never, torch.zeros(count, 2, dtype=torch.int64), never)
    return dataclasses.replace(plain, **changes)


def added(count=1, **changes):
    """White noise of level 0.1, alike in all channels."""
    white = AddedNoise(
        level=torch.full((count,), 0.1),
        signal=torch.zeros(count),
        gains=torch.ones(count, 3),
        sharing=torch.zeros(count),
        blur=torch.zeros(count),
        enlarged=torch.ones(count, dtype=torch.int64),
        offset=torch.zeros(count, 2, dtype=torch.int64),
        spread=torch.ones(count, 1, 3, 3),
        file=plain_file(count),
    )
    return dataclasses.replace(white, **changes)


def camera(count=1, **changes):
    """A camera that only mosaics and demosaics, with weak noise."""
    simple = CameraNoise(
        shot=torch.full((count,), 1e-3),
        read=torch.full((count,), 1e-3),
        balance=torch.tensor([[2.0, 1.0, 1.6]]).repeat(count, 1),
        colours=torch.eye(3).repeat(count, 1, 1),
        gradients=torch.zeros(count, dtype=torch.bool),
        tone=torch.zeros(count),
        luma_blur=torch.zeros(count),
        chroma_blur=torch.zeros(count),
        sharpening=torch.zeros(count),
        file=plain_file(count),
    )
    return dataclasses.replace(simple, **changes)


def grey(value=0.5, count=1, side=64):
    return torch.full((count, 3, side, side), value)


def noise_of(noise, clean, draws=20, seed=0):
    """(draws, B, 3, H, W): draws without the mean over them, scaled so that the variance is that of the noise."""
    every = torch.stack(list(noise.draws(clean, draws, generator(seed))))
    return (every - every.mean(0)) * (draws / (draws - 1)) ** 0.5


def correlation(a, b):
    return ((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()).item()


# ---------------------------------------------------------------------------------------------- every noise

KINDS = {
    "white": added(),
    "signal": added(signal=torch.ones(1)),
    "channels": added(sharing=torch.full((1,), 0.6), gains=torch.tensor([[0.5, 1.0, 1.3]])),
    "blurred": added(blur=torch.ones(1)),
    "enlarged": added(enlarged=torch.full((1,), 2), offset=torch.ones(1, 2, dtype=torch.int64)),
    "varying": added(spread=torch.linspace(0.2, 1, 9).view(1, 1, 3, 3)),
}
CAMERAS = {
    "bilinear": camera(),
    "gradients": camera(gradients=torch.ones(1, dtype=torch.bool)),
    "developed": camera(
        colours=1.4 * torch.eye(3)[None] - 0.4 / 3,
        tone=torch.ones(1),
        luma_blur=torch.full((1,), 0.7),
        chroma_blur=torch.full((1,), 3.0),
        sharpening=torch.full((1,), 0.5),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_added_noise_is_the_clean_image(kind):
    clean = torch.rand(1, 3, 32, 32, generator=generator(1))
    every = torch.stack(list(KINDS[kind].draws(clean, 400, generator())))
    error = (every.mean(0) - clean) / (every.std(0) / 400**0.5)  # of each value, in standard errors
    assert error.abs().max() < 5.5
    assert abs(error.square().mean().item() - 1) < 0.25


@pytest.mark.parametrize("kind", [*KINDS, *CAMERAS])
def test_draws_are_independent_and_alike(kind):
    noise = (KINDS | CAMERAS)[kind]
    clean = 0.4 + 0.2 * torch.rand(1, 3, 16, 16, generator=generator(1))
    every = torch.stack(list(noise.draws(clean, 800, generator())))
    first, second = every[:400], every[400:]
    error = (first.mean(0) - second.mean(0)) / (every.std(0) * (2 / 400) ** 0.5)
    assert error.abs().max() < 5.5  # both halves have one mean: the target's is the mean of many draws
    assert abs((first.var(0).mean() / second.var(0).mean()).log().item()) < 0.05
    deviations = every - every.mean(0)
    assert abs(correlation(deviations[:-1], deviations[1:])) < 0.01


@pytest.mark.parametrize("kind", [*KINDS, *CAMERAS])
def test_the_mean_of_draws_has_their_mean_and_covariance_a_count_smaller(kind):
    noise, random = (KINDS | CAMERAS)[kind], generator()
    clean = 0.4 + 0.2 * torch.rand(1, 3, 16, 16, generator=generator(1))
    draws = torch.stack(list(noise.draws(clean, 800, random)))
    means = torch.stack([noise.mean_of_draws(clean, 4, random) for _ in range(400)])
    error = (draws.mean(0) - means.mean(0)) / (draws.std(0) * (1 / 800 + 1 / 1600) ** 0.5)
    assert error.abs().max() < 5.5
    draws, means = draws - draws.mean(0), means - means.mean(0)
    for shift in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):  # none; channels, rows, columns
        expected, found = ((x * x.roll(shift, (2, 3, 4))).mean().item() for x in (draws / 2, means))
        assert abs(found - expected) < 0.03 * means.var().item()


def test_files_are_of_high_quality_more_often_than_of_low():
    quality = FileFormat.random(4000, 1.0, 0.0, generator()).quality
    assert quality.min() == 50 and quality.max() == 98
    assert (quality > 85).float().mean().item() == pytest.approx(0.515, abs=0.03)


# ---------------------------------------------------------------------------------------------- added noise


def test_the_level_is_the_standard_deviation():
    levels = torch.tensor([5.0, 55.0]) / 255
    noise = noise_of(added(2, level=levels), grey(count=2))
    assert torch.allclose(noise.std((0, 2, 3, 4)), levels, rtol=0.02)


@pytest.mark.parametrize("brightness", [0.1, 0.5, 0.9])
def test_the_variance_of_signal_dependent_noise_is_proportional_to_the_brightness(brightness):
    noise = noise_of(added(signal=torch.ones(1)), grey(brightness))
    assert noise.var().item() == pytest.approx(0.01 * 2 * brightness, rel=0.03)


def test_channels_share_noise_and_have_levels_of_their_own():
    noise = noise_of(KINDS["channels"], grey())[:, 0]
    assert torch.allclose(noise.std((0, 2, 3)), torch.tensor([0.05, 0.1, 0.13]), rtol=0.02)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert correlation(noise[:, a], noise[:, b]) == pytest.approx(0.6, abs=0.02)


def test_blurred_noise_keeps_its_level_and_correlates_neighbours():
    noise = noise_of(added(blur=torch.ones(1)), grey(side=96))[..., 4:-4, 4:-4]
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    for distance in (1, 2):  # white noise blurred by s: exp(-(distance / 2 s)^2)
        expected = 2.718281828 ** (-((distance / 2) ** 2))
        assert correlation(noise[..., distance:], noise[..., :-distance]) == pytest.approx(expected, abs=0.03)
        assert correlation(noise[..., distance:, :], noise[..., :-distance, :]) == pytest.approx(expected, abs=0.03)


def test_enlarged_noise_is_the_same_in_each_square():
    noise = added(enlarged=torch.full((1,), 3), offset=torch.tensor([[1, 2]]))
    (draw,) = noise.draws(grey(side=16), 1, generator())
    assert torch.equal(draw[..., :2, :], draw[..., :1, :].expand(-1, -1, 2, -1))  # two of the first three rows are left
    assert torch.equal(draw[..., 2:5, 1:4], draw[..., 2:3, 1:2].expand(-1, -1, 3, 3))
    assert (draw[..., 2, 0] != draw[..., 2, 1]).all() and (draw[..., 1, 1] != draw[..., 2, 1]).all()
    assert noise_of(noise, grey(side=96)).std().item() == pytest.approx(0.1, rel=0.03)


def test_the_level_varies_over_the_picture():
    noise = noise_of(KINDS["varying"], grey(side=65), draws=200)
    corners = [
        noise[..., rows, columns].std().item() for rows, columns in ((slice(2), slice(2)), (slice(-2, None),) * 2)
    ]
    assert corners == pytest.approx([0.02, 0.1], rel=0.1)


# ---------------------------------------------------------------------------------------------- camera noise


@pytest.mark.parametrize("kind", CAMERAS)
@pytest.mark.parametrize("colour", [(0.2, 0.2, 0.2), (0.7, 0.5, 0.3)])
def test_a_flat_colour_comes_back_from_the_sensor(kind, colour):
    clean = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 16, 16).contiguous()
    silent = dataclasses.replace(CAMERAS[kind], shot=torch.zeros(1), read=torch.zeros(1))
    (shot,) = silent.draws(clean, 1, generator())
    assert torch.allclose(shot, clean, atol=2e-3)


@pytest.mark.parametrize("gradients", [False, True])
def test_demosaicing_restores_a_ramp(gradients):
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramp = (0.1 + 0.02 * rows + 0.03 * columns).expand(1, 3, 16, 16)
    images = photo_noise.demosaiced(photo_noise.to_mosaic(ramp), torch.tensor([gradients]))
    assert torch.allclose(images[..., 2:-2, 2:-2], ramp[..., 2:-2, 2:-2], atol=1e-5)


def test_demosaicing_keeps_what_the_sensor_saw():
    images = torch.rand(2, 3, 8, 8, generator=generator())
    mosaic = photo_noise.to_mosaic(images)
    assert torch.equal(mosaic[:, 0, ::2, ::2], images[:, 0, ::2, ::2])  # red
    assert torch.equal(mosaic[:, 0, 1::2, 1::2], images[:, 2, 1::2, 1::2])  # blue
    developed = photo_noise.demosaiced(mosaic, torch.tensor([False, True]))
    assert torch.equal(photo_noise.to_mosaic(developed), mosaic)


def test_more_light_per_value_means_less_noise():
    noise = noise_of(camera(2, shot=torch.tensor([1e-3, 4e-3]), read=torch.zeros(2)), grey(count=2))
    weak, strong = noise.std((0, 2, 3, 4)).tolist()
    assert strong / weak == pytest.approx(2, rel=0.03)


def test_noise_reduction_leaves_coarse_noise_coarser_in_colour():
    noise = noise_of(camera(luma_blur=torch.full((1,), 0.7), chroma_blur=torch.full((1,), 3.0)), grey(side=96))
    luma = torch.einsum("c,dbchw->dbhw", photo_noise.LUMA, noise)
    blue = noise[:, :, 2] - luma
    assert 0.4 < correlation(luma[..., 1:], luma[..., :-1]) < 0.85
    assert correlation(blue[..., 4:], blue[..., :-4]) > 0.4 > correlation(luma[..., 4:], luma[..., :-4])


def test_sharpening_makes_noise_stronger():
    plain, sharp = (noise_of(camera(sharpening=torch.tensor([amount])), grey()).std() for amount in (0.0, 0.8))
    assert sharp > 1.1 * plain


# ---------------------------------------------------------------------------------------------- files


def test_rounded_files_hold_whole_grey_values():
    images = torch.rand(2, 3, 16, 16, generator=generator()) * 1.4 - 0.2
    plain, rounded = plain_file(2, rounded=torch.tensor([False, True])).stored(images)
    assert torch.equal(plain, images[0])
    assert torch.equal((rounded * 255).round() / 255, rounded) and rounded.min() == 0 and rounded.max() == 1


def test_jpeg_is_coded_on_the_grid_that_is_asked_for():
    pytest.importorskip("PIL")
    images = torch.rand(1, 3, 32, 32, generator=generator()).repeat(2, 1, 1, 1)
    file = plain_file(2, quality=torch.tensor([60, 60]), shift=torch.tensor([[0, 0], [3, 5]]))
    first, moved = file.stored(images)
    assert torch.equal(first, photo_noise.jpeg(images[0], 60, False))
    assert first.shape == moved.shape and not torch.equal(first, moved)
    padded = torch.nn.functional.pad(images[:1], (5, 0, 3, 0), mode="replicate")[0]
    assert torch.equal(moved, photo_noise.jpeg(padded, 60, False)[:, 3:, 5:])


def test_jpeg_loses_less_at_higher_quality_and_without_subsampling():
    pytest.importorskip("PIL")
    image = torch.rand(3, 32, 32, generator=generator())
    lost = [(photo_noise.jpeg(image, *how) - image).square().mean() for how in ((50, True), (95, True), (95, False))]
    assert lost[0] > lost[1] > 2 * lost[2] > 0


# ---------------------------------------------------------------------------------------------- mixtures

WHITE = Mixture(camera=0.0, signal=0.0, channels=0.0, neighbours=0.0, varying=0.0, jpeg=0.0, rounded=0.0)


def test_the_same_seed_gives_the_same_pairs():
    pytest.importorskip("PIL")
    clean = torch.rand(8, 3, 32, 32, generator=generator())
    pairs, again, other = (noisy_and_mean(clean, generator(seed)) for seed in (3, 3, 4))
    assert all(map(torch.equal, pairs, again))
    assert not torch.equal(pairs[0], other[0])


def test_levels_are_spread_evenly_up_to_the_largest():
    clean = grey(count=400, side=16)
    noisy, _ = noisy_and_mean(clean, generator(), WHITE)
    levels = (noisy - clean).std((1, 2, 3)) * 255
    assert levels.mean().item() == pytest.approx(27.5, abs=2.5)
    assert levels.min() < 3 and 50 < levels.max() < 60


def test_the_target_has_the_noise_of_a_mean_and_is_not_clipped():
    clean = grey(0.0, count=200, side=16)
    noisy, mean = noisy_and_mean(clean, generator(), dataclasses.replace(WHITE, rounded=1.0, others=4))
    assert noisy.min() == 0 and mean.min() < -0.1
    error = mean.mean() / (mean.std() / mean.numel() ** 0.5)
    assert abs(error) < 4  # clipped, its mean would be above that of the clean images
    exact, mean = noisy_and_mean(clean, generator(), dataclasses.replace(WHITE, others=4))
    assert (exact.std() / mean.std()).item() == pytest.approx(2, rel=0.03)


def test_noise_of_input_and_target_is_independent():
    pytest.importorskip("PIL")
    clean = grey(count=300, side=16)
    for mixture in (Mixture(camera=0.0, rounded=0.0, jpeg=0.0), Mixture(camera=1.0, camera_jpeg=0.0, rounded=0.0)):
        noisy, mean = (images - clean for images in noisy_and_mean(clean, generator(), mixture))
        each = (noisy * mean).mean((1, 2, 3)) / (noisy.std((1, 2, 3)) * mean.std((1, 2, 3)))
        assert abs(each.mean()) < 4 * each.std() / len(each) ** 0.5 + 0.005


def test_shares_choose_the_family():
    clean = torch.rand(64, 3, 16, 16, generator=generator())
    white = dataclasses.replace(WHITE, max_level=0.0, camera_jpeg=0.0)
    untouched = noisy_and_mean(clean, generator(), white)[0] == clean
    assert untouched.all()  # added noise of level 0
    half = noisy_and_mean(clean, generator(), dataclasses.replace(white, camera=0.5))[0] == clean
    assert 16 < half.all(3).all(2).all(1).sum() < 48


@pytest.mark.parametrize("wrong", [{"camera": 1.5}, {"jpeg": -0.1}, {"max_level": -1.0}, {"others": 0}], ids=str)
def test_impossible_mixtures_are_refused(wrong):
    with pytest.raises(ValueError, match="mixture"):
        Mixture(**wrong)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 15, 16), (1, 3, 16, 14)], ids=str)
def test_impossible_images_are_refused(shape):
    with pytest.raises(ValueError, match="clean must be"):
        noisy_and_mean(torch.rand(shape), generator())
    with pytest.raises(TypeError, match="floating"):
        noisy_and_mean(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), generator())
