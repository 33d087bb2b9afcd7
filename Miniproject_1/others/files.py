"""Files and folders of the commands: which are read, which may be written, and checkpoints."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import torch

from Miniproject_1.others.command_line import tell

LEFT_OUT = 5  # at most so many kinds of files that are left out are named


def read_names(path):
    """The names in a text file, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def visible_files(folder, failed, skipped=(), entered=()):
    """The files below a folder without hidden ones, whose names, or those of their folders, start with a dot.

    Linked folders are entered, each folder once: links may make circles.

    Args:
        failed: called with the OSError of each folder that cannot be read.
        skipped: names of folders that are not entered.
        entered: real paths of folders that are not entered.
    """
    entered = set(entered)
    for parent, folders, files in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        # in place: where, and in which order, `walk` goes on
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def say_left_out(folder, others, endings):
    """One line about the files of a folder that are left out, by their endings, and about the endings that are read."""
    if others:
        counts = Counter(path.suffix.lower() or "without ending" for path in others).most_common()
        kinds = [f"{number} {ending}" for ending, number in counts[:LEFT_OUT]] + ["others"] * (len(counts) > LEFT_OUT)
        files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
        tell(f"{folder}: {files} left out ({', '.join(kinds)}); read are {', '.join(endings)}")


def user_cache():
    """The folder for data of the user that can be made again; the one for temporary files where there is no home."""
    place = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(place if os.path.isabs(place) else tempfile.gettempdir())


def check_new(path, force):
    """Raises FileExistsError if there is a file or a link at the path, unless `force`."""
    if os.path.lexists(path) and not force:
        raise FileExistsError(f"{path} exists; --force overwrites")


def check_writable(path):
    """Raises ValueError unless a file can be written at the path; missing folders do not matter. Leaves nothing."""
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder")
        if target.exists() and not target.is_file():
            raise OSError(f"{target} is a device or a pipe, not a file")
        folder = next(parent for parent in target.parents if os.path.lexists(parent))
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}; choose another place") from error


def checkpoint_path(out):
    """Where the checkpoint of a training of these weights is."""
    return out.with_name(out.name + ".checkpoint")


def read_checkpoint(path):
    """The checkpoint of a stopped training, as `save_atomically` wrote it; ValueError if it is damaged."""
    from Miniproject_1.model import check_archive  # only here, as in `data.save_data`

    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged files make torch.load raise half a dozen kinds
        raise ValueError(f"{path} is not a readable checkpoint; remove it to start anew") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}; remove it to start anew")
    return state
