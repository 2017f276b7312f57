"""Does a dataset that was collected come from the code that is here now? As `code_identity`.

meta.json holds the version and the source hash of the code that collecting began with, and
`resumed_with` those that it went on with; so does every checkpoint of a collection. Data that were
imported are not made by our code: nothing is compared.
"""

import functools

import gentle_jax
from gentle_jax import checkpoint, errors, provenance, storage

from ..host import computer
from . import code_identity
from .code_identity import HASH, spell

PROGRESS = "progress"  # the folder of checkpoints within a dataset's folder
RESUMED = "resumed_with"


def of(config):
    """Returns {"version", HASH} of the code that is here, for data that a config collects."""
    return {"version": gentle_jax.__version__, HASH: present(config.run.env)}


@functools.cache
def present(env):
    """Returns the source hash that data of an environment have here, None if it is unknown."""
    return code_identity.hash_or_none(lambda: provenance.data_entries(env))


def recorded(meta):
    """Returns the set of source hashes that made data; None: an unknown one.

    Args: meta, of a dataset that was collected, or of a checkpoint of its collection.
    """
    return {meta.get(HASH), *(later[HASH] for later in meta.get(RESUMED, []))}


def extended(meta, now):
    """Returns what `meta` says of code, and that collecting goes on with `now`, as `of` has it."""
    kept = {name: meta[name] for name in (*now, RESUMED) if name in meta}
    last = [kept, *kept.get(RESUMED, [])][-1]
    if all(last.get(name) == value for name, value in now.items()):
        return kept
    return kept | {RESUMED: [*kept.get(RESUMED, []), now]}


def settle(config, folder, fresh=False, accept_code=False, waiting=""):
    """Sees to data that other code made or began, before they are used or collecting goes on.

    With `fresh` they make way, with `accept_code` they are taken as they are. Raises UserError
    without either, and for data of another configuration. Says in one line what is done. Args:
    waiting, as `computer.alone`: what is said while another process makes them.
    """
    code_identity.check_flags(fresh, accept_code)
    begun = None if storage.is_complete(folder) else _newest(folder, waiting)
    done = storage.is_complete(folder)  # by another process, too, that was waited for
    meta = storage.read_meta(folder) if done else begun
    if meta is None:
        return
    if done:
        storage.check_identity(meta, config, folder)
        if storage.source_of(meta):
            return
    here, codes = of(config)[HASH], recorded(meta)
    if here is not None and here in codes:
        if fresh:
            print("data: --fresh changes nothing of the data: the same code made them", flush=True)
        if len(codes) > 1:
            print(f"data: the code has changed on the way: {spell(codes)} had a part in them")
        return
    if fresh:
        aside = code_identity.put_aside(folder.absolute())
        (folder / PROGRESS).mkdir(parents=True)  # an interruption leaves a folder to go on in
        print(f"data: the code has changed: starting anew, the old data are in {aside}", flush=True)
    elif accept_code:
        what = "these data are of" if done else "going on with what was begun by"
        print(f"data: {what} other code ({spell(codes)}) than that here ({spell([here])})")
    else:
        what = "take them as they are" if done else "go on with the code that is here"
        raise errors.UserError(
            f"the data in {folder} were {'made' if done else 'begun'} by other code "
            f"({spell(codes)}) than that here ({spell([here])}): pass --fresh to make them anew "
            f"(the old ones are put aside), or --accept_code to {what}"
        )


def _newest(folder, waiting):
    """Returns the meta of an interrupted collection's newest checkpoint, None where none is."""
    if not (folder / PROGRESS).is_dir():
        return None
    with computer.alone(folder, waiting):
        if not (folder / PROGRESS).is_dir():
            return None  # it was finished meanwhile
        with checkpoint.Checkpoints(folder / PROGRESS) as saves:
            return saves.newest_meta()
