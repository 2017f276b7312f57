"""Tables and figures of finished runs: `python -m experiments.report --run=RUN_FOLDER`.

Without `--run` it lists the finished runs below `--out` as one table: those that have the given
`--algo`, `--env`, `--suite`, `--backbone`, `--fidelity`, `--preset`, `--num_seeds`, `--num_steps`.
`--compare` shows runs side by side, and how likely one is above another. `--html` writes any of the
three as a page.
"""

import math

from gentle_jax import assembly, errors, registry

from . import evaluate
from .cli import flags
from .cli.command import Command, start
from .runs import code_identity, outputs, remote, shards
from .show import compare, page, run_page, tables

SUMMARY = "Prints the table of a finished run, or one line for every finished run below --out."
EXTRA = (
    ("run", str, "", "a run folder; default: list all below --out"),
    (
        "point",
        int,
        -1,
        "of a sweep's --run: draw the figures that show agents for this grid point, "
        "counted from 0 as in its table; by default that is the best on training tasks",
    ),
    ("compare", list, [], "a run folder, or a folder of runs, to show beside others; repeatable"),
    ("markdown", bool, False, "print Markdown instead of plain text"),
    ("html", str, "", "also write a page for the browser to this file; it needs no network"),
)
COLUMNS = (
    "algorithm", "backbone", "fidelity", "suite", "env", "physics", "preset", "num_seeds",
    "num_steps",
)  # fmt: skip
ALIKE = (*compare.SAME, "preset")  # what rows of the list share that can be compared
CHOOSE = ("algo", *COLUMNS[1:])  # the flags that choose runs of the list


def overview(root, given):
    """Returns a row of texts for every finished run below `root`, a heading first, and the runs.

    Runs that can be compared stand together, the best first. Args: given, the named flags that a
    run must have been given. The test result is that of the run's first protocol. The runs are
    [(folder, summary)].
    """
    wanted = {{"algo": "algorithm"}.get(name, name): value for name, value in given.items()}
    if wanted.get("preset") == "auto":
        del wanted["preset"]
    heading = [*COLUMNS, "protocol", "mean", "normalized", "its 95% CI", "spent", "folder"]
    rows, runs = [], []
    for path in sorted(remote.path(root).glob("*/*/*/*/summary.json")):
        summary = outputs.read_summary(path.parent)
        if any(summary[name] != wanted[name] for name in COLUMNS if name in wanted):
            continue
        runs.append((path.parent, summary))
        for entry in tables.native(summary["results"]):
            if (entry["task_set"], entry["protocol"]) != ("test", summary["protocols"][0]):
                continue
            numbers = [entry["protocol"], f"{entry['mean']:.2f}", f"{entry['normalized']:.3f}"]
            numbers += [tables.interval(entry, "normalized_ci95"), tables.spent(entry)]
            folder = f"{path.parent} ({entry['sweep']})" if "sweep" in entry else str(path.parent)
            value = entry["normalized"]
            at = math.inf if math.isnan(value) else -value  # what diverged is last
            place = *(summary[name] for name in ALIKE), entry["protocol"], at
            rows.append((place, [*(str(summary[c]) for c in COLUMNS), *numbers, folder]))
    return [heading, *(row for _, row in sorted(rows, key=lambda row: row[0]))], runs


def runs_below(places):
    """Returns [(folder, summary)] of run folders and of all runs below other folders.

    Raises UserError for a place without a finished run.
    """
    found = {}
    for place in map(remote.path, places):
        place = place.parent if place.name == "summary.json" else place
        paths = sorted(place.glob("**/summary.json"))
        if (place / "summary.json").exists():
            paths = [place / "summary.json"]
        here = [path.parent for path in paths if not code_identity.is_aside(path.parent)]
        if not here:
            outputs.read_summary(place)  # says that there is none
        for folder in here:
            summary = outputs.read_summary(folder)
            if folder != place and tables.is_sweep(summary):
                print(f"left out: {folder} is a sweep, see it with --run={folder}\n")
            else:
                found[str(folder)] = folder, summary
    if len(found) < 2:
        raise errors.UserError(
            f"--compare has {len(found)} run: expected two or more, as "
            f"--compare=RUN --compare=RUN, or a folder of runs"
        )
    return list(found.values())


