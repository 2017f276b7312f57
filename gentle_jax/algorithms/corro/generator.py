"""The CVAE of p(s', r | s, a), and what the negatives of a query are (docs/methods/corro.md)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import data as data_lib
from gentle_jax import encoders, losses, networks
from gentle_jax.algorithms.corro.settings import Config
from gentle_jax.compose import Seen, Term
from gentle_jax.types import RandomKey, Section, Spec, Transition

Codes = Float[Array, "*rows code"]


class CVAE(NamedTuple):
    """A conditional variational auto-encoder of (s', r) given (s, a)."""

    init: Callable[[RandomKey], dict]
    encode: Callable[[dict, Transition], tuple[Codes, Codes]]  # -> mean, log-variance
    # (params, obs, action, codes) -> s', r; of N codes a row, [rows, N, code], as many s' and r
    decode: Callable[..., tuple[Float[Array, "... obs"], Float[Array, " ..."]]]


def make(config: Config, spec: Spec) -> CVAE:
    """Returns the CVAE: one hidden layer each way; s' itself, not its difference from s."""
    size = config.code_dim
    form = {"hidden_init": spec.init, "precision": spec.precision}
    encoder = networks.mlp(
        encoders.row_size(spec, True), config.cvae_width, 1, (size, size), **form
    )
    seen = spec.obs_dim + spec.action_dim + size
    decoder = networks.mlp(seen, config.cvae_width, 1, spec.obs_dim + 1, **form)

    def init(key):
        k_encoder, k_decoder = jax.random.split(key)
        return {"encoder": encoder.init(k_encoder), "decoder": decoder.init(k_decoder)}

    def encode(params, rows):
        out = encoder.apply(params["encoder"], encoders.context_row(rows, True))
        return tuple(jnp.split(out, 2, axis=-1))

    def decode(params, obs, action, codes):
        out = decoder.apply(params["decoder"], obs, action, codes)
        return out[..., :-1], out[..., -1]

    return CVAE(init, encode, decode)


def term(cvae: CVAE) -> Term:
    """Returns the Term whose parameters are the CVAE's: its loss on the rows of the batch."""

    def loss(params, own, hp, seen, key):
        rows = seen.batch.context
        mean, log_variance = cvae.encode(params, rows)
        codes = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        next_obs, reward = cvae.decode(params, rows.obs, rows.action, codes)
        error = losses.mse(next_obs, rows.next_obs) + losses.mse(reward, rows.context_reward)
        return hp["kl_weight"] * losses.standard_kl(mean, log_variance).mean() + error

    return Term(loss, lambda key, data: (cvae.init(key), {}))


def negatives(
    config: Config,
    spec: Spec,
    cvae: CVAE,
    hp: Section,
    seen: Seen,
    queries: Transition,
    key: RandomKey,
) -> Transition:
    """Returns the negatives [Q, N, ...] of queries [Q, ...]: see NEGATIVES of the settings.

    All but "none" keep the query's (s, a). Args: seen, whose `params` have the CVAE's.
    """
    shape = queries.reward.shape[0], config.num_negatives
    if config.negatives == "none":
        k_task, k_row = jax.random.split(key)
        ids = jax.random.randint(k_task, shape, 0, spec.num_train_tasks).reshape(-1)
        rows = data_lib.context_rows(seen.data, ids, 1, k_row)
        return jax.tree.map(lambda x: x.reshape(shape + x.shape[2:]), rows)
    repeat = lambda x: jnp.broadcast_to(x[:, None], shape + x.shape[1:])
    rows = jax.tree.map(repeat, queries)
    if config.negatives == "reward":
        noise = hp["reward_std"] * jax.random.normal(key, shape)
        return rows._replace(context_reward=rows.context_reward + noise)
    codes = jax.random.normal(key, (*shape, config.code_dim))
    params = jax.lax.stop_gradient(seen.params["cvae"])
    next_obs, reward = cvae.decode(params, queries.obs, queries.action, codes)
    return rows._replace(context_reward=reward, next_obs=next_obs)
