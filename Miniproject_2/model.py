"""Noise2Noise denoiser on a small neural-network framework of its own, without autograd.

    model = Model()
    model.load_pretrained_model()              # or: model.train(noisy_a, noisy_b, epochs=1)
    clean = model.predict(noisy)               # (N, 3, H, W) in [0, 255], any H x W

Measured on 1,000 validation images in the grader's PSNR (mean over images; the noisy ones have 20.88 dB) with torch
2.13.0: bestmodel.pth 25.99 dB in a single pass, 26.05 dB with self-ensemble; a fresh `Model` after one epoch of 50,000
pairs 25.69 and 25.75 dB (three seeds), in 113 s on two cores of an Intel Xeon (AMX).

Only `empty`, `cat`, `arange`, `fold` and `unfold` are imported from torch; everything else is tensor methods
and the standard library. Every block has a `forward`, and a `backward` that is the transpose of its linear
map (or the derivative of its function) written out by hand. The file reads from the leaves up:

    settings, random numbers, checks         what everything below leans on
    gather_patches / scatter_patches         the adjoint pair behind both convolutions
    correlate / spread / weight_gradient     the three matrix products of a convolution
    Module ... Sequential                    the blocks, with PyTorch's argument lists
    SGD, Adam, Muon                          the optimisers
    D4, Network, Pairs, PairNoise, Training  the denoiser's parts, named as in project 1
    Model                                    train, predict, save, load

Shapes: N images (B of a batch), C image channels, H W image, R map channels, (OH, OW) positions of the window,
L = OH * OW, (KH, KW) kernel, (SH, SW) stride, G groups, T = KH * KW * C / G terms of a sum. An *image* is the side a
window moves over, a *map* is the side with one pixel per position: Conv2d goes from image to map, TransposeConv2d from
map to image. Inside, pictures are float32 in [0, 1]; outside, [0, 255].

Sources: Noise2Noise (Lehtinen et al. 2018, arXiv:1803.04189); Muon (K. Jordan 2024,
kellerjordan.github.io/posts/muon); Adam (Kingma & Ba 2015, arXiv:1412.6980); default initialisation as in
torch.nn (He et al. 2015, arXiv:1502.01852, a = sqrt 5); equivariance (Cohen & Welling, ICML 2016).
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import operator
import os
import random
import secrets
import sys
import warnings
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from torch import arange, cat, empty
from torch.nn.functional import fold, unfold

Tensor = type(empty(0))
FLOAT32, BFLOAT16 = empty(0).float().dtype, empty(0).bfloat16().dtype  # also where the default dtype is another
UINT8 = empty(0).byte().dtype

MAGIC = b"N2NWGHT2"  # first bytes of a weights file
PRETRAINED = Path(__file__).resolve().parent / "bestmodel.pth"


# --------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Architecture:
    """Sizes of the fixed network; part of the header of a weights file."""

    in_channels: int = 3  # of the images
    width: int = 96  # channels at half resolution
    deep_width: int = 192  # channels at a quarter of the resolution
    kernel: int = 4  # of the two stride-2 convolutions; 4 divides evenly by the stride, 3 works as well
    up_kernel: int = 4  # transposed: even, >= 2; nearest: odd
    upsampling: str = "transposed"  # or "nearest": NearestUpsampling(2) followed by Conv2d
    input_scale: float = 4.0  # pixels enter the network as (x - 0.5) * input_scale, of about unit variance

    def __post_init__(self):
        for field in fields(self):
            if field.type is int:
                object.__setattr__(self, field.name, whole_number(getattr(self, field.name), field.name, 1))
        object.__setattr__(self, "input_scale", float(self.input_scale))
        if not math.isfinite(self.input_scale) or not self.input_scale:
            raise ValueError(f"input_scale must be a finite number other than 0; got {self.input_scale}")
        if self.upsampling not in ("transposed", "nearest"):
            raise ValueError(f"upsampling must be 'transposed' or 'nearest'; got {self.upsampling!r}")
        if self.up_kernel % 2 != (self.upsampling == "nearest"):
            parity = "odd" if self.upsampling == "nearest" else "even"
            raise ValueError(f"up_kernel must be {parity} with {self.upsampling} upsampling; got {self.up_kernel}")

    @property
    def equivariant(self):
        """Whether the network can be equivariant: both widths are multiples of 8, and the kernel is even."""
        return self.width % 8 == self.deep_width % 8 == self.kernel % 2 == 0


@dataclass(frozen=True)
class Recipe:
    """How `Model.train` learns."""

    optimiser: str = "muon"  # or "adam", "sgd"
    lr: float | None = None  # peak rate for fresh weights; None: the one in RATES
    momentum: float = 0.95  # of Muon and SGD
    batch_size: int = 16  # pairs of 32 x 32 a step; larger images: as many as have the same number of pixels
    min_batch_size: int = 4  # short trainings take smaller batches, to have ...
    min_steps: int = 1000  # ... about this many steps
    min_pairs: int = 2_000  # of 32 x 32: fresh weights make more passes over fewer pairs, at most MOST_PASSES
    ema_share: float = 0.05  # share of the steps that the moving average of the weights spans; 0: the last weights
    swap_pixels: bool | None = None  # swap the two noisy values of half the pixels; None: where `PairNoise` allows it
    both_directions: bool | None = None  # learn b from a as well as a from b, in one step; None: where they are alike

    def __post_init__(self):
        if self.optimiser not in ("muon", "adam", "sgd"):
            raise ValueError(f"optimiser must be 'muon', 'adam' or 'sgd'; got {self.optimiser!r}")
        for name, least in (("batch_size", 1), ("min_batch_size", 1), ("min_steps", 1), ("min_pairs", 0)):
            whole_number(getattr(self, name), name, least)
        if not 0 <= self.peak_lr < math.inf or not 0 <= self.ema_share <= 1 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"Recipe needs a finite lr >= 0, an ema_share in [0, 1] and a momentum in [0, 1); got {self}"
            )

    @property
    def peak_lr(self):
        return RATES[self.optimiser] if self.lr is None else self.lr

    def resolved(self, noise):
        """The recipe, its open choices (None) settled by a `PairNoise` of pairs."""
        measured = {"swap_pixels": noise.exchangeable, "both_directions": noise.alike}
        return replace(self, **{name: value for name, value in measured.items() if getattr(self, name) is None})


RATES = {"muon": 1.5e-2, "adam": 1e-3, "sgd": 1.0}  # a good peak rate for each optimiser
MOST_PASSES = 10  # over few pairs: more passes overfit
COURSE_PIXELS = 32 * 32  # of a course image: recipes count pairs and batches in these
PATCH = 64  # pixels a side: larger training pairs are cut into random patches of this size
LR_DECAY_PAIRS = 10_000  # a further call starts at the peak rate / sqrt(1 + pairs seen before / this)
CHUNK = 2**17  # pixels predicted at once, about 1 kB of work space each
TILE = 256  # pixels a side, a multiple of 4: images of more than CHUNK pixels are predicted in tiles
VIEWED = 64  # pairs on which `train` measures which views of an image a self-ensemble gains from
COARSE = 0.36  # scenes differ if coarse means hold more than this share of the difference (`coarse_difference`) ...
AGREEING = 0.97  # ... and correlate by less than this
DISPLACED = 0.01  # images are displaced if that explains more than this share (`displaced_share`) ...
TOO_FAR = 0.3  # ... and by more than so many pixels
CONTRAST = 0.05  # see `contrast_difference`
REORIENTED = 0.05  # share of the squared difference that another view must save, by four standard errors
CONTAINED = 0.95  # imbalance of the noise, by two standard errors, from which one image's noise lies in the other's
NO_GAIN = 0.99  # of the squared error, for equally noisy images: `train` warns if more is left
ENSEMBLE_SIDE = 64  # `predict(ensemble=None)` averages several passes up to this height and width


# ---------------------------------------------------------------------------------- random numbers and checks


def uniform(count, generator, device):
    """(count,) float32 in [0, 1), on `device`, drawn from a `random.Random` and not from torch's global generator.

    A counter is hashed twice with 64 bits of key (the integer mixer of T. Mueller, stackoverflow.com/a/12996028), which
    costs a few vector operations for any count, and gives the same on any device.
    """
    bits = arange(count, device=device)
    for _ in range(2):
        bits = bits ^ generator.getrandbits(32)
        for _ in range(2):
            bits = ((bits >> 16) ^ bits) * 0x45D9F3B & 0xFFFFFFFF
        bits = (bits >> 16) ^ bits
    return (bits >> 8).float().mul_(2.0**-24)


def random_mask(shape, device, generator):
    """True with probability 1/2, bool of the given shape."""
    return (uniform(math.prod(shape), generator, device) < 0.5).view(shape)


def lasting_empty(shape, device=None, dtype=None):
    """`empty`, but the tensor may be changed anywhere, even if the caller is in inference mode.

    A tensor made in inference mode can never be changed outside it. The mode is per thread, so a new thread is not in
    it.
    """
    like = empty(0, device=device, dtype=dtype)  # with the caller's defaults
    if not like.is_inference():
        return empty(shape, device=like.device, dtype=like.dtype)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(empty, shape, device=like.device, dtype=like.dtype).result()


def lasting(tensor):
    """A copy made by `lasting_empty`."""
    return lasting_empty(tensor.shape, tensor.device, tensor.dtype).copy_(tensor.detach())


@functools.cache
def default_device():
    """CUDA if it can run a kernel, else the CPU: torch sees old cards but has no kernels for them."""
    try:
        empty(1, device="cuda").fill_(1).add_(1).item()
    except Exception:  # AssertionError without CUDA in this torch, RuntimeError of many kinds with it
        return "cpu"
    return "cuda"


def usable_device(device):
    """The `torch.device` that is asked for. ValueError if nothing can be computed on it."""
    try:
        found = empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:  # of a torch without CUDA, and of a missing GPU
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error
    if found.type == "meta":
        raise ValueError("device 'meta' cannot be used: its tensors have no values")
    return found


@functools.cache
def has_native_bfloat16():
    """Whether the processor multiplies bfloat16, according to /proc/cpuinfo; the others emulate it, which is slow."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # another system
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def rounds_products(precision, device):
    """Whether large matrix products are in bfloat16; `precision` is 'bfloat16', 'float32' or None, see `Model`."""
    if precision not in (None, "bfloat16", "float32"):
        raise ValueError(f"precision must be 'bfloat16', 'float32' or None; got {precision!r}")
    return precision == "bfloat16" or (precision is None and device.type == "cpu" and has_native_bfloat16())


def whole_number(value, name, smallest):
    """A plain int of at least `smallest` from anything that counts as one, such as a NumPy integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if number < smallest:
        raise ValueError(f"{name} must be at least {smallest}; got {number}")
    return number


def pair(value, name, smallest):
    """`value`, a whole number or a pair of them that are at least `smallest`, as a pair."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be a whole number or a pair of them; got {value!r}")
    return tuple(whole_number(v, name, smallest) for v in values)


