"""The grader: checks a submission of the two projects as the course does, and prints one table.

    python test.py                       # the projects beside this file, on a small data set made once
    python test.py -p PROJECT -d DATA    # another folder with Miniproject_1/ and Miniproject_2/, another data set
    pytest test.py                       # the same checks on few pairs, one test for each project

DATA holds `train_data.pkl`, `torch.save((noisy_1, noisy_2))`, and `val_data.pkl`, `torch.save((noisy, clean))`:
uint8 tensors (N, 3, H, W). With only one of them, what needs the other is skipped. Exit status: 0 when everything
that ran has passed, 1 when something failed or nothing ran, 2 for unusable arguments or data, 130 after Ctrl-C.

Graded code is not trusted. It runs in a child process (`serve`), its output captured, in a working directory of its
own, step by step, each step with a time limit; a child in which a step crashed or hung is replaced. From top to
bottom: settings, rows and data, the checks (which run in the child), the child, the parent, the command line.
"""

import argparse
import ast
import importlib
import inspect
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

# ---------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Thresholds:
    """What a data set demands of project 1 and of project 2, in dB."""

    pretrained: tuple
    fresh: tuple  # of a fresh model after one epoch of at least `fresh_pairs`
    fresh_pairs: int
    gain: bool  # counted from the PSNR of the noisy images; otherwise absolute


COURSE_DATA = Thresholds(pretrained=(25.5, 23.5), fresh=(25.0, 22.5), fresh_pairs=20_000, gain=False)
DEFAULT_DATA = Thresholds(pretrained=(2.0, 1.0), fresh=(1.0, 0.5), fresh_pairs=4_000, gain=True)

FEW_PAIRS = 1_000  # with fewer, a fresh model has to beat itself before training, not the noisy images; no budget
MAY_LOSE = 0.02  # dB that training may take from the loaded model
COURSE_PAIRS = 50_000
TRAINING_BUDGET = 600 if torch.cuda.is_available() else 2700  # s for COURSE_PAIRS: the course's two limits
BATCH = 100  # images a call of predict, as in the course
QUICK_PAIRS, QUICK_IMAGES = 2_000, 500  # of the default data, without --full: under 4 minutes on two cores
PYTEST_PAIRS, PYTEST_IMAGES = 512, 100
SHORT, LONG = 300, 3600  # s a step may take; LONG where it trains or scores: the budget and a reserve
SEEDS = 20  # random draws on which a block has to agree with torch
DARK = 32  # grey values: an image of zeros and ones that comes out brighter was taken for one in [0, 1]
TICK = 0.1  # s between two looks at the child

HERE = Path(__file__).resolve().parent
SPAWN = multiprocessing.get_context("spawn")  # a child that inherits nothing of this process
BLOCKS = ("Conv2d", "TransposeConv2d", "NearestUpsampling", "ReLU", "Sigmoid", "MSE", "SGD", "Sequential")
ALLOWED_IMPORTS = {"torch": {"empty", "cat", "arange"}, "torch.nn.functional": {"fold", "unfold"}}

# ---------------------------------------------------------------------------------------------- rows and data


@dataclass(frozen=True)
class Row:
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


def measured(check, value, unit, at_least=None, at_most=None):
    """A row that holds a value against a threshold; without one it informs."""
    needs, status = "", "info"
    if at_least is not None:
        needs, status = f">= {at_least:.2f} {unit}", "pass" if value >= at_least else "FAIL"
    elif at_most is not None:
        needs, status = f"<= {at_most:.0f} {unit}", "pass" if value <= at_most else "FAIL"
    return Row(check, status, f"{value:.2f} {unit}", needs, value=value)


def counted(check, faults_of):
    """A row k/n over {case: faults}; a fault that several cases share is told once, with their names."""
    cases_of = {}
    for case, faults in faults_of.items():
        for fault in faults:
            cases_of.setdefault(fault, []).append(case)
    total, good = len(faults_of), sum(not faults for faults in faults_of.values())
    named = {fault: "all" if len(cases) == total else ", ".join(cases) for fault, cases in cases_of.items()}
    return judged(check, [f"{f} ({cases})" for f, cases in named.items()], f"{good}/{total}", "all", good)


