"""What an episode looks like: capsules in space or a dot in the plane, and the HTML viewer of them.

A scene is a dict that `viewer.html` draws; it holds numbers and texts only, so the page needs no
network. Bodies are capsules, which all of the task families are made of: two ends and a radius.
"""

import json
import pathlib

import mujoco
import numpy as np

DIGITS = 4  # of numbers in the page: tenths of millimetres
POINT_DT = 0.1  # seconds shown per step where there is no physics
# as numbers: MuJoCo's enumeration is not equal to NumPy's integers, which `in` would ask
PLANE, HFIELD, SPHERE, CAPSULE, CYLINDER, MESH = (
    int(getattr(mujoco.mjtGeom, f"mjGEOM_{name}"))
    for name in ("PLANE", "HFIELD", "SPHERE", "CAPSULE", "CYLINDER", "MESH")
)


def capsule_of(model, geom):
    """Returns (radius, half length, axis 0-2) of a geom; other solids as a capsule about as big."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    if kind == SPHERE:
        return size[0], 0.0, 2
    if kind in (CAPSULE, CYLINDER):
        return size[0], size[1], 2
    if kind == MESH:
        return model.geom_rbound[geom], 0.0, 2
    radius = np.median(size)
    return radius, size.max() - radius, int(size.argmax())


def poses(model, qpos, torso):
    """Returns what a model's bodies look like at positions [frames, nq], a dict.

    "radius" [geom], "rgb" [geom, 3], "ends" [frames, geom, 2, 3] in the world, "torso" [frames, 3].
    Args: torso, the id of the body that the camera follows. Floors are left out.
    """
    kept = [i for i in range(model.ngeom) if model.geom_type[i] not in (PLANE, HFIELD)]
    shapes = [capsule_of(model, i) for i in kept]
    data, ends, centre = mujoco.MjData(model), [], []
    for row in qpos:
        data.qpos[:] = row
        mujoco.mj_kinematics(model, data)
        centre.append(data.xpos[torso].copy())
        frame = []
        for geom, (_, half, axis) in zip(kept, shapes, strict=True):
            along = half * data.geom_xmat[geom].reshape(3, 3)[:, axis]
            frame.append([data.geom_xpos[geom] - along, data.geom_xpos[geom] + along])
        ends.append(frame)
    return {
        "radius": np.array([radius for radius, *_ in shapes]),
        "rgb": np.array([model.geom_rgba[i, :3] for i in kept]),
        "ends": np.array(ends),
        "torso": np.array(centre),
    }


def camera_of(model, shown):
    """Returns {azimuth, elevation, distance}: from the side, from above if the root moves freely.

    Args: shown, from `poses`. Angles are those of MuJoCo's free camera, in degrees.
    """
    free = bool((model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)).any())
    reach = np.abs(shown["ends"][0] - shown["torso"][0]).max() + shown["radius"].max()
    return {
        "azimuth": 60.0 if free else 90.0,
        "elevation": -35.0 if free else -12.0,
        "distance": float(4.2 * reach),
    }


def of_bodies(shown, camera, dt):
    """Returns the scene of `poses` `shown`; the camera looks at the torso, but does not hop."""
    middle = shown["torso"].copy()
    middle[:, 2] = middle[:, 2].mean()
    return {
        "geoms": [
            {"radius": float(radius), "rgb": rgb.tolist()}
            for radius, rgb in zip(shown["radius"], shown["rgb"], strict=True)
        ],
        "frames": shown["ends"].reshape(len(middle), -1),
        "targets": middle,
        "path": shown["torso"][:, :2],
        "camera": camera,
        "cell": 1.0,
        "dt": float(dt),
    }


def of_plane(path, goal):
    """Returns the scene of a point that moves on a path [frames, 2]. Args: goal [2] or None."""
    points = path if goal is None else np.concatenate([path, goal[None]])
    middle = (points.min(0) + points.max(0)) / 2
    height = np.full((len(path), 1), 0.03)
    ball = np.concatenate([path, height], 1)
    return {
        "geoms": [{"radius": 0.03, "rgb": [0.0, 0.45, 0.7]}],
        "frames": np.concatenate([ball, ball], 1),
        "targets": np.tile([*middle, 0.0], (len(path), 1)),
        "path": path,
        "camera": {
            "azimuth": 90.0,
            "elevation": -75.0,
            "distance": float(1.5 * max(np.ptp(points, axis=0).max(), 0.5)),
        },
        "cell": 0.2,
        "dt": POINT_DT,
    }


def as_text(scene):
    """Returns a scene as JSON: arrays are rounded, and no text can end the script it stands in."""
    plain = {
        key: np.asarray(value, np.float64).round(DIGITS).tolist()
        if isinstance(value, np.ndarray)
        else value
        for key, value in scene.items()
    }
    text = json.dumps(plain, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def template():
    """Returns the viewer's page, in which @SCENE@ stands for a scene."""
    return pathlib.Path(__file__).with_name("viewer.html").read_text(encoding="utf-8")


def page(scene):
    """Returns the HTML page of a scene."""
    return template().replace("@SCENE@", as_text(scene))


def of_page(html):
    """Returns the scene of a page that `page` made, None of another or a damaged one."""
    _, found, rest = html.partition('id="scene">')
    try:
        return json.loads(rest.partition("</script>")[0]) if found else None
    except ValueError:  # it was cut while it was written
        return None
