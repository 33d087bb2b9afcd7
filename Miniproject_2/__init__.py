"""Noise2Noise with a framework of its own: see model.py."""
