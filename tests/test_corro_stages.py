"""CORRO: whom a stage trains, its rates, the critics' gradient, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_numpy as ref
from scipy.special import softmax
from test_corro import SPEC, columns, normal

from gentle_jax import config as config_lib
from gentle_jax import data as data_lib
from gentle_jax import errors, losses, registry
from gentle_jax.algorithms.corro import method
from gentle_jax.algorithms.corro.settings import Config
from gentle_jax.types import MetaBatch, Spec


def task_of(rows, task):
    """The rows of one task."""
    return jax.tree.map(lambda x: x[task], rows)


# --- the stages


class Trained:
    """A tiny CORRO after one step of every stage, on training and test tasks."""

    def __init__(self, tiny):
        self.made = tiny("corro", **{"train.final_lr": 0.5})
        both = lambda a, b: jnp.concatenate([a, b])
        self.data = jax.tree.map(both, self.made.train, self.made.test)
        hp = jax.tree.map(lambda x: x[0], self.made.hp)
        begin = jax.jit(self.made.algorithm.init)(hp, jax.random.key(0), self.data)
        self.states, self.metrics = [begin], []
        self.steps = [jax.jit(stage.step) for stage in self.made.algorithm.stages]
        for number in range(3):
            state, metrics = self.step(number, self.states[-1])
            self.states.append(state)
            self.metrics.append(metrics)

    def step(self, number, state, data=None, index=0):
        data = self.data if data is None else data
        return self.steps[number](state, data, jax.random.key(7), jnp.int32(index))


@pytest.fixture(scope="module")
def trained(tiny):
    return Trained(tiny)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_every_stage_trains_its_own_part_and_nothing_else(trained):
    names = [stage.name for stage in trained.made.algorithm.stages]
    assert names == ["cvae", "contrast", "train"]
    assert [s.evaluate for s in trained.made.algorithm.stages] == [False, False, True]
    parts = {"cvae", "encoder", "attention"}
    for number, learning in enumerate(("cvae", "encoder", "attention")):
        before, after = (trained.states[i].rep.trained for i in (number, number + 1))
        assert before.keys() == parts
        moved = {name for name in parts if not same(before[name], after[name])}
        assert moved == {learning}  # moments included
        layers = zip(
            jax.tree.leaves(before[learning].params), jax.tree.leaves(after[learning].params),
            strict=True,
        )  # fmt: skip
        changed = [not np.array_equal(x, y) for x, y in layers]
        assert all(changed) or learning == "attention"  # a bias cancels in a softmax
        assert same(trained.states[number].rl, trained.states[number + 1].rl) == (number < 2)
    shown = ("cvae_loss", "contrast_loss", "critic_loss")
    losses_of = [m[name] for m, name in zip(trained.metrics, shown, strict=True)]
    assert np.isfinite(losses_of).all()


def test_the_test_tasks_data_change_no_bit_of_any_stage(trained):
    rows = jax.tree.map(
        lambda x: x.at[trained.made.spec.num_train_tasks :].set(9.0), trained.data.rows
    )
    other = trained.data.replace(rows=rows)
    for number in range(3):
        state = trained.states[number]
        again, _ = trained.step(number, state, other)
        assert same(again, trained.states[number + 1])
        # while those of a training task do
        known = trained.data.replace(rows=jax.tree.map(lambda x: x.at[:3].set(0.5), rows))
        assert not same(trained.step(number, state, known)[0], again)


def test_a_stage_has_its_own_rate_and_it_ends_at_the_final_share(trained):
    hp, state = trained.states[0].hp, trained.states[0]

    def moved(number, name, index=0, **rates):
        algo = hp["algo"] | {key: jnp.float32(value) for key, value in rates.items()}
        after, _ = trained.step(number, state.replace(hp=hp | {"algo": algo}), index=index)
        part = lambda s: jax.tree.leaves(s.rep.trained[name].params)
        steps = zip(part(after), part(state), strict=True)
        return max(float(np.abs(x - y).max()) for x, y in steps)

    for number, name, rate in ((0, "cvae", "cvae_lr"), (1, "encoder", "contrast_lr")):
        assert moved(number, name, **{rate: 0.0}) == 0.0
        # Adam's first step is the rate itself; at the end of 20 steps half of it
        first, last = (moved(number, name, index, **{rate: 0.01, "lr": 1.0}) for index in (0, 20))
        np.testing.assert_allclose([first, last], [0.01, 0.005], rtol=1e-3)


def test_the_critics_gradient_trains_the_attention_and_nothing_else(trained):
    made, state = trained.made, trained.states[2].rep
    rep = made.algorithm.rep
    context = data_lib.context_rows(trained.data, jnp.arange(3), 8, jax.random.key(1))
    dz, hp = normal(3, 3), trained.states[2].hp["algo"] | {"lr": jnp.float32(0.01)}
    batch = MetaBatch(context, context, jnp.arange(3))
    update = jax.jit(rep.update)
    after, _ = update(state, hp, batch, dz, trained.data, jax.random.key(0), jnp.int32(0))

    def value(kernel):  # sum over tasks of z . dz, in float64
        layer = {"Dense_0": {"kernel": kernel, "bias": np.zeros(1)}}
        params = {"encoder": state.params["encoder"], "attention": layer}
        total = 0.0
        for task in range(3):
            x = columns(task_of(context, task))
            codes = ref.mlp(params["encoder"], x, made.config.algo.depth)
            codes = codes / np.sqrt((codes**2).sum(-1, keepdims=True) + losses.NORM_FLOOR)
            total += dz[task] @ (softmax(ref.mlp(layer, codes, 0)[:, 0]) @ codes)
        return total

    kernel = np.asarray(state.params["attention"]["Dense_0"]["kernel"], float)
    slope = np.array([(value(kernel + d) - value(kernel - d)) for d in 1e-5 * np.eye(3)[..., None]])
    step = after.params["attention"]["Dense_0"]["kernel"] - kernel
    np.testing.assert_allclose(step[:, 0], -0.01 * np.sign(slope), rtol=2e-2)  # Adam's first
    assert same(after.trained["encoder"], state.trained["encoder"])
    still, _ = update(state, hp, batch, 0 * dz, trained.data, jax.random.key(0), jnp.int32(0))
    assert same(still.params, state.params)


# --- settings


def config_of(env="point_robot", suite="ctmrl", **algo):
    run = config_lib.RunConfig(algorithm="corro", suite=suite, env=env)
    return config_lib.resolve(run, (), {f"algo.{name}": value for name, value in algo.items()})


@pytest.mark.parametrize(
    "suite,env,width,cvae_width,code,z",
    [
        ("ctmrl", "point_robot", 64, 64, 5, 5),
        ("ctmrl_b", "cheetah_vel", 64, 64, 5, 5),
        ("ctmrl", "ant_goal", 64, 128, 64, 5),
        ("gentle", "ant_dir", 64, 128, 64, 5),
        ("gentle", "hopper_params", 128, 128, 64, 40),
        ("ctmrl", "walker_params", 128, 128, 64, 32),
    ],
)
def test_published_sizes(suite, env, width, cvae_width, code, z):
    config = config_of(env, suite)
    algo = config.algo
    assert (algo.width, algo.cvae_width, algo.code_dim) == (width, cvae_width, code)
    assert config.train.latent_dim == z
    assert (algo.num_negatives, algo.temperature, algo.kl_weight) == (16, 0.1, 0.2)
    assert (algo.contrast_batch, algo.cvae_batch, algo.contrast_steps) == (64, 128, 200_000)
    assert algo.cvae_lr == algo.contrast_lr == algo.lr == 3e-4
    assert config.run.protocols[0] == "given_context"


def test_every_environment_of_a_suite_has_settings_and_says_whether_dynamics_vary():
    module = registry.load("algorithm", "corro")
    pairs = set()
    for env in registry.ENVIRONMENTS:
        for suite in registry.load("environment", env).SETTINGS:
            pairs.add((suite, env))
            varying = env.endswith(("_params", "_wind"))
            config = config_of(env, suite)
            assert config.algo.dynamics_vary == varying
            assert (config.train.meta_batch, config.train.task_draw) == (16, "replace")
    assert set(module.SETTINGS) == pairs


def test_the_cvae_takes_a_hundred_passes_over_the_training_rows_or_none():
    assert method.cvae_steps(Config(), Spec(3, 2, 4, 50, 5)) == 200  # ceil(200 / 128) = 2 a pass
    assert method.cvae_steps(Config(cvae_steps=7), SPEC) == 7
    for kind in ("reward", "none"):
        assert method.cvae_steps(Config(negatives=kind), SPEC) == 0


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"negatives": "other"}, ("algo.negatives", "other", "generative, reward, none")),
        ({"negatives": "reward", "env": "hopper_params"}, ("algo.negatives", "generative or none")),
    ],
)
def test_negatives_that_are_unknown_or_do_not_fit_are_refused(fields, words):
    config = config_of(**fields)
    rl = registry.load("backbone", config.run.backbone).make(config.backbone, 5, SPEC)
    with pytest.raises(errors.UserError) as caught:
        method.make(config.algo, config.train, SPEC, rl)
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text