def check_input(x, channels, like, block):
    """`x`, detached. TypeError or ValueError unless it is (N, channels, H, W), of the dtype and device of `like`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{block} takes a tensor; got {type(x).__name__}")
    if x.dim() != 4 or x.shape[1] != channels or not x.shape[0]:
        raise ValueError(f"{block} takes a (N, {channels}, H, W) tensor of at least one image; got {tuple(x.shape)}")
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(
            f"{block} has {like.dtype} parameters on {like.device}; got {x.dtype} on {x.device}. "
            "Convert the input, or the block with block.to(dtype or device)"
        )
    return x.detach()


def check_gradient(gradient, expected, block, dtype=None):
    """`gradient` detached, if it has the shape of the last output, `expected` (None before any forward), and the
    dtype, where one is given."""
    if expected is None:
        raise RuntimeError(f"{block}.backward needs the input of a forward: call forward first")
    if not isinstance(gradient, Tensor):
        raise TypeError(f"{block}.backward takes a tensor; got {type(gradient).__name__}")
    if dtype is not None and gradient.dtype != dtype:
        raise ValueError(f"{block}.backward takes a gradient of {dtype}, as its parameters are; got {gradient.dtype}")
    if tuple(gradient.shape) != tuple(expected):
        raise ValueError(f"{block}.backward takes a gradient of shape {tuple(expected)}; got {tuple(gradient.shape)}")
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
    """An image (N, C, H, W) and its patches, one per position of the window, gathered once, on first use."""

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
    """(first, end, cell, offset in it): the taps of an axis in runs inside one cell of `stride` pixels."""
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
# There are three versions. `FastSums` is for speed. `ColumnSums` and `RunningSums` round like torch.nn.functional
# where possible: in any other order the same sum differs by more than plain `allclose` tolerates near zero. It is
# possible for one small image, and for short sums. For the rest torch calls the processor's own library, whose order
# depends on the processor.


def product(a, b, start=None):
    """(G, M, T) times (G, T, Q), plus `start` that broadcasts to it: (G, M, Q) of their dtype.

    In autocast, too: that leaves in-place products alone.
    """
    shape = (a.shape[0], a.shape[1], b.shape[2])
    if start is None:
        return a.new_empty(shape).baddbmm_(a, b, beta=0)
    return start.expand(shape).clone().baddbmm_(a, b)


def weight_matrix(weight, groups):
    """(R, C / G, KH, KW) -> (G, T, R / G), T in the order of `gather_patches`, and contiguous along it."""
    return weight.unflatten(0, (groups, -1)).permute(0, 1, 3, 4, 2).flatten(2).mT


def maps_to_rows(maps, groups):
    """(N, R, OH, OW) -> (G, N * L, R / G)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (groups, -1)).transpose(0, 1)


def sum_of_maps(maps):
    """(N, R, OH, OW) -> (R,). Of batches and few channels in float32, pixel after pixel, as the processor's library."""
    if maps.shape[0] == 1 or not 2 <= maps.shape[1] < 16 or maps.dtype != FLOAT32:
        return maps.sum((0, 2, 3))
    rows = maps_to_rows(maps, 1)
    return product(rows.new_ones(1, 1, rows.shape[1]), rows)[0, 0]


class FastSums:
    """One matrix product over the patches of the whole batch; torch does the same for one small channels-last image."""

    @staticmethod
    def correlate(unfolded, weight, bias):
        """An `Unfolded` image -> (N, R, OH, OW) in channels-last memory."""
        groups = unfolded.window.groups
        start = None if bias is None else bias.view(groups, 1, -1)
        rows = product(unfolded.patches, weight_matrix(weight, groups), start)  # (G, N * L, R / G)
        n = unfolded.image.shape[0]
        return rows.transpose(0, 1).flatten(1).view(n, *unfolded.positions, -1).permute(0, 3, 1, 2)

    @staticmethod
    def spread(maps, weight, window, shape):
        """(N, R, OH, OW) -> (N, C, H, W) = `shape`: the adjoint of `correlate` without bias."""
        patches = product(maps_to_rows(maps, window.groups), weight_matrix(weight, window.groups).mT)
        return scatter_patches(patches, window, maps.shape[2:], shape)

    @staticmethod
    def weight_gradient(unfolded, maps):
        """An `Unfolded` image, (N, R, OH, OW) -> (R, C / G, KH, KW): gradient of sum(correlate(image) * maps)."""
        window = unfolded.window
        matrix = product(maps_to_rows(maps, window.groups).mT, unfolded.patches)  # (G, R / G, T)
        return matrix.unflatten(2, (*window.kernel, -1)).permute(0, 1, 4, 2, 3).flatten(0, 1)


class ColumnSums:
    """torch's own im2col convolution, which it uses for one small contiguous image (see `choose_sums`). N and G are 1.

    The bias is the accumulator of Conv2d's product, and a separate addition after TransposeConv2d's col2im.
    """

    @staticmethod
    def columns(unfolded):
        """(1, T, L), T in the order of the weight."""
        window = unfolded.window
        rows, columns = window.covered(unfolded.positions)
        padded = pad_channels_last(unfolded.image, window.padding).permute(0, 3, 1, 2)[:, :, :rows, :columns]
        return unfold(padded.contiguous(), window.kernel, dilation=window.dilation, stride=window.stride)

    @staticmethod
    def correlate(unfolded, weight, bias):
        start = None if bias is None else bias.view(1, -1, 1)
        maps = product(weight.flatten(1).unsqueeze(0), ColumnSums.columns(unfolded), start)
        return maps.unflatten(2, unfolded.positions)

    @staticmethod
    def spread(maps, weight, window, shape):
        covered = window.covered(maps.shape[2:])
        columns = product(weight.flatten(1).t().unsqueeze(0), maps.flatten(2).contiguous())
        image = fold(columns, covered, window.kernel, dilation=window.dilation, stride=window.stride)
        canvas = new_cells(maps, window, maps.shape[2:], shape).flatten(5)  # (1, cells, SH, cells, SW, C)
        canvas.flatten(3, 4).flatten(1, 2)[:, : covered[0], : covered[1]] = image.permute(0, 2, 3, 1)
        return crop_cells(canvas.unsqueeze(5), window, shape)

    @staticmethod
    def weight_gradient(unfolded, maps):
        rows, columns = maps.flatten(2)[0], ColumnSums.columns(unfolded)[0].t()
        matrix = maps.new_empty(rows.shape[0], columns.shape[1]).addmm_(rows, columns, beta=0)
        return matrix.view(maps.shape[1], -1, *unfolded.window.kernel)


class RunningSums(FastSums):
    """`spread` as one sum over kernel rows, columns and maps, in the order of the processor's own library."""

    @staticmethod
    def spread(maps, weight, window, shape):
        """Correlates the mirrored kernel with the maps, zeros between and around them. G is 1."""
        (n, c, h, w), (r, oh, ow), (kh, kw) = shape, maps.shape[1:], window.kernel
        (sh, sw), (above, _, left, _) = window.stride, window.padding
        top, side = (kh - 1) * window.dilation[0], (kw - 1) * window.dilation[1]
        down, across = max((oh - 1) * sh + 1 + top, above + h), max((ow - 1) * sw + 1 + side, left + w)
        canvas = maps.new_zeros(n, r, top + down, side + across)
        canvas[:, :, top : top + (oh - 1) * sh + 1 : sh, side : side + (ow - 1) * sw + 1 : sw] = maps
        plain = Window(window.kernel, (1, 1), (0, 0, 0, 0), window.dilation, 1)
        patches = gather_patches(canvas[:, :, above:, left:], plain, (h, w))
        mirrored = patches.view(1, n * h * w, kh, kw, r).flip(2, 3).flatten(2)
        image = product(mirrored, weight.permute(2, 3, 0, 1).reshape(1, kh * kw * r, c))
        return image.view(n, h, w, c).permute(0, 3, 1, 2)


def choose_sums(x, weight, window, transposed):
    """The sums that round like torch for the input `x` of a convolution, where possible; else `FastSums`.

    On a CPU in float32, for contiguous tensors and one group: torch takes its own im2col code for one small image and a
    small kernel (aten/src/ATen/native/Convolution.cpp, use_mkldnn), and the processor's library for the rest.
    """
    kh, kw = weight.shape[2:]
    contiguous = x.is_contiguous() or x.stride(1) != 1
    if window.groups > 1 or x.device.type != "cpu" or x.dtype != FLOAT32 or not contiguous:
        return FastSums
    if x.shape[0] == 1 and x.numel() <= 20480 and min(kh, kw) <= 3:
        return ColumnSums
    whole = window.stride == (1, 1) or (transposed and kh % 2 == kw % 2 == 1)
    short = weight.shape[0] <= 16 and weight.shape[0] * kh * kw <= 256  # the library splits longer sums
    return RunningSums if whole and short else FastSums


# ----------------------------------------------------------------------------------------------------- blocks


class Module:
    """A block. Subclasses give `run`, `backward` and, with parameters, `param`.

    `forward` keeps what `backward` needs; `backward` returns the gradient of the input and adds the gradients of the
    parameters to those in `param()`. It belongs to the last `forward`; called twice, it adds twice. Until then, that
    `forward`'s inputs and output must not be changed in place, except by a following block with `inplace`. Outputs
    never require grad, whatever the global grad mode and the inputs.

    `apply` gives the same output and keeps nothing, so that threads can share the block.
    """

    _kept = None

    def run(self, *input):
        """The output, and what `backward` needs; the block stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} needs run(*input), or forward and apply of its own")

    def forward(self, *input):
        output, self._kept = self.run(*input)
        return output

    def apply(self, *input):
        return self.run(*input)[0]

    def backward(self, *gradwrtoutput):
        raise NotImplementedError

    def forget(self):
        """Give back the memory of what the last `forward` kept."""
        self._kept = None

    def param(self):
        """List of (parameter, gradient) pairs. The tensors are the same objects for the life of the block."""
        return []

    def __call__(self, *input):
        return self.forward(*input)

    def to(self, *target):
        """Move or convert parameters and gradients in place, to a device, a dtype, or those of a tensor."""
        for parameter, gradient in self.param():
            parameter.data, gradient.data = lasting(parameter.data.to(*target)), lasting(gradient.data.to(*target))
        return self


class Convolution(Module):
    """What Conv2d and TransposeConv2d share: the parameters, their gradients and their initialisation.

    `weight` and `bias` may be copied into or assigned, and so may their gradients, `weight_grad` and `bias_grad`.
    Assigning copies the values, so existing optimisers keep working; if it changes the dtype or the device of a
    parameter, make new ones.
    Both also take `generator`, see `reset_parameters`; `device` and `dtype`, by default torch's; and `padding_mode`,
    which must be "zeros".

    Where `rounds` is set, the factors of the matrix products are rounded from float32 to bfloat16, and so are the
    products; parameters and gradients stay float32.
    """

    rounds = False

    def __init__(self, weight_shape, outputs, bias, *, padding_mode="zeros", generator=None, device=None, dtype=None):
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros'; got {padding_mode!r}")
        self.out_channels, self.groups = outputs, self.window.groups
        self.kernel_size, self.stride, _, self.dilation, _ = self.window
        self.padding = self.window.padding[::2]  # above, left
        self._weight = lasting_empty(weight_shape, device, dtype)
        self._bias = lasting_empty((outputs,), device, dtype) if bias else None
        self._weight_grad = lasting_empty(weight_shape, device, dtype).zero_()
        self._bias_grad = lasting_empty((outputs,), device, dtype).zero_() if bias else None
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
        assign(self._weight, self._weight_grad, value, "weight")

    @property
    def bias(self):
        return self._bias

    @bias.setter
    def bias(self, value):
        self.check_bias(value)
        if value is not None:
            assign(self._bias, self._bias_grad, value, "bias")

    @property
    def weight_grad(self):
        return self._weight_grad

    @weight_grad.setter
    def weight_grad(self, value):
        check_assigned(self._weight_grad, value, "weight_grad")
        self._weight_grad.copy_(value)

    @property
    def bias_grad(self):
        return self._bias_grad

    @bias_grad.setter
    def bias_grad(self, value):
        self.check_bias(value)
        if value is not None:
            check_assigned(self._bias_grad, value, "bias_grad")
            self._bias_grad.copy_(value)

    def check_bias(self, value):
        if (self._bias is None) != (value is None):
            raise ValueError(f"this block was made with bias={self._bias is not None}: make a new one to change that")

    def param(self):
        pairs = [(self._weight, self._weight_grad), (self._bias, self._bias_grad)]
        return pairs if self._bias is not None else pairs[:1]

    def sums(self, x):
        return choose_sums(x, self._weight, self.window, isinstance(self, TransposeConv2d))

    def rounded(self, tensor):
        """A tensor as it enters the matrix products."""
        return tensor.detach().to(BFLOAT16 if self.rounds and tensor.dtype == FLOAT32 else tensor.dtype)

    def accumulate(self, unfolded, maps, gradwrtoutput):
        """Adds the gradient of the weight, P^T map, and of the bias to those of the parameters."""
        gradient = self.sums(unfolded.image).weight_gradient(unfolded, maps)
        self._weight_grad.add_(gradient.to(self._weight_grad.dtype))
        if self._bias is not None:
            self._bias_grad.add_(sum_of_maps(gradwrtoutput))


def assign(parameter, gradient, value, name):
    """Give `parameter` the values, dtype and device of `value`, and its gradient the latter two."""
    check_assigned(parameter, value, name)
    parameter.data = lasting(value)
    gradient.data = lasting(gradient.data.to(parameter.data))


def check_assigned(tensor, value, name):
    """TypeError or ValueError unless `value` is a tensor that can be assigned to the one that a block has."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    if value.shape != tensor.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; got {tuple(value.shape)}")


