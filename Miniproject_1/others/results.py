"""Files of results, JSON lines that several processes may add to, and what each line says of its machine."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

import torch

from Miniproject_1.model import has_native_bfloat16

NUMBERS = ("seed", "pairs", "epochs", "parameters", "multiply_adds", "seconds", "single", "ensemble")
KEYS = {"variant": str} | dict.fromkeys(NUMBERS, int | float)


def processor(device):
    """What computes, for the results: threads, processor and the numbers it multiplies, or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    kind = "bfloat16" if has_native_bfloat16(device) else "float32"
    return f"{torch.get_num_threads()} x {name}, {kind}"


def commit():
    """The short hash of the commit that is checked out; None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now_and_where():
    """What every line of results ends with."""
    about = {"commit": commit(), "torch": torch.__version__, "python": platform.python_version()}
    return about | {"recorded": datetime.date.today().isoformat()}


def read_results(path, keys=KEYS):
    """The rows of a file of results, dicts that hold at least these keys, of these types.

    ValueError names a line that is damaged.
    """
    rows = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():  # two runs may both end the unfinished line of a third
            continue
        try:
            row = json.loads(line)
            if not all(isinstance(row[key], kind) for key, kind in keys.items()):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is damaged; fix it or remove it: {line[:80]!r}") from error
        rows.append(row)
    return rows


def append_result(path, row):
    """Adds a line to a file of results, in one write: those of several processes do not mix."""
    line = json.dumps(row).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else b"\n" + line
        if file.write(line) < len(line):
            raise OSError(f"{path}: the disk is full; its last line is damaged")
