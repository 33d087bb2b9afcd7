"""Project 1: a Noise2Noise denoiser on all of PyTorch."""
