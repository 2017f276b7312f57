"""CTMRL as its authors' code does it (docs/methods/ctmrl.md, "Paper against release")."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gentle_jax import losses, objectives
from gentle_jax.algorithms.ctmrl import codebook, parts
from gentle_jax.algorithms.ctmrl.settings import Config
from gentle_jax.compose import Term
from gentle_jax.config import TrainConfig
from gentle_jax.types import Scalar, Spec

FORWARDS = 3  # passes of z through the codebook before the losses: the main one, two dual critics'


def make(config: Config, train: TrainConfig, spec: Spec, bag_rows: int) -> parts.Form:
    """Returns the Form. Args: bag_rows, of the vectors that wait for K-means."""
    nets = parts.decoders(config, train.latent_dim, spec)
    shape = config.encoder_width, config.encoder_depth
    always = {
        "prediction": _prediction(nets),
        "focal": objectives.focal(),
        "club": objectives.club(spec, train.latent_dim, *shape),
    }
    coded = {"codebook": _codebook(config, train.latent_dim, bag_rows)}
    if config.use_code_loss:
        coded["code"] = Term(_code_loss)
    if config.use_cross_prediction:
        coded["cross"] = _cycle(nets, config.use_next_obs)
    if config.use_contrast:
        coded["contrast"] = _contrast(config, train, spec.num_train_tasks)
    if config.use_code_loss:  # after `contrast`, whose pass moves the codes that it contrasts
        coded["code_contrast"] = Term(_code_contrast)
    return parts.Form(always, coded, codebook.Rules(True, _refresh, _collect))


def _prediction(nets):
    """The decoders' errors on the RL batch, from a z without gradient."""

    def loss(params, own, hp, seen, key):
        z = jax.lax.stop_gradient(seen.z)
        return hp["prediction_weight"] * parts.prediction_error(nets, params, z, seen.batch.rl)

    return Term(loss, lambda key, data: (nets.init(key), {}))


def _code_loss(params, own, hp, seen, key):
    """Commitment: squared distance of z and its code, to both sides."""
    codes, matched = parts.matched_codes(seen)
    weight = hp["code_loss_weight"] * hp["commit_weight"]
    return weight * losses.mse(codes[matched], seen.z)


def _code_contrast(params, own, hp, seen, key):
    """A contrast of codes with codes, as they are after the passes of this step.

    It moves codes only, by the Adam step that lives until the next pass.
    """
    codes = seen.params["codebook"]
    passed = jax.lax.stop_gradient(_passed(hp, seen).codes)
    codes = codes + (passed - jax.lax.stop_gradient(codes))  # their values, Adam's gradient
    one_group = jnp.zeros(codes.shape[0], jnp.int32)
    matrix = seen.own["codebook"].matrix
    value = losses.bilinear_group_contrast(codes, codes, one_group, 1, matrix)
    return hp["code_loss_weight"] * value


def _cycle(nets, use_next_obs):
    """Encode the rows that the code predicts, and compare each with the code."""

    def loss(params, own, hp, seen, key):
        codes, matched = parts.matched_codes(seen)
        code, context, decoders = codes[matched], seen.batch.context, seen.params["prediction"]
        imagined = context._replace(context_reward=nets.reward(decoders, code, context))
        if use_next_obs:
            imagined = imagined._replace(next_obs=nets.next_obs(decoders, code, context))
        encoded, _ = seen.encode(imagined, seen.batch.task_id, key)
        return hp["cross_weight"] * losses.mse(
            encoded, jnp.broadcast_to(code[:, None], encoded.shape)
        )

    return Term(loss)


def _contrast(config, train, num_tasks):
    """L_contra with logits z' W z^T of a frozen random W; one matched code in the batch: none.

    Groups come from the codes after the forward passes of this step.
    """

    def compare(own, hp, seen, anchor, positive, group, key):
        _, matched = parts.matched_codes(seen)
        views = anchor, positive, group, config.num_codes
        value = losses.bilinear_group_contrast(*views, seen.own["codebook"].matrix)
        return jnp.where(_several(matched), value, 0.0)

    def groups_from(seen):
        return codebook.averaged(seen.own["codebook"].mean, seen.own["codebook"].size)

    return parts.contrast_term(config, train, num_tasks, groups_from, compare)


def _several(matched):
    """Whether a batch matches more than one code: the contrast runs only then."""
    return jnp.any(matched != matched[0])


def forward_passes(
    book: codebook.Codebook, z: Float[Array, "T Z"], decay: Scalar, count: int = FORWARDS
) -> codebook.Codebook:
    """Returns the book after some passes of z: each matches, then averages."""
    for _ in range(count):
        book = codebook.move_ema(book, z, codebook.match(book.codes, z), decay)
    return book


def _passed(hp, seen):
    """Returns the book after all passes of a step: those in `before`, and the contrast's."""
    mean, size = seen.own["codebook"].mean, seen.own["codebook"].size
    book = codebook.Codebook(codebook.averaged(mean, size), mean, size)
    if "contrast" not in seen.aux:  # an ablation
        return book
    _, matched = parts.matched_codes(seen)
    aux = seen.aux["contrast"]
    moved = forward_passes(book, aux["positive"], hp["decay"], count=1)
    ran = (aux["ran"] > 0) & _several(matched)
    return jax.tree.map(lambda a, b: jnp.where(ran, a, b), moved, book)


def _codebook(config, latent_dim, bag_rows):
    """The codes: running averages, rebuilt at every pass.

    Tasks are matched with the codes before the step's passes; Adam's step is added to the codes
    after them and lives until the next pass rebuilds them.
    """

    def before(own, hp, seen, key):
        book = codebook.Codebook(seen.params["codebook"], own.mean, own.size)
        book = forward_passes(book, seen.z, hp["decay"])
        own = own.replace(mean=book.mean, size=book.size, codes_on=jnp.ones(()))
        return own, parts.codes_used(config, seen)

    def after(codes, own, hp, seen, key):
        step = codes - seen.params["codebook"]  # Adam's
        book = _passed(hp, seen)
        return book.codes + step, own.replace(mean=book.mean, size=book.size)

    return parts.codebook_term(config, latent_dim, bag_rows, before=before, after=after)


def _collect(book, vectors, hp):
    """Collecting passes the vectors of all training tasks through the codebook."""
    return forward_passes(book, vectors, hp["decay"], count=1)


def _refresh(book, centres, counts, hp):
    """The centres pass through the codebook like vectors, each counting 1, empty ones too."""
    del counts
    return forward_passes(book, centres, hp["decay"], count=1)
