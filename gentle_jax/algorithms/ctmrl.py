"""CTMRL: task contexts related to each other through a codebook (AAAI'26; ctmrl_suite.md sec. 3).

Two stages: `warmup` (no codes; the last iterations' task vectors are collected) and `train` (codes
on). An iteration is num_steps / num_iterations gradient steps. Vectors of all training tasks are
collected at the end of iterations; K-means on them starts and refreshes the codebook.

Loss = focal_weight * FOCAL + club_weight * CLUB + L_pre^spe
       + codes on * (L_C + L_pre^cro + L_contra)

| part | fidelity=paper | fidelity=release |
|---|---|---|
| code move | Eq. 2 once per step, rate `eta` | moving average, decay 0.9, 4 calls per step |
| L_C | Eq. 3, InfoNCE of z against codes, task mean | 0.25 MSE(code, z) + code-code contrast |
| L_pre^spe | Eq. 4-6, trains encoder and decoders | decoders only (z detached) |
| L_pre^cro | Eq. 7-9, trains codes and decoders | latent cycle through the encoder |
| L_contra | Eq. 10, cosine, singletons get `num_fillers` others | bilinear frozen W, singletons 0 |
| K-means | Euclidean | dot product, unit centres |
| FOCAL, CLUB | off (the paper does not name them) | on |

Deviations, with reasons: prediction losses are mean squared errors (the paper's sum of norms grows
with the context); they are taken on the RL batch, whose reward is dense also where contexts are
sparse; collected vectors are z, since the released collection returns undefined names; codes start
from K-means, or from N(0, 1) without it, since zero codes have no cosine. The released Adam step on
codes is erased by the next moving average, so it is left out. In `paper` Adam moves codes too, by
its momentum also ones without a match; a K-means centre without members moves no code.
`algo.use_codebook=False` is "no codebook at all".
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import codebook, encoders, errors, learner, losses, networks
from gentle_jax import data as data_lib
from gentle_jax.types import AgentState, Algorithm, Representation, Stage

DEFAULT_FIDELITY = "paper"
FIDELITY = {
    "paper": {},
    "release": {
        "algo.ema_codes": True,
        "algo.code_loss": "commit",
        "algo.encoder_prediction": False,
        "algo.cross_loss": "cycle",
        "algo.contrast": "bilinear",
        "algo.unit_norm_kmeans": True,
        "algo.use_focal": True,
        "algo.use_club": True,
    },
}


# the paper's names of its Tables 2 and 3 in `experiments/reference`
VARIANTS = {
    "ctmrl_no_code_loss": {"use_code_loss": False},
    "ctmrl_no_cross_prediction": {"use_cross_prediction": False},
    "ctmrl_no_kmeans": {"use_kmeans": False},
    "ctmrl_no_contrastive": {"use_contrast": False},
    **{f"ctmrl_codes_{n}": {"num_codes": n} for n in (2, 4, 8, 16, 32, 64)},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of ctmrl_suite.md sec. 3 and 12; floats are leaves of `hp`."""

    encoder_width: int = 200
    encoder_depth: int = 3
    width: int = 256  # decoders
    depth: int = 3
    use_next_obs: bool = False
    # Table 2 and 3 of the paper
    use_codebook: bool = True
    use_code_loss: bool = True  # L_C
    use_cross_prediction: bool = True  # L_pre^cro
    use_kmeans: bool = True
    use_contrast: bool = True  # L_contra
    num_codes: int = 4
    # what the paper and the release do differently
    ema_codes: bool = False
    code_loss: str = "infonce"  # or "commit"
    encoder_prediction: bool = True
    cross_loss: str = "regress"  # or "cycle"
    code_gradient: bool = True  # Adam on codes from L_pre^cro (regress only)
    contrast: str = "cosine"  # or "bilinear"
    unit_norm_kmeans: bool = False
    use_focal: bool = False
    use_club: bool = False
    contrast_every: int = 1  # it encodes two contexts of every training task; its mean weight is
    #                          contrast_weight / contrast_every
    num_fillers: int = 4  # M
    num_iterations: int = 65
    eta: float = 0.1
    decay: float = 0.9
    temperature: float = 0.5
    commit_weight: float = 0.25
    code_loss_weight: float = 1.0
    cross_weight: float = 1.0
    contrast_weight: float = 1.0
    prediction_weight: float = 1.0
    focal_weight: float = 10.0
    club_weight: float = 10.0
    club_model_weight: float = 10.0
    lr: float = 3e-4


