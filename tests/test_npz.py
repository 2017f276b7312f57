"""Our own layout of data: what is written is read, and bad arrays are named."""

import pathlib
import pickle

import foreign
import numpy as np
import pytest
from foreign import cut, read, refused

import gentle_jax
from gentle_jax.interop import checks


@pytest.fixture(scope="module")
def env():
    return foreign.make_env()


def npz_rows(env, lengths, **more):
    ends = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
    return [
        {**columns, "terminal": ends, "length": lengths, **more}
        for columns in foreign.rows_of(env, lengths)
    ]


def test_what_is_written_is_read(tmp_path, env):
    rows = npz_rows(env, [20, 7, 1, 20], level=[500, 100, 500, 100])
    gentle_jax.write_dataset(tmp_path / "x", rows, {"goal": env.tasks["goal"]})
    found = read(tmp_path / "x", env, "npz")
    assert found.levels == [100, 500]
    np.testing.assert_array_equal(found.tasks["goal"], env.tasks["goal"])
    checks.check(found, tmp_path / "x", env)
    for task, columns in enumerate(rows):
        for place, span in (((0, 0), (20, 27)), ((0, 1), (28, 48)), ((1, 1), (27, 28))):
            size = span[1] - span[0]
            assert found.fields["mask"][(task, *place)].sum() == size
            for name in ("obs", "action", "reward", "next_obs", "terminal"):
                wanted = np.asarray(columns[name][slice(*span)], np.float32)
                wanted = wanted * (name != "terminal")  # nothing ends early there
                np.testing.assert_array_equal(found.fields[name][(task, *place)][:size], wanted)
    some = read(tmp_path / "x", env, "npz", steps=(500,))
    np.testing.assert_array_equal(some.fields["obs"], found.fields["obs"][:, 1:])
    other = env.tasks["goal"] + 0.01
    assert "task files already" in refused(lambda: gentle_jax.write_dataset(tmp_path / "x", rows))
    gentle_jax.write_dataset(tmp_path / "y", rows, {"goal": other})
    found = read(tmp_path / "y", env, "npz")
    assert "other tasks" in refused(lambda: checks.check(found, tmp_path / "y", env))


def test_end_flags_are_left_out_where_nothing_ends_and_refused_within_an_episode(tmp_path, env):
    gentle_jax.write_dataset(tmp_path / "x", npz_rows(env, [20]))
    found = read(tmp_path / "x", env, "npz")
    assert found.fields["terminal"].sum() == 0
    assert any("20 end flags left out" in note for note in found.notes)
    gentle_jax.write_dataset(
        tmp_path / "y", [row | {"terminal": np.ones(20)} for row in npz_rows(env, [20])]
    )
    assert "end flags within an episode" in refused(lambda: read(tmp_path / "y", env, "npz"))


def test_rewards_of_contexts_are_kept_as_they_are_given(tmp_path):
    sparse = foreign.make_env("sparse_point_robot", "ctmrl")
    seen = np.linspace(0.0, 0.5, 20, dtype=np.float32)
    gentle_jax.write_dataset(tmp_path / "x", npz_rows(sparse, [20], context_reward=seen))
    found = read(tmp_path / "x", sparse, "npz")
    np.testing.assert_array_equal(found.fields["context_reward"][:, 0, 0], np.tile(seen, (40, 1)))
    load = lambda: read(tmp_path / "x", sparse, "npz", rewards="sparse")
    assert "leave the flag out" in refused(load)


