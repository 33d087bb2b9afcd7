"""The commands of `python -m Miniproject_1`: one module each, with `add_arguments(parser)` and `run(options)`.

What several of them need is in `support`. Only `data` is elsewhere, in `Miniproject_1/others/data.py`.
"""
