"""`inspect`: synthetic pairs, each with one fault, which is found, measured and named; sound ones are fit."""

import io
import json
import math
import unicodedata

import pytest
import torch
import torch.nn.functional as F

from Miniproject_1.__main__ import main
from Miniproject_1.commands import inspect
from Miniproject_1.commands.support import pairs
from Miniproject_1.others.data import point_sample, render_scene


def scene(size=320, seed=0, channels=3):
    """A smooth random picture with edges, as a function of where it is looked at: (1, C, H, W) in [40, 215]."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.rand(60, 4, generator=generator)
    weights = torch.rand(60, channels, generator=generator) - 0.5

    def at(down=0.0, right=0.0):
        y = torch.arange(size)[:, None] - down
        x = torch.arange(size)[None, :] - right
        image = torch.zeros(channels, size, size)
        for (a, b, phase, sharp), weight in zip(waves.tolist(), weights, strict=True):
            wave = torch.sin((a - 0.5) * y + (b - 0.5) * x + 2 * math.pi * phase)
            image += weight[:, None, None] * torch.tanh((1 + 4 * sharp) * wave)
        return (127 + 25 * image).clamp(40, 215)[None]

    return at


def pair(level=15, other_level=None, size=320, seed=0, down=0.0, right=0.0, channels=3):
    generator = torch.Generator().manual_seed(seed + 100)
    at = scene(size, seed, channels)
    noise = torch.randn(2, 1, channels, size, size, generator=generator)
    return at() + level * noise[0], at(down, right) + (level if other_level is None else other_level) * noise[1]


def findings(a, b):
    found = inspect.inspect_pairs(pairs.PairsInMemory(a, b), try_weights=False)
    return {finding.topic: finding for finding in found}, inspect.fit(found)


def verdicts(found):
    return {topic: finding.verdict for topic, finding in found.items()}


def test_sound_pairs_are_fit():
    found, fit = findings(*pair())
    assert fit and set(verdicts(found).values()) == {"fine"}
    assert found["noise"].values["first"] == pytest.approx(15, rel=0.03)
    assert found["noise"].values["second"] == pytest.approx(15, rel=0.03)
    assert found["gain"].values["noisy"] == pytest.approx(20 * math.log10(255 / 15), abs=0.2)


def test_unequal_noise_is_measured():
    found, fit = findings(*pair(10, 20))
    assert fit and found["noise"].verdict == "warning"
    assert found["noise"].values["first"] == pytest.approx(10, rel=0.06)
    assert found["noise"].values["second"] == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("shift", [(0.0, 0.1), (0.3, 0.0), (1.5, -2.25), (-7.4, 3.0), (12.0, 9.6)])
@pytest.mark.parametrize("level", [2, 25])
def test_displacement_to_a_tenth_of_a_pixel(shift, level):
    found, fit = findings(*pair(level, down=shift[0], right=shift[1]))
    values = found["displacement"].values
    assert values["down"] == pytest.approx(shift[0], abs=0.1)
    assert values["right"] == pytest.approx(shift[1], abs=0.1)
    assert fit == (math.hypot(*shift) < 0.5)


def test_displacement_of_many_small_pairs():
    every = [pair(25, size=32, seed=seed, right=0.7) for seed in range(80)]
    found, fit = findings(*map(torch.cat, zip(*every, strict=True)))
    assert not fit and found["displacement"].values["right"] == pytest.approx(0.7, abs=0.1)
    assert found["displacement"].values["down"] == pytest.approx(0, abs=0.1)


def test_places_that_lie_farther_apart_than_the_pictures_are_told():
    moved = pairs.PairsInMemory(*pair(10, right=0.4))
    for apart, verdict in ((0.45, "warning"), (0.8, "BAD")):
        assert inspect.on_displacement(moved, share=0.2, error=0.01, distance=apart).verdict == verdict


def test_different_scenes_have_no_displacement_that_could_be_told():
    found, _ = findings(pair(seed=1)[0], pair(seed=2)[0])
    assert found["displacement"].values["down"] is None


def white_noise(clean, generator):
    return clean + 15 * torch.randn(clean.shape, generator=generator)


def blurred_noise(clean, generator):
    noise = F.avg_pool2d(torch.randn(clean.shape, generator=generator), 5, 1, 2)
    return clean + 15 * noise / noise.std()


def enlarged_noise(clean, generator):
    small = F.avg_pool2d(clean, 4)
    return F.interpolate(small + 20 * torch.randn(small.shape, generator=generator), scale_factor=4, mode="bicubic")


def jpeg_noise(clean, generator, quality=50):
    Image, numpy = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    noisy, content = white_noise(clean, generator).clamp(0, 255).byte(), io.BytesIO()
    Image.fromarray(noisy[0].permute(1, 2, 0).numpy()).save(content, "JPEG", quality=quality)
    return torch.from_numpy(numpy.array(Image.open(content))).permute(2, 0, 1)[None].float()


def poor_jpeg_noise(clean, generator):
    return jpeg_noise(clean, generator, 10)


def sampling_noise(clean, generator):
    side = min(clean.shape[2:])
    return point_sample(clean[0].byte(), torch.tensor([[0, 0, side]]), generator, side // 3).float()


NOISES = (white_noise, blurred_noise, enlarged_noise, jpeg_noise, poor_jpeg_noise, sampling_noise)


def test_small_pictures_that_are_mirrored_are_found():
    scene = render_scene(1, 480)[None].float()
    clean = torch.cat([scene[..., top : top + 32, left : left + 32] for top in range(0, 448, 48) for left in (0, 200)])
    a, b = clean + 20 * torch.randn(2, *clean.shape, generator=torch.Generator().manual_seed(0))
    found, fit = findings(a, b.flip(3))
    assert not fit and "mirrored or turned" in found["orientation"].text
    assert "orientation" not in findings(a, b)[0]


@pytest.mark.parametrize("noise", NOISES)
def test_different_scenes_are_told_from_noise(noise):
    """Two scenes that are equally bright in every channel, and one that is displaced by half of its size."""
    generator = torch.Generator().manual_seed(0)
    large, other = (render_scene(seed, 480)[None].float() for seed in (1, 2))
    first, *others = large[..., :320, :320], other[..., :320, :320], large[..., 160:, 160:]
    for second in others:
        second = (second - (second - first).mean((2, 3), keepdim=True)).clamp(0, 255)
        found, fit = findings(noise(first, generator), noise(second, generator))
        assert not fit and found["scene"].verdict == "BAD" and "different scenes" in found["scene"].text
        assert found["scene"].values["agreement"] < 0.15
    plain = torch.full((1, 3, 320, 320), 120.0)
    for clean in (first, plain, plain + torch.linspace(-60, 60, 320), 110 + first / 20):
        assert "scene" not in findings(*(noise(clean, generator) for _ in "ab"))[0]


def turned(image, degrees):
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    grid = F.affine_grid(matrix[None], image.shape, align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)


@pytest.mark.parametrize(
    "change, topic",
    [
        (lambda image: image.flip(3), "scene"),
        (lambda image: image.flip(1), "scene"),
        (lambda image: turned(image, 0.5), "displacement"),
        (lambda image: turned(image, 1), "displacement"),
        (lambda image: (image - image.mean()) * 0.85 + image.mean(), "contrast"),
    ],
    ids=["mirrored", "channels reversed", "turned by half a degree", "turned by a degree", "less contrast"],
)
def test_pictures_that_do_not_match(change, topic):
    noise = 10 * torch.randn(2, 1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    for seed in range(3):
        clean = render_scene(seed, 320)[None].float()
        found, fit = findings(clean + noise[0], change(clean) + noise[1])
        assert not fit and found[topic].verdict == "BAD", verdicts(found)


def test_pairs_that_are_mixed_up_are_counted_and_named():
    """Half of them, of equal brightness: the others must not hide them, and the first of them is number 21."""
    noise = 10 * torch.randn(2, 40, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    clean = torch.stack([render_scene(seed, 64).float() for seed in range(40)])
    clean = 128 + 0.6 * (clean - clean.mean((2, 3), keepdim=True))
    mixed = torch.cat([clean[:20], clean[20:].roll(1, 0)])
    found, fit = findings(clean + noise[0], mixed + noise[1])
    assert not fit and 15 <= found["scene"].values["pairs"] <= 20 and "number 21" in found["scene"].text
    assert "scene" not in findings(clean + noise[0], clean + noise[1])[0]


def test_a_grey_picture_among_coloured_ones_is_named(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            picture = Image.effect_noise((64, 64), 40)
            picture.convert("L" if number == 2 else "RGB").save(tmp_path / folder / f"{number}.png")
    assert main(["inspect", str(tmp_path / "a"), str(tmp_path / "b"), "--no-weights"]) == 1
    assert "as many channels as the first, 3; pair 3 has 1" in capsys.readouterr().err


def test_exposure_that_differs():
    a, b = pair()
    found, fit = findings(a, b + 5)
    assert not fit and found["exposure"].values["mean"] == pytest.approx(-5, abs=0.1)
    found, fit = findings(a, b + 0.9)
    assert fit and found["exposure"].verdict == "warning"


def test_exposure_that_drifts_from_pair_to_pair():
    every = [pair(seed=seed, size=64) for seed in range(30)]
    a, b = map(torch.cat, zip(*every, strict=True))
    drift = torch.linspace(-6, 6, 30)[:, None, None, None]
    found, fit = findings(a, b + drift)
    assert not fit and abs(found["exposure"].values["mean"]) < 0.3
    assert found["exposure"].values["drift"] == pytest.approx(drift.square().mean().sqrt().item(), rel=0.05)
    assert findings(a, b)[0]["exposure"].verdict == "fine"


def test_noise_that_is_correlated_between_pixels():
    generator = torch.Generator().manual_seed(0)
    clean = scene()()
    blurred = [
        torch.nn.functional.avg_pool2d(30 * torch.randn(1, 3, 320, 320, generator=generator), 2, 1, 1) for _ in "ab"
    ]
    found, fit = findings(*(clean + noise[:, :, :320, :320] for noise in blurred))
    assert fit and found["neighbours"].verdict == "warning"
    assert found["neighbours"].values["correlation"] == pytest.approx(0.5, abs=0.03)


def test_stripes():
    generator = torch.Generator().manual_seed(0)
    a, b = pair(10)
    stripes = 5 * torch.randn(2, 1, 1, 320, 1, generator=generator)
    found, _ = findings(a + stripes[0], b + stripes[1])
    assert found["stripes"].verdict == "warning"
    assert found["stripes"].values["rows"] == pytest.approx(0.2, abs=0.04)
    assert abs(found["stripes"].values["columns"]) < 0.01


@pytest.mark.parametrize("size", [320, 32, 16])
def test_blurred_noise_has_no_stripes(size):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 3, size + 4, size + 4, generator=generator)
    found, _ = findings(*(100 + 30 * F.avg_pool2d(part, 5, 1) for part in noise))
    assert found["neighbours"].verdict == "warning"
    assert verdicts(found).get("stripes") == ("fine" if size > 16 else None)  # too narrow to tell


def test_noise_that_is_correlated_between_channels():
    generator = torch.Generator().manual_seed(0)
    grey, own = torch.randn(2, 1, 1, 320, 320, generator=generator), torch.randn(2, 1, 3, 320, 320, generator=generator)
    clean = scene()()
    found, _ = findings(*(clean + 10 * (grey[k] + own[k]) for k in range(2)))
    assert found["channels"].values["correlation"] == pytest.approx(0.5, abs=0.03)
    assert "channels" not in findings(*pair(channels=1))[0]


def test_noise_that_depends_on_brightness():
    generator = torch.Generator().manual_seed(0)
    clean = scene()()
    a, b = (clean + clean.sqrt() * torch.randn(clean.shape, generator=generator) for _ in "ab")
    found, fit = findings(a, b)
    values = found["brightness"].values
    assert fit and values["dark"] < values["middle"] < values["bright"]
    assert "photon" in found["brightness"].text
    third = clean.flatten().sort().values.tensor_split(3)
    assert values["bright"] == pytest.approx(third[2].mean().sqrt().item(), rel=0.1)
    assert "the same everywhere" in findings(*pair())[0]["brightness"].text


def test_clipping():
    a, b = pair(60)
    a, b = (1.6 * (part - 127) + 127 for part in (a, b))
    found, _ = findings(a.clamp(0, 255), b.clamp(0, 255))
    share = ((a <= 0) | (a >= 255)).float().mean().item()
    assert sum(found["clipping"].values.values()) == pytest.approx(share, abs=0.02)
    assert found["clipping"].verdict == ("BAD" if share > 0.2 else "warning")
    assert findings(*pair(60))[0]["clipping"].verdict != "fine"


@pytest.mark.parametrize("around", [0.0, 255.0])
def test_black_or_white_surroundings_are_not_clipped(around):
    a, b = pair(20)
    for part in (a, b):
        part[..., :100] = around
    found, fit = findings(a, b)
    assert fit and found["clipping"].verdict == "fine", verdicts(found)


def test_counts_of_few_photons_are_neither_clipped_nor_displaced():
    """Pairs at the same place, whose structure is hardly more than their noise."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        rates = ((scene(256, seed, 1)() - 127).clamp(min=0) / 60 + 0.3).repeat(2, 1, 1, 1)
        first, second = (torch.poisson(rates, generator=generator) * 12 for _ in range(2))
        found, fit = findings(first[:1], second[:1])
        assert found["clipping"].verdict == "warning" and "photons" in found["clipping"].text
        assert found["displacement"].verdict != "BAD"
        assert fit


