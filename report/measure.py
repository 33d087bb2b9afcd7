"""Measures and records what the reports state besides trainings.

    python -m report.measure DATA                       # all; DATA holds val_data.pkl; minutes
    python -m report.measure DATA --only noise scores   # some of it

Every measurement is one line of `results/measured.jsonl`: its settings, seed and results, and where, when and with what
it was made. A new measurement replaces the line of the old one. Times are only compared within one process.

Sources: BayesShrink, S. G. Chang et al., IEEE TIP 2000; non-local means, A. Buades et al., CVPR 2005; total variation,
A. Chambolle, JMIV 2004; all three from scikit-image, with PyWavelets; median and Gaussian filters from SciPy.
BM3D, K. Dabov et al., IEEE TIP 2007, by the package bm3d; bilateral filter, C. Tomasi, R. Manduchi, ICCV 1998, written
here.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from Miniproject_1.model import LOW_NOISE, lagged_products, ratio_with_error
from Miniproject_1.model import Model as Model1
from Miniproject_1.model import Recipe as Recipe1
from Miniproject_1.others import experiments, score_photo
from Miniproject_1.others.command_line import some_path
from Miniproject_1.others.data import (
    add_noise,
    cell_means,
    centre_crop,
    noisy_and_clean,
    point_sample,
    render_scene,
)
from Miniproject_1.others.metrics import psnr, psnr_of_each
from Miniproject_1.others.results import now_and_where, processor
from Miniproject_2 import model as framework
from Miniproject_2.model import Model as Model2
from Miniproject_2.others import benchmark, rounding
from Miniproject_2.others.configurations import random_configurations
from Miniproject_2.others.experiments import multiply_adds
from report.records import RESULTS, read_lines

ROOT = Path(__file__).resolve().parents[1]
SCENES = 40  # procedural scenes that pictures are chosen from
PHOTO_CELLS = 75  # cells a side of the photograph
LEVELS = (1.5, 3, 8, 15, 25)  # of Gaussian noise, of 255
CLASSIC_IMAGES = 100  # validation images that the classics are run on


def rounded(value, digits=4):
    """Tensors and floats as plain numbers with so many significant digits."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


# ---------------------------------------------------------------------------------------------- records


def commits_of(folders):
    """The last commits that changed the code and weights measured, one a folder."""
    found = []
    for folder in folders:
        paths = [f"{folder}/{name}" for name in ("model.py", "bestmodel.pth", "photomodel.pth")]
        command = ["git", "-C", str(ROOT), "log", "-1", "--no-merges", "--format=%h", "--", *paths]
        found.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    return " ".join(found)


def surroundings(folders):
    """Where, when and with what a record was made; `load` is the number of processes that wanted a core."""
    return now_and_where() | {
        "commit": commits_of(folders),
        "machine": processor(torch.device("cpu")),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def write_lines(path, rows):
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, path)


def record(name, row):
    """Puts a measurement in place of the line of the same name."""
    path = RESULTS / "measured.jsonl"
    kept = [line for line in read_lines(path) if line["measurement"] != name]
    write_lines(path, sorted([*kept, row], key=lambda line: line["measurement"]))


# ---------------------------------------------------------------------------------------------- data's noise


def correlation(noise, down, right):
    """Correlation of the noise of pixels so far apart: the mean over images and its standard error."""
    return ratio_with_error(lagged_products(noise, down, right), noise.square().mean((1, 2, 3)))


