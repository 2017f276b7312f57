"""Fixed-horizon rollouts, the random policy's return, and the evaluation of one agent."""

import jax
import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax import learner, sweep
from gentle_jax.rng import stream
from gentle_jax.types import Offline, Transition


def rollout(env, task, policy, key, steps=None, restarts=False):
    """Runs `policy(obs, key, step) -> action` for one horizon, or `steps` steps.

    Returns (Transition leaves [steps, ...], mask [steps]): mask is 0 after the episode's end,
    early or not. Args: restarts, whether a new episode begins instead, so that every row counts;
    a scalar bool, which may be traced: simulations take long to compile, and one program then
    serves both kinds.
    """
    steps = steps or env.horizon
    k_reset, k_steps = jax.random.split(key)
    state, obs = env.reset(task, k_reset)

    def body(carry, inputs):
        state, obs, clock, alive = carry
        k, index = inputs
        k_action, k_again = jax.random.split(k)
        action = policy(obs, k_action, index)
        state, out = env.step(task, state, action)
        row = Transition(obs, action, out.reward, out.context_reward, out.obs, out.terminal)
        now, over = alive, (out.terminal > 0) | (clock + 1 >= env.horizon)
        obs, again = out.obs, jnp.logical_and(over, restarts)
        if restarts is not False:
            fresh = env.reset(task, k_again)
            state, obs = jax.tree.map(lambda a, b: jnp.where(again, a, b), fresh, (state, obs))
        clock = jnp.where(again, 0, clock + 1)
        alive = alive * jnp.where(over, again, 1.0)
        return (state, obs, clock, alive), (row, now)

    carry = (state, obs, jnp.zeros((), jnp.int32), jnp.ones(()))
    inputs = (jax.random.split(k_steps, steps), jnp.arange(steps))
    _, (rows, mask) = jax.lax.scan(body, carry, inputs)
    return rows, mask


def episode_return(rows, mask):
    """Returns the undiscounted reported return of one episode."""
    return (rows.context_reward * mask).sum()


def deterministic(rl, state, z):
    """Returns the deterministic policy for `rollout` at a fixed z."""
    return lambda obs, key, index: rl.mode(state, obs, z)


def stochastic(rl, state, z):
    """Returns the sampled policy for `rollout` at a fixed z."""
    return lambda obs, key, index: rl.act(state, obs, z, key)


def uniform_action(env, key):
    """Returns a uniform random action [action_dim] in [-1, 1)."""
    return jax.random.uniform(key, (env.action_dim,), minval=-1.0, maxval=1.0)


def random_returns(env, num_episodes, key, mesh=None):
    """Returns [num_tasks]: the mean return of uniform random actions.

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


def stored_data(dataset, index, num_train):
    """Returns the Offline of task `index`. Args: dataset, of all tasks, training tasks first."""
    train = data_lib.view_tasks(dataset, jnp.arange(num_train))
    return Offline(data_lib.view_tasks(dataset, index[None]), train)


def make_evaluate(algorithm, env, protocols, num_repeats, tasks_at_once=64):
    """Returns evaluate(state, run_key, tasks, offline, at) -> {protocol: returns [task, E]}.

    Args: protocols, name -> Protocol; tasks, the Env's task leaves [task, ...]; offline, the
    Dataset of the same tasks (given_context reads it); at, the training step, which only picks
    random keys. Returns are means over `num_repeats` independent repeats, per episode index.
    `evaluate` also takes `names`, the only protocols to run: programs of their own compile side by
    side.
    """

    def evaluate(state, run_key, tasks, offline, at, names=tuple(protocols)):
        results = {}
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]
        for name in names:
            protocol = protocols[name]
            keys = jax.random.split(stream(run_key, "evaluate/" + name, at), num_tasks)

            def one(inputs, protocol=protocol):
                task, index, key = inputs
                stored = stored_data(offline, index, len(env.train_ids))
                repeat = lambda k: protocol.run(algorithm, state, env, task, stored, k).returns
                return jax.vmap(repeat)(jax.random.split(key, num_repeats)).mean(0)

            inputs = (tasks, jnp.arange(num_tasks), keys)
            results[name] = jax.lax.map(one, inputs, batch_size=min(tasks_at_once, num_tasks))
        return results

    return evaluate


def make_trace(algorithm, env, protocol):
    """Returns trace(state, run_key, tasks, offline, at) -> the last scored episode of every task.

    Result: (obs [task, H + 1, obs_dim] with the start first, mask [task, H]); for figures.
    """

    def trace(state, run_key, tasks, offline, at):
        num_tasks = jax.tree.leaves(tasks)[0].shape[0]

        def one(task, index, key):
            stored = stored_data(offline, index, len(env.train_ids))
            outcome = protocol.run(algorithm, state, env, task, stored, key)
            last = jax.tree.map(lambda x: x[-1], outcome)
            path = jnp.concatenate([last.rows.obs[:1], last.rows.next_obs])
            return path, last.mask

        keys = jax.random.split(stream(run_key, "trace", at), num_tasks)
        return jax.vmap(one)(tasks, jnp.arange(num_tasks), keys)

    return trace


def make_embed(algorithm, train, contexts_per_task):
    """Returns embed(state, run_key, offline, at): what figures show of every task's contexts.

    Result: {"z": [task, contexts_per_task, Z], and each name of `rep.describe`: [task, ...]}.
    """

    def embed(state, run_key, offline, at):
        num_tasks = offline.episode_start.shape[0]
        ids = jnp.tile(jnp.arange(num_tasks), contexts_per_task)
        k_context, k_z = jax.random.split(stream(run_key, "embed", at))
        context = data_lib.context_of(offline, ids, train, k_context)
        z = learner.encode_tasks(algorithm.rep, state.rep, context, ids, k_z)
        described = jax.vmap(lambda one: algorithm.rep.describe(state.rep, one))(z)
        reorder = lambda x: jnp.moveaxis(
            x.reshape((contexts_per_task, num_tasks) + x.shape[1:]), 0, 1
        )
        return jax.tree.map(reorder, {"z": z} | described)

    return embed
