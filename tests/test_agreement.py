"""Imported rows are held against the environment: what does not fit is refused, with its reason."""

import dataclasses
import functools
import pathlib

import foreign
import jax
import numpy as np
import pytest
from data_command import shown

from experiments.runs import imports
from gentle_jax import assembly, registry, storage
from gentle_jax import config as config_lib
from gentle_jax.interop import agreement, reasons, samples, table
from gentle_jax.types import Transition

CHEETAH_STEPS = 12


@pytest.fixture(autouse=True)
def quiet(no_cache):
    """The user's compile cache stays as it is, and commands run in an empty folder."""


def of_plane(env, episodes=6):
    """Returns {field: [task, 1, episode, step, ...]} of random actions in a family of points."""
    rng, fields = np.random.default_rng(0), table.empty(env, 1, episodes)
    for task in range(len(env.parameters)):
        for episode in range(episodes):
            table.put(
                fields, (task, 0, episode), foreign.episode(env, task, rng), pathlib.Path("x"), env
            )
    table.finish(fields, env, lambda *_: "x")
    return fields


@functools.cache
def plane(name, suite):
    """Returns (an Env, rows of it)."""
    env = assembly.make_env(name, suite)
    return env, of_plane(env)


def of_bodies(env, episodes=3, steps=CHEETAH_STEPS, tasks=None):
    """Returns (an Env of few tasks, rows): C MuJoCo from resets, random actions."""
    ids = np.arange(len(env.parameters)) if tasks is None else np.array(tasks)
    env = env._replace(
        tasks=jax.tree.map(lambda leaf: leaf[ids], env.tasks), parameters=env.parameters[ids],
        horizon=steps, ends_early=False, train_ids=np.arange(len(ids)), test_ids=np.arange(1),
    )  # fmt: skip
    fields = table.empty(env, 1, episodes)
    starts = agreement.resets(env)
    random = np.random.default_rng(0)
    for task in range(len(ids)):
        one = jax.tree.map(lambda leaf, task=task: leaf[task], env.tasks)
        obs = starts[task * episodes : (task + 1) * episodes]
        blank = np.full((episodes, 1, env.obs_dim), np.nan, np.float32)
        before = Transition(blank, *[np.zeros((episodes, 1, env.action_dim))] * 5)
        for step in range(steps):
            action = random.uniform(-1.0, 1.0, (episodes, env.action_dim)).astype(np.float32)
            rows = before._replace(obs=obs, action=action)  # others are not looked at
            out = env.replay(one, before, rows)
            values = {"obs": obs, "action": action, "reward": out.reward, "next_obs": out.obs}
            values["context_reward"] = out.reward
            for name, each in values.items():
                fields[name][task, 0, :, step] = each
            fields["mask"][task, 0, :, step] = 1.0
            join = lambda old, new: np.concatenate([old, new[:, None]], 1)
            before = before._replace(obs=join(before.obs, obs), action=join(before.action, action))
            obs = np.asarray(out.obs)
    return env, fields


@functools.cache
def bodies(name):
    suite = next(iter(registry.load("environment", name).SETTINGS))
    return of_bodies(assembly.make_env(name, suite, "reference"), tasks=(0, 11, 25, 39))


def examine(env, fields):
    return agreement.examine(fields, lambda mode: env, ["one"])


def changed(fields, **changes):
    return {name: changes.get(name, lambda x: x)(values.copy()) for name, values in fields.items()}


def permuted(fields, order):
    return {name: values[order] for name, values in fields.items()}


