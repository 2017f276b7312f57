"""Makes folders as other projects write them, and reads them; for tests of `interop`."""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest

from gentle_jax import errors, interop, registry
from gentle_jax.interop import table


def make_env(env="point_robot", suite="gentle"):
    return registry.load("environment", env).make(suite)


def episode(env, task, rng, length=None):
    """Returns {column: float64 [T, ...]} of random actions in a point robot's task.

    It begins where the suite's episodes do: anywhere in `gentle`, else in the middle.
    """
    length, far = length or env.horizon, 1.0 if env.suite == "gentle" else 0.0
    action = rng.uniform(-1.0, 1.0, (length, 2))
    steps = 0.1 * action + env.tasks["wind"][task]
    path = np.concatenate([rng.uniform(-far, far, (1, 2)), steps]).cumsum(0)
    reward = -np.linalg.norm(path[1:] - env.tasks["goal"][task], axis=-1)
    return {"obs": path[:-1], "action": action, "reward": reward, "next_obs": path[1:]}


def object_rows(columns, reward=float):
    """Returns the object array [T, 4] of an episode, as rlkit's collectors store it."""
    rows = np.empty((len(columns["reward"]), 4), object)
    for t in range(len(rows)):
        rows[t, 0], rows[t, 1] = columns["obs"][t], columns["action"][t]
        rows[t, 2], rows[t, 3] = reward(columns["reward"][t]), columns["next_obs"][t]
    return rows


def name(number, step, kind="sampled"):
    return f"trj_eval{'sample' if kind == 'sampled' else ''}{number}_step{step}.npy"


def focal(folder, env, steps=(1000, 2000), episodes=3, lengths=None, kind="sampled", seed=0):
    """Writes a FOCAL folder; lengths, {(task, step, number): T} of short episodes.

    Returns {(task, step, number): columns}.
    """
    rng = np.random.default_rng(seed)
    made = {}
    for task in range(len(env.parameters)):
        below = folder / f"goal_idx{task}"
        below.mkdir(parents=True, exist_ok=True)
        (below / "actor_step2000.pkl").write_bytes(b"not for us")
        (below / "eval0.csv").write_text("step,return\n")
        for step in steps:
            for number in range(episodes):
                length = (lengths or {}).get((task, step, number))
                columns = episode(env, task, rng, length)
                made[task, step, number] = columns
                path = below / name(number, step, kind)
                np.save(path, object_rows(columns), allow_pickle=True)
    return made


