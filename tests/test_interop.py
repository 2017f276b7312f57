"""Folders of other projects: what they hold is read, and anything else is one clear error."""

import io
import os
import pickle
import shutil
import sys

import foreign
import jax
import numpy as np
import pytest

from gentle_jax import errors, interop
from gentle_jax.interop import table, unpickle

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


def read(folder, env, format="focal", **options):
    return interop.load(format).read(folder, env, table.Options(**options))


def refused(call):
    """Returns the message of the UserError that `call` raises: one line."""
    with pytest.raises(errors.UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


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
    assert "trj_eval(" in refused(lambda: read(tmp_path, env, episodes="deterministic"))
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


# pickles


class Evil:
    """What a hostile file holds: unpickling it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["a cell", "the whole file"])
def test_a_malicious_file_runs_nothing(focal_folder, tmp_path, env, place):
    path, made = focal_folder / "goal_idx2" / foreign.name(0, 1000), tmp_path / "was here"
    if place == "a cell":
        rows = np.load(path, allow_pickle=True)
        rows[1, 0] = Evil(made)
        np.save(path, rows, allow_pickle=True)
    else:
        header = path.read_bytes()[:128]
        path.write_bytes(header + pickle.dumps(Evil(made), protocol=4))
    message = refused(lambda: read(focal_folder, env))
    assert not made.exists()
    assert str(path) in message and "mkdir" in message and "--allow_pickle" in message
    np.load(path, allow_pickle=True)  # it is what it claims to be
    assert made.exists()


@pytest.mark.parametrize("module,name", [("builtins", "eval"), ("os", "system"), ("numpy", "load")])
def test_no_other_function_is_found(tmp_path, module, name):
    reader = unpickle.ArrayUnpickler(io.BytesIO(), tmp_path / "x.npy")
    message = refused(lambda: reader.find_class(module, name))
    assert f"{module}.{name}" in message and "x.npy" in message


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_of_both_numpys_and_all_protocols_are_read(tmp_path, env, module, protocol):
    columns = foreign.episode(env, 0, np.random.default_rng(0))
    rows = foreign.object_rows(columns, np.float64)
    body = pickle.dumps(rows, protocol=protocol)
    new, old = b"numpy._core.multiarray", module.encode()
    if protocol == 4:  # texts carry their length in front
        new, old = bytes([len(new)]) + new, bytes([len(old)]) + old
        body = body[:2] + body[11:]  # without the frame, whose length would change too
    assert new in body
    np.save(tmp_path / "x.npy", rows, allow_pickle=True)
    header = (tmp_path / "x.npy").read_bytes()[:128]
    (tmp_path / "x.npy").write_bytes(header + body.replace(new, old))
    found = unpickle.read_array(tmp_path / "x.npy")
    assert found.shape == (20, 4)
    np.testing.assert_array_equal(np.stack(list(found[:, 0])), columns["obs"])
    assert found[3, 2] == columns["reward"][3]


@pytest.mark.parametrize("left", [-1, -20, 300, 140, 128, 60, 8, 3, 0])
def test_a_file_that_was_cut_is_named(focal_folder, env, left):
    path = focal_folder / "goal_idx2" / foreign.name(0, 1000)
    path.write_bytes(path.read_bytes()[:left])
    message = refused(lambda: read(focal_folder, env))
    assert str(path) in message and "not a whole .npy file" in message


class Forged:
    """Asks for an array of objects whose addresses are bytes of the file's own choice."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype(object), bytearray(8))


class Restated:
    """Asks for an array whose state says that its objects are plain bytes."""

    def __reduce__(self):
        state = (1, (2,), np.dtype(object), False, b"\x01" * 16)
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("content", [Forged(), Restated(), np.array(["a"]), np.array([1j])])
def test_numpy_itself_never_sees_what_a_file_says(focal_folder, env, content):
    path = focal_folder / "goal_idx2" / foreign.name(0, 1000)
    header = path.read_bytes()[:128]
    for body in (content, [content], {"x": content}):
        path.write_bytes(header + pickle.dumps(body, protocol=4))
        assert str(path) in refused(lambda: read(focal_folder, env))


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", ">i4", "u1", "?", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_within_an_array_are_what_numpy_reads(tmp_path, dtype, order):
    values = np.arange(12).reshape(3, 4).astype(dtype)
    rows = np.empty((2, 3), object, order)
    for place in np.ndindex(2, 3):
        rows[place] = [np.asarray(values, order=order), values[0, 1], sum(place), 2.5][sum(place)]
    np.save(tmp_path / "x.npy", rows, allow_pickle=True)
    mine = unpickle.read_array(tmp_path / "x.npy")
    for place in np.ndindex(2, 3):
        wanted = rows[place]
        np.testing.assert_array_equal(mine[place], wanted)
        assert np.asarray(mine[place]).dtype == np.asarray(wanted).dtype
    np.save(tmp_path / "y.npy", values)
    np.testing.assert_array_equal(unpickle.read_array(tmp_path / "y.npy"), values)


@pytest.mark.parametrize("seed", range(60))
def test_garbage_is_one_line(tmp_path, env, seed):
    """Damaged bytes are refused or read as an array: they never raise anything else."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "x.npy"
    rows = foreign.object_rows(foreign.episode(env, 0, rng))
    np.save(path, rows, allow_pickle=True)
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        content[128:] = rng.bytes(400)
    else:
        content[int(rng.integers(len(content)))] = int(rng.integers(256))
    path.write_bytes(bytes(content))
    try:
        assert isinstance(unpickle.read_array(path), np.ndarray)
    except errors.UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_pickle_is_read_where_it_is_allowed(focal_root, env, tmp_path):
    folder, _ = focal_root
    plain, allowed = read(folder, env), read(folder, env, allow_pickle=True)
    for name, values in plain.fields.items():
        np.testing.assert_array_equal(values, allowed.fields[name])
    (tmp_path / "x.npy").write_bytes(b"nonsense")
    assert "not a whole" in refused(lambda: unpickle.read_array(tmp_path / "x.npy", True))


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


def test_corro_goals_of_other_tasks_are_told(corro_folder, env):
    folder, _ = corro_folder
    (below,) = (folder / "data").glob("seed_4_*")
    below.rename(below.with_name("seed_4_goal_0.9_0.9"))
    (note,) = read(folder, env, "corro").notes[1:]
    assert "seed_4_goal_0.9_0.9 names another task than task 4" in note
    below.with_name("seed_4_goal_0.9_0.9").rename(below.with_name("seed_4_goal_north"))
    assert len(read(folder, env, "corro").notes) == 1


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
    "a wide file": (npy(lambda v: np.concatenate([v, v], 1)), "obs of shape (20, 4)"),
    "texts": (npy(lambda v: v.astype(str)), "expected numbers"),
    "three axes": (npy(lambda v: v[None]), "expected numbers"),
    "half written": (lambda b: (b / "obs.npy").write_bytes(b"\x93NUMPY\x01"), "not a whole"),
    "pickled": (
        lambda b: np.save(b / "obs.npy", np.array([Evil("x")], object), allow_pickle=True),
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


def test_corro_rows_must_be_whole_episodes(corro_folder, env):
    folder, _ = corro_folder
    message = refused(lambda: read(folder, env._replace(horizon=25), "corro"))
    assert "not whole episodes of 25 steps" in message


# Minari


def make_meta(env, levels):
    tasks = {name: np.asarray(leaf).tolist() for name, leaf in env.tasks.items()}
    numbers = np.arange(len(env.parameters), dtype=float).tolist()
    return {
        "identity": {"env": env.name, "suite": env.suite, "physics": "exact"},
        "tasks": tasks, "levels": levels, "reference_return": numbers, "random_return": numbers,
        "expert_return": [[level + n for n in numbers] for level in levels],
    }  # fmt: skip


@pytest.fixture(scope="module")
def minari_export(tmp_path_factory, focal_root, env):
    """(folder, fields, meta) of an export with a gap, short episodes and sparse rewards."""
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    fields = read(focal_root[0], env._replace(ends_early=True)).fields
    fields["context_reward"] = np.where(fields["reward"] > -1, fields["reward"], 0.0)
    fields["next_obs"][0, 0, 0, 3] += 0.25  # not the next row's obs
    meta = make_meta(env, [1000, 2000])
    folder = tmp_path_factory.mktemp("minari")
    assert interop.load("minari").export(fields, meta, folder) == 40
    return folder, fields, meta


def test_a_minari_export_reads_back_bit_for_bit(minari_export, env):
    folder, fields, meta = minari_export
    found = read(folder, env._replace(ends_early=True), "minari")
    for name, values in fields.items():
        np.testing.assert_array_equal(found.fields[name], values)
    assert found.levels == [1000, 2000]
    assert any("1 episodes were missing" in note for note in found.notes)
    assert found.known["reference_return"] == meta["reference_return"]
    assert found.known["expert_return"] == meta["expert_return"]
    later = read(folder, env, "minari", steps=(2000,))
    np.testing.assert_array_equal(later.fields["obs"], fields["obs"][:, 1:])
    assert later.known["expert_return"] == meta["expert_return"][1:]
    assert "1000, 2000" in refused(lambda: read(folder, env, "minari", steps=(5,)))


def test_minari_itself_reads_the_export(minari_export, monkeypatch):
    minari = pytest.importorskip("minari")
    folder, fields, _ = minari_export
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    assert len(minari.list_local_datasets()) == 40
    data = minari.load_dataset("gentle/point_robot/task-3/level-0-v0")
    episode = data[1]
    assert episode.observations.shape == (8, 2) and episode.rewards.shape == (7,)
    assert episode.terminations.tolist() == [False] * 6 + [True]
    assert not episode.truncations.any()
    assert data[0].truncations[-1] and not data[0].terminations.any()
    np.testing.assert_array_equal(episode.actions, fields["action"][3, 0, 1, :7])
    assert minari.load_dataset("gentle/point_robot/task-5/level-0-v0").total_episodes == 2


def test_what_is_not_our_export_is_refused(minari_export, env, tmp_path):
    folder, fields, meta = minari_export
    writer = interop.load("minari")
    assert "pass another --to" in refused(lambda: writer.export(fields, meta, folder))
    assert "MINARI_DATASETS_PATH" not in os.environ
    assert "is not an export" in refused(lambda: read(tmp_path, env, "minari"))
    moved = {**env.tasks, "goal": env.tasks["goal"] + 1}
    message = refused(lambda: read(folder, env._replace(tasks=moved), "minari"))
    assert "other task parameters" in message
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "gentle/point_robot/task-2/level-1-v0/data/main_data.hdf5").write_bytes(b"cut")
    assert "task-2" in refused(lambda: read(copy, env, "minari"))


def test_without_minari_the_extra_is_named(monkeypatch, env, tmp_path):
    monkeypatch.setitem(sys.modules, "minari", None)
    message = refused(lambda: read(tmp_path, env, "minari"))
    assert "pip install -e '.[data]'" in message
    assert "did you mean 'minari'" in refused(lambda: interop.load("minary"))
