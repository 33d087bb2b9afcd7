"""Picture files: read with their metadata, written whole or not at all.

Shapes: H W picture, C channels. Pixels are held as the file has them: uint8, uint16 or float32, (H, W, C), the alpha
channel last. They are turned upright when they are read.

Pillow reads and writes 8 bits a channel and 16-bit grey; 16-bit colour is put together here from Pillow's decoders,
and tifffile reads floating TIFF and writes what Pillow cannot. Both are the extra `images`.
"""

import contextlib
import io
import itertools
import logging
import lzma
import math
import os
import re
import secrets
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

ENDINGS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
DEFAULT_MEGAPIXELS = 200  # larger pictures are refused: a file of some kilobytes can claim terabytes
LARGEST_TIFF = 2**32 - 2**25  # bytes of pixels; offsets in larger files need 64 bits, as a BigTIFF has them
DEFAULT_QUALITY = 95  # of JPEG and lossy WebP
CHANNELS = {"grey": 1, "RGB": 3, "CMYK": 4}
PNG_COLOUR_TYPES = {("grey", False): 0, ("RGB", False): 2, ("grey", True): 4, ("RGB", True): 6}
TEMPORARY = ".noise2noise-"  # how the names of unfinished files begin

ORIENTATION, PAGE_WIDTH, PAGE_HEIGHT, EXIF_IFD, GPS_IFD = 0x0112, 0xA002, 0xA003, 0x8769, 0x8825
TURNS = {  # EXIF orientation -> (transpose, flipped axes) that turn a picture upright; H is axis 0
    1: (False, ()),
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, IMAGE_DESCRIPTION, SUB_DIRECTORIES = 254, 258, 270, 330
ICC_PROFILE, DNG_VERSION = 34675, 50706
# what a TIFF says about a picture rather than about its own layout: description, camera, software, date, artist,
# computer, copyright, EXIF, GPS
DESCRIPTIVE = (IMAGE_DESCRIPTION, 271, 272, 305, 306, 315, 316, 33432, EXIF_IFD, GPS_IFD)
LOST_EXIF = "of its EXIF only description, camera, date, artist and copyright are kept"
EXTRA_CHANNEL = "a channel that is neither colour nor transparency is left out"
EXTRA_SAMPLES = 338  # the TIFF tag that says what channels beyond the colours are: each 0, 1 or 2
PLANAR_CONFIGURATION, SAMPLE_FORMAT, IN_PLANES, SIGNED = 284, 339, 2, 2
UNKNOWN, PREMULTIPLIED = 0, 1
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 282, 283, 296
XMP, XMP_TEXT = 700, "XML:com.adobe.xmp"  # the TIFF tag and the PNG text that hold it
LOST_TAGS = {
    SUB_DIRECTORIES: "copies in other sizes",
    33723: "IPTC",
    34377: "Photoshop's data",
    34735: "GeoTIFF",
    50839: "ImageJ's data",
}
LOST_INFO = {"photoshop": "IPTC and Photoshop's data", "comment": "its comment"}  # Pillow's names in a JPEG
TAGS_READ = {*DESCRIPTIVE, *LOST_TAGS, ORIENTATION, ICC_PROFILE, XMP, X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT}
LAYOUT_TAGS = {  # of TIFFs: how the pixels are stored, which is written anew
    *range(254, 260),
    *range(262, 267),
    *range(273, 285),  # 285 is the name of a page
    *range(286, 300),
    *range(317, 326),
    *range(332, 348),
    *range(512, 533),
    50838,
}
LOW_BITS = {"L;2": 85, "L;4": 17}  # greys of 2 and 4 bits in a PNG, in Pillow's words, and their factor to 8 bits
USUAL_GAMMA = 0.45455  # of PNGs; losing any other one shifts the colours, as with the next two, which are sRGB's
USUAL_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue: x and y of each
USUAL_COLOURS = b"\1\r\0\1"
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # the TIFF tag that says what values mean, and one of its values

DEPTHS = (8, 10, 12, 14, 16)  # bits that sensors have: 16-bit files often hold fewer
OUTLIERS = 0.001  # share of the values at each end that may be dead or hot pixels
OTHER = 0.05  # share of the values far beyond a range from which it is that of other pictures
NO_DATA = 0.01  # share of floating values: so many equal smallest ones may stand for missing data
DARK = 0.25  # of white: if nearly all values are below this, white may be lower
NEARLY_ALL = 0.99  # of the values


@dataclass
class Picture:
    """A picture as a file has it.

    Attributes:
        pixels: numpy (H, W, C), uint8, uint16 or float32; upright; the last channel is alpha where there is one.
        space: 'grey', 'RGB' or 'CMYK'.
        alpha: whether there is an alpha channel.
        value_range: (low, high), the values that correspond to 0 and 255.
        exif, icc, dpi, xmp: `PIL.Image.Exif`, bytes, (across, down) and bytes; None where there is none.
        encoding: settings of the file it came from that are kept, such as JPEG's subsampling.
        notes: what will not be kept, and what was assumed, in words.
        reach: how far beyond the range, in units of its width, values are denoised; farther ones stay as they are.
    """

    pixels: object
    space: str
    alpha: bool
    value_range: tuple
    exif: object = None
    icc: bytes | None = None
    dpi: tuple | None = None
    xmp: bytes | None = None
    encoding: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    reach: float = math.inf

    @property
    def colours(self):
        """How many channels are colours."""
        return self.pixels.shape[2] - self.alpha

    def values(self, rows=slice(None)):
        """The colours of some rows: float32 (1, C, h, W), in [0, 255], but [-255, 510] for values beyond the range."""
        part = self.pixels[rows, :, : self.colours].astype("float32")
        return to_255(torch.from_numpy(part), self.value_range).permute(2, 0, 1)[None]

    def store(self, values, rows=slice(None)):
        """The inverse of `values`: writes (1, C, h, W) into some rows of the pixels."""
        low, high = self.value_range
        part = self.pixels[rows, :, : self.colours]  # a view
        new = (values[0].permute(1, 2, 0).double() * ((high - low) / 255) + low).numpy()
        if self.pixels.dtype.kind == "u":
            new = new.round().clip(0, need_numpy().iinfo(part.dtype).max)
        need_numpy().copyto(part, new.astype(part.dtype), where=~self.beyond(part))

    def beyond(self, values):
        """Which values of a numpy array, as the file has them, stay as they are."""
        low, high = self.value_range
        return (values < low - self.reach * (high - low)) | (values > high + self.reach * (high - low))

    def take_range(self, value_range):
        """Takes these values as black and white; what `to_255` clips beyond them is kept."""
        self.value_range, self.reach = value_range, 1

    def note_range(self, why="", page=0):
        """Notes what is taken as black and white, if that is not the usual range, and if it may be too wide.

        `page`, from 1: of a stack, whose other pages may be brighter, so that no range is advised.
        """
        where = f"on page {page}, " if page else ""
        note, colours = range_in_words(self.value_range, self.pixels.dtype, why), self.pixels[:, :, : self.colours]
        self.notes += [note] if note else []
        if beyond := int(self.beyond(colours).sum()):
            far = "far beyond" if self.reach else "beyond"
            self.notes.append(
                f"{where}outliers, {beyond} of the values, are {far} black and white and stay as they are"
            )
        if self.pixels.dtype == "float32" and note and (share := float((colours == colours.min()).mean())) > NO_DATA:
            self.notes.append(
                f"{where}{share:.0%} of the values are {colours.min():g}: fill them first if they mean no data"
            )
        if self.pixels.dtype == "uint8" or page:
            return
        if not why and (advice := range_advice(nearly_all(colours), self.value_range)):
            self.notes.append(advice)


def to_255(values, value_range):
    """Scales float32 values of a file so that its range becomes [0, 255], and clips them to [-255, 510].

    Otherwise a hot pixel of a thousand times white would spoil the prediction of its neighbours.
    """
    low, high = value_range
    return ((values - low) * (255 / (high - low))).clamp_(-255, 510)


def need_pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading pictures needs Pillow: pip install 'noise2noise-miniproject[images]'") from error
    return Image


def need_tifffile():
    try:
        import tifffile
    except ImportError as error:
        raise ImportError("this TIFF needs tifffile: pip install 'noise2noise-miniproject[images]'") from error
    return tifffile


def need_numpy():
    try:
        import numpy
    except ImportError as error:
        raise ImportError("reading pictures needs numpy: pip install 'noise2noise-miniproject[images]'") from error
    return numpy


# ---------------------------------------------------------------------------------------------- reading


def read_picture(path, max_megapixels=DEFAULT_MEGAPIXELS, value_range=None):
    """Reads a PNG, JPEG, WebP or TIFF, told apart by content, not by name.

    Args:
        max_megapixels: larger pictures are refused before they are decoded.
        value_range: (low, high), the values that correspond to black and white. None: see `default_range`.

    Raises ValueError for a file that is damaged, too large or of an unsupported kind, `SeveralPages` for a TIFF that
    `read_pages` may read; OSError if there is none.
    """
    Image = need_pillow()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError("no such file" if not path.exists() else "not a file")
    with decoding_errors(), no_pixel_limit(Image), open(path, "rb") as file:
        picture = decode(file, max_megapixels)
    return checked(picture, value_range)


def read_pages(path, max_megapixels=DEFAULT_MEGAPIXELS, value_range=None):
    """The pages of a TIFF as `Picture`s, one at a time; arguments and errors as of `read_picture`."""
    with open(path, "rb") as file:
        with decoding_errors():
            pages = need_tifffile().TiffFile(file).pages
            count = len(pages)
        for number in range(count):
            try:
                with decoding_errors():
                    picture = decode_page(pages[number], file, max_megapixels)
                picture = checked(picture, value_range)
            except ValueError as error:
                raise ValueError(f"page {number + 1} of {count}: {error}") from error
            yield picture


@contextlib.contextmanager
def decoding_errors():
    """Says what is wrong with a file in one ValueError, without warnings."""
    try:
        with silence():
            yield
    except (Refused, ImportError):
        raise
    except MemoryError as error:
        raise ValueError("not enough memory for this picture") from error
    except Exception as error:  # damaged files make the decoders raise a dozen kinds
        raise ValueError(f"not a readable picture: {error or type(error).__name__}") from error


def checked(picture, value_range):
    """A decoded picture with its range, or by default its own. ValueError if it has no pixel or not only numbers."""
    if picture.pixels.size == 0:
        raise ValueError("the picture has no pixel")
    if picture.pixels.dtype.kind == "f" and not need_numpy().isfinite(picture.pixels).all():
        raise ValueError("the picture holds NaN or infinite values; replace them first")
    if value_range:
        picture.take_range(value_range)
    else:
        picture.value_range, picture.reach = default_range(picture.pixels[:, :, : picture.colours]), 0
    return picture


class Refused(ValueError):
    """A picture that could be decoded but is not; the message says why."""


class SeveralPages(Refused):
    """A TIFF of several pages, which `read_pages` may read."""

    def __init__(self, pages):
        super().__init__(f"it holds {pages} pictures; only files of one picture are read: split it into single pages")
        self.pages = pages


@contextlib.contextmanager
def silence():
    """Silences warnings and tifffile's log: a single error says what is wrong with a file."""
    log = logging.getLogger("tifffile")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def no_pixel_limit(Image):
    """Turns off Pillow's own limit: `check_size` has ours."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check_size(width, height, max_megapixels):
    if width * height > max_megapixels * 1e6:
        raise Refused(
            f"{width} x {height} pixels are more than {max_megapixels:g} megapixels; if you trust the file, "
            "raise the limit with --max-megapixels"
        )


# ---------------------------------------------------------------------------------------------- value ranges


def range_of_pages(path, max_megapixels=DEFAULT_MEGAPIXELS):
    """The widest `default_range` of the pages of a TIFF. ValueError if they differ in size or kind."""
    kinds, ranges = set(), []
    for picture in read_pages(path, max_megapixels):
        kinds.add((picture.pixels.shape, str(picture.pixels.dtype), picture.space, picture.alpha))
        if len(kinds) > 1:
            raise ValueError(
                "its pages differ in size or kind, as copies in other sizes do: save those that you want as files of "
                "one picture"
            )
        ranges.append(picture.value_range)
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def default_range(values):
    """(low, high): the values of a numpy array, as a file has them, that are taken as black and white.

    uint8: 0 and 255. uint16: 0 and 2^k - 1, with the smallest k of DEPTHS that all values fit into. Floating: 0 and 1
    if no value is outside of them, else the smallest and the largest value. Outliers do not count: values beyond the
    lowest or the highest thousandth of all by more than half the distance between these two.
    """
    if values.dtype == "uint8":
        return 0, 255
    low, high = values.min().item(), values.max().item()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    lowest, highest = need_numpy().quantile(sampled(values), (OUTLIERS, 1 - OUTLIERS)).tolist()
    reach = (highest - lowest) / 2 or math.inf
    if values.dtype.kind == "u":
        largest = high if high <= highest + reach else highest
        return 0, next(2**bits - 1 for bits in DEPTHS if largest < 2**bits)
    low, high = max(low, lowest - reach), min(high, highest + reach)
    return low, high if high > low else low + max(1, abs(low) * 1e-6)  # 1 may be too little to change it


def sampled(values, count=2**20):
    """All values of a numpy array, or `count` at random places: evenly spaced ones could be all of one channel."""
    if values.size <= count:
        return values
    return values.reshape(-1)[need_numpy().random.default_rng(0).integers(values.size, size=count)]


def nearly_all(values):
    """The value that nearly all of a numpy array are below."""
    return float(need_numpy().quantile(sampled(values), NEARLY_ALL))


def range_advice(most, value_range):
    """A note that advises a narrower range if nearly all values are below `most`, and that is dark; else ''."""
    low, high = value_range
    if not low < most < low + DARK * (high - low):
        return ""
    step = 10.0 ** (math.floor(math.log10(most - low)) - 1)
    white = low + step * math.ceil((most - low) / step)
    most, high, low, white = (exactly(value, most - low) for value in (most, high, low, white))
    better = f"--range {low} {white} may do better"
    return f"{NEARLY_ALL:.0%} of the values are below {most}, where {high} is white; {better}"


def far_beyond(values, value_range, share=OUTLIERS):
    """Whether more than a share of a numpy array's values lie farther than one width beyond a range."""
    low, high = map(float, value_range)
    return ((values < 2 * low - high) | (values > 2 * high - low)).mean() > share


def check_trained_range(values, value_range):
    """ValueError if too many values of a numpy array lie farther than one width beyond the range of a training.

    Some may: they stay as they are.
    """
    low, high = map(float, value_range)
    if far_beyond(values, value_range, OTHER):
        raise ValueError(
            f"its values reach from {values.min():g} to {values.max():g}; the weights were trained with {low:g} as "
            f"black and {high:g} as white: give --range"
        )


def beside_training(taken, trained, own):
    """How the range taken relates to that of the weights' training, in words; '' where it is as without these."""
    if trained is None or taken == trained == own:
        return ""
    if taken == trained:
        return "as in the training of the weights"
    return f"where the weights were trained with {trained[0]:g} and {trained[1]:g}"


def range_in_words(value_range, dtype, why=""):
    """A note that says which values are taken as black and white, and why; empty for the usual range without reason."""
    if not why and value_range == {"uint8": (0, 255), "uint16": (0, 65535)}.get(str(dtype), (0, 1)):
        return ""
    because = f", {why}" if why else ""
    black, white = (exactly(value, value_range[1] - value_range[0]) for value in value_range)
    return f"{black} is taken as black, {white} as white{because}; --range changes that"


def exactly(value, width):
    """A value in words, to a hundred-thousandth of the width of the range that it belongs to."""
    return f"{round(float(value), 5 - math.floor(math.log10(width))) + 0.0:.15g}"  # no "-0"


# ---------------------------------------------------------------------------------------------- decoding, by Pillow


def decode(file, max_megapixels):
    Image = need_pillow()
    head = file.read(4)
    file.seek(0)
    if head in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and not pillow_reads_tiff(file):
        return decode_with_tifffile(file, max_megapixels)
    file.seek(0)
    try:
        image = Image.open(file, formats=["PNG", "JPEG", "WEBP", "TIFF"])
    except Image.UnidentifiedImageError as error:
        raise Refused("not a readable PNG, JPEG, WebP or TIFF") from error
    check_size(*image.size, max_megapixels)
    if image.format == "TIFF" and image.n_frames > 1:
        raise SeveralPages(image.n_frames)
    if image.format not in ("JPEG", "MPO") and getattr(image, "n_frames", 1) > 1:
        raise Refused(f"it holds {image.n_frames} pictures; only files of one picture are read")
    return decode_with_pillow(image, file)


def pillow_reads_tiff(file):
    """Whether Pillow can give all bits of a TIFF: 8 bits a channel, or 16 in a layout that `sixteen_bits` knows."""
    Image = need_pillow()
    try:
        image = Image.open(file, formats=["TIFF"])
    except (Image.UnidentifiedImageError, KeyError):
        return False
    if image.n_frames == 1:
        refuse_more_than_shown(image.tag_v2)
    bits, kinds = image.tag_v2.get(BITS_PER_SAMPLE, (1,)), image.tag_v2.get(SAMPLE_FORMAT, (1,))
    if max(bits) <= 8:
        loses_alpha = image.mode == "CMYK" and EXTRA_SAMPLES in image.tag_v2
        return SIGNED not in kinds and not loses_alpha
    in_planes = image.tag_v2.get(PLANAR_CONFIGURATION) == IN_PLANES  # compressed, of which Pillow keeps 8 bits
    if max(bits) > 16 or set(kinds) != {1} or in_planes:
        return False
    return image.mode.startswith("I;16") or byte_orders(image) is not None


def refuse_more_than_shown(tags):
    """Raises if, by its tags, a TIFF is a camera's raw file with a preview or an ImageJ stack in one page."""
    if DNG_VERSION in tags or (SUB_DIRECTORIES in tags and tags.get(NEW_SUBFILE_TYPE, 0) & 1):
        raise Refused("a camera's raw file, of which only the preview can be read; develop it to TIFF first")
    frames = hidden_frames(tags.get(IMAGE_DESCRIPTION))
    if frames:
        raise Refused(f"an ImageJ stack of {frames} pictures in one; save it as a TIFF of {frames} pages")


def hidden_frames(description):
    """How many pictures ImageJ stored behind the first page of a large stack, by its description; 0 for none."""
    found = re.match(r"ImageJ=.*?\bimages=(\d+)", str(description), re.DOTALL)
    return int(found[1]) if found and int(found[1]) > 1 else 0


def decode_with_pillow(image, file):
    numpy = need_numpy()
    source, encoding = image.format, how_encoded(image, file)
    notes = ["only the first of the pictures in the file"] if source == "MPO" else []
    tags = image.tag_v2 if source == "TIFF" else {}
    orientation = tags.get(ORIENTATION, 1) if source == "TIFF" else None  # decoding removes it
    pixels, space, alpha = sixteen_bits(image, file) or eight_bits(image, notes)
    notes += not_kept(tags, image.info, getattr(image, "text", {}), colour_code(file) if source == "PNG" else None)
    exif, icc, dpi, xmp = image.getexif(), *(image.info.get(name) for name in ("icc_profile", "dpi", "xmp"))
    if source != "TIFF":  # which Pillow turns itself
        orientation = exif.get(ORIENTATION, 1)
        pixels = upright(pixels, orientation)
    if orientation in (5, 6, 7, 8) and dpi:
        dpi = dpi[::-1]
    high = numpy.iinfo(pixels.dtype).max
    exif = upright_exif(exif, pixels.shape, notes, source == "TIFF")
    return Picture(pixels, space, alpha, (0, high), exif, icc, dpi, upright_xmp(xmp), encoding, notes)


def not_kept(tags, info=None, texts=(), code=None):
    """A list with a note that names what will be lost of a file, besides its picture; empty if there is nothing.

    Args:
        tags: numbers of those of a TIFF.
        info: of Pillow.
        texts: names of a PNG's texts.
        code: see `colour_code`.
    """
    info = info or {}
    found = {name for tag, name in LOST_TAGS.items() if tag in tags}
    found |= {f"the tag {tag}" for tag in set(tags) - TAGS_READ - LAYOUT_TAGS}
    found |= {name for key, name in LOST_INFO.items() if key in info}
    found |= {f"the text {name!r}" for name in texts if name != XMP_TEXT}
    if not {"srgb", "icc_profile"} & set(info):
        gamma, primaries = info.get("gamma", USUAL_GAMMA), info.get("chromaticity", USUAL_PRIMARIES)
        if abs(gamma - USUAL_GAMMA) > 0.001:
            found.add(f"the gamma of {gamma:g}")
        if max(abs(value - usual) for value, usual in zip(primaries, USUAL_PRIMARIES, strict=True)) > 0.001:
            found.add("the primaries of its colours")
    if code not in (None, USUAL_COLOURS):
        found.add("the code of its colours (cICP)")
    return [f"not kept: {', '.join(sorted(found))}"] if found else []


def colour_code(file):
    """The content of the cICP chunk of a PNG, which Pillow does not read; None without one."""
    file.seek(0)
    header = file.read(2**16).split(b"IDAT")[0]
    place = header.find(b"cICP")
    return None if place < 0 else header[place + 4 : place + 8]


def how_encoded(image, file):
    """The settings of a file that a new one of the same format should share."""
    if image.format in ("JPEG", "MPO"):
        from PIL import JpegImagePlugin

        return {"subsampling": JpegImagePlugin.get_sampling(image)}
    if image.format == "WEBP":
        file.seek(0)
        return {"lossless": b"VP8L" in file.read(2**20)}
    if image.format == "TIFF":
        return {"compression": image.info.get("compression", "raw"), "scale": pixels_per_unit(image.tag_v2)}
    return {}


def pixels_per_unit(tags):
    """(across, down) of a TIFF that names no unit of length, such as ImageJ's; None for others."""
    if tags.get(RESOLUTION_UNIT) == 1 and X_RESOLUTION in tags and Y_RESOLUTION in tags:
        across, down = (tags[code] for code in (X_RESOLUTION, Y_RESOLUTION))
        across, down = (value[0] / value[1] if isinstance(value, tuple) else value for value in (across, down))
        return (down, across) if TURNS.get(tags.get(ORIENTATION, 1), (False,))[0] else (across, down)
    return None


def eight_bits(image, notes):
    """Decodes 8 bits a channel: (H, W, C) uint8, colour space, whether there is alpha."""
    numpy = need_numpy()
    transparent = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if image.format == "TIFF" and UNKNOWN in image.tag_v2.get(EXTRA_SAMPLES, ()):
        notes.append(EXTRA_CHANNEL)
    if image.mode == "CMYK":
        mode = "CMYK"
    elif image.mode in ("1", "L", "LA", "La"):
        mode = "LA" if transparent else "L"
    elif image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"):
        mode = "RGBA" if transparent else "RGB"
    else:
        raise Refused(f"pictures of the mode {image.mode} are not read; convert it to RGB, 8 or 16 bits, or floating")
    if image.mode in ("1", "P", "PA"):
        notes.append("black and white becomes grey" if image.mode == "1" else "the palette becomes full colour")
    space = {"L": "grey", "LA": "grey", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}[mode]
    if image.format == "PNG" and layouts(image) & LOW_BITS.keys() and transparent:  # Pillow scales the pixels alone
        image.info["transparency"] *= LOW_BITS[layouts(image).pop()]
    image.load()
    pixels = numpy.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1), space, transparent


