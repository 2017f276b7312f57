"""A managed spot job of SkyPilot for each part of a sweep: one file, started with an INDEX each."""

from ..cli import exit_codes
from . import plan as plan_lib

# the machines' own Python may be older than ours
SETUP = """\
set -e
export PATH="$HOME/.local/bin:$PATH"
command -v uv || python3 -m pip install --user uv
[ -d "$HOME/venv" ] || uv venv --python 3.11 "$HOME/venv"
uv pip install --python "$HOME/venv/bin/python" {packages}
"""


def task(plan):
    """Returns the task as a dict; `--env INDEX=3` chooses the part of the sweep."""
    plugin = "tpu" if plan.accelerator.startswith("tpu") else "cuda12"
    resources = {
        "accelerators": plan.accelerator,
        "use_spot": True,
        # another mistake is not repeated
        "job_recovery": {
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [exit_codes.INTERRUPTED],
        },
    }
    found = {"name": plan.name, "num_nodes": 1, "resources": resources}
    if plan.image:
        resources["image_id"] = f"docker:{plan.image}"
    found["workdir"] = "."
    found["envs"] = {"INDEX": "0"}
    if plan.volume:
        found["file_mounts"] = {"/data": {"source": plan.volume, "mode": "COPY"}}
    packages = f"-r requirements.txt 'jax[{plugin}]' {plan_lib.client(plan)}"
    found["setup"] = SETUP.format(packages=packages)
    platforms = f"export JAX_PLATFORMS={'tpu' if plugin == 'tpu' else 'cuda'},cpu"
    lines = [
        "set -euo pipefail",
        'export PATH="$HOME/venv/bin:$PATH"',
        platforms,
        *plan_lib.seed_lines(plan, "INDEX"),
        plan_lib.job_line(plan),
    ]
    found["run"] = "\n".join(lines) + "\n"
    return found


def files(plan):
    """Returns {name: text} of everything that the user needs."""
    submit = [
        "#!/usr/bin/env bash",
        "# One managed job for each part of the sweep; run it from the root of the repository.",
        "set -euo pipefail",
        'here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"',
        f"for index in $(seq 0 {plan.jobs - 1}); do",
        f'    sky jobs launch -y -d -n "{plan.name}-$index" --env "INDEX=$index" '
        '"$here/skypilot.yaml"',
        "done",
    ]
    steps = [
        "From the root of the repository, with SkyPilot set up (`sky check`):",
        "",
        "bash FOLDER/submit.sh",
        "sky jobs queue",
        plan_lib.gather_line(plan),
        "",
        "The machines must be allowed to write to the bucket of --out.",
    ]
    return {
        "skypilot.yaml": plan_lib.dump(task(plan)),
        "submit.sh": "\n".join(submit) + "\n",
        "HOWTO.txt": "\n".join(steps) + "\n",
    }
