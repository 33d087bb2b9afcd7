"""The command that trains the shipped weights: it goes on, exactly, where it was stopped."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from Miniproject_1.model import Model, save_atomically
from Miniproject_1.others import data, train_best
from Miniproject_1.others.files import read_checkpoint


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command on procedural pictures; gives the weights it wrote, flattened."""
    monkeypatch.setattr(train_best, "load_photos", lambda folder: [data.render_scene(1, side=96)])

    def call(name, options=()):
        path = tmp_path / name
        sizes = ["--width", "8", "--blocks", "1", "--inner-blocks", "1"]
        train_best.main([str(tmp_path), "--out", str(path), "--pairs", "96", "--round", "32", *sizes, *options])
        model = Model()
        model.load(path)
        return model, torch.cat([p.detach().flatten() for p in model.network.parameters()])

    return call


def test_stopped_training_continues_exactly(run, monkeypatch):
    _, straight = run("straight.pth")
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(train_best, "validation_psnr", stop)  # after the first round's checkpoint
        with pytest.raises(SystemExit, match="130"):
            run("stopped.pth")
    model, continued = run("stopped.pth")
    assert torch.equal(continued, straight)
    assert model.pairs_seen == 96


def test_the_rate_falls_to_the_end_of_the_last_round(run, monkeypatch):
    """Which is beyond the pairs asked for."""
    factors, original = [], train_best.lr_factor
    monkeypatch.setattr(train_best, "lr_factor", lambda *x: factors.append(original(*x)) or factors[-1])
    run("a.pth", ["--pairs", "40", "--batch-size", "8"])  # two rounds of 32
    assert len(factors) == 8 and factors[-1] == pytest.approx(1 / 8)


def test_finished_training_stays_as_it_is(run, capsys):
    _, first = run("a.pth")
    assert "nothing left" not in capsys.readouterr().out
    _, again = run("a.pth")
    assert torch.equal(first, again)
    assert "nothing left to do: 96 pairs are learnt" in capsys.readouterr().out
    run("a.pth", ["--pairs", "128"])
    assert "128 pairs, loss" in capsys.readouterr().out


def test_a_run_that_diverges_replaces_no_weights(run, tmp_path):
    run("a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth.checkpoint").unlink()
    with pytest.raises(SystemExit, match=r"the loss is (nan|inf)"):
        run("a.pth", ["--muon-lr", "1e30", "--adam-lr", "1e30", "--ema-decay", "0"])
    assert (tmp_path / "a.pth").read_bytes() == before


@pytest.mark.parametrize("options", ["--inputs 2", "--draws 1", "--other-noise 0.25", "--large 0.6"])
def test_what_is_drawn_is_learnt_from(run, options):
    _, default = run("default.pth")
    _, other = run("other.pth", options=options.split())
    assert not torch.equal(default, other)


def test_a_share_of_a_round_has_other_noise(tmp_path):
    command = [str(tmp_path), "--out", "x", "--pairs", "1", "--draws", "2", "--other-noise", "0.25"]
    flat = torch.full((3, 64, 64), 100, dtype=torch.uint8)  # without other noise, every draw is the same
    noisy, others = train_best.draw_round([flat], 40, 0, train_best.parse_arguments(command))
    assert noisy.shape == others.shape == (40, 3, 32, 32)
    assert (noisy[:30] == 100).all() and (others == 100).all()
    assert 4 <= (noisy[30:] != 100).flatten(1).any(1).sum() <= 9  # a fifth of them are means of draws
    command[-1] = "1"
    noisy, _ = train_best.draw_round([flat], 40, 0, train_best.parse_arguments(command))
    assert noisy.shape == (40, 3, 32, 32) and (noisy != 100).flatten(1).any(1).sum() > 20


@pytest.mark.parametrize(("options", "swap"), [((1, 0), True), ((8, 0), False), ((1, 0.1), False)])
def test_only_pixels_of_the_same_noise_are_swapped(options, swap):
    draws, other = map(str, options)
    command = ["x", "--out", "x", "--pairs", "1", "--draws", draws, "--other-noise", other]
    assert train_best.make_model(train_best.parse_arguments(command)).recipe.swap_pixels == swap


