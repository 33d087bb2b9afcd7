"""The grader: checks a submission of the two projects as the course does, and prints one table.

    python test.py                       # the projects beside this file, on a small data set made once
    python test.py -p PROJECT -d DATA    # another folder with Miniproject_1/ and Miniproject_2/, another data set
    pytest test.py                       # the same checks on few pairs, one test for each project

DATA holds `train_data.pkl`, `torch.save((noisy_1, noisy_2))`, and `val_data.pkl`, `torch.save((noisy, clean))`:
uint8 tensors (N, 3, H, W). With only one of them, what needs the other is skipped. Exit status: 0 when everything
that ran has passed, 1 when something failed or nothing ran, 2 for unusable arguments or data, without a folder for
temporary files, and when the file of `--json` cannot be written, even at the end; 130 after Ctrl-C, 143 after SIGTERM,
129 when the terminal has been closed.

It grades other folders too, so it imports nothing from this one, except to make the data.

Graded code is not trusted. Each step runs in a child process of its own (`run_step`, `serve`), in an empty working
directory, its output captured, under a time limit. The grader cannot detect forged results: read the code, too. From
top to bottom: the pass criteria, rows and data, the checks of Model, of its training and of the blocks, the steps and
their processes, the command line.
"""

import argparse
import ast
import importlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

with warnings.catch_warnings():  # nothing here needs NumPy, and every process would warn
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch
    import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------- pass criteria


class Criterion(NamedTuple):
    """A limit for a measured value. Of the criteria with the same name, the first that applies counts."""

    name: str  # of the row in the table, or of the tolerance
    sign: str
    limits: tuple  # for project 1, for project 2
    above: str = ""  # the limit is relative to this PSNR: of the "noisy" images, of the model "before" the epoch
    data: str = ""  # applies to "course" data (-d) or to the "default" data that this repository makes; "": to both
    pairs: int = 0  # applies to at least so many training pairs


BUDGET = 600 if torch.cuda.is_available() else 2700  # the course's two limits, with a GPU and without

# fmt: off
CRITERIA = (
    # PSNR in dB                                   for 1 and 2     counted from  data       pairs
    Criterion("pretrained PSNR",                   ">=", (25.5, 23.5),   "",       "course"),
    Criterion("pretrained PSNR",                   ">=", (2.0, 1.0),     "noisy",  "default"),
    Criterion("fresh model, PSNR after the epoch", ">=", (25.0, 22.5),   "",       "course",  20_000),
    Criterion("fresh model, PSNR after the epoch", ">=", (1.0, 0.5),     "noisy",  "default", 4_000),
    Criterion("fresh model, PSNR after the epoch", ">=", (0, 0),         "noisy",  "",        1_000),
    Criterion("fresh model, PSNR after the epoch", ">=", (0, 0),         "before"),
    Criterion("loaded model, PSNR after the epoch", ">=", (-0.02, -0.02), "before"),
    # seconds
    Criterion("fresh model, at that rate 50,000",  "<=", (BUDGET, BUDGET), pairs=1_000),
    Criterion("loaded model, at that rate 50,000", "<=", (BUDGET, BUDGET), pairs=1_000),
    Criterion("a step",                            "<=", (300, 300)),
    Criterion("a step that trains or scores",      "<=", (3600, 3600)),
    # grey values
    Criterion("dark images stay dark",             "<=", (32, 32)),    # or zeros and ones were taken for [0, 1]
    Criterion("second call",                       "<=", (0.1, 0.1)),  # dropout moves it further
    Criterion("image alone and in a batch",        "<=", (2, 2)),      # half precision may differ by 2
    # blocks against torch: also plain allclose with its own tolerances, on all SEEDS
    Criterion("relative error of a block",         "<=", (1e-4, 1e-4)),
    Criterion("absolute error of a block",         "<=", (1e-5, 1e-5)),
)
# fmt: on

QUICK_PAIRS, QUICK_IMAGES = 2_000, 500  # of the default data, without --full
PYTEST_PAIRS, PYTEST_IMAGES = 512, 100
COURSE_PAIRS = 50_000
BATCH = 100  # images a call of predict, as in the course
SEEDS = 20  # random draws on which a block has to agree with torch
TICK = 0.1  # s between two looks at a child
CLOCK = time.perf_counter  # as it is before graded code could replace it
MOST_PRINTED = 10_000_000  # bytes; a child that prints more is ended
LONGEST = 200  # characters of an error

HERE = Path(__file__).resolve().parent
ALLOWED_IMPORTS = {"torch": {"empty", "cat", "arange"}, "torch.nn.functional": {"fold", "unfold"}}

# ---------------------------------------------------------------------------------------------- rows and data


