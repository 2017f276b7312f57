"""The contracts: bundles of pure functions, and the pytrees that they pass to each other.

Axes: S runs, T tasks, B transitions, C context transitions, H horizon, E episodes, Z latent, K
batches, G groups of rows that share a z. An algorithm is Representation x Backbone; a protocol
calls both; a Stage is a stretch of training. Functions here see one run: `gentle_jax.sweep` maps
them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

State = PyTree  # of a representation or a backbone, of one run
Belief = PyTree  # what is known of a task so far
Task = PyTree  # one task of a family
EnvState = PyTree
Dataset = PyTree  # `data.Dataset`
Metrics = dict  # name -> scalar
HyperParams = dict  # section -> {name: scalar float}; leaves, so sweeping them never recompiles
Section = dict  # one section of them: {name: scalar float}
RandomKey = Key[Array, ""]
Scalar = float | Float[Array, ""]
Index = int | Int[Array, ""] | Int[np.ndarray, ""]  # a step; it has no run axis
HostArray = np.ndarray


def pytree(cls: type) -> type:
    """Returns `flax.struct.dataclass(cls)`, whose fields no type checker looks at.

    JAX puts shapes, partition specs and None where arrays are annotated.
    """
    dataclass = struct.dataclass(cls)
    dataclass.__no_type_check__ = True
    return dataclass


class Transition(NamedTuple):
    """One environment step, or many: every leaf has the same leading axes."""

    obs: Float[Array, "*rows obs"]
    action: Float[Array, "*rows action"]  # in [-1, 1]
    reward: Float[Array, " *rows"]  # dense: what a backbone learns from
    context_reward: Float[Array, " *rows"]  # what contexts and returns see (sparse where so)
    next_obs: Float[Array, "*rows obs"]
    terminal: Float[Array, " *rows"]  # 1.0 where a backbone must not bootstrap


class MetaBatch(NamedTuple):
    """One training batch; `rl` and `context` are drawn independently."""

    rl: Transition  # leaves [T, B, ...]
    context: Transition  # leaves [T, C, ...]
    task_id: Int[Array, " T"]  # index among the training tasks
    z_key: RandomKey | None = None  # the key that z was drawn with: `encode` draws the same again


class Cond(NamedTuple):
    """What conditions a backbone: z of the observations and z of the next observations.

    G groups of equally many consecutive rows share a z: G = T, one z a task, or one a row. A
    representation whose z stays within an episode gives the same array twice.
    """

    now: Float[Array, "K G Z"]
    next: Float[Array, "K G Z"]


class Statistics(NamedTuple):
    """Mean and standard deviation over all rows of the training tasks, as a learner sees them."""

    obs_mean: Float[HostArray, " obs"]
    obs_std: Float[HostArray, " obs"]
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


# The functions of a representation.
InitRep = Callable[[Section, RandomKey, Dataset], State]
DrawContext = Callable[[State, Dataset, Int[Array, " T"], RandomKey], Transition]
UpdateRep = Callable[
    [State, Section, MetaBatch, Float[Array, "G Z"], Dataset, RandomKey, Index],
    tuple[State, Metrics],
]
Extend = Callable[[State, Belief, Transition, Float[Array, " C"]], Belief]
SampleZ = Callable[[State, Belief, RandomKey], Float[Array, " Z"]]
Describe = Callable[[State, Float[Array, " Z"]], dict]
Encode = Callable[[State, Transition, Int[Array, " T"], RandomKey], Float[Array, "T Z"]]
Condition = Callable[[State, Dataset, Int[Array, " T"], Int[Array, "K T B"], RandomKey], Cond]
Observe = Callable[[State, Belief, Transition], Belief]
# Dense rewards of rows, or those that contexts see: `Representation.predicts_context_reward`.
PredictReward = Callable[[State, Float[Array, " Z"], Transition], Float[Array, " N"]]


class Representation(NamedTuple):
    """Everything about context. Owns its networks, optimisers, codebooks and ensembles."""

    init: InitRep  # (hp, key, data); data lists the training tasks first, task ids index them
    context: DrawContext  # -> leaves [T, C, ...]
    update: UpdateRep  # (state, hp, batch, dz, data, key, index)
    prior: Callable[[State], Belief]  # before any transition was seen
    extend: Extend  # (state, belief, leaves [C, ...], mask [C])
    sample: SampleZ
    describe: Describe  # (state, z) -> {name: scalar}: what figures show, e.g. the code of z
    # z of whole contexts [T, C, ...]; None: `prior`, `extend`, `sample` of each task. Computed as
    # `update` computes it, one pass of the compiled step serves both. An id of `num_train_tasks` or
    # more is a task that was not trained on.
    encode: Encode | None = None
    # z of the rows `index` of the data, in their order (G = T * B), and of the rows after them;
    # None: `encode`, a z per task.
    condition: Condition | None = None
    # The belief after one step: z moves within an episode; None: it stays until `extend`.
    observe: Observe | None = None
    predict_reward: PredictReward | None = None  # of rows [N, ...] in the task that z stands for
    # Whether `predict_reward` learned from `context_reward` (sparse where so), not from `reward`.
    # `protocols.base.predicted_kind` brings both to what they are compared with.
    predicts_context_reward: bool = False
    # How far models of the task that z stands for disagree about rows [N, ...]; 0 or more.
    uncertainty: PredictReward | None = None
    ordered_context: bool = False  # test contexts are whole episodes in time order, not rows
    traits: Traits = Traits()


# The functions of a backbone.
UpdateRL = Callable[
    [State, Section, Transition, Cond, RandomKey, Index],
    tuple[State, Float[Array, "G Z"], Metrics],
]
Act = Callable[[State, Float[Array, "*rows obs"], Float[Array, "... Z"], RandomKey], Array]
Mode = Callable[[State, Float[Array, "*rows obs"], Float[Array, "... Z"]], Array]


class Backbone(NamedTuple):
    """An RL learner that sees no tasks: z is only a conditioning vector."""

    num_batches: int  # K, independent RL batches that one update consumes
    init: Callable[[Section, RandomKey], State]  # (hp, key)
    # (state, hp, rows [K, N, ...], cond, key, index) -> (state, dz, metrics); z[i] conditions the
    # i-th of G equal groups of consecutive rows, as `networks.Network` takes it; dz is the gradient
    # of the critics' loss on the first batch in its `now`.
    update: UpdateRL
    act: Act  # -> action, sampled
    mode: Mode  # -> action, deterministic
    target_mode: Mode  # -> action of the target policy (else `mode`)


@pytree
class AgentState:
    """One run's whole state. Targets are bare parameters; what is trained owns its moments."""

    rep: State
    rl: State
    hp: HyperParams