def sixteen_bits(image, file):
    """Decodes 16 bits a channel: (H, W, C) uint16, colour space, whether there is alpha; None for other pictures.

    Pillow keeps only the upper byte of 16-bit colour. If given the other byte order, it takes the lower byte for the
    upper one, so two passes of its decoders give all 16 bits.
    """
    numpy = need_numpy()
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        pixels, space, alpha = numpy.asarray(image).astype("uint16")[:, :, None], "grey", False
        if image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts only 8 bits
            pixels = 65535 - pixels
    elif layouts(image) == {"LA;16B"}:  # read as four channels of 8 bits
        image._mode = "RGBA"
        image.tile = [with_layout(tile, "RGBA") for tile in image.tile]
        bytes_ = numpy.asarray(image).astype("uint16")
        return bytes_[:, :, 0::2] * 256 + bytes_[:, :, 1::2], "grey", True
    elif byte_orders(image):
        again = need_pillow().open(file, formats=[image.format])
        again.tile = [with_layout(tile, other_order(layout(tile))) for tile in again.tile]
        pixels = numpy.asarray(image).astype("uint16") * 256
        pixels += numpy.asarray(again)
        space, alpha = ("CMYK" if image.mode == "CMYK" else "RGB"), image.mode == "RGBA"
    else:
        return None
    if key is None or alpha:
        return pixels, space, alpha
    opaque = (pixels != numpy.array(key)).any(2, keepdims=True)  # one colour is said to be transparent
    return numpy.concatenate([pixels, opaque.astype("uint16") * 65535], 2), space, True


