"""The command line: `python -m Miniproject_1 <command>`, or `noise2noise <command>` once it is installed.

Exit status: 0 if all went well, 1 if something could not be done (it is named on stderr), 2 for wrong usage, 130 after
Ctrl-C, 143 after SIGTERM, 129 when the terminal has been closed.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings

COMMANDS = {
    "denoise": "remove the noise from pictures",
    "inspect": "check whether pairs of noisy pictures are fit for training",
    "evaluate": "compare results with clean pictures, in dB and SSIM",
    "train": "train on noisy pictures: pairs, several versions of a scene, or single ones",
    "info": "show what a weights file holds",
    "export": "export a network to ONNX, or as a PyTorch program",
    "data": "make data in the course's format",
}


def make_parser(name=None):
    """The parser of all commands; only that of the command called `name` has its arguments (and its imports)."""
    parser = argparse.ArgumentParser(
        prog="noise2noise", description="A denoiser trained on pairs of noisy images.", allow_abbrev=False
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command, summary in COMMANDS.items():
        module = importlib.import_module(f"Miniproject_1.commands.{command}") if command == name else None
        details = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        subparser = commands.add_parser(command, help=summary, description=module and module.__doc__, **details)
        if module:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def prepare_streams():
    """Opens standard streams that are missing, as in a service; what cannot be encoded is printed as escapes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- for the life of the process
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def tidy_end():
    """Within the context, SIGTERM and SIGHUP unwind like Ctrl-C, so that temporary files are removed."""
    previous = {}
    if threading.current_thread() is threading.main_thread():  # others get no signals
        ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        previous = {end: signal.getsignal(end) for end in ends if signal.getsignal(end) != signal.SIG_IGN}  # nohup
    try:
        for end in previous:
            signal.signal(end, lambda number, _: sys.exit(128 + number))
        yield
    finally:
        for end, handler in previous.items():
            signal.signal(end, handler)


def main(arguments=None):
    """Runs one command and returns the exit status; `arguments` are those of the command line by default."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    prepare_streams()
    name = arguments[0] if arguments else None
    with tidy_end():
        return run(name, arguments)


def run(name, arguments):
    """Runs the command called `name`; errors become a line on stderr and an exit status."""
    try:
        if name == "data":  # it has a parser of its own
            importlib.import_module("Miniproject_1.others.data").main(arguments[1:])
            return 0
        options = make_parser(name).parse_args(arguments)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"values must be in \[0, 255\]")  # commands scale them
            return options.run(options) or 0
    except KeyboardInterrupt:
        print("interrupted: files written so far are complete", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as with `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        print(f"noise2noise {name}: {error or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
