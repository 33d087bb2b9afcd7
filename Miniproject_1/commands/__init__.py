"""The commands of `python -m Miniproject_1`: one module each, with `add_arguments(parser)` and `run(options)`."""
