"""Datasets on disk: what is written is read back, and anything else is one clear error."""

import dataclasses
import json

import numpy as np
import pytest

from gentle_jax import config as config_lib
from gentle_jax import errors, registry, storage

SMALL = {
    "behaviour.num_steps": 3,
    "behaviour.first_level": 1,
    "behaviour.level_every": 1,
    "behaviour.num_levels": 3,
    "behaviour.episodes_per_level": 2,
}


def make_config(**behaviour):
    overrides = SMALL | {f"behaviour.{name}": value for name, value in behaviour.items()}
    return config_lib.resolve(config_lib.RunConfig(), (overrides,))


def make_fields(wanted, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in wanted.items()}


@pytest.fixture(scope="module")
def wanted():
    env = registry.load("environment", "point_robot").make("ctmrl")._replace(horizon=4)
    return storage.shapes(5, make_config().behaviour, env)


@pytest.fixture
def dataset(tmp_path, wanted):
    """A finished dataset: (folder, config, fields)."""
    config, fields = make_config(), make_fields(wanted)
    folder = storage.folder_of(tmp_path, config)
    arrays = storage.open_arrays(folder, wanted)
    for level in range(3):
        storage.write_level(arrays, level, {n: v[:, level] for n, v in fields.items()})
    del arrays
    storage.commit(folder, {"identity": config_lib.data_identity(config), "note": [1.5]})
    return folder, config, fields


def commit_fields(folder, fields, config, identity=None):
    """Writes a finished dataset of some arrays."""
    arrays = storage.open_arrays(folder, {name: v.shape for name, v in fields.items()})
    for level in range(fields["mask"].shape[1]):
        storage.write_level(arrays, level, {n: v[:, level] for n, v in fields.items()})
    storage.commit(folder, {"identity": identity or config_lib.data_identity(config)})


def refused(folder, config=None):
    """Returns the message of the UserError that loading raises: one line."""
    with pytest.raises(errors.UserError) as caught:
        storage.load(folder, config)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def test_round_trip(dataset):
    folder, config, fields = dataset
    loaded, meta = storage.load(folder, config)
    assert set(loaded) == set(fields) == set(storage.FIELDS)
    for name, values in fields.items():
        np.testing.assert_array_equal(loaded[name], values)
        assert loaded[name].dtype == np.float32
        assert isinstance(loaded[name], np.memmap) and not loaded[name].flags.writeable
    assert meta["note"] == [1.5] and meta["schema"] == storage.SCHEMA
    assert storage.is_complete(folder) and storage.is_complete(str(folder))
    storage.load(str(folder))  # a string and no config are fine


def test_shapes_are_task_level_episode_step(wanted):
    assert wanted["reward"] == (5, 3, 2, 4) and wanted["mask"] == (5, 3, 2, 4)
    assert wanted["obs"][:4] == wanted["reward"] and len(wanted["obs"]) == 5


@pytest.mark.parametrize("name", storage.FIELDS)
def test_a_missing_file_is_refused(dataset, name):
    folder, config, _ = dataset
    (folder / f"{name}.npy").unlink()
    message = refused(folder, config)
    assert f"{name}.npy" in message and "missing" in message


@pytest.mark.parametrize("left", [-1, 200, 40, 0])
def test_a_truncated_file_is_refused(dataset, left):
    folder, config, _ = dataset
    path = folder / "next_obs.npy"
    path.write_bytes(path.read_bytes()[:left])
    message = refused(folder, config)
    assert "next_obs.npy" in message and "checksum" in message


@pytest.mark.parametrize("position", [0, 20, -1])
def test_an_altered_byte_is_refused(dataset, position):
    folder, config, _ = dataset
    path = folder / "reward.npy"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    assert "reward.npy" in refused(folder, config)


@pytest.mark.parametrize("key,value", [("seed", 7), ("lr", 0.25), ("episodes_per_level", 3)])
def test_another_behaviour_configuration_names_the_key_and_both_values(dataset, key, value):
    folder, config, _ = dataset
    other = make_config(**{key: value})
    message = refused(folder, other)
    assert f"behaviour.{key}={getattr(config.behaviour, key)}" in message
    assert f"asks for {value}" in message


