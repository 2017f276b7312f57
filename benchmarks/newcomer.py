"""What a newcomer does first, from a fresh clone: how many lines or commands it takes, how long.

    clone; smoke run                              (not timed)
    for each task below: write what a newcomer writes; run it in the clone; count and time it
    table; JSON; exit code 1 where a bar is missed

Commands run one after the other, each in a process of its own, with the compile cache of the user
(the first one fills it). Foreign folders are those that the tests write. By hand, some minutes:
`python -m benchmarks.newcomer`.
"""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from absl import flags

import gentle_jax
from benchmarks import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMOKE = "--preset=smoke --num_seeds=1 --protocol=given_context"
LOAD = """
import gentle_jax
agent = gentle_jax.load({run!r})
belief = agent.prior()
action = agent.act(belief, [0.0, 0.0])
"""
# behind LOAD, not counted: what an action takes once it is compiled
WARM = """
import time
begin = time.perf_counter()
for _ in range(1000):
    agent.act(belief, [0.0, 0.0])
print(time.perf_counter() - begin)
"""
LOOP = """
import gentle_jax
env = gentle_jax.gymnasium.make("point_robot", suite="ctmrl", task=3)
(obs, info), over = env.reset(seed=0), False
while not over:
    obs, reward, terminated, over, info = env.step(env.action_space.sample())
"""
FORMATS = ("focal", "corro", "metadt", "spc", "npz")
BARS = {  # what is counted: the most that is allowed
    "load an agent and act": ("lines", 5),
    "an action, warm": ("ms", 1.0),
    "load an agent and act, whole process": ("s", 5.0),
    "own tasks from a csv": ("commands", 2),
    "own method outside of the repository": ("lines", 30),
    "Gymnasium loop": ("lines", 6),
    **{f"import and train: {name}": ("commands", 2) for name in FORMATS},
}


class Newcomer(NamedTuple):
    """A clone, and a folder outside of it."""

    clone: pathlib.Path
    outside: pathlib.Path

    def python(self, *words):
        """Runs Python in the clone; returns (what it printed, seconds); raises if it fails."""
        paths = os.pathsep.join([str(self.clone), str(self.outside)])
        environment = {**os.environ, "PYTHONPATH": paths}
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout, time.perf_counter() - begin

    def command(self, line):
        """Runs a command line; returns (what it printed, seconds)."""
        return self.python("-m", *shlex.split(line))


def lines_of(code):
    """Returns how many lines of a program are not empty."""
    return sum(bool(line.strip()) for line in code.splitlines())


def agent(person):
    """Loads the agent of a smoke run; yields rows."""
    shown, _ = person.command(f"experiments.run {SMOKE}")
    (folder,) = re.findall(r"^results: (.+)$", shown, re.M)
    code = LOAD.format(run=folder)
    _, whole = person.python("-c", code)
    warm, _ = person.python("-c", code + WARM)
    yield "load an agent and act", lines_of(code), whole
    yield "load an agent and act, whole process", whole, whole
    yield "an action, warm", float(warm), None


def own_tasks(person):
    """Writes the suite's tasks, moves the goals, trains and tests there; yields a row."""
    write, train = "experiments.data tasks --env=point_robot --to=mine.csv", "experiments.run"
    done = [person.command(write)]
    path = person.clone / "mine.csv"
    head, *rows = path.read_text().splitlines()
    moved = [re.sub(r"-?\d+\.\d+", lambda x: str(0.9 * float(x[0])), row) for row in rows]
    path.write_text("\n".join([head, *moved]) + "\n")
    done.append(person.command(f"{train} --tasks=mine.csv {SMOKE}"))
    yield "own tasks from a csv", len(done), sum(seconds for _, seconds in done)


def formats(person):
    """Imports a folder of each format and trains on it; yields rows."""
    sys.path.insert(0, str(ROOT / "tests"))
    import foreign  # of the tests: it needs pytest

    env = foreign.make_env()
    for name in FORMATS:
        folder = person.outside / name
        if name == "npz":
            ends = {"terminal": np.zeros(2 * env.horizon), "length": [env.horizon] * 2}
            rows = foreign.rows_of(env, ends["length"])
            gentle_jax.write_dataset(folder, [task | ends for task in rows])
        else:
            getattr(foreign, name)(folder, env)
        words = f"--format={name} --from={folder} --suite=gentle --env=point_robot"
        done = [person.command(f"experiments.data import {words}")]
        data = re.search(r"\S*imported_\w+", done[0][0])[0]
        train = f"experiments.run --algo=focal --suite=gentle --data={data} {SMOKE}"
        done.append(person.command(train))
        yield f"import and train: {name}", len(done), sum(seconds for _, seconds in done)


def own_method(person):
    """Trains the README's method from a module outside of the clone; yields a row."""
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)[1]
    (person.outside / "my_lab").mkdir()
    (person.outside / "my_lab" / "method.py").write_text(code)
    _, seconds = person.command(f"experiments.run --algo=my_lab.method {SMOKE}")
    yield "own method outside of the repository", lines_of(code), seconds


def gymnasium(person):
    """Runs an episode of a task; yields a row."""
    _, seconds = person.python("-c", LOOP)
    yield "Gymnasium loop", lines_of(LOOP), seconds


def rows_of(person, tell):
    """Returns every row: {"task", "unit", "measured", "bar", "met", "seconds"}."""
    rows = []
    for part in (agent, own_tasks, formats, own_method, gymnasium):
        for name, measured, seconds in part(person):
            unit, bar = BARS[name]
            row = {"task": name, "unit": unit, "measured": measured, "bar": bar}
            rows.append(row | {"met": measured <= bar, "seconds": seconds})
            tell(rows[-1])
    return rows


def show(row):
    """Prints a row."""
    took = "" if row["seconds"] is None else f", {row['seconds']:.1f} s"
    verdict = "met" if row["met"] else "MISSED"
    print(
        f"{row['task']}: {row['measured']:.3g} {row['unit']} (bar {row['bar']:g}: {verdict}){took}",
        flush=True,
    )


def run(args):
    """Measures everything in a clone of this checkout; returns 1 where a bar is missed."""
    machine.check_writable(args.out)
    with tempfile.TemporaryDirectory() as folder:
        person = Newcomer(pathlib.Path(folder) / "clone", pathlib.Path(folder) / "outside")
        person.outside.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(person.clone)], check=True)
        rows = rows_of(person, show)
    machine.write({**machine.describe(), "rows": rows}, args.out)
    return int(not all(row["met"] for row in rows))


def main(argv):
    """The command; returns its exit code."""
    values = flags.FlagValues()
    out = "benchmarks/results/newcomer.json"
    flags.DEFINE_string("out", out, "JSON file to write", flag_values=values)
    return machine.command(argv, values, run, __doc__.partition("\n")[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
