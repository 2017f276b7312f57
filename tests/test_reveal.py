"""`env.reveal_task` puts task parameters behind observations; `multitask` has no context."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import run
from experiments.cli.command import main
from gentle_jax import assembly, errors, registry, storage, sweep
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.envs import base
from gentle_jax.types import Spec, Transition


def config_of(*, suite="ctmrl", env="point_robot", algorithm="multitask", **overrides):
    """A small config; `overrides` are dotted keys."""
    sizes = {"env.num_train": 3, "env.num_test": 2, "env.horizon": 4, "behaviour.num_levels": 1}
    sizes |= {"behaviour.episodes_per_level": 2}
    names = {"suite": suite, "env": env, "num_seeds": 1}
    return assembly.make_config(algorithm, "smoke", sizes | overrides, **names)


def fields_of(config):
    """Random stored episodes of a config's sizes."""
    env, random = assembly.env_of(config), np.random.default_rng(0)
    wanted = storage.shapes(len(env.parameters), config.behaviour, env)
    fields = {name: random.normal(size=s).astype(np.float32) for name, s in wanted.items()}
    return fields | {"mask": np.ones_like(fields["mask"]), "terminal": 0 * fields["terminal"]}


def test_settings_of_a_version_that_had_fewer_are_refused_not_filled_in():
    tree = config_lib.to_dict(config_of(suite="gentle"))
    del tree["train"]["normalize_obs"]  # it followed from the suite
    with pytest.raises(errors.UserError, match=r"another version.*normalize_obs"):
        config_lib.from_dict(tree)


def test_parameters_are_scaled_over_the_training_tasks():
    env = assembly.make_env("point_robot")._replace(
        tasks={"a": np.array([1.0, 5.0, 3.0]), "b": np.array([[7.0, 4.0], [8.0, 4.0], [7.0, 4.0]])},
        train_ids=np.array([0, 2]),
    )
    # training values 1 and 3: mean 2, deviation 1; the second is 7 in both: only its mean goes; the
    # third is 4 in all tasks: nothing to tell
    np.testing.assert_array_equal(base.scaled_parameters(env), [[-1, 0], [3, 1], [1, 0]])


@pytest.mark.parametrize("suite,asked,scaled", [
    ("ctmrl", {}, False), ("ctmrl", {"train.normalize_obs": True}, True),
    ("gentle", {}, True), ("gentle", {"train.normalize_obs": False}, False),
])  # fmt: skip
def test_the_suite_says_whether_observations_are_z_scores_and_a_user_may_differ(
    suite, asked, scaled
):
    config = config_of(suite=suite, **asked)
    made = assembly.make_sweep(config, fields_of(config))
    rows = np.asarray(made.data.rows.obs)[:3].reshape(-1, 2)
    assert np.allclose(rows.mean(0), 0.0, atol=1e-5) == scaled
    assert np.allclose(rows.std(0), 1.0, atol=1e-4) == scaled


@pytest.mark.parametrize("name", list(registry.ENVIRONMENTS))
def test_all_that_varies_between_tasks_is_revealed(name):
    module = registry.load("environment", name)
    for suite in module.SETTINGS:
        env = assembly.make_env(name, suite, module.PHYSICS[-1])
        shown = base.scaled_parameters(env)
        assert np.isfinite(shown).all() and len(np.unique(shown, axis=0)) == len(shown)
        number = len(shown)
        for leaf in jax.tree.leaves(env.tasks):
            for wanted in np.asarray(leaf, np.float64).reshape(number, -1).T:
                if np.ptp(wanted) > 0:  # a line through one of the columns
                    lines = [np.polyfit(column, wanted, 1) for column in shown.T]
                    errors_of = [
                        np.abs(np.polyval(line, column) - wanted).max()
                        for line, column in zip(lines, shown.T, strict=True)
                    ]
                    assert min(errors_of) < 1e-5 * np.ptp(wanted)


