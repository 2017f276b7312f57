"""The four tables. A new entry is one new file and one line here.

Each value is a module, imported on first use. What a module must define:
  algorithm    `Config`, `make(config, train, spec, rl)`; optional:
               `SETTINGS`, {(suite, environment): dotted overrides}, the published ones; also
               {(suite, environment, fidelity): overrides} that come after `FIDELITY`;
               `PRESETS`, {"preset" or "preset:X": dotted overrides}, X a fidelity, suite or
               environment; `FIDELITY`, {fidelity: dotted overrides}, and `DEFAULT_FIDELITY`
               ("paper"); `PROTOCOL`, its native protocol, only where its paper has a test of its
               own (else the suite's: methods on one suite are compared by one protocol);
               `VARIANTS`, {the paper's name of an ablation: {field: value}};
               `z_dim(config, train)`, the backbone's Z (train.latent_dim);
               `OFFERS`, what a protocol may need of it, such as "predict_reward" (`needs`), and
               `lacks(config)`, what of it these settings do not have;
               `PERIODIC`, the field of `Config` that says how many steps of the last stage lie
               between work that is no gradient step, from step 0 on: benchmarks time it apart
  backbone     `Config`, `make(config, latent_dim, spec)`
  environment  `SETTINGS` (suite -> default overrides), `PHYSICS` (its modes, the published one
               first, that of CPUs last), `make(suite, mode, env_config)`; optional: `PRESETS`,
               {"preset" or "preset:X": dotted overrides}, as above; `BACKBONES`, {preset: backbone}
               where its sizes need another one than the suite's; `OFFERS`, what a protocol may
               need of it, such as "relabel"
  protocol     `make(eval_config, env)`; optional: `NEEDS`, names that an environment or an
               algorithm must offer; `READS`, what it reads of stored data ("own", rows of the
               tested task; "train", of the training tasks)

A name with a dot is a module of somebody's own, which needs no line: `my_package.my_module`.
"""

import importlib
import importlib.util
import sys
import traceback
from types import ModuleType

from gentle_jax import errors

ALGORITHMS = {
    "ctmrl": "gentle_jax.algorithms.ctmrl",
    "gentle": "gentle_jax.algorithms.gentle",
    "focal": "gentle_jax.algorithms.focal",
    "corro": "gentle_jax.algorithms.corro",
    "borel": "gentle_jax.algorithms.borel",
    "csro": "gentle_jax.algorithms.csro",
    "idaq": "gentle_jax.algorithms.idaq",
    "unicorn": "gentle_jax.algorithms.unicorn",
    "er_trl": "gentle_jax.algorithms.er_trl",
    "anole": "gentle_jax.algorithms.anole",
    "multitask": "gentle_jax.algorithms.multitask",
}
BACKBONES = {
    "brac_sac": "gentle_jax.backbones.brac_sac",
    "td3_bc": "gentle_jax.backbones.td3_bc",
    "sac": "gentle_jax.backbones.sac",
    "iql": "gentle_jax.backbones.iql",
}
ENVIRONMENTS = {
    "point_robot": "gentle_jax.envs.point_robot",
    "point_robot_wind": "gentle_jax.envs.point_robot_wind",
    "sparse_point_robot": "gentle_jax.envs.sparse_point_robot",
    "cheetah_vel": "gentle_jax.envs.cheetah_vel",
    "cheetah_dir": "gentle_jax.envs.cheetah_dir",
    "ant_dir": "gentle_jax.envs.ant_dir",
    "ant_goal": "gentle_jax.envs.ant_goal",
    "hopper_params": "gentle_jax.envs.hopper_params",
    "walker_params": "gentle_jax.envs.walker_params",
}
PROTOCOLS = {
    "random_then_policy": "gentle_jax.protocols.random_then_policy",
    "online": "gentle_jax.protocols.online",
    "given_context": "gentle_jax.protocols.given_context",
    "one_shot": "gentle_jax.protocols.one_shot",
    "in_distribution": "gentle_jax.protocols.in_distribution",
    "noisy_preferences": "gentle_jax.protocols.noisy_preferences",
}
TABLES = {
    "algorithm": ALGORITHMS,
    "backbone": BACKBONES,
    "environment": ENVIRONMENTS,
    "protocol": PROTOCOLS,
}


# what a module of a kind must define
DEFINES = {
    "algorithm": ("Config", "make"),
    "backbone": ("Config", "make"),
    "environment": ("SETTINGS", "PHYSICS", "make"),
    "protocol": ("make",),
}


def load(kind: str, name: str) -> ModuleType:
    """Imports the module of entry `name` in table `kind`, or the module of that name.

    Raises UserError for a name that is neither, and for a module that lacks what its kind defines.
    """
    module = _import(kind, name, name_of(kind, name))
    lacking = [one for one in DEFINES[kind] if not hasattr(module, one)]
    if lacking:
        raise errors.UserError(
            f"{kind} {name!r} defines no {lacking[0]}: expected {', '.join(DEFINES[kind])} in "
            f"{module.__file__}"
        )
    return module


def name_of(kind: str, name: str) -> str:
    """Returns the name of an entry's module; raises UserError for an unknown entry."""
    table = TABLES[kind]
    if name in table:
        return table[name]
    if "." not in name:
        own = "or the dotted name of a module of your own, package.module"
        raise errors.UserError(f"{errors.unknown(kind, name, table)}, {own}")
    _find(kind, name)
    return name


def _find(kind, name):
    """Raises UserError for a dotted name that is no module."""
    try:
        found = name in sys.modules or importlib.util.find_spec(name)
    except ValueError:  # of a name that is none
        found = None
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if missing and not f"{name}.".startswith(f"{missing}."):  # what its package imports
            raise errors.UserError(f"{kind} {name!r} cannot be imported: {error}") from error
        found = None
    if not found:
        raise errors.UserError(
            f"{kind} {name!r} is no module that Python finds: expected the dotted name of a file "
            f"below this folder, of an installed package, or below a folder of PYTHONPATH"
        )


def _import(kind, name, target):
    """Imports a module; raises UserError where that, or what it imports, fails."""
    try:
        return importlib.import_module(target)
    except ImportError as error:
        raise errors.UserError(f"{kind} {name!r} cannot be imported: {error}") from error
    except Exception as error:  # of a module that is not ours
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        text = f"{type(error).__name__}: {error}{where}"
        raise errors.UserError(f"{kind} {name!r} cannot be imported: {text}") from error


def register(kind: str, name: str, module: str | ModuleType) -> None:
    """Adds an entry for this process: for notebooks, and for names without a dot.

    Args: kind, of TABLES; module, its dotted name, or the module itself, which may have been made
    by hand. Raises UserError for another kind and for a name that is taken.
    """
    if kind not in TABLES:
        raise errors.unknown("kind", kind, TABLES)
    target = module if isinstance(module, str) else module.__name__
    if isinstance(module, str):
        _find(kind, module)
    known = TABLES[kind].get(name)
    if known not in (None, target):
        raise errors.UserError(f"{kind} {name!r} is {known}: choose another name")
    if not isinstance(module, str):
        if known is None and sys.modules.get(target, module) is not module:
            raise errors.UserError(f"there is another module {target!r}: give it another __name__")
        sys.modules[target] = module  # the newest, where a cell of a notebook is run again
    TABLES[kind][name] = target
