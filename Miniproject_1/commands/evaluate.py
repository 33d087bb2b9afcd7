"""Compares weights with clean pictures: PSNR and SSIM of each picture, and their means.

    noise2noise evaluate noisy/ clean/ --weights photo
    noise2noise evaluate val_data.pkl --weights course --classics
    noise2noise evaluate noisy/ clean/ --plot psnr.svg --sheet pictures.png

PSNR has the peak 255 at white (see --range, and give the same to compare weights); only predictions are clipped. Its
mean over images is the grader's; next to it is that of the pooled error. SSIM is scikit-image's with the settings of
Wang et al. 2004: Gaussian window with sigma 1.5, population covariances, range 255, mean over channels; it needs 11
pixels a side.

--plot draws the PSNR of each picture before and after. --sheet shows the best and the worst pictures: noisy, denoised
and clean; of a large one, only the square of 128 pixels with the largest error.
"""

import json
import math

import torch
import torch.nn.functional as F

from Miniproject_1.commands.support.arguments import add_max_megapixels, check_outputs
from Miniproject_1.commands.support.pairs import Scale, add_common_range, add_pairs, open_pairs
from Miniproject_1.commands.support.plots import check_figure, need_figure, save_figure
from Miniproject_1.commands.support.progress import progress_bar
from Miniproject_1.commands.support.weights import add_weights, load_model, predicted
from Miniproject_1.others.command_line import some_path
from Miniproject_1.others.metrics import mean_squared_error, psnr_of_mse

SSIM_SETTINGS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
SSIM_SIDE = 11  # pixels of its window
CLASSICS = {  # strengths that are tried, in deviations of the noise
    "non-local means": (0.4, 0.6, 0.8, 1.0),
    "wavelets": (0.5, 1.0, 1.5, 2.0),
    "total variation": (0.5, 1.0, 1.5, 2.0),
}
NO_NOISE = 1e-6  # of white: a deviation below this is rounding
SHOWN, SQUARE = 4, 128  # best and worst pictures on a sheet, pixels a side that are shown of each


def add_arguments(parser):
    add_pairs(parser, "NOISY", "CLEAN")
    add_common_range(parser, "the clean files", "that of the weights' training if they know it, else ")
    add_weights(parser)
    add_max_megapixels(parser)
    parser.add_argument("--ensemble", action="store_true", help="average several predictions")
    parser.add_argument("--limit", type=int, help="only the first LIMIT pictures")
    parser.add_argument(
        "--classics",
        action="store_true",
        help="also scikit-image's non-local means, wavelets and TV, each at the strength that is best for the picture, "
        "found with its clean version (an oracle): an upper bound",
    )
    parser.add_argument("--plot", type=some_path, metavar="FILE", help="draw PSNR before and after: .png or .svg")
    parser.add_argument(
        "--sheet", type=some_path, metavar="FILE", help="show the best and the worst pictures: .png or .svg"
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite the files of --plot and --sheet; never an input"
    )
    parser.add_argument("--quiet", action="store_true", help="only the means")
    parser.add_argument("--json", action="store_true", help="print JSON, one line per picture")


# ---------------------------------------------------------------------------------------------- measures


