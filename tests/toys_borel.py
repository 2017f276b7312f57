"""BOReL in small, and the same by NumPy with plain loops, written apart from the package."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from gentle_jax.algorithms.borel import vae as vae_lib
from gentle_jax.algorithms.borel.settings import Config
from gentle_jax.types import Spec, Transition

OBS, ACTION, LATENT = 2, 1, 2
SMALL = Config(
    width=5, obs_features=3, action_features=2, reward_features=2, decoder_width=4,
    decode_state=True, posteriors_at_once=100,
)  # fmt: skip
HP = {"kl_weight": 0.05, "state_weight": 2.0}


def small(**fields):
    """Returns a small Vae with other fields of its Config."""
    spec = Spec(OBS, ACTION, 3, 20, 4, init="he")
    return vae_lib.Vae.of(dataclasses.replace(SMALL, **fields), 2 * LATENT, spec)


def parameters(vae, seed=0):
    """Random parameters, biases too."""
    params = jax.jit(lambda key: vae_lib.init(vae, key))(jax.random.key(0))
    random = np.random.default_rng(seed)
    shake = lambda x: jnp.asarray(x + 0.3 * random.normal(size=x.shape), jnp.float32)
    return jax.tree.map(shake, params)


def random_rows(*lead, seed=0):
    """A Transition of normal numbers, leaves [*lead, ...]."""
    random = np.random.default_rng(seed)
    draw = lambda *more: jnp.asarray(random.normal(size=(*lead, *more)), jnp.float32)
    return Transition(draw(OBS), draw(ACTION), draw(), draw(), draw(OBS), jnp.zeros(lead))


# --- the same by loops


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer, x):
    return np.asarray(x, float) @ np.asarray(layer["kernel"], float) + np.asarray(layer["bias"])


def gru_by_hand(params, hidden, x):
    """One step, a gate at a time, from the six matrices."""
    width = len(hidden)
    weight = lambda name, i: np.asarray(params[name]["kernel"], float)[:, i * width :][:, :width]
    bias = lambda name, i: np.asarray(params[name]["bias"], float)[i * width :][:width]
    of_x = lambda i: x @ weight("input", i) + bias("input", i)
    of_h = lambda i: hidden @ weight("hidden", i) + bias("hidden", i)
    reset, update = sigmoid(of_x(0) + of_h(0)), sigmoid(of_x(1) + of_h(1))
    candidate = np.tanh(of_x(2) + reset * of_h(2))
    return (1 - update) * candidate + update * hidden


def relu(x):
    return np.maximum(x, 0)


def beliefs_by_hand(params, rows, mask):
    """[(mean, log variance)] before the first real row of one sequence and after each."""
    own = params["encoder"]
    hidden = np.zeros(len(own["mean"]["kernel"]))
    found = [hidden]
    for k in np.flatnonzero(mask):
        parts = [("action", rows.action[k]), ("obs", rows.next_obs[k])]
        parts.append(("reward", rows.context_reward[k][None]))
        x = np.concatenate([relu(linear(own[name], value)) for name, value in parts])
        hidden = gru_by_hand(own["gru"], hidden, x)
        found.append(hidden)
    return [(linear(own["mean"], h), linear(own["log_variance"], h)) for h in found]


def decoder_by_hand(own, z, observations, action):
    parts = [relu(linear(own["obs"], x)) for x in observations]
    parts.insert(len(parts) - 1, relu(linear(own["action"], action)))
    x = relu(linear(own["first"], np.concatenate([z, *parts])))
    for name in sorted(name for name in own if name.startswith("hidden")):
        x = relu(linear(own[name], x))
    return linear(own["out"], x)


def bound_by_hand(params, rows, mask, noise, kl_weight, state_weight):
    """The mean over sequences, a pair of a posterior and a row at a time."""
    total = 0.0
    for n in range(len(mask)):
        one = jax.tree.map(lambda x, n=n: np.asarray(x[n], float), rows)
        real = np.flatnonzero(mask[n])
        beliefs = beliefs_by_hand(params, one, mask[n])
        slots = [0, *(real + 1)]  # the noise of the posterior after a row
        before = np.zeros(LATENT), np.zeros(LATENT)
        for (mean, log_variance), slot in zip(beliefs, slots, strict=True):
            for i in range(LATENT):
                v, w = np.exp(log_variance[i]), np.exp(before[1][i])
                gap = mean[i] - before[0][i]
                total += kl_weight * 0.5 * (np.log(w / v) + (v + gap**2) / w - 1)
            before = mean, log_variance
            z = mean + np.exp(log_variance / 2) * noise[n, slot]
            for k in real:
                s, a, after = one.obs[k], one.action[k], one.next_obs[k]
                guess = decoder_by_hand(params["reward"], z, [after, s], a)[0]
                total += (guess - one.context_reward[k]) ** 2 / len(real)
                if "state" in params:
                    guess = decoder_by_hand(params["state"], z, [s], a)
                    error = ((guess - (after - s)) ** 2).mean()
                    total += state_weight * error / len(real)
    return total / len(mask)


def same(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)
