"""Noise2Noise denoiser on a small neural-network framework of its own, without autograd.

Measured on 1,000 validation images in the grader's PSNR (mean over images; the noisy ones have 20.88 dB), on two cores
of an AMD EPYC (AVX-512) with torch 2.13.0: bestmodel.pth 25.80 dB in a single pass, 25.86 dB with self-ensemble; a
fresh `Model` after one epoch of 50,000 pairs 25.60 and 25.66 dB, in 115 to 120 s.

Only `empty`, `cat`, `arange`, `fold` and `unfold` are imported from torch; everything else is tensor methods
and the standard library. Every block has a `forward`, and a `backward` that is the transpose of its linear
map (or the derivative of its function) written out by hand. The file reads from the leaves up:

    settings, random numbers, checks         what everything below leans on
    gather_patches / scatter_patches         the adjoint pair behind both convolutions
    correlate / spread / weight_gradient     the three matrix products of a convolution
    Module ... Sequential                    the blocks, with PyTorch's argument lists
    SGD, Adam, Muon                          the optimisers
    Trainer, Model                           the denoiser: train, predict, save, load

Shapes: N batch, C image channels, H W image, R map channels, (OH, OW) positions of the window, L = OH * OW,
(KH, KW) kernel, (SH, SW) stride, G groups, T = KH * KW * C / G terms of a sum. An *image* is the side a window moves
over, a *map* is the side with one pixel per position: Conv2d goes from image to map, TransposeConv2d from map to image.

Sources: Noise2Noise (Lehtinen et al. 2018, arXiv:1803.04189); Muon (K. Jordan 2024,
kellerjordan.github.io/posts/muon); Adam (Kingma & Ba 2015, arXiv:1412.6980); default initialisation as in
torch.nn (He et al. 2015, arXiv:1502.01852, a = sqrt 5).
"""

import functools
import hashlib
import json
import math
import os
import random
import sys
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from torch import arange, cat, empty
from torch.nn.functional import fold, unfold

Tensor = type(empty(0))
FLOAT32 = empty(0).float().dtype  # also where the default dtype is another


# --------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Architecture:
    """Widths and kernels of the fixed network; part of the header of a weights file."""

    colours: int = 3
    width: int = 96  # channels at half resolution
    deep_width: int = 192  # channels at a quarter of the resolution
    kernel: int = 4  # of the two stride-2 convolutions; 4 divides evenly by the stride, 3 works as well
    up_kernel: int = 4  # transposed: even, >= 2; nearest: odd
    upsampling: str = "transposed"  # or "nearest": NearestUpsampling(2) followed by Conv2d

    def __post_init__(self):
        if self.upsampling not in ("transposed", "nearest"):
            raise ValueError(f"upsampling must be 'transposed' or 'nearest', got {self.upsampling!r}")
        if self.up_kernel < 1 or self.up_kernel % 2 != (self.upsampling == "nearest"):
            parity = "odd" if self.upsampling == "nearest" else "even"
            raise ValueError(f"up_kernel must be {parity} with {self.upsampling} upsampling, got {self.up_kernel}")

    @property
    def equivariant(self):
        """Whether weights exist that turn the output with the input: features in eights, windows that fit evenly."""
        return self.width % 8 == self.deep_width % 8 == self.kernel % 2 == 0


@dataclass(frozen=True)
class Recipe:
    """How `Model.train` learns."""

    input_scale: float = 4.0  # pixels enter the network as (x / 255 - 0.5) * input_scale, about unit variance
    learning_rate: float = 1.5e-2  # Muon, at the peak, for weights that have seen no pairs
    reference_pairs: int = 50_000  # after this many pairs seen, the peak of the next call is 1 / sqrt(2) of that
    momentum: float = 0.95
    warm_up: float = 0.05  # share of the steps in which the rate climbs to its peak; after it, linear decay to zero
    batch: int = 32  # images of 32x32; larger images count by their area
    smallest_batch: int = 4  # short trainings take smaller batches, to have ...
    wanted_steps: int = 1000  # ... about this many steps
    average_share: float = 0.05  # the weights are averaged over about this share of the steps
    crop: int = 64  # pixels; pairs of larger images are cut into random squares of this side


@dataclass(frozen=True)
class Prediction:
    """How `Model.predict` bounds its memory and its time."""

    chunk_pixels: int = 2**17  # pixels that pass through the network at once, about 1 kB of work space each
    tile: int = 256  # pixels, a multiple of 4; side of the tiles of images with more than chunk_pixels
    ensemble_side: int = 64  # pixels; ensemble=None averages images up to this height and width

    def __post_init__(self):
        if self.tile < 4 or self.tile % 4:
            raise ValueError(f"tile must be a multiple of 4, got {self.tile}")


# ---------------------------------------------------------------------------------- random numbers and checks


def uniform(count, generator, device=None):
    """(count,) float32 in [0, 1), on `device`, drawn from a `random.Random` and not from torch's global generator.

    A counter is hashed twice with 64 bits of key (the integer mixer of T. Mueller, stackoverflow.com/a/12996028), which
    costs a few vector operations for any count.
    """
    bits = arange(count, device=device)
    for _ in range(2):
        bits = bits ^ generator.getrandbits(32)
        for _ in range(2):
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
        bits = (bits >> 16) ^ bits
    return (bits >> 8).float().mul_(2.0**-24)


