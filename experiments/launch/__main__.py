"""Writes what a cluster needs to run a sweep: `python -m experiments.launch --target=jobset`.

The sweep is cut into jobs that know nothing of each other, each with its own range of seeds and its
own run folder below a common `--out`; `experiments.gather` merges them. Files are checked before
they are written.
"""

import importlib
import pathlib

from experiments.cli import flags
from experiments.cli.command import Command, start
from experiments.host import computer
from experiments.launch import check, plan

SUMMARY = (
    "Writes the files of a batch system for a sweep that one device cannot hold, and checks them. "
    "The flags of experiments.run say what a run is; --num_seeds follows from --num_runs."
)


def texts(job_plan):
    """Returns {name: text} of a Plan's files."""
    target = importlib.import_module(f"experiments.launch.{job_plan.target}")
    found = target.files(job_plan)
    if job_plan.target == "jobset":
        found["Dockerfile"] = (check.HERE / "Dockerfile").read_text()
    return found


def run(line):
    """The command."""
    made, to = plan.make(line), line.own["to"]
    found = texts(made)
    check.check(made, found)
    computer.prepare_folder(to, 1e6, "--to")
    for name, text in found.items():
        (pathlib.Path(to) / name).write_text(text.replace("FOLDER/", f"{to.rstrip('/')}/"))
    print(
        f"launch: {made.num_runs} runs ({made.seeds} seeds x {made.points} grid points), "
        f"preset {made.preset}, as {made.jobs} jobs of {made.target} with up to {made.per_job} "
        f"seeds each"
    )
    print(f"launch: checked and written: {', '.join(str(pathlib.Path(to) / n) for n in found)}")
    print(f"\n{(pathlib.Path(to) / 'HOWTO.txt').read_text()}", end="")


COMMAND = Command(
    "launch",
    SUMMARY,
    run,
    own=plan.EXTRA,
    shared=flags.but(*(name for name, _ in plan.REFUSED)),
    refused=plan.REFUSED,
)

if __name__ == "__main__":
    start(COMMAND)