class Job(NamedTuple):
    """What a child is told to grade."""

    folder: str  # that holds the project folders
    data: str  # "course" or "default"
    number: int = 1  # of the project
    train_file: str | None = None
    val_file: str | None = None
    pairs: int = 0
    images: int = 0
    noisy: float | None = None  # PSNR of the noisy validation images


class Row(NamedTuple):
    """One line of the table; `status` is pass, FAIL, skipped, warning or info."""

    check: str
    status: str
    result: str = ""
    needs: str = ""
    note: str = ""
    value: float | None = None


def judged(check, faults, result="", needs="", value=None):
    """A row that passes when the list of faults is empty."""
    return Row(check, "FAIL" if faults else "pass", result, needs, "; ".join(faults), value)


def counted(check, faults_of):
    """A row k/n over {case: faults}; a fault that several cases share is told once, with their names."""
    cases_of = {}
    for case, faults in faults_of.items():
        for fault in faults:
            cases_of.setdefault(fault, []).append(case)
    total, good = len(faults_of), sum(not faults for faults in faults_of.values())
    named = {fault: "all" if len(cases) == total else ", ".join(cases) for fault, cases in cases_of.items()}
    return judged(check, [f"{f} ({cases})" for f, cases in named.items()], f"{good}/{total}", "all", good)


def measured(check, value, unit, job=None, before=None):
    """A row that holds a value against its criterion; where none applies, it informs."""
    rule, result = job and criterion(check, job), f"{value:.2f} {unit}"
    if not rule:
        return Row(check, "info", result, value=value)
    limit = rule.limits[job.number - 1] + {"": 0, "noisy": job.noisy, "before": before}[rule.above]
    good = value >= limit if rule.sign == ">=" else value <= limit
    return Row(check, "pass" if good else "FAIL", result, f"{rule.sign} {limit:.2f} {unit}", value=value)


def criterion(name, job):
    """The criterion of that name that applies to the job, or None."""
    rules = (r for r in CRITERIA if r.name == name and r.data in ("", job.data) and job.pairs >= r.pairs)
    return next(rules, None)


def tolerance(name):
    """The limit of a criterion that is one for all jobs."""
    return next(rule.limits[0] for rule in CRITERIA if rule.name == name)


def describe(error):
    """The last line of a traceback, and the graded line that it came from."""
    try:
        text = str(error)
    except Exception:  # graded code may define it
        text = "its message cannot be read"
    line = " ".join(f"{type(error).__name__}: {text}".split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    line = "".join(c if c.isprintable() else "?" for c in line)  # a terminal would obey control characters
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "Miniproject_" in f.filename]
    return line + (f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else "")


def attempt(function, *arguments):
    """The faults that the function returns; anything it raises counts as one, sys.exit included."""
    try:
        return function(*arguments)
    except BaseException as error:
        return [describe(error)]


def read_pairs(path, count=None):
    """The first `count` of the two tensors of one of the course's files. ValueError where it holds no such thing."""
    try:
        if not os.path.isfile(path):
            raise ValueError("not a file")
        first, second = torch.load(path, map_location="cpu", weights_only=True)
        kinds = {(part.dtype, part.layout, part.device.type, part.ndim, part.shape[1]) for part in (first, second)}
        if kinds != {(torch.uint8, torch.strided, "cpu", 4, 3)} or first.shape != second.shape or not first.numel():
            raise ValueError(", ".join(f"{part.dtype} {tuple(part.shape)}" for part in (first, second)))
    except Exception as error:  # torch.load raises half a dozen kinds on damaged files
        expected = "expected torch.save of two uint8 tensors (N, 3, H, W) of one shape, N at least 1"
        raise ValueError(f"{path}: {expected}; got {describe(error)}") from error
    return first[:count], second[:count]


def psnr(images, clean):
    """Mean over the images of each one's PSNR in dB, at most 100; both (N, C, H, W) in [0, 255], nothing is rounded."""
    if images.shape != clean.shape:
        raise ValueError(f"predict must keep the shape {tuple(clean.shape)}; got {tuple(images.shape)}")
    errors = (images / 255 - clean / 255).square().mean(dim=(1, 2, 3))
    return -10 * errors.clamp(min=1e-10).log10().mean().item()  # one perfect image must not count for all


# ---------------------------------------------------------------------------------------------- checks of Model


def import_model(job, number=None):
    """The graded model.py, as a module."""
    module = importlib.import_module(f"Miniproject_{number or job.number}.model")
    if not Path(module.__file__).is_relative_to(job.folder):  # as it was found: what is there may be a link
        raise ImportError(f"{module.__name__} came from {module.__file__}, which is not in the graded folder")
    return module


def timed(function, *arguments, **keywords):
    """The function's result and the seconds it took."""
    start = CLOCK()
    result = function(*arguments, **keywords)
    if torch.cuda.is_initialized():  # otherwise synchronize would start the GPU
        torch.cuda.synchronize()  # work that a GPU has not finished counts
    return result, CLOCK() - start