def test_a_hoppers_bodies_are_revealed_in_steps():
    config = config_of(env="hopper_params", **{"env.horizon": 0})
    plain = assembly.env_of(config)
    shown = base.reveal(plain)
    task = jax.tree.map(lambda x: jnp.asarray(x[1]), shown.tasks)
    # 4 bodies' masses, 4 x 3 inertias, 3 hinges' damping, 5 geoms' frictions of 3 numbers
    assert shown.obs_dim == plain.obs_dim + 34
    state, obs = shown.reset(task, jax.random.key(0))
    _, out = jax.jit(shown.step)(task, state, jnp.zeros(3))
    np.testing.assert_array_equal(obs[plain.obs_dim :], task["revealed"])
    np.testing.assert_array_equal(out.obs[plain.obs_dim :], task["revealed"])
    assert np.isfinite(out.obs).all() and np.isfinite(out.reward)


@pytest.mark.parametrize("suite", ["ctmrl", "gentle"])
def test_observations_end_with_the_parameters_in_data_and_tests(suite):
    plain, shown = (
        assembly.make_sweep(c, fields_of(c))
        for c in (config_of(suite=suite), config_of(suite=suite, **{"env.reveal_task": True}))
    )
    wanted = base.scaled_parameters(plain.env)
    assert shown.env.obs_dim == 4 and shown.scale[0].shape == shown.scale[1].shape == (4,)
    for name in ("obs", "next_obs"):
        old, new = getattr(plain.data.rows, name), getattr(shown.data.rows, name)
        np.testing.assert_array_equal(new[..., :2], old)  # normalised alike
        order = assembly.task_order(plain.env)
        np.testing.assert_array_equal(new[..., 2:], wanted[order][:, None].repeat(8, 1))
    np.testing.assert_array_equal(shown.data.rows.action, plain.data.rows.action)
    for k, place in enumerate(assembly.task_order(plain.env)):
        task, same = (jax.tree.map(lambda x, k=k: x[k], s.tasks) for s in (shown, plain))
        action, key = jnp.array([0.5, -1.0]), jax.random.key(3)
        state, obs = shown.env.reset(task, key)
        _, begin = plain.env.reset(same, key)
        np.testing.assert_array_equal(obs, np.append(begin, wanted[place]))
        _, out = shown.env.step(task, state, action)
        _, other = plain.env.step(same, state, action)
        np.testing.assert_array_equal(out.obs, np.append(other.obs, wanted[place]))
        assert out.reward == other.reward
        row = Transition(obs, action, out.reward, out.reward, out.obs, out.terminal)
        np.testing.assert_allclose(shown.env.relabel(task, row), out.reward, atol=1e-6)


def test_stored_data_serve_both_but_runs_are_two():
    plain, shown = config_of(), config_of(**{"env.reveal_task": True})
    assert config_lib.data_identity(plain) == config_lib.data_identity(shown)
    assert "reveal_task" not in config_lib.data_identity(shown)["environment"]
    identities = [config_lib.fingerprint(config_lib.to_dict(c)) for c in (plain, shown)]
    assert identities[0] != identities[1]
    assert config_lib.from_dict(config_lib.to_dict(shown)) == shown
    meta = {"identity": config_lib.data_identity(plain)}
    storage.check_identity(meta, shown, "here")
    assert assembly.check(shown)[0] > assembly.check(plain)[0] > 0


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_every_algorithm_can_be_built_with_the_task_revealed(algorithm):
    enough = {"env.reveal_task": True, "env.num_train": 0, "env.num_test": 0}
    config = config_of(suite="gentle", algorithm=algorithm, **enough)
    assert assembly.check(config)[1] > 0


