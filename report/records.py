# ruff: noqa: RUF001, RUF002 (minus and multiplication signs are meant)
"""What was recorded, and the facts that the reports, the figures and the README take from it. Needs nothing installed.

    rows(project)      trainings: every line of results/project_1*.jsonl or project_2*.jsonl
    measured()         {name: line of results/measured.jsonl}
    field()            results/field.json: figures that others published or that were measured outside of this folder
    facts(number)      {name: text} of report `number`, every number that its source may show
    tables(number)     {name: rows of text}

A file that is dropped into `results/` is read by the next build.
"""

import json
import statistics
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
BASE = 7800  # pairs of the comparisons of variants
ONE, BOTH = "one direction", "both directions"  # of the network that variants change; they differ from ONE


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(project):
    """All trainings of a project, each with the file it stands in; two trainings of one file share a machine."""
    found = []
    for path in sorted(RESULTS.glob(f"project_{project}*.jsonl")):
        found += [row | {"file": path.stem} for row in read_lines(path)]
    return found


def measured():
    return {row["measurement"]: row for row in read_lines(RESULTS / "measured.jsonl")}


def field():
    return json.loads((RESULTS / "field.json").read_text())


# ---------------------------------------------------------------------------------------------- statistics


class Trainings:
    """The trainings of one project, by variant, pairs and epochs."""

    def __init__(self, project):
        self.rows = rows(project)

    def of(self, variant, pairs=BASE, epochs=1, key="single"):
        """{seed: value}; of a training that was repeated elsewhere, the first."""
        found = {}
        for row in self.rows:
            if (row["variant"], row["pairs"], row["epochs"]) == (variant, pairs, epochs) and key in row:
                found.setdefault(row["seed"], row[key])
        return found

    def differences(self, variant, pairs=BASE, base=ONE, key="single", epochs=1):
        """Differences in dB over the seeds that both have in the same file."""
        scores = {}
        for row in self.rows:
            if row["variant"] in (variant, base) and row["pairs"] == pairs and row["epochs"] == epochs and key in row:
                scores.setdefault((row["file"], row["seed"]), {})[row["variant"]] = row[key]
        return [both[variant] - both[base] for both in scores.values() if len(both) == 2]

    def repeated(self, variant, pairs):
        """The numbers of passes, more than one, over so many pairs."""
        return sorted({r["epochs"] for r in self.rows if (r["variant"], r["pairs"]) == (variant, pairs)} - {1})


def mean(values):
    return statistics.fmean(values)


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else None


def spread(values, digits=2, sign=""):
    """Mean and, of several values, standard deviation: 25.73 ± 0.02; three digits where that would be 0.00."""
    values = list(values)
    wide = deviation(values)
    if wide is not None and wide < 0.5 * 10**-digits:
        digits = 3
    text = minus(f"{mean(values):{sign}.{digits}f}")
    if wide is None:
        return text
    return f"{text} ± {wide:.{digits}f}" if wide >= 0.0005 else f"{text} ± < 0.001"


# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
STUDENT = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), start=1))


def verdict(differences):
    """Whether the mean is not 0, by Student's two-sided t test at the level of 5 %."""
    count = len(differences)
    if count < 2:
        return "one seed"
    clear = abs(mean(differences)) > STUDENT[count - 1] * deviation(differences) / count**0.5
    return ("better" if mean(differences) > 0 else "worse") if clear else "no clear difference"


def minus(text):
    return text.replace("-", "−")


def error(pair, digits):
    return f"{minus(f'{pair[0]:.{digits}f}')} ± {pair[1]:.{digits}f}"


def count(number):
    return f"{number:,}"


def millions(number, digits=2):
    return f"{number / 1e6:.{digits}f}"


def scientific(number):
    """3e-16 as 3 × 10^−16 in Unicode."""
    digits, exponent = f"{number:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digits} × 10{raised}"


# ---------------------------------------------------------------------------------------------- report 1