def random_images(count, height=32, width=32):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def score(model, job, **keywords):
    """The model's PSNR on the validation images, in dB."""
    noisy, clean = read_pairs(job.val_file, job.images)
    return psnr(torch.cat([model.predict(batch, **keywords).detach().cpu() for batch in noisy.split(BATCH)]), clean)


def shape_and_range(output, image):
    """The faults of a prediction that the course's grader looks at."""
    if not isinstance(output, torch.Tensor):
        return [f"returns {type(output).__name__}, not a tensor"]
    if output.shape != image.shape:
        return ["other shape than the input"]
    low, high = output.min().item(), output.max().item()  # nan where one value is
    return [] if low >= 0 and high <= 255 else [f"outside [0, 255]: {low:.1f} to {high:.1f}"]


def check_import(job):
    module, seconds = timed(import_model, job)
    yield judged("import", [], f"{seconds:.2f} s", value=seconds)
    model = module.Model()
    missing = [n for n in ("load_pretrained_model", "train", "predict") if not callable(getattr(model, n, None))]
    yield judged("Model()", [f"no method {name}" for name in missing])


def check_untrained(job):
    image = torch.rand(1, 3, 512, 512) * 255
    output, seconds = timed(import_model(job).Model().predict, image)
    faults = shape_and_range(output, image)
    yield judged("untrained predict, 512 x 512", faults, f"{seconds:.2f} s", "shape, [0, 255]", seconds)


def check_awkward(job):
    model = import_model(job).Model()
    sizes = ((1, 1, 1), (1, 7, 5), (3, 33, 47), (1, 2, 64), (3, 32, 32))
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
    images = {f"{n} of {h}x{w}": random_images(n, h, w) for n, h, w in sizes}
    images |= {str(dtype).removeprefix("torch."): random_images(1).to(dtype) for dtype in dtypes}
    images["non-contiguous"] = random_images(2, 64, 32).transpose(2, 3)[:, :, :, ::2]
    images["black"] = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    faults_of = {case: attempt(predict_faults, model, image) for case, image in images.items()}
    faults_of["alone as in a batch"] = attempt(batch_faults, model)
    yield counted("predict on awkward input", faults_of)


def predict_faults(model, image):
    before = image.clone()
    output, again = model.predict(image), model.predict(image)
    faults = shape_and_range(output, image)
    if faults:
        return faults
    found = {
        f"{output.dtype} out, not float32": output.dtype != torch.float32,
        "autograd graph on the output": output.requires_grad,
        "input modified": not torch.equal(image, before),
        "second call differs": not alike(output, again),
    }
    faults = [fault for fault, there in found.items() if there]
    if faults:
        return faults
    same = model.predict(image.to(torch.uint8).contiguous())  # the same values, all of them whole
    return [] if alike(output, same) else ["other result than for uint8"]


def alike(output, other):
    """Whether two predictions are the same but for rounding; NaN is like nothing."""
    if output.shape != other.shape:
        return False
    return ((output.float() - other.float()).abs().max() <= tolerance("second call")).item()


