"""`experiments.report` and `experiments.reproduce`: which runs they show, and what they refuse."""

import itertools
import json
import shlex

import pytest

from experiments import report, reproduce, run
from experiments.cli import flags
from experiments.cli.command import main
from experiments.runs import cells, code_identity, outputs
from experiments.show import tables
from gentle_jax import errors

ENTRY = {
    "task_set": "test", "metric": "final", "step": 20, "mean": -4.5, "std": 0.1,
    "ci95": [-4.75, -4.25], "iqm": -4.5, "normalized": 0.9, "per_seed": [-4.4, -4.6], "paper": None,
}  # fmt: skip
NATIVE = "random_then_policy"


def make_summary(**changes):
    entries = [ENTRY | {"protocol": p} for p in (NATIVE, "given_context")]
    entries[1] |= {"normalized": 0.95, "mean": -4.2}
    plain = {
        "algorithm": "ctmrl", "backbone": "brac_sac", "env": "point_robot", "suite": "ctmrl",
        "physics": "exact", "preset": "quick", "fidelity": "paper", "num_seeds": 2, "num_steps": 20,
        "protocols": [NATIVE, "given_context"], "results": entries,
        "seconds": {"train": 1.0, "total": 2.0}, "seed_steps_per_second": 3.0, "failed_seeds": [],
    }  # fmt: skip
    return plain | changes


def store(folder, summary):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    environment = {"source_hash": code_identity.hash_of(summary)}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture
def runs(tmp_path):
    """A root with three runs."""
    store(tmp_path / "ctmrl/point_robot/ctmrl/a", make_summary())
    store(tmp_path / "ctmrl/point_robot/ctmrl/b", make_summary(fidelity="release", num_steps=7))
    other = make_summary(suite="gentle", algorithm="gentle", protocols=["given_context"])
    store(tmp_path / "gentle/point_robot/gentle/c", other)
    return tmp_path


