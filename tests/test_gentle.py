"""GENTLE: who labels whose rows, what a context is made of, what its objectives train."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import data as data_lib
from gentle_jax import errors, registry
from gentle_jax.algorithms.gentle import Config, relabelling
from gentle_jax.config import TrainConfig
from gentle_jax.types import MetaBatch, Transition

N, CROSS, ROWS = 10, 3, 40
SLOTS = 1 + CROSS


@pytest.fixture(scope="module")
def targets_of():
    return jax.jit(relabelling.targets_of_sources, static_argnums=(0, 1, 2))


# --- which models label which rows


@pytest.mark.parametrize("balanced", [False, True])
def test_a_source_is_labelled_by_itself_and_by_distinct_others(targets_of, balanced):
    for seed in range(20):
        targets = np.asarray(targets_of(N, CROSS, balanced, jax.random.key(seed)))
        np.testing.assert_array_equal(targets[:, 0], np.arange(N))
        assert all(len(set(row)) == SLOTS for row in targets)  # so >= 2 labels per (s, a)
        assert targets.min() >= 0 and targets.max() < N


def test_balanced_sources_give_every_target_exactly_its_share(targets_of):
    for seed in range(5):
        targets = np.asarray(targets_of(N, CROSS, True, jax.random.key(seed)))
        np.testing.assert_array_equal(np.bincount(targets.ravel(), minlength=N), SLOTS)


def test_random_sources_give_a_target_a_binomial_number_of_blocks(targets_of):
    # cross sources of a target ~ Binomial(9, 1/3): mean 3, variance 2; some have none, some > 3
    draws = [targets_of(N, CROSS, False, jax.random.key(seed)) for seed in range(100)]
    counts = np.stack([np.bincount(np.ravel(t), minlength=N) for t in draws]) - 1
    assert counts.mean() == 3.0  # 3 per source, whatever the draw
    assert 1.6 < counts.var() < 2.4
    assert counts.min() == 0 and counts.max() > 5


@pytest.mark.parametrize("cross", [0, 1, 9])
def test_any_ratio_of_figure_3_is_possible(targets_of, cross):
    targets = np.asarray(targets_of(N, cross, False, jax.random.key(0)))
    assert targets.shape == (N, 1 + cross)
    assert all(len(set(row)) == 1 + cross for row in targets)


@pytest.mark.parametrize("balanced", [False, True])
def test_blocks_are_the_inverse_of_targets(targets_of, balanced):
    for seed in range(5):
        targets = targets_of(N, CROSS, balanced, jax.random.key(seed))
        pair, count = (np.asarray(x) for x in relabelling.blocks_of_targets(targets, N))
        flat = np.ravel(targets)
        np.testing.assert_array_equal(count, np.bincount(flat, minlength=N))
        for target in range(N):
            blocks = pair[target, : count[target]]
            np.testing.assert_array_equal(blocks, np.flatnonzero(flat == target))
            assert target * SLOTS in blocks  # its own rows, slot 0
        # 10 own blocks of 40: the own share is 1/4 over all targets
        assert count.sum() == N * SLOTS


# --- contexts


def tagged_buffer(targets):
    """obs = source, action = row, reward = source * slots + slot, in a Relabelled."""
    source = np.arange(N, dtype=np.float32)[:, None, None]
    row = np.arange(ROWS, dtype=np.float32)
    block = np.arange(N * SLOTS, dtype=np.float32).reshape(N, SLOTS, 1)
    pair, count = relabelling.blocks_of_targets(jnp.asarray(targets), N)
    return relabelling.Relabelled(
        obs=jnp.array(np.broadcast_to(source, (N, ROWS, 1))),
        action=jnp.array(np.broadcast_to(row[:, None], (N, 1, ROWS, 1))),
        reward=jnp.array(np.broadcast_to(block, (N, SLOTS, ROWS))),
        next_obs=jnp.array(np.broadcast_to(100 + block[..., None], (N, SLOTS, ROWS, 1))),
        pair=pair,
        count=count,
    )


def real_data(rows=500):
    """Real rows: obs = -1 - task, reward -1; nothing that a relabelled row could hold."""
    task = np.broadcast_to(np.arange(N, dtype=np.float32)[:, None], (N, rows))
    leaves = Transition(
        -1 - task[..., None], 0 * task[..., None], 0 * task - 1, 0 * task - 1,
        -1 - task[..., None], 0 * task,
    )  # fmt: skip
    start = np.tile(np.array([0, rows], np.int32), (N, 1))
    return jax.tree.map(jnp.asarray, data_lib.Dataset(leaves, start, 1, 1))


@pytest.fixture(scope="module")
def mixed_context():
    """mixed(targets, task_id, size, seed, **config) -> numpy Transition."""
    data, compiled = real_data(), {}

    def mixed(targets, task_id, size=256, seed=0, **settings):
        config = Config(**settings)
        train = dataclasses.replace(TrainConfig(), context_size=size)
        if (config, size) not in compiled:
            compiled[config, size] = jax.jit(
                lambda buffer, ids, key: relabelling.mixed_context(
                    config, train, buffer, data, ids, key
                )
            )
        made = compiled[config, size](
            tagged_buffer(targets), jnp.asarray(task_id), jax.random.key(seed)
        )
        return jax.tree.map(np.asarray, made)

    return mixed


def test_context_is_243_relabelled_and_13_real_rows(targets_of, mixed_context):
    # floor(256 * 0.95) = 243
    targets = targets_of(N, CROSS, False, jax.random.key(0))
    context = mixed_context(targets, np.arange(N))
    real = context.reward == -1
    np.testing.assert_array_equal(real.sum(1), 13)
    # the real ones are the task's own
    np.testing.assert_array_equal(
        context.obs[..., 0][real].reshape(N, 13), np.tile(-1 - np.arange(N)[:, None], 13)
    )


@pytest.mark.parametrize("balanced", [False, True])
def test_relabelled_rows_carry_the_label_of_their_target(targets_of, mixed_context, balanced):
    ids = np.array([3, 0, 9, 3])  # a meta batch in any order, with a repeated task
    for seed in range(3):
        targets = np.asarray(targets_of(N, CROSS, balanced, jax.random.key(seed)))
        context = mixed_context(targets, ids, seed=seed)
        made = context.reward >= 0
        block = context.reward.astype(int)
        source, slot = block // SLOTS, block % SLOTS
        wanted = np.broadcast_to(ids[:, None], block.shape)
        np.testing.assert_array_equal(targets[source[made], slot[made]], wanted[made])
        # state and label come from the same source; rows vary
        np.testing.assert_array_equal(context.obs[..., 0][made], source[made])
        assert len(np.unique(context.action[made])) == ROWS
        np.testing.assert_array_equal(context.context_reward, context.reward)


def test_every_block_of_a_target_is_drawn_alike(targets_of, mixed_context):
    targets = np.asarray(targets_of(N, CROSS, True, jax.random.key(0)))
    context = mixed_context(targets, np.arange(N), size=4000)
    for task in range(N):
        block = context.reward[task][context.reward[task] >= 0]
        _, counts = np.unique(block, return_counts=True)
        assert len(counts) == SLOTS
        # 3800 draws over 4 blocks: 950 each, standard deviation 27
        assert np.abs(counts - 950).max() < 135


@pytest.mark.parametrize("share", [0.75, 0.6])
def test_own_share_thins_the_own_block_only(targets_of, mixed_context, share):
    # Fig. 3's 1:12 and 1:15: the own block weighs `share`, every other block 1
    targets = np.asarray(targets_of(N, CROSS, True, jax.random.key(0)))
    context = mixed_context(targets, np.arange(N), size=4000, own_share=share)
    for task in range(N):
        block = context.reward[task][context.reward[task] >= 0]
        own = (block == task * SLOTS).mean()
        assert abs(own - share / (3 + share)) < 5 * np.sqrt(0.16 / 3800)
        values, counts = np.unique(block, return_counts=True)
        others = counts[values != task * SLOTS]
        assert len(others) == 3
        assert np.abs(others - others.mean()).max() < 5 * np.sqrt(1000)


def test_paper_context_is_drawn_from_the_union(targets_of, mixed_context):
    # balanced: 4 blocks of 40 rows beside 500 real ones: 160 / 660 of the rows are relabelled
    targets = targets_of(N, CROSS, True, jax.random.key(0))
    context = mixed_context(targets, np.arange(N), size=4000, union_context=True)
    share = (context.reward >= 0).mean()
    assert abs(share - 160 / 660) < 5 * np.sqrt(0.25 / 40_000)


def test_relabelled_next_states_enter_contexts_where_asked(targets_of, mixed_context):
    targets = targets_of(N, CROSS, True, jax.random.key(0))
    context = mixed_context(targets, np.arange(N), use_next_obs=True)
    made = context.reward >= 0
    np.testing.assert_array_equal(context.next_obs[..., 0][made], 100 + context.reward[made])


# --- relabelling inside a training step


def constant_models(models):
    """Ensembles of task j that predict j whatever they see."""
    params = jax.tree.map(jnp.zeros_like, models.best)
    last = sorted(params)[-1]
    bias = params[last]["bias"]  # [N, K, out]
    number = jnp.arange(bias.shape[0], dtype=jnp.float32).reshape(-1, 1, 1)
    params[last] = params[last] | {"bias": bias + number}
    return models.replace(best=params)


def rows_of(*columns):
    table = np.concatenate([np.asarray(c).reshape(-1, c.shape[-1]) for c in columns], -1)
    return {tuple(r) for r in np.round(table, 5).tolist()}


def owned(state):
    """The models and the buffer of an AgentState."""
    return state.rep.own["relabelling"]


def with_owned(state, **fields):
    own = state.rep.own | {"relabelling": owned(state) | fields}
    return state.replace(rep=state.rep.replace(own=own))


def check_labels(buffer):
    """Labels are the constants of `constant_models`: the number of the target task."""
    assert buffer.reward.shape == (4, 2, 16)  # source, own and one cross, rows
    label = np.asarray(buffer.reward[..., 0]).astype(int)
    np.testing.assert_array_equal(buffer.reward, np.tile(label[..., None], 16))
    np.testing.assert_array_equal(label[:, 0], np.arange(4))  # slot 0: the source's own model
    assert (label[:, 1] != label[:, 0]).all()  # the same (s, a) under a second label
    pair, count = np.asarray(buffer.pair), np.asarray(buffer.count)
    for target in range(4):
        for block in pair[target, : count[target]]:
            assert label[block // 2, block % 2] == target
    assert count.sum() == 8


def check_actions(kind, buffer, rows):
    """Whose actions are labelled: the data's, the target policy's mean, or the policy's samples."""
    if kind == "dataset actions":  # w/o PolicyRelabel: the data's action of the same row
        for source in range(4):
            pairs = rows_of(rows.obs[source], rows.action[source])
            assert rows_of(buffer.obs[source], buffer.action[source, 0]) <= pairs
    elif kind == "release":  # the mean of the target policy: at step 0 it is nearly zero
        assert buffer.action.shape[1] == 1  # one action per state, shared by every label
        assert np.abs(buffer.action).max() < 0.05
    else:  # a sample of the policy at the target's z: std about 1, another action per label
        assert buffer.action.shape[1] == 2
        assert np.abs(buffer.action).std() > 0.2
        assert not np.array_equal(buffer.action[:, 0], buffer.action[:, 1])


