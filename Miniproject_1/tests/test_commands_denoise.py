"""`denoise`: files and folders, nothing overwritten, nothing half written; and the page to compare."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

Image = pytest.importorskip("PIL.Image")
numpy = pytest.importorskip("numpy")

from Miniproject_1.__main__ import main  # noqa: E402
from Miniproject_1.commands import denoise  # noqa: E402
from Miniproject_1.commands.support import arguments, images, weights  # noqa: E402
from Miniproject_1.model import Model, Tiling  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def identity(tmp_path_factory):
    """Weights of an untrained network, which gives back what it gets."""
    path = tmp_path_factory.mktemp("weights") / "identity.pth"
    Model(width=8).save(path)
    return path


@pytest.fixture(scope="module")
def course():
    return weights.load_model("course", "cpu")


def noisy_picture(size=(40, 60), channels=3, level=25, dtype="uint8", seed=0):
    clean = numpy.linspace(60, 180, size[1])[None, :, None] + numpy.zeros((*size, channels))
    noisy = clean + level * numpy.random.default_rng(seed).standard_normal(clean.shape)
    high = 255 if dtype == "float32" else numpy.iinfo(dtype).max
    values = (noisy.clip(0, 255) * (high / 255)).astype(dtype)
    space = {1: "grey", 2: "grey", 3: "RGB", 4: "RGB"}[channels]
    return images.Picture(values, space, channels in (2, 4), (0, high))


def write(path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_picture(noisy_picture(**options), path)
    return path


def error(picture):
    clean = numpy.linspace(60, 180, picture.pixels.shape[1])
    values = picture.values().numpy()
    return float(numpy.sqrt(((values - clean) ** 2).mean()))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("space", "channels"), [("grey", 1), ("grey", 2), ("RGB", 3), ("RGB", 4), ("CMYK", 4)])
def test_noise_goes_and_alpha_stays(course, space, channels, dtype):
    picture = noisy_picture(channels=channels, dtype=dtype)
    picture.space, picture.alpha = space, channels != images.CHANNELS[space]
    before, original = error(picture), picture.pixels.copy()
    picture.pixels = denoise.denoised(course, picture)
    assert error(picture) < 0.5 * before
    assert picture.pixels.dtype == dtype
    if picture.alpha:
        assert (picture.pixels[:, :, -1] == original[:, :, -1]).all()


def test_strength_lies_between_as_it_was_and_all(course):
    picture = noisy_picture()
    none, half, full = (denoise.denoised(course, picture, strength).astype(float) for strength in (0, 0.5, 1))
    assert (none == picture.pixels).all()
    assert numpy.abs(half - (none + full) / 2).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (3, 2), (700, 33), (1300, 33)])
def test_bands_give_what_the_whole_picture_gives(course, size, monkeypatch):
    """In strips less than 32 wide, a cell of the gates, the network sees farther: 1300 x 20 differ by 4."""
    monkeypatch.setattr(course, "precision", "float32")  # bfloat16 rounds otherwise where it sums in another order
    picture = noisy_picture(size=size)
    whole = course.predict(picture.values())
    parts = denoise.denoised(course, picture)
    assert numpy.abs(parts - whole[0].permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize("network", ["residual_unet", "noise2noise"])
def test_strips_cover_every_row_once(network):
    tiling = Tiling.of(Model(network, width=8).network)
    for height, border in itertools.product((1, 639, 640, 641, 895, 896, 897, 1280, 1792, 5000), (0, 16, 32)):
        kept = torch.zeros(height, dtype=torch.int64)
        for rows, keep, inside in denoise.row_strips(height, tiling, border):
            assert rows.stop - rows.start + 2 * border <= tiling.side and rows.start % 32 == 0
            assert rows.start == 0 or keep.start - rows.start >= tiling.margin
            kept[keep] += 1
            assert torch.equal(torch.arange(height)[rows][inside], torch.arange(height)[keep])
        assert (kept == 1).all()


@pytest.mark.parametrize("bits", [10, 12])
def test_few_bits_in_sixteen_are_denoised_as_all(tmp_path, bits, capsys):
    picture = noisy_picture(dtype="uint16")
    found = {}
    for name, shift in (("all", 0), ("few", 16 - bits)):
        few = images.Picture(picture.pixels >> shift, "RGB", False, (0, 2 ** (16 - shift) - 1))
        images.write_picture(few, tmp_path / f"{name}.tif")
        assert main(["denoise", f"{tmp_path}/{name}.tif", "-o", f"{tmp_path}/{name}.out.tif"]) == 0
        found[name] = images.read_picture(tmp_path / f"{name}.out.tif", value_range=few.value_range)
    assert error(found["few"]) == pytest.approx(error(found["all"]), rel=0.05)
    assert f"0 is taken as black, {2**bits - 1} as white; --range" in capsys.readouterr().out
    given = ["denoise", f"{tmp_path}/few.tif", "-o", f"{tmp_path}/b.tif", "--range", "0", "65535", "--json"]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out)["noise_before"] < 2  # as white is far away


def test_a_hot_pixel_changes_nothing_elsewhere(tmp_path, course):
    tifffile = pytest.importorskip("tifffile")
    values = noisy_picture(channels=1, dtype="float32", size=(60, 60)).pixels[:, :, 0]
    hot = values.copy()
    hot[30, 30] = 1e5
    found = []
    for name, part in (("a", values), ("b", hot)):
        tifffile.imwrite(tmp_path / f"{name}.tif", part)
        picture = images.read_picture(tmp_path / f"{name}.tif")
        found.append(denoise.denoised(course, picture)[:, :, 0])
    clean = numpy.linspace(60, 180, 60)
    errors = [numpy.sqrt(numpy.delete(((part - clean) ** 2).ravel(), 30 * 60 + 30).mean()) for part in found]
    assert found[1][30, 30] == 1e5
    assert errors[1] < 1.4 * errors[0] < 15


def test_folders_keep_their_structure(tmp_path, identity, capsys):
    for name in ("a.png", "b/c.JPG", "b/d e/🙂.webp", "b/d e/f.tif"):
        write(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert main(["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(identity)]) == 0
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a.png", "b/c.JPG", "b/d e/f.tif", "b/d e/🙂.webp"]
    for name in ("a.png", "b/d e/f.tif"):
        pair = [images.read_picture(tmp_path / folder / name).pixels for folder in ("in", "out")]
        assert (pair[0] == pair[1]).all()
    said = capsys.readouterr()
    assert said.out.count("60 x 40, noise") == 4
    assert (
        said.err.startswith(f"{tmp_path}/in: 1 file is left out (1 .txt); read are .png") and said.err.count("\n") == 1
    )


def test_hidden_files_and_those_of_other_kinds_are_left_out(tmp_path, identity, capsys):
    for name in ("a.png", ".b.png", ".trash/c.png", "d/.e/f.png"):
        write(tmp_path / "in" / name)
    for name in ("1.BMP", "2.bmp", "3.cr2", "4.cr2", "5.cr2", "6", "7.x", "8.y", "9.z", ".hidden.gif", ".trash/10.gif"):
        (tmp_path / "in" / name).touch()
    given = ["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(identity)]
    assert main(given) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["a.png"]
    kinds = "9 files are left out (3 .cr2, 2 .bmp, 1 without ending, 1 .x, 1 .y, others); "
    assert kinds in capsys.readouterr().err
    assert main([*given, "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in arguments.pictures_below(tmp_path / "in")] == ["a.png"]
    assert kinds in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, identity, capsys, monkeypatch):
    for name in ("a.png", "locked/b.png"):
        write(tmp_path / "in" / name)
    scandir = os.scandir

    def refuses(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)  # permissions do not stop root
    given = ["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(identity)]
    assert main(given) == 1
    said = capsys.readouterr()
    assert f"{tmp_path}/in/locked: " in said.err and "Permission denied" in said.err and "1 of 2" in said.err
    assert "a.png: 60 x 40" in said.out and os.listdir(tmp_path / "out") == ["a.png"]
    with pytest.raises(PermissionError):
        arguments.pictures_below(tmp_path / "in")


def test_one_bad_file_does_not_stop_the_rest(tmp_path, identity, capsys):
    write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:400])
    write(tmp_path / "in" / "c.png")
    given = ["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(identity), "--json"]
    assert main(given) == 1
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "c.png"]
    said = capsys.readouterr()
    assert "b.png: not a readable picture" in said.err and "1 of 3" in said.err
    facts = [json.loads(line) for line in said.out.splitlines()]
    assert [("error" in fact) for fact in facts] == [False, True, False]
    assert facts[0]["noise_before"] == pytest.approx(25, rel=0.2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_is_never_replaced(tmp_path, identity, capsys):
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    given = ["denoise", f"{tmp_path}/a.png", "-o", f"{tmp_path}/pipe.png", "--weights", str(identity), "--force"]
    assert main(given) == 1 and "not a file" in capsys.readouterr().err
    assert (tmp_path / "pipe.png").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_nothing_is_overwritten_without_force(tmp_path, identity, capsys):
    source, target = write(tmp_path / "a.png"), tmp_path / "b.png"
    target.write_text("precious")
    given = ["denoise", str(source), "-o", str(target), "--weights", str(identity)]
    assert main(given) == 1
    assert target.read_text() == "precious" and "--force" in capsys.readouterr().err
    assert main([*given, "--force", "--quiet"]) == 0
    assert (images.read_picture(target).pixels == images.read_picture(source).pixels).all()
    assert capsys.readouterr() == ("", "")


def test_inputs_are_never_overwritten(tmp_path, identity, capsys):
    source = write(tmp_path / "in" / "a.png")
    content = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (source, tmp_path / "in", tmp_path / "link", tmp_path / "in" / ".." / "in"):
        assert main(["denoise", str(source), "-o", str(out), "--weights", str(identity), "--force"]) == 1
        assert "never overwritten" in capsys.readouterr().err
    assert source.read_bytes() == content


def test_the_input_folder_cannot_be_the_output_folder(tmp_path, identity, capsys):
    for folder in ("in", "more"):
        write(tmp_path / folder / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "link"):
        given = ["denoise", f"{tmp_path}/more", f"{tmp_path}/in", "-o", f"{tmp_path}/{out}", "--force"]
        assert main([*given, "--weights", str(identity)]) == 1
        assert f"{tmp_path}/{out} is the input folder, whose pictures are never" in capsys.readouterr().err


@pytest.mark.parametrize("height", [1, 2, 3])
def test_pictures_too_narrow_to_denoise_are_said_to_stay(tmp_path, identity, capsys, height):
    write(tmp_path / "a.png", size=(height, 60))
    assert main(["denoise", f"{tmp_path}/a.png", "-o", f"{tmp_path}/b.png", "--weights", str(identity)]) == 0
    said = capsys.readouterr().out
    assert "less than 4 pixels high or wide: left as it is" in said and "detail may be lost" not in said


def test_a_page_that_cannot_be_written_is_not_taken_for_the_picture(tmp_path, identity, capsys, monkeypatch):
    write(tmp_path / "a.png")
    monkeypatch.setattr(denoise.Page, "add", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    given = [f"{tmp_path}/a.png", "-o", f"{tmp_path}/b.png", "--compare", f"{tmp_path}/page.html"]
    assert main(["denoise", *given, "--weights", str(identity)]) == 1
    assert "b.png is written, but its part of" in capsys.readouterr().err and (tmp_path / "b.png").exists()


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("in/a.png", "never overwritten"),
        ("link/a.png", "never overwritten"),
        ("weights.pth", "never overwritten"),
        ("out/a.png", "in/a.png and the page would both be written to"),
    ],
)
def test_the_page_overwrites_no_input_and_no_result(tmp_path, identity, capsys, page, reason):
    write(tmp_path / "in" / "a.png")
    write(tmp_path / "out" / "a.png", seed=1)
    (tmp_path / "weights.pth").write_bytes(identity.read_bytes())
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.p*")}
    given = [f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", f"{tmp_path}/weights.pth", "--force"]
    assert main(["denoise", *given, "--compare", f"{tmp_path}/{page}"]) == 1
    assert reason in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.p*")} == before


def test_a_prediction_of_nan_is_an_error_not_a_black_picture(tmp_path, identity, capsys, monkeypatch):
    source = write(tmp_path / "a.png")
    monkeypatch.setattr(Model, "predict", lambda self, images, ensemble=None: images * float("nan"))
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", str(identity)]) == 1
    assert "a.png: the prediction holds values that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()
    assert main(["evaluate", str(source), str(source), "--weights", str(identity)]) == 1
    assert "not finite" in capsys.readouterr().err


def test_a_link_is_replaced_not_followed(tmp_path, identity):
    source, other = write(tmp_path / "a.png"), tmp_path / "other.png"
    other.write_text("precious")
    (tmp_path / "b.png").symlink_to(other)
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", str(identity), "--force"]) == 0
    assert other.read_text() == "precious"


def test_two_inputs_for_one_output_are_an_error_before_any_work(tmp_path, identity, capsys):
    for folder in "ab":
        write(tmp_path / folder / "x.png")
    given = [f"{tmp_path}/a/x.png", f"{tmp_path}/b", "-o", f"{tmp_path}/out", "--weights", str(identity)]
    assert main(["denoise", *given]) == 1
    assert "would both be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_output_folder_inside_the_input_folder_is_no_input(tmp_path, identity):
    write(tmp_path / "a.png")
    for _ in range(2):
        given = ["denoise", str(tmp_path), "-o", f"{tmp_path}/out", "--weights", str(identity), "--force"]
        assert main(given) == 0
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a.png"]


def test_linked_folders_are_entered_once(tmp_path, identity):
    write(tmp_path / "elsewhere" / "a.png")
    write(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "album").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert main(["denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out", "--weights", str(identity)]) == 0
    assert sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")) == [
        Path("album/a.png"),
        Path("b.png"),
    ]


def test_what_cannot_be_written_is_told_before_the_work(tmp_path, identity, capsys, monkeypatch):
    monkeypatch.setattr(denoise, "denoise_file", lambda *_: pytest.fail("it has begun"))
    write(tmp_path / "a.png")
    for more in (
        ["-o", f"{tmp_path}/a.png/b.png"],
        ["-o", f"{tmp_path}/b.png", "--compare", f"{tmp_path}/a.png/c.html"],
    ):
        assert main(["denoise", f"{tmp_path}/a.png", "--weights", str(identity), *more]) == 1
        assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_several_pictures_do_not_go_into_a_folder_with_the_name_of_a_picture(tmp_path, identity, capsys):
    given = [str(write(tmp_path / name)) for name in ("a.png", "b.png")]
    assert main(["denoise", *given, "-o", f"{tmp_path}/out.png", "--weights", str(identity)]) == 1
    assert "must be a folder" in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def test_ink_and_alpha_are_shown_on_the_page(tmp_path, identity):
    tifffile = pytest.importorskip("tifffile")
    pixels = numpy.random.default_rng(0).integers(65536, size=(20, 30, 5), dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="separated", extrasamples=["unassalpha"])
    given = ["denoise", f"{tmp_path}/a.tif", "-o", f"{tmp_path}/b.tif", "--weights", str(identity)]
    assert main([*given, "--compare", f"{tmp_path}/page.html"]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1000


def stack_of(dtype, shape, seed=0):
    high = 1.0 if dtype == "float32" else numpy.iinfo(dtype).max
    values = 0.1 + 0.8 * numpy.random.default_rng(seed).random(shape)
    return (values * high).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 20, 30), {"photometric": "minisblack"}),
        ((5, 20, 30, 3), {"photometric": "rgb"}),
        ((5, 3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}),
        ((3, 2, 2, 20, 30), {"imagej": True, "metadata": {"axes": "TZCYX", "unit": "um"}, "resolution": (2.5, 2.5)}),
        ((2, 3, 20, 30), {"ome": True, "metadata": {"axes": "TZYX", "PhysicalSizeX": 0.1}}),
    ],
)
def test_stacks_come_back_as_they_were(tmp_path, identity, capsys, dtype, shape, options):
    tifffile = pytest.importorskip("tifffile")
    values = stack_of(dtype, shape)
    tifffile.imwrite(tmp_path / "in.tif", values, **options)
    given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/out.tif", "--weights", str(identity), "--json"]
    assert main(given) == 0
    facts = json.loads(capsys.readouterr().out)
    with tifffile.TiffFile(tmp_path / "in.tif") as before, tifffile.TiffFile(tmp_path / "out.tif") as after:
        assert facts["pages"] == len(before.pages) == len(after.pages)
        assert (facts["width"], facts["height"]) == (30, 20)
        expected = numpy.stack([page.asarray() for page in before.pages])
        found = numpy.stack([page.asarray() for page in after.pages])
        assert after.pages[0].description == before.pages[0].description
        assert after.pages[0].get_resolution("none") == before.pages[0].get_resolution("none")
        assert after.series[0].axes == before.series[0].axes and after.series[0].shape == before.series[0].shape
        assert after.is_imagej == before.is_imagej and after.is_ome == before.is_ome
    assert found.dtype == dtype and found.shape == expected.shape
    assert numpy.abs(found.astype(float) - expected).max() <= (1e-6 if dtype == "float32" else 0)
    assert sorted(os.listdir(tmp_path)) == ["in.tif", "out.tif"]


def test_all_pages_have_one_range_and_the_first_is_shown(tmp_path, identity, capsys):
    tifffile = pytest.importorskip("tifffile")
    values = numpy.stack([stack_of("uint16", (20, 30), seed) >> shift for seed, shift in enumerate((8, 5, 6))])
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="minisblack")
    given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/out", "--weights", str(identity)]
    assert main([*given, "--compare", f"{tmp_path}/page.html"]) == 0
    said = capsys.readouterr().out
    assert "3 pages of 30 x 20, noise" in said and said.count("0 is taken as black, 4095 as white") == 1
    assert (tmp_path / "page.html").read_text().count("<figure") == 1
    assert (tifffile.imread(tmp_path / "out" / "in.tif") == values).all()
    assert main([*given, "--json", "--force", "--range", "0", "255"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0] == "0 is taken as black, 255 as white; --range changes that"
    assert (tifffile.imread(tmp_path / "out" / "in.tif") == values).all()  # also those beyond the range


def test_a_range_is_not_advised_from_one_page(tmp_path, identity, capsys):
    tifffile = pytest.importorskip("tifffile")
    values = numpy.stack([stack_of("uint16", (20, 30)) >> shift for shift in (9, 4)])
    for name, written in (("dark", values[0]), ("in", values)):
        tifffile.imwrite(tmp_path / f"{name}.tif", written, photometric="minisblack")
        given = ["denoise", f"{tmp_path}/{name}.tif", "-o", f"{tmp_path}/out", "--weights", str(identity), "--json"]
        assert main([*given, "--range", "0", "4095"]) == 0
        assert ("may do better" in capsys.readouterr().out) == (name == "dark")


def test_every_page_of_a_stack_is_denoised(tmp_path, course, capsys):
    tifffile = pytest.importorskip("tifffile")
    pages = [noisy_picture(channels=1, seed=seed).pixels[:, :, 0] for seed in range(2)]
    tifffile.imwrite(tmp_path / "in.tif", numpy.stack(pages), photometric="minisblack")
    given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/out.tif", "--weights", "course", "--json"]
    assert main(given) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["noise_before"] > 20 and facts["noise_after"] < 10
    for page, found in zip(pages, tifffile.imread(tmp_path / "out.tif"), strict=True):
        alone = denoise.denoised(course, images.Picture(page[:, :, None], "grey", False, (0, 255)))
        assert (found == alone[:, :, 0]).all()


def test_few_pages_of_a_stack_are_in_memory(tmp_path, identity, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "in.tif", stack_of("uint8", (8, 20, 30)), photometric="minisblack")
    made, alive, picture = [], [], images.Picture

    def counted(*given, **named):
        new = picture(*given, **named)
        made.append(weakref.ref(new))
        alive.append(sum(one() is not None for one in made))
        return new

    monkeypatch.setattr(images, "Picture", counted)
    given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/out.tif", "--weights", str(identity)]
    assert main(given) == 0
    assert len(made) >= 16 and max(alive) <= 3


def test_large_stacks_become_bigtiffs(tmp_path, identity, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "in.tif", stack_of("uint8", (3, 20, 30)), photometric="minisblack")
    for size, large in ((1799, True), (1800, False)):
        monkeypatch.setattr(images, "LARGEST_TIFF", size)
        given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/{size}.tif", "--weights", str(identity)]
        assert main(given) == 0
        with tifffile.TiffFile(tmp_path / f"{size}.tif") as file:
            assert file.is_bigtiff == large and len(file.pages) == 3


def test_what_is_no_stack_is_refused_with_what_to_do(tmp_path, identity, capsys):
    tifffile = pytest.importorskip("tifffile")
    values = stack_of("float32", (3, 20, 30))
    for name, pages in {
        "sizes": (values[0], values[0, :10, :15]),
        "kinds": (values[0], (values[0] * 255).astype("uint8")),
        "damaged": (values[0], values[0] * numpy.nan),
        "sound": values,
    }.items():
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for page in pages:
                file.write(page, photometric="minisblack")
    for name, out, reason in (
        ("sizes", "new.tif", "its pages differ in size or kind, as copies in other sizes do: save those"),
        ("kinds", "new.tif", "differ in size or kind"),
        ("damaged", "new.tif", "page 2 of 2: the picture holds NaN"),
        ("sound", "new.png", "only TIFF holds 3 pictures; write it to a name that ends in .tif"),
    ):
        given = ["denoise", f"{tmp_path}/{name}.tif", "-o", f"{tmp_path}/{out}", "--weights", str(identity)]
        assert main(given) == 1
        assert f"{name}.tif: " in (said := capsys.readouterr().err) and reason in said
    assert not list(tmp_path.glob("*new*"))
    tifffile.imwrite(tmp_path / "one.tif", values[0])
    assert main(["evaluate", f"{tmp_path}/sound.tif", f"{tmp_path}/one.tif", "--weights", str(identity)]) == 1
    assert "it holds 3 pictures; only files of one picture are read: split it" in capsys.readouterr().err


def test_a_compressed_stack_says_what_it_needs(tmp_path, identity, capsys):
    pages = [Image.fromarray(numpy.full((9, 9), value, "uint8")) for value in (1, 2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    status = main(["denoise", f"{tmp_path}/a.tif", "-o", f"{tmp_path}/b.tif", "--weights", str(identity)])
    assert status == ("needs imagecodecs: pip install" in capsys.readouterr().err)


def test_a_stack_appears_whole_or_not_at_all(tmp_path, identity, capsys, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "in.tif", stack_of("uint8", (3, 20, 30)), photometric="minisblack")
    (tmp_path / "out.tif").write_text("precious")
    predict, done = Model.predict, []

    def fails_at_the_last(self, pictures, ensemble=None):
        done.append(1)
        return predict(self, pictures, ensemble) * (float("nan") if len(done) == 3 else 1)

    monkeypatch.setattr(Model, "predict", fails_at_the_last)
    given = ["denoise", f"{tmp_path}/in.tif", "-o", f"{tmp_path}/out.tif", "--weights", str(identity)]
    assert main(given) == 1
    assert "--force" in capsys.readouterr().err and not done
    assert main([*given, "--force"]) == 1
    assert "not finite" in capsys.readouterr().err and len(done) == 3
    assert (tmp_path / "out.tif").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["in.tif", "out.tif"]


@pytest.mark.skipif(os.name != "posix", reason="closes a stream by the shell")
def test_a_missing_stderr_stops_nothing(tmp_path, identity):
    write(tmp_path / "a.png")
    given = f"denoise {tmp_path}/a.png -o {tmp_path}/b.png --weights {identity}"
    done = subprocess.run(f"{sys.executable} -m Miniproject_1 {given} 2>&-", shell=True, cwd=ROOT)
    assert done.returncode == 0 and (tmp_path / "b.png").exists()


def test_odd_names(tmp_path, identity, monkeypatch):
    odd = os.fsencode(tmp_path) + b"/in/\xff\xfe o\x1b[31md\nd.png"
    write(tmp_path / "in" / "a.png").rename(os.fsdecode(odd))
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "below").mkdir()
    command = [sys.executable, "-m", "Miniproject_1", "denoise", "../in", "-o", "../out", "--compare", "../p.html"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*command, "--weights", str(identity)], cwd=tmp_path / "below", env=environment, capture_output=True
    )
    assert done.returncode == 1 and b"nowhere.png: no such file" in done.stderr
    assert b"\\udcff\\udcfe o\\x1b[31md\\nd.png: 60 x 40" in done.stdout
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"\xff\xfe o\x1b[31md\nd.png"]


def test_missing_weights_name_the_others(tmp_path, capsys, monkeypatch):
    source = write(tmp_path / "a.png")
    monkeypatch.setitem(weights.SHIPPED, "photo", tmp_path / "photomodel.pth")
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png"]) == 1
    said = capsys.readouterr().err
    assert "photomodel.pth" in said and "choose course" in said and "photographs at their own resolution" in said
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", "nothing.pth"]) == 1
    assert "no weights file 'nothing.pth'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "101", "high"])
def test_quality_is_a_number_from_1_to_100(capsys, value):
    with pytest.raises(SystemExit, match="2"):
        main(["denoise", "a.jpg", "-o", "b.jpg", "--quality", value])
    assert f"--quality: invalid quality value: '{value}'" in capsys.readouterr().err


def test_an_empty_argument_is_not_the_current_folder(tmp_path, identity, capsys, monkeypatch):
    write(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for given in (["", "-o", "out"], ["a.png", "-o", ""], ["a.png", "--out="]):
        with pytest.raises(SystemExit) as error:
            main(["denoise", *given])
        assert error.value.code == 2 and "it is empty; name a file or a folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "arguments", [["--strength", "1.5"], ["--strength", "much"], ["--max-megapixels", "nan"], ["--nonsense"]]
)
def test_wrong_calls_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["denoise", "a.png", "-o", "b.png", *arguments])
    assert ended.value.code == 2
    capsys.readouterr()


def test_help_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from Miniproject_1.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "denoise" in done.stdout and not done.stderr


def hear_all():
    """Jobs in the background ignore Ctrl-C, those of nohup the end of the terminal; their children would, too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_interrupted_it_leaves_whole_files_only(tmp_path, identity, sent, status):
    for number in range(40):
        write(tmp_path / "in" / f"{number:02}.png", size=(400, 300), seed=number)
    command = [sys.executable, "-m", "Miniproject_1", "denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out"]
    command += ["--weights", str(identity), "--compare", f"{tmp_path}/page.html"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_all,
    )
    out, until = tmp_path / "out", time.monotonic() + 300
    while time.monotonic() < until and not (out.exists() and len(list(out.glob("*.png"))) >= 3):
        time.sleep(0.01)
    process.send_signal(sent)
    process.communicate(timeout=300)
    assert process.returncode == status
    written = [path for path in out.iterdir() if path.suffix == ".png"]
    assert 3 <= len(written) < 40
    for path in written:
        assert (images.read_picture(path).pixels == images.read_picture(tmp_path / "in" / path.name).pixels).all()
    if sent != signal.SIGKILL:
        assert len(os.listdir(out)) == len(written)
        assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, identity, capsys, monkeypatch):
    source = write(tmp_path / "a.png")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "move", full)
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", str(identity)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.png"]


