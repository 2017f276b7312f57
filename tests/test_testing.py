"""`pytest --pyargs gentle_jax.testing` on modules of one's own, as a user starts it."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from gentle_jax import registry
from gentle_jax.testing import small, trees

ROOT = pathlib.Path(__file__).parent.parent
FOCAL = pathlib.Path(registry.load("algorithm", "focal").__file__).read_text()
LAST = "    return learner.joint("
PICKY = "    if config.width > 8:\n        raise errors.UserError('too wide')\n"
BROKEN = {  # what is done to the representation, a test, what it tells
    "extend": (
        "rep._replace(extend=lambda state, belief, rows, mask: rows.reward)",
        "beliefs_and_z_have",
        "the belief of `extend`, beside that of `prior`, has another structure",
    ),
    "constants": (
        "rep._replace(update=lambda state, hp, *rest, old=rep.update: "
        'old(state, {"focal_weight": 10.0, "lr": 3e-4}, *rest))',
        "swept_floats",
        "algo.focal_weight, algo.lr change no step: read them from `hp`, not `config`",
    ),
}


def run(folder, *words, package="gentle_jax.testing"):
    """Returns the finished pytest of a user in a folder of their own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "gentle_jax.testing.plugin", "--pyargs", package, *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


@pytest.fixture
def own(tmp_path):
    """A folder with a module of one's own."""
    folder = tmp_path / "my_lab"
    folder.mkdir()
    (folder / "method.py").write_text(FOCAL)
    return tmp_path


@pytest.mark.slow
def test_a_module_of_ones_own_passes(own):
    done = run(own, "--algo=my_lab.method")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_backbone_an_environment_and_a_protocol_pass(own):
    words = "--backbone=td3_bc", "--env=point_robot", "--protocol=online"
    done = run(own, *words)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_the_environment_of_the_documentation_passes(own):
    (code,) = re.findall(
        r"^```python\n# my_lab/cart.py\n(.*?)^```$", (ROOT / "docs/own.md").read_text(), re.S | re.M
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (own / "my_lab" / "cart.py").write_text(code)
    done = run(own, "--env=my_lab.cart")
    assert done.returncode == 0 and "10 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("change,test,told", BROKEN.values(), ids=BROKEN)
def test_a_broken_one_fails_and_is_told_why(own, change, test, told):
    code = FOCAL.replace(LAST, f"    rep = {change}\n{LAST}")
    (own / "my_lab" / "broken.py").write_text(code)
    done = run(own, "--algo=my_lab.broken", "-k", test)
    assert done.returncode == 1, done.stdout + done.stderr
    assert told in done.stdout


@pytest.mark.slow
def test_a_method_that_needs_other_sizes_is_told_where_it_sets_them(own):
    code = FOCAL.replace("import compose, ", "import compose, errors, ")
    (own / "my_lab" / "picky.py").write_text(code.replace(LAST, PICKY + LAST))
    done = run(own, "--algo=my_lab.picky", "-k", "beliefs_and_z_have")
    assert done.returncode == 1 and "too wide" in done.stdout, done.stdout + done.stderr
    assert "its module says which: PRESETS" in done.stdout


@pytest.mark.parametrize("algorithm", registry.ALGORITHMS)
def test_every_algorithm_is_built_with_its_own_smoke_sizes(algorithm):
    made = small.make(algorithm)
    own = getattr(registry.load("algorithm", algorithm), "PRESETS", {}).get("smoke", {})
    sections = {"train": made.config.train, "algo": made.config.algo}
    for key, value in own.items():
        section, field = key.split(".")
        assert getattr(sections[section], field) == value


def test_what_was_infinite_may_stay_so_and_nothing_else_may_become_so():
    start = {"best_error": np.array([np.inf, np.inf]), "weight": np.ones(2)}
    trees.check_finite("a step", start | {"best_error": np.array([0.3, np.inf])}, start)
    for bad in (
        {"best_error": np.array([np.nan, np.inf])},
        {"best_error": np.array([-np.inf, np.inf])},
        {"weight": np.array([1.0, np.inf])},
    ):
        with pytest.raises(AssertionError, match=f"a step: .*{next(iter(bad))}.* is not finite"):
            trees.check_finite("a step", start | bad, start)
    with pytest.raises(AssertionError, match="is not finite"):
        trees.check_finite("a step", start)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words,hint",
    [
        ((), "nothing to test: pass one or more of --algo, --backbone, --env, --protocol"),
        (("--algo=focl",), "unknown algorithm 'focl': did you mean 'focal'?"),
        (("--algo=my_lab.none",), "'my_lab.none' is no module that Python finds"),
    ],
)
def test_bad_input_is_one_line(own, words, hint):
    done = run(own, *words)
    assert done.returncode == 4 and not done.stdout.strip()
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ERROR: ") and hint in line


def test_other_runs_of_pytest_have_no_flag_and_import_nothing(tmp_path):
    (tmp_path / "test_own.py").write_text(
        "import sys\ndef test_light():\n    assert 'gentle_jax.testing.plugin' in sys.modules\n"
        "    assert not {'jax', 'numpy', 'gentle_jax.registry'} & {*sys.modules}\n"
    )
    done = run(tmp_path, "-p", "no:jaxtyping", package="test_own.py")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(tmp_path, "--algo=focal", package="test_own.py")
    assert done.returncode == 4 and "unrecognized arguments: --algo=focal" in done.stderr
