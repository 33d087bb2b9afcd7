"""What the commands share: pictures in files, pairs of them, weights, progress, plots, pages, several GPUs."""
