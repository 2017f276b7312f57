"""`pytest --pyargs gentle_jax.testing` on modules of one's own, as a user starts it."""

import os
import pathlib
import subprocess
import sys

import pytest

from gentle_jax import registry

ROOT = pathlib.Path(__file__).parent.parent
FOCAL = pathlib.Path(registry.load("algorithm", "focal").__file__).read_text()
BROKEN = """    rep = rep._replace(extend=lambda state, belief, rows, mask: rows.reward)
    return learner.joint("""


def run(folder, *words, package="gentle_jax.testing"):
    """Returns the finished pytest of a user in a folder of their own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "gentle_jax.testing.plugin", "--pyargs", package, *words]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


@pytest.fixture
def own(tmp_path):
    """A folder with a module of one's own, and one whose `extend` is wrong."""
    folder = tmp_path / "my_lab"
    folder.mkdir()
    (folder / "method.py").write_text(FOCAL)
    (folder / "broken.py").write_text(FOCAL.replace("    return learner.joint(", BROKEN))
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


@pytest.mark.slow
def test_a_broken_one_fails_and_is_told_why(own):
    done = run(own, "--algo=my_lab.broken", "-k", "beliefs_and_z_have")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the belief of `extend`, beside that of `prior`, has another structure" in done.stdout


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
