"""Removes the noise from pictures: files and folders, PNG, JPEG, WebP and TIFF.

    noise2noise denoise noisy.jpg -o clean.jpg
    noise2noise denoise holiday/ scan.tif -o denoised/ --compare page.html

OUT is a file if IN is one file and OUT has an ending, else a folder that keeps the structure of input folders; hidden
files and folders in these are skipped. Alpha, EXIF, ICC profile, resolution and bit depth are kept; pictures are turned
upright. A TIFF of several pages, all of one size and kind, becomes one of as many, each page denoised by itself, with
one range for all. For black and white, see --range. The noise before and after is estimated from the picture itself, in
1/255 of the range: fine texture counts as noise, coarse noise does not.

Memory: about 40 bytes per pixel of the largest picture, plus 0.7 GB for torch and the rows that are predicted at
once. A picture of 4000 x 3000 pixels of 8 bits took 1.2 GB with the photo weights, and 31 s on two cores.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from Miniproject_1.commands.support.arguments import add_max_megapixels, add_range, check_outputs, files_below
from Miniproject_1.commands.support.compare_page import Page, png_to_show
from Miniproject_1.commands.support.distributed import is_first
from Miniproject_1.commands.support.images import (
    DEFAULT_QUALITY,
    ENDINGS,
    TEMPORARY,
    SeveralPages,
    beside_training,
    check_holds,
    check_trained_range,
    range_of_pages,
    read_pages,
    read_picture,
    write_picture,
    write_stack,
)
from Miniproject_1.commands.support.noise_level import noise_level
from Miniproject_1.commands.support.progress import progress_bar
from Miniproject_1.commands.support.weights import add_weights, load_model, predicted, weights_file
from Miniproject_1.model import CELL, NARROW, Tiling
from Miniproject_1.others.command_line import share, some_path
from Miniproject_1.others.files import check_new, check_writable, say_left_out

AROUND = 64  # grey values below black or above white that a picture of `predicted_beyond` may have
NEXT_TO_NONE = 0.5  # grey values of noise: less is also found in clean pictures
HARDLY_ANY = 2  # grey values of noise: from pictures with less, weights take detail as well
TOO_NARROW = f"less than {NARROW} pixels high or wide: left as it is"
LITTLE_NOISE = f"with noise below {HARDLY_ANY} of 255, detail may be lost; --strength 0.5 keeps half of it"
NEXT_TO_NO_NOISE = f"with noise below {NEXT_TO_NONE} of 255, the result is probably worse than the picture"


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path | None  # None for a folder that cannot be read
    error: OSError | None = None


def add_arguments(parser):
    parser.add_argument(
        "inputs", nargs="+", type=some_path, metavar="IN", help="picture, TIFF of several pages, or folder"
    )
    parser.add_argument("-o", "--out", type=some_path, required=True, help="file to write, or folder to write to")
    add_weights(parser)
    parser.add_argument("--strength", type=share, default=1.0, help="0: unchanged, 1: fully denoised (default: 1)")
    parser.add_argument(
        "--ensemble", action="store_true", help="average several predictions: slower, better by 0.05 to 0.2 dB"
    )
    parser.add_argument(
        "--compare",
        type=some_path,
        metavar="PAGE",
        help="also write a page to compare before and after; of a stack, its first picture",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files; never an input")
    beyond = "values farther beyond them than they are apart stay as they are"
    add_range(parser, f"{beyond}. Default: that of the weights' training if they know it, else for each picture: ")
    parser.add_argument(
        "--quality",
        type=quality,
        metavar="1..100",
        default=DEFAULT_QUALITY,
        help="of JPEG and lossy WebP (default: 95)",
    )
    add_max_megapixels(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    parser.add_argument("--json", action="store_true", help="print JSON, one line per picture")


def quality(text):
    """A number from 1 to 100, for the command line."""
    if not 1 <= int(text) <= 100:
        raise ValueError
    return int(text)


# ---------------------------------------------------------------------------------------------- which files


def plan(inputs, out, quiet=False):
    """The jobs for the inputs, in order. ValueError if there are none, or if OUT must be a folder but is a file."""
    one_file = len(inputs) == 1 and not inputs[0].is_dir() and not out.is_dir() and out.suffix
    if one_file:
        jobs = [Job(inputs[0], out)]
    else:
        if not out.is_dir() and (out.exists() or out.suffix.lower() in ENDINGS):
            raise ValueError(f"{out} must be a folder, since there are several inputs or one that is a folder")
        jobs = [job for given in inputs for job in jobs_of(given, out, quiet)]
    if not jobs:
        raise ValueError(f"no picture in {', '.join(map(str, inputs))}: expected names in {', '.join(ENDINGS)}")
    return jobs


def jobs_of(given, out, quiet):
    if not given.is_dir():
        return [Job(given, out / given.name)]
    if os.path.realpath(given) == os.path.realpath(out):
        raise ValueError(f"{out} is the input folder, whose pictures are never overwritten; choose another one for -o")
    errors = []
    pictures, others = files_below(given, out, errors.append)
    if not quiet and is_first():
        say_left_out(given, others, ENDINGS)
    jobs = [Job(path, out / path.relative_to(given)) for path in pictures]
    return jobs + [Job(Path(error.filename or given), None, error) for error in errors]


# ---------------------------------------------------------------------------------------------- one picture


def row_strips(height, tiling, border):
    """(rows to predict, rows to keep, where those are in the prediction) of each part of a picture.

    With its margins and the mirrored border, a part is one row of tiles. Parts start where cells of gates do.
    """
    step, margin = (tiling.side - tiling.overlap - 2 * border) // CELL * CELL, tiling.overlap // 2
    for start in range(0, height, step):
        stop = min(start + step, height)
        first, last = max(0, start - margin), min(height, stop + margin)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)


def predicted_beyond(model, noisy, space, ensemble=None):
    """`predicted` for values in [-255, 510]: it gives [0, 255], so what is beyond is predicted as a picture of its own.

    That picture is clipped `AROUND` grey values below its black, or above its white: networks know no more.
    """
    clean = predicted(model, noisy, space, ensemble)
    if noisy.max() > 255:
        clean = clean + predicted(model, (noisy - 255).clamp(min=-AROUND), space, ensemble)
    if noisy.min() < 0:
        clean = clean + predicted(model, (noisy + 255).clamp(max=255 + AROUND), space, ensemble) - 255
    return clean


def denoised(model, picture, strength=1.0, ensemble=None, progress=None):
    """The pixels of a picture without its noise, of the same shape and type; alpha as it is. Raises as `predicted`.

    The picture is predicted in strips of rows, so that only its stored pixels are in memory as a whole.
    """
    result = replace(picture, pixels=picture.pixels.copy())
    predict = predicted_beyond if picture.reach else predicted
    parts = list(row_strips(len(picture.pixels), Tiling.of(model.network), model.network.border))
    for done, (rows, kept, inside) in enumerate(parts, start=1):
        noisy = picture.values(rows)
        clean = noisy.lerp(predict(model, noisy, picture.space, ensemble), strength)
        result.store(clean[:, :, inside], kept)
        if progress:
            progress(done, len(parts))
    return result.pixels


def pictures_of(job, options, trained):
    """How many pictures the file of a job holds, and these; those of several pages are read one at a time.

    `trained`: the value ranges of the weights, see `choose_range`.
    """
    try:
        picture = read_picture(job.source, options.max_megapixels, options.range)
    except SeveralPages as stack:
        if ENDINGS.get(job.target.suffix.lower()) != "TIFF":
            raise ValueError(f"only TIFF holds {stack.pages} pictures; write it to a name that ends in .tif") from stack
        return stack.pages, pages_of(job.source, options, trained)
    check_holds(picture, job.target)
    picture.note_range(choose_range(picture, options.range, trained))
    return 1, [picture]


def pages_of(path, options, trained):
    """The pages of a TIFF, one at a time, all with the same range, with notes of what it does to each.

    ValueError if they differ in size or kind.
    """
    widest = range_of_pages(path, options.max_megapixels)
    for page, picture in enumerate(read_pages(path, options.max_megapixels, options.range), 1):
        if not options.range:
            picture.value_range = widest
        why = choose_range(picture, options.range, trained)
        picture.note_range(why, page)
        yield picture


def choose_range(picture, given, trained):
    """Takes the range that the weights were trained with for values of this type, unless one is given.

    Returns how it relates to that training, in words. ValueError if the picture does not fit into the training's range.
    """
    known, own = trained.get(str(picture.pixels.dtype)), picture.value_range
    if known and not given:
        check_trained_range(picture.pixels[:, :, : picture.colours], known)
        picture.take_range(known)
    return beside_training(picture.value_range, known, own)


@dataclass(frozen=True)
class Summary:
    """What is reported about a denoised picture."""

    size: tuple  # height, width
    kind: str  # type of its values
    value_range: tuple
    before: float  # noise, in 1/255 of the range
    after: float
    shown: list  # for the page: PNG files of before and after, or nothing
    notes: list  # the picture's own list: writing the picture adds some


def denoise_and_summarise(picture, model, options, show, progress):
    """Denoises the pixels of a picture; returns its `Summary`."""
    before, shown = noise_level(picture), []
    if min(picture.pixels.shape[:2]) < NARROW:
        picture.notes.append(TOO_NARROW)
    elif before < HARDLY_ANY and options.strength == 1:
        picture.notes.append(NEXT_TO_NO_NOISE if before < NEXT_TO_NONE else LITTLE_NOISE)
    if show:
        shown.append(png_to_show(picture))
    picture.pixels = denoised(model, picture, options.strength, options.ensemble or None, progress)
    if show:
        shown.append(png_to_show(picture))
    size, kind = picture.pixels.shape[:2], str(picture.pixels.dtype)
    return Summary(size, kind, picture.value_range, before, noise_level(picture), shown, picture.notes)


def denoise_each(pictures, count, model, options, show, progress, summaries):
    """Yields each of `count` pictures denoised, after appending its `Summary`; `show` concerns only the first."""
    for number, picture in enumerate(pictures):

        def report(done, parts, number=number):
            progress(number * parts + done, count * parts)

        summaries.append(denoise_and_summarise(picture, model, options, show and not number, progress and report))
        yield picture


def denoise_file(job, model, options, page, progress=None):
    """Denoises the pictures of one file, of which the page shows the first; returns the facts to be printed."""
    began = time.monotonic()
    if job.error:
        raise job.error
    check_new(job.target, options.force)
    count, pictures = pictures_of(job, options, model.value_ranges)
    summaries = []
    results = denoise_each(pictures, count, model, options, page is not None, progress, summaries)
    if count > 1:
        write_stack(results, count, job.target, overwrite=options.force)
    else:
        for picture in results:
            write_picture(picture, job.target, overwrite=options.force, quality=options.quality)
    if page:
        add_to_page(page, job, summaries[0], options.compare)
    return facts_of(job, summaries, time.monotonic() - began)


def add_to_page(page, job, summary, path):
    try:
        page.add(job.source.name, *summary.shown, summary.before, summary.after)
    except OSError as error:
        raise RuntimeError(f"{job.target} is written, but its part of {path} is not: {error}") from error


def facts_of(job, summaries, seconds):
    """What is printed about a file: size, type and range of its first picture, the mean noise, all notes once."""
    first, count = summaries[0], len(summaries)
    height, width = first.size
    return {
        "input": str(job.source),
        "output": str(job.target),
        "pages": count,
        "width": width,
        "height": height,
        "type": first.kind,
        "range": list(first.value_range),
        "noise_before": round(sum(one.before for one in summaries) / count, 2),
        "noise_after": round(sum(one.after for one in summaries) / count, 2),
        "seconds": round(seconds, 2),
        "notes": list(dict.fromkeys(note for one in summaries for note in one.notes)),
    }


def sentence(facts):
    notes = f" ({'; '.join(facts['notes'])})" if facts["notes"] else ""
    pages = f"{facts['pages']} pages of " if facts["pages"] > 1 else ""
    return (
        f"{facts['input']} -> {facts['output']}: {pages}{facts['width']} x {facts['height']}, noise "
        f"{facts['noise_before']:.1f} -> {facts['noise_after']:.1f} of 255, {facts['seconds']:.1f} s{notes}"
    )


# ---------------------------------------------------------------------------------------------- all of them


def run(options):
    jobs = plan(options.inputs, options.out, options.quiet)
    outputs = [(job.source, job.target) for job in jobs] + [("the page", options.compare)]
    check_outputs(outputs, [job.source for job in jobs if not job.error] + [weights_file(options.weights)])
    if options.compare:
        check_new(options.compare, options.force)
    first = next((job.target for job in jobs if job.target), None)
    for path in filter(None, (first, options.compare)):
        check_writable(path.with_name(TEMPORARY))  # not after the first picture
    model, failures, ranges = load_model(options.weights, options.device), 0, {}
    with Page.to(options.compare, options.force) as page, progress_bar(len(jobs), options.quiet) as bar:
        for job in jobs:
            try:
                facts = denoise_file(job, model, options, page, bar.part)
                ranges.setdefault(facts["type"], set()).add(tuple(facts["range"]))
            except (ValueError, OSError, ImportError, MemoryError, RuntimeError) as error:
                failures += 1
                facts = {"input": str(job.source), "error": str(error) or type(error).__name__}
                bar.write(f"{job.source}: {facts['error']}", sys.stderr)
            if options.json:
                bar.write(json.dumps(facts))
            elif "error" not in facts and not options.quiet:
                bar.write(sentence(facts))
            bar.next()
    for kind, found in ranges.items():
        if len(found) > 1 and not options.quiet:
            these = ", ".join(f"{low:g} to {high:g}" for low, high in sorted(found))
            print(
                f"{kind} pictures were read with ranges of {these}: give one --range for all of them", file=sys.stderr
            )
    if failures:
        print(f"{failures} of {len(jobs)} could not be denoised; they are named above", file=sys.stderr)
    return 1 if failures else 0
