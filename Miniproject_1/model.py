"""Noise2Noise: a denoiser trained on pairs of noisy images, without any clean one.

    model = Model()
    model.load_pretrained_model()              # or: model.train(noisy_a, noisy_b, epochs=1)
    clean = model.predict(noisy)               # (N, 3, H, W) in [0, 255], any H x W

Measured on 1,000 validation images in the grader's PSNR (mean over images; the noisy ones have 20.88 dB) with torch
2.13.0: bestmodel.pth 26.45 dB in a single pass, 26.50 dB with self-ensemble; a fresh `Model` after one epoch of 50,000
pairs 26.07 and 26.14 dB (three seeds), in 145 s on two cores of an Intel Xeon (AMX).

Why it works: the expected squared error against a second, independent noisy image exceeds that against the clean
image only by the variance of that noise, which does not depend on the weights (J. Lehtinen et al., "Noise2Noise:
Learning Image Restoration without Clean Data", ICML 2018, section 2).

Why so well: noise and photographs look alike if rotated or mirrored. So our network is equivariant to D4, the eight
symmetries of the square, which leaves an eighth of the weights to be learnt (T. Cohen, M. Welling, ICML 2016).

The file reads from the leaves up:

    settings                            `Recipe` and constants
    symmetries, layers                  D4, and convolutions that can be made equivariant to it
    networks                            ours, and the two of the original report
    optimiser                           Muon
    pairs, noise, mismatches            what pairs of images reveal about themselves
    training                            augmentations, losses, one step
    devices, checks, files, tiles       what `Model` leans on
    model                               train, predict, save, load

Shapes: N images, C channels, H x W pixels, batches of B, O / I output / input features, K x K kernel.
Inside, images are float32 in [0, 1]; outside, [0, 255].

Further sources: He initialisation, K. He et al., "Delving Deep into Rectifiers", ICCV 2015. U-Net, O. Ronneberger
et al., MICCAI 2015. Muon, K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the
size of its step, J. Liu et al., "Muon is Scalable for LLM Training", 2025, section 2.2. Self-ensemble, R. Timofte et
al., "Seven ways to improve example-based single image super resolution", CVPR 2016, section 3.
"""

import contextlib
import contextvars
import errno
import functools
import inspect
import math
import operator
import os
import secrets
import warnings
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

with warnings.catch_warnings():  # nothing here needs NumPy, and torch would warn without it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch
    import torch.nn.functional as F
    from torch import nn

# ---------------------------------------------------------------------------------------------- settings

FORMAT = "noise2noise weights 2"  # first entry of a weights file
PRETRAINED = Path(__file__).resolve().parent / "bestmodel.pth"
LOSSES = ("l2", "l1", "l0")


