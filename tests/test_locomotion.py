"""What is particular to the MuJoCo families: tasks, resets, rewards by hand, sizes, data."""

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import collect, run
from experiments.cli.command import main
from experiments.runs import outputs
from gentle_jax import assembly, errors, physics, presets, registry, storage, sweep, training
from gentle_jax import behaviour as behaviour_lib
from gentle_jax import config as config_lib
from gentle_jax.envs import base

pytestmark = pytest.mark.mjx
FAMILIES = [
    n for n in registry.ENVIRONMENTS if registry.load("environment", n).PHYSICS == physics.MODES
]


@functools.cache
def make(name, suite=None, mode="fast", **settings):
    module = registry.load("environment", name)
    return module.make(suite or next(iter(module.SETTINGS)), mode, base.EnvConfig(**settings))


def task(env, index):
    return jax.tree.map(lambda leaf: leaf[index], env.tasks)


# --- tasks


def test_speeds_and_angles_are_the_releases():
    # checksums of docs/methods/environments.md, "Cheetah-Vel" and "Ant-Dir"
    np.testing.assert_allclose(
        make("cheetah_vel", "gentle").tasks["speed"][:3], [1.5721, 0.9521, 1.6688], atol=5e-4
    )
    angles = np.array([1.6463, 0.9970, 1.7475])
    expected = np.stack([np.cos(angles), np.sin(angles)], -1)
    np.testing.assert_allclose(make("ant_dir").tasks["direction"][:3], expected, atol=1e-4)
    np.testing.assert_array_equal(make("cheetah_dir").tasks["direction"], [-1.0, 1.0])
    speeds = make("cheetah_vel", "ctmrl").tasks["speed"]
    np.testing.assert_allclose(speeds[[0, 1, -1]], [1.0, 1.0 + 2 / 39, 3.0], rtol=1e-6)
    goals = make("ant_goal", "ctmrl").tasks["goal"]
    np.testing.assert_allclose(goals[[0, 10, 20]], [[2, 0], [0, 2], [-2, 0]], atol=1e-6)


@pytest.mark.parametrize(
    "name,asset_sizes", [("hopper_params", (5, 6, 5)), ("walker_params", (8, 9, 8))]
)
@pytest.mark.parametrize("suite,seed", [("ctmrl", 1234), ("gentle", 1337)])
def test_random_parameters_are_one_stream_over_tasks_and_fields(name, asset_sizes, suite, seed):
    env = make(name, suite)
    model, random = env.system.c_model, np.random.RandomState(seed)
    assert (model.nbody, model.nv, model.ngeom) == asset_sizes
    for index in range(len(env.tasks["body_mass"])):  # world body and floor are drawn too
        own = task(env, index)
        for field, base_, width in (
            ("body_mass", 1.5, model.nbody), ("body_inertia", 1.5, 3 * model.nbody),
            ("dof_damping", 1.3, model.nv), ("geom_friction", 1.5, 3 * model.ngeom),
        ):  # fmt: skip
            scale = base_ ** np.array([random.uniform(-3, 3) for _ in range(width)])
            default = getattr(model, field)
            np.testing.assert_allclose(
                own[field], default * scale.reshape(default.shape), rtol=1e-5
            )


@pytest.mark.parametrize(
    "name,suite,sizes",
    [
        ("cheetah_vel", "ctmrl", (30, 10)),
        ("cheetah_vel", "ctmrl_b", (80, 20)),
        ("cheetah_vel", "gentle", (10, 10)),
        ("cheetah_dir", "gentle", (2, 2)),
        ("ant_dir", "gentle", (10, 10)),
        ("ant_goal", "ctmrl", (30, 10)),
        ("ant_goal", "ctmrl_b", (30, 10)),
        ("hopper_params", "ctmrl", (30, 10)),
        ("hopper_params", "ctmrl_b", (30, 10)),
        ("hopper_params", "gentle", (10, 10)),
        ("walker_params", "ctmrl", (30, 10)),
        ("walker_params", "gentle", (10, 10)),
    ],
)
def test_suites_have_their_task_counts(name, suite, sizes):
    env = make(name, suite)
    assert (len(env.train_ids), len(env.test_ids), env.horizon) == (*sizes, 200)


