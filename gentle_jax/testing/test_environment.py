"""Contracts of an environment: `--env`, in each of its suites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import evaluation, registry, rng
from gentle_jax.testing import environments
from gentle_jax.testing.trees import same
from gentle_jax.types import Env

HORIZON = 10  # at most: simulations take long


def pytest_generate_tests(metafunc):
    """One test for each suite of the environment."""
    if "suite" in metafunc.fixturenames:
        name = metafunc.config.option.gentle_env
        suites = list(registry.load("environment", name).SETTINGS)
        metafunc.parametrize("suite", suites, scope="module")


@pytest.fixture(scope="module")
def env(given, suite):
    """The Env, on the physics that this machine has."""
    module = registry.load("environment", given["environment"])
    made = module.make(suite, config_lib.usable_physics(module.PHYSICS)[-1])
    assert isinstance(made, Env), "`make` returns no gentle_jax.types.Env"
    return made if made.system is None else made._replace(horizon=min(HORIZON, made.horizon))


@pytest.fixture(scope="module")
def run(env):
    """(index of a task, key) -> (rows, mask) of one random episode."""
    policy = lambda obs, key, index: jax.random.uniform(key, (env.action_dim,), minval=-1.0)
    jitted = jax.jit(lambda task, key: evaluation.rollout(env, task, policy, key))
    call = lambda index, key: jitted(task(env, index), rng.key(key))
    call.jitted = jitted
    return call


def task(env, index):
    """One task."""
    return jax.tree.map(lambda x: x[index], env.tasks)


def test_tasks_belong_together(env):
    environments.check_tasks(env)


def test_the_environment_has_its_suites_name(env, suite):
    assert env.suite == suite, f"make({suite!r}, ...) returns an Env whose suite is {env.suite!r}"


def test_reset_returns_a_state_and_one_observation(env):
    _, obs = jax.eval_shape(env.reset, task(env, 0), rng.key(0))
    assert obs.shape == (env.obs_dim,), f"`reset` observes {obs.shape}, obs_dim is {env.obs_dim}"


def test_step_keeps_the_state_and_returns_scalars(env):
    action = jnp.zeros(env.action_dim)
    state, _ = jax.eval_shape(env.reset, task(env, 0), rng.key(0))
    after, out = jax.eval_shape(env.step, task(env, 0), state, action)
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kind(after) == kind(state), f"`step` makes {kind(after)} of the state {kind(state)}"
    for name in ("reward", "context_reward", "terminal"):
        shape = getattr(out, name).shape
        assert shape == (), f"`step` returns a {name} of shape {shape}, expected a scalar"


def test_random_episodes_are_finite_and_last_a_horizon(env, run):
    for index in (0, len(env.parameters) - 1):
        environments.check_rows(env, *run(index, index))
    assert run.jitted._cache_size() == 1, "another task compiles again: use the `task` argument"


def test_episodes_of_one_key_are_the_same(run):
    assert same(run(0, 3), run(0, 3)), "two episodes of one key differ; draw with jax.random only"


def test_tasks_differ(env, run):
    one, other = (run(index, 0)[0] for index in (0, len(env.parameters) // 2))
    assert not same(one, other), "the same actions in two tasks give the same rows and rewards"


def test_actions_beyond_one_are_finite(env):
    state, _ = env.reset(task(env, 0), rng.key(0))
    step = jax.jit(env.step)
    for size in (1.0, -1.0):
        _, out = step(task(env, 0), state, jnp.full(env.action_dim, size))
        assert all(np.isfinite(x).all() for x in out), f"an action of {size} is not finite"


def test_relabel_is_the_reward_of_step(env, run):
    if env.relabel is None:
        pytest.skip("the environment offers no relabel")
    for index in (0, len(env.parameters) - 1):
        rows, _ = run(index, index)
        # positions in float32 that are divided by a short time step
        atol = 1e-4 if env.system is None else 1e-2
        environments.check_relabel(env, rows, task(env, index), rows.reward, atol)


def test_what_is_offered_is_there(given, env):
    environments.check_offers(given["environment"], env)
