"""UNICORN: its losses in both fidelities, whom they train, its variants, its settings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from scipy import stats
from test_needs import Registered

from gentle_jax import assembly, errors, losses
from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax.algorithms.unicorn import release
from gentle_jax.types import MetaBatch

HIDDEN = 1  # layers of every network here
LARGE = 0.1  # a rate that shows in one step


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=1e-6)


# --- losses


def test_gaussian_likelihood_by_hand_and_by_scipy():
    # (2 - 0)^2 / 4 + log 4
    one = jnp.ones((1, 1))
    close(losses.gaussian_nll(2 * one, 0 * one, math.log(4.0) * one), 1.0 + math.log(4))
    x, mean, log_variance = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    density = stats.norm(mean, np.exp(log_variance / 2)).logpdf(x)
    wanted = (-2 * density - math.log(2 * math.pi)).mean()  # twice, without the constant
    arrays = [jnp.array(a, jnp.float32) for a in (x, mean, log_variance)]
    close(losses.gaussian_nll(*arrays), wanted)


def test_cross_entropy_by_hand():
    # equal logits: log N; a lead of log 3 over one other class: 3/4
    close(losses.cross_entropy(jnp.zeros((2, 5)), jnp.array([0, 3])), math.log(5))
    logits = jnp.array([[math.log(3), 0.0], [0.0, math.log(3)]])
    close(losses.cross_entropy(logits, jnp.array([0, 0])), -(math.log(0.75) + math.log(0.25)) / 2)
    assert np.isfinite(losses.cross_entropy(1e4 * logits, jnp.array([1, 0])))


# --- both fidelities


class Made:
    """A tiny UNICORN, its jitted update, a louder state and a batch of three tasks."""

    def __init__(self, tiny, fidelity, **settings):
        self.tiny = tiny("unicorn", fidelity=fidelity, **settings)
        self.rep = self.tiny.algorithm.rep
        self.jitted = jax.jit(self.rep.update)
        loud = lambda x: 20 * x if x.dtype == jnp.float32 else x
        self.state = jax.tree.map(loud, self.tiny.state().rep)
        table, ids = jax.tree.map(jnp.asarray, self.tiny.train), jnp.array([0, 1, 3])
        context, rows = (data_lib.context_rows(table, ids, n, jax.random.key(n)) for n in (6, 8))
        self.batch = MetaBatch(rows, context, ids, jax.random.key(5))

    def update(self, batch=None, state=None, **settings):
        hp = {name: np.float32(values[0]) for name, values in self.tiny.hp["algo"].items()}
        hp |= {name: np.float32(value) for name, value in settings.items()}
        key, index = jax.random.key(2), jnp.int32(0)
        return self.jitted(state or self.state, hp, batch or self.batch, None, None, key, index)


@pytest.fixture(scope="module")
def paper(tiny):
    return Made(tiny, "paper")


@pytest.fixture(scope="module")
def released(tiny):
    return Made(tiny, "release")


@pytest.fixture(params=["paper", "released"])
def made(request):
    return request.getfixturevalue(request.param)


def features(context, use_next_obs):
    columns = [context.obs, context.action, context.context_reward[..., None]]
    return np.concatenate(columns + [context.next_obs] * use_next_obs, -1)


def moved(old, new):
    """Names of parts whose parameters changed."""
    differ = lambda a, b: not np.array_equal(a, b)
    change = lambda name: any(jax.tree.leaves(jax.tree.map(differ, old[name], new[name])))
    return {name for name in old if change(name)}


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_each_loss_trains_what_it_should(made):
    params = made.state.params
    assert params.keys() == {"encoder", "prediction"}
    only_metric, _ = made.update(prediction_weight=0.0)
    assert moved(params, only_metric.params) == {"encoder"}
    only_prediction, _ = made.update(focal_weight=0.0)
    assert moved(params, only_prediction.params) == {"encoder", "prediction"}
    neither, _ = made.update(focal_weight=0.0, prediction_weight=0.0)
    assert moved(params, neither.params) == set()


def test_a_step_lowers_the_loss(made):
    after, first = made.update(lr=1e-4)
    _, second = made.update(state=after)
    assert first.keys() == {"focal_loss", "prediction_loss"}
    assert sum(map(float, second.values())) < sum(map(float, first.values()))


def test_what_is_predicted_is_the_dense_reward(made):
    louder = lambda rows: rows._replace(reward=rows.reward + 1.0)
    batch = made.batch._replace(rl=louder(made.batch.rl), context=louder(made.batch.context))
    _, before = made.update()
    _, after = made.update(batch)
    assert float(after["prediction_loss"]) != float(before["prediction_loss"])
    assert float(after["focal_loss"]) == float(before["focal_loss"])  # contexts hold another


@pytest.mark.parametrize("fidelity", ["paper", "release"])
def test_it_learns_rewards_that_can_be_asked_for(tiny, fidelity):
    """Two tasks, r = a and r = -a in the first action: z tells the sign, the decoder the size."""
    sizes = {"unicorn.width": 16, "unicorn.decoder_width": 16}
    made = tiny("unicorn", fidelity=fidelity, **sizes)
    rep, ids = made.algorithm.rep, jnp.arange(2)
    rows = data_lib.context_rows(jax.tree.map(jnp.asarray, made.train), ids, 32, jax.random.key(0))
    reward = rows.action[..., 0] * jnp.array([[1.0], [-1.0]])
    rows = rows._replace(reward=reward, context_reward=reward)
    hp = jax.tree.map(lambda x: x[0], made.hp["algo"]) | {"lr": jnp.float32(1e-2)}

    @jax.jit
    def train(state, key):
        def one(state, k):
            batch = MetaBatch(rows, rows, ids, k)
            return rep.update(state, hp, batch, None, None, k, 0)[0], None

        state, _ = jax.lax.scan(one, state, jax.random.split(key, 400))
        belief = jax.vmap(lambda row: rep.extend(state, rep.prior(state), row, jnp.ones(32)))(rows)
        z = jax.vmap(lambda b: rep.sample(state, b, key))(belief)
        return z, jax.vmap(lambda z, rows: rep.predict_reward(state, z, rows))(z, rows)

    z, guess = train(made.state().rep, jax.random.key(1))
    error = ((guess - reward) ** 2).mean() / reward.var()
    assert guess.shape == reward.shape and float(error) < 0.1, (error, z)


# --- fidelity=paper


def test_the_papers_error_is_of_standardised_changes_and_rewards(paper):
    known = paper.tiny.spec.statistics
    rows = jax.tree.map(lambda x: np.asarray(x, float), paper.batch.rl)
    context = paper.batch.context
    params = paper.state.params
    z = np.tanh(ref.mlp(params["encoder"], features(context, False), HIDDEN)).mean(1)
    seen = np.concatenate([rows.obs, rows.action, np.repeat(z[:, None], 8, 1)], -1)
    guess = ref.mlp(params["prediction"], seen, HIDDEN)
    change = (rows.next_obs - rows.obs) / (known.obs_std + 1e-6)
    reward = (rows.reward - known.reward_mean) / (known.reward_std + 1e-6)
    target = np.concatenate([change, reward[..., None]], -1)
    _, metrics = paper.update(prediction_weight=3.0)
    close(metrics["prediction_loss"], 3.0 * ((guess - target) ** 2).mean(), rtol=1e-4)
    close(metrics["focal_loss"], 10.0 * ref.focal(z, [0, 1, 3]), rtol=1e-4)
    one = jax.tree.map(lambda x: x[1], paper.batch.rl)
    told = paper.rep.predict_reward(paper.state, jnp.array(z[1], jnp.float32), one)
    wanted = known.reward_mean + (known.reward_std + 1e-6) * guess[1, :, -1]
    close(told, wanted, rtol=1e-4)


def test_the_papers_statistics_are_of_all_training_tasks(paper):
    rows, known = paper.tiny.train.rows, paper.tiny.spec.statistics
    close(known.reward_mean, np.mean(rows.reward))
    close(known.obs_std, np.std(rows.obs, (0, 1)), rtol=1e-4)


# --- fidelity=release


def with_log_variance(state, value):
    """The state whose encoder's noise has another variance."""
    encoder = state.trained["encoder"]
    part = encoder.params | {"log_variance": jnp.full(3, value, jnp.float32)}
    return state.replace(trained=state.trained | {"encoder": encoder.replace(params=part)})


