"""CTMRL as its paper's equations say."""

import jax
import jax.numpy as jnp

from gentle_jax import losses
from gentle_jax.algorithms.ctmrl import codebook, parts
from gentle_jax.algorithms.ctmrl.settings import Config
from gentle_jax.compose import Term
from gentle_jax.config import TrainConfig
from gentle_jax.types import Spec


def make(config: Config, train: TrainConfig, spec: Spec, bag_rows: int) -> parts.Form:
    """Returns the Form. Args: bag_rows, of the vectors that wait for K-means."""
    nets = parts.decoders(config, train.latent_dim, spec)
    always = {"prediction": _prediction(nets)}
    coded = {"codebook": _codebook(config, train.latent_dim, bag_rows)}
    if config.use_code_loss:
        coded["code"] = Term(_code_loss)
    if config.use_cross_prediction:
        coded["cross"] = _cross_prediction(nets)
    if config.use_contrast:
        coded["contrast"] = _contrast(config, train, spec.num_train_tasks)
    return parts.Form(always, coded, codebook.Rules(False, _refresh, collect=None))


def _prediction(nets):
    """L_pre^spe, Eq. 4-6: trains encoder and decoders."""

    def loss(params, own, hp, seen, key):
        error = parts.prediction_error(nets, params, seen.z, seen.batch.rl)
        return hp["prediction_weight"] * error

    return Term(loss, lambda key, data: (nets.init(key), {}))


def _code_loss(params, own, hp, seen, key):
    """L_C, Eq. 3: InfoNCE of z against the codes, which it does not move."""
    codes, matched = parts.matched_codes(seen)
    value = losses.code_contrast(seen.z, jax.lax.stop_gradient(codes), matched, hp["temperature"])
    return hp["code_loss_weight"] * value


def _cross_prediction(nets):
    """L_pre^cro, Eq. 7-9: the same prediction from the matched code; trains codes and decoders."""

    def loss(params, own, hp, seen, key):
        codes, matched = parts.matched_codes(seen)
        decoders = seen.params["prediction"]
        error = parts.prediction_error(nets, decoders, codes[matched], seen.batch.rl)
        return hp["cross_weight"] * error

    return Term(loss)


def _contrast(config, train, num_tasks):
    """L_contra, Eq. 10: cosine InfoNCE; a task alone in its group gets `num_fillers` others."""

    def compare(own, hp, seen, anchor, positive, group, key):
        chance = jax.random.uniform(key, (num_tasks, num_tasks))
        rank = jnp.argsort(jnp.argsort(chance + jnp.eye(num_tasks), axis=1), axis=1)
        fillers = rank < config.num_fillers
        views = anchor, positive, group, config.num_codes
        return losses.group_contrast(*views, fillers, hp["temperature"])

    groups_from = lambda seen: seen.params["codebook"]
    return parts.contrast_term(config, train, num_tasks, groups_from, compare)


def _codebook(config, latent_dim, bag_rows):
    """The codes: after the gradient step of L_pre^cro, Eq. 2 moves those that z matches."""

    def before(own, hp, seen, key):
        return own.replace(codes_on=jnp.ones(())), parts.codes_used(config, seen)

    def after(codes, own, hp, seen, key):
        _, matched = parts.matched_codes(seen)
        book = codebook.Codebook(codes, own.mean, own.size)
        return codebook.move(book, seen.z, matched, hp["eta"]).codes, own

    return parts.codebook_term(config, latent_dim, bag_rows, before=before, after=after)


def _refresh(book, centres, counts, hp):
    """Eq. 2 with the centres in place of z; one without members moves no code."""
    weight = (counts > 0).astype(jnp.float32)
    return codebook.move(book, centres, codebook.match(book.codes, centres), hp["eta"], weight)
