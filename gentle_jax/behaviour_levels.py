"""Which numbers of a behaviour agent fit together: steps, levels, copies, updates, replay rows."""

from typing import Any

from gentle_jax import errors


def check_levels(behaviour: Any) -> None:
    """Raises UserError for what no agent could be trained with. Args: a BehaviourConfig."""
    last = behaviour.first_level + (behaviour.num_levels - 1) * behaviour.level_every
    if last > behaviour.num_steps or behaviour.first_level < 1 or behaviour.level_every < 1:
        raise errors.UserError(
            f"behaviour levels end at step {last}, training at {behaviour.num_steps}: expected "
            f"levels within 1..num_steps; lower behaviour.num_levels or raise behaviour.num_steps"
        )
    copies = behaviour.num_envs
    for name in ("num_steps", "seed_steps", "first_level", "level_every"):
        value = getattr(behaviour, name)
        if value % copies:
            raise errors.UserError(
                f"behaviour.{name} is {value}: expected a multiple of behaviour.num_envs, which "
                f"is {copies} (all copies step at once); take {value - value % copies + copies}"
            )
    updates = copies * behaviour.updates_per_step
    if updates < 1 or updates != round(updates):
        raise errors.UserError(
            f"behaviour.num_envs x behaviour.updates_per_step is {updates:g}: expected a whole "
            f"number of updates after every step of all copies, at least 1"
        )
    rows = behaviour.replay_rows
    if rows and (rows % copies or rows < behaviour.batch_size):
        raise errors.UserError(
            f"behaviour.replay_rows is {rows}: expected 0 (all steps) or a multiple of num_envs "
            f"({copies}) of at least batch_size ({behaviour.batch_size})"
        )
