"""Commands around the model: data, training of the shipped weights, experiments."""
