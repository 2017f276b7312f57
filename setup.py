"""The wheel has one top-level package: the commands of `experiments` lie in it, too.

All else stands in setup.cfg, which knows no package that is in another place.
"""

from setuptools import find_packages, setup

COMMANDS = find_packages(include=["experiments", "experiments.*"])

setup(
    packages=find_packages(include=["gentle_jax", "gentle_jax.*"])
    + [f"gentle_jax.{name}" for name in COMMANDS],
    package_dir={"gentle_jax.experiments": "experiments"},
    package_data={
        "gentle_jax.experiments": [
            "launch/Dockerfile",
            "launch/schemas/*.json",
            "papers/*.csv",
            "results/*",
            "show/*.html",
        ]
    },
)
