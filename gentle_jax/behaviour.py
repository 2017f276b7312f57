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
from gentle_jax.types import Spec, Transition

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


def make(env, behaviour):
    """Returns the Collector. Args: env, an unnormalised Env; behaviour, a BehaviourConfig."""
    settings = sac.Config(width=behaviour.width, lr=behaviour.lr, discount=behaviour.discount)
    spec = Spec(env.obs_dim, env.action_dim, 1, behaviour.num_steps, env.horizon)
    rl = sac.make(settings, 0, spec)
    hp = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, float)}
    no_z = jnp.zeros(0)

    def init_task(task, key):
        env_state, obs = env.reset(task, stream(key, "reset"))
        rows, vector = behaviour.num_steps, lambda n: jnp.zeros((behaviour.num_steps, n))
        replay = Transition(
            vector(env.obs_dim), vector(env.action_dim), jnp.zeros(rows), jnp.zeros(rows),
            vector(env.obs_dim), jnp.zeros(rows),
        )  # fmt: skip
        return CollectState(
            agent=rl.init(hp, stream(key, "init")),
            env_state=jax.tree.map(jnp.copy, env_state),
            obs=jnp.copy(obs),
            clock=jnp.zeros((), jnp.int32),
            replay=replay,
        )

    def learn(state, key, index):
        k_rows, k_update = jax.random.split(key)
        rows = jax.random.randint(k_rows, (1, behaviour.batch_size), 0, index + 1)
        batch = jax.tree.map(lambda x: x[rows], state.replay)
        z = jnp.zeros((behaviour.batch_size, 0))
        agent, _, metrics = rl.update(state.agent, hp, batch, z, k_update, index)
        return state.replace(agent=agent), metrics["q_loss"]

    def step_task(task, state, key, index):
        """One environment step; the random phase of seed steps has no run axis in its condition."""
        k_act, k_random, k_reset, k_learn = jax.random.split(stream(key, "step", index), 4)
        uniform = jax.random.uniform(k_random, (env.action_dim,), minval=-1.0, maxval=1.0)
        sampled = rl.act(state.agent, state.obs, no_z, k_act)
        action = jnp.where(index < behaviour.seed_steps, uniform, sampled)
        env_state, out = env.step(task, state.env_state, action)
        row = Transition(state.obs, action, out.reward, out.context_reward, out.obs, out.terminal)
        replay = jax.tree.map(lambda buffer, x: buffer.at[index].set(x), state.replay, row)
        over = (out.terminal > 0) | (state.clock + 1 >= env.horizon)
        fresh = env.reset(task, k_reset)
        env_state, obs = jax.tree.map(
            lambda a, b: jnp.where(over, a, b), fresh, (env_state, out.obs)
        )
        clock = jnp.where(over, 0, state.clock + 1)
        state = state.replace(env_state=env_state, obs=obs, clock=clock, replay=replay)
        due = index >= behaviour.seed_steps
        return jax.lax.cond(
            due, lambda s: learn(s, k_learn, index), lambda s: (s, jnp.zeros(())), state
        )

    def advance(state, keys, start, length):
        def body(i, carry):
            state, total = carry
            one = jax.vmap(step_task, (0, 0, 0, None))
            state, loss = one(env.tasks, state, keys, start + i)
            return state, total + loss

        state, total = jax.lax.fori_loop(0, length, body, (state, jnp.zeros(keys.shape[0])))
        return state, total / length

    def episodes_task(task, state, key, at):
        k_sampled, k_scored = jax.random.split(stream(key, "episodes", at))
        run = lambda policy, k: evaluation.rollout(env, task, policy, k)

        def sampled(obs, k, index):
            """What the agent does at this point of its training: random during the seed phase."""
            k_act, k_random = jax.random.split(k)
            uniform = jax.random.uniform(k_random, (env.action_dim,), minval=-1.0, maxval=1.0)
            drawn = rl.act(state.agent, obs, no_z, k_act)
            return jnp.where(at <= behaviour.seed_steps, uniform, drawn)

        scored = evaluation.deterministic(rl, state.agent, no_z)
        keys = jax.random.split(k_sampled, behaviour.episodes_per_level)
        rows, mask = jax.vmap(lambda k: run(sampled, k))(keys)
        returns = jax.vmap(evaluation.episode_return)(rows, mask)
        best = lambda k: evaluation.episode_return(*run(scored, k))
        expert = jax.vmap(best)(jax.random.split(k_scored, SCORED_EPISODES))
        fields = {**rows._asdict(), "mask": mask}
        return fields, returns.mean(), expert.mean()

    return Collector(
        init=lambda keys: jax.vmap(init_task)(env.tasks, keys),
        advance=advance,
        episodes=lambda s, keys, at: jax.vmap(episodes_task, (0, 0, 0, None))(
            env.tasks, s, keys, at
        ),
    )
