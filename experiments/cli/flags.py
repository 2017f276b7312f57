"""Command-line flags, shared by every command with the same meaning (product.md sec. 3)."""

import dataclasses
import errno
import itertools
import logging
import math
import os
import sys
import textwrap
from typing import NamedTuple

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from experiments.host import hosts, preemption
from gentle_jax import config as config_lib
from gentle_jax import errors, presets, registry, suites

# group -> (flag, kind, default, help)
GROUPS = {
    "what to run": (
        ("algo", str, "ctmrl", "algorithm: " + " ".join(registry.ALGORITHMS)),
        ("suite", str, "ctmrl", "task definitions and protocol: " + " ".join(suites.SUITES)),
        ("env", str, "point_robot", "environment: " + " ".join(registry.ENVIRONMENTS)),
        ("backbone", str, "",
         "RL learner: " + " ".join(registry.BACKBONES) + "; default: the suite's"),
        ("fidelity", str, "",
         "paper (equations) or release (the authors' code); default: per algorithm"),
        ("preset", str, "auto",
         "sizes: paper fast quick smoke; auto = quick on CPU, paper on accelerators"),
        ("physics", str, "",
         "MuJoCo: reference (published integrator and solver) or fast; default: the preset's"),
    ),
    "how often": (
        ("num_seeds", int, 8, "seeds, all in one compiled program"),
        ("seed_offset", int, 0, "the first seed"),
        ("num_steps", int, None, "gradient steps beside pretraining; default: the preset's"),
        ("sweep", list, [],
         "KEY=V1,V2,... crossed with seeds; repeatable. Floats of algo and backbone: in one "
         "program; other settings of train eval algo backbone: one program after the other"),
    ),
    "testing": (
        ("protocol", list, [], "repeatable: " + " ".join(registry.PROTOCOLS) + "; default: all"),
    ),
    "devices": (
        ("shard_data", bool, False, "split the data by task over devices: they do not fit on one"),
        ("multihost", bool, False, "one program over several processes (jax.distributed)"),
        ("save_every", int, 30, "seconds between checkpoints; 0: as often as possible"),
    ),
    "code that has changed since a run began": (
        ("fresh", bool, False, "put the old run aside and start anew; the same code resumes"),
        ("accept_code", bool, False, "go on, or show the old table; the run folder says so"),
    ),
    "files": (
        ("data", str, "data", "root of generated datasets, or one dataset's folder"),
        ("out", str, "runs", "root of run folders, or a URL such as gs://BUCKET/runs"),
    ),
}  # fmt: skip

HELP = ("--help", "-h", "--helpfull", "-help")
# what the system says of a folder that a user named and that cannot be what it should be
UNUSABLE_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip

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


@dataclasses.dataclass(frozen=True)
class Request:
    """A parsed command line."""

    config: config_lib.ExperimentConfig
    points: tuple  # grid points of a program, dicts of dotted key -> float; ({},) without --sweep
    data: str
    out: str
    extra: dict  # the command's own flags
    given: dict = dataclasses.field(default_factory=dict)  # named flags of the command line
    automatic: bool = False  # whether --preset=auto chose the preset
    axes: tuple = ()  # every --sweep, an Axis each, in the order given
    programs: tuple = ()  # ExperimentConfigs, the product of the structural axes
    save_every: int = 30  # seconds between checkpoints
    shard_data: bool = False  # whether the data are split over devices
    fresh: bool = False  # whether a run of other code makes way for a new one
    accept_code: bool = False  # whether a run of other code goes on, or is shown


def help_text(command, summary, extra=(), shared=True):
    """Returns --help: grouped flags, two screens at most. Args: shared, with the flags of `run`."""
    lines = [f"python -m experiments.{command} [flags]", "", summary]
    groups = dict(GROUPS) if shared else {}
    if extra:
        groups["this command"] = extra
    for group, entries in groups.items():
        lines += ["", f"{group}:"]
        for name, _, default, text in entries:
            shown = "" if default in ("", None, []) else f" [{default}]"
            first, *rest = textwrap.wrap(text + shown, 74)
            lines.append(f"  --{name:<12} {first}")
            lines += [" " * 17 + more for more in rest]
    if not shared:
        return "\n".join(lines)
    lines += [
        "",
        "any setting: --config.SECTION.KEY=VALUE with SECTION one of env train behaviour eval",
    ]
    lines += [
        "algo backbone; every key and value of a run is in its config.json. Unknown: an error."
    ]
    return "\n".join(lines)


def _define(entries):
    values = absl_flags.FlagValues()
    makers = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        bool: absl_flags.DEFINE_bool,
        list: absl_flags.DEFINE_multi_string,
    }
    for name, kind, default, text in entries:
        makers[kind](name, default, text, flag_values=values)
    return values


