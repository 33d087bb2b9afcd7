"""The data command: exact sampling, procedural scenes, other noises, files."""

import sys

import pytest
import torch

from Miniproject_1.others import data


def picture(height=70, width=101, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def cells_of(image, box):
    """Rows of (y, x, pixels of the cell) by plain loops: the oracle."""
    top, left, side = box
    edges = [k * side // 32 for k in range(33)]
    for y in range(32):
        for x in range(32):
            rows = slice(top + edges[y], top + edges[y + 1])
            columns = slice(left + edges[x], left + edges[x + 1])
            yield y, x, image[:, rows, columns].flatten(1)


@pytest.mark.parametrize("box", [(0, 0, 70), (3, 31, 64), (5, 2, 32), (1, 0, 45)])
def test_samples_are_pixels_of_their_cell_and_clean_is_its_mean(box):
    image = picture()
    boxes = torch.tensor([box])
    noisy = data.point_sample(image, boxes, torch.Generator().manual_seed(1))[0]
    clean = data.cell_means(image, boxes)[0]
    for y, x, pixels in cells_of(image, box):
        assert (pixels == noisy[:, y, x, None]).all(0).any()  # one pixel, all its channels
        assert torch.equal(clean[:, y, x], pixels.float().mean(1).round().byte())


def test_every_pixel_of_a_cell_is_drawn_equally_often():
    image = picture(64, 64)  # cells of 2 x 2
    boxes = torch.tensor([[0, 0, 64]]).expand(2000, 3)
    noisy = data.point_sample(image, boxes, torch.Generator().manual_seed(0)).float()
    for y, x, pixels in list(cells_of(image, (0, 0, 64)))[::97]:
        shares = (noisy[:, :, y, x, None] == pixels).all(1).float().mean(0)
        assert (shares - 0.25).abs().max() < 0.06


def test_the_two_draws_differ_and_are_unbiased():
    image = picture(320, 320)
    boxes = torch.tensor([[0, 0, 320]]).expand(400, 3)
    generator = torch.Generator().manual_seed(0)
    a, b = (data.point_sample(image, boxes, generator).float() for _ in range(2))
    clean = data.cell_means(image, boxes[:1]).float()
    assert not torch.equal(a, b)
    assert (a.mean(0) - clean).abs().mean() < 4  # 74 / sqrt(400) = 3.7 of 255 a pixel
    correlation = ((a - clean) * (b - clean)).mean() / ((a - clean).square().mean())
    assert correlation.abs() < 0.01


def test_each_draw_comes_with_the_mean_of_the_others():
    a, b = data.noisy_and_others(picture(320, 320), 6, seed=0, draws=3)
    a, b = a.view(3, 2, 3, 32, 32).float(), b.view(3, 2, 3, 32, 32).float()  # three draws of two squares
    for one, two, three in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        assert torch.equal(b[one], ((a[two] + a[three]) / 2).round())
    assert (a[0] - a[1]).abs().mean() > 50
    assert len(data.noisy_and_others(picture(), 5, seed=0, draws=3)[0]) == 5


def test_fewer_inputs_than_draws_leave_more_squares():
    every = data.noisy_and_others(picture(320, 320), 8, seed=0, draws=4)
    some = data.noisy_and_others(picture(320, 320), 4, seed=0, draws=4, inputs=2)  # of the same two squares
    for all_four, first_two in zip(every, some, strict=True):
        assert torch.equal(all_four[:4], first_two)
    for inputs in (0, 5):
        with pytest.raises(ValueError, match="between 1 and the number of draws, 4"):
            data.noisy_and_others(picture(), 4, seed=0, draws=4, inputs=inputs)


def test_other_noises_come_with_draws_they_were_not_made_of():
    image = picture(320, 320)
    a, b = (column.view(5, 4, 3, 32, 32) for column in data.other_noises_and_others(image, 20, seed=0, draws=40))
    clean = data.cell_means(image, data.random_boxes(4, 320, 320, torch.Generator().manual_seed(0))).float()
    assert (b == b[0]).all()  # five images of each square
    assert (b - clean).std().item() == pytest.approx(74 / 10**0.5, rel=0.05)  # means of a quarter of the draws
    errors = (a - clean).square().mean((2, 3, 4)).mean(1)  # of the five kinds
    assert errors.min() < 74**2 / 2 and errors.max() > 74**2 / 2  # from means of draws to black pixels
    assert ((a - clean) * (b - clean)).mean().abs() < 15  # 74^2 / 40 = 137 if all had the same 40 draws
    assert len(data.other_noises_and_others(image, 3, seed=0)[0]) == 3


def test_larger_pairs_have_more_cells():
    image, (a, b) = picture(64, 64), data.noisy_pairs(picture(64, 64), 2, seed=0, cells=64)
    assert a.shape == (2, 3, 64, 64)
    assert torch.equal(a[0], image) and torch.equal(b[1], image)  # cells of one pixel


@pytest.mark.parametrize("size", [(32, 32), (32, 90), (375, 500), (61, 40)])
def test_random_boxes_stay_inside(size):
    boxes = data.random_boxes(500, *size, torch.Generator().manual_seed(0))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] >= 32).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(size)).all()
    assert boxes[:, 2].max() == min(size)


