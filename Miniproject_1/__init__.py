"""Project 1: a Noise2Noise denoiser on all of PyTorch."""

import warnings

with warnings.catch_warnings():  # nothing here needs NumPy, and torch would warn without it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch  # noqa: F401
