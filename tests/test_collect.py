"""Behaviour data: deterministic, resumable, and honest about what it holds."""

import contextlib
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gentle_jax
from experiments import collect
from experiments.host import preemption
from experiments.runs import data_code
from gentle_jax import behaviour as behaviour_lib
from gentle_jax import config as config_lib
from gentle_jax import errors, provenance, registry, storage

# levels: two in the random phase, one learned
SIZES = {
    "behaviour.num_steps": 24,
    "behaviour.seed_steps": 16,
    "behaviour.first_level": 8,
    "behaviour.level_every": 8,
    "behaviour.num_levels": 3,
    "behaviour.episodes_per_level": 3,
    "behaviour.batch_size": 4,
    "behaviour.width": 8,
    "eval.random_episodes": 2,
}
HORIZON, TASKS = 6, 5  # on two devices: three each, one of them a copy


def small_env():
    """Point-Robot with five tasks and short episodes."""
    env = registry.load("environment", "point_robot").make("ctmrl")
    ids = np.concatenate([env.train_ids[:4], env.test_ids[:1]])
    return env._replace(
        horizon=HORIZON,
        tasks=jax.tree.map(lambda x: x[ids], env.tasks),
        parameters=env.parameters[ids],
        train_ids=np.arange(4),
        test_ids=np.arange(4, 5),
        optimal_return=None,
    )


@pytest.fixture(scope="module")
def small():
    """Makes every dataset of this module one of five tasks, whose programs compile once.

    Returns (config, ensure): ensure(root) is `collect.ensure` of that config.
    """
    config = config_lib.resolve(config_lib.RunConfig(), (SIZES,))
    env = small_env()
    compiled = {}

    def compile_once(function, args, donate=(), out_sharding=None):
        # `_collect` makes new closures of the same three programs each time
        number = len(args)
        if number not in compiled:
            compiled[number] = real(function, args, donate, out_sharding)
        return compiled[number]

    patch = pytest.MonkeyPatch()
    real = collect.sweep.compile_program
    random = np.linspace(-3.0, -2.0, TASKS)
    patch.setattr(collect.sweep, "compile_program", compile_once)
    patch.setattr(collect.evaluation, "random_returns", lambda *_: random)
    patch.setattr(config_lib, "make_env", lambda *_: env)
    yield config, lambda root: collect.ensure(config, root, save_every=0)
    patch.undo()


@pytest.fixture(scope="module")
def dataset(small, tmp_path_factory):
    """An uninterrupted collection: (root, fields, meta)."""
    _, ensure = small
    root = tmp_path_factory.mktemp("data")
    fields, meta, seconds = ensure(root)
    assert seconds > 0
    return root, fields, meta


def check_same(a, b):
    assert set(a) == set(b) == set(storage.FIELDS)
    for name in a:
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def without_environment(meta):
    return {name: value for name, value in meta.items() if name != "environment"}


class WaitingForSaves:
    """Lets the background save of an interrupted collection end, as a process's exit does."""

    def __init__(self, patch):
        self.opened = []
        make = collect.checkpoint.Checkpoints

        def opening(*args, **kwargs):
            self.opened.append(make(*args, **kwargs))
            return self.opened[-1]

        patch.setattr(collect.checkpoint, "Checkpoints", opening)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for saves in self.opened:
            saves.close()


def test_shapes_and_ranges(small, dataset):
    config, _ = small
    _, fields, _ = dataset
    assert {n: v.shape for n, v in fields.items()} == storage.shapes(
        TASKS, config.behaviour, small_env()
    )
    assert fields["reward"].shape == (TASKS, 3, 3, HORIZON)
    for name, values in fields.items():
        assert np.isfinite(values).all(), name
    assert np.abs(fields["action"]).max() <= 1.0
    assert (fields["mask"] == 1).all() and (fields["terminal"] == 0).all()
    # episodes are contiguous: each step starts where the one before ended
    np.testing.assert_array_equal(fields["obs"][..., 1:, :], fields["next_obs"][..., :-1, :])


def test_tasks_and_levels_differ(dataset):
    _, fields, _ = dataset
    actions = np.asarray(fields["action"]).reshape(TASKS * 3 * 3, -1)
    assert len(np.unique(actions, axis=0)) == len(actions)