def pair(value, name, smallest):
    """`value`, an int or a pair of ints that are at least `smallest`, as a pair."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if len(values) != 2 or not whole or min(values) < smallest:
        raise ValueError(f"{name} must be an int or a pair of ints >= {smallest}, got {value!r}")
    return values


def check_maps(x, channels, like, block):
    """`x` detached, if it is a (N, channels, H, W) tensor of the dtype and device of the parameter `like`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{block} takes a tensor, got {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != channels or not x.shape[0]:
        raise ValueError(f"{block} takes a (N, {channels}, H, W) tensor of at least one image, got {tuple(x.shape)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"{block} has {like.dtype} parameters on {like.device}, got {x.dtype} on {x.device}: "
            "convert the input, or the block with block.to(dtype or device)"
        )
    return x.detach()


def check_gradient(gradient, expected, block):
    """`gradient` detached, if it has the shape of the last output, `expected` (None before any forward)."""
    if expected is None:
        raise RuntimeError(f"{block}.backward needs the input of a forward: call forward first")
    if tuple(gradient.shape) != tuple(expected):
        raise ValueError(f"{block}.backward takes a gradient of shape {tuple(expected)}, got {tuple(gradient.shape)}")
    return gradient.detach()


# -------------------------------------------------------------------------------- windows, gather and scatter


class Window(NamedTuple):
    """How the window of a convolution moves over an image."""

    kernel: tuple  # (KH, KW)
    stride: tuple
    padding: tuple  # zeros (above, below, left, right)
    dilation: tuple
    groups: int

    def covered(self, positions):
        """(rows, columns) of padded image that the window touches on its way over `positions`."""
        return tuple(
            (p - 1) * s + (k - 1) * d + 1
            for p, k, s, d in zip(positions, self.kernel, self.stride, self.dilation, strict=True)
        )

    def positions(self, size):
        """(OH, OW) of an image of (H, W)."""
        above, below, left, right = self.padding
        padded = (size[0] + above + below, size[1] + left + right)
        return tuple(
            (p - (k - 1) * d - 1) // s + 1
            for p, k, s, d in zip(padded, self.kernel, self.stride, self.dilation, strict=True)
        )


def pad_channels_last(image, padding):
    """(N, C, H, W) -> contiguous (N, H + above + below, W + left + right, C), zeros around the image."""
    n, c, h, w = image.shape
    above, below, left, right = padding
    if not any(padding):
        return image.permute(0, 2, 3, 1).contiguous()
    padded = image.new_zeros(n, h + above + below, w + left + right, c)
    padded[:, above : above + h, left : left + w] = image.permute(0, 2, 3, 1)
    return padded


def gather_patches(image, window, positions):
    """The window's content at each position: (N, C, H, W) -> (G, N * L, T), T in the order (KH, KW, C / G).

    In channels-last memory a row of a patch is KW * C neighbouring floats: one strided view, copied once.
    """
    n, c, _, _ = image.shape
    (oh, ow), (kh, kw), groups = positions, window.kernel, window.groups
    padded = pad_channels_last(image, window.padding)
    to_image, to_row, to_column, _ = padded.stride()
    (sh, sw), (dh, dw) = window.stride, window.dilation
    patches = padded.as_strided(
        (groups, n, oh, ow, kh, kw, c // groups),
        (c // groups, to_image, sh * to_row, sw * to_column, dh * to_row, dw * to_column, 1),
    )
    return patches.reshape(groups, n * oh * ow, kh * kw * (c // groups))


class Unfolded:
    """An image (N, C, H, W), and what the window sees of it at each position: gathered when asked for, and once."""

    def __init__(self, image, window, positions):
        self.image, self.window, self.positions = image, window, positions

    @functools.cached_property
    def patches(self):
        """(G, N * L, T)."""
        return gather_patches(self.image, self.window, self.positions)


def scatter_patches(patches, window, positions, shape):
    """The adjoint of `gather_patches`: (G, N * L, T) -> (N, C, H, W), each added where it was taken."""
    n, c, _, _ = shape
    (oh, ow), (kh, kw), (sh, sw), groups = positions, window.kernel, window.stride, window.groups
    patches = patches.view(groups, n, oh, ow, kh, kw, c // groups)
    cells = new_cells(patches, window, positions, shape)
    for i, i_end, y, y_in in reversed(tap_runs(kh, sh, window.dilation[0])):  # that is, in the order of positions
        for j, j_end, x, x_in in reversed(tap_runs(kw, sw, window.dilation[1])):
            run = patches[:, :, :, :, i:i_end, j:j_end].permute(1, 2, 4, 3, 5, 0, 6)
            rows, columns = slice(y_in, y_in + i_end - i), slice(x_in, x_in + j_end - j)
            cells[:, y : y + oh, rows, x : x + ow, columns].add_(run)
    return crop_cells(cells, window, shape)


def tap_runs(taps, stride, dilation):
    """(first, end, cell, place in cell): the taps of one axis in runs within one cell of `stride` pixels."""
    length = stride if dilation == 1 else 1
    return [
        (tap, min(tap + length, taps), tap * dilation // stride, tap * dilation % stride)
        for tap in range(0, taps, length)
    ]


def new_cells(like, window, positions, shape):
    """Zeros (N, cells down, SH, cells across, SW, G, C / G): a padded image in cells of one stride each."""
    n, c, h, w = shape
    down, across = (
        -(-max(covered, before + size) // stride)
        for covered, before, size, stride in zip(
            window.covered(positions), window.padding[::2], (h, w), window.stride, strict=True
        )
    )
    (sh, sw), groups = window.stride, window.groups
    return like.new_zeros(n, down, sh, across, sw, groups, c // groups)


def crop_cells(cells, window, shape):
    """The image of `shape` inside a canvas of `new_cells`: a (N, C, H, W) view in channels-last memory."""
    n, down, sh, across, sw, _, _ = cells.shape
    _, c, h, w = shape
    above, _, left, _ = window.padding
    canvas = cells.view(n, down * sh, across * sw, c)
    return canvas[:, above : above + h, left : left + w].permute(0, 3, 1, 2)


# ------------------------------------------------------------- the three products of a convolution, both ways
#
# weight is (R, C / G, KH, KW) for both convolutions. With P = gather_patches(image) and W = weight as (T, R):
#
#     correlate:        map   = P W + bias           Conv2d forward, TransposeConv2d gradient of the input
#     spread:           image = scatter(map W^T)     TransposeConv2d forward, Conv2d gradient of the input
#     weight_gradient:  W     = P^T map              both
#
# They exist more than once. `FastSums` is for speed. The others round like torch.nn.functional on a CPU in
# float32: any other order of the same sum differs by more than plain `allclose` forgives near zero.


def weight_matrix(weight, groups):
    """(R, C / G, KH, KW) -> (G, T, R / G), T in the order of `gather_patches`, and contiguous along it."""
    return weight.unflatten(0, (groups, -1)).permute(0, 1, 3, 4, 2).flatten(2).mT


def maps_to_rows(maps, groups):
    """(N, R, OH, OW) -> (G, N * L, R / G)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (groups, -1)).transpose(0, 1)


def rows_to_maps(rows, n, positions):
    """(G, N * L, R / G) -> (N, R, OH, OW) in channels-last memory."""
    return rows.transpose(0, 1).flatten(1).view(n, *positions, -1).permute(0, 3, 1, 2)


class FastSums:
    """One matrix product over the patches of the whole batch; torch does the same for one small channels-last image."""

    @staticmethod
    def correlate(unfolded, weight, bias):
        """An `Unfolded` image -> (N, R, OH, OW)."""
        groups, patches = unfolded.window.groups, unfolded.patches
        matrix = weight_matrix(weight, groups)
        rows = patches.bmm(matrix) if bias is None else bias.view(groups, 1, -1).baddbmm(patches, matrix)
        return rows_to_maps(rows, unfolded.image.shape[0], unfolded.positions)

    @staticmethod
    def spread(maps, weight, window, shape):
        """(N, R, OH, OW) -> (N, C, H, W) = `shape`: the adjoint of `correlate` without bias."""
        patches = maps_to_rows(maps, window.groups).bmm(weight_matrix(weight, window.groups).mT)
        return scatter_patches(patches, window, maps.shape[2:], shape)

    @staticmethod
    def weight_gradient(unfolded, maps):
        """An `Unfolded` image, (N, R, OH, OW) -> (R, C / G, KH, KW): gradient of sum(correlate(image) * maps)."""
        matrix = maps_to_rows(maps, unfolded.window.groups).mT.bmm(unfolded.patches)  # (G, R / G, T)
        return FastSums.as_weight(matrix, unfolded.window)

    @staticmethod
    def bias_gradient(maps):
        """(N, R, OH, OW) -> (R,): each position adds its gradient to that of the bias."""
        return maps.sum((0, 2, 3))

    @staticmethod
    def as_weight(matrix, window):
        """(G, R / G, T) -> (R, C / G, KH, KW)."""
        return matrix.unflatten(2, (*window.kernel, -1)).permute(0, 1, 4, 2, 3).flatten(0, 1)


class ColumnSums(FastSums):
    """torch's own im2col convolution, which it uses for one small contiguous image (see `choose_sums`). N and G are 1.

    The bias is the accumulator of Conv2d's product, and a separate addition after TransposeConv2d's col2im.
    """

    @staticmethod
    def columns(unfolded):
        window = unfolded.window
        rows, columns = window.covered(unfolded.positions)
        padded = pad_channels_last(unfolded.image, window.padding).permute(0, 3, 1, 2)[:, :, :rows, :columns]
        return unfold(padded.contiguous(), window.kernel, dilation=window.dilation, stride=window.stride)

    @staticmethod
    def correlate(unfolded, weight, bias):
        columns = ColumnSums.columns(unfolded)  # (1, T, L)
        matrix = weight.flatten(1).unsqueeze(0)
        maps = matrix.bmm(columns) if bias is None else bias.view(1, -1, 1).baddbmm(matrix, columns)
        return maps.unflatten(2, unfolded.positions)

    @staticmethod
    def spread(maps, weight, window, shape):
        covered = window.covered(maps.shape[2:])
        columns = weight.flatten(1).t().unsqueeze(0).bmm(maps.flatten(2).contiguous())
        image = fold(columns, covered, window.kernel, dilation=window.dilation, stride=window.stride)
        canvas = new_cells(maps, window, maps.shape[2:], shape).flatten(5)  # (1, cells, SH, cells, SW, C)
        canvas.flatten(3, 4).flatten(1, 2)[:, : covered[0], : covered[1]] = image.permute(0, 2, 3, 1)
        return crop_cells(canvas.unsqueeze(5), window, shape)

    @staticmethod
    def weight_gradient(unfolded, maps):
        matrix = maps.flatten(2)[0].mm(ColumnSums.columns(unfolded)[0].t())
        return matrix.view(maps.shape[1], -1, *unfolded.window.kernel)


class OrderedSums(FastSums):
    """oneDNN's direct convolutions, which torch uses for everything else on a CPU in float32.

    They add one product after the other, rounding once each (fused multiply-add), in an order of their own: blocks of
    `BLOCK` channels, then taps, then channels. With AVX2 the sum of Conv2d runs through all blocks and starts from the
    bias; `WideOrderedSums` has what AVX-512 changes. A matrix product does the same if the terms lie in that order, the
    bias is a term, the sum is short enough for the library not to split it, and the matrices have at least `SMALLEST`
    rows and columns. A longer sum is continued by a product whose first terms are the sum so far. others/rounding.py
    measures how far this holds; it does not for groups of less than eight channels (but for depthwise), stride with
    dilation towards the image, and kernels of one pixel in a single thread.
    """

    LONGEST = 192  # terms; the depth to which MKL's AVX2 kernel runs in one go
    SMALLEST = 16  # below this it changes to kernels with several partial sums
    STRIP = 64  # outputs that continue a long sum together, each for a term; a multiple of SMALLEST
    BLOCK = 8  # channels

    @classmethod
    def correlate(cls, unfolded, weight, bias):
        window, (oh, ow) = unfolded.window, unfolded.positions
        (kh, kw), (sh, sw), (dh, dw), groups = window.kernel, window.stride, window.dilation, window.groups
        padded = pad_channels_last(unfolded.image, window.padding).unflatten(3, (groups, -1))
        weight = weight.unflatten(0, (groups, -1))  # (G, R / G, C / G, KH, KW)
        windows, taps = [], []
        for block in cls.blocks(weight.shape[2]):
            for i in range(kh):
                for j in range(kw):
                    rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
                    columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
                    windows.append(padded[:, rows, columns, :, block])
                    taps.append(weight[:, :, block, i, j])
        return cls.with_bias(windows, taps, bias, kh * kw).permute(0, 3, 1, 2)

    @classmethod
    def with_bias(cls, windows, taps, bias, positions):
        """The product of windows and taps, `positions` of them a block of channels, plus the bias."""
        if bias is not None:
            one, groups = windows[0][..., :1], windows[0].shape[3]
            windows, taps = [one.new_ones(one.shape), *windows], [bias.view(groups, -1, 1), *taps]
        return cls.product(windows, taps)

    @classmethod
    def spread(cls, maps, weight, window, shape):
        """Each of the SH * SW places of a cell is a dense sum over channels and the taps that reach it."""
        (kh, kw), (sh, sw), (dh, dw), groups = window.kernel, window.stride, window.dilation, window.groups
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (G, C / G, R / G, KH, KW)
        cells = new_cells(maps, window, maps.shape[2:], shape)
        _, down, _, across, *_ = cells.shape
        above, left = (kh - 1) * dh // sh, (kw - 1) * dw // sw  # cells from the first tap to the last
        h, w = maps.shape[2:]
        margins = (above, max(down - h, 0), left, max(across - w, 0))
        padded = pad_channels_last(maps, margins).unflatten(3, (groups, -1))
        for y in range(sh):
            rows = [i for i in range(kh) if i * dh % sh == y]
            for x in range(sw):
                columns = [j for j in range(kw) if j * dw % sw == x]
                for terms in cls.partial_sums(rows, columns, weight.shape[2], window, shape[3]):
                    windows, taps = [], []
                    for block, i, j in terms:
                        top, start = above - i * dh // sh, left - j * dw // sw
                        windows.append(padded[:, top : top + down, start : start + across, :, block])
                        taps.append(weight[:, :, block, i, j])
                    part = cls.product(windows, taps)
                    cells[:, :, y, :, x].add_(part.unflatten(3, (groups, -1)))
        return crop_cells(cells, window, shape)

    @classmethod
    def partial_sums(cls, rows, columns, channels, window, width):
        """The (channels, row, column) terms at one place of a cell, in runs that oneDNN sums separately.

        At stride 1 a run has `blocks_of_a_run` blocks of channels; otherwise it has one column of taps if the
        stride divides the width of the image, and all taps if not.
        """
        if not rows or not columns:
            return []
        if window.stride == (1, 1):
            blocks, run = cls.blocks(channels), cls.blocks_of_a_run(width)
            runs = [blocks[first : first + run] for first in range(0, len(blocks), run)]
            return [[(block, i, j) for block in blocks for i in rows for j in columns] for blocks in runs]
        if width % window.stride[1] == 0:
            return [[(slice(None), i, j) for i in rows] for j in columns]
        return [[(slice(None), i, j) for i in rows for j in columns]]

    @classmethod
    def blocks(cls, channels):
        """Slices of `BLOCK` channels."""
        return [slice(first, first + cls.BLOCK) for first in range(0, channels, cls.BLOCK)]

    @staticmethod
    def blocks_of_a_run(width):
        """How many blocks of channels are summed in one go at stride 1, for an image so wide."""
        return 4 if width < 15 else 2

    @staticmethod
    def weight_gradient(unfolded, maps):
        """The sum over images, rows and columns in that order, as oneDNN has it in one thread.

        With more threads it may sum halves of the batch apart, which cannot be seen from here.
        """
        rows = maps_to_rows(maps, unfolded.window.groups)
        matrix = OrderedSums.padded_product(unfolded.patches.mT, rows)  # (G, T, R / G)
        return FastSums.as_weight(matrix.mT, unfolded.window)

    @staticmethod
    def bias_gradient(maps):
        ones = maps.new_ones(1, 1, maps[:, 0].numel())
        return OrderedSums.padded_product(ones, maps_to_rows(maps, 1)).view(-1)

    @staticmethod
    def product(windows, taps):
        """Sum over list and last axis: (N, OH, OW, G, B) and (G, Q, B) -> (N, OH, OW, G * Q)."""
        a, b = cat(windows, 4), cat(taps, 2)
        n, oh, ow, groups, terms = a.shape
        rows = OrderedSums.padded_product(a.permute(3, 0, 1, 2, 4).reshape(groups, -1, terms), b.mT)
        return rows.transpose(0, 1).reshape(n, oh, ow, -1)

    @staticmethod
    def padded_product(a, b):
        """(G, M, T), (G, T, Q) -> (G, M, Q), of matrices large enough for sums in sequence."""
        groups, count, terms = a.shape
        outputs, smallest = b.shape[2], OrderedSums.SMALLEST
        if count < smallest:
            a = cat([a, a.new_zeros(groups, smallest - count, terms)], 1)
        if outputs % smallest:
            b = cat([b, b.new_zeros(groups, terms, -outputs % smallest)], 2)
        strips = [OrderedSums.in_sequence(a, strip) for strip in b.split(OrderedSums.STRIP, 2)]
        return cat(strips, 2)[:, :count, :outputs]

    @staticmethod
    def in_sequence(a, b):
        """(G, M, T), (G, T, Q) -> (G, M, Q), the terms of each sum one after the other."""
        groups, terms, outputs = b.shape
        longest = OrderedSums.LONGEST
        rows = a[:, :, :longest].bmm(b[:, :longest])
        if terms > longest:
            carry = (arange(outputs).view(-1, 1) == arange(outputs)).to(b).expand(groups, -1, -1)
            for start in range(longest, terms, longest - outputs):
                end = start + longest - outputs
                rows = cat([rows, a[:, :, start:end]], 2).bmm(cat([carry, b[:, start:end]], 1))
        return rows


class WideOrderedSums(OrderedSums):
    """The same with AVX-512: each block of channels is a sum of its own, and the bias is added to the first.

    Kernels of one pixel and depthwise ones run through all their terms from the bias, as with AVX2.
    """

    BLOCK = 16

    @classmethod
    def with_bias(cls, windows, taps, bias, positions):
        depthwise = windows[0].shape[3] > 1 and windows[0].shape[4] == 1
        if positions == 1 or depthwise:
            return super().with_bias(windows, taps, bias, positions)
        total = cls.product(windows[:positions], taps[:positions])
        if bias is not None:
            total.add_(bias)
        for first in range(positions, len(taps), positions):
            total.add_(cls.product(windows[first : first + positions], taps[first : first + positions]))
        return total

    @staticmethod
    def blocks_of_a_run(width):
        return 1


@functools.cache
def has_avx512():
    """Whether oneDNN takes its AVX-512 code on this processor. Only Linux has the file that tells; else AVX2 it is."""
    processor = Path("/proc/cpuinfo")
    flags = processor.read_text().split() if processor.exists() else []
    return {"avx512f", "avx512bw", "avx512dq", "avx512vl"}.issubset(flags)


def choose_sums(x, weight, groups):
    """The class of sums that rounds like torch does for a layer with the input `x`.

    torch (aten/src/ATen/native/Convolution.cpp, use_mkldnn) gives one small image and a small kernel to its
    own im2col code, one for each memory format, and all else in float32 on a CPU to oneDNN.
    """
    if x.device.type != "cpu" or str(x.dtype) != "torch.float32":
        return FastSums
    kh, kw = weight.shape[2:]
    to_onednn = groups > 1 or (kh > 3 and kw > 3) or x.shape[0] > 1 or x.numel() > 20480
    if not to_onednn:
        return ColumnSums if x.is_contiguous() or x.stride(1) != 1 else FastSums
    return WideOrderedSums if has_avx512() else OrderedSums


# ----------------------------------------------------------------------------------------------------- blocks


class Module:
    """A block. `forward` keeps what `backward` needs; `backward` returns the gradient of the input.

    `backward` adds the gradients of the parameters to those in `param()`. It belongs to the last `forward`;
    called twice, it adds twice. What went into a `forward` and came out of it must not be changed in place before that,
    but by the `inplace` of a following block. Outputs never require grad, whatever the global grad mode and the inputs.
    """

    def forward(self, *input):
        raise NotImplementedError

    def backward(self, *gradwrtoutput):
        raise NotImplementedError

    def param(self):
        """List of (parameter, gradient) pairs. The tensors are the same objects for the life of the block."""
        return []

    def __call__(self, *input):
        return self.forward(*input)

    def to(self, *target):
        """Move or convert parameters and gradients in place, to a device, a dtype, or those of a tensor."""
        for parameter, gradient in self.param():
            parameter.data, gradient.data = parameter.data.to(*target), gradient.data.to(*target)
        return self


class Convolution(Module):
    """What Conv2d and TransposeConv2d share: the parameters, their gradients and their initialisation.

    `weight` and `bias` may be copied into or assigned. Assigning copies the values, so that optimisers made before keep
    working; after it has changed the dtype or the device, make them anew. `weight_grad` and `bias_grad` are the
    gradients.

    `torch_rounding` (default True): on a CPU in float32, add in torch's order where it can be had
    (`OrderedSums`, `ColumnSums`), at some cost in speed. Set it to False for the fastest way.
    """

    torch_rounding = True

    def __init__(self, weight_shape, outputs, bias, generator):
        self._weight = empty(weight_shape)
        self._bias = empty(outputs) if bias else None
        self.weight_grad = self._weight.new_zeros(weight_shape)
        self.bias_grad = self._bias.new_zeros(outputs) if bias else None
        self.reset_parameters(generator)

    def reset_parameters(self, generator=None):
        """Draw weight and bias from U(-b, b), b = 1 / sqrt(fan in), as torch.nn does.

        Without `generator` the draws come from torch's global generator, and are those of the torch.nn layer
        after the same `manual_seed`. With a `random.Random` they come from that, and nothing global moves.
        """
        bound = 1 / math.sqrt(self._weight[0].numel())
        for parameter, _ in self.param():
            if generator is None:
                parameter.detach().uniform_(-bound, bound)
            else:
                draws = uniform(parameter.numel(), generator, parameter.device).mul_(2 * bound).sub_(bound)
                parameter.detach().copy_(draws.view(parameter.shape))

    @property
    def weight(self):
        return self._weight

    @weight.setter
    def weight(self, value):
        assign(self._weight, self.weight_grad, value, "weight")

    @property
    def bias(self):
        return self._bias

    @bias.setter
    def bias(self, value):
        if (self._bias is None) != (value is None):
            raise ValueError(f"this block was made with bias={self._bias is not None}: make a new one to change that")
        if value is not None:
            assign(self._bias, self.bias_grad, value, "bias")

    def param(self):
        pairs = [(self._weight, self.weight_grad), (self._bias, self.bias_grad)]
        return pairs if self._bias is not None else pairs[:1]

    def sums(self, x):
        return choose_sums(x, self._weight, self.window.groups) if self.torch_rounding else FastSums


def assign(parameter, gradient, value, name):
    """Give `parameter` the values, dtype and device of `value`, and its gradient the latter two."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.shape != parameter.shape:
        raise ValueError(f"{name} has shape {tuple(parameter.shape)}, got {tuple(value.shape)}")
    parameter.data = value.new_empty(value.shape).copy_(value.detach())
    gradient.data = gradient.data.to(parameter.data)


def in_format_of(x, result):
    """`result` in the memory format of `x`, channels-last or contiguous, as torch does it."""
    if x.is_contiguous() or x.stride(1) != 1:
        return result.contiguous()
    return result.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def check_counts(groups, **channels):
    for name, count in {"groups": groups, **channels}.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an int >= 1, got {count!r}")
        if count % groups:
            raise ValueError(f"{name} must be a multiple of groups, got {count} and groups={groups}")


class Conv2d(Convolution):
    """2-D convolution, torch.nn.Conv2d with zero padding.

    (N, in_channels, H, W) -> (N, out_channels, OH, OW), OH = floor((H + 2 padding - dilation (K - 1) - 1) /
    stride) + 1. weight (out_channels, in_channels / groups, KH, KW), bias (out_channels,) or None.
    kernel_size, stride, padding and dilation are ints or pairs; padding may be "valid" (none) or "same" (OH =
    H; needs stride 1).
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        *,
        generator=None,
    ):
        check_counts(groups, in_channels=in_channels, out_channels=out_channels)
        kernel, stride = pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1)
        dilation = pair(dilation, "dilation", 1)
        self.in_channels = in_channels
        self.window = Window(kernel, stride, self.zeros_around(padding, kernel, stride, dilation), dilation, groups)
        super().__init__((out_channels, in_channels // groups, *kernel), out_channels, bias, generator)
        self._input = self._shape = None

    @staticmethod
    def zeros_around(padding, kernel, stride, dilation):
        """(above, below, left, right); the larger half of an odd "same" padding goes below and right."""
        if padding == "same":
            if stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, got {stride}")
            totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
            return tuple(side for total in totals for side in (total // 2, total - total // 2))
        if isinstance(padding, str) and padding != "valid":
            raise ValueError(f"padding must be an int, a pair, 'same' or 'valid', got {padding!r}")
        vertical, horizontal = (0, 0) if padding == "valid" else pair(padding, "padding", 0)
        return (vertical, vertical, horizontal, horizontal)

    def forward(self, x):
        x = check_maps(x, self.in_channels, self._weight, "Conv2d")
        positions = self.window.positions(x.shape[2:])
        if min(positions) < 1:
            raise ValueError(f"the window of {self.window} is larger than the padded image of {tuple(x.shape)}")
        self._input, self._shape = Unfolded(x, self.window, positions), (x.shape[0], self._weight.shape[0], *positions)
        bias = None if self._bias is None else self._bias.detach()
        return in_format_of(x, self.sums(x).correlate(self._input, self._weight.detach(), bias))

    def backward(self, gradwrtoutput):
        """map = P W + b: dW = P^T dmap, db = sum(dmap), dimage = scatter(dmap W^T)."""
        gradient = check_gradient(gradwrtoutput, self._shape, "Conv2d")
        x = self._input.image
        sums = self.sums(x)
        self.weight_grad.add_(sums.weight_gradient(self._input, gradient))
        if self._bias is not None:
            self.bias_grad.add_(sums.bias_gradient(gradient))
        return in_format_of(gradient, sums.spread(gradient, self._weight.detach(), self.window, x.shape))


class TransposeConv2d(Convolution):
    """Transposed 2-D convolution, torch.nn.ConvTranspose2d: the adjoint of the Conv2d with the same weight.

    (N, in_channels, H, W) -> (N, out_channels, OH, OW) with OH = (H - 1) stride - 2 padding + dilation (K -
    1) + output_padding + 1. weight (in_channels, out_channels / groups, KH, KW), bias (out_channels,) or
    None; output_padding must be smaller than stride or dilation.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        bias=True,
        dilation=1,
        *,
        generator=None,
    ):
        check_counts(groups, in_channels=in_channels, out_channels=out_channels)
        kernel, stride = pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1)
        dilation, (vertical, horizontal) = pair(dilation, "dilation", 1), pair(padding, "padding", 0)
        self.output_padding = pair(output_padding, "output_padding", 0)
        if any(o >= max(s, d) for o, s, d in zip(self.output_padding, stride, dilation, strict=True)):
            raise ValueError(
                "output_padding must be smaller than stride or dilation, "
                f"got {self.output_padding}, {stride} and {dilation}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.window = Window(kernel, stride, (vertical, vertical, horizontal, horizontal), dilation, groups)
        super().__init__((in_channels, out_channels // groups, *kernel), out_channels, bias, generator)
        self._input = self._shape = None

    def forward(self, x):
        x = check_maps(x, self.in_channels, self._weight, "TransposeConv2d")
        covered, padding = self.window.covered(x.shape[2:]), self.window.padding
        size = tuple(c - 2 * p + o for c, p, o in zip(covered, padding[::2], self.output_padding, strict=True))
        if min(size) < 1 or x.shape[2] * x.shape[3] == 0:
            raise ValueError(f"the padding of {self.window} leaves nothing of the output for {tuple(x.shape)}")
        self._input, self._shape = x, (x.shape[0], self.out_channels, *size)
        y = self.sums(x).spread(x, self._weight.detach(), self.window, self._shape)
        return in_format_of(x, y if self._bias is None else y.add(self._bias.detach().view(-1, 1, 1)))

    def backward(self, gradwrtoutput):
        """image = scatter(map W^T) + b: dW = dP^T map, db = sum(dimage), dmap = dP W; dP = gather(dimage)."""
        gradient = check_gradient(gradwrtoutput, self._shape, "TransposeConv2d")
        x = self._input
        sums, unfolded = self.sums(x), Unfolded(gradient, self.window, x.shape[2:])
        self.weight_grad.add_(sums.weight_gradient(unfolded, x))
        if self._bias is not None:
            self.bias_grad.add_(sums.bias_gradient(gradient))
        return in_format_of(gradient, sums.correlate(unfolded, self._weight.detach(), None))


class NearestUpsampling(Module):
    """Every pixel scale_factor times down and across (an int or a pair): torch.nn.UpsamplingNearest2d.

    (N, C, H, W) -> (N, C, H * scale, W * scale), any floating dtype.
    """

    def __init__(self, scale_factor):
        if isinstance(scale_factor, float) and scale_factor.is_integer():
            scale_factor = int(scale_factor)
        self.scale = pair(scale_factor, "scale_factor", 1)
        self._shape = None

    def forward(self, x):
        if x.dim() != 4:
            raise ValueError(f"NearestUpsampling takes a (N, C, H, W) tensor, got {tuple(x.shape)}")
        n, c, h, w = x.shape
        sh, sw = self.scale
        self._shape = (n, c, h * sh, w * sw)
        pixels = x.detach().permute(0, 2, 3, 1)
        repeated = pixels.view(n, h, 1, w, 1, c).expand(n, h, sh, w, sw, c).reshape(n, h * sh, w * sw, c)
        return in_format_of(x, repeated.permute(0, 3, 1, 2))

    def backward(self, gradwrtoutput):
        """Every copy sends its gradient back to the one pixel it came from."""
        gradient = check_gradient(gradwrtoutput, self._shape, "NearestUpsampling")
        sh, sw = self.scale
        cells = gradient.unflatten(3, (-1, sw)).unflatten(2, (-1, sh))  # (N, C, H, SH, W, SW)
        return sum(cells[:, :, :, i, :, j] for i in range(sh) for j in range(sw))


class Elementwise(Module):
    """A function of each element: subclasses give `function(x)` and `derivative(kept, gradient)`."""

    def __init__(self):
        self._kept = None

    def forward(self, x):
        y = self.function(x.detach())
        self._kept = self.kept(x.detach(), y)
        return y

    def backward(self, gradwrtoutput):
        shape = None if self._kept is None else self._kept.shape
        return self.derivative(self._kept, check_gradient(gradwrtoutput, shape, type(self).__name__))

    def kept(self, x, y):
        """What the derivative is written in: the output, where that is possible."""
        return y


class ReLU(Elementwise):
    """max(x, 0), any shape and floating dtype. With `inplace` the input itself is overwritten."""

    def __init__(self, inplace=False):
        super().__init__()
        self.inplace = inplace

    def function(self, x):
        return x.relu_() if self.inplace else x.relu()

    def derivative(self, y, gradient):
        """1 where the output is positive, else 0, also at 0. Its sign is that mask, 20 times as fast as masked_fill.

        Unlike torch's, a gradient that is not finite gives NaN there.
        """
        return y.sign().mul_(gradient)


class LeakyReLU(Elementwise):
    """x where x > 0, else negative_slope * x, any shape and floating dtype."""

    def __init__(self, negative_slope=0.01, inplace=False):
        super().__init__()
        self.negative_slope = negative_slope
        self.inplace = inplace

    def function(self, x):
        self._positive = x > 0
        y = x.where(self._positive, x * self.negative_slope)
        return x.copy_(y) if self.inplace else y

    def kept(self, x, y):
        return self._positive

    def derivative(self, positive, gradient):
        return gradient.where(positive, gradient * self.negative_slope)


class Sigmoid(Elementwise):
    """1 / (1 + exp(-x)), any shape and floating dtype, without overflow."""

    def function(self, x):
        return x.sigmoid()

    def derivative(self, y, gradient):
        """sigma' = sigma (1 - sigma)."""
        return gradient * (1 - y) * y


class MSE(Module):
    """mean((prediction - target)^2) over all elements: torch.nn.MSELoss.

    `backward()` is the gradient by the prediction.
    """

    def __init__(self):
        self._difference = None

    def forward(self, prediction, target):
        if prediction.shape != target.shape or not prediction.numel():
            raise ValueError(
                f"MSE takes two equal shapes with elements, got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        self._difference = prediction.detach() - target.detach()
        return self._difference.square().mean()

    def backward(self, gradwrtoutput=1.0):
        """2 (prediction - target) / numel, times the gradient of the loss itself."""
        if self._difference is None:
            raise RuntimeError("MSE.backward needs the tensors of a forward: call forward first")
        if isinstance(gradwrtoutput, Tensor):
            gradwrtoutput = check_gradient(gradwrtoutput, (), "MSE")
        return self._difference * (2 / self._difference.numel()) * gradwrtoutput


class Sequential(Module):
    """The modules one after the other; they may be Sequential themselves, but none may occur twice."""

    def __init__(self, *modules):
        self.modules = modules
        leaves = [id(leaf) for leaf in self.leaves()]
        if len(leaves) != len(set(leaves)):
            raise ValueError(
                "a module keeps what its backward needs, so it may occur only once: make one for each place"
            )

    def leaves(self):
        """The modules that are no Sequential, in order."""
        for module in self.modules:
            yield from module.leaves() if isinstance(module, Sequential) else [module]

    def forward(self, *input):
        for module in self.modules:
            input = (module(*input),)
        return input[0]

    def backward(self, *gradwrtoutput):
        for module in reversed(self.modules):
            gradwrtoutput = (module.backward(*gradwrtoutput),)
        return gradwrtoutput[0]

    def param(self):
        return [pair for module in self.modules for pair in module.param()]


# ------------------------------------------------------------------------------------------------- optimisers


class Optimiser:
    """Holds the (parameter, gradient) pairs of `module.param()`; `lr` may be set between steps."""

    def __init__(self, params, lr):
        self.params = list(params)
        if not self.params or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in self.params):
            raise ValueError("an optimiser takes a non-empty list of (parameter, gradient) pairs: module.param()")
        if lr < 0:
            raise ValueError(f"lr must be >= 0, got {lr}")
        self.lr = lr

    def _zeros(self):
        """One tensor like each gradient."""
        return [gradient.detach().new_zeros(gradient.shape) for _, gradient in self.params]

    def zero_grad(self):
        for _, gradient in self.params:
            gradient.detach().zero_()

    def step(self):
        raise NotImplementedError


class SGD(Optimiser):
    """Stochastic gradient descent with momentum: torch.optim.SGD, same arguments, same steps."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        super().__init__(params, lr)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum > 0 and no dampening")
        self.momentum, self.dampening = momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self._velocity = [None] * len(self.params)

    def step(self):
        for index, (parameter, gradient) in enumerate(self.params):
            parameter, gradient = parameter.detach(), gradient.detach()
            if self.weight_decay:
                gradient = gradient.add(parameter, alpha=self.weight_decay)
            if self.momentum:
                if self._velocity[index] is None:
                    self._velocity[index] = gradient.clone()
                else:
                    self._velocity[index].mul_(self.momentum).add_(gradient, alpha=1 - self.dampening)
                velocity = self._velocity[index]
                gradient = gradient.add(velocity, alpha=self.momentum) if self.nesterov else velocity
            parameter.sub_(gradient, alpha=self.lr)


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, algorithm 1): torch.optim.Adam, same arguments, same steps."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
        super().__init__(params, lr)
        self.betas, self.eps, self.weight_decay, self.amsgrad = betas, eps, weight_decay, amsgrad
        self._steps = 0
        self._mean, self._square = self._zeros(), self._zeros()
        self._largest = self._zeros() if amsgrad else None

    def state(self):
        """What the next step depends on beside parameters and gradients, for `load_state`."""
        return {"steps": self._steps, "moments": self._moments()}

    def load_state(self, state):
        self._steps = state["steps"]
        copy_all(self._moments(), state["moments"])

    def _moments(self):
        return self._mean + self._square + (self._largest or [])

    def step(self):
        self._steps += 1
        beta1, beta2 = self.betas
        bias1, bias2 = 1 - beta1**self._steps, 1 - beta2**self._steps
        for index, (parameter, gradient) in enumerate(self.params):
            parameter, gradient = parameter.detach(), gradient.detach()
            if self.weight_decay:
                gradient = gradient.add(parameter, alpha=self.weight_decay)
            mean, square = self._mean[index], self._square[index]
            mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            if self.amsgrad:
                square = self._largest[index].copy_(self._largest[index].maximum(square))
            scale = square.sqrt().div_(math.sqrt(bias2)).add_(self.eps)
            parameter.addcdiv_(mean, scale, value=-self.lr / bias1)


class Muon(Optimiser):
    """Momentum whose step is made orthogonal, steepest descent in the spectral norm (K. Jordan 2024; torch.optim.Muon).

    A convolution's weight (R, C / G, KH, KW) is the matrix (R, C / G * KH * KW); its step is the Nesterov
    momentum with all its singular values brought near 1, times sqrt(max(1, rows / columns)). Parameters of
    one dimension (biases) have no such norm and take Adam's step (betas 0.9, 0.95) at `vector_lr` times the
    rate. Weight decay is decoupled and skips them.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(
        self,
        params,
        lr=1e-3,
        weight_decay=0.0,
        momentum=0.95,
        nesterov=True,
        eps=1e-7,
        ns_steps=5,
        vector_lr=0.2,
    ):
        super().__init__(params, lr)
        if ns_steps < 1:
            raise ValueError(f"ns_steps must be >= 1, got {ns_steps}")
        self.weight_decay, self.momentum, self.nesterov = weight_decay, momentum, nesterov
        self.eps, self.ns_steps, self.vector_lr = eps, ns_steps, vector_lr
        vectors = [entry for entry in self.params if entry[0].dim() < 2]
        self._vectors = Adam(vectors, lr, (0.9, 0.95)) if vectors else None
        self._stacks = {}  # parameters of one matrix shape, orthogonalised in one batch
        for (parameter, gradient), zeros in zip(self.params, self._zeros(), strict=True):
            if parameter.dim() > 1:
                entry = (parameter, gradient, zeros)
                self._stacks.setdefault(parameter.detach().flatten(1).shape, []).append(entry)

    def state(self):
        """What the next step depends on beside parameters and gradients, for `load_state`."""
        return {"velocities": self._velocities(), "vectors": self._vectors.state() if self._vectors else None}

    def load_state(self, state):
        copy_all(self._velocities(), state["velocities"])
        if self._vectors:
            self._vectors.load_state(state["vectors"])

    def _velocities(self):
        return [velocity for entries in self._stacks.values() for _, _, velocity in entries]

    def step(self):
        if self._vectors is not None:
            self._vectors.lr = self.lr * self.vector_lr
            self._vectors.step()
        for (rows, columns), entries in self._stacks.items():
            steps = []
            for _, gradient, velocity in entries:
                gradient = gradient.detach()
                velocity.mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
                step = gradient.lerp(velocity, self.momentum) if self.nesterov else velocity
                steps.append(step.reshape(1, rows, columns))
            steps = orthogonalise(cat(steps), self.ns_steps, self.eps)
            for (parameter, _, _), step in zip(entries, steps, strict=True):
                parameter = parameter.detach()
                parameter.mul_(1 - self.lr * self.weight_decay)
                parameter.sub_(step.view(parameter.shape), alpha=self.lr * math.sqrt(max(1, rows / columns)))


def copy_all(targets, sources):
    """Write each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def orthogonalise(matrices, steps, eps):
    """Bring the singular values of (B, rows, columns) to about [0.7, 1.2] by the Newton-Schulz iteration.

    X <- (a + b X X^T + c (X X^T)^2) X. All factors are polynomials of the one matrix X X^T, so that only they
    are iterated, on the shorter side: A is X X^T of the current X, `total` the product of the factors so far.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT, steps, eps).mT
    a, b, c = Muon.COEFFICIENTS
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    gram = matrices.bmm(matrices.mT)
    total = None
    for step in range(steps):
        factor = gram.baddbmm(gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor if total is None else factor.bmm(total)
        if step < steps - 1:
            gram = factor.bmm(gram).bmm(factor)
    return total.bmm(matrices)


# --------------------------------------------------------------------------------------- network and training


def build_network(architecture, generator):
    """The fixed network: (N, colours, H, W) -> same shape in (0, 1), H and W multiples of 4."""
    a = architecture

    def down(inputs, outputs):
        return Conv2d(inputs, outputs, a.kernel, stride=2, padding=(a.kernel - 1) // 2, generator=generator)

    def up(inputs, outputs):
        k = a.up_kernel
        if a.upsampling == "transposed":
            return TransposeConv2d(inputs, outputs, k, stride=2, padding=k // 2 - 1, generator=generator)
        return Sequential(NearestUpsampling(2), Conv2d(inputs, outputs, k, padding="same", generator=generator))

    network = Sequential(
        down(a.colours, a.width),
        ReLU(inplace=True),
        down(a.width, a.deep_width),
        ReLU(inplace=True),
        up(a.deep_width, a.width),
        ReLU(inplace=True),
        up(a.width, a.colours),
        Sigmoid(),
    )
    for block in network.leaves():
        block.torch_rounding = False
    if a.equivariant:
        parameters, orbits = [parameter for parameter, _ in network.param()], parameter_orbits(network)
        symmetrise(parameters, orbits)
        for parameter, numbers in zip(parameters, orbits, strict=True):
            parameter.mul_(math.sqrt(len(numbers)))  # a mean varies less
    return network


def parameter_orbits(network):
    """For each parameter of an equivariant network the numbers of its entries, one column an orbit.

    The eight symmetries of the square turn the kernels of a weight and exchange its features, which come in eights, one
    for each symmetry: h takes the feature g to h g. They turn the entries of an orbit into each other, and a network of
    weights that are constant on each orbit turns its output with its input (T. Cohen & M. Welling, "Group Equivariant
    Convolutional Networks", ICML 2016, section 6). The colours of images stay where they are.
    """
    convolutions = [block for block in network.leaves() if isinstance(block, Convolution)]
    result = []
    for block in convolutions:
        inputs, outputs = 1 if block is convolutions[0] else 8, 1 if block is convolutions[-1] else 8
        groups = (outputs, inputs) if isinstance(block, Conv2d) else (inputs, outputs)
        numbers = arange(block.weight.numel()).view(block.weight.shape)
        moved = cat([turned_weight(numbers, h, groups).reshape(1, -1) for h in range(8)])
        orbits = moved[:, moved.amin(0) == numbers.flatten()], arange(block.bias.numel()).view(-1, outputs).t()
        result += [numbers.to(block.weight.device) for numbers in orbits]
    return result


def turned_weight(weight, symmetry, groups):
    """What a symmetry makes of a weight whose first two axes hold groups of 8 features, or of 1 colour."""
    order = arange(8).new_tensor(products_of_symmetries()[symmetry]).argsort()  # the feature that comes to each place
    for axis, group in enumerate(groups):
        if group > 1:
            weight = weight.unflatten(axis, (-1, 8)).index_select(axis + 1, order).flatten(axis, axis + 1)
    return transform(weight, symmetry)


@functools.cache
def products_of_symmetries():
    """The number of the symmetry that first g and then h make together, at [h][g]."""
    square = arange(9).view(1, 1, 3, 3)
    turned = [transform(square, g) for g in range(8)]
    numbers = {tuple(image.flatten().tolist()): number for number, image in enumerate(turned)}
    return [[numbers[tuple(transform(image, h).flatten().tolist())] for image in turned] for h in range(8)]


def symmetrise(tensors, orbits):
    """Replace every entry of each tensor by the mean of its orbit, in place; the tensors' orbits in their order."""
    for values, numbers in zip(tensors, orbits, strict=True):
        flat = values.detach().flatten()
        values.copy_(flat.index_put((numbers,), flat[numbers].mean(0)).view(values.shape))


def schedule(step, steps, warm_up):
    """Share of the peak rate at `step` of `steps`: climb for the share `warm_up`, linear decay to zero."""
    done = (step + 1) / (steps + 1)
    return min(done / warm_up, (1 - done) / (1 - warm_up))


class Trainer:
    """One optimiser, and the moving average of the weights that it leaves behind.

    `equivariant` keeps an equivariant network so, by gradients that are constant on each orbit. `step` learns from one
    batch. `swap` exchanges the weights with their average, in place; twice is nothing.
    """

    def __init__(self, network, recipe, average_over, equivariant=False):
        self.network, self.loss = network, MSE()
        self.orbits = parameter_orbits(network) if equivariant else []
        self.optimiser = Muon(network.param(), momentum=recipe.momentum)
        self.averages = [parameter.detach().clone() for parameter, _ in network.param()]
        self.average_over, self.steps = average_over, 0

    def step(self, source, target, rate):
        """Learn from inputs as the network takes them and targets in [0, 1]; returns the loss, one number."""
        self.optimiser.zero_grad()
        loss = self.loss(self.network(source), target)
        self.network.backward(self.loss.backward())
        if self.orbits:
            symmetrise([gradient for _, gradient in self.network.param()], self.orbits)
        self.optimiser.lr = rate
        self.optimiser.step()
        self.steps += 1
        share = max(1 / self.average_over, 1 / self.steps)
        for average, (parameter, _) in zip(self.averages, self.network.param(), strict=True):
            average.lerp_(parameter.detach(), share)
        return loss

    def state(self):
        """What an exact continuation needs, for `load_state` of a trainer of the same network and recipe."""
        weights = [parameter.detach() for parameter, _ in self.network.param()]
        return {
            "steps": self.steps,
            "weights": weights,
            "averages": self.averages,
            "optimiser": self.optimiser.state(),
        }

    def load_state(self, state):
        self.steps = state["steps"]
        copy_all([parameter.detach() for parameter, _ in self.network.param()], state["weights"])
        copy_all(self.averages, state["averages"])
        self.optimiser.load_state(state["optimiser"])

    def swap(self):
        for average, (parameter, _) in zip(self.averages, self.network.param(), strict=True):
            kept = parameter.detach().clone()
            parameter.detach().copy_(average)
            average.copy_(kept)


# ------------------------------------------------------------------------------------------- images and pairs


def check_images(images, colours, name):
    """`images` detached, if they are finite real (N, colours, H, W) with N, H, W >= 1."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(images).__name__}: convert it with torch.as_tensor")
    if images.is_complex() or str(images.dtype) == "torch.bool":
        raise TypeError(
            f"{name} must hold real numbers from 0 to 255, got {images.dtype}: convert it to uint8 or float32"
        )
    if images.dim() != 4 or images.shape[1] != colours:
        raise ValueError(
            f"{name} must have the shape (N, {colours}, H, W), got {tuple(images.shape)}"
            + (": add the batch dimension with images[None]" if images.dim() == 3 else "")
        )
    if images.numel() == 0:
        raise ValueError(f"{name} must hold at least one pixel, got the shape {tuple(images.shape)}")
    if images.is_floating_point() and not images.float().isfinite().all():
        raise ValueError(f"{name} must be finite float32, got NaN or infinity: replace them, e.g. with nan_to_num")
    return images.detach()


def pad_to_multiple(images, multiple):
    """Repeat the last row and column until H and W are multiples of `multiple`."""
    for axis in (2, 3):
        size = images.shape[axis]
        if size % multiple:
            index = arange(size + -size % multiple, device=images.device).clamp_(max=size - 1)
            images = images.index_select(axis, index)
    return images


def transform(images, symmetry):
    """Symmetry 0 to 7 of the square: bit 1 flips columns, bit 2 flips rows, bit 4 transposes after that."""
    axes = [axis for bit, axis in ((1, 3), (2, 2)) if symmetry & bit]
    images = images.flip(axes) if axes else images
    return images.transpose(2, 3) if symmetry & 4 else images


def transform_back(images, symmetry):
    """The inverse of `transform`."""
    return transform(images.transpose(2, 3) if symmetry & 4 else images, symmetry & 3)


def view(images, symmetry, reverse, negative):
    """A symmetry of images from 0 to 255, perhaps with the colours in reverse order, perhaps the negative."""
    images = transform(images.flip(1) if reverse else images, symmetry)
    return 255 - images if negative else images


def view_back(images, symmetry, reverse, negative):
    """The inverse of `view`."""
    images = transform_back(255 - images if negative else images, symmetry)
    return images.flip(1) if reverse else images


def exchange(noisy_a, noisy_b, generator):
    """Give each pixel of one noisy image to the other with probability 1/2: (N, C, H, W) twice -> the same.

    Both values of a pixel are independent draws from one distribution, so the new pair is as good as the old
    one; all channels of a pixel belong to one draw and move together.
    """
    n, _, h, w = noisy_a.shape
    kept = (uniform(n * h * w, generator, noisy_a.device) < 0.5).view(n, 1, h, w)
    return noisy_a.where(kept, noisy_b), noisy_b.where(kept, noisy_a)


def take(images, index, corners, size):
    """Images by number, cut to `size` at their (top, left) corner if `corners` are given: (B, C, *size)."""
    if corners is None:
        return images.index_select(0, index)
    h, w = size
    cuts = [images[i : i + 1, :, y : y + h, x : x + w] for i, (y, x) in zip(index.tolist(), corners, strict=True)]
    return cat(cuts)


class Batches:
    """Endless shuffled, augmented batches from pairs that stay as they are (uint8, on their device) until drawn.

    Images of more than `crop` pixels across are cut to random squares; each is drawn as often as squares fit its area.
    `exchangeable` says that the noise of both images is alike, so that they may exchange pixels.
    """

    def __init__(self, noisy_a, noisy_b, crop, generator, exchangeable=True):
        self.noisy_a, self.noisy_b, self.generator = noisy_a, noisy_b, generator
        self.exchangeable = exchangeable
        n, _, h, w = noisy_a.shape
        self.size = (min(h, crop), min(w, crop))
        self.cut = self.size != (h, w)
        self.cuts_per_image = max(1, round(h * w / (self.size[0] * self.size[1])))
        self.length = n * self.cuts_per_image  # draws in an epoch
        self._order, self._at = None, self.length

    def draw(self, count):
        """A batch of pairs: float32 (count, C, *size) twice, or transposed."""
        index = self._next(count)
        corners = None
        if self.cut:
            limits = [full - part + 1 for full, part in zip(self.noisy_a.shape[2:], self.size, strict=True)]
            corners = [tuple(self.generator.randrange(limit) for limit in limits) for _ in range(count)]
        symmetry = self.generator.randrange(8)
        pairs = (take(noisy, index, corners, self.size).float() for noisy in (self.noisy_a, self.noisy_b))
        pairs = [transform(noisy, symmetry) for noisy in pairs]
        return exchange(*pairs, self.generator) if self.exchangeable else pairs

    def _next(self, count):
        """Numbers of the next `count` images. Every epoch is a new permutation; a batch may span two."""
        parts = []
        while count:
            if self._at == self.length:
                order = uniform(self.length, self.generator, self.noisy_a.device).argsort()
                self._order, self._at = order % self.noisy_a.shape[0], 0
            part = self._order[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return cat(parts)


# ------------------------------------------------------------------------------------------------------ model


class Model:
    """Noise2Noise denoiser for (N, 3, H, W) images of any size, with values from 0 to 255.

        model = Model()
        model.load_pretrained_model()
        clean = model.predict(noisy)            # float32, 0 to 255
        model.train(noisy_a, noisy_b, 1)        # two noisy pictures of each scene; goes on from where it is
        model.save("mine.pth")

    `seed` fixes the initial weights and all draws of `train`. The network lives on the device of the last tensors.
    """

    MAGIC = b"N2NWGHT1"
    make_trainer = Trainer  # others/experiments.py puts other optimisers here

    def __init__(self, seed=0, architecture=Architecture(), recipe=Recipe(), prediction=Prediction()):
        self.architecture, self.recipe, self.prediction = architecture, recipe, prediction
        self.generator = random.Random(seed)
        self.network = build_network(architecture, self.generator).to(FLOAT32)
        self.pairs_seen = 0

    # training

    def train(self, noisy_a, noisy_b, num_epochs=None, *, epochs=None, progress=None):
        """Learn from pairs: (N, 3, H, W) twice, any real dtype, 0 to 255, the same scenes with independent noise.

        The number of epochs is the third argument, or the keyword `num_epochs` or `epochs`; 1 without.
        `progress`, if given, is called with (step, steps, loss) after every step, `loss` a tensor of one
        number. Interrupting a training (KeyboardInterrupt, or an exception from `progress`) leaves the
        average of the weights so far.

        Calling `train` again goes on from the weights there are, at a lower peak rate the more pairs they
        have seen.
        """
        noisy_a = check_images(noisy_a, self.architecture.colours, "noisy_a")
        noisy_b = check_images(noisy_b, self.architecture.colours, "noisy_b")
        if noisy_a.shape != noisy_b.shape or noisy_a.device != noisy_b.device or noisy_a.dtype != noisy_b.dtype:
            raise ValueError(
                "noisy_a and noisy_b must agree in shape, dtype and device, got "
                f"{tuple(noisy_a.shape)} {noisy_a.dtype} {noisy_a.device} and "
                f"{tuple(noisy_b.shape)} {noisy_b.dtype} {noisy_b.device}"
            )
        epochs = self._epochs(num_epochs, epochs)
        self.network.to(noisy_a.device)
        batches = Batches(noisy_a, noisy_b, self.recipe.crop, self.generator)
        draws = epochs * batches.length
        batch = self._batch(draws, *batches.size)
        steps = -(-draws // batch)
        seen = self.pairs_seen / self.recipe.reference_pairs
        peak = self.recipe.learning_rate / math.sqrt(1 + seen)
        average_over = max(1, steps * self.recipe.average_share)
        trainer = self.make_trainer(self.network, self.recipe, average_over, self.architecture.equivariant)
        try:
            for step in range(steps):
                source, target = batches.draw(batch)
                rate = peak * schedule(step, steps, self.recipe.warm_up)
                loss = trainer.step(self.network_input(source), self.network_target(target), rate)
                self.pairs_seen += batch
                if progress is not None:
                    progress(step + 1, steps, loss)
        finally:
            trainer.swap()

    def _batch(self, draws, h, w):
        """Images in a batch: few if the weights see few pairs in all, and no more pixels than fit."""
        recipe = self.recipe
        wanted = max(recipe.smallest_batch, (self.pairs_seen + draws) // recipe.wanted_steps)
        return max(1, min(wanted, recipe.batch, recipe.batch * 32 * 32 // (h * w), draws))

    @staticmethod
    def _epochs(num_epochs, epochs):
        if num_epochs is not None and epochs is not None:
            raise TypeError("give the number of epochs once: num_epochs and epochs mean the same")
        value = epochs if num_epochs is None else num_epochs
        value = 1 if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"the number of epochs must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"the number of epochs must be at least 1, got {value}")
        return value

    def network_input(self, images):
        """float32 pixels, 0 to 255 -> what the network takes: padded to multiples of 4, centred, channels-last."""
        images, scale = pad_to_multiple(images, 4).permute(0, 2, 3, 1).contiguous(), self.recipe.input_scale
        return images.mul(scale / 255).sub_(scale / 2).permute(0, 3, 1, 2)

    def network_target(self, images):
        """float32 pixels, 0 to 255 -> what the network is to say: padded like the input, in [0, 1], channels-last."""
        return pad_to_multiple(images, 4).permute(0, 2, 3, 1).contiguous().div(255).permute(0, 3, 1, 2)

    # prediction

    def predict(self, images, ensemble=None):
        """Denoise (N, 3, H, W), 0 to 255, any real dtype, any size -> float32 of that shape and device, 0 to 255.

        `ensemble` averages the predictions of several views of each image: its eight flips and transposes, or,
        since an equivariant network turns with them anyway, the image and its negative, each with its colours in
        both orders. True, False, or None for up to `Prediction.ensemble_side` (64) a side. Images pass in chunks,
        large ones in overlapping tiles, so that the memory stays bounded; the result is that of the whole batch.
        """
        images = check_images(images, self.architecture.colours, "images")
        self.network.to(images.device)
        n, _, h, w = images.shape
        if ensemble is None:
            ensemble = max(h, w) <= self.prediction.ensemble_side
        chunk = max(1, self.prediction.chunk_pixels // (h * w))
        result = empty(images.shape, dtype=FLOAT32, device=images.device)
        for start in range(0, n, chunk):
            part = images[start : start + chunk].float()
            views = self._views() if ensemble else [(0, False, False)]
            total = sum(view_back(self._denoise(view(part, *v)), *v) for v in views)
            result[start : start + chunk] = total.mul_(1 / len(views)).clamp_(0, 255)
        return result

    def _views(self):
        """What `ensemble` averages: (symmetry, reverse, negative) of `view`."""
        if self.architecture.equivariant:
            return [(0, reverse, negative) for reverse in (False, True) for negative in (False, True)]
        return [(symmetry, False, False) for symmetry in range(8)]

    def _denoise(self, images):
        """(N, C, H, W), 0 to 255 -> the same shape and range, in one pass or in tiles."""
        _, _, h, w = images.shape
        if h * w <= self.prediction.chunk_pixels:
            return self.network(self.network_input(images))[:, :, :h, :w] * 255
        images = pad_to_multiple(images, 4)
        tile, margin = self.prediction.tile, self.reach()
        result = empty(images.shape, dtype=FLOAT32, device=images.device)
        for y in range(0, images.shape[2], tile):
            for x in range(0, images.shape[3], tile):
                top, left = max(0, y - margin), max(0, x - margin)
                part = self.network(self.network_input(images[:, :, top : y + tile + margin, left : x + tile + margin]))
                inner = part[:, :, y - top : y - top + tile, x - left : x - left + tile]
                result[:, :, y : y + tile, x : x + tile] = inner
        return result[:, :, :h, :w] * 255

    def reach(self):
        """Pixels, a multiple of 4: no output depends on an input farther away (a kernel per layer)."""
        a = self.architecture
        return -(-(3 * a.kernel + 6 * a.up_kernel) // 4) * 4

    # files

    def load_pretrained_model(self):
        """Load bestmodel.pth from the folder of this file."""
        self.load(Path(__file__).resolve().parent / "bestmodel.pth")

    def save(self, path):
        """Write the weights to `path` in one go: until the new file is complete, the old one stays.

        Layout: MAGIC, length of the header (8 bytes), header (JSON: architecture, input scale, pairs seen,
        shapes), the parameters as float32, SHA-256 of all that. All numbers are little-endian.
        """
        values = [array("f", parameter.flatten().tolist()) for parameter, _ in self.network.param()]
        header = json.dumps({**self._identity(), "pairs_seen": self.pairs_seen}).encode()
        content = self.MAGIC + len(header).to_bytes(8, "little") + header + b"".join(map(to_bytes, values))
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            temporary.write_bytes(content + hashlib.sha256(content).digest())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path):
        """Read weights written by `save`; an error (missing, damaged, foreign file) changes nothing."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}: give the path of a file written by Model.save")
        content = path.read_bytes()
        if not content.startswith(self.MAGIC):
            raise ValueError(f"{path} does not start with {self.MAGIC!r}: it was not written by Model.save")
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise ValueError(f"{path} is truncated or damaged (its checksum differs): fetch or save it again")
        start = len(self.MAGIC) + 8
        end = start + int.from_bytes(content[start - 8 : start], "little")
        header = json.loads(content[start:end])
        for key, expected in self._identity().items():
            if header.get(key) != expected:
                raise ValueError(
                    f"{path} holds another network: {key} is {header.get(key)}, this model has {expected}; "
                    "make the model with the settings of the file"
                )
        values = from_bytes(content[end:-32])
        for parameter, _ in self.network.param():
            count = parameter.numel()
            parameter.copy_(parameter.new_tensor(values[:count].tolist()).view(parameter.shape))
            values = values[count:]
        self.pairs_seen = header["pairs_seen"]

    def _identity(self):
        """What the weights of a file must have in common with this model."""
        shapes = [list(parameter.shape) for parameter, _ in self.network.param()]
        return {
            "architecture": asdict(self.architecture),
            "input_scale": self.recipe.input_scale,
            "shapes": shapes,
        }


def to_bytes(values):
    """array("f") -> little-endian float32."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def from_bytes(content):
    """Little-endian float32 -> array("f")."""
    values = array("f", content)
    if sys.byteorder == "big":
        values.byteswap()
    return values
