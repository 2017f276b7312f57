"""C MuJoCo within compiled programs: every simulation is its own, whoever runs beside it."""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run
from experiments.cli import flags
from gentle_jax import errors, host_physics, physics, registry, sweep
from gentle_jax.envs import base
from gentle_jax.types import Transition

pytestmark = [
    pytest.mark.mjx,
    pytest.mark.skipif(not host_physics.usable(), reason="C MuJoCo steps on CPUs"),
]
STEPS = 6


@functools.cache
def make(name, **settings):
    module = registry.load("environment", name)
    return module.make(next(iter(module.SETTINGS)), "mujoco", base.EnvConfig(**settings))


def roll(env, task, key, steps=STEPS):
    """Returns (obs, action, next obs, reward, terminal) of random actions."""
    state, obs = env.reset(task, key)

    def body(carry, key):
        state, obs = carry
        action = jax.random.uniform(key, (env.action_dim,), minval=-1.0, maxval=1.0)
        state, out = env.step(task, state, action)
        return (state, out.obs), (obs, action, out.obs, out.reward, out.terminal)

    return jax.lax.scan(body, (state, obs), jax.random.split(key, steps))[1]


def some(env, count):
    return jax.tree.map(lambda leaf: leaf[:count], env.tasks)


def history(rows, count=8):
    """The rows [N, count, ...] before each one, NaN before the first."""
    ahead = np.concatenate([np.full((count, *rows.shape[1:]), np.nan, rows.dtype), rows])
    return np.stack([ahead[i : i + count] for i in range(len(rows))])


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name,settings", [("hopper_params", {}), ("ant_goal", {"contact_cost": True})]
)
def test_a_step_is_mujocos(name, settings):
    env = make(name, **settings)
    rolls = jax.jit(jax.vmap(functools.partial(roll, env), (0, None)))
    every = jax.device_get(rolls(some(env, 2), jax.random.key(1)))
    for task in range(2):
        obs, action, after, reward, terminal = (leaf[task] for leaf in every)
        rows = Transition(obs, action, reward, reward, after, terminal)
        before = jax.tree.map(history, rows)
        out = env.replay(jax.tree.map(lambda leaf, task=task: leaf[task], env.tasks), before, rows)
        known = np.isfinite(np.asarray(out.reward))
        assert known.sum() >= len(obs) - 2
        np.testing.assert_allclose(out.obs[known], after[known], atol=2e-5)
        np.testing.assert_allclose(out.reward[known], reward[known], atol=2e-5)


def test_clipped_speeds_follow_from_the_rows_before():
    env = make("walker_params")
    rolls = jax.jit(jax.vmap(functools.partial(roll, env, steps=14), (None, 0)))
    task = jax.tree.map(lambda leaf: leaf[3], env.tasks)
    every = jax.device_get(rolls(task, jax.random.split(jax.random.key(5), 6)))
    clipped, unknown = 0, 0
    for leaves in zip(*every, strict=True):
        obs, action, after, reward, terminal = leaves
        rows = Transition(obs, action, reward, reward, after, terminal)
        before = jax.tree.map(history, rows)
        out = env.replay(task, before, rows)
        known = np.isfinite(np.asarray(out.reward))
        over = (np.abs(obs) >= 10.0).any(-1)
        np.testing.assert_allclose(out.obs[known], after[known], atol=5e-3)
        np.testing.assert_allclose(out.reward[known], reward[known], atol=5e-3)
        clipped, unknown = clipped + (over & known).sum(), unknown + (~known).sum()
        alone = env.replay(task, jax.tree.map(lambda x: x * np.nan, before), rows)
        np.testing.assert_array_equal(np.isfinite(np.asarray(alone.reward)), ~over)
    assert clipped >= 10 and unknown < clipped


def test_no_bit_depends_on_what_runs_beside_it():
    env = make("hopper_params")
    one = functools.partial(roll, env)
    keys = jax.random.split(jax.random.key(2), 3)
    grid = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(some(env, 4), keys)
    alone = jax.jit(one)
    for task, key in ((0, 0), (3, 2), (1, 1)):
        found = alone(jax.tree.map(lambda leaf, task=task: leaf[task], env.tasks), keys[key])
        same(found, jax.tree.map(lambda leaf: leaf[task, key], grid))  # noqa: B023 used at once


