"""Multitask: one policy for all tasks, without a context: a floor to compare with.

    z = 0, of width 1; no representation, no loss of one
    backbone on rows of all training tasks

With `--config.env.reveal_task=True` observations end with the task's parameters, and the same agent
is the oracle that knows its task: a ceiling. docs/methods/protocols.md, "Reference agents".
"""

import dataclasses

import jax.numpy as jnp

from gentle_jax import data as data_lib
from gentle_jax import learner
from gentle_jax.config import TrainConfig
from gentle_jax.types import Algorithm, Backbone, Representation, Spec, Traits

PROTOCOL = "online"
Z_DIM = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """It has no settings."""


def z_dim(config: Config, train: TrainConfig) -> int:
    """Returns the backbone's Z."""
    del config, train
    return Z_DIM


def make(config: Config, train: TrainConfig, spec: Spec, rl: Backbone) -> Algorithm:
    """Returns the Algorithm."""
    del config
    rep = Representation(
        init=lambda hp, key, data: {},
        context=lambda state, data, task_id, key: data_lib.context_of(data, task_id, train, key),
        update=lambda state, *args: (state, {}),
        prior=lambda state: (),
        extend=lambda state, belief, rows, mask: belief,
        sample=lambda state, belief, key: jnp.zeros(Z_DIM),
        describe=lambda state, z: {},
        encode=lambda state, context, task_id, key: jnp.zeros((task_id.shape[0], Z_DIM)),
        traits=Traits(no_context=True),
    )
    return learner.joint(rep, rl, train, spec, shown=("q_loss",))