def measure_noise(data):
    """Evidence of point sampling from noisy and clean images."""
    noisy, clean = data
    noise = (noisy.float() - clean.float()) / 255
    power = noise.square().mean((2, 3))  # (N, 3)
    channels = {}
    for name, a, b in (("red, green", 0, 1), ("green, blue", 1, 2), ("red, blue", 0, 2)):
        channels[name] = ratio_with_error((noise[:, a] * noise[:, b]).mean((1, 2)), (power[:, a] * power[:, b]).sqrt())
    means = noise.mean((1, 2, 3)) * 255
    worse = psnr_of_each(noisy, clean)
    offsets = {"right": (0, 1), "down": (1, 0), "diagonal": (1, 1), "other diagonal": (1, -1), "two right": (0, 2)}
    return {
        "images": len(noisy),
        "neighbours": {name: correlation(noise, *offset) for name, offset in offsets.items()},
        "channels": channels,
        "mean_grey": [means.mean().item(), (means.std() / math.sqrt(len(means))).item()],
        "variance": noise.square().mean().item(),
        "psnr": worse.mean().item(),
        "psnr_deviation": worse.std().item(),
        "psnr_pooled": -10 * math.log10(noise.square().mean().item()),
        "by_local_variance": noise_by(local_variance(clean), noise),
        "by_brightness": noise_by(clean.float().mean(1) / 255, noise),
        "clipped_percent": 100 * ((noisy == 0) | (noisy == 255)).float().mean().item(),
    }


def local_variance(clean):
    """Variance of the clean image over 3 x 3 pixels, (N, H, W): what can be seen of the detail inside of a cell."""
    grey = clean.float().mean(1, keepdim=True) / 255
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    mean, square = F.avg_pool2d(padded, 3, 1), F.avg_pool2d(padded.square(), 3, 1)
    return (square - mean.square()).clamp(min=0)[:, 0]


def noise_by(quantity, noise, bins=10):
    """Ten bins of equally many pixels: [mean quantity, noise variance]."""
    order = quantity.flatten().argsort()
    power = noise.square().mean(1).flatten()
    return [[quantity.flatten()[part].mean().item(), power[part].mean().item()] for part in order.tensor_split(bins)]


def measure_sampling(data):
    """The same for our own scenes, whose cells are known: noise variance against that of the cell."""
    generator = torch.Generator().manual_seed(0)
    cell, noise = [], []
    for seed in range(8):
        scene = render_scene(9_000_000 + seed)
        crop = centre_crop(*scene.shape[1:])
        clean = cell_means(scene, crop).float()
        draws = torch.stack([point_sample(scene, crop, generator) for _ in range(16)]).float()
        noise.append((draws - clean).square().mean(0)[0] / 255**2)
        pixels = scene.float().unfold(1, 12, 12).unfold(2, 12, 12)  # (3, 32, 32, 12, 12)
        cell.append(pixels.var(dim=(3, 4), correction=0) / 255**2)
    cell, noise = torch.stack(cell).flatten(), torch.stack(noise).flatten()
    slope = (cell * noise).sum() / cell.square().sum()
    return {
        "scenes": 8,
        "draws": 16,
        "slope": slope.item(),
        "correlation": torch.corrcoef(torch.stack([cell, noise]))[0, 1].item(),
    }


# ---------------------------------------------------------------------------------------------- networks and scores


def shipped(model):
    model.load_pretrained_model()
    return model


def size_1(model):
    return {
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "multiply_adds": experiments.multiply_adds(model.network),
        "sizes": model.sizes,
        "pairs_seen": model.pairs_seen,
    }


def size_2(model):
    return {
        "parameters": sum(p.numel() for p, _ in model.network.param()),
        "multiply_adds": multiply_adds(model.network),
        "architecture": asdict(model.network.architecture),
        "pairs_seen": model.pairs_seen,
    }


def measure_networks(data):
    """Parameters and multiply-adds of one pass over a 32 x 32 image."""
    return {
        "unet": size_1(Model1("unet", device="cpu")),
        "noise2noise": size_1(Model1("noise2noise", device="cpu")),
        "ours": size_1(Model1(device="cpu")),
        "ours_2": size_2(Model2(device="cpu")),
        "shipped_1": size_1(shipped(Model1(device="cpu"))),
        "shipped_2": size_2(shipped(Model2(device="cpu"))),
    }


