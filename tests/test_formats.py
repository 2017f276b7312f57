"""Formats without time limits, and what no data of an environment can be."""

import pathlib
import pickle
import zipfile
from collections import OrderedDict

import foreign
import numpy as np
import pytest
from foreign import cut, read, refused

from gentle_jax import errors
from gentle_jax.interop import checks, tensors, unpickle


@pytest.fixture(scope="module")
def env():
    return foreign.make_env()


@pytest.fixture(scope="module")
def centred():
    """A family whose episodes all begin in the middle."""
    return foreign.make_env(suite="ctmrl")


def check_rows(found, made, lengths, levels=1):
    """Every episode of every task is there, in order, and nothing else."""
    ends = np.cumsum(lengths)
    per_level = len(lengths) // levels
    for task, columns in enumerate(made):
        for number, (end, length) in enumerate(zip(ends, lengths, strict=True)):
            place = task, number // per_level, number % per_level
            for name, values in columns.items():
                wanted = values[end - length : end].astype(np.float32)
                np.testing.assert_array_equal(found.fields[name][place][:length], wanted)
            assert found.fields["mask"][place].sum() == length
    assert found.fields["mask"].sum() == len(made) * sum(lengths)


# rows in the order of time


@pytest.mark.parametrize("format", ["corro", "metadt", "spc"])
def test_glued_episodes_are_split_where_the_next_row_is_another(tmp_path, env, format):
    lengths = [10] * 6 + [20, 3]
    made = getattr(foreign, format)(tmp_path / "x", env, lengths=lengths)
    found = read(tmp_path / "x", env, format)
    check_rows(found, made, lengths)
    assert found.notes[:2] == [
        "160 episodes of 20 tasks, 8 to 8 a task",
        "140 episodes of fewer than 20 steps were cut short: point_robot never ends early",
    ]
    message = refused(lambda: read(tmp_path / "x", env._replace(horizon=9), format))
    assert "20 rows from row 60 on that follow one another" in message and "at most 9" in message


def test_longer_episodes_are_not_cut_up(tmp_path, env):
    foreign.corro(tmp_path / "x", env, lengths=[60, 60])
    message = refused(lambda: read(tmp_path / "x", env, "corro"))
    assert "60 rows from row 0 on that follow one another, an episode has at most 20" in message


def test_flags_and_starts_end_episodes_where_rows_do_not_show_it(tmp_path, centred):
    """Environments that reset themselves store the next episode's first obs as next_obs."""
    made = foreign.corro(tmp_path / "x", centred, lengths=[10, 10, 8])
    (below,) = (tmp_path / "x" / "data").glob("seed_3_*")
    next_obs = np.load(below / "next_obs.npy")
    next_obs[[9, 19]] = 0.0
    np.save(below / "next_obs.npy", next_obs)
    made[3]["next_obs"] = next_obs
    check_rows(read(tmp_path / "x", centred, "corro"), made, [10, 10, 8])
    np.save(below / "terminals.npy", np.zeros((28, 1)))
    check_rows(read(tmp_path / "x", centred, "corro"), made, [10, 10, 8])
    moved = np.load(below / "obs.npy") + 0.5  # the same without a start that says so
    np.save(below / "obs.npy", moved)
    np.save(below / "next_obs.npy", next_obs + 0.5)
    assert "28 rows from row 0 on" in refused(lambda: read(tmp_path / "x", centred, "corro"))


def test_an_agent_that_stands_at_the_start_does_not_begin_anew(tmp_path, centred):
    foreign.corro(tmp_path / "x", centred, lengths=[20], flagged=False)
    (below,) = (tmp_path / "x" / "data").glob("seed_3_*")
    for name in ("obs", "next_obs"):
        values = np.load(below / f"{name}.npy")
        values[: 4 if name == "obs" else 3] = 0.0
        np.save(below / f"{name}.npy", values)
    assert read(tmp_path / "x", centred, "corro").fields["mask"][3].sum() == 20


def test_ragged_rows_of_bodies_end_where_they_fell(tmp_path, env):
    lengths = [7, 20, 11, 5]
    made = foreign.corro(tmp_path / "x", env, lengths=lengths, flagged=False)
    found = read(tmp_path / "x", env._replace(ends_early=True), "corro")
    check_rows(found, made, lengths)
    terminal = found.fields["terminal"][:, 0]
    assert terminal[:, 0, 6].all() and terminal[:, 2, 10].all() and terminal.sum() == 40
    assert "60 episodes of fewer than 20 steps ended early" in found.notes


def test_rows_out_of_order_are_refused(tmp_path, env):
    foreign.corro(tmp_path / "x", env)
    (below,) = (tmp_path / "x" / "data").glob("seed_3_*")
    order = np.random.default_rng(0).permutation(40)
    for path in below.iterdir():
        np.save(path, np.load(path)[order])
    message = refused(lambda: read(tmp_path / "x", env, "corro"))
    assert "do not follow one another" in message and str(below) in message