@struct.dataclass
class CTMRLState:
    """Leaves of one run's representation."""

    params: dict  # encoder, reward and transition decoders: one optimiser
    moments: tuple
    club: dict
    club_moments: tuple
    book: codebook.Codebook
    code_moments: tuple
    matrix: jax.Array  # [Z, Z], the release's frozen bilinear form
    bag: jax.Array  # [rows, Z], task vectors waiting for K-means
    codes_on: jax.Array  # scalar, 1 once codes are in use: figures show none before


def _check(config, spec):
    if config.use_codebook and not 2 <= config.num_codes <= spec.num_train_tasks:
        raise errors.UserError(
            f"algo.num_codes is {config.num_codes}: expected 2 to {spec.num_train_tasks}, the "
            f"number of training tasks; pass --config.algo.num_codes=N"
        )
    for name, allowed in (
        ("code_loss", ("infonce", "commit")),
        ("cross_loss", ("regress", "cycle")),
        ("contrast", ("cosine", "bilinear")),
    ):
        if getattr(config, name) not in allowed:
            raise errors.unknown(f"algo.{name}", getattr(config, name), allowed)
    if config.num_iterations < 2 or config.contrast_every < 1:
        raise errors.UserError(
            "algo.num_iterations must be at least 2 and algo.contrast_every at least 1: got "
            f"{config.num_iterations} and {config.contrast_every}"
        )


