"""Pictures in files: every kind comes back as it was, with all that belongs to it."""

import io
import os
import re
import struct
import zlib

import pytest
import torch

Image = pytest.importorskip("PIL.Image")
numpy = pytest.importorskip("numpy")

from Miniproject_1.commands.support import images  # noqa: E402
from Miniproject_1.commands.support.noise_level import noise_level  # noqa: E402

RANDOM = numpy.random.default_rng(0)
ARROW = numpy.arange(6 * 9, dtype="uint8").reshape(6, 9) * 4  # no two symmetries of it are alike


def pixels(channels, dtype="uint8", size=(13, 22)):
    """Smooth enough for lossy formats, with all bits in use."""
    ramp = numpy.linspace(0.1, 0.8, size[1]) * numpy.linspace(0.6, 1, size[0])[:, None]
    values = numpy.stack([ramp * (1 - 0.1 * k) for k in range(channels)], 2)
    return values.astype(dtype) if dtype == "float32" else (values * numpy.iinfo(dtype).max).astype(dtype)


KINDS = {"grey": ("grey", False), "grey alpha": ("grey", True), "RGB": ("RGB", False), "RGBA": ("RGB", True)}
KINDS |= {"CMYK": ("CMYK", False)}
HELD = {
    ".png": ("grey", "grey alpha", "RGB", "RGBA"),
    ".tif": ("grey", "grey alpha", "RGB", "RGBA", "CMYK"),
    ".jpg": ("grey", "RGB", "CMYK"),
    ".webp": ("RGB", "RGBA"),
}
CASES = [(ending, kind, "uint8") for ending, kinds in HELD.items() for kind in kinds]
CASES += [(ending, kind, "uint16") for ending in (".png", ".tif") for kind in HELD[ending]]
CASES += [(".tif", kind, "float32") for kind in HELD[".tif"]]


def sample(kind, dtype="uint8", **others):
    space, alpha = KINDS[kind]
    high = 1.0 if dtype == "float32" else numpy.iinfo(dtype).max
    return images.Picture(pixels(images.CHANNELS[space] + alpha, dtype), space, alpha, (0, high), **others)


def need_tifffile(ending, dtype, kind):
    if ending == ".tif" and (dtype == "float32" or (dtype == "uint16" and kind != "grey")):
        pytest.importorskip("tifffile")


def exif_of_a_camera():
    exif = Image.Exif()
    exif[0x010F], exif[images.ORIENTATION] = "Camera", 1
    exif[images.EXIF_IFD] = {0x829A: 0.01}  # exposure time
    return exif


@pytest.mark.parametrize(("ending", "kind", "dtype"), CASES)
def test_every_kind_comes_back_with_all_that_belongs_to_it(tmp_path, ending, kind, dtype):
    need_tifffile(ending, dtype, kind)
    path, icc = tmp_path / f"picture{ending}", b"a profile that nobody reads" * 9
    written = sample(kind, dtype, exif=exif_of_a_camera(), icc=icc, dpi=(300, 150))
    images.write_picture(written, path)
    read = images.read_picture(path)
    assert (read.space, read.alpha, read.pixels.dtype) == (written.space, written.alpha, written.pixels.dtype)
    assert read.pixels.shape == written.pixels.shape
    error = numpy.abs(read.pixels.astype(float) - written.pixels)
    assert error.max() <= (8 if ending in (".jpg", ".webp") else 0)
    assert read.icc == icc
    assert read.exif[0x010F] == "Camera"
    if written.notes:
        assert ending == ".tif" and "EXIF only description, camera" in written.notes[0] and dtype != "uint8"
    else:
        assert read.exif.get_ifd(images.EXIF_IFD)[0x829A] == pytest.approx(0.01)
    if ending != ".webp":  # which has no resolution but in its EXIF
        assert read.dpi == pytest.approx((300, 150), abs=0.02)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("ending", "kind", "dtype"), [case for case in CASES if case[0] in (".png", ".tif")])