def test_a_copy_or_a_clean_picture_is_asked_for():
    a, b = pair(20)
    assert "shared noise" not in findings(a, b)[0]
    generator = torch.Generator().manual_seed(9)
    found, _ = findings(a, a + 3 * torch.randn(a.shape, generator=generator))  # a copy, noise added
    assert found["shared noise"].values["alone"] == pytest.approx(20, rel=0.1)


def test_a_verdict_on_what_is_no_pair_is_its_sentence():
    a, _ = pair(20)
    generator = torch.Generator().manual_seed(9)
    copy = a + 10 * torch.randn(a.shape, generator=generator)
    for first, second in ((a, copy), (scene()(), a), (a, scene()())):
        found, fit = findings(first, second)
        assert not fit and found["noise"].verdict == "BAD" and "That is not a pair" in found["noise"].text
    for level in (14, 40):  # a real pair of very different exposures is one
        found, fit = findings(a, pair(20, level)[1])
        assert fit and "not a pair" not in found["noise"].text


def test_few_pixels_do_not_tell_that_noise_is_unlike():
    """The structure of a picture, by chance, is correlated with faint noise."""
    for seed in range(20):
        a, b = (part[:, :, :48, :48] for part in pair(1, size=64, seed=seed))
        assert findings(a, b)[0]["noise"].verdict != "BAD"