def test_meta_tells_what_the_data_is(small, dataset):
    config, _ = small
    _, fields, meta = dataset
    assert meta["identity"] == config_lib.data_identity(config)
    assert meta["levels"] == behaviour_lib.levels(config.behaviour) == [8, 16, 24]
    assert np.shape(meta["behaviour_return"]) == np.shape(meta["expert_return"]) == (3, TASKS)
    assert np.shape(meta["random_return"]) == np.shape(meta["reference_return"]) == (TASKS,)
    returns = (fields["context_reward"] * fields["mask"]).sum(-1).mean(-1).T
    np.testing.assert_allclose(meta["behaviour_return"], returns, rtol=1e-5)
    # no known optimum: the reference is the last level's deterministic return
    np.testing.assert_array_equal(meta["reference_return"], meta["expert_return"][-1])
    assert np.isfinite(meta["expert_return"]).all()
    assert meta["train_ids"] == [0, 1, 2, 3] and meta["test_ids"] == [4]
    assert {len(leaf) for leaf in meta["tasks"].values()} == {TASKS}


def test_a_known_optimum_is_the_reference(small, tmp_path, monkeypatch):
    config, _ = small
    written = {}
    monkeypatch.setattr(collect.storage, "commit", lambda folder, meta: written.update(meta))
    env = small_env()._replace(optimal_return=lambda samples: np.arange(TASKS) - 9.5)
    carry = {"scored": np.zeros((3, TASKS), np.float32), "sampled": np.zeros((3, TASKS))}
    collect._finish(config, env, tmp_path, carry, {})
    assert written["reference_return"] == [-9.5, -8.5, -7.5, -6.5, -5.5]


def test_levels_of_the_random_phase_hold_uniform_actions(small, monkeypatch):
    """At a fixed agent, the stored episodes are uniform up to seed_steps and the agent's after."""
    many = config_lib.resolve(
        config_lib.RunConfig(), (SIZES, {"behaviour.episodes_per_level": 100})
    )
    env = small_env()
    collector = behaviour_lib.make(env, many.behaviour)
    agents = env.tasks, behaviour_lib.task_keys(many.behaviour, TASKS)
    state = jax.jit(collector.init)(*agents)
    # a policy that is far from uniform: tanh(2) with little noise
    policy = jax.tree.map(jnp.zeros_like, state.agent.policy.params)
    width = policy["Dense_2"]["bias"].shape[-1] // 2
    bias = jnp.tile(jnp.repeat(jnp.array([2.0, -3.0]), width), (TASKS, 1))
    policy["Dense_2"] = {**policy["Dense_2"], "bias": bias}
    trained = state.agent.policy.replace(params=policy)
    state = state.replace(agent=state.agent.replace(policy=trained))
    episodes = jax.jit(collector.episodes)
    for step in (8,):  # within the seed phase
        actions = np.asarray(episodes(*agents, state, step)[0]["action"]).ravel()
        # a Kolmogorov-Smirnov distance of 4,800 draws: 1.95 / sqrt(n) at p = 0.001
        ordered = np.sort(actions)
        distance = np.abs((ordered + 1) / 2 - np.linspace(0, 1, ordered.size)).max()
        assert distance < 1.95 / np.sqrt(ordered.size)
    for step in (16, 24):  # its end, where the first update is due, and later
        learned = np.asarray(episodes(*agents, state, step)[0]["action"])
        assert learned.min() > 0.5


def test_the_same_command_gives_the_same_bits(small, dataset, tmp_path):
    _, ensure = small
    _, fields, meta = dataset
    again, again_meta, _ = ensure(tmp_path)
    check_same(again, fields)
    assert without_environment(again_meta) == without_environment(meta)


def test_data_made_in_memory_are_those_of_the_command(small, dataset):
    config, _ = small
    _, fields, _ = dataset
    check_same(gentle_jax.collect(config), fields)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_resume_after_an_interruption_gives_the_same_bits(
    small, dataset, tmp_path, monkeypatch, capsys, level, where
):
    """Interrupted before a level is written, or after and before its checkpoint."""
    _, ensure = small
    _, fields, meta = dataset
    write = storage.write_level
    written = []

    def interrupted(arrays, number, values):
        if number == level:
            if where == "after":
                write(arrays, number, values)
            raise KeyboardInterrupt
        write(arrays, number, values)

    def watched(arrays, number, values):
        written.append(number)
        write(arrays, number, values)

    with monkeypatch.context() as patch:
        patch.setattr(collect.storage, "write_level", interrupted)
        with WaitingForSaves(patch), pytest.raises(KeyboardInterrupt):
            ensure(tmp_path)
    folder = storage.folder_of(tmp_path, small[0])
    assert not storage.is_complete(folder)
    capsys.readouterr()
    monkeypatch.setattr(collect.storage, "write_level", watched)
    again, again_meta, _ = ensure(tmp_path)
    assert written == list(range(level, 3))
    assert "resuming" in capsys.readouterr().out  # even before the first level is stored
    check_same(again, fields)
    assert without_environment(again_meta) == without_environment(meta)
    assert not (folder / "progress").exists()


