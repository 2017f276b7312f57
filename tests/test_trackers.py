"""Trackers: offline, going on, failing; `test_run` has a whole run that is tracked."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

from experiments.cli.command import main
from experiments.run import COMMAND
from experiments.runs import trackers
from gentle_jax import errors

ROOT = pathlib.Path(__file__).parent.parent
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
# the libraries warn and start threads, which stay out of this process
TWICE = """
import pathlib, sys
from experiments.runs import trackers
folder = pathlib.Path("suite/env/algo/0123")
folder.mkdir(parents=True)
for step in (1, 2):
    settings = {"algo": {"lr": 0.5, "codes": [1, 2]}, "sweep": [{}]}
    with trackers.tracked(sys.argv[1], folder, str(folder), settings) as track:
        track({"train/focal_loss": step + 0.25}, step)
"""


def twice(choice, folder, monkeypatch):
    """Tracks one run in two parts; returns the tracker's name of it."""
    pytest.importorskip(choice)
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
    for text in (b"train/focal_loss", b"1.25", b"2.25", b"algo.codes", b"suite/env/algo/0123"):
        assert text in logged


def test_mlflow_has_one_run_of_two_parts(tmp_path, monkeypatch):
    name = twice("mlflow", tmp_path, monkeypatch)
    (run,) = (tmp_path / "store").glob(f"*/{name}")
    lines = (run / "metrics" / "train" / "focal_loss").read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [["1.25", "1"], ["2.25", "2"]]
    assert (run / "params" / "algo.lr").read_text() == "0.5"
    assert (run / "params" / "algo.codes").read_text() == "[1, 2]"
    assert "suite/env/algo/0123" in (run / "meta.yaml").read_text()


@pytest.fixture
def fake(monkeypatch):
    """A tracker under the name of an installed module; its list of what happened."""
    told = []

    def start(title, settings, kept):
        told.append(("start", kept))
        if kept == "refuse":
            raise ValueError("no login\nmore")
        log = lambda metrics, step: told.append((metrics, step)) if step < 3 else 1 / 0
        return trackers.Tracker("one", log, lambda finished: told.append(finished))

    monkeypatch.setitem(trackers.TRACKERS, "json", start)
    return told


def test_a_tracker_that_fails_costs_a_warning(tmp_path, fake, capsys):
    with trackers.tracked("json", tmp_path, "a/b", {}) as track:
        for step in (1, 3, 2):
            track({"loss": 0.5}, step)
    assert fake == [("start", None), ({"loss": 0.5}, 1)]
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown == ["run: WARNING: json failed (division by zero); not tracked any more"]


def test_a_run_that_stops_ends_there_too(tmp_path, fake):
    with pytest.raises(KeyboardInterrupt), trackers.tracked("json", tmp_path, "a/b", {}):
        raise KeyboardInterrupt
    with trackers.tracked("json", tmp_path, "a/b", {}):
        pass
    assert fake == [("start", None), False, ("start", "one"), True]


@pytest.mark.parametrize("text", ["", '{"json": "o', "[1]", "3"])
def test_a_damaged_name_is_a_new_run(tmp_path, fake, text):
    (tmp_path / trackers.FILE).write_text(text)
    with trackers.tracked("json", tmp_path, "a/b", {}):
        pass
    assert fake == [("start", None), True]
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
