"""Networks as `(init, apply)` pairs. Learners never see the library behind them (flax linen)."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from gentle_jax.types import RandomKey


class Network(NamedTuple):
    """A pure network: `init(key) -> params`, `apply(params, *inputs) -> [..., out]`.

    Inputs are [..., F_i] with the same leading axes; leading axes are rows, in order. An input with
    fewer rows, such as z [T, Z] beside obs [T * B, F] or [T, B, F], has one for each of T equal
    groups of consecutive rows: it is multiplied once per group, not once per row.
    """

    init: Callable[[RandomKey], PyTree]
    apply: Callable[..., Float[Array, "... out"]]


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
    """Names, shapes and initial values of the parameters; `_forward` computes."""

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


def mlp(
    in_dim: int,
    width: int,
    depth: int,
    out_dims: int | tuple[int, ...],
    style: str = "rlkit",
    squash: bool = False,
    hidden_init: str = "rlkit",
    precision: str = "float32",
) -> Network:
    """Returns a Network that concatenates its inputs along the last axis.

    Args: in_dim, sum of the inputs' sizes; width and depth of the hidden layers; out_dims, an int
    or a tuple (one head each); style, the initialisation: `rlkit`, `policy`, `orthogonal` or
    `swish` (docs/methods/backbones.md, "Initialisation"); squash, tanh on the output; hidden_init,
    "he" replaces the hidden layers' initialisation of the first two styles, which shrinks signals
    of small inputs by some 0.4 a layer; precision, of
    `config.PRECISIONS`, that of the matrix products: parameters and outputs are float32 in any.
    """
    heads = out_dims if isinstance(out_dims, tuple) else (out_dims,)
    activation, hidden, bias, last, last_bias = _STYLES[style]
    if style in ("rlkit", "policy"):
        hidden, bias = _HIDDEN[hidden_init]
    module = _MLP((width,) * depth, heads, activation, hidden, bias, last, last_bias)

    def init(key):
        return module.init(key, jnp.zeros((1, in_dim)))["params"]

    def apply(params, *inputs):
        layers = [params[f"Dense_{i}"] for i in range(depth)]
        last = [params[f"Dense_{depth + i}"] for i in range(len(heads))]
        layers.append(jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), *last))
        layers[-1] |= {"kernel": _turned(layers[-1]["kernel"])}
        out = _forward(layers, inputs, activation, precision)
        return jnp.tanh(out) if squash else out

    return Network(init, apply)


def _product(x, kernel, precision, wide=False):
    """Returns x @ kernel in float32; `bfloat16` rounds it once more unless `wide`."""
    if precision != "bfloat16":
        how = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.HIGH
        return jnp.dot(x, kernel, precision=how)
    narrow = jnp.bfloat16
    kind = jnp.float32 if wide else narrow  # a product of narrow results is faster, both ways
    out = jnp.dot(x.astype(narrow), kernel.astype(narrow), preferred_element_type=kind)
    return out.astype(jnp.float32)


def _forward(layers, inputs, activation, precision):
    """Returns [..., out] for inputs as `Network` describes them.

    Rows are flat: on a CPU a weight gradient that contracts two axes takes some three times as
    long.
    """
    lead = max((x.shape[:-1] for x in inputs), key=lambda axes: (math.prod(axes), len(axes)))
    x = _first(layers[0], inputs, math.prod(lead), precision)
    for layer in layers[1:]:
        wide = layer is layers[-1]
        x = _product(activation(x), layer["kernel"], precision, wide) + layer["bias"][None]
    return x.reshape(lead + x.shape[-1:])


def _turned(kernel):
    """The kernel, so that its gradient is computed as [out, in] and turned afterwards.

    With few outputs that is ten times as fast on a CPU; the barrier keeps XLA from undoing it.
    """
    return jax.lax.optimization_barrier(kernel.T).T


def _first(layer, inputs, num_rows, precision):
    """Returns the first layer [num_rows, width]: one product for all inputs of as many rows."""
    ends = list(itertools.accumulate((x.shape[-1] for x in inputs), initial=0))
    parts = {}  # rows -> inputs [rows, F_i] and their rows of the kernel
    for x, begin, end in zip(inputs, ends, ends[1:], strict=False):
        rows = math.prod(x.shape[:-1])
        if num_rows % max(rows, 1):
            raise ValueError(f"{rows} rows of one input do not divide {num_rows} of another")
        group = parts.setdefault(rows, ([], []))
        group[0].append(x.reshape(rows, end - begin))
        group[1].append(layer["kernel"][begin:end])
    out = layer["bias"][None]
    for rows in sorted(parts):  # fewest first: what a group of rows shares is added to it
        columns, kernels = parts[rows]
        whole = _product(jnp.concatenate(columns, 1), jnp.concatenate(kernels), precision)
        out = (whole.reshape(out.shape[0], -1, out.shape[1]) + out[:, None]).reshape(whole.shape)
    return out


def ensemble(network: Network, size: int) -> Network:
    """Returns `network` with a leading member axis [size] on parameters and outputs.

    An accelerator takes the members side by side. On a CPU two 64-wide critics cost 5 % of a step
    less apart: side by side, XLA merges their first layers and then transposes the result.
    """

    def init(key):
        return jax.vmap(network.init)(jax.random.split(key, size))

    def apply(params, *inputs):
        if jax.default_backend() != "cpu":
            return jax.vmap(lambda p: network.apply(p, *inputs))(params)
        member = lambda i: jax.tree.map(lambda p: p[i], params)
        return jnp.stack([network.apply(member(i), *inputs) for i in range(size)])

    return Network(init, apply)
