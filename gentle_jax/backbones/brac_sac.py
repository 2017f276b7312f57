"""SAC with a V-function and BRAC's dual KL penalty.

Source: docs/methods/backbones.md, "BRAC-SAC".
Order of one update, pinned by a test: dual critic (num_batches steps), Q, V with the updated Q,
target V, policy with the updated Q, dual weight. The dual estimate uses the updated dual critic.
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


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/backbones.md, "BRAC-SAC"; floats are leaves of `hp`."""

    width: int = 256
    depth: int = 3
    use_brac: bool = True  # False: neither the penalty nor its critic (they would have no effect)
    dual_steps: int = 3
    true_gradient_penalty: bool = False  # False: the released penalty on the critic's value
    clip_stored_alpha: bool = False  # False: the stored dual weight winds up, as released
    lr: float = 3e-4  # critics and value
    policy_lr: float = 3e-4
    dual_lr: float = 1e-4
    alpha_lr: float = 1.0
    alpha_init: float = 500.0
    alpha_max: float = 2000.0
    target_divergence: float = 0.05
    penalty_weight: float = 5.0
    discount: float = 0.99
    reward_scale: float = 5.0
    tau: float = 0.005
    mean_penalty: float = 1e-3
    std_penalty: float = 1e-3


@pytree
class BracState:
    """Leaves of one run; the two critics are stacked [2]."""

    policy: Trained
    critics: Trained
    value: Trained
    target_value: dict
    dual: Trained
    alpha: jax.Array


Rows = Float[Array, "... F"]
Z = Float[Array, "... Z"]


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked
    value: networks.Network
    critic: networks.Network  # one: the dual critic's shape

    def heads(self, params: dict, obs: Rows, z: Z) -> tuple[Rows, Rows]:
        """Mean and log std of the policy before tanh."""
        return distributions.split_heads(self.policy.apply(params, obs, z), -20.0, 0.0)

    def q(self, params: dict, obs: Rows, action: Rows, z: Z) -> Float[Array, "critic ..."]:
        """Both critics' values."""
        return self.critics.apply(params, obs, action, z)[..., 0]

    def v(self, params: dict, obs: Rows, z: Z) -> Float[Array, "..."]:
        """Values of states."""
        return self.value.apply(params, obs, z)[..., 0]

    def dual(self, params: dict, obs: Rows, action: Rows, z: Z) -> Float[Array, "..."]:
        """The dual critic's values."""
        return self.critic.apply(params, obs, action, z)[..., 0]