def redraw(folder, point):
    """Draws the figures of a finished run again, for one grid point; returns its label.

    Raises UserError for a point that the run has not.
    """
    shard = shards.read_shard(folder)
    if shard is None or remote.is_remote(str(folder)):
        raise errors.UserError(
            f"{folder} is no run folder of this machine with its config.json: its figures cannot "
            f"be drawn again; leave --point out"
        )
    config, points = shards.settings_of(shard.identity)
    if not 0 <= point < len(points):
        raise errors.UserError(
            f"--point is {point}: expected 0 to {len(points) - 1}, the grid points of {folder}"
        )
    returns, embeddings, rollouts = (
        shards.load(shard, f"{name}.npz") for name in ("returns", "embeddings", "rollouts")
    )
    request, env = flags.Request(config, points, "", ""), assembly.env_of(config)
    trace = rollouts["paths"], rollouts["mask"]
    outputs.draw(folder, request, env, returns, embeddings, trace, point)
    return outputs.label(points[point]) or "the only one"


def run(line):
    """The command."""
    own = line.own
    if own["html"]:
        run_page.check(own["html"])
    kind = beside if own["compare"] else alone if own["run"] else listed
    runs, content = kind(line)
    note = code_identity.note([(folder, code_identity.hash_of(s)) for folder, s in runs])
    if note:
        print(f"\n{note}")
    if own["html"]:
        title, parts = content()
        run_page.write(own["html"], title, [*parts, page.Text(note or "")])
        print(f"page: {own['html']}")


def beside(line):
    """`--compare`; returns [(folder, summary)] and a function () -> (title, parts) of the page."""
    for name in ("run", "point", *CHOOSE, "out"):
        if name in line.given:
            raise errors.UserError(f"report does not use --{name} with --compare: leave it out")
    runs = runs_below(line.own["compare"])
    print(compare.markdown(runs) if line.own["markdown"] else "\n".join(compare.lines(runs)))
    return runs, lambda: run_page.of_runs(runs)


def alone(line):
    """`--run`; returns what `beside` does."""
    for name in (name for name in (*CHOOSE, "out") if name in line.given):
        raise errors.UserError(
            f"report does not use --{name} with --run: expected --run=FOLDER alone, or no "
            f"--run and some of {', '.join('--' + choice for choice in (*CHOOSE, 'out'))}"
        )
    folder = remote.path(line.own["run"])
    summary = outputs.read_summary(folder)
    place = folder.parent if folder.name == "summary.json" else folder
    if line.own["markdown"]:
        print(tables.markdown(summary["results"]))
    else:
        outputs.print_table(summary, line.own["run"])
        for each in [] if remote.is_remote(str(place)) else evaluate.stored(place):
            print("\n" + "\n".join(evaluate.describe(each)))
    if "point" in line.given:
        name = redraw(place, line.own["point"])
        print(f"figures of grid point {name}: {place / 'figures'}")
    return [(place, summary)], lambda: run_page.of_run(place, summary)


def listed(line):
    """All runs below `--out`; returns what `beside` does."""
    if "point" in line.given:
        raise errors.UserError("--point chooses a grid point of one run: pass --run=FOLDER, too")
    request = flags.resolve(in_any_suite(line))  # names that do not exist are told
    rows, runs = overview(request.out, line.given)
    if len(rows) == 1:
        raise errors.UserError(
            f"no such finished run below {request.out}: pass another --out or fewer flags, or run "
            f"`{errors.command('run')}` first"
        )
    as_markdown = line.own["markdown"]
    print(tables.markdown_grid(rows) if as_markdown else tables.plain_grid(rows, len(rows[0])))
    return runs, lambda: run_page.of_list(rows, runs)


def in_any_suite(line):
    """Returns a Line whose --env is in its suite where no --suite was given."""
    if "env" not in line.given or "suite" in line.given:
        return line
    suites = tuple(registry.load("environment", line.shared["env"]).SETTINGS)
    suite = line.shared["suite"] if line.shared["suite"] in suites else suites[0]
    return line._replace(shared=line.shared | {"suite": suite})


COMMAND = Command(
    "report",
    SUMMARY,
    run,
    own=EXTRA,
    shared=(*CHOOSE, "out"),
    resumes=False,
    texts=tuple((name, f"list only the runs with this {name}") for name in CHOOSE),
)

if __name__ == "__main__":
    start(COMMAND)
