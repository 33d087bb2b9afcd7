"""Commands around the model: data, trainings, experiments, tables. None of them is needed to train or predict."""

import warnings

with warnings.catch_warnings():  # nothing here needs NumPy, and torch would warn without it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch  # noqa: F401
