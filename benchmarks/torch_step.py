"""Gradient steps in eager PyTorch, the yardstick of ours: GENTLE, FOCAL and CTMRL.

The learners are in `torch_td3`, `torch_brac` and `torch_ctmrl`. They start from the parameters of a
`gentle_jax` state, and take steps of the same mathematics on the same data. PyTorch is never
required.
"""

import contextlib
import dataclasses
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import torch_process
from benchmarks.torch_parts import RL_COLUMNS, torch
from gentle_jax import errors

ROOT = Path(__file__).parents[1]
IN_TURN, PROCESSES = "torch_in_turn_seconds", "torch_processes_seconds"  # columns of a row
CHANGED = (  # (section, setting, what PyTorch's steps take it for)
    ("train", "final_lr", 1.0), ("train", "normalize_rewards", False),
    ("train", "precision", "float32"), ("algo", "use_next_obs", False),
    ("algo", "encoder_rate", 1.0),
)  # fmt: skip


def job_of(problem, state):
    """Returns what a learner starts from, as plain numpy arrays and numbers.

    Args: problem, a `train_step.Problem`; state, an AgentState of one run.
    """
    config, state = problem.config, jax.device_get(state)
    rows = jax.tree.map(np.asarray, problem.data.rows)
    tables = {name: getattr(rows, name) for name in RL_COLUMNS}
    # dynamics vary in no shapes of `train_step.GRID`: contexts are without s'
    context = (rows.obs, rows.action, rows.context_reward[..., None])
    tables["context"] = np.concatenate(context, -1)
    section = lambda name: dataclasses.asdict(getattr(config, name))
    return {
        "algorithm": config.run.algorithm,
        "rep": state.rep.params,
        "rl": {name: getattr(part, "params", part) for name, part in vars(state.rl).items()},
        "hp": jax.tree.map(float, state.hp),
        "tables": tables,
        **{name: section(name) for name in ("algo", "backbone", "train")},
    }


def device():
    """Returns where PyTorch computes: beside JAX."""
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return "cuda" if on_gpu else "cpu"


def make_loop(problem, state, threads):
    """Returns the Loop of a `train_step.Problem`, or None without torch or for another algorithm.

    Args: state, an AgentState of one run, whose parameters it starts from; threads, on a CPU.
    Raises UserError for settings of CHANGED: PyTorch's steps have none of them.
    """
    config = problem.config
    if torch is None or config.run.algorithm not in torch_process.LEARNERS:
        return None
    for section, name, usual in CHANGED:
        value = getattr(getattr(config, section), name, usual)
        if value != usual:
            raise errors.UserError(
                f"{section}.{name} is {value}: PyTorch's step only has {usual}; leave it, or "
                f"measure without torch"
            )
    return torch_process.loop_of(job_of(problem, state), device(), threads)


class Processes:
    """Seeds in processes of their own, one thread each, that take their steps at once."""

    def __init__(self, job, count):
        """Starts them and waits until all can begin. Args: job, of `job_of`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job"
            path.write_bytes(pickle.dumps(job))
            line = [sys.executable, "-m", "benchmarks.torch_process", str(path)]
            start = lambda seed: subprocess.Popen(
                [*line, str(seed), device()],
                cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.children = []
            try:
                for seed in range(count):
                    self.children.append(start(seed))
                self._answers()
            except BaseException:
                self.close()
                raise

    def _answers(self):
        lines = [child.stdout.readline() for child in self.children]
        if not all(lines):
            raise errors.UserError(
                f"a PyTorch process ended early, one of {len(lines)}: is there memory for them? "
                f"--seeds=1 needs none"
            )
        return lines

    def run(self, num_steps):
        """All take `num_steps` steps; returns the wall clock in seconds over the number of seeds.

        All wait for their line, so they begin together.
        """
        begin = time.perf_counter()
        for child in self.children:
            with contextlib.suppress(BrokenPipeError):  # then there is no answer
                child.stdin.write(f"{num_steps}\n")
                child.stdin.flush()
        self._answers()
        return (time.perf_counter() - begin) / len(self.children)

    def close(self):
        """Ends them."""
        for child in self.children:
            child.kill()
            with contextlib.suppress(BrokenPipeError), child:  # closes its pipes and waits
                pass


@contextlib.contextmanager
def loops(problem, state, threads, num_seeds):
    """Context: {column of a row: what runs steps and tells their seconds, each for one seed}.

    Empty where `make_loop` returns None; processes only for several seeds.
    """
    loop = make_loop(problem, state, threads)
    found = {} if loop is None else {IN_TURN: loop}
    if loop is None or num_seeds == 1:
        yield found
        return
    processes = Processes(job_of(problem, state), num_seeds)
    try:
        yield found | {PROCESSES: processes}
    finally:
        processes.close()
