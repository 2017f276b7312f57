"""The README: its size, its method, and the Python example of docs/python.md on smaller tasks."""

import ast
import json
import os
import pathlib
import re

import numpy as np
import pytest
import yaml

import gentle_jax
from experiments.show import methods, tables
from gentle_jax import registry

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES, BLOCKS = (
    re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.S | re.M)
    for name in ("docs/python.md", "README.md")
)
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
    (example,) = EXAMPLES
    assert len([line for line in example.splitlines() if line.strip()]) <= 12


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


def test_the_citation_file_has_the_papers_and_the_version_of_the_package():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == gentle_jax.__version__ and cited["cff-version"] == "1.2.0"
    titles = [one["title"] for one in cited["references"]]
    in_readme = re.findall(r"^  title\s+= \{(.+)\}", (ROOT / "README.md").read_text(), re.M)
    assert titles == in_readme and len(titles) == 2


def plain(source, name):
    """Returns the code of a top-level definition without docstring and annotations of arguments."""
    (node,) = (one for one in ast.parse(source).body if getattr(one, "name", "") == name)
    node.body = [one for one in node.body if not isinstance(getattr(one, "value", 0), ast.Constant)
                 or isinstance(one, ast.AnnAssign)]  # fmt: skip
    if isinstance(node, ast.FunctionDef):
        node.returns = None
        for argument in node.args.args:
            argument.annotation = None
    return ast.unparse(node)


def test_the_method_of_the_readme_is_focal():
    method, _ = BLOCKS  # the other one: test_agents.py
    assert len(method.splitlines()) <= 25
    focal = (ROOT / "gentle_jax/algorithms/focal.py").read_text()
    for name in ("Config", "make"):
        assert plain(method, name) == plain(focal, name)
    in_docs = re.search(
        r"^```python\n# my_lab/method.py\n(.*?)^```$",
        (ROOT / "docs/own.md").read_text(),
        re.S | re.M,
    )
    assert method.partition("\n")[2] == in_docs[1]
    known = {}
    exec(compile(method, "README.md", "exec"), known)
    assert known["SETTINGS"] is registry.load("algorithm", "focal").SETTINGS


def test_the_table_of_the_readme_is_of_its_file():
    text = (ROOT / "README.md").read_text()
    (path,) = re.findall(r"`(experiments/results/methods_\w+\.json)`", text)
    cells = {cell["row"]: cell for cell in json.loads((ROOT / path).read_text())["cells"]}
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| (.+) \| (.+) \|$", text, re.M)
    assert len(rows) == len(cells) == 12
    for name, protocol, own, given in rows:
        cell = cells[name.replace("told the task", "task revealed")]
        assert cell["protocols"][0] == protocol
        for shown, of in ((own, protocol), (given, "given_context")):
            entry = tables.entry(cell, of, "test")
            interval = methods.interval(entry)
            assert shown == f"{methods.normalized(entry)} ({interval})"


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