# a log-variance, and the variance after clipping
NOISES = ((0.0, 1.0), (-9.0, 0.1), (9.0, 10.0))


def test_the_releases_z_has_noise_before_tanh(released):
    context, key = released.batch.context, released.batch.z_key
    mean = ref.mlp(released.state.params["encoder"]["net"], features(context, True), HIDDEN)
    noise = np.asarray(jax.random.normal(key, mean.shape))
    for log_variance, variance in NOISES:
        state = with_log_variance(released.state, log_variance)
        codes = np.tanh(mean + math.sqrt(variance) * noise)
        z = released.rep.encode(state, context, released.batch.task_id, key)
        close(z, codes.mean(1), rtol=1e-4)


def test_the_releases_z_of_a_belief_is_the_mean_over_noise(released):
    rep = released.rep
    one = jax.tree.map(lambda x: x[:1], released.batch.context)
    rows = jax.tree.map(lambda x: x[0], one)
    draw = jax.jit(
        jax.vmap(lambda state, k: rep.encode(state, one, jnp.arange(1), k)[0], (None, 0))
    )
    keys = jax.random.split(jax.random.key(0), 20_000)
    for log_variance, _ in NOISES:
        state = with_log_variance(released.state, log_variance)
        z = rep.sample(state, rep.extend(state, rep.prior(state), rows, jnp.ones(6)), keys[0])
        drawn = np.asarray(draw(state, keys))
        np.testing.assert_allclose(z, drawn.mean(0), atol=5 * drawn.std(0).max() / 20_000**0.5)
        assert drawn.std() > 0.05


