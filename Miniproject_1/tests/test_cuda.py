"""Project 1 on a GPU: the same answers as on the CPU, nothing that waits inside a step, bounded memory."""

import pytest
import torch
import torch.nn.functional as F

from Miniproject_1 import model as project
from Miniproject_1.model import Model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def pairs(count, seed=0, side=32):
    generator = torch.Generator().manual_seed(seed)
    clean = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator) * 255, size=(side, side), mode="bilinear")
    noisy = [(clean + 25 * torch.randn(clean.shape, generator=generator)).clamp(0, 255) for _ in range(2)]
    return clean, *(images.to(torch.uint8) for images in noisy)


def test_the_gpu_is_taken_by_default():
    assert Model(width=8).device == torch.device("cuda")


@pytest.mark.parametrize("side", [7, 32, 200, 900])
def test_both_devices_predict_the_same(side):
    images = pairs(2, side=side)[1]
    results = []
    for device in ("cpu", "cuda"):
        model = Model(device=device)
        model.load_pretrained_model()
        results.append(model.predict(images.to(device)).cpu())
    assert (results[0] - results[1]).abs().max() < 0.5  # grey values


def test_an_epoch_on_the_gpu_is_as_good():
    (clean, a, b), errors = pairs(512), []
    for device in ("cpu", "cuda"):
        model = Model(width=16, device=device)
        model.train(a, b, 1)
        errors.append((model.predict(a) - clean).square().mean().item())
    assert errors[1] < 1.05 * errors[0]


def test_a_step_waits_for_nothing():
    _, a, b = pairs(64)
    model = Model(width=8, device="cuda")
    data = project.Pairs(a, b, model.device)
    training = project.Training(model.network, model.recipe, 0)
    index = torch.arange(16)
    training.step(*data.batch(index, training.generator), 0.5)  # the first one sets things up
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.step(*data.batch(index, training.generator), 0.5)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_weights_travel_between_devices(here, there, tmp_path):
    model, other = Model(width=8, device=here), Model(device=there)
    model.save(tmp_path / "w.pth")
    other.load(tmp_path / "w.pth")
    assert {p.device.type for p in other.network.parameters()} == {there}
    assert all(
        torch.equal(p.cpu(), q.cpu())
        for p, q in zip(model.network.parameters(), other.network.parameters(), strict=True)
    )


def test_lack_of_memory_is_explained():
    model = Model(device="cuda")
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        torch.cuda.empty_cache()
        with pytest.raises(RuntimeError, match="ran out of memory on cuda"):
            model.predict(torch.zeros(64, 3, 256, 256))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_fifty_thousand_pairs_fit_into_one_gigabyte():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    images = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)

    def stop(step, steps, loss):
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Model(device="cuda").train(images, images.flip(0), 1, progress=stop)
    assert torch.cuda.max_memory_allocated() < 2**30
