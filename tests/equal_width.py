"""Bit-equality at equal width with all of XLA's optimisations: two runs on each of four simulated
devices against two on each of two. See test_sweep.py, which has one device against two.

    python -m tests.equal_width
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from gentle_jax import sweep
from tests import conftest

NUM_STEPS = 6
LIGHT = {
    "train.num_steps": 12,
    "ctmrl.num_iterations": 4,
    "algo.use_cross_prediction": False,
    "algo.use_contrast": False,
}


def trained(made, num_devices):
    """Returns the leaves of state and metrics of 2 * num_devices runs after some steps."""
    mesh = jax.make_mesh(
        (num_devices,), ("runs",), axis_types=(AxisType.Auto,), devices=jax.devices()[:num_devices]
    )
    count = 2 * num_devices
    hp = jax.tree.map(lambda x: np.resize(np.asarray(x), (count,)), made.hp)
    hp = sweep.place(hp, mesh)
    keys = sweep.place(jax.vmap(jax.random.key)(jnp.arange(count)), mesh)
    data = sweep.place_data(made.train, mesh)
    init = lambda *args: sweep.init_runs(made.algorithm, *args, mesh)
    state = jax.jit(init)(hp, keys, data)
    chunk = jax.jit(sweep.over_runs(sweep.make_chunk(made.algorithm.stages[1]), 2, mesh, False))
    found = chunk(state, keys, data, jnp.int32(0), jnp.int32(NUM_STEPS))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def main():
    """Compares."""
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_disable_most_optimizations", False)
    made = conftest.make_tiny("ctmrl", backbone="td3_bc", **LIGHT)
    pairs = zip(trained(made, 4), trained(made, 2), strict=True)
    print("equal" if all(a[: len(b)].tobytes() == b.tobytes() for a, b in pairs) else "different")


if __name__ == "__main__":
    main()
