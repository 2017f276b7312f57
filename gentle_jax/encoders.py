"""Context encoders as belief functions: `prior`, `extend`, `sample` of a Representation."""

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import networks


@struct.dataclass
class SetBelief:
    """Sum and count of per-transition codes; z is their mean, 0 before any transition."""

    total: jax.Array  # [Z]
    count: jax.Array  # scalar


def context_row(transition, use_next_obs):
    """Returns context features [..., F]: s, a, r (and s'); never the end flag."""
    parts = [transition.obs, transition.action, transition.context_reward[..., None]]
    if use_next_obs:
        parts.append(transition.next_obs)
    return jnp.concatenate(parts, axis=-1)


def row_size(spec, use_next_obs):
    """Returns F, the size of one context row."""
    return spec.obs_dim * (2 if use_next_obs else 1) + spec.action_dim + 1


def mean_encoder(spec, width, depth, latent_dim, use_next_obs):
    """Returns (network, prior, extend, sample) of z = mean_t tanh(f(x_t)).

    Source: ctmrl_suite.md sec. 1 and gentle_suite.md sec. 3.1. `extend` takes `params` first;
    it is permutation invariant, and rows with mask 0 change nothing.
    """
    network = networks.mlp(
        row_size(spec, use_next_obs), width, depth, latent_dim, squash=True,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def prior():
        return SetBelief(jnp.zeros(latent_dim), jnp.zeros(()))

    def extend(params, belief, transitions, mask):
        codes = network.apply(params, context_row(transitions, use_next_obs))  # [C, Z]
        codes = jnp.where(mask[:, None] > 0, codes, 0.0)  # a NaN in a padded row stays out
        return SetBelief(belief.total + codes.sum(0), belief.count + mask.sum())

    def sample(belief, key):
        del key  # deterministic: no information bottleneck in either paper
        return belief.total / jnp.maximum(belief.count, 1.0)

    return network, prior, extend, sample
