"""Losses against golden values worked by hand and against plain-loop NumPy."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import reference_numpy as ref

from gentle_jax import losses

pytestmark = pytest.mark.usefixtures("strict_rank")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=1e-6)


# --- FOCAL


def test_focal_of_two_tasks_by_hand():
    # delta = mean((0.8, -0.4)^2) = (0.64 + 0.16) / 2 = 0.4; one pair of different tasks:
    # 1 / (0.4 + 0.1) / (1 + 1e-3) = 2 / 1.001; no positive pair: 0 / 1e-3 = 0
    z = jnp.array([[0.8, 0.0], [0.0, 0.4]])
    close(losses.focal(z, jnp.array([0, 1])), 2 / 1.001)


def test_focal_of_a_positive_pair_by_hand():
    # the same z twice for one task: sqrt(0 + 1e-3) / (1 + 1e-3), and no negative pair
    z = jnp.ones((2, 3))
    close(losses.focal(z, jnp.array([5, 5])), math.sqrt(1e-3) / 1.001)


def test_focal_matches_loops_over_pairs():
    z, ids = normal(6, 4), np.array([0, 1, 0, 2, 1, 0])
    close(losses.focal(jnp.array(z), jnp.array(ids)), ref.focal(z.astype(float), ids))


def test_focal_gradient_is_finite_where_codes_coincide():
    grad = jax.grad(losses.focal)(jnp.zeros((4, 3)), jnp.array([0, 0, 1, 2]))
    assert np.isfinite(grad).all()


def test_focal_pushes_different_tasks_apart_and_same_tasks_together():
    z = jnp.array([[0.0], [0.5]])
    apart = jax.grad(losses.focal)(z, jnp.array([0, 1]))
    together = jax.grad(losses.focal)(z, jnp.array([0, 0]))
    assert apart[1, 0] < 0 < apart[0, 0]  # descent raises z_1, lowers z_0
    assert together[1, 0] > 0 > together[0, 0]


# --- CLUB


def test_club_closed_form_equals_brute_force_pairs():
    z, mean = normal(2, 7, 3), normal(2, 7, 3, seed=1)
    variance = np.exp(normal(2, 7, 3, seed=2))
    expected = ref.club_bound(z.astype(float), mean.astype(float), variance.astype(float))
    args = [jnp.array(x) for x in (z, mean, variance)]
    close(losses.club_bound(*args), expected, rtol=1e-4)
    with jax.numpy_rank_promotion("allow"):
        close(losses.club_bound_pairs(*args), expected, rtol=1e-4)


def test_club_bound_by_hand():
    # z = (0, 2), mu = (0, 2), var 1: matched 0; pairs (0-0)^2,(2-0)^2,(0-2)^2,(2-2)^2 -> mean 2
    z = jnp.array([[[0.0], [2.0]]])
    close(losses.club_bound(z, z, jnp.ones_like(z)), 2.0)


def test_club_bound_is_zero_when_predictions_ignore_the_row():
    # one mu for all rows: the pair term and the matched term are the same average
    z = jnp.array(normal(2, 5, 3))
    close(losses.club_bound(z, jnp.full_like(z, 0.3), jnp.full_like(z, 0.7)), 0.0)


def test_club_bound_does_not_pair_rows_of_different_tasks():
    z = normal(2, 5, 3)
    ones = jnp.ones((1, 5, 3))
    each = [losses.club_bound(jnp.array(z[t : t + 1]), ones, ones) for t in range(2)]
    both = losses.club_bound(jnp.array(z), jnp.ones((2, 5, 3)), jnp.ones((2, 5, 3)))
    close(both, np.mean(each))


def test_club_likelihood_by_hand_and_by_loops():
    # (1 - 0)^2 / (2 * 2) + 0.5 log 2
    one = jnp.ones((1, 1, 1))
    close(losses.club_likelihood(one, 0 * one, 2 * one), 0.25 + 0.5 * math.log(2))
    z, mean = normal(2, 4, 3), normal(2, 4, 3, seed=1)
    variance = np.exp(normal(2, 4, 3, seed=2))
    expected = ref.club_likelihood(z.astype(float), mean.astype(float), variance.astype(float))
    close(losses.club_likelihood(jnp.array(z), jnp.array(mean), jnp.array(variance)), expected)


# --- cosines and contrasts


def test_cosine_by_hand_and_of_zero_rows():
    a = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    b = jnp.array([[4.0, 3.0], [-3.0, -4.0], [0.0, 0.0]])
    # 24 / 25, -1, and 0 wherever a row is zero
    close(losses.cosine(a, b), [[0.96, -1.0, 0.0], [0.0, 0.0, 0.0]])
    grad = jax.grad(lambda a: losses.cosine(a, b).sum())(a)
    assert np.isfinite(grad).all()


def test_code_contrast_by_hand():
    # z equals code 0, orthogonal to code 1; tau 0.5: -log(e^2 / (e^2 + e^0))
    z, codes = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    close(losses.code_contrast(z, codes, jnp.array([0]), 0.5), expected)


def test_code_contrast_matches_loops_and_is_a_mean_over_tasks():
    z, codes, matched = normal(5, 3), normal(4, 3, seed=1), np.array([0, 3, 1, 1, 2])
    expected = ref.code_contrast(z.astype(float), codes.astype(float), matched, 0.5)
    args = (jnp.array(codes), jnp.array(matched), 0.5)
    close(losses.code_contrast(jnp.array(z), *args), expected)
    twice = losses.code_contrast(
        jnp.array(np.tile(z, (2, 1))), jnp.array(codes), jnp.array(np.tile(matched, 2)), 0.5
    )
    close(twice, expected)


def test_group_contrast_of_one_pair_by_hand():
    # two tasks share a code, their views are orthogonal unit vectors: each row's logits are
    # (1/tau, 0), so each loss is log(1 + e^-2) at tau 0.5, and so is the mean
    unit = jnp.eye(2)
    value = losses.group_contrast(unit, unit, jnp.array([1, 1]), 3, jnp.zeros((2, 2), bool), 0.5)
    close(value, math.log(1 + math.exp(-2)))


def test_group_contrast_singletons_without_fillers_cost_nothing():
    a, p = jnp.array(normal(3, 4)), jnp.array(normal(3, 4, seed=1))
    value = losses.group_contrast(a, p, jnp.arange(3), 5, jnp.zeros((3, 3), bool), 0.5)
    close(value, 0.0)


def test_group_contrast_singleton_uses_its_fillers_as_negatives():
    # task 2 is alone; its filler is task 0, whose view is orthogonal to it
    unit = jnp.eye(3)
    filler = jnp.zeros((3, 3), bool).at[2, 0].set(True)
    value = losses.group_contrast(unit, unit, jnp.array([0, 0, 1]), 2, filler, 1.0)
    both = math.log(1 + math.exp(-1))  # the pair of code 0, and the singleton with its filler
    close(value, (both + both) / 2)


def test_group_contrast_fillers_are_only_for_singletons():
    a, p = jnp.array(normal(4, 3)), jnp.array(normal(4, 3, seed=1))
    group = jnp.array([0, 0, 1, 1])
    none = losses.group_contrast(a, p, group, 2, jnp.zeros((4, 4), bool), 0.5)
    every = losses.group_contrast(a, p, group, 2, jnp.ones((4, 4), bool), 0.5)
    close(none, every)


def test_group_contrast_empty_codes_are_skipped():
    a, p = jnp.array(normal(4, 3)), jnp.array(normal(4, 3, seed=1))
    filler, group = jnp.zeros((4, 4), bool), jnp.array([0, 0, 2, 2])
    few = losses.group_contrast(a, p, group, 3, filler, 0.5)
    many = losses.group_contrast(a, p, group, 30, filler, 0.5)
    close(few, many)


def test_group_contrast_matches_loops():
    a, p = normal(7, 3), normal(7, 3, seed=1)
    group = np.array([0, 2, 0, 4, 2, 2, 1])  # code 3 is empty; codes 4 and 1 have one task
    filler = np.random.default_rng(2).random((7, 7)) < 0.5
    expected = ref.group_contrast(a.astype(float), p.astype(float), group, filler, 0.5)
    args = (jnp.array(p), jnp.array(group), 5, jnp.array(filler), 0.5)
    close(losses.group_contrast(jnp.array(a), *args), expected)
    assert np.isfinite(jax.grad(losses.group_contrast)(jnp.array(a), *args)).all()


def test_bilinear_contrast_matches_loops_and_sums_over_codes():
    a, p, w = normal(6, 3), normal(6, 3, seed=1), np.abs(normal(3, 3, seed=2))
    group = np.array([0, 2, 0, 2, 2, 1])
    expected = ref.bilinear_group_contrast(a.astype(float), p.astype(float), group, w.astype(float))
    args = (jnp.array(p), jnp.array(group), 4, jnp.array(w))
    close(losses.bilinear_group_contrast(jnp.array(a), *args), expected, rtol=1e-4)
    assert np.isfinite(jax.grad(losses.bilinear_group_contrast)(jnp.array(a), *args)).all()


def test_bilinear_contrast_of_singletons_is_zero():
    a = jnp.array(normal(3, 4))
    close(losses.bilinear_group_contrast(a, a, jnp.arange(3), 3, jnp.ones((4, 4))), 0.0)


def test_bilinear_contrast_does_not_overflow():
    # logits of 1e4: the softmax must be shifted by its maximum
    a = 100.0 * jnp.eye(2)
    value = losses.bilinear_group_contrast(a, a, jnp.zeros(2, jnp.int32), 1, jnp.eye(2))
    close(value, 0.0)


# --- BRAC


def test_dual_kl_of_an_untrained_critic_by_hand():
    # softplus(0) = log 2: 1 + log(log 2 + 1e-8) - log 2 = 1 - 0.36651 - 0.69315
    value = losses.dual_kl(jnp.zeros(1), jnp.zeros(1))
    close(value, 1 + math.log(math.log(2) + 1e-8) - math.log(2))
    assert abs(float(value[0]) + 0.0597) < 5e-5


def test_dual_kl_matches_loops():
    c_policy, c_data = normal(9), normal(9, seed=1)
    expected = ref.dual_kl(c_policy.astype(float), c_data.astype(float))
    close(losses.dual_kl(jnp.array(c_policy), jnp.array(c_data)), expected, rtol=1e-4)


def test_dual_kl_at_the_optimal_critic_is_the_divergence():
    # sp(c) = pi / data is optimal: E_pi[log ratio] + 1 - E_data[ratio] = KL. Two outcomes,
    # pi = (0.8, 0.2), data = (0.5, 0.5): KL = 0.8 log 1.6 + 0.2 log 0.4
    pi, data = np.array([0.8, 0.2]), np.array([0.5, 0.5])
    critic = jnp.array(np.log(np.expm1(pi / data)))  # inverse softplus
    first = losses.dual_kl(critic, jnp.zeros(2)) + jax.nn.softplus(jnp.zeros(2))
    second = losses.dual_kl(jnp.zeros(2), critic) - losses.dual_kl(jnp.zeros(2), jnp.zeros(2))
    second = second - jax.nn.softplus(jnp.zeros(2))
    estimate = (jnp.array(pi) * first).sum() + (jnp.array(data) * second).sum()
    close(estimate, 0.8 * math.log(1.6) + 0.2 * math.log(0.4), rtol=1e-4)


def test_value_penalty_is_on_the_value_beyond_one():
    # |c| <= 1 costs nothing; 3 costs (3 - 1)^2, averaged over the two rows
    close(losses.value_penalty(jnp.array([0.5, -1.0])), 0.0)
    close(losses.value_penalty(jnp.array([-3.0, 0.0])), 2.0)
    values = 2 * normal(9)
    close(losses.value_penalty(jnp.array(values)), ref.value_penalty(values.astype(float)))
    assert np.isfinite(jax.grad(losses.value_penalty)(jnp.zeros(3))).all()


def test_expectile_by_hand_and_by_its_meaning():
    # 0.7 * 1^2 and 0.3 * 2^2, mean of two rows
    close(losses.expectile(jnp.array([1.0, -2.0]), 0.7), 0.95)
    error = normal(50)
    close(losses.expectile(jnp.array(error), 0.5), 0.5 * (error.astype(float) ** 2).mean())
    # the minimiser v of 0.8 (1 - v)^2 + 0.2 (0 - v)^2 is 0.8: between two targets 0 and 1
    slope = jax.grad(lambda v: losses.expectile(jnp.array([0.0, 1.0]) - v, 0.8))
    close(slope(0.8), 0.0)
    assert slope(0.7) < 0 < slope(0.9)


def test_mse_is_a_mean_over_every_axis_and_refuses_broadcasting():
    close(losses.mse(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])), 2.5)
    with pytest.raises((AssertionError, jaxtyping.TypeCheckError)):
        losses.mse(jnp.ones((3, 1)), jnp.ones(3))
