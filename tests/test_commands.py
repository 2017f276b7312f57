"""What all commands share: the list of them, `--help`, refused flags, exit codes."""

import ast
import configparser
import itertools
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
import setuptools

from experiments import __main__ as listing
from experiments import collect, run
from experiments.cli import command, exit_codes, flags
from experiments.host import preemption
from experiments.launch import check
from experiments.runs.comparisons import TABLES
from experiments.show import paper_tables
from gentle_jax import assembly, errors, registry
from gentle_jax import config as config_lib

pytestmark = pytest.mark.usefixtures("no_cache")
ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = {name: listing.load(name) for name in listing.NAMES}
# those that read flags: a command of several parts reads none itself
READING = {each.name: each for whole in COMMANDS.values() for each in whole.parts or (whole,)}
SETTINGS = {name: f"config.{name}.key" for name in flags.SECTIONS}


def words_of(each):
    """Returns argv of a command without flags."""
    return ["x", *each.name.split()[1:]]


def stub(each, function):
    """Returns the command, or the whole that it is a part of, with another function."""
    whole = COMMANDS[each.name.split()[0]]
    mine = each._replace(function=function, needed=())
    if not whole.parts:
        return mine
    return whole._replace(parts=tuple(mine if p.name == each.name else p for p in whole.parts))


def test_every_command_is_listed(capsys):
    found = [path.stem for path in (ROOT / "experiments").glob("*.py")]
    found += [path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py")]
    assert set(COMMANDS) == set(listing.NAMES) == set(found) - {"__init__", "__main__"}
    for words in ([], ["--help"], ["-h"]):
        assert listing.run(["x", *words]) == 0
        text = capsys.readouterr().out
        for name, each in COMMANDS.items():
            (line,) = re.findall(rf"^  {name} +(.*)$", text, re.M)
            assert line and each.summary.startswith(line)
        assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "word,part",
    [
        ("colect", "unknown command 'colect'"),
        ("--hlep", "did you mean '--help'"),
        ("colect", "did you mean 'collect'"),
        ("--algo=ctmrl", "unknown command '--algo=ctmrl'"),
    ],
)
def test_an_unknown_argument_of_the_list_is_one_line(capsys, word, part):
    assert listing.run(["x", word]) == exit_codes.USAGE
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and part in err


