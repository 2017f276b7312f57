"""Ant-Goal: walk to a goal on a circle of radius 2; r = -|xy - goal|_1 - 0.1 |a|^2.

Rows hold the position, so they can be relabelled: exactly with Euler (`fast`), to some 3e-3 with
RK4 (`locomotion.torso_lag`); not with contact costs, which are not in a row.

Episodes never end early. Suites `ctmrl` and `ctmrl_b` (40 goals, 30/10). Source:
docs/methods/environments.md, "Ant-Goal".
"""

import jax.numpy as jnp
import numpy as np

from gentle_jax.envs import ant, base, locomotion
from gentle_jax.physics import MODES
from gentle_jax.types import Env, TaskLeaf, TaskRules

PHYSICS = MODES
OFFERS = ("relabel",)
SHARED = {
    **locomotion.CTMRL,
    **locomotion.LATE,
    "train.num_steps": 210_000,
    "train.meta_batch": 10,
    "train.context_size": 512,
    "eval.online_steps": 800,
    "eval.scored_steps": 800,
}
SETTINGS = {"ctmrl": SHARED, "ctmrl_b": SHARED}
# The first level is the end of the random phase, as the contexts that tests begin with
RANDOM_FIRST = {"behaviour.first_level": 3_200, "behaviour.level_every": 23_360}
PRESETS = locomotion.LONG_PRESETS | {"quick": locomotion.QUICK | RANDOM_FIRST}
BACKBONES = locomotion.BACKBONES
RADIUS = 2.0


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""
    angles = np.linspace(0.0, 2.0 * np.pi, 41)[:-1]
    goals = (RADIUS * np.stack([np.cos(angles), np.sin(angles)], -1)).astype(np.float32)
    system = ant.load(mode, settings)

    def judge(task, before, after, action):
        del before
        distance = jnp.abs(after.torso[:2] - task["goal"]).sum()
        return -distance - ant.cost(after, action, 0.1), None

    num_positions = system.c_model.nq

    def relabel(task, rows):
        position, velocity = (rows.next_obs[..., i : i + 2] for i in (0, num_positions))
        torso = position - locomotion.torso_lag(system) * velocity
        distance = jnp.abs(torso - task["goal"]).sum(-1)
        return -distance - ant.control_cost(rows.action, 0.1)

    return locomotion.make(
        "ant_goal",
        suite,
        system,
        {"goal": goals},
        base.interpolation_split(30, 10),
        lambda state: jnp.concatenate([state.qpos, state.qvel]),
        judge,
        ant.NOISE,
        rules=TaskRules(
            {"goal": TaskLeaf(-100.0, 100.0)},
            lambda tasks: {"parameters": tasks["goal"], "landmarks": tasks["goal"]},
        ),
        hidden=0,
        parameter_names=("goal x", "goal y"),
        relabel=None if settings.contact_cost else relabel,
    )