def describe(error):
    """The last line of a traceback, and the graded line that it came from."""
    line = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "Miniproject_" in f.filename]
    return line + (f" [{Path(frames[-1].filename).name}:{frames[-1].lineno}]" if frames else "")


def attempt(function, *arguments):
    """The faults that the function returns; an exception is one as well."""
    try:
        return function(*arguments)
    except Exception as error:
        return [describe(error)]


@cache
def read_pairs(path):
    """The two uint8 tensors (N, 3, H, W) of one of the course's files. ValueError where it holds no such thing."""
    expected = "expected torch.save of two uint8 tensors (N, 3, H, W) of one shape"
    try:
        pair = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds on damaged files
        reason = textwrap.shorten(str(error), 120)
        raise ValueError(f"{path} cannot be loaded: {reason}; {expected}") from error
    if not isinstance(pair, tuple | list) or not all(isinstance(part, torch.Tensor) for part in pair):
        raise ValueError(f"{path} holds a {type(pair).__name__}; {expected}")
    kinds = [(part.dtype, part.ndim, *part.shape) for part in pair]
    if len(pair) != 2 or kinds[0] != kinds[1] or kinds[0][:2] != (torch.uint8, 4) or kinds[0][3] != 3:
        raise ValueError(f"{path} holds {[f'{part.dtype} {tuple(part.shape)}' for part in pair]}; {expected}")
    if not pair[0].numel():
        raise ValueError(f"{path} holds no image; {expected}")
    return pair


def psnr(images, clean):
    """Mean over the images of each one's PSNR in dB; both (N, C, H, W) in [0, 255], nothing is rounded."""
    if images.shape != clean.shape:
        raise ValueError(f"predict must keep the shape {tuple(clean.shape)}; got {tuple(images.shape)}")
    return -10 * (images / 255 - clean / 255).square().mean(dim=(1, 2, 3)).log10().mean().item()


@dataclass(frozen=True)
class Job:
    """What a child is told to grade."""

    folder: str  # that holds the project folders
    number: int = 1
    train_file: str | None = None
    val_file: str | None = None
    pairs: int = 0
    images: int = 0
    noisy: float | None = None  # PSNR of the validation images
    pretrained_floors: tuple = (None, None)  # dB, of project 1 and 2
    fresh_floors: tuple = (None, None)  # None: the untrained model's
    pretrained: float | None = None  # dB, once it is measured

    def load_pairs(self):
        return [noisy[: self.pairs] for noisy in read_pairs(self.train_file)]

    def load_images(self):
        return [part[: self.images] for part in read_pairs(self.val_file)]


# ---------------------------------------------------------------------------------------------- checks of Model


def import_model(job, number=None):
    """The graded model.py, as a module."""
    module = importlib.import_module(f"Miniproject_{number or job.number}.model")
    if not Path(module.__file__).resolve().is_relative_to(job.folder):
        raise ImportError(f"{module.__name__} came from {module.__file__}, which is not in the graded folder")
    return module


def timed(function, *arguments, **keywords):
    """The function's result and the seconds it took."""
    start = time.perf_counter()
    result = function(*arguments, **keywords)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what a GPU still has to do counts
    return result, time.perf_counter() - start


def random_images(count, height=32, width=32):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)


def score(model, job, **keywords):
    """The model's PSNR on the validation images, in dB."""
    noisy, clean = job.load_images()
    batches = noisy.clone().split(BATCH)  # a copy: predict may write into its input
    return psnr(torch.cat([model.predict(b, **keywords).detach().cpu() for b in batches]), clean)


