"""Behaviour data: one online SAC agent per task, all tasks in one compiled program.

Source: docs/methods/data.md, "Behaviour agents". A level is the agent at one moment of its
training; sampled episodes of every level are stored. A task may have several copies of its
environment, which step side by side and feed one replay buffer; steps count those of all copies.
Deviations:

- levels are taken at exact environment steps, not at the next episode's end;
- tasks have different keys, the releases seed all alike;
- a level within the random phase (none at published sizes) stores episodes of random actions;
- where N copies step at once, the updates of these N steps follow after them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from gentle_jax import behaviour_sac, evaluation, rng, sweep
from gentle_jax.config import BehaviourConfig
from gentle_jax.rng import stream
from gentle_jax.types import (
    Backbone,
    Cond,
    Env,
    EnvState,
    Index,
    Section,
    Spec,
    Task,
    Transition,
    pytree,
)  # fmt: skip

SCORED_EPISODES = 10  # deterministic, per task and level, for the expert's return


@pytree
class CollectState:
    """One task's agent, environments and replay buffer; mapped over tasks. N = copies."""

    agent: behaviour_sac.SACState
    env_state: EnvState  # leaves [N, ...]
    obs: Float[Array, "N obs"]
    clock: Int[Array, " N"]  # steps into the episode
    replay: Transition  # leaves [rows, ...], a ring; N rows are written at once


Keys = Key[Array, " T"]
PerTask = Float[Array, " T"]
Init = Callable[[Task, Keys], CollectState]
AdvanceAgents = Callable[[Task, Keys, CollectState, Index, Index], tuple[CollectState, PerTask]]
Episodes = Callable[[Task, Keys, CollectState, Index], tuple[dict, PerTask, PerTask]]


class Collector(NamedTuple):
    """Programs over all tasks: leaves of tasks, states and keys have a [task] axis."""

    init: Init
    advance: AdvanceAgents  # (tasks, keys, state, start, length) -> (state, mean critic loss)
    # (tasks, keys, state, step)
    #     -> ({field: [T, E, H, ...]}, mean return of these, mean deterministic return)
    episodes: Episodes


def levels(behaviour: BehaviourConfig) -> list[int]:
    """Returns the environment steps at which episodes are stored."""
    return [behaviour.first_level + i * behaviour.level_every for i in range(behaviour.num_levels)]


def task_keys(behaviour: BehaviourConfig, num_tasks: int) -> Keys:
    """Returns one key per task."""
    key = rng.key(behaviour.seed)
    return jax.vmap(functools.partial(stream, key, "behaviour"))(jnp.arange(num_tasks))


def replay_rows(behaviour: BehaviourConfig) -> int:
    """Returns the rows of each task's replay buffer."""
    return min(behaviour.replay_rows or behaviour.num_steps, behaviour.num_steps)


class _Setup(NamedTuple):
    """What the functions below share; nothing of it is traced."""

    env: Env
    behaviour: BehaviourConfig
    rl: Backbone
    hp: Section


def make(env: Env, behaviour: BehaviourConfig, mesh: Mesh | None = None) -> Collector:
    """Returns the Collector.

    Args: env, with raw observations; mesh, from `sweep.make_mesh`: the devices that tasks are split
    over.
    """
    settings = behaviour_sac.Config(
        width=behaviour.width, lr=behaviour.lr, discount=behaviour.discount, tau=behaviour.tau
    )
    spec = Spec(env.obs_dim, env.action_dim, 1, behaviour.num_steps, env.horizon)
    hp = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, float)}
    setup = _Setup(env, behaviour, behaviour_sac.make(settings, 0, spec), hp)

    def over(function, num_mapped):  # tasks side by side: simulations gain from width
        one = functools.partial(function, setup)
        return sweep.over_runs(one, num_mapped, mesh, in_turn=False)

    return Collector(over(_init_task, 2), over(_advance_task, 3), over(_episodes_task, 3))


def _init_task(setup, task, key):
    env, rows, copies = setup.env, replay_rows(setup.behaviour), setup.behaviour.num_envs
    keys = _per_copy(stream(key, "reset"), copies)
    env_state, obs = jax.vmap(env.reset, (None, 0))(task, keys)
    vector = lambda size: jnp.zeros((rows, size))
    replay = Transition(
        vector(env.obs_dim), vector(env.action_dim), jnp.zeros(rows), jnp.zeros(rows),
        vector(env.obs_dim), jnp.zeros(rows),
    )  # fmt: skip
    return CollectState(
        agent=setup.rl.init(setup.hp, stream(key, "init")),
        env_state=jax.tree.map(jnp.copy, env_state),
        obs=jnp.copy(obs),
        clock=jnp.zeros(copies, jnp.int32),
        replay=replay,
    )


def _advance_task(setup, task, key, state, start, length):
    """Takes `length` environment steps from step `start`: all copies step, then the agent learns.

    Returns (CollectState, mean critic loss).
    """
    copies = setup.behaviour.num_envs

    def body(i, carry):
        state, total = carry
        state, loss = _step_task(setup, task, key, state, start + i * copies)
        return state, total + loss

    count = length // copies
    state, total = jax.lax.fori_loop(0, count, body, (state, jnp.zeros(())))
    return state, total / count


