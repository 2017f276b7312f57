"""Toy algorithms: one for every part of the contracts that no method of the package needs yet.

toy_filter      z per row and at the next row, from a table that is made of the data at init;
                an algorithm that chooses the backbone's Z (as BOReL)
toy_embeddings  learned task embeddings, z drawn from them, the critics' gradient into them (as
                ANOLE)
toy_pooled      a pooling that the critics train on top of a frozen encoder (as CORRO)
toy_sampled     z drawn at test time too, rows standardised with the training data's statistics
"""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import compose, encoders, learner, networks, objectives, registry
from gentle_jax import data as data_lib
from gentle_jax.types import Cond, Traits


@dataclasses.dataclass(frozen=True)
class Config:
    """What every toy takes."""

    width: int = 8
    depth: int = 1
    focal_weight: float = 1.0
    lr: float = 1e-2


@struct.dataclass
class Weighted:
    """A belief: a sum of vectors, and the sum of their weights."""

    total: jax.Array
    weight: jax.Array


def nothing(size):
    """Returns the Weighted of no row at all."""
    return Weighted(jnp.zeros(size), jnp.zeros(()))


# --- z per row, data at init


def posterior(total, count):
    """Returns z [..., 2 L]: mean and log variance of a unit Gaussian seen `count` [...] times.

    Args: total [..., L], the sum of what was seen, each with noise of variance 1.
    """
    mean = total / (1.0 + count[..., None])
    return jnp.concatenate([mean, jnp.broadcast_to(-jnp.log1p(count)[..., None], mean.shape)], -1)


def beliefs_of_rows(data, num_tasks, max_rows, size):
    """Returns the Cond [task, row, 2 L] of every row: beliefs within its episode around it."""
    number = jnp.broadcast_to(jnp.arange(max_rows), (num_tasks, max_rows))
    rows = data_lib.gather(data, jnp.arange(num_tasks), number)
    seen = jnp.cumsum(rows.context_reward, 1)
    seen = jnp.concatenate([jnp.zeros((num_tasks, 1)), seen], 1)  # [task, row + 1]
    begin = jax.vmap(lambda start, at: start[jnp.searchsorted(start, at, side="right") - 1])(
        data.episode_start[:num_tasks], number
    )

    def belief(end):
        total = jnp.take_along_axis(seen, end, 1) - jnp.take_along_axis(seen, begin, 1)
        return posterior(jnp.broadcast_to(total[..., None], (*end.shape, size)), end - begin)

    return Cond(belief(number), belief(number + 1))


def filter_encoder(size):
    """Returns the Encoder z = mean and log variance of L equal filters of the context reward."""

    def extend(params, belief, rows, mask):
        reward = jnp.where(mask > 0, rows.context_reward, 0.0)
        return Weighted(belief.total + reward.sum(), belief.weight + mask.sum())

    def encode(params, context, task_id, key):
        reward = context.context_reward
        total = jnp.broadcast_to(reward.sum(1)[:, None], (len(reward), size))
        return None, posterior(total, jnp.full(len(reward), reward.shape[1]))

    sample = lambda params, belief, key: posterior(belief.total, belief.weight)
    return compose.Encoder(lambda key: {}, encode, lambda params: nothing(size), extend, sample)


def make_filter(config, train, spec, rl):
    size, sizes = train.latent_dim, (spec.num_train_tasks, spec.max_rows_per_task)
    table = compose.Term(None, lambda key, data: ({}, beliefs_of_rows(data, *sizes, size)))

    def condition(state, data, task_id, index, key):
        look_up = lambda z: z[task_id[:, None], index].reshape(len(index), -1, z.shape[-1])
        return jax.tree.map(look_up, state.own["table"])

    rep = compose.representation(
        filter_encoder(size), {"table": table}, train,
        condition=condition, traits=Traits(unbounded_z=True),
    )  # fmt: skip
    return learner.joint(rep, rl, train, spec)


# --- task ids and the key of z, critics' gradient


def embeddings(num_tasks, size):
    """Returns the Encoder z ~ N(mean[task], exp(log_std[task])^2); N(0, 1) for an unknown task."""

    def init(key):
        mean = jax.random.normal(key, (num_tasks, size))
        return {"table": {"mean": mean, "log_std": jnp.full_like(mean, -1.0)}}

    def encode(params, context, task_id, key):
        of_task = lambda x: x.at[task_id].get(mode="fill", fill_value=0.0)
        mean, log_std = (of_task(params["table"][name]) for name in ("mean", "log_std"))
        return None, mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    prior = lambda params: params["table"]["mean"].mean(0)
    extend = lambda params, belief, rows, mask: belief  # transitions teach it nothing
    return compose.Encoder(init, encode, prior, extend, lambda params, belief, key: belief)


