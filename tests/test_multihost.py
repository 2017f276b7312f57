"""`--multihost`: two processes on this machine as one program, with checkpoints and a resume."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.test_run import ARGUMENTS, STEPS, check_same_results, run_folder, steps_of

ROOT = pathlib.Path(__file__).parent.parent
LONG = 40 * STEPS  # long enough to be stopped in between
SEEDS = 3  # with two grid points six runs: two on each of four devices, two of them padding


def start(folder, out, processes, devices):
    """Starts the command in so many processes; one is an ordinary one."""
    arguments = [a for a in ARGUMENTS if not a.startswith(("--num_steps", "--num_seeds", "--save"))]
    arguments += [f"--num_steps={LONG}", f"--num_seeds={SEEDS}", "--save_every=1"]
    arguments += [f"--data={folder / 'data'}", f"--out={out}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": flags.strip(),
    }
    several = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
    started = []
    for index in range(processes):
        own = {**several, "JAX_PROCESS_ID": str(index)} if processes > 1 else {}
        command = [sys.executable, "-m", "experiments.run", *arguments]
        started.append(
            subprocess.Popen(
                command + ["--multihost"] * (processes > 1),
                cwd=ROOT,
                env=environment | own,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return started


def finish(started, code):
    """Waits for processes, which must end with `code`; returns what they printed."""
    shown = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [code] * len(started), "\n".join(shown)
    return shown


@pytest.mark.slow
def test_two_processes_are_one_program_that_stops_and_resumes(tmp_path):
    # a process alone with three devices has two runs on each as well: the same bits
    finish(start(tmp_path, tmp_path / "alone", 1, 3), 0)
    expected = run_folder(tmp_path / "alone")
    leader, other = start(tmp_path, tmp_path / "two", 2, 2)
    folder, limit = None, time.monotonic() + 200
    while leader.poll() is None and time.monotonic() < limit:
        folder = folder or next((tmp_path / "two").glob("ctmrl/point_robot/ctmrl/*"), None)
        if folder is not None and len(steps_of(folder)) >= 5:
            break
        time.sleep(0.01)
    other.send_signal(signal.SIGTERM)  # one machine is taken away: all save and stop together
    finish([leader, other], 42)
    assert not (folder / "summary.json").exists() and any((folder / "checkpoints").iterdir())
    shown, silent = finish(start(tmp_path, tmp_path / "two", 2, 2), 0)
    assert "run: resuming after step" in shown and "4 x cpu of 2 processes" in shown
    assert "run:" not in silent  # the leader speaks
    check_same_results(folder, expected)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_seeds"] == SEEDS and not summary["failed_seeds"]
    with np.load(folder / "returns.npz") as returns:
        assert returns["test/given_context"].shape[1] == 2 * SEEDS