def test_validation_begins_with_the_centred_square():
    image = picture(64, 100)
    clean = data.noisy_and_clean(image, 3, 0)[1]
    assert torch.equal(clean[0], data.cell_means(image, torch.tensor([[0, 18, 64]]))[0])


def test_draws_follow_the_seed_and_the_number():
    pictures = [picture(seed=seed) for seed in range(3)]
    a, b = data.draw_pairs(pictures, 10, seed=1)
    assert a.shape == b.shape == (10, 3, 32, 32) and a.dtype == torch.uint8
    again = data.draw_pairs(pictures, 10, seed=1)
    assert torch.equal(again[0], a) and torch.equal(again[1], b)
    assert not torch.equal(data.draw_pairs(pictures, 10, seed=2)[0], a)
    assert len(data.draw_pairs(pictures, 2, seed=0)[0]) == 2  # fewer than there are pictures


def test_scenes_have_the_noise_of_photographs():
    """noise.md's figures for photographs: 20.8 dB, and channels that share most of the noise (0.72 to 0.89)."""
    parts = [data.noisy_and_clean(data.render_scene(seed), 20, seed) for seed in range(12)]
    noisy, clean = (torch.cat(column) for column in zip(*parts, strict=True))
    assert 19.0 < data.psnr(noisy, clean) < 22.0
    noise = (noisy.float() - clean.float()).transpose(0, 1).flatten(1)
    assert torch.corrcoef(noise).min() > 0.7


def test_scenes_follow_the_seed():
    assert torch.equal(data.render_scene(3, side=64), data.render_scene(3, side=64))
    assert not torch.equal(data.render_scene(3, side=64), data.render_scene(4, side=64))


def test_scene_command_writes_the_course_format(tmp_path):
    data.main(["scenes", "--out", str(tmp_path), "--pairs", "21", "--validation", "5"])
    train = torch.load(tmp_path / "train_data.pkl", weights_only=True)
    validation = torch.load(tmp_path / "val_data.pkl", weights_only=True)
    assert [t.shape for t in train] == 2 * [(21, 3, 32, 32)] and {t.dtype for t in train} == {torch.uint8}
    assert [t.shape for t in validation] == 2 * [(5, 3, 32, 32)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_data.pkl", "val_data.pkl"]


def test_default_data_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEFAULT_PAIRS", 20)
    monkeypatch.setattr(data, "DEFAULT_VALIDATION", 20)
    folder = data.default_data(tmp_path / "cache")
    before = (folder / "train_data.pkl").stat().st_mtime_ns
    monkeypatch.setattr(data, "from_scenes", None)
    assert data.default_data(tmp_path / "cache") == folder
    assert (folder / "train_data.pkl").stat().st_mtime_ns == before


def test_photo_command_skips_and_names_what_it_cannot_read(tmp_path, capsys):
    images = pytest.importorskip("PIL.Image")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.jpg"):
        pixels = picture(80, 64).permute(1, 2, 0).contiguous()
        images.frombytes("RGB", (64, 80), bytes(pixels.flatten().tolist())).save(photos / name)
    images.new("L", (40, 40)).save(photos / "grey.png")
    images.new("RGB", (31, 200)).save(photos / "small.png")
    images.new("I;16", (40, 40)).save(photos / "deep.png")
    (photos / "broken.jpg").write_bytes(b"no photo")
    (photos / "notes.txt").write_text("no photo either")
    data.main(["photos", str(photos), "--out", str(tmp_path / "out"), "--pairs", "20", "--validation", "10"])
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("broken.jpg", "small.png", "deep.png"))
    assert "notes.txt" not in errors and "a.png" not in errors
    assert torch.equal(data.load_photo(photos / "a.png"), picture(80, 64))
    assert len(torch.load(tmp_path / "out" / "train_data.pkl", weights_only=True)[0]) == 20


