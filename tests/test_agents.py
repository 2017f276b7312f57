"""`gentle_jax.load`: the agent of a run folder, without its dataset and while the run trains."""

import json
import pathlib
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gentle_jax
from experiments.runs import snapshot
from gentle_jax import agents, checkpoint, errors, storage
from gentle_jax.types import Transition
from tests.test_render import make_finished

SEED, POINT, STEP = 4, 1, 4


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "revealed, scaled"])
def kept(request, tmp_path_factory):
    """(run folder, Restored with the dataset) of two seeds from 3 and two grid points."""
    more = ("--config.env.reveal_task=true", "--config.train.normalize_obs=true")
    root = tmp_path_factory.mktemp("agents")
    folder, data, _ = make_finished(root, *(more if request.param else ()))
    restored = snapshot.restore(folder, ("given_context",), data)
    shutil.rmtree(data)
    return folder, restored


@pytest.fixture(scope="module")
def agent(kept):
    return gentle_jax.load(str(kept[0]), seed=SEED, point=POINT)


def rows_of(agent, *lead):
    """Returns random rows [*lead, ...] of an agent's sizes."""
    random = np.random.default_rng(0)
    draw = lambda *tail: random.normal(size=(*lead, *tail)).astype(np.float32)
    return {"obs": draw(agent.obs_dim), "action": draw(agent.action_dim), "reward": draw(),
            "next_obs": draw(agent.obs_dim)}  # fmt: skip


def test_the_state_is_the_one_that_the_run_restores(kept, agent):
    index = 2 * POINT + SEED - 3
    whole = jax.tree.map(lambda leaf: leaf[index], kept[1].state)
    for a, b in zip(jax.tree.leaves(agent.state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert agent.step == STEP and agent.config.run.algorithm == "ctmrl"


def test_it_acts_and_learns_as_the_run_does_on_scaled_observations(kept, agent):
    algorithm, (mean, std) = kept[1].sweep.algorithm, kept[1].scale
    rows = rows_of(agent, 20)
    scaled = lambda obs: (obs - mean) / std
    learner = Transition(
        scaled(rows["obs"]), rows["action"], rows["reward"], rows["reward"],
        scaled(rows["next_obs"]), np.zeros(20, np.float32),
    )  # fmt: skip
    rep, state = algorithm.rep, agent.state
    belief = rep.extend(state.rep, rep.prior(state.rep), learner, np.ones(20, np.float32))
    z = rep.sample(state.rep, belief, agent.key)
    mine = agent.observe(agent.prior(), rows)
    np.testing.assert_allclose(agent.task_vector(mine), z, rtol=1e-4, atol=1e-6)
    obs = rows["obs"][0]
    wanted = algorithm.rl.mode(state.rl, jnp.asarray(scaled(obs)), z)
    np.testing.assert_allclose(agent.act(mine, obs), wanted, rtol=1e-4, atol=1e-6)
    # in two parts, of numbers that are no power of two
    parts = [
        {name: value[part] for name, value in rows.items()} for part in (slice(3), slice(3, 20))
    ]
    later = agent.observe(agent.observe(agent.prior(), parts[0]), parts[1])
    np.testing.assert_allclose(agent.task_vector(later), z, rtol=1e-4, atol=1e-6)
    assert not np.allclose(agent.task_vector(agent.prior()), z)


def test_many_tasks_at_once_are_each_alone(agent):
    rows, start = rows_of(agent, 3, 5), agent.prior(3)
    beliefs = agent.observe(start, rows)
    actions = agent.act(beliefs, rows["obs"][:, 0])
    z = agent.task_vector(beliefs)
    assert actions.shape == (3, agent.action_dim)
    for i in range(3):
        one = agent.observe(agent.prior(), {name: value[i] for name, value in rows.items()})
        np.testing.assert_allclose(agent.act(one, rows["obs"][i, 0]), actions[i], atol=1e-5)
        np.testing.assert_allclose(agent.task_vector(one), z[i], atol=1e-5)
    for leaf, first in zip(jax.tree.leaves(start), jax.tree.leaves(agent.prior()), strict=True):
        np.testing.assert_array_equal(leaf, np.broadcast_to(first, leaf.shape))  # as it was


def test_sampled_actions_are_drawn_by_their_seed(agent):
    obs, belief = np.zeros(agent.obs_dim), agent.prior()
    draw = lambda seed: agent.act(belief, obs, deterministic=False, seed=seed)
    np.testing.assert_array_equal(draw(1), draw(1))
    assert len({draw(seed).tobytes() for seed in range(5)}) == 5
    both = agent.act(agent.prior(2), np.zeros((2, agent.obs_dim)), deterministic=False)
    assert (both[0] != both[1]).any()


def test_functions_are_pure_and_can_be_mapped_over_states(agent):
    functions, obs = agent.functions, np.zeros(agent.obs_dim, np.float32)
    two = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), agent.state)

    @jax.jit
    @jax.vmap
    def first(state):
        return functions.act(state, functions.prior(state), obs, agent.key)

    for action in first(two):
        np.testing.assert_allclose(action, agent.act(agent.prior(), obs), atol=1e-6)


