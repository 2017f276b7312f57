"""The cells of a table before they run: what is there of each, and how long it may take."""

import contextlib
import json
import pathlib
import shlex
from typing import NamedTuple

from gentle_jax import assembly, errors, storage

from . import code_identity, outputs, remote

RESULTS = pathlib.Path(__file__).parents[1] / "results"
FINISHED, RESUMABLE, MISSING = "finished", "resumable", "missing"
OTHER_CODE = "other code"  # finished or begun by it: `run` asks for --fresh or --accept_code
IMPOSSIBLE = "impossible"  # these settings do not fit these tasks
STATES = (FINISHED, RESUMABLE, MISSING, OTHER_CODE, IMPOSSIBLE)
# What a cell's time is taken from: the runs that share the most of these with it
LIKENESS = (
    ("algorithm", "backbone", "env", "suite", "preset"),
    ("algorithm", "backbone", "env", "preset"),
    ("algorithm", "env", "preset"),
    ("env", "preset"),
)


class Cell(NamedTuple):
    """A row in one environment."""

    words: tuple  # of the command `run`
    request: object


class Plan(NamedTuple):
    """What is left to do of one cell."""

    state: str  # of STATES
    minutes: float | None  # until it is finished; None: nothing alike has run
    why: str = ""  # it is IMPOSSIBLE


def state_of(request, folder):
    """Returns (state, how much of it is done, 0 to 1) of a Request and its run folder."""
    done = (folder / "summary.json").exists()
    if not (done or list((folder / "checkpoints").glob("[0-9]*"))):
        return MISSING, 0.0
    now = code_identity.of(request.config.run)[code_identity.HASH]
    if now not in code_identity.recorded(folder) and not request.accept_code:
        return OTHER_CODE, 0.0
    return (FINISHED, 1.0) if done else (RESUMABLE, share_done(folder))


def share_done(folder):
    """Returns how much of a run's stage that goes on is done; 0 where it cannot be read."""
    try:
        total = json.loads((folder / "config.json").read_text())["train"]["num_steps"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        stage, last = lines[-1]["stage"], lines[-1]["step"]
        before = max((line["step"] for line in lines if line["stage"] != stage), default=0)
        return min((last - before) / total, 1.0)
    except (OSError, ValueError, KeyError, IndexError):
        return 0.0


def impossible(request, folder):
    """Returns why a Request can never run, "" if it can or has: tasks too few for a setting."""
    if (folder / "summary.json").exists():
        return ""
    try:
        assembly.check(request.config)
    except errors.UserError as error:
        return str(error)
    return ""


def measured(root):
    """Returns summaries with seconds: first of finished runs below `root`, then of our tables."""
    known = []
    for path in sorted(remote.path(root).glob("*/*/*/*/summary.json")):
        with contextlib.suppress(errors.UserError):  # damaged, or of an older version
            known.append(outputs.read_summary(path.parent))
    tables = [storage.read_json(path) for path in sorted(RESULTS.glob("*.json"))]
    known += [cell for table in tables for cell in table.get("cells", ())]
    return [s for s in known if "seconds" in s and "num_steps" in s]


def minutes_of(request, known, has_data):
    """Returns about how long a Request takes, in minutes, or None where nothing alike has run.

    Training and evaluation are scaled by seeds and steps, compiling and collecting are not.
    Args: known, of `measured`: the first that is alike counts; has_data, whether the data are
    there.
    """
    config = request.config
    own = {name: getattr(config.run, name) for name in LIKENESS[0]}
    for names in LIKENESS:
        alike = [s for s in known if all(s.get(name) == own[name] for name in names)]
        if alike:
            break
    else:
        return None
    one = alike[0]
    grown = len(request.points) * config.run.num_seeds / one["num_seeds"]
    spent = one["seconds"]
    longer = config.train.num_steps / one["num_steps"]
    seconds = spent.get("compile", 0.0)
    seconds += grown * (longer * spent.get("train", 0.0) + spent.get("evaluate", 0.0))
    same_data = [s for s in known if all(s.get(n) == own[n] for n in ("env", "suite", "preset"))]
    collected = max((s["seconds"].get("collect", 0.0) for s in same_data), default=0.0)
    return (seconds + (0.0 if has_data else collected)) / 60


def plans(chosen, folder_of, data_of):
    """Returns {at: Plan} of {at: Cell}, in their order: the first of a dataset makes it.

    Args: folder_of and data_of, Request -> its run folder, and that of its dataset.
    """
    if not chosen:
        return {}
    known = measured(next(iter(chosen.values())).request.out)
    made, found = set(), {}
    for at, cell in chosen.items():
        state, done = state_of(cell.request, folder_of(cell.request))
        data, why = data_of(cell.request), impossible(cell.request, folder_of(cell.request))
        minutes = minutes_of(cell.request, known, data in made or storage.is_complete(data))
        if why or state == FINISHED:
            found[at] = Plan(IMPOSSIBLE if why else state, 0.0, why)
            continue
        made.add(data)
        found[at] = Plan(state, None if minutes is None else (1.0 - done) * minutes)
    return found


def lines(chosen, found):
    """Returns the text of a plan: a line and a command for each cell, and the sum of all."""
    text = []
    for at, plan in found.items():
        row, env = at
        time = "    ? min" if plan.minutes is None else f"{plan.minutes:5.0f} min"
        text.append(f"{plan.state:10} {time}  {row} on {env}")
        text.append(f"    {plan.why or command(chosen[at])}")
    states = [plan.state for plan in found.values()]
    counts = ", ".join(f"{states.count(s)} {s}" for s in STATES if s in states)
    total = sum(plan.minutes or 0.0 for plan in found.values())
    unknown = sum(plan.minutes is None for plan in found.values())
    time = f"about {total:.0f} minutes, by what like runs took"
    if unknown == len(states):
        time = "minutes not known: nothing alike has run"
    elif unknown:
        time += f", and {unknown} cells of which nothing alike has run"
    return [*text, f"{len(states)} cells: {counts}; {time}"]


def command(cell):
    """Returns the shell command of a Cell."""
    return " ".join([errors.command("run"), *map(shlex.quote, cell.words)])


def part(names, shard):
    """Returns the part k of n of some names, dealt out one by one. Args: shard, "k/n", "" all.

    Raises UserError for what is no part.
    """
    if not shard:
        return names
    one, _, total = shard.partition("/")
    if not (one.isdecimal() and total.isdecimal() and 1 <= int(one) <= int(total)):
        raise errors.UserError(
            f"--shard is {shard}: expected K/N with 1 <= K <= N, such as --shard=1/4"
        )
    return names[int(one) - 1 :: int(total)]
