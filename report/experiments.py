"""All long experiments of the reports, as one command that can be resumed. Takes hours.

    python -m report.experiments PHOTOS --validate val_data.pkl            # all, the most informative first
    python -m report.experiments PHOTOS --validate val_data.pkl --list     # what there is, and what is still to be run
    python -m report.experiments PHOTOS --validate val_data.pkl --only ablations optimisers

Each job is a call of `Miniproject_1.others.experiments` or `Miniproject_2.others.experiments`, which append their rows
to `results/project_1_jobs.jsonl` and `results/project_2_jobs.jsonl` and leave out those that are there. With `--names`,
a file with the names of CBSD68's photographs, the noises of `Miniproject_1.others.paper_noises` follow. Afterwards:
`python -m report.measure DATA`, `python -m report.build`.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from Miniproject_1.others.command_line import some_path
from Miniproject_1.others.experiments import grid
from Miniproject_2.others.experiments import NETWORKS, SWEEP
from report import records

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)
ONE, BOTH, UNET, NOISE2NOISE = records.ONE, records.BOTH, records.UNET, records.NOISE2NOISE
BEST = "the original's U-Net, Adam 1e-3, batch 4", "the original's Noise2Noise network, Adam 1e-3, batch 4"  # of "grid"


class Job(NamedTuple):
    """One call: the project, numbers of pairs, its variants (no `only`: all), numbers of epochs, and seeds."""

    project: int
    pairs: tuple
    only: tuple = ()
    epochs: tuple = (1,)
    seeds: tuple = SEEDS


JOBS = {
    "ours": Job(1, (7_800, 50_000), ("ours",)),
    "recipe": Job(1, (50_000,), (BOTH, ONE, *records.SETTINGS)),
    "recipe of project 2": Job(2, (50_000,), ("ours", BOTH, ONE, "no pixel swap", "no averaging")),
    "few pairs": Job(1, records.FEW, (BOTH, records.AGAIN)),
    "few pairs of project 2": Job(2, records.FEW, (BOTH, records.AGAIN)),
    "grid": Job(1, (7_800,), (*grid("U-Net", "unet"), *grid("Noise2Noise network", "noise2noise"))),
    "original's choices": Job(1, (7_800,), (UNET, *records.CHOICES)),
    "widths": Job(1, (50_000,), tuple(name for name, _ in records.WIDTHS), seeds=(0,)),
    "original": Job(1, (50_000,), (UNET, NOISE2NOISE, *BEST), epochs=(3,), seeds=(0,)),
    "ablations": Job(1, (7_800,)),
    "targets": Job(1, (7_800, 50_000), (ONE, "means of 3 noisy targets", "means of 15 noisy targets", "clean targets")),
    "pairs": Job(1, (1_000, 2_000, 4_000, 7_800, 15_600, 50_000), (BOTH, ONE, "clean targets")),
    "fixed pairs": Job(1, (50_000,), ("ours", ONE), epochs=(1, 2, 4, 8)),
    "optimisers": Job(2, (7_800,), tuple(SWEEP), seeds=(0, 1)),
    "networks of project 2": Job(2, (7_800,), (ONE, *NETWORKS), seeds=(0, 1)),
}


PAPER = {"the paper's noises": (8_000, SEEDS), "the paper's noises, longer": (48_000, (0,))}  # crops, seeds


def paper_command(photos, names, crops, seeds):
    paper = ["Miniproject_1.others.paper_noises", str(photos), "--names", str(names), "--pairs", str(crops)]
    paper += ["--seeds", *map(str, seeds)]
    return [sys.executable, "-m", *paper, "--out", str(records.RESULTS / "paper.jsonl")]


def out(job):
    return records.RESULTS / f"project_{job.project}_jobs.jsonl"


def command(job, photos, validate):
    """The command line of a job."""
    found = [f"Miniproject_{job.project}.others.experiments", "run", str(photos), "--validate", str(validate)]
    for name in ("pairs", "epochs", "seeds", "only"):
        if getattr(job, name):
            found += [f"--{name}", *map(str, getattr(job, name))]
    return [sys.executable, "-m", *found, "--out", str(out(job))]


def missing(job):
    """How many trainings of a job with named variants are not recorded in its file; None where all variants run."""
    if not job.only:
        return None
    done = {(row["variant"], row["seed"], row["pairs"], row["epochs"]) for row in records.read_lines(out(job))}
    wanted = {(v, s, p, e) for v in job.only for s in job.seeds for p in job.pairs for e in job.epochs}
    return len(wanted - done)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Runs all long experiments of the reports; can be resumed.")
    parser.add_argument("photos", type=some_path, help="folder of photographs to draw the pairs from")
    parser.add_argument("--validate", type=some_path, required=True, help="a val_data.pkl to score on")
    parser.add_argument("--only", nargs="+", choices=JOBS, metavar="JOB", default=list(JOBS), help=", ".join(JOBS))
    parser.add_argument(
        "--names", type=some_path, help="names of CBSD68's photographs: the paper's noises are run, too"
    )
    parser.add_argument("--pairs", type=int, nargs="+", help="instead of the job's own, to try it")
    parser.add_argument("--variants", nargs="+", help="instead of the job's own, to try it")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the job's own")
    parser.add_argument("--list", action="store_true", help="print the jobs and how many trainings are missing")
    options = parser.parse_args(arguments)
    photos, validate, commands = options.photos.resolve(), options.validate.resolve(), {}
    for name in options.only:
        job = JOBS[name]
        job = job._replace(pairs=options.pairs or job.pairs, only=options.variants or job.only)
        job = job._replace(seeds=options.seeds or job.seeds)
        commands[name] = command(job, photos, validate)
        if options.list:
            print(f"{name}: {'all variants' if missing(job) is None else f'{missing(job)} trainings missing'}")
    if options.list:
        return
    if options.names:
        commands |= {name: paper_command(photos, options.names.resolve(), *length) for name, length in PAPER.items()}
    failed = [name for name, one in commands.items() if subprocess.run(one, cwd=ROOT).returncode]
    if failed:
        sys.exit(f"experiments.py: these jobs failed, the others are done: {', '.join(failed)}")


if __name__ == "__main__":
    main()