def test_the_same_picture_twice():
    a, _ = pair()
    found, fit = findings(a, a.clone())
    assert not fit and found["independence"].verdict == "BAD"


def test_pairs_of_the_same_picture_twice_among_others():
    a, b = (torch.cat(parts) for parts in zip(*(pair(size=64, seed=seed) for seed in range(4)), strict=True))
    b[2] = a[2]
    found, fit = findings(a, b)
    assert not fit and "1 of 4 pairs are the same picture twice" in found["copies"].text
    assert "copies" not in findings(a[:2], b[:2])[0]


def test_pairs_of_one_pixel_are_finite_numbers(tmp_path, capsys):
    torch.save([torch.full((2, 3, 1, 1), value, dtype=torch.uint8) for value in (90, 100)], tmp_path / "a.pkl")
    assert main(["inspect", str(tmp_path / "a.pkl"), "--json", "--no-weights"]) == 0
    assert "NaN" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.tensor([0.0, math.nan]), "NaN or infinite"),
        (torch.tensor([-0.1, 1.2]), "has values in [-0.1, 1.2]"),
        (torch.tensor([0, 65535]), "--range 0 65535"),
    ],
)
def test_tensors_that_are_not_of_255(tmp_path, capsys, values, words):
    torch.save([values.repeat(32).view(1, 1, 8, 8)] * 2, tmp_path / "a.pkl")
    assert main(["inspect", str(tmp_path / "a.pkl")]) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.ones(1, 1, 8, 8, dtype=torch.bool), "real numbers in [0, 255], uint8 or floating; got torch.bool"),
        (torch.ones(1, 1, 8, 8, dtype=torch.complex64), "got torch.complex64. Convert them first"),
        (torch.ones(1, 1, 8, 8).to_sparse(), "got torch.sparse_coo on cpu. Convert them first, such as by tensor.to_d"),
        (torch.ones(1, 1, 8, 8, device="meta"), "dense tensors with values; got torch.strided on meta"),
    ],
    ids=["bool", "complex", "sparse", "meta"],
)
@pytest.mark.parametrize("given", [[], ["--range", "0", "1"]], ids=["own", "given"])
def test_tensors_that_are_no_images_are_refused(tmp_path, capsys, values, words, given):
    torch.save((torch.full((1, 1, 8, 8), 9.0), values), tmp_path / "a.pkl")
    assert main(["inspect", f"{tmp_path}/a.pkl", "--no-weights", *given]) == 1
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


