"""`--out=gs://...`: runs whose folder is in an object store, played by a file system in memory."""

import dataclasses
import json
import pathlib
import shutil
import time

import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from experiments import gather, render, report, reproduce, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import code_identity, grids, outputs, remote
from gentle_jax import errors, training

TINY = (
    "--preset=smoke", "--backbone=td3_bc", "--protocol=given_context", "--num_steps=6",
    "--num_seeds=2", "--sweep=lr=0.001,0.002",
    *(f"--config.{name}={size}" for name, size in {
        "env.num_train": 3, "env.num_test": 2, "env.horizon": 10, "train.meta_batch": 2,
        "train.latent_dim": 2, "train.num_evals": 2, "backbone.width": 4, "backbone.depth": 1,
        "algo.encoder_width": 4, "algo.encoder_depth": 1, "algo.width": 4, "algo.depth": 1,
        "algo.num_codes": 2, "algo.use_cross_prediction": "false", "algo.use_contrast": "false",
        "behaviour.num_steps": 30, "behaviour.seed_steps": 29, "behaviour.first_level": 10,
        "behaviour.level_every": 10, "behaviour.width": 4, "behaviour.batch_size": 4,
        "eval.scored_steps": 20, "eval.num_repeats": 1, "eval.random_episodes": 2,
    }.items()),
)  # fmt: skip
OUT = "gs://bucket/runs"


class Bucket(MemoryFileSystem):
    """An object store: whole objects only, none is there before it is closed."""

    protocol, cachable = "gs", False

    def __init__(self):
        super().__init__(skip_instance_cache=True)
        self.store, self.pseudo_dirs, self.broken = {}, [""], False
        self.refused = ()  # the ends of names that it does not take

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **options):
        if mode == "wb" and (self.broken or path.endswith(tuple(self.refused))):
            raise ConnectionError("the store is away\nfor a while")
        if mode not in ("rb", "wb"):
            raise NotImplementedError(f"objects cannot be opened with {mode}")
        return super()._open(path, mode, **options)

    def names(self):
        """The objects' names below OUT."""
        return sorted(name.removeprefix("/bucket/runs/") for name in self.store)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty store behind gs://, and a machine without working folders."""
    made = Bucket()
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: made, raising=True)
    monkeypatch.setattr(remote, "installed", lambda package: True)
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "EVERY", 3600.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
    return made


def make_checkpoint(local, step, text="state"):
    """What Orbax leaves: a whole folder, and beside it one that is being written."""
    for name in (str(step), f"{step + 1}.orbax-checkpoint-tmp-5"):
        folder = local / "checkpoints" / name / "tree"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").write_text(f"{text} {step}")


def new_mirror(folder=None):
    mirror = remote.Mirror(folder or remote.path(OUT))
    mirror.local.mkdir(parents=True, exist_ok=True)
    return mirror


def wait_for(condition):
    """Waits until something is so."""
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def forget():
    """What the end of a spot machine does."""
    shutil.rmtree(remote.work_folder(OUT))


def test_a_local_folder_is_its_own_mirror(tmp_path):
    with remote.Mirror(tmp_path) as mirror:
        assert mirror.local == tmp_path
        mirror.push()
    assert not list(tmp_path.iterdir())


def test_another_machine_gets_the_last_whole_state(bucket):
    mirror = new_mirror().__enter__()
    (mirror.local / "config.json").write_text("{}")
    (mirror.local / "metrics.jsonl").write_text("1\n")
    (mirror.local / "metrics.tmp").write_text("half")
    make_checkpoint(mirror.local, 1)
    mirror.push()
    make_checkpoint(mirror.local, 2)
    (mirror.local / "metrics.jsonl").write_text("1\n2\n")
    mirror.push()
    assert bucket.names() == [
        "checkpoints/1/tree/data", "checkpoints/2/tree/data", "config.json", "metrics.jsonl",
        "mirror.json",
    ]  # fmt: skip
    # killed here; what was half uploaded afterwards is no part of the state
    (remote.path(OUT) / "checkpoints/9/tree/data").write_text("half")
    forget()
    again = new_mirror().__enter__()
    assert remote.steps_in(again.local) == [1, 2]
    assert (again.local / "checkpoints/2/tree/data").read_text() == "state 2"
    assert (again.local / "metrics.jsonl").read_text() == "1\n2\n"
    assert remote.files_in(again.local) == ["config.json", "metrics.jsonl"]
    # two checkpoints stay, the oldest goes
    make_checkpoint(again.local, 3)
    again.push()
    assert "checkpoints/1/tree/data" not in bucket.names()
    assert {"checkpoints/2/tree/data", "checkpoints/3/tree/data"} <= set(bucket.names())


def in_state():
    """The checkpoints that another machine would get: {step: files}."""
    return json.loads((remote.path(OUT) / "mirror.json").read_text())["steps"]