Advance = Callable[[AgentState, Dataset, RandomKey, Index], tuple[AgentState, Metrics]]


class Stage(NamedTuple):
    """A stretch of training steps that share one compiled program.

    `index` is the step within the stage and has no run axis, so `lax.cond` on it stays a branch
    under `vmap`: that is how periodic work (relabelling, K-means) enters a step.
    """

    name: str
    num_steps: int
    step: Advance  # (state, data, key, index) -> (state, metrics)
    evaluate: bool = True  # False: pretraining, after which there is no policy to evaluate
    shown: tuple = ()  # the metrics that say most while it runs; () = the first two


class Algorithm(NamedTuple):
    """What `sweep` trains: an initial state, stages in time, and the bundles a protocol calls."""

    init: Callable[[HyperParams, RandomKey, Dataset], AgentState]  # every stage's state
    stages: tuple[Stage, ...]
    rep: Representation
    rl: Backbone


class Step(NamedTuple):
    """What one environment step returns."""

    obs: Float[Array, " obs"]
    reward: Float[Array, ""]
    context_reward: Float[Array, ""]
    terminal: Float[Array, ""]  # 1.0 on a true end (a fall), never on the time limit


Action = Float[Array, " action"]
ResetEnv = Callable[[Task, RandomKey], tuple[EnvState, Float[Array, " obs"]]]
StepEnv = Callable[[Task, EnvState, Action], tuple[EnvState, Step]]
Relabel = Callable[[Task, Transition], Float[Array, " *rows"]]
Replay = Callable[[Task, Transition, Transition], Step]


