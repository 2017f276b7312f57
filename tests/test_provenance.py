"""`gentle_jax.provenance`: which sources a hash covers, and what of them changes it."""

import ast
import importlib
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from gentle_jax import errors, provenance, registry

ROOT = pathlib.Path(__file__).parent.parent
ONE = '''"""What it is."""

from toy import helper  # why


def f(x):
    """What it returns."""
    from . import late

    return helper.g(x) * 0.1 + late.MORE
'''
FILES = {
    "__init__.py": "from toy import everything\nfrom toy.api import build as make\n",
    "everything.py": "from toy.algorithms import one, two\n",
    "api.py": "def build():\n    return 1\n",
    "user.py": "from toy import make\n",
    "algorithms/__init__.py": "from toy.algorithms import two\n",
    "algorithms/one.py": ONE,
    "algorithms/two.py": "import toy.helper\n\nRATE = 1\n",
    "algorithms/late.py": "from .. import deep\n\nMORE = deep.ZERO\n",
    "helper.py": "from .deep.deeper import h as g\n",
    "deep/__init__.py": "ZERO = 0\n",
    "deep/deeper.py": "import numpy\n\nh = numpy.negative\n",
    "packed/__init__.py": "",
    "packed/paper.py": "from ..deep import deeper\n",
    "packed/inner/release.py": "LOSS = 1\n",
}
OF_ONE = {"toy.algorithms.one", "toy.algorithms.late", "toy.helper", "toy.deep", "toy.deep.deeper"}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The folder of a small package, which is never imported."""
    folder = tmp_path / "toy"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield folder
    assert "toy" not in sys.modules


def hash_of_one():
    return provenance.source_hash(["toy.algorithms.one"])


def test_what_a_module_imports_is_followed(toy):
    assert set(provenance.modules(["toy.algorithms.one"])) == OF_ONE
    assert set(provenance.modules(["toy.algorithms.two"])) == {
        "toy.algorithms.two", "toy.helper", "toy.deep.deeper",
    }  # fmt: skip
    # a name that the top package has from one of its modules: that one, not all others
    assert set(provenance.modules(["toy.user"])) == {"toy.user", "toy.api"}


def test_an_entry_that_is_a_package_counts_whole(toy):
    names = {"toy.packed", "toy.packed.paper", "toy.packed.inner.release", "toy.deep.deeper"}
    assert set(provenance.modules(["toy.packed"])) == names
    before = provenance.source_hash(["toy.packed"])
    (toy / "packed/inner/release.py").write_text("LOSS = 2\n")
    assert provenance.source_hash(["toy.packed"]) != before


@pytest.mark.parametrize(
    "old,new",
    [
        ("  # why", "  # another reason"),
        ('"""What it is."""\n', ""),
        ('    """What it returns."""\n', ""),
        ("What it returns", "Another text"),
        ("helper.g(x) * 0.1", "(helper.g(\n        x\n    ) * .10)"),
        ("\n\n\n", "\n\n\n\n\n# a line\n"),
        ("\n", "\r\n"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(toy, old, new):
    before = hash_of_one()
    assert len(before) == 16 and int(before, 16) >= 0
    assert old in ONE and old != new
    (toy / "algorithms/one.py").write_bytes(ONE.replace(old, new).encode())
    assert hash_of_one() == before


@pytest.mark.parametrize(
    "file,old,new",
    [
        ("algorithms/one.py", "0.1", "0.2"),
        ("algorithms/one.py", " * ", " + "),
        ("algorithms/one.py", "f(x)", "f(x, y=None)"),
        ("algorithms/late.py", "MORE = deep.ZERO", "MORE = -deep.ZERO"),  # within a function
        ("helper.py", "h as g", "h"),
        ("deep/deeper.py", "negative", "positive"),  # two levels down
        ("deep/__init__.py", "0", "0.0"),
    ],
)
def test_code_counts_however_far_down(toy, file, old, new):
    before = hash_of_one()
    assert old in FILES[file]
    (toy / file).write_text(FILES[file].replace(old, new))
    assert hash_of_one() != before


def test_what_is_not_imported_does_not_count(toy):
    before = hash_of_one()
    for name in ("algorithms/two.py", "algorithms/__init__.py", "__init__.py", "api.py"):
        (toy / name).write_text(FILES[name] + "MORE = 7\n")
    (toy / "algorithms/three.py").write_text("from toy import helper\n")
    assert hash_of_one() == before
    (toy / "algorithms/two.py").unlink()
    assert hash_of_one() == before


def test_a_module_that_is_not_there_is_an_error(toy):
    with pytest.raises(ModuleNotFoundError, match="no source of toy"):
        provenance.source_hash(["toy.absent"])
    with pytest.raises(errors.UserError, match="did you mean 'ctmrl'"):
        provenance.entries("ctrml", "td3_bc", "point_robot", ())


def entries(algorithm="ctmrl", env="point_robot"):
    return provenance.entries(algorithm, "td3_bc", env, tuple(registry.PROTOCOLS))


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_the_hash_of_a_run_covers_its_own_parts(algorithm):
    found = provenance.modules(entries(algorithm))
    assert {*registry.PROTOCOLS.values(), "gentle_jax.types", "gentle_jax.networks"} <= set(found)
    others = {*registry.ALGORITHMS.values()} - {registry.ALGORITHMS[algorithm]}
    others |= {*registry.ENVIRONMENTS.values()} - {registry.ENVIRONMENTS["point_robot"]}
    assert not others & set(found) and "gentle_jax.physics" not in found
    assert {name for name in found if not name.startswith("gentle_jax.")} == set()
    # nothing is imported by a name that only exists when the code runs
    attributes = [
        n.attr for t in found.values() for n in ast.walk(t) if isinstance(n, ast.Attribute)
    ]
    assert not {"import_module", "__import__"} & set(attributes)


LOADED = """
import importlib, json, sys
for names in json.loads(sys.argv[1]):
    for name in [name for name in sys.modules if name.partition(".")[0] == "gentle_jax"]:
        del sys.modules[name]
    for name in names:
        importlib.import_module(name)
    print(*(name for name in sys.modules if name.startswith("gentle_jax.")))
"""


def test_every_module_that_python_loads_is_covered():
    """Each algorithm's modules, imported anew in one process that keeps other packages."""
    names = [entries(algorithm, "ant_goal") for algorithm in registry.ALGORITHMS]
    command = [sys.executable, "-c", LOADED, json.dumps(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages = {"algorithms", "backbones", "envs", "protocols"}
    left_out = {"gentle_jax.registry", *(f"gentle_jax.{name}" for name in packages)}
    for own, line in zip(names, done.stdout.splitlines(), strict=True):
        loaded = set(line.split()) - left_out
        assert "gentle_jax.physics" in loaded and loaded <= set(provenance.modules(own)), own


def test_an_installed_copy_has_the_same_hash(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in ("gentle_jax", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / "site" / name, ignore=ignored)
    code = f"from gentle_jax import provenance as p; print(p.__file__, p.source_hash({entries()}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    path, found = done.stdout.split()
    assert pathlib.Path(path).is_relative_to(tmp_path / "site")
    assert found == provenance.source_hash(entries())
