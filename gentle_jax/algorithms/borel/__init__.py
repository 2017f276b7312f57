"""BOReL: a recurrent belief that moves at every environment step (NeurIPS'21).

Source: docs/methods/borel.md.

    vae:     for each step, some sequences of `num_episodes` episodes of some tasks:
                 belief_t = (mean, log variance) of GRU(a, s', r) after t rows, t = 0..T
                 descend  sum_t mean_k (r_k - decoder(z_t, s_k, a_k, s'_k))^2   z_t ~ belief_t
                          + kl_weight * sum_t KL(belief_t | belief_t-1)        N(0, I) before t = 0
    beliefs: the belief before and after every row of every training task
    train:   step of the backbone, z = (mean, log variance) of each row; the encoder is frozen

Both fidelities are the same. Deviations, with reasons: no relabelled rewards, which take an oracle
(GENTLE's paper runs BOReL so); episodes of a sequence are drawn, and no flag tells their border;
for Hopper and Walker a second decoder, of s' - s, as rewards say little of dynamics.
"""

from gentle_jax.algorithms.borel.method import make
from gentle_jax.algorithms.borel.settings import OFFERS, PRESETS, PROTOCOL, SETTINGS, Config

__all__ = ["OFFERS", "PRESETS", "PROTOCOL", "SETTINGS", "Config", "make"]
