"""The grader on small made-up submissions: a good one passes, each fault is named, none hides the rest."""

import contextlib
import importlib.util
import json
import os
import shutil
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


def run(folder, *arguments, **environment):
    """Grades a folder from another working directory; returns (process, {title: {check: row}})."""
    report = folder / "report.json"
    command = [sys.executable, str(GRADER), "-p", str(folder), "--json", str(report), *map(str, arguments)]
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=folder.parent, env=os.environ | environment, timeout=900
    )
    table = json.loads(report.read_text())["table"] if report.exists() else {}
    return process, {title: {row["check"]: row for row in rows} for title, rows in table.items()}


def soon_gone(text):
    """Whether no command line of a process holds the text, at the latest after a while; on Linux, true elsewhere."""
    for _ in range(100):
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it may end meanwhile
                commands.append(path.read_bytes())
        if text.encode() not in b" ".join(commands):
            return True
        time.sleep(0.1)
    return False


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


# A GPU that torch sees and has no kernels for: whoever touches it fails.
UNUSABLE_GPU = """
import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch

def fail(*_):
    raise RuntimeError("no kernel image is available for execution on the device")

torch.cuda.is_available, torch.cuda._lazy_init, torch.cuda.synchronize = lambda: True, fail, fail
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory, data):
    folder, hook = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(UNUSABLE_GPU)
    write_project(folder, 1, GOOD)
    write_project(folder, 2, GOOD + BLOCKS)
    files = set(folder.rglob("*"))
    answer = run(folder, "-d", data, "--pairs", 104, PYTHONPATH=str(hook))
    assert set(folder.rglob("*")) == files | {folder / "report.json"}  # not even a __pycache__
    return answer


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
torch.use_deterministic_algorithms(True)
torch.autograd.set_detect_anomaly(True)
torch.set_autocast_enabled("cpu", True)
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
    left = rows["leaves the process as it was"]["note"]
    for changed in (
        "default dtype, torch's seed",
        "deterministic algorithms, anomaly detection, autocast",
        "directory",
    ):
        assert changed in left
    assert rows["prints nothing"] == rows["prints nothing"] | {
        "status": "warning",
        "note": "import printed 2 lines",
    }
    assert rows["training a fresh model"]["status"] == "skipped"
    assert table["Miniproject_2"]["folder"]["status"] == "FAIL"
    assert "not there; --project grades the other" in process.stdout and "hello" not in process.stdout


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
    assert soon_gone("97531")


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
    assert "untrained predict, 512 x 512" in output and "INTERRUPTED: " in output


@pytest.mark.parametrize("option", ["-p", "-d", "--json"])
def test_an_empty_path_is_not_the_current_folder(grader, option, capsys):
    with pytest.raises(SystemExit) as ended:
        grader.main([option, ""])
    assert ended.value.code == 2 and "it is empty" in capsys.readouterr().err


def test_nothing_to_grade_is_a_failure(grader, tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    assert grader.main(["-p", str(tmp_path), "-d", str(data)]) == 1
    assert "Miniproject_2: not there; --project" in capsys.readouterr().out
    (tmp_path / "old.json").write_text("kept")
    assert grader.main(["-p", str(tmp_path), "-d", str(tmp_path), "--json", str(tmp_path / "old.json")]) == 2
    assert (tmp_path / "old.json").read_text() == "kept"
    assert "must hold train_data.pkl or val_data.pkl" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- surroundings

BROKEN = "raise RuntimeError('broken on purpose')"  # its grading is over in a second


@pytest.fixture
def broken(tmp_path, data):
    """The command that grades a project whose import fails, with a --json file."""
    write_project(tmp_path / "project", 1, BROKEN)
    return [*grader_command(tmp_path / "project", data), "--json", str(tmp_path / "report.json")]


def grader_command(folder, data):
    return [sys.executable, str(GRADER), "-p", str(folder), "-d", str(data), "--project", "1"]


def checks_in(path):
    return [row["check"] for row in json.loads(path.read_text())["table"]["Miniproject_1"]]


def test_output_that_lacks_a_character_loses_nothing(tmp_path, data):
    write_project(tmp_path / "图 é", 1, "raise RuntimeError('图')")
    report = tmp_path / "图.json"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*grader_command(tmp_path / "图 é", data), "--json", str(report)]
    process = subprocess.run(command, capture_output=True, env=environment, timeout=900)
    assert process.returncode == 1
    assert rb"\u56fe" in process.stdout and b"untrained predict" in process.stdout
    assert "图" in json.loads(report.read_text())["table"]["Miniproject_1"][2]["note"]
    missing = subprocess.run([*command, "-d", "图"], capture_output=True, env=environment, timeout=900)
    assert missing.returncode == 2 and rb"\u56fe" in missing.stderr


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
def test_missing_streams_lose_nothing(tmp_path, broken, closed):
    process = subprocess.run(
        broken,
        stdout=None if 1 in closed else subprocess.PIPE,
        preexec_fn=lambda: [os.close(descriptor) for descriptor in closed],
        timeout=900,
    )
    assert process.returncode == 1
    assert "untrained predict" in checks_in(tmp_path / "report.json")
    assert 1 in closed or b"untrained predict" in process.stdout


@pytest.mark.parametrize("lost", ["stdout", "stderr"])
def test_streams_that_nobody_reads_lose_nothing(tmp_path, broken, lost):
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if lost == "stdout" else "stdout"
    process = subprocess.run(broken, **{lost: writer, other: subprocess.PIPE}, timeout=900)
    os.close(writer)
    assert process.returncode == 1
    assert "untrained predict" in checks_in(tmp_path / "report.json")
    assert b"untrained predict" in process.stdout if lost == "stderr" else b"BrokenPipe" not in process.stderr


@pytest.mark.parametrize("place", [".", "file/report.json", "missing/report.json", "pipe"])
def test_report_that_cannot_be_written_is_told_before_the_work(grader, tmp_path, capsys, monkeypatch, place):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    monkeypatch.setattr(grader, "prepare", None)
    assert grader.main(["-p", str(tmp_path), "--json", str(tmp_path / place)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_report_replaces_the_target_of_a_link(grader, tmp_path):
    (tmp_path / "link").symlink_to("report.json")
    (tmp_path / "report.json").write_text("old")
    grader.write_json(tmp_path / "link", {"pairs": 1}, {})
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "report.json").read_text()) == {"pairs": 1, "passed": False, "table": {}}


def test_table_comes_although_its_file_can_no_longer_be_written(grader, tmp_path, data, capsys, monkeypatch):
    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(
        grader, "grade", lambda *_: folder.rmdir() if not any(folder.iterdir()) else shutil.rmtree(folder)
    )
    assert grader.main(["-p", str(tmp_path), "-d", str(data), "--json", str(folder / "report.json")]) == 2
    output = capsys.readouterr()
    assert "FAILED: nothing ran" in output.out and "cannot be written" in output.err


@pytest.mark.parametrize(
    "error", [OSError(30, "Read-only file system", "cache"), ValueError("no place"), ImportError("x"), MemoryError("x")]
)
def test_default_data_that_cannot_be_made_are_explained(grader, tmp_path, monkeypatch, capsys, error):
    def default_data(progress):
        raise error

    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    monkeypatch.setattr(grader.sys, "path", list(sys.path))
    stand_in = SimpleNamespace(default_data=default_data)
    monkeypatch.setitem(sys.modules, "Miniproject_1.others.data", stand_in)
    assert grader.main(["-p", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "use -d" in lines[0] and str(error) in lines[0]


@pytest.mark.parametrize(
    ("function", "error", "status"),
    [
        ("make_default_data", KeyboardInterrupt(), 130),
        ("tempfile.gettempdir", FileNotFoundError(2, "No usable temporary directory found"), 2),
    ],
)
def test_what_keeps_the_grader_from_starting_is_told_in_a_line(
    grader, tmp_path, monkeypatch, capsys, function, error, status
):
    def fail():
        raise error

    monkeypatch.setattr(grader.signal, "signal", lambda *_: None)
    monkeypatch.setattr(f"grader.{function}", fail)
    assert grader.main(["-p", str(tmp_path)]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_grader_runs_without_docstrings(broken):
    command = [broken[0], "-OO", *broken[1:]]
    process = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert process.returncode == 1 and "broken on purpose" in process.stdout


def test_missing_numpy_is_no_news(tmp_path, broken):
    """Neither process of the grader shows torch's warning; graded code still sees all others."""
    source = "import warnings, sys\nassert sys.modules['numpy'] is None\nassert not warnings.filters[0][1]\n" + BROKEN
    (tmp_path / "project" / "Miniproject_1" / "model.py").write_text(source)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys; sys.modules['numpy'] = None")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    process = subprocess.run(broken, capture_output=True, text=True, env=environment, timeout=900)
    plain = subprocess.run(
        [sys.executable, "-c", "import torch"], capture_output=True, text=True, env=environment, timeout=900
    )
    assert "NumPy" in plain.stderr
    assert "NumPy" not in process.stderr and "broken on purpose" in process.stdout
    assert "import printed" not in process.stdout  # which is where the child's warning would be counted


