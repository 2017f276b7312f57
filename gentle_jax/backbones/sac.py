"""SAC on stored data, with a fixed entropy weight: CORRO's and BOReL's.

    y       = scale r + (1 - end) gamma (min targetQ(s', a') - weight log pi(a'))      a' sampled
    critics: mean (Q1 - y)^2 + mean (Q2 - y)^2; then both targets
    policy:  mean(weight log pi(a) - min Q(s, a)), a drawn anew, with the updated critics

Source: docs/methods/backbones.md, "SAC of CORRO and BOReL". Nothing keeps the policy near the data.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from gentle_jax import distributions, learner, networks
from gentle_jax.learner import Trained
from gentle_jax.types import Backbone, Spec, pytree

LOG_STD_RANGE = (-20.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/backbones.md; floats are leaves of `hp`."""

    width: int = 256
    depth: int = 2
    lr: float = 3e-4  # critics
    policy_lr: float = 3e-4
    entropy_weight: float = 0.2
    discount: float = 0.99
    reward_scale: float = 1.0
    tau: float = 0.005


@pytree
class SACState:
    """Leaves of one run; the two critics are stacked [2]."""

    policy: Trained
    critics: Trained
    target_critics: dict


Rows = Float[Array, "... F"]
Actions = Float[Array, "... A"]
Z = Float[Array, "... Z"]


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked

    def heads(self, params: dict, obs: Rows, z: Z) -> tuple[Actions, Actions]:
        """Mean and log std of the policy before tanh."""
        return distributions.split_heads(self.policy.apply(params, obs, z), *LOG_STD_RANGE)

    def q(self, params: dict, obs: Rows, action: Actions, z: Z) -> Float[Array, "critic ..."]:
        """Both critics' values."""
        return self.critics.apply(params, obs, action, z)[..., 0]


def make(config: Config, latent_dim: int, spec: Spec) -> Backbone:
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, cond, key, index):
        """Critics, targets, policy."""
        del index
        batch, cond = jax.tree.map(lambda x: x[0], (batches, cond))
        k_target, k_policy = jax.random.split(key)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, cond, k_target)
        target = learner.polyak(state.target_critics, state.critics.params, hp["tau"])
        state = state.replace(target_critics=target)
        state, entropy = _policy_step(nets, state, hp, batch, cond.now, k_policy)
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
        hidden_init=spec.init,
        precision=spec.precision,
    )
    return _Nets(
        policy=net(seen, out_dims=(spec.action_dim,) * 2, style="policy"),
        critics=networks.ensemble(net(seen + spec.action_dim, out_dims=1), 2),
    )


def _init(nets, hp, key):
    del hp
    k_policy, k_critic = jax.random.split(key)
    policy, critics = nets.policy.init(k_policy), nets.critics.init(k_critic)
    return SACState(Trained.of(policy), Trained.of(critics), learner.copy(critics))


def _critic_step(nets, state, hp, batch, cond, key):
    heads = nets.heads(state.policy.params, batch.next_obs, cond.next)
    action, log_p = distributions.sample_exact(*heads, key)
    value = nets.q(state.target_critics, batch.next_obs, action, cond.next).min(0)
    soft_value = value - hp["entropy_weight"] * log_p
    keep = (1.0 - batch.terminal) * hp["discount"]
    target = jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * soft_value)
    step = learner.critic_step(nets.q, state.critics, batch, cond.now, target, hp["lr"])
    critics, dz, q_loss = step
    return state.replace(critics=critics), dz, q_loss


def _policy_step(nets, state, hp, batch, z, key):
    """Returns (state, the policy's entropy)."""

    def loss(policy):
        action, log_p = distributions.sample_exact(*nets.heads(policy, batch.obs, z), key)
        value = nets.q(state.critics.params, batch.obs, action, z).min(0)
        return (hp["entropy_weight"] * log_p - value).mean(), log_p.mean()

    policy, log_p = state.policy.descend(loss, hp["policy_lr"])
    return state.replace(policy=policy), -log_p