def test_the_readmes_lines_work(kept, agent):
    blocks = (pathlib.Path(__file__).parent.parent / "README.md").read_text().split("```python\n")
    (block,) = (b.partition("```")[0] for b in blocks[1:] if "gentle_jax.load" in b)
    obs = np.zeros(agent.obs_dim)
    known = {"gentle_jax": gentle_jax, "obs": obs, "next_obs": obs, "reward": 1.0}
    words = re.sub(r'load\(".*?", seed=0\)', f'load("{kept[0]}")', block)
    exec(words, known)
    assert known["action"].shape == (agent.action_dim,)
    first = jax.tree.leaves(known["agent"].prior())
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(known["belief"]), first, strict=True))


def test_a_run_that_trains_is_read_and_left_alone(kept, tmp_path, caplog):
    folder = shutil.copytree(kept[0], tmp_path / "run")
    half = folder / "checkpoints/900.orbax-checkpoint-tmp-0"
    half.mkdir()
    (folder / "summary.json").unlink(missing_ok=True)
    before = sorted(folder.rglob("*"))
    with caplog.at_level("WARNING"):
        assert gentle_jax.load(folder, step=STEP).step == STEP
    assert sorted(folder.rglob("*")) == before and not caplog.records


def test_a_damaged_checkpoint_stays_where_it_is(kept, tmp_path):
    folder = shutil.copytree(kept[0], tmp_path / "run")
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 2000:
            path.write_bytes(b"no array")
    before = sorted(folder.rglob("*"))
    with warnings.catch_warnings(record=True), pytest.raises(errors.UserError, match="can be read"):
        warnings.simplefilter("always")
        gentle_jax.load(folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments,hint",
    [
        ({"seed": 9}, "seed is 9: this run has seeds 3 to 4"),
        ({"point": 2}, "point is 2: this run has points 0 to 1"),
        ({"step": 3}, "step is 3: this run has checkpoints at 4"),
    ],
)
def test_what_a_run_has_not_is_told(kept, arguments, hint):
    with pytest.raises(errors.UserError, match=hint):
        gentle_jax.load(kept[0], **arguments)


def test_folders_that_hold_no_agent_are_told(kept, tmp_path):
    with pytest.raises(errors.UserError, match="is not a run folder"):
        gentle_jax.load(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(kept[0] / "config.json", folder)
    with pytest.raises(errors.UserError, match=r"has no agent\.json"):
        gentle_jax.load(folder)
    shutil.copy(kept[0] / agents.FILE, folder)
    with pytest.raises(errors.UserError, match="holds no checkpoint"):
        gentle_jax.load(folder)
    (folder / agents.FILE).write_text("{")
    with pytest.raises(errors.UserError, match="is damaged"):
        gentle_jax.load(folder)
    with pytest.raises(errors.UserError, match="not on this machine"):
        gentle_jax.load("gs://bucket/run")
    shutil.copy(kept[0] / agents.FILE, folder)
    changed = json.loads((folder / agents.FILE).read_text())
    changed["shape"][1] += 1
    storage.write_json(folder / agents.FILE, changed)
    with pytest.raises(errors.UserError, match="own checksum"):
        gentle_jax.load(folder)


@pytest.mark.parametrize(
    "change,hint",
    [
        (lambda rows: rows.pop("reward"), "lack 'reward'"),
        (lambda rows: rows.update(other=1), "have 'other'"),
        (lambda rows: rows.update(obs=np.zeros((4, 1))), "obs has shape"),
        (lambda rows: rows.update(terminal=np.zeros(3)), "terminal has shape"),
        (lambda rows: rows.update(reward=np.zeros((1, 4))), r"expected \[rows\]"),
    ],
)
def test_rows_of_another_shape_are_told(agent, change, hint):
    rows = rows_of(agent, 4)
    change(rows)
    with pytest.raises(errors.UserError, match=hint):
        agent.observe(agent.prior(), rows)


@pytest.mark.parametrize("rows", [(1, 2), 3, {"obs": [[1, 2], [3]], "action": 0, "reward": 0,
                                               "next_obs": 0}])  # fmt: skip
def test_what_is_no_rows_is_told(agent, rows):
    with pytest.raises(errors.UserError, match="transitions are"):
        agent.observe(agent.prior(), rows)


def test_agents_of_one_run_share_what_is_compiled(kept, agent):
    other = gentle_jax.load(kept[0], seed=3)
    assert other.functions is agent.functions
    assert any((a != b).any() for a, b in zip(
        jax.tree.leaves(other.state), jax.tree.leaves(agent.state), strict=True))  # fmt: skip


def test_other_beliefs_and_observations_are_told(agent):
    with pytest.raises(errors.UserError, match="belief is none of this agent's"):
        agent.act(np.zeros(2), np.zeros(agent.obs_dim))
    with pytest.raises(errors.UserError, match="obs has shape"):
        agent.act(agent.prior(), np.zeros(agent.obs_dim + 1))
    with pytest.raises(errors.UserError, match="obs has shape"):
        agent.act(agent.prior(3), np.zeros((2, agent.obs_dim)))


def test_checkpoints_that_are_only_read_know_their_numbers(kept):
    with checkpoint.Checkpoints(kept[0] / "checkpoints", read_only=True) as saves:
        assert saves.steps() == [STEP * checkpoint.UNITS]
