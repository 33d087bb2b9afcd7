"""What only a GPU shows: the same answers as on the CPU, no waiting inside a step, files that go across."""

import pytest
import torch

from Miniproject_2 import model as ours

pytestmark = pytest.mark.skipif(ours.default_device() != "cuda", reason="needs a GPU that runs this torch's kernels")
DEVICE = "cuda"


def pairs(n):
    clean = torch.nn.functional.interpolate(torch.rand(n, 3, 4, 4), (32, 32), mode="bilinear") * 255
    return [(clean + 25 * torch.randn(clean.shape)).clamp(0, 255).byte() for _ in range(2)] + [clean]


def test_predictions_agree_with_the_cpus():
    for size in ((4, 3, 32, 32), (1, 3, 500, 301)):
        images, results = torch.randint(0, 256, size, dtype=torch.uint8), []
        for device in ("cpu", DEVICE):
            model = ours.Model(device=device, precision="float32")
            model.load_pretrained_model()
            results += [model.predict(images), model.predict(images.to(DEVICE)).cpu()]
        assert all((result - results[0]).abs().max() < 0.5 for result in results)


def test_training_agrees_with_the_cpus(tmp_path):
    noisy_a, noisy_b, _ = pairs(640)
    held_out, _, clean = pairs(100)
    errors = []
    for device in ("cpu", DEVICE):
        model = ours.Model(device=device, width=16, deep_width=32)
        model.train(noisy_a, noisy_b.to(DEVICE), 2)
        errors.append((model.predict(held_out) - clean).square().mean().item())
        model.save(tmp_path / "w")
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    model.precision, other = "float32", ours.Model(device="cpu", precision="float32")
    other.load(tmp_path / "w")
    assert (other.predict(held_out) - model.predict(held_out)).abs().max() < 0.5


def test_a_step_does_not_wait_for_the_device():
    noisy_a, noisy_b, _ = pairs(64)
    model = ours.Model(device=DEVICE)
    held = ours.Pairs(noisy_a, noisy_b, model.device)
    training = ours.Training(model.network, ours.Recipe(swap_pixels=True), 0, 10)
    training.step(*held.batch(range(32), training.generator), 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = training.step(*held.batch(range(32), training.generator), 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