def test_the_releases_noise_is_learned_within_its_bounds(released):
    after, _ = released.update(lr=LARGE)
    part = lambda state: state.params["encoder"]["log_variance"]
    assert np.abs(part(after)).min() > 0.05  # it begins at 0, the variance at 1


def test_the_releases_error_is_a_likelihood_of_context_rows(released):
    params = jax.tree.map(lambda x: np.asarray(x, float), released.state.params["prediction"])
    batch = released.batch
    rows = jax.tree.map(lambda x: np.asarray(x, float), batch.context)
    z = np.asarray(released.rep.encode(released.state, batch.context, batch.task_id, batch.z_key))
    seen = np.concatenate([np.repeat(z[:, None], 6, 1), rows.obs, rows.action], -1)
    softplus = lambda x: np.logaddexp(0.0, x)
    wanted = 0.0
    targets = {"change": rows.next_obs - rows.obs, "reward": rows.reward[..., None]}
    for name, target in targets.items():
        low, high = params[name]["low"], params[name]["high"]
        mean, raw = np.split(ref.mlp(params[name]["net"], seen, HIDDEN), 2, -1)
        log_variance = high - softplus(high - raw)
        log_variance = low + softplus(log_variance - low)
        wanted += ((target - mean) ** 2 / np.exp(log_variance) + log_variance).mean()
        wanted += 0.01 * (high.sum() - low.sum())
    _, metrics = released.update()
    close(metrics["prediction_loss"], wanted, rtol=1e-3)
    close(metrics["focal_loss"], 0.15 * ref.focal(z, [0, 1, 3]), rtol=1e-3)


def test_log_variances_lie_within_learned_bounds_that_begin_where_they_were_released(tiny):
    made = tiny("unicorn", fidelity="release")
    begun = made.state().rep.params["prediction"]["change"]
    close(begun["low"], np.full(2, -10.0))
    close(begun["high"], np.full(2, 0.5))
    decoder = release._decoder(made.config.algo, 3, made.spec, 2)
    params = jax.tree.map(lambda x: x, begun)
    rows = jax.tree.map(lambda x: jnp.asarray(x[0, :4]), made.train.rows)
    for last, bound in ((-100.0, -10.0), (100.0, 0.5)):
        params["net"] = begun["net"] | {"Dense_2": jax.tree.map(
            lambda x, last=last: jnp.full_like(x, last) if x.ndim == 1 else 0 * x,
            begun["net"]["Dense_2"],
        )}  # fmt: skip
        _, log_variance = decoder.heads(params, jnp.zeros((1, 3)), rows)
        np.testing.assert_allclose(log_variance, bound, atol=1e-3)  # of a softplus


def test_the_releases_context_is_one_whole_episode(released):
    tiny = released.tiny
    horizon, table = tiny.spec.horizon, jax.tree.map(jnp.asarray, tiny.train)
    assert tiny.config.train.context_size != horizon
    starts, ids = np.asarray(table.episode_start[0]), jnp.array([2, 0, 2])
    for seed in range(3):
        drawn = released.rep.context(released.state, table, ids, jax.random.key(seed))
        for task, obs in zip(ids, np.asarray(drawn.next_obs), strict=True):
            own = np.asarray(table.rows.next_obs[task])
            assert any(np.array_equal(obs, own[s : s + horizon]) for s in starts[:-1])
    assert released.rep.ordered_context  # in tests, too