@pytest.mark.parametrize(
    "key,value", [("env", "sparse_point_robot"), ("suite", "gentle"), ("physics", "fast")]
)
def test_another_environment_names_the_key_and_both_values(dataset, key, value):
    folder, config, _ = dataset
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, **{key: value}))
    message = refused(folder, other)
    assert f"{key}={getattr(config.run, key)}" in message and f"asks for {value}" in message


def test_every_setting_that_the_data_depends_on_gives_another_folder(tmp_path):
    config = make_config()
    folders = {storage.folder_of(tmp_path, config)}
    for field in dataclasses.fields(config.behaviour):
        changed = dataclasses.replace(
            config.behaviour, **{field.name: getattr(config.behaviour, field.name) + 1}
        )
        folders.add(storage.folder_of(tmp_path, dataclasses.replace(config, behaviour=changed)))
    assert len(folders) == 1 + len(dataclasses.fields(config.behaviour))
    # and the number of seeds, or how it is trained, does not
    same = dataclasses.replace(config, run=dataclasses.replace(config.run, num_seeds=1))
    assert storage.folder_of(tmp_path, same) in folders


@pytest.mark.parametrize("name", [name for name in storage.FIELDS if name != "mask"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_unless_masked(tmp_path, wanted, name, value):
    config, fields = make_config(), make_fields(wanted)
    fields["mask"][:] = 1.0
    fields["mask"][2, 1, 1, 3] = 0.0
    fields[name][2, 1, 1, 3] = value
    commit_fields(tmp_path / "masked", fields, config)
    storage.load(tmp_path / "masked", config)
    fields[name][2, 1, 0, 3] = value
    fields[name][2, 1, 0, 2] = -value  # whose sum with it is NaN
    commit_fields(tmp_path / "bad", fields, config)
    message = refused(tmp_path / "bad", config)
    assert f"{name}.npy (task 2, level 1, episode 0, step 2)" in message


def test_imported_data_fit_every_run_on_their_environment(tmp_path, wanted):
    config, fields = make_config(), make_fields(wanted)
    identity = config_lib.data_identity(config) | {"physics": "imported", "behaviour": None}
    identity["source"] = {"format": "focal"}
    commit_fields(tmp_path, fields, config, identity)
    _, meta = storage.load(tmp_path, make_config(seed=9, lr=0.5))
    assert (
        storage.source_of(meta)
        == {"format": "focal"}
        == storage.source_of(storage.imported(tmp_path))
    )
    fast = dataclasses.replace(config, run=dataclasses.replace(config.run, physics="fast"))
    storage.load(tmp_path, fast)
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, suite="ctmrl_b"))
    assert "suite=ctmrl, this run asks for ctmrl_b" in refused(tmp_path, other)


def test_collected_data_and_roots_are_not_imported(dataset, tmp_path):
    folder, _, _ = dataset
    assert storage.imported(folder) is None and storage.imported(tmp_path) is None


@pytest.mark.parametrize(
    "change,part",
    [
        ({"obs_dim": 3}, "2 numbers an obs, point_robot of suite ctmrl has 3"),
        ({"action_dim": 1}, "2 numbers an action"),
        ({"horizon": 5}, "4 steps an episode"),
        ({"parameters": np.zeros((7, 2))}, "5 tasks"),
    ],
)
def test_sizes_of_another_environment_are_refused(wanted, change, part):
    env = registry.load("environment", "point_robot").make("ctmrl")
    env = env._replace(horizon=4, parameters=np.zeros((5, 2)))
    storage.check_shapes(make_fields(wanted), env)
    with pytest.raises(errors.UserError, match="make the data anew") as caught:
        storage.check_shapes(make_fields(wanted), env._replace(**change))
    assert part in str(caught.value)


