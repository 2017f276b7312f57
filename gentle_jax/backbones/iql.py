"""IQL: values of actions that are in the data only, and a policy that imitates the better ones.

    advantage A = min targetQ(s, a) - V(s)              s, a of the data everywhere
    V:       mean |expectile - 1(A < 0)| A^2
    policy:  -mean min(exp(beta A), max_weight) log pi(a | s)                   with the updated V
    critics: mean (Q1 - y)^2 + mean (Q2 - y)^2, y = scale r + (1 - end) gamma V(s'); then targets

Kostrikov, Nair and Levine 2022; docs/methods/backbones.md, "IQL".
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import distributions, learner, losses, networks
from gentle_jax.learner import Trained
from gentle_jax.types import Backbone, Spec, pytree

LOG_STD_RANGE = (-5.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/backbones.md, "IQL"; floats are leaves of `hp`."""

    width: int = 256
    depth: int = 2
    lr: float = 3e-4  # critics and value
    policy_lr: float = 3e-4
    expectile: float = 0.7
    beta: float = 3.0  # the inverse temperature of advantages
    max_weight: float = 100.0
    discount: float = 0.99
    reward_scale: float = 1.0
    tau: float = 0.005


@pytree
class IQLState:
    """Leaves of one run; the two critics are stacked [2]."""

    policy: Trained  # {"mean": network, "log_std": [A]}
    critics: Trained
    target_critics: dict
    value: Trained


Rows = Float[Array, "... F"]
Actions = Float[Array, "... A"]
Z = Float[Array, "... Z"]


class _Nets(NamedTuple):
    policy: networks.Network  # its mean, within (-1, 1)
    critics: networks.Network  # two, stacked
    value: networks.Network
    action_dim: int

    def heads(self, params: dict, obs: Rows, z: Z) -> tuple[Actions, Actions]:
        """Mean and log std of the policy: a Gaussian over actions, its spread is that of no row."""
        mean = self.policy.apply(params["mean"], obs, z)
        return mean, jnp.broadcast_to(jnp.clip(params["log_std"], *LOG_STD_RANGE), mean.shape)

    def q(self, params: dict, obs: Rows, action: Actions, z: Z) -> Float[Array, "critic ..."]:
        """Both critics' values."""
        return self.critics.apply(params, obs, action, z)[..., 0]

    def v(self, params: dict, obs: Rows, z: Z) -> Float[Array, "..."]:
        """Values of states."""
        return self.value.apply(params, obs, z)[..., 0]


def make(config: Config, latent_dim: int, spec: Spec) -> Backbone:
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, cond, key, index):
        """Value, policy, critics, targets; nothing is drawn."""
        del key, index
        batch, cond = jax.tree.map(lambda x: x[0], (batches, cond))
        value_of_data = nets.q(state.target_critics, batch.obs, batch.action, cond.now).min(0)
        state, v_loss = _value_step(nets, state, hp, batch, cond.now, value_of_data)
        state, metrics = _policy_step(nets, state, hp, batch, cond.now, value_of_data)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, cond)
        target = learner.polyak(state.target_critics, state.critics.params, hp["tau"])
        losses_now = {"q_loss": q_loss, "v_loss": v_loss}
        return state.replace(target_critics=target), dz, losses_now | metrics

    def act(state, obs, z, key):
        mean, log_std = nets.heads(state.policy.params, obs, z)
        return jnp.clip(mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape), -1.0, 1.0)

    def mode(state, obs, z):
        return nets.heads(state.policy.params, obs, z)[0]

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
        policy=net(seen, out_dims=spec.action_dim, style="policy", squash=True),
        critics=networks.ensemble(net(seen + spec.action_dim, out_dims=1), 2),
        value=net(seen, out_dims=1),
        action_dim=spec.action_dim,
    )


def _init(nets, hp, key):
    del hp
    k_policy, k_critic, k_value = jax.random.split(key, 3)
    critics = nets.critics.init(k_critic)
    policy = {"mean": nets.policy.init(k_policy), "log_std": jnp.zeros(nets.action_dim)}
    return IQLState(
        policy=Trained.of(policy),
        critics=Trained.of(critics),
        target_critics=learner.copy(critics),
        value=Trained.of(nets.value.init(k_value)),
    )


def _value_step(nets, state, hp, batch, z, value_of_data):
    """Returns (state, loss): V towards an expectile of the values of the data's actions."""

    def loss(value):
        total = losses.expectile(value_of_data - nets.v(value, batch.obs, z), hp["expectile"])
        return total, total

    value, v_loss = state.value.descend(loss, hp["lr"])
    return state.replace(value=value), v_loss


def _policy_step(nets, state, hp, batch, z, value_of_data):
    """Returns (state, metrics): the data's actions, those of a larger advantage more."""
    advantage = value_of_data - nets.v(state.value.params, batch.obs, z)
    weight = jnp.minimum(jnp.exp(hp["beta"] * advantage), hp["max_weight"])

    def loss(policy):
        heads = nets.heads(policy, batch.obs, z)
        log_p = distributions.log_normal(batch.action, *heads).sum(-1)
        return -(weight * log_p).mean(), log_p.mean()

    policy, log_p = state.policy.descend(loss, hp["policy_lr"])
    return state.replace(policy=policy), {"weight": weight.mean(), "log_likelihood": log_p}


def _critic_step(nets, state, hp, batch, cond):
    keep = (1.0 - batch.terminal) * hp["discount"]
    next_value = nets.v(state.value.params, batch.next_obs, cond.next)
    target = jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * next_value)
    step = learner.critic_step(nets.q, state.critics, batch, cond.now, target, hp["lr"])
    critics, dz, q_loss = step
    return state.replace(critics=critics), dz, q_loss