def test_larger_network_grows_from_the_weights_of_a_smaller_one(run, tmp_path):
    small, _ = run("small.pth")
    command = [str(tmp_path), "--out", "x", "--pairs", "1", "--start", str(tmp_path / "small.pth")]
    noisy = torch.rand(2, 3, 16, 16) * 255
    for larger in ([], ["--gates"]):
        grown = train_best.make_model(train_best.parse_arguments([*command, *larger]))
        torch.testing.assert_close(grown.predict(noisy), small.predict(noisy))
        assert grown.pairs_seen == small.pairs_seen
    assert len(list(grown.network.parameters())) > len(list(small.network.parameters()))
    grown = train_best.make_model(train_best.parse_arguments([*command, "--blocks", "2", "--inner-blocks", "3"]))
    blocks = train_best.residual_blocks(grown.network)
    strengths = {"encode": [0.5, 0.5], "inner": [0.5, 0.25, 0.25], "decode": [0.5, 0.5]}
    for chain, shares in strengths.items():
        first, second = (getattr(small.network, chain)[0].second, blocks[f"{chain}.0"].first)
        assert torch.equal(second.weight, getattr(small.network, chain)[0].first.weight)
        for number, strength in enumerate(shares):
            torch.testing.assert_close(blocks[f"{chain}.{number}"].second.weight, strength * first.weight)
            torch.testing.assert_close(blocks[f"{chain}.{number}"].second.bias, strength * first.bias)
            assert torch.equal(blocks[f"{chain}.{number}"].first.weight, second.weight)


def test_large_pairs_are_a_share_of_the_work(tmp_path):
    command = [str(tmp_path), "--out", "x", "--pairs", "1", "--round", "960", "--draws", "8", "--batch-size", "16"]
    flat = [torch.full((3, side, 128), 100, dtype=torch.uint8) for side in (95, *20 * [128])]
    options = train_best.parse_arguments([*command, "--large", "0.4"])
    batches = list(train_best.draw_batches(flat, 0, options, torch.Generator().manual_seed(0)))
    assert all(noisy.shape == others.shape and noisy.dtype == others.dtype == torch.uint8 for noisy, others in batches)
    sides = [noisy.shape[-1] for noisy, _ in batches]
    assert sides != sorted(sides)
    small, large = (torch.cat([noisy for noisy, _ in batches if noisy.shape[-1] == side]) for side in (32, 96))
    assert len(large) == 42 and len(small) + 9 * len(large) == 960
    assert (small == 100).all() and 12 <= (large != 100).flatten(1).any(1).sum() <= 21  # half have other noise
    assert max(len(noisy) for noisy, _ in batches if noisy.shape[-1] == 96) == 2
    with pytest.raises(ValueError, match="--large needs photographs of at least 96"):
        train_best.draw_large(flat[:1], 4, 0, options)


def test_smaller_network_than_the_weights_it_starts_from_is_refused(run, tmp_path):
    run("small.pth")
    command = ["x", "--out", str(tmp_path / "x.pth"), "--pairs", "1", "--start", str(tmp_path / "small.pth")]
    Model(width=8, blocks=2).save(tmp_path / "small.pth")
    for sizes in (["--blocks", "1"], ["--width", "16"]):
        with pytest.raises(SystemExit, match=r"train_best\.py: .*small\.pth holds weights of another network"):
            train_best.main([*command, *sizes])


@pytest.mark.parametrize("option", ["--validate", "--start", "--out"])
def test_files_that_do_not_fit_are_told_before_the_work(option, tmp_path, monkeypatch):
    monkeypatch.setattr(train_best, "load_photos", lambda folder: pytest.fail("the work has begun"))
    (tmp_path / "bad").write_bytes(b"PK no")
    (tmp_path / "bad" if option != "--out" else tmp_path / "new.pth.checkpoint").write_bytes(b"PK no")
    (tmp_path / "folder").mkdir()
    command = ["x", "--out", str(tmp_path / "new.pth"), "--pairs", "1"]
    for path in ("bad", "folder", "bad/below"):
        if option != "--out" or path != "bad":  # a file in its place is overwritten
            with pytest.raises(SystemExit, match=rf"train_best\.py: .*{path}"):
                train_best.main([*command, option, str(tmp_path / path)])


