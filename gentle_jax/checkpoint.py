"""Checkpoints of a whole run behind one small module (Orbax).

A checkpoint is a pytree plus a JSON dict. It is complete or absent, whatever kills the process. The
dict holds the sha256 of every leaf and a checksum of its own: a changed bit is damage. The two
newest are kept: where the newest is damaged, the one before is taken, with a warning. One that
another version of the code wrote is an error, and stays; one from before there were hashes is
taken, with a warning that nothing was compared.
"""

import concurrent.futures
import contextlib
import hashlib
import logging
import pathlib
import shutil
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from gentle_jax import errors
from gentle_jax.config import fingerprint
from gentle_jax.training import Position

UNITS = 100  # more than the evaluation programs at one step
HASHES, CHECKSUM = "sha256", "checksum"
# what Orbax and the readers below it raise on changed bytes (`benchmarks/robustness.py` tries them)
DAMAGE = (OSError, ValueError, LookupError, TypeError)


class Checkpoints:
    """The checkpoints in one folder. Holds Orbax's writer thread, hence a class."""

    def __init__(self, folder: pathlib.Path, keep: int = 2, read_only: bool = False) -> None:
        self._read_only = read_only  # another process may be writing: nothing is touched
        me = jax.process_index()  # one process of several writes alone: Orbax waits for no other
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
        several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):  # a kill left it
                shutil.rmtree(unfinished, ignore_errors=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, **several)
        with _quiet() if read_only else contextlib.nullcontext():  # it warns that it is read only
            self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, tree: PyTree, meta: dict) -> None:
        """Saves in the background; the arrays may be donated as soon as this returns."""
        leaves = jax.tree.leaves(tree)
        copy = lambda leaf: np.array(leaf, copy=True, order="C")
        copies = {f"{i:05d}": copy(leaf) for i, leaf in enumerate(leaves)}
        described = meta | {"layout": _layout(leaves), HASHES: _hashes(copies.values())}
        described |= {CHECKSUM: fingerprint(described)}
        items = ocp.args.Composite(
            tree=ocp.args.StandardSave(copies), meta=ocp.args.JsonSave(described)
        )
        self._manager.save(step, args=items, force=True)

    def steps(self) -> list[int]:
        """Returns the numbers of the checkpoints that are there, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, like: PyTree, only: int | None = None) -> tuple[PyTree, dict] | None:
        """Returns (tree, meta) of the newest readable checkpoint, or None if there is none.

        Args: like, arrays or shapes that the checkpoint must fit; raises UserError if it holds
        other ones; only, the number of the one that is wanted.
        """
        for step in [only] if only is not None else self.steps():
            try:
                return self._read(step, like)
            except errors.UserError:
                raise
            except DAMAGE as error:
                reason = errors.first_line(error)[:120]
                message = f"checkpoint {step} is damaged, trying the one before ({reason})"
                warnings.warn(message, stacklevel=2)
                if not self._read_only:
                    self._set_aside(step)
        return None

    def newest_meta(self) -> dict | None:
        """Returns the meta of the newest checkpoint in which it can be read, None if there is none.

        No array is read.
        """
        for step in self.steps():
            with contextlib.suppress(*DAMAGE):  # `restore` warns of it
                return self._meta(step)
        return None

    def _meta(self, step):
        """Returns the meta of a checkpoint; raises ValueError if it does not fit its checksum."""
        only = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=only).meta
        if CHECKSUM not in meta and HASHES not in meta:
            return meta  # of a version without
        if meta.pop(CHECKSUM, None) != fingerprint(meta):
            raise ValueError("its description does not match its checksum")
        return meta

    def _set_aside(self, step):
        """Moves a damaged checkpoint out of the way: its step will be saved again."""
        folder = pathlib.Path(self._manager.directory)
        damaged = folder.with_name(f"{folder.name}_damaged")
        shutil.rmtree(damaged / str(step), ignore_errors=True)
        damaged.mkdir(exist_ok=True)
        (folder / str(step)).replace(damaged / str(step))
        self._manager.reload()

    def _read(self, step, like):
        leaves, structure = jax.tree.flatten(like)
        meta = self._meta(step)
        if meta.pop("layout") != _layout(leaves):
            raise errors.UserError(
                f"the checkpoint in {self._manager.directory} was written by another version of "
                f"the code: resume with that version, or pass --fresh or another --out to begin "
                f"anew"
            )
        known = meta.pop(HASHES, None)
        target = {
            f"{i:05d}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        }
        items = ocp.args.Composite(tree=ocp.args.StandardRestore(target))
        numbered = self._manager.restore(step, args=items).tree
        ordered = [np.asarray(numbered[name]) for name in sorted(numbered)]
        if known is None:
            message = f"checkpoint {step} is of an older version, without hashes: taken unchecked"
            warnings.warn(message, stacklevel=3)
        elif known != _hashes(ordered):
            raise ValueError("an array does not match its hash")
        return jax.tree.unflatten(structure, ordered), meta

    def wait(self) -> None:
        """Blocks until the last save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the writer."""
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Ends the save that is under way, also after Ctrl-C; its errors do not hide others."""
        with contextlib.suppress(*() if kind is None else (Exception,)):
            self.close()


@contextlib.contextmanager
def _quiet():
    """Leaves out warnings of Orbax, which come from absl's logger."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def number(position: Position) -> int:
    """Returns the number of the checkpoint at a position: later ones are larger."""
    return position.done * UNITS + position.scored


def _layout(leaves):
    """Returns a fingerprint of the shapes and types of leaves in order."""
    return fingerprint([[list(leaf.shape), str(leaf.dtype)] for leaf in leaves])


def _hashes(leaves):
    """Returns the sha256 of the bytes of every leaf, some at once: of gigabytes too."""
    one = lambda leaf: hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).data).hexdigest()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(one, leaves))
