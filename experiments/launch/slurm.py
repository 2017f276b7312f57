"""A SLURM array: a task for each part of a sweep, which is requeued until it has finished."""

from ..cli import exit_codes
from . import plan as plan_lib

NOTICE = 120  # seconds before the time limit at which the script is told


def header(plan, job, log):
    """Returns the #SBATCH options as a dict, in order."""
    options = {
        "job-name": job,
        "nodes": "1",
        "ntasks": "1",
        "time": f"{plan.hours}:00:00",
        "requeue": None,
        "open-mode": "append",  # a requeued task goes on in the same log
        "signal": f"B:TERM@{NOTICE}",
        "output": log,
    }
    more = {"gres": "" if plan.accelerator == "none" else plan.accelerator, "partition": plan.queue}
    return options | {key: value for key, value in more.items() if value}


CODES = {"interrupted": exit_codes.INTERRUPTED, "unheard": exit_codes.UNHEARD}
# TERM interrupts `wait`, so it is called again for the exit code of the process itself
FORWARD = """\
child=
told=
ended=
trap 'told=1; ended=1; [ -z "$child" ] || kill -TERM "$child"' TERM INT
{command} &
child=$!
[ -z "$ended" ] || kill -TERM "$child" # told before there was a child to tell
while :; do
    told=
    wait "$child" && code=0 || code=$?
    [ -n "$told" ] && [ "$code" -gt 128 ] || break
done
# interrupted, state saved: the same command resumes
if [ "$code" -eq {interrupted} ] || {{ [ "$code" -eq {unheard} ] && [ -n "$ended" ]; }}; then
    scontrol requeue "{job}" || true
fi
exit "$code"
"""


def script(options, lines, command, job):
    """Returns a batch script. Args: lines, shell lines before the command; job, its own id."""
    platforms = "cuda,cpu" if "gres" in options else "cpu"
    marks = [f"#SBATCH --{k}" + ("" if v is None else f"={v}") for k, v in options.items()]
    export = [f"export JAX_PLATFORMS=${{JAX_PLATFORMS:-{platforms}}}"]
    top = ["#!/usr/bin/env bash", *marks, "", "set -uo pipefail", 'cd "$SLURM_SUBMIT_DIR"']
    body = FORWARD.format(command=command, job=job, **CODES)
    return "\n".join([*top, *export, *lines]) + "\n" + body


def files(plan):
    """Returns {name: text} of everything that the user needs."""
    at_once = f"%{plan.parallel}" if plan.parallel < plan.jobs else ""
    array = {"array": f"0-{plan.jobs - 1}{at_once}"}
    sweep = script(
        header(plan, plan.name, f"{plan.name}-%A_%a.log") | array,
        plan_lib.seed_lines(plan, "SLURM_ARRAY_TASK_ID"),
        plan_lib.job_line(plan),
        "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
    )
    data = script(
        header(plan, f"{plan.name}-data", f"{plan.name}-data-%j.log"),
        [],
        plan_lib.collect_command(plan),
        "${SLURM_JOB_ID}",
    )
    submit = [
        "#!/usr/bin/env bash",
        "# The dataset first, once, then the array; run it from the root of the repository.",
        "set -euo pipefail",
        'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        'data="$(sbatch --parsable "$here/collect.sbatch")"',
        'sbatch --dependency="afterok:${data%%;*}" "$here/array.sbatch"',
    ]
    steps = [
        "From the root of the repository, on a file system that all nodes see, in the environment",
        "whose `python` has the requirements and the JAX of the nodes' accelerators:",
        "",
        "bash FOLDER/submit.sh",
        f"squeue --me --name={plan.name}",
        plan_lib.gather_line(plan),
    ]
    return {
        "array.sbatch": sweep,
        "collect.sbatch": data,
        "submit.sh": "\n".join(submit) + "\n",
        "HOWTO.txt": "\n".join(steps) + "\n",
    }
