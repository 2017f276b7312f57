"""Terms that several methods share: one function a published loss."""

import chex
import jax
import jax.numpy as jnp

from gentle_jax import losses, networks
from gentle_jax.compose import Term
from gentle_jax.learner import Trained
from gentle_jax.types import Spec


def focal() -> Term:
    """Returns FOCAL's inverse-distance metric, times `focal_weight`."""

    def loss(params, own, hp, seen, key):
        return hp["focal_weight"] * losses.focal(seen.z, seen.batch.task_id)

    return Term(loss)


def critic() -> Term:
    """Returns the term by which the critics' loss shapes z: its gradient is dz."""

    def loss(params, own, hp, seen, key):
        chex.assert_equal_shape([seen.z, seen.dz])  # one z a task
        return (seen.z * jax.lax.stop_gradient(seen.dz)).sum()

    return Term(loss)


def club(spec: Spec, latent_dim: int, width: int, depth: int) -> Term:
    """Returns CLUB's bound on I(z; (s, a)), times `club_weight` (CSRO).

    Its network p(z | s, a) takes one step first, on codes without gradient, times
    `club_model_weight`; the bound uses the updated one.
    """
    net = networks.mlp(
        spec.obs_dim + spec.action_dim, width, depth, 2 * latent_dim, squash=True,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def heads(params, context):
        mean, raw = jnp.split(net.apply(params, context.obs, context.action), 2, axis=-1)
        return mean, jax.nn.softplus(raw)

    def before(own, hp, seen, key):
        def loss(params):
            heads_now = heads(params, seen.batch.context)
            value = hp["club_model_weight"] * losses.club_likelihood(seen.row_codes, *heads_now)
            return value, {"club_model_loss": value}

        return own.descend(loss, hp["lr"])

    def loss(params, own, hp, seen, key):
        return hp["club_weight"] * losses.club_bound(
            seen.row_codes, *heads(own.params, seen.batch.context)
        )

    return Term(loss, lambda key, data: ({}, Trained.of(net.init(key))), before)
