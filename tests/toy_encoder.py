"""A context encoder that is only a factor: z is the mean observation, so tests can choose z."""

import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax.compose import Encoder
from gentle_jax.types import MetaBatch, Transition


def rows_of(obs):
    """Returns the Transition of observations [..., Z]; everything else is 0."""
    obs = jnp.asarray(obs, jnp.float32)
    zero = jnp.zeros(obs.shape[:-1])
    return Transition(obs, zero[..., None], zero, zero, obs, zero)


def batch_of(z, task_id=None, key=None):
    """Returns the MetaBatch whose contexts, of one row, have these z [T, Z]."""
    context = rows_of(jnp.asarray(z)[:, None])
    ids = jnp.arange(len(z)) if task_id is None else jnp.asarray(task_id)
    return MetaBatch(context, context, ids, key)


def dataset_of(obs):
    """Returns the Dataset with these observations [task, row, Z]."""
    obs = jnp.asarray(obs, jnp.float32)
    start = jnp.tile(jnp.array([0, obs.shape[1]], jnp.int32), (obs.shape[0], 1))
    return data_lib.Dataset(rows_of(obs), start, 1, 1)


def encode(params, context, task_id, key):
    """Codes are a factor times the observations, z is their mean."""
    codes = params["encoder"] * context.obs
    return codes, codes.mean(1)


ENCODER = Encoder(
    init=lambda key: {"encoder": jnp.ones(())},
    encode=encode,
    prior=lambda params: jnp.zeros(2),
    extend=lambda params, belief, rows, mask: belief + (mask[:, None] * rows.obs).sum(0),
    sample=lambda params, belief, key: params["encoder"] * belief,
)
