"""Gates that open no farther than on images like those of training: textures no longer make features explode."""

import pytest
import torch

from Miniproject_1.model import WIDE_OPEN, Model, ResidualBlock
from Miniproject_1.others import data, limit_gates


def gated(**sizes):
    """A network whose gates depend on the image."""
    model = Model(width=8, gates=True, seed=1, precision="float32", **sizes)
    generator = torch.Generator().manual_seed(0)
    for block in blocks(model):
        block.gate.weight.data.normal_(generator=generator)
    model.network.last.weight.data.normal_(std=0.01, generator=generator)
    return model


def blocks(model):
    return [module for module in model.network.modules() if isinstance(module, ResidualBlock)]


def scene(side=64):
    return data.render_scene(1, side)[None].float()


@pytest.mark.parametrize("equivariant", [True, False])
def test_predictions_of_the_images_that_set_the_limits_stay(equivariant):
    model, images = gated(equivariant=equivariant), scene()
    texture = (torch.arange(64) % 2 * 255.0).expand(1, 3, 64, 64)
    expected, far = (model.predict(x, ensemble=False) for x in (images, texture))
    limit_gates.limit_gates(model, [images])
    assert torch.equal(model.predict(images, ensemble=False), expected)
    assert not torch.equal(model.predict(texture, ensemble=False), far)
    if equivariant:
        turned = model.predict(texture.transpose(2, 3), ensemble=False).transpose(2, 3)
        assert (turned - model.predict(texture, ensemble=False)).abs().max() < 0.01


def test_files_keep_the_limits_and_older_ones_have_none(tmp_path):
    model = gated()
    limit_gates.limit_gates(model, [scene()])
    model.save(tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    older = {name: values for name, values in content["weights"].items() if not name.endswith(".ceiling")}
    torch.save(content | {"weights": older}, tmp_path / "older.pth")
    none = [torch.tensor(WIDE_OPEN)] * len(blocks(model))
    for name, ceilings in (("a.pth", [block.ceiling for block in blocks(model)]), ("older.pth", none)):
        loaded = Model()
        loaded.load(tmp_path / name)
        assert all((b.ceiling == c).all() for b, c in zip(blocks(loaded), ceilings, strict=True))


def test_the_command_writes_limited_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(limit_gates, "load_photos", lambda folder: [data.render_scene(1, side=96)])
    gated().save(tmp_path / "a.pth")
    limit_gates.main(["photos", f"{tmp_path}/a.pth", "--out", f"{tmp_path}/b.pth", "--number", "4"])
    limited = Model()
    limited.load(tmp_path / "b.pth")
    assert all((block.ceiling < WIDE_OPEN).all() for block in blocks(limited))
    Model(width=8).save(tmp_path / "plain.pth")
    with pytest.raises(SystemExit, match="has no gates to limit"):
        limit_gates.main(["photos", f"{tmp_path}/plain.pth", "--out", f"{tmp_path}/b.pth"])


def stripes(strength, side=64):
    return (128 + strength * (torch.arange(side) % 2 * 2.0 - 1)).expand(1, 3, side, side)


@pytest.mark.parametrize("name", ["bestmodel.pth", "photomodel.pth"])
def test_shipped_weights_survive_fine_textures(name):
    model = Model()
    model.load(f"{data.ROOT}/Miniproject_1/{name}")
    for strength in (3, 8):
        assert (model.predict(stripes(strength)) - stripes(strength)).square().mean().sqrt() < 5
    noisy = stripes(25) + 20 * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, after = ((x - stripes(25)).square().mean() for x in (noisy, model.predict(noisy.clamp(0, 255))))
    assert after < before
    partly = scene()
    partly[..., :24] = stripes(60)[..., :24]
    assert (model.predict(partly) - partly)[..., 40:].abs().mean() < 15