def shape_and_range(output, image):
    """The faults of a prediction that the course's grader looks at."""
    if not isinstance(output, torch.Tensor):
        return [f"returns {type(output).__name__}, not a tensor"]
    if output.shape != image.shape:
        return ["other shape than the input"]
    if not output.isfinite().all():
        return ["NaN or Inf"]
    low, high = output.min().item(), output.max().item()
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
    moved = (output.float() - again.float()).abs().max().item()
    found = {
        f"{output.dtype} out, not float32": output.dtype != torch.float32,
        "autograd graph on the output": output.requires_grad,
        "input modified": not torch.equal(image, before),
        "second call differs": moved > 0.1,  # grey values; dropout moves it further
    }
    return [fault for fault, there in found.items() if there]


def batch_faults(model):
    """The other images of a batch must not matter, as they do with a BatchNorm left in training mode."""
    images = torch.cat([random_images(1), random_images(2) // 8])
    moved = (model.predict(images)[:1] - model.predict(images[:1])).abs().max().item()
    return [f"differs by {moved:.1f} grey values"] if moved > 2 else []  # half precision may differ by 2


def check_pretrained(job):
    model = import_model(job).Model()
    _, seconds = timed(model.load_pretrained_model)
    yield judged("load_pretrained_model()", [], f"{seconds:.2f} s", "any directory", seconds)
    if not job.val_file:
        yield Row("pretrained PSNR", "skipped", note="no val_data.pkl")
        return
    value, seconds = timed(score, model, job)
    yield measured("PSNR of the noisy images", job.noisy, "dB")
    yield measured("pretrained PSNR", value, "dB", at_least=job.pretrained_floors[job.number - 1])
    yield measured("pretrained gain", value - job.noisy, "dB")
    yield measured("predict, a thousand images", seconds * 1000 / job.images, "s")
    if "ensemble" in inspect.signature(model.predict).parameters:
        yield measured("pretrained PSNR, single pass", score(model, job, ensemble=False), "dB")
    zeros_and_ones = job.load_images()[0][:BATCH] // 128
    brightness = model.predict(zeros_and_ones).float().mean().item()
    yield measured("dark images stay dark", brightness, "grey", at_most=DARK)


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


def train_faults(module, pairs, arguments, keywords):
    model, given, image = module.Model(), [random_images(pairs), random_images(pairs)], random_images(2)
    before = [noisy.clone() for noisy in given]
    model.train(*given, *arguments, **keywords)
    modified = not all(map(torch.equal, given, before))
    return shape_and_range(model.predict(image), image) + ["pairs modified"] * modified


def check_train_loaded(job):
    model = import_model(job).Model()
    model.load_pretrained_model()
    yield from training_rows("loaded", model, job, job.pretrained and job.pretrained - MAY_LOSE)


def check_train_fresh(job):
    model, floor = import_model(job).Model(), job.fresh_floors[job.number - 1]
    if floor is None and job.val_file:
        floor = score(model, job)
    yield from training_rows("fresh", model, job, floor)


def training_rows(kind, model, job, floor):
    """One epoch on the training pairs: its seconds, and the PSNR it leads to."""
    _, seconds = timed(model.train, *job.load_pairs(), num_epochs=1)
    scaled = seconds * COURSE_PAIRS / job.pairs
    yield measured(f"{kind} model, epoch of {job.pairs:,} pairs", seconds, "s")
    budget = TRAINING_BUDGET if job.pairs >= FEW_PAIRS else None
    yield measured(f"{kind} model, at that rate {COURSE_PAIRS:,}", scaled, "s", at_most=budget)
    if job.val_file:
        yield measured(f"{kind} model, PSNR after the epoch", score(model, job), "dB", at_least=floor)
    else:
        yield Row(f"{kind} model, PSNR after the epoch", "skipped", note="no val_data.pkl")


def change_by_training(model, pairs):
    """The largest change that one epoch on random pairs makes to a prediction, in grey values."""
    image = random_images(4)
    before = model.predict(image).clone()
    model.train(random_images(pairs), random_images(pairs), num_epochs=1)
    return (model.predict(image) - before).abs().max().item()


def learning_row(check, model):
    change = change_by_training(model, pairs=104)
    faults = [] if change > 0 else ["training changed nothing"]
    return judged(check, faults, f"moved {change:.1f} grey", value=change)


# ---------------------------------------------------------------------------------------------- checks of blocks


def check_blocks(job):
    m = import_model(job)
    yield counted("blocks in model.py", {name: [] if hasattr(m, name) else ["missing"] for name in BLOCKS})
    yield judged("imports only what is allowed", foreign_imports(Path(job.folder)))
    with torch.random.fork_rng(devices=[]):
        for name, sides in PLAIN_CASES.items():
            share, error = plain_agreement(m, sides)
            row = measured(f"{name}, plain allclose", share, "% of seeds", at_least=100)
            yield replace(row, note=error)
        for name, function in FAULTS_OF_BLOCKS.items():
            yield judged(f"{name}, forward and backward", attempt(function, m), needs="as torch")
    with torch.no_grad():
        yield learning_row("learns with autograd off", m.Model())


def foreign_imports(folder):
    """Imports against the rules of project 2, in every file of the projects that importing model.py has loaded."""
    projects = [folder / "Miniproject_1", folder / "Miniproject_2"]
    loaded = {Path(module.__file__).resolve() for module in sys.modules.values() if getattr(module, "__file__", None)}
    files = sorted(path for path in loaded if any(map(path.is_relative_to, projects)))
    own = {path.stem for place in (folder, projects[1]) for path in place.iterdir()}
    known = own | sys.stdlib_module_names
    return [f"{path.name}: {text}" for path in files for text in imports_outside(known, ast.parse(path.read_bytes()))]


def imports_outside(known, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] not in known)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] not in known:
            allowed = ALLOWED_IMPORTS.get(node.module, ())
            yield from (f"from {node.module} import {a.name}" for a in node.names if a.name not in allowed)


