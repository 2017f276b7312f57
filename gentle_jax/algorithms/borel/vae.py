"""The recurrent variational auto-encoder: beliefs, decoders, and the bound they descend.

Axes beside the usual ones: N sequences, L rows of a sequence, P posteriors, W the GRU's width, D
latent numbers; Z = 2 D. Source: docs/methods/borel.md, "Losses".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gentle_jax.algorithms.borel import layers
from gentle_jax.algorithms.borel.settings import Config
from gentle_jax.types import Metrics, RandomKey, Section, Spec, Transition

Hidden = Float[Array, "*rows W"]
Rows = Transition  # leaves [N, L, ...]


class Vae(NamedTuple):
    """What the functions of this module share; nothing of it is traced."""

    config: Config
    latent: int  # D
    obs_dim: int
    action_dim: int
    gain: float  # of hidden layers
    precision: str

    @classmethod
    def of(cls, config: Config, z_dim: int, spec: Spec) -> "Vae":
        """Returns the Vae of a belief whose z has `z_dim` numbers."""
        gain = 6.0**0.5 if spec.init == "he" else 1.0
        return cls(config, z_dim // 2, spec.obs_dim, spec.action_dim, gain, spec.precision)


def init(vae: Vae, key: RandomKey) -> PyTree:
    """Returns {"encoder", "reward"} parameters, and those of "state" where it is decoded."""
    k_gru, k_hidden, k_heads = jax.random.split(key, 3)
    config = vae.config
    o, a, r = config.obs_features, config.action_features, config.reward_features
    embeddings = {"obs": (vae.obs_dim, o), "action": (vae.action_dim, a)}
    width, depth = config.decoder_width, config.decoder_depth
    tail = {f"hidden_{i}": (width, width) for i in range(1, depth)}
    shapes = {"encoder": embeddings | {"reward": (1, r)}}
    shapes["reward"] = embeddings | {"first": (vae.latent + 2 * o + a, width)} | tail
    outs = {"encoder/mean": (config.width, vae.latent)}
    outs |= {"encoder/log_variance": (config.width, vae.latent), "reward/out": (width, 1)}
    if config.decode_state:
        shapes["state"] = embeddings | {"first": (vae.latent + o + a, width)} | tail
        outs["state/out"] = (width, vae.obs_dim)
    flat = {f"{part}/{name}": s for part, of in shapes.items() for name, s in of.items()}
    drawn = layers.init_dense(flat, k_hidden, vae.gain) | layers.init_dense(outs, k_heads)
    params = {part: {} for part in shapes}
    for path, layer in drawn.items():
        part, name = path.split("/")
        params[part][name] = layer
    params["encoder"]["gru"] = layers.init_gru(o + a + r, config.width, k_gru)
    return params


# --- beliefs


def prior(vae: Vae) -> Float[Array, " W"]:
    """Returns the hidden state before any row."""
    return jnp.zeros(vae.config.width)


def inputs_of(vae: Vae, params: PyTree, rows: Transition) -> Float[Array, "*rows gates"]:
    """Returns what rows (a, s', r) add to the GRU's gates: one product for all of them."""
    encoder = params["encoder"]
    reward = rows.context_reward[..., None]
    parts = (("action", rows.action), ("obs", rows.next_obs), ("reward", reward))
    features = [jax.nn.relu(layers.dense(encoder[name], x, vae.precision)) for name, x in parts]
    return layers.dense(encoder["gru"]["input"], jnp.concatenate(features, -1), vae.precision)


def step(vae: Vae, params: PyTree, hidden: Hidden, rows: Transition) -> Hidden:
    """Returns the hidden state after one more row."""
    inputs = inputs_of(vae, params, rows)
    return layers.gru_step(params["encoder"]["gru"], hidden, inputs, vae.precision)


def scan(
    vae: Vae,
    params: PyTree,
    hidden: Float[Array, "N W"],
    rows: Rows,
    mask: Float[Array, "N L"],
) -> Float[Array, "N posterior W"]:
    """Returns the hidden states before the first row and after each; masked rows change nothing."""
    inputs = inputs_of(vae, params, rows).swapaxes(0, 1)  # [L, N, 3 W]

    def body(hidden, inputs):
        inputs, real = inputs
        after = layers.gru_step(params["encoder"]["gru"], hidden, inputs, vae.precision)
        hidden = jnp.where(real[:, None] > 0, after, hidden)
        return hidden, hidden

    _, after = jax.lax.scan(body, hidden, (inputs, mask.T))
    return jnp.concatenate([hidden[None], after]).swapaxes(0, 1)


def last(
    vae: Vae,
    params: PyTree,
    hidden: Float[Array, "N W"],
    rows: Rows,
    mask: Float[Array, "N L"],
) -> Float[Array, "N W"]:
    """Returns the hidden states after all rows."""
    return scan(vae, params, hidden, rows, mask)[:, -1]


def heads(vae: Vae, params: PyTree, hidden: Hidden) -> tuple[Array, Array]:
    """Returns (mean, log variance) [..., D] of beliefs."""
    encoder = params["encoder"]
    of = lambda name: layers.dense(encoder[name], hidden, vae.precision)
    return of("mean"), of("log_variance")


def z_of(vae: Vae, params: PyTree, hidden: Hidden) -> Float[Array, "*rows Z"]:
    """Returns z = (mean, log variance) of beliefs."""
    return jnp.concatenate(heads(vae, params, hidden), -1)


# --- decoders


def _features(vae, params, rows, with_next):
    """Returns what rows add to a decoder's first layer, [..., width]."""
    of = lambda name, x: jax.nn.relu(layers.dense(params[name], x, vae.precision))
    parts = [of("obs", rows.next_obs)] if with_next else []
    parts += [of("action", rows.action), of("obs", rows.obs)]
    first = {"kernel": params["first"]["kernel"][vae.latent :], "bias": params["first"]["bias"]}
    return layers.dense(first, jnp.concatenate(parts, -1), vae.precision)


def _decode(vae, params, features, z):
    """Returns what a decoder says of every row at every z: [N, P, L, out].

    Args: features [N, L, width]; z [N, P, D]. The first layer is a sum of a part of z and a part of
    the row: no product is computed for every pair.
    """
    nothing = jnp.zeros_like(params["first"]["bias"])
    first = {"kernel": params["first"]["kernel"][: vae.latent], "bias": nothing}
    x = layers.dense(first, z, vae.precision)[:, :, None] + features[:, None]
    for i in range(1, vae.config.decoder_depth):
        x = layers.dense(params[f"hidden_{i}"], jax.nn.relu(x), vae.precision)
    return layers.dense(params["out"], jax.nn.relu(x), vae.precision)


def predict_reward(
    vae: Vae, params: PyTree, mean: Float[Array, " D"], rows: Transition
) -> Float[Array, " N"]:
    """Returns the rewards of rows [N, ...] at one latent vector."""
    features = _features(vae, params["reward"], rows, with_next=True)
    return _decode(vae, params["reward"], features[None], mean[None, None])[0, 0, :, 0]


def reconstruction(
    vae: Vae,
    params: PyTree,
    hp: Section,
    z: Float[Array, "N P D"],
    valid: Float[Array, "N P"],
    rows: Rows,
    mask: Float[Array, "N L"],
) -> Float[Array, " N"]:
    """Returns sum_t mean_k (r_k - decoder(z_t, row k))^2 of each sequence, over real t and k.

    With `decode_state` the mean squared error of s' - s is added, times `state_weight`. At most
    `posteriors_at_once` z are decoded at once, in forward and backward pass: memory grows with
    N x L x that number, not with N x L^2.
    """
    share = mask / jnp.maximum(mask.sum(1, keepdims=True), 1.0)  # [N, L]
    features = {"reward": _features(vae, params["reward"], rows, with_next=True)}
    if vae.config.decode_state:
        features["state"] = _features(vae, params["state"], rows, with_next=False)

    def errors(z, valid):
        guess = _decode(vae, params["reward"], features["reward"], z)[..., 0]
        error = (guess - rows.context_reward[:, None]) ** 2  # [N, P, L]
        if vae.config.decode_state:
            guess = _decode(vae, params["state"], features["state"], z)
            change = (rows.next_obs - rows.obs)[:, None]
            error += hp["state_weight"] * ((guess - change) ** 2).mean(-1)
        return ((error * share[:, None]).sum(-1) * valid).sum(1)

    number = z.shape[1]
    chunks = -(-number // vae.config.posteriors_at_once)
    if chunks == 1:
        return errors(z, valid)
    size = -(-number // chunks)

    def in_chunks(x):
        padding = [(0, 0), (0, chunks * size - number)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(x.shape[0], chunks, size, *x.shape[2:]).swapaxes(0, 1)

    body = jax.checkpoint(lambda total, chunk: (total + errors(*chunk), None))
    return jax.lax.scan(body, jnp.zeros(z.shape[0]), (in_chunks(z), in_chunks(valid)))[0]


# --- the bound


def kl_of_chain(
    mean: Float[Array, "N P D"], log_variance: Float[Array, "N P D"]
) -> Float[Array, "N P"]:
    """Returns KL(belief_t | belief_t-1) of diagonal Gaussians, with N(0, I) before t = 0."""
    before = lambda x: jnp.pad(x, [(0, 0), (1, 0), (0, 0)])[:, :-1]
    gap, ratio = mean - before(mean), log_variance - before(log_variance)
    square = gap**2 * jnp.exp(-before(log_variance))
    return 0.5 * (jnp.exp(ratio) - ratio - 1.0 + square).sum(-1)


def bound(
    vae: Vae,
    params: PyTree,
    hp: Section,
    rows: Rows,
    mask: Float[Array, "N L"],
    noise: Float[Array, "N posterior D"],
    begin: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns (negative evidence bound, metrics): mean over sequences.

    sum_t (reconstruction from z_t) + kl_weight * sum_t KL_t, t = 0..T over real rows; gradients go
    through both sides of every KL. Args: noise, standard normal, that z_t is drawn with; begin,
    uniform in [0, 1), that the `posteriors` which stand for all are drawn with. Deviation: those,
    evenly spaced, each weighted by (T + 1) / posteriors, whose mean over `begin` is the whole sum.
    """
    start = jnp.zeros((mask.shape[0], vae.config.width))
    mean, log_variance = heads(vae, params, scan(vae, params, start, rows, mask))
    z = mean + jnp.exp(0.5 * log_variance) * noise
    valid = jnp.concatenate([jnp.ones_like(mask[:, :1]), mask], 1)
    at, weight = _drawn(vae.config.posteriors, z.shape[1], begin)
    error = reconstruction(vae, params, hp, z[:, at], valid[:, at] * weight, rows, mask).mean()
    kl = (kl_of_chain(mean, log_variance) * valid).sum(1).mean()
    loss = error + hp["kl_weight"] * kl
    return loss, {"vae_loss": loss, "decoder_loss": error, "kl": kl}


def _drawn(number, total, begin):
    """Returns (which of `total` beliefs stand for all, the weight of each); all of them for 0."""
    if not 0 < number < total:
        return slice(None), 1.0
    at = jnp.floor((jnp.arange(number) + begin) * total / number).astype(jnp.int32)
    return jnp.minimum(at, total - 1), total / number
