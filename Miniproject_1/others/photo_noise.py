"""The noise of photographs: random mixtures of it, and pairs of noisy images to learn from.

    noisy, mean = noisy_and_mean(clean, generator)     # (B, 3, H, W) in [0, 1], one noise for each image

Two families. *Added* noise: Gaussian, of any level, whose variance may rise with the brightness, vary over the picture
and be correlated between neighbours and channels; the input may have gone through JPEG. *Camera* noise: the picture is
taken back to what a sensor saw, gets the sensor's noise on a Bayer mosaic and is developed again: demosaicing, white
balance, colours, tone curve, noise reduction, sharpening, JPEG (after T. Brooks et al., "Unprocessing Images for
Learned Raw Denoising", CVPR 2019).

Every draw of an image has the same parameters and its own random numbers. The network's input is one draw, as a file
would hold it. Its target is the mean of other draws, neither rounded nor coded as JPEG. Added noise is not clipped in
it, so that it has no bias. A camera's draws are clipped where its sensor is, before the tone curve: in strong noise
their mean is up to 2 grey values too bright near black, and too dark near white. No clean image is learnt from: the
mean of K draws has a K-th of the noise variance, and is K pairs at once.

Shapes: B images of a batch, H W image, K draws. Numbers are in [0, 1] unless said otherwise; grey values in [0, 255].
"""

import io
import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Mixture:
    """How often each noise is drawn. The shares of added noise are independent: such effects may combine."""

    camera: float = 0.25  # share of images that get a camera's noise; the others get added noise
    max_level: float = 55.0  # grey values; levels of added noise are uniform between 0 and this
    signal: float = 0.1  # share whose variance depends on the brightness
    channels: float = 0.05  # share whose channels have levels of their own and are correlated
    neighbours: float = 0.05  # share that is blurred or enlarged
    varying: float = 0.05  # share whose level varies over the picture
    jpeg: float = 0.05  # share of the inputs with added noise that are coded as JPEG
    camera_jpeg: float = 0.85  # the same of a camera's pictures
    rounded: float = 0.5  # share of the other inputs that are clipped and rounded as files are
    others: int = 32  # draws of added noise whose mean is the target
    camera_others: int = 3  # draws of camera noise whose mean is the target

    def __post_init__(self):
        shares = [getattr(self, f.name) for f in fields(self) if f.type is float and f.name != "max_level"]
        if not all(0 <= share <= 1 for share in shares) or self.max_level < 0:
            raise ValueError(f"a mixture has shares between 0 and 1 and a max_level of at least 0; got {self}")
        if min(self.others, self.camera_others) < 1:
            raise ValueError(f"a mixture needs one other draw at least to learn from; got {self}")


def noisy_and_mean(clean, generator, mixture=None):
    """A noisy draw of each image and the mean of further, independent draws.

    Args:
        clean: float32 (B, 3, H, W) in [0, 1], H and W even and at least 16: the widest blur reaches 15 pixels.
        generator: `torch.Generator` that draws the noises and their parameters.

    Returns float32 (noisy, mean), each (B, 3, H, W); where neither is clipped they leave [0, 1].
    """
    check_clean(clean)
    mixture = mixture or Mixture()
    camera = random_mask(len(clean), mixture.camera, generator)
    noisy, mean = torch.empty_like(clean), torch.empty_like(clean)
    for family, which, others in ((AddedNoise, ~camera, mixture.others), (CameraNoise, camera, mixture.camera_others)):
        images = clean[which]
        if len(images):
            noise = family.random(len(images), generator, mixture)
            (first,) = noise.draws(images, 1, generator)
            noisy[which] = noise.file.stored(first)
            mean[which] = noise.mean_of_draws(images, others, generator)
    return noisy, mean


def check_clean(clean):
    if clean.ndim != 4 or clean.shape[1] != 3 or any(side % 2 or side < 16 for side in clean.shape[2:]):
        raise ValueError(f"clean must be (B, 3, H, W), H and W even and at least 16; got shape {tuple(clean.shape)}")
    if not clean.is_floating_point():
        raise TypeError(f"clean must be floating point in [0, 1]; got {clean.dtype}")