@pytest.mark.parametrize("at", [1, 4])
def test_a_signal_saves_and_stops_and_the_rest_gives_the_same_bits(
    small, dataset, tmp_path, monkeypatch, capsys, at
):
    config, _ = small
    _, fields, _ = dataset
    pause, pauses = collect.Saver.pause, []

    def signalled(self, done, carry, last=False):
        pauses.append(done)
        if len(pauses) == at:
            for _ in range(2):  # the second one, from a process group, say, changes nothing
                os.kill(os.getpid(), signal.SIGTERM)
        pause(self, done, carry, last)

    handlers = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    try:
        preemption.begin()
        with monkeypatch.context() as patch, WaitingForSaves(patch):
            patch.setattr(collect.Saver, "pause", signalled)
            with pytest.raises(preemption.Preempted):
                collect.ensure(config, tmp_path, save_every=10**6)
    finally:
        preemption.begin()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert f"data: stopping after step {pauses[-1]}" in capsys.readouterr().out
    again, _, _ = collect.ensure(config, tmp_path)
    assert f"data: resuming after step {pauses[-1]} of 24" in capsys.readouterr().out
    check_same(again, fields)


@pytest.mark.parametrize("damage", ["deleted", "short", "altered"])
def test_an_array_lost_between_two_invocations_is_never_zeros(
    small, dataset, tmp_path, monkeypatch, damage
):
    """The checkpoint says that level 0 is stored: a file without it must not be filled up."""
    _, ensure = small
    _, fields, _ = dataset
    write = storage.write_level

    def interrupted(arrays, number, values):
        if number == 1:
            raise KeyboardInterrupt
        write(arrays, number, values)

    with monkeypatch.context() as patch:
        patch.setattr(collect.storage, "write_level", interrupted)
        with WaitingForSaves(patch), pytest.raises(KeyboardInterrupt):
            ensure(tmp_path)
    path = storage.folder_of(tmp_path, small[0]) / "reward.npy"
    if damage == "deleted":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:200])
    else:
        content = path.read_bytes()
        path.write_bytes(content[:130] + bytes([content[130] ^ 1]) + content[131:])  # of level 0
        with pytest.raises(errors.UserError, match="level 0 of the unfinished data"):
            ensure(tmp_path)
        path.write_bytes(content)
    again, _, _ = ensure(tmp_path)
    check_same(again, fields)


def test_a_finished_dataset_is_reused(small, dataset, capsys):
    config, _ = small
    root, fields, meta = dataset
    capsys.readouterr()
    folder = storage.folder_of(root, config)
    for given in (root, folder, str(folder)):
        again, again_meta, seconds = collect.ensure(config, given)
        shown = capsys.readouterr().out
        assert "reusing" in shown and "making" not in shown and seconds == 0
        check_same(again, fields)
        assert again_meta == meta


def test_data_that_another_process_makes_are_waited_for_and_taken(
    small, dataset, tmp_path, monkeypatch, capsys
):
    config, _ = small
    root, fields, _ = dataset
    folder = storage.folder_of(tmp_path, config)
    lock = collect.computer.alone

    @contextlib.contextmanager
    def late(held, waiting=""):
        with lock(held, waiting):
            assert str(held) in waiting
            shutil.copytree(storage.folder_of(root, config), held, dirs_exist_ok=True)
            yield

    monkeypatch.setattr(collect.computer, "alone", late)
    found, _, _ = collect.ensure(config, tmp_path)
    assert "making" not in capsys.readouterr().out and folder.is_dir()
    check_same(found, fields)


def test_one_dataset_folder_of_another_configuration_is_refused(small, dataset):
    config, _ = small
    root, _, _ = dataset
    other = config_lib.resolve(config_lib.RunConfig(), (SIZES, {"behaviour.seed": 5}))
    folder = storage.folder_of(root, config)
    with pytest.raises(errors.UserError, match=r"behaviour.seed=0.*asks for 5"):
        collect.ensure(other, folder)


# --- data of other code than that here

OLD, NOW, NEXT = "a" * 16, "b" * 16, "c" * 16


def here(monkeypatch, code):
    """Collecting has this hash here."""
    monkeypatch.setattr(data_code, "present", lambda *_: code)