def whole_number(value, name, smallest, largest=math.inf):
    """A plain int, from `smallest` to `largest`, from anything that counts as one, such as a NumPy integer."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if number < smallest:
        raise ValueError(f"{name} must be at least {smallest}; got {number}")
    if number > largest:
        raise ValueError(f"{name} must be at most {largest}; got {number}")
    return number


@dataclass(frozen=True)
class Recipe:
    """How `Model.train` trains. If `muon_lr` is 0, Adam trains all parameters."""

    batch_size: int = 16  # pairs of 32 x 32 per step; for other sizes, the same number of pixels
    min_steps: int = 200  # if there are too few pairs for these, batches are smaller
    min_pairs: int = 2_000  # of 32 x 32, for fresh weights: fewer get more epochs, at most MOST_PASSES
    muon_lr: float = 4e-3  # peak, hidden convolution weights
    adam_lr: float = 5e-3  # peak, all other parameters
    last_lr_scale: float | None = None  # the last layer's rate, as a share of adam_lr; None: chosen by `resolved`
    constant_lr: bool = False  # otherwise the rates rise over the first 5 % of the steps, then fall linearly to 0
    ema_decay: float = 0.995  # of the exponential moving average of the weights; 0: no averaging
    flips: bool = True  # flip at random
    transpose: bool = True  # also transpose at random: with the flips, all of D4
    swap_pixels: bool | None = None  # swap the two noisy values of half the pixels; None: if `PairNoise` allows it
    both_directions: bool | None = None  # predict b from a and a from b, in one step; None: if they are alike
    negatives: bool = True  # turn half of the pairs into negatives: self-ensembles use them
    variance_floor: float | None = 0.002  # weight an image by 1 / (its noise variance + this); None, l1, l0: all alike
    loss: str = "l2"  # "l2" removes noise of mean 0, "l1" of median 0, "l0" of mode 0; see `power_loss`

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"Recipe needs a loss of {', '.join(LOSSES)}; got {self}")
        for name, least in (("batch_size", 1), ("min_steps", 0), ("min_pairs", 0)):
            whole_number(getattr(self, name), name, least)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"Recipe needs an ema_decay in [0, 1); got {self}")
        if not (0 <= self.muon_lr < math.inf and 0 <= self.adam_lr < math.inf):  # NaN is neither
            raise ValueError(f"Recipe needs finite rates of at least 0; got {self}")
        if self.last_lr_scale is not None and not 0 <= self.last_lr_scale < math.inf:
            raise ValueError(f"Recipe needs a finite last_lr_scale of at least 0, or None; got {self}")
        if self.variance_floor is not None and not 0 < self.variance_floor < math.inf:
            raise ValueError(f"Recipe needs a finite variance_floor above 0, or None; got {self}")
        if self.adam_lr == 0 < self.muon_lr:
            raise ValueError(f"Recipe needs an adam_lr above 0, or biases and the last layer never learn; got {self}")

    def resolved(self, noise, variance):
        """The recipe for pairs with this `PairNoise` and variance of the noise, its open choices made.

        The last layer makes the noise that is taken away. At the full rate, its first steps make more noise than there
        is, after which some ReLUs die: below LOW_NOISE its rate is proportional to the variance.
        """
        measured = {"swap_pixels": noise.exchangeable, "both_directions": noise.alike}
        measured["last_lr_scale"] = min(1.0, variance / LOW_NOISE**2)
        return replace(self, **{name: value for name, value in measured.items() if getattr(self, name) is None})


ORIGINAL_RECIPE = Recipe(  # of the student report that this project grew from ("the original"), for both its networks
    batch_size=8,
    min_steps=0,
    min_pairs=0,
    muon_lr=0,
    adam_lr=3e-4,
    last_lr_scale=1.0,
    constant_lr=True,
    ema_decay=0,
    transpose=False,
    swap_pixels=False,
    both_directions=False,
    negatives=False,
    variance_floor=None,
)

EPSILON = 1e-3  # of `power_loss`: a quarter of a grey value
COURSE_PIXELS = 32 * 32  # of a course image: recipes count pairs and batches in these
CELL = 32  # pixels a side: gates of our network depend on means over such cells; a course image is one
WIDE_OPEN = 20.0  # a logit whose sigmoid is 1 in float32: as a ceiling, it limits no gate
PATCH = 64  # pixels a side: larger training pairs are used as random patches of this size
LOW_NOISE = 20 / 255  # noise: with less, the last layer learns more slowly
MOST_PASSES = 20  # epochs over few pairs: more do harm unless pixels are swapped
LR_DECAY_PAIRS = 50_000  # later calls divide the peak rates by sqrt(1 + `pairs_seen` before / this)
CHUNK, GPU_CHUNK = 2**15, 2**19  # pixels predicted at once: on a CPU their features stay in its cache
TILE = 704  # pixels a side, a multiple of CELL: 32 bfloat16 features of larger tiles exceed `keep_freed_memory`
MARGIN = 56  # pixels, at least, that are discarded at a tile's edge
BLENDED = 16  # pixels, at least, that are blended with the next tile
SMALLEST = 16  # pixels a side: smaller images are padded by mirroring; no training image was so small
NARROW = 4  # pixels a side: narrower images are only clipped; mirrored, their noise looks like texture
VIEWED = 64  # pairs on which `train` judges the views that self-ensembles average, and what it has gained
COARSE = 0.36  # scenes differ if coarse means hold more than this share of the difference (`coarse_difference`) ...
AGREEING = 0.97  # ... and correlate by less than this
DISPLACED = 0.01  # images are displaced if that explains more than this share (`displaced_share`) ...
TOO_FAR = 0.3  # ... and by more than so many pixels
CONTRAST = 0.05  # see `contrast_difference`
REORIENTED = 0.05  # share of the squared difference that another view must save, by four standard errors
CONTAINED = 0.95  # imbalance of the noise, by two standard errors, from which one image's noise lies in the other's
NO_GAIN = 0.99  # of the squared error, for equally noisy images: `train` warns if more is left
ENSEMBLE_SIDE = 64  # `predict(ensemble=None)` averages several passes up to this height and width
INITIAL = contextvars.ContextVar("generator of initial weights", default=None)  # None: torch's global one


# ---------------------------------------------------------------------------------------------- symmetries

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
    square = torch.arange(9, device="cpu").view(1, 1, 3, 3)
    turned = [apply_d4(square, g) for g in D4]
    numbers = {tuple(image.flatten().tolist()): number for number, image in enumerate(turned)}
    table = [[numbers[tuple(apply_d4(image, h).flatten().tolist())] for image in turned] for h in D4]
    return [torch.tensor(row, device="cpu").argsort() for row in table]


def orbits(shape, out_group, in_group):
    """The orbits of a convolution weight's entries under D4: int64 (8, entries / 8).

    Features come in groups of eight (the regular representation of D4): the symmetry h moves feature g of a group to
    place h g. A layer is then equivariant if its weight (O, I, K, K) stays the same when each h transforms its
    kernels and permutes its outputs and inputs (T. Cohen, M. Welling, "Group Equivariant Convolutional Networks",
    ICML 2016, section 6).

    Args:
        out_group, in_group: 8 for features, which come in eights, 1 for image channels, which stay in place.
    """
    numbers = torch.arange(math.prod(shape), device="cpu").view(shape)
    turned = []
    for order, element in zip(regular_representation(), D4, strict=True):
        weight = permute_groups(permute_groups(numbers, 0, out_group, order), 1, in_group, order)
        turned.append(apply_d4(weight, element).flatten())
    turned = torch.stack(turned)
    return turned[:, turned.amin(0) == numbers.flatten()]


def permute_groups(weight, axis, group, order):
    """Permutes each `group` of neighbours along an axis; groups of 1 stay as they are."""
    if group == 1:
        return weight
    return weight.unflatten(axis, (-1, group)).index_select(axis + 1, order).flatten(axis, axis + 1)


class Symmetrise(torch.autograd.Function):
    """Replaces every entry of a tensor by the mean of its orbit: a projection, and its own adjoint.

    `entries` (n,) are the indices of all entries, as `orbits(...)` flattened; `orbit` (n,) is the index of each
    entry's orbit.
    """

    @staticmethod
    def forward(ctx, values, entries, orbit):
        ctx.save_for_backward(entries, orbit)
        return Symmetrise.project(values, entries, orbit)

    @staticmethod
    def backward(ctx, gradient):
        return Symmetrise.project(gradient, *ctx.saved_tensors), None, None

    @staticmethod
    def project(values, entries, orbit):
        means = values.flatten().index_select(0, entries).view(8, -1).mean(0)
        return means.index_select(0, orbit).view(values.shape)


# ---------------------------------------------------------------------------------------------- layers


@contextlib.contextmanager
def initial_weights_from(generator):
    """Lets our layers draw their initial weights from a generator meanwhile, in this thread alone."""
    token = INITIAL.set(generator)
    try:
        yield
    finally:
        INITIAL.reset(token)


class Symmetric:
    """A convolution that can be made equivariant to D4: it then symmetrises its parameters whenever it uses them."""

    equivariant = False

    def reset_parameters(self):
        """torch's own initialisation, from the generator of `initial_weights_from`."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=INITIAL.get())

    @torch.no_grad()
    def make_equivariant(self, out_group=8, in_group=8):
        """Makes the layer equivariant from now on; the groups are those of `orbits`."""
        numbers = orbits(self.weight.shape, out_group, in_group)
        orbit = torch.empty(self.weight.numel(), dtype=torch.int64, device="cpu")
        orbit[numbers] = torch.arange(numbers.shape[1], device="cpu")
        self.register_buffer("entries", numbers.flatten(), persistent=False)
        self.register_buffer("orbit", orbit, persistent=False)
        self.equivariant, self.bias_group = True, out_group
        self.weight.copy_(self.weight_and_bias()[0] * math.sqrt(8))  # a mean of eight has an eighth of the variance

    def weight_and_bias(self):
        """The parameters as the layer uses them."""
        if not self.equivariant:
            return self.weight, self.bias
        groups = self.bias.view(-1, self.bias_group)
        bias = groups.mean(1, keepdim=True).expand(groups.shape).flatten()
        return Symmetrise.apply(self.weight, self.entries, self.orbit), bias


class Conv2d(Symmetric, nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, *self.weight_and_bias(), self.stride, self.padding)


class ConvTranspose2d(Symmetric, nn.ConvTranspose2d):
    def forward(self, x):
        return F.conv_transpose2d(x, *self.weight_and_bias(), self.stride)


def make_equivariant(network):
    """Makes a network equivariant: `first` takes images, `last` returns them, all other features come in eights."""
    for layer in network.modules():
        if isinstance(layer, Symmetric):
            layer.make_equivariant(1 if layer is network.last else 8, 1 if layer is network.first else 8)
    network.equivariant = True


def conv(in_channels, out_channels, kernel=3, stride=1, slope=0.0):
    """Convolution that keeps H x W (stride 1) or divides it (kernel = stride), He-initialised for a LeakyReLU slope."""
    padding = 0 if stride > 1 else kernel // 2
    layer = Conv2d(in_channels, out_channels, kernel, stride, padding, dtype=torch.float32)
    return he_initialised(layer, slope)


def up_conv(in_channels, out_channels):
    """Transposed convolution that doubles H x W, He-initialised."""
    return he_initialised(ConvTranspose2d(in_channels, out_channels, 2, stride=2, dtype=torch.float32))


def he_initialised(layer, slope=0.0):
    nn.init.kaiming_normal_(layer.weight, slope, generator=INITIAL.get())
    nn.init.zeros_(layer.bias)
    return layer


def zero_initialised(layer):
    nn.init.zeros_(layer.weight)
    return layer


@torch.no_grad()
def scale_down(*layers):
    """Scales He-initialised weights to torch's default size: Muon changes small ones faster."""
    for layer in layers:
        layer.weight.div_(math.sqrt(6))


# ---------------------------------------------------------------------------------------------- networks


class ResidualBlock(nn.Module):
    """x + conv(g * relu(conv(x))), with a gate g in (0, 2) per hidden feature, computed from the means of them all.

    The means show how noisy and how textured an image is, which no 3 x 3 window sees (J. Hu et al.,
    "Squeeze-and-Excitation Networks", CVPR 2018). They are taken over cells of `cell` x `cell` pixels, and the gates
    interpolated in between: distant parts of an image do not matter, and tiles of whole cells have nearly the same
    gates. If `cell` is None, there are no gates.

    On textures that no training pair has, such as fine stripes, gates may open that are nearly shut in training, and
    features grow from block to block. So none opens farther than its `ceiling`, once `limit_gates.py` has set that.
    """

    def __init__(self, width, cell=None):
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        self.gate, self.cell = zero_initialised(conv(width, width, kernel=1)) if cell else None, cell
        if cell:  # of the logits
            self.register_buffer("ceiling", torch.full((width, 1, 1), WIDE_OPEN))
        with torch.no_grad():
            self.second.weight.mul_(0.5)  # so that features do not grow along a chain of blocks

    def forward(self, x):
        return self.second(self.gated(F.relu(self.first(x), inplace=True))).add_(x)

    def gated(self, hidden):  # (B, width, H, W)
        if self.gate is None:
            return hidden
        logits = self.gate(cell_means(hidden, self.cell))
        gates = 2 * logits.minimum(self.ceiling.to(logits.dtype)).sigmoid()
        return hidden * blended(gates, hidden.shape[2:], self.cell)


