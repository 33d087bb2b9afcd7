"""Commands around model.py: benchmark, rounding, train_best."""
