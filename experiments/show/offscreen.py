"""Pictures by MuJoCo's own renderer, in a process of its own: `render` starts it, `main` is in it.

Which graphics library works is known only by trying, a failed try is noisy or fatal, and MuJoCo
chooses once, when it is imported. So each try is a new process, and its end tells.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import mujoco
import numpy as np

from ..cli.program import ROOT
from ..host import graphics

SIZE = (360, 480)  # height, width in pixels
LIMIT = 300  # seconds
CHOICES = ("egl", "osmesa") if sys.platform.startswith("linux") else ("",)  # "": the system's own


def draw(model, qpos, torso, view, make_renderer=mujoco.Renderer):
    """Returns pictures [frames, height, width, 3] uint8 of a model at positions [frames, nq].

    Args: torso, the body that the camera follows; view, (azimuth, elevation, distance).
    """
    camera = mujoco.MjvCamera()
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, torso
    camera.azimuth, camera.elevation, camera.distance = view
    data, pictures = mujoco.MjData(model), []
    renderer = make_renderer(model, *SIZE)
    try:
        for row in qpos:
            data.qpos[:] = row
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera)
            pictures.append(renderer.render().copy())
    finally:
        renderer.close()
    return np.stack(pictures)


def render(model, qpos, torso, view):
    """Returns (pictures as `draw`, "") or (None, why no graphics library could draw them)."""
    wanted = graphics.chosen()
    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        model_path, poses, pictures = (str(pathlib.Path(folder) / n) for n in ("m.mjb", "p", "o"))
        mujoco.mj_saveModel(model, model_path)
        np.savez(f"{poses}.npz", qpos=qpos, torso=torso, view=view)
        for library in (wanted,) if wanted else CHOICES:
            reason = _try(library, [model_path, f"{poses}.npz", f"{pictures}.npy"])
            if reason is None:
                return np.load(f"{pictures}.npy"), ""
            reasons.append(f"{library or 'default'}: {reason}")
    return None, "; ".join(reasons)


def _try(library, paths):
    """Returns None if a process that uses the library drew all pictures, else why not."""
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": python_path}
    if library:
        environment["MUJOCO_GL"] = library
    command = [sys.executable, "-m", f"{__package__}.offscreen", *paths]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {LIMIT} s"
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines() or [f"ended with code {ended.returncode}"]
    return lines[-1][:100]


def main(argv):
    """The process: reads a model and positions, writes pictures."""
    _, model_path, poses, pictures = argv
    model = mujoco.MjModel.from_binary_path(model_path)
    with np.load(poses) as given:
        drawn = draw(model, given["qpos"], int(given["torso"]), given["view"])
    np.save(pictures, drawn)


if __name__ == "__main__":
    main(sys.argv)
