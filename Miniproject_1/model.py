"""Noise2Noise: a denoiser learnt from pairs of noisy images, without any clean one.

    model = Model()
    model.load_pretrained_model()              # or: model.train(noisy_a, noisy_b, epochs=1)
    clean = model.predict(noisy)               # (N, 3, H, W) in [0, 255], any H x W

Measured on 1,000 validation images in the grader's PSNR (mean over images; the noisy ones have 20.88 dB), on two cores
of an AMD EPYC (AVX-512 with bfloat16) with torch 2.13.0: bestmodel.pth 26.34 dB in a single pass, 26.39 dB with
self-ensemble; a fresh `Model` after one epoch of 50,000 pairs 26.02 and 26.09 dB, in 153 s.

Why it works: the expected squared error against a second, independent noisy image differs from the one against the
clean image by the variance of that noise alone, which no weight can change (J. Lehtinen et al., "Noise2Noise:
Learning Image Restoration without Clean Data", ICML 2018, section 2).

Why so well: noise and photographs look alike turned and mirrored, so our network is made equivariant to the eight
symmetries of the square, which leaves an eighth of the free weights to learn (T. Cohen, M. Welling, ICML 2016).

Shapes: N images, C channels, H W image, B images of a batch, O I output and input features, K kernel.
Inside, images are float32 in [0, 1]; outside, [0, 255].

Further sources: He initialisation, K. He et al., "Delving Deep into Rectifiers", ICCV 2015. U-Net, O. Ronneberger
et al., MICCAI 2015. Muon, K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the
size of its step, J. Liu et al., "Muon is Scalable for LLM Training", 2025, section 2.2. Self-ensemble, R. Timofte et
al., "Seven ways to improve example-based single image super resolution", CVPR 2016, section 3.
"""

import functools
import inspect
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

FORMAT = "noise2noise weights 1"  # first entry of a weights file
PRETRAINED = Path(__file__).resolve().parent / "bestmodel.pth"


@dataclass(frozen=True)
class Recipe:
    """How `Model.train` learns. A rate of 0 leaves the parameters in question to Adam alone."""

    batch: int = 16  # pairs of 32 x 32 a step; larger images: as many as have the same number of pixels
    muon_rate: float = 4e-3  # peak, hidden convolution weights
    adam_rate: float = 5e-3  # peak, all other parameters
    scheduled: bool = True  # rise over the first 5 % of the steps, then fall linearly to 0; False: constant
    averaging: float = 0.995  # decay of the moving average of the weights that predicts; 0: the last weights
    least_steps: int = 200  # fewer pairs than fill these make the batch smaller instead
    transposed: bool = True  # also transpose at random, beside the flips: all eight symmetries
    exchange: bool = True  # swap the two noisy values of half the pixels
    negatives: bool = True  # make half of the pairs negatives, which self-ensembles average over
    easy_first: float = 0.002  # weight an image by 1 / (its noise variance + this); 0: all images alike

    def __post_init__(self):
        if self.batch < 1 or not 0 <= self.averaging < 1:
            raise ValueError(f"Recipe needs a batch of at least 1 and an averaging in [0, 1); got {self}")
        if min(self.muon_rate, self.adam_rate, self.easy_first) < 0:
            raise ValueError(f"Recipe needs rates and an easy_first that are not negative; got {self}")


REPORT_RECIPE = Recipe(  # what the report that started this project trained its two networks with
    batch=8,
    muon_rate=0,
    adam_rate=3e-4,
    scheduled=False,
    averaging=0,
    least_steps=0,
    transposed=False,
    exchange=False,
    negatives=False,
    easy_first=0,
)

CELL = 32  # pixels a side: our network's gates depend on means over about so much, the whole of a course image
PATCH = 64  # pixels a side: larger training pairs are learnt from in random patches of this size
SETTLED_PAIRS = 50_000  # a further call starts at the peak rate / sqrt(1 + pairs seen before / this)
CHUNK = 2**15  # pixels predicted at once: their features stay in a processor's cache (2**18: 1.7 times as long)
TILE, OVERLAP = 768, 128  # pixels a side, in whole cells: larger images are predicted in tiles, blended in the overlap
MARGIN = 48  # pixels at a tile's edge that do not count: a cell and a half; bestmodel.pth's convolutions see 27 far
ENSEMBLE_SIDE = 64  # `predict(ensemble=None)` averages several passes up to this height and width


# ---------------------------------------------------------------------------------------------- symmetries