def made_by(dataset, config, root, code):
    """Copies the dataset below `root`, as `code` would have left it; returns its folder."""
    folder = storage.folder_of(root, config)
    shutil.copytree(storage.folder_of(dataset[0], config), folder)
    dropped = ("sha256", "checksum", "schema", *data_code.of(config))
    meta = {name: value for name, value in dataset[2].items() if name not in dropped}
    storage.commit(folder, meta | ({"version": "0", "source_hash": code} if code else {}))
    return folder


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("code", [OLD, None])
def test_data_of_other_code_are_refused_unless_it_is_said(
    small, dataset, tmp_path, monkeypatch, capsys, code
):
    config, _ = small
    here(monkeypatch, NOW)
    folder = made_by(dataset, config, tmp_path, code)
    before, named = files(folder), code or "no source hash"
    for root in (tmp_path, folder):
        with pytest.raises(errors.UserError) as caught:
            collect.ensure(config, root)
        for part in (str(folder), named, NOW, "--fresh", "--accept_code to take them"):
            assert part in str(caught.value)
    with pytest.raises(errors.UserError, match="both given"):
        collect.ensure(config, tmp_path, fresh=True, accept_code=True)
    assert "reusing" not in capsys.readouterr().out
    fields, meta, seconds = collect.ensure(config, tmp_path, accept_code=True)
    assert f"of other code ({named}) than that here ({NOW})" in capsys.readouterr().out
    assert seconds == 0 and data_code.recorded(meta) == {code} and files(folder) == before
    check_same(fields, dataset[1])
    # anew, in the same place, also where the dataset's folder itself was named; nothing is lost
    _, meta, seconds = collect.ensure(config, folder, fresh=True)
    aside = folder.parent / "replaced" / f"{folder.name}_1"
    assert str(aside) in capsys.readouterr().out and files(aside) == before
    assert seconds > 0 and data_code.recorded(meta) == {NOW}
    assert storage.read_meta(folder)["version"] == data_code.of(config)["version"]
    collect.ensure(config, tmp_path, fresh=True)
    text = capsys.readouterr().out
    assert "data: --fresh changes nothing of the data" in text and "reusing" in text
    assert len(list(aside.parent.iterdir())) == 1


@pytest.mark.parametrize("flag", ["fresh", "accept_code"])
def test_an_interrupted_collection_of_other_code_goes_on_only_where_it_is_said(
    small, dataset, tmp_path, monkeypatch, capsys, flag
):
    config, ensure = small

    def interrupted(arrays, number, values):
        if number == 1:
            raise KeyboardInterrupt
        write(arrays, number, values)

    write = storage.write_level
    here(monkeypatch, OLD)
    with monkeypatch.context() as patch:
        patch.setattr(collect.storage, "write_level", interrupted)
        with WaitingForSaves(patch), pytest.raises(KeyboardInterrupt):
            ensure(tmp_path)
    here(monkeypatch, NOW)
    capsys.readouterr()
    with pytest.raises(errors.UserError, match=rf"begun by other code .{OLD}. .*--fresh.*to go on"):
        ensure(tmp_path)
    fields, meta, _ = collect.ensure(config, tmp_path, **{flag: True})
    assert ("resuming" in capsys.readouterr().out) == (flag == "accept_code")
    assert data_code.recorded(meta) == ({NOW} if flag == "fresh" else {OLD, NOW})
    check_same(fields, dataset[1])
    ensure(tmp_path)  # the code that is here had a part in it: told where another had one too
    mixed = f"{OLD} and {NOW} had a part" in capsys.readouterr().out
    assert mixed == (flag == "accept_code")
    here(monkeypatch, NEXT)
    with pytest.raises(errors.UserError, match="were made by other code"):
        ensure(tmp_path)


def test_the_code_of_imported_data_is_not_ours(small, dataset, tmp_path, monkeypatch):
    config, _ = small
    folder = made_by(dataset, config, tmp_path, None)
    meta = storage.read_meta(folder)
    kept = {name: meta[name] for name in meta if name not in ("sha256", "checksum")}
    kept["identity"]["source"] = {"format": "focal"}
    storage.commit(folder, kept)
    here(monkeypatch, NOW)
    data_code.settle(config, folder, fresh=True)
    assert storage.is_complete(folder) and not (folder.parent / "replaced").exists()


def test_data_of_another_environment_are_not_put_aside(small, dataset, tmp_path, monkeypatch):
    folder = made_by(dataset, small[0], tmp_path, OLD)
    here(monkeypatch, NOW)
    other = config_lib.resolve(config_lib.RunConfig(env="sparse_point_robot"), (SIZES,))
    with pytest.raises(errors.UserError, match=r"env=point_robot.*asks for sparse_point_robot"):
        data_code.settle(other, folder, fresh=True)
    assert storage.is_complete(folder)


def test_what_data_depend_on_is_part_of_what_a_run_depends_on():
    """Or `run --fresh` would make data anew and go on with a run that began on the old ones."""
    ours = provenance.modules(provenance.data_entries("point_robot"))
    runs = provenance.modules(provenance.entries("focal", "td3_bc", "point_robot", ()))
    assert {"gentle_jax.behaviour_sac", "gentle_jax.envs.point_robot"} < set(ours) <= set(runs)
    config = config_lib.RunConfig(env="point_robot")
    assert data_code.present.__wrapped__(config.env) == provenance.source_hash(list(ours))
    assert data_code.present.__wrapped__("no_such") is None