def shown(capsys, *arguments, command=report.COMMAND, name="report"):
    """Runs the command; returns (exit code, stdout, stderr)."""
    code = main(command, [name, *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_list_has_each_runs_own_protocol(capsys, runs):
    code, out, _ = shown(capsys, f"--out={runs}")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 + 3
    assert NATIVE in lines[2] and "0.900" in lines[2] and "0.950" not in lines[2]
    assert "given_context" in lines[4] and "0.950" in lines[4]


@pytest.mark.parametrize(
    "arguments,kept",
    [
        (["--algo=gentle"], ["c"]),
        (["--fidelity=release"], ["b"]),
        (["--num_steps=20", "--suite=ctmrl"], ["a"]),
        (["--preset=quick"], ["a", "b", "c"]),
    ],
)
def test_flags_choose_runs(capsys, runs, arguments, kept):
    _, out, _ = shown(capsys, f"--out={runs}", *arguments)
    assert [line.rsplit("/", 1)[1] for line in out.splitlines()[2:]] == kept


def test_markdown_of_the_list_and_of_a_run(capsys, runs):
    _, out, _ = shown(capsys, f"--out={runs}", "--markdown")
    assert out.count("\n| ") == 1 + 3 and out.startswith("| algorithm |")
    folder = runs / "ctmrl/point_robot/ctmrl/a"
    _, out, _ = shown(capsys, f"--run={folder}", "--markdown")
    assert out == tables.markdown(make_summary()["results"]) + "\n"
    for path in (folder, folder / "summary.json"):
        _, out, _ = shown(capsys, f"--run={path}")
        assert "results: " in out and "-4.50" in out


@pytest.mark.parametrize("arguments", ["--sweep=lr=1", "--run=x --algo=ctmrl", "--seed_offset=3"])
def test_flags_that_choose_nothing_are_refused(capsys, runs, arguments):
    code, _, err = shown(capsys, f"--out={runs}", *arguments.split())
    assert code == 2 and "report does not use --" in err and err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"algorithm": "ctmrl"}', "not json"])
def test_a_damaged_summary_is_one_line(capsys, tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_text(content)
    code, _, err = shown(capsys, f"--run={tmp_path}")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert "is not the summary of a run" in err


@pytest.mark.parametrize("place", ["absent", "file/inside", "x" * 300, "empty"])
def test_no_run_there_is_one_line(capsys, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for flag in ("--run", "--out"):
        code, _, err = shown(capsys, f"{flag}={tmp_path / place}")
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Stands in for the runs of a table: [(row's flags, env)] of those that would be run."""
    found = []

    def execute(request):
        found.append(request)
        number = len(found)
        summary = make_summary(env=request.config.run.env)
        for entry in summary["results"]:
            entry["normalized"] = number / 100
        store(run.folder_of(request), summary)
        return summary

    monkeypatch.setattr(run, "execute", execute)
    monkeypatch.setattr(reproduce.computer, "start", lambda **_: None)
    monkeypatch.setattr(reproduce.computer, "on_accelerator", lambda: False)
    monkeypatch.chdir(tmp_path)
    return found


def reproduced(capsys, *arguments):
    return shown(capsys, *arguments, command=reproduce.COMMAND, name="reproduce")


def test_a_table_runs_the_chosen_cells_and_takes_finished_ones(capsys, executed, tmp_path):
    chosen = ("--rows=release", "--envs=point_robot", "--preset=quick")
    code, out, _ = reproduced(capsys, *chosen)
    assert code == 0 and len(executed) == 1
    assert executed[0].config.run.fidelity == "release"
    rows = [line for line in out.splitlines() if line.startswith("| release")]
    assert rows[0].count("0.010") == 2 and rows[0].count("| - ") == 4
    # another row: the first one is finished and is in the table again, in the table's order
    code, out, _ = reproduced(capsys, "--rows", "paper equations", *chosen[1:])
    assert code == 0 and len(executed) == 2
    names = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert names == ["row", "paper equations", "release"]
    stored = json.loads((tmp_path / "runs/tables/components.json").read_text())
    assert {(c["row"], c["env"]) for c in stored["cells"]} == {
        ("release", "point_robot"), ("paper equations", "point_robot"),
    }  # fmt: skip
    assert (tmp_path / "runs/tables/components.md").read_text().startswith("| row | point_robot")


def test_files_and_caption_of_a_table_tell_which_backbone_it_is_of(
    capsys, executed, tmp_path, monkeypatch
):
    chosen = ("--table=components", "--rows=release", "--envs=point_robot", "--preset=quick")
    assert reproduced(capsys, *chosen)[0] == 0
    folder = tmp_path / "runs/tables"
    first = (folder / "components.md").read_text()
    assert "suite ctmrl, backbone brac_sac." in first
    monkeypatch.setattr(run, "execute", lambda _: make_summary(backbone="iql"))
    code, out, _ = reproduced(capsys, *chosen, "--backbone=iql")
    assert code == 0 and "components_iql.md" in out.splitlines()[-1]
    assert (folder / "components.md").read_text() == first
    assert "suite ctmrl, backbone iql." in (folder / "components_iql.md").read_text()
    device = "2 x cpu (Some CPU, model 7, avx2)"
    monkeypatch.setattr(run, "execute", lambda _: make_summary(device=device))
    assert reproduced(capsys, *chosen)[0] == 0
    assert f"backbone brac_sac; on {device}." in (folder / "components.md").read_text()
    stored = json.loads((folder / "components_iql.json").read_text())
    assert stored["table"] == "components" and stored["cells"][0]["backbone"] == "iql"
    # td3_bc is what the preset has for one of two environments: no other name, and both are told
    made = {("ctmrl", env): make_summary(env=env, backbone=name, preset="quick")
            for env, name in (("ant_goal", "td3_bc"), ("point_robot", "brac_sac"))}  # fmt: skip
    for entry in (entry for summary in made.values() for entry in summary["results"]):
        entry["normalized_ci95"] = [0.1, 0.2]
    text = reproduce.write("families", made, folder)
    assert "backbone brac_sac (point_robot); suite ctmrl, backbone td3_bc (ant_goal)" in text
    assert (folder / "families.md").exists()


@pytest.mark.parametrize("place", ["run now", "finished before"])
def test_the_code_of_a_table_tells_of_seeds_that_diverged(
    capsys, executed, tmp_path, monkeypatch, place
):
    chosen = ("--rows=release", "--envs=point_robot", "--preset=quick")
    failed = make_summary(failed_seeds=[{"seed": 1}])
    if place == "run now":
        monkeypatch.setattr(run, "execute", lambda _: failed)
    else:
        other = reproduce.cells_of("components", ["--preset=quick"])
        store(run.folder_of(other["paper equations", "point_robot"].request), failed)
    code, out, err = reproduced(capsys, *chosen)
    assert code == 3 and not err and "table: " in out
    assert (tmp_path / "runs/tables/components.json").exists()


def test_the_list_names_every_table(capsys, executed):
    code, out, _ = reproduced(capsys, "--list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(reproduce.TABLES)
    assert not executed


def test_shards_share_out_the_cells_and_the_last_one_has_the_whole_table(
    capsys, executed, tmp_path
):
    table = ("--table=gentle", "--preset=smoke")
    rows = list(reproduce.TABLES["gentle"].rows)
    for number in (1, 2):
        assert reproduced(capsys, *table, f"--shard={number}/2")[0] == 0
    assert len(executed) == len(rows) == 3  # each of them once
    text = (tmp_path / "runs/tables/gentle.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in text[2:5]] == rows
    code, out, _ = reproduced(capsys, *table, "--rows=paper", "--shard=2/2")
    assert code == 0 and "gentle.md" in out  # no cell of its own, but finished ones of others
    assert len(executed) == 3


def test_what_other_shards_finish_meanwhile_is_in_the_table(
    capsys, executed, tmp_path, monkeypatch
):
    table, rows = ("--table=gentle", "--preset=smoke"), list(reproduce.TABLES["gentle"].rows)
    found = reproduce.cells_of("gentle", ["--preset=smoke"])

    def execute(request):  # the second of three ends while the last one runs
        store(run.folder_of(found[rows[1], "point_robot"].request), make_summary())
        return make_summary()

    monkeypatch.setattr(run, "execute", execute)
    assert reproduced(capsys, *table, "--shard=3/3")[0] == 0
    text = (tmp_path / "runs/tables/gentle.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in text[2:4]] == rows[1:]


def test_a_cell_that_can_never_run_is_left_out_and_the_others_go_on(capsys, executed):
    chosen = ("--table=ctmrl_table3", "--envs=point_robot", "--preset=smoke")
    rows = ("--rows=N = 64, ctmrl", "--rows=N = 2, ctmrl")
    code, out, _ = reproduced(capsys, *chosen, *rows, "--dry_run")
    assert code == 0 and "1 missing, 1 impossible" in out and "expected 2 to" in out
    code, out, _ = reproduced(capsys, *chosen, *rows)
    assert code == 0 and out.count("left out: ") == 1
    assert [request.config.algo.num_codes for request in executed] == [2]


def test_what_a_command_that_fails_has_finished_is_in_its_table(
    capsys, executed, tmp_path, monkeypatch
):
    count = iter(range(3))

    def execute(request):
        if next(count) == 1:
            raise errors.UserError("the disk is full")
        return make_summary()

    monkeypatch.setattr(run, "execute", execute)
    code, _, err = reproduced(capsys, "--table=gentle", "--preset=smoke")
    assert code == 2 and err == "error: the disk is full\n"
    assert "| release |" in (tmp_path / "runs/tables/gentle.md").read_text()


def test_a_table_of_a_paper_has_its_number_of_seeds():
    for table, seeds in (("ctmrl_table1", 6), ("gentle_table1", 8)):
        for words, wanted in (([], seeds), (["--num_seeds=3"], 3), (["--num_seeds", "4"], 4)):
            found = reproduce.cells_of(table, ["--preset=smoke", *words])
            assert {c.request.config.run.num_seeds for c in found.values()} == {wanted}


def test_a_shard_without_any_cell_says_so(capsys, executed):
    code, out, _ = reproduced(capsys, "--table=gentle", "--preset=smoke", "--shard=9/9")
    assert code == 0 and "nothing to do" in out and not executed


def test_a_dry_run_tells_states_times_and_commands_and_runs_nothing(
    capsys, executed, tmp_path, monkeypatch
):
    chosen = ("--table=gentle", "--preset=smoke", "--num_seeds=4")
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "none")
    code, out, _ = reproduced(capsys, *chosen, "--dry_run")
    assert code == 0 and "3 missing; minutes not known: nothing alike has run" in out
    found = reproduce.cells_of("gentle", chosen[1:])
    monkeypatch.setattr(cells.code_identity, "recorded", lambda _: {"now"})
    monkeypatch.setattr(cells.code_identity, "of", lambda _: {cells.code_identity.HASH: "now"})
    release, paper, _ = (run.folder_of(cell.request) for cell in found.values())
    spent = {"collect": 300.0, "compile": 60.0, "train": 120.0, "evaluate": 60.0, "total": 540.0}
    done = make_summary(algorithm="gentle", suite="gentle", env="point_robot", preset="smoke",
                        backbone="td3_bc", num_seeds=2, num_steps=10, seconds=spent)  # fmt: skip
    store(release, done)
    (paper / "checkpoints/100").mkdir(parents=True)
    (paper / "config.json").write_text('{"train": {"num_steps": 20}}')
    steps = [{"step": 5, "stage": "warmup"}, {"step": 15, "stage": "main"}]  # 10 of 20
    (paper / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    code, out, _ = reproduced(capsys, *chosen, "--dry_run")
    lines = out.splitlines()
    # 20 steps of 4 seeds after 10 of 2: 1 + 4 * 2 + 2 minutes, and 5 for the data, once
    assert [line.split()[:3] for line in lines[:6:2]] == [
        ["finished", "0", "min"], ["resumable", "8", "min"], ["missing", "11", "min"],
    ]  # fmt: skip
    assert "3 cells: 1 finished, 1 resumable, 1 missing; about 19 minutes" in lines[6]
    again = shlex.split(lines[5])
    assert again[:3] == ["python", "-m", "experiments.run"]
    assert flags.parse(run.COMMAND, again[2:]).config == list(found.values())[2].request.config
    monkeypatch.setattr(cells.code_identity, "recorded", lambda _: {"before"})
    code, out, _ = reproduced(capsys, *chosen, "--dry_run")
    assert "1 missing, 2 other code" in out
    assert not executed


@pytest.mark.parametrize("form", ["--table=gentle", "--table gentle"])
def test_settings_of_the_tables_own_algorithm(capsys, executed, form):
    code, _, err = reproduced(
        capsys, *form.split(), "--preset=smoke", "--config.algo.relabel_every=7"
    )
    assert code == 0, err
    assert {r.config.algo.relabel_every for r in executed} == {7}
    assert len(executed) == len(reproduce.TABLES["gentle"].rows)


@pytest.mark.parametrize(
    "argument,part",
    [
        ("--table=component", "did you mean 'components'"),
        ("--rows=relase", "did you mean 'release'"),
        ("--envs=ant_dir", "expected one of"),
        ("--algo=gentle", "reproduce does not use --algo: it is set by the rows"),
        ("--env=point_robot", "is set by the rows"),
        ("--config.algo.use_kmeans=True", "is set by the rows of table 'components'"),
        ("--sweep=lr=1,2", "reproduce does not use --sweep"),
        ("--nonsense=1", "'nonsense'"),
        ("--num_seeds=0", "at least 1"),
        ("--to=/proc/nope", "pass another --to"),
        ("--shard=3/2", "--shard is 3/2: expected K/N"),
        ("--shard=0/2", "expected K/N with 1 <= K <= N"),
        ("--shard=half", "such as --shard=1/4"),
        ("--shard=²/3", "expected K/N"),
        ("--config.train.rl_data=9:10", "train.rl_data is 9:10: expected FIRST:END"),
        ("--page=/", "--page is /: expected a file"),
        ("--page=gs://bucket/page.md", "expected a file of this machine"),
        ("--multihost", "reproduce does not use --multihost"),
        ("--multihost=true", "reproduce does not use --multihost"),
    ],
)
def test_bad_input_of_a_table_is_one_line_before_any_run(capsys, executed, argument, part):
    sizes = [] if argument.startswith("--page") else ["--preset=smoke"]
    code, _, err = reproduced(capsys, *sizes, argument)
    assert code == 2 and part in err and err.count("\n") == 1
    assert not executed


def test_every_cell_of_every_table_resolves():
    for table in reproduce.TABLES:
        found = reproduce.cells_of(table, ["--preset=quick"])
        rows, envs = reproduce.TABLES[table].rows, reproduce.TABLES[table].envs
        assert set(found) == set(itertools.product(rows, envs))
        # sparse contexts are drawn over the whole history anyway: that row is its first one
        found.pop(("contexts from the whole history", "sparse_point_robot"), None)
        assert len({outputs.json.dumps(run.identity(c.request)) for c in found.values()}) == len(
            found
        )


def test_the_list_has_the_best_first_among_those_that_can_be_compared(capsys, tmp_path):
    for name, level in (("lost", float("nan")), ("a", 0.1), ("b", 0.9)):
        summary = make_summary(algorithm=name)
        summary["results"] = [e | {"normalized": level} for e in summary["results"]]
        store(tmp_path / "ctmrl" / "point_robot" / name / "0123456789ab", summary)
    assert main(report.COMMAND, ["report", f"--out={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if line.startswith(("a ", "b ", "lost "))]
    assert names == ["b", "a", "lost"]


def test_an_environment_of_another_suite_chooses_runs_too(capsys, tmp_path):
    path = tmp_path / "gentle" / "cheetah_dir" / "focal" / "0123456789ab"
    store(path, make_summary(algorithm="focal", env="cheetah_dir", suite="gentle"))
    assert main(report.COMMAND, ["report", f"--out={tmp_path}", "--env=cheetah_dir"]) == 0
    assert "cheetah_dir" in capsys.readouterr().out
    assert main(report.COMMAND, ["report", f"--out={tmp_path}", "--env=none"]) == 2
    flags = ("--env=cheetah_dir", "--suite=ctmrl")
    assert main(report.COMMAND, ["report", f"--out={tmp_path}", *flags]) == 2
    assert "is not in suite 'ctmrl'" in capsys.readouterr().err
