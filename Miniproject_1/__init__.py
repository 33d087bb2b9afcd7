"""Project 1: Noise2Noise denoising with PyTorch; see model.py."""
