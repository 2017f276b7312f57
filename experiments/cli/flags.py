"""Command-line flags, shared by every command with the same meaning.

A `command.Command` declares which of them it takes; `read` refuses all others. `resolve` makes of
what was read what is to be run.
"""

import dataclasses
import difflib
import os
import pathlib
from typing import NamedTuple

from absl import flags as absl_flags

from gentle_jax import config as config_lib
from gentle_jax import errors, presets, registry, storage, suites, task_tables

from . import settings

DEFAULT = config_lib.RunConfig()
# group -> (flag, kind, default, help)
GROUPS = {
    "what to run": (
        ("algo", str, DEFAULT.algorithm, "algorithm: " + " ".join(registry.ALGORITHMS)
         + "; this, --env, --backbone and --protocol also take the dotted name of a module of "
         "your own"),
        ("suite", str, DEFAULT.suite, "task definitions and protocol: " + " ".join(suites.SUITES)),
        ("env", str, DEFAULT.env, "environment: " + " ".join(registry.ENVIRONMENTS)),
        ("tasks", str, "",
         "file of other task parameters and splits than the suite's (.npz .csv); default: those of "
         "the data, or the suite's"),
        ("backbone", str, "",
         "RL learner: " + " ".join(registry.BACKBONES) + "; default: the suite's, for "
         "some environments with quick another: `BACKBONES` there"),
        ("fidelity", str, "",
         "paper (equations) or release (the authors' code); default: per algorithm"),
        ("preset", str, "auto",
         "sizes: paper fast quick smoke; auto = quick on CPU, paper on accelerators"),
        ("physics", str, "",
         "MuJoCo: reference (published integrator and solver), fast, or mujoco (reference in C "
         "MuJoCo, CPUs only); default: the preset's and the device's"),
    ),
    "how often": (
        ("num_seeds", int, DEFAULT.num_seeds, "seeds, all in one compiled program"),
        ("seed_offset", int, DEFAULT.seed_offset, "the first seed"),
        ("num_steps", int, None, "gradient steps beside pretraining; default: the preset's"),
        ("sweep", list, [],
         "KEY=V1,V2,... crossed with seeds; repeatable. Floats of algo and backbone: in one "
         "program; other settings of train eval algo backbone: one program after the other"),
    ),
    "testing": (
        ("protocol", list, [],
         f"repeatable: {config_lib.NATIVE} (the method's own) " + " ".join(registry.PROTOCOLS)
         + "; default: all that can run"),
    ),
    "devices": (
        ("shard_data", bool, False, "split the data by task over devices: they do not fit on one"),
        ("multihost", bool, False, "one program over several processes (jax.distributed)"),
        ("require", str, "", "gpu or tpu: end with exit code 2 where JAX has no such device"),
        ("deterministic", bool, False,
         "the same bits from every process on the same kind of GPU, without autotuning"),
        ("save_every", int, 30, "seconds between checkpoints; 0: as often as possible"),
    ),
    "code that has changed since a run began": (
        ("fresh", bool, False, "put the old run aside and start anew; the same code resumes"),
        ("accept_code", bool, False, "go on, or show the old table; the run folder says so"),
    ),
    "files": (
        ("data", str, "data", "root of generated datasets, or one dataset's folder"),
        ("out", str, "runs", "root of run folders, or a URL such as gs://BUCKET/runs"),
        ("events", str, "", "file that gets a JSON line for every phase and step; default: none"),
        ("track", str, "none", "log metrics to a tracker, too: wandb mlflow none"),
    ),
}  # fmt: skip

ENTRIES = tuple(entry for entries in GROUPS.values() for entry in entries)
NAMES = tuple(name for name, *_ in ENTRIES)
SECTIONS = tuple(section for section in config_lib.SECTIONS if section != "run")
# flags of any command
PATHS = (
    "data", "out", "events", "run", "compare", "from", "page", "html", "to", "shard", "tasks",
)  # fmt: skip
# every flag that commands share; `config.env` stands for every --config.env.KEY=VALUE
ALL = (*NAMES, *(f"config.{section}" for section in SECTIONS))


def but(*names):
    """Returns ALL without some names."""
    return tuple(name for name in ALL if name not in names)