def check_period(advance, state):
    """`relabel_every` is 4 here: steps 1 to 3 keep the buffer, step 4 makes a new one."""
    buffer = owned(state)["buffer"]
    buffer = buffer.replace(obs=buffer.obs + 99.0)
    marked = with_owned(state, buffer=buffer)
    for index in (1, 3):
        new = owned(advance(marked, index))["buffer"]
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(buffer), strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.abs(owned(advance(marked, 4))["buffer"].obs).max() < 90


@pytest.mark.parametrize("kind", ["release", "dataset actions", "paper"])
def test_relabelling_labels_the_policys_actions_with_the_models_of_the_target(tiny, kind):
    extra = {"algo.policy_relabel": False} if kind == "dataset actions" else {}
    made = tiny("gentle", "gentle", fidelity="paper" if kind == "paper" else "release", **extra)
    data = jax.tree.map(jnp.asarray, made.train)
    step = jax.jit(made.algorithm.stages[1].step)
    advance = lambda state, index: step(state, data, jax.random.key(2), jnp.int32(index))[0]
    state = made.state()
    state = with_owned(state, models=constant_models(owned(state)["models"]))
    state = advance(state, 0)
    buffer = owned(state)["buffer"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(buffer))
    check_labels(buffer)
    check_actions(kind, buffer, made.train.rows)
    check_period(advance, state)
    for source in range(4):  # states are the source's own
        assert rows_of(buffer.obs[source]) <= rows_of(made.train.rows.obs[source])


