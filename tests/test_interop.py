"""Folders of other projects: what they hold is read, and anything else is one clear error."""

import shutil

import foreign
import jax
import numpy as np
import pytest
from foreign import read, refused

from gentle_jax.interop import checks, table

SHORT = {(3, 1000, 1): 7, (4, 2000, 0): 1}  # episodes that stop before the horizon


@pytest.fixture(scope="module")
def env():
    return foreign.make_env()


@pytest.fixture(scope="module")
def focal_root(tmp_path_factory, env):
    """A FOCAL folder with ragged episodes and one missing file: (folder, what was written)."""
    folder = tmp_path_factory.mktemp("focal")
    made = foreign.focal(folder, env, lengths=SHORT)
    (folder / "goal_idx5" / foreign.name(2, 1000)).unlink()
    del made[5, 1000, 2]
    return folder, made


@pytest.fixture
def focal_folder(tmp_path, focal_root):
    """A copy to damage."""
    return shutil.copytree(focal_root[0], tmp_path / "focal")


def check_episode(fields, place, columns):
    length = len(columns["reward"])
    for name, values in columns.items():
        np.testing.assert_array_equal(fields[name][place][:length], values.astype(np.float32))
        assert not fields[name][place][length:].any()
    assert fields["mask"][place].sum() == fields["mask"][place][:length].sum() == length


# FOCAL


def test_focal_is_read_row_by_row(focal_root, env):
    folder, made = focal_root
    found = read(folder, env)
    assert found.levels == [1000, 2000] and found.fields["obs"].shape == (20, 2, 3, 20, 2)
    for (task, step, number), columns in made.items():
        check_episode(found.fields, (task, found.levels.index(step), number), columns)
    assert not found.fields["mask"][5, 0, 2].any()
    assert found.fields["mask"].sum() == sum(len(c["reward"]) for c in made.values())
    np.testing.assert_array_equal(found.fields["context_reward"], found.fields["reward"])
    assert all(values.dtype == np.float32 for values in found.fields.values())


def test_the_missing_file_is_named_and_counted(focal_root, env):
    notes = read(focal_root[0], env).notes
    assert "119 of 120 files, 2 levels, 3 episodes each" in notes
    assert "missing: goal_idx5, step 1000, episode 2" in notes
    assert any(
        note.startswith("2 episodes of fewer than 20 steps were cut short") for note in notes
    )


def test_many_gaps_are_named_up_to_a_count(focal_folder, env):
    for task in range(7):
        for number in (0, 2):
            (focal_folder / f"goal_idx{task}" / foreign.name(number, 1000)).unlink(True)
    notes = read(focal_folder, env).notes
    assert sum(note.startswith("missing: ") for note in notes) == table.MAX_NAMED
    assert "... and 4 more like these" in notes


def test_an_early_end_is_a_true_end_where_the_environment_has_them(focal_root, env):
    folder, _ = focal_root
    assert not read(folder, env).fields["terminal"].any()  # this one never ends early
    terminal = read(folder, env._replace(ends_early=True)).fields["terminal"]
    assert terminal[3, 0, 1, 6] == terminal[4, 1, 0, 0] == terminal.sum() / 2 == 1.0


def test_levels_are_chosen_and_an_unknown_one_lists_those_there_are(focal_root, env):
    folder, made = focal_root
    found = read(folder, env, steps=(2000,))
    assert found.levels == [2000] and found.fields["mask"].shape == (20, 1, 3, 20)
    check_episode(found.fields, (7, 0, 1), made[7, 2000, 1])
    message = refused(lambda: read(folder, env, steps=(2000, 3000)))
    assert "--steps=3000" in message and "1000, 2000" in message


def test_deterministic_episodes_are_other_files(tmp_path, env):
    foreign.focal(tmp_path, env, episodes=1)
    assert "no trj_eval<n>_step<S>.npy of 20" in refused(
        lambda: read(tmp_path, env, episodes="deterministic")
    )
    made = foreign.focal(tmp_path, env, (500,), 1, kind="deterministic", seed=1)
    found = read(tmp_path, env, episodes="deterministic")
    assert found.levels == [500]
    check_episode(found.fields, (2, 0, 0), made[2, 500, 0])
    assert "'all'" in refused(lambda: read(tmp_path, env, episodes="all"))


