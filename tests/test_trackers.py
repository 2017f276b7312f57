"""Trackers: offline, going on, failing; `test_run` has a whole run that is tracked."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

from experiments.cli.command import main
from experiments.run import COMMAND, Session
from experiments.runs import trackers
from gentle_jax import errors

ROOT = pathlib.Path(__file__).parent.parent
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
# the libraries warn and start threads, which stay out of this process
TWICE = """
import pathlib, sys
from experiments.runs import trackers
folder = pathlib.Path("suite/env/algo/0123")
folder.mkdir(parents=True, exist_ok=True)
for steps in ((1, 2), (2, 3)):  # what follows a checkpoint comes twice
    settings = {"algo": {"lr": 0.5, "codes": [1, 2]}, "sweep": [{}]}
    with trackers.tracked(sys.argv[1], folder, str(folder), settings) as track:
        for step in steps:
            track({"train/focal_loss": step + 0.25}, step)
            track({"return/test/online": 0.5}, step)
"""


def twice(choice, folder, monkeypatch):
    """Tracks one run in two parts; returns the tracker's name of it."""
    if importlib.util.find_spec(choice) is None:
        pytest.skip(f"{choice} is not installed")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)  # the user's own
    for name, value in {**OFFLINE, "MLFLOW_TRACKING_URI": (folder / "store").as_uri()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", TWICE, choice], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "suite/env/algo/0123" / trackers.FILE).read_text())[choice]


def test_wandb_offline_has_one_run_of_two_parts(tmp_path, monkeypatch):
    name = twice("wandb", tmp_path, monkeypatch)
    parts = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert parts and {part.stem for part in parts} == {f"run-{name}"}
    logged = b"".join(part.read_bytes() for part in parts)
    for text in (
        b"train/focal_loss",
        b"1.25",
        b"2.25",
        b"3.25",
        b"algo.codes",
        b"suite/env/algo/0123",
    ):
        assert text in logged


def test_mlflow_has_one_run_of_two_parts(tmp_path, monkeypatch):
    name = twice("mlflow", tmp_path, monkeypatch)
    (run,) = (tmp_path / "store").glob(f"*/{name}")
    lines = (run / "metrics" / "train" / "focal_loss").read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [
        ["1.25", "1"], ["2.25", "2"], ["3.25", "3"],
    ]  # fmt: skip
    assert len((run / "metrics" / "return/test/online").read_text().splitlines()) == 3
    assert (run / "params" / "algo.lr").read_text() == "0.5"
    assert (run / "params" / "algo.codes").read_text() == "[1, 2]"
    assert "suite/env/algo/0123" in (run / "meta.yaml").read_text()
    shutil.rmtree(run.parent)  # of another store, say: a new run there
    assert twice("mlflow", tmp_path, monkeypatch) != name


@pytest.fixture
def fake(monkeypatch):
    """A tracker under the name of an installed module; its list of what happened."""
    told = []

    def start(title, settings, kept):
        told.append(("start", kept))
        if kept == "refuse":
            raise ValueError("no login\nmore")
        log = lambda metrics, step: told.append((metrics, step)) if step < 3 else 1 / 0
        return trackers.Tracker("one", log, told.append)

    monkeypatch.setitem(trackers.TRACKERS, "json", start)
    return told


def test_a_tracker_that_fails_costs_a_warning(tmp_path, fake, capsys):
    with trackers.tracked("json", tmp_path, "a/b", {}) as track:
        for step in (1, 3, 2):
            track({"loss": 0.5}, step)
    assert fake == [("start", None), ({"loss": 0.5}, 1), "failed"]
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown == ["run: WARNING: json failed (division by zero); not tracked any more"]


def test_a_run_that_stops_ends_there_too(tmp_path, fake):
    with pytest.raises(KeyboardInterrupt), trackers.tracked("json", tmp_path, "a/b", {}):
        raise KeyboardInterrupt
    with trackers.tracked("json", tmp_path, "a/b", {}):
        pass
    with pytest.raises(ValueError), trackers.tracked("json", tmp_path, "a/b", {}):
        raise ValueError
    starts = [("start", None), ("start", "one"), ("start", "one")]
    assert fake[::2] == starts and fake[1::2] == list(trackers.ENDS)[1::-1] + ["failed"]


@pytest.mark.parametrize("text", ["", '{"json": "o', "[1]", "3"])
def test_a_damaged_name_is_a_new_run(tmp_path, fake, text):
    (tmp_path / trackers.FILE).write_text(text)
    with trackers.tracked("json", tmp_path, "a/b", {}):
        pass
    assert fake == [("start", None), "finished"]
    assert json.loads((tmp_path / trackers.FILE).read_text()) == {"json": "one"}


def test_a_tracker_that_refuses_ends_the_command(tmp_path, fake):
    (tmp_path / trackers.FILE).write_text('{"json": "refuse"}')
    with (
        pytest.raises(errors.UserError, match=r"^--track=json: no login; .* leave --track out$"),
        trackers.tracked("json", tmp_path, "a/b", {}),
    ):
        raise AssertionError


@pytest.mark.parametrize("there", [None, types.SimpleNamespace(origin=None)])  # a folder's name
def test_a_tracker_that_is_not_there(tmp_path, monkeypatch, capsys, there):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: there)
    for choice, text in (
        ("wandb", 'is not installed: pip install "gentle_jax[wandb]"'),
        ("wand", "unknown tracker 'wand': did you mean 'wandb'"),
    ):
        with pytest.raises(errors.UserError) as caught:
            trackers.check(choice)
        assert text in str(caught.value)


def test_a_command_line_with_a_bad_tracker(tmp_path, capsys):
    arguments = ["run", "--preset=smoke", "--track=wand", f"--out={tmp_path}"]
    assert main(COMMAND, arguments) == 2
    assert capsys.readouterr().err.startswith("error: unknown tracker 'wand'")
    assert not any(tmp_path.iterdir())


def test_returns_of_tasks_that_are_in_both_sets():
    told, both = [], np.array([0, 1])
    config = types.SimpleNamespace(
        eval=types.SimpleNamespace(metric="all"), run=types.SimpleNamespace(protocols=("online",))
    )
    session = types.SimpleNamespace(
        seconds={"evaluate": 0.0}, request=types.SimpleNamespace(config=config), score="",
        sets={"train": both, "test": both}, track=lambda *args: told.append(args),
    )  # fmt: skip
    returns = {"online": np.array([[[1.0, 3.0], [5.0, 7.0]]])}
    Session.on_evaluate(session, types.SimpleNamespace(done=5), returns, 1.0)
    assert told == [({"return/train/online": 4.0, "return/test/online": 4.0}, 5)]
    assert session.score == "  test online 4.00"
