"""Every command that the documentation shows: all are read, those of a tour run at smoke size."""

import pathlib
import re
import shlex

import numpy as np
import pytest

import gentle_jax
from experiments import __main__ as listing
from experiments import run
from experiments.cli import flags
from gentle_jax import assembly, errors, registry

ROOT = pathlib.Path(__file__).parent.parent
GENERATED = {"api.md", "flags.md"}  # test_reference_pages.py
PAGES = [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if p.name not in GENERATED)]
OWN = {
    "my_lab.method": "focal",
    "my_lab.cart": "point_robot",
    "my_lab.maze": "point_robot",
    "my_lab.test": "online",
}
# words that stand for a reader's own: what a test puts there
STANDS_FOR = {
    "REGION-docker.pkg.dev/PROJECT/REPOSITORY/gentle-jax:1": "registry.example.com/image:1",
    "gs://bucket/runs": "runs", "mine.csv": "tasks.csv",
    "X": "point_robot", "Y": "ctmrl", **OWN,
}  # fmt: skip


def commands():
    """Returns {command line of the documentation: name of the first page that shows it}."""
    found = {}
    for path in sorted(PAGES):
        text = path.read_text()
        fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.S | re.M))
        lines = fenced.replace("\\\n", " ").splitlines()
        lines += re.findall(r"`([^`\n]+)`", text)
        for line in lines:
            line = line.rpartition("&&")[2].partition(" #")[0].partition("[any")[0]
            if re.match(r" *(python -m experiments\b(?!\.show)|gentle-jax )", line):
                found.setdefault(" ".join(line.split()), path.name)
    return found


COMMANDS = commands()


def words_of(line):
    """Returns the words of a command line, the command's name first."""
    words = shlex.split(re.sub(r"<\w+>", "FINGERPRINT", line))
    if words[0] == "gentle-jax":
        return words[1:]
    return [*([words[2].partition(".")[2]] if "." in words[2] else []), *words[3:]]


def filled(words):
    """Returns words with what STANDS_FOR has in the place of a reader's own."""
    parts = [word.partition("=") for word in words]
    return ["".join((name, equals, STANDS_FOR.get(value, value))) for name, equals, value in parts]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: f"{COMMANDS[line]}: {line}")
def test_a_command_is_understood(line, tmp_path, monkeypatch):
    """Its flags, their values, the settings and sizes of what would run."""
    monkeypatch.chdir(tmp_path)
    words = filled(words_of(line))
    if not words or words == ["COMMAND"]:
        return
    command = listing.load(words[0])
    parts = {part.name.split()[1]: part for part in command.parts}
    if command.parts:
        command = parts[words.pop(1)] if len(words) > 1 else next(iter(parts.values()))
    given = flags.read(command, words) if words[1:] or not command.needed else None
    if "algo" in command.shared and given is not None and "--list" not in words:
        request = flags.parse(run.COMMAND, ["run", *given.words], lambda: False)
        assembly.check(request.config)


def test_a_command_that_is_old_is_found():
    for line in ("python -m experiments.run --algos=ctmrl", "python -m experiments.run --env=moon"):
        with pytest.raises(errors.UserError):
            flags.parse(run.COMMAND, words_of(line), lambda: False)


# --- a tour: each line stands in the documentation and is run, smaller, in one folder

SMALL = ("--preset=smoke", "--num_steps=4", "--protocol=random_then_policy", "--save_every=0")
FIRST = "python -m experiments.run --algo=ctmrl --num_seeds=8"
SHARD = (
    "python -m experiments.run --algo=ctmrl --num_seeds=32 --seed_offset={} --out=gs://bucket/runs"
)


class Tour:
    """Runs lines of the documentation with other values of some flags."""

    def __init__(self, capsys):
        self.capsys = capsys

    def __call__(self, line, *more, **values):
        """Returns what a line prints; a value replaces a flag's, `more` is added."""
        assert line in COMMANDS
        words = filled(words_of(line))
        for name, value in values.items():
            words = [f"--{name}={value}" if w.startswith(f"--{name}=") else w for w in words]
        code = listing.run(["x", *words, *more])
        shown = self.capsys.readouterr()
        assert code in (0, None), shown.err
        return shown.out


