"""`experiments.run` end to end: the run folder, resuming after any interruption, a full disk."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import report, run
from experiments.cli import exit_codes, flags
from experiments.cli.command import main
from experiments.runs import code_identity, events, outputs, trackers
from experiments.show import figures, heatmap
from gentle_jax import checkpoint, training

SEEDS, POINTS, STEPS, EVALS = 2, 2, 12, 2
TINY = {
    "train.meta_batch": 2,
    "train.latent_dim": 2,
    "train.num_evals": EVALS,
    "backbone.width": 4,
    "backbone.depth": 1,
    "algo.encoder_width": 4,
    "algo.encoder_depth": 1,
    "algo.width": 4,
    "algo.depth": 1,
    "algo.num_iterations": 4,
    "algo.use_cross_prediction": "false",
    "algo.use_contrast": "false",
    "behaviour.num_steps": 30,
    "behaviour.seed_steps": 29,
    "behaviour.first_level": 10,
    "behaviour.level_every": 10,
    "behaviour.width": 4,
    "behaviour.batch_size": 4,
    "eval.scored_steps": 40,
}
ARGUMENTS = (
    "--preset=smoke", "--backbone=td3_bc", "--protocol=given_context", "--seed_offset=3",
    f"--num_seeds={SEEDS}", f"--num_steps={STEPS}", "--sweep=lr=0.001,0.002", "--save_every=0",
    *(f"--config.{key}={value}" for key, value in TINY.items()),
)  # fmt: skip
KEYS = {
    "algorithm", "backbone", "env", "suite", "physics", "preset", "fidelity", "num_seeds",
    "num_steps",
    "results", "seconds", "seed_steps_per_second", "peak_memory_bytes", "device", "sha256",
}  # fmt: skip
RESULT_KEYS = {
    "task_set", "protocol", "metric", "mean", "std", "ci95", "iqm", "normalized", "per_seed",
    "paper",
}  # fmt: skip
ROOT = pathlib.Path(__file__).parent.parent


class Workspace:
    """Where the runs of this module live: one dataset, one cache, programs compiled once."""

    def __init__(self, folder):
        self.folder, self.programs, self.opened = folder, None, []

    def arguments(self, out):
        files = {"data": self.folder / "data", "out": out, "events": self.events(out)}
        return [*ARGUMENTS, *(f"--{name}={path}" for name, path in files.items())]

    def events(self, out):
        """Returns the file of events of what goes to `out`."""
        return self.folder / "events" / f"{out.name}.jsonl"

    def command(self, out):
        """Runs the command in this process; returns its exit code."""
        code = main(run.COMMAND, ["run", *self.arguments(out)])
        for saves in self.opened:  # what the end of a process does
            saves.close()
        self.opened.clear()
        return code

    def compile_all(self, task, hooks):
        if self.programs is None:
            self.programs = compile_all(task, hooks)
        return self.programs

    def open(self, *args, **options):
        self.opened.append(open_checkpoints(*args, **options))
        return self.opened[-1]


compile_all, open_checkpoints = training.compile_all, checkpoint.Checkpoints


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    space = Workspace(tmp_path_factory.mktemp("run"))
    cache = str(space.folder / "cache")
    settings = {
        "jax_compilation_cache_dir": cache,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    patch = pytest.MonkeyPatch()
    patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    patch.setattr(training, "compile_all", space.compile_all)
    patch.setattr(checkpoint, "Checkpoints", space.open)
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    yield space
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    patch.undo()


@pytest.fixture(scope="module")
def finished(workspace):
    """The folder of a run that nothing interrupted."""
    assert workspace.command(workspace.folder / "plain") == 0
    return run_folder(workspace.folder / "plain")


def run_folder(out):
    (found,) = (out / "ctmrl" / "point_robot" / "ctmrl").glob("[!g]*")  # and a grid_... beside it
    return found


def check_same_results(folder, expected):
    """Every array bit by bit, and every metric line once, in order, character by character."""
    for name in ("returns.npz", "costs.npz", "embeddings.npz", "rollouts.npz"):
        with np.load(folder / name) as a, np.load(expected / name) as b:
            assert set(a) == set(b)
            for key in b:
                assert a[key].dtype == b[key].dtype and a[key].tobytes() == b[key].tobytes(), key
    lines = lambda where: (where / "metrics.jsonl").read_text().splitlines()
    assert lines(folder) == lines(expected)
    assert summary_of(folder)["results"] == summary_of(expected)["results"]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def steps_of(folder):
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {json.loads(line)["step"] for line in lines if line.endswith("}")}


def check_finite(tree, path=""):
    if isinstance(tree, dict):
        for key, value in tree.items():
            check_finite(value, f"{path}.{key}")
    elif isinstance(tree, list):
        for value in tree:
            check_finite(value, path)
    elif isinstance(tree, float | int):
        assert np.isfinite(tree), path


@pytest.fixture
def plain_outputs(monkeypatch):
    """Resumed runs draw no figures: the finished one did."""
    monkeypatch.setattr(outputs, "draw", lambda *_: None)
    monkeypatch.setattr(heatmap, "draw", lambda *_: None)


def test_the_run_folder_holds_what_it_should(finished):
    for name in ("config.json", "environment.json", "metrics.jsonl", "returns.npz", "summary.json"):
        assert (finished / name).stat().st_size > 0, name
    for name in ("figures", "checkpoints"):
        assert any((finished / name).iterdir()), name
    pictures = list((finished / "figures").glob("*.png"))
    assert {p.stem for p in pictures} >= {"learning_curves", "embeddings", "rollouts"}
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000
    config = json.loads((finished / "config.json").read_text())
    assert config["train"]["num_steps"] == STEPS and config["run"]["num_seeds"] == SEEDS
    assert config["algo"]["num_iterations"] == 4 and len(config["sweep"]) == POINTS
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__ and "device" in environment
    assert "commit" in environment and "version" in environment
    assert len(environment["source_hash"]) == 16 and int(environment["source_hash"], 16) >= 0
    assert not list(finished.rglob("*.tmp")) and not list(finished.rglob(".write_test"))


def test_figures_of_a_sweep_name_their_grid_point_and_report_draws_another(
    finished, monkeypatch, capsys
):
    with np.load(finished / "returns.npz") as arrays, np.load(finished / "rollouts.npz") as trace:
        native = arrays["train/given_context"][-1, ..., -1]  # [run, task], last episode
        paths = trace["paths"]
    best = int(native.reshape(POINTS, -1).mean(1).argmax())
    drawn = {}
    monkeypatch.setattr(
        figures, "rollouts", lambda *args: drawn.update(paths=args[1], title=args[-1])
    )
    for name in ("learning_curves", "embeddings", "code_assignment"):
        monkeypatch.setattr(figures, name, lambda *args, **kwargs: None)
    for point in range(POINTS):
        line = ["report", f"--run={finished}", f"--point={point}"]
        assert main(report.COMMAND, line) == 0
        own = slice(point * SEEDS, (point + 1) * SEEDS)
        np.testing.assert_array_equal(drawn["paths"], paths[own, -drawn["paths"].shape[1] :, :, :2])
        assert f"lr=0.00{point + 1}, given_context" in drawn["title"]
        assert "suite ctmrl, preset smoke" in drawn["title"]
    run_config = types.SimpleNamespace(protocols=("given_context",))
    config = types.SimpleNamespace(run=run_config, eval=types.SimpleNamespace(metric="final"))
    with np.load(finished / "returns.npz") as arrays:
        assert outputs.best_point(config, ({}, {}), arrays) == best
    capsys.readouterr()
    assert main(report.COMMAND, ["report", f"--run={finished}", "--point=2"]) == 2
    assert "--point is 2: expected 0 to 1" in capsys.readouterr().err
    assert main(report.COMMAND, ["report", "--point=1"]) == 2
    assert "pass --run=FOLDER, too" in capsys.readouterr().err


def test_summary_has_the_documented_keys_and_finite_numbers(finished):
    summary = summary_of(finished)
    assert summary.keys() >= KEYS
    names = {
        key: summary[key] for key in ("algorithm", "backbone", "env", "suite", "physics", "preset")
    }
    assert names == {
        "algorithm": "ctmrl", "backbone": "td3_bc", "env": "point_robot", "suite": "ctmrl",
        "physics": "exact",
        "preset": "smoke",
    }  # fmt: skip
    assert summary["fidelity"] == "paper"
    assert (summary["num_seeds"], summary["num_steps"]) == (SEEDS, STEPS)
    check_finite(summary)
    results = summary["results"]
    assert all(result.keys() >= RESULT_KEYS for result in results)
    assert {r["task_set"] for r in results} == {"train", "test"}
    assert {r["protocol"] for r in results} == {"given_context"}
    for result in results:
        assert len(result["per_seed"]) == SEEDS
        np.testing.assert_allclose(result["mean"], np.mean(result["per_seed"]), rtol=1e-6)
        low, high = result["ci95"]
        assert low <= result["mean"] <= high
    seconds = summary["seconds"]
    assert seconds.keys() == {"collect", "compile", "train", "evaluate", "total"}
    assert all(value >= 0 for value in seconds.values()) and summary["peak_memory_bytes"] > 0
    assert seconds["total"] >= seconds["train"] and summary["seed_steps_per_second"] > 0
    assert summary["failed_seeds"] == []


def test_returns_have_the_named_axes(finished):
    runs = SEEDS * POINTS
    with np.load(finished / "returns.npz") as returns:
        assert str(returns["axes"]).startswith("eval_point, seed, task, episode")
        for name, tasks in (("train", 30), ("test", 10)):
            values = returns[f"{name}/given_context"]
            assert values.shape[:3] == (EVALS, runs, tasks) and values.ndim == 4
            assert np.isfinite(values).all() and returns[f"{name}_ids"].shape == (tasks,)
        assert returns["eval_steps"].tolist() == [STEPS // 2, STEPS]
        assert returns["random_return"].shape == returns["reference_return"].shape == (40,)
        # the last point is what the table reports
        per_seed = returns["test/given_context"][-1, :SEEDS, :, -1].mean(-1)
    found = [
        r for r in summary_of(finished)["results"]
        if r["task_set"] == "test" and r["metric"] == "final"
    ]  # fmt: skip
    assert len(found) == POINTS
    np.testing.assert_allclose(found[0]["per_seed"], per_seed, rtol=1e-5)


def test_metrics_have_a_line_per_chunk_and_run(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS * SEEDS * POINTS  # chunks of one step
    labels = [(line["step"], line["sweep"], line["seed"]) for line in lines]
    assert len(set(labels)) == len(labels)
    assert {seed for _, _, seed in labels} == {3, 4}
    assert {line["stage"] for line in lines} == {"warmup", "train"}
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    for line in lines:
        check_finite(line)


def test_a_tracker_gets_what_the_run_logs(workspace, finished, tmp_path, monkeypatch):
    told = []
    start = lambda title, settings, kept: trackers.Tracker(
        "one", lambda *args: told.append(args), lambda finished: told.append((settings, finished))
    )
    monkeypatch.setitem(trackers.TRACKERS, "json", start)  # the name of a module that is there
    assert main(run.COMMAND, ["run", *workspace.arguments(tmp_path), "--track=json"]) == 0
    *logged, (settings, done) = told
    assert done == trackers.FINISHED and settings["train.num_steps"] == STEPS
    returns = {step: metrics for metrics, step in logged if "return/test/given_context" in metrics}
    assert list(returns) == [STEPS // 2, STEPS]
    results = json.loads((run_folder(tmp_path) / "summary.json").read_text())["results"]
    for task_set in ("train", "test"):
        means = [r["mean"] for r in results if r["task_set"] == task_set and r["metric"] == "final"]
        assert np.isclose(returns[STEPS][f"return/{task_set}/given_context"], np.mean(means))
    lines = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["step"] == STEPS]
    (last,) = [metrics for metrics, step in logged if step == STEPS and "train/q_loss" in metrics]
    assert np.isclose(last["train/q_loss"], np.mean([line["q_loss"] for line in lines]))


def test_events_tell_every_phase_and_step(workspace, finished):
    told = events.Reader(workspace.events(workspace.folder / "plain")).read()
    told = told[: [event["phase"] for event in told].index("results") + 1]
    assert told[0]["folder"] == str(finished) and told[0]["phase"] == "start-up"
    assert [phase for phase, _ in events.spans(told, told[0]["time"], told[-1]["time"])] == [
        "start-up", "compile", "collection", "compile", *("training", "evaluation") * EVALS,
        "results",
    ]  # fmt: skip
    steps = events.steps(told)
    assert steps == sorted(steps) and set(steps) == set(range(STEPS + 1))
    (collected,) = [event for event in told if event["phase"] == "collection"]
    assert collected["compile_seconds"] > 0
    scored = {event["step"] for event in told if event["phase"] == "evaluation"}
    assert scored == {STEPS // 2, STEPS}
    times = [event["time"] for event in told]
    assert times == sorted(times)


def test_the_same_command_again_prints_the_same_table(
    workspace, finished, monkeypatch, capsys, tmp_path
):
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.iterdir() if p.is_file()}
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
    capsys.readouterr()
    begin = time.perf_counter()
    assert workspace.command(workspace.folder / "plain") == 0
    assert time.perf_counter() - begin < 5
    shown = capsys.readouterr().out
    outputs.print_table(summary_of(finished), finished)
    assert capsys.readouterr().out in shown and "finished before" in shown
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in finished.iterdir() if p.is_file()}
    assert after == before


def interrupt(patch, when, at, error):
    """Raises `error` at the last pause of step `at`: before, or after, it is saved."""
    original = run.Session.on_pause

    def on_pause(self, position, carry, last):
        units = 2 if position.done % (STEPS // EVALS) == 0 else 0  # one protocol, embeddings
        there = position == (at, units)
        if there and when == "before":
            raise error
        original(self, position, carry, last)
        if there:
            raise error

    patch.setattr(run.Session, "on_pause", on_pause)


# after the first evaluation: the test of other code
@pytest.mark.parametrize("when,at", [("before", 1), ("after", STEPS)])
def test_an_interrupted_run_resumes_bit_by_bit(
    workspace, finished, plain_outputs, tmp_path, capsys, when, at
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, when, at, KeyboardInterrupt())
        assert workspace.command(tmp_path) == 42
    shown = capsys.readouterr().err.strip().splitlines()
    assert shown == ["interrupted; the same command resumes from the last checkpoint"]
    folder = run_folder(tmp_path)
    assert not (folder / "summary.json").exists()
    assert max(steps_of(folder)) == at
    assert workspace.command(tmp_path) == 0
    done = at if when == "after" else at - 1
    assert (f"resuming after step {done} of {STEPS}" in capsys.readouterr().out) == (done > 0)
    mine = events.of_last_program(events.Reader(workspace.events(tmp_path)).read())
    steps = events.steps(mine)
    assert (steps[0], steps[-1], mine[-1]["phase"]) == (done, STEPS, "results")
    check_same_results(folder, finished)


def test_two_interruptions_a_cut_line_and_clocks_that_add_up(
    workspace, finished, plain_outputs, tmp_path, capsys
):
    earlier = []
    resume = run.Session.resume

    def watch(self, meta):
        earlier.append(dict(meta["seconds"]))
        resume(self, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Session, "resume", watch)
        for when, at in (("before", 3), ("after", 9)):
            with pytest.MonkeyPatch.context() as stop:
                interrupt(stop, when, at, KeyboardInterrupt())
                assert workspace.command(tmp_path) == 42
        folder = run_folder(tmp_path)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 10, "sta')
        assert workspace.command(tmp_path) == 0
    assert "WARNING" not in capsys.readouterr().out
    check_same_results(folder, finished)
    assert len(earlier) == 2 and earlier[0]["total"] > 0 and earlier[0]["train"] > 0
    for first, second in zip(earlier, [earlier[1], summary_of(folder)["seconds"]], strict=True):
        for name, value in first.items():
            assert second[name] >= round(value, 3), name


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_resumes_from_the_one_before(
    workspace, finished, plain_outputs, tmp_path, capsys
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "after", 7, KeyboardInterrupt())
        assert workspace.command(tmp_path) == 42
    folder = run_folder(tmp_path)
    for path in (folder / "checkpoints" / "700").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:100])
    log = folder / "metrics.jsonl"
    good = log.read_text()
    log.write_text(good.replace("0.", "1.", 1))  # a number of the first line
    with pytest.warns(UserWarning, match="checkpoint 700 is damaged"):
        assert workspace.command(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "resuming after step 6" in shown
    assert f"WARNING: {log} is not what was logged up to step 6 (altered)" in shown
    log.write_text(log.read_text().replace("1.", "0.", 1))
    check_same_results(folder, finished)


def test_no_space_left_keeps_the_checkpoint_and_resumes(
    workspace, finished, plain_outputs, tmp_path, capsys
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "before", 5, OSError(28, "No space left on device"))
        assert workspace.command(tmp_path) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: no space left in ") and line.count("\n") == 1
    folder = run_folder(tmp_path)
    assert (folder / "checkpoints" / "400").is_dir() and not (folder / "summary.json").exists()
    assert workspace.command(tmp_path) == 0
    assert "resuming after step 4" in capsys.readouterr().out
    check_same_results(folder, finished)


def test_no_space_left_while_results_are_written(
    workspace, finished, plain_outputs, tmp_path, capsys
):
    with pytest.MonkeyPatch.context() as patch:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        patch.setattr(outputs.np, "savez_compressed", full)
        assert workspace.command(tmp_path) == 2
    assert capsys.readouterr().err.startswith("error: no space left in ")
    assert workspace.command(tmp_path) == 0
    check_same_results(run_folder(tmp_path), finished)


def test_a_full_disk_stops_a_run_before_it_trains(workspace, finished, tmp_path, capsys):
    usage = run.computer.shutil.disk_usage(tmp_path)._replace(free=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.computer.shutil, "disk_usage", lambda _: usage)
        assert workspace.command(tmp_path) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "MB free" in line and "--out" in line
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_too_little_memory_is_said_before_training(workspace, finished, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.computer, "available_bytes", lambda: 1000)
        assert workspace.command(tmp_path) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--num_seeds" in line
    assert not list(tmp_path.rglob("metrics.jsonl"))


def start_process(workspace, out):
    """The command in a process of its own, with what it prints on pipes."""
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *workspace.arguments(out)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# SIGTERM: tests/test_multihost.py; SIGKILL: tests/test_soak.py
def test_a_process_that_is_stopped_in_training_resumes_bit_by_bit(
    workspace, finished, plain_outputs, tmp_path
):
    with start_process(workspace, tmp_path) as process:
        folder, limit = None, time.monotonic() + 600
        while process.poll() is None and time.monotonic() < limit:
            folder = folder or next(tmp_path.glob("ctmrl/point_robot/ctmrl/*"), None)
            if folder is not None and len(steps_of(folder)) >= 3:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        shown, err = process.communicate()
    assert process.returncode == 42, err
    assert folder is not None and 3 <= len(steps_of(folder)) < STEPS
    assert "run: stopping after step" in shown
    assert err == "interrupted; the same command resumes from the last checkpoint\n"
    assert workspace.command(tmp_path) == 0
    check_same_results(folder, finished)


def test_a_signal_before_training_ends_the_command_at_once(workspace, finished, tmp_path):
    with start_process(workspace, tmp_path) as process:
        for line in process.stdout:
            if line.startswith("data: reusing"):
                break
        process.send_signal(signal.SIGTERM)
        begin = time.perf_counter()
        _, err = process.communicate()
    assert process.returncode == 42 and "Traceback" not in err, err
    assert time.perf_counter() - begin < 20  # compiling takes longer
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_run_that_diverges_is_named_and_the_others_finish(workspace, finished, tmp_path, capsys):
    arguments = [
        a.replace("lr=0.001,0.002", "lr=0.001,1e30") for a in workspace.arguments(tmp_path)
    ]
    for again in range(2):  # a finished run tells it again
        assert main(run.COMMAND, ["run", *arguments]) == exit_codes.DIVERGED == 3
        shown = capsys.readouterr()
        assert not shown.err
        assert ("run: seed 3 (lr=1e+30) is not finite after step" in shown.out) == (not again)
        assert "not finite: seed 3 (lr=1e+30), seed 4 (lr=1e+30)" in shown.out
    folder = run_folder(tmp_path)
    assert [(f["seed"], f["algo.lr"]) for f in summary_of(folder)["failed_seeds"]] == [
        (3, 1e30), (4, 1e30),
    ]  # fmt: skip
    with np.load(folder / "returns.npz") as a, np.load(finished / "returns.npz") as b:
        name = "test/given_context"
        assert a[name][:, :SEEDS].tobytes() == b[name][:, :SEEDS].tobytes()
        assert np.isnan(a[name][-1, SEEDS:]).all()
    by_point = {r["sweep"]: r for r in summary_of(folder)["results"]}
    assert np.isfinite(by_point["lr=0.001"]["mean"]) and by_point["lr=1e+30"]["mean"] is None
    assert np.isnan([e["mean"] for e in outputs.read_summary(folder)["results"]]).any()

    def no_json(word):
        raise AssertionError(f"{word} is no JSON")

    for name in ("summary.json", "metrics.jsonl"):
        lines = (folder / name).read_text()
        for text in [lines] if name == "summary.json" else lines.splitlines():
            json.loads(text, parse_constant=no_json)
    assert "null" in lines


@pytest.mark.parametrize("flag", ["--accept_code", "--fresh"])
def test_an_interrupted_run_of_other_code_goes_on_only_where_it_is_said(
    workspace, finished, plain_outputs, tmp_path, capsys, flag
):
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "after", STEPS // 2, KeyboardInterrupt())
        assert workspace.command(tmp_path) == 42
    folder = run_folder(tmp_path)
    first = json.loads((folder / "environment.json").read_text())["source_hash"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_identity, "present", lambda *_: "b" * 16)
        capsys.readouterr()
        assert workspace.command(tmp_path) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and first in line
        assert max(steps_of(folder)) == STEPS // 2 and not (folder / "summary.json").exists()
        assert main(run.COMMAND, ["run", *workspace.arguments(tmp_path), flag]) == 0
        assert ("resuming after step" in capsys.readouterr().out) == (flag == "--accept_code")
        assert workspace.command(tmp_path) == 0  # its table, without the flag
    check_same_results(folder, finished)
    made = {first, "b" * 16} if flag == "--accept_code" else {"b" * 16}
    assert code_identity.recorded(folder) == made
    (folder / "summary.json").unlink()
    # the checkpoints of other code are not what the code that is here goes on from
    assert workspace.command(tmp_path) == (0 if first in made else 2)


def test_a_second_process_in_the_same_folder_is_refused(workspace, tmp_path, capsys):
    out = tmp_path / "runs"
    folder = run.folder_of(flags.parse(run.COMMAND, ["run", *workspace.arguments(out)]))
    folder.mkdir(parents=True)
    with run.computer.alone(folder):
        assert workspace.command(out) == 2
    err = capsys.readouterr().err
    assert "another process works in" in err and err.count("\n") == 1
    with run.computer.alone(folder):  # and it is free again afterwards
        pass
