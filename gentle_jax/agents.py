"""A trained agent in hand: `gentle_jax.load(run_folder)`, numpy in and out.

    belief = agent.prior()
    action = agent.act(belief, obs)
    belief = agent.observe(belief, {"obs": ..., "action": ..., "reward": ..., "next_obs": ...})

Neither the dataset nor the run's lock is needed: `agent.json` of the run folder has what the agent
knew of its data, and checkpoints are only read, also while the run trains.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax import assembly, checkpoint, errors, json_files, rng, training
from gentle_jax import config as config_lib
from gentle_jax.types import AgentState, Algorithm, Belief, Transition

FILE = "agent.json"
RESTORE = "restore it, or give the run's command again with another --out"
LEAST = 16  # rows that are observed at once are padded to this many, or twice as many, ...
NEEDED = ("obs", "action", "reward", "next_obs")


class Functions(NamedTuple):
    """Pure functions of one agent, for `jit` and `vmap`; observations in the environment's units.

    state, an AgentState of one run; key, of z (and of the action, where it is sampled).
    """

    prior: Callable  # (state) -> belief
    observe: Callable  # (state, belief, Transition [C], mask [C]) -> belief
    task_vector: Callable  # (state, belief, key) -> z [Z]
    act: Callable  # (state, belief, obs, key) -> the deterministic policy's action
    sample: Callable  # (state, belief, obs, key, key of the action) -> action


def functions_of(algorithm: Algorithm, scale: tuple) -> Functions:
    """Returns the Functions of an Algorithm. Args: scale, (mean, std) of observations."""
    rep, rl = algorithm.rep, algorithm.rl
    seen = lambda obs: (obs - scale[0]) / scale[1]

    def observe(state, belief, rows, mask):
        rows = rows._replace(obs=seen(rows.obs), next_obs=seen(rows.next_obs))
        return rep.extend(state.rep, belief, rows, mask)

    def act(state, belief, obs, key):
        return rl.mode(state.rl, seen(obs), rep.sample(state.rep, belief, key))

    def sample(state, belief, obs, key, action_key):
        return rl.act(state.rl, seen(obs), rep.sample(state.rep, belief, key), action_key)

    return Functions(
        prior=lambda state: rep.prior(state.rep),
        observe=observe,
        task_vector=lambda state, belief, key: rep.sample(state.rep, belief, key),
        act=act,
        sample=sample,
    )


@dataclasses.dataclass(frozen=True)
class Agent:
    """One trained agent. A belief is what it has seen of a task; it is never changed in place.

    Every method also takes many tasks at once: `prior(8)` is a belief of 8 tasks, and whatever
    comes with it then has a leading axis of 8.
    """

    functions: Functions
    state: AgentState
    blank: Belief  # before anything was seen
    key: Any  # of z, where a belief leaves it open
    obs_dim: int
    action_dim: int
    step: int  # training steps behind the checkpoint
    config: config_lib.ExperimentConfig

    def prior(self, tasks: int | None = None) -> Belief:
        """Returns the belief before anything was seen. Args: tasks, how many at once."""
        if tasks is None:
            return jax.tree.map(np.copy, self.blank)
        return jax.tree.map(lambda leaf: np.repeat(leaf[None], tasks, 0), self.blank)

    def observe(self, belief: Belief, transitions: Any) -> Belief:
        """Returns the belief after some rows of a task, in the order in which they happened.

        Args: transitions, a Transition or a dict of arrays [rows, ...] "obs", "action", "reward"
        and "next_obs" (and "terminal", 0 by default). Raises UserError for other shapes.
        """
        many = self._is_batched(belief)
        rows = self._rows(transitions, many)
        count = rows.reward.shape[-1]
        size = LEAST
        while size < count:
            size *= 2
        axis = int(many)
        pad = lambda x: np.pad(x, [(0, (size - count) * (i == axis)) for i in range(x.ndim)])
        rows = jax.tree.map(pad, rows)
        mask = np.broadcast_to(np.arange(size) < count, rows.reward.shape).astype(np.float32)
        function = self._jitted("observe", (None, 0, 0, 0) if many else None)
        return jax.tree.map(np.asarray, function(self.state, belief, rows, mask))

    def act(
        self, belief: Belief, obs: Any, deterministic: bool = True, seed: int = 0
    ) -> np.ndarray:
        """Returns an action in [-1, 1]. Args: seed, of a sampled action: give another each time.

        Raises UserError for an observation of another size.
        """
        many = self._is_batched(belief)
        obs = np.asarray(obs, np.float32)
        wanted = (*jax.tree.leaves(belief)[0].shape[:1], self.obs_dim) if many else (self.obs_dim,)
        self._check("obs", obs.shape, wanted)
        if deterministic:
            function = self._jitted("act", (None, 0, 0, None) if many else None)
            return np.asarray(function(self.state, belief, obs, self.key))
        key = rng.stream(self.key, "action", seed)
        keys = jax.random.split(key, wanted[0]) if many else key
        function = self._jitted("sample", (None, 0, 0, None, 0) if many else None)
        return np.asarray(function(self.state, belief, obs, self.key, keys))

    def task_vector(self, belief: Belief) -> np.ndarray:
        """Returns z, by which the agent acts."""
        many = self._is_batched(belief)
        function = self._jitted("task_vector", (None, 0, None) if many else None)
        return np.asarray(function(self.state, belief, self.key))

    def _jitted(self, name, axes=None):
        """Returns a compiled function of `functions`. Args: axes, of `vmap`; None: one task."""
        return _jitted(self.functions, name, axes)

    def _is_batched(self, belief):
        """Whether a belief is one of many tasks; raises UserError for what is no belief of ours."""
        given, known = jax.tree.flatten(belief), jax.tree.flatten(self.blank)
        if given[1] == known[1]:
            more = {np.ndim(a) - b.ndim for a, b in zip(given[0], known[0], strict=True)}
            if more in ({0}, {1}):
                return more == {1}
        raise errors.UserError(
            "belief is none of this agent's: expected what prior() or observe() returned"
        )

    def _rows(self, transitions, many):
        """Returns a Transition of float32 arrays, all fields there."""
        if not isinstance(transitions, Transition | Mapping):
            raise errors.UserError(
                f"transitions are a {type(transitions).__name__}: expected a dict or a Transition"
            )
        named = isinstance(transitions, Transition)
        given = transitions._asdict() if named else dict(transitions)
        lacking = [name for name in NEEDED if given.get(name) is None]
        unknown = [name for name in given if name not in Transition._fields]
        if lacking or unknown:
            text = f"lack {lacking[0]!r}" if lacking else f"have {unknown[0]!r}"
            raise errors.UserError(
                f"transitions {text}: expected arrays {', '.join(NEEDED)}, optional terminal"
            )
        try:
            fields = {name: np.asarray(value, np.float32) for name, value in given.items()}
        except (ValueError, TypeError) as error:
            raise errors.UserError(f"transitions are no arrays of numbers ({error})") from None
        fields.setdefault("terminal", np.zeros_like(fields["reward"]))
        fields.setdefault("context_reward", fields["reward"])  # sparse where the reward is
        lead = fields["reward"].shape
        tails = {"obs": self.obs_dim, "next_obs": self.obs_dim, "action": self.action_dim}
        if len(lead) != 1 + many or lead[-1] == 0:
            raise errors.UserError(
                f"reward has shape {lead}: expected {'[tasks, rows]' if many else '[rows]'}, "
                f"a row at least"
            )
        for name, value in fields.items():
            self._check(name, value.shape, (*lead, tails[name]) if name in tails else lead)
        return Transition(**fields)

    def _check(self, name, shape, wanted):
        """Raises UserError for an array of another shape."""
        if tuple(shape) != tuple(wanted):
            raise errors.UserError(f"{name} has shape {list(shape)}: expected {list(wanted)}")


@functools.lru_cache(maxsize=256)
def _jitted(functions, name, axes):
    """Returns a compiled function of Functions, the same one each time."""
    function = getattr(functions, name)
    return jax.jit(function if axes is None else jax.vmap(function, axes))


def load(
    run_folder: str | os.PathLike, seed: int | None = None, step: int | None = None, point: int = 0
) -> Agent:
    """Returns the Agent of a run at its newest checkpoint.

    Args: seed, one of the run's (default: its first); step, training steps behind a checkpoint that
    the run still has; point, a grid point of a sweep. Raises UserError for what is not there.
    """
    if "://" in str(run_folder):
        raise errors.UserError(f"{run_folder} is not on this machine: copy the run here")
    folder = pathlib.Path(run_folder)
    config, points = read_config(folder)[:2]
    run = config.run
    seeds = range(run.seed_offset, run.seed_offset + run.num_seeds)
    seed = seeds[0] if seed is None else seed
    for name, given, allowed in (("seed", seed, seeds), ("point", point, range(len(points)))):
        if given not in allowed:
            raise errors.UserError(
                f"{name} is {given}: this run has {name}s {allowed[0]} to {allowed[-1]}"
            )
    known = read_known(folder)
    sweep, functions = _built(json.dumps([config_lib.to_dict(config), known, points]))
    state, done = read_state(folder, sweep, step)
    index = point * run.num_seeds + seed - seeds[0]
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), state)
    key = rng.stream(rng.run_keys(1, seed)[0], "agent")
    sizes = sweep.env.obs_dim, sweep.env.action_dim
    blank = jax.tree.map(np.asarray, jax.jit(functions.prior)(state))
    return Agent(functions, state, blank, key, *sizes, done, config)


@functools.lru_cache(maxsize=16)
def _built(text):
    """Returns (Sweep, Functions) of the JSON of [config, what is known of its data, grid points].

    Agents of one run share them, and what is compiled for them.
    """
    tree, known, points = json.loads(text)
    sweep = assembly.without_data(config_lib.from_dict(tree), known, points)
    return sweep, functions_of(sweep.algorithm, tuple(map(jnp.asarray, sweep.scale)))


def read_config(folder: pathlib.Path) -> tuple[config_lib.ExperimentConfig, tuple, Any]:
    """Returns (config, grid points, checksums of imported data or None) of a run folder.

    Raises UserError if it is none.
    """
    path = folder / "config.json"
    try:
        tree = json_files.unsealed(json.loads(path.read_text()), path, RESTORE)
        points = tuple(tree.pop("sweep"))
    except errors.UserError:
        raise
    except (OSError, ValueError, KeyError, AttributeError):
        raise errors.UserError(
            f"{folder} is not a run folder (no config.json that can be read): pass the folder that "
            f"`{errors.command('run')}` names at its end"
        ) from None
    return config_lib.from_dict(tree), points, (tree.get("data") or {}).get("sha256")


def read_known(folder: pathlib.Path) -> dict:
    """Returns what a run's agents know of its data; raises UserError where it is not stored."""
    path = folder / FILE
    if not path.exists():
        raise errors.UserError(
            f"{folder} has no {FILE}: it was gathered from shards, then pass one of their folders, "
            f"or an older version made it, then give its command again with --fresh"
        )
    known = json_files.unsealed(json_files.read(path), path, RESTORE)
    if not {"scale", "statistics", "rows_per_task", "shape"} <= set(known):
        raise errors.UserError(f"{path} is damaged: {RESTORE}")
    return known


def read_state(
    folder: pathlib.Path, sweep: training.Sweep, step: int | None
) -> tuple[AgentState, int]:
    """Returns (state of all runs, training steps behind it) of a checkpoint that is only read."""
    place, like = folder / "checkpoints", training.carry_shapes(sweep)
    for _ in range(3):  # the run may put another checkpoint in the place of this one
        if not place.exists():
            break
        with checkpoint.Checkpoints(place, read_only=True) as saves:
            there = saves.steps()
            steps = sorted({number // checkpoint.UNITS for number in there})
            only = next((n for n in there if n // checkpoint.UNITS == step), None)
            if there and step is not None and only is None:
                raise errors.UserError(
                    f"step is {step}: this run has checkpoints at {', '.join(map(str, steps))}"
                )
            kept = saves.restore(like, only) if there else None
        if kept is not None:
            return kept[0]["state"], kept[1]["done"]
    raise errors.UserError(
        f"{folder} holds no checkpoint that can be read: give the run's command again, it trains "
        f"on and keeps one; a gathered run has them in its shards"
    )
