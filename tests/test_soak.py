"""`experiments.soak`: it notices every difference, tells what was lost, and ends what it starts."""

import json
import os
import shutil
import sys
import textwrap

import numpy as np
import pytest

from experiments import soak
from experiments.cli.command import main
from experiments.runs import attempts, events, same_bits
from gentle_jax import checkpoint

# stands in for experiments.run: tells and writes what that does, within a second; the training
# state is one number, which every step changes
STAND_IN = textwrap.dedent(
    """
    import json, os, pathlib, signal, sys, time
    import numpy as np

    flags = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
    stop = []
    if "deaf" not in flags:
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))

    def tell(phase, **more):
        with open(flags["events"], "a") as file:
            file.write(json.dumps({"time": time.time(), "phase": phase, **more}) + chr(10))
        print("in", phase, flush=True)
        time.sleep(0.05)
        if stop:
            sys.exit(42)

    data, run = pathlib.Path(flags["data"]) / "d", pathlib.Path(flags["out"]) / "r"
    run.mkdir(parents=True, exist_ok=True)
    tell("start-up", folder=str(run))
    if not (data / "meta.json").exists():
        data.mkdir(parents=True, exist_ok=True)
        tell("compile")
        tell("collection", compile_seconds=0.02)
        np.save(data / "obs.npy", np.arange(3.0))
        (data / "meta.json").write_text(json.dumps({"environment": os.getpid(), "of": 1}))
        time.sleep(0.05)
    tell("compile")
    step, value, lines = 0, 1.0, []
    if (run / "state.json").exists():
        step, value, lines = json.loads((run / "state.json").read_text())
        value += float(flags.get("drift", 0))
    tell("training", step=step)
    while step < 6:
        step, value = step + 1, value * 1.1 + 1
        lines.append(json.dumps({"step": step, "loss": value}))
        (run / "metrics.jsonl").write_text("".join(line + chr(10) for line in lines))
        tell("evaluation" if step == 3 else "training", step=step)
        if step % 2 == 0:  # every second step is saved: the others can be lost
            (run / "new.json").write_text(json.dumps([step, value, lines]))
            (run / "new.json").replace(run / "state.json")
    tell("results")
    for name in ("returns", "costs", "embeddings", "rollouts"):
        np.savez(run / f"{name}.npz", value=value, eval_steps=np.array([3, 6]))
    (run / "config.json").write_text("{}")
    seconds = {"collect": 0.12, "train": 0.3, "evaluate": 0.1}
    (run / "summary.json").write_text(json.dumps({"results": [value], "seconds": seconds}))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Python's own end would not hear it
    """
)


@pytest.fixture
def command(tmp_path):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return [sys.executable, "-u", str(path)]


def test_kills_in_every_phase_and_the_report(tmp_path, command):
    said = []
    found = soak.soak(command, 14, 0, ["term", "kill"], tmp_path / "to", said.append)
    assert found["equal"] and found["kills"] == 14, found["failures"] + found["differences"]
    killed = [a for a in found["attempts"] if a["kind"]]
    phases = {a["phase"] for a in killed}
    assert len(phases) >= 2 and phases <= set(events.PHASES)
    assert sorted(a["kind"] for a in killed) == ["kill"] * 7 + ["term"] * 7
    assert all(a["early"] or a["code"] in (42, 0) for a in killed if a["kind"] == "term")
    # of two steps the second is saved, after it was logged
    assert all(a["lost"] in (0, 1, 2) for a in killed)
    assert found["steps_lost"] == sum(a["lost"] for a in found["attempts"])
    assert len(found["finished_roots"]) >= 1 and found["compared_folders"] >= 2
    spent = dict(found["seconds"])
    assert spent.pop("wall") == pytest.approx(sum(spent.values()), abs=0.01)
    assert spent["productive"] == pytest.approx(0.5 * len(found["finished_roots"]))
    assert 0 < found["goodput"] < 1
    text = soak.report(found)
    assert "all bit-equal" in text and f"goodput {found['goodput']:.3f}" in text
    assert len([line for line in said if line.startswith("soak: 14/14")]) == 1


def test_phases_are_those_that_the_events_tell(tmp_path, command):
    process = attempts.Process(command, tmp_path / "root", tmp_path / "log")
    assert process.finish().code == 0
    assert [phase for phase, _ in process.spans()] == [
        "start-up", "compile", "collection", "compile", "training", "evaluation", "training",
        "results",
    ]  # fmt: skip
    assert {phase for phase, _ in process.spans()} == set(events.PHASES)
    assert "in collection" in (tmp_path / "log").read_text()  # its output is kept
    # what it saved last was step 6: a signal in the midst of the results falls into them
    process = attempts.Process(command, tmp_path / "root", tmp_path / "log")
    assert attempts.until(process, ("results", 0.0))
    attempt = process.finish("kill")
    assert (attempt.phase, attempt.resumed, attempt.reached) == ("results", 6, 6)