# The course's own comparison: (graded module m, input x) -> (its output, torch's), held together by plain allclose.
# Near zero that passes only where sums are rounded in torch's own order. All of it has the default dtype.


def conv_sides(m, x):
    conv = m.Conv2d(3, 3, 3)
    return conv.forward(x), F.conv2d(x, conv.weight, conv.bias)


def sequential_sides(m, x):
    conv = m.Conv2d(3, 3, 3)
    return m.Sequential(conv, m.Sigmoid()).forward(x), F.conv2d(x, conv.weight, conv.bias).sigmoid()


PLAIN_CASES = {
    "Conv2d(3, 3, 3)": conv_sides,
    "Sigmoid()": lambda m, x: (m.Sigmoid().forward(x), torch.sigmoid(x)),
    "Sequential(conv, sigmoid)": sequential_sides,
}


def plain_agreement(m, sides):
    """The percentage of seeds on which both sides agree, and what was raised."""
    agreed = 0
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        try:
            agreed += torch.allclose(*sides(m, torch.randn(1, 3, 32, 32)))
        except Exception as error:
            return 0.0, describe(error)
    return 100 * agreed / SEEDS, ""


def block_faults(make, reference, *shape):
    """A check of a block by its twin in torch, a function of the input and of the block's parameters."""

    def faults(m):
        torch.manual_seed(0)
        block, x = make(m), torch.randn(shape)
        leaves = [t.detach().clone().requires_grad_() for t in (x, *(p for p, _ in block.param()))]
        with torch.enable_grad():
            expected = reference(*leaves)
            upstream = torch.randn(expected.shape)
            expected.backward(upstream)
        got = [block.forward(x), block.backward(upstream), *(gradient for _, gradient in block.param())]
        names = ["output", "input gradient", *(f"gradient of parameter {n}" for n in range(len(leaves) - 1))]
        return differences(names, got, [expected.detach(), *(leaf.grad for leaf in leaves)])

    return faults


def differences(names, got, expected):
    """What differs by more than rounding, and by how much."""
    triples = zip(names, map(torch.as_tensor, got), expected, strict=True)
    return [
        f"{name} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        if a.shape != b.shape
        else f"{name} is off by {(a - b).abs().max():.1g}"
        for name, a, b in triples
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    ]


