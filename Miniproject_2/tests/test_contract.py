"""The course's rules: what model.py may import, and that it changes nothing outside itself."""

import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from Miniproject_1 import model as project_1
from Miniproject_2 import model as ours

FOLDER = Path(ours.__file__).resolve().parent
TREE = ast.parse((FOLDER / "model.py").read_text())
ALLOWED = {"torch": {"empty", "cat", "arange"}, "torch.nn.functional": {"fold", "unfold"}}


def test_only_the_allowed_imports():
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            assert all(name.name.split(".")[0] in sys.stdlib_module_names for name in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = {name.name for name in node.names}
            if node.module in ALLOWED:
                assert names <= ALLOWED[node.module]
                assert all(name.asname is None for name in node.names)
            else:
                assert node.module.split(".")[0] in sys.stdlib_module_names


def test_no_way_round_the_imports():
    names = {node.id for node in ast.walk(TREE) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {"importlib", "ctypes", "inspect", "gc", "pickle", "runpy", "builtins", "pkgutil"}
    assert not names & {
        "__import__",
        "eval",
        "exec",
        "globals",
        "vars",
        "compile",
        "__builtins__",
        "torch",
        "print",
    }
    assert not attributes & {
        "__globals__",
        "__builtins__",
        "__module__",
        "__subclasses__",
        "__getattribute__",
    }
    for node in ast.walk(TREE):  # sys gives the byte order, and not the table of modules
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            assert node.attr == "byteorder"
    assert not attributes & {"backward_hooks", "requires_grad_", "grad_fn", "numpy", "autograd"}


SNAPSHOT = """
import os, random, sys
import torch
def state():
    return (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_rng_state().tolist(),
    random.getstate(),
            torch.get_num_threads(), os.getcwd(), sys.argv, torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled())
torch.set_grad_enabled({grad})
before = state()
sys.path.insert(0, {folder!r})
from {module} import Model
model = Model()
a, b = torch.randint(0, 256, (2, 9, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
model.train(a, b, num_epochs=1)
model.predict(a.float().requires_grad_({grad}))
assert not any(p.requires_grad or g.requires_grad for p, g in model.network.param())
assert state() == before
if {grad}:
    w = torch.ones(2, requires_grad=True)
    (w * w).sum().backward()
    assert w.grad.tolist() == [2, 2]
"""


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("module", "folder"), [("model", FOLDER), ("Miniproject_2.model", FOLDER.parent)])
def test_nothing_global_changes(tmp_path, module, folder, grad):
    """A fresh process in a folder of its own: importing, training and predicting leave all as it was, silently."""
    code = SNAPSHOT.format(folder=str(folder), module=module, grad=grad)
    run = subprocess.run(
        [sys.executable, "-W", "ignore:Failed to initialize NumPy", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_torch_trains_after_our_blocks_were_used():
    ours.Sequential(ours.Conv2d(1, 1, 3), ours.Sigmoid())(torch.ones(1, 1, 5, 5))
    layer = torch.nn.Conv2d(1, 1, 3)
    layer(torch.ones(1, 1, 5, 5)).sum().backward()
    assert layer.weight.grad is not None


def test_project_1_trains_after_project_2():
    pairs = [torch.rand(16, 3, 8, 8) * 255 for _ in range(2)]
    with torch.no_grad():
        ours.Model(width=8, deep_width=8).train(*pairs, 1)
    model = project_1.Model(width=8)
    before = [parameter.clone() for parameter in model.network.parameters()]
    model.train(*pairs, 1)
    assert not all(map(torch.equal, before, model.network.parameters()))


def test_blocks_work_without_grad_mode():
    with torch.no_grad():
        conv = ours.Conv2d(1, 1, 3)
        y = conv(torch.ones(1, 1, 5, 5))
        conv.backward(y)
    assert conv.weight_grad.abs().sum() > 0


def test_loads_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = random.getstate()
    model = ours.Model()
    if (FOLDER / "bestmodel.pth").exists():
        model.load_pretrained_model()
        assert model.pairs_seen > 0
    else:
        with pytest.raises(FileNotFoundError, match=r"bestmodel\.pth"):
            model.load_pretrained_model()
    assert os.getcwd() == str(tmp_path) and random.getstate() == before
