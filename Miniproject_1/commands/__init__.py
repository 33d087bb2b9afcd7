"""The commands of `python -m Miniproject_1`: one module each, with `add_arguments(parser)` and `run(options)`.

What several of them need is in `support`. `data` only passes its arguments on.
"""