def test_without_relabelling_contexts_are_real_rows(tiny):
    made = tiny("gentle", "gentle", **{"algo.relabel": False})
    dynamics_stage, train_stage = made.algorithm.stages
    assert (dynamics_stage.num_steps, train_stage.num_steps) == (0, 20)
    data = jax.tree.map(jnp.asarray, made.train)
    context = made.algorithm.rep.context(made.state().rep, data, jnp.arange(4), jax.random.key(0))
    for task in range(4):
        columns = [np.asarray(getattr(context, f)[task]) for f in ("obs", "action", "next_obs")]
        rows = jax.tree.map(lambda x, task=task: np.asarray(x[task]), made.train.rows)
        assert rows_of(*columns) <= rows_of(rows.obs, rows.action, rows.next_obs)


def test_too_many_cross_tasks_are_refused(tiny):
    with pytest.raises(errors.UserError, match="num_cross_tasks is 4: expected 0 to 3"):
        tiny("gentle", "gentle", **{"algo.num_cross_tasks": 4})
    with pytest.raises(errors.UserError, match="objective"):
        tiny("gentle", "gentle", **{"algo.objective": "reconstruction"})


def test_fidelities_differ_where_the_table_says():
    module = registry.load("algorithm", "gentle")
    assert module.DEFAULT_FIDELITY == "release" and module.FIDELITY["release"] == {}
    config = module.Config()
    assert (config.relabel_z, config.relabel_policy) == ("source", "target_mode")
    assert (config.balanced_sources, config.union_context, config.use_next_obs) == (False,) * 3
    assert module.FIDELITY["paper"] == {
        "algo.relabel_z": "target",
        "algo.relabel_policy": "sample",
        "algo.balanced_sources": True,
        "algo.union_context": True,
        "algo.use_next_obs": True,
    }
    # docs/methods/gentle.md, "Constants"
    assert (config.relabel_every, config.relabel_rows, config.num_cross_tasks) == (400, 2560, 3)
    assert (config.ensemble_size, config.relabel_ratio, config.recon_weight) == (7, 0.95, 10.0)


