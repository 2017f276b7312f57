"""Minari datasets: what is exported is read back, by us and by Minari itself."""

import os
import shutil
import sys

import foreign
import numpy as np
import pytest
from foreign import read, refused

from gentle_jax import interop


@pytest.fixture(scope="module")
def env():
    return foreign.make_env()


def make_meta(env, levels):
    tasks = {name: np.asarray(leaf).tolist() for name, leaf in env.tasks.items()}
    numbers = np.arange(len(env.parameters), dtype=float).tolist()
    return {
        "identity": {"env": env.name, "suite": env.suite, "physics": "exact"},
        "tasks": tasks, "levels": levels, "reference_return": numbers, "random_return": numbers,
        "expert_return": [[level + n for n in numbers] for level in levels],
    }  # fmt: skip


@pytest.fixture(scope="module")
def minari_export(tmp_path_factory, env):
    """(folder, fields, meta) of an export with a gap, short episodes and sparse rewards."""
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    source = tmp_path_factory.mktemp("focal")
    foreign.focal(source, env, lengths={(3, 1000, 1): 7, (4, 2000, 0): 1})
    (source / "goal_idx5" / foreign.name(2, 1000)).unlink()
    fields = read(source, env._replace(ends_early=True)).fields
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
