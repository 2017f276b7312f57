"""What JAX is told belongs to a run: pinned, recorded, compared; `--require` asks for a device."""

import ast
import io
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments import run
from experiments.cli import command
from experiments.host import computer, switches
from experiments.runs import environments
from gentle_jax import behaviour, errors, rng, storage, sweep
from gentle_jax.config import BehaviourConfig

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("no_cache")


@pytest.fixture
def switch():
    """Sets a switch of JAX for one test."""
    before = {}

    def change(name, value):
        before.setdefault(name, getattr(jax.config, name))
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


LIGHT = "jax_disable_most_optimizations"


@pytest.mark.parametrize(("preset", "light"), [("smoke", True), ("quick", False)])
def test_smoke_alone_is_compiled_lightly(preset, light):
    before = jax.config.values[LIGHT]
    jax.config.update(LIGHT, False)  # the tests themselves run with it
    try:
        with pytest.raises(KeyError), computer.light_compiling(preset):
            assert jax.config.values[LIGHT] == light
            raise KeyError  # a compilation that fails
        assert not jax.config.values[LIGHT]
    finally:
        jax.config.update(LIGHT, before)


def test_keys_name_their_implementation(switch):
    wanted = rng.run_keys(2, 5), behaviour.task_keys(BehaviourConfig(), 2)
    switch("jax_default_prng_impl", "rbg")
    found = rng.run_keys(2, 5), behaviour.task_keys(BehaviourConfig(), 2)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        data = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(*data)


