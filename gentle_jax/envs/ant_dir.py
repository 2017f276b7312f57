"""Ant-Dir: run along a given angle; r = v . direction - 0.5 |a|^2 + 1.

No relabelling: the velocity is a mean over the step, and rows do not hold the position.

The episode ends when the torso leaves the heights [0.2, 1.0]. Suite `gentle` (20 angles U(0, 2 pi),
first and last 10): docs/methods/environments.md, "Ant-Dir".
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gentle_jax.envs import ant, base, locomotion
from gentle_jax.physics import MODES
from gentle_jax.types import Env, HostArray, TaskLeaf, TaskRules

PHYSICS = MODES
SETTINGS = {"gentle": {**locomotion.GENTLE, "behaviour.episodes_per_level": 50}}
# six directions left gaps: FOCAL had 0.59 on test tasks, with ten 0.87 (docs/learning.md)
TEN_DIRECTIONS = {"env.num_train": 10, "train.meta_batch": 10}
PRESETS = locomotion.PRESETS | {"quick": locomotion.QUICK | TEN_DIRECTIONS}
ANGLE_SEED = 1337
HEIGHTS = (0.2, 1.0)


def angles_of(direction: Float[HostArray, "num_tasks 2"]) -> Float[HostArray, "num_tasks 1"]:
    """Returns angles in [0, 2 pi), rad."""
    angle = np.arctan2(direction[:, 1], direction[:, 0]) % (2.0 * np.pi)
    return angle[:, None].astype(np.float32)


def make(
    suite: str,
    mode: str = "reference",
    settings: base.EnvConfig = base.EnvConfig(),  # noqa: B008 frozen
) -> Env:
    """Returns the Env of `suite`. Args: mode, of PHYSICS; settings, an EnvConfig."""
    angles = locomotion.legacy(ANGLE_SEED, 0.0, 2.0 * np.pi, 20)
    tasks = {"direction": np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)}
    system = ant.load(mode, settings)

    def judge(task, before, after, action):
        velocity = (after.torso - before.torso)[:2] / system.dt
        reward = (velocity * task["direction"]).sum() - ant.cost(after, action, 0.5) + 1.0
        low, high = HEIGHTS
        return reward, (after.qpos[2] < low) | (after.qpos[2] > high)

    return locomotion.make(
        "ant_dir",
        suite,
        system,
        tasks,
        base.first_last_split(10, 10, 20),
        lambda state: jnp.concatenate([state.qpos[2:], state.qvel]),
        judge,
        ant.NOISE,
        rules=TaskRules(
            {"direction": TaskLeaf(unit=True)},
            lambda tasks: {"parameters": angles_of(tasks["direction"])},
        ),
        hidden=2,
        parameter_names=("angle (rad)",),
    )
