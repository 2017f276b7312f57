"""GENTLE: a task auto-encoder trained on contexts relabelled by task dynamics models (AAAI'24).

Source: gentle_suite.md sec. 3. Two stages: `dynamics` trains one ensemble per training task,
`train` is the joint step; every `relabel_every` steps, before the update, the relabel buffers are
made anew.

| point (sheet sec. 3.7) | fidelity=release (default: what was run) | fidelity=paper |
|---|---|---|
| 1 cross-task actions | z of the task the state came from | z of the task being augmented |
| 2 relabelling policy | mean of the target policy | sample of the policy |
| 4 cross rows per task | sources at random, 3 on average | exactly 3 sources (cyclic shifts) |
| 5 context | 95 % relabelled, 5 % real | drawn from the union in proportion to its sizes |
| 8, 9 reconstruction, encoder | r only where only the reward varies | r and s'; encoder sees s' |

Deviations, with reasons: the real rows of a context come from the whole dataset, not from the
release's slowly refreshed sub-sample; rows are not sorted by ensemble spread, which has no effect;
epochs of the dynamics stage are bounded (see `gentle_jax.dynamics`). Only the reconstruction loss
reaches the encoder. Table 2 of the paper: `objective=contrastive`, `relabel=False`,
`policy_relabel=False`; Figure 3: `num_cross_tasks` and `own_share`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from gentle_jax import data as data_lib
from gentle_jax import dynamics, encoders, errors, learner, losses, networks
from gentle_jax.config import static
from gentle_jax.types import AgentState, Algorithm, Representation, Stage, Transition

DEFAULT_FIDELITY = "release"
FIDELITY = {
    "release": {},
    "paper": {
        "algo.relabel_z": "target",
        "algo.relabel_policy": "sample",
        "algo.balanced_sources": True,
        "algo.union_context": True,
        "algo.use_next_obs": True,
    },
}


# the paper's names of its Table 2 in `experiments/reference`
VARIANTS = {
    "gentle_contrastive": {"objective": "contrastive"},
    "gentle_no_relabel": {"relabel": False},
    "gentle_no_policy_relabel": {"policy_relabel": False},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of gentle_suite.md sec. 3; floats are leaves of `hp` unless static."""

    width: int = 256
    depth: int = 3
    use_next_obs: bool = False  # in contexts and reconstruction (Hopper and Walker)
    # Table 2 and Figure 3 of the paper
    objective: str = "reconstruct"  # or "contrastive": FOCAL's loss, no decoder
    relabel: bool = True
    policy_relabel: bool = True  # False keeps the dataset's actions
    num_cross_tasks: int = 3
    own_share: float = static(1.0)  # Fig. 3's 1:12 and 1:15 keep 0.75 and 0.6 of the own rows
    # what the release and the paper do differently
    relabel_z: str = "source"  # or "target"
    relabel_policy: str = "target_mode"  # or "sample", "mode"
    balanced_sources: bool = False
    union_context: bool = False
    relabel_every: int = 400
    relabel_rows: int = 2560  # per source task
    relabel_ratio: float = static(0.95)
    ensemble_size: int = 7
    model_batch: int = 256
    max_epochs: int = 200
    patience: int = 5
    model_lr: float = 1e-3
    recon_weight: float = 10.0
    focal_weight: float = 10.0
    lr: float = 3e-4


@struct.dataclass
class Relabelled:
    """Rows of each source task under its own and other tasks' models; (s, a) stored once."""

    obs: jax.Array  # [source, row, o]
    action: jax.Array  # [source, slot or 1, row, a]
    reward: jax.Array  # [source, slot, row]
    next_obs: jax.Array  # [source, slot, row, o], or [source, 1, 1, o] where only r is relabelled
    pair: jax.Array  # [target, N] int32: source * slots + slot of the target's k-th block
    count: jax.Array  # [target] int32: blocks of the target


@struct.dataclass
class GentleState:
    """Leaves of one run's representation."""

    params: dict  # encoder and decoder: one optimiser
    moments: tuple
    models: dynamics.EnsembleState
    buffer: Relabelled


