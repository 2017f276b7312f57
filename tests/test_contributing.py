"""The examples of CONTRIBUTING.md are files that work as they stand."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import evaluation, registry

TEXT = (pathlib.Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```python\n# (gentle_jax/(\w+)/(\w+)\.py)\n(.*?)^```$", TEXT, re.S | re.M)
TABLES = {
    "algorithms": registry.ALGORITHMS,
    "backbones": registry.BACKBONES,
    "envs": registry.ENVIRONMENTS,
    "protocols": registry.PROTOCOLS,
}
SMALL = {"focal.width": 8, "focal.depth": 1}


@pytest.fixture
def examples(monkeypatch):
    """Executes every example as the module that its first line names, and registers it."""
    for path, folder, entry, code in BLOCKS:
        name = f"gentle_jax.{folder}.{entry}"
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(TABLES[folder], entry, name)
        exec(compile(code, path, "exec"), vars(module))


def changed(old, new):
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


def check_two_steps(made):
    """Runs two steps of the main stage for two runs; returns the state."""
    data, keys = jax.tree.map(jnp.asarray, made.train), jax.random.split(jax.random.key(7), 2)
    states = made.states()
    step = jax.jit(jax.vmap(made.algorithm.stages[-1].step, (0, None, 0, None)))
    for index in (0, 1):
        after, metrics = step(states, data, keys, jnp.int32(index))
        before, new = jax.tree.leaves(states), jax.tree.leaves(after)
        assert jax.tree.structure(states) == jax.tree.structure(after)
        assert [(x.shape, x.dtype) for x in before] == [(x.shape, x.dtype) for x in new]
        assert all(np.isfinite(x).all() for x in new + jax.tree.leaves(metrics))
        assert changed(states.rep.params, after.rep.params) and changed(states.rl, after.rl)
        states = after
    assert step._cache_size() == 1
    return states


def test_every_table_has_an_example_with_its_line_of_the_registry():
    assert sorted(folder for _, folder, _, _ in BLOCKS) == sorted(TABLES)
    for _, folder, entry, _ in BLOCKS:
        assert f'"{entry}": "gentle_jax.{folder}.{entry}"' in TEXT


def test_focal_trains(tiny, examples):
    made = tiny("focal", backbone="td3_bc", **SMALL)
    check_two_steps(made)


def test_the_four_examples_run_together(tiny, examples):
    made = tiny("focal", env="point_robot_ring", backbone="bc", **SMALL)
    states = check_two_steps(made)
    state = jax.tree.map(lambda x: x[0], states)
    protocols = {"prior_only": made.protocols["prior_only"]}
    evaluate = jax.jit(evaluation.make_evaluate(made.algorithm, made.env, protocols, 1))
    tasks = jax.tree.map(lambda x: x[made.env.test_ids], made.env.tasks)
    offline = jax.tree.map(jnp.asarray, made.test)
    returns = evaluate(state, jax.random.key(1), tasks, offline, jnp.int32(2))["prior_only"]
    assert returns.shape == (2, protocols["prior_only"].num_episodes)
    assert np.isfinite(returns).all() and (returns < 0).all()
