"""The reports are those of the records: nothing older, nothing typed in, nothing blank, no page too many.

Reads records and finished files alone: neither Typst nor matplotlib is needed.
"""

import json
import re
import sys

import pytest

from Miniproject_1.others.experiments import VARIANTS as variants_1
from Miniproject_2.others.experiments import VARIANTS as variants_2
from report import build, experiments, records

STATE = json.loads((build.HERE / "build.json").read_text())
SOURCES = {number: (build.HERE / f"Report_{number}.typ").read_text(encoding="utf-8") for number in build.REPORTS}
AGAIN = "run: python -m report.build"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder in place of the recorded results."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)

    def add(name, *rows):
        defaults = {"seed": 0, "pairs": records.BASE, "epochs": 1, "seconds": 1.0}
        lines = [json.dumps(defaults | row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    return add


# ---------------------------------------------------------------------------------------------- what stands in report/


def test_nothing_is_older_than_the_records():
    assert build.digests(build.sources()) == STATE["inputs"], AGAIN


def test_every_record_and_source_is_among_the_inputs():
    read = {path.relative_to(build.ROOT).as_posix() for path in records.RESULTS.rglob("*") if path.is_file()}
    read |= {f"report/{name}" for name in ("Report_1.typ", "Report_2.typ", "style.typ", "records.py", "figures.py")}
    assert read <= STATE["inputs"].keys(), AGAIN


def test_pdfs_and_figures_are_those_that_were_built():
    outputs = {name: build.digest(build.ROOT / name) for name in STATE["outputs"]}
    assert outputs == STATE["outputs"], AGAIN
    figures = {path.relative_to(build.ROOT).as_posix() for path in (build.HERE / "figures").iterdir()}
    assert figures < outputs.keys()


def test_readme_table_is_that_of_the_records():
    text = (build.ROOT / "README.md").read_text(encoding="utf-8")
    assert build.with_table(text, records.readme_table()) == text, AGAIN


@pytest.mark.parametrize("number", build.REPORTS)
def test_what_a_model_says_of_itself_is_recorded(number):
    scores, data, pairs = records.measured()["scores"], records.Trainings(number), max(records.PAIRS)
    single, ensemble, seconds = (
        records.mean(data.of("ours", pairs, key=key).values()) for key in ("single", "ensemble", "seconds")
    )
    said = " ".join((build.ROOT / f"Miniproject_{number}" / "model.py").read_text(encoding="utf-8").split())
    passes, averaged = scores[f"passes_{number}"][0], scores[f"ensemble_{number}"]
    assert f"bestmodel.pth {passes:.2f} dB in a single pass, {averaged:.2f} dB with self-ensemble" in said
    assert f"{single:.2f} and {ensemble:.2f} dB (three seeds), in {seconds:.0f} s" in said


@pytest.mark.parametrize("number", build.REPORTS)
def test_pages(number):
    name = f"Report_{number}.pdf"
    content = (build.HERE / name).read_bytes()
    assert build.pages_of(content) == STATE["reports"][name]["pages"] <= build.MOST_PAGES + 1
    assert STATE["reports"][name]["text_pages"] <= build.MOST_PAGES
    assert build.REPORTS[number].read_bytes() == content  # the copy where graders look


@pytest.mark.parametrize("number", build.REPORTS)
def test_typst_had_nothing_to_warn_of(number):
    assert STATE["reports"][f"Report_{number}.pdf"]["warnings"] == []


@pytest.mark.parametrize("number", build.REPORTS)
def test_numbers_come_from_the_records(number):
    assert build.typed_numbers(SOURCES[number]) == []


@pytest.mark.parametrize("number", build.REPORTS)
def test_what_a_source_asks_for_is_recorded(number):
    facts, tables = records.facts(number), records.tables(number)
    shown = set(re.findall(r'\bn\("([^"]*)"\)', SOURCES[number]))
    assert shown == facts.keys()  # nothing is missing, nothing is computed in vain
    assert set(re.findall(r'\b(?:sheet|rows)\("([^"]*)"', SOURCES[number])) <= tables.keys()


@pytest.mark.parametrize("number", build.REPORTS)
def test_facts_and_tables_have_no_blank(number):
    entries = list(records.facts(number).values())
    for rows in records.tables(number).values():
        assert len({len(row) for row in rows}) <= 1  # as many cells in each
        entries += [cell for row in rows for cell in row]
    assert all(isinstance(entry, str) and entry.strip() for entry in entries)
    assert not [entry for entry in entries if re.search(r"\bnan\b|\binf\b|None|\?\?", entry)]


def test_figures_are_vectors_but_for_pictures():
    for path in (build.HERE / "figures").glob("*.svg"):
        assert ("<image" in path.read_text()) == path.stem.startswith("pictures"), path.name


def test_each_number_of_others_names_its_source():
    field = records.field()
    assert all(row["source"] for row in field["published"])
    assert all(field[name]["source"] for name in ("noise", "eight_thousand", "original"))


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.jsonl")), ids=lambda path: path.name)
def test_rows_say_how_they_were_made(path):
    for row in records.read_lines(path):
        assert {"seed", "seconds", "machine", "torch"} <= row.keys()


# ---------------------------------------------------------------------------------------------- how they are made


@pytest.mark.parametrize(
    "text",
    [
        "It has 26.02 dB.",
        "trained in 2022",
        "$x + 17$",
        "accuracy of ??",
        "To do: more",
        "rates were xx",
        "n = 3",
        '#n("a"); b',
    ],
)
def test_a_typed_number_or_a_blank_is_found(text):
    assert build.typed_numbers(f"= Title\n{text}\n")


@pytest.mark.parametrize(
    "text", ['It has #n("base.2") dB @he2015.', "$x^2$ of $32 times 32$", "Noise2Noise", "`Conv2d(3, 3, 3)`", "// 17"]
)
def test_what_is_no_typed_number_is_let_through(text):
    assert build.typed_numbers(f"= Title\n{text}\n") == []


def test_a_file_that_is_dropped_in_is_read(results):
    results("project_1.jsonl", {"variant": "ours", "single": 25.0})
    results("project_1_more.jsonl", {"variant": "ours", "seed": 1, "single": 26.0})
    results("project_2.jsonl", {"variant": "ours", "seed": 2, "single": 27.0})
    assert records.Trainings(1).of("ours") == {0: 25.0, 1: 26.0}
    assert records.Trainings(2).of("ours") == {2: 27.0}


def test_differences_are_taken_within_a_file_and_a_seed(results):
    one = records.ONE
    results("project_1.jsonl", {"variant": one, "single": 25.0}, {"variant": "gates", "seed": 1, "single": 29.0})
    more = [{"variant": v, "seed": s, "single": x} for v, s, x in ((one, 0, 20.0), ("gates", 0, 20.5), (one, 2, 1.0))]
    results("project_1_more.jsonl", *more)
    assert records.Trainings(1).differences("gates") == [0.5]


def test_the_search_of_the_original_is_sorted_and_its_best_setting_found(results):
    setting = "the original's U-Net, Adam {}, batch {}"
    rows = [("3e-4", 8, 0, 24.0), ("1e-3", 8, 0, 25.0), ("1e-3", 8, 1, 25.2), ("3e-4", 4, 0, 25.05)]
    results("project_1.jsonl", *({"variant": setting.format(r, b), "seed": s, "single": x} for r, b, s, x in rows))
    data = records.Trainings(1)
    assert records.grid(data, "U-Net") == {4: [(3e-4, [25.05])], 8: [(3e-4, [24.0]), (1e-3, [25.0, 25.2])]}
    assert records.best_setting(data, "U-Net") == setting.format("1e-3", 8)
    assert records.grid(data, "Noise2Noise network") == {}


def test_the_table_of_the_original_beside_the_same_trainings_here(results):
    own = {"psnr": 25.63, "minutes": 3.9}
    original = {"lr": "3e-4", "batch": 8, "epochs": 3, "unet": own, "noise2noise": own}
    networks = "U-Net", "Noise2Noise network"
    found = [(f"the original's {name}, Adam 1e-3, batch 4", {"single": 25.0}) for name in networks]
    long = {"pairs": 50_000, "epochs": 3, "seconds": 360.0}
    found += [(records.UNET, long | {"single": 25.5}), (found[0][0], long | {"single": 25.7})]
    results("project_1.jsonl", *({"variant": name} | row for name, row in found))
    assert records.form_table(records.Trainings(1), original) == [
        ["U-Net, as reported", "3e-4", "8", "25.63", "3.9"],
        ["U-Net, here", "3e-4", "8", "25.50", "2.0"],
        ["U-Net, best settings", "1e-3", "4", "25.70", "2.0"],
        ["Noise2Noise, as reported", "3e-4", "8", "25.63", "3.9"],
    ]


@pytest.mark.parametrize("job", experiments.JOBS.values(), ids=experiments.JOBS)
def test_each_job_names_variants_that_exist(job):
    variants = {1: variants_1, 2: variants_2}[job.project]
    assert set(job.only) <= variants.keys()


def test_spread():
    assert records.spread([25.0]) == "25.00"
    assert records.spread([25.0, 26.0]) == "25.50 ± 0.71"
    assert records.spread([-0.101, -0.103], sign="+") == "\N{MINUS SIGN}0.102 ± 0.001"
    assert records.spread([0.1, 0.1]) == "0.100 ± < 0.001"


def test_verdict_is_that_of_students_t_test():
    assert records.verdict([0.10, 0.11, 0.10]) == "better"
    assert records.verdict([-0.10, -0.11]) == "worse"
    assert records.verdict([0.10, 0.12]) == "no clear difference"  # t = 11, of the 12.71 that it takes
    assert records.verdict([0.01, 0.07, 0.03]) == "no clear difference"


def test_table_stands_between_the_markers():
    begin, end = build.MARKERS
    assert build.with_table(f"a\n{begin}\nold\n{end}\nb", "| new |") == f"a\n{begin}\n| new |\n{end}\nb"
    with pytest.raises(ValueError, match="needs the lines"):
        build.with_table("no markers", "| new |")


def test_experiments_lists_what_is_missing(results, capsys, tmp_path):
    rows = [{"variant": "ours", "seed": seed, "pairs": 50_000} for seed in (0, 1)]
    results("project_2_jobs.jsonl", *rows)
    experiments.main([str(tmp_path), "--validate", "val_data.pkl", "--list", "--only", "recipe of project 2"])
    assert capsys.readouterr().out == "recipe of project 2: 13 trainings missing\n"


def test_experiments_calls_the_command_of_the_project(tmp_path):
    job = experiments.Job(2, (100,), ("ours",), seeds=(4,))
    module = [sys.executable, "-m", "Miniproject_2.others.experiments", "run", "photos", "--validate", "val_data.pkl"]
    settings = ["--pairs", "100", "--epochs", "1", "--seeds", "4", "--only", "ours"]
    assert experiments.command(job, "photos", "val_data.pkl") == [
        *module,
        *settings,
        "--out",
        str(experiments.out(job)),
    ]