def _check(config, spec):
    for name, allowed in (
        ("objective", ("reconstruct", "contrastive")),
        ("relabel_z", ("source", "target")),
        ("relabel_policy", ("target_mode", "mode", "sample")),
    ):
        if getattr(config, name) not in allowed:
            raise errors.unknown(f"algo.{name}", getattr(config, name), allowed)
    most = spec.num_train_tasks - 1
    if config.relabel and not 0 <= config.num_cross_tasks <= most:
        raise errors.UserError(
            f"algo.num_cross_tasks is {config.num_cross_tasks}: expected 0 to {most}, the other "
            f"training tasks; pass --config.algo.num_cross_tasks=N"
        )


def make(config, train, spec, rl):
    """Returns the Algorithm. Args: config, a Config; train, a TrainConfig; spec; rl, a Backbone."""
    _check(config, spec)
    nets = _networks(config, train.latent_dim, spec)
    models = dynamics.make(
        spec, config.width, config.ensemble_size, config.model_batch, config.max_epochs,
        config.patience, config.use_next_obs,
    )  # fmt: skip
    num_tasks, slots = spec.num_train_tasks, 1 + config.num_cross_tasks

    def init_rep(hp, key):
        del hp
        keys = jax.random.split(key, 3)
        params = {
            "encoder": nets["encoder"].init(keys[0]),
            "decoder": nets["decoder"].init(keys[1]),
        }
        return GentleState(
            params=params,
            moments=learner.adam_init(params),
            models=models.init(keys[2]),
            buffer=_empty(config, spec, num_tasks, slots),
        )

    def encode(params, context):
        """z [T, Z], the mean code of each context."""
        rows = encoders.context_row(context, config.use_next_obs)
        return nets["encoder"].apply(params["encoder"], rows).mean(1)

    def context(state, data, task_id, key):
        if not config.relabel:
            return data_lib.context_of(data, task_id, train, key)
        return _mixed_context(config, train, slots, state.buffer, data, task_id, key)

    def update(state, hp, batch, dz, data, key, index):
        del dz, data, key, index  # only the reconstruction reaches the encoder

        def loss(params):
            z = encode(params, batch.context)
            if config.objective == "contrastive":
                return hp["focal_weight"] * losses.focal(z, batch.task_id)
            return hp["recon_weight"] * _reconstruction(config, nets, params, z, batch.context)

        value, grads = jax.value_and_grad(loss)(state.params)
        params, moments = learner.adam_step(state.params, grads, state.moments, hp["lr"])
        return state.replace(params=params, moments=moments), {"context_loss": value}

    rep = Representation(
        init=init_rep,
        context=context,
        update=update,
        prior=lambda state: nets["prior"](),
        extend=lambda state, *args: nets["extend"](state.params["encoder"], *args),
        sample=nets["sample"],
        describe=lambda state, z: {},
        encode=lambda state, context, key: encode(state.params, context),
    )

    def init(hp, key):
        k_rep, k_rl = jax.random.split(key)
        return AgentState(init_rep(hp["algo"], k_rep), rl.init(hp["backbone"], k_rl), hp)

    def dynamics_step(state, data, key, index):
        fitted, metrics = models.step(
            state.rep.models, data, state.hp["algo"]["model_lr"], key, index
        )
        return state.replace(rep=state.rep.replace(models=fitted)), metrics

    joint = learner.joint_step(rep, rl, train, num_tasks)
    relabel = _make_relabel(config, spec, models, rep, rl)

    def train_step(state, data, key, index):
        if not config.relabel:
            return joint(state, data, key, index)
        k_relabel, k_step = jax.random.split(key)
        buffer = jax.lax.cond(  # `index` has no run axis: a real branch, also under vmap
            index % config.relabel_every == 0,
            lambda: relabel(state, data, k_relabel),
            lambda: state.rep.buffer,
        )
        return joint(state.replace(rep=state.rep.replace(buffer=buffer)), data, k_step, index)

    model_steps = models.num_steps if config.relabel else 0
    stages = (
        Stage(
            "dynamics",
            model_steps,
            dynamics_step,
            evaluate=False,
            shown=("holdout_error", "tasks_running"),
        ),
        Stage("train", train.num_steps, train_step, shown=("context_loss", "q_loss")),
    )
    return Algorithm(init, stages, rep, rl)