def mse_faults(m):
    torch.manual_seed(0)
    loss, prediction, target = m.MSE(), torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    got = [loss.forward(prediction, target), loss.backward()]
    expected = [F.mse_loss(prediction, target), 2 * (prediction - target) / prediction.numel()]
    return differences(["loss", "gradient"], got, expected)


def sgd_faults(m):
    """One step of an optimiser that was made, as in torch, before the gradients were computed."""
    torch.manual_seed(0)
    block = m.Conv2d(3, 4, 3)
    optimiser, before = m.SGD(block.param(), lr=0.1), [p.clone() for p, _ in block.param()]
    block.backward(torch.ones_like(block.forward(torch.randn(2, 3, 6, 6))))
    expected = [p - 0.1 * gradient for p, (_, gradient) in zip(before, block.param(), strict=True)]
    optimiser.step()
    return differences(["weight", "bias"], [p for p, _ in block.param()], expected)


FAULTS_OF_BLOCKS = {
    "Conv2d": block_faults(
        lambda m: m.Conv2d(3, 5, 3, stride=2, padding=1),
        lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
        *(2, 3, 9, 12),
    ),
    "TransposeConv2d": block_faults(
        lambda m: m.TransposeConv2d(4, 3, 4, stride=2, padding=1),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1),
        *(2, 4, 5, 7),
    ),
    "NearestUpsampling": block_faults(
        lambda m: m.NearestUpsampling(scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=2),
        *(2, 3, 4, 5),
    ),
    "ReLU": block_faults(lambda m: m.ReLU(), F.relu, *(2, 3, 4, 5)),
    "Sigmoid": block_faults(lambda m: m.Sigmoid(), torch.sigmoid, *(2, 3, 4, 5)),
    "Sequential": block_faults(
        lambda m: m.Sequential(m.Conv2d(3, 4, 3), m.ReLU(), m.Conv2d(4, 2, 2), m.Sigmoid()),
        lambda x, w, b, v, c: F.conv2d(F.conv2d(x, w, b).relu(), v, c).sigmoid(),
        *(2, 3, 8, 7),
    ),
    "MSE": mse_faults,
    "SGD": sgd_faults,
}


def check_together(job):
    first, second = import_model(job, 1), import_model(job, 2)
    yield judged("both imported in one process", [])
    change_by_training(second.Model(), pairs=16)
    yield learning_row("project 1 learns after project 2", first.Model())


# ---------------------------------------------------------------------------------------------- the child