def test_two_runs_into_one_folder_leave_whole_files(tmp_path, identity):
    for number in range(12):
        write(tmp_path / "in" / f"{number}.png", seed=number)
    command = [sys.executable, "-m", "Miniproject_1", "denoise", f"{tmp_path}/in", "-o", f"{tmp_path}/out"]
    command += ["--weights", str(identity), "--json"]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    facts = [json.loads(line) for run in runs for line in run.communicate(timeout=300)[0].splitlines()]
    written = [fact for fact in facts if "error" not in fact]
    assert len(written) == 12 and all("exists" in fact["error"] for fact in facts if "error" in fact)
    assert len(os.listdir(tmp_path / "out")) == 12
    for path in (tmp_path / "out").iterdir():
        assert (images.read_picture(path).pixels == images.read_picture(tmp_path / "in" / path.name).pixels).all()


def test_many_small_files_take_no_more_memory(tmp_path, identity):
    """The peak after 300 files is that after 100, up to what an allocator does as it likes."""
    for number in range(300):
        write(tmp_path / "in" / f"{number:03}.png", size=(16, 16), seed=number)
    code = f"""
import resource, sys
from Miniproject_1.commands import denoise
from Miniproject_1.__main__ import main
peaks, whole = [], denoise.denoise_file
def watched(*arguments):
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return whole(*arguments)
denoise.denoise_file = watched
main(["denoise", {str(tmp_path / "in")!r}, "-o", {str(tmp_path / "out")!r}, "--weights", {str(identity)!r},
      "--compare", {str(tmp_path / "page.html")!r}, "--quiet"])
print(peaks[-1] - peaks[100])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(os.listdir(tmp_path / "out")) == 300
    assert int(done.stdout) < 4 * 1024  # KiB; 200 files, each of which leaves less than 20 KiB


def test_a_picture_with_hardly_any_noise_is_noted(identity, tmp_path, capsys):
    for level, noted in ((0.5, True), (25, False)):
        source = write(tmp_path / "a.png", level=level)
        assert main(["denoise", str(source), "-o", str(tmp_path / "b.png"), "--weights", str(identity)]) == 0
        assert ("detail may be lost; --strength" in capsys.readouterr().out) == noted
        source.unlink()
        (tmp_path / "b.png").unlink()


def test_ranges_that_differ_between_pictures_are_said(identity, tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    write(tmp_path / "in" / "8.png")
    for name, highest in (("a", 1000), ("b", 1001), ("c", 1030)):
        values = numpy.random.default_rng(0).integers(0, 1000, (40, 50), dtype="uint16")
        values[:8] = highest
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", values)
    call = ["denoise", str(tmp_path / "in"), "--weights", str(identity), "-o"]
    assert main([*call, str(tmp_path / "out")]) == 0
    assert "uint16 pictures were read with ranges of 0 to 1023, 0 to 4095: give one --range" in capsys.readouterr().err
    (tmp_path / "in" / "c.tif").unlink()
    assert main([*call, str(tmp_path / "again")]) == 0
    assert "--range for all" not in capsys.readouterr().err


def saved_with(path, ranges):
    """Weights of an untrained network that know these ranges of their training."""
    model = Model(width=8)
    model.value_ranges = ranges
    model.save(path)
    return str(path)


def call_on_tiff(folder, pages, dtype, lowest, highest, trained):
    """A call that denoises a TIFF of random values, by weights that know a range of their training."""
    tifffile = pytest.importorskip("tifffile")
    values = lowest + (highest - lowest) * numpy.random.default_rng(0).random((pages, 40, 50))
    tifffile.imwrite(folder / "a.tif", values.astype(dtype), photometric="minisblack")
    weights = saved_with(folder / "own.pth", {dtype: trained})
    return ["denoise", f"{folder}/a.tif", "-o", f"{folder}/b.tif", "--weights", weights]


@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "lowest", "highest", "trained"),
    [
        ("uint16", 0, 200, (0, 4095)),
        ("uint16", 600, 4900, (600, 5000)),
        ("float32", 0, 0.9, (-1, 3)),
        ("uint8", 12, 190, (10, 200)),
    ],
)
def test_pictures_have_the_range_that_the_weights_were_trained_with(
    tmp_path, capsys, pages, dtype, lowest, highest, trained
):
    call = [*call_on_tiff(tmp_path, pages, dtype, lowest, highest, trained), "--json"]
    assert main(call) == 0
    facts = json.loads(capsys.readouterr().out)
    assert tuple(facts["range"]) == trained
    assert any("as in the training of the weights" in note for note in facts["notes"])
    assert not any("may do better" in note for note in facts["notes"])
    for given in (("0", "300"), ("0", "65535"), ("0", "1")):
        assert main([*call, "--force", "--range", *given]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["range"] == list(map(float, given))
        said = f"where the weights were trained with {trained[0]} and {trained[1]}"
        assert any(said in note for note in facts["notes"])


def test_a_few_bright_stars_do_not_make_another_range(tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    values = stack_of("uint16", (100, 100)) >> 4
    values[:3, :100] = 60_000
    tifffile.imwrite(tmp_path / "a.tif", values)
    weights = saved_with(tmp_path / "own.pth", {"uint16": (0, 4095)})
    call = ["denoise", f"{tmp_path}/a.tif", "-o", f"{tmp_path}/b.tif", "--weights", weights]
    assert main(call) == 0
    assert (tifffile.imread(tmp_path / "b.tif")[:3] == 60_000).all()
    assert "are far beyond black and white and stay as they are" in capsys.readouterr().out


def test_the_usual_range_is_not_noted(tmp_path, capsys):
    source = write(tmp_path / "a.png")
    weights = saved_with(tmp_path / "own.pth", {"uint8": (0, 255)})
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", weights]) == 0
    assert "black" not in capsys.readouterr().out


@pytest.mark.parametrize("pages", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "lowest", "highest", "trained"), [("uint16", 0, 60_000, (0, 4095)), ("float32", 80, 120, (0, 1))]
)
def test_a_picture_beyond_the_range_of_the_training_needs_a_range(
    tmp_path, capsys, pages, dtype, lowest, highest, trained
):
    call = call_on_tiff(tmp_path, pages, dtype, lowest, highest, trained)
    assert main(call) == 1
    assert f"trained with 0 as black and {trained[1]} as white: give --range" in capsys.readouterr().err
    assert not (tmp_path / "b.tif").exists()
    assert main([*call, "--range", str(lowest), str(highest)]) == 0


def test_the_device_that_is_named_is_used(tmp_path, capsys):
    source = write(tmp_path / "a.png")
    assert main(["denoise", str(source), "-o", f"{tmp_path}/b.png", "--device", "banana"]) == 1
    assert "device 'banana' cannot be used" in capsys.readouterr().err


def test_ensemble_averages_several_predictions(tmp_path):
    source = write(tmp_path / "a.png", size=(70, 80))  # a single pass by default
    for name, more in (("once", []), ("several", ["--ensemble"])):
        assert main(["denoise", str(source), "-o", f"{tmp_path}/{name}.png", "--weights", "course", *more]) == 0
    assert (tmp_path / "once.png").read_bytes() != (tmp_path / "several.png").read_bytes()


def test_quality_is_that_of_the_file(tmp_path, identity):
    source, sizes = write(tmp_path / "a.png"), []
    for quality in ("20", "95"):
        call = ["denoise", str(source), "-o", f"{tmp_path}/b.jpg", "--force", "--quality", quality]
        assert main([*call, "--weights", str(identity)]) == 0
        sizes.append((tmp_path / "b.jpg").stat().st_size)
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.skipif(os.name != "posix", reason="needs permissions")
def test_a_replaced_picture_keeps_its_permissions(tmp_path, identity):
    source, out = write(tmp_path / "a.png"), write(tmp_path / "b.png")
    out.chmod(0o600)
    assert main(["denoise", str(source), "-o", str(out), "--force", "--weights", str(identity)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600


class Averaging:
    """A model that returns the mean of each image, in [0, 255] as `Model.predict` does."""

    in_channels = 1

    def predict(self, images, ensemble):
        return images.mean((2, 3), keepdim=True).expand_as(images).clamp(0, 255)


@pytest.mark.parametrize("level", [-200, -20, 0, 100, 255, 270, 400])
def test_values_beyond_the_range_are_denoised_too(level):
    noisy = level + 20 * torch.randn(1, 1, 50, 60, generator=torch.Generator().manual_seed(0))
    clean = denoise.predicted_beyond(Averaging(), noisy, "grey")
    torch.testing.assert_close(clean, noisy.mean().expand_as(clean), atol=0.01, rtol=0)


def test_next_to_no_noise_is_said(tmp_path, identity, capsys):
    for level, said in ((0.0, "probably worse than the picture"), (1.2, "detail may be lost")):
        noise = level * numpy.random.default_rng(0).standard_normal((90, 90, 3))
        Image.fromarray((128 + noise).round().astype("uint8")).save(tmp_path / "a.png")
        call = ["denoise", f"{tmp_path}/a.png", "-o", f"{tmp_path}/b.png", "--force", "--weights", str(identity)]
        assert main(call) == 0 and said in capsys.readouterr().out


@pytest.mark.parametrize("strength", ["0", "1"])
def test_values_beyond_a_given_range_are_not_clipped(tmp_path, identity, strength):
    source = write(tmp_path / "a.png")
    call = ["denoise", str(source), "-o", f"{tmp_path}/b.png", "--weights", str(identity), "--range", "60", "150"]
    assert main([*call, "--strength", strength]) == 0
    assert (numpy.asarray(Image.open(source)) == numpy.asarray(Image.open(tmp_path / "b.png"))).all()