@pytest.mark.parametrize("end", ["SIGTERM", "SIGHUP"])
def test_termination_prints_what_was_finished(tmp_path, data, end):
    write_project(tmp_path, 1, "while True: pass")
    process = subprocess.Popen(
        [*grader_command(tmp_path, data), "--json", str(tmp_path / "report.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also below nohup
    )
    while "import" not in process.stderr.readline():
        pass
    process.send_signal(getattr(signal, end))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, end)
    assert "INTERRUPTED: " in output and "folder" in checks_in(tmp_path / "report.json")


@pytest.mark.parametrize("place", [".", "report"])
def test_report_is_found_beside_the_code_and_in_report(grader, tmp_path, place):
    def missing():
        return "Report_1.pdf" in [row.check for row in grader.folder_rows(tmp_path, "Report_1.pdf")]

    assert missing()
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "Report_1.pdf").touch()
    assert not missing()


# ---------------------------------------------------------------------------------------------- hostile submissions


def run_one(grader, folder, step, source, timeout=60, **about):
    """The rows of one step on a submission, {check: row}."""
    write_project(folder, 1, source)
    rows = [grader.Row(check, "pass") for check in ("Model()", "load_pretrained_model()")]
    (step,) = [s for s in grader.STEPS if s.name == step]
    grader.run_step(step, grader.Job(str(folder), "course", **about), timeout, rows)
    assert grader.DONE not in rows
    return {row.check: row for row in rows}


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3 [model.py:1]"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: [model.py:1]"),
        ("import os; os._exit(3)", "ended the process, exit status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended the process, exit status -9"),
        ("import os; os.killpg(0, 9)", "ended the process, exit status -9"),
        ("import os; os.closerange(0, 256)", "ended the process, exit status 1"),
        ("import os; os.closerange(0, 256)\nwhile True: pass", "timed out after 1 s"),
        ("import shutil; shutil.rmtree('..')", "ended the process, exit status 0"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded [model.py:1]"),
        ("raise Exception(chr(27) + '[2J\\n图')", "Exception: ?[2J 图 [model.py:1]"),
        ("class E(Exception): __str__ = None\nraise E", "E: its message cannot be read [model.py:2]"),
        ("raise Exception('x' * 999)", f"Exception: {'x' * 186}... [model.py:1]"),
        ("while True: print('x' * 999)", "printed more than 10 MB"),
        ("x = ", "SyntaxError: invalid syntax (model.py, line 1)"),
        ("Model = None", "TypeError: 'NoneType' object is not callable"),
    ],
)
def test_hostile_import_becomes_a_row(grader, tmp_path, source, note):
    rows = run_one(grader, tmp_path, "import", source, timeout=1 if "pass" in source else 60)
    failed = [row for row in rows.values() if row.status == "FAIL"]
    assert [row.note for row in failed][:1] == [note]