def test_checkpoints_that_do_not_fit_are_named(run, tmp_path):
    run("a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    for other, named in ((["--width", "16"], "width 8"), (["--seed", "5"], "seed 0"), (["--draws", "2"], "draws 8")):
        with pytest.raises(SystemExit, match=rf"a\.pth\.checkpoint is of a run with {named};"):
            run("a.pth", other)
    assert (tmp_path / "a.pth").read_bytes() == before
    torch.save({"training": {}, "round": 1, "start": 0}, tmp_path / "a.pth.checkpoint")
    with pytest.raises(SystemExit, match=r"a\.pth\.checkpoint is of an older version"):
        run("a.pth")
    (tmp_path / "a.pth.checkpoint").write_bytes(b"PK no")
    with pytest.raises(SystemExit, match=r"a\.pth\.checkpoint is not a readable checkpoint"):
        run("a.pth")


def test_weights_go_to_a_folder_that_is_not_there_yet(run, tmp_path):
    run("new/folder/a.pth")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["a.pth", "a.pth.checkpoint"]


@pytest.mark.parametrize(
    "option",
    ["--pairs 0", "--round -1", "--draws 0", "--inputs 0", "--other-noise 1.5", "--other-noise nan", "--large -0.1"],
)
def test_numbers_that_make_no_sense_are_refused(option):
    with pytest.raises(SystemExit) as error:
        train_best.parse_arguments(["x", "--out", "x", "--pairs", "1", *option.split()])
    assert error.value.code == 2


@pytest.mark.skipif(not shutil.which("sh"), reason="no shell")
def test_each_run_of_the_shipped_weights_starts_where_the_one_before_ended():
    script = Path(train_best.__file__).with_name("shipped_weights.sh")
    printed = subprocess.run(
        ["sh", str(script), "PHOTOS", "FOLDER"], env=os.environ | {"PYTHON": "echo"}, capture_output=True, text=True
    )
    runs, made = [], None
    for module, *command in map(shlex.split, printed.stdout.splitlines()):
        if module == "-":  # a program on standard input: the mean of two files
            made, later, earlier, share = command
            assert Path(later) == runs[-1].out and Path(earlier) != Path(later) and 0 < float(share) < 1
            continue
        program = command.pop(0)
        if program == "Miniproject_1.others.limit_gates":
            assert command == ["PHOTOS", made, "--out", "FOLDER/bestmodel.pth"]
            continue
        assert [module, program] == ["-m", "Miniproject_1.others.train_best"]
        runs.append(train_best.parse_arguments(command))
        assert runs[-1].start == (made and Path(made))
        made = runs[-1].out
    assert all(run.photos == Path("PHOTOS") for run in runs)
    sizes = {}
    for run in runs:  # each network holds the one before
        given = {name: getattr(run, name) for name in ("width", "blocks", "inner_blocks", "gates")}
        sizes |= {name: size for name, size in given.items() if size is not None}
    shipped = Model()
    shipped.load_pretrained_model()
    assert sizes.items() <= shipped.sizes.items()


@torch.no_grad()
def test_a_block_that_sleeps_begins_again_as_a_copy():
    network = Model(width=16, blocks=2).network
    blocks, noisy = train_best.residual_blocks(network), torch.full((1, 3, 15, 16), 0.7)
    strength = blocks["encode.0"].second.weight.clone()
    blocks["encode.1"].first.bias.fill_(-100)
    assert train_best.revive(network, noisy, seed=0)["encode.1"] == 16
    assert torch.equal(blocks["encode.0"].second.weight, 0.5 * strength)
    for one, other in zip(blocks["encode.0"].parameters(), blocks["encode.1"].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(block.first.bias.requires_grad for block in blocks.values())
    blocks["inner.0"].first.bias.fill_(-100)
    with pytest.raises(ValueError, match=r"no block before inner\.0"):
        train_best.revive(network, noisy, seed=0)


@torch.no_grad()
@pytest.mark.parametrize("equivariant", [True, False])
def test_units_that_sleep_begin_again(equivariant):
    network = Model(width=16, inner_blocks=1, equivariant=equivariant).network
    block, noisy = network.decode[0], torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(network.last.weight, std=0.1)
    block.first.bias[8:] = -100
    awake, before = block.first.weight[:8].clone(), network(noisy)
    assert train_best.revive(network, noisy, seed=0)["decode.0"] == 8
    assert torch.equal(block.first.weight[:8], awake)
    torch.testing.assert_close(network(noisy), before)
    assert (train_best.hidden_shares(network, noisy)["decode.0"][8:] > 0.01).any()
    turned = network(noisy.flip(3)).flip(3)
    assert torch.allclose(turned, network(noisy), atol=1e-4) == equivariant


def test_a_training_that_revives_continues_exactly(run, monkeypatch, tmp_path, capsys):
    model = Model(width=8, blocks=2, inner_blocks=1)
    with torch.no_grad():
        model.network.decode[1].first.bias.fill_(-100)
    model.save(tmp_path / "asleep.pth")
    options = ["--start", str(tmp_path / "asleep.pth"), "--blocks", "2"]
    _, straight = run("straight.pth", [*options, "--revive"])
    assert "dead units: {'decode.1': 8}" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(train_best, "validation_psnr", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("stopped.pth", [*options, "--revive"])
    _, continued = run("stopped.pth", [*options, "--revive"])
    _, other = run("other.pth", options)
    assert torch.equal(continued, straight) and not torch.equal(other, straight)


def test_seeds_of_rounds_differ():
    assert len({train_best.seed_of(n, SimpleNamespace(seed=s)) for n in range(3) for s in range(3)}) == 9


def test_one_wrong_bit_of_a_checkpoint_is_told(tmp_path):
    path = tmp_path / "a.checkpoint"
    save_atomically({"weights": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(torch.arange(500.0, 502).view(torch.uint8).tolist()))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        read_checkpoint(path)
