"""Checkpoints of a whole run behind one small module (Orbax).

A checkpoint is a pytree plus a JSON dict. It is complete or absent, whatever kills the process;
the two newest are kept, and a damaged newest one falls back to the one before with a warning.
"""

import logging
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at info level


class Checkpoints:
    """The checkpoints in one folder. Holds Orbax's writer thread, hence a class."""

    def __init__(self, folder, keep=2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step, tree, meta):
        """Saves in the background; the arrays may be donated as soon as this returns."""
        leaves = jax.tree.leaves(tree)
        copies = {f"{i:05d}": np.array(leaf, copy=True) for i, leaf in enumerate(leaves)}
        items = ocp.args.Composite(tree=ocp.args.StandardSave(copies), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=items, force=True)

    def restore(self, like):
        """Returns (tree, meta) of the newest readable checkpoint, or None if there is none.

        Args: like, a pytree of arrays or shapes that the checkpoint must fit.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(step, like)
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0][:120]
                message = f"checkpoint {step} is damaged, trying the one before ({reason})"
                warnings.warn(message, stacklevel=2)
                self._manager.delete(step)  # its step is saved again, and it must not be kept
        return None

    def _read(self, step, like):
        leaves, structure = jax.tree.flatten(like)
        target = {
            f"{i:05d}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        }
        items = ocp.args.Composite(
            tree=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=items)
        ordered = [np.asarray(found.tree[name]) for name in sorted(found.tree)]
        for value, leaf in zip(ordered, leaves, strict=True):
            if value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise ValueError(
                    f"saved {value.shape} {value.dtype}, not {leaf.shape} {leaf.dtype}"
                )
        return jax.tree.unflatten(structure, ordered), found.meta

    def wait(self):
        """Blocks until the last save is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self):
        """Waits and frees the writer."""
        self._manager.close()