def test_the_tasks_of_suite_b_are_those_of_the_released_one_where_the_page_says_so():
    for name in ("ant_goal", "hopper_params", "walker_params"):
        a, b = make(name, "ctmrl").tasks, make(name, "ctmrl_b").tasks
        assert all(np.array_equal(a[field], b[field]) for field in a)


@pytest.mark.parametrize(
    "name,obs,action,early",
    [
        ("cheetah_vel", 20, 6, False),
        ("cheetah_dir", 20, 6, False),
        ("ant_dir", 27, 8, True),
        ("ant_goal", 29, 8, False),
        ("hopper_params", 11, 3, True),
        ("walker_params", 17, 6, True),
    ],
)
def test_sizes_and_ends(name, obs, action, early):
    env = make(name)
    assert (env.obs_dim, env.action_dim, env.ends_early) == (obs, action, early)


# --- time, resets, rewards


@pytest.mark.parametrize("name,seconds,substeps", [
    ("cheetah_vel", 0.05, 5), ("ant_dir", 0.05, 5), ("hopper_params", 0.016, 4),
    ("walker_params", 0.016, 4),
])  # fmt: skip
def test_time_steps_and_integrators(name, seconds, substeps):
    reference, fast = (make(name, mode=mode).system for mode in physics.MJX_MODES)
    assert reference.frame_skip == fast.frame_skip == substeps
    np.testing.assert_allclose([reference.dt, fast.dt], seconds)
    rk4 = name != "cheetah_vel"  # gym's cheetah uses Euler
    assert (reference.c_model.opt.integrator == 1) == rk4 and fast.c_model.opt.integrator == 0
    assert (reference.c_model.opt.iterations, fast.c_model.opt.iterations) == (4, 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_resets_are_spread_as_the_page_says(name):
    env = make(name)
    states, obs = jax.vmap(env.reset, (None, 0))(
        task(env, 0), jax.random.split(jax.random.key(0), 400)
    )
    start = env.system.c_model.qpos0
    offset = np.asarray(states.qpos) - start
    free = [
        i for i in range(len(start)) if "ant" not in name or not 3 <= i < 7
    ]  # not the quaternion
    small = name in ("hopper_params", "walker_params")
    width = 0.005 if small else 0.1
    assert np.abs(offset[:, free]).max() <= width * 1.001
    assert (np.abs(offset[:, free]).max(0) > 0.95 * width).all()
    velocity = np.asarray(states.qvel)
    if small:
        assert np.abs(velocity).max() <= width and np.abs(velocity).max() > 0.95 * width
    else:
        np.testing.assert_allclose(velocity.std(), 0.1, rtol=0.05)
    if "ant" in name:
        np.testing.assert_allclose(np.linalg.norm(states.qpos[:, 3:7], axis=1), 1.0, rtol=1e-5)
    assert obs.shape == (400, env.obs_dim)


def test_hopper_and_walker_heights_count_from_the_floor():
    for name in ("hopper_params", "walker_params"):
        env = make(name)
        state, obs = env.reset(task(env, 0), jax.random.key(0))
        np.testing.assert_allclose([state.qpos[1], obs[0]], 1.25, atol=0.006)
        np.testing.assert_allclose(state.torso[2], state.qpos[1], atol=1e-5)


def test_a_cheetah_at_its_speed_pays_for_control_only():
    env = make("cheetah_vel", "ctmrl")
    state, _ = env.reset(task(env, 0), jax.random.key(0))
    state = state.replace(qvel=state.qvel.at[0].set(2.0))  # pushed
    action = jnp.array([0.5, -0.2, 0.1, 0.0, 0.3, -1.0])
    step = jax.jit(env.step)
    after, _ = step({"speed": jnp.float32(0.0)}, state, action)
    speed = (after.qpos[0] - state.qpos[0]) / 0.05
    _, out = step({"speed": speed}, state, action)
    np.testing.assert_allclose(out.reward, -0.05 * 1.39, rtol=1e-5)  # |a|^2 = .25+.04+.01+.09+1
    _, slower = step({"speed": speed - 0.7}, state, action)
    np.testing.assert_allclose(slower.reward, -0.7 - 0.05 * 1.39, rtol=1e-4)


# --- settings

# docs/methods/environments.md, "Settings of the ctmrl suites"; docs/methods/ctmrl.md,
# "Published settings": E, Z, T, N, CLUB, alpha, alpha_max, steps, B, levels
CTMRL_SIZES = {
    "cheetah_vel": (100, 20, 16, 16, 10.0, 50.0, 2_000.0, 105_000, 600, (100_000, 18)),
    "ant_goal": (512, 20, 10, 2, 50.0, 500.0, 2_000.0, 210_000, 800, (100_000, 18)),
    "hopper_params": (256, 20, 16, 16, 25.0, 50.0, 10_000.0, 105_000, 600, (50_000, 19)),
    "walker_params": (256, 40, 16, 4, 25.0, 50.0, 10_000.0, 105_000, 600, (50_000, 19)),
}


@pytest.mark.parametrize("name", CTMRL_SIZES)
def test_published_sizes_of_ctmrl(name):
    config = config_lib.resolve(config_lib.RunConfig(env=name, preset="paper"))
    train, algo, backbone, data = config.train, config.algo, config.backbone, config.behaviour
    found = (
        train.context_size, train.latent_dim, train.meta_batch, algo.num_codes, algo.club_weight,
        backbone.alpha_init, backbone.alpha_max, train.num_steps, config.eval.online_steps,
        (data.first_level, data.num_levels),
    )  # fmt: skip
    assert found == CTMRL_SIZES[name]
    assert algo.use_next_obs == (name in ("hopper_params", "walker_params"))
    assert (algo.num_iterations, config.eval.context_episodes, backbone.use_brac) == (105, 2, True)
    assert (backbone.discount, backbone.reward_scale) == (0.99, 5.0)
    assert (data.num_steps, data.seed_steps, data.level_every) == (1_000_000, 50_000, 50_000)
    assert (data.episodes_per_level, data.width, data.batch_size, data.lr) == (50, 1024, 1024, 1e-4)
    last = data.first_level + (data.num_levels - 1) * data.level_every
    assert last == 950_000 and (data.num_envs, data.updates_per_step) == (1, 1.0)


@pytest.mark.parametrize(
    "name,latent,meta,cross,episodes,next_obs",
    [
        ("cheetah_vel", 5, 10, 3, 50, False),
        ("cheetah_dir", 5, 4, 1, 100, False),
        ("ant_dir", 5, 10, 3, 50, False),
        ("hopper_params", 10, 10, 3, 50, True),
        ("walker_params", 10, 10, 3, 50, True),
    ],
)
def test_published_sizes_of_gentle(name, latent, meta, cross, episodes, next_obs):
    # docs/methods/gentle.md, "Published settings"
    run = config_lib.RunConfig(algorithm="gentle", suite="gentle", env=name, preset="paper")
    config = config_lib.resolve(run)
    train, algo, data = config.train, config.algo, config.behaviour
    found = (train.latent_dim, train.meta_batch, algo.num_cross_tasks, data.episodes_per_level)
    assert found == (latent, meta, cross, episodes) and algo.use_next_obs == next_obs
    assert (train.num_steps, train.context_size, config.eval.scored_steps) == (200_000, 256, 600)
    assert (algo.width, config.backbone.width, config.backbone.discount) == (256, 256, 0.99)
    assert (data.num_steps, data.seed_steps, data.first_level) == (1_000_000, 5_000, 1_000_000)
    assert (config.eval.metric, data.num_levels) == ("all", 1)


# --- fewer tasks


def test_fewer_tasks_are_spread_evenly_and_renumbered():
    env = base.shorten(
        make("cheetah_vel", "ctmrl"), base.EnvConfig(num_train=3, num_test=2, horizon=9)
    )
    whole = make("cheetah_vel", "ctmrl")
    assert env.horizon == 9 and len(env.tasks["speed"]) == 5
    train, test = (whole.tasks["speed"][ids] for ids in (whole.train_ids, whole.test_ids))
    np.testing.assert_array_equal(env.tasks["speed"][env.train_ids], train[[0, 14, 29]])
    np.testing.assert_array_equal(env.tasks["speed"][env.test_ids], test[[0, 9]])
    np.testing.assert_array_equal(env.parameters[:, 0], env.tasks["speed"])


def test_both_splits_of_cheetah_dir_may_be_cut():
    env = base.shorten(make("cheetah_dir"), base.EnvConfig(num_train=1, num_test=2))
    assert env.train_ids.tolist() == [0] and env.test_ids.tolist() == [0, 1]


def test_more_tasks_than_there_are_is_an_error():
    with pytest.raises(errors.UserError, match=r"env\.num_train is 31: cheetah_vel has 30"):
        base.shorten(make("cheetah_vel", "ctmrl"), base.EnvConfig(num_train=31))


# --- physics is chosen and recorded


@pytest.mark.parametrize(
    "preset,device,physics_",
    [
        ("paper", "cpu", "reference"), ("fast", "gpu", "fast"), ("quick", "cpu", "mujoco"),
        ("quick", "tpu", "fast"), ("smoke", "cpu", "mujoco"),
    ],
)  # fmt: skip
def test_presets_choose_the_physics_of_the_device(monkeypatch, preset, device, physics_):
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    run = config_lib.RunConfig(env="cheetah_vel", preset=preset)
    filled = config_lib.fill_names(run)
    assert filled.physics == physics_
    config = config_lib.resolve(run, presets.layers(preset, filled))
    assert config_lib.data_identity(config)["physics"] == physics_


@pytest.mark.parametrize("backbone,scale", [("brac_sac", 50.0), ("sac", 10.0), ("iql", 5.0)])
def test_quick_has_the_rates_and_reward_scale_of_every_backbone(backbone, scale):
    names = {"env": "cheetah_vel", "backbone": backbone}
    config = assembly.make_config("focal", "quick", **names)
    found = config.backbone
    assert (found.lr, found.policy_lr, found.reward_scale) == (3e-3, 2e-3, scale)
    assert config.train.normalize_obs and config.train.normalize_rewards


def test_a_flag_overrides_the_presets_physics_and_bad_names_are_told():
    run = config_lib.RunConfig(env="ant_goal", preset="quick", physics="reference")
    assert config_lib.fill_names(run).physics == "reference"
    with pytest.raises(errors.UserError, match="fast"):
        config_lib.fill_names(config_lib.RunConfig(env="ant_goal", physics="fats"))
    with pytest.raises(errors.UserError, match="exact"):
        config_lib.fill_names(config_lib.RunConfig(env="point_robot", physics="fast"))
    with pytest.raises(errors.UserError, match="derive_constants"):
        config_lib.resolve(
            config_lib.RunConfig(env="hopper_params"), ({"env.derive_constants": "none"},)
        )


def test_data_of_one_physics_are_refused_by_a_run_in_the_other():
    def config(**names):
        return config_lib.resolve(config_lib.RunConfig(env="ant_goal", preset="smoke", **names))

    fast, reference = config(physics="fast"), config(physics="reference")
    meta = {"identity": config_lib.data_identity(fast)}
    storage.check_identity(meta, fast, "here")
    with pytest.raises(errors.UserError, match="made with physics=fast, this run asks for ref"):
        storage.check_identity(meta, reference, "here")
    assert storage.folder_of("data", fast) != storage.folder_of("data", reference)
    physical = dataclasses.replace(fast, env=base.EnvConfig(derive_constants="physical"))
    with pytest.raises(errors.UserError, match=r"environment\.derive_constants=release"):
        storage.check_identity(meta, physical, "here")
    # imported data: unknown physics fits every run, our own exports keep theirs
    meta["identity"]["source"] = {"format": "minari"}
    for other in (reference, physical):
        with pytest.raises(errors.UserError, match="was made with"):
            storage.check_identity(meta, other, "here")
        foreign = {"identity": meta["identity"] | {"physics": "imported"}}
        storage.check_identity(foreign, other, "here")


# --- collecting


def test_too_little_memory_is_told_before_anything_is_compiled(tmp_path, monkeypatch):
    config = config_lib.resolve(config_lib.RunConfig(env="cheetah_vel", preset="smoke"), (TINY,))
    monkeypatch.setattr(collect.computer, "available_bytes", lambda: 50_000)
    monkeypatch.setattr(collect.sweep, "compile_program", lambda *args, **kwargs: pytest.fail())
    with pytest.raises(errors.UserError, match=r"lower --config\.behaviour\.replay_rows"):
        collect.ensure(config, tmp_path)


TINY = {
    "behaviour.num_envs": 4, "behaviour.num_steps": 32, "behaviour.seed_steps": 8,
    "behaviour.first_level": 16, "behaviour.level_every": 16, "behaviour.num_levels": 2,
    "behaviour.episodes_per_level": 2, "behaviour.batch_size": 4, "behaviour.width": 8,
    "behaviour.updates_per_step": 0.5, "behaviour.replay_rows": 16, "env.num_train": 4,
    "env.num_test": 2, "env.horizon": 4,
}  # fmt: skip


def test_copies_fill_one_ring_learn_and_compile_once():
    """6 tasks on 2 devices: 32 steps of 4 copies into a ring of 16 rows, in three calls.

    A point robot compiles in a tenth of the time; the main command below collects in MJX.
    """
    config = config_lib.resolve(config_lib.RunConfig(suite="gentle", preset="smoke"), (TINY,))
    env, behaviour = assembly.env_of(config), config.behaviour
    mesh = sweep.make_mesh(6)
    assert mesh.size == 2
    collector = behaviour_lib.make(env, behaviour, mesh)
    keys = behaviour_lib.task_keys(behaviour, 6)
    agents = sweep.place(env.tasks, mesh), sweep.place(keys, mesh)
    sharding = sweep.run_sharding(mesh)
    state = first = jax.jit(collector.init, out_shardings=sharding)(*agents)
    advance = jax.jit(collector.advance, out_shardings=sharding)
    for start, length in ((0, 8), (8, 8), (16, 16)):
        before = jax.device_get(state)
        state, loss = advance(*agents, state, jnp.int32(start), jnp.int32(length))
        learned = not np.array_equal(
            jax.tree.leaves(before.agent.critics)[0], jax.tree.leaves(state.agent.critics)[0]
        )
        assert learned == (start >= 8) and np.isfinite(loss).all()
    assert advance._cache_size() == 1
    # 24 steps of learning by 4 copies at 0.5 updates a step: 12, two after each of six steps
    moments = jax.tree.leaves(state.agent.critics.moments)
    counts = [leaf for leaf in moments if leaf.dtype == jnp.int32]
    assert counts and all((np.asarray(count) == 12).all() for count in counts)
    rows = state.replay
    assert rows.obs.shape == (6, 16, env.obs_dim)
    # the ring holds the last 16 steps: 4 of each copy, in blocks of 4 copies
    flat = np.asarray(rows.next_obs).reshape(6, 4, 4, -1)
    again = np.asarray(rows.obs).reshape(6, 4, 4, -1)
    ended = np.asarray(rows.terminal).reshape(6, 4, 4)
    clock = np.asarray(state.clock)
    assert clock.shape == (6, 4)
    follows = (again[:, 1:] == flat[:, :-1]).all(-1)
    # within an episode an observation is the one before's outcome; the horizon of 4 cuts once
    assert (follows.sum(1) >= 2).all() and (ended == 0).all()
    assert not np.array_equal(np.asarray(first.obs)[0, 0], np.asarray(first.obs)[0, 1])


def test_an_early_end_is_stored_and_its_copy_starts_anew():
    """A point that always ends its episode at x > 0.25, three steps of (1, 0) from the start."""
    sizes = {"behaviour.num_envs": 2, "behaviour.num_steps": 16, "behaviour.num_levels": 1}
    config = config_lib.resolve(config_lib.RunConfig(preset="smoke"), (TINY, sizes))
    env = assembly.env_of(config)._replace(horizon=7)

    def step(task, state, action):
        state, out = env.step(task, state, jnp.array([1.0, 0.0]))
        return state, out._replace(terminal=(out.obs[0] > 0.25).astype(jnp.float32))

    falls = env._replace(step=step, ends_early=True)
    collector = behaviour_lib.make(falls, dataclasses.replace(config.behaviour, seed_steps=16))
    agents = env.tasks, behaviour_lib.task_keys(config.behaviour, 6)
    state, _ = jax.jit(collector.advance)(*agents, jax.jit(collector.init)(*agents), 0, 16)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0].reshape(8, 2, -1)[:, 0], state.replay)
    np.testing.assert_array_equal(first.terminal[:, 0], [0, 0, 1, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(first.obs[:, 0], [0, 0.1, 0.2] * 2 + [0, 0.1], atol=1e-6)
    np.testing.assert_allclose(first.next_obs[2, 0], 0.3, atol=1e-6)  # not the new start
    np.testing.assert_array_equal(state.clock[0], [2, 2])


def test_a_diverged_agent_is_told_when_its_episodes_are_stored():
    fields = {"obs": np.zeros((3, 2, 4)), "reward": np.zeros((3, 2))}
    collect.check_finite(fields, 100)
    fields["reward"][1, 0] = np.nan
    with pytest.raises(errors.UserError, match="after 100 steps reward of task 1 is not finite"):
        collect.check_finite(fields, 100)


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"behaviour.num_envs": 3}, "multiple of behaviour.num_envs"),
        ({"behaviour.updates_per_step": 0.1}, "whole number of updates"),
        ({"behaviour.updates_per_step": 0.4}, "whole number of updates"),
        ({"behaviour.replay_rows": 6}, "behaviour.replay_rows is 6"),
        ({"behaviour.replay_rows": 4, "behaviour.batch_size": 8}, "at least batch_size"),
    ],
)
def test_impossible_collection_settings_are_told(bad, message):
    run = config_lib.RunConfig(env="hopper_params", preset="smoke")
    with pytest.raises(errors.UserError, match=message):
        config_lib.resolve(run, (TINY, bad))


