"""Checkpoints: bit-equal round trips, damage falls back, nothing is aliased."""

import gc
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gentle_jax import checkpoint, errors
from gentle_jax.types import AgentState

# Orbax drops the reads that were under way when one of them failed; they complain when collected
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_tree(seed):
    """A carry as the driver saves it: state, and results with NaN where nothing is known yet."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    state = AgentState(
        rep={"params": [draw(2, 3, 4), draw(2, 4)], "step": jnp.full(2, seed, jnp.int32)},
        rl=(draw(2), {"moments": (draw(2, 1), jnp.asarray([[True], [False]]))}, ()),
        hp={"algo": {"lr": draw(2)}, "backbone": {}},
    )
    returns = np.full((3, 2, 5), np.nan, np.float32)
    returns[0] = seed
    return {"state": state, "returns": {"one_shot": returns, "all": returns + 1}}


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def check_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture
def open_at():
    """Opens Checkpoints and closes them after the test."""
    opened = []

    def make(folder, **options):
        opened.append(checkpoint.Checkpoints(folder, **options))
        return opened[-1]

    yield make
    for saves in opened:
        saves.close()
    gc.collect()


def fill(saves, steps):
    for step in steps:
        saves.save(step, make_tree(step), {"done": step, "seconds": {"train": 0.125}})
    saves.wait()


def test_round_trip_keeps_every_bit(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [4])
    for like in (make_tree(0), shapes_of(make_tree(0))):
        found, meta = open_at(tmp_path / "c").restore(like)
        check_same(found, make_tree(4))
        assert meta == {"done": 4, "seconds": {"train": 0.125}}


def test_nothing_there_is_none(tmp_path, open_at):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_at(tmp_path / "empty").restore(make_tree(0)) is None


def test_the_newest_are_kept(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [1, 2, 3])
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]
    found, meta = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(3))
    assert meta["done"] == 3
    fill(open_at(tmp_path / "one", keep=1), [1, 2])
    assert sorted(p.name for p in (tmp_path / "one").iterdir() if p.name.isdigit()) == ["2"]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete"])
@pytest.mark.parametrize("part", ["data", "manifest", "_METADATA", "meta"])
def test_a_damaged_newest_falls_back_with_a_warning(tmp_path, open_at, part, damage):
    fill(open_at(tmp_path / "c"), [7, 8])
    newest = tmp_path / "c" / "8"
    files = {
        "data": [p for p in newest.rglob("d/*") if p.is_file()],
        "manifest": list((newest / "tree").rglob("manifest.ocdbt")),
        "_METADATA": [newest / "tree" / "_METADATA"],
        "meta": [newest / "meta" / "metadata"],
    }[part]
    assert files
    for path in files:
        if damage == "delete":
            path.unlink()
        elif damage == "empty":
            path.write_bytes(b"")
        else:
            truncate(path)
    saves = open_at(tmp_path / "c")
    with pytest.warns(UserWarning, match="checkpoint 8 is damaged"):
        found, meta = saves.restore(make_tree(0))
    check_same(found, make_tree(7))
    assert meta["done"] == 7
    assert (tmp_path / "c_damaged" / "8").exists()
    # and training can go on over the damaged one
    saves.save(8, make_tree(80), {"done": 8})
    saves.save(9, make_tree(9), {"done": 9})
    saves.wait()
    found, meta = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(9))


def flip(path, position):
    """Changes one bit of a file. Args: position, of the byte, from the end where negative."""
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_a_single_bit_of_an_array_or_of_the_description_is_damage(tmp_path, open_at):
    """The middle of array files has no checksum of Orbax's own: such bits came back as numbers."""
    fill(open_at(tmp_path / "c"), [7, 8])
    newest = tmp_path / "c" / "8"
    arrays = [path for path in newest.rglob("d/*") if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    places = [(largest, at) for at in range(40, largest.stat().st_size, 97)][:6]
    text = (newest / "meta" / "metadata").read_bytes()
    places += [(newest / "meta" / "metadata", text.index(b"0.125") + 3)]
    for number, (path, position) in enumerate(places):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "c", copy)
        flip(copy / path.relative_to(tmp_path / "c"), position)
        with pytest.warns(UserWarning, match="checkpoint 8 is damaged"):
            found, meta = open_at(copy).restore(make_tree(0))
        check_same(found, make_tree(7))
        assert meta == {"done": 7, "seconds": {"train": 0.125}}


def test_one_of_a_version_without_hashes_is_taken_and_that_is_said(tmp_path, open_at, monkeypatch):
    with monkeypatch.context() as patch:
        plain = lambda tree: {k: v for k, v in tree.items() if k not in ("sha256", "checksum")}
        save = checkpoint.ocp.args.JsonSave
        patch.setattr(checkpoint.ocp.args, "JsonSave", lambda tree: save(plain(tree)))
        fill(open_at(tmp_path / "c"), [7])
    with pytest.warns(UserWarning, match="checkpoint 7 is of an older version"):
        found, meta = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(7))
    assert meta["done"] == 7 and open_at(tmp_path / "c").newest_meta()["done"] == 7


def test_a_step_saved_again_over_a_damaged_one_is_the_new_one(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [7, 8])
    for path in (tmp_path / "c" / "8" / "tree").rglob("d/*"):
        if path.is_file():
            truncate(path)
    saves = open_at(tmp_path / "c")
    with pytest.warns(UserWarning, match="checkpoint 8 is damaged"):
        saves.restore(make_tree(0))
    saves.save(8, make_tree(80), {"done": 8})
    saves.wait()
    found, _ = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(80))


def test_an_unfinished_save_is_ignored(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [5])
    # what a kill leaves: a folder without its commit marks, or a temporary one
    (tmp_path / "c" / "6.orbax-checkpoint-tmp" / "tree").mkdir(parents=True)
    found, _ = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(5))


def test_all_damaged_is_none_with_a_warning_each(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [1, 2])
    for path in (tmp_path / "c").rglob("d/*"):
        if path.is_file():
            truncate(path)
    with pytest.warns(UserWarning) as seen:
        assert open_at(tmp_path / "c").restore(make_tree(0)) is None
    assert [int(str(w.message).split()[1]) for w in seen] == [2, 1]


def test_another_layout_is_an_error_and_stays(tmp_path, open_at):
    fill(open_at(tmp_path / "c"), [1])
    like = make_tree(0)
    like["returns"]["all"] = np.zeros((4, 2, 5), np.float32)
    with pytest.raises(errors.UserError, match="another version"):
        open_at(tmp_path / "c").restore(like)
    found, _ = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(1))


def test_saving_copies_what_is_changed_or_donated_later(tmp_path, open_at):
    saves = open_at(tmp_path / "c")
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    for number in range(3, 6):
        tree = make_tree(number)
        saves.save(number, tree, {"done": number})
        # before the write is over: numpy in place, device buffers reused
        for values in tree["returns"].values():
            values[:] = -1.0
        jax.block_until_ready(step(tree["state"]))
    saves.wait()
    found, _ = open_at(tmp_path / "c").restore(make_tree(0))
    check_same(found, make_tree(5))
