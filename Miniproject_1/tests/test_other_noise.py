"""The table of other noises: its images are what their names say, and it prints a row for each."""

import pytest
import torch

from Miniproject_1.model import Model
from Miniproject_1.others import data, other_noise
from Miniproject_1.others.metrics import psnr


@pytest.fixture(scope="module")
def pictures():
    return [data.render_scene(seed, side=160) for seed in range(2)]


def test_cells_have_the_size_asked_for(pictures):
    generator = torch.Generator().manual_seed(0)
    crops = other_noise.crops_of_side(pictures[0], 128, generator)
    assert (crops[:, 2] == 128).all() and (crops[:, :2] >= 0).all() and (crops[:, :2] <= 32).all()
    assert len(crops.unique(dim=0)) > 5
    assert other_noise.noisy_and_clean(pictures, cell=6) is None  # 192 pixels of 160


def test_cells_of_one_pixel_and_many_samples_have_no_noise_left(pictures):
    noisy, clean = other_noise.noisy_and_clean(pictures, cell=1)
    assert torch.equal(noisy, clean)
    decibels = [psnr(*other_noise.noisy_and_clean(pictures, samples=count)) for count in (1, 4, 16)]
    assert 5 < decibels[1] - decibels[0] < 7 and 5 < decibels[2] - decibels[1] < 7  # 6.02 in the mean error


def test_the_command_prints_a_row_for_each_noise(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(other_noise, "load_photos", lambda folder: pictures)
    Model(width=8).save(tmp_path / "fresh.pth")  # returns its input
    other_noise.main(["x", "--weights", str(tmp_path / "fresh.pth")])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].split(",")[0].strip() for row in rows] == [
        "one sample a pixel", "one sample a pixel", "2 samples a pixel", "4 samples a pixel", "16 samples a pixel",
        "gaussian", *data.NOISES, "gaussian"
    ]  # fmt: skip
    assert all(int(row[1]) == 20 and row[2].strip() == row[3].strip() for row in rows)


def test_a_row_tells_how_many_images_became_worse():
    class Doubtful:
        def predict(self, images, ensemble):
            return torch.cat([images[:1] / 2, images[1:]])  # the first nearer to black, the others as they were

    noisy = torch.full((4, 3, 8, 8), 100.0)
    for clean, share in ((torch.zeros_like(noisy), "0.0%"), (noisy + 1, "25.0%")):
        assert other_noise.row("x", noisy, clean, Doubtful()).split("|")[-2].strip() == share


def test_the_shipped_weights_make_no_noise_worse(pictures):
    model = Model()
    model.load_pretrained_model()
    for name, condition in other_noise.CONDITIONS:
        images = other_noise.noisy_and_clean(pictures, **condition)
        if images and name != "16 samples a pixel":  # 34 dB, on the scenes of the tests: the rest is mostly texture
            noisy, clean = images
            assert psnr(model.predict(noisy), clean) > psnr(noisy, clean) + 1, name


@pytest.mark.parametrize("weights", ["missing.pth", "damaged.pth"])
def test_weights_that_are_none_are_told_in_a_line(weights, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(b"PK no")
    with pytest.raises(SystemExit, match=rf"other_noise\.py: .*{weights}"):
        other_noise.main(["x", "--weights", str(tmp_path / weights)])
