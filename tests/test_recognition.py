"""Contexts that policies collect: what is in them, and how well they tell tasks apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from experiments.runs import comparisons, snapshot
from experiments.show import recognition, table_figures
from gentle_jax import errors, explored
from tests.test_gather import make_run

TASKS, CONTEXTS, HORIZON = 3, 5, 6


def explore(agent, env):
    """Returns z [task, context, Z] of some toy tasks."""
    function = explored.make(agent, env, CONTEXTS, episodes=2)
    return np.asarray(jax.jit(function)(toys.STATE, jax.random.key(0), jnp.zeros(TASKS), 3))


def test_contexts_are_draws_of_what_the_sampled_policy_collected_at_the_prior():
    z = explore(toys.agent(), toys.env(HORIZON))
    # H rows each, none of uniform actions, all of the sampled policy at z = 0, none scored
    np.testing.assert_array_equal(z, np.broadcast_to([HORIZON, 0, HORIZON, 0], z.shape))
    assert z.shape == (TASKS, CONTEXTS, 4)


def test_each_context_is_another_draw_from_all_episodes():
    total = lambda state, belief, rows, mask: belief + rows.obs.sum() * jnp.ones(4)
    z = explore(toys.agent(extend=total), toys.env(HORIZON))[..., 0]
    assert len(np.unique(z)) > TASKS * CONTEXTS / 2
    steps = lambda state, belief, rows, mask: jnp.maximum(belief, rows.obs.max())
    assert explore(toys.agent(extend=steps), toys.env(HORIZON)).max() == HORIZON - 1  # restarts


def test_an_encoder_of_ordered_contexts_gets_whole_episodes():
    z = explore(toys.ordered_agent(), toys.env(HORIZON))
    assert (z[..., :3] == [HORIZON - 1, HORIZON, 1]).all()


def codes(apart, seeds=2, tasks=4, contexts=40):
    random = np.random.default_rng(0)
    centre = np.eye(tasks)[None, :, None] * apart
    return centre + random.normal(size=(seeds, tasks, contexts, tasks))


def test_numbers_are_of_tasks_that_are_apart_and_of_tasks_that_are_not():
    found = recognition.numbers(codes(100.0))
    assert min(found["accuracy"]) == 1.0 and min(found["silhouette"]) > 0.95
    mixed = recognition.numbers(codes(0.0))
    assert max(mixed["accuracy"]) < 0.5 and max(map(abs, mixed["silhouette"])) < 0.1
    assert (found["tasks"], found["contexts"]) == (4, 40)
    lost = codes(100.0)
    lost[1, 0, 0] = np.nan
    assert np.isnan(recognition.numbers(lost)["accuracy"]).tolist() == [False, True]
    assert np.isnan(recognition.numbers(0 * codes(1.0))["silhouette"]).all()


def test_accuracy_is_of_contexts_that_made_no_centre():
    # the first halves lie at their task's place, the second ones at the other task's
    z = np.array([[[0.0]] * 4 + [[1.0]] * 4, [[1.0]] * 4 + [[0.0]] * 4])[None]
    assert recognition.numbers(z)["accuracy"] == [0.0]


def test_the_table_has_a_line_for_each_row_that_could_be_read(tmp_path, capsys, monkeypatch):
    known = {"a": codes(100.0), "b": None}
    of = comparisons.TABLES["gentle_fig2"]

    def explored_of(folder, count):
        if known[folder] is None:
            raise errors.UserError("it holds no checkpoint")

    monkeypatch.setattr(snapshot, "explored", explored_of)
    monkeypatch.setattr(snapshot, "kept_contexts", lambda folder, count: known[folder])
    table_figures.explore(of, known)
    assert capsys.readouterr().out == "no contexts: it holds no checkpoint\n"
    folders = {(row, "point_robot"): row for row in known}
    summaries = {at: {"preset": "smoke", "protocols": []} for at in folders}
    found = table_figures.contexts(of, folders, summaries)
    table_figures.planes("gentle_fig2_iql", found, tmp_path)
    heading, _, only, _, note = "\n".join(recognition.lines(found)).splitlines()
    assert only.startswith("| a | point_robot | 1.00 [1.00, 1.00]† | 0.25 |")
    assert "nearest centroid" in heading and "40 contexts" in note
    assert (tmp_path / "gentle_fig2_iql_point_robot.png").stat().st_size > 5000
    assert recognition.lines(summaries) == []
    plain = of._replace(contexts=0)
    table_figures.explore(plain, known)
    assert table_figures.contexts(plain, folders, summaries) == summaries
    assert table_figures.planes("t", summaries, tmp_path) == []


def test_the_plane_is_of_the_first_finite_seed_and_can_be_stored():
    z = codes(100.0)
    plane = recognition.plane_of(z)
    shown = min(recognition.SHOWN, z.shape[2])
    assert np.shape(json.loads(json.dumps(plane))) == (z.shape[1], shown, 2)
    z[0, 0, 0] = np.nan
    assert recognition.plane_of(z) == recognition.plane_of(z[1:])
    assert recognition.plane_of(z[:1]) is None


def test_what_was_collected_once_is_kept_in_the_run_folder(tmp_path):
    folder = make_run(tmp_path, "--num_seeds=2")
    with pytest.raises(errors.UserError, match="holds no checkpoint"):
        snapshot.explored(folder, 4)
    z = codes(1.0, contexts=4)
    np.savez(folder / "explored.npz", z=z, done=8)
    np.testing.assert_array_equal(snapshot.explored(folder, 4), z)
    for count, done in ((5, 8), (4, 7)):  # of another number, of an unfinished run
        np.savez(folder / "explored.npz", z=z, done=done)
        assert snapshot.kept_contexts(folder, count) is None
    (folder / "explored.npz").write_bytes(b"no archive")
    assert snapshot.kept_contexts(folder, 4) is None
    with pytest.raises(errors.UserError, match="not on this machine"):
        snapshot.explored("gs://bucket/run", 4)