SYMMETRIES = [(transpose, axes) for transpose in (False, True) for axes in ((), (2,), (3,), (2, 3))]
ENSEMBLES = {  # the views to average, by whether the network is equivariant: transpose, flipped axes, negative
    False: [(*symmetry, False) for symmetry in SYMMETRIES],
    True: [(False, axes, negative) for axes in ((), (1,)) for negative in (False, True)],
}


def transformed(images, transpose, axes):
    """One of the eight symmetries of (B, C, H, W); W x H if it transposes."""
    return (images.transpose(2, 3) if transpose else images).flip(axes)


def restored(images, transpose, axes):
    """The inverse of `transformed`."""
    images = images.flip(axes)
    return images.transpose(2, 3) if transpose else images


def orbits(shape, outputs, inputs):
    """Which entries of a convolution weight the eight symmetries turn into each other: int64 (8, entries / 8).

    Of features that come in eights, the symmetry h takes number g of each eight to number h g. A weight (O, I, K, K)
    then belongs to a network that turns its output with its input if it stays the same when h turns its kernels and
    takes its outputs and inputs along (T. Cohen, M. Welling, "Group Equivariant Convolutional Networks", ICML 2016,
    section 6).

    Args:
        outputs, inputs: 8 for features that come in eights, 1 for the channels of images, which stay where they are.
    """
    numbers = torch.arange(math.prod(shape)).view(shape)
    moved = torch.stack(
        [
            transformed(permuted(permuted(numbers, 0, outputs, order), 1, inputs, order), *symmetry).flatten()
            for order, symmetry in zip(symmetry_orders(), SYMMETRIES, strict=True)
        ]
    )
    return moved[:, moved.amin(0) == numbers.flatten()]


def permuted(weight, axis, group, order):
    """Brings each `group` of neighbours along an axis into the given order; a group of 1 has none."""
    if group == 1:
        return weight
    return weight.unflatten(axis, (-1, group)).index_select(axis + 1, order).flatten(axis, axis + 1)


@functools.cache
def symmetry_orders():
    """For each symmetry h the numbers of h^-1 g, g = 0 .. 7: what comes to place g when h moves h^-1 g to g."""
    turned = [transformed(torch.arange(9).view(1, 1, 3, 3), *symmetry) for symmetry in SYMMETRIES]
    names = [square.flatten().tolist() for square in turned]
    products = [[names.index(transformed(square, *h).flatten().tolist()) for square in turned] for h in SYMMETRIES]
    return [torch.tensor(row).argsort() for row in products]


def symmetrised(values, orbits):
    """Replaces every entry by the mean of its orbit."""
    flat = values.flatten()
    return flat.index_put((orbits,), flat[orbits].mean(0)).view(values.shape)


def keep_equivariant(layer, outputs, inputs):
    """Makes the weight and the bias of a convolution equivariant; `symmetrise_gradients` keeps them so."""
    layer.register_buffer("weight_orbits", orbits(layer.weight.shape, outputs, inputs), persistent=False)
    layer.register_buffer("bias_orbits", torch.arange(len(layer.bias)).view(-1, outputs).T, persistent=False)
    with torch.no_grad():  # a mean of eight has an eighth of the variance
        layer.weight.copy_(symmetrised(layer.weight, layer.weight_orbits) * math.sqrt(8))


def symmetrise_gradients(network):
    """Replaces the gradients of an equivariant network by their means over the symmetries; others have no orbits."""
    for layer in network.modules():
        if hasattr(layer, "weight_orbits"):
            layer.weight.grad = symmetrised(layer.weight.grad, layer.weight_orbits)
            layer.bias.grad = symmetrised(layer.bias.grad, layer.bias_orbits)


def make_equivariant(network):
    """Makes a network equivariant whose `first` layer takes images and whose `last` gives them, all else in eights."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            keep_equivariant(layer, 1 if layer is network.last else 8, 1 if layer is network.first else 8)
    network.equivariant = True


# ---------------------------------------------------------------------------------------------- networks


def convolution(inputs, outputs, kernel=3, stride=1, slope=0.0):
    """Conv2d that keeps H x W (kernel 3) or divides it (kernel = stride), He-initialised for a LeakyReLU slope."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=0 if stride > 1 else kernel // 2)
    return he_initialised(layer, slope)


def he_initialised(layer, slope=0.0):
    nn.init.kaiming_normal_(layer.weight, slope)
    nn.init.zeros_(layer.bias)
    return layer


def zero_initialised(layer):
    nn.init.zeros_(layer.weight)
    return layer