def batch_faults(model):
    """The other images of a batch must not matter, as they do with a BatchNorm left in training mode."""
    images = torch.cat([random_images(1), random_images(2) // 8])
    alone = torch.cat([model.predict(image) for image in images.split(1)])
    moved = (model.predict(images) - alone).abs().max().item()
    return [] if moved <= tolerance("image alone and in a batch") else [f"differs by {moved:.1f} grey values"]


def check_pretrained(job):
    model = import_model(job).Model()
    _, seconds = timed(model.load_pretrained_model)
    yield judged("load_pretrained_model()", [], f"{seconds:.2f} s", "any directory", seconds)
    if not job.val_file:
        yield Row("pretrained PSNR", "skipped", note="no val_data.pkl")
        return
    yield judged("loaded, alone as in a batch", attempt(batch_faults, model))
    value, seconds = timed(score, model, job)
    yield measured("PSNR of the noisy images", job.noisy, "dB")
    yield measured("pretrained PSNR", value, "dB", job)
    yield measured("pretrained gain", value - job.noisy, "dB")
    yield measured("predict, a thousand images", seconds * 1000 / job.images, "s")
    if "ensemble" in inspect.signature(model.predict).parameters:
        yield measured("pretrained PSNR, single pass", score(model, job, ensemble=False), "dB")
    zeros_and_ones = read_pairs(job.val_file, min(BATCH, job.images))[0] // 128
    yield measured("dark images stay dark", model.predict(zeros_and_ones).float().mean().item(), "grey", job)


# ---------------------------------------------------------------------------------------------- checks of train


def check_train_calls(job):
    calls = {
        "train(a, b, 1)": (104, (1,), {}),
        "num_epochs=1": (104, (), {"num_epochs": 1}),
        "epochs=1": (104, (), {"epochs": 1}),
        "103 pairs": (103, (), {"num_epochs": 1}),
        "1 pair": (1, (), {"num_epochs": 1}),
    }
    faults_of = {name: attempt(train_faults, import_model(job), *call) for name, call in calls.items()}
    yield counted("ways to call train", faults_of)
    yield learning_row("learns", import_model(job).Model())


def train_faults(module, pairs, arguments, keywords):
    model, given, image = module.Model(), [random_images(pairs), random_images(pairs)], random_images(2)
    before = [noisy.clone() for noisy in given]
    model.train(*given, *arguments, **keywords)
    modified = not all(map(torch.equal, given, before))
    return shape_and_range(model.predict(image), image) + ["pairs modified"] * modified + batch_faults(model)


def check_training(kind, job):
    """One epoch of the "loaded" or "fresh" model on the training pairs: its seconds, and the PSNR it leads to."""
    model = import_model(job).Model()
    if kind == "loaded":
        model.load_pretrained_model()
    before = score(model, job) if job.val_file else None
    _, seconds = timed(model.train, *read_pairs(job.train_file, job.pairs), num_epochs=1)
    yield measured(f"{kind} model, epoch of {job.pairs:,} pairs", seconds, "s")
    yield measured(f"{kind} model, at that rate {COURSE_PAIRS:,}", seconds * COURSE_PAIRS / job.pairs, "s", job)
    if job.val_file:
        yield measured(f"{kind} model, PSNR after the epoch", score(model, job), "dB", job, before)
    else:
        yield Row(f"{kind} model, PSNR after the epoch", "skipped", note="no val_data.pkl")


def learning_row(check, model):
    """A row that passes where an epoch on random pairs changes what the model predicts."""
    image = random_images(4)
    before = model.predict(image).clone()
    model.train(random_images(104), random_images(104), num_epochs=1)
    change = (model.predict(image) - before).abs().max().item()
    return judged(check, [] if change > 0 else ["training changed nothing"], f"moved {change:.1f} grey", value=change)


def check_together(job):
    first, second = import_model(job, 1), import_model(job, 2)
    yield judged("both imported in one process", [])
    yield learning_row("project 2 learns beside project 1", second.Model())
    yield learning_row("project 1 learns after project 2", first.Model())


# ---------------------------------------------------------------------------------------------- checks of blocks


def check_blocks(job):
    m = import_model(job)
    blocks = (*TWINS, "MSE", "SGD")
    yield counted("blocks in model.py", {name: [] if hasattr(m, name) else ["missing"] for name in blocks})
    with torch.random.fork_rng(devices=[]), torch.no_grad():  # as the course has it: a block with autograd's help fails
        for name, sides in PLAIN_CASES.items():
            faults_of = {str(seed): attempt(plain_faults, m, sides, seed) for seed in range(SEEDS)}
            yield counted(f"{name}, plain allclose", faults_of)
        for name, twin in TWINS.items():
            yield block_row(name, twin_faults, m, *twin)
        yield block_row("MSE", mse_faults, m)
        yield block_row("SGD", sgd_faults, m)
        yield learning_row("learns with autograd off", m.Model())
    yield judged("imports only what is allowed", foreign_imports(Path(job.folder)))


def foreign_imports(folder):
    """Imports that break the rules of project 2, in every file of the submission that has been loaded by now.

    The submission is the files of the two projects, by the way of links or not, and those beside them, except this one.
    """
    projects = [folder / "Miniproject_1", folder / "Miniproject_2"]
    places = projects + [project.resolve() for project in projects]
    loaded = {Path(module.__file__) for module in sys.modules.values() if getattr(module, "__file__", None)}
    own = {path for path in loaded if path.parent == folder or any(map(path.is_relative_to, places))}
    files = sorted({path.resolve() for path in own} - {Path(__file__).resolve()})
    known = sys.stdlib_module_names | {path.stem for place in (folder, projects[1]) for path in place.iterdir()}
    return [f"{path.name}: {text}" for path in files for text in imports_outside(known, ast.parse(path.read_bytes()))]


def imports_outside(known, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] not in known)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] not in known:
            allowed = ALLOWED_IMPORTS.get(node.module, ())
            yield from (f"from {node.module} import {a.name}" for a in node.names if a.name not in allowed)


def block_row(name, function, *arguments):
    torch.manual_seed(0)
    return judged(f"{name}, forward and backward", attempt(function, *arguments), needs="as torch")


def conv_sides(m, x):
    conv = m.Conv2d(3, 3, 3)
    return conv.forward(x), F.conv2d(x, conv.weight, conv.bias)


def sequential_sides(m, x):
    conv = m.Conv2d(3, 3, 3)
    return m.Sequential(conv, m.Sigmoid()).forward(x), F.conv2d(x, conv.weight, conv.bias).sigmoid()


