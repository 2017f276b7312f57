"""Settings of the command line: `--config.SECTION.KEY=VALUE` and the axes of `--sweep`."""

import dataclasses
import itertools
import math
from typing import NamedTuple

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from gentle_jax import config as config_lib
from gentle_jax import errors

IN_PROGRAM = ("algo", "backbone")  # sections whose floats one program sweeps
SWEPT = ("train", "eval", *IN_PROGRAM)  # sections that `--sweep` may vary: the data stay the same
NOT_SWEPT = {
    "eval.random_episodes": "changes the data",
    "eval.metric": "only chooses what is shown: every summary.json has all metrics",
}


class Axis(NamedTuple):
    """One `--sweep`."""

    name: str  # as it was given
    keys: tuple  # the dotted keys that it sets
    values: tuple  # of the type of the default
    structural: bool  # a program of its own for each value


def overrides(config, arguments):
    """Returns {dotted key: value} of `--config.SECTION.KEY=VALUE`, typed by the defaults.

    Raises UserError for a key that there is not, and for a value of another type.
    """
    if not arguments:
        return {}
    sections = [s for s in config_lib.SECTIONS if s != "run"]
    tree = {s: dataclasses.asdict(getattr(config, s)) for s in sections}
    keys = [f"{s}.{k}" for s in sections for k in tree[s]]
    given = [a.lstrip("-").removeprefix("config.").partition("=") for a in arguments]
    for key, equals, _ in given:
        if key not in keys:
            raise errors.unknown("setting", key, keys)
        if not equals:
            raise errors.UserError(f"--config.{key} has no value: write --config.{key}=VALUE")
    values = absl_flags.FlagValues()
    holder = config_flags.DEFINE_config_dict(
        "config", ConfigDict(tree), flag_values=values, sys_argv=["experiments", *arguments]
    )
    try:
        values(["experiments", *arguments])
        changed = holder.value
    except (absl_flags.Error, ValueError, TypeError) as error:
        raise errors.UserError(
            f"bad value in {' '.join(arguments)}: {errors.first_line(error)}"
        ) from None
    result = {}
    for key, _, _ in given:
        section, name = key.split(".")
        result[key] = changed[section][name]
    return result


def parse_sweep(config, entries):
    """Returns an Axis for each `KEY=V1,V2`.

    A short key such as `lr` or `width` sets that value in every section that has it. Raises
    UserError for keys that cannot be swept or are swept twice, and for values of another type.
    """
    floats = config_lib.swept_fields(config)
    sections = {s: dataclasses.asdict(getattr(config, s)) for s in SWEPT}
    fields = {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items()}
    fields = {key: value for key, value in fields.items() if key not in NOT_SWEPT}
    axes, taken = [], set()
    for entry in entries:
        key, equals, text = entry.partition("=")
        names = [f for f in fields if f == key or f.split(".")[1] == key]
        if not names:
            raise _not_swept(config, key, fields)
        if not equals:
            raise errors.UserError(f"--sweep={entry} has no values: write --sweep={key}=V1,V2")
        if taken & set(names):
            raise errors.UserError(f"--sweep={entry}: {key} is swept twice; list its values once")
        taken |= set(names)
        structural = not set(names) <= set(floats)
        if structural:
            values = _typed(config, entry, names, text.split(","))
        else:
            values = _numbers(entry, key, fields[names[0]], text)
        if len(set(values)) < len(values):
            raise errors.UserError(f"--sweep={entry}: a value is listed twice; list it once")
        axes.append(Axis(key, tuple(names), values, structural))
    return tuple(axes)


def _not_swept(config, key, fields):
    """Returns the UserError for a `--sweep` key that is not one of `fields`."""
    others = [s for s in config_lib.SECTIONS if s not in ("run", *SWEPT)]
    refused = {f"{s}.{k}": "changes the data" for s in others for k in vars(getattr(config, s))}
    for name, why in (refused | NOT_SWEPT).items():
        if key in (name, name.split(".")[1]):
            return errors.UserError(
                f"--sweep={key}: {name} {why}; give a command for each value, with "
                f"--config.{name}=VALUE"
            )
    return errors.unknown("--sweep key", key, fields)


def _numbers(entry, key, default, text):
    """Returns the numbers of a swept float."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise errors.UserError(
            f"--sweep={entry}: expected numbers separated by commas, for example "
            f"--sweep={key}={default:g},{2 * default:g}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise errors.UserError(f"--sweep={entry}: expected finite numbers")
    if key.endswith("lr") and min(numbers) < 0:
        raise errors.UserError(f"--sweep={entry}: expected rates of 0 or more")
    return numbers


def _typed(config, entry, names, parts):
    """Returns the values of a structural axis, typed as `--config.KEY=VALUE` types them."""
    values = []
    for part in parts:
        try:
            if not part:
                raise errors.UserError("empty value")
            typed = {v for n in names for v in overrides(config, [f"--config.{n}={part}"]).values()}
        except errors.UserError:
            typed = ()
        if len(typed) != 1:
            section, _, name = names[0].partition(".")
            kind = type(getattr(getattr(config, section), name)).__name__
            raise errors.UserError(
                f"--sweep={entry}: expected values of type {kind} separated by commas, got {part!r}"
            )
        values += typed
    return tuple(values)


def points_of(axes):
    """Returns the grid points of one program, dicts of dotted key -> float: an outer product."""
    return choices_of([axis for axis in axes if not axis.structural])


def choices_of(axes):
    """Returns the outer product of axes as dicts of dotted key -> value, the last one fastest."""
    each = [[dict.fromkeys(axis.keys, value) for value in axis.values] for axis in axes]
    return tuple(
        {k: v for part in combo for k, v in part.items()} for combo in itertools.product(*each)
    )