class ResidualBlock(nn.Module):
    """x + conv(g * relu(conv(x))), each hidden feature times a gate g in (0, 2) that knows the means of all of them.

    The means tell how noisy and how textured an image is, which no 3 x 3 window sees (J. Hu et al.,
    "Squeeze-and-Excitation Networks", CVPR 2018). They are those of cells of `cell` x `cell` pixels, and the gates are
    blended in between: what an image has elsewhere does not matter, and tiles of whole cells have the same gates. A
    `cell` of None leaves the gates out: all are 1.
    """

    def __init__(self, width, cell=None):
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)
        self.gate, self.cell = zero_initialised(convolution(width, width, kernel=1)) if cell else None, cell
        with torch.no_grad():
            self.second.weight.mul_(0.5)  # so that a chain of blocks does not grow its features

    def forward(self, x):
        return x + self.second(self.gated(F.relu(self.first(x), inplace=True)))

    def gated(self, hidden):  # (B, width, H, W)
        if self.gate is None:
            return hidden
        return hidden * blended(2 * self.gate(cell_means(hidden, self.cell)).sigmoid(), hidden.shape[2:], self.cell)


def cell_means(x, cell):
    """(B, C, H, W) -> (B, C, rows, columns): means over cells; a last one of less than half joins that before it."""
    for axis in (2, 3):
        count = (x.shape[axis] + cell // 2) // cell
        parts = x.tensor_split([cell * number for number in range(1, count)], axis)
        x = torch.cat([part.mean(axis, keepdim=True) for part in parts], axis)
    return x


def blended(cells, size, cell):
    """(B, C, rows, columns) -> (B, C, *size): linear between the centres of the cells, constant outside of them."""
    for axis, pixels in zip((2, 3), size, strict=True):
        if cells.shape[axis] == 1:
            continue  # broadcast
        place = ((torch.arange(pixels, device=cells.device) + 0.5) / cell - 0.5).clamp(0, cells.shape[axis] - 1)
        before, after = place.floor().long(), place.ceil().long()
        share = (place - before).to(cells.dtype).view(-1, *[1] * (3 - axis))
        cells = torch.lerp(cells.index_select(axis, before), cells.index_select(axis, after), share)
    return cells


class Stage(nn.Module):
    """One level of a U-Net: residual blocks around the next level, at half the resolution with twice the features.

    The innermost of `levels` has `inner_blocks`, each other one `blocks` on the way down and as many on the way up.
    """

    def __init__(self, width, levels, blocks, inner_blocks, cell):
        super().__init__()
        inner_cell = cell and cell // 2
        self.encode = chain(width, blocks, cell)
        self.down = convolution(width, 2 * width, kernel=2, stride=2)
        if levels > 2:
            self.inner = Stage(2 * width, levels - 1, blocks, inner_blocks, inner_cell)
        else:
            self.inner = chain(2 * width, inner_blocks, inner_cell)
        self.up = he_initialised(nn.ConvTranspose2d(2 * width, width, 2, stride=2))
        self.decode = chain(width, blocks, cell)
        scale_down(self.down, self.up)

    def forward(self, x):  # (B, width, H, W)
        x = self.encode(x)
        inner = self.inner(F.relu(self.down(x), inplace=True))  # (B, 2 width, H / 2, W / 2)
        return self.decode(x + self.up(inner))


def chain(width, blocks, cell):
    return nn.Sequential(*(ResidualBlock(width, cell) for _ in range(blocks)))


@torch.no_grad()
def scale_down(*layers):
    """Makes He-initialised weights as small as torch's own: Muon moves small weights sooner."""
    for layer in layers:
        layer.weight.div_(math.sqrt(6))


class ResidualUNet(Stage):
    """Our network: residual blocks at full and lower resolutions; predicts the noise to subtract.

    Point-sampling noise is independent from pixel to pixel, so most of the work is done at full resolution. Features
    are as large as the image's own values times 4: weights of common size then act on inputs of common size.

    Equivariant, the network turns its output with its input, for all eight symmetries of the square: an eighth of the
    free weights learns from fewer pairs, and one pass gives what the average over the eight would. Gates (see
    `ResidualBlock`) pay in long trainings against means of noisy targets, +0.05 dB, not in one epoch of noisy ones.
    """

    def __init__(self, channels=3, width=40, blocks=1, inner_blocks=1, equivariant=True, gates=False, levels=2):
        if equivariant and width % 8:
            raise ValueError(f"width must be a multiple of 8, one feature for each symmetry; got {width}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2; got {levels}")
        first = convolution(channels, width)
        super().__init__(width, levels, blocks, inner_blocks, CELL if gates else None)
        self.first = first
        scale_down(self.first)
        self.last = zero_initialised(convolution(width, channels))  # untrained, the network returns its input
        self.multiple = 2 ** (levels - 1)  # H and W must be multiples of this
        self.equivariant = False
        if equivariant:
            make_equivariant(self)

    def forward(self, images):  # (B, C, H, W)
        x = super().forward(F.relu(self.first(4 * (images - 0.5)), inplace=True))  # (B, width, H, W)
        return images + self.last(F.relu(x, inplace=True))


class DoubleConvolution(nn.Sequential):
    """Two convolutions, each with a LeakyReLU."""

    def __init__(self, inputs, outputs, slope=0.1):
        first, second = convolution(inputs, outputs, slope=slope), convolution(outputs, outputs, slope=slope)
        super().__init__(first, nn.LeakyReLU(slope), second, nn.LeakyReLU(slope))


class UNet(nn.Module):
    """The report's U-Net: double convolutions, average pooling, transposed convolutions, concatenated skips."""

    multiple, equivariant = 4, False

    def __init__(self, channels=3, width=32):
        super().__init__()
        self.encode1 = DoubleConvolution(channels, width)
        self.encode2 = DoubleConvolution(width, 2 * width)
        self.bottom = DoubleConvolution(2 * width, 4 * width)
        self.up2 = he_initialised(nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2))
        self.decode2 = DoubleConvolution(4 * width, 2 * width)
        self.up1 = he_initialised(nn.ConvTranspose2d(2 * width, width, 2, stride=2))
        self.decode1 = DoubleConvolution(2 * width, width)
        self.last = convolution(width, channels, kernel=1)

    def forward(self, images):  # (B, C, H, W)
        full = self.encode1(images - 0.5)  # (B, width, H, W)
        half = self.encode2(F.avg_pool2d(full, 2))  # (B, 2 width, H / 2, W / 2)
        x = self.up2(self.bottom(F.avg_pool2d(half, 2)))
        x = self.up1(self.decode2(torch.cat([x, half], dim=1)))
        return self.last(self.decode1(torch.cat([x, full], dim=1))) + 0.5


