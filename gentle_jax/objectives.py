"""Terms that several methods share: one function a published loss."""

from typing import NamedTuple

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


Shape = tuple[int, int]  # width and depth of a network's hidden layers


def behaviour_entropy(
    spec: Spec,
    latent_dim: int,
    generator: Shape,
    discriminator: Shape,
    noise_dim: int,
    rounds: int,
) -> Term:
    """Returns minus the entropy of generated actions given z, times `entropy_weight` (ER-TRL).

    A conditional GAN of the behaviour policy, a ~ G(s, z, noise), takes `rounds` steps first, on
    the RL batch and on z without gradient, at the rate `gan_lr`. The entropy reaches z through the
    updated G, which takes no step by it.
    """
    nets = _gan(spec, latent_dim, generator, discriminator, noise_dim)

    def init(key, data):
        keys = dict(zip(("generator", "discriminator"), jax.random.split(key), strict=True))
        return {}, {name: Trained.of(getattr(nets, name).init(k)) for name, k in keys.items()}

    def generate(params, seen, key):
        obs = seen.batch.rl.obs
        noise = jax.random.normal(key, (*obs.shape[:-1], noise_dim))
        return nets.generator.apply(params, obs, seen.z, noise)

    def before(own, hp, seen, key):
        rows, z = seen.batch.rl, seen.z
        judge = lambda params, action: nets.discriminator.apply(params, action, rows.obs, z)

        def one_round(own, key):
            def tell_apart(params):
                action = generate(own["generator"].params, seen, key)
                value = losses.discrimination(judge(params, rows.action), judge(params, action))
                return value, value

            discriminator, told = own["discriminator"].descend(tell_apart, hp["gan_lr"])

            def deceive(params):
                value = losses.deception(judge(discriminator.params, generate(params, seen, key)))
                return value, value

            generator, deceived = own["generator"].descend(deceive, hp["gan_lr"])
            metrics = {"discriminator_loss": told, "generator_loss": deceived}
            return {"generator": generator, "discriminator": discriminator}, metrics

        own, metrics = jax.lax.scan(one_round, own, jax.random.split(key, rounds))
        return own, jax.tree.map(lambda values: values[-1], metrics)

    def loss(params, own, hp, seen, key):
        actions = generate(own["generator"].params, seen, key)
        return -hp["entropy_weight"] * losses.gaussian_entropy(actions).mean()

    return Term(loss, init, before)


class _Gan(NamedTuple):
    """A conditional GAN: both networks also see (s, z)."""

    generator: networks.Network  # (s, z, noise) -> action
    discriminator: networks.Network  # (action, s, z) -> logit


def _gan(spec, latent_dim, generator, discriminator, noise_dim):
    """Returns the _Gan."""
    form = {"hidden_init": spec.init, "precision": spec.precision}
    seen, size = spec.obs_dim + latent_dim, spec.action_dim
    return _Gan(
        networks.mlp(seen + noise_dim, *generator, size, squash=True, **form),
        networks.mlp(size + seen, *discriminator, 1, **form),
    )