def test_other_programs_see_the_same(tmp_path, ending, kind, dtype):
    """Pillow (which keeps the upper bytes) and tifffile read what we wrote."""
    need_tifffile(ending, dtype, kind)
    path, written = tmp_path / f"picture{ending}", sample(kind, dtype)
    images.write_picture(written, path)
    if ending == ".png":
        seen = numpy.asarray(Image.open(path)).astype(int)
        expected = written.pixels.squeeze()
        if kind == "grey alpha" and dtype == "uint16":
            seen = seen[:, :, [0, -1]]  # it makes RGBA of it
        assert (seen == (expected >> 8 if dtype == "uint16" and kind != "grey" else expected)).all()
    elif dtype != "uint8":
        tifffile = pytest.importorskip("tifffile")
        assert (tifffile.imread(path) == written.pixels.squeeze()).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".webp"])
def test_pictures_are_turned_upright_once(tmp_path, ending, orientation):
    from PIL import ImageOps

    exif, image = Image.Exif(), Image.fromarray(numpy.stack([ARROW] * 3, 2))
    exif[images.ORIENTATION] = orientation
    path, again = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    image.save(path, exif=exif, quality=100)
    with Image.open(path) as opened:
        expected = numpy.asarray(ImageOps.exif_transpose(opened))
    read = images.read_picture(path)
    assert (read.pixels == expected).all()
    images.write_picture(read, again, quality=100)
    twice = images.read_picture(again)
    assert twice.pixels.shape == read.pixels.shape
    assert numpy.abs(twice.pixels.astype(int) - read.pixels).max() <= 4
    with Image.open(again) as opened:
        assert opened.getexif().get(images.ORIENTATION, 1) == 1


def test_sixteen_bit_colour_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    written = sample("RGB", "uint16", exif=exif)
    images.write_picture(written, tmp_path / "a.png")
    read = images.read_picture(tmp_path / "a.png")
    assert (read.pixels == numpy.rot90(written.pixels, -1)).all()


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".webp"])
def test_xmp_is_kept_and_says_upright(tmp_path, ending):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:rights="mine"/></x:xmpmeta>'
    images.write_picture(sample("RGB", xmp=packet), tmp_path / f"a{ending}")
    read = images.read_picture(tmp_path / f"a{ending}")
    assert b'dc:rights="mine"' in read.xmp and b'"6"' not in read.xmp