@pytest.mark.parametrize(
    "horizon,text",
    [(21, "at most 20 steps"), (15, "at most 15"), (19, "at most 19"), (20, ""), (0, "")],
)
def test_the_horizon_that_is_given_is_checked(tmp_path, env, horizon, text):
    foreign.metadt(tmp_path / "x", env, [20, 20, 4])
    load = lambda: read(tmp_path / "x", env, "metadt", horizon=horizon)
    assert text in refused(load) if text else load().fields["mask"].sum() == 20 * 44


def test_an_episode_that_the_horizon_does_not_explain_is_refused(tmp_path, env):
    foreign.spc(tmp_path / "x", env, [20, 8, 20])
    message = refused(lambda: read(tmp_path / "x", env, "spc", horizon=20))
    assert "an episode of 8 rows from row 20 on, --horizon=20" in message
    read(tmp_path / "x", env._replace(ends_early=True), "spc", horizon=20)


# Meta-DT


def test_metadt_is_read_row_by_row_and_cut_into_levels(tmp_path, env):
    made = foreign.metadt(tmp_path / "x", env)
    found = read(tmp_path / "x", env, "metadt", horizon=20)
    check_rows(found, made, [20] * 3)
    assert found.levels == [60] and found.fields["context_reward"].any()
    found = read(tmp_path / "x", env, "metadt", levels=3)
    check_rows(found, made, [20] * 3, levels=3)
    assert found.levels == [20, 40, 60] and found.source == {"format": "metadt", "levels": 3}
    assert "expected 1 to 3" in refused(lambda: read(tmp_path / "x", env, "metadt", levels=4))


@pytest.mark.parametrize(
    "as_stored",
    [
        lambda goals: goals,
        lambda goals: [list(goal) for goal in goals],
        lambda goals: [{"goal": goal} for goal in goals],
        lambda goals: tuple(OrderedDict(goal=goal) for goal in goals),
    ],
)
def test_goals_that_are_stored_are_the_tasks(tmp_path, env, as_stored):
    goals = np.asarray(env.tasks["goal"], np.float64)
    foreign.metadt(tmp_path / "x", env, goals=as_stored(goals))
    found = read(tmp_path / "x", env, "metadt")
    np.testing.assert_array_equal(found.tasks["goal"], goals)
    checks.check(found, tmp_path / "x", env)
    goals[7, 1] += 1e-3
    path = tmp_path / "x" / "task_goals.pkl"
    path.write_bytes(pickle.dumps(as_stored(goals)))
    found = read(tmp_path / "x", env, "metadt")
    assert "its task 7 has goal" in refused(lambda: checks.check(found, tmp_path / "x", env))
    path.unlink()
    assert read(tmp_path / "x", env, "metadt").tasks is None


def hostile(path):
    path.write_bytes(pickle.dumps({"observations": foreign.Evil(path.with_name("made"))}))


def changed(change):
    def apply(path):
        path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))

    return apply


def without(stored):
    del stored["terminals"]
    return stored


BAD_METADT = {
    "a file less": (lambda p: p.unlink(), "19 files dataset_task_<i>.pkl"),
    "a file more": (lambda p: p.with_name("dataset_task_20.pkl").touch(), "(20 first)"),
    "hostile": (hostile, "asks for"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-300]), "is not a whole pickle"),
    "empty": (lambda p: p.write_bytes(b""), "is not a whole pickle"),
    "no dict": (changed(lambda d: [d]), "holds a list: expected a dict of observations"),
    "a key less": (changed(without), "has no terminals"),
    "a short array": (changed(lambda d: d | {"rewards": d["rewards"][:-1]}), "different lengths"),
    "a list": (changed(lambda d: d | {"rewards": [1.0]}), "reward of type list"),
    "texts": (changed(lambda d: d | {"rewards": "none"}), "reward of type str"),
    "objects": (
        changed(lambda d: d | {"actions": np.array([[1, None]] * 60, object)}),
        "type object",
    ),
    "NaN": (changed(lambda d: d | {"rewards": d["rewards"] * np.nan}), "NaN or infinite values"),
    "half a flag": (changed(lambda d: d | {"terminals": np.full(60, 0.5)}), "end flags other"),
    "goals": (lambda p: p.with_name("task_goals.pkl").write_bytes(b"x"), "is not a whole pickle"),
    "fewer goals": (
        lambda p: p.with_name("task_goals.pkl").write_bytes(pickle.dumps(np.zeros((3, 2)))),
        "finite numbers of each of 20 tasks",
    ),
    "ragged goals": (
        lambda p: p.with_name("task_goals.pkl").write_bytes(pickle.dumps([[1.0, 2.0], [1.0]] * 10)),
        "finite numbers of each of 20 tasks",
    ),
    "wide goals": (
        lambda p: p.with_name("task_goals.pkl").write_bytes(pickle.dumps(np.zeros((20, 7)))),
        "7 numbers of a task",
    ),
}


