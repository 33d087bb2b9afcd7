"""Checks whether pairs of noisy pictures are fit for Noise2Noise, before hours are spent on them.

    noise2noise inspect first/ second/
    noise2noise inspect train_data.pkl

Pairs must show the same scene twice, at the same place and with the same exposure, with independent noise of mean zero.
Each finding has a verdict (fine, warning or BAD) and says what to do. Noise that is the same in both pictures, as that
of a sensor's fixed pattern or of two JPEG files of one exposure, is not seen, and training does not remove it.
"""

import json
import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from Miniproject_1.commands.support.arguments import add_max_megapixels
from Miniproject_1.commands.support.noise_level import level_of, level_of_two_sizes
from Miniproject_1.commands.support.pairs import (
    Scale,
    add_common_range,
    add_pairs,
    evenly_spaced,
    open_pairs,
    random_squares,
)
from Miniproject_1.commands.support.weights import SHIPPED, add_device, load_model, predict_colours
from Miniproject_1.model import (
    AGREEING,
    COARSE,
    CONTRAST,
    DISPLACED,
    blocks,
    coarse_difference,
    contrast_difference,
    displaced_share,
    lagged_products,
    measure_noise,
    reorientation,
    subsample,
)
from Miniproject_1.others.metrics import psnr_of_mse

FINE, WARNING, BAD = "fine", "warning", "BAD"
SQUARES, SIDE = 1024, 64  # how many squares are measured, and their pixels a side
TILES, TILE = 48, 128  # the same for displacements, TILES for each large pair
LARGE = 256  # pixels a side: the displacement of pairs at least this large is measured one by one
LOOKED_AT = 200  # pairs, at most, whose exposure and displacement are measured
TRUSTED = 8  # standard deviations: noise alone also makes lower peaks
LOW_PASS = 0.15  # cycles per pixel: below, pictures have more signal than noise
SINGLE_LIMIT = 0.15  # correlation in single pictures, whose texture adds to it
FLAT_SHARE = 10  # one in so many blocks, the flattest, shows the noise of a single picture
# The difference of two scenes is itself a picture: coarse (see `coarse_difference`), with edges, and much stronger than
# the noise that each picture shows by itself. Noise on plain ground may have one of these properties, but not all of
# them: white, blurred, demosaiced and JPEG-coded noise stays well clear.
EDGES = 3.5  # kurtosis of its coarse steps, which is 3 for noise
BEYOND = 1.1  # its level, in levels of the noise of the single pictures
FAINTEST = 5  # of 255: fainter differences are not taken for pictures, as JPEG leaves edges of its own
LOCAL = 0.5  # pixels: places of a pair may lie so far apart, see `displaced_share`
FEW = 50  # one in so many pairs may be taken for different scenes by chance
UNLIKE = 0.8  # imbalance of two noises, one of three times the level of the other
JUDGED = 128  # squares that the shipped weights are tried on
APART = 16  # pixels: blurred, demosaiced and JPEG-coded noise is correlated over less, stripes over more
HARDLY_CLIPPED, CLIPPED = 0.01, 0.1  # shares of values beyond which what the weights reach is less sure, and unknown


@dataclass(frozen=True)
class Finding:
    """One finding: its topic, numbers by name, a verdict, and a text that says what to do."""

    topic: str
    values: dict
    verdict: str
    text: str