ABLATIONS = [  # (variant, how the figure calls it), by what they change
    ("not equivariant", "not equivariant"),
    ("not equivariant, flips alone", "not equivariant, flips only"),
    ("Adam alone 4e-3", "Adam alone, its best rate"),
    ("constant rate", "constant learning rate"),
    ("no averaging", "no averaged weights"),
    ("no pixel swap", "no pixel swap"),
    ("no negatives", "no negatives"),
    ("images weighted alike", "images weighted alike"),
    ("leaky ReLU", "LeakyReLU"),
    ("GELU", "GELU"),
    ("SiLU", "SiLU"),
    ("pre-activation", "pre-activation"),
    ("gates", "gates"),
    ("inputs x1", "inputs × 1"),
    ("inputs x8", "inputs × 8"),
    ("batch 8", "batch 8"),
    ("batch 32", "batch 32"),
    ("flat, 4 blocks", "full resolution only"),
    ("three levels", "three levels"),
    ("half of the photos", "half of the photographs"),
    ("an eighth of the photos", "an eighth of the photographs"),
    ("means of 7 noisy targets", "means of 7 draws as targets"),
    ("clean targets", "clean targets"),
]
WIDTHS = [("width 24", 24), ("width 32", 32), (ONE, 40), ("width 48", 48), ("width 64", 64)]
DRAWS = [
    (ONE, 1),
    ("means of 3 noisy targets", 3),
    ("means of 7 noisy targets", 7),
    ("means of 15 noisy targets", 15),
]
PAIRS = (500, 1000, 2000, 4000, 7800, 15600, 50000)
MUON = [("Muon 1e-3", 1e-3), ("Muon 2e-3", 2e-3), (ONE, 4e-3), ("Muon 8e-3", 8e-3), ("Muon 1.6e-2", 1.6e-2)]
ADAM = [(f"Adam alone {text}", float(text)) for text in ("1e-3", "2e-3", "4e-3", "8e-3")]
BATCHES = [("batch 8", 8), (ONE, 16), ("batch 32", 32)]
FEW, AGAIN = (104, 500, 1000), "few pairs over again"
SHORT = {"images weighted alike": "weighting", "no pixel swap": "swap"}  # where there is little room
SETTINGS = ("no pixel swap", "images weighted alike", "no averaging", "no negatives")  # of the recipe
RECIPE_RUNS = [  # many pairs seen once, few pairs seen often
    {"pairs": pairs, "epochs": epochs, "key": key}
    for pairs, epochs in ((50_000, 1), (1_000, 10))
    for key in ("single", "ensemble")
]
UNET, NOISE2NOISE = "the original's U-Net and recipe", "the original's Noise2Noise network and recipe"
QUOTED = (  # the ablations whose differences the text quotes
    "not equivariant",
    "not equivariant, flips alone",
    "no pixel swap",
    "no averaging",
    "no negatives",
    "images weighted alike",
)
CHOICES = {  # of the original for its U-Net: variant, and how the table calls it
    "the original's U-Net, our recipe": "our recipe",
    "the original's U-Net, batch normalisation": "batch norm, batch 8",
    "the original's U-Net, batch normalisation, batch 32": "batch norm and batch 32",
    "the original's U-Net, max pooling": "max pooling",
    "the original's U-Net, ReLU": "ReLU, not LeakyReLU",
    "the original's U-Net, no flips": "no flips",
    "the original's U-Net, noise on half of the inputs": "half of the inputs noisier",
    "the original's U-Net, half of the inputs blurred": "half of the inputs blurred",
}


def first_facts():
    """All numbers that Report 1 states, by name."""
    data, known, original = Trainings(1), measured(), field()["original"]
    result = noise_facts(known["noise"], known["sampling"]) | score_facts(known["scores"]) | shipped_facts(known)
    result |= ablation_facts(data) | rate_facts(data) | cost_facts(data) | pairs_facts(data) | width_facts(data)
    result |= run_facts(data) | quiet_facts(known["little noise"]) | original_facts(data, original)
    result |= grid_facts(data, original) | paper_facts() | classics_facts(known["classics"])
    return result | {"scenes": count(known["pictures"]["scenes"])}


def score_facts(scores):
    of_each = sorted(scores["of_each_1"])
    return {
        "noise.least": f"{min(scores['input_of_each']):.1f}",
        "noise.most": f"{max(scores['input_of_each']):.1f}",
        "images": count(scores["images"]),
        "shipped": f"{scores['passes_1'][0]:.2f}",
        "shipped.ensemble": f"{scores['ensemble_1']:.2f}",
        "shipped.worse": made_worse(scores, 1),
        "passes.two": f"{scores['passes_1'][1]:.2f}",
        "passes.five": f"{scores['passes_1'][4]:.2f}",
        "best": f"{of_each[-1]:.1f}",
        "median": f"{statistics.median(of_each):.1f}",
        "worst": f"{of_each[0]:.1f}",
    }


def shipped_facts(known):
    network, noise = known["networks"]["shipped_1"], known["noise"]
    return {
        "shipped.pairs": millions(network["pairs_seen"], 1),
        "shipped.width": str(network["sizes"]["width"]),
        "shipped.blocks": str(network["sizes"]["blocks"]),
        "input": f"{noise['psnr']:.2f}",
        "pooled": f"{noise['psnr_pooled']:.2f}",
        "published.single": f"{published(1)['single']:.2f}",
        "published.ensemble": f"{published(1, 'ensemble')['ensemble']:.2f}",
    }


def ablation_facts(data):
    result = {f"diff.{variant}": spread(data.differences(variant), 2, "+") for variant in QUOTED}
    plain, normed = ("the original's U-Net, Adam 3e-4, batch 32", "the original's U-Net, batch normalisation, batch 32")
    batches = data.differences(normed, base=plain)
    return result | {
        "ours.base": spread(data.of("ours").values()),
        "one.base": spread(data.of(ONE).values()),
        "norm.batch": spread(batches, 2, "+"),
        "norm.n": str(len(batches)),
        "diff.clean.wide": gaps(data),
        "n.base": str(len(data.differences(ABLATIONS[0][0]))),
        "n.settings": str(len(data.differences(SETTINGS[0], **RECIPE_RUNS[0]))),
        "late.SiLU": spread(data.differences("SiLU", max(PAIRS)), 2, "+"),
        "late.gates": spread(data.differences("gates", max(PAIRS)), 2, "+"),
        "n.late": str(len(data.differences("SiLU", max(PAIRS)))),
    }


def rate_facts(data):
    """Of the learning rates and batch sizes of our network."""
    best = max(ADAM, key=lambda entry: mean(data.of(entry[0]).values()))
    inside = best[1] != ADAM[-1][1] and best_of(data, MUON) != MUON[-1][1]
    return {
        "diff.batch": spread(data.differences("batch 8"), 2, "+"),
        "diff.batch.verdict": verdict(data.differences("batch 8")),
        "diff.muon.adam": spread([-value for value in data.differences(best[0])]),
        "lr.adam.best": f"{best[1]:g}",
        "lr.muon.best": f"{best_of(data, MUON):g}",
        "lr.edges": "inside the ranges tried" if inside else "at the edge of the ranges tried",
        "n.rates": " or ".join(str(n) for n in sorted({len(data.of(name)) for name, _ in MUON + ADAM + BATCHES})),
    }