def test_no_key_of_the_library_or_a_command_is_made_without_a_name():
    files = [*(ROOT / "gentle_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    unnamed = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "jax.random.key":
                named = any(keyword.arg == "impl" for keyword in node.keywords)
                unnamed += [] if named else [f"{path.name}:{node.lineno}"]
    assert unnamed == []


def test_switches_that_change_numbers_are_pinned_and_that_is_said(switch, capsys):
    switches.pin()
    assert capsys.readouterr().out == ""
    others = {
        "jax_default_prng_impl": "rbg", "jax_threefry_partitionable": False,
        "jax_random_seed_offset": 3,
    }  # fmt: skip
    for name, value in others.items():
        switch(name, value)
    switches.pin()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(others)
    assert "jax: JAX_THREEFRY_PARTITIONABLE=False is not used" in "\n".join(lines)
    for name in others:
        assert getattr(jax.config, name) == switches.PINNED[name]


def test_64_bits_are_refused_in_one_line_before_any_work(switch, capsys, tmp_path):
    with jax.enable_x64(True):
        line = ["run", "--preset=smoke", f"--out={tmp_path / 'out'}", f"--data={tmp_path / 'data'}"]
        assert command.main(run.COMMAND, line) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: JAX_ENABLE_X64 is on") and err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind,part", [("gpu", "is a cpu ("), ("gqu", "did you mean 'gpu'")])
def test_a_device_that_is_required_and_not_there_is_one_line(capsys, tmp_path, kind, part):
    line = ["run", "--preset=smoke", f"--require={kind}", f"--data={tmp_path / 'data'}"]
    assert command.main(run.COMMAND, line) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err
    assert not list(tmp_path.rglob("*.npy")) and not pathlib.Path("runs").exists()


def test_a_device_that_is_required_and_there_is_taken(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    switches.require("tpu")
    switches.require("")
    with pytest.raises(errors.UserError, match="--require=gpu: JAX's device here is a tpu"):
        switches.require("gpu")


def test_the_number_of_cpu_devices_is_the_users(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: asked.append(pair))
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    computer.use_all_cores()
    assert asked == [("jax_num_cpu_devices", computer.cores())]
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    computer.use_all_cores()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    computer.use_all_cores()
    assert len(asked) == 1


def test_a_device_that_cannot_start_and_a_wrong_graphics_library_are_one_line():
    """The latter is not needed for this, so nothing is said of it."""
    wrong = {"JAX_PLATFORMS": "cuda", "MUJOCO_GL": "nonsense"}
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--preset=smoke"], cwd=ROOT, text=True,
        env=os.environ | wrong, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: JAX could not start its devices (JAX_PLATFORMS='cuda')")
    assert ended.stderr.count("\n") == 1 and not ended.stdout


CPU_INFO = """processor\t: 0
model\t\t: {model}
model name\t: Some(R) CPU
flags\t\t: fpu avx avx2{more}

processor\t: 1
model\t\t: 7
"""


def test_the_processor_is_named_by_model_and_widest_vectors(monkeypatch):
    for more, wanted in (("", "avx2"), (" avx512f", "avx512f"), (" avx512f amx_tile", "amx_tile")):
        text = CPU_INFO.format(model=85, more=more)
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", lambda *_, text=text: io.StringIO(text))
            assert switches.processor() == f"Some(R) CPU, model 85, {wanted}"


def test_environment_json_has_what_jax_was_told(monkeypatch, switch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_dump_to=/secret --xla_a=2")
    switch("jax_default_matmul_precision", "highest")
    found = computer.environment()
    assert found["xla_flags"] == "--xla_a=2 --xla_b=1" and found["processor"]
    assert found["jax_config"]["default_prng_impl"] == "threefry2x32"
    assert found["jax_config"]["threefry_partitionable"] is True
    assert found["jax_config"]["default_matmul_precision"] == "highest"


def changed(name, value):
    """An environment with another value of a switch."""
    now = computer.environment()
    return now | {"jax_config": now["jax_config"] | {name: value}}


def test_a_run_that_goes_on_with_other_switches_says_so(tmp_path, monkeypatch, capsys):
    config = command.flags.parse(run.COMMAND, ["run", "--preset=smoke"]).config.run
    environments.write(tmp_path, config)
    (tmp_path / "checkpoints" / "100").mkdir(parents=True)
    environments.write(tmp_path, config)
    assert not capsys.readouterr().out
    other = changed("disable_jit", True)
    monkeypatch.setattr(computer, "environment", lambda: other)
    environments.write(tmp_path, config)
    line = "run: jax_config.disable_jit changed since it began: bits may differ\n"
    assert capsys.readouterr().out == line
    (later,) = storage.read_json(tmp_path / "environment.json")["resumed_with"]
    assert later["jax_config"]["disable_jit"] is True
    # what an older version did not record is no change
    known = {"commit": None, "device": "other"}
    environments.tell(known, computer.environment(), "data")
    told = capsys.readouterr().out
    assert told.startswith("data: ") and "device" in told and "processor" not in told


LINE = (
    "--algo=focal", "--preset=smoke", "--num_seeds=1", "--protocol=given_context", "--num_steps=4",
    "--config.train.num_evals=1", "--config.behaviour.num_steps=80", "--config.env.num_train=2",
    "--config.behaviour.first_level=40", "--config.behaviour.level_every=40",
    "--config.behaviour.seed_steps=20", "--config.behaviour.num_levels=2",
    "--config.train.meta_batch=2",
)  # fmt: skip


@pytest.mark.slow
def test_a_whole_command_gives_the_same_bits_whatever_jax_was_told(tmp_path, switch):
    def numbers(name):
        words = ["run", *LINE, f"--data={tmp_path / name}", f"--out={tmp_path / name}"]
        assert command.main(run.COMMAND, words) == 0
        (rows,) = (tmp_path / name).rglob("obs.npy")
        (summary,) = (tmp_path / name).rglob("summary.json")
        return np.load(rows), storage.read_json(summary)["results"]

    rows, results = numbers("plain")
    switch("jax_default_prng_impl", "rbg")
    switch("jax_threefry_partitionable", False)
    again, others = numbers("told")
    np.testing.assert_array_equal(again, rows)
    assert others == results


def test_deterministic_words_are_added_once_and_the_user_keeps_the_others(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4 --xla_cpu_enable_fast_math=false")
    switches.make_deterministic()
    once = os.environ["XLA_FLAGS"]
    switches.make_deterministic()
    assert os.environ["XLA_FLAGS"] == once
    words = once.split()
    assert words[:2] == ["--xla_gpu_autotune_level=4", "--xla_cpu_enable_fast_math=false"]
    assert tuple(words[2:]) == switches.DETERMINISTIC  # the last word counts


def test_a_file_of_flags_is_refused_beside_deterministic(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "of/mine.txt")
    with pytest.raises(errors.UserError, match=r"names the file of/mine\.txt"):
        switches.make_deterministic()


def test_xla_knows_the_words_of_deterministic():
    """XLA ends the process where it does not know a word of XLA_FLAGS."""
    code = (
        "from experiments.cli import flags; from experiments import run\n"
        "from experiments.host import computer, switches\n"
        "line = flags.read(run.COMMAND, ['run', '--deterministic'])\n"
        "computer.start(**flags.devices_of(line))\n"
        "import jax; print(jax.jit(lambda x: x + 1)(1.0), switches.xla_flags())"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert made.stdout.split()[-4:] == ["2.0", *sorted(switches.DETERMINISTIC)]


def test_options_of_gpu_programs_are_options_of_xla_and_the_user_wins(monkeypatch):
    add = lambda x: x + 1.0
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert sweep.device_options() == {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert sweep.device_options() == {"xla_gpu_enable_triton_gemm": False}
    assert sweep.compile_program(add, (1.0,)).call(1.0) == 2.0
    with pytest.raises(Exception, match="No such compile option: 'xla_gpu_no_such_option'"):
        sweep.compile_program(add, (1.0,), options={"xla_gpu_no_such_option": False})
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=true")
    assert sweep.device_options() == {}


@pytest.mark.accelerator
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_two_processes_make_the_same_bits_with_deterministic(tmp_path):
    words = ["--preset=smoke", "--num_seeds=2", "--num_steps=400", "--protocol=given_context"]
    words += ["--deterministic", "--require=gpu"]
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        subprocess.run(
            [sys.executable, "-m", "experiments.run", *words, f"--out={out}", f"--data={out}.data"],
            cwd=ROOT, check=True, capture_output=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{out}.cache",
                              "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )  # fmt: skip
        found.append(np.load(next(out.rglob("embeddings.npz"))))
    assert found[0].files == found[1].files
    for name in found[0].files:
        np.testing.assert_array_equal(found[0][name], found[1][name])
