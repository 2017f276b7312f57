"""Checkpoints of a whole run behind one small module (Orbax).

A checkpoint is a pytree plus a JSON dict. It is complete or absent, whatever kills the process;
the two newest are kept, and a damaged newest one falls back to the one before with a warning. One
that another version of the code wrote is an error, and stays.
"""

import contextlib
import pathlib
import shutil
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from gentle_jax import errors
from gentle_jax.config import fingerprint

UNITS = 100  # more than the evaluation programs at one step


class Checkpoints:
    """The checkpoints in one folder. Holds Orbax's writer thread, hence a class."""

    def __init__(self, folder, keep=2):
        me = jax.process_index()  # one process of several writes alone: Orbax waits for no other
        alone = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
        )
        several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        for half in pathlib.Path(folder).glob("*.orbax-checkpoint-tmp*"):  # a kill left it
            shutil.rmtree(half, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False, **several)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step, tree, meta):
        """Saves in the background; the arrays may be donated as soon as this returns."""
        leaves = jax.tree.leaves(tree)
        copies = {f"{i:05d}": np.array(leaf, copy=True) for i, leaf in enumerate(leaves)}
        whole = meta | {"layout": _layout(leaves)}
        items = ocp.args.Composite(
            tree=ocp.args.StandardSave(copies), meta=ocp.args.JsonSave(whole)
        )
        self._manager.save(step, args=items, force=True)

    def restore(self, like):
        """Returns (tree, meta) of the newest readable checkpoint, or None if there is none.

        Args: like, a pytree of arrays or shapes that the checkpoint must fit; raises UserError if
        it holds other ones.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(step, like)
            except errors.UserError:
                raise
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0][:120]
                message = f"checkpoint {step} is damaged, trying the one before ({reason})"
                warnings.warn(message, stacklevel=2)
                self._set_aside(step)
        return None

    def _set_aside(self, step):
        """Moves a damaged checkpoint out of the way: its step will be saved again."""
        folder = pathlib.Path(self._manager.directory)
        aside = folder.with_name(f"{folder.name}_damaged")
        shutil.rmtree(aside / str(step), ignore_errors=True)
        aside.mkdir(exist_ok=True)
        (folder / str(step)).replace(aside / str(step))
        self._manager.reload()

    def _read(self, step, like):
        leaves, structure = jax.tree.flatten(like)
        described = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=described).meta
        if meta.pop("layout") != _layout(leaves):
            raise errors.UserError(
                f"the checkpoint in {self._manager.directory} was written by another version of "
                f"the code: resume with that version, or delete the folder to begin anew"
            )
        target = {
            f"{i:05d}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        }
        items = ocp.args.Composite(tree=ocp.args.StandardRestore(target))
        found = self._manager.restore(step, args=items).tree
        ordered = [np.asarray(found[name]) for name in sorted(found)]
        return jax.tree.unflatten(structure, ordered), meta

    def wait(self):
        """Blocks until the last save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self):
        """Waits and frees the writer."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Ends the save that is under way, also after Ctrl-C; an error of its own is secondary."""
        with contextlib.suppress(*() if kind is None else (Exception,)):
            self.close()


def number(position):
    """Returns the number of the checkpoint of a `training.Position`: later ones are larger."""
    return position.done * UNITS + position.scored


def _layout(leaves):
    """Returns a fingerprint of the shapes and types of leaves in order."""
    return fingerprint([[list(leaf.shape), str(leaf.dtype)] for leaf in leaves])
