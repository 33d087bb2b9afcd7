"""measure_noise: what pairs of many kinds of noise tell, and that both projects measure alike."""

import inspect
import math

import pytest
import torch
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

from Miniproject_1 import model as project_1
from Miniproject_2 import model as ours


def scenes(n, h=32, w=32):
    """Smooth clean pictures in [0, 255], far enough from both ends for noise of level 20."""
    coarse = torch.rand(n, 3, max(2, h // 8), max(2, w // 8), generator=torch.Generator().manual_seed(n))
    return 70 + 115 * interpolate(coarse, (h, w), mode="bilinear")


def measured(kind, *shape, seed=0):
    """`kind(clean, white)` gives one noisy version; `white` draws standard normal noise of the shape it is given."""
    generator = torch.Generator().manual_seed(seed)
    clean = scenes(*shape)

    def white(*size):
        return torch.randn(size or clean.shape, generator=generator)

    return ours.measure_noise(*(kind(clean, white).round().clamp(0, 255).byte() for _ in range(2)))


def blurred(clean, white):
    return clean + 60 * avg_pool2d(white(), 3, stride=1, padding=1)


def enlarged(clean, white):
    n, c, h, w = clean.shape
    return clean + 20 * interpolate(white(n, c, h // 2, w // 2), scale_factor=2)


def in_rows(clean, white):
    n, c, h, _ = clean.shape
    return clean + 20 * white() + 6 * white(n, c, h, 1)


def in_columns(clean, white):
    n, c, _, w = clean.shape
    return clean + 20 * white() + 6 * white(n, c, 1, w)


def drifting(clean, white):
    """The exposure of each image is a little different."""
    return clean + 20 * white() + 6 * white(clean.shape[0], 1, 1, 1)


def sampled(clean, white):
    """The course's noise: each pixel one draw of what its cell holds; flat cells have none of it."""
    texture = (clean - clean.mean((2, 3), keepdim=True)).abs()
    return clean + texture * white()[:, :1].sign() * white()[:, :1].square()


@pytest.mark.parametrize("shape", [(1000,), (104,), (1, 300, 260), (6, 100, 70), (3000, 8, 8)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_white_noise_may_be_swapped(shape, seed):
    noise = measured(lambda clean, white: clean + 20 * white(), *shape, seed=seed)
    assert noise.exchangeable, noise
    assert abs(noise.correlation) < 0.02 and abs(noise.imbalance) < 0.05 and noise.channel_ratio < 1.1


@pytest.mark.parametrize("seed", range(10))
def test_noise_like_the_courses_may_be_swapped(seed):
    assert measured(sampled, 1000, seed=seed).exchangeable


@pytest.mark.parametrize("shape", [(1000,), (104,), (1, 300, 260)], ids=str)
@pytest.mark.parametrize("kind", [blurred, enlarged, in_rows, in_columns, drifting])
def test_noise_that_neighbours_share_may_not_be_swapped(kind, shape):
    noise = measured(kind, *shape)
    assert not noise.exchangeable, noise
    if kind is blurred:
        assert noise.correlation == pytest.approx(2 / 3, abs=0.05)
    if kind is enlarged:
        assert noise.correlation == pytest.approx(0.5, abs=0.05)
    if kind in (in_rows, in_columns):
        assert noise.line_correlation == pytest.approx(36 / 436, abs=0.03)


def test_unlike_images_may_not_be_swapped():
    white = torch.randn(2, 1000, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clean = scenes(1000)
    for b, expected in ((clean + 12 * white[1], 0.47), (clean + 16 * white[1], 0.22)):
        noise = ours.measure_noise(clean + 20 * white[0], b)
        assert noise.imbalance == pytest.approx(expected, abs=0.02) and not noise.exchangeable
        other = ours.measure_noise(b, clean + 20 * white[0])
        assert other.imbalance == pytest.approx(-noise.imbalance, abs=1e-6) and not other.exchangeable
    assert ours.measure_noise(clean + 20 * white[0], clean + 19 * white[1]).exchangeable
    brighter = ours.measure_noise(clean + 20 * white[0] + 5, clean + 20 * white[1])
    assert brighter.offset == pytest.approx(5 / (20 * math.sqrt(2)), abs=0.02) and not brighter.exchangeable
    much = ours.measure_noise(clean + 20 * white[0] + 80, clean + 20 * white[1])
    assert much.offset == pytest.approx(80 / (20 * math.sqrt(2)), abs=0.1)
    assert ours.measure_noise(clean + 5, clean).offset > 1000
    assert abs(brighter.correlation) < 0.02  # what is constant is in the offset alone
    assert not ours.measure_noise(1.2 * clean + 20 * white[0], clean + 20 * white[1]).exchangeable
    mean_of_seven = clean + 20 / math.sqrt(7) * white[1]
    assert ours.measure_noise(clean + 20 * white[0], mean_of_seven).imbalance == pytest.approx(0.75, abs=0.02)


def test_channels_of_unlike_noise_are_told():
    strength = torch.tensor([5.0, 10.0, 20.0]).view(3, 1, 1)
    noise = measured(lambda clean, white: clean + strength * white(), 200)
    assert noise.channel_ratio == pytest.approx(4, rel=0.1) and noise.exchangeable


def test_few_pixels_are_not_enough():
    for seed in range(20):
        for shape in ((1, 32, 32), (1, 1, 1), (5, 1, 1), (2, 5, 1), (1, 40, 3)):
            assert not measured(lambda clean, white: clean + 20 * white(), *shape, seed=seed).exchangeable


@pytest.mark.parametrize("images", [torch.zeros(50, 3, 32, 32), scenes(50), scenes(50).byte()])
def test_equal_images_tell_nothing(images):
    noise = ours.measure_noise(images, images)
    assert not noise.exchangeable
    assert not any(math.isnan(value) for value in (*vars(noise).values(), *noise.errors) if isinstance(value, float))


def shuffled(images):
    order = torch.arange(len(images))
    order[: len(images) // 2] = order[: len(images) // 2].roll(1)
    return images[order]


def turned(images, degrees=2):
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    grid = affine_grid(matrix.expand(len(images), -1, -1), images.shape, align_corners=False)
    return grid_sample(images, grid, align_corners=False)


MISMATCHES = {
    "mirrored": (lambda images: images.flip(3), "mirrored or turned"),
    "transposed": (lambda images: images.transpose(2, 3), "mirrored or turned"),
    "channels reversed": (lambda images: images.flip(1), "reversed in its channels"),
    "both": (lambda images: images.flip(1, 2), "mirrored or turned and reversed in its channels"),
    "half of the pairs mixed up": (shuffled, "different scenes"),
    "displaced by a pixel": (lambda images: images.roll(1, 3), "displaced"),
    "turned by two degrees": (turned, "displaced"),
    "less contrast": (lambda images: 128 + 0.8 * (images - 128), "contrast"),
}


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
@pytest.mark.parametrize("change, message", MISMATCHES.values(), ids=MISMATCHES)
def test_pairs_that_do_not_match_are_told_from_noise(change, message, project):
    white = torch.randn(2, 40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clean = scenes(40, 64, 64)
    assert message in project.mismatch_warning(clean + 10 * white[0], change(clean) + 10 * white[1])


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
@pytest.mark.parametrize("level", [5, 20, 40])
@pytest.mark.parametrize("size", [(60, 32, 32), (60, 24, 40), (9, 300, 271)])
def test_mirrored_pairs_are_told_from_noise_of_any_level(size, level, project):
    white = torch.randn(2, *scenes(*size).shape, generator=torch.Generator().manual_seed(0))
    a, b = scenes(*size) + level * white
    for axes in ((2,), (3,), (2, 3)):
        assert "mirrored or turned" in project.mismatch_warning(a, b.flip(axes))
    assert not project.mismatch_warning(a, b)


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
@pytest.mark.parametrize("kind", [blurred, enlarged, in_rows, in_columns, drifting, sampled])
@pytest.mark.parametrize("clean", [scenes(40, 64, 64), torch.full((40, 3, 64, 64), 120.0), scenes(300)])
def test_noise_of_many_kinds_is_no_mismatch(clean, kind, project):
    generator = torch.Generator().manual_seed(0)

    def white(*size):
        return torch.randn(size or clean.shape, generator=generator)

    assert not project.mismatch_warning(kind(clean, white), kind(clean, white))
    assert not project.mismatch_warning(clean + 5 * white(), clean + 25 * white())


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
def test_a_mismatch_does_not_show_in_too_few_pixels(project):
    for size in ((1, 3, 1, 1), (9, 1, 8, 8), (1, 3, 16, 16), (2, 3, 17, 40)):
        images = scenes(*size[:1], *size[2:])
        for other in (images, images + torch.randn(images.shape)):
            assert not project.mismatch_warning(images, other)


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
@pytest.mark.parametrize(("pixels", "level", "coarse"), [(0.5, 10, 1), (1, 30, 1), (4, 30, 2), (8, 20, 4)])
def test_displacements_are_told_with_their_distance(pixels, level, coarse, project):
    clean = interpolate(scenes(4, 512 // coarse, 512 // coarse), (512, 512), mode="bilinear")
    moved = torch.lerp(clean.roll(math.floor(pixels), 3), clean.roll(math.ceil(pixels), 3), pixels % 1)
    white = torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(0))
    a, b = clean + level * white[0], moved + level * white[1]
    assert project.displaced_share(a / 255, b / 255)[2] == pytest.approx(pixels, rel=0.4)
    assert "displaced" in project.mismatch_warning(a, b)


@pytest.mark.parametrize("project", [project_1, ours], ids=["project 1", "project 2"])
@pytest.mark.parametrize("axis", [2, 3])
def test_strong_stripes_are_no_displacement(axis, project):
    clean = scenes(40, 64, 64)
    generator = torch.Generator().manual_seed(0)
    stripes = torch.randn(2, 40, 1, 64, generator=generator).unsqueeze(7 - axis - 1)  # along the axis
    a, b = (clean + 2 * torch.randn(clean.shape, generator=generator) + 25 * one for one in stripes)
    assert "displaced" not in project.mismatch_warning(a, b)


def test_large_sets_cost_no_more():
    noisy = torch.zeros(1, 3, 32, 32, dtype=torch.uint8).expand(2_000_000, -1, -1, -1)
    assert not ours.measure_noise(noisy, noisy).exchangeable
    large = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(2, -1, 100_000, 100_000)
    assert not ours.measure_noise(large, large).exchangeable


OWN = {  # of the same name in both projects, and meant to differ: by the framework, the recipe or the file format
    "CHUNK", "LR_DECAY_PAIRS", "MOST_PASSES", "PRETRAINED", "TILE",
    "Conv2d", "Model", "Muon", "Pairs", "Recipe", "Training",
    "augment", "check_images", "default_device", "has_native_bfloat16", "keep_freed_memory", "newton_schulz", "orbits",
    "out_of_scale", "permute_groups", "random_mask", "read_weights", "regular_representation", "rounds_matrices",
    "sampled_positions", "save_atomically", "swap_pixels", "usable_device", "warn", "whole_number",
}  # fmt: skip


def test_what_both_projects_have_is_alike():
    """Neither file may import the other: what they share is written twice, and must not drift apart."""
    of_both = {name for name in vars(ours).keys() & vars(project_1).keys() if not name.startswith("_")}
    compared = 0
    for name in of_both - OWN:
        mine, other = getattr(ours, name), getattr(project_1, name)
        if name.isupper():
            assert mine == other, name
        elif getattr(mine, "__module__", None) == ours.__name__:
            assert inspect.getsource(mine) == inspect.getsource(other), name
        compared += 1
    assert compared > 40
