"""Checks of environments. Each says in words what an author should change."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import needs
from gentle_jax.envs import base
from gentle_jax.testing.trees import check_finite
from gentle_jax.types import Env, Task, Transition


def check_rows(env: Env, rows: Transition, mask: Any) -> None:
    """Asserts shapes, types and order of the rows of one episode, and that they are finite."""
    sizes = {"obs": (env.obs_dim,), "next_obs": (env.obs_dim,), "action": (env.action_dim,)}
    for name, found in {**rows._asdict(), "mask": mask}.items():
        expected = (env.horizon, *sizes.get(name, ()))
        assert found.shape == expected, f"{name} has shape {found.shape}, expected {expected}"
        assert found.dtype == jnp.float32, f"{name} is {found.dtype}, expected float32"
    check_finite("a random episode", rows)
    if env.ends_early:
        assert mask[0] == 1, "an episode has no step"
    else:
        assert mask.all(), "an episode ends before the horizon: set ends_early=True"
    np.testing.assert_array_equal(rows.obs[1:], rows.next_obs[:-1])


def check_tasks(env: Env) -> None:
    """Asserts that ids, parameters and leaves of tasks belong together."""
    counts = {leaf.shape[0] for leaf in jax.tree.leaves(env.tasks)}
    assert len(counts) == 1, f"leaves of `tasks` have several lengths: {sorted(counts)}"
    num_tasks = counts.pop()
    train, test = set(env.train_ids.tolist()), set(env.test_ids.tolist())
    everything = set(range(num_tasks))
    apart = not train & test or train & test == everything  # or the same (Cheetah-Dir)
    assert apart, f"tasks are both trained on and tested: {sorted(train & test)}"
    assert train | test == everything, "train_ids and test_ids do not name every task once"
    expected = (num_tasks, len(env.parameter_names))
    assert env.parameters.shape == expected, (
        f"`parameters` has shape {env.parameters.shape}, expected {expected}: a row a task, a "
        "column a name"
    )


def check_offers(name: str, env: Env) -> None:
    """Asserts that an environment has what its module claims. Args: name, of its module."""
    claimed, there = "relabel" in needs.offers_of("environment", name), env.relabel is not None
    assert there == claimed, f"OFFERS names relabel: {claimed}; the Env has one: {there}"


def check_relabel(env: Env, rows: Transition, task: Task, reward: Any, atol: float = 1e-4) -> None:
    """Asserts that stored rows, scaled or not, have the reward that `Env.step` gave."""
    near = {"rtol": 1e-5, "atol": atol, "err_msg": "`relabel` is not the reward of `step`"}
    np.testing.assert_allclose(env.relabel(task, rows), reward, **near)
    flat = np.asarray(rows.obs).reshape(-1, env.obs_dim)
    mean, std = flat.mean(0), flat.std(0) + 0.1
    scale = lambda obs: (obs - mean) / std
    scaled = rows._replace(obs=scale(rows.obs), next_obs=scale(rows.next_obs))
    wrapped = base.normalize(env, mean, std)
    np.testing.assert_allclose(wrapped.relabel(task, scaled), reward, **near)