def cost_facts(data):
    """dB that a change costs."""
    variants = {
        "photos": "an eighth of the photos",
        "recipe": "the original's recipe",
        "unet": "the original's U-Net, our recipe",
        "narrow": "width 24",
    }
    costs = {
        f"cost.{name}": spread(-value for value in data.differences(variant)) for name, variant in variants.items()
    }
    return costs | {"cost.noisy": spread(data.differences("clean targets"))}


def pairs_facts(data):
    """Of trainings on few and many pairs."""
    small, most = RECIPE_RUNS[-1], max(PAIRS)
    result = {
        "small": spread(data.of(ONE, small["pairs"], small["epochs"]).values()),
        "pairs.base": count(BASE),
        "pairs.few": count(min(PAIRS)),
        "pairs.all": count(most),
        "pairs.small": count(small["pairs"]),
        "epochs.small": str(small["epochs"]),
        "few": spread(data.of(BOTH, min(PAIRS)).values()),
        "many": spread(data.of(BOTH, most).values()),
        "all": spread(data.of("ours", most).values()),
        "all.seconds": f"{mean(data.of('ours', most, key='seconds').values()):.0f}",
        "both": spread(data.differences(BOTH, most), 2, "+"),
        "both.base": spread(data.differences(BOTH), 2, "+"),
        "both.seconds": f"{mean(data.differences(BOTH, most, key='seconds')):.0f}",
        "equal.pairs": count(field()["eight_thousand"]["pairs"]),
        "equal": "; ".join(
            f"{row['who']}, {row['psnr']:.2f} dB in {row['seconds']} s" for row in field()["eight_thousand"]["rows"]
        ),
    }
    for pairs, *_, gain in few_table(data)[:1]:
        result |= {"few.pairs": pairs, "few.gain": gain}
    return result


def width_facts(data):
    wider = data.differences(WIDTHS[-1][0], base=WIDTHS[-2][0])
    return {
        "base.width": base_width(),
        "width.small": spread(data.of("width 24").values()),
        "width.large": spread(data.of("width 64").values()),
        "width.wide": str(WIDTHS[-2][1]),
        "width.last": spread(wider, 2, "+"),
        "width.verdict": verdict(wider),
        "width.late.small": spread(data.of("width 24", PAIRS[-1]).values()),
        "width.late.large": spread(data.of("width 64", PAIRS[-1]).values()),
    }


def run_facts(data):
    """How much was trained for the report."""
    paper = paper_rows()
    return {
        "variants": count(len({r["variant"] for r in data.rows} | {(r["experiment"], r["target"]) for r in paper})),
        "runs": count(len(data.rows) + len(paper)),
        "hours": f"{sum(row['seconds'] for row in data.rows + paper) / 3600:.1f}",
    }


def quiet_facts(little):
    """Of training on little noise."""
    return {
        "quiet": f"{little['quiet']:g}",
        "quiet.pairs": count(little["pairs"]),
        "quiet.seeds": str(little["seeds"]),
        "quiet.level": "3",
        "quiet.full": f"{round(mean(little['gains']['3']['full']), 1) + 0.0:.1f}",  # not minus zero
        "quiet.decided": spread(little["gains"]["3"]["decided"], 1),
    }


def original_facts(data, original):
    """Of the original report, its networks and its choices."""
    result = {f"original.{name}": str(original[name]) for name in ("epochs", "lr", "batch", "machines", "augmented")}
    for name, variant in (("unet", UNET), ("n2n", NOISE2NOISE)):
        result[f"lead.{name}"] = f"{-mean(data.differences(variant)):.2f}"
        result[f"mean.{name}"] = f"{mean(data.of(variant).values()):.2f}"
    variant, label = next((variant, label) for variant, label in CHOICES.items() if "batch norm" in label)
    result[f"choice.{label}"] = spread(data.differences(variant, base=UNET), 2, "+")
    result["n.choices"] = str(len(data.differences(next(iter(CHOICES)), base=UNET)))
    return result


def classics_facts(classics):
    return {
        "classics.images": count(classics["images"]),
        "classics.best": f"{max(entry['psnr'] for entry in classic_rows(classics).values()):.2f}",
        "classics.ours": f"{classics['project 1']['psnr']:.2f}",
    }


def search(data, network):
    """{variant: (learning rate, batch size)} of the original's search with one of its networks."""
    start = f"the original's {network}, Adam "
    names = {row["variant"] for row in data.rows if row["variant"].startswith(start)}
    settings = {name: name.removeprefix(start).split(", batch ") for name in names if data.of(name)}
    found = {name: (float(rate), int(batch)) for name, (rate, batch) in settings.items()}
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def grid(data, network):
    """{batch size: [(learning rate, [dB of the seeds])]} of the original's search; empty without such trainings."""
    found = {}
    for variant, (rate, batch) in search(data, network).items():
        found.setdefault(batch, []).append((rate, list(data.of(variant).values())))
    return dict(sorted(found.items()))


def best_setting(data, network):
    """The variant of the original's search that did best."""
    return max(search(data, network), key=lambda variant: mean(data.of(variant).values()))


