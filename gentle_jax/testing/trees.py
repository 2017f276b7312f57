"""What checks ask of trees of arrays. In NumPy, which compiles nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def row(tree: PyTree, index: Any) -> PyTree:
    """Returns a tree of one run. Args: index, of the leading axis."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), tree)


def same(a: PyTree, b: PyTree) -> bool:
    """Whether two trees are equal bit by bit."""
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def with_row(tree: PyTree, index: int, value: PyTree) -> PyTree:
    """Returns a tree with one run replaced."""

    def put(x, v):
        x = np.array(x)
        x[index] = v
        return jnp.asarray(x)

    return jax.tree.map(put, tree, value)


def louder(tree: PyTree, scale: Any) -> PyTree:
    """Returns a tree with its floats times `scale`."""
    one = lambda x: np.asarray(x) * np.asarray(scale if x.dtype == jnp.float32 else 1, x.dtype)
    return jax.tree.map(lambda x: jnp.asarray(one(x)), tree)


def check_shapes(before: PyTree, after: PyTree, what: str = "the state after a step") -> None:
    """Asserts that two trees have one structure, and leaves of the same shapes and types."""
    old_tree, new_tree = jax.tree.structure(before), jax.tree.structure(after)
    assert old_tree == new_tree, f"{what} has another structure: {new_tree}, expected {old_tree}"
    pairs = zip(named(before), named(after), strict=True)
    for (name, old), (_, new) in pairs:
        found, expected = (new.shape, new.dtype), (old.shape, old.dtype)
        assert found == expected, f"{what} has another leaf {name}: {found}, expected {expected}"
        # nor is a state that was saved and read
        weak = getattr(old, "weak_type", False) or getattr(new, "weak_type", False)
        assert not weak, f"{what} has a weakly typed leaf {name}: make it with a dtype"


def check_finite(what: str, tree: PyTree, before: PyTree | None = None) -> None:
    """Asserts that all numbers are finite.

    Args: before, the same tree earlier: what was infinite there may be so still, as the best error
    of a model before its first one is known.
    """
    known = [None] * len(named(tree)) if before is None else jax.tree.leaves(before)
    for (name, leaf), old in zip(named(tree), known, strict=True):
        right = np.isfinite(leaf)
        if old is not None:
            right |= np.isinf(old) & (np.asarray(leaf) == np.asarray(old))
        assert right.all(), f"{what}: {name} is not finite"


def check_unshared(what: str, tree: PyTree) -> None:
    """Asserts that no two leaves are one buffer: a state that holds one twice cannot be donated."""
    seen = {}
    for name, leaf in named(tree):
        if leaf.size and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            other = seen.setdefault(leaf.unsafe_buffer_pointer(), name)
            assert other == name, f"{what}: {name} and {other} are one buffer; copy one of them"


def named(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns (path in words, leaf) of every leaf."""
    return [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
