"""What both fidelities of UNICORN share: the terms of each variant, the predicted reward."""

from gentle_jax import compose, errors, learner, losses, networks, objectives
from gentle_jax.algorithms.unicorn import paper, release
from gentle_jax.algorithms.unicorn.settings import Config
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec

FORMS = {"paper": paper, "release": release}
OBJECTIVES = ("both", "prediction", "classification")


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    for name, allowed in (("form", tuple(FORMS)), ("objective", OBJECTIVES)):
        if getattr(config, name) not in allowed:
            raise errors.unknown(f"algo.{name}", getattr(config, name), allowed)
    form = FORMS[config.form].make(config, train, spec)
    terms = {"prediction": form.prediction}
    if config.objective == "both":
        terms = {"focal": objectives.focal(), **terms}
    elif config.objective == "classification":
        terms = {"classification": _classification(config, train.latent_dim, spec)}
    predict_reward = None
    if "prediction" in terms:
        predict_reward = lambda state, z, rows: form.reward(state.params["prediction"], z, rows)
    rep = compose.representation(
        form.encoder, terms, form.train,
        predict_reward=predict_reward, ordered_context=form.ordered_context,
    )  # fmt: skip
    shown = (*(f"{name}_loss" for name in terms), "q_loss")
    return learner.joint(rep, rl, train, spec, shown=shown)


def _classification(config, latent_dim, spec):
    """UNICORN-SUP: which training task z is of."""
    classifier = networks.mlp(
        latent_dim, config.decoder_width, config.decoder_depth, spec.num_train_tasks,
        hidden_init=spec.init, precision=spec.precision,
    )  # fmt: skip

    def loss(params, own, hp, seen, key):
        return losses.cross_entropy(classifier.apply(params, seen.z), seen.batch.task_id)

    return compose.Term(loss, lambda key, data: (classifier.init(key), {}))