def _networks(config, latent_dim, spec):
    encoder, prior, extend, sample = encoders.mean_encoder(
        spec, config.width, config.depth, latent_dim, config.use_next_obs
    )
    out = 1 + (spec.obs_dim if config.use_next_obs else 0)
    decoder = networks.mlp(
        spec.obs_dim + spec.action_dim + latent_dim,
        config.width,
        config.depth,
        out,
        hidden_init=spec.init,
        precision=spec.precision,
    )
    return {
        "encoder": encoder, "decoder": decoder, "prior": prior, "extend": extend, "sample": sample,
    }  # fmt: skip


def _reconstruction(config, nets, params, z, context):
    """Mean squared error of r (and s') over tasks, rows and dimensions (Eq. 4)."""
    guess = nets["decoder"].apply(params["decoder"], context.obs, context.action, z)
    target = context.context_reward[..., None]
    if config.use_next_obs:
        target = jnp.concatenate([target, context.next_obs], axis=-1)
        shift = jnp.concatenate([jnp.zeros_like(target[..., :1]), context.obs], axis=-1)
        guess = guess + shift  # the next state is predicted as a change
    return losses.mse(guess, target)


def _empty(config, spec, num_tasks, slots):
    rows = config.relabel_rows if config.relabel else 1
    width = slots if config.relabel_z == "target" else 1
    next_shape = (slots, rows) if config.use_next_obs else (1, 1)
    return Relabelled(
        obs=jnp.zeros((num_tasks, rows, spec.obs_dim)),
        action=jnp.zeros((num_tasks, width, rows, spec.action_dim)),
        reward=jnp.zeros((num_tasks, slots, rows)),
        next_obs=jnp.zeros((num_tasks,) + next_shape + (spec.obs_dim,)),
        pair=jnp.zeros((num_tasks, num_tasks), jnp.int32),
        count=jnp.ones(num_tasks, jnp.int32),
    )


def targets_of_sources(num_tasks, num_cross, balanced, key):
    """Returns [source, 1 + num_cross]: the tasks whose models label a source's rows, itself first.

    balanced=False: distinct others at random per source, so a target has
    Binomial(N - 1, c / (N - 1)) cross sources (the release). True: cyclic shifts of one random
    order, exactly c for every target.
    """
    own = jnp.arange(num_tasks)
    if balanced:
        shift = 1 + jax.random.permutation(key, num_tasks - 1)[:num_cross]
    else:
        order = lambda k: jax.random.permutation(k, num_tasks - 1)[:num_cross]
        shift = 1 + jax.vmap(order)(jax.random.split(key, num_tasks))
    others = (own[:, None] + shift) % num_tasks
    return jnp.concatenate([own[:, None], others], axis=1)


def blocks_of_targets(targets, num_tasks):
    """Inverts `targets_of_sources`: returns (pair [target, N], count [target]).

    pair = source * slots + slot. Entries of a row past its count belong to other targets and are
    never drawn.
    """
    hit = targets.reshape(-1)[None] == jnp.arange(num_tasks)[:, None]  # [target, pair]
    order = jnp.argsort(~hit, axis=1, stable=True)[:, :num_tasks]
    return order.astype(jnp.int32), hit.sum(1).astype(jnp.int32)