def cell_means(x, cell):
    """(B, C, H, W) -> (B, C, rows, columns): means over cells; less than half a cell at the end joins the last.

    Products of matrices, as in `blended`: forwards and backwards, features stay in the order that is fast.
    """
    if max(x.shape[2:]) < cell + cell // 2:
        return x.mean((2, 3), keepdim=True)
    down, across = (cell_members(size, cell).to(x.device) for size in x.shape[2:])
    sums = along_rows(along_columns(x, down.to(x.dtype)), across.to(x.dtype))
    return sums / (down.sum(1)[:, None] * across.sum(1))  # sizes of cells, in float32


def cell_members(pixels, cell):
    """(cells, pixels): 1 where a pixel of an axis belongs to a cell, otherwise 0."""
    cells = torch.arange(max(1, (pixels + cell // 2) // cell), device="cpu")
    cell_of_pixel = (torch.arange(pixels, device="cpu") // cell).clamp(max=len(cells) - 1)
    return (cells[:, None] == cell_of_pixel).float()


def blended(cells, size, cell):
    """(B, C, rows, columns) -> (B, C, *size): linear between the centres of the cells, constant outside of them.

    Much faster than `F.interpolate`, above all in the backward pass.
    """
    if cells.shape[2:] == (1, 1):
        return cells  # broadcast
    down, across = (
        blend_weights(pixels, count, cell).to(cells) for pixels, count in zip(size, cells.shape[2:], strict=True)
    )
    return along_columns(along_rows(cells, across), down)


def blend_weights(pixels, cells, cell):
    """(pixels, cells): the share that each cell of an axis has in each pixel; multiples of 1 / (2 cell)."""
    pixel = torch.arange(pixels, dtype=torch.float32, device="cpu")
    places = ((pixel + 0.5) / cell - 0.5).clamp(0, cells - 1)  # 0: centre of the first
    return (1 - (places[:, None] - torch.arange(cells, device="cpu")).abs()).clamp(min=0)


def along_columns(x, matrix):
    """(B, C, H, W) -> (B, C, h, W): each column multiplied by a matrix (h, H). Channels last, as all features."""
    rows = matrix @ x.permute(0, 2, 3, 1).flatten(2)  # (B, h, W C)
    return rows.unflatten(2, (x.shape[3], x.shape[1])).permute(0, 3, 1, 2)


def along_rows(x, matrix):
    """(B, C, H, W) -> (B, C, H, w): each row multiplied by a matrix (w, W). Channels last, as all features."""
    pixels = matrix @ x.permute(0, 2, 3, 1).flatten(0, 1)  # (B H, w, C)
    return pixels.unflatten(0, (x.shape[0], x.shape[2])).permute(0, 3, 1, 2)


class Denoiser(nn.Module):
    """What `Model` needs of a network, besides a `forward` that maps (B, C, H, W) in [0, 1] to denoised images.

    Attributes that each network has of its own:
        first, last: its first and last convolution, which Adam trains also where Muon trains the others.
        multiple: H and W must be multiples of this.
        reach: in pixels; no output depends on an input farther away, but for gates.
    """

    border = 0  # pixels that `predict` mirrors around the edges of an image first
    equivariant = False  # whether the output transforms with the input, for all eight symmetries of the square
    predicts_noise = False  # whether the last layer makes the noise that is taken from the input


class Stage(nn.Module):
    """One level of a U-Net: residual blocks around the next level, at half the resolution with twice the features.

    The innermost of `levels` has `inner_blocks`, each other one `blocks` on the way down and as many on the way up.
    """

    def __init__(self, width, levels, blocks, inner_blocks, cell):
        super().__init__()
        inner_cell = cell and cell // 2
        self.encode = chain(width, blocks, cell)
        self.down = conv(width, 2 * width, kernel=2, stride=2)
        if levels > 2:
            self.inner = Stage(2 * width, levels - 1, blocks, inner_blocks, inner_cell)
        else:
            self.inner = chain(2 * width, inner_blocks, inner_cell)
        self.up = up_conv(2 * width, width)
        self.decode = chain(width, blocks, cell)
        self.reach = 4 * blocks + 2 * (self.inner.reach if levels > 2 else 2 * inner_blocks) + 1
        scale_down(self.down, self.up)

    def forward(self, x):  # (B, width, H, W)
        x = self.encode(x)
        inner = self.inner(F.relu(self.down(x), inplace=True))  # (B, 2 width, H / 2, W / 2)
        return self.decode(self.up(inner).add_(x))


def chain(width, blocks, cell):
    return nn.Sequential(*(ResidualBlock(width, cell) for _ in range(blocks)))


class ResidualUNet(Denoiser, Stage):
    """Our network: residual blocks at full and lower resolutions; predicts the noise to subtract.

    Point-sampling noise is independent between pixels, so most of the work is done at full resolution. The centred
    input is scaled by 4: weights of the usual size then act on values of the usual size.

    If `equivariant`, the output transforms with the input, for all eight symmetries of the square, where H and W are
    multiples of `multiple`: an eighth of the free weights needs fewer pairs, and one pass gives what the average over
    the eight would. Gates (see `ResidualBlock`) gain 0.05 dB in long trainings against means of noisy targets, nothing
    in one epoch of noisy ones. A `border` is for weights that know edges too little.
    """

    predicts_noise = True

    def __init__(
        self, in_channels=3, width=32, blocks=1, inner_blocks=2, equivariant=True, gates=False, levels=2, border=0
    ):
        if equivariant and width % 8:
            raise ValueError(f"width must be a multiple of 8, one feature for each symmetry; got {width}")
        if not 2 <= levels <= 8:  # each has twice the features of the one before
            raise ValueError(f"levels must be from 2 to 8; got {levels}")
        if border < 0 or border % 2 ** (levels - 1) or (gates and border % CELL):
            raise ValueError(f"border must be a multiple of {CELL if gates else 2 ** (levels - 1)}; got {border}")
        first = conv(in_channels, width)
        super().__init__(width, levels, blocks, inner_blocks, CELL if gates else None)
        self.first = first
        scale_down(self.first)
        self.last = zero_initialised(conv(width, in_channels))  # untrained, the network returns its input
        self.reach += 2
        self.multiple = 2 ** (levels - 1)
        self.border = border
        if equivariant:
            make_equivariant(self)

    def forward(self, images):  # (B, C, H, W)
        x = super().forward(F.relu(self.first(4 * (images - 0.5)), inplace=True))  # (B, width, H, W)
        return images + self.last(F.relu(x, inplace=True))


class DoubleConv(nn.Sequential):
    """Two convolutions, each with a LeakyReLU."""

    def __init__(self, in_channels, out_channels, slope=0.1):
        first, second = conv(in_channels, out_channels, slope=slope), conv(out_channels, out_channels, slope=slope)
        super().__init__(first, nn.LeakyReLU(slope), second, nn.LeakyReLU(slope))


class UNet(Denoiser):
    """The original U-Net: double convolutions, average pooling, transposed convolutions, concatenated skips."""

    multiple, reach = 4, 23

    def __init__(self, in_channels=3, width=32):
        super().__init__()
        self.encode1 = DoubleConv(in_channels, width)
        self.encode2 = DoubleConv(width, 2 * width)
        self.bottom = DoubleConv(2 * width, 4 * width)
        self.up2 = up_conv(4 * width, 2 * width)
        self.decode2 = DoubleConv(4 * width, 2 * width)
        self.up1 = up_conv(2 * width, width)
        self.decode1 = DoubleConv(2 * width, width)
        self.last = conv(width, in_channels, kernel=1)
        self.pool = nn.AvgPool2d(2)

    @property
    def first(self):
        return self.encode1[0]

    def forward(self, images):  # (B, C, H, W)
        full = self.encode1(images - 0.5)  # (B, width, H, W)
        half = self.encode2(self.pool(full))  # (B, 2 width, H / 2, W / 2)
        x = self.up2(self.bottom(self.pool(half)))
        x = self.up1(self.decode2(torch.cat([x, half], dim=1)))
        return self.last(self.decode1(torch.cat([x, full], dim=1))) + 0.5


class Noise2NoiseNet(Denoiser):
    """The original's second network, after figure 4 of the Noise2Noise paper's appendix: one convolution a level down
    to 1/32, nearest upsampling, concatenated skips, the last of them the noisy image itself."""

    multiple, reach = 32, 158

    def __init__(self, in_channels=3, width=48, slope=0.1):
        super().__init__()
        layer = functools.partial(conv, slope=slope)
        self.slope = slope
        self.first = layer(in_channels, width)
        self.encode = nn.ModuleList(layer(width, width) for _ in range(6))
        deep = [width] + 3 * [2 * width]  # features that come up to each of the four deeper levels
        self.decode = nn.ModuleList(
            nn.ModuleList([layer(below + width, 2 * width), layer(2 * width, 2 * width)]) for below in deep
        )
        self.image = nn.ModuleList([layer(2 * width + in_channels, 64), layer(64, 32)])
        self.last = conv(32, in_channels)

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
    """The given sizes of a network and the defaults of the others, as plain numbers: a weights file keeps them all."""
    parameters = inspect.signature(network_class).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.name != "in_channels"}
    unknown = sizes.keys() - defaults.keys()
    if unknown:
        raise TypeError(f"sizes of this network are {', '.join(defaults)}; got {', '.join(sorted(unknown))}")

    def plain(name, value):
        kind = type(defaults[name])
        return whole_number(value, name, 1 if name == "width" else 0) if kind is int else kind(value)

    return defaults | {name: plain(name, value) for name, value in sizes.items()}


def forward_any_size(network, images):
    """Runs a network on (B, C, H, W) of any H x W: pads by mirroring to a size that it takes, then crops."""
    (height, top, rows), (width, left, columns) = (mirrored(size, network.multiple) for size in images.shape[2:])
    if (len(rows), len(columns)) != (height, width):
        images = images.index_select(2, rows.to(images.device)).index_select(3, columns.to(images.device))
    result = network(images.contiguous(memory_format=torch.channels_last))
    return result[:, :, top : top + height, left : left + width]


def mirrored(size, multiple):
    """How an axis is padded to a multiple, and to SMALLEST: size, padding before it, source index of each pixel."""
    padded = max(size, SMALLEST)
    padded += -padded % multiple
    before = (padded - size) // 2 if size < SMALLEST else 0  # tiles and whole images keep the same grid
    return size, before, sources(-before, padded - before, size)


def sources(start, end, size):
    """The pixels of an axis that a mirrored one shows at the places from `start` to `end`: ..., 1, 0, 0, 1, ..."""
    index = torch.arange(start, end, device="cpu") % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


# ---------------------------------------------------------------------------------------------- optimiser


def rounds_matrices(like):
    """Whether products of matrices round their factors, as after `torch.set_float32_matmul_precision("medium")`."""
    probe = like.new_full((1, 64, 64), 1 + 2**-12)
    return bool(probe.bmm(probe)[0, 0, 0] < 64.02)


def newton_schulz(matrices, steps=5):
    """Moves all singular values of (M, rows, columns) near 1, to about [0.7, 1.2], by the iteration that Muon uses.

    X <- (a + b X X^T + c (X X^T)^2) X. All factors are polynomials of the one matrix X X^T, so that only they are
    iterated, on the shorter side: `gram` is X X^T of the current X, `total` the product of the factors so far.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return newton_schulz(matrices.mT, steps).mT
    if rounds_matrices(matrices):  # errors of `gram` would grow without bound
        return newton_schulz(matrices.double(), steps).to(matrices.dtype)
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at 0 of the quintics that end in about [0.7, 1.2]
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    gram, total = matrices.bmm(matrices.mT), None
    for step in range(steps):
        factor = gram.baddbmm(gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor if total is None else factor.bmm(total)
        if step < steps - 1:
            gram = factor.bmm(gram).bmm(factor)
    return total.bmm(matrices)


class Muon(torch.optim.Optimizer):
    """Momentum whose step is orthogonalised, for convolution weights seen as matrices (O, I * K * K).

    `torch.optim.Muon` takes only matrices, one at a time; here those of one shape are batched, which makes the step
    over five times faster on a CPU. Its root mean square is 0.2 times the learning rate, whatever the shape.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (rows, columns), parameters in by_shape.items():
                directions = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                scale = -0.2 * group["lr"] * math.sqrt(max(rows, columns))
                for parameter, step in zip(parameters, newton_schulz(directions), strict=True):
                    parameter.add_(step.view(parameter.shape), alpha=scale)

    def _momentum(self, parameter, decay):
        """Nesterov's look-ahead of the averaged gradient, as a matrix."""
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"]
        average.lerp_(parameter.grad, 1 - decay)
        return parameter.grad.lerp(average, decay).flatten(1)


def lr_factor(step, steps):
    """Share of the peak learning rate at a step: rises over the first 5 % of the steps, then falls linearly to 0."""
    return min((step + 1) / (0.05 * steps + 1), 1 - step / steps)


# ---------------------------------------------------------------------------------------------- pairs


class Pairs:
    """Noisy pairs (N, C, H, W), kept on the device in their own dtype; large images become random patches."""

    def __init__(self, noisy_a, noisy_b, device):
        self.noisy_a, self.noisy_b = to_device(noisy_a.detach(), device), to_device(noisy_b.detach(), device)
        height, width = noisy_a.shape[2:]
        self.patch = min(height, PATCH), min(width, PATCH)
        self.patches = math.ceil(height * width / math.prod(self.patch))  # of an image in an epoch

    def __len__(self):
        """Patches in an epoch."""
        return len(self.noisy_a) * self.patches

    def batch(self, index, generator):
        """The pairs with the given numbers, below `len`: two float32 (B, C, h, w) in [0, 1]."""
        rows, columns = (
            torch.randint(size - part + 1, (len(index), 1), generator=generator, device="cpu")
            + torch.arange(part, device="cpu")
            for size, part in zip(self.noisy_a.shape[2:], self.patch, strict=True)
        )
        where = (index // self.patches)[:, None, None], rows[:, :, None], columns[:, None, :]
        image, row, column = (to_device(part, self.noisy_a.device) for part in where)
        return tuple(
            images[image, :, row, column].permute(0, 3, 1, 2).float() / 255 for images in (self.noisy_a, self.noisy_b)
        )


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


def noise_variance(noisy_a, noisy_b):
    """Half the mean squared difference, of brightness too, of pairs (N, C, H, W) in [0, 255], for values in [0, 1]."""
    return (subsample(noisy_a) - subsample(noisy_b)).square().mean().item() / 2


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
        return torch.arange(size, device="cpu")
    starts = torch.arange(count // 2, device="cpu") * (size - width) // (count - 1)
    starts = torch.cat([starts, size - width - starts.flip(0)])  # mirrored, they are the same
    return (starts[:, None] + torch.arange(width, device="cpu")).flatten()


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
    """The recipe's random augmentations, applied to both images of each pair (B, C, H, W) together.

    `both_directions` gives 2 B pairs: that averages the noise of the targets, the main source of gradient noise.
    """
    if recipe.flips:
        noisy_a, noisy_b = flip_and_transpose(noisy_a, noisy_b, generator, recipe.transpose)
    if recipe.swap_pixels:
        noisy_a, noisy_b = swap_pixels(noisy_a, noisy_b, generator)
    if recipe.negatives:
        noisy_a, noisy_b = half_negative(noisy_a, noisy_b, generator)
    if recipe.both_directions:
        noisy_a, noisy_b = torch.cat([noisy_a, noisy_b]), torch.cat([noisy_b, noisy_a])
    return noisy_a, noisy_b


def flip_and_transpose(noisy_a, noisy_b, generator, transpose=True):
    """The same random symmetries for both images of each pair: a quarter of the batch gets each flip."""
    transpose = transpose and bool(random_mask((), torch.device("cpu"), generator))
    first = int(torch.randint(4, (), generator=generator, device="cpu"))
    elements = D4[4:] if transpose else D4[:4]
    return tuple(
        torch.cat([apply_d4(images[k::4], elements[(first + k) % 4]) for k in range(4)])
        for images in (noisy_a, noisy_b)
    )


def random_mask(shape, device, generator):
    """True with probability 1/2, bool of the given shape: drawn on the CPU, the same for any device."""
    draws = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")
    return to_device(draws < 0.5, device)


def swap_pixels(noisy_a, noisy_b, generator):
    """Swaps a pixel (all its channels) between the two images of a pair with probability 1/2.

    Exact if the noise is independent between pixels and alike in both images: each pair then stands for 2^(H W) pairs
    of the same distribution. This gains 0.09 dB if 1,000 pairs are seen ten times, nothing if 50,000 are seen once.
    Otherwise it ruins the training: pixels that stay in one image reveal the noise of neighbours that went to the
    other.
    """
    swap = random_mask((len(noisy_a), 1, *noisy_a.shape[2:]), noisy_a.device, generator)
    return torch.where(swap, noisy_b, noisy_a), torch.where(swap, noisy_a, noisy_b)


def half_negative(noisy_a, noisy_b, generator):
    """Makes both images of a pair negatives with probability 1/2.

    Noise may depend on the grey value: without this, self-ensembles meet noise that was never seen. After
    7,800 pairs of Poisson noise, they gave 23.04 dB with it and 22.91 without.
    """
    negative = random_mask((len(noisy_a), 1, 1, 1), noisy_a.device, generator)
    return tuple(torch.where(negative, 1 - images, images) for images in (noisy_a, noisy_b))


def noise2noise_loss(prediction, noisy_a, noisy_b, variance_floor):
    """Squared error against the second noisy image, each image weighted by 1 / (its noise variance + variance_floor).

    The grader's score is a mean of logarithms: the larger an image's error, the less it counts. That error
    depends mostly on the noise variance, half the mean squared difference of the pair. If a prediction is worse than
    its input, its error is used instead, so that no image outweighs all others. With a `variance_floor` of None all
    images weigh the same.
    """
    error = (prediction - noisy_b).square().mean(dim=(1, 2, 3))  # (B,)
    if variance_floor is None:
        return error.mean()
    variance = (noisy_a - noisy_b).square().mean(dim=(1, 2, 3)) / 2
    return (error * variance_floor / (torch.maximum(variance, error.detach() / 2) + variance_floor)).mean()


def power_loss(prediction, noisy_b, power):
    """Mean of (|prediction - noisy_b| + EPSILON)^power, for noise whose mean is not 0.

    A power of 1 is least at the median, which text over less than half of the picture does not change. A power that
    falls from 2 to 0 during training ends near the mode, which impulses of random values do not change (Noise2Noise,
    sections 3.3 and 3.4). The paper's 1e-8 is below a float32's spacing near 1: an error that happens to be 0 or 1e-7
    would outweigh a million others. Files have steps of 1/255.

    Images have equal weights: their variance comes from the largest errors, which this loss should ignore.
    """
    return ((prediction - noisy_b).abs() + EPSILON).pow(power).mean()


class Training:
    """Optimisers, averaged weights and random draws of a network that learns: everything a resumed training needs.

    `step` learns from one batch, `finish` gives the network its averaged weights, `state_dict` and `load_state_dict`
    continue exactly where another process stopped. Parameters that do not require a gradient stay as they are.
    """

    def __init__(self, network, recipe, seed, precision=None):
        keep_freed_memory()
        network.zero_grad()  # an interrupted step may have left some
        self.network, self.recipe, self.steps = network, recipe, 0
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("all parameters of the network are frozen: set requires_grad of those to be trained")
        hidden = [p for p in self.parameters if recipe.muon_lr and is_hidden_weight(p, network)]
        others = [p for p in self.parameters if all(p is not h for h in hidden)]
        of_last = {id(p) for p in network.last.parameters()}
        last_lr = recipe.adam_lr * (1 if recipe.last_lr_scale is None else recipe.last_lr_scale)
        groups = [
            {"params": [p for p in others if id(p) not in of_last]},
            {"params": [p for p in others if id(p) in of_last], "lr": last_lr},
        ]
        self.optimizers = [Muon(hidden, lr=recipe.muon_lr)] if hidden else []
        if others:
            self.optimizers.append(torch.optim.Adam(groups, lr=recipe.adam_lr, betas=(0.9, 0.98)))
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.ema = [p.detach().clone() for p in self.parameters]
        self.generator = torch.Generator("cpu").manual_seed(seed)  # the same draws on any device
        self.autocast = autocast(self.parameters[0].device, precision)

    def step(self, noisy_a, noisy_b, lr_scale, done=0.0):
        """Learns from a batch of pairs (B, C, H, W) in [0, 1] at `lr_scale` times the peak rates.

        `done` is the share of all steps that are done, in [0, 1): the loss "l0" changes with it.

        Returns the loss as a 0-d tensor on the device; reading it waits for the device.
        """
        loss = self.backward(*augment(noisy_a, noisy_b, self.recipe, self.generator), done)
        self._update(lr_scale)
        return loss

    def backward(self, noisy_a, noisy_b, done):
        """Gradients of the loss, a mean over a batch of augmented pairs; returns the loss without its graph."""
        with self.autocast:
            prediction = forward_any_size(self.network, noisy_a)
        loss = self.loss(prediction.float(), noisy_a, noisy_b, done)
        loss.backward()
        return loss.detach()

    def loss(self, prediction, noisy_a, noisy_b, done):
        """The recipe's loss of a prediction from `noisy_a`."""
        if self.recipe.loss == "l2":
            return noise2noise_loss(prediction, noisy_a, noisy_b, self.recipe.variance_floor)
        return power_loss(prediction, noisy_b, 1 if self.recipe.loss == "l1" else 2 * (1 - done))

    def _update(self, lr_scale):
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * lr_scale
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.recipe.ema_decay, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        self.steps += 1

    def finish(self):
        """Copies the averaged weights into the network."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.ema)

    @contextlib.contextmanager
    def averaged(self):
        """Gives the network its averaged weights within the context."""
        own = [p.detach().clone() for p in self.parameters]
        self.finish()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self):
        """Plain tensors and numbers; hand it to `load_state_dict` of a `Training` of the same network and recipe."""
        return {
            "steps": self.steps,
            "weights": [p.detach() for p in self.parameters],
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.steps = state["steps"]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, state["weights"])
            torch._foreach_copy_(self.ema, state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"])


def least_epochs(pairs, recipe, pairs_seen):
    """Passes over few `Pairs` that fresh weights need to see as much as the recipe's `min_pairs`, else 1."""
    if pairs_seen:
        return 1
    pixels = len(pairs) * math.prod(pairs.patch)
    return min(MOST_PASSES, max(1, math.ceil(recipe.min_pairs * COURSE_PIXELS / pixels)))


def batch_size_and_peak(pairs, epochs, recipe, pairs_seen):
    """Patches per step, and the peak of the schedule as a share of the recipe's rates, for `epochs` of `Pairs`.

    A batch has as many pixels as the recipe's, fewer if there are few pairs. The peak falls with the square root of
    the pixels per batch, and with the pairs that the weights have seen before.
    """
    pixels = math.prod(pairs.patch)
    full = max(1, recipe.batch_size * COURSE_PIXELS // pixels)
    few = int(len(pairs) * epochs) // max(1, recipe.min_steps)
    batch_size = min(full, max(1, few), len(pairs))
    peak = math.sqrt(min(1, batch_size * pixels / (recipe.batch_size * COURSE_PIXELS)))
    return batch_size, peak / math.sqrt(1 + pairs_seen / LR_DECAY_PAIRS)


def keep_freed_memory():
    """Makes glibc keep the memory that a step frees for the next one, up to 64 MB.

    It sets its limits by the largest mapped block that was freed, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD). With
    smaller limits, and for larger blocks, each step on a CPU returns its features to the system and gets them back by
    thousands of page faults: a third more time, and up to ten times as much on virtual machines that reclaim memory.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")  # freed at once


def is_hidden_weight(parameter, network):
    """Whether a parameter is a convolution weight between features: not a bias, and not in the network's `first`
    or `last` layer, which take and return images."""
    return parameter.ndim == 4 and all(parameter is not layer.weight for layer in (network.first, network.last))


def tell_progress(model, progress, step, steps, loss):
    """Calls `progress`; RuntimeError if it has loaded weights into the model or trained it."""
    before = model.network, model.pairs_seen
    progress(step, steps, loss)
    if (model.network, model.pairs_seen) != before:
        raise RuntimeError("progress may call predict and save, but not load or train: give those another Model")


# ---------------------------------------------------------------------------------------------- devices


@functools.cache
def default_device():
    """CUDA if this torch can run a kernel on it, else the CPU: for old GPUs it has no kernels."""
    if torch.cuda.is_available():
        try:
            torch.ones(1, device="cuda").add_(1).item()
            return torch.device("cuda")
        except RuntimeError as error:
            warnings.warn(f"computing on the CPU, as this torch has no kernel for the GPU: {error}", stacklevel=4)
    return torch.device("cpu")


def usable_device(device):
    """The `torch.device` that is asked for. ValueError if nothing can be computed on it."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # of a torch without CUDA, and of a missing GPU
        raise ValueError(f"device {str(device)!r} cannot be used here: {error}") from error
    if torch.device(device).type == "meta":
        raise ValueError("device 'meta' cannot be used: its tensors have no values")
    return torch.device(device)


def autocast(device, precision):
    """The context in which networks run: 'bfloat16' convolutions, 'float32', or None for what `Model` says."""
    if precision not in (None, "bfloat16", "float32"):
        raise ValueError(f"precision must be 'bfloat16', 'float32' or None; got {precision!r}")
    enabled = precision == "bfloat16" or (precision is None and has_native_bfloat16(device))
    # Its cache keeps the cast weights until the outermost context ends: every step would use the first weights.
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)


def has_native_bfloat16(device):
    """Whether bfloat16 is faster here: on GPUs since Ampere and CPUs that multiply it; others emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def to_device(tensor, device):
    """The tensor on the device. Only copies to a GPU may be asynchronous: its kernels wait for them."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def in_own_mode(method):
    """Runs a method of `Model` outside of its caller's autocast and inference mode, without building a graph.

    If a GPU runs out of memory, the error says what to do.
    """

    @functools.wraps(method)
    def wrapped(self, *arguments, **options):
        try:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return method(self, *arguments, **options)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"{method.__name__} ran out of memory on {self.device}. End other programs on the GPU, pass fewer "
                "images at a time, train with Model(recipe=Recipe(batch_size=8)), or use Model(device='cpu')"
            ) from error

    return wrapped


# ---------------------------------------------------------------------------------------------- checks


def check_images(images, in_channels, name):
    """Raises TypeError or ValueError unless `images` are finite real numbers (N, in_channels, H, W), at least one."""
    if not isinstance(images, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor (N, C, H, W); got {type(images).__name__}")
    if images.layout != torch.strided or images.is_meta or images.is_quantized or images.is_nested:
        raise TypeError(f"{name} must be a dense tensor with values; got {images.layout} on {images.device}")
    if images.dtype == torch.bool or images.is_complex():
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
    if images.dtype == torch.uint8:
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


def narrowness_warning(images):
    """`predict` does not use what is learnt from narrow images."""
    if min(images.shape[2:]) >= NARROW:
        return ""
    return (
        f"predict leaves images less than {NARROW} pixels high or wide as they are, and these are "
        f"{tuple(images.shape[2:])}: training on them only helps larger ones. Project 2 denoises such images"
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
        warnings.warn(text, stacklevel=4)


def check_views(numbers, views):
    """The numbers of the chosen views from a weights file; ValueError if there are no such views."""
    if numbers is None:
        return None
    if numbers[:1] != [0] or not set(numbers) <= set(range(len(views))) or len(set(numbers)) < len(numbers):
        raise ValueError(f"views must be None or different numbers below {len(views)}, 0 the first; got {numbers}")
    return [operator.index(number) for number in numbers]


def check_ranges(ranges):
    """The value ranges from a weights file; ValueError if they are none."""
    if not all(isinstance(kind, str) and -math.inf < low < high < math.inf for kind, (low, high) in ranges.items()):
        raise ValueError(f"value_ranges must be (low, high) of each type; got {ranges}")
    return {kind: (float(low), float(high)) for kind, (low, high) in ranges.items()}


# ---------------------------------------------------------------------------------------------- files


def save_atomically(content, path):
    """`torch.save` under a temporary name, renamed when complete: the file appears whole or not at all.

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
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        hint = "; its folder does not exist" if isinstance(error, FileNotFoundError) else ""
        raise type(error)(error.errno, f"cannot be written: {error.strerror or error}{hint}", str(path)) from error
    except RuntimeError as error:  # torch's error for a full disk, and where it hides that it was interrupted
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise OSError(f"{path} cannot be written; is the disk full? ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_finite(weights):
    """ValueError if some weights are not finite: no training, and no prediction, can go on from these."""
    if not all(values.isfinite().all() for values in weights):
        raise ValueError("the weights are not finite; begin with others, and train with lower rates")


def check_archive(path):
    """zipfile.BadZipFile if a checksum in a file of `torch.save` is wrong: `torch.load` does not look at them."""
    if zipfile.is_zipfile(path):  # older versions of torch wrote none
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC:  # 0: the checksums were turned off
                    archive.read(entry)


def read_weights(path):
    """The checked content of a weights file. FileNotFoundError or ValueError if there is no valid one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file {str(path)!r}; train a model and write one with model.save(path)")
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path.name} is not a readable weights file: it is damaged, or of another kind") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a weights file of this module: expected the format {FORMAT!r}")
    return content


# ---------------------------------------------------------------------------------------------- tiles


@dataclass(frozen=True)
class Tiling:
    """How a network predicts large images: in squares of `side` pixels, each of which overlaps the next by `overlap`.

    At edges inside the image, `margin` pixels are discarded: at least as many as the network's convolutions reach; its
    gates reach farther, but little depends on that. The rest of an overlap is blended. Tiles start where cells and
    pooling of the whole image do.
    """

    side: int
    overlap: int
    margin: int

    @classmethod
    def of(cls, network):
        step, margin = 2 * max(CELL, network.multiple), max(MARGIN, network.reach)
        overlap = -(-(2 * margin + BLENDED) // step) * step
        return cls(max(TILE, 2 * overlap), overlap, margin)

    def starts(self, size):
        """Where the tiles that cover `size` pixels start."""
        return range(0, max(1, size - self.overlap), self.side - self.overlap)

    def weights(self, start, size):
        """Blending weights of the tile at `start` of an axis of `size` pixels; those of overlapping tiles sum to 1."""
        length = min(self.side, size - start)
        rows = torch.arange(length, dtype=torch.float32, device="cpu")
        ramp = ((rows - self.margin + 1) / (self.overlap - 2 * self.margin + 1)).clamp(0, 1)
        rising = ramp if start > 0 else torch.ones_like(ramp)
        falling = ramp.flip(0) if start + length < size else torch.ones_like(ramp)
        return rising * falling


# ---------------------------------------------------------------------------------------------- model


class Model:
    """A denoiser that learns from noisy pairs.

    Args:
        network: 'residual_unet' (ours), 'unet' or 'noise2noise' (the two of the original report).
        in_channels: channels of the images.
        recipe: how `train` learns; see `Recipe`.
        seed: from 0 to 2**62, for the initial weights and every random draw in training.
        device: where to compute; None: CUDA if it works.
        precision: of the convolutions, in training and prediction: 'float32', or 'bfloat16', which is about twice as
            fast on processors that multiply it, and costs less than 0.001 dB; None uses it on these. The residual
            that our network predicts then has 8 significant bits: an image differs from the float32 one by 0.2 grey
            values (root mean square; at most 4).
        sizes: of the network, such as width=32; see its class.

    Attributes:
        network: the `nn.Module`; name: its kind; in_channels, sizes, recipe, seed, device, precision: as given.
        pairs_seen: how many pairs the steps of training have drawn, in all epochs, a large one once for each of its
            patches; kept in the weights file.
        noise: `PairNoise` of the pairs that `train` saw last, kept in the weights file; None before.
        chosen_views: numbers of the views that self-ensembles average, see `choose_views`; None: all.
        value_ranges: {type: (low, high)}, the values that were black and white in the files it was trained on, such as
            {'uint16': (0, 4095)}. Set by `noise2noise train`, kept in the weights file, used by the commands.
    """

    @torch.inference_mode(False)
    def __init__(
        self, network="residual_unet", *, in_channels=3, recipe=None, seed=0, device=None, precision=None, **sizes
    ):
        if network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}; got {network!r}")
        self.device = default_device() if device is None else usable_device(device)
        autocast(self.device, precision)  # ValueError now, not after the work
        if not isinstance(recipe, Recipe | None):
            raise TypeError(f"recipe must be a Recipe or None; got {type(recipe).__name__}")
        self.recipe, self.seed, self.precision = recipe or Recipe(), whole_number(seed, "seed", 0, 2**62), precision
        self.pairs_seen, self.noise, self.chosen_views, self.value_ranges = 0, None, None, {}
        self.name, self.in_channels = network, whole_number(in_channels, "in_channels", 1)
        self.sizes = all_sizes(NETWORKS[network], sizes)
        with initial_weights_from(torch.Generator("cpu").manual_seed(self.seed)), torch.device("cpu"):
            network = NETWORKS[network](self.in_channels, **self.sizes)
        self.network = network.to(self.device, torch.float32)

    def load_pretrained_model(self):
        """Loads `bestmodel.pth` beside this file, network and sizes included."""
        self.load(PRETRAINED)

    def save(self, path):
        """Writes the weights and what rebuilds the network, as plain tensors and data; whole or not at all.

        Raises ValueError for weights that are not finite, or attributes that `load` would refuse, OSError where nothing
        can be written.
        """
        network = getattr(self.network, "_orig_mod", self.network)  # torch.compile wraps it
        check_finite(network.state_dict().values())
        chosen = None if self.chosen_views is None else list(self.chosen_views)
        content = {
            "format": FORMAT,
            "network": self.name,
            "in_channels": self.in_channels,
            "sizes": self.sizes,
            "pairs_seen": whole_number(self.pairs_seen, "pairs_seen", 0),
            "noise": self.noise and asdict(self.noise),
            "views": check_views(chosen, self.every_view()),
            "value_ranges": check_ranges(self.value_ranges),
            "weights": {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()},
        }
        save_atomically(content, path)

    @in_own_mode
    def load(self, path):
        """Loads weights that `save` wrote, onto this model's device, network and sizes included.

        Raises FileNotFoundError, or ValueError for a truncated or foreign file; the model is then unchanged.
        """
        content = read_weights(path)
        try:
            options = {"in_channels": content["in_channels"], "recipe": self.recipe, "seed": self.seed}
            options |= {"device": "cpu", "precision": self.precision}
            loaded = Model(content["network"], **options, **content["sizes"])
            buffers = loaded.network.named_buffers()
            ceilings = {name: value for name, value in buffers if name.endswith(".ceiling")}  # older files have none
            loaded.network.load_state_dict(ceilings | content["weights"])
            loaded.pairs_seen = whole_number(content["pairs_seen"], "pairs_seen", 0)
            loaded.noise = content["noise"] and PairNoise(**content["noise"])
            check_finite(loaded.network.state_dict().values())  # in float32
            loaded.chosen_views = check_views(content.get("views"), loaded.every_view())
            loaded.value_ranges = check_ranges(content.get("value_ranges", {}))
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{Path(path).name} does not describe one of this module's networks: {error}") from error
        loaded.network.to(self.device)
        self.__dict__.update(loaded.__dict__ | {"device": self.device})

    @in_own_mode
    def train(self, noisy_a, noisy_b, epochs=1, *, num_epochs=None, progress=None):
        """Trains on pairs of noisy images, no clean one needed; called again, it continues.

        The learning rate rises and falls over the steps of this call; its peak is lower the more pairs the weights
        have seen. If interrupted, the model keeps what it has learnt so far.

        Args:
            noisy_a, noisy_b: (N, C, H, W) in [0, 255], any real dtype, any H x W: two noisy versions of the same
                images, with independent noise. Other scales, the same images twice, and images that do not match give a
                warning.
            epochs: passes over the pairs; `num_epochs` is another name for it. From an image larger than 64 x 64, an
                epoch takes as many random patches as cover its area. With few pairs, fresh weights get more epochs
                than asked for: until they have seen 2,000 of 32 x 32, at most 20; see `Recipe.min_pairs`.
            progress: called as `progress(step, steps, loss)` after each step, the loss a 0-d tensor. It may call
                `predict` and `save`, which see the weights of that step, but not `load` or `train`.

        Assumptions about the noise, besides its independence in the two images:
            Its mean is 0. A difference in brightness between the images is learnt as well, with a warning; clipped
                noise leaves a bias near black and white. For the recipe's loss "l1" its median is 0, for "l0" its
                mode: there is no warning if it is not.
            It is alike in both images: measured, see `noise`; if not, b is predicted from a, but not a from b. It is
                independent between pixels: measured, too; if not, no values are swapped.
            It has no direction: an equivariant network treats rows and columns alike, and cannot learn to remove
                stripes of one direction. For these use `Model(equivariant=False)`.
            It is much the same in negatives: half of the pairs become negatives. Noise that depends on brightness is
                learnt for both; turn `negatives` off if that is too much.
            Pictures look alike in other views, such as with the channels reversed: measured, see `choose_views`.
            Its strength varies between images: with "l2" each is weighted by its own noise, half the mean squared
                difference of its pair. In displaced images, that is not noise.

        Raises TypeError or ValueError for unsuitable pairs, RuntimeError if a GPU runs out of memory, if `progress` has
        loaded or trained, or if the weights are no longer finite at the end.
        """
        epochs = number_of_epochs(epochs, num_epochs)
        check_pairs(noisy_a, noisy_b, self.in_channels)
        for images in (noisy_a, noisy_b):
            warn(range_warning(images))
        warn(equality_warning(noisy_a, noisy_b))
        warn(mismatch_warning(noisy_a, noisy_b))
        warn(narrowness_warning(noisy_a))
        recipe = self.recipe_for(noisy_a, noisy_b)
        if recipe.loss == "l2":  # a median or a mode may agree where means differ
            warn(offset_warning(self.noise))
            warn(contained_noise_warning(self.noise))
        pairs = Pairs(noisy_a, noisy_b, self.device)
        training = Training(self.network, recipe, self.seed + self.pairs_seen, self.precision)
        epochs = max(epochs, least_epochs(pairs, recipe, self.pairs_seen))
        batch_size, peak = batch_size_and_peak(pairs, epochs, recipe, self.pairs_seen)
        steps = epochs * math.ceil(len(pairs) / batch_size)
        try:
            for _ in range(epochs):
                order = torch.randperm(len(pairs), generator=training.generator, device="cpu")
                for index in order.split(batch_size):
                    factor = peak * (1.0 if recipe.constant_lr else lr_factor(training.steps, steps))
                    with torch.enable_grad():
                        loss = training.step(*pairs.batch(index, training.generator), factor, training.steps / steps)
                    self.pairs_seen += len(index)
                    if progress is not None:
                        tell_progress(self, progress, training.steps, steps, loss)
        finally:
            training.finish()
            self.choose_views(noisy_a, noisy_b)
        share = self.error_left(noisy_a, noisy_b)
        if recipe.loss == "l2":  # the others are not squared errors
            warn(no_gain_warning(share, self.noise.imbalance))

    def recipe_for(self, noisy_a, noisy_b):
        """Measures the noise of pairs, see `noise`; returns the recipe for them, with its open choices made."""
        noisy_b = noisy_b.to(noisy_a.device)
        self.noise = measure_noise(noisy_a, noisy_b)
        variance = noise_variance(noisy_a, noisy_b) if self.network.predicts_noise else math.inf
        return self.recipe.resolved(self.noise, variance)

    @in_own_mode
    def predict(self, images, ensemble=None):
        """Denoises images.

        Args:
            images: (N, C, H, W) in [0, 255], any real dtype, any H x W, on any device. Another scale gives a
                warning, and values are clipped to [-255, 510]. Images larger than 704 pixels a side are predicted in
                overlapping tiles, which bounds the memory needed. Those less than 4 pixels high or wide are only
                clipped.
            ensemble: True averages the predictions of several views of each image; see `views`. False predicts once;
                None averages only up to 64 x 64.

        Returns float32 (N, C, H, W) in [0, 255], not rounded, on the device of `images`.
        Raises TypeError or ValueError for unsuitable images, RuntimeError if a GPU runs out of memory.
        """
        check_images(images, self.in_channels, "images")
        keep_freed_memory()
        images = images.detach()
        warn(range_warning(images))
        height, width = images.shape[2:]
        if min(height, width) < NARROW:
            return images.float().clamp(0, 255)
        if ensemble is None:
            ensemble = max(height, width) <= ENSEMBLE_SIDE
        views = self.views() if ensemble else self.every_view()[:1]
        pixels = CHUNK if self.device.type == "cpu" else GPU_CHUNK
        side, borders = Tiling.of(self.network).side, 2 * self.network.border
        chunk = max(1, pixels // (min(height + borders, side) * min(width + borders, side)))
        return torch.cat([self._predict_tiles(part, views) for part in images.split(chunk)])

    def views(self):
        """What a self-ensemble averages: those of `every_view` that `choose_views` chose, or all."""
        every = self.every_view()
        return every if self.chosen_views is None else [every[number] for number in self.chosen_views]

    def every_view(self):
        """The views of an image: (element of D4, negative, channels reversed). The first is the image as it is.

        All of D4 for most networks. For equivariant ones, unchanged by D4: the image and its negative, each with its
        channels (if three) in both orders.
        """
        if not self.network.equivariant:
            return [(element, False, False) for element in D4]
        reverses = (False, True) if self.in_channels == 3 else (False,)
        return [(D4[0], negative, reverse) for reverse in reverses for negative in (False, True)]

    @in_own_mode
    def choose_views(self, noisy_a, noisy_b):
        """Chooses the views of self-ensembles on up to 64 squares of the pairs; `train` calls it, with its arguments.

        A view is kept if averaging its prediction with that of the unchanged image does not increase the error against
        the other noisy image. Negatives of dark pictures, and reversed channels that are not colours or have unequal
        noise, are unlike all training images: averaged in, they can ruin a prediction.
        """
        noisy, other = self._sample(noisy_a), self._sample(noisy_b)
        power = {"l2": 2, "l1": 1, "l0": 0.1}[self.recipe.loss]  # at 0, where l0 ends, all views would be alike
        alone, *others = (self._denoise(noisy, [view]) for view in self.every_view())
        limit, *errors = (
            power_loss(prediction.clamp(0, 1), other, power).item()
            for prediction in (alone, *((alone + view) / 2 for view in others))
        )
        self.chosen_views = [0, *(number for number, error in enumerate(errors, start=1) if error <= limit)]

    @in_own_mode
    def error_left(self, noisy_a, noisy_b):
        """The squared error of single passes against b, as a share of that of a, on up to 64 squares of the pairs.

        RuntimeError if the predictions are not finite.
        """
        noisy, other = self._sample(noisy_a), self._sample(noisy_b)
        predicted = self._denoise(noisy, self.every_view()[:1])
        if not predicted.isfinite().all():
            raise RuntimeError("the weights are no longer finite: begin with others, and lower the rates of the recipe")
        before, after = ((images.clamp(0, 1) - other).square().mean().item() for images in (noisy, predicted))
        return after / before if before else 0.0

    def _sample(self, images):
        """Up to VIEWED squares of evenly spaced images, in [0, 1], on the model's device."""
        images = images.detach()[:: -(-len(images) // VIEWED)]
        rows, columns = (square_starts(size, math.isqrt(VIEWED // len(images))) for size in images.shape[2:])
        side = ENSEMBLE_SIDE
        squares = torch.cat([images[:, :, top : top + side, left : left + side] for top in rows for left in columns])
        return to_device(squares, self.device).float() / 255

    def _predict_tiles(self, images, views):
        """Predicts (B, C, H, W) tile by tile and blends the tiles; only one at a time is on the device."""
        border = self.network.border
        rows, columns = (sources(-border, size + border, size).to(images.device) for size in images.shape[2:])
        height, width = len(rows), len(columns)
        tiling = Tiling.of(self.network)
        result = torch.zeros(*images.shape[:2], height, width, dtype=torch.float32, device=images.device)
        for top in tiling.starts(height):
            for left in tiling.starts(width):
                down, right = slice(top, top + tiling.side), slice(left, left + tiling.side)
                tile = images.index_select(2, rows[down]).index_select(3, columns[right])
                noisy = (to_device(tile, self.device).float() / 255).clamp(-1, 2)
                weights = tiling.weights(top, height)[:, None] * tiling.weights(left, width)
                predicted = self._denoise(noisy, views) * weights.to(self.device)
                result[:, :, down, right] += predicted.to(images.device)
        inside = result[:, :, border : height - border, border : width - border]
        return (inside * 255).clamp(0, 255)

    def _denoise(self, images, views):
        """(B, C, H, W) in [0, 1] through the network, as the mean over several views."""
        total = torch.zeros_like(images)
        for view in views:
            with autocast(self.device, self.precision):
                prediction = forward_any_size(self.network, to_view(images, *view))
            total += from_view(prediction.float(), *view)
        return total / len(views)