@dataclass(frozen=True)
class Step:
    """Checks that share a time limit and run one after the other in a child."""

    name: str
    check: object  # function of the job that yields rows
    needs: str = "Model()"  # the row that must have passed
    limit: float = SHORT
    trains: bool = False  # on train_data.pkl
    fresh: bool = False  # needs a child of its own
    projects: tuple = (1, 2)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: why it broke off, which global state it left changed, how many lines it printed."""

    error: str = ""
    leaks: list = field(default_factory=list)
    lines: int = 0


STEPS = (
    Step("import", check_import, needs=""),
    Step("untrained predict", check_untrained),
    Step("predict on awkward input", check_awkward),
    Step("pretrained model", check_pretrained, limit=LONG),
    Step("ways to call train", check_train_calls),
    Step("training the loaded model", check_train_loaded, "load_pretrained_model()", LONG, trains=True, fresh=True),
    Step("training a fresh model", check_train_fresh, limit=LONG, trains=True),
    Step("blocks", check_blocks, needs="import", projects=(2,)),
)
TOGETHER = Step("both in one process", check_together, needs="")


def serve(connection, temporary, project):
    """The child: receives (Step name, Job), answers with rows and an Outcome, until the parent closes.

    Answers have a pipe of their own: what graded code prints, on whichever level, goes to a file.
    """
    with suppress(AttributeError):
        os.setsid()  # so that what graded code starts is killed with it; not on Windows
    os.chdir(temporary)
    captured = open("captured.txt", "a+b", buffering=0)  # noqa: SIM115 -- open for the life of the process
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, captured.fileno(), captured.fileno())):
        os.dup2(source, target)
    sys.argv[:], sys.dont_write_bytecode = ["test.py"], True  # the graded folder stays as it is
    sys.path[:] = [project, *(entry for entry in sys.path if Path(entry).resolve() != HERE)]  # HERE has others
    steps = {step.name: step for step in (*STEPS, TOGETHER)}
    connection.send("ready")
    with suppress(EOFError):
        while True:
            name, job = connection.recv()
            connection.send(run_check(steps[name], job, connection, captured))


def run_check(step, job, connection, captured):
    """Sends the rows of a step as they come; returns its Outcome."""
    before, error = global_state(), ""
    try:
        for row in step.check(job):
            connection.send(row)
    except BaseException as raised:  # SystemExit as well: graded code may call sys.exit
        error = describe(raised)
    after = global_state()
    sys.stdout.flush()
    sys.stderr.flush()
    captured.seek(0)
    lines = len(captured.read().splitlines())
    captured.truncate(0)
    return Outcome(error, [name for name in before if before[name] != after[name]], lines)


def global_state():
    """What graded code must leave as it is. Drawing random numbers is fine, so of them only torch's seed counts."""
    return {
        "autograd mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "torch's seed": torch.initial_seed(),
        "number of threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn flags": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "working directory": os.getcwd(),
        "sys.argv": list(sys.argv),
    }


# ---------------------------------------------------------------------------------------------- the parent


class Worker:
    """A child process that runs steps, in a temporary folder; started when needed, closed when it has to go."""

    process = None

    def run(self, step, job, limit, rows, tick):
        """Runs a step in the child, appends its rows, returns its Outcome. `tick(seconds)` is called meanwhile."""
        try:
            if self.process is None:
                self.start(job.folder)
            start, message = time.monotonic(), None
            self.connection.send((step.name, job))
            while not isinstance(message, Outcome):
                seconds = time.monotonic() - start
                if seconds > limit:
                    return Outcome(f"timed out after {limit:g} s")
                tick(seconds)
                alive = self.process.is_alive()
                if self.connection.poll(TICK):
                    message = self.connection.recv()
                    rows += [message] if isinstance(message, Row) else []
                elif not alive:
                    raise EOFError  # what it has started holds its end of the pipe
            return message
        except (EOFError, OSError):
            self.process.join()
            return Outcome(f"ended the process, exit status {self.process.exitcode}")

    def start(self, project):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(theirs, self.folder.name, project))
        self.process.start()
        theirs.close()  # so that the pipe ends when the child does
        self.connection.recv()  # the child is there: its start counts in no step

    def close(self):
        """Kills the child with all that it has started."""
        if self.process is None:
            return
        self.process.kill()
        with suppress(AttributeError, ProcessLookupError):  # no killpg on Windows
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.connection.close()
        self.folder.cleanup()
        self.process = None