LINGERING = (
    """
import atexit, os, shutil, subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(999,)).start()
subprocess.Popen(["sleep", "86421"])
atexit.register(time.sleep, 999)
print("图")
sys.stdout.close()
sys.stderr = sys.argv = None
shutil.rmtree(os.getcwd())
"""
    + GOOD
)


def test_what_graded_code_leaves_behind_neither_stops_the_grader_nor_stays(grader, tmp_path):
    rows = run_one(grader, tmp_path, "import", LINGERING)
    assert (rows["import"].status, rows["Model()"].status) == ("pass", "pass")
    assert rows[grader.CLEAN].note == "import changed sys.argv"
    assert "import" not in rows[grader.SILENT].check and rows[grader.SILENT].note == "import printed 1 lines"
    assert soon_gone("86421")


def test_changed_state_is_told(grader, tmp_path):
    changes = (
        "import os, sys; torch.set_default_dtype(torch.float64); os.chdir('/'); sys.argv += ['x']; torch.manual_seed(1)"
    )
    source = GOOD.replace("        x = x.float()\n", f"        {changes}\n        x = x.float()\n")
    rows = run_one(grader, tmp_path, "untrained predict", source)
    assert rows["untrained predict, 512 x 512"].status == "pass"
    expected = "untrained predict changed default dtype, torch's seed, working directory, sys.argv"
    assert (rows[grader.CLEAN].status, rows[grader.CLEAN].note) == ("FAIL", expected)


