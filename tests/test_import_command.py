"""`experiments.data import`: formats by name, and what ends an import before it writes."""

import foreign
import numpy as np
import pytest
from data_command import refused, shown

import gentle_jax
from gentle_jax import storage, task_tables
from gentle_jax.envs import base


@pytest.fixture(autouse=True)
def quiet(no_cache):
    """The user's compile cache stays as it is, and commands run in an empty folder."""


@pytest.mark.parametrize("format", ["npz", "metadt", "spc"])
def test_formats_are_imported_by_name(capsys, tmp_path, format):
    env = foreign.make_env(suite="ctmrl")
    lengths, options = [20, 20], [] if format == "npz" else ["--horizon=20"]
    if format == "npz":
        rows = [
            {**columns, "terminal": np.zeros(40), "length": lengths}
            for columns in foreign.rows_of(env, lengths)
        ]
        gentle_jax.write_dataset(tmp_path / "x", rows, {"goal": env.tasks["goal"]})
    else:
        getattr(foreign, format)(tmp_path / "x", env, lengths)
    options += ["--levels=2"] if format == "metadt" else []
    arguments = [f"--format={format}", f"--from={tmp_path / 'x'}", f"--to={tmp_path / 'to'}"]
    code, out, err = shown(capsys, "import", *arguments, *options)
    assert code == 0 and "80 episodes of 40 tasks, 2 to 2 a task" in out, err
    fields, meta = storage.load(tmp_path / "to")
    assert fields["mask"].sum() == 1600 and storage.source_of(meta)["format"] == format
    assert meta["levels"] == {"npz": [0], "metadt": [20, 40], "spc": [0]}[format]


def test_tasks_of_the_source_are_those_of_its_data_if_its_rows_agree(capsys, tmp_path):
    env = foreign.make_env(suite="ctmrl")
    goals = np.asarray(env.tasks["goal"])[::-1]
    foreign.metadt(tmp_path / "x", env, goals=goals)  # the rows are of the suite's
    arguments = ["import", "--format=metadt", f"--to={tmp_path / 'to'}"]
    message = refused(capsys, *arguments, f"--from={tmp_path / 'x'}")
    assert "are not those of point_robot of suite ctmrl: task" in message
    assert not (tmp_path / "to").exists()
    table = task_tables.of_env(env) | {"leaves": {"goal": goals.tolist()}}
    foreign.metadt(tmp_path / "y", base.with_tasks(env, table), goals=goals)
    code, out, err = shown(capsys, *arguments, f"--from={tmp_path / 'y'}")
    assert code == 0 and "taking the tasks that" in out, err
    meta = storage.read_meta(tmp_path / "to")
    assert meta["tasks_from"] == "task_goals.pkl of the source"
    assert meta["task_table"]["leaves"]["goal"] == goals.tolist()


def test_short_episodes_of_a_source_are_taken_where_its_horizon_is_stated(capsys, tmp_path):
    foreign.corro(tmp_path / "x", foreign.make_env(suite="ctmrl"), lengths=[10] * 4, flagged=False)
    arguments = ["import", "--format=corro", f"--from={tmp_path / 'x'}", f"--to={tmp_path / 'to'}"]
    assert "longest episode has 10 steps" in refused(capsys, *arguments)
    code, out, err = shown(capsys, *arguments, "--horizon=10")
    assert code == 0 and "4 to 4 a task" in out, err


def test_names_of_other_tasks_end_an_import_before_it_writes(capsys, tmp_path):
    env = foreign.make_env(suite="ctmrl")
    foreign.corro(tmp_path / "x", env._replace(parameters=env.parameters[::-1]))
    arguments = ["import", "--format=corro", f"--from={tmp_path / 'x'}", f"--to={tmp_path / 'to'}"]
    assert "is of other tasks than point_robot of suite ctmrl" in refused(capsys, *arguments)
    assert not (tmp_path / "to").exists()


def test_rewards_that_no_data_have_end_an_import_before_it_writes(capsys, tmp_path):
    sparse = foreign.make_env("sparse_point_robot", "ctmrl")
    foreign.corro(tmp_path / "y", sparse)
    rewards = {path: np.load(path) for path in (tmp_path / "y").rglob("rewards.npy")}
    for path, values in rewards.items():
        np.save(path, np.zeros_like(values))
    arguments = ["import", "--format=corro", "--env=sparse_point_robot", f"--from={tmp_path / 'y'}"]
    arguments.append(f"--to={tmp_path / 'to'}")
    assert "with return 20, no agent gets above" in refused(capsys, *arguments)
    assert not (tmp_path / "to").exists()
    for path, values in rewards.items():
        np.save(path, np.where(values >= -0.2, 1.0 + values / 0.2, 0.0))
    code, out, err = shown(capsys, *arguments, "--rewards=sparse")
    assert code == 0 and "dense rewards are unknown" in out, err
    assert storage.source_of(storage.read_meta(tmp_path / "to"))["rewards"] == "sparse"
