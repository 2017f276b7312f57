"""Tasks that are not the suite's: files of them, and the data and runs that carry them."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import collect, data, run
from experiments.cli import flags
from experiments.cli.command import main
from gentle_jax import assembly, errors, storage, task_tables
from gentle_jax import config as config_lib
from gentle_jax.envs import base

CSV = "task,set,goal[0],goal[1]\n0,train,1.5,0\n1,train,0.25,-1\n2,test,-0.5,2\n"
GOALS = np.array([[1.5, 0.0], [0.25, -1.0], [-0.5, 2.0]], np.float32)


@pytest.fixture(autouse=True)
def quiet(no_cache):
    """The user's compile cache stays as it is, and commands run in an empty folder."""


@pytest.fixture(scope="module")
def env():
    return assembly.make_env("point_robot")


def table_in(path, text=CSV, env="point_robot"):
    path.write_text(text)
    return task_tables.read(path, assembly.make_env(env))


@pytest.mark.parametrize("name", ["point_robot_wind", "cheetah_dir", "hopper_params"])
@pytest.mark.parametrize("ending", [".csv", ".npz"])
def test_a_suites_own_tasks_come_back_bit_by_bit(tmp_path, name, ending):
    env = assembly.make_env(name, "gentle" if name == "cheetah_dir" else "ctmrl")
    table = task_tables.of_env(env)
    task_tables.write(tmp_path / f"tasks{ending}", table, env)
    again = task_tables.read(tmp_path / f"tasks{ending}", env)
    assert task_tables.same(table, again) and again["from"] == f"file tasks{ending}"
    with_them = base.with_tasks(env, again)
    for leaf in env.tasks:
        np.testing.assert_array_equal(with_them.tasks[leaf], env.tasks[leaf])
    np.testing.assert_array_equal(with_them.parameters, env.parameters)


def test_an_env_takes_other_tasks_and_what_follows_from_them(tmp_path, env):
    table = table_in(tmp_path / "own.csv")
    own = assembly.make_env("point_robot", tasks=table)
    np.testing.assert_array_equal(own.tasks["goal"], GOALS)
    np.testing.assert_array_equal(own.tasks["wind"], np.zeros((3, 2)))
    np.testing.assert_array_equal(own.landmarks, GOALS)
    assert own.train_ids.tolist() == [0, 1] and own.test_ids.tolist() == [2]
    # to (1.5, 0), straight on: 1.4, 1.3, ..., 0 away, and then it is there
    assert own.optimal_return(1)[0] == pytest.approx(-10.5, abs=1e-4)
    fewer = assembly.make_env("point_robot", settings=base.EnvConfig(num_train=1), tasks=table)
    assert len(fewer.parameters) == 2


def test_derived_constants_follow_from_given_bodies():
    settings = base.EnvConfig(derive_constants="physical")
    env = assembly.make_env("hopper_params", settings=settings)
    table = task_tables.of_env(env)
    assert "body_subtreemass" not in table["leaves"]
    swapped = {name: leaf[::-1] for name, leaf in table["leaves"].items()}
    own = base.with_tasks(env, table | {"leaves": swapped})
    for leaf in ("body_mass", "dof_invweight0"):
        np.testing.assert_array_equal(own.tasks[leaf], env.tasks[leaf][::-1])


BAD = {
    "a column less": ("task,set,goal[0]\n0,train,1\n1,test,1\n", "has no column goal[1]"),
    "another column": (CSV.replace("goal[1]", "gaol[1]"), "did you mean 'goal[1]'"),
    "a text": (CSV.replace("0.25", "north"), "'north' in line 3, column goal[0]"),
    "a short line": (CSV.replace(",-1\n", "\n"), "line 3 out of place"),
    "a column twice": (
        "task,set,goal[0],goal[1],goal[0]\n0,train,1,0,1\n",
        "has column goal[0] twice",
    ),
    "a digit group": (CSV.replace("0.25", "1_0"), "'1_0' in line 3, column goal[0]"),
    "another set": (CSV.replace("test", "tset"), "did you mean 'test'"),
    "no test task": (CSV.replace("test", "train"), "test_ids []"),
    "nan": (CSV.replace("0.25", "nan"), "goal = nan in task 1"),
    "too far": (CSV.replace("0.25", "1e9"), "goal = 1e+09 in task 1: expected numbers from -100"),
    "lines in another order": (CSV.replace("\n0,", "\n1,"), "line 2 out of place: expected task 0"),
    "a cell too many": (CSV.replace(",-1\n", ",-1,7\n"), "out of place"),
    "nothing": ("", "has no column set"),
    "no rows": (CSV.splitlines()[0], "at least one"),
}


def test_a_file_that_a_spreadsheet_marked_is_read(tmp_path):
    plain, marked = (table_in(tmp_path / "own.csv", mark + CSV) for mark in ("", "\ufeff"))
    assert task_tables.same(plain, marked)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named(tmp_path, case):
    text, part = BAD[case]
    with pytest.raises(errors.UserError) as caught:
        table_in(tmp_path / "own.csv", text)
    assert part in str(caught.value) and "\n" not in str(caught.value)