class Progress:
    """A bar over the steps, with the seconds of the current one, on stderr; a line a step where that is a file."""

    def __init__(self, total):
        self.total, self.done, self.label = total, -1, ""
        self.terminal = sys.stderr.isatty()

    def begin(self, label):
        self.done, self.label = self.done + 1, label
        if not self.terminal:
            print(f"[{self.done + 1}/{self.total}] {label}", file=sys.stderr, flush=True)
        self.tick(0)

    def tick(self, seconds):
        if self.terminal:
            bar = ("#" * (30 * self.done // self.total)).ljust(30, ".")
            print(f"\r\033[K[{bar}] {self.label}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    def end(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def grade(job, numbers, timeout, table):
    """Fills the table, {title: rows}: each project's rows, then those of both in one process."""
    both = [n for n in numbers if (Path(job.folder) / f"Miniproject_{n}" / "model.py").is_file()] == [1, 2]
    progress = Progress(sum(n in step.projects for n in numbers for step in STEPS) + both)
    try:
        for number in numbers:
            rows = table.setdefault(f"Miniproject_{number}", [])
            grade_project(replace(job, number=number), timeout, rows, progress)
        if both:
            with closing(Worker()) as worker:
                run_step(worker, TOGETHER, job, timeout, table.setdefault("Both projects", []), progress)
    finally:
        progress.end()


def grade_project(job, timeout, rows, progress):
    """Appends all rows of one project."""
    folder, outcomes = Path(job.folder) / f"Miniproject_{job.number}", {}
    if not folder.is_dir():
        rows.append(Row("folder", "skipped", note=f"{folder.name}: not there, not graded"))
        return
    rows += folder_rows(folder, f"Report_{job.number}.pdf")
    with weights_kept(folder / "bestmodel.pth", rows), closing(Worker()) as worker:
        for step in (step for step in STEPS if job.number in step.projects):
            measured_psnr = [row.value for row in rows if row.check == "pretrained PSNR"]
            job = replace(job, pretrained=measured_psnr[0] if measured_psnr else None)
            outcomes[step.name] = run_step(worker, step, job, timeout, rows, progress)
    leaks = [f"{name} changed {', '.join(o.leaks)}" for name, o in outcomes.items() if o.leaks]
    lines = [f"{name} printed {o.lines} lines" for name, o in outcomes.items() if o.lines]
    rows.append(judged("leaves the process as it was", leaks))
    rows.append(Row("prints nothing", "warning" if lines else "pass", note="; ".join(lines)))


def run_step(worker, step, job, timeout, rows, progress):
    """Appends the rows of a step; whatever keeps it from being finished becomes a row too."""
    progress.begin(step.name if step is TOGETHER else f"Miniproject_{job.number}: {step.name}")
    if step.needs and not any(row.check == step.needs and row.status == "pass" for row in rows):
        rows.append(Row(step.name, "skipped", note=f"needs {step.needs}"))
        return Outcome()
    if step.trains and not job.train_file:
        rows.append(Row(step.name, "skipped", note="no train_data.pkl"))
        return Outcome()
    if step.fresh:
        worker.close()
    outcome = worker.run(step, job, timeout or step.limit, rows, progress.tick)
    if outcome.error:
        rows.append(Row(step.name, "FAIL", note=outcome.error))
        worker.close()
    return outcome


def folder_rows(folder, report):
    """What the course's grader looks for in the folder; only the code is required."""
    missing = [f"no {name}" for name in ("__init__.py", "model.py") if not (folder / name).is_file()]
    yield judged("folder", missing, needs="__init__.py, model.py")
    if not (folder / "bestmodel.pth").is_file():
        yield Row("bestmodel.pth", "warning", note="missing")
    if not any((place / report).is_file() for place in (folder, folder / "report")):
        yield Row(report, "warning", note="missing")


@contextmanager
def weights_kept(path, rows):
    """Restores the graded weights where training has overwritten them, and says so in a row."""
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    finally:
        if before is not None:
            changed = not path.is_file() or path.read_bytes() != before
            rows.append(judged("keeps its bestmodel.pth", ["overwritten; restored by the grader"] * changed))
            if changed:
                path.write_bytes(before)


# ---------------------------------------------------------------------------------------------- command line


def make_default_data():
    """The folder of the data set that this repository makes for itself, on first use."""
    sys.path.insert(0, str(HERE))
    try:
        from Miniproject_1.others.data import default_data, progress_bar
    except ImportError as error:
        raise ValueError(f"without -d, the data come from Miniproject_1/others/data.py: {error}") from error
    finally:
        sys.path.remove(str(HERE))
    return default_data(progress=progress_bar)


def prepare(project, data=None, pairs=None, images=None):
    """The Job. Reads the data once, so that their faults are told before anything is graded: ValueError."""
    rule = COURSE_DATA if data else DEFAULT_DATA
    data = (data or make_default_data()).resolve()
    train, val = (data / name for name in ("train_data.pkl", "val_data.pkl"))
    if not train.is_file() and not val.is_file():
        raise ValueError(f"the data folder must hold train_data.pkl or val_data.pkl; got {data}")
    job = Job(folder=str(project.resolve()))
    if train.is_file():
        count = min(len(read_pairs(str(train))[0]), pairs or sys.maxsize)
        job = replace(job, train_file=str(train), pairs=count)
    if val.is_file():
        count = min(len(read_pairs(str(val))[0]), images or sys.maxsize)
        job = with_floors(replace(job, val_file=str(val), images=count), rule)
    read_pairs.cache_clear()
    return job


def with_floors(job, rule):
    """The thresholds in dB that a data set's rule gives for the noisy images and the number of pairs at hand."""
    noisy = psnr(*job.load_images())
    base, fresh = noisy if rule.gain else 0, (noisy, noisy)
    if job.pairs < FEW_PAIRS:
        fresh = (None, None)
    elif job.pairs >= rule.fresh_pairs:
        fresh = tuple(base + floor for floor in rule.fresh)
    floors = tuple(base + floor for floor in rule.pretrained)
    return replace(job, noisy=noisy, pretrained_floors=floors, fresh_floors=fresh)


def passed(table):
    statuses = {row.status for rows in table.values() for row in rows}
    return "pass" in statuses and "FAIL" not in statuses


def render(table):
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
    told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "nothing ran"
    return "\n".join([*lines, "", f"{'PASSED' if passed(table) else 'FAILED'}: {told}"])


def as_json(about, table):
    """Strict JSON has no NaN: such a value becomes null."""
    rows = {title: [asdict(row) for row in group] for title, group in table.items()}
    for row in (row for group in rows.values() for row in group):
        row["value"] = row["value"] if row["value"] is None or math.isfinite(row["value"]) else None
    return json.dumps({**about, "passed": passed(table), "table": rows}, indent=1, allow_nan=False)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("-p", "--project-path", type=Path, default=HERE, help="folder with Miniproject_1/ and Miniproject_2/")
    add("-d", "--data-path", type=Path, help="folder with train_data.pkl and val_data.pkl, or one of them")
    add("--project", type=int, choices=(1, 2), help="grade only this one")
    add("--pairs", type=int, metavar="N", help="train on the first N pairs only")
    add("--full", action="store_true", help="all of the default data (with -d, all is used anyway)")
    add("--json", type=Path, metavar="FILE", help="write the table to this file, too")
    add("--timeout", type=float, metavar="SECONDS", help=f"limit of every step (default {SHORT} and {LONG})")
    options = parser.parse_args(arguments)
    if not options.project_path.is_dir():
        parser.error(f"the project path must be a folder; got {options.project_path}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder to write {options.json} to")
    for name in ("pairs", "timeout"):
        if getattr(options, name) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name} must be above 0; got {getattr(options, name)}")
    return options


def main(arguments=None):
    options, start, status = parse_arguments(arguments), time.monotonic(), None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by an exception, so that the child is killed too
    quick = options.data_path is None and not options.full
    pairs, images = (QUICK_PAIRS, QUICK_IMAGES) if quick else (None, None)
    try:
        job = prepare(options.project_path, options.data_path, options.pairs or pairs, images)
    except ValueError as error:
        print(f"test.py: {error}", file=sys.stderr)
        return 2
    table = {}
    try:
        grade(job, [options.project] if options.project else [1, 2], options.timeout, table)
    except KeyboardInterrupt:
        status = 130
    about = {"project": job.folder, "data": str(options.data_path or "default"), "pairs": job.pairs}
    about |= {"images": job.images, "torch": torch.__version__, "threads": torch.get_num_threads()}
    about["seconds"] = round(time.monotonic() - start, 1)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(render(table) + (" (interrupted)" if status else ""))
    if options.json:
        options.json.write_text(as_json(about, table) + "\n")
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
    sys.exit(main())