class Noise2NoiseNet(nn.Module):
    """The report's second network, after figure 4 of the Noise2Noise paper's appendix: one convolution a level down
    to 1/32, nearest upsampling, concatenated skips, the last of them the noisy image itself."""

    multiple, equivariant = 32, False

    def __init__(self, channels=3, width=48, slope=0.1):
        super().__init__()
        conv = functools.partial(convolution, slope=slope)
        self.slope = slope
        self.first = conv(channels, width)
        self.encode = nn.ModuleList(conv(width, width) for _ in range(6))
        deep = [width] + 3 * [2 * width]  # features that come up to each of the four deeper levels
        self.decode = nn.ModuleList(
            nn.ModuleList([conv(below + width, 2 * width), conv(2 * width, 2 * width)]) for below in deep
        )
        self.image = nn.ModuleList([conv(2 * width + channels, 64), conv(64, 32)])
        self.last = convolution(32, channels)

    def forward(self, images):  # (B, C, H, W)
        skips = [images - 0.5]
        x = self._active(self.first, skips[0])
        for layer in self.encode[:-1]:
            x = F.max_pool2d(self._active(layer, x), 2)
            skips.append(x)  # the last one, (B, width, H / 32, W / 32), is no skip
        x = self._active(self.encode[-1], skips.pop())
        for layers in [*self.decode, self.image]:
            x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], dim=1)
            x = self._active(layers[1], self._active(layers[0], x))
        return self.last(x) + 0.5

    def _active(self, layer, x):
        return F.leaky_relu(layer(x), self.slope, inplace=True)


NETWORKS = {"residual_unet": ResidualUNet, "unet": UNet, "noise2noise": Noise2NoiseNet}


def all_sizes(network_class, sizes):
    """The given sizes of a network and the defaults of the others, by name: a weights file keeps them all."""
    parameters = inspect.signature(network_class).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "channels"} | sizes


def forward_any_size(network, images):
    """Runs a network on (B, C, H, W) of any H x W: edge pixels are repeated up to the next multiple, then cropped."""
    height, width = images.shape[2:]
    right, bottom = -width % network.multiple, -height % network.multiple
    if right or bottom:
        images = F.pad(images, (0, right, 0, bottom), mode="replicate")
    return network(images)[:, :, :height, :width]


# ---------------------------------------------------------------------------------------------- optimiser


def orthogonalised(matrices, iterations=5):
    """Moves all singular values of (M, rows, columns) near 1 by the Newton-Schulz iteration Muon uses."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest quintic at 0 that keeps [0, 1] within about [0.7, 1.2]
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrices else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for convolution weights seen as matrices (O, I * K * K).

    `torch.optim.Muon` takes matrices one by one and only as such; here those of one shape go together, which makes
    its step over five times faster on a CPU. The step's root mean square is 0.2 times the rate, whatever the shape.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                directions = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                steps = orthogonalised(directions) * (-0.2 * group["lr"] * math.sqrt(max(rows, columns)))
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.add_(step.view(parameter.shape))

    def _momentum(self, parameter, decay):
        """Nesterov's look-ahead of the averaged gradient, as a matrix."""
        average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        average.lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(average, decay).flatten(1)