BAD_ARRAYS = {
    "another name": ({"gaol": GOALS}, "did you mean 'goal'"),
    "another shape": ({"goal": GOALS[:, :1]}, "goal of shape (3, 1)"),
    "objects": ({"goal": np.array(["a", "b", "c"])}, "of <U1"),
    "no split": ({"train_ids": None}, "has no train_ids"),
    "an id too large": ({"test_ids": [3]}, "test_ids [3]: expected"),
    "an id twice": ({"train_ids": [0, 0, 1]}, "a task twice in train_ids"),
    "a task unused": ({"train_ids": [0]}, "task 1 in neither"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_named(tmp_path, env, case):
    changes, part = BAD_ARRAYS[case]
    arrays = {"goal": GOALS, "train_ids": [0, 1], "test_ids": [2]} | changes
    path = tmp_path / "own.npz"
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    with pytest.raises(errors.UserError) as caught:
        task_tables.read(path, env)
    assert part in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(errors.UserError, match="cannot be read as npz"):
        task_tables.read(path, env)


def test_directions_have_length_one(tmp_path):
    text = "set,direction\ntrain,1\ntest,0.5\n"
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(errors.UserError, match=r"length 0\.5 in task 1"):
        task_tables.read(tmp_path / "own.csv", assembly.make_env("cheetah_dir", "gentle"))


def test_the_suites_own_tasks_change_no_identity_and_others_do(tmp_path, capsys, env):
    parse = lambda *words: flags.parse(run.COMMAND, ["run", "--preset=smoke", *words]).config
    assert main(data.COMMAND, ["data", "tasks", "--env=point_robot"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[:2] == ["task,set,goal[0],goal[1]", "0,train,1.0,0.0"]
    (tmp_path / "same.csv").write_text(text)
    (tmp_path / "own.csv").write_text(CSV)
    plain, same, own = parse(), *(parse(f"--tasks={tmp_path}/{n}.csv") for n in ("same", "own"))
    assert plain == same and "tasks" not in config_lib.to_dict(plain)
    identity = [config_lib.data_identity(config) for config in (plain, own)]
    assert identity[1].pop("tasks") and identity[0] == identity[1]
    assert config_lib.from_dict(config_lib.to_dict(own)) == own
    np.testing.assert_array_equal(assembly.env_of(own).tasks["goal"], GOALS)


def test_data_carry_their_tasks_into_runs(tmp_path, capsys):
    (tmp_path / "own.csv").write_text(CSV)
    words = ["run", "--preset=smoke", f"--tasks={tmp_path}/own.csv", f"--data={tmp_path}/data"]
    config = flags.parse(run.COMMAND, words).config
    folder = storage.folder_of(tmp_path / "data", config)
    wanted = storage.shapes(3, config.behaviour, assembly.env_of(config))
    storage.open_arrays(folder, wanted)
    returns = {name: [[-9.0] * 3] for name in collect.RETURNS}
    meta = {"identity": config_lib.data_identity(config), "levels": [0], **returns}
    storage.commit(folder, meta | task_tables.meta_of(config))

    alone = flags.parse(run.COMMAND, ["run", "--preset=smoke", f"--data={folder}"])
    assert alone.config == config  # without --tasks: the data carry them
    assert run.identity(alone)["tasks"]["leaves"]["goal"] == GOALS.tolist()
    _, stored = storage.load(folder, alone.config)
    assert stored["tasks_from"] == "file own.csv"

    (tmp_path / "other.csv").write_text(CSV.replace("1.5", "1.25"))
    other = flags.parse(
        run.COMMAND, ["run", "--preset=smoke", f"--tasks={tmp_path}/other.csv", f"--data={folder}"]
    ).config
    for asked, part in (
        (other, "leave --tasks out"),
        (dataclasses.replace(config, tasks=None), "own"),
    ):
        with pytest.raises(errors.UserError, match=part):
            storage.load(folder, asked)


def test_tasks_are_written_to_files_and_nothing_is_overwritten(tmp_path, capsys):
    words = ["data", "tasks", "--env=ant_dir", "--suite=gentle", f"--to={tmp_path}/a.npz"]
    assert main(data.COMMAND, words) == 0 and "20 tasks in" in capsys.readouterr().out
    assert main(data.COMMAND, words) == 2 and "exists" in capsys.readouterr().err
    assert main(data.COMMAND, [*words[:-1], f"--to={tmp_path}/a.txt"]) == 2
    assert "expected one of NAME.npz, NAME.csv" in capsys.readouterr().err
    with np.load(tmp_path / "a.npz") as file:
        assert file["direction"].shape == (20, 2) and len(file["test_ids"]) == 10


def test_collected_data_say_whose_tasks_they_are(tmp_path):
    config = assembly.make_config("focal", "smoke")
    assert task_tables.meta_of(config) == {"tasks_from": "suite ctmrl"}
    table = table_in(tmp_path / "own.csv")
    own = dataclasses.replace(config, tasks=table)
    assert task_tables.meta_of(own) == {"tasks_from": "file own.csv", "task_table": table}
    json.dumps(task_tables.meta_of(own))
