"""The contracts: bundles of pure functions, and the pytrees that they pass to each other.

Axes: S runs, T tasks, B transitions, C context transitions, H horizon, E episodes, Z latent, K
batches, G groups of rows that share a z. An algorithm is Representation x Backbone; a protocol
calls both; a Stage is a stretch of training. Functions here see one run: `gentle_jax.sweep` maps
them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct

State = Any  # a pytree; so are Belief, Task, Metrics and HyperParams below
HyperParams = dict  # section -> {name: scalar float}; leaves, so sweeping them never recompiles


class Transition(NamedTuple):
    """One environment step, or many: every leaf has the same leading axes."""

    obs: jax.Array  # [..., obs_dim]
    action: jax.Array  # [..., action_dim], in [-1, 1]
    reward: jax.Array  # [...], dense: what a backbone learns from
    context_reward: jax.Array  # [...], what contexts and reported returns see (sparse where so)
    next_obs: jax.Array  # [..., obs_dim]
    terminal: jax.Array  # [...], 1.0 where a backbone must not bootstrap


class MetaBatch(NamedTuple):
    """One training batch; `rl` and `context` are drawn independently."""

    rl: Transition  # leaves [T, B, ...]
    context: Transition  # leaves [T, C, ...]
    task_id: jax.Array  # [T] int32, index among the training tasks
    z_key: jax.Array | None = None  # the key that z was drawn with: `encode` draws the same again


class Cond(NamedTuple):
    """What conditions a backbone: z of the observations and z of the next observations.

    G groups of equally many consecutive rows share a z: G = T, one z a task, or one a row. A
    representation whose z stays within an episode gives the same array twice.
    """

    now: jax.Array  # [K, G, Z]
    next: jax.Array  # [K, G, Z]


class Statistics(NamedTuple):
    """Mean and standard deviation over all rows of the training tasks, as a learner sees them."""

    obs_mean: Any  # numpy [obs_dim]
    obs_std: Any  # numpy [obs_dim]
    reward_mean: float
    reward_std: float


class Spec(NamedTuple):
    """What an algorithm and a backbone need to know of the task family and its training data."""

    obs_dim: int
    action_dim: int
    num_train_tasks: int
    rows_per_task: int  # rows of the smallest training task's dataset
    horizon: int
    init: str = "rlkit"  # initialisation of hidden layers, see `networks.mlp`
    precision: str = "float32"  # of matrix products in networks, see `networks.mlp`
    max_rows_per_task: int = 0  # rows of the largest training task's dataset
    statistics: Statistics | None = None  # `assembly.check`: mean 0, std 1 before there are data


class Traits(NamedTuple):
    """What sets a representation apart. Contract tests test what is declared, or its opposite."""

    critic_gradient: bool = False  # `update` reads dz: the critics shape the representation
    learned_prior: bool = False  # z before any transition is not 0
    unbounded_z: bool = False  # z may leave [-1, 1]
    no_context: bool = False  # z does not depend on the context


class Representation(NamedTuple):
    """Everything about context. Owns its networks, optimisers, codebooks and ensembles."""

    init: Callable  # (hp, key, data) -> State; `data` as in `update`
    context: Callable  # (State, data, task_id [T], key) -> Transition [T, C, ...]
    update: Callable  # (State, hp, MetaBatch, dz [G, Z], data, key, index) -> (State, Metrics)
    #                    `data` lists the training tasks first; task ids index them
    prior: Callable  # (State) -> Belief before any transition was seen
    extend: Callable  # (State, Belief, Transition [C, ...], mask [C]) -> Belief
    sample: Callable  # (State, Belief, key) -> z [Z]
    describe: Callable  # (State, z [Z]) -> {name: scalar}: what figures show, e.g. the code of z
    encode: Callable | None = None  # (State, Transition [T, C, ...], task_id [T], key) -> z [T, Z];
    #                    None: `prior`, `extend`, `sample` of each task. Computed as `update`
    #                    computes it, one pass of the compiled step serves both. An id of
    #                    `num_train_tasks` or more is a task that was not trained on
    condition: Callable | None = None  # (State, data, task_id [T], index [K, T, B], key) -> Cond of
    #                    the rows `index` of the data, a z per row; None: `encode`, a z per task
    observe: Callable | None = None  # (State, Belief, Transition of one step) -> Belief: z moves
    #                    within an episode; None: it stays until `extend`
    predict_reward: Callable | None = None  # (State, z [Z], Transition [N, ...]) -> reward [N]
    ordered_context: bool = False  # test contexts are whole episodes in time order, not rows
    traits: Traits = Traits()


class Backbone(NamedTuple):
    """An RL learner that sees no tasks: z is only a conditioning vector."""

    num_batches: int  # K, independent RL batches that one update consumes
    init: Callable  # (hp, key) -> State
    update: Callable  # (State, hp, Transition [K, N, ...], Cond, key, index)
    #                    -> (State, dz [G, Z], Metrics); z[i] conditions the i-th of G equal
    #                    groups of consecutive rows, as `networks.Network` takes it; dz is the
    #                    gradient of the critics' loss on the first batch in its `now`
    act: Callable  # (State, obs, z, key) -> action, sampled
    mode: Callable  # (State, obs, z) -> action, deterministic
    target_mode: Callable  # (State, obs, z) -> action of the target policy (else `mode`)


class Stage(NamedTuple):
    """A stretch of training steps that share one compiled program.

    `index` is the step within the stage and has no run axis, so `lax.cond` on it stays a branch
    under `vmap`: that is how periodic work (relabelling, K-means) enters a step.
    """

    name: str
    num_steps: int
    step: Callable  # (AgentState, data, key, index) -> (AgentState, Metrics)
    evaluate: bool = True  # False: pretraining, after which there is no policy to evaluate
    shown: tuple = ()  # the metrics that say most while it runs; () = the first two


class Algorithm(NamedTuple):
    """What `sweep` trains: an initial state, stages in time, and the bundles a protocol calls."""

    init: Callable  # (hp, key, data) -> AgentState with every stage's state
    stages: tuple
    rep: Representation
    rl: Backbone


@struct.dataclass
class AgentState:
    """One run's whole state. Targets are bare parameters; only trained networks own moments."""

    rep: State
    rl: State
    hp: HyperParams


