"""Figures of the commands, by matplotlib: an optional extra, imported only where one is asked for."""

from Miniproject_1.commands.support.images import whole_file
from Miniproject_1.others.files import check_new, check_writable


def need_figure():
    """matplotlib's class of figures; unlike pyplot, it needs no screen and changes nothing global."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'noise2noise-miniproject[plot]'") from error
    return Figure


def check_figure(option, path, overwrite):
    """Says before the work what would stop a figure from being written after it."""
    need_figure()
    if path.suffix.lower() not in (".png", ".svg"):
        raise ValueError(f"{option} takes a name that ends in .png or .svg; got {path}")
    check_new(path, overwrite)
    check_writable(path)


def save_figure(figure, path):
    """The file appears whole or not at all."""
    with whole_file(path, overwrite=True) as file:
        figure.savefig(file, format=path.suffix[1:].lower())
