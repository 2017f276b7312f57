"""Rollouts, the random policy's return, and the evaluation of one agent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from gentle_jax import data as data_lib
from gentle_jax import learner, sweep
from gentle_jax.config import TrainConfig
from gentle_jax.rng import stream
from gentle_jax.types import (
    Action,
    Algorithm,
    Belief,
    Env,
    HostArray,
    Index,
    Offline,
    Outcome,
    Protocol,
    RandomKey,
    Scalar,
    Scores,
    Task,
    Transition,
)


def rollout(
    env: Env,
    task: Task,
    policy: Callable,
    key: RandomKey,
    steps: int | None = None,
    restarts: bool = False,
) -> tuple[Transition, Float[Array, " steps"]]:
    """Runs `policy(obs, key, step) -> action` for one horizon, or `steps` steps.

    Returns (Transition leaves [steps, ...], mask [steps]): mask is 0 after the episode's end,
    early or not. Args: restarts, whether a new episode begins instead, so that every row counts.
    `step` counts from the start of the episode.
    """
    own = lambda obs, key, step, belief: policy(obs, key, step)
    return play(env, task, own, key, steps=steps, restarts=restarts)[:2]


def play(
    env: Env,
    task: Task,
    policy: Callable,
    key: RandomKey,
    belief: Belief = None,
    observe: Callable | None = None,
    steps: int | None = None,
    restarts: bool = False,
) -> tuple[Transition, Float[Array, " steps"], Belief]:
    """Runs `policy(obs, key, step, belief) -> action` as `rollout` does, with a belief.

    Args: observe, (belief, Transition of one step) -> belief; None: it stays as it is. Where a new
    episode begins the belief goes on: the episodes are one experience of one task. Returns (rows,
    mask, the belief after the last row that counts).
    """
    steps = steps or env.horizon
    first, keys = _start(env, task, key, belief, steps)
    body = _advance(env, task, policy, observe)
    inputs = (keys, jnp.arange(steps))
    loop = lambda carry, inputs: body(carry, *inputs, restarts)
    (*_, belief), (rows, mask) = jax.lax.scan(loop, first, inputs)
    return rows, mask, belief


def play_whole(
    env: Env,
    task: Task,
    policy: Callable,
    key: RandomKey,
    belief: Belief = None,
    observe: Callable | None = None,
    enough: Index = 1,
) -> tuple[Transition, Float[Array, " steps"], Belief]:
    """Runs whole episodes, as `play` does, until there are `enough` rows; 1: a single episode.

    Args: enough, 1 to H, which may be traced: simulations take long to compile, and one program
    then serves both kinds. Returns (rows [2 H - 1, ...], mask, belief). It takes as many steps as
    there are rows, so it is for environments whose episodes end early.
    """
    steps = 2 * env.horizon - 1
    first, keys = _start(env, task, key, belief, steps)
    body = _advance(env, task, policy, observe)

    def more(loop):
        (_, _, _, alive, _), *_ = loop
        return alive > 0

    def go(loop):
        carry, index, rows, mask = loop
        carry, (row, now) = body(carry, keys[index], index, index + 1 < enough)
        rows = jax.tree.map(lambda all_rows, new: all_rows.at[index].set(new), rows, row)
        return carry, index + 1, rows, mask.at[index].set(now)

    loop = (first, jnp.zeros((), jnp.int32), empty_rows(env, steps), jnp.zeros(steps))
    (*_, belief), _, rows, mask = jax.lax.while_loop(more, go, loop)
    return rows, mask, belief


def empty_rows(env: Env, steps: int) -> Transition:
    """Returns a Transition of zeros, leaves [steps, ...]."""
    obs, action = jnp.zeros((steps, env.obs_dim)), jnp.zeros((steps, env.action_dim))
    none = jnp.zeros(steps)
    return Transition(obs, action, none, none, obs, none)


def _start(env, task, key, belief, steps):
    """Returns (carry of `_advance` at the start of an episode, keys [steps])."""
    k_reset, k_steps = jax.random.split(key)
    state, obs = env.reset(task, k_reset)
    carry = (state, obs, jnp.zeros((), jnp.int32), jnp.ones(()), belief)
    return carry, jax.random.split(k_steps, steps)


def _advance(env, task, policy, observe):
    """Returns body(carry, key, index, restarts) -> (carry, (row, whether it counts)) of one step.

    carry: (environment's state, obs, step of the episode, 1 while rows count, belief).
    """

    def body(carry, key, index, restarts):
        state, obs, clock, alive, belief = carry
        k_action, k_again = jax.random.split(key)
        # without restarts both are one number, and `index` needs no carry
        action = policy(obs, k_action, index if restarts is False else clock, belief)
        state, out = env.step(task, state, action)
        row = Transition(obs, action, out.reward, out.context_reward, out.obs, out.terminal)
        now, over = alive, (out.terminal > 0) | (clock + 1 >= env.horizon)
        if observe is not None:
            seen = observe(belief, row)
            belief = jax.tree.map(lambda a, b: jnp.where(now > 0, a, b), seen, belief)
        obs, again = out.obs, jnp.logical_and(over, restarts)
        if restarts is not False:
            fresh = env.reset(task, k_again)
            state, obs = jax.tree.map(lambda a, b: jnp.where(again, a, b), fresh, (state, obs))
        clock = jnp.where(again, 0, clock + 1)
        alive = alive * jnp.where(over, again, 1.0)
        return (state, obs, clock, alive, belief), (row, now)

    return body


def episode_return(rows: Transition, mask: Float[Array, " steps"]) -> Scalar:
    """Returns the undiscounted reported return of one episode."""
    return (rows.context_reward * mask).sum()


def uniform_action(env: Env, key: RandomKey) -> Action:
    """Returns a uniform random action in [-1, 1)."""
    return jax.random.uniform(key, (env.action_dim,), minval=-1.0, maxval=1.0)


def random_returns(
    env: Env, num_episodes: int, key: RandomKey, mesh: Mesh | None = None
) -> Float[HostArray, " task"]:
    """Returns the mean return of uniform random actions in every task.

    Args: mesh, from `sweep.make_mesh`: the devices that tasks are split over.
    """

    def policy(obs, k, index):
        del obs, index
        return uniform_action(env, k)

    def one(task, k):
        keys = jax.random.split(k, num_episodes)
        return jax.vmap(lambda k: episode_return(*rollout(env, task, policy, k)))(keys).mean()

    num_tasks = jax.tree.leaves(env.tasks)[0].shape[0]
    keys = jax.random.split(key, num_tasks)
    over_tasks = sweep.over_runs(one, 2, mesh, in_turn=False)
    found = jax.jit(over_tasks)(sweep.place(env.tasks, mesh), sweep.place(keys, mesh))
    return sweep.fetch(found, num_tasks)


def stored_data(dataset: data_lib.Dataset, index: Int[Array, ""], num_train: int) -> Offline:
    """Returns the Offline of task `index`. Args: dataset, of all tasks, training tasks first."""
    train = data_lib.view_tasks(dataset, jnp.arange(num_train))
    return Offline(data_lib.view_tasks(dataset, index[None]), train)


def make_evaluate(
    algorithm: Algorithm,
    env: Env,
    protocols: dict[str, Protocol],
    num_repeats: int,
    tasks_at_once: int = 64,
) -> Callable:
    """Returns evaluate(state, run_key, tasks, offline, at) -> {protocol: Scores [task, E]}.

    Args: protocols, name -> Protocol; tasks, the Env's task leaves [task, ...]; offline, the
    Dataset of the same tasks (given_context reads it); at, the training step, which only picks
    random keys. Scores are means over `num_repeats` independent repeats, per episode number; slots
    that no repeat used are NaN (`protocols.base.until`). Those of the first protocol have `shown`,
    the last scored episode of the first repeat. `evaluate` also takes `names`, the only protocols
    to run: programs of their own compile side by side.
    """
    first = next(iter(protocols))

    def evaluate(state, run_key, tasks, offline, at, names=tuple(protocols)):
        results = {}
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        for name in names:
            protocol = protocols[name]
            keys = task_keys(run_key, name, at, num_tasks)

            def one(inputs, name=name, protocol=protocol):
                task, index, key = inputs
                stored = stored_data(offline, index, len(env.train_ids))

                def repeat(k):
                    outcome = protocol.run(algorithm, state, env, task, stored, k)
                    shape = outcome.returns.shape
                    full = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape)
                    scores = Scores(outcome.returns, jax.tree.map(full, outcome.cost))
                    return scores, last_episode(outcome) if name == first else None

                scores, shown = jax.vmap(repeat)(repeat_keys(key, num_repeats))
                mean = mean_over_repeats if env.ends_early else lambda x: x.mean(0)
                shown = jax.tree.map(lambda x: x[0], shown)
                return jax.tree.map(mean, scores)._replace(shown=shown)

            inputs = (tasks, jnp.arange(num_tasks), keys)
            results[name] = jax.lax.map(one, inputs, batch_size=min(tasks_at_once, num_tasks))
        return results

    return evaluate


def mean_over_repeats(returns: Float[Array, "repeat E"]) -> Float[Array, " E"]:
    """Returns the mean over repeats of scores of `protocols.base.until`, where episodes end early.

    The last slot is every repeat's last episode. Between the first and the last a slot is the mean
    of the repeats that had so many episodes, NaN where none had.
    """
    there = ~jnp.isnan(returns)
    count = there.sum(0)
    mean = jnp.where(there, returns, 0.0).sum(0) / jnp.maximum(count, 1)
    mean = jnp.where(count > 0, mean, jnp.nan)
    # the ends are there in every repeat: what is NaN in one of them is not finite, and stays so
    ends = jnp.array([0, -1])
    return mean.at[ends].set(returns[:, ends].mean(0))


def task_keys(
    run_key: RandomKey, protocol: str, at: Index, num_tasks: int
) -> Key[Array, " num_tasks"]:
    """Returns the key of every task, in the Dataset's order, for an evaluation at step `at`."""
    return jax.random.split(stream(run_key, "evaluate/" + protocol, at), num_tasks)


def repeat_keys(task_key: RandomKey, num_repeats: int) -> Key[Array, " num_repeats"]:
    """Returns the key of every repeat of a protocol in a task. Args: task_key, of `task_keys`."""
    return jax.random.split(task_key, num_repeats)


def last_episode(
    outcome: Outcome,
) -> tuple[Float[Array, "H1 obs"], Float[Array, " H"]]:
    """Returns (path, mask) of the last scored episode: observations with the start first."""
    last = jax.tree.map(lambda x: x[-1], (outcome.rows, outcome.mask))
    return jnp.concatenate([last[0].obs[:1], last[0].next_obs]), last[1]


def make_embed(
    algorithm: Algorithm, train: TrainConfig, contexts_per_task: int, horizon: int
) -> Callable:
    """Returns embed(state, run_key, offline, at): what figures show of every task's contexts.

    Result: {"z": [task, contexts_per_task, Z], and each name of `rep.describe`: [task, ...]}.
    Contexts are drawn as in training, or whole episodes in time order where the encoder asks for
    them. Args: horizon, of the environment.
    """
    rep = algorithm.rep

    def ordered(state, offline, index, keys):
        stored = data_lib.view_tasks(offline, index[None])
        rows, mask = data_lib.whole_episodes(stored, horizon, keys[0])
        return rep.sample(state, rep.extend(state, rep.prior(state), rows, mask), keys[1])

    def embed(state, run_key, offline, at):
        num_tasks = offline.episode_start.shape[0]
        ids = jnp.tile(jnp.arange(num_tasks), contexts_per_task)
        k_context, k_z = jax.random.split(stream(run_key, "embed", at))
        if rep.ordered_context:
            keys = jnp.stack([jax.random.split(k, len(ids)) for k in (k_context, k_z)], 1)
            z = jax.lax.map(lambda each: ordered(state.rep, offline, *each), (ids, keys))
        else:
            context = data_lib.context_of(offline, ids, train, k_context)
            z = learner.encode_tasks(rep, state.rep, context, ids, k_z)
        described = jax.vmap(lambda one: rep.describe(state.rep, one))(z)
        reorder = lambda x: jnp.moveaxis(
            x.reshape((contexts_per_task, num_tasks) + x.shape[1:]), 0, 1
        )
        return jax.tree.map(reorder, {"z": z} | described)

    return embed
