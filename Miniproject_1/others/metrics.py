"""Errors and PSNR of images."""

import math


def mean_squared_error(images, clean):
    """Mean squared error of images in [0, 255], on the scale of [0, 1]."""
    return ((images.double() - clean.double()) / 255).square().mean().item()


def psnr_of_mse(mse):
    """The PSNR in dB of a mean squared error on the scale of [0, 1]; inf for 0, NaN for NaN."""
    return math.inf if mse == 0 else -10 * math.log10(mse)


def psnr(images, clean):
    """The grader's PSNR in dB: the mean over images of each one's PSNR; both (N, C, H, W) in [0, 255].

    inf where an image is perfect, for which the grader counts 100 dB.
    """
    return psnr_of_each(images, clean).mean().item()


def psnr_of_each(images, clean):
    """PSNR of each image in dB, (N,); inf where it equals the clean one."""
    error = ((images.float() - clean.float()) / 255).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()