class Env(NamedTuple):
    """A task family. A task is an explicit pytree argument; leaves of `tasks` begin with [task]."""

    name: str
    suite: str
    obs_dim: int
    action_dim: int
    horizon: int  # steps after which every episode ends
    ends_early: bool  # False: `terminal` is always 0
    tasks: Any  # numpy leaves [num_tasks, ...]
    train_ids: Any  # numpy [num_train]
    test_ids: Any  # numpy [num_test]
    reset: Callable  # (task, key) -> (EnvState, obs)
    step: Callable  # (task, EnvState, action in [-1, 1]) -> (EnvState, Step)
    parameters: Any  # numpy [num_tasks, P], for colouring figures
    parameter_names: tuple  # P names
    landmarks: Any = None  # numpy [num_tasks, 2], goals in the plane of obs[:2], where there are
    optimal_return: Callable | None = None  # (num_samples) -> [num_tasks], where it is known
    system: Any = None  # the physics.System behind it, where there is one
    context_reward: Callable | None = None  # (dense reward) -> Step.context_reward; None: equal
    relabel: Callable | None = (
        None  # (task, Transition [...]) -> dense reward [...] of these rows in
    )
    #                    `task`; None where a row does not hold what the reward depends on


class Step(NamedTuple):
    """What one environment step returns."""

    obs: jax.Array  # [obs_dim]
    reward: jax.Array  # scalar
    context_reward: jax.Array  # scalar
    terminal: jax.Array  # scalar, 1.0 on a true end (a fall), never on the time limit


class Outcome(NamedTuple):
    """Scored episodes. Programs that only read `returns` pay nothing for the rest."""

    returns: jax.Array  # [E], undiscounted
    rows: Transition  # leaves [E, H, ...]
    mask: jax.Array  # [E, H], 0 after an early end


class Offline(NamedTuple):
    """Stored data that a protocol may read: views, nothing is copied."""

    own: Any  # the Dataset of the tested task alone
    train: Any  # the Dataset of the training tasks


class Protocol(NamedTuple):
    """How a trained agent meets a task, and which number is reported."""

    run: Callable  # (Algorithm, AgentState, Env, task, Offline, key) -> Outcome
    metrics: dict  # name -> function of returns [..., E] -> [...]; the first one is native
    num_episodes: int  # E
