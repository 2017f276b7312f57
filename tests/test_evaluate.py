"""`experiments.evaluate`: a trained run on other tasks, by other protocols, over more episodes."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, report
from experiments.cli.command import main
from experiments.runs import code_identity, snapshot
from gentle_jax import agents
from gentle_jax import sweep as sweep_lib
from tests.test_render import make_finished

pytestmark = pytest.mark.slow
TASKS = "set,goal[0],goal[1]\ntest,0.6,0.8\ntest,1,0\ntest,-1,0\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(run folder of two seeds and two grid points, root of its data)."""
    folder, data, _ = make_finished(tmp_path_factory.mktemp("evaluate"))
    return folder, data


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "mine.csv").write_text(TASKS)
    return tmp_path / "mine.csv"


def call(capsys, *arguments):
    """Runs the command; returns (exit code, stdout, stderr)."""
    capsys.readouterr()
    code = main(evaluate.COMMAND, ["evaluate", *map(str, arguments)])
    return code, *capsys.readouterr()


def arrays_of(out):
    """Returns the arrays and the summary that a command line has named."""
    path = out.strip().splitlines()[-1].removeprefix("results: ")
    with np.load(path.replace(".json", ".npz")) as kept:
        return dict(kept), json.loads(pathlib.Path(path).read_text())


def test_the_runs_own_protocols_and_tasks_give_its_own_returns(place, capsys):
    folder, data = place
    code, out, _ = call(capsys, f"--run={folder}", f"--data={data}")
    arrays, summary = arrays_of(out)
    restored = snapshot.restore(folder, ("given_context",), data)
    sweep = restored.sweep
    over_runs = jax.jit(sweep_lib.over_runs(sweep.evaluate, 2))
    keys, done = sweep.run_keys[: sweep.runs], jnp.int32(restored.done)
    scores = over_runs(restored.state, keys, sweep.tasks, sweep.data, done)
    assert code == 0 and summary["step"] == restored.done
    assert summary["protocols"] == list(restored.config.run.protocols)
    train = len(restored.env.train_ids)
    for name in restored.config.run.protocols:
        mine = np.concatenate([arrays[f"train/{name}"], arrays[f"test/{name}"]], 2)[0]
        np.testing.assert_allclose(mine, scores[name].returns, rtol=1e-4)
        assert arrays[f"train/{name}"].shape[:3] == (1, sweep.runs, train)
    assert {entry["sweep"] for entry in summary["results"]} == {"lr=0.001", "lr=0.002"}
    assert {entry["pretraining"] for entry in summary["results"]} == {0}


def test_a_checkpoint_before_the_end_has_no_paper_and_no_negative_pretraining(place):
    folder, data = place
    restored = snapshot.restore(folder, ("online",), data)._replace(done=1)
    config, points, _ = agents.read_config(folder)
    chosen = evaluate.Chosen(config, points, config.eval, ("online",), None)
    returns, costs = evaluate.test(restored, chosen)
    limits = evaluate.bounds(folder, restored, chosen)
    summary = evaluate.summary_of(
        restored, chosen, *evaluate.arrays_of(restored, chosen, returns, costs, limits)
    )
    assert {(e["step"], e["paper"]) for e in summary["results"]} == {(1, None)}
    assert all(e["pretraining"] >= 0 for e in summary["results"])


def test_a_protocol_of_ones_own_that_was_edited_is_tested_anew(place, capsys, tasks, monkeypatch):
    module = tasks.parent / "own_tests" / "again.py"
    module.parent.mkdir()
    module.write_text("from gentle_jax.protocols.online import make\n")
    monkeypatch.syspath_prepend(str(tasks.parent))
    words = (f"--run={place[0]}", f"--tasks={tasks}", "--protocol=own_tests.again")
    first = call(capsys, *words)[1].splitlines()[-1]
    assert call(capsys, *words)[1].splitlines()[-1] == first
    module.write_text("from gentle_jax.protocols.online import make\n\nEDITED = 1\n")
    code_identity.present.cache_clear()  # as in a new process
    assert call(capsys, *words)[1].splitlines()[-1] not in ("", first)


