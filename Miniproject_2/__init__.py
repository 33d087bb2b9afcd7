"""Project 2: a Noise2Noise denoiser on a framework of our own, without autograd."""

import warnings

with warnings.catch_warnings():  # nothing here needs NumPy, and torch would warn without it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    from torch import empty  # noqa: F401
