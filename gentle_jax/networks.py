"""Networks as `(init, apply)` pairs. Learners never see the library behind them (flax linen)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Network(NamedTuple):
    """A pure network: `init(key) -> params`, `apply(params, *inputs) -> [..., out]`."""

    init: Callable
    apply: Callable


def _uniform(bound):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def _fan_out(key, shape, dtype=jnp.float32):
    """U(+-1/sqrt(width out)): both releases read the wrong dimension (ctmrl_suite.md sec. 2.1)."""
    return _uniform(shape[-1] ** -0.5)(key, shape, dtype)


def _swish_normal(key, shape, dtype=jnp.float32):
    """N(0, (1/(2 sqrt(fan in)))^2), gentle_suite.md sec. 3.2 (its truncation never binds)."""
    return jax.random.normal(key, shape, dtype) * (0.5 * shape[0] ** -0.5)


def _orthogonal(key, shape, dtype=jnp.float32):
    """A uniformly random matrix with orthonormal rows or columns, by Gram-Schmidt.

    flax's calls LAPACK, and on a CPU two batched LAPACK calls of one program can take all threads
    of XLA's pool while they wait for that same pool: the program then hangs for good.
    """
    size, count = max(shape), min(shape)

    def orthonormalise(i, columns):
        done = jnp.arange(count) < i
        vector = columns[:, i]
        for _ in range(2):  # a second pass removes what rounding left
            vector -= columns @ jnp.where(done, columns.T @ vector, 0.0)
        return columns.at[:, i].set(vector / jnp.sqrt((vector**2).sum()))

    drawn = jax.random.normal(key, (size, count), dtype)
    columns = jax.lax.fori_loop(0, count, orthonormalise, drawn)
    return columns if shape[0] == size else columns.T


class _MLP(nn.Module):
    widths: tuple
    heads: tuple  # output sizes; several heads are concatenated
    activation: Callable
    hidden_init: Any
    hidden_bias: float
    last_init: Any
    last_bias: Any

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            bias = nn.initializers.constant(self.hidden_bias)
            x = self.activation(nn.Dense(width, kernel_init=self.hidden_init, bias_init=bias)(x))
        dense = [
            nn.Dense(n, kernel_init=self.last_init, bias_init=self.last_bias) for n in self.heads
        ]
        return jnp.concatenate([layer(x) for layer in dense], axis=-1)


_HIDDEN = {"rlkit": (_fan_out, 0.1), "he": (nn.initializers.he_uniform(), 0.0)}
_STYLES = {
    # activation, hidden kernel, hidden bias, last kernel, last bias
    "rlkit": (nn.relu, _fan_out, 0.1, _uniform(3e-3), _uniform(3e-3)),
    "policy": (nn.relu, _fan_out, 0.1, _uniform(1e-3), _uniform(1e-3)),
    "orthogonal": (nn.relu, _orthogonal, 0.0, _orthogonal, nn.initializers.zeros),
    "swish": (nn.swish, _swish_normal, 0.0, _swish_normal, nn.initializers.zeros),
}  # fmt: skip


def mlp(in_dim, width, depth, out_dims, style="rlkit", squash=False, hidden_init="rlkit"):
    """Returns a Network that concatenates its inputs along the last axis.

    Args: in_dim, sum of the inputs' sizes; width and depth of the hidden layers; out_dims, an int
    or a tuple (one head each); style, the initialisation: `rlkit` and `policy` (ctmrl_suite.md
    sec. 2.1), `orthogonal` (sec. 14), `swish` (gentle_suite.md sec. 3.2); squash, tanh on the
    output; hidden_init, "he" replaces the hidden layers' initialisation of the first two styles,
    which shrinks signals of small inputs by some 0.4 a layer.
    """
    heads = out_dims if isinstance(out_dims, tuple) else (out_dims,)
    activation, hidden, bias, last, last_bias = _STYLES[style]
    if style in ("rlkit", "policy"):
        hidden, bias = _HIDDEN[hidden_init]
    module = _MLP((width,) * depth, heads, activation, hidden, bias, last, last_bias)

    def init(key):
        return module.init(key, jnp.zeros((1, in_dim)))["params"]

    def apply(params, *inputs):
        x = jnp.concatenate(inputs, axis=-1) if len(inputs) > 1 else inputs[0]
        out = module.apply({"params": params}, x)
        return jnp.tanh(out) if squash else out

    return Network(init, apply)


def ensemble(network, size):
    """Returns `network` with a leading member axis [size] on parameters and outputs."""

    def init(key):
        return jax.vmap(network.init)(jax.random.split(key, size))

    def apply(params, *inputs):
        return jax.vmap(lambda p: network.apply(p, *inputs))(params)

    return Network(init, apply)