def changed(old, new):
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return any(not np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("objective", ["reconstruct", "contrastive"])
def test_an_objective_trains_the_encoder_and_its_decoder_if_it_has_one(tiny, objective):
    made = tiny("gentle", "gentle", **{"algo.objective": objective})
    state, data = made.state(), jax.tree.map(jnp.asarray, made.train)
    rows = data_lib.context_rows(data, jnp.arange(3), 8, jax.random.key(0))
    batch = MetaBatch(rows, rows, jnp.arange(3))
    new, _ = jax.jit(made.algorithm.rep.update)(
        state.rep, state.hp["algo"], batch, None, data, jax.random.key(0), jnp.int32(0)
    )
    parts = {"encoder", "context"} if objective == "reconstruct" else {"encoder"}
    assert new.trained.keys() == parts
    for name in parts:
        assert changed(state.rep.trained[name], new.trained[name])
    assert not changed(owned(state), new.own["relabelling"])  # models and buffer learn elsewhere


@pytest.mark.parametrize("next_obs", [False, True])
def test_reconstruction_is_ten_times_the_mean_squared_error_by_hand(tiny, next_obs):
    # a decoder of zeros says r = 0 and, for s', no change
    made = tiny("gentle", "gentle", **{"algo.use_next_obs": next_obs})
    state, data = made.state(), jax.tree.map(jnp.asarray, made.train)
    decoder = state.rep.trained["context"]
    silent = decoder.replace(params=jax.tree.map(jnp.zeros_like, decoder.params))
    rep = state.rep.replace(trained=state.rep.trained | {"context": silent})
    rows = data_lib.context_rows(data, jnp.arange(3), 8, jax.random.key(0))
    rows = rows._replace(
        context_reward=2.0 + rows.reward
    )  # contexts' own reward, not the dense one
    batch = MetaBatch(rows, rows, jnp.arange(3))
    _, metrics = jax.jit(made.algorithm.rep.update)(
        rep, state.hp["algo"], batch, None, data, jax.random.key(0), jnp.int32(0)
    )
    errors = [np.asarray(rows.context_reward)[..., None]]
    errors += [np.asarray(rows.next_obs - rows.obs)] if next_obs else []
    expected = 10.0 * (np.concatenate(errors, -1) ** 2).mean()
    np.testing.assert_allclose(metrics["context_loss"], expected, rtol=1e-5)


def test_predicted_rewards_are_the_decoders(tiny):
    made = tiny("gentle", "gentle")
    rep = made.state().rep
    data = jax.tree.map(jnp.asarray, made.train)
    rows = data_lib.context_rows(data, jnp.arange(1), 8, jax.random.key(0))
    rows, z = jax.tree.map(lambda x: x[0], rows), jnp.array([0.5, -0.5, 0.25])
    found = made.algorithm.rep.predict_reward(rep, z, rows)
    seen = np.concatenate([rows.obs, rows.action, np.tile(z, (8, 1))], -1)
    wanted = ref.mlp(rep.params["context"], seen, 1)[:, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)
    assert tiny("gentle", **{"algo.objective": "contrastive"}).algorithm.rep.predict_reward is None