def test_the_list_runs_a_command(capsys):
    assert listing.run(["x", "collect", "--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m experiments.collect [flags]")
    assert listing.run(["x", "collect", "--algo=ctmrl"]) == exit_codes.USAGE
    assert "collect does not use --algo" in capsys.readouterr().err


def test_the_list_is_a_program():
    found = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0 and found.stdout == listing.listing() + "\n", found.stderr


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_shows_what_the_command_reads_and_nothing_else(capsys, name, word):
    each = READING[name]
    assert command.main(stub(each, None), [*words_of(each), "--algo=nonsense", word]) == 0
    text, err = capsys.readouterr()
    lines = text.splitlines()
    assert not err and len(lines) <= 80 and max(map(len, lines)) <= 100
    assert lines[0] == f"python -m experiments.{name} [flags]"
    own = [flag for flag, *_ in each.own]
    taken = [*own, *(flag for flag in each.shared if not flag.startswith("config."))]
    assert sorted(re.findall(r"^  --(\w+) ", text, re.M)) == sorted(taken)
    assert set(taken) <= {*own, *flags.NAMES}
    sections = re.findall(r"SECTION one of ([a-z\s]+)[;,]", text)
    named = sections[0].replace("and", "").split() if sections else []
    assert [f"config.{section}" for section in named] == [
        entry for entry in each.shared if re.fullmatch(r"config\.\w+", entry)
    ]


@pytest.mark.parametrize("name", READING)
def test_flags_that_a_command_does_not_read_are_refused(capsys, name):
    each = READING[name]
    whole = stub(each, lambda line: pytest.fail(f"took {line.given}"))
    others = [flag for flag in (*flags.NAMES, *SETTINGS.values()) if not flags.takes(each, flag)]
    for flag in [*others, "nonsense"]:
        assert command.main(whole, [*words_of(each), f"--{flag}=1"]) == exit_codes.USAGE
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and flag in err
        if flag != "nonsense":
            assert f"{name} does not use --{flag}: " in err
            assert dict(each.refused).get(flag, "expected some of --") in err
        if flag not in dict(each.refused):
            for allowed in (flag for flag, *_ in each.own):
                assert allowed in err
    assert name == "run" or others


@pytest.mark.parametrize("name", READING)
def test_flags_that_a_command_takes_reach_it(name):
    each, seen = READING[name], []
    values = {str: "3", int: "3", bool: "true", list: "3"}
    entries = [*each.own, *(e for e in flags.ENTRIES if e[0] in each.shared)]
    words = [f"--{flag}={values[kind]}" for flag, kind, *_ in entries]
    words += [f"--{s}" for s in SETTINGS.values() if flags.takes(each, s)]
    assert command.main(stub(each, seen.append), [*words_of(each), *words]) == 0
    (line,) = seen
    expected = {str: "3", int: 3, bool: True, list: ["3"]}
    assert line.given == {flag: expected[kind] for flag, kind, *_ in entries}
    assert line.given == {
        **{f: line.shared[f] for f in each.shared if f in line.shared},
        **line.own,
    }
    assert set(line.shared) == set(flags.NAMES)
    assert len(line.words) == len(words) - len(each.own)


def test_a_misspelt_flag_gets_the_nearest_match_among_those_that_are_taken(capsys):
    for name, word, near in (
        ("run", "--num_sed=1", "'num_seeds'"), ("report", "--markdwon", "'markdown'"),
        ("gather", "--num_steps=3", "--num_seeds"), ("collect", "--num_seed=1", None),
        ("launch", "--num_run=3", "'num_runs'"),
    ):  # fmt: skip
        assert command.main(COMMANDS[name], ["x", word]) == exit_codes.USAGE
        err = capsys.readouterr().err
        assert (f"did you mean {near}" in err) if near else ("num_seeds" not in err)


def test_a_needed_flag_is_asked_for(capsys):
    each = command.Command("x", "", lambda line: 0, own=(("a", str, "", ""),), needed=("a",))
    assert command.main(each, ["x"]) == exit_codes.USAGE
    assert "x needs --a: pass it" in capsys.readouterr().err
    assert command.main(each, ["x", "--a", "1"]) == exit_codes.DONE


def raising(error):
    """Returns a function of a Line that raises."""

    def function(line):
        raise error

    return function


@pytest.mark.parametrize(
    "function,code",
    [
        (lambda line: None, exit_codes.DONE),
        (lambda line: exit_codes.DIVERGED, exit_codes.DIVERGED),
        (raising(errors.UserError("mend it")), exit_codes.USAGE),
        (raising(PermissionError(13, "Permission denied", "there")), exit_codes.USAGE),
        (raising(KeyboardInterrupt()), exit_codes.INTERRUPTED),
        (raising(preemption.Preempted("SIGTERM")), exit_codes.INTERRUPTED),
    ],
)
def test_how_a_command_ends_is_its_exit_code(capsys, function, code):
    assert command.main(command.Command("x", "", function), ["x"]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (code in (exit_codes.USAGE, exit_codes.INTERRUPTED))
    assert "Traceback" not in err


def test_errors_of_ours_are_not_hidden():
    for error in (OSError(5, "Input/output error"), ValueError("ours"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            command.main(command.Command("x", "", raising(error)), ["x"])


def test_exit_codes_differ_and_are_the_documented_ones():
    codes = {k: v for k, v in vars(exit_codes).items() if k.isupper()}
    assert len(set(codes.values())) == len(codes)
    assert (exit_codes.DONE, exit_codes.USAGE, exit_codes.DIVERGED) == (0, 2, 3)
    assert (exit_codes.INTERRUPTED, exit_codes.UNHEARD) == (42, 143)


@pytest.mark.parametrize("preset", ["paper", "fast", "quick", "smoke"])
def test_data_do_not_depend_on_flags_that_collect_refuses(preset):
    few = ("point_robot", "hopper_params")  # all of them in the preset that says most
    for env in registry.ENVIRONMENTS if preset == "quick" else few:
        for suite in registry.load("environment", env).SETTINGS:
            names = (f"--preset={preset}", f"--env={env}", f"--suite={suite}")
            mine = flags.parse(collect.COMMAND, ["collect", *names]).config
            for algo, fidelity in itertools.product(registry.ALGORITHMS, config_lib.FIDELITIES):
                chosen = {"env": env, "suite": suite, "fidelity": fidelity}
                other = assembly.make_config(algo, preset, **chosen)
                assert config_lib.data_identity(mine) == config_lib.data_identity(other), chosen


@pytest.mark.parametrize(
    "word,expected",
    [("--multihost", True), ("--multihost=1", True), ("--nomultihost", False), (None, False)],
)
def test_other_processes_are_joined_where_it_is_asked_for(monkeypatch, capsys, word, expected):
    seen = []

    def start(multihost, require, deterministic):
        seen.append(multihost)
        raise errors.UserError("enough")

    monkeypatch.setattr(run.computer, "start", start)
    for each in (run.COMMAND, collect.COMMAND):
        assert command.main(each, ["x", *filter(None, [word])]) == exit_codes.USAGE
    assert seen == [expected] * 2 and capsys.readouterr().err == "error: enough\n" * 2


def test_the_wheel_is_one_package_with_all_that_commands_read(monkeypatch):
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **words: given.update(words))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    assert {name.partition(".")[0] for name in given["packages"]} == {"gentle_jax"}
    place = {"gentle_jax": "gentle_jax", **given["package_dir"]}
    for name, folder in place.items():
        code = {path.parent.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        expected = {".".join([name, *inner.parts]) for inner in code}
        others = {each for each in place if each.startswith(f"{name}.")}
        packed = {each for each in given["packages"] if each.startswith(name)}
        assert {each for each in packed if not each.startswith(tuple(others))} == expected
        taken = {
            path
            for pattern in given["package_data"].get(name, ())
            for path in (ROOT / folder).glob(pattern)
        }
        files = {path for path in (ROOT / folder).rglob("*") if path.is_file()}
        files = {path for path in files if "__pycache__" not in path.parts}
        assert {path for path in files if path.suffix != ".py"} == taken
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    script = setup["options.entry_points"]["console_scripts"].split()
    assert script == [errors.SCRIPT, "=", "gentle_jax.experiments.__main__:main"]


def test_texts_name_the_program_that_was_started(monkeypatch):
    assert errors.command("run") == "python -m experiments.run"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/gentle-jax", "run"])
    assert errors.command("run") == "gentle-jax run"


def test_commands_import_each_other_by_their_place_among_them():
    """`experiments` is another name of the package where it is installed."""
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert "experiments" not in {name.partition(".")[0] for name in names}, path


def test_the_library_imports_no_command():
    """`experiments` is its name in a checkout only, and commands are thin."""
    for path in (ROOT / "gentle_jax").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [
            each.name for node in nodes if isinstance(node, ast.Import) for each in node.names
        ]
        wrong = {name.split(".")[0] for name in names} & {"experiments", "benchmarks", "tests"}
        assert not wrong, path


def test_files_that_commands_read_are_in_the_checkout():
    inside = ROOT / "experiments"
    read = [
        inside / "show" / "viewer.html",
        inside / "show" / "page.html",
        check.HERE / "Dockerfile",
    ]
    read += [check.HERE / "schemas" / f"{name}.json" for name in check.SCHEMAS.values()]
    tables = {name for _, names in paper_tables.papers().values() for name in names}
    by_row = {name for of in TABLES.values() for name, _ in of.paper_of.values()}
    read += [paper_tables.FOLDER / f"{name}.csv" for name in {"papers", "claims", *by_row, *tables}]
    assert all(path.stat().st_size > 100 and inside in path.parents for path in read)
    files = {path for path in inside.rglob("*") if path.is_file() and path.suffix != ".py"}
    files = {path for path in files if not {"__pycache__", "results"} & set(path.parts)}
    assert files == {*read}