@pytest.mark.parametrize("refused", ["metrics.jsonl", "mirror.json", "3/tree/data"])
def test_what_a_failed_upload_left_at_the_url_goes_with_the_next(bucket, refused):
    mirror = new_mirror().__enter__()
    for step in (1, 2):
        make_checkpoint(mirror.local, step)
        mirror.push()
    bucket.refused = [refused]
    make_checkpoint(mirror.local, 3)
    (mirror.local / "checkpoints/3/a").write_text("of the checkpoint, before what fails")
    (mirror.local / "metrics.jsonl").write_text("3\n")
    with pytest.raises(ConnectionError):
        mirror.push()
    assert list(in_state()) == ["1", "2"]  # still a whole state
    assert {n for names in in_state().values() for n in names} <= set(bucket.names())
    bucket.refused = []
    make_checkpoint(mirror.local, 4)
    mirror.push()
    left = [name for name in bucket.names() if name.startswith("checkpoints")]
    assert left == sorted(n for names in in_state().values() for n in names)
    assert "checkpoints/1/tree/data" not in left and "checkpoints/4/tree/data" in left


def set_aside(local, step):
    """What `gentle_jax.checkpoint` does with one that it cannot read."""
    shutil.rmtree(local / remote.DAMAGED / str(step), ignore_errors=True)
    (local / remote.DAMAGED).mkdir(exist_ok=True)
    (local / "checkpoints" / str(step)).replace(local / remote.DAMAGED / str(step))


def test_a_damaged_checkpoint_is_replaced_at_the_url(bucket, monkeypatch):
    mirror = new_mirror().__enter__()
    for step in (1, 2):
        make_checkpoint(mirror.local, step, "damaged")
        mirror.push()
    forget()
    mirror = new_mirror().__enter__()
    set_aside(mirror.local, 2)
    mirror.push()
    make_checkpoint(mirror.local, 2, "good")
    (mirror.local / "checkpoints/2/tree/more").write_text("good")
    bucket.refused = ["more"]
    with pytest.raises(ConnectionError):
        mirror.push()
    assert list(in_state()) == ["1"]  # never half of each
    bucket.refused = []
    monkeypatch.setattr(remote, "EVERY", 0.01)
    again = remote.Mirror(remote.path(OUT))  # of this machine, which is ahead
    with again:
        assert list(in_state()) == ["1", "2"]
        set_aside(again.local, 2)
        make_checkpoint(again.local, 2, "better")
        state = remote.path(OUT) / "checkpoints/2/tree/data"
        wait_for(lambda: state.read_text() == "better 2")  # noticed in the background too
        wait_for(lambda: list(in_state()) == ["1", "2"])
    assert "checkpoints/2/tree/more" not in bucket.names()


def test_a_damaged_checkpoint_is_no_fallback(bucket):
    mirror = new_mirror().__enter__()
    for step in (1, 3):
        make_checkpoint(mirror.local, step)
        mirror.push()
    set_aside(mirror.local, 3)
    make_checkpoint(mirror.local, 2)  # pauses come by time: another step than before
    mirror.push()
    assert list(in_state()) == ["1", "2"]
    set_aside(mirror.local, 2)
    make_checkpoint(mirror.local, 4)
    mirror.push()
    assert list(in_state()) == ["1", "4"]
    kept = [name for name in bucket.names() if name.startswith("checkpoints")]
    assert kept == ["checkpoints/1/tree/data", "checkpoints/4/tree/data"]


def test_a_finished_run_leaves_nothing_on_the_machine(bucket):
    with new_mirror() as mirror:
        (mirror.local / "summary.json").write_text("{}")
        (mirror.local / "figures").mkdir()
        (mirror.local / "figures" / "a.png").write_bytes(b"\x89PNG\x00")
    assert not mirror.local.exists()
    assert (remote.path(OUT) / "figures/a.png").read_bytes() == b"\x89PNG\x00"
    assert (remote.path(OUT) / "summary.json").exists()


def test_what_the_url_has_counts_unless_this_machine_is_ahead(bucket):
    mirror = new_mirror().__enter__()
    make_checkpoint(mirror.local, 1)
    mirror.push()
    make_checkpoint(mirror.local, 4)  # killed before this one was uploaded
    again = new_mirror().__enter__()
    assert remote.steps_in(again.local) == [1, 4]
    assert "checkpoints/4/tree/data" in bucket.names()
    # another machine went on
    other = remote.path(OUT)
    (other / "checkpoints/7/tree/data").write_text("state 7")
    state = {"files": [], "steps": {"7": ["checkpoints/7/tree/data"]}}
    (other / "mirror.json").write_text(json.dumps(state))
    assert remote.steps_in(new_mirror().__enter__().local) == [7]
    # the user deleted the folder to begin anew
    bucket.store.clear()
    assert remote.steps_in(new_mirror().__enter__().local) == []