# ---------------------------------------------------------------------------------------------- random parameters


def random_mask(count, share, generator):
    """Bool (count,), each True with the probability `share`."""
    return torch.rand(count, generator=generator) < share


def uniform(low, high, shape, generator):
    return low + (high - low) * torch.rand(shape, generator=generator)


def per_image(values):
    """(B,) -> (B, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FileFormat:
    """How the images of a batch are stored: quality of JPEG (0: none), its chroma and grid, or else rounded or not."""

    quality: torch.Tensor  # int64 (B,), 1 to 100, or 0 for no JPEG
    subsampled: torch.Tensor  # bool (B,): chroma at half the resolution
    shift: torch.Tensor  # int64 (B, 2): rows and columns by which the grid of 8 x 8 blocks is moved
    rounded: torch.Tensor  # bool (B,): clipped and rounded; matters without JPEG

    @classmethod
    def random(cls, count, jpeg, rounded, generator):
        quality = 98 - (49 * torch.rand(count, generator=generator).square()).long()  # half of them above 85
        moved = random_mask(count, 0.5, generator)  # the others are whole pictures, whose grid starts in the corner
        return cls(
            quality * random_mask(count, jpeg, generator),
            random_mask(count, 0.7, generator),
            torch.randint(8, (count, 2), generator=generator) * moved[:, None],
            random_mask(count, rounded, generator),
        )

    def stored(self, images):
        """(B, 3, H, W) as these files give them back."""
        files = torch.where(per_image(self.rounded), quantised(images), images)
        for number in self.quality.nonzero().flatten().tolist():
            top, left = self.shift[number].tolist()
            padded = F.pad(images[number : number + 1], (left, 0, top, 0), mode="replicate")[0]
            coded = jpeg(padded, int(self.quality[number]), bool(self.subsampled[number]))
            files[number] = coded[:, top:, left:]
        return files


def quantised(images):
    """Clipped to [0, 1] and rounded to 256 levels."""
    return (images.clamp(0, 1) * 255).round() / 255


def jpeg(image, quality, subsampled=True):
    """(3, H, W) in [0, 1], coded as JPEG and decoded again."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("JPEG needs Pillow: pip install Pillow, or use a mixture without jpeg") from error
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width = pixels.shape[:2]
    file = io.BytesIO()
    picture = Image.frombytes("RGB", (width, height), pixels.numpy().tobytes())
    picture.save(file, "JPEG", quality=quality, subsampling=2 if subsampled else 0)
    decoded = torch.frombuffer(bytearray(Image.open(file).tobytes()), dtype=torch.uint8)
    return decoded.view(height, width, 3).permute(2, 0, 1).float() / 255


# ---------------------------------------------------------------------------------------------- added noise