# The course's own comparison: (graded module m, input x) -> (its output, torch's), compared by plain allclose. Near
# zero that passes only if sums are added in torch's own order. All tensors have the default dtype.
PLAIN_CASES = {
    "Conv2d(3, 3, 3)": conv_sides,
    "Sigmoid()": lambda m, x: (m.Sigmoid().forward(x), torch.sigmoid(x)),
    "Sequential(conv, sigmoid)": sequential_sides,
}


def plain_faults(m, sides, seed):
    torch.manual_seed(seed)
    return [] if torch.allclose(*sides(m, torch.randn(1, 3, 32, 32))) else ["other rounding than torch, with seeds"]


def differences(names, got, expected):
    """What differs by more than rounding, and by how much."""
    faults = []
    for name, a, b in zip(names, got, expected, strict=True):
        a = torch.as_tensor(a).cpu()
        if a.shape != b.shape:
            faults.append(f"{name} has shape {tuple(a.shape)}, not {tuple(b.shape)}")
        elif not torch.allclose(a, b, tolerance("relative error of a block"), tolerance("absolute error of a block")):
            faults.append(f"{name} is off by {(a - b).abs().max():.1g}")
    return faults


def twin_faults(m, make, twin, shape=(2, 3, 4, 5)):
    """A block against its twin in torch, a function of the input and of the block's parameters."""
    block, x = make(m), torch.randn(shape)
    leaves = [t.detach().cpu().clone().requires_grad_() for t in (x, *(p for p, _ in block.param()))]
    with torch.enable_grad():
        expected = twin(*leaves)
        upstream = torch.randn(expected.shape)
        expected.backward(upstream)
    got = [block.forward(x), block.backward(upstream), *(gradient for _, gradient in block.param())]
    names = ["output", "input gradient", *(f"gradient of parameter {n}" for n in range(len(leaves) - 1))]
    return differences(names, got, [expected.detach(), *(leaf.grad for leaf in leaves)])


def mse_faults(m):
    loss, prediction, target = m.MSE(), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    got = [loss.forward(prediction, target), loss.backward()]
    expected = [F.mse_loss(prediction, target), 2 * (prediction - target) / prediction.numel()]
    return differences(["loss", "gradient"], got, expected)


def sgd_faults(m):
    """One step of an optimiser that was made, as in torch, before the gradients were computed."""
    block = m.Conv2d(3, 4, 3)
    optimiser, before = m.SGD(block.param(), lr=0.1), [p.clone() for p, _ in block.param()]
    block.backward(torch.ones_like(block.forward(torch.randn(2, 3, 6, 6))))
    expected = [(p - 0.1 * gradient).cpu() for p, (_, gradient) in zip(before, block.param(), strict=True)]
    optimiser.step()
    return differences(["weight", "bias"], [p for p, _ in block.param()], expected)


STRIDED = {"stride": 2, "padding": 1}
TWINS = {  # how the graded module m makes the block, its twin, the shape of the input
    "Conv2d": (lambda m: m.Conv2d(3, 5, 3, **STRIDED), partial(F.conv2d, **STRIDED), (2, 3, 9, 12)),
    "TransposeConv2d": (
        lambda m: m.TransposeConv2d(4, 3, 4, **STRIDED),
        partial(F.conv_transpose2d, **STRIDED),
        (2, 4, 5, 7),
    ),
    "NearestUpsampling": (lambda m: m.NearestUpsampling(scale_factor=2), partial(F.interpolate, scale_factor=2)),
    "ReLU": (lambda m: m.ReLU(), F.relu),
    "Sigmoid": (lambda m: m.Sigmoid(), torch.sigmoid),
    "Sequential": (
        lambda m: m.Sequential(m.Conv2d(3, 4, 3), m.ReLU(), m.Conv2d(4, 2, 2), m.Sigmoid()),
        lambda x, w, b, v, c: F.conv2d(F.conv2d(x, w, b).relu(), v, c).sigmoid(),
        (2, 3, 8, 7),
    ),
}

# ---------------------------------------------------------------------------------------------- steps and processes


class Step(NamedTuple):
    """Checks that run one after the other in a child process, under one time limit."""

    name: str
    check: object  # function of the job that yields rows
    needs: str = "Model()"  # the row that must have passed
    limit: str = "a step"  # the criterion
    trains: bool = False  # on train_data.pkl
    projects: tuple = (1, 2)