def make_embeddings(config, train, spec, rl):
    traits = Traits(critic_gradient=True, learned_prior=True, unbounded_z=True, no_context=True)
    encoder = embeddings(spec.num_train_tasks, train.latent_dim)
    terms = {"critic": objectives.critic()}
    rep = compose.representation(encoder, terms, train, traits=traits)
    return learner.joint(rep, rl, train, spec)


# --- critics' gradient through a frozen encoder


def pooled_encoder(config, size, spec):
    """Returns the Encoder z = sum_t softmax_t(g(f(x_t))) f(x_t), parts `encoder` f and `pool` g."""
    row = encoders.row_size(spec, False)
    net = networks.mlp(row, config.width, config.depth, size, squash=True, hidden_init="he")
    score = networks.mlp(size, config.width, 0, 1)  # linear

    def init(key):
        k_encoder, k_pool = jax.random.split(key)
        return {"encoder": net.init(k_encoder), "pool": score.init(k_pool)}

    def extend(params, belief, rows, mask):
        codes = net.apply(params["encoder"], encoders.context_row(rows, False))
        weights = jnp.exp(score.apply(params["pool"], codes)[..., 0])
        weights = jnp.where(mask > 0, weights, 0.0)
        total = (weights[:, None] * codes).sum(0)
        return Weighted(belief.total + total, belief.weight + weights.sum())

    def sample(params, belief, key):
        return belief.total / jnp.maximum(belief.weight, 1e-6)

    def encode(params, context, task_id, key):
        one = lambda rows: extend(params, nothing(size), rows, jnp.ones(rows.reward.shape))
        return None, jax.vmap(lambda rows: sample(params, one(rows), key))(context)

    return compose.Encoder(init, encode, lambda params: nothing(size), extend, sample)


def make_pooled(config, train, spec, rl):
    encoder, terms = pooled_encoder(config, train.latent_dim, spec), {"critic": objectives.critic()}
    traits = Traits(critic_gradient=True)
    rep = compose.representation(encoder, terms, train, frozen=("encoder",), traits=traits)
    return learner.joint(rep, rl, train, spec)


# --- z that is drawn, statistics of the training data


def sampled_encoder(config, size, spec):
    """Returns the Encoder z ~ N(m, exp(v)^2), (m, v) = h(mean_t f(x_t)), rewards standardised."""
    mean, std = spec.statistics.reward_mean, spec.statistics.reward_std
    net = networks.mlp(1, config.width, config.depth, config.width, squash=True, hidden_init="he")
    heads = networks.mlp(config.width, config.width, config.depth, (size, size), hidden_init="he")

    def init(key):
        k_net, k_heads = jax.random.split(key)
        return {"encoder": {"net": net.init(k_net), "heads": heads.init(k_heads)}}

    def extend(params, belief, rows, mask):
        standard = (rows.context_reward[..., None] - mean) / std
        codes = jnp.where(mask[:, None] > 0, net.apply(params["encoder"]["net"], standard), 0.0)
        return Weighted(belief.total + codes.sum(0), belief.weight + mask.sum())

    def sample(params, belief, key):
        code = belief.total / jnp.maximum(belief.weight, 1.0)
        middle, log_std = jnp.split(heads.apply(params["encoder"]["heads"], code[None])[0], 2)
        return middle + jnp.exp(log_std) * jax.random.normal(key, middle.shape)

    def encode(params, context, task_id, key):
        one = lambda rows: extend(params, prior(params), rows, jnp.ones(rows.reward.shape))
        keys = jax.random.split(key, len(task_id))
        return None, jax.vmap(lambda rows, k: sample(params, one(rows), k))(context, keys)

    prior = lambda params: nothing(config.width)
    return compose.Encoder(init, encode, prior, extend, sample)


def make_sampled(config, train, spec, rl):
    encoder = sampled_encoder(config, train.latent_dim, spec)
    traits = Traits(learned_prior=True, unbounded_z=True)
    rep = compose.representation(encoder, {"focal": objectives.focal()}, train, traits=traits)
    return learner.joint(rep, rl, train, spec)


# name -> what a module of `gentle_jax.algorithms` defines
TOYS = {
    "toy_filter": {"make": make_filter, "z_dim": lambda config, train: 2 * train.latent_dim},
    "toy_embeddings": {"make": make_embeddings},
    "toy_pooled": {"make": make_pooled},
    "toy_sampled": {"make": make_sampled},
}


def register(monkeypatch):
    """Adds the toys to the registry, until the MonkeyPatch is undone."""
    for name, contents in TOYS.items():
        module = types.ModuleType(f"toys_contracts.{name}")
        vars(module).update(Config=Config, **contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(registry.ALGORITHMS, name, module.__name__)