def split(argv, extra):
    """Returns ({name: value} of a command's own flags, the arguments that are left).

    Args: extra, the own flags as in GROUPS. Raises UserError for a value of another type.
    """
    values = _define(extra)
    try:
        rest = values(argv, known_only=True)[1:]
    except absl_flags.Error as error:
        raise errors.UserError(str(error).replace("\n", " ")) from None
    return {name: values[name].value for name, *_ in extra}, rest


def _known(values, argv, extra):
    """Parses the named flags; returns the arguments that are left."""
    names = [name for name, *_ in itertools.chain(*GROUPS.values(), extra)]
    try:
        rest = values(argv, known_only=True)[1:]
    except absl_flags.Error as error:
        raise errors.UserError(str(error).replace("\n", " ")) from None
    for argument in rest:
        if argument.startswith(("--config.", "-config.")):
            continue
        if argument.startswith("-"):
            raise errors.unknown("flag", argument.lstrip("-").partition("=")[0], names)
        raise errors.UserError(f"unexpected argument {argument!r}: every setting is a --flag=value")
    return rest


def _overrides(config, arguments):
    """Parses `--config.section.key=value` with ml_collections, typed by the defaults."""
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
            f"bad value in {' '.join(arguments)}: {str(error).splitlines()[0]}"
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
    found = {f"{s}.{k}": "changes the data" for s in others for k in vars(getattr(config, s))}
    for name, why in (found | NOT_SWEPT).items():
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
            found = {
                v for n in names for v in _overrides(config, [f"--config.{n}={part}"]).values()
            }
        except errors.UserError:
            found = ()
        if len(found) != 1:
            section, _, name = names[0].partition(".")
            kind = type(getattr(getattr(config, section), name)).__name__
            raise errors.UserError(
                f"--sweep={entry}: expected values of type {kind} separated by commas, got {part!r}"
            )
        values += found
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


def parse(argv, command, summary, on_accelerator, extra=()):
    """Returns a Request for a command line; prints help and exits 0 where it is asked for.

    Args: on_accelerator, a function () -> bool, called only for `--preset=auto`; extra, the
    command's own flags as in GROUPS. Raises UserError for anything unknown or impossible.
    """
    if any(argument in HELP for argument in argv[1:]):
        print(help_text(command, summary, extra))
        sys.exit(0)
    values = _define(itertools.chain(*GROUPS.values(), extra))
    arguments = _known(values, argv, extra)
    if "://" in values.data:
        raise errors.UserError(
            f"--data is {values.data}: datasets are mapped into memory, pass a folder of this "
            f"machine (copy the dataset there first)"
        )
    automatic = values.preset == "auto"
    preset = presets.choose(values.preset, on_accelerator() if automatic else False)
    run = config_lib.RunConfig(
        algorithm=values.algo,
        suite=values.suite,
        env=values.env,
        backbone=values.backbone,
        fidelity=values.fidelity,
        preset=preset,
        physics=values.physics,
        num_seeds=values.num_seeds,
        seed_offset=values.seed_offset,
        protocols=tuple(dict.fromkeys(values.protocol)),
    )
    layers = presets.layers(preset, config_lib.fill_names(run))
    steps = {} if values.num_steps is None else {"train.num_steps": values.num_steps}
    base = config_lib.resolve(run, [*layers, steps])
    overrides = _overrides(base, arguments)
    config = config_lib.resolve(run, [*layers, steps], overrides)
    axes = parse_sweep(config, values.sweep)
    for key in (key for axis in axes for key in axis.keys if key in overrides):
        raise errors.UserError(f"--sweep and --config.{key} both set {key}: leave one out")
    structural = choices_of([axis for axis in axes if axis.structural])
    programs = [config_lib.resolve(run, [*layers, steps], overrides | c) for c in structural]
    own = {name: values[name].value for name, *_ in extra}
    given = {
        name: values[name].value
        for name, *_ in itertools.chain(*GROUPS.values(), extra)
        if values[name].present
    }
    if values.save_every < 0:
        raise errors.UserError(f"--save_every is {values.save_every}: expected seconds, 0 or more")
    return Request(
        config=config,
        points=points_of(axes),
        data=values.data,
        out=values.out,
        extra=own,
        given=given,
        automatic=automatic,
        axes=axes,
        programs=tuple(programs),
        save_every=values.save_every,
        shard_data=values.shard_data,
        fresh=values.fresh,
        accept_code=values.accept_code,
    )


def main(function, argv=None):
    """Runs a command: user errors become one line on stderr and exit code 2, signals code 42."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at info level
    try:
        preemption.begin()
        return function(sys.argv if argv is None else argv) or 0
    except errors.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_PATH:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot use{where}: {error.strerror}; pass another folder", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, preemption.Preempted):
        print("interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return preemption.EXIT_CODE


def command(function):
    """Runs a command and ends the process with its exit code."""
    try:
        code = main(function)
        preemption.ignore()
    except preemption.Preempted:  # in the moment between
        code = preemption.EXIT_CODE
    # at once: threads that compile, or other processes that are waited for, would hold it up
    if code == preemption.EXIT_CODE or (code and hosts.several()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
