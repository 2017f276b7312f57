"""Checks of backbones. Each says in words what an author should change."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gentle_jax.testing.trees import named
from gentle_jax.types import Cond, State, Transition


def check_z_of_rows(
    update: Callable, state: State, batches: Transition, cond: Cond, rtol: float, atol: float
) -> None:
    """Asserts that a z per row, the z of its task, does what a z per task does.

    Args: update, (state, batches, cond) -> (state, dz, metrics); batches, leaves [K, N, ...]; cond,
    a z per task [K, T, Z].
    """
    num_rows, (_, num_tasks, size) = batches.reward.shape[1], cond.now.shape
    by_row = Cond(*(jnp.repeat(z, num_rows // num_tasks, axis=1) for z in cond))
    after, dz, metrics = update(state, batches, cond)
    after_rows, dz_rows, metrics_rows = update(state, batches, by_row)
    assert dz.shape == (num_tasks, size), f"dz is {dz.shape}, expected that of cond.now"
    shape = dz_rows.shape
    assert shape == (num_rows, size), f"dz of a z per row is {shape}, expected {(num_rows, size)}"
    near = {"rtol": rtol, "atol": atol}
    total = dz_rows.reshape(num_tasks, -1, size).sum(1)
    text = "dz of rows does not add up to that of their task: z[i] is that of the i-th group"
    np.testing.assert_allclose(total, dz, **near, err_msg=text)
    pairs = zip(named((after_rows, metrics_rows)), named((after, metrics)), strict=True)
    for (name, found), (_, expected) in pairs:
        text = f"{name} after an update with a z per row is not that with the z of its task"
        if jnp.issubdtype(found.dtype, jnp.floating):
            np.testing.assert_allclose(found, expected, **near, err_msg=text)
