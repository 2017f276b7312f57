"""What CTMRL's terms share: the decoders, the contrast's two views, the codebook's own state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from gentle_jax import data as data_lib
from gentle_jax import losses, networks
from gentle_jax.algorithms.ctmrl import codebook
from gentle_jax.algorithms.ctmrl.settings import Config
from gentle_jax.compose import Seen, Term
from gentle_jax.config import TrainConfig
from gentle_jax.types import Metrics, RandomKey, Spec, Transition, pytree


@pytree
class Shelf:
    """What the term `codebook` owns; the codes [N, Z] themselves are its parameters."""

    mean: Float[Array, "N Z"]
    size: Float[Array, " N"]
    bag: Float[Array, "rows Z"]  # task vectors waiting for K-means
    matrix: Float[Array, "Z Z"]  # the release's frozen bilinear form
    codes_on: Float[Array, ""]  # 1 once codes are in use: figures show none before


class Form(NamedTuple):
    """What a fidelity fills in."""

    always: dict  # name -> Term, from the first step
    coded: dict  # name -> Term, once codes are in use; `codebook` is one of them
    rules: codebook.Rules


Predict = Callable[[PyTree, Float[Array, "T Z"], Transition], Float[Array, "T B ..."]]


class Decoders(NamedTuple):
    """Predictions of r and s' from (z, s, a)."""

    init: Callable[[RandomKey], dict]
    reward: Predict  # -> [T, B]
    next_obs: Predict  # -> [T, B, obs]


def decoders(config: Config, latent_dim: int, spec: Spec) -> Decoders:
    """Returns the Decoders."""
    seen = latent_dim + spec.obs_dim + spec.action_dim  # z, s, a in this order
    shape = {"width": config.width, "depth": config.depth}
    form = {"hidden_init": spec.init, "precision": spec.precision}
    reward = networks.mlp(seen, out_dims=1, **shape, **form)
    transition = networks.mlp(seen, out_dims=spec.obs_dim, **shape, **form)

    def init(key):
        k_reward, k_transition = jax.random.split(key)
        return {"reward": reward.init(k_reward), "transition": transition.init(k_transition)}

    return Decoders(
        init,
        lambda params, z, rows: reward.apply(params["reward"], z, rows.obs, rows.action)[..., 0],
        lambda params, z, rows: transition.apply(params["transition"], z, rows.obs, rows.action),
    )


def prediction_error(
    nets: Decoders, params: dict, z: Float[Array, "T Z"], rows: Transition
) -> Float[Array, ""]:
    """Mean squared errors of r and s' predicted from (z, s, a), Eq. 4-9 as means."""
    reward, next_obs = nets.reward(params, z, rows), nets.next_obs(params, z, rows)
    return losses.mse(reward, rows.reward) + losses.mse(next_obs, rows.next_obs)


def matched_codes(seen: Seen) -> tuple[Float[Array, "N Z"], Int[Array, " T"]]:
    """Returns (codes, the code of each task of the batch)."""
    codes = seen.params["codebook"]
    return codes, codebook.match(codes, jax.lax.stop_gradient(seen.z))


def codebook_term(config: Config, latent_dim: int, bag_rows: int, **hooks: Callable) -> Term:
    """Returns the Term that owns the codes. Args: hooks, its `before` and `after`."""

    def init(key, data):
        del data
        k_codes, k_matrix = jax.random.split(key)
        codes = jax.random.normal(k_codes, (config.num_codes, latent_dim))
        shelf = Shelf(
            mean=jnp.copy(codes),
            size=jnp.ones(config.num_codes),
            bag=jnp.zeros((bag_rows, latent_dim)),
            matrix=jax.random.uniform(k_matrix, (latent_dim, latent_dim)),
            codes_on=jnp.zeros(()),
        )
        return codes, shelf

    return Term(None, init, **hooks)


def codes_used(config: Config, seen: Seen) -> Metrics:
    """Returns the metric {codes_used: how many codes the batch matches}."""
    _, matched = matched_codes(seen)
    used = jax.ops.segment_sum(jnp.ones_like(matched), matched, config.num_codes) > 0
    return {"codes_used": used.sum().astype(jnp.float32)}


def contrast_term(
    config: Config,
    train: TrainConfig,
    num_tasks: int,
    groups_from: Callable,
    compare: Callable,
) -> Term:
    """Returns the Term L_contra: two fresh contexts of all training tasks, contrasted in groups.

    Tasks of one code are a group. Args: groups_from, Seen -> codes [N, Z] that tasks are matched
    with; compare, (own, hp, Seen, anchor [task, Z], positive [task, Z], group [task], key) ->
    scalar. Beside its value it returns {positive [task, Z], ran: 1 where it was computed}.
    """
    every = jnp.arange(num_tasks)

    def loss(params, own, hp, seen, key):
        k_anchor, k_positive, k_filler = jax.random.split(key, 3)

        def view(k):
            k_context, k_z = jax.random.split(k)
            context = data_lib.context_of(seen.data, every, train, k_context)
            return seen.encode(context, every, k_z)[1]

        def compute():
            positive, anchor = view(k_positive), view(k_anchor)
            group = codebook.match(groups_from(seen), jax.lax.stop_gradient(positive))
            value = compare(own, hp, seen, anchor, positive, group, k_filler)
            return value, positive, jnp.ones(())

        if config.contrast_every == 1:
            value, positive, ran = compute()
        else:
            value, positive, ran = _sometimes(config, seen, compute)
        aux = jax.lax.stop_gradient({"positive": positive, "ran": ran})
        return hp["contrast_weight"] * value, aux

    return Term(loss)


def _sometimes(config, seen, compute):
    """Returns `compute()` at every `contrast_every`-th step and zeros at the others."""
    shapes = jax.eval_shape(compute)
    skip = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    # no run axis on `index`, so the skipped branch costs nothing
    return jax.lax.cond(seen.index % config.contrast_every == 0, compute, skip)
