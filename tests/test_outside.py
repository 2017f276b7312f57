"""Entries outside the package: modules of one's own by their dotted name, and `register`."""

import json
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import gentle_jax
from experiments import report, run
from experiments.cli.command import main
from gentle_jax import errors, provenance, registry
from tests.test_readme import BLOCKS
from tests.test_report import shown

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "--preset=smoke", "--num_seeds=1", "--num_steps=4",
    "--config.env.num_train=4", "--config.env.num_test=2", "--config.env.horizon=5",
    "--config.train.num_evals=1", "--config.train.batch_size=4", "--config.backbone.width=4",
    "--config.algo.width=4", "--config.behaviour.num_steps=30",
    "--config.behaviour.seed_steps=29", "--config.behaviour.first_level=10",
    "--config.behaviour.level_every=10", "--config.behaviour.width=4",
    "--config.behaviour.batch_size=4", "--config.eval.scored_steps=10",
)  # fmt: skip
PROTOCOL = """
from gentle_jax.protocols import given_context


def make(config, env):
    return given_context.make(config, env)
"""


@pytest.fixture(params=["package", "folder"])
def package(request, tmp_path, monkeypatch):
    """A folder on the path with a package of one's own: the README's method, and what it needs."""
    folder = tmp_path / "path" / "my_lab"
    folder.mkdir(parents=True)
    if request.param == "package":
        (folder / "__init__.py").write_text("")
    (folder / "method.py").write_text(BLOCKS[0])
    (folder / "protocol.py").write_text(PROTOCOL)
    (folder / "needy.py").write_text("import not_installed_lib")
    (folder / "unfinished.py").write_text("x = 1\ndef make(:\n")
    (folder / "failing.py").write_text("x = 1\ny = x / 0\n")
    for name, kind in (("point_robot", "environment"), ("td3_bc", "backbone")):
        shutil.copy(registry.load(kind, name).__file__, folder / f"{name}.py")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_method_outside_trains_is_reported_and_loaded(package, tmp_path, capsys):
    out = tmp_path / "runs"
    names = ["--algo=my_lab.method", "--protocol=my_lab.protocol", f"--data={tmp_path / 'data'}"]
    names += ["--env=my_lab.point_robot", "--backbone=my_lab.td3_bc", f"--out={out}", *TINY]
    assert main(run.COMMAND, ["run", *names]) == 0
    (folder,) = (out / "ctmrl/my_lab.point_robot/my_lab.method").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["run"]["algorithm"] == "my_lab.method"
    assert config["run"]["backbone"] == "my_lab.td3_bc"
    capsys.readouterr()
    assert main(run.COMMAND, ["run", *names]) == 0  # its code is known: it is shown again
    assert "finished before" in capsys.readouterr().out
    assert config["run"]["protocols"] == ["my_lab.protocol"]
    capsys.readouterr()
    code, text, _ = shown(capsys, f"--run={folder}", f"--html={tmp_path / 'page.html'}")
    assert code == 0 and "my_lab.protocol" in text and "Other code" not in text
    code, text, _ = shown(capsys, f"--out={out}", command=report.COMMAND)
    assert code == 0 and "my_lab.method" in text
    agent = gentle_jax.load(folder)
    assert np.isfinite(agent.act(agent.prior(), np.zeros(2))).all()


def test_the_installed_program_finds_modules_below_the_folder_where_it_is_given(package):
    code = f"import sys; sys.path.append({str(ROOT)!r}); sys.argv = ['gentle-jax', *sys.argv[1:]]\n"
    code += "from experiments.__main__ import main; main()"
    words = ["run", "--algo=my_lab.method", "--help"]
    command = [sys.executable, "-P", "-c", code, *words]  # -P: nothing of the folder, as a script
    done = subprocess.run(command, cwd=package.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "algo.focal_weight" in done.stdout, done.stderr


def test_the_hash_of_a_run_is_of_its_module_too(package):
    names = ("my_lab.method", "td3_bc", "point_robot", ("my_lab.protocol",))
    before = provenance.source_hash(provenance.entries(*names))
    (package / "method.py").write_text(BLOCKS[0].replace("10.0", "11.0"))
    assert provenance.source_hash(provenance.entries(*names)) != before
    (package / "method.py").write_text(BLOCKS[0] + "\n# a comment\n")
    assert provenance.source_hash(provenance.entries(*names)) == before


@pytest.mark.parametrize(
    "flag,hint",
    [
        ("--algo=my_lab.none", "'my_lab.none' is no module that Python finds"),
        ("--algo=no_such.package", "'no_such.package' is no module that Python finds"),
        ("--algo=.method", "is no module that Python finds"),
        ("--algo=my_lab.protocol", "algorithm 'my_lab.protocol' defines no Config"),
        ("--env=my_lab.method", "environment 'my_lab.method' defines no PHYSICS"),
        ("--algo=method", "or the dotted name of a module of your own, package.module"),
        ("--protocol=my_lab.unfinished", "SyntaxError: invalid syntax (unfinished.py, line 2)"),
        ("--env=my_lab.failing", "ZeroDivisionError: division by zero ("),
        ("--env=my_lab.failing", "failing.py, line 2)"),
        ("--algo=my_lab.needy", "'my_lab.needy' cannot be imported: No module named 'not_inst"),
    ],
)
def test_what_is_no_entry_is_one_line(package, capsys, flag, hint):
    code = main(run.COMMAND, ["run", "--preset=smoke", flag])
    err = capsys.readouterr().err
    assert code == 2 and hint in err and err.count("\n") == 1


def test_registered_entries_are_found_and_names_are_taken_once(monkeypatch):
    for name, table in registry.TABLES.items():
        monkeypatch.setitem(registry.TABLES, name, dict(table))
    module = types.ModuleType("by_hand")
    exec(BLOCKS[0], vars(module))
    monkeypatch.delitem(sys.modules, "by_hand", raising=False)
    gentle_jax.register("algorithm", "mine", module)
    again = types.ModuleType("by_hand")  # a cell of a notebook that is run again
    exec(BLOCKS[0], vars(again))
    gentle_jax.register("algorithm", "mine", again)
    assert registry.load("algorithm", "mine") is again
    with pytest.raises(errors.UserError, match="another module 'json'"):
        gentle_jax.register("algorithm", "other", types.ModuleType("json"))
    config = gentle_jax.make_config("mine", "smoke", {"algo.focal_weight": 2.0})
    assert config.algo.focal_weight == 2.0
    gentle_jax.register("protocol", "theirs", "gentle_jax.protocols.online")
    assert registry.load("protocol", "theirs").__name__ == "gentle_jax.protocols.online"
    with pytest.raises(errors.UserError, match="is no module that Python finds"):
        gentle_jax.register("algorithm", "other", "no_such.module")
    with pytest.raises(errors.UserError, match="choose another name"):
        gentle_jax.register("algorithm", "focal", module)
    with pytest.raises(errors.UserError, match="unknown kind 'algo'"):
        gentle_jax.register("algo", "mine", module)
    del sys.modules["by_hand"]
