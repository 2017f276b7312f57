"""What is to be launched: a sweep cut into jobs that know nothing of each other."""

import re
import shlex
from typing import NamedTuple

import yaml

from gentle_jax import errors

from .. import collect
from ..cli import flags, program
from ..runs import remote

TARGETS = ("jobset", "skypilot", "slurm")
ACCELERATORS = {"jobset": "2x4", "skypilot": "A100:1", "slurm": "gpu:1"}  # default of each target
BACKENDS = {
    "jobset": "tpu"
}  # what JAX calls the accelerators of a target; others: see `backend_of`
EXTRA = (
    ("target", str, "", "where the jobs run: " + " ".join(TARGETS)),
    ("num_runs", int, None, "runs in all, seeds x grid points"),
    ("runs_per_job", int, 32, "runs of one job; the last job may have fewer"),
    ("to", str, "launch", "folder of the files"),
    ("name", str, "gentle-jax", "name of the jobs"),
    ("image", str, "", "container image; jobset needs one (of the Dockerfile), slurm takes none"),
    ("accelerator", str, "",
     "jobset: topology of a TPU v5e slice [2x4]; skypilot: NAME:COUNT [A100:1]; slurm: --gres "
     "[gpu:1], or none for CPUs"),
    ("queue", str, "", "jobset: Kueue's LocalQueue [user-queue]; slurm: partition"),
    ("parallel", int, None, "jobs at the same time (jobset, slurm); default: all"),
    ("hours", int, 24, "slurm: time limit of a job; it is requeued at its end"),
    ("volume", str, "",
     "datasets made beforehand; jobset: a claim that many nodes can mount, skypilot: a bucket's "
     "URL; default: every job makes them anew"),
)  # fmt: skip
NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
OWN = ("seed_offset", "preset", "data", "out")  # flags of `run` that a plan says itself
REFUSED = (
    ("num_seeds", "it follows from --num_runs and --sweep; leave it out"),
    ("multihost", "every job is a process of its own here; leave it out, or write the job of one "
     "program over several hosts yourself"),
    ("require", "it follows from --accelerator; leave it out"),
    ("events", "the jobs would share one file; leave it out"),
    ("tasks", "the jobs cannot see this machine's files; collect the data first, they carry their "
     "tasks"),
)  # fmt: skip


def backend_of(target, accelerator):
    """Returns JAX's name of an accelerator: gpu or tpu, "" where there is none."""
    if accelerator == "none":
        return ""
    return "tpu" if accelerator.startswith("tpu") else BACKENDS.get(target, "gpu")