# --- variants, protocols, settings


def test_unicorn_0_has_no_metric(tiny):
    made = Made(tiny, "paper", **{"algo.objective": "prediction"})
    _, metrics = made.update()
    assert metrics.keys() == {"prediction_loss"} and made.rep.predict_reward is not None


def test_unicorn_sup_classifies_training_tasks(tiny):
    made = Made(tiny, "paper", **{"algo.objective": "classification"})
    after, metrics = made.update()
    params, batch = made.state.params, made.batch
    z = np.tanh(ref.mlp(params["encoder"], features(batch.context, False), HIDDEN)).mean(1)
    logits = ref.mlp(params["classification"], z, HIDDEN)
    assert logits.shape == (3, made.tiny.spec.num_train_tasks)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    close(metrics["classification_loss"], -log_p[np.arange(3), [0, 1, 3]].mean(), rtol=1e-4)
    assert moved(params, after.params) == {"encoder", "classification"}


def test_a_variant_without_a_decoder_cannot_predict_rewards(tiny, monkeypatch):
    Registered(monkeypatch).protocol("asks_rewards", "predict_reward")
    assert "asks_rewards" in tiny("unicorn").protocols
    made = tiny("unicorn", **{"algo.objective": "classification"})  # by default it is left out
    assert made.algorithm.rep.predict_reward is None and "asks_rewards" not in made.protocols


def test_an_unknown_objective_is_a_user_error(tiny):
    with pytest.raises(errors.UserError, match=r"algo\.objective.*prediction"):
        tiny("unicorn", **{"algo.objective": "predict"})
    with pytest.raises(errors.UserError, match="the fidelity chooses it"):
        tiny("unicorn", **{"algo.form": "release"})


@pytest.mark.parametrize(
    "suite,env,fidelity,expected",
    [
        # FOCAL's weight, the decoder's, Z, widths, draws of tasks
        ("ctmrl", "point_robot", "paper", (10.0, 1.5, 20, 200, 256, "distinct")),
        ("ctmrl", "hopper_params", "paper", (10.0, 15.0, 20, 200, 256, "distinct")),
        ("ctmrl", "walker_params", "paper", (10.0, 7.0, 40, 200, 256, "distinct")),
        ("gentle", "ant_dir", "paper", (10.0, 1.5, 5, 256, 256, "distinct")),
        ("ctmrl", "cheetah_vel", "release", (0.15, 1.0, 5, 64, 64, "replace")),
        ("ctmrl", "hopper_params", "release", (1.5, 1.0, 40, 128, 128, "replace")),
        ("gentle", "walker_params", "release", (0.7, 1.0, 32, 128, 128, "replace")),
        ("gentle", "cheetah_dir", "release", (0.01, 1.0, 5, 64, 64, "replace")),
        ("gentle", "ant_dir", "release", (0.15, 1.0, 5, 64, 64, "replace")),
    ],
)
def test_published_settings(suite, env, fidelity, expected):
    run = config_lib.RunConfig(algorithm="unicorn", suite=suite, env=env, fidelity=fidelity)
    config = config_lib.resolve(run)
    algo, train = config.algo, config.train
    weights = algo.focal_weight, algo.prediction_weight
    sizes = train.latent_dim, algo.width, algo.decoder_width
    assert (*weights, *sizes, train.task_draw) == expected
    assert algo.use_next_obs == (fidelity == "release" or env.endswith("_params"))
    assert (algo.form, algo.depth) == (fidelity, 2 if fidelity == "release" else 3)
    assert config.run.protocols[0] == "given_context"


def test_the_user_and_presets_come_after_settings_of_a_fidelity():
    names = {"preset": "quick", "suite": "gentle", "env": "hopper_params", "fidelity": "release"}
    algo = assembly.make_config("unicorn", **names).algo
    assert (algo.width, algo.decoder_width, algo.focal_weight) == (64, 64, 1.5)
    config = assembly.make_config("unicorn", overrides={"algo.focal_weight": 2.0}, **names)
    assert config.algo.focal_weight == 2.0