def layout(tile):
    """How a part of a file stores its pixels, in Pillow's words: such as 'RGB;16B'."""
    return tile.args if isinstance(tile.args, str) else tile.args[0]


def with_layout(tile, name):
    return tile._replace(args=name if isinstance(tile.args, str) else (name, *tile.args[1:]))


def layouts(image):
    return {layout(tile) for tile in getattr(image, "tile", ()) if tile.args}


def byte_orders(image):
    """The byte orders of 16-bit colour whose channels lie side by side; None for other pictures."""
    parts = [name.partition(";16") for name in layouts(image)]
    known = parts and all(mode in ("RGB", "RGBA", "CMYK") and order in ("L", "B", "N") for mode, _, order in parts)
    return {order for _, _, order in parts} if known else None


def other_order(name):
    native = "L" if sys.byteorder == "little" else "B"
    return name[:-1] + {"L": "B", "B": "L"}[native if name[-1] == "N" else name[-1]]


# ---------------------------------------------------------------------------------------------- decoding, by tifffile


def decode_with_tifffile(file, max_megapixels):
    """Decodes a TIFF of one page that Pillow does not: floating, 16 bits in planes, CMYK with alpha."""
    file.seek(0)
    with need_tifffile().TiffFile(file) as tiff:
        if len(tiff.pages) > 1:
            raise SeveralPages(len(tiff.pages))
        page = tiff.pages[0]
        refuse_more_than_shown({tag.code: tag.value for tag in page.tags})
        return decode_page(page, file, max_megapixels)


