"""The loops of `gentle_jax.cholesky` against NumPy."""

import jax
import numpy as np
import pytest

from gentle_jax import cholesky


@pytest.mark.parametrize("size", [1, 2, 6, 14])
def test_factor_and_solution(size):
    random = np.random.default_rng(size)
    root = random.normal(size=(5, size, size + 2))
    matrices = (root @ root.transpose(0, 2, 1) + 0.1 * np.eye(size)).astype(np.float32)
    right = random.normal(size=(5, size)).astype(np.float32)
    upper = jax.vmap(lambda m: cholesky.cho_factor(m)[0])(matrices)
    expected = np.linalg.cholesky(matrices.astype(np.float64)).transpose(0, 2, 1)
    np.testing.assert_allclose(upper, expected, rtol=1e-3, atol=1e-4)
    solve = lambda u, b: cholesky.cho_solve((u, False), b)
    found = jax.vmap(solve)(upper, right)
    solved = np.linalg.solve(matrices.astype(np.float64), right[..., None])[..., 0]
    np.testing.assert_allclose(found, solved, rtol=5e-3, atol=1e-3)


def test_no_kernel_of_lapack_is_called():
    program = jax.jit(jax.vmap(lambda m: cholesky.cho_solve(cholesky.cho_factor(m), m[0])))
    text = program.lower(np.stack([np.eye(3, dtype=np.float32)] * 4)).as_text()
    assert "custom_call" not in text
