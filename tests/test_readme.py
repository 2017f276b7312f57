"""The README's Python example, as it stands, on fewer and smaller tasks."""

import os
import pathlib
import re

import numpy as np
import pytest

import gentle_jax

TEXT = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.S | re.M)
FEWER = {
    "env.num_train": 4,
    "env.num_test": 2,
    "env.horizon": 5,
    "train.num_evals": 1,
    "algo.num_codes": 2,
    "eval.online_steps": 10,
    "behaviour.episodes_per_level": 2,
}


def test_the_example_is_short():
    example, _ = EXAMPLES  # the other one: test_agents.py
    assert len([line for line in example.splitlines() if line.strip()]) <= 12


@pytest.mark.slow
@pytest.mark.skipif("GENTLE_JAX_BY_HAND" not in os.environ, reason="CI runs it as it stands")
def test_the_example_trains_a_sweep(monkeypatch, capsys):
    """Only its config is made smaller: one protocol, few tasks."""
    make, protocols = gentle_jax.make_config, ("random_then_policy",)
    smaller = lambda *names, **more: make(*names, overrides=FEWER, protocols=protocols, **more)
    monkeypatch.setitem(vars(gentle_jax), "make_config", smaller)
    known = {}
    exec(compile(EXAMPLES[0], "README.md", "exec"), known)
    assert known["returns"].shape[:3] == (1, 8, 6) and known["data"]["obs"].shape[0] == 6
    assert np.isfinite(known["returns"]).all()
    by_run = np.asarray(known["returns"])[-1][:, known["test_tasks"], -1].mean(1)
    assert capsys.readouterr().out == f"{by_run}\n"
    # seeds differ, and so do the two values of the swept rate for one seed
    assert len(set(by_run.tolist())) == 8