@dataclass(frozen=True)
class AddedNoise:
    """Parameters of Gaussian noise for a batch of images: clean + level x factors x correlated normal numbers."""

    level: torch.Tensor  # (B,) in [0, 1]: standard deviation at a grey of 1/2
    signal: torch.Tensor  # (B,) in [0, 1]: share of the variance that is proportional to the brightness
    gains: torch.Tensor  # (B, 3): factor of each channel's level
    sharing: torch.Tensor  # (B,) in [0, 1): correlation between the channels
    blur: torch.Tensor  # (B,): standard deviation in pixels of a Gaussian blur; 0: none
    enlarged: torch.Tensor  # int64 (B,): pixels a side that share one value of the noise; 1: none do
    offset: torch.Tensor  # int64 (B, 2): rows and columns of the first square that lie outside the image
    spread: torch.Tensor  # (B, 1, 3, 3): factors of the level, blended over the picture
    file: FileFormat

    @classmethod
    def random(cls, count, generator, mixture):
        def some(share, values, neutral):
            chosen = random_mask(count, share, generator).view(-1, *[1] * (values.ndim - 1))
            return torch.where(chosen, values, torch.full_like(values, neutral))

        channels, neighbours = (random_mask(count, s, generator) for s in (mixture.channels, mixture.neighbours))
        enlarges = neighbours & random_mask(count, 0.25, generator)
        blur, sharing = uniform(0.4, 1.6, count, generator), uniform(0, 0.9, count, generator)
        gains = uniform(0.5, 1.3, (count, 3), generator)
        size = torch.where(enlarges, torch.randint(2, 4, (count,), generator=generator), 1)
        return cls(
            level=uniform(0, mixture.max_level / 255, count, generator),
            signal=some(mixture.signal, uniform(0, 1, count, generator), 0),
            gains=torch.where(channels[:, None], gains, torch.ones_like(gains)),
            sharing=sharing * channels,
            blur=blur * (neighbours & ~enlarges),
            enlarged=size,
            offset=torch.randint(6, (count, 2), generator=generator) % size[:, None],
            spread=some(mixture.varying, uniform(0.1, 1, (count, 1, 3, 3), generator), 1),
            file=FileFormat.random(count, mixture.jpeg, mixture.rounded, generator),
        )

    def draws(self, clean, count, generator):
        """Yields noisy versions of (B, 3, H, W), neither clipped nor rounded: their mean is the clean image."""
        deviation = self.deviation(clean)
        for _ in range(count):
            yield clean + deviation * self.unit_noise(clean.shape, generator)

    def mean_of_draws(self, clean, count, generator):
        """(B, 3, H, W): the mean of `count` draws in the time of one, since normal numbers have normal means."""
        return clean + self.deviation(clean) * self.unit_noise(clean.shape, generator) / math.sqrt(count)

    def deviation(self, clean):
        """The noise's standard deviation at each value, (B, 3, H, W)."""
        signal = per_image(self.signal)
        factors = self.gains[:, :, None, None] * per_image(self.level)
        if (self.spread != 1).any():
            size = clean.shape[2:]
            factors = factors * F.interpolate(self.spread, size=size, mode="bilinear", align_corners=True)
        return factors * (1 - signal + 2 * signal * clean).sqrt() if self.signal.any() else factors.expand_as(clean)

    def unit_noise(self, shape, generator):
        """Normal numbers of mean 0 and variance 1, correlated as the parameters say."""
        noise = torch.randn(shape, generator=generator)
        for number in (self.enlarged > 1).nonzero().flatten().tolist():
            noise[number] = enlarged(noise[number], int(self.enlarged[number]), *self.offset[number].tolist())
        some = self.blur > 0
        if some.any():
            noise[some] = blurred(noise[some], self.blur[some], keep_variance=True)
        some = self.sharing > 0
        if some.any():
            noise[some] = with_shared_channels(noise[some], self.sharing[some])
        return noise