def rate(step, steps):
    """Share of the peak learning rate at a step: rises over the first 5 % of the steps, then falls linearly to 0."""
    return min((step + 1) / (0.05 * steps + 1), 1 - step / steps)


# ---------------------------------------------------------------------------------------------- training


def flip_and_transpose(noisy_a, noisy_b, generator, transposed=True):
    """The same random symmetries for both images of each pair: a quarter of the batch gets each flip."""
    transpose = transposed and torch.rand((), generator=generator).item() < 0.5
    first = int(torch.randint(4, (), generator=generator))
    flips = [axes for _, axes in SYMMETRIES[:4]]
    return tuple(
        torch.cat([transformed(images[k::4], transpose, flips[(first + k) % 4]) for k in range(4)])
        for images in (noisy_a, noisy_b)
    )


def coins(shape, device, generator):
    """Fair coins, bool of the given shape: drawn on the CPU, the same ones for any device."""
    return moved(torch.rand(shape, generator=generator) < 0.5, device)


def exchange_pixels(noisy_a, noisy_b, generator):
    """Swaps a pixel (all its channels) between the two images of a pair with probability 1/2.

    Exact where the noise of different pixels is independent and the two draws are alike: each pair then stands for
    2^(H W) pairs of the same distribution.
    """
    swap = coins((len(noisy_a), 1, *noisy_a.shape[2:]), noisy_a.device, generator)
    return torch.where(swap, noisy_b, noisy_a), torch.where(swap, noisy_a, noisy_b)


def half_negative(noisy_a, noisy_b, generator):
    """Makes both images of a pair negatives with probability 1/2.

    Noise may depend on the grey value: without it, self-ensembles ask about noise that no training image had. After
    7,800 pairs of Poisson noise, they gave 23.04 dB with it and 22.91 without.
    """
    negative = coins((len(noisy_a), 1, 1, 1), noisy_a.device, generator)
    return tuple(torch.where(negative, 1 - images, images) for images in (noisy_a, noisy_b))


def noise2noise_loss(prediction, noisy_a, noisy_b, easy_first):
    """Squared error against the second noisy image, each image weighted by 1 / (its noise variance + easy_first).

    The grader's score is a mean of logarithms: an image's part in it falls with the error it has anyway, of which the
    noise, half the squared difference of the two images, tells most. An image that comes out worse than it went in
    counts by its error instead, so that it cannot outweigh all others. An `easy_first` of 0 weights all images alike.
    """
    error = (prediction - noisy_b).square().mean(dim=(1, 2, 3))  # (B,)
    if not easy_first:
        return error.mean()
    variance = (noisy_a - noisy_b).square().mean(dim=(1, 2, 3)) / 2
    return (error * easy_first / (torch.maximum(variance, error.detach() / 2) + easy_first)).mean()


class Training:
    """Optimisers, averaged weights and random draws of a network that learns: everything a resumed training needs.

    `step` learns from one batch, `finish` gives the network its averaged weights, `state_dict` and `load_state_dict`
    continue exactly where another process stopped.
    """

    def __init__(self, network, recipe, seed):
        keep_freed_memory()
        network.zero_grad()  # an interrupted step may have left some
        self.network, self.recipe, self.steps = network, recipe, 0
        self.parameters = list(network.parameters())
        hidden = [p for p in self.parameters if recipe.muon_rate and joins_features(p)]
        others = [p for p in self.parameters if all(p is not h for h in hidden)]
        adam = torch.optim.Adam(others, lr=recipe.adam_rate, betas=(0.9, 0.98))
        muon = [Muon(hidden, lr=recipe.muon_rate)] if hidden else []
        self.optimizers = [adam, *muon]
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.average = [p.detach().clone() for p in self.parameters]
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on any device
        self.autocast = torch.autocast(
            self.parameters[0].device.type,
            torch.bfloat16,
            enabled=has_native_bfloat16(self.parameters[0].device),
        )

    def step(self, noisy_a, noisy_b, factor):
        """Learns from a batch of pairs (B, C, H, W) in [0, 1] at `factor` times the peak rates.

        Returns the loss as a 0-d tensor on the device; reading it waits for the device.
        """
        noisy_a, noisy_b = flip_and_transpose(noisy_a, noisy_b, self.generator, self.recipe.transposed)
        if self.recipe.exchange:
            noisy_a, noisy_b = exchange_pixels(noisy_a, noisy_b, self.generator)
        if self.recipe.negatives:
            noisy_a, noisy_b = half_negative(noisy_a, noisy_b, self.generator)
        noisy_a = noisy_a.contiguous(memory_format=torch.channels_last)
        with self.autocast:
            prediction = forward_any_size(self.network, noisy_a)
        loss = noise2noise_loss(prediction.float(), noisy_a, noisy_b, self.recipe.easy_first)
        loss.backward()
        symmetrise_gradients(self.network)
        self._update(factor)
        return loss.detach()

    def _update(self, factor):
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.recipe.averaging, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.steps += 1

    def finish(self):
        """Copies the averaged weights into the network."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def state_dict(self):
        """Plain tensors and numbers; hand it to `load_state_dict` of a `Training` of the same network and recipe."""
        return {
            "steps": self.steps,
            "weights": [p.detach() for p in self.parameters],
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.steps = state["steps"]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, state["weights"])
            torch._foreach_copy_(self.average, state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])


def keep_freed_memory():
    """Makes glibc keep the memory that a step frees for the next one, up to 64 MB.

    It sets its limits by the largest mapped block that was freed, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD). With
    smaller limits each step on a CPU returns its features to the system and gets them back by thousands of page
    faults: a third more time, and up to ten times as much on virtual machines that reclaim memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once