@pytest.mark.slow
def test_a_tour_of_the_documentation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tour = Tour(capsys)
    assert "evaluate" in tour("python -m experiments")
    assert "results: runs/" in tour(FIRST, *SMALL, num_seeds=1)
    (folder,) = (path.parent for path in pathlib.Path("runs").rglob("summary.json"))
    (data,) = (path.parent for path in pathlib.Path("data").rglob("meta.json"))

    assert "ctmrl" in tour("python -m experiments.report")
    tour("python -m experiments.report --run=FOLDER --html=page.html", run=folder)
    assert "ctmrl on point_robot" in pathlib.Path("page.html").read_text()
    render = (
        "python -m experiments.render --run=runs/gentle/cheetah_dir/gentle/FINGERPRINT --task=1"
    )
    tour(render, run=folder)
    assert list((folder / "renders").glob("*.html"))
    tasks = tour("python -m experiments.data tasks --env=point_robot")
    pathlib.Path("tasks.csv").write_text(tasks)
    evaluate = next(line for line in COMMANDS if "evaluate --run" in line)
    assert "random_then_policy" in tour(evaluate, run=folder, episodes=2)

    assert data.name in tour("python -m experiments.data list")
    tour("python -m experiments.data show --data=FOLDER", data=data)
    tour("python -m experiments.data verify")
    tour("python -m experiments.data tasks --env=cheetah_vel --to=tasks.csv", to="cheetahs.csv")
    assert pathlib.Path("cheetahs.csv").read_text().startswith("task")

    for first in (0, 32):
        tour(SHARD.format(first), *SMALL, num_seeds=1, seed_offset=first // 32, out="shards")
    gather = "python -m experiments.gather --from=gs://bucket/runs --num_runs=64"
    assert "2 seed" in tour(gather, **{"from": "shards", "num_runs": 2})
    launch = next(line for line in COMMANDS if "launch --target=jobset" in line)
    assert "JobSet" in tour(launch, out="gs://bucket/runs")
    slurm = next(line for line in COMMANDS if "--target=slurm" in line and "--to=jobs" in line)
    tour(slurm, "--num_steps=4", preset="smoke")
    told = re.findall(r"^\| `(\S+)` \|", (ROOT / "docs/cluster.md").read_text(), re.M)
    assert sorted(told) == sorted(path.name for path in pathlib.Path("jobs").iterdir())

    assert "gentle_fig2" in tour("python -m experiments.reproduce --list")
    dry = next(line for line in COMMANDS if line.endswith("--dry_run"))
    assert "missing" in tour(dry)
    shard = next(line for line in COMMANDS if "--shard=1/8" in line)
    assert "1 cells: 1 missing" in tour(shard, "--dry_run", preset="smoke", shard="24/24")
    again = next(line for line in COMMANDS if "reproduce --from=" in line)
    assert "unicorn" in tour(again, **{"from": ROOT / again.partition("--from=")[2]})

    programs = [block for page in ("agents", "gymnasium", "own") for block in blocks(page)]
    assert len(programs) == 5
    known = {
        "gentle_jax": gentle_jax, "run_folder": folder, "obs": np.zeros(2),
        "module": registry.load("algorithm", "focal"),
        "explore": lambda act: {key: [act([0, 0], 1)] for key in ("obs", "action", "next_obs")}
        | {"reward": [0.0]},
    }  # fmt: skip
    for program in programs:
        exec(compile(program, "docs", "exec"), known)
    assert known["config"].run.algorithm == "mine" and known["action"].shape == (2,)
    del registry.ALGORITHMS["mine"]


def blocks(page):
    """Returns the Python programs of a page."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    found = re.findall(r"^```(?:python)?\n(.*?)^```$", text, re.S | re.M)
    program = re.compile(r"\bagent\b|gentle_jax\.\w+\(|^import", re.M)
    # a module of one's own begins with its name: test_testing.py, test_readme.py
    return [b for b in found if program.search(b) and not b.startswith("# my_lab/")]
