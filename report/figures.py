# ruff: noqa: RUF001 (minus and multiplication signs are meant)
"""The figures of both reports, from the records: vector, a column or a page wide, readable in grey.

draw_all(folder)    writes every figure as SVG, and the README's picture as PNG; needs matplotlib
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from report import records

COLUMN, PAGE = 3.35, 6.95  # inches
DARK, MIDDLE, LIGHT = "#1f4e79", "#b5651d", "#9a9a9a"
PICTURES = records.RESULTS / "pictures"

plt.rcParams.update(
    {
        "font.size": 7.5,
        "font.family": "DejaVu Sans",
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.1,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.frameon": False,
        "svg.hashsalt": "report",
        "svg.fonttype": "path",
    }
)


def canvas(rows, columns, width, height, **settings):
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **settings)


def dots(axis, points, label=None, colour=DARK, marker="o", style="-"):
    """`points`: [(x, values of the seeds)]: each seed as a dot, the means joined."""
    for x, values in points:
        axis.plot([x] * len(values), values, marker, color=colour, markersize=2.6, alpha=0.75, zorder=3)
    means = [records.mean(values) for _, values in points]
    axis.plot([x for x, _ in points], means, style, color=colour, label=label)


def of(data, variants, pairs=records.BASE):
    return [(x, list(data.of(name, pairs).values())) for name, x in variants]


# ---------------------------------------------------------------------------------------------- report 1


def noise():
    measured = records.measured()["noise"]
    figure, (left, right) = canvas(1, 2, COLUMN, 1.75, width_ratios=[1.15, 1])
    entries = list(measured["neighbours"].items()) + list(measured["channels"].items())
    short = {"other diagonal": "other diag.", "red, green": "R, G", "green, blue": "G, B", "red, blue": "R, B"}
    for place, (name, (value, error)) in enumerate(entries):
        colour = DARK if name in measured["neighbours"] else MIDDLE
        left.bar(place, value, yerr=2 * error, color=colour, width=0.7, error_kw={"linewidth": 0.8})
        if abs(value) < 0.1:
            left.text(
                place, 0.05, f"{round(value, 3) + 0.0:.3f}".replace("-", "−"), ha="center", fontsize=6, rotation=90
            )
    left.set_xticks(range(len(entries)), [short.get(name, name) for name, _ in entries], rotation=60, ha="right")
    left.tick_params(axis="x", labelsize=6)
    left.set_ylabel("correlation of noise")
    left.axhline(0, color="black", linewidth=0.6)
    x, y = zip(*measured["by_local_variance"], strict=True)
    right.loglog(x, y, "o-", color=DARK, markersize=3)
    right.set_xlabel("local variance, clean")
    right.set_ylabel("noise variance")
    return figure


def box(axis, x, y, width, height, text, colour):
    shape = {"boxstyle": "round,pad=0.3,rounding_size=1", "fc": colour, "ec": "black", "lw": 0.6}
    axis.add_patch(FancyBboxPatch((x, y), width, height, **shape))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=6)


def arrow(axis, x0, y0, x1, y1, style="-", colour="black", bend=0.0):
    look = {"arrowstyle": "-|>", "mutation_scale": 5, "lw": 0.7, "linestyle": style, "color": colour}
    axis.add_patch(FancyArrowPatch((x0, y0), (x1, y1), connectionstyle=f"arc3,rad={bend}", **look))


def network():
    """Boxes of our network, full resolution above."""
    figure, axis = canvas(1, 1, COLUMN, 1.25)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 37)
    axis.axis("off")

    sizes = records.measured()["networks"]["ours"]["sizes"]
    full, half = sizes["width"], 2 * sizes["width"]
    blocks, inner = (f"{sizes[name]} blocks" if sizes[name] > 1 else "block" for name in ("blocks", "inner_blocks"))
    box(axis, 8, 20, 10, 9, f"conv\n3 → {full}", "#dfe9f3")
    box(axis, 23, 20, 15, 9, f"residual\n{blocks}, {full}", "#c6d7ea")
    box(axis, 28, 3, 15, 9, f"2 × 2, /2\n{full} → {half}", "#dfe9f3")
    box(axis, 47, 3, 16, 9, f"residual\n{inner}, {half}", "#a8c2df")
    box(axis, 67, 3, 15, 9, f"2 × 2, ×2\n{half} → {full}", "#dfe9f3")
    box(axis, 63, 20, 15, 9, f"residual\n{blocks}, {full}", "#c6d7ea")
    box(axis, 82.5, 20, 10, 9, f"conv\n{full} → 3", "#dfe9f3")
    axis.text(-1, 24.5, "noisy", fontsize=6, va="center")
    axis.text(96.3, 24.5, "+", fontsize=8, va="center", ha="center")
    axis.text(51.5, 24.5, "+", fontsize=8, va="center", ha="center")
    axis.text(100, 17.5, "denoised", fontsize=6, va="center", ha="right")
    for x0, x1 in ((6, 7.6), (18.4, 22.6), (38.4, 50), (53, 62.6), (78.4, 82.1), (92.9, 95)):
        arrow(axis, x0, 24.5, x1, 24.5)
    arrow(axis, 33, 19.6, 34.5, 12.5)
    arrow(axis, 43.4, 7.5, 46.6, 7.5)
    arrow(axis, 63.4, 7.5, 66.6, 7.5)
    arrow(axis, 70, 12.5, 52.6, 22.6, bend=0.15)
    axis.plot([2, 2, 96.3, 96.3], [27.5, 34, 34, 27.5], color="black", lw=0.7)
    axis.text(50, 35.6, "the noisy image: what is learnt is the noise", fontsize=6, ha="center", va="bottom")
    return figure


def rates():
    data = records.Trainings(1)
    figure, (left, right) = canvas(1, 2, COLUMN, 1.2, sharey=True, width_ratios=[1.6, 1])
    dots(left, of(data, records.MUON), "Muon", DARK)
    dots(left, of(data, records.ADAM), "Adam alone", MIDDLE, "s", "--")
    left.set_xscale("log")
    left.set_xticks([1e-3, 2e-3, 4e-3, 8e-3, 16e-3], ["0.001", "0.002", "0.004", "0.008", "0.016"], fontsize=6.5)
    left.minorticks_off()
    left.set_xlabel("peak learning rate")
    left.set_ylabel("PSNR (dB)")
    dots(right, of(data, records.BATCHES))
    left.legend(loc="lower center", fontsize=6)
    right.set_xscale("log")
    right.set_xticks([8, 16, 32], ["8", "16", "32"])
    right.minorticks_off()
    right.set_xlabel("batch size (pairs)")
    return figure


def grid():
    """The original's search: a panel per network, a line per batch size; diverged runs are below it."""
    data = records.Trainings(1)
    figure, axes = canvas(1, 2, COLUMN, 1.3, sharey=True)
    styles = {4: (DARK, "o", "-"), 8: (MIDDLE, "s", "--"), 16: ("#5f8f3f", "^", "-."), 32: (LIGHT, "D", ":")}
    for axis, network in zip(axes, ("U-Net", "Noise2Noise network"), strict=True):
        for batch, points in records.grid(data, network).items():
            dots(axis, points, str(batch), *styles[batch])
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_title(network, fontsize=7)
    best = max(value for axis in axes for line in axis.lines for value in line.get_ydata())
    axes[0].set_ylim(best - 1.5, best + 0.1)
    axes[0].set_ylabel("PSNR (dB)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, [f"batch {label}" for label in labels], loc="outside upper center", ncols=4, fontsize=6)
    return figure


def limits():
    data, networks = records.Trainings(1), {}
    for row in data.rows:
        networks.setdefault(row["variant"], row["multiply_adds"] / 1024 / 1000)
    figure, (capacity, targets, pairs) = canvas(1, 3, PAGE, 1.35)
    widths = [(name, networks[name]) for name, _ in records.WIDTHS]
    for number, *look in ((records.BASE, DARK), (records.PAIRS[-1], MIDDLE, "s", "--")):
        dots(capacity, of(data, widths, number), f"{number:,} pairs", *look)
    for name, width in records.WIDTHS:
        capacity.annotate(
            f"{width}", (networks[name], max(data.of(name).values())), (-4, 4), textcoords="offset points", fontsize=6
        )
    capacity.set_xlabel("thousand multiply-adds a pixel")
    capacity.set_ylabel("PSNR (dB)")
    capacity.legend(loc="lower right", fontsize=6)
    dots(targets, of(data, records.DRAWS))
    clean = list(data.of("clean targets").values())
    targets.axhline(records.mean(clean), color=MIDDLE, linestyle="--", linewidth=1)
    targets.plot([records.DRAWS[-1][1] * 1.5] * len(clean), clean, "s", color=MIDDLE, markersize=2.6)
    targets.set_xscale("log")
    targets.set_xticks([k for _, k in records.DRAWS], [str(k) for _, k in records.DRAWS])
    targets.minorticks_off()
    targets.set_xlabel("draws k in the target")
    dots(pairs, [(n, list(data.of(records.BOTH, n).values())) for n in records.PAIRS], records.BOTH, LIGHT, "^", "-.")
    dots(pairs, [(n, list(data.of(records.ONE, n).values())) for n in records.PAIRS], records.ONE)
    with_clean = [(n, list(values)) for n in records.PAIRS if (values := data.of("clean targets", n).values())]
    dots(pairs, with_clean, "clean targets", MIDDLE, "s", "--")
    pairs.set_xscale("log")
    pairs.set_xticks(records.PAIRS[::2], [f"{n:,}" for n in records.PAIRS[::2]])
    pairs.minorticks_off()
    pairs.set_xlabel("pairs learnt from")
    pairs.legend(loc="lower right", fontsize=6)
    return figure


def ablations():
    data = records.Trainings(1)
    found = [(label, data.differences(variant)) for variant, label in records.ABLATIONS]
    found.sort(key=lambda entry: records.mean(entry[1]))
    figure, axis = canvas(1, 1, COLUMN, 2.4)
    deviation = records.deviation(list(data.of(records.ONE).values()))
    axis.axvspan(-deviation, deviation, color="#e4e4e4", zorder=0, lw=0)
    for place, (_, values) in enumerate(found):
        axis.barh(place, records.mean(values), color="#a8c2df", height=0.62, zorder=1)
        axis.plot(values, [place] * len(values), "o", color=DARK, markersize=2.4, zorder=3)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_yticks(range(len(found)), [label for label, _ in found])
    axis.tick_params(axis="y", labelsize=6.3, length=0)
    axis.set_xlabel("difference (dB)")
    axis.margins(y=0.01)
    return figure


def pictures(project="project_1"):
    values = records.measured()["pictures"]["psnr"]
    figure, axes = canvas(3, 3, COLUMN, 1.5)
    for row, place in zip(axes, ("best", "median", "worst"), strict=True):
        for axis, kind in zip(row, ("noisy", project, "clean"), strict=True):
            axis.imshow(plt.imread(PICTURES / f"{place}_{kind}.png"), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if kind != "clean":
                axis.text(1.06, 0.5, f"{values[place][kind]:.1f} dB", fontsize=7, va="center", transform=axis.transAxes)
        row[0].set_ylabel(place, fontsize=7)
    for axis, title in zip(axes[0], ("noisy", "denoised", "clean"), strict=True):
        axis.set_title(title, fontsize=7, pad=3)
    return figure


# ---------------------------------------------------------------------------------------------- report 2


def framework():
    figure, axis = canvas(1, 1, PAGE, 1.75)
    axis.set_xlim(0, 205)
    axis.set_ylim(0, 50)
    axis.axis("off")

    box(axis, 2, 18, 17, 14, "image x", "#dfe9f3")
    box(axis, 38, 18, 20, 14, "patches U x", "#c6d7ea")
    box(axis, 77, 18, 17, 14, "map y", "#dfe9f3")
    for x0, x1, above, below in ((20, 37, "gather U", "scatter Uᵀ"), (59, 76, "W", "Wᵀ")):
        arrow(axis, x0, 27.5, x1, 27.5)
        arrow(axis, x1, 22.5, x0, 22.5, "--", MIDDLE)
        axis.text((x0 + x1) / 2, 30, above, ha="center", fontsize=6.3)
        axis.text((x0 + x1) / 2, 17.2, below, ha="center", fontsize=6.3, color=MIDDLE)
    arrow(axis, 10, 42, 86, 42)
    axis.text(48, 44, "Conv2d.forward, TransposeConv2d.backward", ha="center", fontsize=6.3)
    arrow(axis, 86, 9, 10, 9, "--", MIDDLE)
    axis.text(48, 4, "Conv2d.backward, TransposeConv2d.forward", ha="center", fontsize=6.3, color=MIDDLE)

    wide = {"Conv2d\n/2": 9.8, "Transpose\nConv2d ×2": 14.5, "Sigmoid": 10.4}
    half, twice = tuple(wide)[:2]
    x = 103.0
    for name in (half, "ReLU", half, "ReLU", twice, "ReLU", twice, "Sigmoid", "MSE"):
        width = wide.get(name, 7.4)
        box(axis, x, 18, width, 14, name, "#a8c2df" if "Conv" in name else "#eeeeee")
        x += width + 1.4
    arrow(axis, 104, 42, x - 3, 42)
    axis.text((103 + x) / 2, 44, "forward: each block keeps what its backward needs", ha="center", fontsize=6.3)
    arrow(axis, x - 3, 9, 104, 9, "--", MIDDLE)
    axis.text((103 + x) / 2, 4, "backward: gradients, in reverse order", ha="center", fontsize=6.3, color=MIDDLE)
    return figure


def growth():
    bench = records.measured()["benchmark"]
    figure, axes = canvas(1, 3, COLUMN, 1.45, sharey=True)
    for axis, key, label in zip(
        axes, ("batch_growth", "channel_growth", "side_growth"), ("batch", "channels", "side (pixels)"), strict=True
    ):
        x, y = zip(*bench[key], strict=True)
        axis.plot(x, y, "o-", color=DARK, markersize=3)
        axis.axhline(1, color=LIGHT, linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks(x, [str(value) for value in x], fontsize=6)
        axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].set_ylabel("ours / torch.nn")
    axes[0].set_ylim(bottom=0)
    return figure


def sweep():
    rates = records.sweep_rates(records.Trainings(2))
    figure, axes = canvas(1, len(rates), COLUMN, 1.5, sharey=True)
    for axis, (name, points) in zip(axes, rates.items(), strict=True):
        dots(axis, points)
        axis.set_xscale("log", base=2)
        axis.set_xticks([rate for rate, _ in points], [f"{rate:g}" for rate, _ in points], rotation=60)
        axis.minorticks_off()
        axis.tick_params(axis="x", labelsize=6)
        axis.set_title(name, fontsize=7)
    best = max(value for axis in axes for line in axis.lines for value in line.get_ydata())
    axes[0].set_ylim(best - 4, best + 0.3)  # some of the largest rates diverge
    axes[0].set_ylabel("PSNR (dB)")
    figure.supxlabel("peak learning rate", fontsize=7.5)
    return figure


def each():
    """Every validation image: dB before and after."""
    scores = records.measured()["scores"]
    before, after = scores["input_of_each"], scores["of_each_2"]
    figure, axis = canvas(1, 1, COLUMN, 1.4)
    axis.plot(before, after, ".", color=DARK, markersize=2, alpha=0.5)
    ends = [min(before), max(before)]
    axis.plot(ends, ends, color="black", linewidth=0.7, linestyle="--")
    axis.set_xlabel("PSNR of the noisy image (dB)")
    axis.set_ylabel("PSNR after (dB)")
    return figure


def photo(kinds, titles, width, height, size):
    """The photograph, one panel a kind, with its PSNR."""
    figure, axes = canvas(1, len(kinds), width, height)
    values = records.measured()["photo"]["psnr"]
    for axis, kind, title in zip(axes, kinds, titles, strict=True):
        axis.imshow(plt.imread(PICTURES / f"photo_{kind}.png"), interpolation="nearest")
        axis.axis("off")
        axis.set_title(title + (f", {values[kind]:.1f} dB" if kind in values else ""), fontsize=size)
    return figure


FIGURES = {
    "noise": noise,
    "network": network,
    "rates": rates,
    "grid": grid,
    "limits": limits,
    "ablations": ablations,
    "pictures": pictures,
    "framework": framework,
    "growth": growth,
    "sweep": sweep,
    "each": each,
    "pictures3": lambda: photo(
        ("noisy", "project_2", "project_1", "clean"),
        ("noisy", "this network", "first report", "clean"),
        PAGE,
        1.95,
        7.5,
    ),
    "pictures2": lambda: pictures("project_2"),
}


def draw_all(folder):
    """Writes the figures into `folder` and the README's picture beside it; returns the paths."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.svg" for name in FIGURES]
    for path, draw in zip(paths, FIGURES.values(), strict=True):
        figure = draw()
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    figure = photo(("noisy", "project_1", "clean"), ("noisy", "denoised", "clean"), 9, 3.45, 11)
    figure.savefig(folder.parent / "picture.png", dpi=100, metadata={"Software": None})
    plt.close(figure)
    return [*paths, folder.parent / "picture.png"]