def grid_facts(data, original):
    result, seeds = {}, set()
    for key, network in (("unet", "U-Net"), ("n2n", "Noise2Noise network")):
        best, settings = best_setting(data, network), search(data, network)
        rate, batch = settings[best]
        gain = data.differences(
            best, base=f"the original's {network}, Adam {original['lr']}, batch {original['batch']}"
        )
        result |= {f"grid.{key}.rate": f"{rate:g}", f"grid.{key}.batch": str(batch)}
        result |= {f"grid.{key}.best": spread(data.of(best).values()), f"grid.{key}.gain": spread(gain, 2, "+")}
        result[f"grid.{key}.lead"] = f"{mean(data.of(ONE).values()) - mean(data.of(best).values()):.2f}"
        seeds |= {len(data.of(variant)) for variant in settings}
    return result | {"grid.n": " or ".join(map(str, sorted(seeds)))}


def form_table(data, original):
    """The original's table of results; below each line, the same training here, and that with the best settings."""
    found, epochs = [], original["epochs"]

    def here(label, variant, rate, batch):
        scores, seconds = (data.of(variant, max(PAIRS), epochs, key).values() for key in ("single", "seconds"))
        return [[label, rate, str(batch), spread(scores), f"{mean(seconds) / 60 / epochs:.1f}"]] if scores else []

    settings = original["lr"], original["batch"]
    for label, key, network, variant in (
        ("U-Net", "unet", "U-Net", UNET),
        ("Noise2Noise", "noise2noise", "Noise2Noise network", NOISE2NOISE),
    ):
        best = best_setting(data, network)
        rate, batch = search(data, network)[best]
        found += [
            [f"{label}, as reported", *map(str, settings), *(str(original[key][of]) for of in ("psnr", "minutes"))]
        ]
        found += here(f"{label}, here", variant, *settings)
        found += here(f"{label}, best settings", best, f"{rate:.0e}".replace("e-0", "e-"), batch)
    return found


def paper_rows():
    return read_lines(RESULTS / "paper.jsonl")


def paper_results(pick):
    """{experiment: {targets: {seed: row}}} of the Noise2Noise paper's experiments; those that are complete.

    `pick` chooses one of the numbers of crops: `min` the short trainings, `max` the long ones.
    """
    rows, found = paper_rows(), {}
    crops = pick(row["pairs"] for row in rows)
    for row in rows:
        if row["pairs"] == crops:
            found.setdefault(row["experiment"], {}).setdefault(row["target"], {})[row["seed"]] = row
    return {name: targets for name, targets in found.items() if {"noisy", "clean"} <= targets.keys()}


def paper_differences(targets):
    """dB of noisy targets against clean ones, of the seeds that both have."""
    noisy, clean = targets["noisy"], targets["clean"]
    return [noisy[seed]["single"] - clean[seed]["single"] for seed in noisy if seed in clean]


PAPER_NOISES = {
    "Gaussian 0 to 50, blind": "blind 0–50",
    "Poisson, 30 photons": "Poisson 30",
    "Bernoulli, half": "Bernoulli ½",
    "text, a quarter": "text ¼",
    "impulses, half": "impulses ½",
}


def paper_table():
    """Noise, loss, dB of the noisy photographs and after long trainings on noisy targets, on clean ones, the difference
    of these, that after short trainings, and L2 on noisy targets where that is not the loss."""
    short, found = paper_results(min), []
    for name, targets in paper_results(max).items():
        first = next(iter(targets["noisy"].values()))
        scores = {target: f"{mean(row['single'] for row in seeds.values()):.2f}" for target, seeds in targets.items()}
        cells = [PAPER_NOISES.get(name, name), first["loss"].replace("l", "L"), f"{first['noisy']:.2f}"]
        cells += [scores["noisy"], scores["clean"]]
        cells += [spread(paper_differences(trainings), 2, "+") for trainings in (targets, short[name])]
        found.append([*cells, scores.get("noisy, L2", "—")])
    return found


def loss_gain(results, experiment):
    """dB that the loss of an experiment is better than L2, both by noisy targets."""
    own, l2 = (results[experiment][targets] for targets in ("noisy", "noisy, L2"))
    return spread(own[seed]["single"] - l2[seed]["single"] for seed in own if seed in l2)


def paper_facts():
    known, found, long, short = field(), {}, paper_results(max), paper_results(min)
    for length, results in (("long", long), ("short", short)):
        every = [row for targets in results.values() for seeds in targets.values() for row in seeds.values()]
        of_l2 = [targets for targets in results.values() if next(iter(targets["noisy"].values()))["loss"] == "l2"]
        means = [mean(paper_differences(targets)) for targets in of_l2]
        found |= {
            f"paper.{length}.crops": count(every[0]["pairs"]),
            f"paper.{length}.minutes": f"{mean(row['seconds'] for row in every) / 60:.0f}",
            f"paper.{length}.least": minus(f"{max(means):+.2f}"),
            f"paper.{length}.most": minus(f"{min(means):+.2f}"),
        }
    return found | {
        "paper.photos": str(paper_rows()[0]["photos"]),
        "paper.short.n": str(len(paper_differences(short["Gaussian 25"]))),
        "paper.long.n": str(len(paper_differences(long["Gaussian 25"]))),
        "paper.text": loss_gain(long, "text, a quarter"),
        "paper.impulses": loss_gain(long, "impulses, half"),
        "paper.behind": f"{-mean(paper_differences(long['impulses, half'])):.2f}",
        "paper.published": f"{known['paper']['psnr']:.2f}",
        "paper.set": known["paper"]["photos"],
        **{f"paper.{name.split(',')[0]}": f"{values[1]:.2f}" for name, values in known["photographs"].items()},
    }


