"""environment.json: where a run was made, by what, and what differed when it went on.

`computer.environment` says what results depend on beside their settings; `code_identity` adds the
code. Differences are told, and kept in `resumed_with` of a run and `shards_with` of gathered ones.
"""

import collections

from gentle_jax import config as config_lib
from gentle_jax import json_files, storage

from ..host import computer
from . import code_identity, data_code


def write(folder, run, meta=None):
    """Writes environment.json; that of a run that goes on stays, and gets what differs now.

    Args: run, a RunConfig; meta, of the run's data: the hashes of the code that collected them are
    recorded. Raises UserError for one that was altered.
    """
    now = computer.environment() | code_identity.of(run)
    if "sha256" in (meta or {}):  # of what its files hold, whoever made them
        now["data_fingerprint"] = config_lib.fingerprint(meta["sha256"])
    if meta is not None and not storage.source_of(meta):
        now["data_source_hash"] = code_identity.spell(data_code.recorded(meta))
    if code_identity.begun(folder) and (first := code_identity.environment_of(folder)):
        last = dict(collections.ChainMap(*reversed(first.get("resumed_with", [])), first))
        changed = {key: value for key, value in now.items() if last.get(key) != value}
        if not changed:
            return
        tell(last, now, "run")
        now = first | {"resumed_with": [*first.get("resumed_with", []), changed]}
    storage.write_json(folder / "environment.json", json_files.sealed(now))


def tell(before, now, who):
    """Prints what has changed between two environments; what the first did not record is unknown.

    Args: who, "run" or "data", which goes on.
    """
    names = changed_in({key: value for key, value in now.items() if key in before}, before)
    if names:
        print(f"{who}: {' and '.join(names)} changed since it began: bits may differ", flush=True)


def changed_in(now, before, prefix=""):
    """Returns the names of what differs, sorted; those of dicts (versions, switches) dotted."""
    names = []
    for key in sorted({*now, *before} if prefix else now):
        one, other = now.get(key), before.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names += changed_in(one, other, f"{prefix}{key}.")
        elif one != other:
            names.append(f"{prefix}{key}")
    return names


def merged(shards):
    """Returns the environment.json of gathered Shards; prints a warning line for what differs."""
    each = [code_identity.environment_of(shard.folder) for shard in shards]
    first, others, names = each[0], [], set()
    for shard, one in zip(shards[1:], each[1:], strict=True):
        keys = [key for key in sorted({*first, *one}) if first.get(key) != one.get(key)]
        if keys:
            others.append({"folder": str(shard.folder), **{key: one.get(key) for key in keys}})
            known = {key: one.get(key) for key in {*first, *one}}
            names |= set(changed_in(known, first))
    if others:
        print(
            f"gather: WARNING: {len(others)} of {len(shards)} shards differ from the first in "
            f"{', '.join(sorted(names))} (environment.json has them)"
        )
        first = first | {"shards_with": others}
    return first