def _make_relabel(config, spec, models, rep, rl):
    """Returns relabel(state, data, key) -> Relabelled, for all training tasks (Algorithm 1)."""
    num_tasks, rows = spec.num_train_tasks, config.relabel_rows

    def relabel(state, data, key):
        k_rows, k_z, k_action, k_targets = jax.random.split(key, 4)
        ids = jnp.arange(num_tasks)
        real = data_lib.rl_batch(data, ids, rows, k_rows)  # [N, rows, ...]
        z = learner.encode_tasks(rep, state.rep, real, k_z)  # of real rows, never relabelled ones
        targets = targets_of_sources(
            num_tasks, config.num_cross_tasks, config.balanced_sources, k_targets
        )
        seen = z[targets] if config.relabel_z == "target" else z[:, None]  # [N, slot or 1, Z]

        def actions(obs, z, k):
            if config.relabel_policy == "sample":
                return rl.act(state.rl, obs, z, k)
            return getattr(rl, config.relabel_policy)(state.rl, obs, z)

        keys = jax.random.split(k_action, seen.shape[:2])
        action = jax.vmap(jax.vmap(actions, (None, 0, 0)))(real.obs, seen, keys)
        if not config.policy_relabel:
            action = jnp.broadcast_to(real.action[:, None], action.shape)

        def label(source, slot, target):
            params = jax.tree.map(lambda x: x[target], state.rep.models.best)
            chosen = action[source, jnp.minimum(slot, action.shape[1] - 1)]
            return models.predict(params, real.obs[source], chosen)

        slots = jnp.arange(targets.shape[1])
        per_slot = lambda pair: jax.vmap(label, (None, 0, 0))(pair[0], slots, pair[1])
        reward, next_obs = jax.lax.map(per_slot, (ids, targets))  # one source at a time: memory
        pair, count = blocks_of_targets(targets, num_tasks)
        empty = state.rep.buffer.next_obs
        return Relabelled(
            real.obs, action, reward, empty if next_obs is None else next_obs, pair, count
        )

    return relabel


def _mixed_context(config, train, slots, buffer, data, task_id, key):
    """Returns contexts [T, C, ...]: relabelled rows, then real ones (95 : 5 in the release)."""
    k_block, k_row, k_real, k_kind = jax.random.split(key, 4)
    size, num_tasks = train.context_size, task_id.shape[0]
    real = data_lib.context_of(data, task_id, train, k_real)
    count = buffer.count[task_id][:, None]
    # own blocks may be thinned (Fig. 3): a block weighs `own_share`, the others 1
    draw = jax.random.uniform(k_block, (num_tasks, size)) * (count - 1.0 + config.own_share)
    block = jnp.where(draw < config.own_share, 0.0, draw - config.own_share + 1.0)
    block = jnp.minimum(block.astype(jnp.int32), count - 1)
    ordered = _own_first(buffer.pair[task_id], task_id, slots)
    pair = jnp.take_along_axis(ordered, block, axis=1)
    row = jax.random.randint(k_row, (num_tasks, size), 0, buffer.reward.shape[-1])
    source, slot = pair // slots, pair % slots
    reward = buffer.reward[source, slot, row]
    made = Transition(
        obs=buffer.obs[source, row],
        action=buffer.action[source, jnp.minimum(slot, buffer.action.shape[1] - 1), row],
        reward=reward,
        context_reward=reward,
        next_obs=buffer.next_obs[source, slot, row] if config.use_next_obs else real.next_obs,
        terminal=jnp.zeros_like(reward),
    )
    if config.union_context:
        made_rows = (count - 1.0 + config.own_share) * buffer.reward.shape[-1]
        share = made_rows / (made_rows + data.episode_start[task_id, -1][:, None])
        use = jax.random.uniform(k_kind, (num_tasks, size)) < share
    else:
        use = jnp.arange(size)[None] < int(size * config.relabel_ratio)
    pick = lambda a, b: jnp.where(use.reshape(use.shape + (1,) * (a.ndim - 2)), a, b)
    return jax.tree.map(pick, made, real)


def _own_first(pair, task_id, slots):
    """Moves the block of a task's own rows (slot 0 of its own source) to the front of its list."""
    own = pair == (task_id * slots)[:, None]
    return jnp.take_along_axis(pair, jnp.argsort(~own, axis=1, stable=True), axis=1)