def joins_features(parameter):
    """Whether a parameter is a convolution weight between features: no bias, and not of images of up to 4 channels."""
    return parameter.ndim == 4 and min(parameter.shape[:2]) > 4


def has_native_bfloat16(device):
    """Whether half the bits pay here: on GPUs since Ampere and on CPUs that multiply bfloat16; others emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def moved(tensor, device):
    """The tensor on the device. Only towards a GPU may a copy go on in the background: its kernels wait for it."""
    return tensor.to(device, non_blocking=device.type == "cuda")


class Pairs:
    """Noisy pairs (N, C, H, W), kept on the device in the type they came in; larger images as random patches."""

    def __init__(self, noisy_a, noisy_b, device):
        self.noisy_a, self.noisy_b = moved(noisy_a.detach(), device), moved(noisy_b.detach(), device)
        height, width = noisy_a.shape[2:]
        self.patch = min(height, PATCH), min(width, PATCH)
        self.patches = math.ceil(height * width / math.prod(self.patch))  # of an image in an epoch

    def __len__(self):
        """Patches in an epoch."""
        return len(self.noisy_a) * self.patches

    def batch(self, index, generator):
        """The pairs with the given numbers, below `len`: two float32 (B, C, h, w) in [0, 1]."""
        rows, columns = (
            torch.randint(size - part + 1, (len(index), 1), generator=generator) + torch.arange(part)
            for size, part in zip(self.noisy_a.shape[2:], self.patch, strict=True)
        )
        where = (index // self.patches)[:, None, None], rows[:, :, None], columns[:, None, :]
        image, row, column = (moved(part, self.noisy_a.device) for part in where)
        return tuple(
            images[image, :, row, column].permute(0, 3, 1, 2).float() / 255 for images in (self.noisy_a, self.noisy_b)
        )


# ---------------------------------------------------------------------------------------------- checks


def check_images(images, channels, name):
    """Raises TypeError or ValueError unless `images` are finite real numbers (N, channels, H, W), none of them 0."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (N, C, H, W); got {type(images).__name__}")
    if images.dtype == torch.bool or images.is_complex():
        raise TypeError(f"{name} must hold real numbers in [0, 255], uint8 or floating; got {images.dtype}")
    if images.ndim != 4:
        raise ValueError(
            f"{name} must have shape (N, C, H, W); got {tuple(images.shape)}. Add a batch dimension with images[None]"
        )
    if images.shape[1] != channels:
        raise ValueError(
            f"{name} must have {channels} channels, as this model has, in dimension 1; got shape "
            f"{tuple(images.shape)}. Use Model(channels={images.shape[1]}) and train it, or permute the dimensions"
        )
    if images.numel() == 0:
        raise ValueError(f"{name} must hold at least one image of one pixel; got shape {tuple(images.shape)}")
    if images.is_floating_point() and not images.float().isfinite().all():
        raise ValueError(f"{name} must be finite float32; got NaN or Inf. Replace them first, by images.nan_to_num()")


def check_pairs(noisy_a, noisy_b, channels):
    check_images(noisy_a, channels, "noisy_a")
    check_images(noisy_b, channels, "noisy_b")
    if noisy_a.shape != noisy_b.shape:
        raise ValueError(
            "noisy_a and noisy_b must be two noisy versions of the same images, of one shape; got "
            f"{tuple(noisy_a.shape)} and {tuple(noisy_b.shape)}"
        )


