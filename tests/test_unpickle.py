"""Object arrays of strangers: arrays and numbers are read, nothing that a file names is run."""

import io
import pickle

import foreign
import numpy as np
import pytest
from foreign import read, refused

from gentle_jax import errors
from gentle_jax.interop import unpickle


@pytest.fixture(scope="module")
def env():
    return foreign.make_env()


@pytest.fixture
def focal_folder(tmp_path, env):
    """A FOCAL folder to damage."""
    foreign.focal(tmp_path / "focal", env, (1000,), 1)
    return tmp_path / "focal"


@pytest.mark.parametrize("place", ["a cell", "the whole file"])
def test_a_malicious_file_runs_nothing(focal_folder, tmp_path, env, place):
    path, made = focal_folder / "goal_idx2" / foreign.name(0, 1000), tmp_path / "was here"
    if place == "a cell":
        rows = np.load(path, allow_pickle=True)
        rows[1, 0] = foreign.Evil(made)
        np.save(path, rows, allow_pickle=True)
    else:
        header = path.read_bytes()[:128]
        path.write_bytes(header + pickle.dumps(foreign.Evil(made), protocol=4))
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


def test_pickle_is_read_where_it_is_allowed(focal_folder, env, tmp_path):
    plain, allowed = read(focal_folder, env), read(focal_folder, env, allow_pickle=True)
    for name, values in plain.fields.items():
        np.testing.assert_array_equal(values, allowed.fields[name])
    (tmp_path / "x.npy").write_bytes(b"nonsense")
    assert "not a whole" in refused(lambda: unpickle.read_array(tmp_path / "x.npy", True))