def decode_page(page, file, max_megapixels):
    """Decodes a page of tifffile: 8 or 16 bits, or floating."""
    numpy = need_numpy()
    check_size(page.imagewidth, page.imagelength, max_megapixels)
    dtype = page.dtype is not None and ("float32" if page.dtype.kind == "f" else str(page.dtype))
    if dtype not in ("uint8", "uint16", "float32") or page.imagedepth != 1:
        raise Refused(f"TIFFs of {page.dtype} are not read; use unsigned 8 or 16 bits, or floating point")
    if dtype == "uint8" and page.bitspersample != 8:
        raise Refused(f"several pages of {page.bitspersample} bits are not read; save them with 8")
    space, alpha = tiff_space(page)
    check_segments(page, file)
    try:
        pixels = page.asarray(maxworkers=1)
    except (KeyError, ImportError, ValueError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        raise Refused(f"it is compressed in a way that needs imagecodecs: pip install imagecodecs ({error})") from error
    in_planes = page.planarconfig == IN_PLANES and page.samplesperpixel > 1
    if in_planes:
        pixels = numpy.moveaxis(pixels, 0, 2)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
    extra = [int(kind) for kind in page.extrasamples]
    tags = {tag.code: tag.value for tag in page.tags if tag.code in TAGS_READ}
    dpi = page.get_resolution("inch") if X_RESOLUTION in page.tags and page.resolutionunit != 1 else None
    orientation = int(tags.get(ORIENTATION, 1))
    encoding = {"inverted": page.photometric == 0, "planes": in_planes, "scale": pixels_per_unit(tags)}
    exif, notes = need_pillow().Exif(), not_kept({tag.code for tag in page.tags})
    if pixels.dtype.itemsize > 4:
        notes.append(f"its {pixels.dtype} values become float32")
        if isinstance(tags.get(IMAGE_DESCRIPTION), str):  # in OME's
            tags[IMAGE_DESCRIPTION] = tags[IMAGE_DESCRIPTION].replace('Type="double"', 'Type="float"')
    pixels = upright(pixels.astype(dtype), orientation)
    if alpha and extra == [UNKNOWN]:
        pixels, alpha = pixels[:, :, :-1], False
        notes.append(EXTRA_CHANNEL)
    elif alpha and extra == [PREMULTIPLIED]:
        pixels = divided_by_alpha(pixels)
    for code in set(tags) & set(DESCRIPTIVE):
        if isinstance(tags[code], str):
            exif[code] = tags[code].encode().decode("latin-1")  # as Pillow does
        else:
            notes.append(LOST_EXIF)
    if orientation in (5, 6, 7, 8) and dpi:
        dpi = dpi[::-1]
    return Picture(
        pixels, space, alpha, (0, 65535), exif, tags.get(ICC_PROFILE), dpi, upright_xmp(tags.get(XMP)), encoding, notes
    )


def divided_by_alpha(pixels):
    """(H, W, C) with alpha last whose colours have been multiplied by it -> straight colours, of the same type."""
    numpy = need_numpy()
    opaque = numpy.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1.0
    colours, alpha = pixels[:, :, :-1].astype("float64"), pixels[:, :, -1:]
    straight = numpy.divide(colours * opaque, alpha, out=numpy.zeros_like(colours), where=alpha > 0)
    if pixels.dtype.kind == "u":
        straight = straight.round().clip(0, opaque)
    return numpy.concatenate([straight.astype(pixels.dtype), alpha], 2)


def tiff_space(page):
    """Colour space and whether there is alpha, from a page of tifffile."""
    space = {0: "grey", 1: "grey", 2: "RGB", 5: "CMYK"}.get(int(page.photometric))
    extra = page.samplesperpixel - CHANNELS.get(space, 0)
    if space is None or extra not in (0, 1):
        raise Refused(
            f"TIFFs with {page.samplesperpixel} channels of the kind {page.photometric.name} are not read; "
            "grey, RGB and CMYK are, with alpha or without"
        )
    return space, extra == 1


def check_segments(page, file):
    """Raises if a compressed part unpacks to more than its share of the picture, before memory is allocated."""
    unfold = {8: zlib.decompressobj, 32946: zlib.decompressobj, 34925: lzma.LZMADecompressor}.get(int(page.compression))
    if unfold is None:
        return
    largest = page.dtype.itemsize * page.samplesperpixel
    largest *= page.tilewidth * page.tilelength if page.is_tiled else page.imagewidth * page.rowsperstrip
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        unfolded = unfold().decompress(file.read(length), largest + 1)
        if len(unfolded) > largest:
            raise Refused("a part of it unfolds to more than its share of the picture")


# ---------------------------------------------------------------------------------------------- orientation, metadata


def upright(pixels, orientation):
    """(H, W, C) as it is meant to be seen; (W, H, C) for half of the EXIF orientations."""
    numpy = need_numpy()
    transpose, axes = TURNS.get(orientation, TURNS[1])
    return numpy.ascontiguousarray(numpy.flip(pixels.swapaxes(0, 1) if transpose else pixels, axes))


def descriptive(exif):
    """What a TIFF says about its picture, without what it says about its own layout."""
    kept = need_pillow().Exif()
    for code in set(exif) & set(DESCRIPTIVE):
        kept[code] = exif.get_ifd(code) if code in (EXIF_IFD, GPS_IFD) else exif[code]
    return reread(kept)


def reread(exif):
    """The same EXIF as if it had been read from a file, all of its parts in one."""
    content = need_pillow().Exif()
    content.load(exif_bytes(exif))
    return content


def exif_bytes(exif):
    """An EXIF as bytes, those of its texts as they were read: Pillow decodes Latin-1 and would encode ASCII."""
    texts = {code: value for code, value in exif.items() if isinstance(value, str)}
    exif.update({code: as_read(text) for code, text in texts.items()})
    content = exif.tobytes()
    exif.update(texts)
    return content


def as_read(text):
    """The bytes of a text as Pillow decoded it, whatever encoding they are in."""
    return text.encode("latin-1", "replace")


def upright_exif(exif, shape, notes, tiff=False):
    """EXIF for a picture that has been turned upright, of shape (H, W, C); None if there is nothing to keep."""
    try:
        exif = descriptive(exif) if tiff else exif
        if not len(exif):
            return None
        if ORIENTATION in exif:
            exif[ORIENTATION] = 1
        details = exif.get_ifd(EXIF_IFD) if EXIF_IFD in exif else {}  # asking for it would make one
        for code, size in ((PAGE_HEIGHT, shape[0]), (PAGE_WIDTH, shape[1])):
            if code in details:
                details[code] = size
        return reread(exif)
    except Exception:  # damaged in one of many ways
        notes.append("its EXIF is damaged and is lost")
        return None


def upright_xmp(xmp):
    """An XMP packet with its orientation set to upright."""
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if not isinstance(xmp, bytes) or not xmp:
        return None
    xmp = re.sub(rb'(tiff:Orientation=["\'])\d', rb"\g<1>1", xmp)
    return re.sub(rb"(<tiff:Orientation>)\d", rb"\g<1>1", xmp)


# ---------------------------------------------------------------------------------------------- writing


def write_picture(picture, path, *, overwrite=False, quality=DEFAULT_QUALITY):
    """Writes a picture in the format of the name's ending; the file appears whole or not at all.

    Raises ValueError if the format cannot hold it, FileExistsError if the file exists and `overwrite` is off.
    """
    path = Path(path)
    kind = check_holds(picture, path)
    with whole_file(path, overwrite) as file:
        if kind == "TIFF" and not pillow_holds(picture):
            write_deep_tiff(picture, file)
        elif kind == "PNG" and deep_colour(picture):
            write_deep_png(picture, file)
        else:
            as_pillow(picture).save(file, kind, **save_options(picture, kind, quality))


def check_holds(picture, path):
    """The format of a file called `path`, which must be able to hold the picture."""
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"pictures are written to names that end in {', '.join(ENDINGS)}; got {path.name}")
    dtype = picture.pixels.dtype
    if dtype == "float32" and kind != "TIFF":
        raise ValueError(f"{kind} holds no floating point; write it to a name that ends in .tif")
    if dtype == "uint16" and kind in ("JPEG", "WEBP"):
        raise ValueError(f"{kind} holds 8 bits, the picture has 16; write it to a name that ends in .png or .tif")
    if picture.space == "CMYK" and kind in ("PNG", "WEBP"):
        raise ValueError(f"{kind} holds no CMYK; write it to a name that ends in .jpg or .tif")
    if picture.alpha and kind == "JPEG":
        raise ValueError("JPEG holds no alpha channel; write it to a name that ends in .png, .webp or .tif")
    if kind == "WEBP" and max(picture.pixels.shape[:2]) > 16383:
        raise ValueError("WebP holds at most 16383 pixels a side; write it to a name that ends in .png")
    return kind


