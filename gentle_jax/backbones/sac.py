"""Online SAC that makes behaviour data (ctmrl_suite.md sec. 14, gentle_suite.md sec. 9.1).

Also usable offline: it is the same contract, with z as part of what the networks see.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import distributions, learner, networks
from gentle_jax.types import Backbone

LOG_STD_RANGE = (-5.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of the behaviour SAC; floats are leaves of `hp`."""

    width: int = 1024
    depth: int = 2
    target_every: int = 2
    lr: float = 1e-4
    discount: float = 0.99
    reward_scale: float = 1.0
    tau: float = 0.005
    init_temperature: float = 0.1


@struct.dataclass
class SACState:
    """Leaves of one agent; the two critics are stacked [2]."""

    policy: dict
    critics: dict
    target_critics: dict
    log_temperature: jax.Array
    policy_moments: tuple
    critic_moments: tuple
    temperature_moments: tuple


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked
    target_entropy: float

    def heads(self, params, obs, z):
        """Mean and log std of the policy before tanh."""
        mean, raw = jnp.split(self.policy.apply(params, obs, z), 2, axis=-1)
        low, high = LOG_STD_RANGE
        return mean, low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)

    def q(self, params, obs, action, z):
        """[2, row]."""
        return self.critics.apply(params, obs, action, z)[..., 0]


def make(config, latent_dim, spec):
    """Returns the Backbone. Args: config, a Config; latent_dim, Z (0 online); spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, z, key, index):
        """Critic, policy, temperature; the targets every `target_every` steps."""
        batch = jax.tree.map(lambda x: x[0], batches)
        k_critic, k_policy = jax.random.split(key)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, z, k_critic)
        state, entropy = _policy_step(nets, state, hp, batch, z, k_policy)
        tau = jnp.where(index % config.target_every == 0, hp["tau"], 0.0)
        target = learner.polyak(state.target_critics, state.critics, tau)
        state = state.replace(target_critics=target)
        return state, dz, {"q_loss": q_loss, "entropy": entropy}

    def act(state, obs, z, key):
        return distributions.sample(*nets.heads(state.policy, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(nets.heads(state.policy, obs, z)[0])

    return Backbone(1, functools.partial(_init, nets), update, act, mode, mode)


def _networks(config, latent_dim, spec):
    seen = spec.obs_dim + latent_dim
    net = functools.partial(
        networks.mlp,
        width=config.width,
        depth=config.depth,
        style="orthogonal",
        precision=spec.precision,
    )
    return _Nets(
        policy=net(seen, out_dims=2 * spec.action_dim),
        critics=networks.ensemble(net(seen + spec.action_dim, out_dims=1), 2),
        target_entropy=-float(spec.action_dim),
    )


def _init(nets, hp, key):
    k_policy, k_critic = jax.random.split(key)
    policy, critics = nets.policy.init(k_policy), nets.critics.init(k_critic)
    log_temperature = jnp.log(jnp.asarray(hp["init_temperature"], jnp.float32))
    return SACState(
        policy=policy,
        critics=critics,
        target_critics=learner.copy(critics),
        log_temperature=log_temperature,
        policy_moments=learner.adam_init(policy),
        critic_moments=learner.adam_init(critics),
        temperature_moments=learner.adam_init(log_temperature),
    )


def _critic_step(nets, state, hp, batch, z, key):
    temperature = jnp.exp(state.log_temperature)
    action, log_p = distributions.sample(*nets.heads(state.policy, batch.next_obs, z), key)
    value = nets.q(state.target_critics, batch.next_obs, action, z).min(0)
    keep = (1.0 - batch.terminal) * hp["discount"]
    target = hp["reward_scale"] * batch.reward + keep * (value - temperature * log_p)
    target = jax.lax.stop_gradient(target)
    return learner.critic_step(nets.q, state, batch, z, target, hp["lr"])


def _policy_step(nets, state, hp, batch, z, key):
    """Policy and temperature; returns the state and the policy's entropy."""
    temperature = jnp.exp(state.log_temperature)

    def loss(policy):
        action, log_p = distributions.sample(*nets.heads(policy, batch.obs, z), key)
        value = nets.q(state.critics, batch.obs, action, z).min(0)
        return (temperature * log_p - value).mean(), log_p.mean()

    (_, log_p), grads = jax.value_and_grad(loss, has_aux=True)(state.policy)
    policy, moments = learner.adam_step(state.policy, grads, state.policy_moments, hp["lr"])
    # d/d log t of t * (-log_p - target): the released temperature loss
    slope = temperature * (-log_p - nets.target_entropy)
    log_temperature, temperature_moments = learner.adam_step(
        state.log_temperature, slope, state.temperature_moments, hp["lr"]
    )
    state = state.replace(
        policy=policy,
        policy_moments=moments,
        log_temperature=log_temperature,
        temperature_moments=temperature_moments,
    )
    return state, -log_p