def in_format_of(x, result):
    """`result` in the memory format of `x`, channels-last or contiguous, as torch does it."""
    return result.contiguous() if x.is_contiguous() or x.stride(1) != 1 else channels_last(result)


def channels_last(images):
    """(N, C, H, W) as it is, in memory (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def check_counts(groups, in_channels, out_channels):
    """The three as plain ints."""
    groups = whole_number(groups, "groups", 1)
    counts = whole_number(in_channels, "in_channels", 1), whole_number(out_channels, "out_channels", 1)
    if any(count % groups for count in counts):
        raise ValueError(f"in_channels and out_channels must be a multiple of groups; got {counts} and groups={groups}")
    return groups, *counts


class Conv2d(Convolution):
    """2-D convolution, torch.nn.Conv2d with zero padding.

    (N, in_channels, H, W) -> (N, out_channels, OH, OW), OH = floor((H + 2 padding - dilation (K - 1) - 1) /
    stride) + 1. weight (out_channels, in_channels / groups, KH, KW), bias (out_channels,) or None.
    kernel_size, stride, padding and dilation are ints or pairs; padding may be "valid" (none) or "same" (OH =
    H; needs stride 1).
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, **options
    ):
        groups, self.in_channels, out_channels = check_counts(groups, in_channels, out_channels)
        kernel, stride = pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1)
        dilation = pair(dilation, "dilation", 1)
        self.window = Window(kernel, stride, self.zeros_around(padding, kernel, stride, dilation), dilation, groups)
        shape = (out_channels, self.in_channels // groups, *kernel)
        super().__init__(shape, out_channels, bias, **options)

    @staticmethod
    def zeros_around(padding, kernel, stride, dilation):
        """(above, below, left, right); the larger half of an odd "same" padding goes below and right."""
        if padding == "same":
            if stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1; got {stride}")
            totals = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
            return tuple(side for total in totals for side in (total // 2, total - total // 2))
        if isinstance(padding, str) and padding != "valid":
            raise ValueError(f"padding must be an int, a pair, 'same' or 'valid'; got {padding!r}")
        vertical, horizontal = (0, 0) if padding == "valid" else pair(padding, "padding", 0)
        return (vertical, vertical, horizontal, horizontal)

    def run(self, x):
        x = check_input(x, self.in_channels, self._weight, "Conv2d")
        positions = self.window.positions(x.shape[2:])
        if min(positions) < 1:
            raise ValueError(f"the window of {self.window} is larger than the padded image of {tuple(x.shape)}")
        unfolded = Unfolded(self.rounded(x), self.window, positions)
        bias = None if self._bias is None else self.rounded(self._bias)
        y = self.sums(unfolded.image).correlate(unfolded, self.rounded(self._weight), bias)
        return in_format_of(x, y.to(x.dtype)), unfolded

    def add_gradients(self, gradwrtoutput):
        """Adds the parameters' gradients: map = P W + b, so dW = P^T dmap, db = sum(dmap). Returns dmap, rounded."""
        unfolded = self._kept
        expected = unfolded and (unfolded.image.shape[0], self._weight.shape[0], *unfolded.positions)
        gradient = check_gradient(gradwrtoutput, expected, "Conv2d", self._weight.dtype)
        maps = self.rounded(gradient)
        self.accumulate(unfolded, maps, gradient)
        return maps

    def backward(self, gradwrtoutput):
        """Adds the parameters' gradients and returns the input's, dimage = scatter(dmap W^T)."""
        maps, x = self.add_gradients(gradwrtoutput), self._kept.image
        image = self.sums(x).spread(maps, self.rounded(self._weight), self.window, x.shape)
        return in_format_of(gradwrtoutput, image.to(gradwrtoutput.dtype))


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
        **options,
    ):
        groups, self.in_channels, self.out_channels = check_counts(groups, in_channels, out_channels)
        kernel, stride = pair(kernel_size, "kernel_size", 1), pair(stride, "stride", 1)
        dilation, (vertical, horizontal) = pair(dilation, "dilation", 1), pair(padding, "padding", 0)
        self.output_padding = pair(output_padding, "output_padding", 0)
        if any(o >= max(s, d) for o, s, d in zip(self.output_padding, stride, dilation, strict=True)):
            raise ValueError(
                "output_padding must be smaller than stride or dilation; "
                f"got {self.output_padding}, {stride} and {dilation}"
            )
        self.window = Window(kernel, stride, (vertical, vertical, horizontal, horizontal), dilation, groups)
        shape = (self.in_channels, self.out_channels // groups, *kernel)
        super().__init__(shape, self.out_channels, bias, **options)

    def run(self, x):
        x = check_input(x, self.in_channels, self._weight, "TransposeConv2d")
        covered, padding = self.window.covered(x.shape[2:]), self.window.padding
        size = tuple(c - 2 * p + o for c, p, o in zip(covered, padding[::2], self.output_padding, strict=True))
        if min(size) < 1 or x.shape[2] * x.shape[3] == 0:
            raise ValueError(f"the padding of {self.window} leaves nothing of the output for {tuple(x.shape)}")
        shape = (x.shape[0], self.out_channels, *size)
        maps = self.rounded(x)
        y = self.sums(maps).spread(maps, self.rounded(self._weight), self.window, shape).to(x.dtype)
        return in_format_of(x, y if self._bias is None else y.add(self._bias.detach().view(-1, 1, 1))), (maps, shape)

    def backward(self, gradwrtoutput):
        """image = scatter(map W^T) + b: dW = dP^T map, db = sum(dimage), dmap = dP W; dP = gather(dimage)."""
        maps, shape = self._kept or (None, None)
        gradient = check_gradient(gradwrtoutput, shape, "TransposeConv2d", self._weight.dtype)
        unfolded = Unfolded(self.rounded(gradient), self.window, maps.shape[2:])
        self.accumulate(unfolded, maps, gradient)
        result = self.sums(maps).correlate(unfolded, self.rounded(self._weight), None)
        return in_format_of(gradient, result.to(gradient.dtype))


class NearestUpsampling(Module):
    """Every pixel scale_factor times down and across (an int or a pair): torch.nn.UpsamplingNearest2d.

    (N, C, H, W) -> (N, C, H * scale, W * scale), any floating dtype.
    """

    def __init__(self, scale_factor):
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
        whole = [int(f) if isinstance(f, float) and f.is_integer() else f for f in factors]
        self.scale = pair(whole, "scale_factor", 1)

    def run(self, x):
        if x.dim() != 4:
            raise ValueError(f"NearestUpsampling takes a (N, C, H, W) tensor; got {tuple(x.shape)}")
        n, c, h, w = x.shape
        sh, sw = self.scale
        pixels = x.detach().permute(0, 2, 3, 1)
        repeated = pixels.view(n, h, 1, w, 1, c).expand(n, h, sh, w, sw, c).reshape(n, h * sh, w * sw, c)
        repeated = repeated.clone() if sh * sw == 1 else repeated  # the output is never the input itself
        return in_format_of(x, repeated.permute(0, 3, 1, 2)), (n, c, h * sh, w * sw)

    def backward(self, gradwrtoutput):
        """Every copy sends its gradient back to the one pixel it came from."""
        gradient = check_gradient(gradwrtoutput, self._kept, "NearestUpsampling")
        sh, sw = self.scale
        cells = gradient.unflatten(3, (-1, sw)).unflatten(2, (-1, sh))  # (N, C, H, SH, W, SW)
        return sum(cells[:, :, :, i, :, j] for i in range(sh) for j in range(sw))


class ReLU(Module):
    """max(x, 0), any shape and floating dtype. With `inplace` the input itself is overwritten."""

    def __init__(self, inplace=False):
        self.inplace = inplace

    def run(self, x):
        y = x.detach().relu_() if self.inplace else x.detach().relu()
        return y, y

    def backward(self, gradwrtoutput):
        """Slope 1 where the output is positive, else 0: its sign, 20 times as fast as masked_fill.

        Unlike in torch, a gradient that is not finite gives NaN where the slope is 0, as it is where the output is NaN.
        """
        y = self._kept
        gradient = check_gradient(gradwrtoutput, None if y is None else y.shape, "ReLU")
        return y.sign().mul_(gradient)


class Sigmoid(Module):
    """1 / (1 + exp(-x)), any shape and floating dtype, without overflow."""

    def run(self, x):
        y = x.detach().sigmoid()
        return y, y

    def backward(self, gradwrtoutput):
        """sigma' = sigma (1 - sigma)."""
        y = self._kept
        gradient = check_gradient(gradwrtoutput, None if y is None else y.shape, "Sigmoid")
        return gradient * (1 - y) * y


class MSE(Module):
    """mean((prediction - target)^2) over all elements: torch.nn.MSELoss.

    `backward()` is the gradient w.r.t. the prediction, of its dtype.
    """

    def run(self, prediction, target):
        if prediction.shape != target.shape or not prediction.numel():
            raise ValueError(
                f"MSE takes two equal shapes with elements; got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        difference = prediction.detach() - target.detach()
        return difference.square().mean(), (difference, prediction.dtype)

    def backward(self, gradwrtoutput=1.0):
        """2 (prediction - target) / numel, times the gradient of the loss itself."""
        if self._kept is None:
            raise RuntimeError("MSE.backward needs the tensors of a forward: call forward first")
        if isinstance(gradwrtoutput, Tensor):
            gradwrtoutput = check_gradient(gradwrtoutput, (), "MSE")
        difference, dtype = self._kept
        return (difference * (2 / difference.numel()) * gradwrtoutput).to(dtype)


class Sequential(Module):
    """The modules one after the other; they may be Sequential themselves, but none may occur twice."""

    def __init__(self, *modules):
        if not all(hasattr(module, "forward") and not isinstance(module, type) for module in modules):
            names = ", ".join(getattr(module, "__name__", type(module).__name__) for module in modules)
            raise TypeError(f"Sequential takes modules, such as ReLU(), as separate arguments; got {names}")
        self.modules = modules
        leaves = [id(leaf) for leaf in self.leaves()]
        if len(leaves) != len(set(leaves)):
            raise ValueError(
                "a module keeps what its backward needs, so it may occur only once: make one for each place"
            )

    def leaves(self):
        """The modules that are not Sequential, in order."""
        for module in self.modules:
            yield from module.leaves() if isinstance(module, Sequential) else [module]

    def forward(self, *input):
        for module in self.modules:
            input = (module.forward(*input),)
        return input[0]

    def apply(self, *input):
        for module in self.modules:
            input = (module.apply(*input),)
        return input[0]

    def backward(self, *gradwrtoutput):
        for module in reversed(self.modules):
            gradwrtoutput = (module.backward(*gradwrtoutput),)
        return gradwrtoutput[0]

    def forget(self):
        for module in self.modules:
            module.forget()

    def param(self):
        return [pair for module in self.modules for pair in module.param()]


# ------------------------------------------------------------------------------------------------- optimisers


def check_setting(name, value, below=math.inf):
    """TypeError or ValueError unless a setting of an optimiser is a number from 0 to, but not including, `below`."""
    try:
        possible = 0 <= value < below
    except (TypeError, RuntimeError) as error:  # the latter of a tensor of several numbers
        raise TypeError(f"{name} must be a number; got {value!r}") from error
    if not possible:
        raise ValueError(f"{name} must be at least 0 and below {below:g}; got {value}")


class Optimiser:
    """Holds the (parameter, gradient) pairs of `module.param()`; `lr` may be set between steps."""

    def __init__(self, params, lr):
        self.params = [tuple(entry) if isinstance(entry, list) else entry for entry in params]
        if not self.params or not all(isinstance(entry, tuple) and len(entry) == 2 for entry in self.params):
            raise ValueError("an optimiser takes a non-empty list of (parameter, gradient) pairs: module.param()")
        if len({id(parameter) for parameter, _ in self.params}) < len(self.params):
            raise ValueError("an optimiser takes each parameter once, or it would step twice; leave out the others")
        check_setting("lr", lr)
        self.lr, self.steps = lr, 0

    def _zeros(self):
        """One tensor like each gradient."""
        return [lasting(gradient).zero_() for _, gradient in self.params]

    def zero_grad(self):
        for _, gradient in self.params:
            gradient.detach().zero_()

    def step(self):
        raise NotImplementedError

    def moments(self):
        """The tensors that the next step depends on, besides parameters and gradients."""
        raise NotImplementedError

    def state_dict(self):
        return {"steps": self.steps, "moments": self.moments()}

    def load_state_dict(self, state):
        self.steps = state["steps"]
        copy_all(self.moments(), state["moments"])


def copy_all(targets, sources):
    """Write each source into its target."""
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


class SGD(Optimiser):
    """Stochastic gradient descent with momentum: torch.optim.SGD, same arguments, same steps."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        super().__init__(params, lr)
        check_setting("momentum", momentum)
        check_setting("weight_decay", weight_decay)
        check_setting("dampening", dampening)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("nesterov needs a momentum > 0 and no dampening")
        self.momentum, self.dampening = momentum, dampening
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self._velocities = self._zeros() if momentum else []

    def moments(self):
        return self._velocities

    def step(self):
        damped = 1 if not self.steps else 1 - self.dampening  # the first gradient counts in full
        self.steps += 1
        for index, (parameter, gradient) in enumerate(self.params):
            parameter, gradient = parameter.detach(), gradient.detach()
            if self.weight_decay:
                gradient = gradient.add(parameter, alpha=self.weight_decay)
            if self.momentum:
                velocity = self._velocities[index].mul_(self.momentum).add_(gradient, alpha=damped)
                gradient = gradient.add(velocity, alpha=self.momentum) if self.nesterov else velocity
            parameter.sub_(gradient, alpha=self.lr)


class Adam(Optimiser):
    """Adam (Kingma & Ba 2015, algorithm 1): torch.optim.Adam without weight decay and amsgrad, same steps."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr)
        for beta in betas:
            check_setting("a beta", beta, below=1)
        check_setting("eps", eps)
        self.betas, self.eps = betas, eps
        self._means, self._squares = self._zeros(), self._zeros()

    def moments(self):
        return self._means + self._squares

    def step(self):
        self.steps += 1
        beta1, beta2 = self.betas
        bias1, bias2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        for (parameter, gradient), mean, square in zip(self.params, self._means, self._squares, strict=True):
            parameter, gradient = parameter.detach(), gradient.detach()
            mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = square.sqrt().div_(math.sqrt(bias2)).add_(self.eps)
            parameter.addcdiv_(mean, scale, value=-self.lr / bias1)


class Muon(Optimiser):
    """Momentum whose step is made orthogonal, steepest descent in the spectral norm (K. Jordan 2024; torch.optim.Muon).

    A convolution's weight (R, C / G, KH, KW) is the matrix (R, C / G * KH * KW); its step is the Nesterov
    momentum with all its singular values brought near 1, times sqrt(max(1, rows / columns)). Parameters of
    one dimension (biases) have no such norm and take Adam's step (betas 0.9, 0.95) at `vector_lr` times the
    rate.
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, vector_lr=0.2):
        super().__init__(params, lr)
        check_setting("momentum", momentum, below=1)
        check_setting("vector_lr", vector_lr)
        self.momentum, self.vector_lr = momentum, vector_lr
        vectors = [entry for entry in self.params if entry[0].dim() < 2]
        self._vectors = Adam(vectors, lr, (0.9, 0.95)) if vectors else None
        self._stacks = {}  # parameters of one matrix shape, orthogonalised in one batch
        for (parameter, gradient), zeros in zip(self.params, self._zeros(), strict=True):
            if parameter.dim() > 1:
                entry = (parameter, gradient, zeros)
                self._stacks.setdefault(parameter.detach().flatten(1).shape, []).append(entry)

    def moments(self):
        velocities = [velocity for entries in self._stacks.values() for _, _, velocity in entries]
        return velocities + (self._vectors.moments() if self._vectors else [])

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if self._vectors:
            self._vectors.steps = self.steps

    def step(self):
        self.steps += 1
        if self._vectors:
            self._vectors.lr = self.lr * self.vector_lr
            self._vectors.step()
        for (rows, columns), entries in self._stacks.items():
            steps = []
            for _, gradient, velocity in entries:
                gradient = gradient.detach()
                velocity.lerp_(gradient, 1 - self.momentum)
                steps.append(gradient.lerp(velocity, self.momentum).reshape(1, rows, columns))
            for (parameter, _, _), step in zip(entries, newton_schulz(cat(steps)), strict=True):
                parameter = parameter.detach()
                parameter.sub_(step.view(parameter.shape), alpha=self.lr * math.sqrt(max(1, rows / columns)))


def rounds_matrices(like):
    """Whether products of matrices round their factors, as after `torch.set_float32_matmul_precision("medium")`."""
    probe = like.new_full((1, 64, 64), 1 + 2**-12)
    return bool(product(probe, probe)[0, 0, 0] < 64.02)


def newton_schulz(matrices, steps=5):
    """Moves all singular values of (M, rows, columns) near 1, to about [0.7, 1.2], by the iteration that Muon uses.

    X <- (a + b X X^T + c (X X^T)^2) X. All factors are polynomials in the one matrix X X^T, so only they are iterated,
    on the shorter side: `gram` is X X^T of the current X, `total` the product of the factors so far. This needs
    float32: a rounded `gram` has negative eigenvalues, which grow without bound.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return newton_schulz(matrices.mT, steps).mT
    if rounds_matrices(matrices):
        return newton_schulz(matrices.double(), steps).to(matrices.dtype)
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest quintic at 0 that keeps [0, 1] within about [0.7, 1.2]
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram, total = product(matrices, matrices.mT), None
    for step in range(steps):
        factor = gram.clone().baddbmm_(gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor if total is None else product(factor, total)
        if step < steps - 1:
            gram = product(product(factor, gram), factor)
    return product(total, matrices)


def lr_factor(step, steps):
    """Share of the peak learning rate at a step: rises over the first 5 % of the steps, then falls linearly to 0."""
    return min((step + 1) / (0.05 * steps + 1), 1 - step / steps)


# ---------------------------------------------------------------------------------------- symmetries, network

D4 = tuple((transpose, axes) for transpose in (False, True) for axes in ((), (2,), (3,), (2, 3)))


def apply_d4(images, element):
    """One of the eight symmetries of the square on (B, C, H, W): transposed first (W x H), then flipped."""
    transpose, axes = element
    return (images.transpose(2, 3) if transpose else images).flip(axes)


def invert_d4(images, element):
    """The inverse of `apply_d4`."""
    transpose, axes = element
    images = images.flip(axes)
    return images.transpose(2, 3) if transpose else images


def to_view(images, element, negative, reverse):
    """A symmetry of images in [0, 1], perhaps their negatives, perhaps with the channels in reverse order."""
    images = apply_d4(images.flip(1) if reverse else images, element)
    return 1 - images if negative else images


def from_view(images, element, negative, reverse):
    """The inverse of `to_view`."""
    images = invert_d4(1 - images if negative else images, element)
    return images.flip(1) if reverse else images


@functools.cache
def regular_representation():
    """For each element h of D4, the indices of h^-1 g for g = 0 .. 7: h moves the entry h^-1 g to place g."""
    square = arange(9, device="cpu").view(1, 1, 3, 3)
    turned = [apply_d4(square, g) for g in D4]
    numbers = {tuple(image.flatten().tolist()): number for number, image in enumerate(turned)}
    table = [[numbers[tuple(apply_d4(image, h).flatten().tolist())] for image in turned] for h in D4]
    return [sorted(range(8), key=row.__getitem__) for row in table]


def orbits(shape, first_group, second_group):
    """The orbits of a convolution weight under D4: the numbers of its entries, int64 (8, entries / 8), one per column.

    Features come in groups of eight (the regular representation of D4): the symmetry h moves feature g of a group to
    h g. A layer is equivariant if its weight stays the same when h turns its kernels and moves its output and input
    features along (T. Cohen, M. Welling, "Group Equivariant Convolutional Networks", ICML 2016, section 6). The groups,
    one for each of the first two dimensions, are 8 for such features, 1 for the channels of images, which stay in
    place.
    """
    numbers = arange(math.prod(shape), device="cpu").view(shape)
    turned = []
    for order, element in zip(regular_representation(), D4, strict=True):
        weight = permute_groups(permute_groups(numbers, 0, first_group, order), 1, second_group, order)
        turned.append(apply_d4(weight, element).reshape(1, -1))
    turned = cat(turned)
    return turned[:, turned.amin(0) == numbers.flatten()]


def permute_groups(weight, axis, group, order):
    """Permutes each `group` of neighbours along an axis; groups of 1 stay as they are."""
    if group == 1:
        return weight
    return weight.unflatten(axis, (-1, group)).index_select(axis + 1, weight.new_tensor(order)).flatten(axis, axis + 1)


def symmetrised(values, orbit):
    """Replaces every entry by the mean of its orbit."""
    flat, entries = values.detach().flatten(), orbit.flatten()
    means = flat.index_select(0, entries).view(orbit.shape).mean(0)
    return flat.index_copy(0, entries, means.repeat(len(orbit))).view(values.shape)


def pad_to_multiple(images, multiple):
    """Repeat the last row and column until H and W are multiples of `multiple`."""
    for axis in (2, 3):
        size = images.shape[axis]
        if size % multiple:
            index = arange(size + -size % multiple, device=images.device).clamp_(max=size - 1)
            images = images.index_select(axis, index)
    return images


class Network(Sequential):
    """The fixed network: two stride-2 convolutions, two upsamplings. `prepared` makes its input.

    (B, in_channels, H, W) -> same shape in (0, 1), H and W multiples of 4. If the architecture allows it, it is
    equivariant: its weights are constant on each orbit (see `orbits`), so the output turns with the input.
    """

    multiple = 4

    def __init__(self, architecture, generator, device=None):
        a, settings = architecture, {"generator": generator, "device": device, "dtype": FLOAT32}

        def down(inputs, outputs):
            return Conv2d(inputs, outputs, a.kernel, stride=2, padding=(a.kernel - 1) // 2, **settings)

        def up(inputs, outputs):
            k = a.up_kernel
            if a.upsampling == "transposed":
                return TransposeConv2d(inputs, outputs, k, stride=2, padding=k // 2 - 1, **settings)
            return Sequential(NearestUpsampling(2), Conv2d(inputs, outputs, k, padding="same", **settings))

        super().__init__(
            down(a.in_channels, a.width),
            ReLU(inplace=True),
            down(a.width, a.deep_width),
            ReLU(inplace=True),
            up(a.deep_width, a.width),
            ReLU(inplace=True),
            up(a.width, a.in_channels),
            Sigmoid(),
        )
        self.architecture, self.equivariant = a, a.equivariant
        if self.equivariant:
            for (parameter, _), orbit in zip(self.param(), self.orbits(), strict=True):
                parameter.copy_(symmetrised(parameter, orbit) * math.sqrt(len(orbit)))  # a mean varies less

    def convolutions(self):
        return [block for block in self.leaves() if isinstance(block, Convolution)]

    def round_products(self, rounds):
        """Whether the two inner convolutions, nearly all of the work, multiply in bfloat16."""
        for block in self.convolutions()[1:-1]:
            block.rounds = rounds

    def orbits(self):
        """For each parameter the numbers of its entries, one column an orbit; none if not equivariant."""
        if not self.equivariant:
            return []
        convolutions, result = self.convolutions(), []
        for block in convolutions:
            inputs, outputs = 1 if block is convolutions[0] else 8, 1 if block is convolutions[-1] else 8
            groups = (outputs, inputs) if isinstance(block, Conv2d) else (inputs, outputs)
            bias = arange(block.bias.numel(), device="cpu").view(-1, outputs).t()
            result += [orbits(block.weight.shape, *groups).to(block.weight.device), bias.to(block.weight.device)]
        return result

    def add_gradients(self, gradwrtoutput):
        """`backward` without the gradient of the input, which training does not need."""
        first, *others = self.modules
        for module in reversed(others):
            gradwrtoutput = module.backward(gradwrtoutput)
        first.add_gradients(gradwrtoutput)

    @property
    def reach(self):
        """Pixels, a multiple of 4: no output depends on an input farther away.

        A layer reaches half a kernel, in pixels of its own grid: of the image's size, or twice that.
        """
        a = self.architecture
        return -(-(3 * (a.kernel // 2 + a.up_kernel // 2) + 3) // 4) * 4

    def prepared(self, images):
        """Images in [0, 1], any H x W -> the network's input: padded, centred, about unit variance, channels-last."""
        return channels_last(pad_to_multiple(images, self.multiple)).sub(0.5).mul_(self.architecture.input_scale)

    def denoised(self, images):
        """(B, C, H, W) in [0, 1], any H x W -> the same; keeps nothing."""
        height, width = images.shape[2:]
        return self.apply(self.prepared(images))[:, :, :height, :width]


# ---------------------------------------------------------------------------------------------- pairs


class Pairs:
    """Noisy pairs (N, C, H, W), kept on the device in their own dtype; large images become random patches."""

    def __init__(self, noisy_a, noisy_b, device):
        self.noisy_a, self.noisy_b = noisy_a.detach().to(device), noisy_b.detach().to(device)
        height, width = noisy_a.shape[2:]
        self.patch = min(height, PATCH), min(width, PATCH)
        self.patches = math.ceil(height * width / math.prod(self.patch))  # of an image in an epoch

    def __len__(self):
        """Patches in an epoch."""
        return len(self.noisy_a) * self.patches

    def batch(self, numbers, generator):
        """The pairs with the given numbers, below `len`: two float32 (B, C, h, w) in [0, 1]."""
        (height, width), (h, w) = self.noisy_a.shape[2:], self.patch
        cuts = []
        for number in numbers:
            image, top, left = number // self.patches, generator.randint(0, height - h), generator.randint(0, width - w)
            cuts.append((slice(image, image + 1), slice(None), slice(top, top + h), slice(left, left + w)))
        return tuple(cat([images[cut] for cut in cuts]).float().div_(255) for images in (self.noisy_a, self.noisy_b))


# ---------------------------------------------------------------------------------------------- noise of pairs


@dataclass(frozen=True)
class PairNoise:
    """What two noisy versions of an image reveal about their noise; see `measure_noise`.

    Attributes:
        correlation: of the noise of neighbouring pixels: of six neighbours up to two pixels away, the one whose
            absolute value plus two standard errors is largest. White noise has 0; blurred, demosaiced, enlarged or
            JPEG-coded noise has more.
        line_correlation: mean over all pairs of pixels of one row or one column: stripes and drifting exposure have
            more than 0.
        imbalance: (variance of noise a - variance of noise b) / (their sum): 0 for images that are equally noisy.
        offset: mean of noisy_a - noisy_b in the channel where it is furthest from 0, in standard deviations of this
            difference about its mean.
        channel_ratio: of the strongest channel's standard deviation of the noise to the weakest one's.
        errors: the standard errors of the first four, infinite where there are too few pixels to tell.
    """

    correlation: float
    line_correlation: float
    imbalance: float
    offset: float
    channel_ratio: float
    errors: tuple

    @property
    def alike(self):
        """Whether the two images are shown to be equally noisy and bright: either may then be the other's target."""
        return self._shown("imbalance", "offset")

    @property
    def exchangeable(self):
        """Whether the noise is also shown to be independent between pixels: their two values may then be swapped."""
        return self.alike and self._shown("correlation", "line_correlation")

    def error(self, name):
        """The standard error of one of the first four numbers."""
        return self.errors[("correlation", "line_correlation", "imbalance", "offset").index(name)]

    def at_least(self, name):
        """How large one of the first four numbers is without its sign, at least: by two standard errors."""
        return abs(getattr(self, name)) - 2 * self.error(name)

    def _shown(self, *names):
        """Whether numbers are below their limits by two standard errors.

        With few pixels the answer is no, which costs little; a wrong yes ruins the training.
        """
        limits = {"correlation": 0.05, "line_correlation": 0.01, "imbalance": 0.1, "offset": 0.1}
        return all(abs(getattr(self, name)) + 2 * self.error(name) <= limits[name] for name in names)


def measure_noise(noisy_a, noisy_b):
    """Measures the noise of pairs (N, C, H, W) in [0, 255] by their difference, in which the images cancel out.

    Standard errors come from the scatter between blocks of 16 x 16 pixels.
    """
    a, b = (blocks(subsample(images)) for images in (noisy_a, noisy_b))  # (blocks, C, h, w)
    difference = a - b
    centred = difference - difference.mean((0, 2, 3), keepdim=True)
    offsets = [
        ratio_with_error(d.mean((1, 2)), c.square().mean((1, 2)).sqrt().clamp(min=1e-3 / 255))  # even without noise
        for d, c in zip(difference.unbind(1), centred.unbind(1), strict=True)
    ]
    power = centred.square().mean((1, 2, 3))
    shifts = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))
    neighbours = [ratio_with_error(lagged_products(centred, *shift), power) for shift in shifts]
    lines = [ratio_with_error(line_products(centred, axis), power) for axis in (2, 3)]
    total = a + b - (a + b).mean((2, 3), keepdim=True)
    # clipped noise is larger where images are darker or brighter, which hides what it has in common
    unclipped = ((a > 0) & (b > 0) & (a < 1) & (b < 1)).flatten(1).all(1)
    imbalances = [
        ratio_with_error((centred[some] * total[some]).mean((1, 2, 3)), power[some])
        for some in (slice(None), unclipped)
    ]
    imbalance, imbalance_error = max(imbalances, key=lambda one: abs(one[0]) - 2 * one[1])
    (correlation, correlation_error), (line, line_error), (offset, offset_error) = (
        max(found, key=lambda one: abs(one[0]) + 2 * one[1]) for found in (neighbours, lines, offsets)
    )
    channels = centred.square().mean((0, 2, 3)).tolist()
    weakest, strongest = min(channels), max(channels)
    return PairNoise(
        correlation=correlation,
        line_correlation=line,
        imbalance=imbalance,
        offset=offset,
        channel_ratio=math.sqrt(strongest / weakest) if weakest > 0 else math.inf if strongest > 0 else 1.0,
        errors=(correlation_error, line_error, imbalance_error, offset_error),
    )


def subsample(images):
    """Up to four million pixels of (N, C, H, W) in [0, 255], as [0, 1]: of evenly spaced images, 256 x 256 at most.

    Values are clipped to [-1, 2], as `predict` does: a single huge one would hide all others.
    """
    rows, columns = (sampled_positions(size).to(images.device) for size in images.shape[2:])
    step = -(-len(images) // max(1, min(2048, 2**22 // (len(rows) * len(columns)))))
    return images[::step].index_select(2, rows).index_select(3, columns).float().div(255).clamp(-1, 2)


def sampled_positions(size, count=4, width=64):
    """The places along an axis that are looked at: all, or so many evenly spaced bands: a corner may be black."""
    if size <= count * width:
        return arange(size, device="cpu")
    starts = arange(count // 2, device="cpu") * (size - width) // (count - 1)
    starts = cat([starts, size - width - starts.flip(0)])  # mirrored, they are the same
    return (starts[:, None] + arange(width, device="cpu")).flatten()


def blocks(images, side=16):
    """(N, C, H, W) -> (blocks, C, side, side): whole blocks only; images of less than a block stay as they are."""
    h, w = images.shape[2:]
    rows, columns = min(h, side), min(w, side)
    images = images[:, :, : h - h % rows, : w - w % columns]
    return images.unflatten(3, (-1, columns)).unflatten(2, (-1, rows)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def lagged_products(blocks, down, right):
    """Mean product of the pixels of each block with those `down` and `right` of them; 0 where a block has none."""
    h, w = blocks.shape[2:]
    if down >= h or abs(right) >= w:
        return blocks.new_zeros(len(blocks))
    columns = w - abs(right)
    here = blocks[:, :, : h - down, max(0, -right) :][..., :columns]
    there = blocks[:, :, down:, max(0, right) :][..., :columns]
    return (here * there).mean((1, 2, 3))


def line_products(blocks, axis):
    """Mean product of all pairs of different pixels in the lines of each block along an axis; 0 for single pixels."""
    count = blocks.shape[axis]
    if count == 1:
        return blocks.new_zeros(len(blocks))
    pairs = blocks.sum(axis).square() - blocks.square().sum(axis)
    return pairs.mean((1, 2)) / (count * (count - 1))


# ---------------------------------------------------------------------------------------------- pairs that do not match


def mismatch_warning(noisy_a, noisy_b):
    """What speaks against pairs (N, C, H, W) in [0, 255] being two noisy versions of the same images, or ''."""
    a, b = subsample(noisy_a), subsample(noisy_b.to(noisy_a.device))
    if found := reorientation(a, b):
        return (
            f"noisy_b seems to be {found[0]}: with that undone, its squared difference from noisy_a is {found[1]:.0%} "
            "smaller. The model learns a mixture of both views"
        )
    share, agreement = coarse_difference(a, b)
    if share > COARSE and agreement < AGREEING:
        return (
            f"noisy_a and noisy_b seem to show different scenes: {share:.0%} of their difference is left in means over "
            f"8 x 8 pixels, and within an image these means correlate by only {agreement:.2f}. Check the order of the "
            "images, their orientation and their channels. Only noise that is blurred by two pixels or more looks alike"
        )
    moved, error, distance = displaced_share(a, b)
    if moved > DISPLACED + 3 * error and distance > TOO_FAR:
        return (
            f"noisy_a and noisy_b seem to be displaced by about {distance:.1g} pixels: {moved:.0%} of their smoothed "
            "difference follows the slopes of the images. The model would learn to blur. Align them first"
        )
    slope, slope_error = contrast_difference(a, b)
    if abs(slope) > CONTRAST + 2 * slope_error:
        return (
            f"noisy_a and noisy_b differ in contrast by {abs(slope):.0%}: the model learns that difference too. Scale "
            "both to the same exposure first"
        )
    return ""


def reorientation(a, b):
    """Whether b (N, C, H, W) seems to be mirrored, turned, or reversed in its channels: (what, gain), or None.

    All symmetries of the square are tried, with both orders of the channels: none brings the b of right pairs closer to
    a. The gain is the share of the squared difference that is gone when `what` is undone.
    """
    a, b = (images[:: -(-len(images) // VIEWED)] for images in (a, b))
    as_given, found = blocks((a - b).square()).mean((1, 2, 3)), []
    for element in D4[: 8 if a.shape[2] == a.shape[3] else 4]:
        for reverse in (False, True) if a.shape[1] == 3 else (False,):
            left = blocks((a - to_view(b, element, False, reverse)).square()).mean((1, 2, 3))
            gain, error = ratio_with_error(as_given - left, as_given)
            found.append((gain - 4 * error, gain, element, reverse))
    least, gain, element, reverse = max(found)
    share, agreement = coarse_difference(a, to_view(b, element, False, reverse))
    if least < REORIENTED or (share > COARSE and agreement < AGREEING):
        return None
    what = ["mirrored or turned"] * (element != D4[0]) + ["reversed in its channels"] * reverse
    return " and ".join(what), gain


def coarse_means(images, side=8):
    """(N, C, H, W) -> means over cells of `side` x `side`, whole ones only."""
    h, w = (size - size % side for size in images.shape[2:])
    return images[:, :, :h, :w].unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((3, 5))


def coarse_difference(a, b):
    """How much the coarse means of the images differ: (their share of the power of a - b, their correlation).

    Noise averages out in them: white noise has a share of 1/64, noise that a camera has blurred up to 0.3. Different
    scenes have more. The correlation is that within the images. (0, 1) if images are too small to tell.
    """
    difference = a - b - (a - b).mean((0, 2, 3), keepdim=True)
    power = difference.square().mean()
    if min(a.shape[2:]) < 16 or not power:
        return 0.0, 1.0
    a, b = (means - means.mean((2, 3), keepdim=True) for means in (coarse_means(a), coarse_means(b)))
    agreement = (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt().clamp(min=1e-12)
    return (coarse_means(difference).square().mean() / power).item(), agreement.item()


def contrast_difference(a, b):
    """By what share the contrast of a exceeds that of b, and its standard error.

    It is the slope of the coarse means of a - b against those of their mean, within blocks of 4 x 4. The latter are
    taken beside the former, whose noise they would share.
    """
    if min(a.shape[2:]) < 16:
        return 0.0, math.inf
    difference, image = (blocks(coarse_means(images), side=4) for images in (a - b, (a + b) / 2))
    difference, image = (part - part.mean((2, 3), keepdim=True) for part in (difference, image))
    left, right = image[..., :-1], image[..., 1:]
    beside = difference[..., :-1] * right + difference[..., 1:] * left
    return ratio_with_error(beside.mean((1, 2, 3)) / 2, (left * right).mean((1, 2, 3)))


def displaced_share(a, b):
    """The share of the power of a - b that displacements explain, its standard error, and how far they are in pixels.

    The larger a displacement is, and the noise, the better it shows in means over cells of pixels: of three sizes, the
    one with the surest share counts. (0, inf, 0) if images are too small to tell.
    """
    found = [(-math.inf, 0.0, math.inf, 0.0)]
    for side in (1, 2, 4):
        if min(a.shape[2:]) >= 16 * side:
            share, error, distance = share_along_slopes(coarse_means(a, side), coarse_means(b, side))
            found.append((share - 3 * error, share, error, side * distance))
    return max(found)[1:]


def share_along_slopes(a, b):
    """What `displaced_share` returns, at one size, for images of 16 x 16 or more.

    Smooth images displaced by a little differ by their slope times the displacement. That is fitted on the left part of
    each block, and tried on its right part, and vice versa: noise is not alike in both. Stripes are, so the means of
    rows and columns are taken away first. A ridge shrinks the fits where slopes are faint.
    """
    a, b = (blocks(images)[:: 1 + images.numel() // 2**22] for images in (a, b))
    difference, image = smoothed(a - b)[..., 1:-1, 1:-1], smoothed(a + b) / 2
    slopes = difference[:, None].repeat(1, 2, 1, 1, 1)  # down and to the right
    slopes[:, 0] = (image[..., 2:, 1:-1] - image[..., :-2, 1:-1]) / 2
    slopes[:, 1] = (image[..., 1:-1, 2:] - image[..., 1:-1, :-2]) / 2
    parts = slice(5), slice(-5, None)
    values = [without_lines(difference[..., part]).flatten(1)[:, :, None] for part in parts]  # (blocks, pixels, 1)
    slopes = [without_lines(slopes[..., part]).flatten(2) for part in parts]  # (blocks, 2, pixels)
    moments = [slope @ value for slope, value in zip(slopes, values, strict=True)]
    squares = [slope @ slope.mT for slope in slopes]
    steepness = sum(squares).diagonal(dim1=1, dim2=2).mean(1)  # in any direction
    ridge = (0.3 * steepness.mean() + 1e-12) * a.new_tensor([[1.0, 0.0], [0.0, 1.0]])
    fits = [(square + ridge).inverse() @ moment for square, moment in zip(squares, moments, strict=True)]
    explained = (moments[1] * fits[0] + moments[0] * fits[1]).sum((1, 2))
    distance = math.sqrt(max(0.0, explained.sum().item() / max(steepness.sum().item(), 1e-12)))  # root mean square
    return *ratio_with_error(explained, sum(value.square().sum((1, 2)) for value in values)), distance


def smoothed(images):
    """(..., H, W) -> (..., H - 2, W - 2): weighted by 1, 2, 1 along both axes."""
    for _ in range(2):
        images = images[..., 1:, :] + images[..., :-1, :]
        images = images[..., 1:] + images[..., :-1]
    return images / 16


def without_lines(images):
    """(..., H, W) without the means of their rows and columns."""
    images = images - images.mean(-1, keepdim=True)
    return images - images.mean(-2, keepdim=True)


def ratio_with_error(numerators, denominators):
    """sum(numerators) / sum(denominators) over the blocks, and its standard error; (0, inf) where there is none."""
    count, total = len(numerators), denominators.sum().item()
    if count < 8 or total <= 0:
        return 0.0, math.inf
    quotient = numerators.sum().item() / total
    scatter = (numerators - quotient * denominators).square().sum().item()
    return quotient, math.sqrt(scatter * count / (count - 1)) / total


def square_starts(size, count):
    """Where up to `count` squares of ENSEMBLE_SIDE start along an axis: evenly spaced, a single one in the middle."""
    room = max(0, size - ENSEMBLE_SIDE)
    count = min(count, -(-size // ENSEMBLE_SIDE))
    return [room * place // (count - 1) for place in range(count)] if count > 1 else [room // 2]


# ---------------------------------------------------------------------------------------------- training


def augment(noisy_a, noisy_b, recipe, generator):
    """A random symmetry, and what else the recipe asks for, the same for both images of each pair (B, C, H, W).

    Both directions make 2 B pairs: the targets' noise, the main noise in the gradients, is averaged.
    """
    element = D4[generator.randrange(8)]
    noisy_a, noisy_b = apply_d4(noisy_a, element), apply_d4(noisy_b, element)
    if recipe.swap_pixels:
        noisy_a, noisy_b = swap_pixels(noisy_a, noisy_b, generator)
    if recipe.both_directions:
        noisy_a, noisy_b = cat([noisy_a, noisy_b]), cat([noisy_b, noisy_a])
    return noisy_a, noisy_b


def swap_pixels(noisy_a, noisy_b, generator):
    """Swaps a pixel (all its channels) between the two images of a pair with probability 1/2.

    Exact where the noise of different pixels is independent and the two draws are alike: each pair then stands for
    2^(H W) pairs of the same distribution. Elsewhere it ruins the training: pixels that stay in one image
    reveal the noise of neighbours that went to the other.
    """
    swap = random_mask((len(noisy_a), 1, *noisy_a.shape[2:]), noisy_a.device, generator)
    return noisy_b.where(swap, noisy_a), noisy_a.where(swap, noisy_b)


OPTIMISERS = {
    "muon": lambda params, recipe: Muon(params, momentum=recipe.momentum),
    "adam": lambda params, recipe: Adam(params),
    "sgd": lambda params, recipe: SGD(params, momentum=recipe.momentum),
}


def least_epochs(pairs, recipe, pairs_seen):
    """Passes over few `Pairs` that fresh weights need to see as much as the recipe's `min_pairs`, else 1."""
    if pairs_seen:
        return 1
    pixels = len(pairs) * math.prod(pairs.patch)
    return min(MOST_PASSES, max(1, math.ceil(recipe.min_pairs * COURSE_PIXELS / pixels)))


def keep_freed_memory():
    """Makes glibc keep the memory that a step frees for the next one, which saves a sixth of its time.

    It sets its limits by the largest mapped block that was freed, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD). With
    smaller limits each step returns its patches to the system and gets them back by page faults.
    """
    empty(31 * 2**18, device="cpu", dtype=FLOAT32)  # freed at once


class Training:
    """Optimiser, averaged weights and random numbers of a training: everything that is needed to resume it.

    `step` learns from one batch, `finish` gives the network its averaged weights, `state_dict` and `load_state_dict`
    continue exactly where another process stopped. An equivariant network stays so, by gradients that are constant on
    each orbit. The average spans about `ema_steps` steps.
    """

    def __init__(self, network, recipe, seed, ema_steps):
        keep_freed_memory()
        self.network, self.recipe, self.ema_steps, self.steps = network, recipe, max(1, ema_steps), 0
        self.loss, self.orbits = MSE(), network.orbits()
        self.optimiser = OPTIMISERS[recipe.optimiser](network.param(), recipe)
        self.parameters = [parameter.detach() for parameter, _ in network.param()]
        self.ema = [parameter.clone() for parameter in self.parameters]
        self.generator = random.Random(seed)

    def step(self, noisy_a, noisy_b, lr_scale):
        """Learns from a batch of pairs (B, C, H, W) in [0, 1] at `lr_scale` times the peak rate.

        Returns the loss as a 0-d tensor on the device; reading it waits for the device.
        """
        noisy_a, noisy_b = augment(noisy_a, noisy_b, self.recipe, self.generator)
        self.optimiser.zero_grad()
        target = channels_last(pad_to_multiple(noisy_b, self.network.multiple))
        loss = self.loss(self.network(self.network.prepared(noisy_a)), target)
        self.network.add_gradients(self.loss.backward())
        if self.network.equivariant:
            for (_, gradient), orbit in zip(self.network.param(), self.orbits, strict=True):
                gradient.copy_(symmetrised(gradient, orbit))
        self.optimiser.lr = self.recipe.peak_lr * lr_scale
        self.optimiser.step()
        self.steps += 1
        share = max(1 / self.ema_steps, 1 / self.steps)
        for average, parameter in zip(self.ema, self.parameters, strict=True):
            average.lerp_(parameter, share)
        return loss

    def finish(self):
        """Copies the averaged weights into the network, and gives back the memory of the last step."""
        copy_all(self.parameters, self.ema)
        self.network.forget()

    @contextlib.contextmanager
    def averaged(self):
        """Gives the network its averaged weights within the context."""
        own = [parameter.clone() for parameter in self.parameters]
        self.finish()
        try:
            yield
        finally:
            copy_all(self.parameters, own)

    def state_dict(self):
        """Plain tensors and numbers; hand it to `load_state_dict` of a `Training` of the same network and recipe."""
        return {
            "steps": self.steps,
            "weights": self.parameters,
            "ema": self.ema,
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.getstate(),
        }

    def load_state_dict(self, state):
        self.steps = state["steps"]
        copy_all(self.parameters, state["weights"])
        copy_all(self.ema, state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.setstate(state["generator"])


def tell_progress(model, progress, step, steps, loss):
    """Calls `progress`; RuntimeError if it has loaded weights into the model or trained it."""
    before = model.network, model.pairs_seen
    progress(step, steps, loss)
    if (model.network, model.pairs_seen) != before:
        raise RuntimeError("progress may call predict and save, but not load or train: give those another Model")


# ---------------------------------------------------------------------------------------------- checks


def check_images(images, in_channels, name):
    """Raises TypeError or ValueError unless `images` are finite real numbers (N, in_channels, H, W), at least one."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (N, C, H, W); got {type(images).__name__}")
    if str(images.layout) != "torch.strided" or images.is_meta or images.is_quantized or images.is_nested:
        raise TypeError(f"{name} must be a dense tensor with values; got {images.layout} on {images.device}")
    if str(images.dtype) == "torch.bool" or images.is_complex():
        raise TypeError(f"{name} must hold real numbers in [0, 255], uint8 or floating; got {images.dtype}")
    if images.ndim != 4:
        missing = "None, None" if images.ndim == 2 else "None"
        raise ValueError(
            f"{name} must have shape (N, C, H, W); got {tuple(images.shape)}. Add a batch dimension with images"
            f"[{missing}]"
        )
    if images.shape[1] != in_channels:
        raise ValueError(
            f"{name} must have {in_channels} channels, as this model has, in dimension 1; got shape "
            f"{tuple(images.shape)}. Use Model(in_channels={images.shape[1]}) and train it, or permute the dimensions"
        )
    if images.numel() == 0:
        raise ValueError(f"{name} must hold at least one image of one pixel; got shape {tuple(images.shape)}")
    if images.is_floating_point() and not images.float().isfinite().all():
        raise ValueError(f"{name} must be finite float32; got NaN or Inf. Replace them first, by images.nan_to_num()")


def check_pairs(noisy_a, noisy_b, in_channels):
    check_images(noisy_a, in_channels, "noisy_a")
    check_images(noisy_b, in_channels, "noisy_b")
    if noisy_a.shape != noisy_b.shape:
        raise ValueError(
            "noisy_a and noisy_b must be two noisy versions of the same images, of one shape; got "
            f"{tuple(noisy_a.shape)} and {tuple(noisy_b.shape)}"
        )


def number_of_epochs(epochs, num_epochs):
    """The one of the two names that was given, a positive int."""
    if num_epochs is not None and epochs != 1:
        raise TypeError("train takes the number of epochs once: train(a, b, 1), epochs=1 or num_epochs=1")
    return whole_number(epochs if num_epochs is None else num_epochs, "epochs", 1)


def out_of_scale(images):
    """Whether values seem to be of another scale than [0, 255]: networks know noise by its strength.

    Fractions up to 16, such as metres or [0, 1]; a quarter of all values at -20 or below; means over 4 x 4 pixels of
    275 or more in a quarter of all places; more than one value in 10,000 above 510, or one beyond +-2550.
    """
    if images.dtype == UINT8:
        return False
    values = images.float()
    high = values.max().item()
    if images.is_floating_point() and 0 < high <= 16 and (high <= 1 or not values.equal(values.round())):
        return True
    if high > 10 * 255 or values.min().item() < -10 * 255:
        return True
    bright = coarse_means(values, min(4, *images.shape[2:])) >= 275
    found = (values <= -20, 0.25), (bright, 0.25), (values > 2 * 255, 1e-4)
    return any(where.float().mean().item() > share for where, share in found)


def range_warning(images):
    """Of values that are not in [0, 255]; or ''."""
    if not out_of_scale(images):
        return ""
    low, high = images.float().min().item(), images.float().max().item()  # uint16 has no min
    return (
        f"values must be in [0, 255], but these images have [{low:g}, {high:g}]: scale them first, by images * 255 "
        "for [0, 1], (images - black) * 255 / (white - black) for other ranges, images + 128 for values around 0"
    )


def equality_warning(noisy_a, noisy_b):
    """Trained on equal images, a network keeps the noise. A few may be equal by chance, where there is no noise."""
    noisy_b = noisy_b.to(noisy_a.device)
    if noisy_a.dtype != noisy_b.dtype:
        noisy_a, noisy_b = noisy_a.float(), noisy_b.float()
    equal = sum(a.equal(b) for a, b in zip(noisy_a, noisy_b, strict=True))
    if equal <= len(noisy_a) / 20:
        return ""
    which = "noisy_a and noisy_b" if equal == len(noisy_a) else f"{equal} of {len(noisy_a)} pairs"
    return (
        f"{which} are equal, noise included: the model learns to keep it. Pass two versions of the same images, with "
        "independent noise"
    )


def offset_warning(noise):
    """Of a difference in brightness, which would be learnt as well; see `Model.train`."""
    if abs(noise.offset) <= 0.1 + 4 * noise.error("offset"):
        return ""
    return (
        f"noisy_a and noisy_b differ in brightness by {noise.offset:.3g} standard deviations of their difference: the "
        "model learns that too. Scale both to the same exposure first"
    )


def contained_noise_warning(noise):
    """Noise of one image that the other one has as well cannot be learnt, or is kept."""
    if noise.at_least("imbalance") <= CONTAINED:
        return ""
    less, more = ("noisy_a", "noisy_b") if noise.imbalance < 0 else ("noisy_b", "noisy_a")
    return (
        f"{less} has hardly any noise that {more} lacks: it is clean, or {more} was made from it by adding noise, and "
        f"then the noise of {less} stays. The two images of a pair need independent noise"
    )


def no_gain_warning(share, imbalance):
    """Of a training after which so much of the squared error is left, see `Model.error_left`; or ''.

    Clean images would leave the other image's noise, (1 - imbalance) / 2: half, if both are equally noisy.
    """
    if share <= 1 - (1 - NO_GAIN) * (1 + max(-1.0, min(imbalance, 1.0))):
        return ""
    return (
        f"the training has gained hardly anything: against the other noisy images, predictions have {share:.0%} of the "
        "squared error of the noisy images themselves. Try more pairs, more epochs or another seed"
    )


def warn(text):
    """Warns whoever called a method of `Model`, unless the text is ''."""
    if text:
        warnings.warn(text, stacklevel=3)


def check_views(numbers, views):
    """The numbers of the chosen views from a weights file; ValueError if there are no such views."""
    if numbers is None:
        return None
    if numbers[:1] != [0] or not set(numbers) <= set(range(len(views))) or len(set(numbers)) < len(numbers):
        raise ValueError(f"views must be None or different numbers below {len(views)}, 0 the first; got {numbers}")
    return [operator.index(number) for number in numbers]


# ---------------------------------------------------------------------------------------------- files
#
# MAGIC, length of the header (8 bytes), header (JSON: architecture, pairs seen, noise), the parameters as float32,
# SHA-256 of all that. All numbers are little-endian.


def save_atomically(content, path):
    """Writes bytes under a temporary name, renamed when complete: the file appears whole or not at all.

    A symbolic link stays one: the file that it points to is replaced; its permissions stay. Raises OSError where
    nothing can be written.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is write-protected")
        with open(temporary, "xb") as file:
            if os.name == "posix" and path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        hint = "; its folder does not exist" if isinstance(error, FileNotFoundError) else ""
        raise type(error)(error.errno, f"cannot be written: {error.strerror or error}{hint}", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_weights(path):
    """(header, array of the parameters) of a file. FileNotFoundError or ValueError where there is none to use."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}; train a model and write one with model.save(path)")
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise ValueError(f"{path.name} is not a weights file of this module: it does not start with {MAGIC!r}")
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"{path.name} is truncated or damaged (its checksum differs): fetch or save it again")
    start = len(MAGIC) + 8
    end = start + int.from_bytes(content[start - 8 : start], "little")
    try:
        return json.loads(content[start:end]), little_endian(array("f", content[end:-32]))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a weights file of this module: {error}") from error


def little_endian(values):
    """array("f") from this machine's byte order to little-endian, or back."""
    values = values[:]
    if sys.byteorder == "big":
        values.byteswap()
    return values


# ------------------------------------------------------------------------------------------------------ model


class Model:
    """A denoiser that learns from noisy pairs.

    Args:
        recipe: how `train` learns; see `Recipe`.
        seed: of the first weights and of every random draw of training.
        device: where to compute; None takes CUDA where it works.
        precision: of the two inner convolutions, nearly all of the work: 'float32' or 'bfloat16'; None takes bfloat16
            where the processor multiplies it. A training step then takes 0.7 times as long, and an image differs from
            the float32 one by 0.1 grey values (root mean square; at most 0.8).
        sizes: of the network, such as in_channels=1 or width=64; see `Architecture`.

    Attributes:
        network: the `Network`; recipe, seed, device, precision as given; architecture: the sizes.
        pairs_seen: how many pairs the steps of training have drawn, in all epochs, a large one once for each of its
            patches; kept in the weights file.
        noise: `PairNoise` of the pairs that `train` saw last, kept in the weights file; None before.
        chosen_views: numbers of the views that self-ensembles average, see `choose_views`; None: all.
    """

    def __init__(self, *, recipe=None, seed=0, device=None, precision=None, **sizes):
        self.device = usable_device(default_device() if device is None else device)
        if not isinstance(recipe, Recipe | None):
            raise TypeError(f"recipe must be a Recipe or None; got {type(recipe).__name__}")
        self.recipe, self.seed, self.pairs_seen = recipe or Recipe(), whole_number(seed, "seed", 0), 0
        self.noise = self.chosen_views = None
        self.precision, self.architecture = precision, Architecture(**sizes)
        self.network = Network(self.architecture, random.Random(self.seed), self.device)
        self._choose_products()

    def _choose_products(self):
        """By `precision` and this machine, which a pickled model may not have been made on."""
        self.network.round_products(rounds_products(self.precision, self.device))

    def load_pretrained_model(self):
        """Loads `bestmodel.pth` beside this file."""
        self.load(PRETRAINED)

    def save(self, path):
        """Writes the weights and what rebuilds the network; whole or not at all.

        Raises ValueError for weights that are not finite, or attributes that `load` would refuse, OSError where nothing
        can be written.
        """
        if not all(parameter.isfinite().all() for parameter, _ in self.network.param()):
            raise ValueError("the weights are not finite; begin with others, and train with lower rates")
        values = [little_endian(array("f", p.flatten().tolist())).tobytes() for p, _ in self.network.param()]
        header = {
            "architecture": asdict(self.architecture),
            "pairs_seen": whole_number(self.pairs_seen, "pairs_seen", 0),
            "noise": self.noise and asdict(self.noise),
            "views": check_views(None if self.chosen_views is None else list(self.chosen_views), self.every_view()),
        }
        header = json.dumps(header).encode()
        content = MAGIC + len(header).to_bytes(8, "little") + header + b"".join(values)
        save_atomically(content + hashlib.sha256(content).digest(), path)

    def load(self, path):
        """Loads weights that `save` wrote, onto this model's device, network included.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file; the model is then as it was.
        """
        header, values = read_weights(path)
        try:
            options = {name: getattr(self, name) for name in ("recipe", "seed", "device", "precision")}
            loaded = Model(**options, **header["architecture"])
            loaded.pairs_seen, noise = whole_number(header["pairs_seen"], "pairs_seen", 0), header["noise"]
            loaded.noise = noise and PairNoise(**noise | {"errors": tuple(noise["errors"])})
            loaded.chosen_views = check_views(header.get("views"), loaded.every_view())
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:  # RuntimeError: too large
            raise ValueError(f"{Path(path).name} does not describe a network of this module: {error}") from error
        parameters = [parameter for parameter, _ in loaded.network.param()]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{Path(path).name} holds weights that are not finite: train again")
        if sum(parameter.numel() for parameter in parameters) != len(values):
            raise ValueError(f"{Path(path).name} has {len(values)} parameters, unlike the network it describes")
        for parameter in parameters:
            count = parameter.numel()
            parameter.copy_(parameter.new_tensor(values[:count].tolist()).view(parameter.shape))
            values = values[count:]
        self.__dict__.update(loaded.__dict__)

    def train(self, noisy_a, noisy_b, epochs=1, *, num_epochs=None, progress=None):
        """Learns from pairs of noisy images, no clean one needed; called again, it goes on learning.

        The learning rate rises and falls over the steps of this call; its peak falls with the number of pairs seen. If
        interrupted, the model keeps the average of its weights so far.

        Args:
            noisy_a, noisy_b: (N, C, H, W) in [0, 255], any real dtype, any H x W: two noisy versions of the same
                images, with independent noise. Other scales, the same images twice, and images that do not match give a
                warning.
            epochs: passes over the pairs; `num_epochs` is another name for it. From an image larger than 64 x 64, an
                epoch takes as many random patches as cover its area. With few pairs, fresh weights make more passes
                than asked: until they have seen 2,000 of 32 x 32, at most 10; see `Recipe.min_pairs`. Dozens of passes
                over a handful of pairs make loaded weights worse.
            progress: called as `progress(step, steps, loss)` after each step, the loss a 0-d tensor. It may call
                `predict` and `save`, which see the weights of that step, but not `load` or `train`.

        Assumptions, besides independent noise in the two images:
            The noise has mean 0. A difference in brightness is learnt as well, with a warning; clipping leaves a bias
                near black and white.
            It is alike in both images: measured, see `noise`; otherwise only b is learnt from a, not a from b. It is
                independent between pixels: measured, too; otherwise no pixels are swapped.
            It has no direction: an equivariant network treats rows and columns alike, and cannot learn to remove
                stripes of one direction. For these use `Model(width=100, deep_width=196)`, which is not equivariant.
            Other views of a picture, such as its negative, look natural, too: measured, see `choose_views`.

        Raises TypeError or ValueError for what cannot be learnt from, RuntimeError if `progress` has loaded or trained,
        or if the weights are no longer finite at the end.
        """
        epochs = number_of_epochs(epochs, num_epochs)
        self._choose_products()
        check_pairs(noisy_a, noisy_b, self.architecture.in_channels)
        for images in (noisy_a, noisy_b):
            warn(range_warning(images))
        warn(equality_warning(noisy_a, noisy_b))
        warn(mismatch_warning(noisy_a, noisy_b))
        pairs = Pairs(noisy_a, noisy_b, self.device)
        self.noise = measure_noise(pairs.noisy_a, pairs.noisy_b)
        warn(offset_warning(self.noise))
        warn(contained_noise_warning(self.noise))
        recipe = self.recipe.resolved(self.noise)
        epochs = max(epochs, least_epochs(pairs, recipe, self.pairs_seen))
        batch_size = self._batch_size(pairs, epochs)
        steps = epochs * math.ceil(len(pairs) / batch_size)
        training = Training(self.network, recipe, self.seed + self.pairs_seen, steps * recipe.ema_share)
        peak = 1 / math.sqrt(1 + self.pairs_seen / LR_DECAY_PAIRS)
        try:
            for _ in range(epochs):
                order = training.generator.sample(range(len(pairs)), len(pairs))
                for start in range(0, len(pairs), batch_size):
                    batch = pairs.batch(order[start : start + batch_size], training.generator)
                    loss = training.step(*batch, peak * lr_factor(training.steps, steps))
                    self.pairs_seen += len(batch[0])
                    if progress is not None:
                        tell_progress(self, progress, training.steps, steps, loss)
        finally:
            training.finish()
            self.choose_views(noisy_a, noisy_b)
        warn(no_gain_warning(self.error_left(noisy_a, noisy_b), self.noise.imbalance))

    def _batch_size(self, pairs, epochs):
        """As many patches as hold the pixels of the recipe's batch; fewer if few are seen in all."""
        recipe = self.recipe
        full = max(1, recipe.batch_size * COURSE_PIXELS // math.prod(pairs.patch))
        few = (self.pairs_seen + len(pairs) * epochs) // recipe.min_steps
        return min(full, max(few, recipe.min_batch_size), len(pairs))

    def predict(self, images, ensemble=None):
        """Denoises images. Threads may share the model.

        Args:
            images: (N, C, H, W) in [0, 255], any real dtype, any H x W, on any device. Another scale gives a
                warning, and values are clipped to [-255, 510]. Large ones go through the network in overlapping
                tiles: this bounds the memory; a single pass gives the result of the whole image.
            ensemble: True averages the predictions of several views of each image; see `views`. False predicts once;
                None averages images up to 64 x 64.

        Returns float32 (N, C, H, W) in [0, 255], not rounded, on the device of `images`.
        Raises TypeError or ValueError for anything else.
        """
        check_images(images, self.architecture.in_channels, "images")
        self._choose_products()
        images = images.detach()
        warn(range_warning(images))
        n, _, height, width = images.shape
        if ensemble is None:
            ensemble = max(height, width) <= ENSEMBLE_SIDE
        views = self.views() if ensemble else self.every_view()[:1]
        multiple = self.network.multiple
        chunk = max(1, CHUNK // math.prod(size + -size % multiple for size in (height, width)))
        result = lasting_empty(images.shape, images.device, FLOAT32)
        for start in range(0, n, chunk):
            self._predict_tiles(images[start : start + chunk], views, result[start : start + chunk])
        return result

    def views(self):
        """What a self-ensemble averages: those of `every_view` that `choose_views` chose, or all."""
        every = self.every_view()
        return every if self.chosen_views is None else [every[number] for number in self.chosen_views]

    def every_view(self):
        """The views of an image: (element of D4, negative, channels reversed). The first is the image as it is.

        All of D4, unless the network is equivariant and turns with its input anyway: then the image and its negative,
        and with three channels also both in reverse order.
        """
        if not self.network.equivariant:
            return [(element, False, False) for element in D4]
        reverses = (False, True) if self.architecture.in_channels == 3 else (False,)
        return [(D4[0], negative, reverse) for reverse in reverses for negative in (False, True)]

    def choose_views(self, noisy_a, noisy_b):
        """Chooses the views of self-ensembles on up to 64 squares of the pairs; `train` calls it, with its arguments.

        A view is kept if the mean of its prediction and that of the unchanged image is no farther from the other noisy
        image than the latter prediction alone. Negatives of dark pictures, and reversed channels that are not colours
        or have unequal noise, are unlike anything learnt from: averaged in, they can ruin a prediction.
        """
        noisy, other = self._sample(noisy_a), self._sample(noisy_b)
        alone, *others = (from_view(self.network.denoised(to_view(noisy, *view)), *view) for view in self.every_view())
        limit, *errors = (
            (prediction.clamp(0, 1) - other).square().mean().item()
            for prediction in (alone, *((alone + view) / 2 for view in others))
        )
        self.chosen_views = [0, *(number for number, error in enumerate(errors, start=1) if error <= limit)]

    def error_left(self, noisy_a, noisy_b):
        """The squared error of single passes against b, as a share of that of a, by up to 64 squares of the pairs.

        RuntimeError if the predictions are not finite.
        """
        noisy, other = self._sample(noisy_a), self._sample(noisy_b)
        predicted = self.network.denoised(noisy)
        if not predicted.isfinite().all():
            raise RuntimeError("the weights are no longer finite: begin with others, and lower the rates of the recipe")
        before, after = ((images.clamp(0, 1) - other).square().mean().item() for images in (noisy, predicted))
        return after / before if before else 0.0

    def _sample(self, images):
        """Up to VIEWED squares of evenly spaced images, in [0, 1], on the model's device."""
        images = images.detach()[:: -(-len(images) // VIEWED)]
        rows, columns = (square_starts(size, math.isqrt(VIEWED // len(images))) for size in images.shape[2:])
        side = ENSEMBLE_SIDE
        squares = cat([images[:, :, top : top + side, left : left + side] for top in rows for left in columns])
        return squares.to(self.device).float() / 255

    def _predict_tiles(self, images, views, result):
        """Writes the prediction of (B, C, H, W) into `result`; only one tile at a time is on the model's device.

        A tile is predicted with a margin as wide as the network's reach, so that its edges do not show. Unless the
        network is equivariant, turned views of a tile and of the whole may lie on different grids: sides that are not
        multiples of 4 are padded where the view ends.
        """
        height, width = images.shape[2:]
        margin, tile = self.network.reach, TILE if height * width > CHUNK else max(height, width)
        for y in range(0, height, tile):
            for x in range(0, width, tile):
                top, left = max(0, y - margin), max(0, x - margin)
                noisy = images[:, :, top : y + tile + margin, left : x + tile + margin].to(self.device).float() / 255
                noisy = noisy.clamp_(-1, 2)  # else one hot pixel would spoil all around it
                clean = sum(from_view(self.network.denoised(to_view(noisy, *view)), *view) for view in views)
                clean = clean[:, :, y - top : y - top + tile, x - left : x - left + tile]
                result[:, :, y : y + tile, x : x + tile] = clean.mul(255 / len(views)).clamp_(0, 255)
