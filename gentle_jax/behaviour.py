"""Behaviour data: one online SAC agent per task, all tasks in one compiled program.

Source: ctmrl_suite.md sec. 14, gentle_suite.md sec. 9. Every `level` is a checkpoint along training
whose sampled episodes are stored. Deviations: levels are taken at exact environment steps, not at
the next episode's end; tasks have different keys (the releases seed all alike); a level within the
random seed phase (none at published sizes) stores episodes of random actions.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import evaluation
from gentle_jax.backbones import sac
from gentle_jax.rng import stream
from gentle_jax.types import Backbone, Env, Spec, Transition

SCORED_EPISODES = 10  # deterministic, per task and level, for the expert's return


@struct.dataclass
class CollectState:
    """One task's agent, environment and replay buffer; mapped over tasks."""

    agent: sac.SACState
    env_state: dict
    obs: jax.Array  # [obs_dim]
    clock: jax.Array  # scalar int32, steps into the episode
    replay: Transition  # leaves [num_steps, ...], row i is environment step i


class Collector(NamedTuple):
    """Programs over all tasks: leaves of states have a [task] axis."""

    init: callable  # (keys [T]) -> CollectState
    advance: callable  # (CollectState, keys [T], start, length) -> (CollectState, metrics [T])
    episodes: callable  # (CollectState, keys [T], step) -> (fields [T, E, H, ...], returns [T] x 2)


def levels(behaviour):
    """Returns the environment steps at which episodes are stored."""
    return [behaviour.first_level + i * behaviour.level_every for i in range(behaviour.num_levels)]


def task_keys(behaviour, num_tasks):
    """Returns one key per task, [T]."""
    key = jax.random.key(behaviour.seed)
    return jax.vmap(functools.partial(stream, key, "behaviour"))(jnp.arange(num_tasks))


class _Setup(NamedTuple):
    """What the functions below share; nothing of it is traced."""

    env: Env
    behaviour: object  # a BehaviourConfig
    rl: Backbone
    hp: dict


def make(env, behaviour):
    """Returns the Collector. Args: env, an unnormalised Env; behaviour, a BehaviourConfig."""
    settings = sac.Config(width=behaviour.width, lr=behaviour.lr, discount=behaviour.discount)
    spec = Spec(env.obs_dim, env.action_dim, 1, behaviour.num_steps, env.horizon)
    hp = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, float)}
    setup = _Setup(env, behaviour, sac.make(settings, 0, spec), hp)
    step = jax.vmap(functools.partial(_step_task, setup), (0, 0, 0, None))
    episodes = jax.vmap(functools.partial(_episodes_task, setup), (0, 0, 0, None))

    def advance(state, keys, start, length):
        def body(i, carry):
            state, total = carry
            state, loss = step(env.tasks, state, keys, start + i)
            return state, total + loss

        state, total = jax.lax.fori_loop(0, length, body, (state, jnp.zeros(keys.shape[0])))
        return state, total / length

    return Collector(
        init=lambda keys: jax.vmap(functools.partial(_init_task, setup))(env.tasks, keys),
        advance=advance,
        episodes=lambda state, keys, at: episodes(env.tasks, state, keys, at),
    )


def _init_task(setup, task, key):
    env, rows = setup.env, setup.behaviour.num_steps
    env_state, obs = env.reset(task, stream(key, "reset"))
    vector = lambda size: jnp.zeros((rows, size))
    replay = Transition(
        vector(env.obs_dim), vector(env.action_dim), jnp.zeros(rows), jnp.zeros(rows),
        vector(env.obs_dim), jnp.zeros(rows),
    )  # fmt: skip
    return CollectState(
        agent=setup.rl.init(setup.hp, stream(key, "init")),
        env_state=jax.tree.map(jnp.copy, env_state),
        obs=jnp.copy(obs),
        clock=jnp.zeros((), jnp.int32),
        replay=replay,
    )


def _step_task(setup, task, state, key, index):
    """One environment step; the random phase of seed steps has no run axis in its condition."""
    env, behaviour = setup.env, setup.behaviour
    k_act, k_random, k_reset, k_learn = jax.random.split(stream(key, "step", index), 4)
    random = _uniform_action(env, k_random)
    sampled = setup.rl.act(state.agent, state.obs, jnp.zeros(0), k_act)
    action = jnp.where(index < behaviour.seed_steps, random, sampled)
    env_state, out = env.step(task, state.env_state, action)
    row = Transition(state.obs, action, out.reward, out.context_reward, out.obs, out.terminal)
    replay = jax.tree.map(lambda buffer, x: buffer.at[index].set(x), state.replay, row)
    over = (out.terminal > 0) | (state.clock + 1 >= env.horizon)
    fresh = env.reset(task, k_reset)
    env_state, obs = jax.tree.map(lambda a, b: jnp.where(over, a, b), fresh, (env_state, out.obs))
    clock = jnp.where(over, 0, state.clock + 1)
    state = state.replace(env_state=env_state, obs=obs, clock=clock, replay=replay)
    due = index >= behaviour.seed_steps
    learn = lambda s: _learn(setup, s, k_learn, index)
    return jax.lax.cond(due, learn, lambda s: (s, jnp.zeros(())), state)


def _learn(setup, state, key, index):
    """One SAC update on rows of the replay buffer, which holds rows 0 to `index`."""
    k_rows, k_update = jax.random.split(key)
    size = setup.behaviour.batch_size
    rows = jax.random.randint(k_rows, (1, size), 0, index + 1)
    batch = jax.tree.map(lambda x: x[rows], state.replay)
    no_z = jnp.zeros((size, 0))
    agent, _, metrics = setup.rl.update(state.agent, setup.hp, batch, no_z, k_update, index)
    return state.replace(agent=agent), metrics["q_loss"]


def _episodes_task(setup, task, state, key, at):
    """Returns (fields of the stored episodes, their mean return, the deterministic return)."""
    env, rl, no_z = setup.env, setup.rl, jnp.zeros(0)
    k_sampled, k_scored = jax.random.split(stream(key, "episodes", at))
    run = lambda policy, k: evaluation.rollout(env, task, policy, k)

    def sampled(obs, k, index):
        """What the agent does at this point of its training: random during the seed phase."""
        k_act, k_random = jax.random.split(k)
        drawn = rl.act(state.agent, obs, no_z, k_act)
        return jnp.where(at <= setup.behaviour.seed_steps, _uniform_action(env, k_random), drawn)

    scored = evaluation.deterministic(rl, state.agent, no_z)
    keys = jax.random.split(k_sampled, setup.behaviour.episodes_per_level)
    rows, mask = jax.vmap(lambda k: run(sampled, k))(keys)
    returns = jax.vmap(evaluation.episode_return)(rows, mask)
    best = lambda k: evaluation.episode_return(*run(scored, k))
    expert = jax.vmap(best)(jax.random.split(k_scored, SCORED_EPISODES))
    return {**rows._asdict(), "mask": mask}, returns.mean(), expert.mean()


def _uniform_action(env, key):
    return jax.random.uniform(key, (env.action_dim,), minval=-1.0, maxval=1.0)
