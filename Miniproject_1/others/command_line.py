"""What the commands share: messages on stderr, errors as one line, a progress bar, types of arguments."""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path


def tell(message):
    """Prints a line on stderr; programs without a console have none."""
    if sys.stderr is not None:
        sys.stderr.write(f"{message}\n")  # at once, so that the lines of several threads do not mix
        sys.stderr.flush()


def some_path(text):
    """A path for the command line; "", as of an unset variable, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text)


@contextmanager
def exit_on_error(command):
    """Wraps a whole command: errors that its user can fix end it with one line, Ctrl-C with another and status 130.

    Characters that an output cannot encode, as in file names, are escaped, so that no message is lost.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        tell(f"{command}: interrupted")
        sys.exit(130)
    except (ValueError, ImportError, OSError, RuntimeError, MemoryError) as error:
        sys.exit(f"{command}: {' '.join(str(error).split()) or type(error).__name__}")


def draw_progress(done, total):
    """Draws a bar on stderr, if that is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        filled = 40 * done // total
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def watched(items, total, progress):
    """Yields the items; before each, calls `progress(done, total)`."""
    for done, item in enumerate(items, start=1):
        if progress is not None:
            progress(done, total)
        yield item


def count(text):
    """A number of pairs or images, or a seed, for the command line."""
    if not 0 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def positive(text):
    """A number of at least 1, for the command line."""
    if not count(text):
        raise ValueError
    return int(text)


def share(text):
    """A number from 0 to 1, for the command line."""
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def summary(doc):
    """The first paragraph of a docstring; `python -OO` has none."""
    return doc and doc.split("\n\n")[0]