class TaskLeaf(NamedTuple):
    """Which numbers a leaf of a task may hold."""

    low: float = -math.inf
    high: float = math.inf
    unit: bool = False  # a vector of length 1


class TaskRules(NamedTuple):
    """How a family takes tasks that are not its suite's."""

    leaves: dict  # name -> TaskLeaf; leaves that it does not name are the same in every task
    shown: Callable  # (leaves of all tasks) -> {field of Env: what follows from them}
    fit: Callable | None = None  # rows [N, ...] of a task -> {leaf: what they say of it}


class Env(NamedTuple):
    """A task family. A task is an explicit pytree argument; leaves of `tasks` begin with [task]."""

    name: str
    suite: str
    obs_dim: int
    action_dim: int
    horizon: int  # steps after which every episode ends
    ends_early: bool  # False: `terminal` is always 0
    tasks: Task  # leaves [num_tasks, ...]
    train_ids: Int[HostArray, " num_train"]
    test_ids: Int[HostArray, " num_test"]
    reset: ResetEnv
    step: StepEnv  # actions in [-1, 1]
    parameters: Float[HostArray, "num_tasks P"]  # for colouring figures
    parameter_names: tuple  # P names
    landmarks: Float[HostArray, "num_tasks 2"] | None = None  # goals in the plane of obs[:2]
    optimal_return: Callable | None = None  # (num_samples, horizon) -> [num_tasks]; None: unknown
    max_reward: float | None = None  # no dense reward is above it; None: unknown
    system: Any = None  # the physics.System behind it, where there is one
    context_reward: Callable | None = None  # dense reward -> Step.context_reward; None: equal
    # The dense reward of stored rows in `task`; None where a row does not hold what it depends on.
    relabel: Relabel | None = None
    task_rules: TaskRules | None = None  # None: the suite's tasks are the only ones
    # (task, before, rows) -> Step: what `step` makes of stored rows [N, ...], on the host and
    # without compiling it. `before` [N, K, ...] are the K rows before each, NaN where there is
    # none; results are NaN where rows do not say where the last one begins. None: rows say too
    # little of the state.
    replay: Replay | None = None


class Cost(NamedTuple):
    """What was spent in the tested task before each scored episode, earlier scored ones included.

    Stored data that a protocol is given cost nothing.
    """

    steps: Float[Array, " *E"] | float = 0.0  # environment steps
    episodes: Float[Array, " *E"] | float = 0.0  # episodes that were begun
    queries: Float[Array, " *E"] | float = 0.0  # answers of an oracle


class Outcome(NamedTuple):
    """Scored episodes. Programs that only read `returns` pay nothing for the rest.

    Where episodes end early, how many there are depends on their lengths: the last slot is the last
    episode, NaN between is no episode, and `rows` and `mask` are of the last one only, E = 1.
    """

    returns: Float[Array, " *E"]  # undiscounted
    rows: Transition  # leaves [E, H, ...]
    mask: Float[Array, "*E H"]  # 0 after an early end
    cost: Cost = Cost()


class Scores(NamedTuple):
    """What an evaluation keeps of a protocol's outcomes."""

    returns: Float[Array, "*task E"]
    cost: Cost  # leaves as `returns`
    shown: Any = None  # for figures: (path [*task, H + 1, obs], mask [*task, H]) of one episode


class Offline(NamedTuple):
    """Stored data that a protocol may read: views, nothing is copied."""

    own: Dataset  # of the tested task alone
    train: Dataset  # of the training tasks


RunProtocol = Callable[[Algorithm, AgentState, Env, Task, Offline, RandomKey], Outcome]


class Protocol(NamedTuple):
    """How a trained agent meets a task, and which number is reported."""

    run: RunProtocol
    metrics: dict  # name -> function of returns [..., E] -> [...]; the first one is native
    num_episodes: int  # E
    needs: tuple = ()  # what these settings ask for beside the module's NEEDS, see `needs`
