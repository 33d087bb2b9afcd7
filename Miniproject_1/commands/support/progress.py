"""A progress bar on a terminal; nothing in pipes, or without tqdm."""

import contextlib
import sys


class Bar:
    """Counts items by `next`, and parts of the current one by `part`; prints lines above itself."""

    def __init__(self, bar=None):
        self.bar, self.done = bar, 0

    def next(self):
        self.done += 1
        self._show(self.done)

    def part(self, done, parts):
        self._show(self.done + done / parts)

    def _show(self, done):
        if self.bar is not None:
            self.bar.n = done
            self.bar.refresh()

    def write(self, line, file=None):
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)  # of file names, which may hold any
        if self.bar is None:
            print(line, file=file or sys.stdout, flush=True)
        else:
            self.bar.write(line, file=file or sys.stdout)


@contextlib.contextmanager
def progress_bar(total, quiet=False):
    """A `Bar`, drawn on stderr if that is a terminal and tqdm is there."""
    tqdm = None
    if sys.stderr.isatty() and not quiet:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm
    if tqdm is None:
        yield Bar()
        return
    with tqdm(total=total, bar_format="{percentage:3.0f}% |{bar}| {elapsed}, {remaining} left") as bar:
        yield Bar(bar)