def make(config: Config, latent_dim: int, spec: Spec) -> Backbone:
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, cond, key, index):
        del index
        k_dual, k_policy = jax.random.split(key)
        batch, z = jax.tree.map(lambda x: x[0], (batches, cond.now))
        if config.use_brac:
            state = _dual_steps(config, nets, state, hp, batches, cond.now, k_dual, k_policy)
        state, dz, q_loss = _critic_step(nets, state, hp, batch, z, cond.next[0])
        state, soft_value, metrics = _policy_step(config, nets, state, hp, batch, z, k_policy)
        state, v_loss = _value_step(nets, state, hp, batch, z, soft_value)
        if config.use_brac:
            state = _dual_weight_step(config, state, hp, metrics["divergence"])
        return state, dz, {"q_loss": q_loss, "v_loss": v_loss} | metrics

    def act(state, obs, z, key):
        return distributions.sample(*nets.heads(state.policy.params, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(nets.heads(state.policy.params, obs, z)[0])

    init = functools.partial(_init, nets)
    return Backbone(config.dual_steps if config.use_brac else 1, init, update, act, mode, mode)


def _networks(config, latent_dim, spec):
    seen = spec.obs_dim + latent_dim
    net = functools.partial(
        networks.mlp,
        width=config.width,
        depth=config.depth,
        hidden_init=spec.init,
        precision=spec.precision,
    )
    critic = net(seen + spec.action_dim, out_dims=1)
    return _Nets(
        policy=net(seen, out_dims=(spec.action_dim,) * 2, style="policy"),
        critics=networks.ensemble(critic, 2),
        value=net(seen, out_dims=1),
        critic=critic,
    )


def _init(nets, hp, key):
    keys = jax.random.split(key, 4)
    policy, critics, value, dual = (n.init(k) for n, k in zip(nets, keys, strict=True))
    return BracState(
        policy=Trained.of(policy),
        critics=Trained.of(critics),
        value=Trained.of(value),
        target_value=learner.copy(value),
        dual=Trained.of(dual),
        alpha=jnp.asarray(hp["alpha_init"], jnp.float32) + 0.0,  # a copy: hp is kept too
    )


def _dual_steps(config, nets, state, hp, batches, z, key, k_policy):
    """The steps of the critic that estimates KL(policy | data), a batch each.

    The first one uses the actions of the policy step that follows: they are drawn once.
    """
    k_action, k_mix = jax.vmap(jax.random.split, out_axes=1)(
        jax.random.split(key, config.dual_steps)
    )
    k_action = jnp.concatenate([k_policy[None], k_action[1:]])

    def body(state, inputs):
        return _dual_step(config, nets, state, hp, *inputs), None

    return jax.lax.scan(body, state, (batches, z, k_action, k_mix))[0]


def _dual_step(config, nets, state, hp, batch, z, k_action, k_mix):
    """One step of that critic."""
    action, _ = distributions.sample(*nets.heads(state.policy.params, batch.obs, z), k_action)
    mix = jax.random.uniform(k_mix, (batch.reward.shape[0], 1))
    mixed = action + mix * (batch.action - action)

    def loss(dual):
        at = lambda a: nets.dual(dual, batch.obs, a, z)
        if config.true_gradient_penalty:
            slope = jax.grad(lambda a: at(a).sum())(mixed)
            penalty = losses.value_penalty(jnp.sqrt(1e-8 + (slope**2).sum(-1)))
        else:
            penalty = losses.value_penalty(at(mixed))
        estimate = losses.dual_kl(at(action), at(batch.action)).mean()
        return -estimate + hp["penalty_weight"] * penalty, None

    return state.replace(dual=state.dual.descend(loss, hp["dual_lr"])[0])


def _critic_step(nets, state, hp, batch, z, z_next):
    next_value = nets.v(state.target_value, batch.next_obs, z_next)
    keep = (1.0 - batch.terminal) * hp["discount"]
    target = jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * next_value)
    critics, dz, q_loss = learner.critic_step(nets.q, state.critics, batch, z, target, hp["lr"])
    return state.replace(critics=critics), dz, q_loss


def _policy_step(config, nets, state, hp, batch, z, key):
    """Returns (state, soft value [N] that the value step aims at, metrics)."""

    def loss(policy):
        mean, log_std = nets.heads(policy, batch.obs, z)
        action, log_p = distributions.sample(mean, log_std, key)
        value = nets.q(state.critics.params, batch.obs, action, z).min(0)
        total = (log_p - value).mean()
        gap = jnp.zeros(())
        if config.use_brac:
            c_policy = nets.dual(state.dual.params, batch.obs, action, z)
            c_data = nets.dual(state.dual.params, batch.obs, batch.action, z)
            gap = losses.dual_kl(c_policy, c_data).mean()
            total += jnp.clip(state.alpha, 0.0, hp["alpha_max"]) * gap
        total += hp["mean_penalty"] * (mean**2).mean() + hp["std_penalty"] * (log_std**2).mean()
        return total, (value - log_p, {"entropy": -log_p.mean(), "divergence": gap})

    policy, (soft_value, metrics) = state.policy.descend(loss, hp["policy_lr"])
    return state.replace(policy=policy), soft_value, metrics


def _value_step(nets, state, hp, batch, z, soft_value):
    """Returns (state, loss): V towards the soft value of the policy before its step."""

    def loss(value):
        error = losses.mse(nets.v(value, batch.obs, z), soft_value)
        return error, error

    value, v_loss = state.value.descend(loss, hp["lr"])
    target = learner.polyak(state.target_value, value.params, hp["tau"])
    return state.replace(value=value, target_value=target), v_loss


def _dual_weight_step(config, state, hp, gap):
    alpha = state.alpha + hp["alpha_lr"] * (gap - hp["target_divergence"])
    if config.clip_stored_alpha:
        alpha = jnp.clip(alpha, 0.0, hp["alpha_max"])
    return state.replace(alpha=alpha)
