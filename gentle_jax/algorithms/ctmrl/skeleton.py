"""What both fidelities of CTMRL share: stages, the schedule, K-means around the joint step."""

import jax
import jax.numpy as jnp

from gentle_jax import compose, encoders, errors, learner
from gentle_jax.algorithms.ctmrl import codebook, paper, parts, release
from gentle_jax.algorithms.ctmrl.settings import Config
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Spec, Stage

FORMS = {"paper": paper, "release": release}


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    _check(config, spec)
    iterations = max(min(config.num_iterations, train.num_steps), 2)
    schedule = codebook.refresh_schedule(iterations)
    per_iteration = max(train.num_steps // iterations, 1)
    first, warmup, period = schedule
    bag_rows = max(warmup[1] - warmup[0], period - 1) * spec.num_train_tasks
    form = FORMS[config.form].make(config, train, spec, bag_rows)
    encoder = encoders.mean_encoder(
        spec, train.latent_dim, config.encoder_width, config.encoder_depth, config.use_next_obs
    )
    terms, coded = form.always | form.coded, form.coded if config.use_codebook else {}

    decode = parts.decoders(config, train.latent_dim, spec).reward
    fields = {
        "describe": _describe(config),
        "predict_reward": lambda state, z, rows: decode(state.params["prediction"], z[None], rows),
    }

    def representation(*names):
        rates = {"encoder": "encoder_rate"}
        return compose.representation(encoder, terms, train, names, rates=rates, **fields)

    periodic = None
    if config.use_codebook and config.use_kmeans:
        settings = per_iteration, spec.num_train_tasks, config.num_codes, form.rules
        periodic = codebook.make_periodic(schedule, *settings)

    def stage(name, rep, codes_on, begin, end):
        joint = learner.joint_step(rep, rl, train, spec, begin)
        step = joint
        if periodic is not None:
            step = _around(joint, periodic, _task_vectors(rep, spec), codes_on, begin)
        shown = ("prediction_loss", "q_loss") + (("codes_used",) if codes_on else ())
        return Stage(name, end - begin, step, shown=shown)

    last = representation(*form.always, *coded)
    warmup_steps = min(first * per_iteration, train.num_steps)
    stages = (
        stage("warmup", representation(*form.always), False, 0, warmup_steps),
        stage("train", last, config.use_codebook, warmup_steps, train.num_steps),
    )
    return learner.assemble(last, rl, stages)


def _check(config, spec):
    if config.use_codebook and not 2 <= config.num_codes <= spec.num_train_tasks:
        raise errors.UserError(
            f"algo.num_codes is {config.num_codes}: expected 2 to {spec.num_train_tasks}, the "
            f"number of training tasks; pass --config.algo.num_codes=N"
        )
    if config.form not in FORMS:
        raise errors.unknown("algo.form", config.form, FORMS)
    if config.num_iterations < 2 or config.contrast_every < 1:
        raise errors.UserError(
            "algo.num_iterations must be at least 2 and algo.contrast_every at least 1: got "
            f"{config.num_iterations} and {config.contrast_every}"
        )


def _describe(config):
    """Returns describe(state, z) -> {code of z}, NaN while no codes are in use."""

    def describe(state, z):
        if not config.use_codebook:
            return {}
        code = codebook.match(state.params["codebook"], z[None])[0]
        on = state.own["codebook"].codes_on > 0
        return {"code": jnp.where(on, code.astype(jnp.float32), jnp.nan)}

    return describe


def _task_vectors(rep, spec):
    """Returns vectors(state, data, key) -> z [training task, Z], each of one fresh context."""
    every = jnp.arange(spec.num_train_tasks)

    def vectors(state, data, key):
        k_context, k_z = jax.random.split(key)
        context = rep.context(state, data, every, k_context)
        return rep.encode(state, context, every, k_z)

    return vectors


def _around(joint, periodic, task_vectors, codes_on, offset):
    """Wraps the joint step with collection and K-means; `offset` is the stage's first step."""

    def step(state, data, key, index):
        k_start, k_vectors, k_step = jax.random.split(key, 3)
        at, hp = index + offset, state.hp["algo"]
        if codes_on:
            book, bag = _book(state.rep)
            state = _with_book(state, periodic.start(book, bag, k_start, at), bag)
        state, metrics = joint(state, data, k_step, index)
        vectors = lambda: task_vectors(state.rep, data, k_vectors)
        after = periodic.after_train if codes_on else periodic.after_warmup
        return _with_book(state, *after(*_book(state.rep), vectors, k_start, at, hp)), metrics

    return step


def _book(rep_state):
    """Returns (Codebook, bag) of a representation's state."""
    shelf = rep_state.own["codebook"]
    return codebook.Codebook(rep_state.params["codebook"], shelf.mean, shelf.size), shelf.bag


def _with_book(state, book, bag):
    """Returns the AgentState with another codebook and bag."""
    rep = state.rep
    shelf = rep.own["codebook"].replace(mean=book.mean, size=book.size, bag=bag)
    codes = rep.trained["codebook"].replace(params=book.codes)
    trained, own = rep.trained | {"codebook": codes}, rep.own | {"codebook": shelf}
    return state.replace(rep=rep.replace(trained=trained, own=own))