def test_runs_on_several_devices_and_callers_do_not_meet():
    env = make("hopper_params")
    rolls = jax.vmap(functools.partial(roll, env), (0, None))
    mesh, keys = sweep.make_mesh(2), jax.random.split(jax.random.key(3), 2)
    assert mesh.size == 2
    over = sweep.over_runs(lambda key, tasks: rolls(tasks, key), 1, mesh)
    found = sweep.fetch(jax.jit(over)(sweep.place(keys, mesh), some(env, 3)), 2)
    plain = jax.jit(rolls)
    expected = [jax.device_get(plain(some(env, 3), key)) for key in keys]
    for index, wanted in enumerate(expected):
        same(jax.tree.map(lambda leaf, index=index: leaf[index], found), wanted)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        each = threads.map(lambda i: jax.device_get(plain(some(env, 3), keys[i % 2])), range(8))
        for number, again in enumerate(each):
            same(again, expected[number % 2])


def test_what_is_not_finite_stays_where_it_was_and_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = make("cheetah_vel")
    task = jax.tree.map(lambda leaf: leaf[0], env.tasks)
    keys = jax.random.split(jax.random.key(4), 3)
    states, _ = jax.vmap(env.reset, (None, 0))(task, keys)
    step = jax.jit(jax.vmap(env.system.step, (None, 0, 0)))
    actions = jnp.zeros((3, env.action_dim)).at[1].set(jnp.nan)
    after, finite = jax.device_get(step({}, states, actions))
    assert finite.tolist() == [True, False, True]
    np.testing.assert_array_equal(after.qpos[1], states.qpos[1])
    assert (after.qpos[0] != states.qpos[0]).any()
    wild = states.replace(qvel=states.qvel.at[2].set(1e12))
    after, finite = jax.device_get(step({}, wild, jnp.zeros_like(actions)))
    assert finite.tolist()[:2] == [True, True]
    assert np.isfinite(after.qpos).all() and np.isfinite(after.qvel).all()
    assert not list(tmp_path.iterdir())  # MuJoCo's log


def test_many_simulations_on_every_device_do_not_wait_for_each_other():
    """Arguments of 100 KiB and more: `jax.pure_callback` hangs here."""
    env, count = make("cheetah_vel"), 4000
    task = jax.tree.map(lambda leaf: leaf[0], env.tasks)

    def one(key):
        states, _ = jax.vmap(env.reset, (None, 0))(task, jax.random.split(key, count))
        actions = jax.random.uniform(key, (count, env.action_dim), minval=-1.0)
        step = jax.vmap(env.system.step, (None, 0, 0))
        loop = lambda states, _: (step({}, states, actions)[0], None)
        return jax.lax.scan(loop, states, None, length=3)[0].qpos

    mesh, keys = sweep.make_mesh(2), jax.random.split(jax.random.key(5), 2)
    found = sweep.fetch(jax.jit(sweep.over_runs(one, 1, mesh))(sweep.place(keys, mesh)), 2)
    assert found.shape == (2, count, env.system.c_model.nq) and np.isfinite(found).all()


def test_elsewhere_than_on_a_cpu_it_is_refused_in_one_line(monkeypatch):
    env = make("cheetah_vel")
    monkeypatch.setattr(host_physics, "usable", lambda: False)
    system = physics.of_model(env.system.c_model, 1, on_host=True)
    state = system.reset(jnp.zeros(9), jnp.zeros(9))
    with pytest.raises(errors.UserError, match="steps on CPUs, this is a cpu: set") as caught:
        system.step({}, state, jnp.zeros(6))
    assert "\n" not in str(caught.value)


def test_runs_on_an_accelerator_are_refused_before_any_work():
    words = ["run", "--env=cheetah_vel", "--physics=mujoco", "--preset=quick"]
    assert flags.parse(run.COMMAND, words).config.run.physics == "mujoco"
    with pytest.raises(errors.UserError, match="choose reference or fast"):
        flags.parse(run.COMMAND, words, lambda: True)
