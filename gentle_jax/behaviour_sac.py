"""Online SAC that makes behaviour data (docs/methods/backbones.md, "Behaviour SAC").

It keeps the contract of a backbone, but is none of the registry: `backbones.sac` learns offline.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import distributions, learner, networks
from gentle_jax.learner import Trained
from gentle_jax.types import Backbone, Spec, pytree

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


@pytree
class SACState:
    """Leaves of one agent; the two critics are stacked [2]."""

    policy: Trained
    critics: Trained
    target_critics: dict
    log_temperature: Trained  # scalar


Rows = Float[Array, "... F"]
Actions = Float[Array, "... A"]
Z = Float[Array, "... Z"]


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked
    target_entropy: float

    def heads(self, params: dict, obs: Rows, z: Z) -> tuple[Actions, Actions]:
        """Mean and log std of the policy before tanh."""
        mean, raw = jnp.split(self.policy.apply(params, obs, z), 2, axis=-1)
        low, high = LOG_STD_RANGE
        return mean, low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)

    def q(self, params: dict, obs: Rows, action: Actions, z: Z) -> Float[Array, "critic ..."]:
        """Both critics' values."""
        return self.critics.apply(params, obs, action, z)[..., 0]


def make(config: Config, latent_dim: int, spec: Spec) -> Backbone:
    """Returns the Backbone. Args: config, a Config; latent_dim, Z (0 here); spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, cond, key, index):
        """Critic, policy, temperature; the targets every `target_every` steps."""
        batch, cond = jax.tree.map(lambda x: x[0], (batches, cond))
        k_critic, k_policy = jax.random.split(key)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, cond, k_critic)
        state, entropy = _policy_step(nets, state, hp, batch, cond.now, k_policy)
        tau = jnp.where(index % config.target_every == 0, hp["tau"], 0.0)
        target = learner.polyak(state.target_critics, state.critics.params, tau)
        state = state.replace(target_critics=target)
        return state, dz, {"q_loss": q_loss, "entropy": entropy}

    def act(state, obs, z, key):
        return distributions.sample_exact(*nets.heads(state.policy.params, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(nets.heads(state.policy.params, obs, z)[0])

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
        policy=Trained.of(policy),
        critics=Trained.of(critics),
        target_critics=learner.copy(critics),
        log_temperature=Trained.of(log_temperature),
    )


def _critic_step(nets, state, hp, batch, cond, key):
    temperature = jnp.exp(state.log_temperature.params)
    heads = nets.heads(state.policy.params, batch.next_obs, cond.next)
    action, log_p = distributions.sample_exact(*heads, key)
    value = nets.q(state.target_critics, batch.next_obs, action, cond.next).min(0)
    keep = (1.0 - batch.terminal) * hp["discount"]
    target = hp["reward_scale"] * batch.reward + keep * (value - temperature * log_p)
    target = jax.lax.stop_gradient(target)
    step = learner.critic_step(nets.q, state.critics, batch, cond.now, target, hp["lr"])
    critics, dz, q_loss = step
    return state.replace(critics=critics), dz, q_loss


def _policy_step(nets, state, hp, batch, z, key):
    """Policy and temperature; returns the state and the policy's entropy."""
    temperature = jnp.exp(state.log_temperature.params)

    def loss(policy):
        action, log_p = distributions.sample_exact(*nets.heads(policy, batch.obs, z), key)
        value = nets.q(state.critics.params, batch.obs, action, z).min(0)
        return (temperature * log_p - value).mean(), log_p.mean()

    policy, log_p = state.policy.descend(loss, hp["lr"])
    # d/d log t of t * (-log_p - target): the released temperature loss
    slope = temperature * (-log_p - nets.target_entropy)
    log_temperature = state.log_temperature.step(slope, hp["lr"])
    return state.replace(policy=policy, log_temperature=log_temperature), -log_p
