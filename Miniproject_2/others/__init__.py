"""Commands around model.py: benchmark, experiments, rounding, train_best."""