MISFITS = {
    "swapped tasks": (lambda f: permuted(f, [1, 0, *range(2, 40)]), "are those of task"),
    "rewards of another scale": (lambda f: changed(f, reward=lambda r: 10 * r), "10 times"),
    "rewards with an offset": (lambda f: changed(f, reward=lambda r: r + 1), "+1"),
    "rewards one row late": (
        lambda f: changed(f, reward=lambda r: np.roll(r, 1, -1)),
        "those of the row before",
    ),
    "actions one row late": (
        lambda f: changed(f, action=lambda a: np.roll(a, 1, -2)),
        "those of the row after",
    ),
    "half the actions": (lambda f: changed(f, action=lambda a: a / 2), "2 times as far"),
    "shorter episodes": (
        lambda f: changed(f, mask=lambda m: m * (np.arange(m.shape[-1]) < 10)),
        "longest episode has 10 steps",
    ),
    "two episodes in one": (
        lambda f: {k: np.concatenate([v[:, :, ::2, :10], v[:, :, 1::2, :10], v[:, :, ::2, 20:]], 3)
                   for k, v in f.items()},
        "begin where no reset does|jump",
    ),
    "whole numbers": (lambda f: changed(f, obs=np.trunc), "jump"),
}  # fmt: skip
IN_ALL = [n for n in MISFITS if n != "two episodes in one"]


@pytest.mark.parametrize("case", IN_ALL)
@pytest.mark.parametrize("name", ["point_robot", "point_robot_wind", "sparse_point_robot"])
def test_a_misfit_of_points_is_told_with_its_reason(name, case):
    env, fields = plane(name, "ctmrl")
    change, reason = MISFITS[case]
    misfits = examine(env, change(fields))["misfits"]
    assert misfits and reason in misfits[0]["text"], misfits[:2]


BODY_MISFITS = {
    "rewards of another scale": MISFITS["rewards of another scale"],
    "rewards one row late": MISFITS["rewards one row late"],
    "actions one row late": MISFITS["actions one row late"],
    "half the actions": (MISFITS["half the actions"][0], "2 times them fits"),
    "most of the actions": (lambda f: changed(f, action=lambda a: 0.9 * a), "about 1.1 times"),
    "shorter episodes": (MISFITS["shorter episodes"][0], "longest episode has 10 steps"),
    "swapped tasks": (lambda f: permuted(f, [3, 1, 2, 0]), "are those of task"),
}


@pytest.mark.parametrize("case", BODY_MISFITS)
@pytest.mark.parametrize("name", ["cheetah_vel", "hopper_params", "walker_params"])
def test_a_misfit_of_bodies_is_told_with_its_reason(name, case):
    env, fields = bodies(name)
    change, reason = BODY_MISFITS[case]
    misfits = examine(env, change(fields))["misfits"]
    assert misfits and reason in misfits[0]["text"], misfits[:2]


def rounded(digits):
    return lambda values: np.round(values, digits).astype(np.float32)


COPIES = {
    "as it is": lambda values: values,
    "of half precision": lambda values: values.astype(np.float16).astype(np.float32),
    "to three digits": rounded(3),
    "to two digits": rounded(2),
}


@pytest.mark.parametrize("case", COPIES)
@pytest.mark.parametrize(
    "name",
    ["point_robot", "point_robot_wind", "sparse_point_robot", "cheetah_vel", "hopper_params"],
)
def test_own_rows_and_rounded_copies_fit(name, case):
    env, fields = bodies(name) if "point" not in name else plane(name, "ctmrl")
    report = examine(env, changed(fields, **dict.fromkeys(Transition._fields, COPIES[case])))
    assert not report["misfits"], report["misfits"][:2]
    if case == "as it is":
        assert max(report["reward_error"]) < 1e-3 and max(report["transition_error"]) < 1e-3


def test_longer_episodes_cut_up_are_told():
    env, fields = plane("point_robot", "gentle")
    cut = {k: np.concatenate([v[:, :, :, :10], v[:, :, :, 10:]], 2) for k, v in fields.items()}
    order = np.arange(12).reshape(2, 6).T.reshape(-1)  # the halves of an episode side by side
    cut = {name: values[:, :, order] for name, values in cut.items()}
    misfits = examine(env._replace(horizon=10), cut)["misfits"]
    assert "begin where the one before ended" in misfits[0]["text"]