@contextlib.contextmanager
def whole_file(path, overwrite):
    """A new binary file that is given its name when it is complete; it is removed after any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a file, and stays as it is")
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
        if overwrite and os.name == "posix" and path.is_file():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        move(temporary, path, overwrite)
    finally:
        temporary.unlink(missing_ok=True)


def move(temporary, path, overwrite):
    if not overwrite:
        try:
            os.link(temporary, path)  # unlike a rename, it fails where there is a file
            return
        except FileExistsError:
            raise FileExistsError(f"{path} exists; --force overwrites") from None
        except OSError:  # a file system without links
            if os.path.lexists(path):
                raise FileExistsError(f"{path} exists; --force overwrites") from None
    os.replace(temporary, path)


def deep_colour(picture):
    return picture.pixels.dtype == "uint16" and picture.pixels.shape[2] > 1


def pillow_holds(picture):
    """Whether one of Pillow's modes has the pixels: none is floating, of 16-bit colour, or CMYK with alpha."""
    ink_with_alpha = picture.space == "CMYK" and picture.alpha
    return picture.pixels.dtype != "float32" and not deep_colour(picture) and not ink_with_alpha


def as_pillow(picture):
    """The pixels, 8 bits or 16-bit grey, as Pillow's image."""
    Image = need_pillow()
    if picture.pixels.shape[2] == 1:
        return Image.fromarray(picture.pixels[:, :, 0])
    pixels = picture.pixels[:, :, :4]  # none of Pillow's modes has CMYK and alpha
    mode = {2: "LA", 3: "RGB", 4: "CMYK" if picture.space == "CMYK" else "RGBA"}[pixels.shape[2]]
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), pixels.tobytes(), "raw", mode, 0, 1)


