"""The data command: exact sampling, procedural scenes, other noises, files."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from Miniproject_1.others import data
from Miniproject_1.others.command_line import draw_progress, tell
from Miniproject_1.others.files import user_cache
from Miniproject_1.others.metrics import psnr
from Miniproject_1.others.photos import load_photo, load_photos, photo_files

FOLDER = Path(data.__file__).parent

posix = pytest.mark.skipif(os.name != "posix", reason="file names, pipes and limits of POSIX")


def picture(height=70, width=101, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def save_photo(path, value):
    """A photo of one grey value."""
    pytest.importorskip("PIL.Image").new("RGB", (40, 40), (value, value, value)).save(path)


def stop(*_):
    raise AssertionError("the work has begun")


def cells_of(image, crop):
    """Rows of (y, x, pixels of the cell) by plain loops: the oracle."""
    top, left, side = crop
    edges = [k * side // 32 for k in range(33)]
    for y in range(32):
        for x in range(32):
            rows = slice(top + edges[y], top + edges[y + 1])
            columns = slice(left + edges[x], left + edges[x + 1])
            yield y, x, image[:, rows, columns].flatten(1)


@pytest.mark.parametrize("crop", [(0, 0, 70), (3, 31, 64), (5, 2, 32), (1, 0, 45)])
def test_samples_are_pixels_of_their_cell_and_clean_is_its_mean(crop):
    image = picture()
    crops = torch.tensor([crop])
    noisy = data.point_sample(image, crops, torch.Generator().manual_seed(1))[0]
    clean = data.cell_means(image, crops)[0]
    for y, x, pixels in cells_of(image, crop):
        assert (pixels == noisy[:, y, x, None]).all(0).any()  # one pixel, all its channels
        assert torch.equal(clean[:, y, x], pixels.float().mean(1).round().byte())


def test_every_pixel_of_a_cell_is_drawn_equally_often():
    image = picture(64, 64)  # cells of 2 x 2
    crops = torch.tensor([[0, 0, 64]]).expand(2000, 3)
    noisy = data.point_sample(image, crops, torch.Generator().manual_seed(0)).float()
    for y, x, pixels in list(cells_of(image, (0, 0, 64)))[::97]:
        shares = (noisy[:, :, y, x, None] == pixels).all(1).float().mean(0)
        assert (shares - 0.25).abs().max() < 0.06


def test_the_two_draws_differ_and_are_unbiased():
    image = picture(320, 320)
    crops = torch.tensor([[0, 0, 320]]).expand(400, 3)
    generator = torch.Generator().manual_seed(0)
    a, b = (data.point_sample(image, crops, generator).float() for _ in range(2))
    clean = data.cell_means(image, crops[:1]).float()
    assert not torch.equal(a, b)
    assert (a.mean(0) - clean).abs().mean() < 4  # 74 / sqrt(400) = 3.7 of 255 a pixel
    correlation = ((a - clean) * (b - clean)).mean() / ((a - clean).square().mean())
    assert correlation.abs() < 0.01


def test_each_draw_comes_with_the_mean_of_the_others():
    a, b = data.noisy_and_mean(picture(320, 320), 6, seed=0, draws=3)
    a, b = a.view(3, 2, 3, 32, 32).float(), b.view(3, 2, 3, 32, 32).float()  # three draws of two crops
    for one, two, three in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        assert torch.equal(b[one], ((a[two] + a[three]) / 2).round())
    assert (a[0] - a[1]).abs().mean() > 50
    assert len(data.noisy_and_mean(picture(), 5, seed=0, draws=3)[0]) == 5


def test_fewer_inputs_than_draws_leave_more_crops():
    every = data.noisy_and_mean(picture(320, 320), 8, seed=0, draws=4)
    some = data.noisy_and_mean(picture(320, 320), 4, seed=0, draws=4, inputs=2)  # of the same two crops
    for all_four, first_two in zip(every, some, strict=True):
        assert torch.equal(all_four[:4], first_two)
    for inputs in (0, 5):
        with pytest.raises(ValueError, match="between 1 and the number of draws, 4"):
            data.noisy_and_mean(picture(), 4, seed=0, draws=4, inputs=inputs)
    for draw, draws in ((data.noisy_and_mean, 1), (data.other_noises_and_mean, 7)):
        with pytest.raises(ValueError, match=rf"draws must be at least {draws + 1}.*got {draws}"):
            draw(picture(), 4, seed=0, draws=draws)


def test_other_noises_come_with_draws_they_were_not_made_of():
    image = picture(320, 320)
    a, b = (column.view(5, 4, 3, 32, 32) for column in data.other_noises_and_mean(image, 20, seed=0, draws=40))
    clean = data.cell_means(image, data.random_crops(4, 320, 320, torch.Generator().manual_seed(0))).float()
    assert (b == b[0]).all()  # five images of each crop
    assert (b - clean).std().item() == pytest.approx(74 / 10**0.5, rel=0.05)  # means of a quarter of the draws
    errors = (a - clean).square().mean((2, 3, 4)).mean(1)  # of the five kinds
    assert errors.min() < 74**2 / 2 and errors.max() > 74**2 / 2  # from means of draws to black pixels
    assert ((a - clean) * (b - clean)).mean().abs() < 15  # 74^2 / 40 = 137 if all had the same 40 draws
    assert len(data.other_noises_and_mean(image, 3, seed=0)[0]) == 3


def test_larger_pairs_have_more_cells():
    image, (a, b) = picture(64, 64), data.noisy_pairs(picture(64, 64), 2, seed=0, cells=64)
    assert a.shape == (2, 3, 64, 64)
    assert torch.equal(a[0], image) and torch.equal(b[1], image)  # cells of one pixel


@pytest.mark.parametrize("size", [(32, 32), (32, 90), (375, 500), (61, 40)])
def test_random_crops_stay_inside(size):
    crops = data.random_crops(500, *size, torch.Generator().manual_seed(0))
    assert (crops[:, :2] >= 0).all() and (crops[:, 2] >= 32).all()
    assert (crops[:, :2] + crops[:, 2:] <= torch.tensor(size)).all()
    assert crops[:, 2].max() == min(size)


def test_validation_begins_with_the_centred_crop():
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
    assert 19.0 < psnr(noisy, clean) < 22.0
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


def test_files_hold_only_the_pairs_asked_for(tmp_path):
    images = torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    data.save_data(tmp_path, (images[:1], images[1:2]), None)
    assert (tmp_path / "train_data.pkl").stat().st_size < 3 * images[0].numel()
    assert len(data.read_pairs(tmp_path / "train_data.pkl")[0]) == 1


def test_default_data_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEFAULT_PAIRS", 20)
    monkeypatch.setattr(data, "DEFAULT_VALIDATION", 20)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "val_data.pkl").touch()  # all that an earlier run has left
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
    assert torch.equal(load_photo(photos / "a.png"), picture(80, 64))
    assert len(torch.load(tmp_path / "out" / "train_data.pkl", weights_only=True)[0]) == 20


def test_no_photo_is_in_training_and_validation(tmp_path, monkeypatch):
    for number in range(11):
        (tmp_path / f"{number:02}.png").write_text(str(number))
    for module in ("photos", "data"):  # the one that checks, and the one that draws
        monkeypatch.setattr(
            f"Miniproject_1.others.{module}.load_photo",
            lambda path: torch.full((3, 40, 40), int(path.stem), dtype=torch.uint8),
        )
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


@pytest.mark.parametrize("option", ["--pairs", "--validation", "--seed"])
def test_negative_numbers_are_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        data.main(["scenes", "--out", str(tmp_path), option, "-5"])
    assert "invalid count value: '-5'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", data.NOISES)
def test_every_image_may_have_a_level_of_its_own(kind):
    clean, (low, high) = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8), data.NOISES[kind].learnt
    levels = torch.tensor([low, high]).view(2, 1, 1, 1)
    noisy = data.add_noise(clean, kind, levels, torch.Generator().manual_seed(0))
    for index, level in enumerate((low, high)):
        alone = data.add_noise(clean, kind, level, torch.Generator().manual_seed(0))
        errors = [(images[index].float() - 128).square().mean().item() for images in (noisy, alone)]
        assert errors[0] == pytest.approx(errors[1], rel=0.2)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "impulse"])
def test_levels_that_change_no_pixel_are_refused(kind, course_data, tmp_path):
    with pytest.raises(SystemExit, match=f"{kind} noise of the level 1e-09 changes no pixel"):
        data.main(["noise", kind, "--level", "1e-9", "--data", str(course_data), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("call", [["photos", "", "--out", "x"], ["scenes", "--out", ""]])
def test_empty_paths_are_not_the_current_folder(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        data.main(call)
    assert error.value.code == 2 and "it is empty; name a file or a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_photos_of_several_pages_or_transparent_colours_are_told_or_read(tmp_path, capsys, recwarn):
    Image = pytest.importorskip("PIL.Image")
    one, two = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    one.save(tmp_path / "two.tif", save_all=True, append_images=[two])
    assert load_photo(tmp_path / "two.tif")[:, 0, 0].tolist() == [255, 0, 0]
    assert "two.tif: only the first of its 2 pictures is read" in capsys.readouterr().err
    one.quantize(4).save(tmp_path / "palette.png", transparency=bytes([0, 128, 255, 255]))
    assert load_photo(tmp_path / "palette.png").shape == (3, 40, 40)
    assert [str(warning.message) for warning in recwarn.list] == []


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match="gaussian, poisson"):
        data.add_noise(torch.zeros(1, 3, 2, 2), "speckle", 1.0, torch.Generator())


def test_psnr_is_the_mean_over_images():
    clean = torch.zeros(2, 3, 4, 4)
    images = torch.tensor([25.5, 2.55]).view(2, 1, 1, 1).expand_as(clean)
    assert psnr(images, clean) == pytest.approx((20 + 40) / 2)


# ---------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture
def course_data(tmp_path):
    """A folder with a small val_data.pkl."""
    clean = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    data.save_data(tmp_path / "data", None, (clean, clean.flip(0)))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("kind", "level"),
    [(kind, level) for kind in data.NOISES for level in (0, -1, float("nan"), float("inf"))]
    + [("bernoulli", 1), ("impulse", 1.5), ("poisson", 1e-9), ("gaussian", 1e9)],
)
def test_levels_that_are_no_levels_are_refused_before_any_work(kind, level, course_data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"level of {kind} noise must lie between"):
        data.add_noise(torch.zeros(2, 3, 4, 4), kind, torch.tensor([0.5, level]).view(2, 1, 1, 1), torch.Generator())
    monkeypatch.setattr(data, "read_pairs", stop)
    with pytest.raises(SystemExit, match=r"data\.py: the level .* must lie between"):
        data.main(["noise", kind, f"--level={level}", "--data", str(course_data), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_levels_to_learn_from_are_levels():
    for kind, noise in data.NOISES.items():
        for level in (noise.level, *noise.learnt):
            data.check_noise(kind, level)


def test_programs_without_a_console_make_data(course_data, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    save_photo(tmp_path / "a.png", 1)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    data.main(["noise", "gaussian", "--data", str(course_data), "--out", str(tmp_path / "noise")])
    data.main(["photos", str(tmp_path), "--pairs", "2", "--validation", "0", "--out", str(tmp_path / "photos")])
    assert (tmp_path / "noise" / "val_data.pkl").is_file() and (tmp_path / "photos" / "train_data.pkl").is_file()


def test_without_stderr_nothing_of_it_is_printed_on_stdout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    tell("skipped")
    draw_progress(1, 2)
    assert capsys.readouterr().out == ""


@posix
def test_linked_folders_are_read_each_photo_once(tmp_path):
    photos, disk = tmp_path / "photos", tmp_path / "disk"
    photos.mkdir()
    disk.mkdir()
    for folder, name in ((photos, "own.png"), (disk, "a.png"), (disk, "b.png")):
        (folder / name).write_text(name)
    (photos / "album").symlink_to(disk)
    (photos / "same").symlink_to(disk)
    (photos / "again.png").symlink_to(photos / "own.png")
    (disk / "circle").symlink_to(photos)
    assert photo_files(photos) == [photos / name for name in ("again.png", "album/a.png", "album/b.png")]


@posix
def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path, capsys):
    (tmp_path / "a.png").write_text("a")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    assert photo_files(tmp_path) == [tmp_path / "a.png"]
    errors = capsys.readouterr().err
    assert all(name in errors for name in ("pipe.png", "nowhere.png", "itself.png"))


def test_hidden_files_do_not_count_and_others_are_told_by_ending(tmp_path, capsys):
    names = ("one.jpg", "two.JFIF", "IMG_1.HEIC", "IMG_2.heic", "README", ".own.jpg", ".trash/a.jpg", "b/@eaDir/c.jpg")
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert photo_files(tmp_path) == [tmp_path / "one.jpg", tmp_path / "two.JFIF"]
    assert "3 files are left out (2 .heic, 1 without ending); read are .bmp, .jfif" in capsys.readouterr().err


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_text("a")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert photo_files(tmp_path) == [tmp_path / "a.png"]
    assert "closed: Permission denied" in capsys.readouterr().err


def test_copies_of_a_photo_count_once(tmp_path, capsys):
    for number in range(3):
        save_photo(tmp_path / f"{number}.png", number)
    for number in range(3, 12):
        (tmp_path / f"{number:02}.png").write_bytes((tmp_path / "2.png").read_bytes())
    train, validation = data.from_photos(tmp_path, 20, 20, seed=0)
    assert validation[1].unique().tolist() == [0] and train[0].unique().tolist() == [1, 2]
    assert "left out: 9 of 12 photos" in capsys.readouterr().err
    assert len(load_photos(tmp_path)) == 3


@posix
def test_names_and_outputs_of_any_encoding_lose_no_message(tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"\xff caf\xc3\xa9")
    odd.mkdir()
    save_photo(odd / os.fsdecode(b"\xfe.png"), 7)
    (odd / os.fsdecode(b"\xfd.png")).write_bytes(b"no photo")
    data.main(["photos", str(odd), "--pairs", "2", "--validation", "0", "--out", str(odd / "out")])
    assert len(data.read_pairs(odd / "out" / "train_data.pkl")[0]) == 2
    assert r"skipped: \udcfd.png" in capsys.readouterr().err
    with data.exit_on_error("x"):
        print(odd)
    assert r"\udcff" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["scenes"], ["photos", "x"], ["noise", "gaussian", "--data", "x"]], ids=str)
def test_places_that_cannot_be_written_are_told_before_the_work(command, tmp_path, monkeypatch):
    for name in ("from_scenes", "from_photos", "with_noise"):
        monkeypatch.setattr(data, name, stop)
    (tmp_path / "taken").write_text("x")
    (tmp_path / "folder" / "val_data.pkl").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    for place in ("taken", "taken/below", "folder"):
        with pytest.raises(SystemExit, match=r"data\.py: .*cannot be written"):
            data.main([*command, "--out", str(tmp_path / place)])
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_exist_are_overwritten_only_by_force(course_data, monkeypatch):
    images = 2 * (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)
    monkeypatch.setattr(data, "from_scenes", stop)
    command, path = ["scenes", "--out", str(course_data)], course_data / "val_data.pkl"
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"data\.py: .*val_data\.pkl exists; --force overwrites"):
        data.main(command)
    monkeypatch.setattr(data, "from_scenes", lambda pairs, validation, *_: (images, images if validation else None))
    data.main([*command, "--validation", "0"])  # leaves that file alone
    assert path.read_bytes() == before
    data.main([*command, "--force"])
    assert len(data.read_pairs(path)[0]) == 1


@posix
def test_the_folder_that_is_read_is_never_written_to(course_data, tmp_path):
    (tmp_path / "link").symlink_to(course_data)
    for force in ([], ["--force"]):
        with pytest.raises(SystemExit, match="--data and --out are one folder"):
            data.main(["noise", "gaussian", "--data", str(course_data), "--out", str(tmp_path / "link"), *force])
    assert [path.name for path in course_data.iterdir()] == ["val_data.pkl"]


@posix
@pytest.mark.parametrize("name", ["train_data.pkl", "val_data.pkl"])
def test_no_link_leads_into_the_folder_that_is_read(name, course_data, tmp_path):
    before = (course_data / "val_data.pkl").read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(Path("..") / "data" / name)
    command = ["noise", "gaussian", "--data", str(course_data), "--out", str(tmp_path / "out"), "--force"]
    with pytest.raises(SystemExit, match=f"out/{name} leads to .*data/{name}, which --data must keep"):
        data.main(command)
    assert [path.name for path in course_data.iterdir()] == ["val_data.pkl"]
    assert (course_data / "val_data.pkl").read_bytes() == before


@posix
def test_the_file_that_is_read_may_be_a_link_and_is_kept(course_data, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "val_data.pkl").symlink_to(course_data / "val_data.pkl")
    command = ["noise", "gaussian", "--data", str(tmp_path / "linked"), "--out", str(course_data), "--force"]
    with pytest.raises(SystemExit, match=r"val_data\.pkl, which --data must keep"):
        data.main(command)
    assert [path.name for path in course_data.iterdir()] == ["val_data.pkl"]


def test_asking_for_nothing_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="nothing to make"):
        data.main(["scenes", "--pairs", "0", "--validation", "0", "--out", str(tmp_path / "out")])


def run_python(*arguments, **options):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **options)


@posix
def test_a_full_disk_is_told_in_a_line_and_leaves_no_file(tmp_path):
    data.save_data(tmp_path / "data", None, 2 * (torch.zeros(100, 3, 32, 32, dtype=torch.uint8),))
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (99_999, 99_999)); "
    code += "from Miniproject_1.others import data; data.main()"
    command = ["noise", "gaussian", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    result = run_python("-c", code, *command, cwd=data.ROOT)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "train_data.pkl cannot be written" in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


@posix
def test_clean_images_of_large_photos_need_memory_in_proportion():
    code = """