def test_a_resume_that_changes_bits_is_noticed(tmp_path, command, monkeypatch):
    # only a kill between a save and the end makes a resume that counts
    monkeypatch.setattr(soak.Moments, "draw", lambda *_: (events.TRAINING, 0.2))
    found = soak.soak([*command, "--drift=1e-12"], 6, 1, ["term"], tmp_path / "to", lambda _: None)
    assert not found["equal"] and not found["failures"]
    assert any("returns.npz: value" in line for line in found["differences"])
    assert "differs: root_" in soak.report(found) and "NOT in order" in soak.report(found)


def test_an_exit_code_other_than_42_after_term_is_a_failure(tmp_path, command):
    found = soak.soak([*command, "--deaf"], 3, 2, ["term"], tmp_path / "to", lambda _: None)
    assert not found["equal"] and not found["differences"] and found["kills"] == 3
    wrong = [a for a in found["attempts"] if a["code"] == -15 and not a["early"]]
    assert len(found["failures"]) == len(wrong) >= 1
    assert all("code -15 after term" in line for line in found["failures"])


def test_lost_steps_are_those_that_the_next_trainer_did_again():
    run = lambda **more: attempts.Attempt(root="a", folder="r", **more)
    made = [
        run(kind="kill", resumed=0, reached=7),
        run(kind="kill", reached=7),  # did not come to train: lost nothing more
        run(kind="term", resumed=4, reached=9),
        run(resumed=9, reached=20),
        attempts.Attempt(root="b", folder="r", resumed=0),
    ]
    soak.count_lost(made)
    assert [a.lost for a in made] == [3, 0, 0, 0, 0]


QUEUE = """
import json, sys
(path,) = (word.partition("=")[2] for word in sys.argv if word.startswith("--events="))
first = {"phase": "start-up", "folder": "/x/a"}, {"phase": "training", "step": 8}
second = {"phase": "start-up", "folder": "/x/b"}, %s
with open(path, "w") as file:
    for number, line in enumerate((*first, *second)):
        file.write(json.dumps({"time": number, **line}) + chr(10))
"""


@pytest.mark.parametrize(
    "last,resumed,reached",
    [
        ('{"phase": "compile"}', None, None),
        ('{"phase": "training", "step": 0}', 0, 0),
        ('{"phase": "evaluation", "step": 4}, {"phase": "training", "step": 6}', 4, 6),
    ],
)
def test_where_the_last_program_of_a_queue_went_on_from(tmp_path, last, resumed, reached):
    command = [sys.executable, "-c", QUEUE % last]
    attempt = attempts.Process(command, tmp_path / "root", tmp_path / "log").finish()
    assert (attempt.folder, attempt.resumed, attempt.reached) == ("b", resumed, reached)
    # what the attempt before left behind does not count
    attempt = attempts.Process(command[:2] + ["1"], tmp_path / "root", tmp_path / "log").finish()
    assert (attempt.folder, attempt.resumed, attempt.code) == ("", None, 0)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two equal pairs of a dataset and a finished run, with a real checkpoint."""
    top = tmp_path_factory.mktemp("pair")
    data, run = top / "a" / "data" / "d", top / "a" / "out" / "s" / "r"
    data.mkdir(parents=True)
    run.mkdir(parents=True)
    np.save(data / "obs.npy", np.arange(4, dtype=np.float32))
    (data / "meta.json").write_text(json.dumps({"environment": 1, "checksum": "x", "seed": 3}))
    for name in same_bits.ARRAYS:
        np.savez(run / name, x=np.array([1.0, np.nan]), n=np.arange(3))
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (run / "config.json").write_text("{}")
    (run / "summary.json").write_text(json.dumps({"results": [float("nan")], "seconds": 1}))
    with checkpoint.Checkpoints(run / "checkpoints") as saves:
        saves.save(1, {"x": np.zeros(2, np.float32)}, {})
        saves.save(2, {"x": np.ones(2, np.float32), "key": np.arange(4, dtype=np.uint32)}, {})
    shutil.copytree(top / "a", top / "b")
    return top


def differences(one, two):
    found = same_bits.datasets(one / "data", two / "data")[0]
    return found + same_bits.runs(one / "out", two / "out")[0]


def test_equal_folders_are_equal_whenever_they_were_made(roots, tmp_path):
    shutil.copytree(roots / "b", tmp_path / "b")
    run = tmp_path / "b/out/s/r"
    (run / "summary.json").write_text(json.dumps({"results": [float("nan")], "seconds": 2}))
    meta = {"environment": 2, "checksum": "y", "seed": 3}
    (tmp_path / "b/data/d/meta.json").write_text(json.dumps(meta))
    assert differences(roots / "a", tmp_path / "b") == []
    assert same_bits.runs(roots / "a/out", tmp_path / "b/out")[1] == 1


def flip(path, at=-1):
    """Changes one bit of a file."""
    whole = bytearray(path.read_bytes())
    whole[at] ^= 1
    path.write_bytes(whole)


def save_again(run, **changed):
    shutil.rmtree(run / "checkpoints")
    arrays = {"x": np.ones(2, np.float32), "key": np.arange(4, dtype=np.uint32)} | changed
    with checkpoint.Checkpoints(run / "checkpoints") as saves:
        saves.save(2, arrays, {})


def nudge(path):
    """Changes the last bit of one number of an npz file."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays["x"][0] = np.nextafter(arrays["x"][0], 2.0)
    np.savez(path, **arrays)


