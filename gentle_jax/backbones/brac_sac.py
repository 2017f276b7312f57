"""SAC with a V-function and BRAC's dual KL penalty.

ctmrl_suite.md sec. 2, gentle_suite.md sec. 8.1.
Order of one update, pinned by a test: dual critic (num_batches steps), Q, V with the updated Q,
target V, policy with the updated Q, dual weight. The dual estimate uses the updated dual critic.
"""

import dataclasses
import functools

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


def make(config, latent_dim, spec):
    """Returns the Backbone. Args: config, a Config; latent_dim, Z; spec, a Spec."""
    seen, width, depth = spec.obs_dim + latent_dim, config.width, config.depth
    net = functools.partial(networks.mlp, width=width, depth=depth, hidden_init=spec.init)
    pi = net(seen, out_dims=(spec.action_dim,) * 2, style="policy")
    critic = net(seen + spec.action_dim, out_dims=1)
    q, v = networks.ensemble(critic, 2), net(seen, out_dims=1)
    heads = lambda params, obs, z: distributions.split_heads(pi.apply(params, obs, z), -20.0, 0.0)
    value_of = lambda params, *inputs: critic.apply(params, *inputs)[..., 0]

    def init(hp, key):
        keys = jax.random.split(key, 4)
        nets = (pi, q, v, critic)
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

    def dual_step(state, hp, batch, z, key):
        k_action, k_mix = jax.random.split(key)
        action, _ = distributions.sample(*heads(state.policy, batch.obs, z), k_action)
        mix = jax.random.uniform(k_mix, (z.shape[0], 1))
        mixed = action + mix * (batch.action - action)

        def loss(dual):
            at = lambda a: value_of(dual, batch.obs, a, z)
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

    def critic_step(state, hp, batch, z):
        next_value = v.apply(state.target_value, batch.next_obs, z)[..., 0]
        keep = (1.0 - batch.terminal) * hp["discount"]
        target = jax.lax.stop_gradient(hp["reward_scale"] * batch.reward + keep * next_value)

        def loss(critics, z):
            value = q.apply(critics, batch.obs, batch.action, z)[..., 0]
            return ((value - target) ** 2).mean(1).sum()

        q_loss, (grads, dz) = jax.value_and_grad(loss, (0, 1))(state.critics, z)
        critics, moments = learner.adam_step(state.critics, grads, state.critic_moments, hp["lr"])
        return state.replace(critics=critics, critic_moments=moments), dz, q_loss

    def value_and_policy_step(state, hp, batch, z, key):
        def policy_loss(policy):
            mean, log_std = heads(policy, batch.obs, z)
            action, log_p = distributions.sample(mean, log_std, key)
            value = q.apply(state.critics, batch.obs, action, z)[..., 0].min(0)
            loss = (log_p - value).mean()
            gap = jnp.zeros(())
            if config.use_brac:
                c_policy = value_of(state.dual, batch.obs, action, z)
                gap = losses.dual_kl(
                    c_policy, value_of(state.dual, batch.obs, batch.action, z)
                ).mean()
                loss += jnp.clip(state.alpha, 0.0, hp["alpha_max"]) * gap
            loss += hp["mean_penalty"] * (mean**2).mean() + hp["std_penalty"] * (log_std**2).mean()
            return loss, (value - log_p, gap, log_p)

        (_, aux), policy_grads = jax.value_and_grad(policy_loss, has_aux=True)(state.policy)
        soft_value, gap, log_p = jax.lax.stop_gradient(aux)

        def value_loss(value):
            return losses.mse(v.apply(value, batch.obs, z)[..., 0], soft_value)

        v_loss, value_grads = jax.value_and_grad(value_loss)(state.value)
        value, value_moments = learner.adam_step(
            state.value, value_grads, state.value_moments, hp["lr"]
        )
        policy, policy_moments = learner.adam_step(
            state.policy, policy_grads, state.policy_moments, hp["policy_lr"]
        )
        state = state.replace(
            value=value,
            value_moments=value_moments,
            target_value=learner.polyak(state.target_value, value, hp["tau"]),
            policy=policy,
            policy_moments=policy_moments,
        )
        return state, {"v_loss": v_loss, "entropy": -log_p.mean(), "divergence": gap}

    def dual_weight_step(state, hp, gap):
        alpha = state.alpha + hp["alpha_lr"] * (gap - hp["target_divergence"])
        if config.clip_stored_alpha:
            alpha = jnp.clip(alpha, 0.0, hp["alpha_max"])
        return state.replace(alpha=alpha)

    def update(state, hp, batches, z, key, index):
        del index
        k_dual, k_policy = jax.random.split(key)
        batch = jax.tree.map(lambda x: x[0], batches)
        if config.use_brac:

            def body(state, inputs):
                fresh, k = inputs
                return dual_step(state, hp, fresh, z, k), None

            keys = jax.random.split(k_dual, config.dual_steps)
            state, _ = jax.lax.scan(body, state, (batches, keys))
        state, dz, q_loss = critic_step(state, hp, batch, z)
        state, metrics = value_and_policy_step(state, hp, batch, z, k_policy)
        if config.use_brac:
            state = dual_weight_step(state, hp, metrics["divergence"])
        return state, dz, {"q_loss": q_loss} | metrics

    def act(state, obs, z, key):
        return distributions.sample(*heads(state.policy, obs, z), key)[0]

    def mode(state, obs, z):
        return distributions.mode(heads(state.policy, obs, z)[0])

    return Backbone(config.dual_steps if config.use_brac else 1, init, update, act, mode, mode)