BAD_ROWS = {
    "no rows": (lambda rows: [], "no rows are given"),
    "a name less": (lambda rows: [{"obs": rows[0]["obs"]}], "has no action"),
    "another name": (lambda rows: [rows[0] | {"rewards": 1}], "did you mean 'reward'"),
    "a short array": (lambda rows: [rows[0] | {"action": np.zeros((3, 2))}], "3 rows of action"),
    "texts": (lambda rows: [rows[0] | {"obs": np.full((40, 2), "x")}], "expected numbers"),
    "three axes": (lambda rows: [rows[0] | {"obs": np.zeros((40, 2, 1))}], "expected numbers"),
    "other lengths": (lambda rows: [rows[0] | {"length": [20, 19]}], "2 episodes with 39 rows"),
    "no length": (lambda rows: [rows[0] | {"length": [40, 0]}], "1 or more"),
    "parts of rows": (lambda rows: [rows[0] | {"length": [20.0, 20.0]}], "expected whole numbers"),
    "fewer levels": (lambda rows: [rows[0] | {"level": [5]}], "1 numbers in its level"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_arrays_are_neither_written_nor_read(tmp_path, env, case):
    change, part = BAD_ROWS[case]
    rows = npz_rows(env, [20, 20])
    assert part in refused(lambda: gentle_jax.write_dataset(tmp_path / "x", change(rows)))
    assert not (tmp_path / "x").exists()
    if change(rows):
        gentle_jax.write_dataset(tmp_path / "x", rows)
        np.savez(tmp_path / "x" / "task_0.npz", **change(rows)[0])
        assert part in refused(lambda: read(tmp_path / "x", env, "npz"))


BAD_NPZ = {
    "a file less": (lambda p: p.unlink(), "19 files task_<i>.npz"),
    "cut": (cut(-1), "is not a whole .npz file"),
    "begun": (cut(40), "is not a whole .npz file"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(1)), "is not a whole .npz file"),
    "objects": (
        lambda p: np.savez(p, obs=np.array([foreign.Evil("made")], object)),
        "is not a whole .npz file",
    ),
    "some contexts": (
        lambda p: np.savez(p, **(dict(np.load(p)) | {"context_reward": np.zeros(40)})),
        "not of task 0",
    ),
    "fewer tasks": (lambda p: np.savez(p.with_name("tasks.npz"), goal=np.zeros((3, 2))), "20 task"),
    "NaN": (
        lambda p: np.savez(p.with_name("tasks.npz"), goal=np.full((20, 2), np.nan)),
        "NaN or infinite values in goal",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_folder_is_named(tmp_path, env, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, part = BAD_NPZ[case]
    gentle_jax.write_dataset(tmp_path / "x", npz_rows(env, [20, 20]))
    change(tmp_path / "x" / "task_4.npz")
    message = refused(lambda: read(tmp_path / "x", env, "npz"))
    assert part in message and str(tmp_path / "x") in message
    assert not pathlib.Path("made").exists()


def test_a_split_is_that_of_the_suite_or_refused(tmp_path, env):
    tasks = {"goal": env.tasks["goal"], "train_ids": env.train_ids, "test_ids": env.test_ids}
    gentle_jax.write_dataset(tmp_path / "x", npz_rows(env, [20]), tasks)
    assert [*read(tmp_path / "x", env, "npz").tasks] == ["goal"]
    tasks["test_ids"] = env.test_ids[1:]
    np.savez(tmp_path / "x" / "tasks.npz", **tasks)
    assert "has other test_ids" in refused(lambda: read(tmp_path / "x", env, "npz"))
    tasks["test_ids"] = ["1"]
    np.savez(tmp_path / "x" / "tasks.npz", **tasks)
    assert "not the numbers of tasks" in refused(lambda: read(tmp_path / "x", env, "npz"))


def test_tasks_of_unknown_names_or_shapes_are_refused(tmp_path, env):
    rows = npz_rows(env, [20])
    for number, (tasks, part) in enumerate(
        [({"gaol": np.zeros((20, 2))}, "did you mean 'goal'"), ({"goal": np.zeros(20)}, "shape")]
    ):
        gentle_jax.write_dataset(tmp_path / str(number), rows, tasks)
        found = read(tmp_path / str(number), env, "npz")
        message = refused(lambda found=found: checks.check(found, tmp_path, env))
        assert part in message
