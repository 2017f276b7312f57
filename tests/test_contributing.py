"""The examples of CONTRIBUTING.md are files that work as they stand."""

import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layout import code_lines

from gentle_jax import evaluation, learner, registry
from gentle_jax.types import Offline

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```python\n# (gentle_jax/(\w+)/(\w+)\.py)\n(.*?)^```$", TEXT, re.S | re.M)
TABLES = {
    "algorithms": registry.ALGORITHMS,
    "backbones": registry.BACKBONES,
    "envs": registry.ENVIRONMENTS,
    "protocols": registry.PROTOCOLS,
}


@pytest.fixture
def examples(monkeypatch):
    """Executes every example as the module that its first line names, and registers it."""
    for path, folder, entry, code in BLOCKS:
        name = f"gentle_jax.{folder}.{entry}"
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(TABLES[folder], entry, name)
        exec(compile(code, path, "exec"), vars(module))


def louder(tree):
    """A tree with its floats times 20: networks are nearly silent at first."""
    return jax.tree.map(lambda x: 20 * x if x.dtype == jnp.float32 else x, tree)


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


def test_a_method_made_of_shared_terms_is_short_and_is_the_file_of_the_package():
    (csro,) = [code for path, *_, code in BLOCKS if path.endswith("csro.py")]
    assert code_lines(csro) <= 30
    assert csro == (ROOT / "gentle_jax/algorithms/csro.py").read_text()


def test_what_the_text_names_is_there():
    """Every module of the library, file of the tests and page of the docs that the text names."""
    for name in re.findall(r"`((?:gentle_jax|tests|docs)/[\w./]*\w)`", TEXT):
        path = ROOT / name
        assert path.exists() or re.search(r"/x(\.py)?$", name), name
    for module, function in re.findall(r"`(compose|learner|objectives)\.(\w+)", TEXT):
        if function != "py":
            owner = __import__(f"gentle_jax.{module}", fromlist=[function])
            assert hasattr(owner, function), (module, function)


def test_the_nearest_task_of_a_training_task_is_itself(tiny, examples):
    """A stub policy acts as z says, so that the rows tell which z was chosen."""
    made = tiny("csro", env="point_robot_ring", backbone="bc")
    state, key = made.state(), jax.random.key(3)
    state = state.replace(rep=louder(state.rep))
    stub = made.algorithm.rl._replace(mode=lambda state, obs, z: z[:2])
    algorithm = made.algorithm._replace(rl=stub)
    train = jax.tree.map(jnp.asarray, made.train)
    protocol, ids = made.protocols["nearest_task"], jnp.arange(len(made.env.train_ids))
    env = made.env
    tasks = jax.tree.map(lambda x: x[env.train_ids], env.tasks)

    @jax.jit
    def chosen(tasks):
        run = lambda task: protocol.run(algorithm, state, env, task, Offline(None, train), key)
        k_context, k_z, _ = jax.random.split(key, 3)
        context = algorithm.rep.context(state.rep, train, ids, k_context)
        z = learner.encode_tasks(algorithm.rep, state.rep, context, ids, k_z)
        return jax.vmap(run)(tasks).rows.action[:, 0, 0], z[:, :2]

    action, z = chosen(tasks)
    np.testing.assert_allclose(action, z, atol=1e-5)
    distances = np.abs(z[:, None] - z[None]).max(-1) + np.eye(len(z))
    assert distances.min() > 1e-3  # every task has a z of its own


def test_the_four_examples_run_together(tiny, examples):
    made = tiny("csro", env="point_robot_ring", backbone="bc")
    states = check_two_steps(made)
    state = jax.tree.map(lambda x: x[0], states)
    protocols = {"nearest_task": made.protocols["nearest_task"]}
    env = made.env
    evaluate = jax.jit(evaluation.make_evaluate(made.algorithm, env, protocols, 1))
    tasks = jax.tree.map(lambda x: x[env.test_ids], env.tasks)
    offline = jax.tree.map(jnp.asarray, made.test)
    found = evaluate(state, jax.random.key(1), tasks, offline, jnp.int32(2))["nearest_task"]
    returns = found.returns
    np.testing.assert_array_equal(found.cost.episodes[0], np.arange(returns.shape[1]))
    assert returns.shape == (2, protocols["nearest_task"].num_episodes)
    assert np.isfinite(returns).all() and (returns < 0).all()