def test_context_rewards_that_do_not_follow_from_the_rewards_are_a_misfit():
    env, fields = plane("sparse_point_robot", "ctmrl")
    assert not examine(env, fields)["misfits"]
    misfits = examine(env, changed(fields, context_reward=lambda r: r + 0.5))["misfits"]
    assert len(misfits) == 40 and "is not what sparse_point_robot shows" in misfits[0]["text"]


def test_rows_that_no_simulation_gives_leave_no_log_behind(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    env, fields = bodies("cheetah_vel")
    assert examine(env, changed(fields, obs=lambda x: 1e9 * x))["misfits"]
    assert not list((tmp_path / "empty").iterdir())


def test_episodes_that_stop_without_a_true_end_are_of_another_horizon():
    env, fields = bodies("hopper_params")
    misfits = examine(env._replace(ends_early=True, horizon=200), fields)["misfits"]
    assert "before the horizon of 200 without a true end" in misfits[0]["text"]


def test_a_true_end_that_is_none_is_told():
    env, fields = bodies("hopper_params")
    cut = changed(fields, terminal=lambda t: t + (np.arange(CHEETAH_STEPS) == CHEETAH_STEPS - 1))
    misfits = examine(env._replace(ends_early=True, horizon=200), cut)["misfits"]
    assert "true end" in misfits[0]["text"]


@pytest.mark.parametrize("longer", [0, 1])
def test_a_fall_needs_no_end_flag_at_the_time_limit_only(longer):
    env, fields = bodies("hopper_params")
    falls = lambda *rows: env.replay(*rows)._replace(terminal=np.ones(len(rows[2].reward)))
    other = env._replace(ends_early=True, replay=falls, horizon=CHEETAH_STEPS + longer)
    drawn = [samples.rows_of(fields, task, 36) for task in range(len(env.parameters))]
    for one, (stored, predicted) in zip(drawn, reasons.Seen.of(other, drawn).ends, strict=True):
        assert not stored.any() and (one.step == CHEETAH_STEPS - 1).sum() >= 3
        np.testing.assert_array_equal(
            predicted == 0, (one.step == CHEETAH_STEPS - 1) & (not longer)
        )


def test_tasks_that_are_nearly_right_are_told():
    env, fields = bodies("cheetah_vel")
    near = env._replace(tasks={"speed": env.tasks["speed"] + np.float32(0.03)})
    misfits = examine(near, fields)["misfits"]
    assert misfits and "its rewards are" in misfits[0]["text"], misfits[:2]


def test_numbers_so_coarse_that_nothing_can_be_told_are_refused():
    env, fields = bodies("cheetah_vel")
    coarse = changed(fields, **dict.fromkeys(Transition._fields, rounded(0)))
    assert len(examine(env, coarse)["misfits"]) == len(env.parameters)


def test_sparse_rewards_alone_are_held_against_sparse_ones():
    env, fields = plane("sparse_point_robot", "ctmrl")
    near = changed(fields, reward=lambda r: np.asarray(env.context_reward(r)))
    assert examine(env, near)["misfits"]
    assert not examine(agreement.with_sparse_rewards(env), near)["misfits"]


# the command


FORMATS = {
    "focal": functools.partial(foreign.focal, steps=(100,), episodes=3),
    "corro": foreign.corro,
}


@pytest.fixture
def own_goals(tmp_path):
    """A file of 20 goals that no suite has, and the Env of them."""
    env = assembly.make_env("point_robot", "gentle")
    goals = np.random.default_rng(3).uniform(-1.0, 1.0, (20, 2))
    split = [*env.train_ids[1:], 19], [0, *env.test_ids[:-1]]
    np.savez(tmp_path / "own.npz", goal=goals, train_ids=split[0], test_ids=split[1])
    asked = "--env=point_robot", "--suite=gentle"
    leaves = env.tasks | {"goal": goals.astype(np.float32)}
    return f"--tasks={tmp_path / 'own.npz'}", asked, env._replace(tasks=leaves, parameters=goals)


@pytest.mark.parametrize("format_", FORMATS)
def test_data_of_other_tasks_are_refused_and_taken_with_their_tasks(
    capsys, tmp_path, own_goals, format_
):
    tasks, asked, env = own_goals
    FORMATS[format_](tmp_path / "source", env)
    words = ["import", f"--format={format_}", f"--from={tmp_path / 'source'}", *asked]
    code, _, line = shown(capsys, *words, f"--to={tmp_path / 'no'}")
    assert code == 2 and line.startswith("error: ") and line.count("\n") == 1
    if format_ == "focal":
        assert "task " in line and " of 20 tasks misfit" in line and "--tasks=fit" in line
    assert not (tmp_path / "no").exists()

    code, _, line = shown(capsys, *words, f"--to={tmp_path / 'yes'}", tasks)
    assert code == 0, line
    _, meta = storage.load(tmp_path / "yes")
    np.testing.assert_allclose(meta["tasks"]["goal"], env.tasks["goal"])
    assert meta["tasks_from"] == "file own.npz" and not meta["checked"]["accepted"]
    assert min(meta["checked"]["reward_correlation"]) > 0.999


def test_tasks_can_be_fitted_to_points_and_are_shown(capsys, tmp_path, own_goals):
    _, asked, env = own_goals
    foreign.focal(tmp_path / "source", env, (100,), 3)
    words = ["import", "--format=focal", f"--from={tmp_path / 'source'}", f"--to={tmp_path / 'to'}"]
    code, out, line = shown(capsys, *words, *asked, "--tasks=fit")
    assert code == 0 and "task,set,goal[0],goal[1]" in out, line
    meta = storage.read_meta(tmp_path / "to")
    np.testing.assert_allclose(meta["tasks"]["goal"], env.tasks["goal"], atol=1e-4)
    assert meta["tasks_from"] == "fitted to the rows by least squares"
    refused = ["import", "--format=focal", f"--from={tmp_path / 'source'}", "--tasks=fit"]
    assert "cheetah_vel do not say" in imported_error(capsys, refused, "--env=cheetah_vel")


def imported_error(capsys, words, *more):
    """Returns the line of a refused fit, without a folder of that family at hand."""
    config = assembly.make_config("focal", "smoke", env=more[0].partition("=")[2])
    with pytest.raises(Exception, match="do not say") as caught:
        imports.fitted({}, assembly.env_of(config), config)
    return str(caught.value)


def test_winds_are_fitted_too():
    env, fields = plane("point_robot_wind", "ctmrl")
    rows = Transition(**{name: fields[name][7].reshape(-1, *fields[name].shape[4:])
                         for name in Transition._fields})  # fmt: skip
    found = env.task_rules.fit(rows)
    np.testing.assert_allclose(found["wind"], env.tasks["wind"][7], atol=1e-6)
    np.testing.assert_allclose(found["goal"], env.tasks["goal"][7], atol=1e-4)


def test_an_accepted_misfit_is_repeated_by_show(capsys, tmp_path, own_goals):
    _, asked, env = own_goals
    foreign.focal(tmp_path / "source", env, (100,), 2)
    to = tmp_path / "to"
    words = ["import", "--format=focal", f"--from={tmp_path / 'source'}", f"--to={to}", *asked]
    code, _, line = shown(capsys, *words, "--accept_misfit")
    assert code == 0, line
    meta = storage.read_meta(to)
    assert meta["checked"]["accepted"] and len(meta["checked"]["misfits"]) > 15
    code, out, _ = shown(capsys, "show", f"--data={to}", f"--to={tmp_path / 'figures'}")
    assert code == 0 and "MISFIT, accepted: task" in out and " more misfits" in out
    assert storage.misfit_of(meta).count("task(s) of the data misfit the environment")


def test_an_import_with_tasks_of_its_own_has_another_identity(tmp_path, own_goals):
    table_ = {"leaves": {"goal": [[0.0, 1.0]]}, "train_ids": [0], "test_ids": [0], "from": "x"}
    config = assembly.make_config("focal", "smoke")
    own = dataclasses.replace(config, tasks=table_)
    assert config_lib.data_identity(own)["tasks"] == config_lib.task_digest(table_ | {"from": "y"})