UNSHIPPED = (
    GOOD
    + """
    whole = train

    def train(self, *arguments, **options):
        self.whole(*arguments, **options)
        torch.save(self.share, Path(__file__).parent / "bestmodel.pth")
"""
)


def test_weights_that_training_has_made_are_no_shipped_ones(tmp_path, data):
    """Or a second grading would pass."""
    write_project(tmp_path, 1, UNSHIPPED)
    (tmp_path / "Miniproject_1" / "bestmodel.pth").unlink()
    _, table = run(tmp_path, "-d", data, "--project", 1, "--pairs", 104)
    rows = table["Miniproject_1"]
    assert rows["pretrained model"]["status"] == "FAIL"
    assert rows["keeps its bestmodel.pth"]["note"] == "made by training; removed by the grader"
    assert not (tmp_path / "Miniproject_1" / "bestmodel.pth").exists()


def test_a_second_call_that_gives_nan_differs(grader):
    image, calls = grader.random_images(1), []

    def predict(images):
        calls.append(1)
        return images.float() * (1 if len(calls) % 2 else float("nan"))

    model = SimpleNamespace(predict=predict)
    assert grader.predict_faults(model, image) == ["second call differs"]


@pytest.mark.parametrize(
    "line",
    ["[1, 2, 3]", '["a"]', '["a", "odd"]', '["a", "pass", "", "", "", "1"]', "7", '["a", "pass", "", "", ""'],
    ids=str,
)
def test_what_is_no_row_stops_nothing(grader, tmp_path, line):
    (tmp_path / "rows").write_text(f'["import", "pass", "", "", "", null]\n{line}\n')
    (tmp_path / "printed").touch()
    assert [row.check for row in grader.read_answers(grader.STEPS[0], tmp_path)] == ["import"]


def test_weights_that_became_a_link_or_a_folder(grader, tmp_path):
    weights, other = tmp_path / "bestmodel.pth", tmp_path / "other"
    other.write_bytes(b"foreign")
    weights.symlink_to(other)
    assert grader.restore(weights, b"own") == ["overwritten; restored by the grader"]
    assert (weights.read_bytes(), other.read_bytes()) == (b"own", b"foreign")
    weights.unlink()
    weights.mkdir()
    assert len(grader.attempt(grader.restore, weights, b"own")) == 1


# ---------------------------------------------------------------------------------------------- graphics cards


