"""The encoder: codes of rows on the unit sphere, and their attention as a running softmax."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gentle_jax import encoders, networks
from gentle_jax.compose import Encoder
from gentle_jax.losses import NORM_FLOOR
from gentle_jax.types import Spec, pytree

LOWEST = float(np.finfo(np.float32).min)  # finite, so that no difference of two is NaN


@pytree
class Attended:
    """A softmax over the rows so far. Weights are relative to exp(peak): none overflows."""

    peak: Float[Array, ""]  # the largest score
    weight: Float[Array, ""]  # sum of exp(score - peak)
    total: Float[Array, " Z"]  # sum of exp(score - peak) * code


def attention_encoder(spec: Spec, latent_dim: int, width: int, depth: int) -> Encoder:
    """Returns the Encoder z = sum_t softmax_t(u . e_t + b) e_t, e_t = E1(x_t) of length 1.

    Parts: `encoder`, E1, whose rows hold s' everywhere, and `attention`, (u, b). The order of rows
    does not matter; rows with mask 0 change nothing; z is 0 before any row.
    """
    network = networks.mlp(
        encoders.row_size(spec, True), width, depth, latent_dim,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip
    score = networks.mlp(latent_dim, width, 0, 1, precision=spec.precision)  # linear

    def init(key):
        k_encoder, k_attention = jax.random.split(key)
        return {"encoder": network.init(k_encoder), "attention": score.init(k_attention)}

    def codes_and_scores(params, rows):
        codes = network.apply(params["encoder"], encoders.context_row(rows, True))
        codes = codes / jnp.sqrt((codes**2).sum(-1, keepdims=True) + NORM_FLOOR)
        return codes, score.apply(params["attention"], codes)[..., 0]

    def encode(params, context, task_id, key):
        del task_id, key  # deterministic
        codes, scores = codes_and_scores(params, context)
        weights = jax.nn.softmax(scores, axis=1)
        return codes, (weights[..., None] * codes).sum(1)

    def prior(params):
        del params
        return Attended(jnp.full((), LOWEST), jnp.zeros(()), jnp.zeros(latent_dim))

    def extend(params, belief, rows, mask):
        codes, scores = codes_and_scores(params, rows)
        real = mask > 0
        codes = jnp.where(real[:, None], codes, 0.0)  # a NaN in a padded row stays out
        scores = jnp.where(real, scores, LOWEST)
        peak = jnp.maximum(belief.peak, scores.max())
        before = jnp.exp(belief.peak - peak)
        weights = jnp.where(real, jnp.exp(scores - peak), 0.0)
        total = before * belief.total + (weights[:, None] * codes).sum(0)
        return Attended(peak, before * belief.weight + weights.sum(), total)

    def sample(params, belief, key):
        del params, key
        return belief.total / jnp.maximum(belief.weight, 1.0)  # at least 1 after any row

    return Encoder(init, encode, prior, extend, sample)
