"""Cholesky factors of small matrices without LAPACK, for CPUs.

Two devices of a CPU that run batched LAPACK kernels at once wait for each other for good (jax
0.10.2: MJX's ant in `reference`, 512 side by side, hung in its first calls). These are loops over
columns of plain array operations: as fast where many matrices are factored side by side.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cho_factor(matrix: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], bool]:
    """Returns (upper factor, False) of a positive definite matrix, as SciPy does."""
    rows = jnp.arange(matrix.shape[0])

    def column(j, rest):
        """Writes column j of the lower factor, and subtracts its product from later columns."""
        pivot = rest[:, j]
        factor = jnp.where(rows >= j, pivot / jnp.sqrt(pivot[j]), 0.0)
        below = jnp.where(rows > j, factor, 0.0)
        return (rest - below[:, None] * below[None, :]).at[:, j].set(factor)

    return jax.lax.fori_loop(0, len(rows), column, matrix).T, False


def cho_solve(
    factor: tuple[Float[Array, "n n"], bool], right: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Returns x with U^T U x = right. Args: factor, what `cho_factor` returns."""
    upper, _ = factor
    count = upper.shape[0]
    rows = jnp.arange(count)

    def substitute(matrix, j, after, x):
        value = x[j] / matrix[j, j]
        return jnp.where(rows == j, value, x - jnp.where(after, matrix[:, j], 0.0) * value)

    down = lambda j, x: substitute(upper.T, j, rows > j, x)
    up = lambda j, x: substitute(upper, count - 1 - j, rows < count - 1 - j, x)
    return jax.lax.fori_loop(0, count, up, jax.lax.fori_loop(0, count, down, right))


def log_det(matrix: Float[Array, "*batch n n"]) -> Float[Array, " *batch"]:
    """Returns log det of positive definite matrices: the sum of the logarithms of their pivots.

    Unrolled over n, which should be small: gradients flow through it.
    """
    total = jnp.zeros(matrix.shape[:-2])
    for _ in range(matrix.shape[-1]):
        pivot, column = matrix[..., 0, 0], matrix[..., 1:, 0]
        total += jnp.log(pivot)
        matrix = matrix[..., 1:, 1:]
        matrix -= column[..., :, None] * column[..., None, :] / pivot[..., None, None]
    return total