def noise_facts(noise, sampling):
    neighbours, course = noise["neighbours"].values(), field()["noise"]
    return {
        "course.pairs": count(course["pairs"]),
        "course.neighbours": error(course["neighbours"], 2),
        "course.channels": " to ".join(f"{value:.2f}" for value in course["channels"]),
        "course.input": f"{course['input']:.2f}",
        "course.variance": f"{course['variance']:.4f}",
        "noise.neighbours": f"{max(abs(value) for value, _ in neighbours):.3f}",
        "noise.neighbours.error": f"{max(value for _, value in neighbours):.3f}",
        "noise.channels.low": f"{min(value for value, _ in noise['channels'].values()):.2f}",
        "noise.channels.high": f"{max(value for value, _ in noise['channels'].values()):.2f}",
        "noise.mean": error(noise["mean_grey"], 2),
        "noise.variance": f"{noise['variance']:.4f}",
        "noise.flat": f"{noise['by_local_variance'][0][1]:.4f}",
        "noise.busy": f"{noise['by_local_variance'][-1][1]:.3f}",
        "noise.ratio": f"{noise['by_local_variance'][-1][1] / noise['by_local_variance'][0][1]:.0f}",
        "noise.slope": f"{sampling['slope']:.2f}",
        "noise.scenes": str(sampling["scenes"]),
        "noise.draws": str(sampling["draws"]),
    }


def made_worse(scores, project):
    """The beginning of a sentence on the images that come out worse than they went in."""
    worse, images = scores[f"made_worse_{project}"], f"of the {count(scores['images'])} images"
    return f"Not one {images} comes" if worse == 0 else f"{count(worse)} {images} {'comes' if worse == 1 else 'come'}"


def gaps(data):
    """Clean against noisy targets at every number of pairs where both were trained: smallest to largest."""
    differences = [mean(found) for pairs in PAIRS if (found := data.differences("clean targets", pairs))]
    return f"{min(differences):.2f} to {max(differences):.2f}"


def base_width():
    """Width of the network that variants change."""
    return str(next(width for name, width in WIDTHS if name == ONE))


def best_of(data, variants, pairs=BASE):
    return max(variants, key=lambda entry: mean(data.of(entry[0], pairs).values()))[1]


def published(project, key="single"):
    return max((row for row in field()["published"] if row["project"] == project and key in row), key=lambda r: r[key])


def classic_rows(classics):
    return {name: entry for name, entry in classics.items() if isinstance(entry, dict) and "best" in entry}


def first_tables():
    data, known = Trainings(1), measured()
    networks, scores, original = known["networks"], known["scores"], field()["original"]

    def trained(label, variant, pairs, size, epochs=1):
        single, ensemble = (data.of(variant, pairs, epochs, key).values() for key in ("single", "ensemble"))
        return [label, size, count(pairs), str(len(single)), spread(single), spread(ensemble)]

    size = {name: millions(entry["parameters"]) for name, entry in networks.items() if isinstance(entry, dict)}
    base = millions(max(data.of(ONE, key="parameters").values()))
    results = [
        trained("original's U-Net", UNET, BASE, size["unet"]),
        trained("original's Noise2Noise", NOISE2NOISE, BASE, size["noise2noise"]),
        trained("ours", "ours", BASE, size["ours"]),
        trained("base", ONE, BASE, base),
        trained("base, clean targets", "clean targets", BASE, base),
        trained("ours", "ours", max(PAIRS), size["ours"]),
        trained("base, both directions", BOTH, max(PAIRS), base),
        trained("base", ONE, max(PAIRS), base),
        trained("base, clean targets", "clean targets", max(PAIRS), base),
        *(
            trained(f"base, {epochs} passes", ONE, max(PAIRS), base, epochs)
            for epochs in data.repeated(ONE, max(PAIRS))[-1:]
        ),
        [
            "ours, shipped",
            size["shipped_1"],
            "—",
            "—",
            f"{scores['passes_1'][0]:.2f}",
            f"{scores['ensemble_1']:.2f}",
        ],
    ]
    networks_rows = [
        [label, millions(networks[key]["parameters"]), f"{networks[key]['multiply_adds'] / 1024 / 1000:.0f}"]
        for label, key in (
            ("original's U-Net", "unet"),
            ("original's Noise2Noise net", "noise2noise"),
            ("ours", "ours"),
            ("ours, shipped", "shipped_1"),
        )
    ]
    others = [
        [
            f"{row['who']}, {row['what'].partition(',')[0]}",
            f"{row['parameters']:.2f}",
            "—",
            "—",
            *(f"{row[key]:.2f}" if key in row else "—" for key in ("single", "ensemble")),
        ]
        for row in field()["published"]
        if row["project"] == 1
    ]
    return {
        "results": results + others,
        "networks": networks_rows,
        "classics": classics_table(known["classics"]),
        "original": original_table(data, known, original),
        "settings": [[name, *cells] for name, _, *cells in settings_table(data, SETTINGS, *RECIPE_RUNS, digits=2)],
        "few": few_table(data),
        "form": form_table(data, original),
        "paper": paper_table(),
    }