def save_options(picture, kind, quality):
    """The options of Pillow's `save`."""
    options = {"exif": exif_to_write(picture, kind), "icc_profile": picture.icc, "dpi": picture.dpi}
    if kind in ("JPEG", "WEBP"):
        options |= {"xmp": picture.xmp, "quality": quality}
    if kind == "JPEG" and picture.encoding.get("subsampling", -1) >= 0:
        options["subsampling"] = picture.encoding["subsampling"]
    if kind == "WEBP":
        options |= {"lossless": picture.encoding.get("lossless", False), "exact": True}
    if kind == "TIFF":
        lossless = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
        used = picture.encoding.get("compression")
        options["compression"] = used if used in lossless else "tiff_adobe_deflate"
        if picture.exif and {EXIF_IFD, GPS_IFD} & set(picture.exif):
            options["compression"] = "raw"  # libtiff, which compresses, leaves these out
        if picture.encoding.get("scale"):
            across, down = picture.encoding["scale"]
            options |= {"x_resolution": across, "y_resolution": down, "resolution_unit": 1}
    if kind == "PNG" and picture.xmp:
        from PIL.PngImagePlugin import PngInfo

        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(XMP_TEXT, picture.xmp.decode(errors="replace"))
    return {name: value for name, value in options.items() if value is not None}


