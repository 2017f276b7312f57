"""The suite for accelerators resumes, records what fails, keeps its time, and measures."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import accelerator_pieces, machine
from benchmarks import accelerator_suite as suite
from experiments.cli import exit_codes
from gentle_jax import config as config_lib

# a suite whose pieces are these lines: real processes, nothing to compile
DRIVER = """
import sys
from benchmarks import accelerator_suite as suite
PIECE = '''{piece}'''
suite.command_of = lambda piece, args: [sys.executable, "-c", PIECE, piece, args.out]
sys.exit(suite.main(["suite", *sys.argv[1:]]))
"""
DONE = """
import json, sys
name, out = sys.argv[1:]
ratios = {"x": [1.0, "lower"]}
record = {"piece": name, "status": "done", "small": True, "seconds": 0.1, "ratios": ratios}
record |= {"device": "d", "machine": {}, "versions": {}, "date": "now"}
open(f"{out}/{name}.json", "w").write(json.dumps(record))
"""
HANGS = "import sys\nif sys.argv[1] == 'ctmrl':\n    " + "\n    ".join(
    [
        "import os, time",
        "from benchmarks import accelerator_suite as suite",
        "suite.die_with_parent()",
        "open(f'{sys.argv[2]}/pid', 'w').write(str(os.getpid()))",
        "time.sleep(120)",
    ]
)
RAISES = "import sys\nif sys.argv[1] == 'gentle':\n    raise ValueError('no such luck')"
FLAGS = ("--small", "--pieces=gentle,ctmrl")


def start(piece, out, *flags):
    words = [sys.executable, "-c", DRIVER.format(piece=piece), *FLAGS, *flags, f"--out={out}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(piece, out, *flags):
    process = start(piece, out, *flags)
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


def records(out):
    return {r["piece"]: r for r in json.loads((out / "suite.json").read_text())["pieces"]}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # one that nobody waits for is a zombie
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("sent, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 42)])
def test_a_killed_suite_resumes_and_leaves_no_process(sent, code, tmp_path):
    process = start(f"{HANGS}\n{DONE}", tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert set(records(tmp_path)) == {"gentle"}
    code, text = finish(DONE, tmp_path)
    assert code == 0 and "gentle: done before" in text and "ctmrl: done in" in text
    assert [r["status"] for r in records(tmp_path).values()] == ["done", "done"]


def test_a_piece_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    code, text = finish(f"{RAISES}\n{DONE}", tmp_path)
    assert code == 1 and "ValueError: no such luck" in text
    found = records(tmp_path)
    assert (found["gentle"]["status"], found["ctmrl"]["status"]) == ("failed", "done")
    assert found["gentle"]["error"] == "exit code 1: ValueError: no such luck"
    assert json.loads((tmp_path / "gentle.json").read_text())["tail"]
    code, text = finish(DONE, tmp_path)  # tried again
    assert code == 0 and "gentle: done in" in text and "ctmrl: done before" in text


def test_a_piece_is_left_out_where_time_is_short_and_ended_where_it_takes_longer(tmp_path):
    code, text = finish(DONE, tmp_path, "--minutes=0.1")
    assert code == exit_codes.LEFT_OUT and "left out, 6 s left, may need 30 s" in text
    assert {r["status"] for r in records(tmp_path).values()} == {"skipped"}
    args = suite.make_flags()
    args(["suite", "--small", f"--out={tmp_path}"])
    args.mark_as_parsed()
    record = suite.launch("ctmrl", args, 0.01)
    assert record["status"] == "failed" and record["error"].startswith("took longer than")


def test_pieces_of_another_size_are_measured_again(tmp_path):
    assert finish(DONE, tmp_path)[0] == 0
    args = suite.make_flags()
    args(["suite", f"--out={tmp_path}"])
    assert suite.finished("gentle", args) is None
    args(["suite", "--small", f"--out={tmp_path}"])
    assert suite.finished("gentle", args)["status"] == "done"
    assert finish(DONE, tmp_path, "--pieces=scaling")[0] == 0  # the summary keeps the others
    assert set(records(tmp_path)) == {"gentle", "ctmrl", "scaling"}


def test_every_piece_fits_into_the_ten_minutes():
    assert list(suite.PIECES) and set(suite.PIECES) == set(accelerator_pieces.MEASURES)
    assert max(needed for needed, _ in suite.PIECES.values()) <= 600


def product_types(name):
    """Pairs of types of the operands of all products of the step that is timed at a precision."""
    problem = accelerator_pieces.precision_problem(name, True)
    hp = jax.tree.map(lambda leaf: leaf[0], config_lib.hyper_params(problem.config))
    state = jax.eval_shape(problem.algorithm.init, hp, jax.random.key(0), problem.data)
    args = state, problem.data, jax.random.key(0), jnp.int32(0)
    pending, seen = [jax.make_jaxpr(problem.stage.step)(*args).jaxpr], set()
    while pending:
        for eqn in pending.pop().eqns:
            pending += machine.jaxprs_in(eqn.params)
            if eqn.primitive.name == "dot_general":
                seen.add(tuple(str(atom.aval.dtype) for atom in eqn.invars))
    return seen


def test_the_precision_that_is_timed_is_that_of_the_products():
    """Three rows of one program would tell nothing."""
    assert product_types("float32") == {("float32", "float32")}
    # gradients of outputs are float32: a network's last layer sums in it
    assert product_types("bfloat16") == {("bfloat16", "bfloat16"), ("float32", "bfloat16")}


CHEAP = ("scaling",)
# minutes, and little that other pieces or benchmarks do not use
BY_HAND = ("ctmrl", "command", "precision", "behaviour", "gentle", "env_step", "loops")
hand = pytest.mark.skipif("GENTLE_JAX_BY_HAND" not in os.environ, reason="minutes; run by hand")
MARKS = {p: [pytest.mark.slow, *([hand] if p in BY_HAND else [])] for p in suite.PIECES}
MARKS |= dict.fromkeys(CHEAP, ())


@pytest.mark.parametrize("piece", [pytest.param(p, marks=MARKS[p]) for p in suite.PIECES])
def test_every_piece_measures(piece):
    record = accelerator_pieces.measure(piece, True)
    json.dumps(record)
    assert record["result"] and record["small"] and record["peak_bytes"] > 0
    assert all(value > 0 for value, _ in record["ratios"].values())
    names = {bar["name"] for bar in record["bars"]}
    assert names <= set(accelerator_pieces.BARS)
    assert record["ratios"] or names


@pytest.mark.slow
def test_the_real_command_measures_a_piece_and_sums_up(tmp_path, capfd):
    assert suite.main(["suite", "--small", "--pieces=scaling", f"--out={tmp_path}"]) == 0
    report = json.loads((tmp_path / "suite.json").read_text())
    assert report["machine"]["cores"] and report["pieces"][0]["status"] == "done"
    assert "compile time" in capfd.readouterr().out


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--pieces=gentel", "did you mean 'gentle'"),
        ("--piece=gentel", "did you mean 'gentle'"),
        ("--pieces=", "empty flag"),
        ("--minutes=0", "more than 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(flag, hint, capsys):
    assert suite.main(["suite", flag]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and hint in message
