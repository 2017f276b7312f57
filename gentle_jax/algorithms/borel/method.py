"""BOReL's stages, and its representation: a belief per row, from a table made once."""

import jax
import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax import errors, learner
from gentle_jax.algorithms.borel import sequences
from gentle_jax.algorithms.borel import vae as vae_lib
from gentle_jax.algorithms.borel.settings import PASSES, Config
from gentle_jax.config import TrainConfig
from gentle_jax.learner import Trained
from gentle_jax.types import (
    Algorithm,
    Backbone,
    Cond,
    Representation,
    Spec,
    Stage,
    Traits,
    pytree,
)


@pytree
class BorelState:
    """Leaves of one run's representation."""

    vae: Trained  # {"encoder", "reward"[, "state"]}
    beliefs: jax.Array  # [training task, before or after a row, Z]: see `sequences.in_table`


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    _check(train, spec)
    vae = vae_lib.Vae.of(config, train.latent_dim, spec)
    num_tasks = min(config.vae_tasks, spec.num_train_tasks)
    steps = config.vae_steps or _steps(config, spec, num_tasks)
    stages = (
        Stage(
            "vae", steps, _vae_step(vae, train, spec, num_tasks, steps), evaluate=False,
            shown=("decoder_loss", "kl"),
        ),
        Stage("beliefs", spec.num_train_tasks, _belief_step(vae, spec), evaluate=False),
    )  # fmt: skip
    return learner.joint(_representation(vae, train, spec), rl, train, spec, stages, ("q_loss",))


def _check(train, spec):
    if train.latent_dim % 2:
        raise errors.UserError(
            f"train.latent_dim is {train.latent_dim}: expected an even number, means and log "
            f"variances of a belief; pass --config.train.latent_dim={train.latent_dim + 1}"
        )
    if train.context_data:
        raise errors.UserError(
            f"train.context_data is {train.context_data}: BOReL learns from whole histories of a "
            f"task, leave it out"
        )
    if spec.rows_per_task < spec.horizon:
        raise errors.UserError(
            f"the horizon is {spec.horizon} and a training task has {spec.rows_per_task} rows: "
            f"expected at least one whole episode; collect more, or lower --config.env.horizon"
        )


def _steps(config, spec, num_tasks):
    """Returns the steps of `vae` that take as many episodes as PASSES over the data."""
    episodes = spec.num_train_tasks * (spec.rows_per_task // spec.horizon)
    return PASSES * -(-episodes // (num_tasks * config.vae_sequences * config.num_episodes))


def _vae_step(vae, train, spec, num_tasks, steps):
    """Returns the step of the stage `vae`: one Adam step of encoder and decoders."""
    config = vae.config
    draw = data_lib.task_sampler(num_tasks, spec.num_train_tasks, "distinct")
    number = num_tasks * config.vae_sequences

    def step(state, data, key, index):
        k_task, k_episode, k_noise = jax.random.split(key, 3)
        task_id, shape = draw(k_task), (config.vae_sequences, config.num_episodes)
        episode = sequences.draw_episodes(data, task_id, shape, k_episode)
        drawn = sequences.rows_of(data, task_id, episode, spec.horizon)
        rows, mask = jax.tree.map(lambda x: x.reshape(number, *x.shape[2:]), drawn)
        noise = jax.random.normal(k_noise, (number, mask.shape[1] + 1, vae.latent))
        begin = jax.random.uniform(jax.random.fold_in(k_noise, 1))
        hp = state.hp["algo"]
        loss = lambda params: vae_lib.bound(vae, params, hp, rows, mask, noise, begin)
        rate = 1.0 - (1.0 - train.final_lr) * index / steps  # linear, as that of `train`
        trained, metrics = state.rep.vae.descend(loss, hp["lr"] * rate)
        return state.replace(rep=state.rep.replace(vae=trained)), metrics

    return step


def _belief_step(vae, spec):
    """Returns the step of the stage `beliefs`: those around every row of the task `index`.

    An episode's first belief is the prior, or one after up to `num_episodes - 1` other episodes of
    its task, drawn at random: as many as a sequence of the stage `vae` may have before it.
    """
    before = vae.config.num_episodes - 1

    def history(params, data, task_id, count, key):
        """Returns the hidden states [count, W] that the episodes of a task begin with."""
        start = jnp.zeros((count, vae.config.width))
        if not before:
            return start
        k_episode, k_number = jax.random.split(key)
        episode = sequences.draw_episodes(data, task_id, (count, before), k_episode)
        rows, mask = sequences.rows_of(data, task_id, episode, spec.horizon)
        number = jax.random.randint(k_number, (count, 1), 0, before + 1)
        used = (jnp.arange(before)[None] < number).astype(jnp.float32)
        mask = mask[0] * jnp.repeat(used, spec.horizon, axis=1)
        rows = jax.tree.map(lambda x: x[0], rows)
        return vae_lib.last(vae, params, start, rows, mask)

    def step(state, data, key, index):
        params, table = state.rep.vae.params, state.rep.beliefs
        task_id, count = jnp.reshape(index, (1,)), data.episode_start.shape[1] - 1
        start = history(params, data, task_id, count, key)
        every = jnp.arange(count).reshape(1, count, 1)
        rows, mask = sequences.rows_of(data, task_id, every, spec.horizon)
        rows, mask = jax.tree.map(lambda x: x[0], (rows, mask))  # [episode, horizon, ...]
        z = vae_lib.z_of(vae, params, vae_lib.scan(vae, params, start, rows, mask))
        place = sequences.in_table(data.episode_start[task_id[0]], mask, table.shape[1])
        block = jnp.zeros_like(table[0]).at[place].set(z, mode="drop")
        table = jax.lax.dynamic_update_index_in_dim(table, block, index, 0)
        final = (z[:, -1, vae.latent :].mean(1) * mask[:, 0]).sum() / mask[:, 0].sum()
        return state.replace(rep=state.rep.replace(beliefs=table)), {"log_variance": final}

    return step


def _representation(vae, train, spec):
    """Returns the Representation; its belief is the GRU's hidden state [W]."""

    def init(hp, key, data):
        size = sequences.table_size(data)
        beliefs = jnp.zeros((spec.num_train_tasks, size, train.latent_dim))
        return BorelState(Trained.of(vae_lib.init(vae, key)), beliefs)

    def condition(state, data, task_id, index, key):
        place = sequences.place_of(data, task_id, index)
        at = lambda place: state.beliefs[task_id[None, :, None], place]
        flat = lambda z: z.reshape(z.shape[0], -1, z.shape[-1])
        return Cond(flat(at(place)), flat(at(place + 1)))

    def extend(state, belief, rows, mask):
        one = jax.tree.map(lambda x: x[None], (belief, rows, mask))
        return vae_lib.last(vae, state.vae.params, *one)[0]

    def predict_reward(state, z, rows):
        return vae_lib.predict_reward(vae, state.vae.params, z[: vae.latent], rows)

    return Representation(
        init=init,
        context=lambda state, data, task_id, key: data_lib.context_of(data, task_id, train, key),
        update=lambda state, hp, batch, dz, data, key, index: (state, {}),  # frozen
        prior=lambda state: vae_lib.prior(vae),
        extend=extend,
        sample=lambda state, belief, key: vae_lib.z_of(vae, state.vae.params, belief),
        describe=lambda state, z: {},
        condition=condition,
        observe=lambda state, belief, row: vae_lib.step(vae, state.vae.params, belief, row),
        predict_reward=predict_reward,
        predicts_context_reward=True,
        ordered_context=True,
        traits=Traits(learned_prior=True, unbounded_z=True),
    )