CLASSIC_PARAMETERS = {
    "median filter": ("size",),
    "Gaussian filter": ("σ",),
    "bilateral filter": ("σ of colour", "of space"),
    "non-local means": ("patch", "h"),
    "wavelet shrinkage": ("σ",),
    "BM3D": ("σ",),
    "total variation": ("weight",),
}


def classics_table(classics):
    """ValueError where the best parameter is the smallest or the largest tried: a wider range may have a better one."""
    found = [["noisy images", "—", f"{classics['input']:.2f}"]]
    for name, entry in sorted(classic_rows(classics).items(), key=lambda item: item[1]["psnr"]):
        if entry["edge"]:
            raise ValueError(f"{name} is best at {entry['best']}, at the edge of what was tried: try more")
        best = entry["best"] if isinstance(entry["best"], list) else [entry["best"]]
        settings = [f"{label} {value:g}" for label, value in zip(CLASSIC_PARAMETERS[name], best, strict=True)]
        found.append([name, ", ".join(settings), f"{entry['psnr']:.2f}"])
    mine = ("project 2", "the second report's network"), ("project 1", "ours, shipped, single pass")
    return found + [[label, "—", f"{classics[name]['psnr']:.2f}"] for name, label in mine]


def settings_table(data, variants, *columns, digits=3):
    """Settings of the recipe against ours; a column is what `Trainings.differences` takes. Empty without trainings."""
    found = []
    for variant in variants:
        differences = [data.differences(variant, **column) for column in columns]
        if all(differences):
            cells = (spread(values, digits, "+") for values in differences)
            found.append([SHORT.get(variant, variant.removeprefix("no ")), str(len(differences[0])), *cells])
    return found


def few_table(data):
    """Few pairs seen once, and passed over again as `Recipe.min_pairs` says; empty without such trainings."""
    found = []
    for pairs in FEW:
        once, again = (list(data.of(name, pairs).values()) for name in (BOTH, AGAIN))
        if once and again:
            gain = data.differences(AGAIN, pairs, base=BOTH)
            found.append([count(pairs), spread(once), spread(again), str(len(gain)), spread(gain, 2, "+")])
    return found


def original_table(data, known, original):
    """What the original report chose or claimed, and what was found here."""

    def judged(differences):
        digits = 2 if abs(mean(differences)) >= 0.025 else 3
        return f"{verdict(differences)}: {spread(differences, digits, '+')}"

    def to_ours(variant):
        return judged(data.differences(variant))

    scores = known["scores"]["passes_1"]
    gap = original["noise2noise"]["psnr"] - original["unet"]["psnr"]
    lost = " and ".join(minus(f"{mean(data.differences(variant)):.2f}") for variant in (UNET, NOISE2NOISE))
    return [
        [f"Noise2Noise over U-Net: {gap:.2f} dB", judged(data.differences(NOISE2NOISE, base=UNET))],
        ["both networks with its recipe", f"{lost} against the base"],
        ["its recipe, all of it", to_ours("the original's recipe")],
        ["constant learning rate", to_ours("constant rate")],
        [f"batch {original['batch']}, not 16", to_ours("batch 8")],
        ["flips, not equivariance", to_ours("not equivariant, flips alone")],
        ["LeakyReLU, not ReLU", to_ours("leaky ReLU")],
        ["inputs in [−0.5, 0.5], not ×4", to_ours("inputs x1")],
        *(
            [f"its U-Net: {label}", judged(found)]
            for variant, label in CHOICES.items()
            if (found := data.differences(variant, base=UNET))
        ),
        ["recursive evaluation", f"{scores[0]:.2f}, the second time {scores[1]:.2f}"],
    ]


# ---------------------------------------------------------------------------------------------- report 2

SHAPES = ("kernel 2", "kernel 6", "nearest upsampling, kernel 3", "64 / 128 channels", "128 / 256 channels")


def sweep_rates(data):
    """{optimiser: [(rate, [dB of each seed])]}."""
    found = {}
    for name in ("SGD", "momentum", "Adam", "Muon"):
        rates = sorted(
            {
                float(v.split()[1])
                for r in data.rows
                if (v := r["variant"]).startswith(f"{name} ") and r["pairs"] == BASE and len(v.split()) == 2
            }
        )
        found[name] = [(rate, list(data.of(f"{name} {rate:g}").values())) for rate in rates]
    return {name: points for name, points in found.items() if points}


