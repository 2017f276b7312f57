"""What protocols need and others offer; which protocol comes first."""

import sys
import types

import pytest
import toys

from gentle_jax import assembly, errors, needs, registry, suites
from gentle_jax import config as config_lib


class Registered:
    """Puts toy modules into the registry."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def protocol(self, name, *needs):
        module = types.ModuleType(f"toy_{name}")
        module.make, module.NEEDS = registry.load("protocol", "online").make, needs
        self.monkeypatch.setitem(sys.modules, module.__name__, module)
        self.monkeypatch.setitem(registry.PROTOCOLS, name, module.__name__)


@pytest.fixture
def registered(monkeypatch):
    return Registered(monkeypatch)


def names(algorithm="focal", suite="ctmrl", env="point_robot", protocols=()):
    run = config_lib.RunConfig(algorithm=algorithm, suite=suite, env=env, protocols=protocols)
    return config_lib.fill_names(run).protocols


def test_a_protocol_runs_by_default_only_where_its_needs_are_offered(registered):
    registered.protocol("asks_rewards", "relabel")
    assert "asks_rewards" in names(env="ant_goal")
    assert "asks_rewards" not in names(env="hopper_params")
    lacking = {"asks_rewards", "noisy_preferences"}  # FOCAL predicts no rewards
    assert set(names(env="hopper_params")) == set(registry.PROTOCOLS) - lacking


@pytest.mark.parametrize(
    "need,who",
    [
        ("relabel", "environment 'hopper_params' lacks"),
        ("predict_reward", "algorithm 'focal' lacks"),
        ("a_map", "both algorithm 'focal' and environment 'hopper_params' lack"),
    ],
)
def test_a_protocol_that_cannot_run_is_refused_in_one_line(registered, need, who):
    registered.protocol("picky", need)
    with pytest.raises(errors.UserError) as error:
        names(env="hopper_params", protocols=("online", "picky"))
    text = str(error.value)
    assert text.startswith(f"protocol 'picky' needs '{need}', which {who}: choose from ")
    assert "\n" not in text and "random_then_policy, online, given_context, one_shot" in text


def test_settings_may_take_back_what_a_module_offers(registered):
    registered.protocol("asks_rewards", "relabel")
    rep = toys.agent().rep
    env = assembly.make_env("point_robot")
    protocols = {"asks_rewards": toys.make("asks_rewards", env)}
    needs.check_built(protocols, "focal", env, rep)
    with pytest.raises(errors.UserError, match="'point_robot' lacks with these settings: choose"):
        needs.check_built(protocols, "focal", env._replace(relabel=None), rep)


def test_settings_of_a_protocol_may_need_more():
    env = assembly.make_env("point_robot")
    protocols = {"in_distribution": toys.make("in_distribution", env, quantifier="ensemble")}
    with pytest.raises(errors.UserError) as error:
        needs.check_built(protocols, "focal", env, toys.agent().rep)
    assert str(error.value) == (
        "protocol 'in_distribution' needs 'uncertainty', which algorithm 'focal' lacks with these "
        "settings: choose from random_then_policy, online, given_context, one_shot; or change the "
        "eval.* setting that asks for 'uncertainty' (such as eval.quantifier)"
    )
    several = toys.agent(uncertainty=lambda state, z, rows: rows.reward).rep
    needs.check_built(protocols, "focal", env, several)


def test_by_default_no_protocol_runs_that_settings_cannot_serve():
    run = config_lib.RunConfig(algorithm="gentle", suite="gentle")
    plain = config_lib.resolve(run).run.protocols
    contrastive = {"algo.objective": "contrastive"}
    fewer = config_lib.resolve(run, (), contrastive).run.protocols
    assert plain == (*fewer, "noisy_preferences") and "in_distribution" in fewer
    asked = config_lib.RunConfig(algorithm="gentle", protocols=("noisy_preferences",))
    assert config_lib.resolve(asked, (), contrastive).run.protocols == ("noisy_preferences",)
    config = assembly.make_config(
        "gentle", "smoke", contrastive, suite="gentle", protocols=("noisy_preferences",)
    )
    with pytest.raises(errors.UserError) as error:
        assembly.check(config)
    others = [name for name in registry.PROTOCOLS if name != "noisy_preferences"]
    assert str(error.value) == (
        "protocol 'noisy_preferences' needs 'predict_reward', which algorithm 'gentle' lacks with "
        f"these settings: choose from {', '.join(others)}; or leave out the --config.algo.* "
        "setting that takes 'predict_reward' away"
    )


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_variants_lack_what_they_do_not_have(tiny, algorithm):
    module = registry.load("algorithm", algorithm)
    for fields in getattr(module, "VARIANTS", {}).values():
        config = module.Config(**fields)
        asks = needs.served(("noisy_preferences",), algorithm, config)
        if "predict_reward" in needs.offers_of("algorithm", algorithm) and not asks:
            made = tiny(algorithm, **{f"{algorithm}.{key}": value for key, value in fields.items()})
            assert made.algorithm.rep.predict_reward is None
            assert "noisy_preferences" not in made.protocols


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
def test_algorithms_offer_what_they_have(tiny, algorithm):
    made = tiny(algorithm)
    for name, feature in needs.FEATURES.items():
        if feature.kind == "algorithm":
            there = feature.there(made.env, made.algorithm.rep)
            assert there == (name in needs.offers_of("algorithm", algorithm))


@pytest.mark.parametrize("algorithm", list(registry.ALGORITHMS))
@pytest.mark.parametrize("suite", list(suites.SUITES))
def test_methods_on_one_suite_are_compared_by_its_protocol(algorithm, suite):
    order = names(algorithm, suite)
    assert set(order) == set(needs.able(algorithm, "point_robot"))
    own = getattr(registry.load("algorithm", algorithm), "PROTOCOL", suites.get(suite).protocol)
    assert order[0] == own
    able = needs.able(algorithm, "point_robot")
    rest = [name for name in able if name not in (own, suites.get(suite).protocol)]
    assert [name for name in order if name in rest] == rest


def test_an_algorithm_may_have_a_test_of_its_own(registered, monkeypatch):
    module = registry.load("algorithm", "focal")
    registered.protocol("own", "relabel")
    monkeypatch.setattr(module, "PROTOCOL", "own", raising=False)
    assert names(suite="gentle")[:2] == ("own", "given_context")
    assert names(env="hopper_params")[0] == "random_then_policy"  # where it cannot run
    assert names(protocols=("online",)) == ("online",)
