"""Contracts of a protocol: `--protocol`, with a small agent, or that of `--algo`, in `--env`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import rng
from gentle_jax.testing import small
from gentle_jax.testing.trees import row
from gentle_jax.types import Offline


@pytest.fixture(scope="module")
def made(given):
    """The small experiment with this protocol alone."""
    env = given.get("environment", config_lib.RunConfig.env)
    algorithm = given.get("algorithm", small.PROBE)
    return small.make(algorithm, given.get("backbone", ""), env, given["protocol"])


@pytest.fixture(scope="module")
def protocol(made):
    """The Protocol."""
    (found,) = made.protocols.values()
    return found


@pytest.fixture(scope="module")
def run(made, protocol):
    """key -> Outcome in the last task."""
    state = row(made.states(), 0)
    last = len(made.env.parameters) - 1
    task = jax.tree.map(lambda x: jnp.asarray(x[last]), made.env.tasks)

    @jax.jit
    def outcome(key, data):
        own = data_lib.view_tasks(data, jnp.array([len(data.episode_start) - 1]))
        train = data_lib.view_tasks(data, jnp.arange(made.spec.num_train_tasks))
        return protocol.run(made.algorithm, state, made.env, task, Offline(own, train), key)

    return lambda key: outcome(rng.key(key), made.data)


def test_returns_are_finite_and_one_an_episode(made, protocol, run):
    found, count = run(0), protocol.num_episodes
    shape = found.returns.shape
    assert shape == (count,), f"returns have shape {shape}, num_episodes is {count}"
    returns = np.asarray(found.returns)
    # where episodes end early, slots between the first and the last may be no episode
    checked = returns[[0, -1]] if made.env.ends_early else returns
    assert np.isfinite(checked).all(), f"returns are not finite: {returns}"


def test_rows_and_mask_have_their_shapes(made, protocol, run):
    found = run(0)
    count = 1 if made.env.ends_early else protocol.num_episodes
    expected = (count, made.env.horizon)
    assert found.mask.shape == expected, f"mask has shape {found.mask.shape}, expected {expected}"
    sizes = {"obs": made.env.obs_dim, "next_obs": made.env.obs_dim, "action": made.env.action_dim}
    for name, leaf in found.rows._asdict().items():
        shape = (*expected, sizes[name]) if name in sizes else expected
        assert leaf.shape == shape, f"rows.{name} has shape {leaf.shape}, expected {shape}"


def test_costs_do_not_shrink(protocol, run):
    for name, cost in run(0).cost._asdict().items():
        spread = np.broadcast_to(cost, (protocol.num_episodes,))
        spread = spread[~np.isnan(spread)]
        text = f"cost.{name} is what was spent before each episode, and shrinks: {spread}"
        assert (np.diff(spread) >= 0).all(), text


def test_the_same_key_gives_the_same_outcome(run):
    first, again = run(0), run(0)
    text = "two runs with one key differ; draw with jax.random only"
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=text)  # NaN, no episode, is like NaN


def test_metrics_are_numbers_of_returns(protocol):
    assert protocol.metrics, "`metrics` is empty: the first one is reported"
    returns = np.linspace(0.0, 1.0, 3 * protocol.num_episodes).reshape(3, -1).astype(np.float32)
    for name, metric in protocol.metrics.items():
        found = np.asarray(metric(returns))
        assert found.shape == (3,), f"metric {name} makes {found.shape} of returns [3, E]"
        assert np.isfinite(found).all(), f"metric {name} is not finite"