def test_imported_data_must_say_what_the_tasks_are(tmp_path, capsys, no_cache):
    config = config_of(**{"env.reveal_task": True})
    source = {"format": "focal", "steps": [1]}
    for known in ({}, {"exported": {"physics": "exact"}}):
        meta = {"identity": {"source": source | known}}
        storage.check_revealed(meta, config_of(), "here")
        if known:
            storage.check_revealed(meta, config, "here")
        else:
            with pytest.raises(errors.UserError, match="reveal_task"):
                storage.check_revealed(meta, config, "here")
    folder = tmp_path / "imported"
    folder.mkdir()
    for name in storage.FIELDS:
        np.save(folder / f"{name}.npy", np.zeros(1))
    identity = config_lib.data_identity(config) | {"source": source}
    storage.commit(folder, {"identity": identity})
    line = ["run", "--algo=multitask", "--preset=smoke", f"--data={folder}", f"--out={tmp_path}"]
    assert main(run.COMMAND, [*line, "--config.env.reveal_task=True"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: env.reveal_task") and told.count("\n") == 1
    assert str(folder) in told and not list(tmp_path.rglob("config.json"))
    assert json.loads((folder / "meta.json").read_text())["identity"] == identity


# --- multitask


def test_its_native_protocol_is_online_and_z_is_nothing(tiny):
    made = tiny("multitask")
    assert made.config.run.protocols[0] == "online" and made.algorithm.rep.traits.no_context
    state = made.state()
    assert state.rep == {}
    rows = jax.tree.map(lambda x: jnp.asarray(x[:2, :8]), made.train.rows)
    z = made.algorithm.rep.encode(state.rep, rows, jnp.arange(2), jax.random.key(0))
    np.testing.assert_array_equal(z, np.zeros((2, 1)))


def test_it_has_no_settings_of_its_own():
    assert not config_lib.hyper_params(config_of())["algo"]
    with pytest.raises(errors.UserError, match="there is none; leave it out"):
        config_of(**{"algo.lr": 1e-3})


def test_it_finds_the_arm_that_pays_where_the_task_is_revealed():
    """Two tasks, arms -1 and 1, r = a in one and -a in the other; the observation tells which."""
    settings = {
        "train.num_steps": 600, "train.meta_batch": 2, "train.batch_size": 32,
        "train.context_size": 2, "backbone.width": 16, "backbone.depth": 2, "backbone.lr": 3e-3,
        "td3_bc.bc_weight": 25.0,
    }  # fmt: skip
    named = config_lib.RunConfig(algorithm="multitask", backbone="td3_bc")
    config = config_lib.resolve(named, (settings,))
    action = np.random.default_rng(0).choice([-1.0, 1.0], (2, 1, 256, 1, 1)).astype(np.float32)
    reward = action[..., 0] * np.array([1, -1], np.float32).reshape(2, 1, 1, 1)
    nothing = np.zeros_like(action)
    fields = {"obs": nothing, "next_obs": nothing, "action": action, "terminal": nothing[..., 0]}
    fields |= {"reward": reward, "context_reward": reward}
    data = data_lib.from_episodes(fields, np.ones(reward.shape), timeout_is_terminal=True)
    data = data_lib.append(data, np.array([[-1.0], [1.0]], np.float32))
    data, spec = jax.tree.map(jnp.asarray, data), Spec(2, 1, 2, 256, 1)
    rl = registry.load("backbone", "td3_bc").make(config.backbone, 1, spec)
    made = registry.load("algorithm", "multitask").make(config.algo, config.train, spec, rl)
    hp = jax.tree.map(lambda x: x[0], config_lib.hyper_params(config))
    state = jax.jit(made.init)(hp, jax.random.key(0), data)
    chunk = jax.jit(sweep.make_chunk(made.stages[0]))
    state, _ = chunk(state, jax.random.key(1), data, jnp.int32(0), 600)
    obs = jnp.array([[0.0, -1.0], [0.0, 1.0]])
    arms = rl.mode(state.rl, obs, jnp.zeros((2, 1)))[:, 0]
    assert arms[0] > 0.5 and arms[1] < -0.5, arms
