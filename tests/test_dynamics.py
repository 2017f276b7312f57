"""GENTLE's dynamics ensembles: what they train on, when they stop, what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import data as data_lib
from gentle_jax.algorithms.gentle import dynamics
from gentle_jax.types import Spec, Transition

DYNAMICS_ROWS, MODEL_BATCH = 200, 32


@pytest.fixture(scope="module")
def models():
    """(Ensemble of 2 tasks x 1 member, data, run(state, lr, from, steps), initial state)."""
    random = np.random.default_rng(0)
    obs = random.normal(size=(2, DYNAMICS_ROWS, 1)).astype(np.float32)
    action = random.uniform(-1, 1, (2, DYNAMICS_ROWS, 1)).astype(np.float32)
    reward = (obs - 2 * action)[..., 0] * np.array([[1.0], [-1.0]], np.float32)  # learnable
    leaves = Transition(obs, action, 99 + reward, reward, obs, 0 * reward)
    start = np.tile(np.array([0, DYNAMICS_ROWS], np.int32), (2, 1))
    data = jax.tree.map(jnp.asarray, data_lib.Dataset(leaves, start, 1, 1))
    made = dynamics.make(Spec(1, 1, 2, DYNAMICS_ROWS, 1), 16, 1, MODEL_BATCH, 30, 5, False)

    @jax.jit
    def run(state, lr, begin, steps):
        def body(i, state):
            return made.step(state, data, lr, jax.random.fold_in(jax.random.key(0), i), i)[0]

        return jax.lax.fori_loop(begin, begin + steps, body, state)

    return made, data, run, jax.jit(made.init)(jax.random.key(0))


def test_sizes_of_holdout_and_epochs():
    assert dynamics.sizes(200, 32) == (40, 160, 5)  # 20 %
    assert dynamics.sizes(10_000, 256) == (1000, 9000, 36)  # at most 1000; the last batch is short


def test_holdout_rows_are_never_trained_on(models):
    made, _, _, state = models
    assert made.num_steps == 30 * 5
    for task in range(2):
        held, trained = set(np.asarray(state.holdout[task])), set(np.ravel(state.order[task]))
        assert len(held) == 40 and not held & trained
        assert len(trained) < 160  # bootstrapped: some rows twice, some never


def holdout_error(models, params, state, task):
    """Squared error on the held-out rows through `predict`: mean over one member is the member."""
    made, data, _, _ = models
    rows = jax.tree.map(lambda x: x[task][state.holdout[task]], data.rows)
    reward, next_obs = made.predict(row_of(params, task), rows.obs, rows.action)
    assert next_obs is None
    return float(((reward - rows.context_reward) ** 2).mean())


def row_of(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


def test_holdout_error_falls_on_a_learnable_reward(models):
    made, _, run, state = models
    one_epoch = run(state, 1e-2, 0, 5)
    trained = run(state, 1e-2, 0, made.num_steps)
    assert (np.asarray(trained.best_error) < 0.1 * np.asarray(one_epoch.best_error)).all()
    for task in range(2):  # what is stored is the error of the snapshot
        stored = float(trained.best_error[task, 0])
        np.testing.assert_allclose(
            holdout_error(models, trained.best, trained, task), stored, rtol=1e-3
        )


def test_a_task_stops_after_five_stale_epochs_and_stays_fixed(models):
    _, _, run, state = models
    # a rate of 0: epoch 1 improves on infinity, epochs 2..6 do not improve
    stale = run(state, 0.0, 0, 5 * 5)
    np.testing.assert_array_equal(stale.stale, [4, 4])
    stopped = run(stale, 0.0, 25, 5)
    np.testing.assert_array_equal(stopped.stale, [5, 5])
    # one task runs on, the other has stopped: only the first one still moves
    mixed = stopped.replace(stale=jnp.array([0, 5], jnp.int32))
    later = run(mixed, 1e-2, 30, 10)
    for name in ("trained", "best", "best_error"):
        new, old = getattr(later, name), getattr(mixed, name)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
            if a.ndim:  # Adam's step count has no task axis
                np.testing.assert_array_equal(a[1], b[1])
                assert not np.array_equal(a[0], b[0])
    assert int(later.stale[1]) >= 5


def test_the_best_snapshot_survives_a_divergence(models):
    _, _, run, state = models
    trained = run(state, 1e-2, 0, 50)
    worse = run(trained, 3.0, 50, 10)  # two epochs at an absurd rate
    np.testing.assert_array_equal(worse.best_error, trained.best_error)
    for a, b in zip(jax.tree.leaves(worse.best), jax.tree.leaves(trained.best), strict=True):
        np.testing.assert_array_equal(a, b)
    for task in range(2):
        assert holdout_error(models, worse.trained.params, worse, task) > float(
            worse.best_error[task, 0]
        )


def test_next_states_are_predicted_as_changes():
    made = dynamics.make(Spec(2, 1, 1, 50, 1), 8, 3, 16, 1, 5, True)
    params = jax.tree.map(jnp.zeros_like, row_of(made.init(jax.random.key(0)).trained.params, 0))
    obs = jnp.array([[1.0, -2.0]])
    reward, next_obs = made.predict(params, obs, jnp.zeros((1, 1)))
    np.testing.assert_array_equal(reward, [0.0])
    np.testing.assert_array_equal(next_obs, obs)  # zero networks: nothing changes