def ssim(image, clean):
    """scikit-image's structural similarity; None where it is missing or the picture is smaller than its window."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return None
    if min(image.shape[2:]) < SSIM_SIDE:
        return None
    first, second = (part[0].permute(1, 2, 0).double().numpy() for part in (image, clean))
    return float(structural_similarity(first, second, channel_axis=2, **SSIM_SETTINGS))


# ---------------------------------------------------------------------------------------------- methods


def classics(noisy, clean):
    """The best results of three classics over their strength: {name: (1, C, H, W)} in [0, 255].

    Non-local means (A. Buades et al., CVPR 2005), BayesShrink wavelets (S. Chang et al., IEEE TIP 2000) and total
    variation (A. Chambolle, JMIV 2004), each with the strength that comes closest to the clean picture. A picture whose
    error is the same everywhere has no noise to remove: it is only clipped.
    """
    try:
        import pywt  # noqa: F401  # which its wavelets need
        from skimage import restoration
    except ImportError as error:
        raise ImportError(
            "--classics needs scikit-image and PyWavelets: pip install 'noise2noise-miniproject[evaluate]'"
        ) from error
    sigma = (noisy - clean).std().item() / 255
    if sigma < NO_NOISE:  # by which they would divide
        return dict.fromkeys(CLASSICS, noisy.clamp(0, 255))
    image, axis = (noisy[0] / 255).permute(1, 2, 0).double().numpy(), 2
    if image.shape[2] == 1:
        image, axis = image[:, :, 0], None  # denoise_nl_means would drop an axis of length 1
    methods = {
        "non-local means": lambda s: restoration.denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=s * sigma, sigma=sigma, fast_mode=True, channel_axis=axis
        ),
        "wavelets": lambda s: restoration.denoise_wavelet(
            image, sigma=s * sigma, method="BayesShrink", mode="soft", channel_axis=axis, rescale_sigma=True
        ),
        "total variation": lambda s: restoration.denoise_tv_chambolle(image, weight=s * sigma, channel_axis=axis),
    }
    best = {}
    for name, method in methods.items():
        results = (torch.from_numpy(method(strength)) for strength in CLASSICS[name])
        tried = [result.view(*noisy.shape[2:], -1).permute(2, 0, 1)[None] * 255 for result in results]
        best[name] = min(
            (part.clamp(0, 255).float() for part in tried), key=lambda part: mean_squared_error(part, clean)
        )
    return best


def denoised(model, noisy, options):
    space = "CMYK" if noisy.shape[1] == 4 else ""
    return predicted(model, noisy, space, options.ensemble or None)


def versions(model, weights, noisy, clean, options):
    """The versions of a picture that are compared, by name."""
    yield "noisy", noisy
    yield weights, denoised(model, noisy, options)
    if options.classics:
        yield from classics(noisy, clean).items()


# ---------------------------------------------------------------------------------------------- figures


def plot(path, before, after, title):
    """PSNR of each picture before and after, both in dB."""
    figure = need_figure()(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points = [point for point in zip(before, after, strict=True) if all(map(math.isfinite, point))]
    before = [x for x, _ in points]
    ends = [min(before), max(before)] if points else []
    axes.plot(before, [y for _, y in points], ".", label=in_unicode(title))
    axes.plot(ends, ends, "--", color="black", label="no change")
    axes.set_xlabel("PSNR of the noisy picture (dB)")
    axes.set_ylabel("PSNR of the result (dB)")
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def in_unicode(name):
    """A file name as matplotlib takes it: with ? for bytes that are not UTF-8."""
    return name.encode(errors="replace").decode()


def best_and_worst(decibels):
    """Numbers of the SHOWN best and the SHOWN worst pictures by PSNR, best first; all, if few."""
    order = sorted(range(len(decibels)), key=lambda number: -decibels[number])
    return order if len(order) <= 2 * SHOWN else order[:SHOWN] + order[-SHOWN:]


def worst_square(result, clean):
    """Slices of the rows and columns of the square of a grid that has the largest error, of (1, C, H, W)."""
    error = (result - clean).square().mean(1)  # (1, H, W)
    height, width = (min(SQUARE, size) for size in error.shape[1:])
    step = SQUARE // 8
    means = F.avg_pool2d(error, (height, width), stride=step)[0]
    top, left = (step * index.item() for index in torch.unravel_index(means.argmax(), means.shape))
    return slice(top, top + height), slice(left, left + width)


def sheet(path, pairs, model, decibels, options):
    """A row for each of the best and worst pictures: noisy, denoised, clean."""
    numbers = best_and_worst(decibels)
    figure = need_figure()(figsize=(7, 2.4 * len(numbers)), layout="constrained")
    for number, row in zip(numbers, figure.subplots(len(numbers), 3, squeeze=False), strict=True):
        noisy, clean = pairs.pair(number)
        result = denoised(model, noisy, options)
        square = (..., *worst_square(result, clean))
        titles = ("noisy", f"{in_unicode(pairs.name(number))}: {decibels[number]:.2f} dB", "clean")
        for axes, image, title in zip(row, (noisy, result, clean), titles, strict=True):
            axes.imshow(shown(image[square]), cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize="small", parse_math=False)
            axes.set_axis_off()
    save_figure(figure, path)


def shown(image):
    """(1, C, h, w) in [0, 255] as matplotlib takes it: (h, w, 3) in [0, 1], or (h, w) in grey; CMYK as its colours."""
    image = (image[0] / 255).clamp(0, 1).permute(1, 2, 0)
    if image.shape[2] == 4:
        image = (1 - image[..., :3]) * (1 - image[..., 3:])
    return (image if image.shape[2] == 3 else image.mean(2)).tolist()


# ---------------------------------------------------------------------------------------------- the command


def run(options):
    for option, path in (("--plot", options.plot), ("--sheet", options.sheet)):
        if path is not None:
            check_figure(option, path, options.force)
    inputs = [path for path in (options.first, options.second) if path is not None]
    check_outputs([("the plot", options.plot), ("the sheet", options.sheet)], inputs)
    if options.weights in ("name", "noisy", *CLASSICS):
        raise ValueError(f"{options.weights!r} means something else in the results; give ./{options.weights}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit takes at least 1; got {options.limit}")
    model = load_model(options.weights, options.device)
    scale = Scale(options.range, model.value_ranges)
    pairs = open_pairs(options.first, options.second, options.max_megapixels, scale, clean=True)
    count = min(len(pairs), options.limit or len(pairs))
    errors, similarities = {}, {}
    with progress_bar(count, options.quiet) as bar:
        for number in range(count):
            noisy, clean = pairs.pair(number)
            facts = {"name": pairs.name(number)}
            for name, image in versions(model, options.weights, noisy, clean, options):
                mse, similarity = mean_squared_error(image, clean), ssim(image, clean)
                errors.setdefault(name, []).append((mse, image.numel()))
                similarities.setdefault(name, []).append(similarity)
                facts[name] = {"psnr": finite(psnr_of_mse(mse)), "ssim": similarity and round(similarity, 4)}
            if options.json:
                bar.write(json.dumps(facts))
            elif not options.quiet:
                bar.write(f"{facts['name']}: " + ", ".join(in_words(n, f) for n, f in facts.items() if n != "name"))
            bar.next()
    decibels = {name: [psnr_of_mse(mse) for mse, _ in found] for name, found in errors.items()}
    summary = {name: means(errors[name], similarities[name]) for name in errors}
    print(json.dumps({"images": count, "mean": summary}) if options.json else table(summary, count))
    if options.plot:
        plot(options.plot, decibels["noisy"], decibels[options.weights], options.weights)
    if options.sheet:
        sheet(options.sheet, pairs, model, decibels[options.weights], options)
    return 0


def means(errors, similarities):
    pooled = math.fsum(mse * size for mse, size in errors) / sum(size for _, size in errors)
    known = [value for value in similarities if value is not None]
    decibels = [psnr_of_mse(mse) for mse, _ in errors if mse != 0]  # equal ones would make the mean infinite
    return {
        "psnr": round(sum(decibels) / len(decibels), 3) if decibels else None,
        "equal": len(errors) - len(decibels),
        "psnr_of_pooled_error": finite(psnr_of_mse(pooled)),
        "ssim": round(sum(known) / len(known), 4) if known else None,
    }


def finite(decibels):
    return round(decibels, 3) if math.isfinite(decibels) else None


def in_words(name, facts):
    decibels = "equal" if facts["psnr"] is None else f"{facts['psnr']:.2f} dB"
    return f"{name} {decibels}" + ("" if facts["ssim"] is None else f" (SSIM {facts['ssim']:.4f})")


def table(summary, count):
    lines = [f"{f'mean of {count}':24} {'PSNR':>9} {'pooled':>9} {'SSIM':>7}"]
    for name, facts in summary.items():
        cells = [
            f"{facts[key]:9.2f}" if facts[key] is not None else f"{'equal':>9}"
            for key in ("psnr", "psnr_of_pooled_error")
        ]
        note = f"  (PSNR without {facts['equal']} equal to the clean)" if 0 < facts["equal"] < count else ""
        lines.append(f"{name:24.24} {' '.join(cells)} {'-' if facts['ssim'] is None else facts['ssim']:>7}{note}")
    return "\n".join(lines)
