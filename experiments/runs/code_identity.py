"""Does a run folder come from the code that is here now? What is done where it does not.

environment.json holds the version and the source hash (`gentle_jax.provenance`) that a run began
with; `resumed_with` those that it went on with, `shards_with` those of gathered shards that differ
from the first, `shown_with` those that showed its table. A run that began before there was a hash
counts as one of other code. Nothing is lost: a run that makes way is moved to the folder `replaced`
beside it.
"""

import functools
import json

import gentle_jax
from gentle_jax import errors, json_files, provenance, storage

from ..host import computer
from . import remote

HASH = "source_hash"
ASIDE = "replaced"  # the folder of runs that made way for new ones
SHOWN = 5  # run folders that `note` names


def of(run):
    """Returns {"version", HASH} of the code that is here, for a RunConfig."""
    return {"version": gentle_jax.__version__, HASH: hash_of(vars(run))}


def hash_of(run):
    """Returns the source hash that a run has here, None if there is no such algorithm any more.

    Args: run, a summary or a dict with its "algorithm", "backbone", "env" and "protocols".
    """
    return present(run["algorithm"], run["backbone"], run["env"], tuple(run["protocols"]))


@functools.cache
def present(algorithm, backbone, env, protocols):
    """Returns the source hash of these parts as they are here, None if it is unknown."""
    return hash_or_none(lambda: provenance.entries(algorithm, backbone, env, protocols))


def hash_or_none(entries):
    """Returns the source hash of the modules that `entries` returns, None if it is unknown."""
    try:
        return provenance.source_hash(entries())
    except errors.UserError:  # not in a table: a run of a version that had it
        return None
    except ModuleNotFoundError:  # no source file: compiled, say
        return None


def recorded(folder):
    """Returns the set of source hashes that made what is in a run folder; None: an unknown one."""
    environment = environment_of(folder)
    later = [*environment.get("resumed_with", []), *environment.get("shards_with", [])]
    return {environment.get(HASH), *(other[HASH] for other in later if HASH in other)}


def environment_of(folder):
    """Returns environment.json of a run folder, {} where there is none; UserError if damaged."""
    path = folder / "environment.json"
    if not path.exists():
        return {}
    mend = "restore it, or delete it: the run then counts as one of unknown code"
    environment = storage.read_json(path)
    if not environment or not isinstance(environment, dict):
        raise errors.UserError(f"{path} is damaged: {mend}")
    return json_files.unsealed(environment, path, mend)


def begun(folder):
    """Whether a run folder holds a result, or a checkpoint to go on from."""
    if (folder / "summary.json").exists():
        return True
    if remote.is_remote(folder):
        state = folder / remote.STATE
        return state.exists() and bool(storage.read_json(state).get("steps"))
    return bool(remote.steps_in(folder))


def settle(request, folder):
    """Sees to a run folder that other code began, before its run goes on or its table is shown.

    With `--fresh` it makes way, with `--accept_code` it is taken as it is and that is recorded.
    Raises UserError without either. Says in one line what is done.
    """
    check_flags(request.fresh, request.accept_code)
    if not begun(folder):
        return
    now, codes = of(request.config.run), recorded(folder)
    done = (folder / "summary.json").exists()
    if now[HASH] is not None and now[HASH] in codes:
        if request.fresh:
            print("run: --fresh changes nothing: this run is of the same code", flush=True)
        if len(codes) > 1:
            print(f"run: the code has changed on the way: {spell(codes)} had a part in this run")
        return
    here = spell([now[HASH]])
    if request.fresh:
        aside = put_aside(folder)
        print(f"run: the code has changed: starting anew, the old run is in {aside}", flush=True)
    elif request.accept_code and done:
        print(f"run: this table is of other code ({spell(codes)}) than that here ({here})")
        _record_showing(folder, now)
    elif request.accept_code:
        print(f"run: going on with other code ({here}) than before ({spell(codes)})")
    else:
        what = "show its table" if done else "go on with the code that is here"
        raise errors.UserError(
            f"{folder} was begun by other code ({spell(codes)}) than that here ({here}): pass "
            f"--fresh to start anew (it is put aside), or --accept_code to {what} all the same"
        )


def check_flags(fresh, accept_code):
    """Raises UserError where both flags are given."""
    if fresh and accept_code:
        raise errors.UserError("--fresh and --accept_code are both given: leave one out")


def spell(codes):
    """Returns source hashes as text."""
    names = sorted("no source hash" if code is None else code for code in codes)
    return " and ".join(names)


def put_aside(folder):
    """Moves a run's or a dataset's folder out of the way; returns where it is now.

    Raises UserError while another process works in it.
    """
    number, where = 1, folder.parent / ASIDE
    while (where / f"{folder.name}_{number}").exists():
        number += 1
    target = where / f"{folder.name}_{number}"
    if remote.is_remote(folder):
        remote.move_tree(folder, target, first=(remote.STATE, "summary.json"))
        return target
    with computer.alone(folder):
        where.mkdir(exist_ok=True)
        folder.rename(target)
    (target / ".lock").unlink(missing_ok=True)
    return target


def is_aside(folder):
    """Whether a run folder is one that `put_aside` has moved."""
    return folder.parent.name == ASIDE


def _record_showing(folder, now):
    """Notes in a finished run's environment.json that other code has shown its table."""
    environment = environment_of(folder)
    shown = environment.get("shown_with", [])
    if now in shown:
        return
    content = json_files.sealed(environment | {"shown_with": [*shown, now]})
    path = folder / "environment.json"
    if remote.is_remote(folder):
        path.write_text(json.dumps(content, indent=1))
    else:
        storage.write_json(path, content)


def check_shards(folders, accepted):
    """Raises UserError unless one code made all shards, or it was `accepted` that several did."""
    codes = [recorded(folder) for folder in folders]
    union = set().union(*codes)
    if accepted or (len(union) == 1 and None not in union):
        return
    one = next((i for i, found in enumerate(codes) if None in found or len(found) > 1), None)
    if one is not None:
        text = f"{folders[one]} was made by more than one code, or an unknown one"
        text = f"{text} ({spell(codes[one])})"
    else:
        other = next(i for i, found in enumerate(codes) if found != codes[0])
        text = f"{folders[0]} and {folders[other]} were made by different code"
        text = f"{text} ({spell(codes[0])}, {spell(codes[other])})"
    raise errors.UserError(
        f"{text}: run them again with --fresh, or pass --accept_code to merge them all the same"
    )


def note(runs):
    """Returns a line that names runs which other code than that here has made, or None.

    Args: runs, [(folder, HASH that such a run has here)].
    """
    other = [f.name for f, now in runs if begun(f) and (now is None or recorded(f) != {now})]
    if not other:
        return None
    rest = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    named = ", ".join(other[:SHOWN]) + rest
    return f"Other code than that here made {len(other)} of {len(runs)} run(s): {named}."
