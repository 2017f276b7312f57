"""Some questions to an oracle that is wrong now and then, then one episode: ANOLE's test.

    candidates: z of one context of each training task, again and again until there are enough
    score = 0 for each; budget = floor(eps K)
    fragments: half as many as pairs, once
    for q = 1 .. K:
        of some random pairs of them ask about the one whose worse answer leaves the least
            sum over candidates of sum_{k <= e} binomial(K - q, k), e = budget - its errors then
        the answer, whether the first return is at least the second, is wrong with probability eps
        score += 1 for candidates that agree; budget = max(budget, errors of the best candidate)
    one deterministic episode with z of the largest score, ties at random

A candidate answers by the sums of its predicted rewards, and the oracle compares rewards of the
same kind: dense ones, or those that contexts see. Fragments are stored steps of training
tasks with the tested task's own rewards; where rows of other tasks do not tell these
(`Env.relabel`), random actions in the tested task for half of `eval.online_steps`, which cost
steps. Where a belief moves within an episode, the episode begins at the winner's.
docs/methods/protocols.md; docs/methods/anole.md.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gentle_jax import data as data_lib
from gentle_jax import errors, evaluation
from gentle_jax.config import EvalConfig
from gentle_jax.envs.base import retold
from gentle_jax.protocols import base
from gentle_jax.types import Cost, Env, HostArray, Protocol, RandomKey

NEEDS = ("predict_reward",)
READS = ("train",)
MOST = 1024  # candidates: every one predicts the rewards of all fragments


def make(config: EvalConfig, env: Env) -> Protocol:
    """Returns the Protocol; raises UserError for a noise, questions or fragments it cannot have."""
    num_train, needed = len(env.train_ids), num_hypotheses(config)
    ids = jnp.arange(max(num_train, needed)) % num_train
    steps = data_lib.fragment_steps(config.fragment_steps, env.horizon, "eval.fragment_steps")
    explored = max(config.online_steps // 2, env.horizon)
    draw = _stored if env.relabel is not None else _random

    def run(algorithm, state, env, task, offline, key):
        rep = algorithm.rep
        k_tasks, k_fragments, k_search, k_episode = jax.random.split(key, 4)
        known, z = base.of_training_tasks(algorithm, state, env, offline.train, ids, k_tasks)
        sizes = max(config.num_pairs // 2, 2), steps, explored
        rows, mask, rewards, spent = draw(env, task, offline.train, *sizes, k_fragments)
        true = jnp.where(mask > 0, base.predicted_kind(algorithm, env)(rewards), 0.0).sum(-1)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

        def guess(one):
            rewards = rep.predict_reward(state.rep, one, flat).reshape(mask.shape)
            return jnp.where(mask > 0, rewards, 0.0).sum(-1)

        winner = search(config, jax.lax.map(guess, z), true, k_search)
        used = jax.tree.map(lambda x: x[winner], known)
        outcome = base.scored_episode(algorithm, state, env, task, used, k_episode)
        spent = spent._replace(queries=config.num_queries)
        return jax.tree.map(lambda x: jnp.asarray(x)[None], outcome._replace(cost=spent))

    return Protocol(run, base.metrics(config.metric), 1)


def num_hypotheses(config: EvalConfig) -> int:
    """Returns how many candidates K noisy answers tell apart: 2^K / sum_{k <= eps K} binomial.

    Raises UserError where that is no number to work with.
    """
    total, noise = config.num_queries, config.query_noise
    if not 0.0 <= noise < 0.5:
        raise errors.UserError(
            f"eval.query_noise is {noise}: expected 0 or more, and less than 0.5, where answers "
            f"say nothing"
        )
    balls = sum(math.comb(total, k) for k in range(error_budget(config) + 1))
    count = 2**total // balls
    if count > MOST:
        raise errors.UserError(
            f"eval.num_queries is {total}: so many answers with eval.query_noise {noise} tell "
            f"{count} candidates apart, expected at most {MOST}; pass a smaller number"
        )
    return count


def error_budget(config: EvalConfig) -> int:
    """Returns how many wrong answers are reckoned with at first."""
    return math.floor(config.query_noise * config.num_queries + 1e-9)


def weights(num_queries: int) -> Float[HostArray, "question left"]:
    """Returns sum_{k <= e} binomial(K - q, k) at [q, e + K]; 0 where e < 0."""
    table = np.zeros((num_queries + 1, 2 * num_queries + 1), np.float32)
    for q in range(num_queries + 1):
        ball = np.cumsum([math.comb(num_queries - q, k) for k in range(num_queries + 1)])
        table[q, num_queries:] = ball
    return table


def search(
    config: EvalConfig,
    guess: Float[Array, "candidate fragment"],
    true: Float[Array, " fragment"],
    key: RandomKey,
) -> Int[Array, ""]:
    """Returns the candidate that agrees with most answers.

    Args: guess, returns that candidates predict; true, the returns that the oracle compares.
    """
    total, table = config.num_queries, jnp.asarray(weights(config.num_queries))

    def ask(carry, inputs):
        score, budget = carry
        k, q = inputs
        k_pairs, k_noise = jax.random.split(k)
        first, second = _pairs(len(true), config.num_pairs, k_pairs)
        prefers = guess[:, first] >= guess[:, second]  # [candidate, pair]
        asked = worst_left(table[q], total, score, budget - q, prefers).argmin()
        wrong = jax.random.uniform(k_noise) < config.query_noise
        answer = (true[first[asked]] >= true[second[asked]]) != wrong
        score = score + (prefers[:, asked] == answer)
        return (score, jnp.maximum(budget, q - score.max())), None

    k_questions, k_tie = jax.random.split(key)
    begin = jnp.zeros(len(guess), jnp.int32), jnp.int32(error_budget(config))
    keys = jax.random.split(k_questions, total)
    (score, _), _ = jax.lax.scan(ask, begin, (keys, jnp.arange(1, total + 1)))
    return (score + 0.5 * jax.random.uniform(k_tie, score.shape)).argmax()


def worst_left(
    table: Float[Array, " left"],
    offset: int,
    score: Int[Array, " candidate"],
    spare: Int[Array, ""],
    prefers: Bool[Array, "candidate pair"],
) -> Float[Array, " pair"]:
    """Returns the weight of all candidates after the worse answer about each pair.

    Args: table, of `weights` at the question; offset, where its e = 0 lies; spare, the budget minus
    the number of the question: e of a candidate that has agreed with no answer.
    """
    left = lambda answer: table[spare + score[:, None] + (prefers == answer) + offset].sum(0)
    return jnp.maximum(left(True), left(False))


def _pairs(num_fragments, count, key):
    """Returns two arrays [count] of fragments that differ within a pair."""
    k_first, k_shift = jax.random.split(key)
    first = jax.random.randint(k_first, (count,), 0, num_fragments)
    return first, (first + jax.random.randint(k_shift, (count,), 1, num_fragments)) % num_fragments


def _stored(env, task, train, count, steps, explored, key):
    """Returns fragments of stored rows, relabelled, and what they cost.

    (rows [count, steps, ...], mask, true dense rewards [count, steps], Cost).
    """
    del explored
    k_task, k_rows = jax.random.split(key)
    ids = jax.random.randint(k_task, (count,), 0, len(env.train_ids))
    rows, mask = jax.tree.map(lambda x: x[:, 0], data_lib.fragments(train, ids, 1, steps, k_rows))
    rows = retold(task, rows)
    return rows, mask, env.relabel(task, rows), Cost()


def _random(env, task, train, count, steps, explored, key):
    """The same of `explored` random steps in the task itself, with the rewards that they had."""
    del train
    k_play, k_rows = jax.random.split(key)
    policy = lambda obs, k, step: evaluation.uniform_action(env, k)
    rows, real = evaluation.rollout(env, task, policy, k_play, explored, restarts=True)
    start, spent = _starts(env, rows.terminal), base.cost_of(env, rows, real)
    dataset = data_lib.Dataset(jax.tree.map(lambda x: x[None], rows), start[None], 1, 1)
    drawn = data_lib.fragments(dataset, jnp.zeros(1, jnp.int32), count, steps, k_rows)
    rows, mask = jax.tree.map(lambda x: x[0], drawn)
    return rows, mask, rows.reward, spent


def _starts(env, terminal):
    """Returns the first row of every episode and then the number of rows [slots + 1]."""
    size = len(terminal)
    if not env.ends_early:
        slots = base.num_episodes(size, env.horizon)
        return jnp.minimum(jnp.arange(slots + 1) * env.horizon, size)
    first = jnp.where(base.begins(env, terminal), jnp.arange(size), size)
    return jnp.append(jnp.sort(first), size)
