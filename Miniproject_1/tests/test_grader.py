"""The grader on small made-up submissions: a good one passes, each fault is named, none hides the rest."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

GRADER = Path(__file__).resolve().parents[2] / "test.py"

# Mixes an image with its blurred self; training finds the best share by least squares.
GOOD = """
from pathlib import Path
import torch
import torch.nn.functional as F

def blur(x):
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)

class Model:
    def __init__(self):
        self.share = torch.zeros(())

    def load_pretrained_model(self):
        self.share = torch.load(Path(__file__).parent / "bestmodel.pth", weights_only=True)

    def train(self, a, b, epochs=1, num_epochs=1):
        a, b = a.float(), b.float()
        smooth = blur(a) - a
        self.share = (smooth * (b - a)).sum() / smooth.square().sum().clamp_min(1)

    def predict(self, x, ensemble=None):
        x = x.float()
        return (x + self.share * (blur(x) - x)).clamp(0, 255)
"""

# Blocks that leave the work to torch: against the rules of project 2, but right.
BLOCKS = """
class Block:
    function, parameters, gradients = None, (), ()

    def forward(self, *inputs):
        self.leaves = [t.detach().requires_grad_() for t in (*inputs, *self.parameters)]
        with torch.enable_grad():
            self.output = self.function(*self.leaves)
        return self.output.detach()

    def backward(self, *upstream):
        gradient, *gradients = torch.autograd.grad(self.output, self.leaves, *upstream)
        for kept, new in zip(self.gradients, gradients):
            kept.copy_(new)
        return gradient

    def param(self):
        return list(zip(self.parameters, self.gradients))

class Conv2d(Block):
    operation = staticmethod(F.conv2d)

    def __init__(self, in_channels, out_channels, kernel_size, **options):
        self.options = options
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size) / 9
        self.weight, self.bias = self.arranged(weight), torch.randn(out_channels)
        self.parameters = [self.weight, self.bias]
        self.gradients = [torch.zeros_like(p) for p in self.parameters]

    def arranged(self, weight):
        return weight

    def function(self, x, w, b):
        return self.operation(x, w, b, **self.options)

class TransposeConv2d(Conv2d):
    operation = staticmethod(F.conv_transpose2d)

    def arranged(self, weight):
        return weight.transpose(0, 1).contiguous()

class NearestUpsampling(Block):
    def __init__(self, scale_factor):
        self.function = lambda x: F.interpolate(x, scale_factor=scale_factor)

class ReLU(Block):
    function = staticmethod(F.relu)

class Sigmoid(Block):
    function = staticmethod(torch.sigmoid)

class MSE(Block):
    function = staticmethod(F.mse_loss)

class SGD:
    def __init__(self, params, lr):
        self.params, self.lr = params, lr

    def step(self):
        for parameter, gradient in self.params:
            parameter -= self.lr * gradient

class Sequential:
    def __init__(self, *blocks):
        self.blocks = blocks

    def forward(self, x):
        for block in self.blocks:
            x = block.forward(x)
        return x

    def backward(self, upstream):
        for block in reversed(self.blocks):
            upstream = block.backward(upstream)
        return upstream

    def param(self):
        return [pair for block in self.blocks for pair in block.param()]
