"""BOReL's constants: the config, published settings, sizes of presets."""

import dataclasses

from gentle_jax.config import from_zero

PROTOCOL = "online"  # from the prior, the belief goes on over all episodes
OFFERS = ("predict_reward",)
PASSES = 100  # over as many episodes of H rows as the smallest task has, if `vae_steps` is 0


@dataclasses.dataclass(frozen=True)
class Config:
    """Constants of docs/methods/borel.md; floats are leaves of `hp`."""

    width: int = 128  # of the GRU
    obs_features: int = 32  # embeddings, of encoder and decoders
    action_features: int = 16
    reward_features: int = 16
    decoder_width: int = 32
    decoder_depth: int = 2
    decode_state: bool = False  # a second decoder, of s' - s
    num_episodes: int = 2  # of a sequence: the belief goes on from one to the next
    vae_tasks: int = 4  # of a step of the stage `vae`
    vae_sequences: int = 8  # of each of them
    vae_steps: int = from_zero(0)  # 0: PASSES over the training tasks' episodes
    posteriors: int = from_zero(0)  # of a sequence that explain it in a step, drawn anew; 0: all
    posteriors_at_once: int = 16  # that rewards are decoded from: memory grows with it
    kl_weight: float = 0.05
    state_weight: float = 1.0
    lr: float = 3e-4  # of the stage `vae`


_LATENT = {"train.latent_dim": 10}  # means and log variances of 5 numbers
_TASKS = {"train.meta_batch": 16, "train.task_draw": "replace"}
_PLANE = ("point_robot", "point_robot_wind", "sparse_point_robot")
_PARAMS = ("hopper_params", "walker_params")
_CTMRL = (*_PLANE, "cheetah_vel", "ant_goal", *_PARAMS)
_GENTLE = ("point_robot", "cheetah_vel", "cheetah_dir", "ant_dir", *_PARAMS)
_OF_ENV = {"sparse_point_robot": {"algo.vae_tasks": 8}}
_OF_ENV |= {env: {"algo.decode_state": True} for env in _PARAMS}
SETTINGS = {
    (suite, env): _LATENT | _TASKS | _OF_ENV.get(env, {})
    for suite, envs in (("ctmrl", _CTMRL), ("ctmrl_b", _CTMRL), ("gentle", _GENTLE))
    for env in envs
}
PRESETS = {
    "quick": {
        **_LATENT,
        "train.context_draw": "episodes",
        "train.task_draw": "distinct",
        "algo.lr": 3e-3,
        "algo.vae_steps": 3_000,
        "algo.posteriors": 50,  # all of Point-Robot's; of 401 elsewhere they take most of a step
    },
    "smoke": {
        **_LATENT,
        "algo.vae_steps": 10,
        "algo.vae_tasks": 2,
        "algo.vae_sequences": 2,
        "algo.decoder_width": 8,
        "algo.obs_features": 8,
        "algo.action_features": 8,
        "algo.reward_features": 8,
    },
}