def test_numbers_that_no_task_has_are_no_gaps(focal_folder, env):
    for path in focal_folder.rglob("trj_evalsample0_*"):
        path.unlink()
    found = read(focal_folder, env)
    assert found.fields["mask"].shape[2] == 2 and "no task has episodes 0" in found.notes


def test_rewards_may_be_arrays_of_one_number(focal_folder, env, focal_root):
    path = focal_folder / "goal_idx1" / foreign.name(0, 1000)
    columns = focal_root[1][1, 1000, 0]
    for reward in (lambda r: np.array([r]), np.float32, np.float64):
        np.save(path, foreign.object_rows(columns, reward), allow_pickle=True)
        check_episode(read(focal_folder, env).fields, (1, 0, 0), columns)


def test_sparse_rewards_follow_the_environments_own_rule(tmp_path):
    env = foreign.make_env("sparse_point_robot", "ctmrl")
    foreign.focal(tmp_path, env, (100,), 2)
    near = np.array([-0.05, -0.2, -0.21, -1.0, 0.0], np.float32)
    np.testing.assert_allclose(table.context_reward(near, env), [0.75, 0, 0, 0, 1], atol=1e-6)
    fields = read(tmp_path, env).fields
    step = jax.vmap(lambda task, state, action: env.step(task, state, action)[1].context_reward)
    tasks = jax.tree.map(lambda leaf: leaf[:1].repeat(40, 0), env.tasks)
    flat = lambda name: fields[name][0].reshape(40, -1)
    wanted = np.asarray(step(tasks, flat("obs"), flat("action")))
    np.testing.assert_allclose(fields["context_reward"][0].reshape(-1), wanted, atol=1e-5)
    assert (fields["context_reward"] >= 0).all() and (fields["reward"] < 0).any()


# what cannot be read


def damage(column, value, t=2):
    def change(rows):
        rows[t, column] = value
        return rows

    return change