def test_gradients_are_left_behind(tmp_path):
    torch.save([torch.full((1, 1, 8, 8), 9.0, requires_grad=True)] * 2, tmp_path / "a.pkl")
    for given in (None, (0, 255)):
        opened = pairs.open_pairs(tmp_path / "a.pkl", scale=pairs.Scale(given))
        assert not any(image.requires_grad for image in opened.pair(0))


def test_clean_pairs_have_hardly_any_noise():
    found, _ = findings(*pair(0.1))
    assert found["noise"].verdict == "warning" and "hardly any" in found["noise"].text


def test_the_error_against_the_clean_image_is_known_without_it():
    generator = torch.Generator().manual_seed(0)
    clean = scene()()
    noisy, prediction = (clean + level * torch.randn(clean.shape, generator=generator) for level in (20, 6))
    mse = inspect.estimated_mse(prediction, noisy, 400)
    assert mse == pytest.approx(36, rel=0.1)


def test_the_command_tries_the_shipped_weights(tmp_path, capsys):
    a, b = pair(25, size=96)
    torch.save((a.clamp(0, 255).byte(), b.clamp(0, 255).byte()), tmp_path / "pairs.pkl")
    assert main(["inspect", f"{tmp_path}/pairs.pkl", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    gain = said["findings"][-1]["values"]
    assert said["pairs"] == 1 and gain["course"] > gain["noisy"] + 3
    assert main(["inspect", f"{tmp_path}/pairs.pkl", "--no-weights"]) == 0
    assert "1 pair: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("brightness", "promised"), [(127, "expect that or more"), (45, "not counted"), (0, "cannot be")]
)
def test_what_the_weights_reach_is_not_promised_where_noise_is_clipped(brightness, promised):
    generator = torch.Generator().manual_seed(0)
    a, b = ((brightness + 25 * torch.randn(8, 3, 64, 64, generator=generator)).clamp(0, 255) for _ in "ab")
    gain = inspect.inspect_pairs(pairs.PairsInMemory(a, b), device="cpu")[-1]
    assert gain.topic == "gain" and promised in gain.text
    assert ("course" in gain.values) == (brightness > 0)


def test_folders_are_paired_by_name(tmp_path, capsys):
    pytest.importorskip("PIL")
    numpy = pytest.importorskip("numpy")
    from Miniproject_1.commands.support import images

    for folder, parts in zip("ab", (pair(seed=1, size=70), pair(seed=2, size=90)), strict=True):
        for name, values in zip(("x.png", "sub/y.tif"), parts, strict=False):
            pixels = values[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
            path = tmp_path / folder / name
            images.write_picture(images.Picture(numpy.ascontiguousarray(pixels), "RGB", False, (0, 255)), path)
    opened = pairs.open_pairs(tmp_path / "a", tmp_path / "b")
    assert [opened.name(k) for k in range(len(opened))] == ["sub/y", "x"]
    with pytest.raises(ValueError, match="the two versions of x must be of one size"):
        opened.pair(1)
    assert main(["inspect", f"{tmp_path}/a", f"{tmp_path}/a", "--no-weights"]) == 0
    assert "Both pictures are the same" in capsys.readouterr().out


def test_what_is_no_pair_is_said(tmp_path, capsys):
    torch.save([torch.zeros(3)], tmp_path / "one.pkl")
    (tmp_path / "bad.pkl").write_bytes(b"bad")
    (tmp_path / "empty").mkdir()
    for given, reason in (
        (["one.pkl"], "must hold two tensors"),
        (["bad.pkl"], "not readable"),
        (["missing"], "no such file"),
        (["empty", "empty"], "has a namesake"),
        (["empty", "bad.pkl"], "all files or all folders"),
        (["empty"], "need two files"),
        (["one.pkl", "bad.pkl"], "a .pkl holds both versions and is given alone"),
    ):
        assert main(["inspect", *(f"{tmp_path}/{name}" for name in given)]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 3, 8, 9), (5, 8, 9, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_of_every_layout(tmp_path, shape, dtype):
    numpy = pytest.importorskip("numpy")
    high = 1 if dtype == "float32" else numpy.iinfo(dtype).max
    values = (numpy.linspace(0, 1, math.prod(shape)).reshape(shape) * high).astype(dtype)
    numpy.save(tmp_path / "a.npy", values)
    numpy.save(tmp_path / "b.npy", values)
    opened = pairs.open_pairs(tmp_path / "a.npy", tmp_path / "b.npy")
    first, second = opened.pair(4)
    assert first.shape == (1, 1 if len(shape) == 3 else 3, 8, 9) and torch.equal(first, second)
    assert first.max() == pytest.approx(255)


def test_pages_of_tiffs(tmp_path):
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    for name in "ab":
        tifffile.imwrite(
            tmp_path / f"{name}.tif", numpy.arange(240, dtype="uint16").reshape(5, 6, 8), photometric="minisblack"
        )
    opened = pairs.open_pairs(tmp_path / "a.tif", tmp_path / "b.tif")
    assert len(opened) == 5 and opened.pair(4)[0].max() == 239  # taken as 8 bits
    opened = pairs.open_pairs(tmp_path / "a.tif", tmp_path / "b.tif", scale=pairs.Scale((0, 65535)))
    assert opened.pair(4)[0].max() == pytest.approx(239 / 257)


def save(folder, name, values):
    """An array (N, H, W) as .npy, or each of its images as a TIFF in a folder."""
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    numpy.save(folder / f"{name}.npy", values)
    (folder / name).mkdir(exist_ok=True)
    for number, image in enumerate(values):
        tifffile.imwrite(folder / name / f"{number}.tif", image)


@pytest.mark.parametrize("ending", ["", ".npy"])
def test_one_range_of_values_for_all_files(tmp_path, capsys, ending):
    numpy = pytest.importorskip("numpy")
    values = numpy.linspace(0, 1, 4 * 9 * 7).reshape(4, 9, 7)
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"

    def opened(a, b, **options):
        save(tmp_path, "a", a)
        save(tmp_path, "b", b)
        found = pairs.open_pairs(first, second, **options)
        return [torch.cat(part) for part in zip(*(found.pair(number) for number in range(4)), strict=True)]

    expected = torch.from_numpy(values).float()[:, None] * 255
    for high in (1000, 4000, 16000, 60000):
        a, b = opened((values * high).astype("uint16"), (values * high / 2).astype("uint16"))
        white = next(2**bits - 1 for bits in (10, 12, 14, 16) if high < 2**bits)
        assert torch.allclose(a * white / high, expected, atol=0.3)
        assert torch.allclose(b * white / high, expected / 2, atol=0.3)
        said = capsys.readouterr().err
        assert said == (
            "" if high == 60000 else f"uint16 values: 0 is taken as black, {white} as white; --range changes that\n"
        )
    given = pairs.Scale((0, 65535))
    a, b = opened((values * 1000).astype("uint16"), (values * 500).astype("uint16"), scale=given)
    assert a.max() == pytest.approx(1000 / 257, abs=0.01) and not capsys.readouterr().err
    a, b = opened(8 * values.astype("float32") - 3, 4 * values.astype("float32"))
    assert torch.allclose(a, expected, atol=1e-3) and torch.allclose(b, (expected / 2 + 3 * 255 / 8), atol=1e-3)
    assert "float32 values: -3 is taken as black, 5 as white" in capsys.readouterr().err
    a, b = opened(8 * values.astype("float32") - 3, values.astype("float32"), clean=True)
    assert torch.allclose(b, expected, atol=1e-3) and torch.allclose(
        a, (8 * expected - 765).clamp(-255, 510), atol=1e-2
    )


@pytest.mark.parametrize(
    ("dtype", "kind"), [(">u2", "uint16"), (">f4", "float32"), ("float16", "float32"), ("float64", "float32")]
)
def test_ranges_are_remembered_for_the_types_that_pictures_have(tmp_path, capsys, dtype, kind):
    """In training on arrays of any floating type or byte order; `denoise` and `evaluate` then find them."""
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    values = numpy.linspace(0, 4000, 2 * 9 * 7).reshape(2, 9, 7)
    for name, part in (("a", values), ("dark", values / 5)):
        numpy.save(tmp_path / f"{name}.npy", part.astype(dtype))
    tifffile.imwrite(tmp_path / "dark.tif", (values[0] / 5).astype(kind))
    training = pairs.Scale()
    pairs.open_pairs(tmp_path / "a.npy", tmp_path / "a.npy", scale=training)
    assert training.used == {kind: (0, 4095 if kind == "uint16" else 4000)}
    for name in ("dark.npy", "dark.tif"):
        scale = pairs.Scale(trained=training.used)
        pairs.open_pairs(tmp_path / name, tmp_path / name, scale=scale).pair(0)
        assert scale.used == training.used
        said = capsys.readouterr().err
        assert f"{kind} values: 0 is taken as black" in said and "as in the training of the weights" in said


def test_the_white_of_either_byte_order_is_compared(tmp_path):
    numpy = pytest.importorskip("numpy")
    for name, high in (("a", 40_000), ("b", 1_000)):
        numpy.save(tmp_path / f"{name}.npy", numpy.linspace(0, high, 2 * 9 * 7).reshape(2, 9, 7).astype(">u2"))
    with pytest.raises(ValueError, match="up to 40000, others only up to 1023"):
        pairs.open_pairs(tmp_path / "a.npy", tmp_path / "b.npy", clean=True)


def test_ranges_that_do_not_go_together_are_refused(tmp_path):
    numpy = pytest.importorskip("numpy")
    values = numpy.linspace(0, 1, 2 * 9 * 7).reshape(2, 9, 7)
    save(tmp_path, "a", (255 * values).astype("float32"))
    save(tmp_path, "b", (255 * values).astype("uint8"))
    with pytest.raises(ValueError, match=r"0\.tif: floating values from 0 to .* beside uint8.*--range"):
        pairs.open_pairs(tmp_path / "a", tmp_path / "b", clean=True).pair(0)
    first, second = pairs.open_pairs(tmp_path / "b", tmp_path / "a", clean=True).pair(1)  # white is 255 in both
    assert (first - second).abs().max() < 1
    save(tmp_path, "c", (4000 * values).astype("float32"))
    for clean in (True, False):
        with pytest.raises(ValueError, match=r"0\.tif: floating values from 0 to 4000 beside uint8.*--range"):
            pairs.open_pairs(tmp_path / "b", tmp_path / "c", clean=clean).pair(0)
    first, second = pairs.open_pairs(tmp_path / "a", tmp_path / "b", scale=pairs.Scale((0, 255))).pair(1)
    assert (first - second).abs().max() < 1
    save(tmp_path, "a", values.astype("float32"))  # within [0, 1]
    first, second = pairs.open_pairs(tmp_path / "a", tmp_path / "b", clean=True).pair(1)
    assert (first - second).abs().max() < 1
    save(tmp_path, "a", (40_000 * values).astype("uint16"))
    save(tmp_path, "b", (1_000 * values).astype("uint16"))
    with pytest.raises(ValueError, match="up to 40000, others only up to 1023"):
        pairs.open_pairs(tmp_path / "a", tmp_path / "b", clean=True).pair(1)


def test_sixteen_bits_beside_clean_bytes_have_one_range(tmp_path, capsys):
    numpy = pytest.importorskip("numpy")
    bright = numpy.linspace(0, 1, 3 * 9 * 7).reshape(3, 9, 7)
    bright[0] *= 0.1  # alone, it would be taken for one of 10 bits
    save(tmp_path, "a", (bright * 4095).round().astype("uint16"))
    save(tmp_path, "b", (bright * 255).round().astype("uint8"))
    first, second = pairs.open_pairs(tmp_path / "a", tmp_path / "b", clean=True).pair(0)
    assert (first - second).abs().max() < 1
    assert "uint16 values: 0 is taken as black, 4095 as white" in capsys.readouterr().err


def test_a_floating_file_far_beyond_those_looked_at_is_named(tmp_path, monkeypatch):
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(pairs, "RANGED", 2)
    values = numpy.linspace(2, 9, 4 * 9 * 7).reshape(4, 9, 7).astype("float32")
    values[3] *= 20
    save(tmp_path, "a", values)
    save(tmp_path, "b", values)
    opened = pairs.open_pairs(tmp_path / "a", tmp_path / "b")
    opened.pair(0)
    with pytest.raises(ValueError, match=r"3\.tif: its values reach from .*, others only from .*--range"):
        opened.pair(3)


def test_what_is_no_stack_is_said(tmp_path):
    numpy, tifffile = pytest.importorskip("numpy"), pytest.importorskip("tifffile")
    values = numpy.zeros((5, 6, 8), "uint8")
    tifffile.imwrite(tmp_path / "white.tif", values, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "alpha.tif", numpy.zeros((5, 6, 8, 4), "uint8"), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as file:
        for side in (6, 7):
            file.write(values[0, :side, :side], photometric="minisblack")
    for name, reason in (("white", "MINISWHITE"), ("alpha", "RGB with 4"), ("sizes", "differ in size")):
        path = tmp_path / f"{name}.tif"
        with pytest.raises(ValueError, match=reason):
            pairs.open_pairs(path, path)
    numpy.save(tmp_path / "a.npy", numpy.zeros((64, 60, 3), "uint8"))
    with pytest.raises(ValueError, match=r"one picture \(H, W, C\)"):
        pairs.open_pairs(tmp_path / "a.npy", tmp_path / "a.npy")


def test_tensors_in_0_to_1_are_asked_for_their_range(tmp_path):
    torch.save((torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)), tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="--range 0 1"):
        pairs.open_pairs(tmp_path / "a.pkl")
    assert pairs.open_pairs(tmp_path / "a.pkl", scale=pairs.Scale((0, 1))).pair(0)[0].max() > 200


def test_pictures_without_a_partner_are_counted_and_double_names_refused(tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    for name in ("a/x.png", "b/x.png", "a/y.png", "b/z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert len(pairs.open_pairs(tmp_path / "a", tmp_path / "b")) == 1
    assert "2 pictures have no namesake" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "a" / "x.tif")
    with pytest.raises(ValueError, match="have one name"):
        pairs.open_pairs(tmp_path / "a", tmp_path / "b")


def test_names_of_either_unicode_form_are_paired(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for folder, form in (("a", "NFC"), ("b", "NFD")):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / folder / unicodedata.normalize(form, "caf\u00e9.png"))
    opened = pairs.open_pairs(tmp_path / "a", tmp_path / "b")
    assert [opened.name(number) for number in range(len(opened))] == ["caf\u00e9"]


def test_exposure_is_not_told_from_a_few_pixels():
    for seed in range(5):
        first, second = (part[:, :, :4, :4] for part in pair(40, seed=seed))
        assert inspect.on_exposure(pairs.PairsInMemory(first, second), 40).verdict == inspect.FINE


def test_a_white_balance_that_drifts_is_seen(tmp_path):
    first, second = pair(seed=1), pair(seed=2)
    shift = torch.tensor([4.0, 0, -4]).view(3, 1, 1)  # 0 in the mean over the channels
    stack = pairs.PairsInMemory(torch.cat([first[0], second[0]]), torch.cat([first[1] + shift, second[1] - shift]))
    finding = inspect.on_exposure(stack, 25)
    assert finding.verdict != inspect.FINE and finding.values["drift"] == pytest.approx(4, abs=0.5)
    assert finding.values["mean"] == pytest.approx(0, abs=0.5)


def test_no_more_squares_than_asked_for():
    several = pairs.PairsInMemory(*torch.arange(700.0).view(1, 700, 1, 1, 1).expand(2, 700, 1, 32, 32))
    squares = pairs.random_squares(several, 16, 1024)[0]
    assert len(squares) == 1024 and len(squares[:, 0, 0, 0].unique()) == 700  # some of each pair


def test_stripes_along_either_axis_are_told():
    assert inspect.on_stripes(0.2, 0.0).verdict == inspect.on_stripes(0.0, 0.2).verdict == "warning"
    assert inspect.on_stripes(0.0, 0.0).verdict == "fine"