def enlarged(noise, factor, top, left):
    """One corner of (C, H, W), each value repeated over factor x factor pixels; `top` and `left` pixels are cut."""
    height, width = noise.shape[1:]
    corner = noise[:, : -(-(height + top) // factor), : -(-(width + left) // factor)]
    return corner.repeat_interleave(factor, 1).repeat_interleave(factor, 2)[:, top : top + height, left : left + width]


def with_shared_channels(noise, correlation):
    """Independent channels of variance 1 mixed so that any two have the correlation given, (B,)."""
    own = (1 - correlation).sqrt()
    common = ((1 + 2 * correlation).sqrt() - own) / 3  # own I + common J is the root of (1 - r) I + r J
    return per_image(own) * noise + per_image(common) * noise.sum(1, keepdim=True)


def blurred(images, deviations, keep_variance=False):
    """A Gaussian blur of each image of (B, C, H, W) by its own standard deviation in pixels, (B,).

    Edges are mirrored. With `keep_variance` the blur keeps the variance of white noise (except at the edges, where
    mirrored pixels make it larger) but not the mean.
    """
    count, channels, height, _ = images.shape
    radius = max(1, math.ceil(2.5 * deviations.max().item()))
    places = torch.arange(-radius, radius + 1).float()
    kernels = torch.exp(-0.5 * (places / deviations[:, None].clamp(min=1e-3)) ** 2)
    kernels /= kernels.square().sum(1, keepdim=True).sqrt() if keep_variance else kernels.sum(1, keepdim=True)
    kernels = kernels.repeat_interleave(channels, 0)
    padded = F.pad(images, [radius] * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    down = F.conv2d(padded, kernels[:, None, :, None], groups=count * channels)
    return F.conv2d(down, kernels[:, None, None, :], groups=count * channels).view(images.shape)


# ---------------------------------------------------------------------------------------------- camera noise

LUMA = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601, as JPEG has it


@dataclass(frozen=True)
class CameraNoise:
    """Parameters of a camera for each image of a batch: sensor, development and file."""

    shot: torch.Tensor  # (B,): variance of the sensor's noise at a value of 1
    read: torch.Tensor  # (B,): standard deviation at 0
    balance: torch.Tensor  # (B, 3): factors of the channels
    colours: torch.Tensor  # (B, 3, 3): from the sensor's colours to those of the screen; each row sums to 1
    gradients: torch.Tensor  # bool (B,): demosaicing that corrects by gradients, or else bilinear
    tone: torch.Tensor  # (B,) in [0, 1]: strength of the tone curve
    luma_blur: torch.Tensor  # (B,): noise reduction in pixels, of brightness
    chroma_blur: torch.Tensor  # (B,): the same, of colour
    sharpening: torch.Tensor  # (B,): share of the detail that is added
    file: FileFormat

    @classmethod
    def random(cls, count, generator, mixture):
        shot = torch.exp(uniform(math.log(5e-5), math.log(1e-2), count, generator))
        saturation = uniform(0, 0.6, (count, 1, 1), generator)
        return cls(
            shot=shot,
            read=0.5 * shot * torch.exp(uniform(-1, 1, count, generator)) + 5e-4,
            balance=torch.stack(
                [uniform(1.5, 2.5, count, generator), torch.ones(count), uniform(1.3, 2.2, count, generator)], dim=1
            ),
            colours=(1 + saturation) * torch.eye(3) - saturation / 3,
            gradients=random_mask(count, 0.5, generator),
            tone=uniform(0, 1, count, generator),
            luma_blur=uniform(0.0, 1.2, count, generator),
            chroma_blur=uniform(0.5, 6.0, count, generator),
            sharpening=uniform(0, 0.8, count, generator) * random_mask(count, 0.5, generator),
            file=FileFormat.random(count, mixture.camera_jpeg, mixture.rounded, generator),
        )

    def draws(self, clean, count, generator):
        """Yields shots of the scene that (B, 3, H, W) shows, as the camera has them before it writes a file."""
        mosaic = to_mosaic(self.to_sensor(clean))
        deviation = (per_image(self.shot) * mosaic.clamp(min=0) + per_image(self.read).square()).sqrt()
        silent = self.to_screen(mosaic)
        for _ in range(count):
            shot = self.to_screen(mosaic + deviation * torch.randn(mosaic.shape, generator=generator))
            yield self.sharpened(silent + self.reduced(shot - silent))

    def mean_of_draws(self, clean, count, generator):
        """(B, 3, H, W): the mean of `count` draws."""
        return sum(self.draws(clean, count, generator)) / count

    def to_sensor(self, images):
        """From screen to sensor: undoes `to_screen` but for demosaicing; a partial tone curve only approximately."""
        tone = per_image(self.tone)
        images = images.clamp(0, 1)
        curve = 0.5 - torch.sin(torch.asin(1 - 2 * images) / 3)  # the inverse of 3 x^2 - 2 x^3
        linear = torch.lerp(images, curve, tone).clamp(min=1e-4) ** 2.2
        colours = torch.linalg.inv(self.colours)
        return torch.einsum("bij,bjhw->bihw", colours, linear) / self.balance[:, :, None, None]

    def to_screen(self, mosaic):
        """Develops (B, 1, H, W): white balance, demosaicing, colours, gamma, tone curve; clipped as cameras do."""
        balance = to_mosaic(self.balance[:, :, None, None].expand(-1, -1, *mosaic.shape[2:]))
        images = demosaiced(mosaic * balance, self.gradients)
        images = torch.einsum("bij,bjhw->bihw", self.colours, images).clamp(1e-6, 1) ** (1 / 2.2)
        return torch.lerp(images, images.square() * (3 - 2 * images), per_image(self.tone))

    def reduced(self, noise):
        """Noise reduction, of the noise alone: a camera's own spares the edges of what it sees."""
        luma = torch.einsum("c,bchw->bhw", LUMA, noise)[:, None]
        chroma = blurred(noise - luma, self.chroma_blur)
        return blurred(luma, self.luma_blur) + chroma

    def sharpened(self, images):
        if not self.sharpening.any():
            return images
        detail = images - blurred(images, torch.ones(len(images)))
        return images + per_image(self.sharpening) * detail


def to_mosaic(images):
    """What a Bayer sensor sees of (B, 3, H, W): (B, 1, H, W): rows of red and green, rows of green and blue."""
    mosaic = images[:, 1:2].clone()
    mosaic[:, 0, ::2, ::2] = images[:, 0, ::2, ::2]
    mosaic[:, 0, 1::2, 1::2] = images[:, 2, 1::2, 1::2]
    return mosaic


CROSS, ACROSS, DIAGONAL = (  # weights for the missing colours: bilinear, and the detail of the pixel's own colour
    (
        [[0, 0, 0, 0, 0], [0, 0, 2, 0, 0], [0, 2, 0, 2, 0], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 0, -1, 0, 0], [0, 0, 0, 0, 0], [-1, 0, 4, 0, -1], [0, 0, 0, 0, 0], [0, 0, -1, 0, 0]],
    ),
    (
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 4, 0, 4, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 0, 5, 0, -1], [0, -1, 0, -1, 0], [0, 0, 0.5, 0, 0]],
    ),
    (
        [[0, 0, 0, 0, 0], [0, 2, 0, 2, 0], [0, 0, 0, 0, 0], [0, 2, 0, 2, 0], [0, 0, 0, 0, 0]],
        [[0, 0, -1.5, 0, 0], [0, 0, 0, 0, 0], [-1.5, 0, 6, 0, -1.5], [0, 0, 0, 0, 0], [0, 0, -1.5, 0, 0]],
    ),
)