@pytest.mark.parametrize("case", BAD_METADT)
def test_a_bad_metadt_folder_is_named(tmp_path, env, case):
    change, part = BAD_METADT[case]
    foreign.metadt(tmp_path / "x", env)
    change(tmp_path / "x" / "dataset_task_4.pkl")
    message = refused(lambda: read(tmp_path / "x", env, "metadt"))
    assert part in message and str(tmp_path / "x") in message
    assert not (tmp_path / "x" / "made").exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_and_kind_of_dict_is_read(tmp_path, protocol):
    wanted = OrderedDict(a=np.arange(6.0).reshape(2, 3), b=np.arange(4) > 1)
    wanted["c"] = np.asfortranarray(wanted["a"].astype(np.float32))
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps([wanted, wanted["a"], 2.5], protocol))
    found, same, number = unpickle.read_pickle(path)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert same is found["a"] and number == 2.5


def test_a_small_pickle_cannot_become_a_large_one(tmp_path):
    nested = []
    for _ in range(60):
        nested = [nested] * 60  # 60 to the 60th without memory of what was seen
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(nested))
    assert len(unpickle.read_pickle(tmp_path / "x.pkl")) == 60


# Python 2


def test_focal_files_of_python_2_are_read(tmp_path, env):
    made = foreign.focal(tmp_path, env, (1000,), 1)
    for (task, step, number), columns in made.items():
        path = tmp_path / f"goal_idx{task}" / foreign.name(number, step)
        kind = (float, np.float64)[task % 2]  # numbers, or NumPy's own
        foreign.python2_npy(path, foreign.object_rows(columns, kind))
    for allowed in (False, True):
        found = read(tmp_path, env, allow_pickle=allowed)
        for (task, *_), columns in made.items():
            for name, values in columns.items():
                wanted = values.astype(np.float32)
                np.testing.assert_array_equal(found.fields[name][task, 0, 0], wanted)
    foreign.python2_npy(tmp_path / "x.npy", np.arange(300.0).reshape(100, 3))
    np.testing.assert_array_equal(unpickle.read_array(tmp_path / "x.npy")[7], [21, 22, 23])


# SPC


def test_spc_is_read_row_by_row(tmp_path, env):
    made = foreign.spc(tmp_path / "x", env)
    check_rows(read(tmp_path / "x", env, "spc"), made, [20, 20])
    for path in (tmp_path / "x").iterdir():  # 10 comes after 9 whatever else is in the name
        path.rename(path.with_name(f"seed3-{path.name}"))
    check_rows(read(tmp_path / "x", env, "spc"), made, [20, 20])


