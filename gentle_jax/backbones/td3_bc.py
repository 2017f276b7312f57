"""TD3+BC as GENTLE uses it (docs/methods/backbones.md, "TD3+BC").

The min of two critics, sampled actions in the cloning term, targets that move with the delayed
actor. Deviations from the original TD3+BC, all the release's: lambda uses min(Q1, Q2); the policy
is a tanh-Gaussian whose sample enters the actor loss and whose mean enters targets and evaluation.
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/backbones.md, "TD3+BC"; floats are leaves of `hp`."""

    width: int = 256
    depth: int = 3
    policy_delay: int = 2
    lr: float = 3e-4
    discount: float = 0.99
    reward_scale: float = 5.0
    tau: float = 0.005
    bc_weight: float = 2.5  # alpha: lambda = alpha / mean |Q|
    policy_noise: float = 0.2
    noise_clip: float = 0.5


@pytree
class TD3BCState:
    """Leaves of one run; critics are stacked [2]."""

    policy: Trained
    target_policy: dict
    critics: Trained
    target_critics: dict


Rows = Float[Array, "... F"]
Z = Float[Array, "... Z"]


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked

    def heads(self, params: dict, obs: Rows, z: Z) -> tuple[Rows, Rows]:
        """Mean and log std of the policy before tanh."""
        return distributions.split_heads(self.policy.apply(params, obs, z), -20.0, 0.0)

    def q(self, params: dict, obs: Rows, action: Rows, z: Z) -> Float[Array, "critic ..."]:
        """Both critics' values."""
        return self.critics.apply(params, obs, action, z)[..., 0]


def make(config: Config, latent_dim: int, spec: Spec) -> Backbone:
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, cond, key, index):
        """Critic step; then, every `policy_delay` steps from step 0, actor and target updates."""
        batch, cond = jax.tree.map(lambda x: x[0], (batches, cond))
        k_target, k_actor = jax.random.split(key)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, cond, k_target)
        state, cloning = jax.lax.cond(
            index % config.policy_delay == 0,  # no run axis: the skipped branch costs nothing
            lambda s: _actor_step(nets, s, hp, batch, cond.now, k_actor),
            lambda s: (s, jnp.zeros(())),
            state,
        )
        return state, dz, {"q_loss": q_loss, "bc_loss": cloning * config.policy_delay}

    def act(state, obs, z, key):
        return distributions.sample(*nets.heads(state.policy.params, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(nets.heads(state.policy.params, obs, z)[0])

    def target_mode(state, obs, z):
        return distributions.mode(nets.heads(state.target_policy, obs, z)[0])

    return Backbone(1, functools.partial(_init, nets), update, act, mode, target_mode)


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
    return TD3BCState(
        policy=Trained.of(policy),
        target_policy=learner.copy(policy),
        critics=Trained.of(critics),
        target_critics=learner.copy(critics),
    )


def _critic_target(nets, state, hp, batch, z, key):
    noise = jax.random.normal(key, batch.action.shape) * hp["policy_noise"]
    noise = jnp.clip(noise, -hp["noise_clip"], hp["noise_clip"])
    mean, _ = nets.heads(state.target_policy, batch.next_obs, z)
    action = jnp.clip(distributions.mode(mean) + noise, -1.0, 1.0)
    value = nets.q(state.target_critics, batch.next_obs, action, z).min(0)
    keep = (1.0 - batch.terminal) * hp["discount"]
    return jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * value)


def _critic_step(nets, state, hp, batch, cond, key):
    target = _critic_target(nets, state, hp, batch, cond.next, key)
    step = learner.critic_step(nets.q, state.critics, batch, cond.now, target, hp["lr"])
    critics, dz, q_loss = step
    return state.replace(critics=critics), dz, q_loss


def _actor_step(nets, state, hp, batch, z, key):
    def loss(policy):
        action, _ = distributions.sample(*nets.heads(policy, batch.obs, z), key)
        value = nets.q(state.critics.params, batch.obs, action, z).min(0)
        scale = hp["bc_weight"] / jax.lax.stop_gradient(jnp.abs(value).mean())
        cloning = ((action - batch.action) ** 2).mean()
        return -scale * value.mean() + cloning, cloning

    policy, cloning = state.policy.descend(loss, hp["lr"])
    state = state.replace(
        policy=policy,
        target_policy=learner.polyak(state.target_policy, policy.params, hp["tau"]),
        target_critics=learner.polyak(state.target_critics, state.critics.params, hp["tau"]),
    )
    return state, cloning
