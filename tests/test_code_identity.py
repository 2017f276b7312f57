"""Runs of other code than that here: refused, put aside, or taken as they are and recorded."""

import json

import pytest

from experiments import report, reproduce, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import code_identity, environments, grids
from gentle_jax import storage
from tests.test_report import make_summary

OLD, NOW, NEXT = "a" * 16, "b" * 16, "c" * 16
SMOKE = ("--preset=smoke", "--num_seeds=1")
PRESENT = code_identity.present.__wrapped__  # neither stubbed nor cached

pytestmark = pytest.mark.usefixtures("no_cache")


class Runs:
    """A run folder, and what was trained in it: training itself is played."""

    def __init__(self, out):
        self.line = ["run", *SMOKE, f"--out={out}"]
        self.request = flags.parse(run.COMMAND, self.line)
        self.folder = run.folder_of(self.request)
        self.trained = []  # whether there was something to go on from

    def begin(self, code, finished, **more):
        """Makes the folder as an earlier command left it. Args: code, its source hash, or None."""
        self.folder.mkdir(parents=True)
        environment = {"commit": None, **more} | ({"source_hash": code} if code else {})
        storage.write_json(self.folder / "environment.json", environment)
        (self.folder / "checkpoints" / "100").mkdir(parents=True)
        (self.folder / "checkpoints" / "100" / "state").write_text("trained for long")
        if finished:
            storage.write_json(self.folder / "summary.json", make_summary())

    def train(self, request, folder, hits, tell=None, track=None):
        self.trained.append(code_identity.begun(folder))
        environments.write(folder, request.config.run)
        return make_summary()

    def command(self, *arguments):
        return main(run.COMMAND, [*self.line, *arguments])

    def environment(self):
        return json.loads((self.folder / "environment.json").read_text())

    def files(self, folder=None):
        folder = folder or self.folder
        return {p.relative_to(folder): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    made = Runs(tmp_path / "runs")
    monkeypatch.setattr(run, "train", made.train)
    here(monkeypatch, NOW)
    return made


def here(monkeypatch, code):
    """The code that is here has this hash."""
    monkeypatch.setattr(code_identity, "present", lambda *_: code)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("code", [OLD, None])
def test_other_code_is_refused_in_one_line_and_nothing_changes(runs, capsys, code, finished):
    runs.begin(code, finished)
    before = runs.files()
    assert runs.command() == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {runs.folder} ") and shown.err.count("\n") == 1
    for part in ("--fresh", "--accept_code", NOW, code or "no source hash"):
        assert part in shown.err
    assert ("show its table" if finished else "go on with") in shown.err
    assert "-4.50" not in shown.out and not runs.trained and runs.files() == before


@pytest.mark.parametrize("flag", [(), ("--fresh",), ("--accept_code",)])
@pytest.mark.parametrize("finished", [True, False])
def test_the_same_code_goes_on_whatever_the_flags(runs, capsys, finished, flag):
    runs.begin(NOW, finished)
    assert runs.command(*flag) == 0
    text = capsys.readouterr().out
    assert runs.trained == ([] if finished else [True])
    assert "-4.50" in text and "other code" not in text and "the code" not in text
    assert not (runs.folder.parent / "replaced").exists()
    assert ("run: --fresh changes nothing: " in text) == ("--fresh" in flag)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("code", [OLD, None])
def test_fresh_puts_the_old_run_aside_and_starts_anew(runs, capsys, monkeypatch, code, finished):
    runs.begin(code, finished)
    before = runs.files()
    assert runs.command("--fresh") == 0
    aside = runs.folder.parent / "replaced" / f"{runs.folder.name}_1"
    assert runs.trained == [False] and runs.files(aside) == before
    text = capsys.readouterr().out
    assert f"starting anew, the old run is in {aside}" in text
    assert runs.environment()["source_hash"] == NOW and "resumed_with" not in runs.environment()
    # given again it resumes what it has begun; after the next change both are kept
    (runs.folder / "checkpoints" / "7").mkdir(parents=True)
    assert runs.command("--fresh") == 0 and runs.trained == [False, True]
    here(monkeypatch, NEXT)
    assert runs.command("--fresh") == 0 and runs.trained == [False, True, False]
    assert runs.files(aside) == before
    assert (aside.with_name(f"{runs.folder.name}_2") / "checkpoints" / "7").exists()


def test_fresh_waits_for_a_process_that_works_there(runs, capsys):
    runs.begin(OLD, False)
    with run.computer.alone(runs.folder):
        assert runs.command("--fresh") == 2
    assert "another process works in" in capsys.readouterr().err
    assert (runs.folder / "checkpoints" / "100" / "state").exists() and not runs.trained


def test_an_old_table_is_shown_where_it_is_accepted_and_that_is_recorded(runs, capsys):
    runs.begin(OLD, True)
    before = runs.files()
    for _ in range(2):
        assert runs.command("--accept_code") == 0
        text = capsys.readouterr().out
        assert "-4.50" in text and f"this table is of other code ({OLD}) than that here" in text
    environment = runs.environment()
    assert [shown["source_hash"] for shown in environment["shown_with"]] == [NOW]
    assert environment["source_hash"] == OLD and not runs.trained
    changed = {str(p) for p, text in runs.files().items() if before.get(p) != text}
    assert changed == {"environment.json"}
    assert runs.command() == 2  # it is not the table of this code for that


def test_an_interrupted_run_goes_on_where_it_is_accepted_and_that_is_recorded(
    runs, capsys, monkeypatch
):
    runs.begin(OLD, False)
    assert runs.command("--accept_code") == 0 and runs.trained == [True]
    assert f"going on with other code ({NOW}) than before ({OLD})" in capsys.readouterr().out
    environment = runs.environment()
    assert environment["source_hash"] == OLD
    assert [later["source_hash"] for later in environment["resumed_with"]] == [NOW]
    # it has been accepted: the same code resumes, and every command tells that two had a part
    assert runs.command() == 0 and runs.trained == [True, True]
    assert f"{OLD} and {NOW} had a part in this run" in capsys.readouterr().out
    assert len(runs.environment()["resumed_with"]) == 1
    # back to the first one: recorded too
    here(monkeypatch, OLD)
    assert runs.command() == 0
    hashes = [later["source_hash"] for later in runs.environment()["resumed_with"]]
    assert hashes == [NOW, OLD]
    here(monkeypatch, NEXT)
    assert runs.command() == 2 and len(runs.trained) == 3


def test_a_run_that_has_trained_nothing_yet_takes_the_code_that_is_here(runs, capsys):
    """A mistake that ends the first try, and its correction, are no change on the way."""
    runs.begin(OLD, False, resumed_with=[{"source_hash": NEXT}])
    (runs.folder / "checkpoints" / "100" / "state").unlink()
    (runs.folder / "checkpoints" / "100").rmdir()
    assert runs.command() == 0 and runs.trained == [False]
    assert runs.environment()["source_hash"] == NOW and "resumed_with" not in runs.environment()


def test_both_flags_are_refused(runs, capsys):
    assert runs.command("--fresh", "--accept_code") == 2
    line = capsys.readouterr().err
    assert "--fresh and --accept_code are both given" in line and line.count("\n") == 1
    assert not runs.trained and not runs.folder.exists()


def test_environment_json_has_version_and_hash_and_no_path(runs, monkeypatch):
    monkeypatch.undo()  # the hash of the sources themselves
    runs.folder.mkdir(parents=True)
    environments.write(runs.folder, runs.request.config.run)
    environment = runs.environment()
    assert environment["version"] == run.code_identity.gentle_jax.__version__
    assert int(environment["source_hash"], 16) >= 0 and len(environment["source_hash"]) == 16
    text = (runs.folder / "environment.json").read_text()
    assert str(run.computer.pathlib.Path(run.__file__).parent.parent) not in text


def test_report_says_which_rows_come_from_other_code(runs, tmp_path, capsys):
    runs.begin(OLD, True)
    out = tmp_path / "runs"
    assert main(report.COMMAND, ["report", f"--out={out}"]) == 0
    text = capsys.readouterr().out
    line = f"Other code than that here made 1 of 1 run(s): {runs.folder.name}."
    assert text.splitlines()[-1] == line and "-4.50" in text
    for one in (runs.folder, runs.folder / "summary.json"):
        assert main(report.COMMAND, ["report", f"--run={one}", "--markdown"]) == 0
        assert line in capsys.readouterr().out.splitlines()
    storage.write_json(runs.folder / "environment.json", {"source_hash": NOW})
    assert main(report.COMMAND, ["report", f"--out={out}"]) == 0
    assert "Other code" not in capsys.readouterr().out
    # runs that were put aside are no rows
    code_identity.put_aside(runs.folder)
    assert main(report.COMMAND, ["report", f"--out={out}"]) == 2


def test_a_run_of_an_algorithm_that_is_gone_comes_from_other_code():
    assert PRESENT("no_such", "td3_bc", "point_robot", ()) is None


def test_a_module_without_a_source_file_is_of_unknown_code(runs, monkeypatch, capsys):
    monkeypatch.setattr(
        code_identity.provenance, "entries", lambda *_: ("gentle_jax.config", "no_such_module")
    )
    here(monkeypatch, PRESENT("focal", "td3_bc", "point_robot", ()))
    runs.begin(None, True)
    assert runs.command() == 2  # two unknown ones are not known to be the same
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "than that here (no source hash)" in line
    assert code_identity.note([(runs.folder, None)]) is not None


def test_environment_json_has_the_code_of_the_data(runs):
    runs.folder.mkdir(parents=True)
    made = {"identity": {}, "source_hash": OLD, "resumed_with": [{"source_hash": NEXT}]}
    environments.write(runs.folder, runs.request.config.run, made)
    assert runs.environment()["data_source_hash"] == f"{OLD} and {NEXT}"
    imported = {"identity": {"source": {"format": "focal"}}}
    environments.write(runs.folder, runs.request.config.run, imported)
    assert "data_source_hash" not in runs.environment()


def test_a_grid_says_which_programs_come_from_other_code(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grids, "write", lambda *_: None)
    monkeypatch.setattr(grids, "cells", lambda *_: ([{"at": {"num_codes": 2}, "run": "x"}], "all"))
    line = [*runs.line, "--sweep=num_codes=2,4"]
    request = flags.parse(run.COMMAND, line)
    first, second = (run.folder_of(program) for _, program in grids.programs(request))
    for folder, code in ((first, NOW), (second, OLD)):
        folder.mkdir(parents=True)
        storage.write_json(folder / "environment.json", {"source_hash": code})
        storage.write_json(folder / "summary.json", make_summary())
    grids.show(request, [first, second], [make_summary()] * 2)
    note = f"Other code than that here made 1 of 2 run(s): {second.name}."
    assert note in capsys.readouterr().out
    grids.show(request, [first, second], [make_summary(), None])  # it was refused
    assert "Other code" not in capsys.readouterr().out


def test_a_table_says_which_cells_come_from_other_code(tmp_path, monkeypatch, capsys):
    here(monkeypatch, NOW)
    monkeypatch.setattr(reproduce.computer, "start", lambda **_: None)
    monkeypatch.setattr(run, "execute", lambda request: make_summary())
    cells = reproduce.cells_of("components", ["--preset=smoke"])
    folder = run.folder_of(cells["release", "point_robot"].request)
    folder.mkdir(parents=True)
    storage.write_json(folder / "environment.json", {"source_hash": OLD})
    storage.write_json(folder / "summary.json", make_summary())
    line = ["reproduce", "--preset=smoke", "--rows=paper equations", "--envs=point_robot"]
    assert main(reproduce.COMMAND, line) == 0
    note = f"Other code than that here made 1 of 2 run(s): {folder.name}."
    assert note in capsys.readouterr().out.splitlines()
    (table,) = tmp_path.rglob("components.md")
    assert note in table.read_text().splitlines()