"""


def write_project(folder, number, source):
    project = folder / f"Miniproject_{number}"
    project.mkdir(parents=True)
    (project / "__init__.py").touch()
    (project / "model.py").write_text(source)
    torch.save(torch.tensor(0.9), project / "bestmodel.pth")


def run(folder, *arguments):
    """Grades a folder from another working directory; returns (process, {title: {check: row}})."""
    report = folder / "report.json"
    command = [sys.executable, str(GRADER), "-p", str(folder), "--json", str(report), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=300)
    table = json.loads(report.read_text())["table"] if report.exists() else {}
    return process, {title: {row["check"]: row for row in rows} for title, rows in table.items()}


def running_commands():
    """The command lines of all processes, on Linux; nothing elsewhere."""
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            texts.append(path.read_bytes().decode(errors="replace"))
    return " ".join(texts)


def statuses(rows, *checks):
    return [rows[check]["status"] for check in checks]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny data set of smooth images with noise: 120 pairs, 110 validation images."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(120, 3, 4, 4, generator=generator) * 200 + 25
    clean = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    noisy = [(clean + 25 * torch.randn(clean.shape, generator=generator)).clamp(0, 255).byte() for _ in range(2)]
    torch.save(tuple(noisy), folder / "train_data.pkl")
    torch.save((noisy[0][:110], clean[:110].byte()), folder / "val_data.pkl")
    return folder


@pytest.fixture(scope="module")
def grader():
    """test.py as a module."""
    spec = importlib.util.spec_from_file_location("grader", GRADER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["grader"] = module
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def good(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("good")
    write_project(folder, 1, GOOD)
    write_project(folder, 2, GOOD + BLOCKS)
    return run(folder, "-d", data, "--pairs", 104)


def test_good_submission_passes_all_but_the_rules_it_breaks(good):
    process, table = good
    failed = {(title, c) for title, rows in table.items() for c, row in rows.items() if row["status"] == "FAIL"}
    assert failed == {("Miniproject_2", "imports only what is allowed")}, process.stdout
    assert process.returncode == 1
    assert list(table) == ["Miniproject_1", "Miniproject_2", "Both projects"]
    assert "import torch" in table["Miniproject_2"]["imports only what is allowed"]["note"]


def test_good_submission_is_measured(good):
    rows = good[1]["Miniproject_1"]
    assert rows["pretrained PSNR"]["value"] > rows["PSNR of the noisy images"]["value"] + 3
    assert rows["fresh model, PSNR after the epoch"]["needs"].startswith(">=")
    assert rows["predict on awkward input"]["value"] == 13
    assert rows["prints nothing"]["status"] == "pass"
    assert rows["Report_1.pdf"]["status"] == "warning"
    assert {"pretrained PSNR, single pass", "keeps its bestmodel.pth"} <= set(rows)
    assert good[1]["Miniproject_2"]["Conv2d(3, 3, 3), plain allclose"]["result"] == "20/20"


def test_table_on_stdout_and_progress_on_stderr(good):
    process, table = good
    assert "PSNR" not in process.stderr and "[1/16] Miniproject_1: import" in process.stderr
    assert all(check in process.stdout for rows in table.values() for check in rows)
    assert "FAILED: 1 FAIL" in process.stdout


LEAKY = """
import os, random, sys, torch
print("hello")
os.write(1, b"straight to the descriptor\\n")
torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
os.chdir("/")
""" + GOOD.replace("clamp(0, 255)", "clamp(0, 255).float()").replace("def train", "def learn")


def test_missing_method_leaks_and_prints_are_named(tmp_path):
    write_project(tmp_path, 1, LEAKY)
    (tmp_path / "data").mkdir()
    torch.save((torch.zeros(2, 3, 8, 8, dtype=torch.uint8),) * 2, tmp_path / "data" / "train_data.pkl")
    process, table = run(tmp_path, "-d", tmp_path / "data")
    rows = table["Miniproject_1"]
    assert process.returncode == 1
    assert rows["Model()"]["note"] == "no method train"
    assert "default dtype, torch's seed, working directory" in rows["leaves the process as it was"]["note"]
    assert rows["prints nothing"] == rows["prints nothing"] | {
        "status": "warning",
        "note": "import printed 2 lines",
    }
    assert rows["training a fresh model"]["status"] == "skipped"
    assert table["Miniproject_2"]["folder"]["status"] == "skipped"
    assert "not there, not graded" in process.stdout and "hello" not in process.stdout


# Its training, and what the training has started, never end; loading forks and ends the process, while its fork, which
# holds the same pipe, sleeps; awkward input exits.
STUBBORN = (
    GOOD.replace("a, b = a.float(), b.float()", "import subprocess; subprocess.run(['sleep', '97531'])")
    .replace("self.share = torch.load", "import os, time; os.fork() or time.sleep(97); os._exit(7); torch.load")
    .replace("x = x.float()", "x = x.float() if x.shape[-1] > 1 else __import__('sys').exit('no')")
)


def test_hang_exit_and_crash_end_only_their_step(tmp_path, data):
    write_project(tmp_path, 1, STUBBORN)
    write_project(tmp_path, 2, "raise RuntimeError('broken on purpose')")
    (tmp_path / "Miniproject_1" / "__init__.py").unlink()
    process, table = run(tmp_path, "-d", data, "--timeout", 6)
    one, two = table["Miniproject_1"], table["Miniproject_2"]
    assert statuses(one, "folder", "import", "untrained predict, 512 x 512") == ["FAIL", "pass", "pass"]
    assert one["predict on awkward input"]["note"].startswith("SystemExit: no [model.py:")
    assert one["predict on awkward input"]["result"] == "12/13"
    assert one["pretrained model"]["note"] == "ended the process, exit status 7"
    assert one["ways to call train"]["note"] == "timed out after 6 s"
    assert one["training the loaded model"]["note"] == "needs load_pretrained_model()"
    assert one["training a fresh model"]["note"] == "timed out after 6 s"
    assert two["import"]["note"] == "RuntimeError: broken on purpose [model.py:1]"
    assert statuses(two, "untrained predict", "blocks") == ["skipped", "skipped"]
    assert table["Both projects"]["both in one process"]["status"] == "FAIL"
    assert process.returncode == 1
    assert "97531" not in running_commands()


HARMFUL = GOOD.replace(
    "self.share = (smooth", "torch.save(self.share, Path(__file__).parent / 'bestmodel.pth'); (smooth"
)


def test_overwritten_weights_are_restored_and_half_a_data_set_is_enough(tmp_path, data):
    write_project(tmp_path, 1, HARMFUL)
    weights = tmp_path / "Miniproject_1" / "bestmodel.pth"
    before = weights.read_bytes()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val_data.pkl").write_bytes((data / "val_data.pkl").read_bytes())
    _, table = run(tmp_path, "-d", tmp_path / "data", "--project", 1)
    rows = table["Miniproject_1"]
    assert list(table) == ["Miniproject_1"]
    assert rows["keeps its bestmodel.pth"]["status"] == "FAIL" and weights.read_bytes() == before
    assert rows["training a fresh model"]["note"] == "no train_data.pkl"
    assert "value" in rows["pretrained PSNR"]


def test_ctrl_c_prints_what_was_finished(tmp_path, data):
    write_project(
        tmp_path,
        1,
        GOOD.replace("self.share = torch.load", "while True: pass\n        self.share = torch.load"),
    )
    command = [sys.executable, str(GRADER), "-p", str(tmp_path), "-d", str(data)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while "pretrained model" not in process.stderr.readline():
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "untrained predict, 512 x 512" in output and "(interrupted)" in output


def test_nothing_to_grade_is_a_failure(grader, tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    assert grader.main(["-p", str(tmp_path), "-d", str(data)]) == 1
    assert "Miniproject_2: not there, not graded" in capsys.readouterr().out
    assert grader.main(["-p", str(tmp_path), "-d", str(tmp_path)]) == 2
    assert "must hold train_data.pkl or val_data.pkl" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- single checks


class Fake:
    """A model whose predict is the function given."""

    def __init__(self, predict):
        self.predict = predict


@pytest.mark.parametrize(
    ("predict", "fault"),
    [
        (lambda x: x.float(), None),
        (lambda x: x.double(), "torch.float64 out, not float32"),
        (lambda x: x.float().requires_grad_() * 1, "autograd graph on the output"),
        (lambda x: x.mul_(0.5).float(), "input modified"),
        (lambda x: (x.float() + torch.rand(x.shape)).clamp(0, 255), "second call differs"),
        (lambda x: x.float()[:, :, 1:], "other shape than the input"),
        (lambda x: x.float() + 300, "outside [0, 255]: 300.0 to 555.0"),
        (lambda x: x.float() / 0 * 0, "outside [0, 255]: nan to nan"),
        (lambda x: (x, x), "returns tuple, not a tensor"),
    ],
)
def test_faults_of_predict(grader, predict, fault):
    image = torch.linspace(0, 255, 48).view(1, 3, 4, 4)
    assert grader.predict_faults(Fake(predict), image)[:1] == ([fault] if fault else [])


def test_dependence_on_the_batch_is_found(grader):
    centred = Fake(lambda x: x.float() - x.float().mean() + 100)
    assert grader.batch_faults(centred)[0].startswith("differs by")


def test_faults_shared_by_cases_are_told_once(grader):
    row = grader.counted("check", {"a": ["graph"], "b": ["graph", "shape"], "c": ["graph"]})
    assert (row.status, row.result, row.note) == ("FAIL", "0/3", "graph (all); shape (b)")


def test_psnr_is_the_mean_over_images(grader):
    clean = torch.zeros(2, 1, 2, 2)
    images = torch.stack([torch.full((1, 2, 2), 25.5), torch.full((1, 2, 2), 2.55)])
    assert grader.psnr(images, clean) == pytest.approx((20 + 40) / 2)
    with pytest.raises(ValueError, match="keep the shape"):
        grader.psnr(images[:1], clean)


def test_nan_fails_and_is_null_in_json(grader, tmp_path):
    row = grader.measured("pretrained PSNR", float("nan"), "dB", grader.Job("", "course"))
    assert (row.status, row.needs) == ("FAIL", ">= 25.50 dB")
    grader.write_json(tmp_path / "table.json", {}, {"one": [row]})
    assert json.loads((tmp_path / "table.json").read_text())["table"]["one"][0]["value"] is None


PAIR = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),) * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "UnpicklingError"),
        (b"", "EOFError"),
        (torch.zeros(3), "got"),
        ({"noisy": PAIR[0], "clean": PAIR[1]}, "got"),
        ((torch.zeros(1, 3, 8, 8),) * 2, "torch.float32"),
        ((*PAIR, PAIR[0]), "too many values"),
        ((PAIR[0], PAIR[0][:, :, 1:]), "(1, 3, 8, 8), torch.uint8 (1, 3, 7, 8)"),
        ((torch.zeros(1, 1, 8, 8, dtype=torch.uint8),) * 2, "(1, 1, 8, 8)"),
        ((torch.zeros(0, 3, 8, 8, dtype=torch.uint8),) * 2, "(0, 3, 8, 8)"),
        (tuple(part.to("meta") for part in PAIR), "got"),
        ((), "not enough values"),
    ],
)
def test_unusable_data_is_explained(grader, tmp_path, content, message):
    path = tmp_path / "val_data.pkl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"val_data\.pkl: expected torch\.save of two uint8") as error:
        grader.prepare(tmp_path, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, 100, 5000, -100])
def test_truncated_data_is_explained(grader, tmp_path, data, size):
    path = tmp_path / "train_data.pkl"
    path.write_bytes((data / "train_data.pkl").read_bytes()[:size])
    with pytest.raises(ValueError, match=r"train_data\.pkl: expected torch\.save"):
        grader.prepare(tmp_path, tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_data_that_are_no_file_are_explained(grader, tmp_path, data, make):
    (tmp_path / "train_data.pkl").write_bytes((data / "train_data.pkl").read_bytes())
    make(tmp_path / "val_data.pkl")
    with pytest.raises(ValueError, match=r"val_data\.pkl: .* not a file"):
        grader.prepare(tmp_path, tmp_path)


def test_criteria_follow_data_project_and_pairs(grader, tmp_path, data):
    job = grader.prepare(tmp_path, data)
    assert (job.data, job.pairs, job.images) == ("course", 120, 110)

    def needs(check, before=None, **changes):
        return grader.measured(check, 0.0, "dB", job._replace(noisy=20.0, **changes), before).needs

    assert needs("pretrained PSNR") == ">= 25.50 dB"
    assert needs("pretrained PSNR", number=2) == ">= 23.50 dB"
    assert needs("pretrained PSNR", data="default") == ">= 22.00 dB"
    assert needs("pretrained PSNR", data="default", number=2) == ">= 21.00 dB"
    fresh = "fresh model, PSNR after the epoch"
    assert needs(fresh, before=7) == ">= 7.00 dB"
    assert needs(fresh, pairs=1_000) == needs(fresh, pairs=19_999) == ">= 20.00 dB"
    assert needs(fresh, pairs=20_000) == ">= 25.00 dB"
    assert needs(fresh, pairs=20_000, number=2) == ">= 22.50 dB"
    assert needs(fresh, pairs=3_999, data="default") == ">= 20.00 dB"
    assert needs(fresh, pairs=4_000, data="default") == ">= 21.00 dB"
    assert needs(fresh, pairs=4_000, data="default", number=2) == ">= 20.50 dB"
    assert needs("loaded model, PSNR after the epoch", before=26) == ">= 25.98 dB"
    assert needs("loaded model, at that rate 50,000", pairs=999) == ""
    assert needs("loaded model, at that rate 50,000", pairs=1_000) in ("<= 600.00 dB", "<= 2700.00 dB")


def test_every_criterion_is_used(grader):
    """A criterion whose name no check asks for would hold nothing."""
    rest = GRADER.read_text().partition("# fmt: on")[2].replace("{kind} model", "fresh model")
    rest = rest.replace("{COURSE_PAIRS:,}", f"{grader.COURSE_PAIRS:,}")
    names = {rule.name.replace("loaded", "fresh") for rule in grader.CRITERIA} - {"a step"}
    assert [name for name in names if f'"{name}"' not in rest] == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import math, os.path", []),
        ("from torch import empty, cat, arange", []),
        ("from torch.nn.functional import fold, unfold", []),
        ("from .others.blocks import Conv2d", []),
        ("from others.blocks import Conv2d", []),
        ("import torch", ["import torch"]),
        ("from torch import empty, zeros", ["from torch import zeros"]),
        ("def f():\n    from torch.nn import Conv2d", ["from torch.nn import Conv2d"]),
        ("import numpy as np", ["import numpy"]),
    ],
)
def test_import_rules_of_project_2(grader, line, found):
    known = {"others"} | sys.stdlib_module_names
    assert list(grader.imports_outside(known, grader.ast.parse(line))) == found


@pytest.fixture
def blocks():
    names = {}
    exec(GOOD.replace("__file__", "'.'") + BLOCKS, names)
    return SimpleNamespace(**names)


def faults_of_blocks(grader, blocks):
    faults = {name: grader.attempt(grader.twin_faults, blocks, *twin) for name, twin in grader.TWINS.items()}
    others = {"MSE": grader.mse_faults, "SGD": grader.sgd_faults}
    return faults | {name: grader.attempt(function, blocks) for name, function in others.items()}


def test_right_blocks_agree(grader, blocks):
    assert faults_of_blocks(grader, blocks) == {name: [] for name in (*grader.TWINS, "MSE", "SGD")}


def test_other_rounding_order_fails_plain_allclose(grader, blocks):
    def forward(self, x):
        count, rows = len(x), self.weight.flatten(1)
        sums = rows @ torch.nn.functional.unfold(x, 3) + self.bias[:, None]
        return sums.view(count, len(rows), x.shape[2] - 2, x.shape[3] - 2)

    blocks.Conv2d.forward = forward
    faults = [grader.plain_faults(blocks, grader.PLAIN_CASES["Conv2d(3, 3, 3)"], seed) for seed in range(20)]
    assert sum(map(bool, faults)) > 10 and ["other rounding than torch, with seeds"] in faults


def test_wrong_and_missing_blocks_are_named(grader, blocks):
    blocks.ReLU.backward = lambda self, upstream: 2 * upstream
    blocks.MSE.backward = lambda self: torch.ones(2, 3, 4)
    del blocks.SGD
    faults = faults_of_blocks(grader, blocks)
    assert faults["ReLU"][0].startswith("input gradient is off by")
    assert faults["MSE"] == ["gradient has shape (2, 3, 4), not (2, 3, 4, 5)"]
    assert "no attribute 'SGD'" in faults["SGD"][0]
    assert faults["Conv2d"] == []
