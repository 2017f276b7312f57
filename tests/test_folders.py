"""Folders that several processes share, homes that are missing, repositories that are not ours."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from benchmarks import robustness
from experiments import gather, report
from experiments.cli import flags
from experiments.cli.command import Command, main
from experiments.host import computer, switches
from experiments.runs import code_identity, outputs, remote
from gentle_jax import errors, json_files, storage
from tests.test_gather import make_run
from tests.test_report import make_summary

SECONDS, PROCESSES = 1.0, 4
ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_processes_are_never_inside_together_and_a_good_folder_is_never_refused(tmp_path):
    entries, doubles, refused = robustness.compete(tmp_path / "runs", SECONDS, PROCESSES)
    assert entries > 10 and (doubles, refused) == (0, 0)
    assert not list((tmp_path / "runs").iterdir())


def refused(folder, part):
    with pytest.raises(errors.UserError, match=part), computer.alone(folder):
        pass


def test_a_lock_of_a_folder_that_was_moved_is_not_the_one_of_its_place(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with computer.alone(folder):
        folder.rename(tmp_path / "aside")
        folder.mkdir()
        with computer.alone(folder):
            refused(folder, "another process works in")
        (folder / ".lock").write_text("of another process that has just come")
    assert (folder / ".lock").exists()
    refused(tmp_path / "never", "is gone, another process has moved it")


def test_who_waits_for_a_folder_says_so_once_and_gets_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(computer, "PAUSE", 0.01)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with computer.alone(tmp_path):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(60)
    threading.Timer(0.2, leave.set).start()
    with computer.alone(tmp_path, "waiting for the other one"):
        assert leave.is_set()
        refused(tmp_path, "another process works in")
    thread.join()
    assert capsys.readouterr().out == "waiting for the other one\n"


@pytest.mark.parametrize(
    "cache,home,wanted",
    [
        ("/c", "/h", "/c/gentle_jax"),
        ("", "/h", "/h/.cache/gentle_jax"),
        ("relative", "/h", "/h/.cache/gentle_jax"),
        ("", "~", None),  # no HOME, and no entry for the user
    ],
)
def test_the_cache_is_in_a_folder_of_its_own_or_nowhere(
    monkeypatch, tmp_path, capsys, cache, home, wanted
):
    under = lambda path: path and path.replace("/", f"{tmp_path}/", 1)
    cache, wanted = under(cache), under(wanted)
    home = under(home)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(computer.os.path, "expanduser", lambda _: home)
    updates = []
    monkeypatch.setattr(computer.jax.config, "update", lambda *pair: updates.append(pair))
    computer.enable_compile_cache()
    if wanted is None:
        assert not updates and "set XDG_CACHE_HOME" in capsys.readouterr().out
        with pytest.raises(errors.UserError, match="set XDG_CACHE_HOME"):
            remote.work_folder("gs://b/r")
    else:
        assert updates[0] == ("jax_compilation_cache_dir", f"{wanted}/xla")
        assert str(remote.work_folder("gs://b/r")).startswith(f"{wanted}/work/")


def test_a_cache_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(computer.jax.config, "update", pytest.fail)
    computer.enable_compile_cache()
    assert capsys.readouterr().out == (
        "compile: /dev/null/cache/gentle_jax cannot be written (Not a directory), so nothing is "
        "kept: set XDG_CACHE_HOME to a folder that can\n"
    )


@pytest.mark.slow
def test_other_folders_other_letters_and_a_home_that_cannot_be_written(tmp_path):
    where = tmp_path / "Größe und ñandú" / "x y"
    where.mkdir(parents=True)
    names = {"HOME": "/dev/null", "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    unset = ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR")
    env = {k: v for k, v in os.environ.items() if k not in unset} | names

    def command(*words):
        words = [sys.executable, "-m", "experiments", *words]
        done = subprocess.run(words, cwd=where, env=env, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = command(
        "run", "--algo=focal", "--preset=smoke", "--num_seeds=1", "--protocol=given_context",
        "--data=données", "--out=läufe 1",
    )  # fmt: skip
    assert shown.startswith("compile: /dev/null/.cache/gentle_jax cannot be written")
    (folder,) = re.findall(r"^results: (läufe 1/.+)$", shown, re.M)
    command("report", f"--run={folder}", "--html=Übersicht 1.html")
    assert (where / "Übersicht 1.html").stat().st_size > 10_000
    command("render", f"--run={folder}", "--data=données")
    assert list((where / folder / "renders").glob("*.html"))
    command("data", "verify", "--data=données")


def test_every_path_flag_takes_a_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = (("from", str, "", ""), ("shard", list, [], ""), ("to", str, "", ""))
    seen = []
    each = Command("x", "", seen.append, own=own, shared=("data", "out", "events", "algo"))
    words = [f"--{name}=~/{name}" for name in ("from", "shard", "to", "data", "out", "events")]
    assert main(each, ["x", *words, "--algo=~/algo"]) == 0
    (line,) = seen
    for name in ("from", "to"):
        assert line.own[name] == line.given[name] == str(tmp_path / name)
    assert line.own["shard"] == [str(tmp_path / "shard")]
    for name in ("data", "out", "events"):
        assert line.shared[name] == line.given[name] == str(tmp_path / name)
    assert line.shared["algo"] == "~/algo"
    assert main(each._replace(elsewhere=True), ["x", *words]) == 0
    assert seen[1].shared["data"] == "~/data" and seen[1].own["to"] == str(tmp_path / "to")
    for bad, part in (("~no_such_user/x", "home folder is unknown"), ("a\udcff", "UTF-8 text")):
        assert main(each, ["x", f"--out={bad}"]) == 2
        err = capsys.readouterr().err
        assert part in err and err.count("\n") == 1
    assert set(flags.PATHS) >= {"data", "out", "events", "run", "from", "to", "shard"}


def git(*words, at):
    identity = ("-c", "user.name=x", "-c", "user.email=x@y")
    subprocess.run(["git", *identity, *words], cwd=at, check=True, capture_output=True)


def test_only_our_own_repository_has_the_commit(tmp_path, monkeypatch):
    ours = tmp_path / "theirs" / "venv" / "ours"
    here = ours / "experiments" / "host" / "computer.py"
    here.parent.mkdir(parents=True)
    here.write_text("")
    assert computer._commit(here) is None
    git("init", at=tmp_path / "theirs")
    git("commit", "--allow-empty", "-m", "x", at=tmp_path / "theirs")
    assert computer._commit(here) is None  # the environment lies in somebody's repository
    git("init", at=ours)
    assert computer._commit(here) is None  # nothing is committed
    git("commit", "--allow-empty", "-m", "x", at=ours)
    head = computer._commit(here)
    assert len(head) == 40 and int(head, 16)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))  # as in a hook of git's
    assert computer._commit(here) == head
    assert computer.environment()["version"]


@pytest.fixture
def finished(tmp_path):
    """A run folder as its command leaves it, without arrays."""
    folder = tmp_path / "run"
    folder.mkdir()
    storage.write_json(folder / "summary.json", json_files.sealed(make_summary()))
    return folder


def altered(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_summary_that_was_altered_is_no_table(finished, capsys):
    assert main(report.COMMAND, ["report", f"--run={finished}"]) == 0
    assert "-4.50" in capsys.readouterr().out
    altered(finished / "summary.json", "-4.5", "-0.5")
    assert main(report.COMMAND, ["report", f"--run={finished}"]) == 2
    shown = capsys.readouterr()
    assert "does not match its own checksum (altered)" in shown.err and not shown.out


def test_a_table_names_the_device_and_its_processor(capsys):
    outputs.print_table(make_summary(device="2 x cpu (Some CPU, model 7)"), "runs/x")
    assert "on 2 x cpu (Some CPU, model 7): the same seeds" in capsys.readouterr().out
    name = switches.device_text()
    assert switches.processor() in name and " x cpu (" in name


def test_settings_and_environment_that_were_altered_are_refused(tmp_path, capsys):
    run = {"seed_offset": 0, "num_seeds": 2}
    storage.write_json(tmp_path / "config.json", json_files.sealed({"run": run, "sweep": [{}]}))
    storage.write_json(tmp_path / "environment.json", json_files.sealed({"source_hash": "a" * 16}))
    assert gather.read_shard(tmp_path).count == 2
    assert code_identity.recorded(tmp_path) == {"a" * 16}
    altered(tmp_path / "config.json", '"num_seeds": 2', '"num_seeds": 3')
    altered(tmp_path / "environment.json", "aaa", "aba")
    for read in (gather.read_shard, code_identity.recorded):
        with pytest.raises(errors.UserError, match="does not match its own checksum"):
            read(tmp_path)


def test_folders_of_an_older_version_are_called_older(finished, tmp_path):
    summary = {k: v for k, v in make_summary().items() if k != "protocols"}
    storage.write_json(finished / "summary.json", summary)  # that version had no checksum
    with pytest.raises(errors.UserError, match=r"is of an older version .it has no protocols"):
        outputs.read_summary(finished)
    (tmp_path / "meta.json").write_text(json.dumps({"schema": storage.SCHEMA - 1}))
    with pytest.raises(errors.UserError, match=r"a dataset of an older version .schema 1"):
        storage.read_meta(tmp_path)


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    tree = {"a": [1.5, float("nan")], "b": (float("-inf"), True, None), "c": "NaN"}
    storage.write_json(tmp_path / "x.json", tree)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == {"a": [1.5, None], "b": [None, True, None], "c": "NaN"}
    assert str(json_files.with_nan(found["a"])) == "[1.5, nan]"


def test_flipped_bits_of_a_finished_run_are_never_numbers_without_a_word(tmp_path):
    """Checkpoints: tests/test_checkpoint.py; all of it, by hand: benchmarks/robustness.py."""
    folder = make_run(tmp_path, "--num_seeds=2")
    counts, wrong = robustness.flips(folder, None, 60, 0)
    assert not wrong and sum(counts.values()) == 60
    refused = sum(number for (_, found), number in counts.items() if found == robustness.REFUSED)
    assert refused > 40