class Plan(NamedTuple):
    """A sweep cut into jobs: job INDEX has the seeds first + INDEX * per_job and following."""

    target: str
    name: str
    arguments: tuple  # flags of `experiments.run`, but seeds, --data and --out
    data: str  # --data of every job
    out: str  # --out of every job: they share it, each has a run folder of its own
    first: int  # the first seed
    seeds: int  # how many in all
    per_job: int  # seeds of a job
    points: int  # grid points
    preset: str
    image: str
    accelerator: str
    queue: str
    backend: str  # the kind of device that every job must have, "" for any
    parallel: int
    hours: int
    volume: str

    @property
    def jobs(self):
        """How many jobs there are."""
        return -(-self.seeds // self.per_job)

    @property
    def num_runs(self):
        """Seeds x grid points."""
        return self.seeds * self.points


def grid_points(request):
    """Returns how many runs of a Request have the same seed."""
    return len(request.points) * len(request.programs)


def needed(own):
    """Raises UserError for flags that are missing or impossible."""
    if not own["target"]:
        raise errors.UserError(f"--target is missing: pass one of {', '.join(TARGETS)}")
    if own["target"] not in TARGETS:
        raise errors.unknown("target", own["target"], TARGETS)
    if own["num_runs"] is None:
        raise errors.UserError("--num_runs is missing: pass seeds x grid points, for example 256")
    for name in ("num_runs", "runs_per_job", "hours"):
        if own[name] < 1:
            raise errors.UserError(f"--{name} is {own[name]}: expected at least 1")
    if own["parallel"] is not None and own["parallel"] < 1:
        raise errors.UserError(f"--parallel is {own['parallel']}: expected at least 1")
    if not NAME.fullmatch(own["name"]):
        raise errors.UserError(
            f"--name is {own['name']!r}: expected at most 40 lower-case letters, digits and "
            f"hyphens, a letter first"
        )
    if own["target"] != "slurm" and own["accelerator"] == "none":
        raise errors.UserError(f"--accelerator is none: {own['target']} jobs need one, name it")
    if own["target"] == "slurm" and own["image"]:
        raise errors.UserError("slurm does not use --image: activate an environment instead")
    if own["target"] == "jobset" and not own["image"]:
        raise errors.UserError(
            "--image is missing: jobset needs the container image that the Dockerfile makes, for "
            "example --image=REGION-docker.pkg.dev/PROJECT/REPOSITORY/gentle-jax:1"
        )


def seeds_of(own, points):
    """Returns (seeds in all, seeds of a job); raises UserError where jobs would split a seed."""
    for name in ("num_runs", "runs_per_job"):
        if own[name] % points:
            raise errors.UserError(
                f"--{name} is {own[name]}: expected a multiple of the {points} grid points of "
                f"--sweep, so that a job has whole seeds; take "
                f"{own[name] - own[name] % points + points}"
            )
    return own["num_runs"] // points, own["runs_per_job"] // points


def folders(line):
    """Returns (--data, --out) of a job; raises UserError for what its machine could not use."""
    own, out = line.own, line.given.get("out", "")
    shared = own["target"] == "slurm"  # its nodes see the same folders
    if not shared and not remote.is_remote(out):
        raise errors.UserError(
            f"--out is {out or 'missing'!r}: the machines of {own['target']} jobs go away with "
            f"their disks, pass a URL such as --out=gs://BUCKET/runs"
        )
    if remote.is_remote(out):
        remote.path(out, used=False)
    if own["volume"] and shared:
        raise errors.UserError("slurm does not use --volume: pass --data, a folder of all nodes")
    if own["volume"] and own["target"] == "skypilot" and not remote.is_remote(own["volume"]):
        raise errors.UserError(
            f"--volume is {own['volume']!r}: skypilot copies datasets from a bucket, pass a URL "
            f"such as gs://BUCKET/data"
        )
    made = "/data" if own["volume"] else "/scratch/data" if own["target"] == "jobset" else "data"
    data = line.given.get("data", made)
    return data, out or "runs"


def make(line):
    """Returns the Plan of a flags.Line; raises UserError for anything that no job could run."""
    own = line.own
    loose = [word for word in line.words if not word.startswith("-")]
    if loose:
        raise errors.UserError(f"{loose[0]!r} stands alone: write every flag as --flag=value")
    needed(own)
    # what the jobs' machines have counts, whatever this one has
    with_accelerator = own["accelerator"] != "none"
    request = flags.resolve(line, lambda: with_accelerator)
    points = grid_points(request)
    seeds, per_job = seeds_of(own, points)
    data, out = folders(line)
    run = request.config.run
    accelerator = own["accelerator"] or ACCELERATORS[own["target"]]
    kept = [a for a in line.words if a.lstrip("-").partition("=")[0] not in OWN]
    return Plan(
        target=own["target"],
        name=own["name"],
        # a job that finds no accelerator must not choose smaller sizes by itself
        arguments=(f"--preset={run.preset}", *kept),
        data=data,
        out=out,
        first=run.seed_offset,
        seeds=seeds,
        per_job=per_job,
        points=points,
        preset=run.preset,
        image=own["image"],
        accelerator=accelerator,
        backend=backend_of(own["target"], accelerator),
        queue=own["queue"],
        parallel=min(own["parallel"] or seeds, -(-seeds // per_job)),
        hours=own["hours"],
        volume=own["volume"],
    )


class Dumper(yaml.SafeDumper):
    """YAML with scripts as blocks of lines, as a reader expects them."""


def _text(dumper, text):
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


Dumper.add_representer(str, _text)


def dump(document):
    """Returns a dict as YAML, keys in its own order."""
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, width=10_000)


def client(plan):
    """Returns the package that `etils.epath` needs for --out, or None on a disk."""
    return remote.CLIENTS.get(plan.out.partition("://")[0])


def required(plan):
    """Returns the flag by which a job without its accelerator fails, as a list of words."""
    return [f"--require={plan.backend}"] if plan.backend else []


def command(plan):
    """Returns the shell words of a job's command, without seeds."""
    words = [*program.words("run"), *plan.arguments]
    words += [f"--data={plan.data}", f"--out={plan.out}", *required(plan)]
    return " ".join(map(shlex.quote, words))


def collect_command(plan):
    """Returns the shell words of the command that makes the jobs' data beforehand."""
    name = lambda word: word.lstrip("-").partition("=")[0]
    kept = [word for word in plan.arguments if flags.takes(collect.COMMAND, name(word))]
    words = [*program.words("collect"), *kept, f"--data={plan.data}"]
    words += required(plan)
    return " ".join(map(shlex.quote, words))


def seed_lines(plan, index):
    """Returns shell lines that set FIRST and COUNT, a job's seeds. Args: index, a shell word."""
    end = plan.first + plan.seeds
    return [
        f"FIRST=$(({plan.first} + {index} * {plan.per_job}))",
        f"COUNT=$((FIRST + {plan.per_job} > {end} ? {end} - FIRST : {plan.per_job}))",
    ]


def job_line(plan):
    """Returns the shell line that runs a job whose FIRST and COUNT are set."""
    return f'{command(plan)} --seed_offset="$FIRST" --num_seeds="$COUNT"'


def gather_line(plan):
    """Returns the command that merges the jobs' run folders."""
    root = shlex.quote(f"--from={plan.out}")
    return f"{errors.command('gather')} {root} --num_seeds={plan.seeds}"
