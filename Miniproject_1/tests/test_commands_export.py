"""The command that writes a network as a file of its own."""

import json
import sys

import pytest
import torch

from Miniproject_1 import __main__ as command_line
from Miniproject_1.commands import export
from Miniproject_1.model import Model


@pytest.fixture
def model(tmp_path, request):
    """A network of random weights, also in `tmp_path / "mine.pth"`: three levels, two channels, what a test adds."""
    sizes = getattr(request, "param", {})
    model = Model(in_channels=2, width=8, levels=3, **sizes, device="cpu", precision="float32")
    with torch.no_grad():
        model.network.last.weight.normal_(0, 0.1)
        for name, weight in model.network.named_parameters():
            if "gate" in name:
                weight.normal_()
        for name, values in model.network.named_buffers():
            if name.endswith("ceiling"):
                values.fill_(0.1)
    model.save(tmp_path / "mine.pth")
    return model


@pytest.fixture
def call(tmp_path, model):
    return lambda name, *more: command_line.main(
        ["export", str(tmp_path / "mine.pth"), "-o", str(tmp_path / name), *more]
    )


@pytest.mark.parametrize("model", [{}, {"gates": True}, {"border": 8}], indirect=True, ids=["plain", "gates", "border"])
@pytest.mark.parametrize("name", ["mine.onnx", "mine.pt2"])
def test_exported_networks_predict_as_ours(model, call, tmp_path, capsys, name):
    if name.endswith("onnx"):
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    assert call(name, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes"] == (tmp_path / name).stat().st_size and facts["largest_difference"] < 0.01
    if name.endswith("onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        run = lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])  # noqa: E731
    else:
        run = torch.export.load(tmp_path / name).module()
    for shape in ((1, 2, 4, 70), (3, 2, 33, 18), (2, 2, 64, 64), (1, 2, 47, 49), (1, 2, 112, 81)):
        images = torch.rand(shape) * 900 - 300  # both clip them to [-255, 510]
        torch.testing.assert_close(run(images), model.predict(images, ensemble=False), atol=0.01, rtol=0)


def test_weights_are_never_overwritten(call, tmp_path, capsys):
    (tmp_path / "link.pt2").symlink_to(tmp_path / "mine.pth")
    assert call("link.pt2", "--force") == 1 and "is an input" in capsys.readouterr().err


def test_a_network_that_torch_does_not_export_is_named(tmp_path, capsys):
    Model("noise2noise").save(tmp_path / "n.pth")
    assert command_line.main(["export", f"{tmp_path}/n.pth", "-o", f"{tmp_path}/n.pt2"]) == 1
    assert 'the network "noise2noise" cannot be exported' in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(call, tmp_path, capsys):
    assert call("mine.pt2") == 0
    first = (tmp_path / "mine.pt2").stat().st_mtime_ns
    assert call("mine.pt2") == 1 and "--force" in capsys.readouterr().err
    assert (tmp_path / "mine.pt2").stat().st_mtime_ns == first
    assert call("mine.pt2", "--force") == 0
    assert (tmp_path / "mine.pt2").stat().st_mtime_ns > first


def test_a_network_that_differs_is_not_written(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert call("mine.pt2") == 1
    assert "nothing is written" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == [
        "mine.pth"
    ]


def test_what_cannot_be_exported_is_said(call, tmp_path, monkeypatch, capsys):
    assert call("mine.jpg") == 1 and ".onnx or .pt2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert call("mine.onnx") == 1 and "[export]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine.pth/new.pt2", "folder.pt2"])
def test_what_cannot_be_written_is_said_before_the_work(call, tmp_path, monkeypatch, capsys, name):
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.setattr(export, "load_model", lambda *given: pytest.fail("it should not have begun"))
    assert call(name, "--force") == 1 and "cannot be written" in capsys.readouterr().err
