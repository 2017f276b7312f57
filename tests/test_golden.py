"""One whole step on fixed inputs gives the numbers that the first version of this code gave.

`golden/steps.npz` holds what changed in each case: `<case>/out/<name>`, where a name such as
`encoder/Dense_0/kernel` says which array it is, wherever the state keeps it; `mu/encoder` are the
first moments of all arrays of a network, flat. What is not in the file must not change.
`golden/steps.json` holds settings, keys and metrics. They were written once, by the code of
version 0.1 (commit 929ae2b), and are never made anew: a new value is a change of the algorithm.

Inputs are not stored: every array is drawn from its name and shape (`golden_cases`), so that they
do not depend on how the state is laid out. `PLACES` is all that does.

The steps are jitted without XLA's optimisations (`conftest`). With them, or op by op, rounding
moves parameters by some 1e-7.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_tiny
from golden_cases import CASES, SEED, TASKS, dataset, draw, value_of

FOLDER = pathlib.Path(__file__).parent / "golden"

# --- where things are: all that depends on the layout of a state


class Place(NamedTuple):
    """Dotted paths in the state of one run."""

    params: str
    moments: str = ""  # Adam's state, where there is one
    inside: str = ""  # where in its `mu` and `nu`


def _trained(path, inside=""):
    """The Place of a `learner.Trained`, or of one part of what it trains."""
    end = f".{inside}" if inside else ""
    return Place(f"{path}.params{end}", f"{path}.moments", inside)


_PAIR = {"policy": _trained("rl.policy"), "critics": _trained("rl.critics")}
PLACES = {
    "ctmrl": {
        "encoder": _trained("rep.trained.encoder"),
        "reward": _trained("rep.trained.prediction", "reward"),
        "transition": _trained("rep.trained.prediction", "transition"),
        "club": _trained("rep.own.club"),
        "codes": _trained("rep.trained.codebook"),
        **{
            name: Place(f"rep.own.codebook.{name}")
            for name in ("mean", "size", "matrix", "bag", "codes_on")
        },
    },
    "gentle": {
        "encoder": _trained("rep.trained.encoder"),
        "decoder": _trained("rep.trained.context"),
        "models": _trained("rep.own.relabelling.models.trained"),
        **{
            name: Place(f"rep.own.relabelling.models.{name}")
            for name in ("best", "best_error", "stale", "holdout", "order")
        },
        "buffer": Place("rep.own.relabelling.buffer"),
    },
    "focal": {"encoder": _trained("rep.trained.encoder")},
    "brac_sac": {
        **_PAIR,
        "value": _trained("rl.value"),
        "target_value": Place("rl.target_value"),
        "dual": _trained("rl.dual"),
        "alpha": Place("rl.alpha"),
    },
    "td3_bc": {
        **_PAIR,
        "target_policy": Place("rl.target_policy"),
        "target_critics": Place("rl.target_critics"),
    },
}
ABSENT = {("ctmrl", "paper"): ("club",)}  # parts that were never used and are no longer there
METRIC_NAMES = {}  # case -> {name in `steps.json`: name now}, where a metric was renamed


def make_small(case):
    """Returns the Tiny of a case."""
    return make_tiny(case.algorithm, case.suite, "point_robot", case.backbone, case.fidelity,
                     **case.settings)  # fmt: skip


# --- states as names


def _get(tree, path):
    for part in filter(None, path.split(".")):
        tree = tree[part] if isinstance(tree, dict) else getattr(tree, part)
    return tree


def _put(tree, path, value):
    part, _, rest = path.partition(".")
    if not part:
        return value
    value = _put(_get(tree, part), rest, value)
    if isinstance(tree, dict):
        return tree | {part: value}
    return (tree._replace if hasattr(tree, "_replace") else tree.replace)(**{part: value})


def _paths(case):
    """Yields (name, path) of every part of the state, moments and counts included."""
    places = PLACES[case.algorithm] | PLACES[case.backbone]
    for name in ABSENT.get((case.algorithm, case.fidelity), ()):
        del places[name]
    for name, place in places.items():
        yield name, place.params
        if place.moments:
            end = f".{place.inside}" if place.inside else ""
            yield f"mu/{name}", f"{place.moments}.mu{end}"
            yield f"nu/{name}", f"{place.moments}.nu{end}"
            yield f"count/{name}", f"{place.moments}.count"


def _full(name, path):
    return "/".join([name, *(str(getattr(k, "key", getattr(k, "name", k))) for k in path)])


def to_names(state, case):
    """Returns {name: leaf} of a state."""
    named = {}
    for name, path in _paths(case):
        for inner, leaf in jax.tree_util.tree_flatten_with_path(_get(state, path))[0]:
            named[_full(name, inner)] = leaf
    return named


def to_state(template, values, case):
    """Returns a state with every leaf of `template` that has a name replaced by its value."""
    for name, path in _paths(case):
        part = _get(template, path)
        filled = jax.tree_util.tree_map_with_path(lambda k, _, n=name: values[_full(n, k)], part)
        template = _put(template, path, filled)
    return template


# --- a step


class Run(NamedTuple):
    """One step of a case."""

    inputs: dict  # name -> array
    out: dict
    metrics: dict
    config: Any


@functools.cache
def _program(name):
    """The Tiny and the compiled step of the first case that has the same program."""
    case = CASES[name]
    made = make_small(case)
    return made, jax.jit(made.algorithm.stages[case.stage].step)


def _program_of(case):
    same = lambda other: other._replace(inputs={}, index=0, one_row=False, free=(), free_metrics=())
    return _program(next(name for name, other in CASES.items() if same(other) == same(case)))


def build(case):
    """Returns (Tiny, step, state, inputs): what a case starts from."""
    made, step = _program_of(case)
    shapes = jax.eval_shape(made.state)  # nothing is initialised: every leaf has a name below
    values = {n: value_of(n, leaf, case) for n, leaf in to_names(shapes, case).items()}
    state = to_state(shapes.replace(hp=jax.tree.map(lambda x: x[0], made.hp)), values, case)
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        assert not isinstance(leaf, jax.ShapeDtypeStruct), f"{path} has no name in PLACES"
    return made, step, state, values


def run(case):
    """Runs the step of a case."""
    made, step, state, values = build(case)
    data = jax.tree.map(jnp.asarray, dataset(case))
    new, metrics = step(state, data, jax.random.key(SEED), jnp.int32(case.index))
    out = packed(to_names(jax.tree.map(np.asarray, new), case))
    return Run(values, out, {k: float(v) for k, v in metrics.items()}, made.config)


def packed(values):
    """Returns the arrays that are compared: moments flat by network, labels of a buffer by task."""
    kept = {k: v for k, v in values.items() if k.partition("/")[0] not in ("mu", "nu", "count")}
    for name in sorted(values):
        kind, _, rest = name.partition("/")
        if kind == "mu":
            key = f"mu/{rest.partition('/')[0]}"
            kept[key] = np.concatenate([kept.get(key, np.zeros(0)), np.ravel(values[name])])
    if "buffer/pair" in kept:
        pair, count = kept.pop("buffer/pair"), kept.pop("buffer/count")
        kept["buffer/labels"] = _labels(kept.pop("buffer/reward"), pair, count)
    return kept


def _labels(reward, pair, count):
    """[target, source, row] rewards of a source's rows under a target's model, else 0."""
    slots = reward.shape[1]
    labels = np.zeros((TASKS, TASKS, reward.shape[2]), np.float32)
    for target in range(TASKS):
        for block in pair[target, : count[target]]:
            labels[target, block // slots] = reward[block // slots, block % slots]
    return labels


# --- the tests


def test_inputs_are_the_same_on_any_machine():
    wanted = [[-0.3319, -0.3181], [-0.1289, -0.2159]]
    np.testing.assert_array_equal(draw("encoder/Dense_0/kernel", (2, 2)), np.float32(wanted))


@pytest.fixture(scope="module")
def golden():
    """(arrays, settings) of the stored values."""
    with np.load(FOLDER / "steps.npz") as arrays:
        return dict(arrays), json.loads((FOLDER / "steps.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_it_was(golden, name):
    case, (arrays, stored) = CASES[name], golden
    done, stored = run(case), stored[name]
    before, compared = packed(done.inputs), 0
    for key, value in done.out.items():
        if key in case.free or key.partition("/")[0] in case.free:
            continue
        wanted = arrays.get(f"{name}/out/{key}", before[key])
        # moments hold gradients, which have no common size
        rtol = 1e-5 if key.startswith("mu/") else 0.0
        np.testing.assert_allclose(value, wanted, rtol=rtol, atol=1e-6, err_msg=key)
        compared += f"{name}/out/{key}" in arrays
    assert compared == stored["compared"]
    for key, value in stored["metrics"].items():
        if key not in case.free_metrics:
            now = done.metrics[METRIC_NAMES.get(name, {}).get(key, key)]
            np.testing.assert_allclose(now, value, rtol=1e-5, atol=1e-6, err_msg=key)