def test_every_new_checkpoint_is_uploaded_even_if_the_store_was_away(bucket, monkeypatch, capsys):
    monkeypatch.setattr(remote, "EVERY", 0.01)
    shown = []
    with new_mirror() as mirror:
        bucket.broken = True
        make_checkpoint(mirror.local, 1)
        wait_for(lambda: shown.append(capsys.readouterr().out) or "going on" in "".join(shown))
        bucket.broken = False
        wait_for(lambda: "checkpoints/1/tree/data" in bucket.names())
        make_checkpoint(mirror.local, 2)
        state = remote.path(OUT) / "mirror.json"
        wait_for(lambda: "checkpoints/2/tree/data" in state.read_text())
    assert ("".join(shown) + capsys.readouterr().out).count("the store is away), going on") == 1


def test_a_store_that_fails_at_the_end_loses_nothing(bucket):
    mirror = new_mirror()
    with pytest.raises(errors.UserError, match="ConnectionError: the store is away"), mirror:
        make_checkpoint(mirror.local, 3)
        (mirror.local / "summary.json").write_text("{}")
        bucket.broken = True
    assert (mirror.local / "summary.json").exists()
    bucket.broken = False
    with new_mirror():  # the same command
        pass
    assert {"summary.json", "checkpoints/3/tree/data"} <= set(bucket.names())


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_code_is_put_aside_where_it_is(bucket, monkeypatch, capsys, finished):
    monkeypatch.setattr(code_identity, "present", lambda *_: "b" * 16)
    request = flags.parse(run.COMMAND, ["run", *TINY, f"--out={OUT}"])
    folder = run.folder_of(request)
    with new_mirror(folder) as mirror:
        (mirror.local / "environment.json").write_text('{"source_hash": "a"}')
        make_checkpoint(mirror.local, 3)
        if finished:
            (mirror.local / "summary.json").write_text("{}")
    before = {name: bucket.store[f"/bucket/runs/{name}"].getvalue() for name in bucket.names()}
    with pytest.raises(errors.UserError, match="--fresh to start anew"):
        code_identity.settle(request, folder)
    code_identity.settle(dataclasses.replace(request, accept_code=True), folder)
    shown = finished and "shown_with" in (folder / "environment.json").read_text()
    assert shown == finished
    (folder / "environment.json").write_text('{"source_hash": "a"}')
    code_identity.settle(dataclasses.replace(request, fresh=True), folder)
    where = folder.relative_to(remote.path(OUT)).as_posix()
    aside = where.replace(folder.name, f"replaced/{folder.name}_1")
    moved = {name.replace(where, aside): content for name, content in before.items()}
    assert set(bucket.names()) == set(moved)
    for name, content in moved.items():
        assert bucket.store[f"/bucket/runs/{name}"].getvalue() == content
    assert not code_identity.begun(folder)
    with new_mirror(folder) as mirror:  # what this machine still had of it is no start
        assert not remote.steps_in(mirror.local)
        make_checkpoint(mirror.local, 1)
    assert code_identity.put_aside(folder).name == f"{folder.name}_2"