def test_no_photo_is_in_training_and_validation(tmp_path, monkeypatch):
    for number in range(11):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    monkeypatch.setattr(data, "load_photo", lambda path: torch.full((3, 40, 40), int(path.stem), dtype=torch.uint8))
    train, validation = data.from_photos(tmp_path, 30, 6, seed=0)
    assert train[0].unique().tolist() == list(range(1, 10)) and validation[0].unique().tolist() == [0, 10]
    assert len(data.from_photos(tmp_path, 11, 0, seed=0)[0][0].unique()) == 11
    for number in range(1, 11):
        (tmp_path / f"{number:02}.png").unlink()
    with pytest.raises(ValueError, match="two photos"):
        data.from_photos(tmp_path, 30, 6, seed=0)


def test_photo_command_without_pillow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit, match="pip install Pillow"):
        data.main(["photos", str(tmp_path), "--out", str(tmp_path / "out")])


def test_folders_without_photos_are_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SystemExit, match=r"data\.py: .*photo"):
            data.main(["photos", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "level", "variance"),
    [("gaussian", 20.0, 400.0), ("poisson", 50.0, 128 * 255 / 50), ("bernoulli", 0.25, 0.25 * 0.75 * 128**2)],
)
def test_other_noises_have_the_variance_of_their_name(kind, level, variance):
    clean = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = data.add_noise(clean, kind, level, torch.Generator().manual_seed(0))
    assert noisy.float().var().item() == pytest.approx(variance, rel=0.05)


def test_impulse_noise_replaces_whole_pixels_by_any_colour():
    clean = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = data.add_noise(clean, "impulse", 0.3, torch.Generator().manual_seed(0))
    hit = (noisy != clean).any(1)
    assert hit.float().mean().item() == pytest.approx(0.3, abs=0.02)
    values = noisy.transpose(0, 1)[:, hit].float()
    assert values.min() == 0 and values.max() == 255
    assert values.mean().item() == pytest.approx(127.5, abs=2)


def test_noise_command_takes_the_images_of_another_set(tmp_path):
    clean = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    data.save_data(tmp_path, None, (clean, clean))
    data.main(["noise", "gaussian", "--data", str(tmp_path), "--out", str(tmp_path / "g"), "--level", "5"])
    noisy, kept = torch.load(tmp_path / "g" / "val_data.pkl", weights_only=True)
    assert torch.equal(kept, clean)
    assert (noisy.float() - clean.float()).std().item() == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("option", ["--pairs", "--validation"])
def test_negative_numbers_are_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        data.main(["scenes", "--out", str(tmp_path), option, "-5"])
    assert "invalid count value: '-5'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", data.NOISE_LEVELS)
def test_every_image_may_have_a_level_of_its_own(kind):
    clean, (low, high) = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8), data.NOISE_RANGES[kind]
    levels = torch.tensor([low, high]).view(2, 1, 1, 1)
    noisy = data.add_noise(clean, kind, levels, torch.Generator().manual_seed(0))
    for index, level in enumerate((low, high)):
        alone = data.add_noise(clean, kind, level, torch.Generator().manual_seed(0))
        errors = [(images[index].float() - 128).square().mean().item() for images in (noisy, alone)]
        assert errors[0] == pytest.approx(errors[1], rel=0.2)


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="gaussian, poisson"):
        data.add_noise(torch.zeros(1, 3, 2, 2), "speckle", 1.0, torch.Generator())


def test_psnr_is_the_mean_over_images():
    clean = torch.zeros(2, 3, 4, 4)
    images = torch.tensor([25.5, 2.55]).view(2, 1, 1, 1).expand_as(clean)
    assert data.psnr(images, clean) == pytest.approx((20 + 40) / 2)
