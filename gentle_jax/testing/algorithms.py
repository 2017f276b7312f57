"""Checks of algorithms. Each says in words what an author should change."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import learner, rng
from gentle_jax.testing.trees import check_finite, check_shapes, louder, named, row, same, with_row
from gentle_jax.types import AgentState, Algorithm, Dataset, Representation, Stage


class Taken(NamedTuple):
    """Two steps of a stage, of two runs side by side."""

    step: Callable  # jitted: (states, data, keys, index) -> (states, metrics)
    keys: Any  # [2]
    before: AgentState  # the states before the second step
    after: AgentState
    metrics: dict


def take_steps(stage: Stage, states: AgentState, data: Dataset) -> Taken:
    """Returns two steps of a stage, whose states and metrics keep the contract."""
    keys = jax.random.split(rng.key(7), 2)
    step = jax.jit(jax.vmap(stage.step, (0, None, 0, None)))
    what = f"stage {stage.name!r}"
    for index in (0, 1):
        after, metrics = step(states, data, keys, jnp.int32(index))
        # one tree of one shape through all stages: checkpoints and scans need it
        check_shapes(states, after, f"{what}: the state after a step")
        check_finite(what, after, states)
        check_finite(what, metrics)
        for name, metric in named(metrics):
            assert metric.shape == (2,), f"{what}: metric {name} is no scalar: {metric.shape[1:]}"
        moved = not same(row(after, 0), row(states, 0))
        assert moved, f"{what}: step {index} changes nothing in the state"
        if index == 0:
            states = after
    return Taken(step, keys, states, after, metrics)


def check_isolated(name: str, taken: Taken, data: Dataset) -> None:
    """Asserts that another state and key of run 1 leave every bit of run 0 alone."""
    states, keys = taken.before, taken.keys
    disturbed = with_row(states, 1, louder(row(states, 1), 1.5))
    other_keys = jax.vmap(jax.random.key)(jnp.arange(2)).at[0].set(keys[0])
    again, _ = taken.step(disturbed, data, other_keys, jnp.int32(1))
    kept = same(row(again, 0), row(taken.after, 0))
    assert kept, f"stage {name!r}: a run depends on the others that run beside it"
    changed = not same(row(again, 1), row(taken.after, 1))
    assert changed, f"stage {name!r}: a step depends neither on its state nor on its key"


def check_critics(name: str, taken: Taken, data: Dataset, reads_dz: bool, is_last: bool) -> None:
    """Asserts that the critics reach the representation where its traits say so, else nowhere.

    Another RL learner, rewards scaled otherwise, the same keys (no relabelling at index 1).
    """
    states = taken.before
    three = jnp.full(2, 3.0, jnp.float32)
    hp = states.hp | {"backbone": states.hp["backbone"] | {"reward_scale": three}}
    scaled = states.replace(rl=louder(states.rl, 1.1), hp=hp)
    scaled, _ = taken.step(scaled, data, taken.keys, jnp.int32(1))
    assert not same(scaled.rl, taken.after.rl), f"stage {name!r}: another RL learner is no other"
    if not reads_dz:  # bit by bit
        alone = same(scaled.rep, taken.after.rep)
        assert alone, (
            f"stage {name!r}: the backbone changes the representation; "
            "declare traits=Traits(critic_gradient=True)"
        )
    elif is_last:
        reached = not same(scaled.rep, taken.after.rep)
        assert reached, "traits say critic_gradient, but dz does not reach the representation"


def check_sweeps(
    name: str, taken: Taken, data: Dataset, config: config_lib.ExperimentConfig
) -> bool:
    """Asserts that other values of all swept floats compile nothing.

    Returns whether those of the algorithm alone, not of the backbone, change what is learned.
    """
    swept = {key: v * 0.5 for key, v in config_lib.swept_fields(config).items()}
    own = {key: v for key, v in swept.items() if key.startswith("algo.")}
    for values in (swept, own):
        hp = config_lib.hyper_params(config, ({}, values))
        after, _ = taken.step(taken.before.replace(hp=hp), data, taken.keys, jnp.int32(1))
    compiled = taken.step._cache_size()
    assert compiled == 1, (
        f"stage {name!r} was compiled {compiled} times: swept floats are leaves of `hp`"
    )
    learned = lambda states: row((states.rep, states.rl), 1)
    return not same(learned(after), learned(taken.after))


def check_beliefs(rep: Representation, state: Any, data: Dataset, size: int) -> None:
    """Asserts the shapes of `prior`, `extend`, `observe` and `sample`; nothing is compiled."""

    def run(state, data, key):
        rows = row_of_context(data, key)
        prior = rep.prior(state)
        longer = rep.extend(state, prior, rows, jnp.ones(rows.reward.shape))
        one = jax.tree.map(lambda x: x[0], rows)
        seen = prior if rep.observe is None else rep.observe(state, prior, one)
        return prior, longer, seen

    key = rng.key(0)
    prior, longer, seen = jax.eval_shape(run, state, data, key)
    # a belief is a carry of scans: weak types do not matter where shapes and dtypes are the same
    strong = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    check_shapes(strong(prior), strong(longer), "the belief of `extend`, beside that of `prior`,")
    check_shapes(strong(prior), strong(seen), "the belief of `observe`, beside that of `prior`,")
    for name, belief in (("a longer belief", longer), ("the prior", prior)):
        found = jax.eval_shape(rep.sample, state, belief, key)
        right = (found.shape, found.dtype) == ((size,), jnp.float32)
        assert right, (
            f"`sample` of {name} returns {found.dtype}{list(found.shape)}, expected "
            f"float32[{size}]: Z of the backbone, `z_dim` or train.latent_dim"
        )


def row_of_context(data: Dataset, key: Any) -> Any:
    """Returns rows [8, ...] of the first task."""
    rows = data_lib.context_rows(data, jnp.zeros(1, jnp.int32), 8, key)
    return jax.tree.map(lambda x: x[0], rows)


# --- what z is


class Seen(NamedTuple):
    """z of all training tasks by a representation that is as loud as a trained one."""

    traits: Any
    z: Any  # [task, Z]
    changed: Any  # the same after task 1's context has changed
    prior: Any  # [Z]
    action: Any  # of the backbone at the prior z


def look(
    algorithm: Algorithm, num_tasks: int, obs_dim: int, state: AgentState, data: Dataset
) -> Seen:
    """Returns the Seen of one run. Args: num_tasks, training tasks."""
    rep = algorithm.rep

    @jax.jit
    def run(loud, rl, data, key):
        ids = jnp.arange(num_tasks)
        context = data_lib.context_rows(data, ids, 8, key)
        other = jax.tree.map(lambda x: x.at[1].set(0.7), context)
        z, changed = (learner.encode_tasks(rep, loud, c, ids, key) for c in (context, other))
        prior = rep.sample(loud, rep.prior(loud), key)
        return z, changed, prior, algorithm.rl.mode(rl, jnp.zeros(obs_dim), prior)

    found = run(louder(state.rep, 5), state.rl, data, rng.key(0))
    return Seen(rep.traits, *map(np.asarray, found))


def check_z_of_own_context(seen: Seen) -> None:
    """Asserts that z depends on its own task's context only, or on none where traits say so."""
    traits, z, changed, *_ = seen
    others = np.array_equal(np.delete(changed, 1, 0), np.delete(z, 1, 0))
    assert others, "z of a task changes with the context of another one"
    if traits.no_context:
        alone = np.array_equal(changed[1], z[1])
        assert alone, "traits say no_context, but z changes with the context"
    else:
        depends = not np.array_equal(changed[1], z[1]) and np.std(z, 0).max() > 1e-4
        assert depends, "z does not depend on its context; declare traits=Traits(no_context=True)"


def check_z_range(seen: Seen) -> None:
    """Asserts that z lies within [-1, 1], or leaves it where traits say so."""
    within, unbounded = (np.abs(seen.z) < 1.0).all(), seen.traits.unbounded_z
    assert within != unbounded, (
        f"z up to {np.abs(seen.z).max():.3g} with unbounded_z={unbounded}: "
        "change the trait, or squash z"
    )


def check_prior_z(seen: Seen) -> None:
    """Asserts that the prior z is 0, or not where traits say so, and that the backbone takes it."""
    zero, learned = (seen.prior == 0.0).all(), seen.traits.learned_prior
    assert zero != learned, f"z of the prior is {seen.prior} with learned_prior={learned}"
    shape = seen.z.shape[1:]
    assert seen.prior.shape == shape, f"z of the prior has shape {seen.prior.shape}, not {shape}"
    assert np.isfinite(seen.action).all(), "the backbone's action at the prior z is not finite"