def exif_to_write(picture, kind):
    """The EXIF as Pillow's `save` takes it, None for none; a TIFF has its XMP among these tags."""
    content = picture.exif and exif_bytes(picture.exif)
    if kind != "TIFF" or not (content or picture.xmp):
        return content
    exif = need_pillow().Exif()
    exif.load(content)
    exif.update({code: as_read(value) for code, value in exif.items() if isinstance(value, str)})
    if picture.xmp:
        exif[XMP] = picture.xmp
    return exif


def write_deep_png(picture, file):
    """A PNG of 16-bit colour, which Pillow does not write: its header and pixels around Pillow's other chunks."""
    height, width, channels = picture.pixels.shape
    frame = io.BytesIO()
    need_pillow().new("L", (1, 1)).save(frame, "PNG", **save_options(picture, "PNG", None))
    colour_type = PNG_COLOUR_TYPES[picture.space, picture.alpha]
    for name, content in png_chunks(frame.getvalue()):
        if name == b"IHDR":
            file.write(b"\x89PNG\r\n\x1a\n")
            content = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
        if name != b"IDAT":
            write_chunk(file, name, content)
            continue
        deflate = zlib.compressobj(6)
        before = need_numpy().zeros(width * channels * 2, "uint8")
        for row in picture.pixels:  # a row is its difference from the row above it: filter type 2
            row = row.astype(">u2").reshape(-1).view("uint8")
            write_part(file, deflate.compress(b"\2" + (row - before).tobytes()))
            before = row
        write_part(file, deflate.flush())