def demosaiced(mosaic, gradients):
    """The two missing colours of each pixel of a Bayer mosaic (B, 1, H, W), see `to_mosaic`: (B, 3, H, W).

    Bilinear, or where `gradients`, bool (B,), says so, corrected by the detail of the colour that the pixel has
    (H. Malvar, L. He, R. Cutler, "High-quality linear interpolation for demosaicing of Bayer-patterned color
    images", ICASSP 2004).
    """
    kernels = torch.tensor([CROSS, ACROSS, DIAGONAL]) / 8  # (3, bilinear and detail, 5, 5)
    kernels = torch.cat([kernels, kernels[1:2].mT]).transpose(0, 1).reshape(8, 1, 5, 5)
    bilinear, detail = F.conv2d(F.pad(mosaic, [2] * 4, mode="reflect"), kernels).chunk(2, 1)  # (B, 4, H, W)
    cross, across, diagonal, down = (bilinear + detail * per_image(gradients)).unbind(1)
    images = mosaic.repeat(1, 3, 1, 1)
    red, green, blue = images.unbind(1)
    for colour, first in ((red, 0), (blue, 1)):  # row and column of the first pixel of this colour
        other = 1 - first
        colour[:, first::2, other::2] = across[:, first::2, other::2]
        colour[:, other::2, first::2] = down[:, other::2, first::2]
        colour[:, other::2, other::2] = diagonal[:, other::2, other::2]
    green[:, ::2, ::2] = cross[:, ::2, ::2]
    green[:, 1::2, 1::2] = cross[:, 1::2, 1::2]
    return images