def _step_task(setup, task, key, state, index):
    """One step of every copy, and the updates that it earns; returns (CollectState, loss).

    `index` has no task axis, so the `cond` on it stays a branch.
    """
    env, behaviour = setup.env, setup.behaviour
    k_act, k_random, k_reset, k_learn = jax.random.split(stream(key, "step", index), 4)

    def copy_step(env_state, obs, clock, k_act, k_random, k_reset):
        sampled = setup.rl.act(state.agent, obs, jnp.zeros(0), k_act)
        action = jnp.where(
            index < behaviour.seed_steps, evaluation.uniform_action(env, k_random), sampled
        )
        env_state, out = env.step(task, env_state, action)
        row = Transition(obs, action, out.reward, out.context_reward, out.obs, out.terminal)
        over = (out.terminal > 0) | (clock + 1 >= env.horizon)
        fresh = env.reset(task, k_reset)
        env_state, obs = jax.tree.map(
            lambda a, b: jnp.where(over, a, b), fresh, (env_state, out.obs)
        )
        return env_state, obs, jnp.where(over, 0, clock + 1), row

    keys = [_per_copy(k, behaviour.num_envs) for k in (k_act, k_random, k_reset)]
    env_state, obs, clock, rows = jax.vmap(copy_step)(
        state.env_state, state.obs, state.clock, *keys
    )
    at = index % replay_rows(behaviour)
    write = lambda buffer, new: jax.lax.dynamic_update_slice_in_dim(buffer, new, at, 0)
    replay = jax.tree.map(write, state.replay, rows)
    state = state.replace(env_state=env_state, obs=obs, clock=clock, replay=replay)
    learn = lambda agent: _learn(setup, agent, replay, k_learn, index)
    due = index >= behaviour.seed_steps
    # the branch reads the buffer; if it returned it, too, XLA might copy it at every step
    agent, loss = jax.lax.cond(due, learn, lambda agent: (agent, jnp.zeros(())), state.agent)
    return state.replace(agent=agent), loss


def _learn(setup, agent, replay, key, index):
    """Returns (agent, mean critic loss) after the updates that a step of all copies earns.

    Args: replay, the ring with rows up to step `index`.
    """
    behaviour = setup.behaviour
    copies, size = behaviour.num_envs, behaviour.batch_size
    filled = jnp.minimum(index + copies, replay_rows(behaviour))
    count = round(copies * behaviour.updates_per_step)
    done = index // copies * count

    def update(i, carry):
        agent, total = carry
        k_rows, k_update = jax.random.split(key if count == 1 else jax.random.fold_in(key, i))
        rows = jax.random.randint(k_rows, (1, size), 0, filled)
        batch = jax.tree.map(lambda x: x[rows], replay)
        no_z = jnp.zeros((1, size, 0))
        cond = Cond(no_z, no_z)
        agent, _, metrics = setup.rl.update(agent, setup.hp, batch, cond, k_update, done + i)
        return agent, total + metrics["q_loss"]

    carry = (agent, jnp.zeros(()))
    agent, total = update(0, carry) if count == 1 else jax.lax.fori_loop(0, count, update, carry)
    return agent, total / count


def _episodes_task(setup, task, key, state, at):
    """Returns (fields of the stored episodes, their mean return, the deterministic return)."""
    env, rl, no_z = setup.env, setup.rl, jnp.zeros(0)
    stored = setup.behaviour.episodes_per_level
    k_sampled, k_scored = jax.random.split(stream(key, "episodes", at))

    def episode(k, scored):
        """A sampled episode, or a deterministic one where it is scored; both are one program.

        Simulations take long to compile.
        """

        def policy(obs, k, index):
            k_act, k_random = jax.random.split(k)
            drawn = rl.act(state.agent, obs, no_z, k_act)
            # what the agent does at this moment of its training: random actions at first
            random = at < setup.behaviour.seed_steps
            drawn = jnp.where(random, evaluation.uniform_action(env, k_random), drawn)
            return jnp.where(scored, rl.mode(state.agent, obs, no_z), drawn)

        return evaluation.rollout(env, task, policy, k)

    keys = [jax.random.split(k_sampled, stored), jax.random.split(k_scored, SCORED_EPISODES)]
    flags = jnp.arange(stored + SCORED_EPISODES) >= stored
    rows, mask = jax.vmap(episode)(jnp.concatenate(keys), flags)
    returns = jax.vmap(evaluation.episode_return)(rows, mask)
    fields = jax.tree.map(lambda x: x[:stored], {**rows._asdict(), "mask": mask})
    return fields, returns[:stored].mean(), returns[stored:].mean()


def _per_copy(key, copies):
    """Returns keys [N]; the first is `key` itself: one copy's stream does not depend on N."""
    rest = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(1, copies))
    return jnp.concatenate([key[None], rest])
