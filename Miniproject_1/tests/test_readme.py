"""What the README shows can be run, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from Miniproject_1 import __main__

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CALLS = re.findall(r"^(?:noise2noise|torchrun .* -m Miniproject_1) +([^#\n]*)", README, re.MULTILINE)
NAMED = [name for name in re.findall(r"`([\w./]+)`", README) if name.endswith(("/", ".py", ".pth", ".pdf"))]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(tuple(torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8)), "train_data.pkl")
    exec(compile(program, "README.md", "exec"), {})


def test_both_projects_have_a_program():
    assert len(PROGRAMS) == 2 and all(f"Miniproject_{n}.model" in PROGRAMS[n - 1] for n in (1, 2))


@pytest.mark.parametrize("call", CALLS)
def test_commands_take_what_is_shown(call):
    arguments = shlex.split(call)
    __main__.make_parser(arguments[0]).parse_args(arguments)


def test_every_command_is_shown():
    assert {call.split()[0] for call in CALLS} >= __main__.COMMANDS.keys() - {"data"}


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_files_that_are_named_are_there(name):
    places = [ROOT, ROOT / "Miniproject_1", ROOT / "Miniproject_2", *ROOT.glob("Miniproject_*/others")]
    places += ROOT.glob("Miniproject_*/tests")
    assert name == "mine.pth" or any((place / name).exists() for place in places)
