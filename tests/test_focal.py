"""FOCAL: what its loss sees, whom it trains, its settings; the loss itself is in test_losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import registry
from gentle_jax.types import MetaBatch


def update(made, state, rows, task_id, **hp):
    """(state, metrics) after one update on contexts `rows` of tasks `task_id`."""
    batch = MetaBatch(rows, rows, jnp.asarray(task_id))
    settings = state.hp["algo"] | {name: jnp.float32(value) for name, value in hp.items()}
    step = jax.jit(made.algorithm.rep.update)
    return step(state.rep, settings, batch, None, None, jax.random.key(0), jnp.int32(0))


@pytest.fixture(scope="module")
def made(tiny):
    """(Tiny, a louder initial state, contexts of eight rows for three tasks)."""
    made = tiny("focal")
    state = made.state()
    trained = state.rep.trained["encoder"]
    loud = trained.replace(params=jax.tree.map(lambda x: 20 * x, trained.params))
    state = state.replace(rep=state.rep.replace(trained={"encoder": loud}))
    data = jax.tree.map(jnp.asarray, made.train)
    return made, state, data_lib.context_rows(data, jnp.arange(3), 8, jax.random.key(0))


def z_of(state, rows):
    """z [T, Z] by NumPy: mean over rows of tanh codes of (s, a, r)."""
    columns = [rows.obs, rows.action, rows.context_reward[..., None]]
    return np.tanh(ref.mlp(state.rep.params["encoder"], np.concatenate(columns, -1), 1)).mean(1)


@pytest.mark.parametrize("task_id", [(0, 1, 2), (1, 0, 1)])
def test_the_loss_is_ten_times_the_distance_metric_of_z(made, task_id):
    made, state, rows = made
    new, metrics = update(made, state, rows, task_id)
    wanted = ref.focal(z_of(state, rows).astype(float), task_id)
    np.testing.assert_allclose(metrics["focal_loss"], 10.0 * wanted, rtol=1e-4)
    assert new.trained.keys() == {"encoder"} and metrics.keys() == {"focal_loss"}


def test_a_step_lowers_the_loss(made):
    made, state, rows = made
    first, before = update(made, state, rows, (0, 1, 2), lr=1e-3)
    _, after = update(made, state.replace(rep=first), rows, (0, 1, 2))
    assert float(after["focal_loss"]) < float(before["focal_loss"])


def test_contexts_hold_the_reward_of_contexts(made):
    made, state, rows = made
    _, before = update(made, state, rows, (0, 1, 2))
    _, dense = update(made, state, rows._replace(reward=rows.reward + 1.0), (0, 1, 2))
    other = rows._replace(context_reward=rows.context_reward + jnp.arange(8.0))
    _, sparse = update(made, state, other, (0, 1, 2))
    assert float(dense["focal_loss"]) == float(before["focal_loss"]) != float(sparse["focal_loss"])


def test_both_fidelities_are_one(tiny):
    assert not hasattr(registry.load("algorithm", "focal"), "FIDELITY")
    configs = [
        config_lib.resolve(config_lib.RunConfig(algorithm="focal", fidelity=fidelity))
        for fidelity in config_lib.FIDELITIES
    ]
    assert configs[0].algo == configs[1].algo


@pytest.mark.parametrize(
    "suite,env,width,next_obs",
    [
        ("ctmrl", "point_robot", 200, False),
        ("ctmrl", "ant_goal", 200, False),
        ("ctmrl", "hopper_params", 200, True),
        ("ctmrl_b", "walker_params", 200, True),
        ("gentle", "point_robot", 64, False),
        ("gentle", "ant_dir", 256, False),
        ("gentle", "walker_params", 256, True),
    ],
)
def test_settings_of_the_suites(suite, env, width, next_obs):
    run = config_lib.RunConfig(algorithm="focal", suite=suite, env=env)
    config = config_lib.resolve(run).algo
    assert (config.width, config.use_next_obs) == (width, next_obs)
    assert (config.depth, config.focal_weight, config.lr) == (3, 10.0, 3e-4)


def test_every_environment_of_a_suite_has_the_size_that_the_suite_has():
    module, gentle = (registry.load("algorithm", name) for name in ("focal", "gentle"))
    for env in registry.ENVIRONMENTS:
        for suite in registry.load("environment", env).SETTINGS:
            run = config_lib.RunConfig(algorithm="focal", suite=suite, env=env)
            config = config_lib.resolve(run)
            assert config.algo.use_next_obs == env.endswith("_params")
            if suite == "gentle":
                wanted = gentle.SETTINGS.get((suite, env), {}).get("algo.width", 256)
                assert config.algo.width == wanted
    assert all(suite in ("ctmrl", "ctmrl_b", "gentle") for suite, _ in module.SETTINGS)