def second_facts():
    data, known = Trainings(2), measured()
    scores, oracle, differences = known["scores"], known["oracle"], known["differences"]
    rounding, bench, networks = known["rounding"], known["benchmark"], known["networks"]
    result = {
        "images": count(scores["images"]),
        "input": f"{mean(scores['input_of_each']):.2f}",
        "shipped": f"{scores['passes_2'][0]:.2f}",
        "shipped.ensemble": f"{scores['ensemble_2']:.2f}",
        "shipped.pairs": millions(networks["shipped_2"]["pairs_seen"]),
        "shipped.worse": made_worse(scores, 2),
        "passes.two": f"{scores['passes_2'][1]:.2f}",
        "passes.five": f"{scores['passes_2'][4]:.2f}",
        **size_facts(networks["ours_2"]),
        **{f"shipped.{name}": text for name, text in size_facts(networks["shipped_2"]).items()},
        "project1": f"{scores['passes_1'][0]:.2f}",
        "published": f"{published(2)['single']:.2f}",
        "submissions": str(field()["study"]["submissions"]),
        "submissions.fail": str(field()["study"]["pass_allclose_not"]),
        "oracle": count(oracle["configurations"]),
        "oracle.error": scientific(max(oracle["largest_relative_error"].values())),
        "derivatives": str(differences["derivatives"]),
        "rounding.seeds": str(rounding["seeds"]),
        "rounding.machine": rounding["machine"].partition(" x ")[2].partition(",")[0],
        "repeats": str(bench["repeats"]),
        "batch": str(bench["batch"]),
        "load": f"{bench['load']:.0f}",
    }
    both, fresh = data.differences(BOTH, max(PAIRS)), list(data.of("ours", max(PAIRS)).values())
    result |= {
        "both": spread(both, 2, "+"),
        "n.both": str(len(both)),
        "pairs.all": count(max(PAIRS)),
        "fresh": spread(fresh),
        "fresh.lead": f"{mean(fresh) - published(2)['single']:.2f}",
        "times": f"{networks['shipped_1']['multiply_adds'] / networks['shipped_2']['multiply_adds']:.0f}",
    }
    result |= {f"rounding.{name.replace(' ', '.')}": str(value) for name, value in rounding["passed"].items()}
    result["ratio.network, Muon"] = f"{bench['blocks']['network, Muon']['together']:.2f}"
    blocks = [entry["together"] for name, entry in bench["blocks"].items() if not name.startswith("network")]
    result |= {"ratio.low": f"{min(blocks):.2f}", "ratio.high": f"{max(blocks):.2f}"}
    points = (
        (ratio, what, size)
        for what in ("batch", "channels", "side")
        for size, ratio in bench[f"{what.removesuffix('s')}_growth"]
    )
    ratio, what, size = max(points)
    result |= {"growth.what": what, "growth.size": str(size), "growth.ratio": f"{ratio:.1f}"}
    half = known["precision"]["Miniproject_2"]
    result |= {
        "half.step": f"{bench['bfloat16_of_float32']:.2f}",
        "half.score": f"{max(0.01, abs(half['bfloat16']['single'] - half['float32']['single'])):.2f}",
        "half.image": f"{half['difference']['root_mean_square']:.2f}",
    }
    result |= sweep_facts(data) | recipe_facts(data)
    of_each = sorted(scores["of_each_2"])
    result |= {
        "best": f"{of_each[-1]:.1f}",
        "median": f"{statistics.median(of_each):.1f}",
        "worst": f"{of_each[0]:.1f}",
    }
    result["scenes"] = count(known["pictures"]["scenes"])
    result["photo.cells"], result["photo.pixels"] = (str(known["photo"][key]) for key in ("cells", "pixels_of_a_cell"))
    return result


def size_facts(network):
    """What tells a network of project 2 from others."""
    return {
        "parameters": millions(network["parameters"]),
        "multiply.adds": f"{network['multiply_adds'] / 1024 / 1000:.0f}",
        "width": str(network["architecture"]["width"]),
        "deep": str(network["architecture"]["deep_width"]),
    }


def sweep_facts(data):
    result, rates = {"sweep.pairs": count(BASE)}, sweep_rates(data)
    for name, points in rates.items():
        rate, values = max(points, key=lambda point: mean(point[1]))
        result |= {f"sweep.{name}": spread(values), f"sweep.{name}.rate": f"{rate:g}"}
    counts = {len(values) for points in rates.values() for _, values in points}
    rate = next(row["recipe"]["lr"] for row in data.rows if row["variant"] == "ours")
    muon = {rate: mean(values) for rate, values in rates["Muon"]}
    below = max(muon.values()) - muon[rate]
    place = f"{below:.2f} dB below its best here" if below else "its best here"
    result |= {"sweep.ours": f"{rate:g}", "sweep.place": place}
    result["shapes.n"] = str(len(data.differences(SHAPES[0])))
    result["sweep.seeds"] = "two" if counts == {2} else "one or two" if counts == {1, 2} else "one"
    result["momentum"] = str(next(r["recipe"]["momentum"] for r in data.rows if r["variant"].startswith("momentum ")))
    result["sweep.low"], result["sweep.high"] = sweep_gain(rates)
    return result


def recipe_facts(data):
    """The recipe of project 2's fresh networks, as the newest record of all pairs has it."""
    row = [row for row in data.rows if (row["variant"], row["pairs"]) == ("ours", max(PAIRS))][-1]
    recipe = row["recipe"]
    return {
        "recipe.momentum": f"{recipe['momentum']:g}",
        "recipe.batch": str(recipe["batch_size"]),
        "recipe.batch.least": str(recipe["min_batch_size"]),
        "recipe.steps": count(recipe["min_steps"]),
        "recipe.average": f"{100 * recipe['ema_share']:g} %",
        "recipe.scale": f"{row['network']['input_scale']:g}",
    }


def sweep_gain(rates):
    """dB that Muon's best is above the others' best: smallest and largest."""
    best = {name: max(mean(values) for _, values in points) for name, points in rates.items()}
    gains = [best["Muon"] - value for name, value in best.items() if name != "Muon"]
    return f"{min(gains):.2f}", f"{max(gains):.2f}"