BAD = {
    "NaN in obs": (damage(0, np.array([np.nan, 0.0])), "NaN or infinite values in obs"),
    "infinite reward": (damage(2, np.inf), "NaN or infinite values in reward"),
    "too large for float32": (
        damage(3, np.array([1e300, 0])),
        "NaN or infinite values in next_obs",
    ),
    "NaN action": (damage(1, np.array([np.nan, 0.0])), "NaN or infinite values in action"),
    "action outside": (damage(1, np.array([0.0, 1.5])), "actions outside [-1, 1]; scale them"),
    "texts": (damage(0, "abc"), "cells that are not numbers"),
    "None": (damage(2, None), "NaN or infinite values in reward"),
    "a wider row": (damage(0, np.zeros(3)), "rows of different widths"),
    "three columns": (lambda rows: rows[:, :3], "expected rows of obs, action, reward, next_obs"),
    "no rows": (lambda rows: rows[:0], "expected rows of obs"),
    "flat": (lambda rows: rows[0], "expected rows of obs"),
    "too long": (lambda rows: np.concatenate([rows, rows]), "has 40 rows"),
    "numbers": (lambda rows: np.zeros((20, 5)), "expected rows of obs"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named(focal_folder, env, case):
    change, part = BAD[case]
    path = focal_folder / "goal_idx6" / foreign.name(1, 2000)
    np.save(path, change(np.load(path, allow_pickle=True)), allow_pickle=True)
    message = refused(lambda: read(focal_folder, env))
    assert str(path) in message and part in message


@pytest.mark.parametrize("column,name", [(0, "obs"), (1, "action"), (3, "next_obs")])
def test_widths_of_another_environment_are_named(focal_folder, env, column, name):
    path = focal_folder / "goal_idx0" / foreign.name(0, 1000)
    rows = np.load(path, allow_pickle=True)
    for row in rows:
        row[column] = np.zeros(3)
    np.save(path, rows, allow_pickle=True)
    message = refused(lambda: read(focal_folder, env))
    assert str(path) in message and f"{name} of shape (20, 3)" in message and "--env" in message


def test_rounded_actions_are_clipped(focal_folder, env):
    path = focal_folder / "goal_idx0" / foreign.name(0, 1000)
    rows = np.load(path, allow_pickle=True)
    rows[3, 1] = np.array([1.0 + 5e-7, -1.0 - 5e-7])
    np.save(path, rows, allow_pickle=True)
    assert list(read(focal_folder, env).fields["action"][0, 0, 0, 3]) == [1.0, -1.0]


def test_a_jump_between_rows_is_told_and_kept(focal_folder, env):
    path = focal_folder / "goal_idx0" / foreign.name(0, 1000)
    rows = np.load(path, allow_pickle=True)
    rows[3, 3] = rows[3, 3] + np.array([0.0, 0.25])
    np.save(path, rows, allow_pickle=True)
    found = read(focal_folder, env)
    (note,) = [note for note in found.notes if "next_obs differs" in note]
    assert str(path) in note and "up to 0.25" in note
    np.testing.assert_allclose(found.fields["next_obs"][0, 0, 0, 3], rows[3, 3], rtol=1e-6)


def test_tasks_must_be_those_of_the_environment(focal_folder, tmp_path, env):
    (focal_folder / "goal_idx20").mkdir()
    message = refused(lambda: read(focal_folder, env))
    assert "goal_idx20" in message and "tasks 0 to 19" in message
    (focal_folder / "goal_idx20").rmdir()
    shutil.rmtree(focal_folder / "goal_idx11")
    message = refused(lambda: read(focal_folder, env))
    assert "goal_idx11" in message and "1 of 20 tasks" in message
    assert "20 of 20 tasks" in refused(lambda: read(tmp_path, env))


def test_a_level_that_a_task_lacks_is_an_error(focal_folder, env):
    for path in (focal_folder / "goal_idx8").glob("*_step2000.npy"):
        path.unlink()
    message = refused(lambda: read(focal_folder, env))
    assert "goal_idx8 has no episode of step 2000" in message
    assert read(focal_folder, env, steps=(1000,)).levels == [1000]


def test_a_level_without_any_episode_is_an_error(env):
    fields = table.empty(env, 2, 3)
    fields["mask"][:, :, 1] = 1.0
    table.finish(fields, env, lambda *_: "x")
    fields["mask"][4, 1] = 0.0
    message = refused(lambda: table.finish(fields, env, lambda *_: "x"))
    assert "level 1 of task 4 has no episode" in message


# CORRO


@pytest.fixture
def corro_folder(tmp_path, env):
    made = foreign.corro(tmp_path / "corro", env)
    return tmp_path / "corro", made


def test_corro_is_read_in_the_order_of_its_numbers(corro_folder, env):
    folder, made = corro_folder
    for place in (folder, folder / "data"):
        found = read(place, env, "corro")
        assert found.levels == [0] and found.notes == ["40 episodes of 20 tasks, 2 to 2 a task"]
        for task, columns in enumerate(made):  # 10 comes after 9, not after 1
            for episode in range(2):
                rows = slice(20 * episode, 20 * episode + 20)
                own = {name: values[rows] for name, values in columns.items()}
                check_episode(found.fields, (task, 0, episode), own)
        assert not found.fields["terminal"].any()
    terminal = read(folder, env._replace(ends_early=True), "corro").fields["terminal"]
    assert terminal.sum() == terminal[..., -1].sum() == 40  # as they are stored


def test_corro_tasks_with_fewer_episodes_are_masked(corro_folder, env):
    folder, _ = corro_folder
    (below,) = (folder / "data").glob("seed_4_*")
    for path in below.iterdir():
        np.save(path, np.load(path)[:20])
    found = read(folder, env, "corro")
    assert found.fields["mask"][4, 0].sum() == 20 and "1 to 2 a task" in found.notes[0]


def test_corro_goals_of_other_tasks_are_an_error(corro_folder, env):
    folder, _ = corro_folder
    checks.check(read(folder, env, "corro"), folder, env)
    (below,) = (folder / "data").glob("seed_4_*")
    below.rename(below.with_name("seed_4_goal_0.9_0.9"))
    found = read(folder, env, "corro")
    message = refused(lambda: checks.check(found, folder, env))
    assert "its task 4 has goal 0.9 0.9, not 0.4656 -0.7695" in message
    below.with_name("seed_4_goal_0.9_0.9").rename(below.with_name("seed_4_goal_north"))
    checks.check(read(folder, env, "corro"), folder, env)
    (below,) = (folder / "data").glob("seed_5_*")
    below.rename(below.with_name("seed_5_goal_0.9"))
    assert "hold 1 numbers and 2" in refused(lambda: read(folder, env, "corro"))


def body_env(env, rng):
    """The point robot with the task leaves of a walker, and the two numbers that figures show."""
    shapes = {"body_mass": (8,), "body_inertia": (8, 3), "dof_damping": (9,)}
    tasks = {name: rng.uniform(0.1, 5.0, (20, *shape)) for name, shape in shapes.items()}
    return env._replace(tasks=env.tasks | tasks, parameters=rng.uniform(0, 1, (20, 2)))


def test_corro_names_of_bodies_are_compared_whole(corro_folder, env):
    folder, _ = corro_folder
    body = body_env(env, np.random.default_rng(0))
    numbers = [body.tasks[name].reshape(20, -1) for name in ("body_mass", "body_inertia")]
    numbers = np.round(np.concatenate(numbers, 1), 3)  # 32, as CORRO names its walkers

    def name(values):
        for below in (folder / "data").iterdir():
            task = int(below.name.split("_")[1])
            below.rename(below.with_name(f"seed_{task}_goal_{'_'.join(map(str, values[task]))}"))
        found = read(folder, body, "corro")
        return found, lambda: checks.check(found, folder, body)

    found, check = name(numbers)
    check()
    assert sorted(found.tasks) == ["body_inertia", "body_mass"]
    assert found.tasks["body_inertia"].shape == (20, 8, 3)
    numbers[7, 30] += 0.1
    assert "its task 7 has body_inertia[22]" in refused(name(numbers)[1])
    message = refused(lambda: name(numbers[:, :7]))
    assert "7 numbers of a task, point_robot has goal 2" in message


def npy(change):
    def apply(below, name="obs.npy"):
        np.save(below / name, change(np.load(below / name)))

    return apply


def poison(values):
    values[3] = np.nan
    return values


BAD_CORRO = {
    "a folder less": (shutil.rmtree, "has 19 folders"),
    "a number twice": (lambda b: shutil.copytree(b, b.with_name("seed_4_goal_x")), "the number of"),
    "a file less": (lambda b: (b / "rewards.npy").unlink(), "rewards.npy is missing"),
    "a short file": (npy(lambda v: v[:-1]), "different lengths"),
    "NaN": (npy(poison), "NaN or infinite values in obs"),
    "a wide file": (npy(lambda v: np.concatenate([v, v], 1)), "obs of shape (40, 4)"),
    "texts": (npy(lambda v: v.astype(str)), "expected numbers"),
    "three axes": (npy(lambda v: v[None]), "expected numbers"),
    "half written": (lambda b: (b / "obs.npy").write_bytes(b"\x93NUMPY\x01"), "not a whole"),
    "pickled": (
        lambda b: np.save(b / "obs.npy", np.array([foreign.Evil("x")], object), allow_pickle=True),
        "mkdir",
    ),
}


@pytest.mark.parametrize("case", BAD_CORRO)
def test_a_bad_corro_folder_is_named(corro_folder, env, case):
    change, part = BAD_CORRO[case]
    folder, _ = corro_folder
    (below,) = (folder / "data").glob("seed_4_*")
    change(below)
    message = refused(lambda: read(folder, env, "corro"))
    assert part in message and str(folder) in message