def test_no_meta_is_an_unfinished_dataset(dataset, tmp_path):
    folder, config, _ = dataset
    (folder / "meta.json").unlink()
    assert not storage.is_complete(folder)
    assert "meta.json is missing" in refused(folder, config)
    assert "meta.json is missing" in refused(tmp_path / "never" / "made")


@pytest.mark.parametrize(
    "content", ['{"schema": 999, "sha256": {}}', "{}", "[]", "3", '{"schema": 1', "", "\xff"]
)
def test_another_schema_or_broken_meta_is_refused(dataset, content):
    folder, config, _ = dataset
    (folder / "meta.json").write_bytes(content.encode("latin-1"))
    assert f"schema {storage.SCHEMA}" in refused(folder, config)


def test_a_checksum_that_meta_lacks_is_a_mismatch(dataset):
    folder, config, _ = dataset
    meta = json.loads((folder / "meta.json").read_text())
    del meta["sha256"]["mask.npy"]
    del meta["checksum"]
    meta["checksum"] = config_lib.fingerprint(meta)
    storage.write_json(folder / "meta.json", meta)
    assert "mask.npy" in refused(folder, config)


def test_commit_writes_meta_last_and_whole(dataset, monkeypatch):
    folder, config, _ = dataset
    (folder / "meta.json").unlink()
    hashed = []
    real = storage.file_hash

    def watch(path):
        assert not (folder / "meta.json").exists()
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(storage, "file_hash", watch)
    # a kill before the rename leaves no meta.json: the dataset stays unfinished
    replace = storage.os.replace
    monkeypatch.setattr(storage.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        storage.commit(folder, {"identity": config_lib.data_identity(config)})
    assert not storage.is_complete(folder)
    monkeypatch.setattr(storage.os, "replace", replace)
    storage.commit(folder, {"identity": config_lib.data_identity(config)})
    assert hashed == [f"{name}.npy" for name in storage.FIELDS] * 2
    monkeypatch.undo()
    storage.load(folder, config)
    assert not list(folder.glob("*.tmp"))


def test_a_failed_write_keeps_the_old_json(tmp_path):
    path = tmp_path / "x.json"
    storage.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_open_arrays_keeps_finished_levels(tmp_path, wanted):
    fields = make_fields(wanted)
    arrays = storage.open_arrays(tmp_path / "d", wanted)
    storage.write_level(arrays, 1, {n: v[:, 1] for n, v in fields.items()})
    del arrays
    again = storage.open_arrays(tmp_path / "d", wanted)
    for name, array in again.items():
        np.testing.assert_array_equal(array[:, 1], fields[name][:, 1])
        assert not array[:, 0].any() and array.dtype == np.float32


@pytest.mark.parametrize("left", [-1, 60, 0])
def test_open_arrays_makes_a_truncated_file_anew(tmp_path, wanted, left):
    fields = make_fields(wanted)
    arrays = storage.open_arrays(tmp_path, wanted)
    storage.write_level(arrays, 0, {n: v[:, 0] for n, v in fields.items()})
    del arrays
    path = tmp_path / "action.npy"
    path.write_bytes(path.read_bytes()[:left])
    again = storage.open_arrays(tmp_path, wanted)
    assert again["action"].shape == wanted["action"] and not again["action"].any()
    np.testing.assert_array_equal(again["obs"][:, 0], fields["obs"][:, 0])


def test_open_arrays_makes_another_shape_anew(tmp_path, wanted):
    storage.open_arrays(tmp_path, wanted)
    longer = {name: (shape[0] + 1, *shape[1:]) for name, shape in wanted.items()}
    again = storage.open_arrays(tmp_path, longer)
    assert {name: a.shape for name, a in again.items()} == longer


def test_an_altered_description_is_refused(dataset):
    folder, config, _ = dataset
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"note": [1.0]}))
    assert "does not match its own checksum" in refused(folder, config)


def test_new_arrays_take_their_whole_space(tmp_path, wanted):
    assert storage.stored_bytes(tmp_path) == 0
    storage.open_arrays(tmp_path, wanted)
    size = sum(4 * int(np.prod(shape)) for shape in wanted.values())
    assert storage.stored_bytes(tmp_path) >= size