def number_of_epochs(epochs, num_epochs):
    """The one of the two names that was given, a positive int."""
    if (epochs is None) == (num_epochs is None):
        raise TypeError("train takes the number of epochs once: train(a, b, 1), epochs=1 or num_epochs=1")
    count = num_epochs if epochs is None else epochs
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"epochs must be a whole number; got {count!r}")
    if count < 1:
        raise ValueError(f"epochs must be at least 1; got {count}")
    return count


def explains_lack_of_memory(method):
    """Turns a GPU's out-of-memory error into one that says what to do."""

    @functools.wraps(method)
    def wrapped(self, *arguments, **options):
        try:
            return method(self, *arguments, **options)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{method.__name__} ran out of memory on {self.device}. Free the GPU of other programs, pass fewer "
                "images at a time, train with Model(recipe=Recipe(batch=8)), or use Model(device='cpu')"
            ) from error

    return wrapped


def save_whole(content, path):
    """`torch.save` under a temporary name, renamed when complete: the file appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_weights(path):
    """The checked content of a weights file. FileNotFoundError or ValueError where there is none to use."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}; train a model and write one with model.save(path)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path.name} is not a readable weights file, perhaps truncated: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a weights file of this module: expected the format {FORMAT!r}")
    return content


# ---------------------------------------------------------------------------------------------- tiles


def tile_starts(size):
    """Where the tiles that cover `size` pixels start: at multiples of TILE - OVERLAP, which networks divide."""
    return range(0, max(1, size - OVERLAP), TILE - OVERLAP)


def blending_weights(start, size):
    """Weights of the rows of the tile at `start` of `size` rows: 1, but a ramp where it overlaps another tile.

    The weights of two overlapping tiles sum to 1; within MARGIN of an edge inside the image they are 0.
    """
    length = min(TILE, size - start)
    ramp = ((torch.arange(length) - MARGIN + 1) / (OVERLAP - 2 * MARGIN + 1)).clamp(0, 1)
    rising = ramp if start > 0 else torch.ones(length)
    falling = ramp.flip(0) if start + length < size else torch.ones(length)
    return rising * falling


# ---------------------------------------------------------------------------------------------- model