def make(config, train, spec, rl):
    """Returns the Algorithm. Args: config, a Config; train, a TrainConfig; spec; rl, a Backbone."""
    _check(config, spec)
    iterations = min(config.num_iterations, train.num_steps)
    schedule = codebook.refresh_schedule(max(iterations, 2))
    per_iteration = max(train.num_steps // max(iterations, 2), 1)
    nets = _networks(config, train.latent_dim, spec)
    bag_rows = max(schedule[1][1] - schedule[1][0], schedule[2] - 1) * spec.num_train_tasks
    all_tasks = jnp.arange(spec.num_train_tasks)

    def context(state, data, task_id, key):
        del state
        return data_lib.context_of(data, task_id, train, key)

    def task_vectors(params, data, key):
        """z [training task, Z] of one fresh context of every training task."""
        return nets.encode_set(params["encoder"], context(None, data, all_tasks, key))

    def init_rep(hp, key):
        return _init_state(nets, config, train.latent_dim, bag_rows, key)

    def update(codes_on):
        loss_fn = _make_loss(config, nets, task_vectors, codes_on)

        def step(state, hp, batch, dz, data, key, index):
            del dz  # allow_backward_z is False in every config of the suite
            _, k_contrast = jax.random.split(key)
            state, club_metrics = _club_step(config, nets, state, hp, batch)
            trained = {"params": state.params, "codes": state.book.codes}
            grads, (metrics, z, z_all) = jax.grad(loss_fn, has_aux=True)(
                trained, state, hp, batch, data, k_contrast, index
            )
            params, moments = learner.adam_step(
                state.params, grads["params"], state.moments, hp["lr"]
            )
            state = state.replace(params=params, moments=moments)
            if codes_on:
                state = _move_codes(config, state, hp, grads["codes"], z, z_all)
                state = state.replace(codes_on=jnp.ones_like(state.codes_on))
            return state, metrics | club_metrics

        return step

    def describe(state, z):
        if not config.use_codebook:
            return {}
        code = codebook.match(state.book.codes, z[None])[0]
        return {"code": jnp.where(state.codes_on > 0, code.astype(jnp.float32), jnp.nan)}

    def rep(codes_on):
        return Representation(
            init=init_rep,
            context=context,
            update=update(codes_on and config.use_codebook),
            prior=lambda state: nets.prior(),
            extend=lambda state, *args: nets.extend(state.params["encoder"], *args),
            sample=nets.sample,
            describe=describe,
            encode=lambda state, context, key: nets.encode_set(state.params["encoder"], context),
        )

    def init(hp, key):
        k_rep, k_rl = jax.random.split(key)
        return AgentState(init_rep(hp["algo"], k_rep), rl.init(hp["backbone"], k_rl), hp)

    periodic = None
    if config.use_codebook and config.use_kmeans:
        periodic = codebook.make_periodic(
            schedule, per_iteration, spec.num_train_tasks, config.unit_norm_kmeans, config.ema_codes
        )

    def stage(name, codes_on, begin, end):
        joint = learner.joint_step(rep(codes_on), rl, train, spec.num_train_tasks, begin)
        step = _staged(config, joint, periodic, codes_on, task_vectors, begin)
        shown = ("prediction_loss", "q_loss") + (("codes_used",) if config.use_codebook else ())
        return Stage(name, end - begin, step, shown=shown if codes_on else shown[:2])

    warmup_steps = min(schedule[0] * per_iteration, train.num_steps)
    stages = (
        stage("warmup", False, 0, warmup_steps),
        stage("train", True, warmup_steps, train.num_steps),
    )
    return Algorithm(init, stages, rep(True), rl)


@dataclasses.dataclass(frozen=True)
class _Nets:
    encoder: networks.Network
    prior: callable
    extend: callable
    sample: callable
    reward: networks.Network
    transition: networks.Network
    club: networks.Network
    use_next_obs: bool

    def rows(self, params, context):
        """Per-transition codes [T, C, Z]."""
        return self.encoder.apply(params, encoders.context_row(context, self.use_next_obs))

    def encode_set(self, params, context):
        """z [T, Z], the mean code of each context."""
        return self.rows(params, context).mean(1)


def _networks(config, latent_dim, spec):
    encoder, prior, extend, sample = encoders.mean_encoder(
        spec, config.encoder_width, config.encoder_depth, latent_dim, config.use_next_obs
    )
    seen = latent_dim + spec.obs_dim + spec.action_dim  # z, s, a in this order
    net = functools.partial(networks.mlp, hidden_init=spec.init, precision=spec.precision)
    return _Nets(
        encoder,
        prior,
        extend,
        sample,
        reward=net(seen, config.width, config.depth, 1),
        transition=net(seen, config.width, config.depth, spec.obs_dim),
        club=net(
            spec.obs_dim + spec.action_dim,
            config.encoder_width,
            config.encoder_depth,
            2 * latent_dim,
            squash=True,
        ),
        use_next_obs=config.use_next_obs,
    )


def _init_state(nets, config, latent_dim, bag_rows, key):
    keys = jax.random.split(key, 6)
    params = {
        "encoder": nets.encoder.init(keys[0]),
        "reward": nets.reward.init(keys[1]),
        "transition": nets.transition.init(keys[2]),
    }
    club = nets.club.init(keys[3])
    codes = jax.random.normal(keys[4], (config.num_codes, latent_dim))
    book = codebook.Codebook(codes, jnp.copy(codes), jnp.ones(config.num_codes))
    return CTMRLState(
        params=params,
        moments=learner.adam_init(params),
        club=club,
        club_moments=learner.adam_init(club),
        book=book,
        code_moments=learner.adam_init(codes),
        matrix=jax.random.uniform(keys[5], (latent_dim, latent_dim)),
        bag=jnp.zeros((bag_rows, latent_dim)),
        codes_on=jnp.zeros(()),
    )


def _predict(nets, params, z, batch):
    """Mean squared errors of r and s' predicted from (z, s, a) on the RL batch."""
    inputs = (z, batch.rl.obs, batch.rl.action)
    reward = nets.reward.apply(params["reward"], *inputs)[..., 0]
    next_obs = nets.transition.apply(params["transition"], *inputs)
    return losses.mse(reward, batch.rl.reward) + losses.mse(next_obs, batch.rl.next_obs)


def _cycle(nets, params, codes, batch):
    """The release's L_pre^cro: encode the rows that the code predicts, compare with the code."""
    context = batch.context
    inputs = (codes, context.obs, context.action)
    reward = nets.reward.apply(params["reward"], *inputs)[..., 0]
    imagined = context._replace(context_reward=reward)
    if nets.use_next_obs:
        next_obs = nets.transition.apply(params["transition"], *inputs)
        imagined = imagined._replace(next_obs=next_obs)
    encoded = nets.rows(params["encoder"], imagined)
    return losses.mse(encoded, jnp.broadcast_to(codes[:, None], encoded.shape))


def _club_heads(nets, club, context):
    mean, raw = jnp.split(nets.club.apply(club, context.obs, context.action), 2, axis=-1)
    return mean, jax.nn.softplus(raw)


def _club_step(config, nets, state, hp, batch):
    """One step of CLUB's network p(z | s, a), before the encoder uses it."""
    if not config.use_club:
        return state, {}
    codes = jax.lax.stop_gradient(nets.rows(state.params["encoder"], batch.context))

    def loss(club):
        return hp["club_model_weight"] * losses.club_likelihood(
            codes, *_club_heads(nets, club, batch.context)
        )

    value, grads = jax.value_and_grad(loss)(state.club)
    club, moments = learner.adam_step(state.club, grads, state.club_moments, hp["lr"])
    return state.replace(club=club, club_moments=moments), {"club_model_loss": value}


def _make_loss(config, nets, task_vectors, codes_on):
    """Returns loss(trained, state, hp, batch, data, key, index) -> (value, (metrics, z, z_all))."""

    def contrast(trained, state, hp, data, key, index):
        k_anchor, k_positive, k_filler = jax.random.split(key, 3)
        num_codes = state.book.codes.shape[0]

        def compute(params):
            positive = task_vectors(params, data, k_positive)
            anchor = task_vectors(params, data, k_anchor)
            group = codebook.match(state.book.codes, jax.lax.stop_gradient(positive))
            if config.contrast == "bilinear":
                value = losses.bilinear_group_contrast(
                    anchor, positive, group, num_codes, state.matrix
                )
            else:
                chance = jax.random.uniform(k_filler, (group.shape[0],) * 2)
                rank = jnp.argsort(jnp.argsort(chance + jnp.eye(group.shape[0]), axis=1), axis=1)
                value = losses.group_contrast(
                    anchor, positive, group, num_codes, rank < config.num_fillers, hp["temperature"]
                )
            return value, positive

        if config.contrast_every == 1:
            return compute(trained["params"])
        # no run axis on `index`, so the skipped branch costs nothing
        shape = jax.eval_shape(compute, trained["params"])
        skip = lambda params: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape)
        due = index % config.contrast_every == 0
        return jax.lax.cond(due, compute, skip, trained["params"])

    def loss(trained, state, hp, batch, data, key, index):
        params = trained["params"]
        rows = nets.rows(params["encoder"], batch.context)  # [T, C, Z]
        z = rows.mean(1)
        seen = z if config.encoder_prediction else jax.lax.stop_gradient(z)
        parts = {"prediction_loss": hp["prediction_weight"] * _predict(nets, params, seen, batch)}
        z_all = None
        if config.use_focal:
            parts["focal_loss"] = hp["focal_weight"] * losses.focal(z, batch.task_id)
        if config.use_club:
            heads = jax.lax.stop_gradient(_club_heads(nets, state.club, batch.context))
            parts["club_loss"] = hp["club_weight"] * losses.club_bound(rows, *heads)
        if codes_on:
            matched = codebook.match(state.book.codes, jax.lax.stop_gradient(z))
            code = trained["codes"][matched]
            if config.use_code_loss:
                parts["code_loss"] = hp["code_loss_weight"] * _code_loss(
                    config, state, hp, z, code, matched
                )
            if config.use_cross_prediction:
                regress = config.cross_loss == "regress"
                code = code if config.code_gradient else jax.lax.stop_gradient(code)
                value = (_predict if regress else _cycle)(nets, params, code, batch)
                parts["cross_loss"] = hp["cross_weight"] * value
            if config.use_contrast:
                value, z_all = contrast(trained, state, hp, data, key, index)
                if config.contrast == "bilinear":  # the release skips it if one code was matched
                    value = jnp.where(jnp.all(matched == matched[0]), 0.0, value)
                parts["contrast_loss"] = hp["contrast_weight"] * value
            used = jax.ops.segment_sum(jnp.ones_like(matched), matched, config.num_codes) > 0
        total = sum(parts.values())
        metrics = dict(parts)
        if codes_on:
            metrics["codes_used"] = used.sum().astype(jnp.float32)
        aux = (metrics, jax.lax.stop_gradient(z), jax.lax.stop_gradient(z_all))
        return total, aux

    return loss