def add_arguments(parser):
    add_pairs(parser)
    add_common_range(parser)
    add_device(parser)
    add_max_megapixels(parser)
    parser.add_argument("--no-weights", action="store_true", help="do not try the shipped weights, which takes longest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


# ---------------------------------------------------------------------------------------------- measurements


def displacement(first, second):
    """How far the second images lie from the first: ((down, right) in pixels, trust), from (M, C, s, s) squares.

    Phase correlation (C. Kuglin, D. Hines, 1975) of the mean cross spectrum of all squares: frequencies are weighted
    by their coherence across the squares, high ones less. The peak is refined in steps of 1/50 pixel by the Fourier
    sum itself. Trust is the height of the peak in standard deviations of the surface; see TRUSTED.
    """
    count, _, side, _ = first.shape
    window = torch.hann_window(side + 2, periodic=False)[1:-1]
    spectra = [
        torch.fft.fft2((part - part.mean((2, 3), keepdim=True)).mean(1) * window * window[:, None])
        for part in (first, second)
    ]
    cross = (spectra[0] * spectra[1].conj()).mean(0)
    powers = [spectrum.abs().square().mean(0) for spectrum in spectra]
    frequencies = torch.fft.fftfreq(side)
    weight = torch.exp(-(frequencies.square() + frequencies[:, None].square()) / (2 * LOW_PASS**2))
    if count > 3:
        weight = weight * (cross.abs().square() / (powers[0] * powers[1] + 1e-12) - 1 / count).clamp(min=0)
    weight[0, 0] = 0
    phases = weight * cross / (cross.abs() + 1e-12)
    surface = torch.fft.ifft2(phases).real
    peak = int(surface.argmax())
    trust = (surface.max() / (surface.std(correction=0) + 1e-12)).item()
    down, right = (place - side * (place > side // 2) for place in divmod(peak, side))
    steps = torch.arange(-50, 51) / 50
    rows = torch.exp(2j * math.pi * (down + steps)[:, None] * frequencies)  # (101, side)
    columns = torch.exp(2j * math.pi * frequencies[:, None] * (right + steps))
    fine = (rows @ phases.to(rows.dtype) @ columns).real
    row, column = divmod(int(fine.argmax()), 101)
    return (-(down + steps[row].item()), -(right + steps[column].item())), trust


def certain_displacement(first, second):
    """`displacement`, with a trust of 0 if the two halves of the squares disagree on it."""
    where, trust = displacement(first, second)
    if len(first) > 1:
        apart = math.dist(*(displacement(first[half::2], second[half::2])[0] for half in (0, 1)))
        trust = trust if apart <= max(0.15, math.hypot(*where) / 3) else 0.0
    return where, trust


def brightness_levels(first, second):
    """Noise level in the dark, middle and bright third of the pixels by brightness: three numbers in [0, 255].

    Brightness is that of the mean of both images, smoothed, so that the noise itself does not choose the third.
    """
    difference = first - second
    difference = difference - difference.mean((0, 2, 3), keepdim=True)
    bright = F.avg_pool2d((first + second).mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
    order = bright.expand_as(difference).flatten().argsort()
    thirds = difference.flatten()[order].tensor_split(3)
    return [math.sqrt(third.square().mean().item() / 2) if len(third) else 0.0 for third in thirds]


def channel_correlation(first, second):
    """Mean correlation of the noise between different channels; None for one channel."""
    channels = first.shape[1]
    if channels == 1:
        return None
    rows = (first - second).transpose(0, 1).flatten(1)
    if rows.shape[1] < 2 or not rows.std(1).all():
        return 0.0
    return ((rows.corrcoef().sum() - channels) / (channels * (channels - 1))).item()


def line_correlation(first, second):
    """Mean correlation of the noise of pixels of one row, and of one column, of the squares, at least APART apart."""
    difference = first - second
    difference = difference - difference.mean((2, 3), keepdim=True)
    side, power = first.shape[3], difference.square().sum() + 1e-12

    def correlation(axis):
        near = sum(
            (difference.narrow(axis, 0, side - apart) * difference.narrow(axis, apart, side - apart)).sum()
            for apart in range(1, APART)
        )
        far = difference.sum(axis).square().sum() - power - 2 * near  # of all ordered pairs that are left
        return (far / power).item() * side / ((side - APART) * (side - APART + 1))

    return correlation(3), correlation(2)


def near_correlations(picture):
    """Correlations of the noise of near pixels within a single picture (1, C, H, W): (blocks, 4).

    The picture itself must not count. Second differences along columns are correlated with those one and two pixels
    beside them, and vice versa for rows: white noise has 0, smooth parts and edges along an axis cancel out. This is
    done in the flattest 16 x 16 blocks, judged by their 4 x 4 means. Those that are a quarter black or white do not
    count.
    """
    candidates = blocks(picture)  # (M, C, 16, 16)
    candidates = candidates[((candidates <= 0) | (candidates >= 255)).float().mean((1, 2, 3)) < 0.25]
    if min(candidates.shape[2:]) < 16 or not len(candidates):
        return torch.empty(0, 4)
    roughness = F.avg_pool2d(candidates, 4).var((2, 3)).mean(1)
    flat = candidates[roughness.argsort()[: -(-len(candidates) // FLAT_SHARE)]]
    of_columns, of_rows = flat.diff(2, dim=2), flat.diff(2, dim=3)
    return torch.stack(
        [
            lagged_products(differences, *shift) / (differences.square().mean((1, 2, 3)) + 1e-9)
            for differences, shifts in ((of_columns, ((0, 1), (0, 2))), (of_rows, ((1, 0), (2, 0))))
            for shift in shifts
        ],
        1,
    )


def worst_correlation(correlations):
    """The largest of the medians of (blocks, 4), and its limit by chance; (nan, nan) of fewer than eight blocks."""
    if len(correlations) < 8:
        return math.nan, math.nan
    medians = correlations.median(0).values
    worst = int(medians.abs().argmax())
    return medians[worst].item(), 3 * 1.25 * correlations[:, worst].std().item() / math.sqrt(len(correlations))


def colour_differences(picture):
    """(1, 3, H, W) in [0, 255] -> (1, 2, H, W): red and blue less brightness, around 128; 0 where one is clipped."""
    differences = 128 + (picture[:, ::2] - picture.mean(1, keepdim=True)) / 2
    return differences.masked_fill(((picture <= 0) | (picture >= 255)).any(1, keepdim=True), 0)


def step_kurtosis(first, second):
    """Kurtosis of the steps between neighbours in the difference at a quarter of the size; NaN if it is too small."""
    side = min(4, *first.shape[2:])
    coarse = F.avg_pool2d(first - second, side)
    steps = torch.cat([coarse.diff(dim=axis).flatten() for axis in (2, 3)])
    return (steps.pow(4).mean() / (steps.square().mean().square() + 1e-9)).item()


def clipped_shares(first, second):
    """Shares of the values that are black and white, without what is so all around in both: it has no noise to clip."""
    both, shares = torch.cat([first, second], 1), []
    for clipped in (both <= 0, both >= 255):
        everywhere = -F.max_pool2d(-clipped.float().amin(1, keepdim=True), 5, 1, 2)  # 5 x 5 pixels, all channels
        plain = F.max_pool2d(everywhere, 5, 1, 2)
        shares.append((clipped * (1 - plain)).mean().item() / max(1e-9, (1 - plain).mean().item()))
    return tuple(shares)


def estimated_mse(prediction, noisy, variance):
    """Estimated mean squared error of a prediction against the unknown clean image: that against an independent noisy
    image, minus its noise variance (which is why Noise2Noise works)."""
    return (prediction - noisy).square().mean().item() - variance


# ---------------------------------------------------------------------------------------------- findings


def inspect_pairs(pairs, try_weights=True, device=None):
    """The findings on some pairs, in the order of printing."""
    first, second = random_squares(pairs, SIDE, SQUARES)
    if torch.equal(first, second):
        text = "Both pictures are the same, down to the last bit: noise can only be seen between two independent ones."
        return [Finding("independence", {}, BAD, text)]
    noise = measure_noise(first, second)
    variance = (first - second - (first - second).mean((0, 2, 3), keepdim=True)).square().mean().item() / 2
    levels = [math.sqrt(max(0.0, variance * (1 + sign * noise.imbalance))) for sign in (1, -1)]
    clipped = clipped_shares(first, second)
    findings = [
        on_copies(pairs),
        on_level(levels, noise.at_least("imbalance") > UNLIKE),
        on_shared(level_of([square[None] for square in first[:JUDGED]]), max(levels)),
        on_scenes(pairs),
        on_orientation(pairs, first, second),
        on_neighbours(noise.correlation, first.numel()),
        on_stripes(*line_correlation(first, second)) if first.shape[3] >= 2 * APART else None,
        on_channels(channel_correlation(first, second)),
        on_brightness(brightness_levels(first, second)),
        on_exposure(pairs, math.sqrt(variance)),
        on_contrast(*contrast_difference(first, second)),
        on_displacement(pairs, *displaced_share(first, second)),
        on_clipping(*clipped),
        on_gain(first, second, levels, sum(clipped), try_weights, device),
    ]
    return [finding for finding in findings if finding is not None]


def fit(findings):
    return all(finding.verdict != BAD for finding in findings)


def on_copies(pairs):
    """Pairs of the same picture twice, among others: they would teach the network to keep the noise."""
    numbers = evenly_spaced(len(pairs), LOOKED_AT)
    copies = sum(torch.equal(*pairs.pair(number)) for number in numbers)
    if not copies:
        return None
    text = f"{copies} of {len(numbers)} pairs are the same picture twice: leave them out, or the noise is learnt."
    return Finding("copies", {"copies": copies, "pairs": len(numbers)}, BAD, text)


def on_level(levels, unlike):
    """`unlike`: whether they certainly differ too much for two versions of one scene."""
    ratio = max(levels) / max(1e-9, min(levels))
    values = {"first": round(levels[0], 2), "second": round(levels[1], 2), "ratio": round(ratio, 2)}
    said = f"noise {levels[0]:.1f} and {levels[1]:.1f} of 255"
    if max(levels) < 0.5:
        text = f"{said}: hardly any noise to remove; are these the noisy pictures? If they are dark, see --range."
        return Finding("noise", values, WARNING, text)
    if unlike:
        text = (
            f"{said}: so different that one may be a copy of the other with noise added, a blurred copy or a clean "
            "picture. That is not a pair. "
            "Take two noisy pictures of each scene, independent of each other and with the same settings."
        )
        return Finding("noise", values, BAD, text)
    if ratio > 1.3:
        text = (
            f"{said}: not alike. Noise2Noise allows that if the two are independent, which a copy with noise added is "
            "not, and equally sharp: lost detail looks like noise. `train` then only predicts the second from the "
            "first."
        )
        return Finding("noise", values, WARNING, text)
    return Finding("noise", values, FINE, f"{said}: alike in both.")


def on_shared(alone, level):
    """A finding if a picture by itself looks much noisier than the pair's difference; else None."""
    if alone <= 2 * level + 2:
        return None
    text = (
        f"the first ones alone seem to have noise {alone:.1f}, but the two differ by only {level:.1f}: either they "
        "share noise, as copies do, which cannot be removed, or have very fine texture."
    )
    return Finding("shared noise", {"alone": round(alone, 2), "pair": round(level, 2)}, WARNING, text)


def on_scenes(pairs):
    """A finding if pairs differ as different pictures do rather than by noise; else None."""
    numbers = evenly_spaced(len(pairs), LOOKED_AT)
    measured = {number: coarse_difference(*map(subsample, pairs.pair(number))) for number in numbers}
    strange = [number for number, (share, agreement) in measured.items() if share > COARSE and agreement < AGREEING]
    if len(strange) <= len(numbers) / FEW:
        return None
    first, second = random_squares(Subset(pairs, strange), SIDE, SQUARES)
    alone = max(level_of_two_sizes([square[None] for square in part[:JUDGED]]) for part in (first, second))
    level, kurtosis = (first - second).std(correction=0).item() / math.sqrt(2), step_kurtosis(first, second)
    if not (level > max(FAINTEST, BEYOND * alone) and kurtosis > EDGES):
        return None
    agreement = sum(measured[number][1] for number in strange) / len(strange)
    values = {"pairs": len(strange), "agreement": round(agreement, 3), "kurtosis": round(kurtosis, 2)}
    text = (
        f"{len(strange)} of {len(numbers)} pairs, such as number {strange[0] + 1}, differ by {level:.1f}, though each "
        f"picture alone seems to have noise {alone:.1f}, and correlate by only {agreement:.2f} seen from afar: they "
        "show different scenes, are turned, mirrored or displaced by a lot, or have their channels in another order. "
        "Check which picture belongs to which; take both of a pair from the same place."
    )
    return Finding("scene", values, BAD, text)


def on_orientation(pairs, first, second):
    """A finding if small pictures are mirrored, turned or reversed in their channels; `on_scenes` finds large ones."""
    if max(pairs.pair(0)[0].shape[2:]) > SIDE or not (found := reorientation(first, second)):
        return None
    what, gain = found
    text = (
        f"the second ones seem to be {what}: with that undone, the squared difference is {gain:.0%} smaller. Undo it."
    )
    return Finding("orientation", {"gain": round(gain, 3)}, BAD, text)


def on_neighbours(correlation, count):
    """`count`: number of values measured; that of white noise is below 3 / sqrt(count) by chance."""
    values = {"correlation": round(correlation, 3)}
    said = f"correlation of the noise with that of near pixels {correlation:.2f}"
    if abs(correlation) > max(0.05, 3 / math.sqrt(count)):
        text = (
            f"{said}: demosaicing, JPEG or resizing. Noise2Noise allows that, but needs longer training; use raw "
            "files if there are any. Methods for single pictures (sub-sampling, blind spots) fail."
        )
        return Finding("neighbours", values, WARNING, text)
    return Finding("neighbours", values, FINE, f"{said}: independent between pixels.")


def on_single(pictures):
    """Whether neighbouring pixels of single pictures (1, C, H, W) make pairs: only with independent noise.

    Also that of the colours alone: JPEG and video often store these at half the size.
    """
    whole, colours = [], []
    for picture in pictures:
        whole.append(near_correlations(picture))
        colours.append(near_correlations(colour_differences(picture)) if picture.shape[1] == 3 else torch.empty(0, 4))
    found = [worst_correlation(torch.cat(part)) for part in (whole, colours)]
    correlation, chance = max(found, key=lambda one: abs(one[0]))  # NaN if the first is
    values = {"correlation": None if math.isnan(correlation) else round(correlation, 3)}
    ways = "Take raw files, or two pictures of each scene (train A B); --no-inspect trains all the same."
    if math.isnan(correlation):
        text = f"too small, or too much of it black or white, to tell whether the noise is independent. {ways}"
        return Finding("independence", values, BAD, text)
    said = f"correlation of near pixels in the flattest areas {correlation:.2f}"
    if abs(correlation) > max(SINGLE_LIMIT, chance):
        text = (
            f"{said}: the noise is not independent between pixels (demosaicing, JPEG, resizing), or fainter than the "
            f"texture. A network trained on neighbouring pixels would keep it. {ways}"
        )
        return Finding("independence", values, BAD, text)
    return Finding("independence", values, FINE, f"{said}: independent between pixels.")


def on_stripes(rows, columns):
    values = {"rows": round(rows, 4), "columns": round(columns, 4)}
    if max(rows, columns) < 0.02:
        return Finding("stripes", values, FINE, "no stripes in the noise.")
    text = (
        f"correlation of the noise along rows {rows:.2f}, along columns {columns:.2f}: stripes. The default network "
        "treats rows and columns alike; in Python, train Model(equivariant=False)."
    )
    return Finding("stripes", values, WARNING, text)


def on_channels(correlation):
    if correlation is None:
        return None
    kind = "alike in all channels, as point sampling is" if correlation > 0.7 else "between the channels"
    return Finding(
        "channels", {"correlation": round(correlation, 3)}, FINE, f"correlation {correlation:.2f} {kind}; it is learnt."
    )


def on_brightness(levels):
    values = dict(zip(("dark", "middle", "bright"), (round(level, 2) for level in levels), strict=True))
    said = f"noise {levels[0]:.1f} in the dark, {levels[1]:.1f} between, {levels[2]:.1f} in the bright third"
    if max(levels) > 1.15 * min(levels):
        return Finding(
            "brightness", values, FINE, f"{said}: depends on brightness, as photon noise does; it is learnt."
        )
    return Finding("brightness", values, FINE, f"{said}: the same everywhere.")


def on_exposure(pairs, level):
    """The mean difference of each pair, in its worst channel, says how far exposure and white balance drift; noise
    alone would leave next to nothing."""
    numbers = evenly_spaced(len(pairs), LOOKED_AT)
    means, expected = [], []
    for number in numbers:
        first, second = pairs.pair(number)
        if means and first.shape[1] != len(means[0]):
            raise ValueError(
                f"all pictures must have as many channels as the first, {len(means[0])}; pair {number + 1} has "
                f"{first.shape[1]}. Convert grey pictures to colour, or leave them out"
            )
        difference = (first - second)[0].flatten(1)  # (C, H W)
        means.append(difference.mean(1))
        expected.append(difference.var(1, correction=0) / max(1, difference.shape[1] - 1))
    means, expected = torch.stack(means), torch.stack(expected)  # (pairs, C)
    mean = max(means.mean(0).tolist(), key=abs)
    spread = (means.square() - expected).mean(0).clamp(min=0).sqrt().max().item()
    values = {"mean": round(mean, 2), "drift": round(spread, 2)}
    said = f"mean difference {mean:+.2f}, {spread:.2f} from pair to pair, of 255"
    chance = 3 * math.sqrt(expected.mean(0).max().item() / len(means))
    limit = max(0.3, 0.05 * level, chance)
    if max(abs(mean), spread) <= limit:
        return Finding("exposure", values, FINE, f"{said}: the exposures agree.")
    verdict = BAD if max(abs(mean), spread) > max(1.0, 0.2 * level) else WARNING
    text = (
        f"{said}: the exposure differs, and training would learn half of that as noise. Scale each second picture to "
        "the mean of its first one, or fix exposure, white balance and light when taking them."
    )
    return Finding("exposure", values, verdict, text)


def on_contrast(slope, error):
    """A finding if bright and dark places differ by more in one of the pictures than in the other; else None."""
    if abs(slope) <= CONTRAST + 2 * error:
        return None
    text = (
        f"the contrast of the two differs by {abs(slope):.0%}, though not their means: training would learn that as "
        "noise. Take both with the same exposure, and develop both alike."
    )
    return Finding("contrast", {"slope": round(slope, 3)}, BAD if abs(slope) > 2 * CONTRAST else WARNING, text)


def on_displacement(pairs, share, error, distance):
    """A finding on displacement: each large pair by itself, small ones together, which shows only a common one.

    The three numbers, of `displaced_share`, also show displacements that differ from place to place.
    """
    local = share - 3 * error > DISPLACED and distance > LOCAL
    moving = (
        f"places lie about {distance:.1f} pixels apart, in different directions: the pictures are turned or scaled "
        "against each other, or something moves. Training would blur that. Align them first; drop the others."
    )
    numbers = evenly_spaced(len(pairs), LOOKED_AT // 4)
    large = min(pairs.pair(0)[0].shape[2:]) >= LARGE
    groups = [Subset(pairs, [number]) for number in numbers] if large else [pairs]
    found = [refined_displacement(group, TILES if large else SQUARES) for group in groups]
    trusted = sorted((math.hypot(*where), where) for where, trust in found if trust >= TRUSTED)
    if not trusted and local:
        return Finding("displacement", {"down": None, "right": None, "local": round(distance, 2)}, BAD, moving)
    if not trusted:
        text = "displacement not measurable: too little structure, or not the same scene. Look at a pair yourself."
        return Finding("displacement", {"down": None, "right": None}, WARNING, text)
    (largest, (down, right)), median = trusted[-1], trusted[len(trusted) // 2][0]
    values = {
        "down": round(down, 2),
        "right": round(right, 2),
        "median": round(median, 2),
        "largest": round(largest, 2),
        "local": round(distance, 2),
    }
    said = f"{largest:.1f} pixels apart ({abs(down):.1f} {'down' if down > 0 else 'up'}, "
    said += f"{abs(right):.1f} {'right' if right > 0 else 'left'})"
    if len(trusted) > 1:
        said = f"up to {said}, half of the pairs at most {median:.1f}"
    if local and distance > 1.5 * largest:
        return Finding("displacement", values, BAD, f"{said} as a whole, but {moving}")
    if largest < 0.15:
        return Finding("displacement", values, FINE, f"{said}: at the same place.")
    text = f"{said}: training would blur what moves. Use a tripod, or align the pairs first; drop the others."
    return Finding("displacement", values, BAD if median >= 0.5 or largest >= 2 else WARNING, text)


def refined_displacement(group, count):
    """As `certain_displacement`; a large one is measured again on the common area: the squares had little in common."""
    where, trust = certain_displacement(*random_squares(group, TILE, count, overlap=2))
    whole = [round(part) for part in where]
    smallest = min(group.pair(0)[0].shape[2:]) - max(map(abs, whole))
    if trust < TRUSTED or not any(whole) or smallest < 16:
        return where, trust
    rest, trust = certain_displacement(*random_squares(CommonArea(group, *whole), TILE, count, overlap=2))
    return (whole[0] + rest[0], whole[1] + rest[1]), trust


class CommonArea:
    """Pairs cut to their common area, if the second one is displaced by whole pixels."""

    def __init__(self, pairs, down, right):
        self.pairs, self.shift = pairs, (down, right)

    def __len__(self):
        return len(self.pairs)

    def pair(self, number):
        first, second = self.pairs.pair(number)
        for axis, shift in zip((2, 3), self.shift, strict=True):
            size = first.shape[axis] - abs(shift)
            first = first.narrow(axis, max(0, -shift), size)
            second = second.narrow(axis, max(0, shift), size)
        return first, second


class Subset:
    """Some of the pairs, by number."""

    def __init__(self, pairs, numbers):
        self.pairs, self.numbers = pairs, numbers

    def __len__(self):
        return len(self.numbers)

    def pair(self, number):
        return self.pairs.pair(self.numbers[number])


def on_clipping(black, white):
    values = {"black": round(black, 4), "white": round(white, 4)}
    said = f"{100 * black:.1f} % of the values are black, {100 * white:.1f} % white"
    if black + white <= HARDLY_CLIPPED:
        return Finding("clipping", values, FINE, f"{said}: hardly any clipping.")
    text = f"{said}: clipping shifts the mean of the noise, and black turns grey. Use raw data or another exposure."
    if white <= HARDLY_CLIPPED:
        return Finding("clipping", values, WARNING, f"{text} Counts of photons may be 0 without clipping.")
    return Finding("clipping", values, BAD if black + white > 0.2 else WARNING, text)


def on_gain(first, second, levels, clipped, try_weights, device):
    """What the shipped weights reach, measured without a clean image; training on the pairs themselves gives more."""
    if min(levels) < 1e-3:
        return None
    noisy = psnr_of_mse((levels[0] / 255) ** 2)
    values, said = {"noisy": round(noisy, 2)}, f"the first ones have about {noisy:.1f} dB"
    if try_weights and clipped > CLIPPED:
        text = f"{said}. What the weights reach cannot be told: clipping shifts both pictures alike."
        return Finding("gain", values, FINE, text)
    a, b = first[:JUDGED], second[:JUDGED]
    b = b - (b - a).mean((0, 2, 3), keepdim=True)
    for name in [name for name, path in SHIPPED.items() if path.is_file() and try_weights and a.shape[1] in (1, 3)]:
        model = load_model(name, device)
        mse = estimated_mse(predict_colours(model, a, "", ensemble=False).cpu(), b, levels[1] ** 2)
        values[name] = round(psnr_of_mse(mse / 255**2), 2) if mse > 0.1 else None
    reached = {name: value for name, value in values.items() if name != "noisy" and value is not None}
    if not reached:
        return Finding("gain", values, FINE, f"{said}.")
    best = max(reached, key=reached.get)
    text = f"{said}; the weights {best!r} make it about {reached[best]:.1f} dB as they are. "
    if reached[best] <= noisy:
        return Finding("gain", values, FINE, text + "They do not know this noise: train on these pairs.")
    if clipped > HARDLY_CLIPPED:
        return Finding("gain", values, FINE, text + "The shift by clipping, alike in both pictures, is not counted.")
    return Finding("gain", values, FINE, text + "Trained on many such pairs, expect that or more.")


def run(options):
    pairs = open_pairs(options.first, options.second, options.max_megapixels, Scale(options.range))
    findings = inspect_pairs(pairs, not options.no_weights, options.device)
    if options.json:
        print(json.dumps({"pairs": len(pairs), "fit": fit(findings), "findings": [asdict(f) for f in findings]}))
        return 0
    print_findings(findings)
    verdict = "fit for Noise2Noise." if fit(findings) else "NOT fit for Noise2Noise as they are."
    print(f"{len(pairs)} pair{'s' * (len(pairs) != 1)}: {verdict}")
    return 0


def print_findings(findings, file=None):
    for finding in findings:
        print(f"{finding.verdict:8}{finding.topic:14}{finding.text}", file=file)