class Model:
    """A denoiser that learns from noisy pairs.

    Args:
        network: 'residual_unet' (ours), 'unet' or 'noise2noise' (the two of the original report).
        channels: channels of the images.
        recipe: how `train` learns; see `Recipe`.
        seed: of the first weights and of every random draw of training.
        device: where to compute; None takes CUDA where there is one.
        sizes: of the network, such as width=32; see its class.

    Attributes:
        network: the `nn.Module`; channels, sizes, recipe, seed, device as given.
        pairs_seen: how many pairs the weights have learnt from, kept in the weights file.
    """

    @torch.inference_mode(False)
    def __init__(self, network="residual_unet", *, channels=3, recipe=None, seed=0, device=None, **sizes):
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {network!r}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.recipe, self.seed, self.pairs_seen = recipe or Recipe(), seed, 0
        self.name, self.channels, self.sizes = network, channels, all_sizes(NETWORKS[network], sizes)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.default_generator.manual_seed(seed)
            network = NETWORKS[network](channels, **sizes)
        self.network = network.to(self.device, torch.float32, memory_format=torch.channels_last)

    def load_pretrained_model(self):
        """Loads `bestmodel.pth` beside this file, network and sizes included."""
        self.load(PRETRAINED)

    def save(self, path):
        """Writes the weights and what rebuilds the network, as plain tensors and data; whole or not at all."""
        content = {
            "format": FORMAT,
            "network": self.name,
            "channels": self.channels,
            "sizes": self.sizes,
            "pairs_seen": self.pairs_seen,
            "weights": {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()},
        }
        save_whole(content, Path(path))

    def load(self, path):
        """Loads weights that `save` wrote, onto this model's device, network and sizes included.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file; the model is then as it was.
        """
        content = read_weights(path)
        try:
            options = {"channels": content["channels"], "device": self.device, **content["sizes"]}
            loaded = Model(content["network"], recipe=self.recipe, seed=self.seed, **options)
            loaded.network.load_state_dict(content["weights"])
            loaded.pairs_seen = content["pairs_seen"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{Path(path).name} does not describe one of this module's networks: {error}") from error
        self.__dict__.update(loaded.__dict__)

    @explains_lack_of_memory
    @torch.inference_mode(False)
    @torch.enable_grad()
    def train(self, noisy_a, noisy_b, epochs=None, *, num_epochs=None, progress=None):
        """Learns from pairs of noisy images, no clean one needed; called again, it goes on learning.

        The learning rate rises and falls over the steps of this call, and starts lower the more pairs the weights have
        seen. Interrupted, the model keeps what it has learnt so far.

        Args:
            noisy_a, noisy_b: (N, C, H, W) in [0, 255], any real dtype, any H x W: two noisy versions of the same
                images, with independent noise; independent between pixels, too, or else with `exchange` off.
            epochs: passes over the pairs; `num_epochs` is another name for it. An image larger than 64 x 64 is learnt
                from in random patches, in an epoch as many as cover its area.
            progress: called as `progress(step, steps, loss)` after each step, the loss a 0-d tensor.

        Raises TypeError or ValueError for what cannot be learnt from, RuntimeError where a GPU's memory is too small.
        """
        epochs = number_of_epochs(epochs, num_epochs)
        check_pairs(noisy_a, noisy_b, self.channels)
        pairs = Pairs(noisy_a, noisy_b, self.device)
        training = Training(self.network, self.recipe, self.seed + self.pairs_seen)
        batch = self._batch_size(pairs, epochs)
        peak = math.sqrt(min(1, batch * math.prod(pairs.patch) / (self.recipe.batch * 32 * 32)))
        peak /= math.sqrt(1 + self.pairs_seen / SETTLED_PAIRS)
        steps = epochs * math.ceil(len(pairs) / batch)
        try:
            while training.steps < steps:
                for index in torch.randperm(len(pairs), generator=training.generator).split(batch):
                    factor = peak * rate(training.steps, steps) if self.recipe.scheduled else 1.0
                    loss = training.step(*pairs.batch(index, training.generator), factor)
                    self.pairs_seen += len(index)
                    if progress is not None:
                        progress(training.steps, steps, loss)
        finally:
            training.finish()

    def _batch_size(self, pairs, epochs):
        """As many patches as the recipe's batch has pixels, fewer where there are few to learn from."""
        full = max(1, self.recipe.batch * 32 * 32 // math.prod(pairs.patch))
        few = len(pairs) * epochs // max(1, self.recipe.least_steps)
        return min(full, max(1, few), len(pairs))

    @explains_lack_of_memory
    @torch.no_grad()
    def predict(self, images, ensemble=None):
        """Denoises images.

        Args:
            images: (N, C, H, W) in [0, 255], any real dtype, any N and any H x W, on any device. Larger than 768
                pixels a side, they go through the network in overlapping tiles: the memory needed is bounded.
            ensemble: True averages the predictions of several views of each image: its eight flips and rotations, or,
                since an equivariant network (ours) turns with them anyway, the image and its negative, each with its
                channels in both orders. False predicts once; None averages images up to 64 x 64.

        Returns float32 (N, C, H, W) in [0, 255], not rounded, on the device of `images`.
        Raises TypeError or ValueError for anything else, RuntimeError where a GPU's memory is too small.
        """
        check_images(images, self.channels, "images")
        keep_freed_memory()
        height, width = images.shape[2:]
        if ensemble is None:
            ensemble = max(height, width) <= ENSEMBLE_SIDE
        chunk = max(1, CHUNK // (min(height, TILE) * min(width, TILE)))
        return torch.cat([self._predict_tiles(part, ensemble) for part in images.split(chunk)])

    def _predict_tiles(self, images, ensemble):
        """Predicts (B, C, H, W) tile by tile and blends the tiles; only one at a time is on the device."""
        height, width = images.shape[2:]
        result = torch.zeros(images.shape, dtype=torch.float32, device=images.device)
        for top in tile_starts(height):
            for left in tile_starts(width):
                tile = (..., slice(top, top + TILE), slice(left, left + TILE))
                noisy = moved(images[tile], self.device).float() / 255
                weights = blending_weights(top, height)[:, None] * blending_weights(left, width)
                result[tile] += (self._denoise(noisy, ensemble) * weights.to(self.device)).to(images.device)
        return (result * 255).clamp(0, 255)

    def _denoise(self, images, ensemble):
        """(B, C, H, W) in [0, 1] through the network, once or as the mean over several views."""
        views = ENSEMBLES[self.network.equivariant] if ensemble else [(False, (), False)]
        total = torch.zeros_like(images)
        for transpose, axes, negative in views:
            noisy = transformed(1 - images if negative else images, transpose, axes)
            clean = forward_any_size(self.network, noisy.contiguous(memory_format=torch.channels_last))
            clean = restored(clean, transpose, axes)
            total += 1 - clean if negative else clean
        return total / len(views)
