"""Context encoders: the `Encoder` of a representation, and the features of a context row."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import networks
from gentle_jax.compose import Encoder, Params
from gentle_jax.types import RandomKey, Spec, Transition, pytree

# Published sizes of the mean encoder: {(suite, environment): overrides}. Where the dynamics vary,
# contexts hold s' (docs/methods/environments.md, "Settings of the ctmrl suites").
_CTMRL = dict.fromkeys(("point_robot", "point_robot_wind", "sparse_point_robot"), 200)
_CTMRL |= dict.fromkeys(("cheetah_vel", "ant_goal", "hopper_params", "walker_params"), 200)
_GENTLE = dict.fromkeys(("ant_dir", "cheetah_vel", "cheetah_dir"), 256)
_GENTLE |= {"point_robot": 64, "hopper_params": 256, "walker_params": 256}
SETTINGS = {
    (suite, env): {"algo.width": width, "algo.use_next_obs": env.endswith("_params")}
    for suite, widths in {"ctmrl": _CTMRL, "ctmrl_b": _CTMRL, "gentle": _GENTLE}.items()
    for env, width in widths.items()
}
# Of the sizes of `quick` a distance metric over 30 tasks needs more dimensions than 5, and contexts
# of two levels, as tests mix random episodes and the policy's: chosen on training tasks' returns
# (docs/methods/focal.md, "What we chose").
PRESETS = {
    f"quick:{suite}": {"train.latent_dim": 10, "train.context_levels": 2}
    for suite, env in SETTINGS
    if suite != "gentle"  # ten tasks
}


@pytree
class SetBelief:
    """Sum and count of per-transition codes; z is their mean, 0 before any transition."""

    total: Float[Array, " Z"]
    count: Float[Array, ""]


def context_row(transition: Transition, use_next_obs: bool) -> Float[Array, "*rows F"]:
    """Returns context features: s, a, r (and s'); never the end flag."""
    parts = [transition.obs, transition.action, transition.context_reward[..., None]]
    if use_next_obs:
        parts.append(transition.next_obs)
    return jnp.concatenate(parts, axis=-1)


def row_size(spec: Spec, use_next_obs: bool) -> int:
    """Returns F, the size of one context row."""
    return spec.obs_dim * (2 if use_next_obs else 1) + spec.action_dim + 1


def mean_encoder(
    spec: Spec, latent_dim: int, width: int, depth: int, use_next_obs: bool
) -> Encoder:
    """Returns the Encoder z = mean_t tanh(f(x_t)), with one part, `encoder`.

    Source: docs/methods/focal.md, "Encoder"; docs/methods/gentle.md, "Task auto-encoder". The order
    of rows does not matter; rows with mask 0 change nothing.
    """
    network = networks.mlp(
        row_size(spec, use_next_obs), width, depth, latent_dim, squash=True,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def codes_of(params, transitions):
        return network.apply(params["encoder"], context_row(transitions, use_next_obs))

    init = lambda key: {"encoder": network.init(key)}
    return set_encoder(latent_dim, init, codes_of)


def set_encoder(
    latent_dim: int,
    init: Callable[[RandomKey], Params],
    codes_of: Callable[[Params, Transition], Float[Array, "*rows Z"]],
    draw_codes: Callable[[Params, Transition, RandomKey], Float[Array, "*rows Z"]] | None = None,
) -> Encoder:
    """Returns the Encoder whose z is the mean of the rows' codes.

    Args: draw_codes, those of training, where they are random; a belief is made of `codes_of`.
    """

    def encode(params, context, task_id, key):
        del task_id
        drawn = draw_codes is not None
        codes = draw_codes(params, context, key) if drawn else codes_of(params, context)
        return codes, codes.mean(1)  # [T, C, Z], [T, Z]

    def prior(params):
        del params
        return SetBelief(jnp.zeros(latent_dim), jnp.zeros(()))

    def extend(params, belief, transitions, mask):
        codes = codes_of(params, transitions)  # [C, Z]
        codes = jnp.where(mask[:, None] > 0, codes, 0.0)  # a NaN in a padded row stays out
        return SetBelief(belief.total + codes.sum(0), belief.count + mask.sum())

    def sample(params, belief, key):
        del params, key
        return belief.total / jnp.maximum(belief.count, 1.0)

    return Encoder(init, encode, prior, extend, sample)
