"""Set encoders as beliefs: order, padding and pieces of a context do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import encoders
from gentle_jax.types import Spec, Transition

pytestmark = pytest.mark.usefixtures("strict_rank")
SPEC, ROWS, LATENT = Spec(3, 2, 4, 100, 5), 12, 4


@pytest.fixture(scope="module", params=[False, True], ids=["reward", "next_obs"])
def encoder(request):
    """(parameters, prior(), jitted extend, sample, whether s' is seen, encode)."""
    made = encoders.mean_encoder(SPEC, LATENT, 8, 2, request.param)
    params = jax.tree.map(lambda x: 20 * x, made.init(jax.random.key(0)))  # codes of order 1
    extend, encode = jax.jit(made.extend), jax.jit(made.encode)
    bound = [lambda *args, f=f: f(params, *args) for f in (made.prior, extend, made.sample, encode)]
    return params["encoder"], *bound[:3], request.param, bound[3]


def context(rows=ROWS, seed=0):
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.array(random.normal(size=shape), jnp.float32)
    return Transition(
        normal(rows, 3), normal(rows, 2), normal(rows), normal(rows), normal(rows, 3), normal(rows)
    )


def z_of(encoder, rows, mask=None):
    _, prior, extend, sample, *_ = encoder
    mask = jnp.ones(rows.reward.shape[0]) if mask is None else jnp.asarray(mask, jnp.float32)
    return sample(extend(prior(), rows, mask), jax.random.key(0))


def test_z_is_the_mean_of_tanh_codes(encoder):
    params, *_, use_next_obs, _ = encoder
    rows = context()
    columns = [rows.obs, rows.action, rows.context_reward[:, None]]
    columns += [rows.next_obs] if use_next_obs else []
    codes = np.tanh(ref.mlp(params, np.concatenate(columns, -1), 2))
    np.testing.assert_allclose(z_of(encoder, rows), codes.mean(0), atol=1e-5)
    assert np.abs(z_of(encoder, rows)).max() < 1.0


def test_prior_is_zero_before_any_transition(encoder):
    _, prior, _, sample, *_ = encoder
    np.testing.assert_array_equal(sample(prior(), jax.random.key(0)), np.zeros(LATENT))


def test_order_does_not_matter(encoder):
    rows, order = context(), np.random.default_rng(1).permutation(ROWS)
    shuffled = jax.tree.map(lambda x: x[order], rows)
    np.testing.assert_allclose(z_of(encoder, rows), z_of(encoder, shuffled), atol=1e-6)


def test_padding_does_not_matter_even_if_it_is_nan(encoder):
    rows, mask = context(), np.arange(ROWS) < 5
    short = z_of(encoder, jax.tree.map(lambda x: x[:5], rows))
    for filler in (0.0, 1e30, jnp.nan):
        fill = lambda x, filler=filler: jnp.where(
            mask.reshape((-1,) + (1,) * (x.ndim - 1)), x, filler
        )
        np.testing.assert_allclose(z_of(encoder, jax.tree.map(fill, rows), mask), short, atol=1e-6)


def test_no_rows_at_all_leave_the_prior(encoder):
    nothing = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), context())
    np.testing.assert_array_equal(z_of(encoder, nothing, np.zeros(ROWS)), np.zeros(LATENT))


def test_pieces_equal_the_whole(encoder):
    _, prior, extend, sample, *_ = encoder
    rows, belief = context(), prior()
    for low, high in ((0, 1), (1, 5), (5, ROWS)):
        piece = jax.tree.map(lambda x, low=low, high=high: x[low:high], rows)
        belief = extend(belief, piece, jnp.ones(high - low))
    np.testing.assert_allclose(sample(belief, jax.random.key(0)), z_of(encoder, rows), atol=1e-6)


def test_context_sees_the_sparse_reward_and_never_the_end_flag(encoder):
    *_, use_next_obs, _ = encoder
    rows = context()
    z = z_of(encoder, rows)
    for field in ("reward", "terminal") + (() if use_next_obs else ("next_obs",)):
        other = rows._replace(**{field: getattr(rows, field) + 1.0})
        np.testing.assert_array_equal(z_of(encoder, other), z)
    for field in ("obs", "action", "context_reward") + (("next_obs",) if use_next_obs else ()):
        other = rows._replace(**{field: getattr(rows, field) + 1.0})
        assert np.abs(z_of(encoder, other) - z).max() > 1e-4


def test_encode_gives_the_codes_of_rows_and_the_z_of_each_task(encoder):
    # as at test time: a task's z is what the belief of the same rows samples
    *_, encode = encoder
    tasks = [context(seed=seed) for seed in range(3)]
    both = jax.tree.map(lambda *x: jnp.stack(x), *tasks)
    codes, z = encode(both, jnp.arange(3), jax.random.key(0))
    assert codes.shape == (3, ROWS, LATENT)
    np.testing.assert_allclose(codes.mean(1), z, atol=1e-6)
    for task, rows in enumerate(tasks):
        np.testing.assert_allclose(z[task], z_of(encoder, rows), atol=1e-6)
    # deterministic: neither ids nor key matter
    again = encode(both, jnp.array([7, 7, 7]), jax.random.key(1))
    np.testing.assert_array_equal(again[1], z)


def test_row_size_counts_the_columns():
    for use_next_obs, size in ((False, 3 + 2 + 1), (True, 3 + 2 + 1 + 3)):
        assert encoders.row_size(SPEC, use_next_obs) == size
        assert encoders.context_row(context(), use_next_obs).shape == (ROWS, size)