ROWS = np.arange(60, dtype=np.float32).reshape(12, 5)


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS.T, ROWS[3:9, 1:4], ROWS[:, ::2], ROWS[:0], ROWS[0], ROWS[5:6, 2]]
)
@pytest.mark.parametrize("order", ["little", "big"])
def test_a_tensor_lies_as_its_strides_say(tmp_path, rows, order):
    offset = (rows.__array_interface__["data"][0] - ROWS.__array_interface__["data"][0]) // 4
    stride = tuple(step // 4 for step in rows.strides)
    tensor = foreign.Tensor(ROWS, offset=offset, size=rows.shape, stride=stride)
    foreign.torch_save(tmp_path / "x.pth", tensor, order)
    np.testing.assert_array_equal(tensors.read(tmp_path / "x.pth"), rows)


def saved(rows, **options):
    return lambda path: foreign.torch_save(path, rows, **options)


def placed(**changes):
    return saved(foreign.Tensor(np.zeros((40, 8), np.float32), **changes))


ROWS_OF_A_TASK = np.zeros((40, 8), np.float32)
BAD_SPC = {
    "a file less": (lambda p: p.unlink(), "19 files <...><i>.pth"),
    "a file more": (lambda p: p.rename(p.with_name("task_99.pth")), "(4 first)"),
    "a number twice": (lambda p: p.with_name("task_04.pth").touch(), "the number of"),
    "another name": (lambda p: p.with_name("x_1.pth").touch(), "differ in their last number"),
    "no number": (lambda p: p.with_name("x.pth").touch(), "has no number in its name"),
    "hostile": (saved(foreign.Evil("made")), "asks for"),
    "other numbers": (saved(ROWS_OF_A_TASK, kind="LongStorage"), "asks for torch.LongStorage"),
    "a dict": (saved({"rows": ROWS_OF_A_TASK}), "holds a dict: expected one tensor"),
    "narrow": (saved(ROWS_OF_A_TASK[:, :7]), "has shape (40, 7): expected rows of obs"),
    "no rows": (saved(ROWS_OF_A_TASK[:0]), "shape (0, 2)"),
    "flat": (saved(ROWS_OF_A_TASK[0]), "has shape (8,)"),
    "NaN": (saved(ROWS_OF_A_TASK * np.nan), "end flags other than 0 and 1"),
    "packed": (saved(ROWS_OF_A_TASK, compression=zipfile.ZIP_DEFLATED), "not a whole file"),
    "endless": (placed(size=(2**40, 8), stride=(0, 1)), "not a whole file"),
    "beyond": (placed(offset=1), "not a whole file"),
    "before": (placed(offset=-8), "not a whole file"),
    "an old one": (lambda p: p.write_bytes(b"\x80\x02\x8a\x0a"), "is not a zip"),
    "empty": (lambda p: p.write_bytes(b""), "is not a zip"),
    "cut": (cut(-1), "not a whole file"),
    "half": (cut(700), "not a whole file"),
    "begun": (cut(2), "not a whole file"),
}


@pytest.mark.parametrize("case", BAD_SPC)
def test_a_bad_spc_folder_is_named(tmp_path, env, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, part = BAD_SPC[case]
    foreign.spc(tmp_path / "x", env)
    change(tmp_path / "x" / "task_4.pth")
    message = refused(lambda: read(tmp_path / "x", env, "spc"))
    assert part in message and str(tmp_path / "x") in message
    assert not pathlib.Path("made").exists()


def test_flipped_bits_never_become_other_numbers(tmp_path):
    path, rng, refusals = tmp_path / "x.pth", np.random.default_rng(0), 0
    foreign.torch_save(path, ROWS)
    content = path.read_bytes()
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(tensors.read(path), ROWS)
        except errors.UserError as error:
            refusals += 1
            assert "\n" not in str(error) and str(path) in str(error)
    assert refusals > 50


# rewards that no data have


def reward_of(folder, change):
    for path in folder.rglob("rewards.npy"):
        np.save(path, change(np.load(path)))


def test_rewards_of_0_and_1_are_not_dense(tmp_path):
    sparse = foreign.make_env("sparse_point_robot", "ctmrl")
    folder = tmp_path / "x"
    foreign.corro(folder, sparse)
    reward_of(folder, lambda reward: (np.arange(len(reward)) % 20 > 12)[:, None] * 1.0)
    message = refused(lambda: read(folder, sparse, "corro"))
    assert "dense rewards above 0" in message and "up to 1" in message
    assert "--rewards=sparse" in message
    found = read(folder, sparse, "corro", rewards="sparse")
    np.testing.assert_array_equal(found.fields["context_reward"], found.fields["reward"])
    assert any("dense rewards are unknown" in note for note in found.notes)
    checks.check(found, folder, sparse)  # 7 of at most 12.5
    reward_of(folder, lambda reward: np.ones_like(reward))
    found = read(folder, sparse, "corro", rewards="sparse")
    message = refused(lambda: checks.check(found, folder, sparse))
    assert "with return 20, no agent gets above 1" in message
    reward_of(folder, np.zeros_like)  # never near the goal: as dense ones, the best there can be
    found = read(folder, sparse, "corro")
    assert "with return 20" in refused(lambda: checks.check(found, folder, sparse))


def test_sparse_rewards_are_for_families_that_have_them(tmp_path, env):
    foreign.corro(tmp_path / "x", env)
    message = refused(lambda: read(tmp_path / "x", env, "corro", rewards="sparse"))
    assert "point_robot has dense rewards only" in message
    assert "dense, sparse" in refused(lambda: read(tmp_path / "x", env, "corro", rewards="both"))


def test_nothing_is_above_the_optimum_of_as_many_steps(tmp_path, centred):
    folder = tmp_path / "x"
    foreign.corro(folder, centred, lengths=[20, 1, 4])
    checks.check(read(folder, centred, "corro"), folder, centred)
    best = {length: centred.optimal_return(1, length) for length in (20, 4)}
    (below,) = (folder / "data").glob("seed_6_*")
    reward = np.load(below / "rewards.npy")
    reward[:20], reward[21:] = best[20][6] / 20, best[4][6] / 4  # the optimum itself
    np.save(below / "rewards.npy", reward)
    checks.check(read(folder, centred, "corro"), folder, centred)
    reward[21:] *= 0.5
    np.save(below / "rewards.npy", reward)
    found = read(folder, centred, "corro")
    message = refused(lambda: checks.check(found, folder, centred))
    assert "an episode of task 6 (level 0, episode 2)" in message


def test_the_place_where_all_episodes_begin(env, centred):
    assert checks.start_of(env) is None and checks.start_of(env._replace(system=1)) is None
    np.testing.assert_array_equal(checks.start_of(centred), [0.0, 0.0])