def rows_of(env, lengths, seed=0):
    """Returns a list of {column: [rows, ...]}, one a task, of episodes one after the other."""
    rng, made = np.random.default_rng(seed), []
    for task in range(len(env.parameters)):
        parts = [episode(env, task, rng, length) for length in lengths]
        made.append({k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    return made


def corro(folder, env, episodes=2, seed=0, lengths=None, flagged=True):
    """Writes a CORRO folder; returns a list of {column: [rows, ...]}, one a task.

    Args: lengths, rows of each episode; flagged, whether the last row of each is.
    """
    lengths = lengths or [env.horizon] * episodes
    made = rows_of(env, lengths, seed)
    for task, columns in enumerate(made):
        goal = "_".join(str(round(float(value), 3)) for value in env.parameters[task])
        below = folder / "data" / f"seed_{task}_goal_{goal}"
        below.mkdir(parents=True)
        ends = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1) & flagged
        np.save(below / "obs.npy", columns["obs"])
        np.save(below / "actions.npy", columns["action"])
        np.save(below / "rewards.npy", columns["reward"][:, None])
        np.save(below / "next_obs.npy", columns["next_obs"])
        np.save(below / "terminals.npy", ends.astype(np.float64)[:, None])
    return made


def metadt(folder, env, lengths=(20, 20, 20), goals=None):
    """Writes a Meta-DT folder; returns a list of {column: [rows, ...]}, one a task."""
    folder.mkdir()
    made = rows_of(env, lengths)
    for task, columns in enumerate(made):
        stored = {
            "observations": columns["obs"],
            "actions": columns["action"].astype(np.float32),
            "rewards": columns["reward"],
            "next_observations": columns["next_obs"],
            "terminals": np.zeros(sum(lengths), bool),
        }
        (folder / f"dataset_task_{task}.pkl").write_bytes(pickle.dumps(stored))
    goals = np.asarray(env.tasks["goal"], np.float64) if goals is None else goals
    (folder / "task_goals.pkl").write_bytes(pickle.dumps(goals))
    return made


def spc(folder, env, lengths=(20, 20)):
    """Writes an SPC folder; returns a list of {column: [rows, ...]}, one a task."""
    folder.mkdir()
    made = rows_of(env, lengths)
    for task, columns in enumerate(made):
        flags = np.zeros((sum(lengths), 1))
        parts = [columns["obs"], columns["action"], columns["reward"][:, None]]
        rows = np.concatenate([*parts, columns["next_obs"], flags], 1, dtype=np.float32)
        torch_save(folder / f"task_{task}.pth", rows)
    return made


class Tensor:
    """What `torch.save` sees of a tensor: its numbers, and how they lie in their storage."""

    def __init__(self, rows, **changes):
        rows = np.ascontiguousarray(rows)
        self.numbers = rows.reshape(-1)
        stride = tuple(step // rows.itemsize for step in rows.strides)
        self.state = {"offset": 0, "size": rows.shape, "stride": stride} | changes


def _torch():
    """Returns {name: module} with what a pickle of torch names; torch itself is not needed."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(*_): pass", vars(utils))  # its module is where it was made
    return {"torch": torch, "torch._utils": utils}


def torch_save(path, content, order="little", kind="FloatStorage", **options):
    """Writes a file as `torch.save` does. Args: content, an array, a Tensor, or what holds one."""
    content = Tensor(content) if isinstance(content, np.ndarray) else content
    modules, storages, pickled = _torch(), [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, np.ndarray):
                return None
            storages.append(value)
            key = str(len(storages) - 1)
            return ("storage", getattr(modules["torch"], kind), key, "cpu", value.size)

        def reducer_override(self, value):
            if not isinstance(value, Tensor):
                return NotImplemented
            state = (*value.state.values(), False, OrderedDict())
            return modules["torch._utils"]._rebuild_tensor_v2, (value.numbers, *state)

    with mock.patch.dict(sys.modules, modules):
        Pickler(pickled, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickled.getvalue())
        archive.writestr(f"{path.stem}/byteorder", order)
        for key, values in enumerate(storages):
            raw = values.astype(values.dtype.newbyteorder({"little": "<", "big": ">"}[order]))
            archive.writestr(f"{path.stem}/data/{key}", raw.tobytes())
        archive.writestr(f"{path.stem}/version", "3\n")


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes alike as Python 2 writes its strings, and NumPy by its old name."""

    def save_string(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        short = pickle.SHORT_BINSTRING + bytes([len(raw) % 256])
        self.write(short if len(raw) < 256 else pickle.BINSTRING + struct.pack("<i", len(raw)))
        self.write(raw)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def python2_npy(path, array):
    """Writes a .npy file as Python 2 and its NumPy do."""
    body = io.BytesIO()
    kind = "|O" if array.dtype.hasobject else array.dtype.str
    if array.dtype.hasobject:
        Python2Pickler(body, protocol=2).dump(array)
    else:
        body.write(array.tobytes())
    shape = "".join(f"{size}L, " for size in array.shape)
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}"
    header += " " * (-(len(header) + 11) % 16) + "\n"
    content = body.getvalue().replace(b"numpy._core", b"numpy.core")
    lead = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    path.write_bytes(lead + header.encode() + content)


class Evil:
    """What a hostile file holds: unpickling it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def read(folder, env, format="focal", **options):
    return interop.load(format).read(folder, env, table.Options(**options))


def refused(call):
    """Returns the message of the UserError that `call` raises: one line."""
    with pytest.raises(errors.UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def cut(left):
    return lambda path: path.write_bytes(path.read_bytes()[:left])
