"""`--algo=X --help`: settings with their defaults, and what the source says of them."""

import dataclasses

import pytest

from experiments import collect, reproduce, run
from experiments.cli import described
from experiments.cli.command import main
from gentle_jax import registry


def shown(capsys, *words, command=run.COMMAND):
    capsys.readouterr()
    code = main(command, ["run", *words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", registry.ALGORITHMS)
def test_every_setting_of_an_algorithm_and_its_backbone_is_listed(capsys, name):
    code, out, err = shown(capsys, f"--algo={name}", "--help", "--preset=quick")
    assert code == 0 and not err
    told = {line.split("=")[0].strip() for line in out.splitlines() if "--config." in line}
    fields = dataclasses.fields(registry.load("algorithm", name).Config)
    wanted = {f"--config.algo.{field.name}" for field in fields}
    of_backbone = dataclasses.fields(registry.load("backbone", "brac_sac").Config)
    wanted |= {f"--config.backbone.{field.name}" for field in of_backbone}
    assert wanted <= told


def test_defaults_are_those_of_the_other_flags(capsys):
    line = ("--help", "--algo=ctmrl", "--backbone=td3_bc", "--suite=gentle", "--preset=quick")
    text = shown(capsys, *line)[1]
    assert "settings of backbone td3_bc, preset quick, suite gentle" in text
    assert "--config.backbone.bc_weight=1.0" in text
    other = shown(capsys, *line[:-1], "--preset=paper")[1]
    assert "--config.backbone.bc_weight=2.5" in other
    assert "its mean weight is contrast_weight" in " ".join(other.split())  # of two lines


def test_without_a_name_and_where_there_are_none_help_is_as_it_was(capsys):
    assert "settings of algorithm" not in shown(capsys, "--help")[1]
    code, out, _ = shown(capsys, "--help", "--algo=ctmrl", command=collect.COMMAND)
    assert code == 0 and "settings of algorithm" not in out


def test_help_is_shown_with_a_wrong_name_which_is_told(capsys):
    code, out, err = shown(capsys, "--algo=ctrml", "--help")
    assert (
        code == 0 and not err and "no settings to list: unknown algorithm 'ctrml': did you" in out
    )
    code, _, err = shown(capsys, "--algo=ctrml")
    assert code == 2 and "did you mean 'ctmrl'? expected one of" in err and err.count("\n") == 1


def test_a_class_made_by_hand_has_no_comments():
    made = dataclasses.make_dataclass("Made", [("lr", float, 1.0)])
    assert described.comments(made) == {}


def test_a_commands_own_switch_is_given_once(capsys):
    words = ("--dry_run", "--nodry_run", "--preset=smoke")
    code, _, err = shown(capsys, *words, command=reproduce.COMMAND)
    assert code == 2 and "--dry_run is given 2 times" in err


@pytest.mark.parametrize(
    "words,name",
    [
        (("--num_seeds=1", "--num_seeds=2"), "num_seeds"),
        (("--num_seeds", "1", "--num_seeds=1"), "num_seeds"),
        (("--fresh", "--nofresh"), "fresh"),
        (("--nofresh", "--nofresh"), "fresh"),
        (("--config.algo.lr=1", "--config.algo.lr=1"), "config.algo.lr"),
    ],
)
def test_a_flag_that_is_given_twice_is_an_error(capsys, words, name):
    code, _, err = shown(capsys, "--preset=smoke", *words)
    assert code == 2 and f"--{name} is given 2 times: give it once" in err