def write_part(file, content):
    if content:
        write_chunk(file, b"IDAT", content)


def write_chunk(file, name, content):
    file.write(struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content)))


def png_chunks(content):
    """(name, content) of each chunk of a PNG."""
    place = 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += length + 12


def write_deep_tiff(picture, file):
    """A TIFF that Pillow cannot write, by tifffile."""
    need_tifffile().imwrite(file, **tiff_page(picture))


def write_stack(pictures, count, path, *, overwrite=False):
    """Writes an iterator over `count` pictures as the pages of a TIFF; it appears whole or not at all.

    Pictures are asked for one at a time. Raises FileExistsError as `write_picture`.
    """
    first = next(pictures)
    large = count * first.pixels.nbytes > LARGEST_TIFF
    with whole_file(Path(path), overwrite) as file, need_tifffile().TiffWriter(file, bigtiff=large) as writer:
        for picture in itertools.chain([first], pictures):
            writer.write(**tiff_page(picture))


def tiff_page(picture):
    """A picture with all that belongs to it, as arguments of tifffile's `write`."""
    exif = picture.exif or {}
    photometric = {"grey": "minisblack", "RGB": "rgb", "CMYK": "separated"}[picture.space]
    if picture.encoding.get("inverted"):
        photometric = "miniswhite"
    texts = [
        (code, 2, 0, as_read(exif[code]), True) for code in exif if isinstance(exif[code], str) and code in DESCRIPTIVE
    ]
    if {EXIF_IFD, GPS_IFD} & set(exif):
        picture.notes.append(LOST_EXIF)
    extra = [(XMP, 1, len(picture.xmp), picture.xmp, True)] if picture.xmp else []
    pixels, planes = picture.pixels, picture.encoding.get("planes") and picture.pixels.shape[2] > 1
    if planes:
        pixels = need_numpy().moveaxis(pixels, 2, 0)
    elif pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return {
        "data": pixels,
        "photometric": photometric,
        "planarconfig": "separate" if planes else "contig" if pixels.ndim == 3 else None,
        "extrasamples": ["unassalpha"] if picture.alpha else None,
        "compression": "zlib",
        "iccprofile": picture.icc,
        "resolution": picture.dpi or picture.encoding.get("scale"),
        "resolutionunit": "inch" if picture.dpi else "none" if picture.encoding.get("scale") else None,
        "metadata": None,
        "software": False,
        "extratags": texts + extra,
    }