class Elsewhere(torch.Tensor):
    """A tensor as on a GPU: it does not mix with those of the CPU, until `cpu` brings it there."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if any(type(argument) is torch.Tensor for argument in arguments):
            raise RuntimeError("Expected all tensors to be on the same device")
        result = super().__torch_function__(function, types, arguments, keywords or {})
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def test_predictions_may_be_on_any_device(grader, tmp_path, data):
    model = Fake(lambda x: x.float().as_subclass(Elsewhere))
    model.train = lambda *_, **__: setattr(model, "predict", lambda x: x.float().as_subclass(Elsewhere) / 2)
    job = grader.prepare(tmp_path, data)
    with pytest.raises(RuntimeError, match="same device"):
        model.predict(torch.ones(2)) + torch.ones(2)
    assert grader.predict_faults(model, torch.ones(1, 3, 4, 4)) == []
    assert grader.batch_faults(model) == []
    assert grader.score(model, job) == pytest.approx(job.noisy)
    assert grader.learning_row("learns", model).status == "pass"


def test_timing_waits_for_a_gpu_in_use_and_starts_none(grader, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert grader.timed(int, "7")[0] == 7 and not waited
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert grader.timed(int, "7")[0] == 7 and waited == [1]


def test_grader_starts_no_gpu(good):
    """Its processes had a GPU that torch sees but cannot use."""
    assert "seconds" in good[0].stdout and "no kernel image" not in good[0].stdout + good[0].stderr


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
        (lambda x: x.float() / (1 + x.is_floating_point()), "other result than for uint8"),
        (lambda x: x.float()[:, :, 1:], "other shape than the input"),
        (lambda x: x.float() + 300, "outside [0, 255]: 300.0 to 555.0"),
        (lambda x: x.float() / 0 * 0, "outside [0, 255]: nan to nan"),
        (lambda x: (x, x), "returns tuple, not a tensor"),
        (lambda x: None, "returns NoneType, not a tensor"),
        (lambda x: x.tolist(), "returns list, not a tensor"),
        (lambda x: x.byte(), "torch.uint8 out, not float32"),
        (lambda x: x * 1j, "NotImplementedError: "),
        (lambda x: sys.exit(5), "SystemExit: 5"),
    ],
)
def test_faults_of_predict(grader, predict, fault):
    image = torch.linspace(0, 255, 48).round().view(1, 3, 4, 4)
    faults = grader.attempt(grader.predict_faults, Fake(predict), image)
    assert faults == [] if fault is None else faults[0].startswith(fault)


def test_dependence_on_the_batch_is_found(grader):
    centred = Fake(lambda x: x.float() - x.float().mean() + 100)
    assert grader.batch_faults(centred)[0].startswith("differs by")
    mixed_up = Fake(lambda x: torch.cat([x[:1], x[1:].flip(0)]).float())
    assert grader.batch_faults(mixed_up)[0].startswith("differs by")


def test_one_perfect_image_does_not_count_for_all(grader):
    clean = torch.full((2, 3, 4, 4), 100.0)
    noisy = clean.clone()
    noisy[1] += 25.5
    assert grader.psnr(noisy, clean) == pytest.approx((100 + 20) / 2, abs=1e-3)


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
    budget = "<= 600.00 dB" if torch.cuda.is_available() else "<= 2700.00 dB"
    assert needs("loaded model, at that rate 50,000", pairs=1_000) == budget


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


def test_help_of_autograd_and_imports_elsewhere_are_found(grader, tmp_path):
    helped = GOOD + BLOCKS.replace("with torch.enable_grad():", "if True:")
    write_project(tmp_path, 2, helped.replace("a, b = a.float()", "import common, lazily; a, b = a.float()"))
    (tmp_path / "common.py").write_text("from torch import nn")
    (tmp_path / "lazily.py").write_text("import torch.optim")
    (tmp_path / "unused.py").write_text("import torch.fx")
    rows = [grader.Row("import", "pass")]
    (step,) = [s for s in grader.STEPS if s.name == "blocks"]
    grader.run_step(step, grader.Job(str(tmp_path), "course", number=2), 60, rows)
    rows = {row.check: row for row in rows}
    assert "does not require grad" in rows["ReLU, forward and backward"].note
    rules = rows["imports only what is allowed"].note
    assert "common.py: from torch import nn" in rules and "lazily.py: import torch.optim" in rules
    assert "unused" not in rules


@pytest.mark.skipif(os.name != "posix", reason="makes links")
@pytest.mark.parametrize("linked", ["Miniproject_2", "Miniproject_2/model.py"])
def test_projects_and_files_that_are_links_are_graded_as_others(grader, tmp_path, linked):
    write_project(tmp_path, 2, "import torch.optim\n" + GOOD + BLOCKS)
    elsewhere = (tmp_path / linked).rename(tmp_path.parent / f"{tmp_path.name} elsewhere")
    (tmp_path / linked).symlink_to(elsewhere)
    rows = [grader.Row("import", "pass")]
    (step,) = [s for s in grader.STEPS if s.name == "blocks"]
    grader.run_step(step, grader.Job(str(tmp_path), "course", number=2), 60, rows)
    rows = {row.check: row for row in rows}
    assert "import torch.optim" in rows["imports only what is allowed"].note
    assert rows["Conv2d, forward and backward"].status == "pass"


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
        sums = rows.double() @ torch.nn.functional.unfold(x, 3).double() + self.bias[:, None]
        return sums.float().view(count, len(rows), x.shape[2] - 2, x.shape[3] - 2)  # rounded once, on any processor

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


def test_pairs_that_a_training_changes_are_told(grader):
    class Spoiler:
        def train(self, a, b, *_, **__):
            a.zero_()

        def predict(self, images):
            return images.float()

    assert grader.train_faults(SimpleNamespace(Model=Spoiler), 4, (1,), {}) == ["pairs modified"]