LONG = "a step that trains or scores"
STEPS = (
    Step("import", check_import, needs=""),
    Step("untrained predict", check_untrained),
    Step("predict on awkward input", check_awkward),
    Step("pretrained model", check_pretrained, limit=LONG),
    Step("ways to call train", check_train_calls),
    Step("training the loaded model", partial(check_training, "loaded"), "load_pretrained_model()", LONG, trains=True),
    Step("training a fresh model", partial(check_training, "fresh"), limit=LONG, trains=True),
    Step("blocks", check_blocks, needs="import", projects=(2,)),
)
TOGETHER = Step("both in one process", check_together, needs="")
CLEAN, SILENT, DONE = "leaves the process as it was", "prints nothing", Row("done", "pass")


def grade(job, numbers, timeout, table):
    """Fills the table, {title: rows}: those of each project, then those of both in one process."""
    folders = {number: Path(job.folder, f"Miniproject_{number}") for number in numbers}
    plan = [(f.name, job._replace(number=n), s) for n, f in folders.items() if f.is_dir() for s in STEPS]
    plan = [(title, job, step) for title, job, step in plan if job.number in step.projects]
    if [n for n, folder in folders.items() if (folder / "model.py").is_file()] == [1, 2]:
        plan.append(("Both projects", job, TOGETHER))
    for number, folder in folders.items():
        table[folder.name] = list(folder_rows(folder, f"Report_{number}.pdf"))
    weights = {folder.name: (folder / "bestmodel.pth").resolve() for folder in folders.values() if folder.is_dir()}
    weights = {title: (path, path.read_bytes() if path.is_file() else None) for title, path in weights.items()}
    changed = {title: [] for title in weights}
    try:
        for done, (title, job, step) in enumerate(plan, start=1):
            tell(f"[{done}/{len(plan)}] {title}: {step.name}")
            try:
                run_step(step, job, timeout, table.setdefault(title, []))
            finally:  # no later step may load what this one has trained
                for name, kept in weights.items():
                    changed[name] += attempt(restore, *kept)
    finally:
        for title, (_, content) in weights.items():
            if content is not None or changed[title]:
                table[title].append(judged("keeps its bestmodel.pth", list(dict.fromkeys(changed[title]))))
        for title in dict.fromkeys(title for title, *_ in plan if title in table):
            merge(table[title], CLEAN)
            merge(table[title], SILENT)


def folder_rows(folder, report):
    """What the course's grader looks for in the folder; only the code is required."""
    if not folder.is_dir():
        yield Row("folder", "FAIL", note=f"{folder.name}: not there; --project grades the other one alone")
        return
    missing = [f"no {name}" for name in ("__init__.py", "model.py") if not (folder / name).is_file()]
    yield judged("folder", missing, needs="__init__.py, model.py")
    if not (folder / "bestmodel.pth").is_file():
        yield Row("bestmodel.pth", "warning", note="missing")
    if not any((place / report).is_file() for place in (folder, folder / "report")):
        yield Row(report, "warning", note="missing")


def restore(path, content):
    """Puts back graded weights that training has overwritten; removes those that it has made (content: None)."""
    if (path.read_bytes() if path.is_file() else None) == content:
        return []
    path.unlink(missing_ok=True)  # it may be a link by now
    if content is None:
        return ["made by training; removed by the grader"]
    path.write_bytes(content)
    return ["overwritten; restored by the grader"]


def merge(rows, check):
    """Replaces the rows of that name by one at the end, which passes where there is none."""
    every = [row for row in rows if row.check == check]
    rows[:] = [row for row in rows if row.check != check]
    rows.append(Row(check, every[0].status if every else "pass", note="; ".join(row.note for row in every)))


def run_step(step, job, timeout, rows):
    """Appends the rows of a step; whatever keeps it from being finished becomes a row too."""
    if step.needs and not any(row.check == step.needs and row.status == "pass" for row in rows):
        rows.append(Row(step.name, "skipped", note=f"needs {step.needs}"))
    elif step.trains and not job.train_file:
        rows.append(Row(step.name, "skipped", note="no train_data.pkl"))
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                fault = run_child(step, job, timeout or tolerance(step.limit), Path(folder))
            finally:  # after Ctrl-C, too
                answers = read_answers(step, Path(folder))
                rows += [row for row in answers if row != DONE]
        if DONE not in answers:
            rows.append(Row(step.name, "FAIL", note=fault))


def checked_row(values):
    """A row from what a child has written; ValueError if it is none."""
    *texts, value = row = Row(*values)
    known = row.status in ("pass", "FAIL", "warning", "info", "skipped")
    if not known or not all(isinstance(text, str) for text in texts) or not isinstance(value, int | float | None):
        raise ValueError(f"no row: {values}")
    return row


def read_answers(step, folder):
    """The rows that a child has written, and one on what was printed."""
    rows = []
    with suppress(OSError, ValueError, TypeError):  # graded code may have destroyed what is there
        rows.extend(checked_row(json.loads(line)) for line in (folder / "rows").read_text().splitlines())
        with open(folder / "printed", "rb") as printed:
            lines = sum(1 for _ in printed)
        if lines:
            rows.append(Row(SILENT, "warning", note=f"{step.name} printed {lines} lines"))
    return rows


