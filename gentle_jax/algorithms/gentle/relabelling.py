"""Relabelling: rows of every training task under its own and other tasks' dynamics models.

Source: docs/methods/gentle.md, "Relabelling". A source gives states; a target's models label them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gentle_jax import data as data_lib
from gentle_jax import learner
from gentle_jax.algorithms.gentle import dynamics
from gentle_jax.algorithms.gentle.settings import Config
from gentle_jax.config import TrainConfig
from gentle_jax.types import Backbone, RandomKey, Representation, Spec, Transition, pytree


@pytree
class Relabelled:
    """Rows of each source task under its own and other tasks' models; (s, a) stored once."""

    obs: jax.Array  # [source, row, o]
    action: jax.Array  # [source, slot or 1, row, a]
    reward: jax.Array  # [source, slot, row]
    next_obs: jax.Array  # [source, slot, row, o], or [source, 1, 1, o] where only r is relabelled
    pair: jax.Array  # [target, N] int32: source * slots + slot of the target's k-th block
    count: jax.Array  # [target] int32: blocks of the target


def empty(config: Config, spec: Spec) -> Relabelled:
    """Returns the Relabelled that the first relabelling fills."""
    num_tasks, slots = spec.num_train_tasks, 1 + config.num_cross_tasks
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


def targets_of_sources(
    num_tasks: int, num_cross: int, balanced: bool, key: RandomKey
) -> Int[Array, "source slot"]:
    """Returns the tasks whose models label a source's rows, itself first.

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


def blocks_of_targets(
    targets: Int[Array, "source slot"], num_tasks: int
) -> tuple[Int[Array, "target N"], Int[Array, " target"]]:
    """Inverts `targets_of_sources`: returns (pair, count).

    pair = source * slots + slot. Entries of a row past its count belong to other targets and are
    never drawn.
    """
    hit = targets.reshape(-1)[None] == jnp.arange(num_tasks)[:, None]  # [target, pair]
    order = jnp.argsort(~hit, axis=1, stable=True)[:, :num_tasks]
    return order.astype(jnp.int32), hit.sum(1).astype(jnp.int32)


def make(
    config: Config, spec: Spec, models: dynamics.Ensemble, rep: Representation, rl: Backbone
) -> Callable:
    """Returns relabel(state, data, key) -> Relabelled, for all training tasks (Algorithm 1)."""
    num_tasks, rows = spec.num_train_tasks, config.relabel_rows

    def relabel(state, data, key):
        k_rows, k_z, k_action, k_targets = jax.random.split(key, 4)
        ids = jnp.arange(num_tasks)
        real = data_lib.context_rows(data, ids, rows, k_rows)  # [N, rows, ...]
        z = learner.encode_tasks(rep, state.rep, real, ids, k_z)  # never of relabelled rows
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
            params = jax.tree.map(lambda x: x[target], state.rep.own["relabelling"]["models"].best)
            chosen = action[source, jnp.minimum(slot, action.shape[1] - 1)]
            return models.predict(params, real.obs[source], chosen)

        slots = jnp.arange(targets.shape[1])
        per_slot = lambda pair: jax.vmap(label, (None, 0, 0))(pair[0], slots, pair[1])
        reward, next_obs = jax.lax.map(per_slot, (ids, targets))  # one source at a time: memory
        pair, count = blocks_of_targets(targets, num_tasks)
        unchanged = state.rep.own["relabelling"]["buffer"].next_obs
        return Relabelled(
            real.obs, action, reward, unchanged if next_obs is None else next_obs, pair, count
        )

    return relabel


def mixed_context(
    config: Config,
    train: TrainConfig,
    buffer: Relabelled,
    data: data_lib.Dataset,
    task_id: Int[Array, " T"],
    key: RandomKey,
) -> Transition:
    """Returns contexts [T, C, ...]: relabelled rows, then real ones (95 : 5 in the release)."""
    k_block, k_row, k_real, k_kind = jax.random.split(key, 4)
    slots = 1 + config.num_cross_tasks
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
    predicted = Transition(
        obs=buffer.obs[source, row],
        action=buffer.action[source, jnp.minimum(slot, buffer.action.shape[1] - 1), row],
        reward=reward,
        context_reward=reward,
        next_obs=buffer.next_obs[source, slot, row] if config.use_next_obs else real.next_obs,
        terminal=jnp.zeros_like(reward),
    )
    if config.union_context:
        num_predicted = (count - 1.0 + config.own_share) * buffer.reward.shape[-1]
        share = num_predicted / (num_predicted + data_lib.num_context_rows(data, task_id)[:, None])
        use = jax.random.uniform(k_kind, (num_tasks, size)) < share
    else:
        use = jnp.arange(size)[None] < int(size * config.relabel_ratio)
    pick = lambda a, b: jnp.where(use.reshape(use.shape + (1,) * (a.ndim - 2)), a, b)
    return jax.tree.map(pick, predicted, real)


def _own_first(pair, task_id, slots):
    """Moves the block of a task's own rows (slot 0 of its own source) to the front of its list."""
    own = pair == (task_id * slots)[:, None]
    return jnp.take_along_axis(pair, jnp.argsort(~own, axis=1, stable=True), axis=1)