import resource, torch
from Miniproject_1.others import data
photo = torch.full((3, 4000, 4000), 9, dtype=torch.uint8)
data.cell_means(photo[:, :100, :100], data.centre_crop(100, 100))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data.cell_means(photo, data.centre_crop(4000, 4000))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / before)
"""
    assert float(run_python("-c", code, cwd=data.ROOT).stdout) < 2  # of torch itself; a table of sums takes 4


@pytest.mark.parametrize(
    ("system", "cores", "jobs", "workers"),
    [("win32", 96, 200, 61), ("linux", 96, 200, 96), ("linux", 96, 3, 3), ("win32", None, 3, 1), ("linux", 4, 0, 1)],
)
def test_there_are_no_more_workers_than_the_system_takes_or_there_is_work_for(
    system, cores, jobs, workers, monkeypatch
):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert data._workers(jobs) == workers


def test_there_are_no_more_workers_than_processors_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert data._workers(200) == 2


def test_a_worker_process_that_is_killed_is_told_in_a_line(tmp_path, monkeypatch):
    def kill(results, *_):
        for worker in multiprocessing.active_children():
            worker.kill()
        return list(results)

    monkeypatch.setattr(data, "watched", kill)
    with pytest.raises(SystemExit, match=r"data\.py: a worker process was killed, perhaps because memory"):
        data.main(["scenes", "--pairs", "1", "--validation", "1", "--out", str(tmp_path)])


@pytest.mark.parametrize(("error", "told"), [(RuntimeError("no\nmemory"), "no memory"), (MemoryError(), "MemoryError")])
def test_want_of_memory_is_told_in_a_line(error, told):
    with pytest.raises(SystemExit, match=f"x: {told}"), data.exit_on_error("x"):
        raise error


@posix
def test_ctrl_c_ends_all_processes_with_one_line(tmp_path):
    code = "import os, signal; from Miniproject_1.others import data; "
    code += "data.watched = lambda *_: os.killpg(0, signal.SIGINT); data.main()"  # when the workers have been started
    result = run_python(
        *("-c", code, "scenes", "--pairs", "100", "--out", tmp_path / "out"),
        cwd=data.ROOT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert (result.returncode, result.stderr) == (130, "data.py: interrupted\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in FOLDER.glob("*.py") if "ArgumentParser" in path.read_text())
)
def test_commands_run_as_files_and_without_docstrings(name, tmp_path):
    result = run_python("-OO", FOLDER / f"{name}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0 and "usage:" in result.stdout, result.stderr


def test_commands_run_as_modules():
    assert "usage:" in run_python("-m", "Miniproject_1.others.train_best", "--help", cwd=data.ROOT).stdout


def test_the_file_makes_data_in_worker_processes(tmp_path):
    options = ["scenes", "--pairs", "3", "--validation", "0", "--out", "out"]
    result = run_python(FOLDER / "data.py", *options, cwd=tmp_path)
    assert result.stdout == "train_data.pkl: 3 pairs\n", result.stderr
    assert len(data.read_pairs(tmp_path / "out" / "train_data.pkl")[0]) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK no",
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        {"noisy": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)},
        (),
        (1, 2),
        3 * (torch.zeros(2, 3, 4, 4, dtype=torch.uint8),),
        2 * (torch.zeros(2, 3, 4, 4),),
        2 * (torch.zeros(2, 1, 4, 4, dtype=torch.uint8),),
        2 * (torch.zeros(2, 3, 4, dtype=torch.uint8),),
        2 * (torch.zeros(0, 3, 4, 4, dtype=torch.uint8),),
        2 * (torch.tensor(1, dtype=torch.uint8),),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
    ],
    ids=range(13),
)
def test_files_that_hold_no_pairs_are_named_with_what_they_should_hold(content, tmp_path):
    path = tmp_path / "val_data.pkl"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"val_data\.pkl .*expected two uint8 tensors \(N, 3, H, W\)") as error:
        data.read_pairs(path)
    assert "weights_only" not in str(error.value)
    with pytest.raises(SystemExit, match=r"data\.py: .*val_data\.pkl"):
        data.main(["noise", "gaussian", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_pairs_are_read_from_files_alone(course_data):
    assert [images.shape for images in data.read_pairs(course_data / "val_data.pkl")] == 2 * [(4, 3, 32, 32)]
    for path in (course_data, course_data / "missing.pkl"):
        with pytest.raises(ValueError, match="is not a file; expected two uint8 tensors"):
            data.read_pairs(path)
    with pytest.raises(SystemExit, match=r"--data takes the folder that holds val_data\.pkl; got the file"):
        data.main(["noise", "gaussian", "--data", str(course_data / "val_data.pkl"), "--out", "x"])


def test_default_data_of_a_checkout_that_cannot_be_written_go_to_the_users_cache(tmp_path, monkeypatch):
    kept = tmp_path / "user" / "noise2noise" / "default_data"
    images = 2 * (torch.zeros(1, 3, 32, 32, dtype=torch.uint8),)
    monkeypatch.setattr(data, "from_scenes", lambda *_: (images, images))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    (tmp_path / "taken").write_text("x")
    assert data.default_data(tmp_path / "taken" / "default_data") == kept
    assert data.default_data(tmp_path / "free") == tmp_path / "free"
    monkeypatch.setattr(data, "from_scenes", stop)
    assert data.default_data(tmp_path / "taken" / "default_data") == kept
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken" / "user"))
    with pytest.raises(ValueError, match=r"no folder for the default data.* use -d"):
        data.default_data(tmp_path / "taken" / "default_data")


def test_without_a_home_the_users_cache_is_a_temporary_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert user_cache() == Path(tempfile.gettempdir())
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert user_cache() == Path(tempfile.gettempdir())


def test_validation_has_scenes_of_its_own(monkeypatch):
    def stop(_, jobs, progress):
        raise InterruptedError([seed for _, seed in jobs])

    monkeypatch.setattr(data, "_in_processes", stop)
    with pytest.raises(InterruptedError) as stopped:
        data.from_scenes(40, 40, 0)
    assert len(set(stopped.value.args[0])) == len(stopped.value.args[0]) == 4


def test_only_the_first_validation_image_is_the_centre():
    _, clean = data.noisy_and_clean(data.render_scene(0, 96), 3, 0)
    assert not torch.equal(clean[0], clean[1])