def _code_loss(config, state, hp, z, code, matched):
    if config.code_loss == "infonce":
        codes = jax.lax.stop_gradient(state.book.codes)
        return losses.code_contrast(z, codes, matched, hp["temperature"])
    # the release also contrasts codes with each other, which only moves codes, and that gradient is
    # erased by the moving average
    return hp["commit_weight"] * losses.mse(code, z)


def _move_codes(config, state, hp, code_grads, z, z_all):
    """Moves codes after a step: Eq. 2, or the release's four moving-average calls."""
    book, move, all_rows = state.book, _move(config, hp), jnp.ones(z.shape[0])
    matched = codebook.match(book.codes, z)
    if config.ema_codes:
        several = jnp.any(matched != matched[0])
        for _ in range(3):  # the main forward and two extra dual-critic forwards
            book = move(book, z, codebook.match(book.codes, z), all_rows)
        if config.use_contrast and config.contrast_every == 1:  # the contrast's, if it ran
            rows = jnp.ones(z_all.shape[0])
            moved = move(book, z_all, codebook.match(book.codes, z_all), rows)
            book = jax.tree.map(lambda a, b: jnp.where(several, a, b), moved, book)
        return state.replace(book=book)
    moments = state.code_moments
    if config.use_cross_prediction and config.code_gradient and config.cross_loss == "regress":
        codes, moments = learner.adam_step(book.codes, code_grads, moments, hp["lr"])
        book = book.replace(codes=codes)
    return state.replace(book=move(book, z, matched, all_rows), code_moments=moments)


def _move(config, hp):
    """Returns the code move of this fidelity: (book, vectors, matched, weight) -> book."""
    if config.ema_codes:
        return lambda book, z, matched, weight: codebook.move_ema(
            book, z, matched, hp["decay"], weight
        )
    return lambda book, z, matched, weight: codebook.move(book, z, matched, hp["eta"], weight)


def _staged(config, joint, periodic, codes_on, task_vectors, offset):
    """Wraps the joint step with collection and K-means; `offset` is the stage's first step."""
    if periodic is None:
        return joint

    def step(state, data, key, index):
        k_start, k_vectors, k_step = jax.random.split(key, 3)
        at, hp = index + offset, state.hp["algo"]
        book, bag = state.rep.book, state.rep.bag
        if codes_on:
            book = periodic.start(book, bag, k_start, at)
        state = state.replace(rep=state.rep.replace(book=book))
        state, metrics = joint(state, data, k_step, index)
        vectors = lambda: task_vectors(state.rep.params, data, k_vectors)
        after = periodic.after_train if codes_on else periodic.after_warmup
        book, bag = after(state.rep.book, bag, vectors, k_start, at, _move(config, hp))
        return state.replace(rep=state.rep.replace(book=book, bag=bag)), metrics

    return step