def test_a_budget_that_no_memory_holds_is_one_line(place, capsys, tasks, monkeypatch):
    def too_much(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(evaluate.evaluation, "make_evaluate", lambda *args: too_much)
    words = (f"--run={place[0]}", f"--tasks={tasks}", "--protocol=online", "--episodes=7")
    code, _, err = call(capsys, *words)
    assert code == 2 and err.count("\n") == 1 and "lower --episodes" in err


def test_other_tasks_need_no_data_and_are_those_of_the_file(place, capsys, tasks):
    folder, _ = place
    words = (f"--run={folder}", f"--tasks={tasks}", "--protocol=random_then_policy")
    code, out, _ = call(capsys, *words, "--episodes=3", "--data=/nowhere")
    arrays, summary = arrays_of(out)
    assert code == 0 and "tasks of file mine.csv, budget of 3 episodes" in out
    assert arrays["test/random_then_policy"].shape == (1, 4, 3, 3)
    assert not any(name.startswith("train/") for name in arrays)
    # a goal far away is a worse place for agents that were never there: tasks are not the suite's
    random = arrays["random_return"]
    assert random.shape == (3,) and np.ptp(random) > 0.01 and len(summary["results"]) > 0
    assert all(entry["paper"] is None for entry in summary["results"])
    again = call(capsys, *words, "--episodes=3", "--data=/nowhere")
    assert again[0] == 0 and "3 tasks" not in again[1] and again[1].strip() in out
    assert len(list((folder / "evaluations").glob("*.json"))) >= 1
    shown = evaluate.stored(folder)
    assert any(each["about"].startswith("tasks of file") for each in shown)


@pytest.mark.parametrize(
    "words,part",
    [
        ("--protocol=given_context --tasks=FILE", "given_context reads stored data"),
        ("--protocol=nonsense", "unknown protocol 'nonsense'"),
        ("--episodes=-1", "--episodes is -1"),
        ("--episodes=0", "--episodes is 0: expected 1 or more"),
        ("--step=77 --protocol=online", "step is 77: this run has checkpoints at 4"),
        ("--tasks=/nowhere.csv", "is no file"),
        ("--data=/nowhere --protocol=given_context", "pass --data"),
        ("--seed=3", "unknown flag 'seed'"),
    ],
)
def test_bad_input_is_one_line(place, capsys, tasks, words, part):
    words = words.replace("FILE", str(tasks)).split()
    code, out, err = call(capsys, f"--run={place[0]}", *words)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and part in err, err
    assert "results:" not in out


def test_a_damaged_result_is_told_and_made_again_when_deleted(place, capsys, tasks):
    folder, _ = place
    words = (f"--run={folder}", f"--tasks={tasks}", "--protocol=online")
    out = call(capsys, *words)[1]
    path = pathlib.Path(out.strip().splitlines()[-1].removeprefix("results: "))
    text = path.read_text()
    path.write_text(text.replace('"step": 4', '"step": 5'))
    code, _, err = call(capsys, *words)
    assert code == 2 and "delete it" in err
    before = len(evaluate.stored(folder))
    path.write_text(text)
    assert len(evaluate.stored(folder)) == before + 1 and call(capsys, *words)[0] == 0


def test_report_shows_them(place, capsys, tasks, monkeypatch):
    folder, _ = place
    call(capsys, f"--run={folder}", f"--tasks={tasks}", "--protocol=online")
    summary = {"results": evaluate.stored(folder)[0]["results"]}
    monkeypatch.setattr(report.outputs, "read_summary", lambda place: summary)
    monkeypatch.setattr(report.outputs, "print_table", lambda *_: None)
    monkeypatch.setattr(report.code_identity, "note", lambda _: "")
    monkeypatch.setattr(report.code_identity, "hash_of", lambda _: "")
    assert main(report.COMMAND, ["report", f"--run={folder}"]) == 0
    assert "tasks of file mine.csv" in capsys.readouterr().out
