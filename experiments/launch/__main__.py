"""Writes what a cluster needs to run a sweep: `python -m experiments.launch --target=jobset`.

The sweep is cut into jobs that know nothing of each other, each with its own range of seeds and its
own run folder below a common `--out`; `experiments.gather` merges them. Files are checked before
they are written.
"""

import importlib
import pathlib
import re
import shlex

from ..cli import flags
from ..cli.command import Command, start
from ..host import computer
from . import check, plan

SUMMARY = (
    "Writes the files of a batch system for a sweep that one device cannot hold, and checks them. "
    "The flags of `run` say what a run is; --num_seeds follows from --num_runs."
)


def texts(job_plan):
    """Returns {name: text} of a Plan's files."""
    target = importlib.import_module(f".{job_plan.target}", __package__)
    files = target.files(job_plan)
    if job_plan.target == "jobset":
        files["Dockerfile"] = (check.HERE / "Dockerfile").read_text()
    return files


def placed(text, to):
    """Returns a text with the folder `to` in the place of FOLDER, quoted as the shell needs it."""
    return re.sub(r"FOLDER/([\w.]+)", lambda m: shlex.quote(f"{to.rstrip('/')}/{m[1]}"), text)


def run(line):
    """The command."""
    job_plan, to = plan.make(line), line.own["to"]
    files = texts(job_plan)
    check.check(job_plan, files)
    computer.prepare_folder(to, 1e6, "--to")
    for name, text in files.items():
        (pathlib.Path(to) / name).write_text(placed(text, to), encoding="utf-8")
    print(
        f"launch: {job_plan.num_runs} runs ({job_plan.seeds} seeds x {job_plan.points} grid "
        f"points), preset {job_plan.preset}, as {job_plan.jobs} jobs of {job_plan.target} with up "
        f"to {job_plan.per_job} seeds each"
    )
    print(f"launch: checked and written: {', '.join(str(pathlib.Path(to) / n) for n in files)}")
    print(f"\n{(pathlib.Path(to) / 'HOWTO.txt').read_text(encoding='utf-8')}", end="")


COMMAND = Command(
    "launch",
    SUMMARY,
    run,
    own=plan.EXTRA,
    shared=flags.but(*(name for name, _ in plan.REFUSED)),
    refused=plan.REFUSED,
    elsewhere=True,
)

if __name__ == "__main__":
    start(COMMAND)