class Line(NamedTuple):
    """A command line that was read: every flag is one that the command takes."""

    own: dict  # {name: value} of the command's own flags
    shared: dict  # {name: value} of all shared flags, defaults where the command takes none
    given: dict  # {name: value} of the flags that were given, both kinds
    settings: tuple  # the words --config.SECTION.KEY=VALUE
    words: tuple  # all but the own flags, as they were given: for another command


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be run."""

    config: config_lib.ExperimentConfig
    points: tuple  # grid points of a program, dicts of dotted key -> float; ({},) without --sweep
    data: str
    out: str
    automatic: bool = False  # whether --preset=auto chose the preset
    axes: tuple = ()  # every --sweep, a settings.Axis each, in the order given
    programs: tuple = ()  # ExperimentConfigs, the product of the structural axes
    save_every: int = 30  # seconds between checkpoints
    shard_data: bool = False  # whether the data are split over devices
    fresh: bool = False  # whether a run of other code makes way for a new one
    accept_code: bool = False  # whether a run of other code goes on, or is shown
    events: str = ""  # file of events, or ""
    track: str = "none"  # of `trackers`


def takes(command, name):
    """Whether a command takes a flag, or a setting `config.SECTION.KEY`."""
    if name.startswith("config."):
        parts = name.split(".")
        return any(".".join(parts[:count]) in command.shared for count in (2, 3))
    return name in command.shared or name in (own for own, *_ in command.own)


def refusal(command, name):
    """Returns the UserError for a flag that a command does not take."""
    why = dict(command.refused).get(name)
    if why:
        return errors.UserError(f"{command.name} does not use --{name}: {why}")
    allowed = [own for own, *_ in command.own]
    allowed += [shared for shared in command.shared if shared not in allowed]
    settable = name.startswith("config.") and name.split(".")[1] in SECTIONS
    if name.removeprefix("no") not in NAMES and name not in NAMES and not settable:
        return errors.unknown("flag", name, allowed)
    near = difflib.get_close_matches(name, allowed, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    shown = ", ".join(f"--{each}" for each in allowed)
    return errors.UserError(f"{command.name} does not use --{name}: expected some of {shown}{hint}")


def _split(argv, entries):
    """Returns (FlagValues of entries as in GROUPS, the words that are left)."""
    values = absl_flags.FlagValues()
    makers = {
        str: absl_flags.DEFINE_string,
        int: absl_flags.DEFINE_integer,
        bool: absl_flags.DEFINE_bool,
        list: absl_flags.DEFINE_multi_string,
    }
    for name, kind, default, text in entries:
        makers[kind](name, default, text, flag_values=values)
    try:
        rest = values(argv, known_only=True)[1:]
    except absl_flags.Error as error:
        raise errors.UserError(str(error).replace("\n", " ")) from None
    return values, rest


def expanded(name, value):
    """Returns the value of a flag; one that names a path without `~`, which shells leave there.

    Raises UserError for a home that is not known, and for a path that is no text.
    """
    if name not in PATHS:
        return value
    if isinstance(value, list):
        return [expanded(name, each) for each in value]
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise errors.UserError(f"--{name} is {value}: the home folder is unknown, write it out")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise errors.UserError(f"--{name} is {value!a}: expected a path of UTF-8 text") from None
    return path


def without_paths(words):
    """Returns the words of a command line without the flags that name paths, and their values."""
    kept, skip = [], False
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        path = word.startswith("-") and name in PATHS
        if not (path or skip):
            kept.append(word)
        skip = path and not equals  # its value is the next word
    return kept


def _given(values, entries):
    """Returns {name: value} of the flags that were given."""
    return {name: values[name].value for name, *_ in entries if values[name].present}


def read(command, argv):
    """Returns the Line of a command line.

    Args: command, a `command.Command`. Raises UserError for a flag that the command does not take,
    a value of another type, and a flag that is missing.
    """
    own, words = _split(argv, command.own)
    taken = [entry for entry in ENTRIES if entry[0] in command.shared]
    shared, rest = _split([argv[0], *words], taken)
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if not word.startswith("-"):
            raise errors.UserError(f"unexpected argument {word!r}: every setting is a --flag=value")
        section = name.removeprefix("config.").split(".")[0]
        misspelt = section not in SECTIONS and any(s.startswith("config.") for s in command.shared)
        if not (name.startswith("config.") and (misspelt or takes(command, name))):
            raise refusal(command, name)
    once(argv[1:], {name: kind for name, kind, *_ in (*command.own, *taken)})
    defaults = {name: default for name, _, default, _ in ENTRIES}
    local = lambda values: {name: expanded(name, value) for name, value in values.items()}
    if command.elsewhere:  # a `~` is for the machines that will get the flag
        local = dict
    line = Line(
        own={n: expanded(n, own[n].value) for n, *_ in command.own},
        shared=local(defaults | {name: shared[name].value for name, *_ in taken}),
        given=local(_given(own, command.own) | _given(shared, taken)),
        settings=tuple(rest),
        words=tuple(words),
    )
    check(command, line)
    return line


def once(words, kinds):
    """Raises UserError for a flag or setting that is given twice. Args: kinds, {name: its type}."""
    names = [word.lstrip("-").partition("=")[0] for word in words if word.startswith("-")]
    names = [name if name in kinds else name.removeprefix("no") for name in names]
    for name in names:
        if names.count(name) > 1 and kinds.get(name) is not list:
            raise errors.UserError(f"--{name} is given {names.count(name)} times: give it once")


def check(command, line):
    """Raises UserError for flags of a Line that are missing, or that have values of no use."""
    for name in command.needed:
        if name not in line.given:
            raise errors.UserError(
                f"{command.name} needs --{name}: pass it; see "
                f"`{errors.command(command.name)} --help`"
            )
    if "://" in line.shared["data"]:
        raise errors.UserError(
            f"--data is {line.shared['data']}: datasets are mapped into memory, pass a folder of "
            f"this machine (copy the dataset there first)"
        )
    if line.shared["save_every"] < 0:
        raise errors.UserError(
            f"--save_every is {line.shared['save_every']}: expected seconds, 0 or more"
        )


def resolve(line, on_accelerator=lambda: False):
    """Returns the Request of a Line.

    Args: on_accelerator, a function () -> bool, called only where something depends on it. Raises
    UserError for anything unknown or impossible.
    """
    shared = line.shared
    automatic = shared["preset"] == "auto"
    preset = presets.choose(shared["preset"], on_accelerator() if automatic else False)
    run = config_lib.RunConfig(
        algorithm=shared["algo"],
        suite=shared["suite"],
        env=shared["env"],
        backbone=shared["backbone"],
        fidelity=shared["fidelity"],
        preset=preset,
        physics=shared["physics"],
        num_seeds=shared["num_seeds"],
        seed_offset=shared["seed_offset"],
        protocols=tuple(shared["protocol"]),
    )
    if run.physics == config_lib.CPU_PHYSICS and on_accelerator():
        raise errors.UserError(
            "--physics=mujoco steps on CPUs, these runs are on an accelerator: choose reference "
            "or fast"
        )
    layers = presets.layers(preset, config_lib.fill_names(run))
    tasks = tasks_of(shared)
    steps = {} if shared["num_steps"] is None else {"train.num_steps": shared["num_steps"]}
    base = config_lib.resolve(run, [*layers, steps])
    overrides = settings.overrides(base, line.settings)
    config = config_lib.resolve(run, [*layers, steps], overrides, tasks)
    axes = settings.parse_sweep(config, shared["sweep"])
    for key in (key for axis in axes for key in axis.keys if key in overrides):
        raise errors.UserError(f"--sweep and --config.{key} both set {key}: leave one out")
    structural = settings.choices_of([axis for axis in axes if axis.structural])
    programs = [config_lib.resolve(run, [*layers, steps], overrides | c, tasks) for c in structural]
    return Request(
        config=config,
        points=settings.points_of(axes),
        data=shared["data"],
        out=shared["out"],
        automatic=automatic,
        axes=axes,
        programs=tuple(programs),
        save_every=shared["save_every"],
        shard_data=shared["shard_data"],
        fresh=shared["fresh"],
        accept_code=shared["accept_code"],
        events=shared["events"],
        track=shared["track"],
    )


def devices_of(line):
    """Returns what a Line tells `computer.start`, {argument: value}."""
    return {name: line.shared[name] for name in ("multihost", "require", "deterministic")}


def tasks_of(shared):
    """Returns the table of tasks that a run is of; None: those of its suite.

    They are those of `--tasks`, else those that the dataset in `--data` carries. Raises UserError
    where both are there and differ, and for a file that holds no tasks of the family.
    """
    stored = storage.given_tasks(shared["data"], shared["env"], shared["suite"])
    if not shared["tasks"]:
        return stored
    env = config_lib.make_env(shared["env"], shared["suite"], "", config_lib.EnvConfig())
    table = task_tables.read(pathlib.Path(shared["tasks"]), env)
    return None if task_tables.same(table, task_tables.of_env(env)) else table


def parse(command, argv, on_accelerator=lambda: False):
    """Returns the Request of a command line: `read`, then `resolve`."""
    return resolve(read(command, argv), on_accelerator)