def run_child(step, job, limit, folder):
    """Runs a step in a child process and kills its process group; returns what ended it too early, if anything did."""
    work, answers, output = folder / "work", folder / "rows", folder / "printed"
    work.mkdir()
    command = [sys.executable, __file__, "--child", step.name, json.dumps(job), str(answers)]
    with open(output, "wb") as printed:
        streams = {"stdin": subprocess.DEVNULL, "stdout": printed, "stderr": printed}
        child = subprocess.Popen(command, cwd=work, start_new_session=True, **streams)
    try:
        while child.poll() is None and not answers.exists():  # its start does not count
            time.sleep(TICK)
        end = time.monotonic() + limit
        while child.poll() is None and time.monotonic() < end and size_of(output) <= MOST_PRINTED:
            time.sleep(TICK)
        if child.poll() is not None:
            return f"ended the process, exit status {child.returncode}"
        timed_out = time.monotonic() >= end
        return f"timed out after {limit:g} s" if timed_out else f"printed more than {MOST_PRINTED // 10**6} MB"
    finally:
        child.kill()
        with suppress(AttributeError, OSError):  # no killpg on Windows; nothing left to kill
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def size_of(path):
    """Bytes of a file; 0 without one, since graded code may have removed it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def serve(name, job, path):
    """The child: runs the step of that name and writes its rows, then DONE, to the file, one per line."""
    prepare_streams()
    job, step = Job(*json.loads(job)), next(step for step in (*STEPS, TOGETHER) if step.name == name)
    sys.argv[:], sys.dont_write_bytecode = ["test.py"], True  # the graded folder stays as it is
    sys.path[:] = [job.folder, *(entry for entry in sys.path if Path(entry).resolve() != HERE)]  # HERE has others
    with open(path, "w", buffering=1) as file:
        for row in step_rows(step, job):
            file.write(json.dumps(row) + "\n")
    os._exit(0)  # threads that graded code has left would keep the process


def step_rows(step, job):
    """What the step's checks find, what graded code has changed in the process, and DONE."""
    before = global_state()
    try:
        if step.needs:
            import_model(job)
            before = global_state()  # what importing changes is told once
        yield from step.check(job)
    except BaseException as error:  # SystemExit as well: graded code may call sys.exit
        yield Row(step.name, "FAIL", note=describe(error))
    after = global_state()
    if changes := [name for name in before if before[name] != after[name]]:
        yield Row(CLEAN, "FAIL", note=f"{step.name} changed {', '.join(changes)}")
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # graded code may have closed or replaced it
            stream.flush()
    yield DONE


def global_state():
    """What graded code must not change. Drawing random numbers is allowed, so only torch's seed is checked."""
    return {
        "autograd mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "torch's seed": torch.initial_seed(),
        "number of threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "cudnn flags": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "working directory": os.stat(".").st_ino,  # also where it was removed
        "sys.argv": str(getattr(sys, "argv", None)),
    }


# ---------------------------------------------------------------------------------------------- command line