def test_a_store_that_cannot_be_written_is_one_line_before_any_work(bucket, tmp_path, capsys):
    bucket.broken = True
    arguments = ["run", *TINY, f"--out={OUT}", f"--data={tmp_path / 'data'}"]
    assert main(run.COMMAND, arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "pass another --out" in line and OUT in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "command,arguments,part",
    [
        (run.COMMAND, "--data=gs://bucket/data", "datasets are mapped into memory"),
        (run.COMMAND, "--out=ftp://host/runs", "unknown kind (ftp://)"),
        (run.COMMAND, "--out=s3://bucket/runs", "needs the package s3fs"),
        (report.COMMAND, "--run=s3://bucket/runs", "needs the package s3fs"),
        (gather.COMMAND, "--from=s3://bucket/runs", "needs the package s3fs"),
        (reproduce.COMMAND, "--out=gs://bucket/runs", "pass --to=FOLDER"),
        (render.COMMAND, "--run=gs://bucket/runs/a", "copy the run there"),
    ],
)
def test_urls_that_are_of_no_use_are_one_line(monkeypatch, capsys, command, arguments, part):
    monkeypatch.setattr(remote, "installed", lambda package: False)
    assert main(command, ["x", *arguments.split()]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and part in line


def test_a_grid_is_drawn_here_and_copied_to_the_url(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    request = flags.parse(run.COMMAND, ["run", *TINY, f"--out={OUT}"])
    numbers = {"std": 0.1, "iqm": 1.0, "iqm_ci95": [1, 1], "normalized": 0.1, "per_seed": [1.0] * 2}
    kind = {"task_set": "test", "protocol": "given_context", "metric": "final"}
    entries = [kind | numbers | {"mean": m, "ci95": [m - 0.1, m + 0.1]} for m in (1.0, 2.0)]
    summary = {"results": entries, "failed_seeds": []}
    assert grids.execute(request, lambda _: summary, run.folder_of) == 0
    folder = run.folder_of(request).parent
    (found,) = (path for path in folder.iterdir() if path.name.startswith("grid_"))
    names = sorted(path.name for path in found.iterdir())
    assert names == ["grid.json", "grid.md", "heat_map.png", "heat_map.svg"]
    assert json.loads((found / "grid.json").read_text())["best"] == 1
    assert (found / "heat_map.png").read_bytes().startswith(b"\x89PNG")
    assert f"grid: {found}\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # no folder "gs:"
    bucket.broken = True
    with pytest.raises(errors.UserError, match=r"the store is away.*writes the grid again"):
        grids.execute(request, lambda _: summary, run.folder_of)


def test_clients_are_looked_for():
    assert remote.installed("fsspec") and not remote.installed("no_such_package_here")


@pytest.mark.slow
def test_runs_resume_on_a_fresh_machine_and_are_gathered(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(outputs, "draw", lambda *_: None)
    monkeypatch.setattr(remote, "EVERY", 0.01)
    compiled, compile_all, calls = {}, training.compile_all, []

    def once(task, hooks):  # shards have the same programs
        calls.append(task.run_keys.shape[0])
        compiled[calls[-1]] = compiled.get(calls[-1]) or compile_all(task, hooks)
        return compiled[calls[-1]]

    monkeypatch.setattr(training, "compile_all", once)

    def start(out, *more):
        given = {word.partition("=")[0] for word in more}
        usual = [word for word in TINY if word.partition("=")[0] not in given]
        files = f"--data={tmp_path / 'data'}", f"--out={out}"
        return main(run.COMMAND, ["run", *usual, *files, *more])

    assert start(tmp_path / "plain") == 0
    (plain,) = (path.parent for path in (tmp_path / "plain").rglob("summary.json"))
    folder = remote.path(OUT) / plain.relative_to(tmp_path / "plain").as_posix()
    # interrupted after a step was saved; then the machine is gone
    on_pause, stopped = run.Session.on_pause, []

    def interrupted(self, position, carry, last):
        if position.done < 4:
            return on_pause(self, position, carry, last)
        self.save(position, carry)
        stopped.append(position.done)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Session, "on_pause", interrupted)
        assert start(OUT) != 0
    assert (folder / "config.json").exists() and not (folder / "summary.json").exists()
    shutil.rmtree(tmp_path / "machine")
    capsys.readouterr()
    assert start(OUT) == 0
    text = capsys.readouterr().out
    assert f"resuming after step {stopped[0]} of" in text and f"results: {folder}" in text
    assert not list((tmp_path / "machine").rglob("*.*"))
    check_same_run(folder, plain)
    # a finished run is found, shown, listed and gathered where it is
    trained = len(calls)
    assert start(OUT) == 0 and "finished before" in capsys.readouterr().out
    assert start(OUT, "--seed_offset=2") == 0 and len(calls) == trained + 1
    assert main(report.COMMAND, ["report", f"--run={folder}"]) == 0
    assert main(report.COMMAND, ["report", f"--out={OUT}"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert main(gather.COMMAND, ["gather", f"--from={OUT}", "--num_runs=8"]) == 0
    assert start(OUT, "--num_seeds=4") == 0 and "finished before" in capsys.readouterr().out
    # two processes gathered are the run of both: a CPU takes runs in turn, none sees the others
    assert start(tmp_path / "whole", "--num_seeds=4") == 0
    (whole,) = (path.parent for path in (tmp_path / "whole").rglob("summary.json"))
    merged = remote.path(OUT) / whole.relative_to(tmp_path / "whole").as_posix()
    check_same_run(merged, whole)
    assert json.loads((merged / "summary.json").read_text())["shards"][0]["folder"] == str(folder)
    assert not list(pathlib.Path().glob("gs:*"))


def check_same_run(folder, wanted):
    """Every array bit by bit, every metric line, every number of the table."""
    for name in ("returns.npz", "costs.npz", "embeddings.npz", "rollouts.npz"):
        found, expected = (gather.load(gather.read_shard(path), name) for path in (folder, wanted))
        assert set(found) == set(expected)
        for key in expected:
            assert found[key].tobytes() == expected[key].tobytes(), key
    assert (folder / "metrics.jsonl").read_text() == (wanted / "metrics.jsonl").read_text()
    results = lambda path: json.loads((path / "summary.json").read_text())["results"]
    assert results(folder) == results(wanted)
