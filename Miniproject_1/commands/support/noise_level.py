"""The noise level of a single picture."""

import torch
import torch.nn.functional as F

ROWS, STRIPS = 64, 32  # at most so many rows in each of so many strips are looked at

# J. Immerkaer, "Fast Noise Variance Estimation", CVIU 1996: the difference of two Laplacians, which does not see
# slopes and straight edges; white noise of level 1 comes out with level 6
MASK = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
MEDIAN = 0.67449  # of |x| for a normal x of level 1


def noise_level(picture):
    """Estimated standard deviation of the noise of a `Picture`, in 1/255 of its range, the mean over its channels.

    The median of the absolute values, over that of a normal distribution, hardly sees edges and texture (D. Donoho,
    I. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994, section 4.2; instead of their
    wavelet, Immerkaer's mask, whose responses to integers have finer steps). Pixels at the ends of the range do not
    count.

    Demosaicing and JPEG leave little noise in the finest detail. So the level is also measured at half the size
    and doubled, as white noise is halved there; the larger of the two results counts.
    """
    height = len(picture.pixels)
    parts = min(STRIPS, -(-height // ROWS))
    starts = [part * (height - min(height, ROWS)) // max(1, parts - 1) for part in range(parts)]
    strips = [picture.values(slice(start, start + ROWS)) for start in starts]
    return level_of_two_sizes(strips)


def level_of_two_sizes(strips):
    """The larger of the levels of parts (1, C, h, W) of a picture at full and at half size."""
    half = [F.avg_pool2d(strip, 2) for strip in strips if min(strip.shape[2:]) > 1]
    return max(level_of(strips), 2 * level_of(half))


def level_of(strips):
    """The level of parts (1, C, h, W) of a picture."""
    responses = [mask_responses(strip) for strip in strips if min(strip.shape[2:]) >= 3]
    levels = [median_level(torch.cat(channel)) for channel in zip(*responses, strict=True)]
    return sum(levels) / max(1, len(levels))


def mask_responses(values):
    """(1, C, h, W) -> for each channel |response| of the pixels that are neither black nor white, as one row."""
    response = F.conv2d(values.transpose(0, 1), MASK[None, None])[:, 0].abs()  # (C, h - 2, W - 2)
    inner = values[0, :, 1:-1, 1:-1]
    inside = (inner > 0) & (inner < 255)
    return [response[channel][inside[channel]] for channel in range(len(response))]


def median_level(responses):
    return (responses.median() / (6 * MEDIAN)).item() if len(responses) else 0.0
