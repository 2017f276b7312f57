"""Tables and figures of finished runs: `python -m experiments.report --run=RUN_FOLDER`.

Without `--run` it lists every finished run below `--out` as one table.
"""

import json
import pathlib
import sys

from experiments import flags, machine, outputs, tables
from gentle_jax import errors

SUMMARY = "Prints the table of a finished run, or one line for every finished run below --out."
EXTRA = (
    ("run", str, "", "a run folder; default: list all below --out"),
    ("markdown", bool, False, "print Markdown instead of plain text"),
)
COLUMNS = ("algorithm", "fidelity", "suite", "env", "preset", "num_seeds", "num_steps")


def read(folder):
    """Returns a run's summary; raises UserError if there is none or it cannot be read."""
    path = pathlib.Path(folder) / "summary.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise errors.UserError(
            f"{folder} holds no finished run (summary.json is missing): pass a run folder, or "
            f"finish the run by giving its command again"
        ) from None
    except ValueError:
        raise errors.UserError(
            f"{path} is not JSON: delete it and give the run's command again"
        ) from None


def overview(root):
    """Returns aligned lines, one for every finished run below `root`, native test result last."""
    rows = [[*COLUMNS, "protocol", "mean", "normalized", "folder"]]
    for path in sorted(pathlib.Path(root).glob("*/*/*/*/summary.json")):
        summary = read(path.parent)
        best = summary["results"][0]
        numbers = [best["protocol"], f"{best['mean']:.2f}", f"{best['normalized']:.3f}"]
        rows.append([*(str(summary[c]) for c in COLUMNS), *numbers, str(path.parent)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def run(argv):
    """The command."""
    request = flags.parse(argv, "report", SUMMARY, machine.on_accelerator, EXTRA)
    folder = request.extra["run"]
    if not folder:
        lines = overview(request.out)
        if len(lines) == 1:
            raise errors.UserError(
                f"no finished run below {request.out}: pass another --out, or run `python -m "
                f"experiments.run` first"
            )
        print("\n".join(lines))
    elif request.extra["markdown"]:
        print(tables.markdown(read(folder)["results"]))
    else:
        outputs.print_table(read(folder), folder)


if __name__ == "__main__":
    sys.exit(flags.main(run))