def prepare_streams():
    """Opens stdin, stdout and stderr if missing, as in a service; escapes characters that their encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- for the life of the process
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # an editor's own stream has no encoding
            stream.reconfigure(errors="backslashreplace")


def tell(text):
    """Prints to stderr; where nobody reads that any more, grading goes on."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def show(text):
    """Prints to stdout; a reader who wants no more of it, such as `head`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the rest would fail when Python ends


def make_default_data():
    """The folder of the data set that this repository makes for itself, on first use."""
    sys.path.insert(0, str(HERE))
    try:
        from Miniproject_1.others.command_line import draw_progress
        from Miniproject_1.others.data import default_data

        return default_data(progress=draw_progress)
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the default data cannot be made: {describe(error)}; use -d DATA") from error


def prepare(project, data=None, pairs=None, images=None):
    """The Job. Reads the data once, so that faults in them raise ValueError before anything is graded."""
    job = Job(str(project.resolve()), "course" if data else "default")
    data = (data or make_default_data()).resolve()
    train, val = data / "train_data.pkl", data / "val_data.pkl"
    if not os.path.lexists(train) and not os.path.lexists(val):
        raise ValueError(f"the data folder must hold train_data.pkl or val_data.pkl; got {data}")
    if os.path.lexists(train):
        job = job._replace(train_file=str(train), pairs=len(read_pairs(train, pairs)[0]))
    if os.path.lexists(val):
        noisy, clean = read_pairs(val, images)
        job = job._replace(val_file=str(val), images=len(noisy), noisy=psnr(noisy, clean))
    return job


def passed(table):
    statuses = {row.status for rows in table.values() for row in rows}
    return "pass" in statuses and "FAIL" not in statuses


def render(table, interrupted=False):
    """The table as text. What there is to say of a row stands below it."""
    rows = [row for group in table.values() for row in group]
    widths = [max([len(getattr(row, name)) for row in rows] or [0]) for name in ("check", "result", "needs")]
    lines = []
    for title, group in table.items():
        lines += ["", title, "-" * (sum(widths) + 15)]
        for row in group:
            cells = zip((row.check, row.result, row.needs), widths, strict=True)
            lines.append("  ".join([*(cell.ljust(width) for cell, width in cells), row.status]))
            lines += textwrap.wrap(row.note, 100, initial_indent="    ", subsequent_indent="    ")
    counts = Counter(row.status for row in rows)
    verdict = "INTERRUPTED" if interrupted else "PASSED" if passed(table) else "FAILED"
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing ran"
    return "\n".join([*lines, "", f"{verdict}: {told}"])


def write_json(path, about, table, only_try=False):
    """Writes the table to a file, as a whole or not at all. ValueError where that cannot be done."""
    rows = {title: [row._asdict() for row in group] for title, group in table.items()}
    for row in (row for group in rows.values() for row in group):  # strict JSON has no NaN: null instead
        row["value"] = row["value"] if row["value"] is None or math.isfinite(row["value"]) else None
    text = json.dumps({**about, "passed": passed(table), "table": rows}, indent=1, allow_nan=False)
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        temporary.write_text(f"{text}\n")
        if not only_try:
            temporary.replace(path)
    except OSError as error:
        raise ValueError(f"--json {path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def some_path(text):
    """A path; "", as of an unset variable, would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a file or a folder")
    return Path(text)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])  # python -OO drops docstrings
    add = parser.add_argument
    add("-p", "--project-path", type=some_path, default=HERE, help="folder with Miniproject_1/ and Miniproject_2/")
    add("-d", "--data-path", type=some_path, help="folder with train_data.pkl and val_data.pkl, or one of them")
    add("--project", type=int, choices=(1, 2), help="grade only this one")
    add("--pairs", type=int, metavar="N", help="train on the first N pairs only")
    add("--full", action="store_true", help="all of the default data (with -d, all is used anyway)")
    add("--json", type=some_path, metavar="FILE", help="write the table to this file, too")
    add("--timeout", type=float, metavar="SECONDS", help="limit of every step, instead of the criteria's")
    options = parser.parse_args(arguments)
    if not options.project_path.is_dir():
        parser.error(f"the project path must be a folder; got {options.project_path}")
    for name in ("pairs", "timeout"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0; got {getattr(options, name)}")
    return options


def exit_when_told():
    """On SIGTERM or SIGHUP, raises SystemExit, so that the child is killed too."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def main(arguments=None):
    prepare_streams()
    options, start, table, status = parse_arguments(arguments), time.monotonic(), {}, 0
    exit_when_told()
    quick = options.data_path is None and not options.full
    pairs, images = (QUICK_PAIRS, QUICK_IMAGES) if quick else (None, None)
    try:
        if options.json:
            write_json(options.json, {}, {}, only_try=True)  # what cannot be written is told now
        tempfile.gettempdir()  # FileNotFoundError where no step could run
        job = prepare(options.project_path, options.data_path, options.pairs or pairs, images)
    except KeyboardInterrupt:
        tell("test.py: interrupted")
        return 130
    except (FileNotFoundError, ValueError) as error:
        tell(f"test.py: {error}")
        return 2
    try:
        grade(job, [options.project] if options.project else [1, 2], options.timeout, table)
    except (KeyboardInterrupt, SystemExit) as stop:
        status = getattr(stop, "code", 130)
    interrupted = bool(status)
    about = {"project": job.folder, "data": str(options.data_path or "default"), "pairs": job.pairs}
    about |= {"images": job.images, "torch": torch.__version__, "threads": torch.get_num_threads()}
    about["seconds"] = round(time.monotonic() - start, 1)
    try:
        if options.json:  # before anything is printed, which may fail
            write_json(options.json, about, table)
    except ValueError as error:
        tell(f"test.py: {error}")
        status = 2
    show(", ".join(f"{key} {value}" for key, value in about.items()))
    show(render(table, interrupted))
    return status or (0 if passed(table) else 1)


# ---------------------------------------------------------------------------------------------- pytest


def pytest_generate_tests(metafunc):
    """One test for each project beside this file. A hook, so that the grader itself does not need pytest."""
    metafunc.parametrize("number", [n for n in (1, 2) if (HERE / f"Miniproject_{n}").is_dir()])


def test_project(number):
    table = {}
    grade(prepare(HERE, None, PYTEST_PAIRS, PYTEST_IMAGES), [number], None, table)
    assert passed(table), render(table)


if __name__ == "__main__":
    sys.exit(serve(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main())
