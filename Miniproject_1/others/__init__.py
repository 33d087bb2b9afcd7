"""Commands around the model: data, trainings, experiments, tables. `model.py` needs none of them."""

import warnings

with warnings.catch_warnings():  # nothing here needs NumPy, and torch would warn without it
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch  # noqa: F401
