"""Several processes under `torchrun`: their training is that of one process, and only the first one speaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from Miniproject_1.model import Model, Recipe, Training, read_weights

ROOT = Path(__file__).resolve().parents[2]
STEPS = """
import sys
import torch
from Miniproject_1.commands.support import distributed
from Miniproject_1.tests.test_commands_distributed import learnt

with distributed.process_group("cpu"):
    weights, losses = learnt(distributed.SharedTraining)
    number = distributed.from_first(torch.distributed.get_rank() + 5, "cpu")
    torch.save((weights, losses, number), f"{sys.argv[1]}/{torch.distributed.get_rank()}.pth")
"""


def learnt(kind):
    """Weights and losses of three steps: of five pairs, of two and of a single one."""
    generator = torch.Generator().manual_seed(3)
    model = Model(width=8, device="cpu")
    training = kind(model.network, Recipe(ema_decay=0.0), 0, "float32")
    losses = []
    for count in (5, 2, 1):
        with torch.enable_grad():
            losses.append(training.step(*torch.rand(2, count, 3, 16, 16, generator=generator), 1.0).item())
    return torch.cat([p.detach().flatten() for p in training.parameters]), torch.tensor(losses)


def torchrun(*arguments):
    """Output of two processes on the CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        launcher, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True
    ).stdout


def test_two_processes_take_the_steps_of_one(tmp_path):
    (tmp_path / "steps.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{STEPS}")
    torchrun(str(tmp_path / "steps.py"), str(tmp_path))
    (first, losses, number), (second, *_, other) = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    expected, expected_losses = learnt(Training)
    assert torch.equal(first, second) and number == other == 5
    torch.testing.assert_close(losses, expected_losses)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)
    before = torch.cat([p.detach().flatten() for p in Model(width=8, device="cpu").network.parameters()])
    assert (expected - before).abs().mean() > 1e-3


@pytest.mark.parametrize("length", [["--epochs", "2"], ["--minutes", "0.03"]], ids=str)
def test_train_with_two_processes(tmp_path, length):
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((40, 3, 16, 16), 120.0)
    torch.save([clean + 30 * torch.randn(clean.shape, generator=generator) for _ in range(2)], tmp_path / "train.pkl")
    output = torchrun(
        "-m", "Miniproject_1", "train", str(tmp_path / "train.pkl"), "-o", str(tmp_path / "w.pth"), *length
    )
    epochs = [line for line in output.splitlines() if line.startswith("epoch")]
    assert epochs and len(epochs) == len(set(epochs)) == int(epochs[-1].split()[3].rstrip(":"))
    state = read_weights(tmp_path / "w.pth")
    assert state["pairs_seen"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.pkl", "w.pth"]
