"""What both models do alike: files, devices, what `progress` may do, and what is measured of pairs."""

import math
import os

import pytest
import torch

from Miniproject_1 import model as project_1
from Miniproject_2 import model as project_2

BOTH = pytest.mark.parametrize("project", [project_1, project_2], ids=["project_1", "project_2"])
SIZES = {project_1: {"width": 8}, project_2: {"width": 8, "deep_width": 8}}


def small(project, **settings):
    """A small network that passes over the pairs as often as it is asked to."""
    defaults = {"device": "cpu", "recipe": project.Recipe(min_pairs=0)}
    return project.Model(**SIZES[project] | defaults | settings)


def noisy_images(*shape, level=15):
    return 128 + level * torch.randn(shape, generator=torch.Generator().manual_seed(0))


# files


@BOTH
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_or_a_device_is_never_replaced(project, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="cannot be written: it is a device or a pipe"):
        small(project).save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


@BOTH
@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_replaced_file_keeps_its_permissions(project, tmp_path):
    path, model = tmp_path / "new.pth", small(project)
    model.save(path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link.pth").symlink_to("new.pth")
    for seed, (name, mode) in enumerate((("new.pth", 0o600), ("link.pth", 0o640), ("new.pth", 0o400))):
        path.chmod(mode)
        before = path.read_bytes()
        small(project, seed=seed + 1).save(tmp_path / name)
        assert path.stat().st_mode & 0o777 == mode and path.read_bytes() != before


@BOTH
def test_a_write_protected_file_is_kept(project, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    small(project).save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write all
    with pytest.raises(PermissionError, match="write-protected"):
        small(project, seed=1).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@BOTH
def test_weights_that_are_not_finite_are_not_saved(project, tmp_path):
    path, model = tmp_path / "a.pth", small(project)
    model.save(path)
    before = path.read_bytes()
    parameter = next(model.network.parameters()).data if project is project_1 else model.network.param()[0][0]
    parameter.fill_(math.nan)
    with pytest.raises(ValueError, match="weights are not finite; begin with others"):
        model.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@BOTH
def test_views_of_a_weights_file_are_checked(project, tmp_path, monkeypatch):
    model = small(project)
    most = len(model.every_view())
    for numbers in ([1], [0, most], [], [0, 1, 1]):
        model.chosen_views = numbers
        with monkeypatch.context() as unchecked:
            unchecked.setattr(project, "check_views", lambda numbers, views: numbers)
            model.save(tmp_path / "odd.pth")
        with pytest.raises(ValueError, match=f"views must be None or different numbers below {most}"):
            small(project).load(tmp_path / "odd.pth")


# devices


@BOTH
def test_a_device_that_is_not_there_is_an_error(project):
    for device in ("cuda:77", "banana"):
        with pytest.raises(ValueError, match=f"device '{device}' cannot be used here"):
            small(project, device=device)
    with pytest.raises(ValueError, match="'meta' cannot be used"):
        small(project, device="meta")


# training and prediction


@BOTH
@pytest.mark.parametrize("call", ["load", "train"])
def test_progress_must_not_load_or_train(project, call, tmp_path):
    a, b = noisy_images(2, 8, 3, 32, 32)
    model = small(project)
    model.save(tmp_path / "w.pth")
    arguments = {"load": (tmp_path / "w.pth",), "train": (a, b)}[call]
    with pytest.raises(RuntimeError, match="not load or train"):
        model.train(a, b, 2, progress=lambda *_: getattr(model, call)(*arguments))


@BOTH
def test_values_around_0_are_of_another_scale(project):
    with pytest.warns(UserWarning, match="around 0"):
        small(project).predict(noisy_images(1, 3, 16, 16, level=50) - 128)


@BOTH
def test_noise_is_measured_all_over_large_images(project):
    """A corner without any, such as of a fundus picture or a night sky, tells nothing of the rest."""
    noisy = noisy_images(2, 1, 3, 512, 512)
    noisy[..., :256, :256] = 0
    model = small(project)
    model.train(*noisy, 1)
    assert model.noise.alike


@BOTH
def test_what_is_left_is_measured_all_over_large_images(project):
    noisy = noisy_images(2, 1, 3, 192, 192)
    noisy[..., 60:130, 60:130] = 0
    assert small(project).error_left(*noisy) > 0.5


@BOTH
def test_a_copy_with_added_noise_is_told_though_both_are_clipped(project):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(128, 3, 4, 4, generator=generator) * 255
    coarse[::2] = 70 + coarse[::2] * 115 / 255  # these are not clipped
    clean = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    draws = 15 * torch.randn(3, *clean.shape, generator=generator)
    first, other, copy = (
        images.clamp(0, 255).round()
        for images in (clean + draws[0], clean + draws[1], (clean + draws[0]).clamp(0, 255) + draws[2])
    )
    assert not project.contained_noise_warning(project.measure_noise(first, other))
    assert "noisy_a has hardly any noise" in project.contained_noise_warning(project.measure_noise(first, copy))


def test_gates_do_not_depend_on_the_default_dtype():
    model, images = project_1.Model(width=8, gates=True, precision="float32"), noisy_images(1, 3, 40, 300)
    model.train(*noisy_images(2, 8, 3, 64, 64), 1)
    expected = model.predict(images)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(model.predict(images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# images and pairs that no camera takes


@BOTH
def test_one_huge_value_hides_nothing(project):
    """As of files in which -3.4e38 stands for missing data."""
    a, b = noisy_images(2, 40, 3, 32, 32)
    a[0, 0, 0, 0] = -3.4e38
    assert not project.mismatch_warning(a, b)
    noise = project.measure_noise(a, b)
    assert not any(math.isnan(value) for value in (noise.correlation, noise.imbalance, noise.offset, *noise.errors))
    assert project.out_of_scale(a) and not project.out_of_scale(b)


@BOTH
@pytest.mark.parametrize("values", [5 * [600.0], [2600.0], [-2600.0]])
def test_a_few_values_far_beyond_white_are_another_scale(values, project):
    images = torch.full((1, 3, 64, 64), 90.0)
    assert not project.out_of_scale(images)
    images[0, 0, 0, : len(values)] = torch.tensor(values)
    assert project.out_of_scale(images)


@BOTH
def test_quantized_and_nested_tensors_are_refused(project):
    images = noisy_images(1, 3, 16, 16)
    for other in (torch.quantize_per_tensor(images, 1.0, 0, torch.quint8), torch.nested.nested_tensor([images[0]])):
        with pytest.raises(TypeError, match="must be a dense tensor"):
            small(project).predict(other)


@BOTH
@pytest.mark.parametrize("far", [(0, 2), (2, 0), (1, -1)])
def test_noise_that_farther_neighbours_share_may_not_be_swapped(far, project):
    white = noisy_images(2, 200, 3, 32, 32, level=20) - 128
    noise = project.measure_noise(*(128 + white + 0.5 * white.roll(far, (3, 4))))
    assert noise.correlation == pytest.approx(0.4, abs=0.03) and not noise.exchangeable


@BOTH
def test_batches_of_larger_images_have_as_many_pixels(project):
    pairs = project.Pairs(*torch.zeros(2, 400, 1, 64, 64, dtype=torch.uint8), torch.device("cpu"))
    recipe = project.Recipe(min_steps=1)
    if project is project_1:
        assert project.batch_size_and_peak(pairs, 10, recipe, 0) == (4, 1)
    else:
        assert small(project, recipe=recipe)._batch_size(pairs, 10) == 4


@BOTH
def test_pairs_that_require_gradients_get_none(project):
    a, b = (images.requires_grad_() for images in noisy_images(2, 8, 3, 16, 16).unbind())
    small(project).train(a, b, 1)
    assert a.grad is None and b.grad is None