def measure_scores(data):
    """The shipped weights: single pass of each image, self-ensemble, and up to five passes in a row."""
    noisy, clean = data
    result = {"images": len(noisy), "input_of_each": psnr_of_each(noisy, clean)}
    for name, model in (("1", shipped(Model1(device="cpu"))), ("2", shipped(Model2(device="cpu")))):
        passes, images = [], noisy
        for _ in range(5):
            images = model.predict(images, ensemble=False)
            passes.append(psnr_of_each(images, clean))
        ensemble = psnr_of_each(model.predict(noisy, ensemble=True), clean)
        result |= {
            f"of_each_{name}": passes[0],
            f"passes_{name}": [values.mean().item() for values in passes],
            f"ensemble_{name}": ensemble.mean().item(),
            f"made_worse_{name}": (passes[0] < result["input_of_each"]).sum().item(),
        }
    return result


def measure_little_noise(data, seeds=3, pairs=2_000, judged=300):
    """What fresh weights gain on Gaussian noise of our scenes, with the last layer's rate in full and as decided."""
    parts = [noisy_and_clean(render_scene(8_100_000 + n, 384), 50, n)[1] for n in range((pairs + judged) // 50)]
    learnt, clean = torch.cat(parts).split([pairs, judged])
    result = {"pairs": pairs, "seeds": seeds, "quiet": 255 * LOW_NOISE, "gains": {}}
    for level in LEVELS:

        def versions(images, *numbers, level=level):
            return [add_noise(images, "gaussian", level, torch.Generator().manual_seed(n)) for n in numbers]

        (noisy,), gains = versions(clean, 0), {"full": [], "decided": []}
        for seed, (name, share) in itertools.product(range(seeds), (("full", 1.0), ("decided", None))):
            model = Model1(seed=seed, recipe=Recipe1(last_lr_scale=share), device="cpu")
            model.train(*versions(learnt, 2 * seed + 1, 2 * seed + 2))
            gains[name].append(psnr(model.predict(noisy, ensemble=False), clean) - psnr(noisy, clean))
        result["gains"][f"{level:g}"] = gains
    return result


def measure_pictures(data):
    """Best, median and worst of our procedural scenes: dB, and images in `results/pictures`."""
    noisy, clean = scenes(SCENES, 384)
    models = {"project_1": shipped(Model1(device="cpu")), "project_2": shipped(Model2(device="cpu"))}
    images = {"noisy": noisy, "clean": clean}
    images |= {name: model.predict(noisy, ensemble=True) for name, model in models.items()}
    order = psnr_of_each(images["project_1"], clean).argsort(descending=True).tolist()
    chosen = {"best": order[0], "median": order[SCENES // 2], "worst": order[-1]}
    result = {"scenes": SCENES, "psnr": {}}
    for place, number in chosen.items():
        for name, batch in images.items():
            save_picture(f"{place}_{name}", batch[number])
        result["psnr"][place] = {
            name: psnr_of_each(batch, clean)[number].item() for name, batch in images.items() if name != "clean"
        }
    return result


def measure_photo(data):
    """Chelsea the cat, a photograph without copyright (CC0, S. van der Walt) that comes with scikit-image."""
    from skimage import data as photographs

    picture = torch.from_numpy(photographs.chelsea()).permute(2, 0, 1).contiguous()
    side = PHOTO_CELLS * (picture.shape[1] // PHOTO_CELLS)
    crop = torch.tensor([[0, 75, side]])  # around the face
    noisy = point_sample(picture, crop, torch.Generator().manual_seed(0), PHOTO_CELLS)
    clean = cell_means(picture, crop, PHOTO_CELLS)
    images = {"noisy": noisy, "clean": clean}
    for name, model in (("project_1", Model1(device="cpu")), ("project_2", Model2(device="cpu"))):
        images[name] = shipped(model).predict(noisy, ensemble=True)
    for name, batch in images.items():
        save_picture(f"photo_{name}", batch[0])
    scores = {name: psnr_of_each(batch, clean).item() for name, batch in images.items() if name != "clean"}
    return {"cells": PHOTO_CELLS, "pixels_of_a_cell": side // PHOTO_CELLS, "psnr": scores}


def scenes(count, side):
    """A noisy and the clean image of each of our procedural scenes: uint8 (count, 3, CELLS, CELLS) twice."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for seed in range(count):
        scene = render_scene(8_000_000 + seed, side)
        crop = centre_crop(*scene.shape[1:])
        pairs.append((point_sample(scene, crop, generator), cell_means(scene, crop)))
    return tuple(torch.cat(images) for images in zip(*pairs, strict=True))


def save_picture(name, image):
    """(3, H, W) in [0, 255] as a PNG."""
    from PIL import Image

    folder = RESULTS / "pictures"
    folder.mkdir(exist_ok=True)
    pixels = image.round().to(torch.uint8).permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")


# ---------------------------------------------------------------------------------------------- classics


def classics():
    """{name: (function of an image (H, W, 3) in [0, 1] and a parameter, parameters to choose from)}."""
    import bm3d
    import numpy as np
    from scipy import ndimage
    from skimage import restoration

    def median(image, size):
        return ndimage.median_filter(image, size=(size, size, 1), mode="mirror")

    def gaussian(image, sigma):
        return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="mirror")

    def bilateral(image, pair, reach=3):
        """By hand: scikit-image's does not become a Gaussian filter as its colour sigma grows."""
        height, width, _ = image.shape
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
        total, weights = np.zeros_like(image), np.zeros((height, width, 1), image.dtype)
        for y, x in itertools.product(range(-reach, reach + 1), repeat=2):
            other = padded[reach + y : reach + y + height, reach + x : reach + x + width]
            distance = np.square(other - image).sum(-1, keepdims=True) / pair[0] ** 2 + (y * y + x * x) / pair[1] ** 2
            weight = np.exp(-distance / 2)
            total, weights = total + weight * other, weights + weight
        return total / weights

    def non_local(image, pair):
        return restoration.denoise_nl_means(
            image, patch_size=pair[0], patch_distance=7, h=pair[1], fast_mode=True, channel_axis=-1
        )

    def wavelet(image, sigma):
        return restoration.denoise_wavelet(
            image.astype(np.float64), sigma=sigma, method="BayesShrink", convert2ycbcr=False, channel_axis=-1
        )

    def block_matching(image, sigma):
        """BM3D; its colour transform divides by the range of the colours, which grey images do not have."""
        if (image == image[..., :1]).all():
            return np.repeat(bm3d.bm3d(image[..., 0], sigma)[..., None], 3, 2)
        return bm3d.bm3d_rgb(image, sigma)

    def variation(image, weight):
        return restoration.denoise_tv_chambolle(image, weight=weight, channel_axis=-1)

    return {
        "median filter": (median, [2, 3, 4, 5]),
        "Gaussian filter": (gaussian, [0.4, 0.5, 0.6, 0.7, 0.8, 1.0]),
        "bilateral filter": (bilateral, [[c, s] for c in (0.4, 0.8, 1.6, 3.2, 6.4) for s in (0.5, 0.6, 0.7, 0.8, 1.0)]),
        "non-local means": (non_local, [[p, h] for p in (3, 5, 7) for h in (0.08, 0.1, 0.13)]),
        "wavelet shrinkage": (wavelet, [0.05, 0.07, 0.1, 0.13]),
        "BM3D": (block_matching, [0.13, 0.17, 0.2]),
        "total variation": (variation, [0.05, 0.08, 0.1, 0.13, 0.16, 0.2]),
    }


def measure_classics(data):
    """Each classic with the parameter that is best on these very images, which favours it."""
    import numpy as np

    noisy, clean = (images[:CLASSIC_IMAGES] for images in data)
    arrays = noisy.permute(0, 2, 3, 1).numpy().astype(np.float32) / 255
    result = {"images": len(noisy), "input": psnr_of_each(noisy, clean).mean().item()}
    for name, (function, parameters) in classics().items():
        scores = []
        for parameter in parameters:
            output = np.stack([function(image, parameter) for image in arrays]).clip(0, 1) * 255
            images = torch.from_numpy(output.astype(np.float32)).permute(0, 3, 1, 2)
            scores.append(psnr_of_each(images, clean).mean().item())
        best = max(range(len(scores)), key=scores.__getitem__)
        result[name] = {
            "psnr": scores[best],
            "best": parameters[best],
            "tried": len(parameters),
            "edge": at_edge(parameters[best], parameters),
        }
    for name, model in (("project 1", shipped(Model1(device="cpu"))), ("project 2", shipped(Model2(device="cpu")))):
        result[name] = {"psnr": psnr_of_each(model.predict(noisy, ensemble=False), clean).mean().item()}
    return result


def at_edge(best, tried):
    """Whether a parameter, or one of several, is the smallest or the largest of those tried."""
    if not isinstance(best, list):
        return best in (min(tried), max(tried))
    return any(at_edge(*column) for column in zip(best, map(list, zip(*tried, strict=True)), strict=True))


# ---------------------------------------------------------------------------------------------- framework


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def finite_difference_error(block, x, step=1e-6, entries=6):
    """Largest relative error of `backward` against central differences of <gradient, block(x)>, in float64."""
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(block.forward(x).shape, generator=generator, dtype=x.dtype)
    block.forward(x)
    checks = [(x, block.backward(gradient).clone())]
    checks += [(parameter, accumulated.clone()) for parameter, accumulated in block.param()]
    worst, count = 0.0, 0
    for tensor, derivative in checks:
        flat = tensor.detach().view(-1)
        for index in torch.randperm(flat.numel(), generator=generator)[:entries].tolist():
            kept, values = flat[index].item(), []
            for shift in (step, -step):
                flat[index] = kept + shift
                values.append((gradient * block.forward(x)).sum().item())
            flat[index] = kept
            difference = (values[0] - values[1]) / (2 * step)
            worst = max(worst, abs(difference - derivative.reshape(-1)[index].item()) / (1 + abs(difference)))
            count += 1
    return worst, count


def measure_oracle(data, wanted=400):
    """Both convolutions on random configurations against torch and its autograd in float64, forward and backward."""
    torch.manual_seed(0)
    ours = {nn.Conv2d: framework.Conv2d, nn.ConvTranspose2d: framework.TransposeConv2d}
    worst = {"forward": 0.0, "backward": 0.0, "parameters": 0.0}
    for kind, options, (n, height, width) in random_configurations(wanted, seed=0):
        layer, block = kind(**options).double(), ours[kind](**options)
        block.weight, block.bias = layer.weight, layer.bias
        x = torch.randn(n, options["in_channels"], height, width, dtype=torch.float64, requires_grad=True)
        expected = layer(x)
        gradient = torch.randn_like(expected)
        expected.backward(gradient)
        worst["forward"] = max(worst["forward"], relative_error(block.forward(x.detach()), expected.detach()))
        worst["backward"] = max(worst["backward"], relative_error(block.backward(gradient), x.grad))
        for (_, mine), parameter in zip(block.param(), layer.parameters(), strict=True):
            worst["parameters"] = max(worst["parameters"], relative_error(mine, parameter.grad))
    return {"configurations": wanted, "largest_relative_error": worst}


def measure_differences(data):
    """Every block's `backward` against central differences."""
    torch.manual_seed(0)
    layers = {
        "Conv2d": (framework.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, 2, 1).double()),
        "TransposeConv2d": (framework.TransposeConv2d(4, 3, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1).double()),
    }
    for block, layer in layers.values():
        block.weight, block.bias = layer.weight, layer.bias
    cases = {name: (block, (2, layer.in_channels, 7, 6)) for name, (block, layer) in layers.items()}
    cases |= {
        "NearestUpsampling": (framework.NearestUpsampling(2), (2, 3, 5, 4)),
        "ReLU": (framework.ReLU(), (2, 3, 5, 4)),
        "Sigmoid": (framework.Sigmoid(), (2, 3, 5, 4)),
    }
    result = {}
    for name, (block, shape) in cases.items():
        error, count = finite_difference_error(block, torch.randn(shape, dtype=torch.float64))
        result[name] = {"error": error, "derivatives": count}
    result["MSE"] = mse_difference()
    return {"blocks": result, "derivatives": sum(entry["derivatives"] for entry in result.values())}


def mse_difference(step=1e-6):
    """The loss has two inputs and gives one number."""
    x, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    loss = framework.MSE()
    loss.forward(x, target)
    derivative, worst = loss.backward().clone(), 0.0
    for index in range(6):
        shift = torch.zeros_like(x)
        shift.view(-1)[index] = step
        difference = (float(loss.forward(x + shift, target)) - float(loss.forward(x - shift, target))) / (2 * step)
        worst = max(worst, abs(difference - derivative.view(-1)[index].item()))
    return {"error": worst, "derivatives": 6}


def measure_rounding(data, seeds=300):
    """How often plain allclose passes: the course's Conv2d(3, 3, 3), summed in three ways and by ours; then others."""
    passed = {"bias first": 0, "bias last": 0, "in float64": 0, "ours": 0}
    for seed in range(seeds):
        torch.manual_seed(seed)
        layer, x = nn.Conv2d(3, 3, 3), torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            expected = layer(x)
            columns, matrix = F.unfold(x, 3), layer.weight.flatten(1)
            bias = layer.bias[:, None]
            block = framework.Conv2d(3, 3, 3)
            block.weight, block.bias = layer.weight, layer.bias
            ways = {
                "bias first": torch.baddbmm(bias.expand(1, 3, columns.shape[2]), matrix[None], columns),
                "bias last": matrix @ columns + bias,
                "in float64": (matrix.double() @ columns.double() + bias.double()).float(),
                "ours": block.forward(x),
            }
        for name, result in ways.items():
            passed[name] += torch.allclose(result.view(expected.shape), expected)
    groups = {}
    for group, arguments, settings in rounding.configurations():
        for name, twin in rounding.TWINS.items():
            layer = twin(*arguments, **settings)
            results = rounding.passes(getattr(framework, name)(*arguments, **settings), layer, 1, 32)
            entry = groups.setdefault(f"{name}, {group.split(',')[0]}", [0] * 5)
            for index, good in enumerate([True, *results]):
                entry[index] += good
    return {"seeds": seeds, "passed": passed, "parts": ["all", *rounding.PARTS], "groups": groups}


def processor_time(contenders, shape, repeats):
    """`benchmark.measure` in CPU time of all threads: waiting for a core does not count."""
    return benchmark.measure(contenders, shape, repeats, clock=time.process_time)


def measure_benchmark(data, repeats=31):
    """Time of ours over that of torch.nn's faster format, in one process, the two taking turns."""
    w, d = 96, 192
    blocks = [
        ("Conv2d 3 to 96", "Conv2d", "Conv2d", (3, w, 4, 2, 1), 32),
        ("Conv2d 96 to 192", "Conv2d", "Conv2d", (w, d, 4, 2, 1), 16),
        ("TransposeConv2d 192 to 96", "TransposeConv2d", "ConvTranspose2d", (d, w, 4, 2, 1), 8),
        ("TransposeConv2d 96 to 3", "TransposeConv2d", "ConvTranspose2d", (w, 3, 4, 2, 1), 16),
    ]

    def ratio(block, layer, arguments, side, batch=32):
        both = benchmark.contenders(
            lambda: getattr(framework, block)(*arguments), lambda: getattr(nn, layer)(*arguments)
        )
        return ratios(processor_time(both, (batch, arguments[0], side, side), repeats))

    result = {"repeats": repeats, "batch": 32}
    result["blocks"] = {title: ratio(*rest) for title, *rest in blocks}
    architecture = framework.Architecture()

    def momentum(params):
        return framework.SGD(params, benchmark.LR, 0.9)

    def muon(params):
        return framework.Muon(params, benchmark.LR)

    for name, optimiser, dtype in (
        ("SGD with momentum", momentum, torch.float32),
        ("Muon", muon, torch.float32),
        ("Muon, bfloat16", muon, torch.bfloat16),
    ):
        both = benchmark.networks(architecture, optimiser, dtype)
        result["blocks"][f"network, {name}"] = ratios(processor_time(both, (32, 3, 32, 32), repeats))
    ours = {dtype: benchmark.networks(architecture, muon, dtype)["ours"] for dtype in (torch.float32, torch.bfloat16)}
    full, half = (sum(phases.values()) for phases in processor_time(ours, (32, 3, 32, 32), repeats).values())
    result["bfloat16_of_float32"] = half / full
    conv = ("Conv2d", "Conv2d")
    result["batch_growth"] = [[n, ratio(*conv, (48, 48, 4, 2, 1), 16, n)["together"]] for n in (1, 4, 16, 64)]
    result["channel_growth"] = [[c, ratio(*conv, (c, c, 4, 2, 1), 16, 16)["together"]] for c in (4, 16, 64, 128)]
    result["side_growth"] = [[s, ratio(*conv, (16, 16, 4, 2, 1), s, 4)["together"]] for s in (8, 32, 128)]
    return result


def ratios(results):
    mine, theirs = results["ours"], benchmark.faster_torch(results)
    return {
        "forward": mine["forward"] / theirs["forward"],
        "backward": mine["backward"] / theirs["backward"],
        "together": sum(mine.values()) / sum(theirs.values()),
    }


def measure_speed(data):
    """Seconds a megapixel and memory of project 1's weights."""
    return score_photo.time_all()


def measure_precision(data):
    """What bfloat16 costs and gains the shipped weights of both projects on the validation images."""
    projects = {"Miniproject_1": Model1, "Miniproject_2": Model2}
    return {"images": len(data[0])} | {name: compare_precisions(model, *data) for name, model in projects.items()}


def compare_precisions(model_class, noisy, clean):
    """PSNR and the least seconds of each precision, which take turns, and how far the images differ in grey values."""
    models = {precision: model_class(device="cpu", precision=precision) for precision in ("float32", "bfloat16")}
    seconds, images = {precision: [] for precision in models}, {}
    for model in models.values():
        model.load_pretrained_model()
    for _, (precision, model) in itertools.product(range(3), models.items()):
        began = time.perf_counter()
        images[precision] = model.predict(noisy, ensemble=False)
        seconds[precision].append(time.perf_counter() - began)
    difference = images["bfloat16"] - images["float32"]
    scores = {
        precision: {
            "single": psnr_of_each(images[precision], clean).mean().item(),
            "ensemble": psnr_of_each(model.predict(noisy, ensemble=True), clean).mean().item(),
            "seconds": min(seconds[precision]),
        }
        for precision, model in models.items()
    }
    largest, mean = difference.abs().max().item(), difference.square().mean().sqrt().item()
    return {**scores, "difference": {"root_mean_square": mean, "largest": largest}}


# ---------------------------------------------------------------------------------------------- command line

MEASUREMENTS = {  # name: (function of val_data.pkl, which not all need; folders whose last commits are recorded)
    "noise": (measure_noise, ["Miniproject_1"]),
    "sampling": (measure_sampling, ["Miniproject_1"]),
    "networks": (measure_networks, ["Miniproject_1", "Miniproject_2"]),
    "scores": (measure_scores, ["Miniproject_1", "Miniproject_2"]),
    "little noise": (measure_little_noise, ["Miniproject_1"]),
    "pictures": (measure_pictures, ["Miniproject_1", "Miniproject_2"]),
    "photo": (measure_photo, ["Miniproject_1", "Miniproject_2"]),
    "speed": (measure_speed, ["Miniproject_1"]),
    "precision": (measure_precision, ["Miniproject_1", "Miniproject_2"]),
    "classics": (measure_classics, ["Miniproject_1", "Miniproject_2"]),
    "oracle": (measure_oracle, ["Miniproject_2"]),
    "differences": (measure_differences, ["Miniproject_2"]),
    "rounding": (measure_rounding, ["Miniproject_2"]),
    "benchmark": (measure_benchmark, ["Miniproject_2"]),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Measures what the reports state besides trainings.")
    parser.add_argument("data", type=some_path, help="folder with a val_data.pkl")
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", default=list(MEASUREMENTS), help="default: all"
    )
    options = parser.parse_args(arguments)
    data = torch.load(options.data / "val_data.pkl", weights_only=True)
    for name in options.only:
        function, folders = MEASUREMENTS[name]
        began = time.monotonic()
        row = {"measurement": name, "seed": 0, **rounded(function(data))}
        row |= {"seconds": round(time.monotonic() - began, 1), **surroundings(folders)}
        record(name, row)
        print(f"{name}: {row['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
