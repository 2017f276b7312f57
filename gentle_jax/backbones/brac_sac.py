"""SAC with a V-function and BRAC's dual KL penalty.

ctmrl_suite.md sec. 2, gentle_suite.md sec. 8.1.
Order of one update, pinned by a test: dual critic (num_batches steps), Q, V with the updated Q,
target V, policy with the updated Q, dual weight. The dual estimate uses the updated dual critic.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import distributions, learner, losses, networks
from gentle_jax.types import Backbone


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of ctmrl_suite.md sec. 2 and 12.1; floats are leaves of `hp`."""

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


@struct.dataclass
class BracState:
    """Leaves of one run; the two critics are stacked [2]."""

    policy: dict
    critics: dict
    value: dict
    target_value: dict
    dual: dict
    alpha: jax.Array
    policy_moments: tuple
    critic_moments: tuple
    value_moments: tuple
    dual_moments: tuple


class _Nets(NamedTuple):
    policy: networks.Network
    critics: networks.Network  # two, stacked
    value: networks.Network
    critic: networks.Network  # one: the dual critic's shape

    def heads(self, params, obs, z):
        """Mean and log std of the policy before tanh."""
        return distributions.split_heads(self.policy.apply(params, obs, z), -20.0, 0.0)

    def q(self, params, obs, action, z):
        """[2, row]."""
        return self.critics.apply(params, obs, action, z)[..., 0]

    def v(self, params, obs, z):
        """[row]."""
        return self.value.apply(params, obs, z)[..., 0]

    def dual(self, params, obs, action, z):
        """[row]."""
        return self.critic.apply(params, obs, action, z)[..., 0]


def make(config, latent_dim, spec):
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    nets = _networks(config, latent_dim, spec)

    def update(state, hp, batches, z, key, index):
        del index
        k_dual, k_policy = jax.random.split(key)
        batch = jax.tree.map(lambda x: x[0], batches)
        if config.use_brac:

            def body(state, inputs):
                fresh, k = inputs
                return _dual_step(config, nets, state, hp, fresh, z, k), None

            keys = jax.random.split(k_dual, config.dual_steps)
            state, _ = jax.lax.scan(body, state, (batches, keys))
        state, dz, q_loss = _critic_step(nets, state, hp, batch, z)
        policy_grads, policy_aux = _policy_gradient(config, nets, state, hp, batch, z, k_policy)
        state, v_loss = _value_step(nets, state, hp, batch, z, policy_aux["soft_value"])
        policy, moments = learner.adam_step(
            state.policy, policy_grads, state.policy_moments, hp["policy_lr"]
        )
        state = state.replace(policy=policy, policy_moments=moments)
        if config.use_brac:
            state = _dual_weight_step(config, state, hp, policy_aux["divergence"])
        metrics = {
            "q_loss": q_loss,
            "v_loss": v_loss,
            "entropy": policy_aux["entropy"],
            "divergence": policy_aux["divergence"],
        }
        return state, dz, metrics

    def act(state, obs, z, key):
        return distributions.sample(*nets.heads(state.policy, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(nets.heads(state.policy, obs, z)[0])

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
        policy=policy,
        critics=critics,
        value=value,
        target_value=learner.copy(value),
        dual=dual,
        alpha=jnp.asarray(hp["alpha_init"], jnp.float32) + 0.0,  # a copy: hp is kept too
        policy_moments=learner.adam_init(policy),
        critic_moments=learner.adam_init(critics),
        value_moments=learner.adam_init(value),
        dual_moments=learner.adam_init(dual),
    )


def _dual_step(config, nets, state, hp, batch, z, key):
    """One step of the critic that estimates KL(policy | data)."""
    k_action, k_mix = jax.random.split(key)
    action, _ = distributions.sample(*nets.heads(state.policy, batch.obs, z), k_action)
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
        return -estimate + hp["penalty_weight"] * penalty

    grads = jax.grad(loss)(state.dual)
    dual, moments = learner.adam_step(state.dual, grads, state.dual_moments, hp["dual_lr"])
    return state.replace(dual=dual, dual_moments=moments)


def _critic_step(nets, state, hp, batch, z):
    next_value = nets.v(state.target_value, batch.next_obs, z)
    keep = (1.0 - batch.terminal) * hp["discount"]
    target = jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * next_value)
    return learner.critic_step(nets.q, state, batch, z, target, hp["lr"])


def _policy_gradient(config, nets, state, hp, batch, z, key):
    """Returns (gradient, what the value step, the dual weight and the metrics need of it)."""

    def loss(policy):
        mean, log_std = nets.heads(policy, batch.obs, z)
        action, log_p = distributions.sample(mean, log_std, key)
        value = nets.q(state.critics, batch.obs, action, z).min(0)
        total = (log_p - value).mean()
        gap = jnp.zeros(())
        if config.use_brac:
            c_policy = nets.dual(state.dual, batch.obs, action, z)
            c_data = nets.dual(state.dual, batch.obs, batch.action, z)
            gap = losses.dual_kl(c_policy, c_data).mean()
            total += jnp.clip(state.alpha, 0.0, hp["alpha_max"]) * gap
        total += hp["mean_penalty"] * (mean**2).mean() + hp["std_penalty"] * (log_std**2).mean()
        return total, {"soft_value": value - log_p, "divergence": gap, "entropy": -log_p.mean()}

    grads, aux = jax.grad(loss, has_aux=True)(state.policy)
    return grads, jax.lax.stop_gradient(aux)


def _value_step(nets, state, hp, batch, z, soft_value):
    def loss(value):
        return losses.mse(nets.v(value, batch.obs, z), soft_value)

    v_loss, grads = jax.value_and_grad(loss)(state.value)
    value, moments = learner.adam_step(state.value, grads, state.value_moments, hp["lr"])
    target = learner.polyak(state.target_value, value, hp["tau"])
    return state.replace(value=value, value_moments=moments, target_value=target), v_loss


def _dual_weight_step(config, state, hp, gap):
    alpha = state.alpha + hp["alpha_lr"] * (gap - hp["target_divergence"])
    if config.clip_stored_alpha:
        alpha = jnp.clip(alpha, 0.0, hp["alpha_max"])
    return state.replace(alpha=alpha)
