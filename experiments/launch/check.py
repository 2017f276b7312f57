"""Checks generated files before anybody runs them: schemas, shell syntax, and that the jobs' seeds
cover the sweep exactly once. The schemas are our own; they allow what the generators may write."""

import json
import os
import pathlib
import subprocess
import tempfile

import jsonschema
import yaml

from gentle_jax import config as config_lib
from gentle_jax import errors

from .. import collect, run
from ..cli import flags, program

HERE = pathlib.Path(__file__).parent
# file -> schema of each of its documents
SCHEMAS = {
    "jobset.yaml": "jobset",
    "collect.yaml": "job",
    "kueue.yaml": "kueue",
    "skypilot.yaml": "skypilot",
    "array.sbatch": "slurm",
    "collect.sbatch": "slurm",
}
FAKE = '#!/usr/bin/env bash\nprintf "%s\\\\0" "$@"\n'  # stands for python: prints its arguments


def schema(name):
    """Returns a schema of the folder `schemas`."""
    return json.loads((HERE / "schemas" / f"{name}.json").read_text())


def documents(name, text):
    """Returns the documents of a file: those of YAML, or one with the #SBATCH options."""
    if name.endswith(".yaml"):
        return list(yaml.safe_load_all(text))
    marks = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    pairs = [mark.removeprefix("#SBATCH --").partition("=") for mark in marks]
    return [{key: value if equals else None for key, equals, value in pairs}]


def scripts(name, text):
    """Returns the shell scripts in a file."""
    if not name.endswith(".yaml"):
        return [text] if text.startswith("#!") else []
    bodies = []
    for document in documents(name, text):
        bodies += [document[key] for key in ("setup", "run") if key in document]
        for container in containers(document):
            bodies.append(container["command"][2])
    return bodies


def containers(document):
    """Returns the containers of a JobSet or a Job; [] of anything else."""
    kind, jobs = document.get("kind"), []
    if kind == "JobSet":
        jobs = [job["template"]["spec"] for job in document["spec"]["replicatedJobs"]]
    elif kind == "Job":
        jobs = [document["spec"]]
    return [c for job in jobs for c in job["template"]["spec"]["containers"]]


def check_schema(name, text):
    """Raises UserError unless every document of a file fits its schema."""
    validator = jsonschema.Draft202012Validator(schema(SCHEMAS[name]))
    for document in documents(name, text):
        mistake = jsonschema.exceptions.best_match(validator.iter_errors(document))
        if mistake:
            where = "/".join(map(str, mistake.absolute_path)) or "the document"
            raise errors.UserError(f"{name} is not valid: {where}: {mistake.message[:200]}")


def check_shell(name, text):
    """Raises UserError unless bash can parse every script of a file."""
    for script in scripts(name, text):
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        if done.returncode:
            line = done.stderr.strip().splitlines()[0]
            raise errors.UserError(f"{name} is not valid: bash: {line}")


def commands(script, variables):
    """Runs a script for each dict of variables with a python that only prints.

    Returns the arguments that python got each time; raises UserError where the script fails.
    """
    arguments = []
    with tempfile.TemporaryDirectory() as folder:
        fake = pathlib.Path(folder) / "python"
        fake.write_text(FAKE)
        fake.chmod(0o755)
        plain = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_SUBMIT_DIR": folder}
        plain["HOME"] = folder
        for environment in variables:
            done = subprocess.run(
                ["bash", "-c", script], env=plain | environment, capture_output=True, text=True
            )
            if done.returncode:
                raise errors.UserError(
                    f"a job's script fails with {environment}: {done.stderr.strip()}"
                )
            arguments.append(done.stdout.split("\0")[:-1])
    return arguments


def job_commands(plan, texts):
    """Returns the arguments of python in every job of a plan, as its generated file gives them."""
    name, variable = {
        "jobset": ("jobset.yaml", "JOB_COMPLETION_INDEX"),
        "skypilot": ("skypilot.yaml", "INDEX"),
        "slurm": ("array.sbatch", "SLURM_ARRAY_TASK_ID"),
    }[plan.target]
    script = scripts(name, texts[name])[-1]
    more = {"SLURM_ARRAY_JOB_ID": "1"}
    return commands(script, [{variable: str(index)} | more for index in range(plan.jobs)])


def check_seeds(plan, texts):
    """Raises UserError unless the jobs' commands train every seed of the plan exactly once."""
    seen = []
    for arguments in job_commands(plan, texts):
        if arguments[:2] != program.words("run")[1:]:
            raise errors.UserError(
                f"a job runs {' '.join(arguments[:2])}, not {program.words('run')[-1]}"
            )
        request = flags.parse(run.COMMAND, arguments[1:], lambda: True)
        first, count = request.config.run.seed_offset, request.config.run.num_seeds
        if request.out != plan.out or count > plan.per_job:
            raise errors.UserError(f"a job is not as planned: {' '.join(arguments)}")
        seen += range(first, first + count)
    if seen != list(range(plan.first, plan.first + plan.seeds)):
        raise errors.UserError(
            f"the jobs' seeds are not {plan.first} to {plan.first + plan.seeds - 1}, each once"
        )


def check_data(plan, texts):
    """Raises UserError unless the data that are made beforehand are those of the jobs."""
    for name in (name for name in texts if name.startswith("collect.")):
        (words,) = commands(scripts(name, texts[name])[-1], [{}])
        if words[:2] != program.words("collect")[1:]:
            raise errors.UserError(
                f"{name} runs {' '.join(words[:2])}, not {program.words('collect')[-1]}"
            )
        made = flags.parse(collect.COMMAND, words[1:], lambda: True)
        job = flags.parse(run.COMMAND, job_commands(plan, texts)[0][1:], lambda: True)
        same = config_lib.data_identity(made.config) == config_lib.data_identity(job.config)
        if made.data != job.data or not same:
            raise errors.UserError(f"{name} makes other data than the jobs use: {' '.join(words)}")


def check(plan, texts):
    """Raises UserError for the first thing that is wrong with the files {name: text} of a Plan."""
    for name, text in texts.items():
        if name in SCHEMAS:
            check_schema(name, text)
        check_shell(name, text)
    check_seeds(plan, texts)
    check_data(plan, texts)