def test_what_is_not_kept_is_said(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text, image = PngInfo(), Image.new("RGB", (4, 4))
    text.add_text("Author", "me")
    text.add_itxt(images.XMP_TEXT, "<x/>")
    image.save(tmp_path / "a.png", pnginfo=text)
    image.save(tmp_path / "a.jpg", comment=b"mine")
    exif = Image.Exif()
    exif[34735] = (1, 1, 0, 0)
    image.save(tmp_path / "a.tif", exif=exif)
    for name, lost in (("a.png", "the text 'Author'"), ("a.jpg", "its comment"), ("a.tif", "GeoTIFF")):
        assert images.read_picture(tmp_path / name).notes == [f"not kept: {lost}"]
    image.save(tmp_path / "plain.png")
    assert images.read_picture(tmp_path / "plain.png").notes == []


@pytest.mark.parametrize(
    ("gamma", "more", "said"), [(45455, b"", False), (100000, b"", True), (100000, b"sRGB", False)]
)
def test_an_unusual_gamma_is_said_to_be_lost(tmp_path, gamma, more, said):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with open(tmp_path / "b.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, content in images.png_chunks((tmp_path / "a.png").read_bytes()):
            images.write_chunk(file, name, content)
            if name == b"IHDR":
                images.write_chunk(file, b"gAMA", gamma.to_bytes(4, "big"))
                if more:
                    images.write_chunk(file, more, b"\0")
    assert bool(images.read_picture(tmp_path / "b.png").notes) == said


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_texts_keep_their_bytes_whatever_their_encoding(tmp_path, ending):
    text, exif = "© Jürgen Müller", Image.Exif()
    exif[33432] = text.encode()  # UTF-8, as cameras write it
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{ending}", exif=exif)
    images.write_picture(images.read_picture(tmp_path / f"a{ending}"), tmp_path / f"b{ending}")
    for name in "ab":
        assert text.encode() in (tmp_path / f"{name}{ending}").read_bytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_sizes_and_descriptions_of_microscopes_are_kept(tmp_path, dtype, channels):
    tifffile = pytest.importorskip("tifffile")
    text = '<OME PhysicalSizeXUnit="µm"/>'.encode()
    pixels = numpy.random.default_rng(0).random((6, 5, channels))
    pixels = (pixels * (1 if dtype == "float32" else 255)).astype(dtype)
    layout = {"photometric": "rgb" if channels == 3 else "minisblack", "metadata": None}
    more = {"resolution": (10, 20), "resolutionunit": 1, "extratags": [(270, 2, 0, text, True)]}
    tifffile.imwrite(tmp_path / "a.tif", pixels if channels == 3 else pixels[:, :, 0], **layout, **more)
    images.write_picture(images.read_picture(tmp_path / "a.tif"), tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = {tag.code: tag.value for tag in tiff.pages[0].tags}
    across, down = (tags[code][0] / tags[code][1] for code in (282, 283))
    assert (across, down, tags[296]) == (10, 20, 1)
    assert text in (tmp_path / "b.tif").read_bytes()


def test_many_equal_smallest_values_are_said(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = numpy.random.default_rng(0).random((20, 20)).astype("float32")
    pixels[:5] = -9999
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    picture = images.read_picture(tmp_path / "a.tif")
    picture.note_range()
    assert "25% of the values are -9999: fill them first if they mean no data" in picture.notes


def test_double_precision_is_said_to_become_single(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", numpy.random.default_rng(0).random((5, 6)))
    picture = images.read_picture(tmp_path / "a.tif")
    assert picture.pixels.dtype == "float32" and picture.notes[0] == "its float64 values become float32"
    tifffile.imwrite(tmp_path / "a.ome.tif", numpy.zeros((5, 6)))
    images.write_picture(images.read_picture(tmp_path / "a.ome.tif"), tmp_path / "b.tif")
    assert b'Type="float"' in (tmp_path / "b.tif").read_bytes()


def test_lossless_webp_stays_lossless(tmp_path):
    written = sample("RGB", encoding={"lossless": True})
    images.write_picture(written, tmp_path / "a.webp")
    images.write_picture(images.read_picture(tmp_path / "a.webp"), tmp_path / "b.webp")
    assert (images.read_picture(tmp_path / "b.webp").pixels == written.pixels).all()


@pytest.mark.parametrize("kind", [0, 2])
def test_the_subsampling_of_a_jpeg_is_kept(tmp_path, kind):
    from PIL import JpegImagePlugin

    Image.fromarray(pixels(3, "uint8")).save(tmp_path / "a.jpg", subsampling=kind)
    images.write_picture(images.read_picture(tmp_path / "a.jpg"), tmp_path / "b.jpg")
    assert JpegImagePlugin.get_sampling(Image.open(tmp_path / "b.jpg")) == kind


def test_resolution_and_size_turn_with_the_picture(tmp_path):
    exif = Image.Exif()
    exif[images.ORIENTATION], exif[images.EXIF_IFD] = 6, {images.PAGE_WIDTH: 60, images.PAGE_HEIGHT: 40}
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 150))
    read = images.read_picture(tmp_path / "a.jpg")
    details = read.exif.get_ifd(images.EXIF_IFD)
    assert (details[images.PAGE_WIDTH], details[images.PAGE_HEIGHT]) == (40, 60) and read.dpi == (150, 300)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_copies_in_other_sizes_are_said_to_be_lost(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    pixels = numpy.zeros((32, 32, 3), dtype)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, photometric="rgb", subifds=1, metadata=None)
        writer.write(pixels[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    assert "not kept: copies in other sizes" in images.read_picture(tmp_path / "a.tif").notes


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_unknown_tags_are_said_to_be_lost(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    for name, tags in (("a.tif", [(34118, 2, 0, "pixel size", True), (285, 2, 0, "page", True)]), ("b.tif", [])):
        tifffile.imwrite(tmp_path / name, numpy.zeros((32, 32), dtype), extratags=tags)
    assert "not kept: the tag 285, the tag 34118" in images.read_picture(tmp_path / "a.tif").notes
    assert not any("not kept" in note for note in images.read_picture(tmp_path / "b.tif").notes)


WIDE, USUAL = (
    (31270, 32900, *primaries)
    for primaries in ((70800, 29200, 17000, 79700, 13100, 4600), (64000, 33000, 30000, 60000, 15000, 6000))
)


@pytest.mark.parametrize(
    ("name", "content", "lost"),
    [
        (b"cHRM", struct.pack(">8I", *WIDE), "the primaries of its colours"),
        (b"cHRM", struct.pack(">8I", *USUAL), None),
        (b"cICP", bytes([9, 16, 0, 1]), "the code of its colours (cICP)"),
        (b"cICP", bytes([1, 13, 0, 1]), None),
    ],
)
def test_colours_other_than_srgb_are_said_to_be_lost(tmp_path, name, content, lost):
    (tmp_path / "a.png").write_bytes(png(2, 8, [bytes(7)], chunk(name, content)))
    assert images.read_picture(tmp_path / "a.png").notes == ([f"not kept: {lost}"] if lost else [])


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(colour_type, depth, rows, extra=b""):
    """A PNG by hand; rows of bytes with their filter types."""
    height, channels = len(rows), {0: 1, 2: 3, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", (len(rows[0]) - 1) * 8 // (channels * depth), height, depth, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_all_sixteen_bits_of_a_png_with_a_transparent_colour(tmp_path):
    values = RANDOM.integers(0, 65536, (5, 4, 3), dtype="uint16")
    rows = [b"\0" + row.astype(">u2").tobytes() for row in values]
    (tmp_path / "a.png").write_bytes(png(2, 16, rows, chunk(b"tRNS", values[2, 1].astype(">u2").tobytes())))
    read = images.read_picture(tmp_path / "a.png")
    assert (read.pixels[:, :, :3] == values).all()
    assert read.alpha and (read.pixels[:, :, 3] == 0).sum() == 1 and read.pixels[2, 1, 3] == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_of_few_bits(tmp_path, depth):
    values = numpy.arange(64).reshape(4, 16) % 2**depth
    rows = [b"\0" + int("".join(f"{value:0{depth}b}" for value in row), 2).to_bytes(2 * depth, "big") for row in values]
    (tmp_path / "a.png").write_bytes(png(0, depth, rows, chunk(b"tRNS", b"\0\1")))
    picture = images.read_picture(tmp_path / "a.png")
    assert picture.alpha and ((picture.pixels[:, :, 1] == 0) == (values == 1)).all()


@pytest.mark.parametrize("layout", ["little", "big", "planes", "planes, zlib", "lzw"])
def test_all_sixteen_bits_of_a_tiff(tmp_path, layout):
    tifffile = pytest.importorskip("tifffile")
    values = RANDOM.integers(0, 65536, (25, 14, 3), dtype="uint16")
    options = {"photometric": "rgb", "byteorder": ">" if layout == "big" else "<"}
    if layout.startswith("planes"):
        options |= {"planarconfig": "separate", "compression": "zlib" if "zlib" in layout else None}
        tifffile.imwrite(tmp_path / "a.tif", values.transpose(2, 0, 1), **options)
    elif layout == "lzw":
        pytest.importorskip("imagecodecs")
        tifffile.imwrite(tmp_path / "a.tif", values, compression="lzw", **options)
    else:
        tifffile.imwrite(tmp_path / "a.tif", values, **options)
    assert (images.read_picture(tmp_path / "a.tif").pixels == values).all()


def test_a_tiff_without_exif_gains_none(tmp_path):
    Image.fromarray(pixels(3)).save(tmp_path / "a.tif", software="Scanner 3")
    assert images.EXIF_IFD not in images.read_picture(tmp_path / "a.tif").exif


def test_signed_bytes_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", RANDOM.integers(-128, 128, (9, 8), dtype="int8"))
    with pytest.raises(ValueError, match="TIFFs of int8 are not read"):
        images.read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_stack_behind_one_page_is_no_picture(tmp_path, dtype):
    """ImageJ writes large stacks so, and tells their number in the description."""
    tifffile = pytest.importorskip("tifffile")
    stack = (RANDOM.random((5, 9, 8)) * 200).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, truncate=True)
    with pytest.raises(ValueError, match="an ImageJ stack of 5 pictures in one"):
        images.read_picture(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True)
    with pytest.raises(ValueError, match="it holds 5 pictures"):
        images.read_picture(tmp_path / "b.tif")


def test_the_preview_in_a_raw_file_is_no_picture(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        preview = RANDOM.integers(0, 256, (8, 8, 3), dtype="uint8")
        file.write(preview, photometric="rgb", subfiletype=1, subifds=1)
        file.write(RANDOM.integers(0, 4096, (64, 64), dtype="uint16"), photometric="cfa", subfiletype=0)
    with pytest.raises(ValueError, match="raw file, of which only the preview"):
        images.read_picture(tmp_path / "a.tif")


def test_palettes_become_full_colour_and_say_so(tmp_path):
    image = Image.fromarray(pixels(3)).quantize(16)
    image.save(tmp_path / "a.png")
    read = images.read_picture(tmp_path / "a.png")
    assert read.pixels.shape == (13, 22, 3) and read.notes == ["the palette becomes full colour"]
    assert (read.pixels == numpy.asarray(image.convert("RGB"))).all()
    image.save(tmp_path / "b.png", transparency=3)
    assert images.read_picture(tmp_path / "b.png").alpha


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_values_go_to_255_and_back_without_loss(dtype):
    picture = sample("RGB", dtype)
    values = picture.values()
    assert values.dtype == torch.float32 and values.shape == (1, 3, 13, 22)
    assert values.min() >= 0 and values.max() * 1.3 > 200 and values.max() <= 255
    original, picture.pixels = picture.pixels, numpy.zeros_like(picture.pixels)
    picture.store(values)
    assert picture.pixels.dtype == dtype
    if dtype == "float32":
        assert numpy.allclose(original, picture.pixels, atol=1e-7)
    else:
        assert (original == picture.pixels).all()
    for high in (1023, 65535) if dtype == "uint16" else ():
        every = numpy.arange(high + 1, dtype=dtype).reshape(256, -1, 1)
        picture = images.Picture(every.copy(), "grey", False, (0, high))
        picture.store(picture.values())
        assert (picture.pixels == every).all()


def test_the_range_of_floating_tiff(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for values, expected in (([0.2, 0.9], (0, 1)), ([-3.0, 500.0], (-3, 500)), ([7.0, 7.0], (7, 8))):
        tifffile.imwrite(tmp_path / "a.tif", numpy.array([values], "float32"))
        assert images.read_picture(tmp_path / "a.tif").value_range == expected
        assert images.read_picture(tmp_path / "a.tif", value_range=(-9, 9)).value_range == (-9, 9)
    tifffile.imwrite(tmp_path / "a.tif", numpy.array([[1, numpy.nan]], "float32"))
    with pytest.raises(ValueError, match="NaN"):
        images.read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("high", "bits"), [(0, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4096, 14), (65535, 16)]
)
def test_the_range_of_sixteen_bits_is_that_of_a_sensor(tmp_path, high, bits):
    image = numpy.array([[0, high]], "uint16")
    Image.fromarray(image).save(tmp_path / "a.png")
    picture = images.read_picture(tmp_path / "a.png")
    assert picture.value_range == (0, 2**bits - 1)
    picture.note_range()
    assert bool(picture.notes) == (bits < 16)


def test_hot_pixels_neither_set_the_range_nor_are_changed(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = RANDOM.normal(3, 0.5, (60, 70)).astype("float32")
    values[5, 7], values[50, 2] = 5000, -90
    tifffile.imwrite(tmp_path / "a.tif", values)
    picture = images.read_picture(tmp_path / "a.tif")
    low, high = picture.value_range
    assert -2 < low < 2 and 4 < high < 8
    seen = picture.values()
    assert seen.max() == 510 and seen.min() == -255
    picture.store(torch.full((1, 1, 60, 70), 127.5))
    changed = picture.pixels[:, :, 0]
    assert changed[5, 7] == 5000 and changed[50, 2] == -90
    assert (changed == numpy.float32((low + high) / 2)).sum() == changed.size - 2
    picture.note_range()
    assert picture.notes[1] == "outliers, 2 of the values, are beyond black and white and stay as they are"
    usual = images.read_picture(tmp_path / "a.tif", value_range=(0, 1))
    usual.note_range()
    assert usual.notes[0].startswith("outliers, ") and "are far beyond black and white" in usual.notes[0]
    given = images.read_picture(tmp_path / "a.tif", value_range=(0, 4))
    given.store(torch.full((1, 1, 60, 70), 127.5))
    assert given.pixels[5, 7] == 5000 and given.pixels[50, 2] == -90 and (given.pixels == 2).sum() == 60 * 70 - 2


def test_a_hot_pixel_of_sixteen_bits_does_not_set_the_range(tmp_path):
    values = RANDOM.integers(0, 4096, (60, 70), dtype="uint16")
    values[5, 7] = 65535
    Image.fromarray(values).save(tmp_path / "a.png")
    picture = images.read_picture(tmp_path / "a.png")
    assert picture.value_range == (0, 4095)
    picture.store(torch.full((1, 1, 60, 70), 255.0))
    assert picture.pixels[5, 7] == 65535 and (picture.pixels == 4095).sum() == 60 * 70 - 1


def test_the_range_is_that_of_all_channels():
    values = numpy.stack([RANDOM.normal(mean, 0.5, (1000, 1200)) for mean in (2, 6, 10)], 2).astype("float32")
    low, high = images.default_range(values)
    assert low < 1 and 11 < high < 14


@pytest.mark.parametrize(
    ("dtype", "typical", "lamp", "better"),
    [
        ("float32", 0.02, 0.02, "--range 0 0.02 "),
        ("float32", 0.02, 1, "--range 0 0.02 "),
        ("float32", 0.9, 5000, "--range 0 0.9 "),
        ("uint16", 500, 65535, "--range 0 500 "),
        ("float32", 0.9, 0.9, None),
        ("uint16", 40_000, 65535, None),
        ("uint16", 0, 0, None),
        ("uint8", 20, 255, None),
    ],
)
def test_a_range_that_is_too_wide_is_noted(tmp_path, dtype, typical, lamp, better):
    tifffile = pytest.importorskip("tifffile")
    values = (RANDOM.uniform(0.98, 1, (40, 50)) * typical).astype(dtype)
    values[0, 0], values[20, 20:32] = 0, lamp  # more than outliers
    tifffile.imwrite(tmp_path / "a.tif", values)
    picture = images.read_picture(tmp_path / "a.tif")
    picture.note_range()
    assert any("may do better" in note for note in picture.notes) == bool(better)
    assert not better or better in picture.notes[-1]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiffs_whose_zero_is_white(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    high = 1 if dtype == "float32" else numpy.iinfo(dtype).max
    brightness = pixels(1, dtype)[:, :, 0]
    tifffile.imwrite(tmp_path / "a.tif", (high - brightness).astype(dtype), photometric="miniswhite")
    picture = images.read_picture(tmp_path / "a.tif")
    images.write_picture(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        stored, inverted = tiff.pages[0].asarray().astype("float64"), int(tiff.pages[0].photometric) == 0
    shown = high - stored if inverted else stored
    assert numpy.abs(shown - brightness).max() <= 1e-6
    if dtype != "float32":
        images.write_picture(picture, tmp_path / "b.png")
        assert (images.read_picture(tmp_path / "b.png").pixels[:, :, 0] == brightness).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_colours_that_alpha_has_multiplied_become_straight(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    high = 1 if dtype == "float32" else numpy.iinfo(dtype).max
    straight = pixels(4, "float32")
    straight[3, 4, 3] = 0
    stored = straight * numpy.concatenate([straight[:, :, 3:]] * 3 + [numpy.ones((13, 22, 1))], 2) * high
    stored = stored.astype(dtype) if dtype == "float32" else stored.round().astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = images.read_picture(tmp_path / "a.tif")
    assert picture.alpha and (picture.pixels[:, :, 3] == stored[:, :, 3]).all()
    opaque = stored[:, :, 3] > 0
    error = numpy.abs(picture.pixels[opaque].astype("float64") / high - straight[opaque])
    assert error.max() < {"uint8": 0.06, "uint16": 3e-4, "float32": 1e-6}[dtype]


def test_a_range_is_advised_and_told_with_enough_digits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = (10_000 + RANDOM.uniform(0, 18, (128, 128))).astype("float32")
    values[:, 0] += numpy.linspace(200, 400, 128)
    tifffile.imwrite(tmp_path / "a.tif", values)
    picture = images.read_picture(tmp_path / "a.tif")
    picture.note_range()
    (advice,) = (note for note in picture.notes if "may do better" in note)
    low, high = map(float, re.search(r"--range (\S+) (\S+) may", advice).groups())
    assert low < 10_000.1 and numpy.quantile(values, 0.99) <= high < 10_025
    assert images.range_in_words((1e7, 1e7 + 60), "float32").startswith("10000000 is taken as black, 10000060 as white")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_ink_with_alpha_keeps_it(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = pixels(5, dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="separated", extrasamples=["unassalpha"])
    picture = images.read_picture(tmp_path / "a.tif")
    assert picture.alpha and picture.space == "CMYK" and picture.pixels.shape[2] == 5
    images.write_picture(picture, tmp_path / "b.tif")
    assert (tifffile.imread(tmp_path / "b.tif") == values).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_channels_of_unknown_meaning_are_no_transparency(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    values = pixels(4, dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    picture = images.read_picture(tmp_path / "a.tif")
    assert not picture.alpha and (picture.pixels == values[:, :, :3]).all() and images.EXTRA_CHANNEL in picture.notes


@pytest.mark.parametrize(
    ("name", "kind", "dtype", "reason"),
    [
        ("a.jpg", "RGBA", "uint8", "no alpha"),
        ("a.jpg", "RGB", "uint16", "16"),
        ("a.webp", "RGB", "uint16", "16"),
        ("a.png", "RGB", "float32", "no floating point"),
        ("a.png", "CMYK", "uint8", "no CMYK"),
        ("a.gif", "RGB", "uint8", "names that end in"),
    ],
)
def test_formats_that_cannot_hold_a_picture_are_refused(tmp_path, name, kind, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        images.write_picture(sample(kind, dtype), tmp_path / name)
    assert not os.listdir(tmp_path)


def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match=r"60000 x 60000 pixels are more than 200 megapixels.*--max-megapixels"):
        images.read_picture(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    images.write_picture(sample("RGB"), tmp_path / "b.png")
    with pytest.raises(ValueError, match="more than"):
        images.read_picture(tmp_path / "b.png", max_megapixels=285e-6)
    images.read_picture(tmp_path / "b.png", max_megapixels=286e-6)


def test_parts_of_a_tiff_that_unfold_too_far_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path, large = tmp_path / "a.tif", zlib.compress(bytes(50_000_000))
    tifffile.imwrite(path, numpy.zeros((8, 8), "float32"), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        end = path.stat().st_size
        tags["StripOffsets"].overwrite([end])
        tags["StripByteCounts"].overwrite([len(large)])
    with path.open("ab") as file:
        file.write(large)
    with pytest.raises(ValueError, match="unfolds to more"):
        images.read_picture(path)


def test_what_is_no_picture_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="not a readable PNG"):
        images.read_picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        images.read_picture(tmp_path / "b.png")
    frames = [Image.new("L", (4, 4), k) for k in range(3)]
    frames[0].save(tmp_path / "c.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="3 pictures"):
        images.read_picture(tmp_path / "c.tif")
    Image.new("LAB", (4, 4)).save(tmp_path / "d.tif")
    with pytest.raises(ValueError, match="mode LAB"):
        images.read_picture(tmp_path / "d.tif")


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(KeyboardInterrupt), images.whole_file(path, False) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    with images.whole_file(path, False) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(FileExistsError, match="--force"), images.whole_file(path, False) as file:
        file.write(b"second")
    assert path.read_bytes() == b"first"
    with images.whole_file(path, True) as file:
        file.write(b"third")
    assert path.read_bytes() == b"third" and os.listdir(tmp_path) == ["a.bin"]


def test_without_pillow_it_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install .*\[images\]"):
        images.read_picture(__file__)


@pytest.mark.parametrize("level", [4, 15, 40])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_noise_of_one_picture_is_estimated(level, dtype):
    y, x = numpy.mgrid[:300, :401]
    clean = 128 + 60 * numpy.sin(x / 30) + 30 * (y > 150)
    noisy = (clean[:, :, None] + level * RANDOM.standard_normal((300, 401, 3))).clip(0, 255)
    high = numpy.iinfo(dtype).max
    picture = images.Picture((noisy * (high / 255)).round().astype(dtype), "RGB", False, (0, high))
    assert noise_level(picture) == pytest.approx(level, rel=0.08)
    picture.pixels[...] = (clean[:, :, None] * (high / 255)).round()
    assert noise_level(picture) < 1


def test_tiny_pictures_have_a_noise_level_too():
    for size in ((1, 1), (1, 50), (2, 2), (3, 3), (6, 6), (65, 7)):
        picture = images.Picture(pixels(1, size=size), "grey", False, (0, 255))
        assert noise_level(picture) >= 0


def test_a_picture_in_memory_is_the_one_in_the_file(tmp_path):
    """PNG of Pillow's own making, all of 8 bits, read without any change."""
    for mode in ("L", "LA", "RGB", "RGBA"):
        content = io.BytesIO()
        image = Image.fromarray(RANDOM.integers(0, 256, (7, 9, len(mode)), dtype="uint8").squeeze(), mode)
        image.save(content, "PNG")
        (tmp_path / "a.png").write_bytes(content.getvalue())
        assert (images.read_picture(tmp_path / "a.png").pixels.squeeze() == numpy.asarray(image)).all()


def test_a_constant_picture_of_huge_values_has_a_range(tmp_path):
    """-3.4e38 stands for "no data" in maps: adding 1 does not change it."""
    low, high = images.default_range(numpy.full((8, 8, 1), -3.4028235e38, "float32"))
    assert low < high < 0