def second_tables():
    data, known = Trainings(2), measured()
    rounding, bench = known["rounding"], known["benchmark"]
    shapes = []
    for variant in SHAPES:
        differences = data.differences(variant)
        if differences:
            row = next(row for row in data.rows if row["variant"] == variant and row["pairs"] == BASE)
            cost = f"{row['multiply_adds'] / 1024 / 1000:.0f}"
            shapes.append([variant, millions(row["parameters"]), cost, spread(differences, 2, "+")])
    scores = known["scores"]
    mine = known["networks"]["shipped_2"]
    results = [
        [f"{row['who']}, {row['what']}", "—", f"{row['single']:.2f}"]
        for row in field()["published"]
        if row["project"] == 2
    ]
    results += [["ours, shipped weights", millions(mine["parameters"]), f"{scores['passes_2'][0]:.2f}"]]
    results += [["the same, self-ensemble", millions(mine["parameters"]), f"{scores['ensemble_2']:.2f}"]]
    for pairs in sorted({row["pairs"] for row in data.rows if row["variant"] == "ours"}):
        values, size = data.of("ours", pairs).values(), data.of("ours", pairs, key="parameters").values()
        name = f"ours, fresh, {count(pairs)} pairs, n = {len(values)}"
        results.append([name, millions(max(size)), spread(values)])
    return {
        "results": results,
        "shapes": shapes,
        "few": few_table(data),
        "settings": [
            [*row[:1], count(pairs), *row[1:]]
            for pairs in sorted({row["pairs"] for row in data.rows if row["variant"] == "ours"})
            for row in settings_table(data, SETTINGS, {"pairs": pairs})
        ],
        "differences": [
            [name, str(entry["derivatives"]), scientific(entry["error"])]
            for name, entry in known["differences"]["blocks"].items()
        ],
        "rounding": [
            [name, *(f"{part} of {values[0]}" for part in values[1:])] for name, values in rounding["groups"].items()
        ],
        "benchmark": [
            [name, *(f"{entry[part]:.2f}" for part in ("forward", "backward", "together"))]
            for name, entry in bench["blocks"].items()
        ],
    }


def facts(number):
    return {1: first_facts, 2: second_facts}[number]()


def tables(number):
    return {1: first_tables, 2: second_tables}[number]()


# ---------------------------------------------------------------------------------------------- README


def readme_table():
    """The Markdown between the README's two markers."""
    known = measured()
    scores, noise = known["scores"], known["noise"]
    lines = [
        f"| on {count(scores['images'])} validation images (noisy: {noise['psnr']:.2f} dB) "
        "| single pass | self-ensemble |",
        "|---|---|---|",
        f"| **project 1**: ours, shipped weights | {scores['passes_1'][0]:.2f} dB | {scores['ensemble_1']:.2f} dB |",
        fresh_line(Trainings(1)),
        *published_lines(1),
        f"| **project 2**: ours, shipped weights | {scores['passes_2'][0]:.2f} dB | {scores['ensemble_2']:.2f} dB |",
        fresh_line(Trainings(2)),
        *published_lines(2),
        *photo_lines(),
        *speed_lines(known["speed"], known["precision"]),
    ]
    return "\n".join(lines)


def photo_lines():
    """A second table, of the weights for photographs."""
    record = json.loads((RESULTS / "photo.json").read_text())
    names, scores = list(record["psnr"]), list(record["psnr"].values())
    columns = [f"{name}, n = {len(score['noisy'])}" for name, score in zip(names, scores, strict=True)]
    rows = {
        "noisy": [statistics.mean(score["noisy"]) for score in scores],
        "**ours, `photomodel.pth`, blind**, single pass": [statistics.mean(score["single"]) for score in scores],
        **field()["photographs"],
    }
    lines = ["", f"| photographs, dB | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in rows.items():
        cells = [f"{value:.2f}" for value in values] + [""] * (len(columns) - len(values))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def speed_lines(speed, precision):
    """A third table: time and memory of the shipped weights."""
    seconds = {(row["name"], row["precision"]): row["seconds_per_megapixel"] for row in speed["times"]}
    machine, size = speed["machine"].split(",")[0].replace("2 x", "two cores of an"), 4 * speed["megapixels"]
    lines = [
        "",
        f"| predicting, {machine} | s a megapixel, bfloat16 | float32 | MB for {size:.1f} megapixels |",
        "|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in speed["times"]):
        title = f"`{name}`" if name in speed["memory"] else "network of FFDNet's size, random weights"
        cells = [f"{seconds[name, kind]:.1f}" if (name, kind) in seconds else "" for kind in ("bfloat16", "float32")]
        memory = speed["memory"].get(name, ["", ""])[1]
        lines.append(f"| {title} | {' | '.join(cells)} | {memory} |")
    for project in ("Miniproject_1", "Miniproject_2"):
        cells = [f"{precision[project][kind]['seconds']:.1f} s" for kind in ("bfloat16", "float32")]
        title = f"`{project}/bestmodel.pth`, {count(precision['images'])} images of 32 x 32"
        lines.append(f"| {title} | {' | '.join(cells)} |  |")
    return lines


def fresh_line(data):
    """The fresh default model of a project after one epoch of the most pairs."""
    pairs = max(PAIRS)
    single, ensemble, seconds = (data.of("ours", pairs, key=key).values() for key in ("single", "ensemble", "seconds"))
    name = f"ours, fresh, one epoch of {count(pairs)} pairs ({mean(seconds):.0f} s on two cores), n = {len(single)}"
    return f"| {name} | {spread(single)} dB | {spread(ensemble)} dB |"


def published_lines(project):
    found = [published(project)] + ([published(project, "ensemble")] if project == 1 else [])
    return [
        f"| best published ({row['who']}, {row['what']}) | "
        + " | ".join(f"{row[key]:.2f} dB" if key in row else "" for key in ("single", "ensemble"))
        + " |"
        for row in found
    ]