BREAK = {
    "data/d/obs.npy": lambda top: flip(top / "data/d/obs.npy"),
    "meta.json": lambda top: (top / "data/d/meta.json").write_text('{"seed": 4}'),
    "only below": lambda top: shutil.rmtree(top / "data/d"),
    "returns.npz: x": lambda top: nudge(top / "out/s/r/returns.npz"),
    "costs.npz: x": lambda top: nudge(top / "out/s/r/costs.npz"),
    "embeddings.npz: x": lambda top: nudge(top / "out/s/r/embeddings.npz"),
    "rollouts.npz: x": lambda top: nudge(top / "out/s/r/rollouts.npz"),
    "returns.npz: n": lambda top: np.savez(
        top / "out/s/r/returns.npz", x=np.array([1.0, np.nan]), n=np.arange(3, dtype=np.int32)
    ),
    "metrics.jsonl": lambda top: flip(top / "out/s/r/metrics.jsonl", -3),
    "results": lambda top: (top / "out/s/r/summary.json").write_text('{"results": [1]}'),
    "not finished": lambda top: (top / "out/s/r/summary.json").unlink(),
    "checkpoints/2: leaf": lambda top: save_again(
        top / "out/s/r", x=np.nextafter(np.ones(2, np.float32), np.float32(2))
    ),
    "of steps 2 and None": lambda top: shutil.rmtree(top / "out/s/r/checkpoints"),
}


@pytest.mark.parametrize("what", BREAK)
def test_a_single_bit_is_noticed(roots, tmp_path, what):
    shutil.copytree(roots / "b", tmp_path / "b")
    BREAK[what](tmp_path / "b")
    found = differences(roots / "a", tmp_path / "b")
    assert len(found) == 1 and what.removeprefix("data/") in found[0], found


def test_every_phase_gets_its_turn():
    moments = soak.Moments(3, {events.TRAINING: 8.0})
    drawn = [moments.draw(False) for _ in range(18)]
    for phase in events.PHASES:
        assert [name for name, _ in drawn].count(phase) == 3
    assert max(seconds for name, seconds in drawn if name == events.TRAINING) <= 8.0
    moments.learn({events.TRAINING: 2.0, "compile": 7.0})
    assert moments.usual[events.TRAINING] == 5.0 and moments.usual["compile"] == 7.0
    later = [moments.draw(True)[0] for _ in range(10)]
    assert "collection" not in later and set(later) == set(events.PHASES) - {"collection"}


BAD = {
    "--kills=0": "--kills is 0",
    "--kills=two": "--kills",
    "--kinds=term,hup": "unknown --kinds 'hup'",
    "--out=x": "soak does not use --out",
    "--events=x": "soak does not use --events",
    "--multihost": "soak does not use --multihost: it ends one process at a time",
    "--data=x": "soak does not use --data",
    "--algo=ctrml": "did you mean 'ctmrl'",
    "--to=.": "holds an earlier soak",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_flags_are_one_line(tmp_path, capsys, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert main(soak.COMMAND, ["soak", argument]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and shown.count("\n") == 1 and BAD[argument] in shown


@pytest.mark.slow
def test_one_kill_of_a_real_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    settings = {"train.meta_batch": 2, "train.num_evals": 1, "backbone.width": 4}
    settings |= {"backbone.depth": 1, "algo.depth": 1, "algo.relabel": "false", "algo.width": 4}
    settings |= {"algo.max_epochs": 1, "algo.ensemble_size": 1, "eval.scored_steps": 20}
    line = ["--algo=gentle", "--suite=gentle", "--preset=smoke", "--num_seeds=1", "--num_steps=9"]
    line += ["--protocol=given_context", *(f"--config.{k}={v}" for k, v in settings.items())]
    line += ["--kills=1", "--kinds=kill", f"--to={tmp_path / 'to'}"]
    monkeypatch.setattr(soak.Moments, "draw", lambda *_: (events.TRAINING, 0.0))
    assert main(soak.COMMAND, ["soak", *line]) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "to" / "soak.json").read_text())
    (killed,) = [a for a in found["attempts"] if a["kind"]]
    assert killed["code"] == -9 and found["equal"] and found["compared_folders"] == 2
    assert killed["phase"] in ("training", "evaluation") and killed["resumed"] == 0
    assert "all bit-equal" in capsys.readouterr().out and os.path.isdir(tmp_path / "to" / "plain")
