"""The command that trains `photomodel.pth`: what it learns from, and that it goes on exactly where it was stopped."""

import dataclasses

import pytest
import torch

from Miniproject_1.model import D4, Model, apply_d4
from Miniproject_1.others import train_photo
from Miniproject_1.others.data import render_scene
from Miniproject_1.others.files import read_names
from Miniproject_1.others.metrics import psnr
from Miniproject_1.others.photo_noise import Mixture
from Miniproject_1.others.photos import load_photo
from Miniproject_1.others.train_photo import Patches, Settings, files_to_learn_from, reduced_photo

Image = pytest.importorskip("PIL.Image")

TINY = Settings(width=8, levels=2, inner_blocks=1, patch=32, batch_size=2, steps=4)
MIXTURE = Mixture(others=2, camera_others=1)


def write_photo(path, photo):
    Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy()).save(path)


@pytest.fixture
def photos(tmp_path):
    """A folder of four pictures and a copy of the first under another name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        write_photo(folder / f"{number}.png", render_scene(number, side=96))
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def names(files):
    return {path.name for path in files}


def weights(path):
    model = Model()
    model.load(path)
    return torch.cat([value.flatten() for value in model.network.state_dict().values()])


# ---------------------------------------------------------------------------------------------- photographs


def test_photos_of_the_test_set_and_their_copies_are_left_out(photos):
    assert names(files_to_learn_from(photos)) == {"0.png", "1.png", "2.png", "3.png", "copy.png"}
    assert names(files_to_learn_from(photos, ["0.png", "3.png"])) == {"1.png", "2.png"}


def test_names_may_hold_spaces(tmp_path):
    (tmp_path / "names.txt").write_text("one.png\n\n my holiday 1.jpg \n", encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == ["one.png", "my holiday 1.jpg"]


def test_a_name_to_leave_out_that_is_not_there_is_an_error(photos):
    with pytest.raises(ValueError, match=r"missing\.png"):
        files_to_learn_from(photos, ["missing.png"])


def test_patches_are_cut_from_photos_and_from_reduced_ones(photos):
    files = [photos / "0.png"]
    whole, reduced = (Patches(files, dataclasses.replace(TINY, reduced=share)) for share in (0.0, 1.0))
    photo = load_photo(files[0]).float() / 255
    every = photo.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 65, 65, 32, 32)
    for patch in whole.draw(torch.Generator().manual_seed(0)):
        assert (every == patch[:, None, None]).all(4).all(3).all(0).any()
    small = reduced.reduced[0].float() / 255
    assert 0.4 * 96 - 1 <= small.shape[1] == small.shape[2] < 96
    every = small.unfold(1, 32, 1).unfold(2, 32, 1)
    for patch in reduced.draw(torch.Generator().manual_seed(0)):
        assert (every == patch[:, None, None]).all(4).all(3).all(0).any()


def test_a_share_of_the_patches_is_flat(photos):
    files, settings = [photos / "0.png"], dataclasses.replace(TINY, batch_size=200)
    patches = Patches(files, settings).draw(torch.Generator().manual_seed(0))
    some = Patches(files, dataclasses.replace(settings, flat=0.3)).draw(torch.Generator().manual_seed(0))
    flat = (some != patches).flatten(1).any(1)
    assert 40 <= flat.sum() <= 80
    squares = some[flat].unfold(2, 4, 4).unfold(3, 4, 4)  # of the smallest size
    assert (squares.amax((4, 5)) == squares.amin((4, 5))).all()
    colours = squares[..., 0, 0]
    assert ((colours == 0) | (colours == 1)).float().mean().item() == pytest.approx(1 / 3, abs=0.05)
    assert {len(patch.flatten(1).unique(dim=1).T) for patch in colours} >= {1, 4, 16, 64}
    with pytest.raises(ValueError, match="flat must be in"):
        dataclasses.replace(TINY, flat=1.5)


def test_patches_for_free_weights_are_turned(photos):
    files, settings = [photos / "0.png"], dataclasses.replace(TINY, batch_size=64)
    straight = Patches(files, settings).draw(torch.Generator().manual_seed(0))
    turned = Patches(files, dataclasses.replace(settings, equivariant=False)).draw(torch.Generator().manual_seed(0))
    found = [
        {number for number, element in enumerate(D4) if torch.equal(apply_d4(one[None], element)[0], other)}
        for one, other in zip(straight, turned, strict=True)
    ]
    assert all(found) and set.union(*found) == set(range(8))


def test_free_weights_begin_as_the_equivariant_ones_that_do_the_same(photos, tmp_path):
    model = Model(width=8, inner_blocks=1, border=TINY.border, precision="float32")
    torch.nn.init.normal_(model.network.last.weight, std=0.1)
    model.save(tmp_path / "start.pth")
    settings = dataclasses.replace(TINY, equivariant=False)
    free = train_photo.make_model(settings, tmp_path / "start.pth")
    free.precision, image = "float32", render_scene(5, side=48)[None]
    torch.testing.assert_close(free.predict(image, False), model.predict(image, False))
    assert not free.network.equivariant and free.sizes == model.sizes | {"equivariant": False}
    with torch.no_grad():
        free.network.inner[0].first.weight[0, 0, 0, 0] += 1  # free: nothing else changes with it
    assert not torch.allclose(free.predict(image, False), model.predict(image, False))


def test_reduced_photos_have_no_aliases():
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(3, 64, 64)
    small = reduced_photo(stripes, 0.5).float()
    assert small.shape == (3, 32, 32)
    assert (small[..., 4:-4] - 127.5).abs().max() < 8  # without antialiasing, black or white


def test_small_and_broken_photos_are_named_and_skipped(photos, capsys):
    write_photo(photos / "small.png", torch.zeros(3, 64, 40, dtype=torch.uint8))
    (photos / "broken.png").write_bytes(b"no picture")
    patches = Patches(files_to_learn_from(photos), dataclasses.replace(TINY, patch=48))
    assert len(patches.photos) == len(patches.reduced) == 5
    message = capsys.readouterr().err
    assert "small.png" in message and "broken.png" in message
    with pytest.raises(ValueError, match="could be read"):
        Patches([photos / "small.png"], dataclasses.replace(TINY, patch=48))


@pytest.mark.parametrize("wrong", [{"patch": 40}, {"batch_size": 0}, {"reduced": 2.0}, {"smallest": 0.0}], ids=str)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


# ---------------------------------------------------------------------------------------------- training


@pytest.fixture
def run(photos, tmp_path):
    """Trains to a file of some name, to the end or up to a limit."""

    def call(name, settings=TINY, mixture=MIXTURE, **options):
        patches = Patches(files_to_learn_from(photos), settings)
        return train_photo.train(patches, settings, mixture, tmp_path / name, every=2, **options)

    return call


def test_stopped_training_continues_exactly(run, tmp_path):
    run("straight.pth")
    run("stopped.pth", limit=2)
    assert not torch.equal(weights(tmp_path / "stopped.pth"), weights(tmp_path / "straight.pth"))
    model = run("stopped.pth")
    assert torch.equal(weights(tmp_path / "stopped.pth"), weights(tmp_path / "straight.pth"))
    assert model.pairs_seen == 4 * TINY.batch_size
    first, second = (
        torch.load(tmp_path / f"{name}.pth.checkpoint", weights_only=True) for name in ("straight", "stopped")
    )
    for ours, theirs in zip(first["training"]["weights"], second["training"]["weights"], strict=True):
        assert torch.equal(ours, theirs)


def test_other_settings_do_not_continue_a_checkpoint(run):
    run("a.pth", limit=1)
    with pytest.raises(ValueError, match="other settings"):
        run("a.pth", dataclasses.replace(TINY, muon_lr=1e-3))
    with pytest.raises(ValueError, match="other settings"):
        run("a.pth", mixture=dataclasses.replace(MIXTURE, camera=0.9))


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    (tmp_path / "a.pth.checkpoint").write_bytes(b"PK no")
    with pytest.raises(ValueError, match=r"a\.pth\.checkpoint is not a readable checkpoint"):
        run("a.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [({"training": {}, "round": 1, "start": 0}, "is of other settings"), (torch.zeros(2), "a Tensor")],
)
def test_a_checkpoint_of_another_kind_is_named(run, tmp_path, content, said):
    torch.save(content, tmp_path / "a.pth.checkpoint")
    with pytest.raises(ValueError, match=rf"a\.pth\.checkpoint.* {said}"):
        run("a.pth")


def test_a_run_may_become_longer(run):
    run("a.pth", limit=2)
    assert run("a.pth", dataclasses.replace(TINY, steps=6)).pairs_seen == 6 * TINY.batch_size


def test_a_run_may_start_from_weights_and_be_stopped(run, tmp_path):
    start = tmp_path / "start.pth"
    run("start.pth")
    first = weights(start)
    assert run("straight.pth", start=start).pairs_seen == 8 * TINY.batch_size
    assert not torch.equal(weights(tmp_path / "straight.pth"), first)
    run("still.pth", dataclasses.replace(TINY, muon_lr=0.0, adam_lr=0.0), start=start)
    assert torch.equal(weights(tmp_path / "still.pth"), first)
    run("stopped.pth", start=start, limit=2)
    assert run("stopped.pth", start=start).pairs_seen == 8 * TINY.batch_size
    assert torch.equal(weights(tmp_path / "stopped.pth"), weights(tmp_path / "straight.pth"))


def test_a_block_that_the_start_lacks_begins_as_a_copy(run, tmp_path):
    run("start.pth", limit=1)
    larger = dataclasses.replace(TINY, inner_blocks=TINY.inner_blocks + 1, muon_lr=0.0, adam_lr=0.0)
    *_, first, last = run("grown.pth", larger, start=tmp_path / "start.pth").network.inner
    for one, other in zip(first.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gates_that_the_start_lacks_begin_open(run, tmp_path):
    run("start.pth", limit=1)
    gated = dataclasses.replace(TINY, gates=True, border=32, muon_lr=0.0, adam_lr=0.0)
    model, start = run("gated.pth", gated, start=tmp_path / "start.pth"), Model()
    start.load(tmp_path / "start.pth")
    assert model.sizes["gates"] and not start.sizes["gates"]
    noisy = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    inner = (..., slice(24, 40), slice(24, 40))  # their borders differ
    found, wanted = (m.predict(noisy, ensemble=False)[inner] for m in (model, start))
    torch.testing.assert_close(found, wanted, atol=1.0, rtol=0)
    assert (wanted - noisy[inner]).abs().max() > 0


@pytest.mark.parametrize("change", [{"width": 16}, {"levels": 3}, {"inner_blocks": 0}], ids=str)
def test_weights_of_another_network_are_no_start(run, tmp_path, change):
    run("start.pth", limit=1)
    with pytest.raises(ValueError, match=r"start\.pth has a network"):
        run("a.pth", dataclasses.replace(TINY, **change), start=tmp_path / "start.pth")


def test_seed_and_mixture_are_learnt_from(run, tmp_path):
    run("a.pth")
    run("seed.pth", dataclasses.replace(TINY, seed=1))
    run("mixture.pth", mixture=dataclasses.replace(MIXTURE, camera=1.0))
    first = weights(tmp_path / "a.pth")
    assert not torch.equal(first, weights(tmp_path / "seed.pth"))
    assert not torch.equal(first, weights(tmp_path / "mixture.pth"))


def test_noise_is_learnt_to_be_removed_from_noisy_images_alone(run):
    settings = dataclasses.replace(TINY, steps=120, batch_size=8, ema_decay=0.9, muon_lr=4e-3, adam_lr=5e-3)
    model = run("a.pth", settings, dataclasses.replace(MIXTURE, camera=0.1))
    clean = render_scene(9, side=96)[None].float()
    noisy = clean + 25 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    assert psnr(model.predict(noisy, ensemble=False), clean) > psnr(noisy.clamp(0, 255), clean) + 1


def test_the_command_takes_every_setting(photos, tmp_path):
    left_out = tmp_path / "names.txt"
    left_out.write_text("0.png\n1.png\n")
    out = tmp_path / "new.pth"
    command = f"{photos} --leave-out {left_out} --out {out} --every 1 --width 8 --levels 2 --inner-blocks 1 --patch 32"
    train_photo.main(f"{command} --batch-size 2 --steps 2 --others 1 --camera-others 1 --camera 0.5".split())
    state = torch.load(tmp_path / "new.pth.checkpoint", weights_only=True)
    assert state["settings"] == dataclasses.asdict(dataclasses.replace(TINY, steps=2))
    assert state["mixture"] == dataclasses.asdict(Mixture(others=1, camera_others=1, camera=0.5))
    assert state["training"]["steps"] == 2
    assert weights(out).isfinite().all()