def test_every_program_of_the_main_command_takes_a_mujoco_family(monkeypatch):
    """Traced, not compiled: shapes and types are all that a family can get wrong by itself.

    Ant-Dir ends its episodes early. Its steps are compiled in test_physics.py, the
    command runs in test_run.py.
    """
    trace = lambda function, args, *_, **__: jax.eval_shape(function, *args)
    monkeypatch.setattr(sweep, "compile_program", trace)
    names = {"suite": "gentle", "env": "ant_dir", "num_seeds": 2, "protocols": ("given_context",)}
    names["physics"] = "fast"
    config = assembly.make_config("focal", "smoke", TINY, **names)
    env, mesh = assembly.env_of(config), sweep.make_mesh(6)
    assert env.ends_early
    collector = behaviour_lib.make(env, config.behaviour, mesh)
    keys = behaviour_lib.task_keys(config.behaviour, 6)
    agents = sweep.place(env.tasks, mesh), sweep.place(keys, mesh)
    state = jax.eval_shape(collector.init, *agents)
    programs = collect.compile_programs(collector, agents, state, mesh)
    assert programs.init == programs.advance[0] == state
    fields, _, scored = programs.episodes
    shapes = storage.shapes(6, config.behaviour, env)
    assert {n: leaf.shape for n, leaf in fields.items()} == {
        n: (6, *shape[2:]) for n, shape in shapes.items()
    }
    assert scored.shape == (6,)
    draw = np.random.default_rng(0).uniform
    stored = {name: draw(size=shape) for name, shape in shapes.items()}
    stored |= {name: np.full(shapes[name], float(name == "mask")) for name in ("mask", "terminal")}
    task = assembly.make_sweep(config, stored)
    programs = training.compile_all(task)
    scores = programs.evaluate["given_context"]["given_context"]
    assert scores.returns.shape[:2] == (2, 6)
    path, mask = scores.shown
    assert path.shape == (2, 6, env.horizon + 1, 27) and mask.shape == (2, 6, env.horizon)
    kept = training.carry_shapes(task)["shown"]
    assert [leaf.shape for leaf in kept] == [path.shape, mask.shape]


@pytest.mark.slow
@pytest.mark.skipif("GENTLE_JAX_BY_HAND" not in os.environ, reason="minutes; run by hand")
def test_the_main_command_runs_a_mujoco_family(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(outputs, "draw", lambda *_: None)
    line = ["run", "--algo=focal", "--suite=gentle", "--env=cheetah_vel", "--preset=smoke"]
    line += ["--num_seeds=2", "--protocol=given_context", "--config.train.num_evals=1"]
    line += ["--config.env.horizon=5", "--config.eval.scored_steps=5"]
    line += [f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'runs'}"]
    assert main(run.COMMAND, line) == 0
    assert "physics mujoco" in capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("summary.json")
    summary = json.loads(path.read_text())
    assert summary["physics"] == "mujoco" and not summary["failed_seeds"]
    (meta,) = (tmp_path / "data").rglob("meta.json")
    meta = json.loads(meta.read_text())
    assert meta["identity"]["physics"] == "mujoco" and len(meta["expert_return"][-1]) == 6
    assert meta["identity"]["environment"]["num_train"] == 4
    assert {"mujoco-mjx", "brax"} <= set(meta["environment"]["versions"])
    assert main(run.COMMAND, line) == 0
    assert "finished before" in capsys.readouterr().out
