"""Datasets of others, and what is on disk: `python -m experiments.data COMMAND [flags]`.

import: a folder of another project becomes a dataset that `--data=FOLDER` trains on. export: the
other way. list, show, verify: what datasets there are, what is in one, whether they are whole.
"""

import hashlib
import pathlib
import textwrap

import numpy as np

from gentle_jax import assembly, errors, interop, storage, task_tables
from gentle_jax import config as config_lib
from gentle_jax.interop import checks
from gentle_jax.interop import table as table_lib

from . import collect
from .cli import console, flags
from .cli.command import Command, start
from .host import computer
from .runs import imports, stored
from .show import figures, tables


def import_(line):
    """Reads a folder of another project and writes it as a dataset."""
    computer.start()
    own, config = line.own, imports.config_of(line)
    reader = interop.load(own["format"])
    options = options_of(line, reader.OPTIONS)
    folder = existing(own["from"], "--from")
    if not line.shared["tasks"]:
        config = imports.with_source_tasks(config, reader, folder, options)
    env = assembly.env_of(config)
    if options.allow_pickle:
        print(
            "data: WARNING: --allow_pickle lets the files of this folder run any code", flush=True
        )
    print(f"data: reading {folder} as {own['format']}", flush=True)
    table = reader.read(folder, env, options)
    if options.rewards != "dense":
        table = table._replace(source=table.source | {"rewards": options.rewards})
    for note in table.notes:
        print(f"data: {note}")
    if line.shared["tasks"] == imports.FIT:
        config = imports.fitted(table.fields, env, config)
        env = assembly.env_of(config)
        table = table._replace(tasks=None)  # fitted ones stand for what the source says of them
    accepted = checks.check(table, folder, env, own["accept_misfit"])
    if accepted:
        print(f"data: accepted: {accepted}", flush=True)
    checked = imports.check(table, config, folder, own["accept_misfit"], options.horizon)
    identity = identity_of(table, config)
    name = f"imported_{config_lib.fingerprint(identity)}"
    target = pathlib.Path(line.shared["data"]) / config.run.suite / config.run.env / name
    target = pathlib.Path(own["to"]) if own["to"] else target
    flag = "--to" if own["to"] else "--data"
    write(table, meta_of(table, identity, env, config) | {"checked": checked}, target, flag)
    print(f"data: imported into {target}; train with --data={target}")


def options_of(line, used):
    """Returns the Options of a Line; raises UserError for one that the format does not use."""
    own = line.own
    for name in table_lib.Options._fields:
        if name in line.given and name not in used:
            raise errors.UserError(f"--format={own['format']} does not use --{name}: leave it out")
    try:
        steps = tuple(int(part) for part in own["steps"].split(",") if part)
    except ValueError:
        raise errors.UserError(
            f"--steps={own['steps']}: expected whole numbers separated by commas, for example "
            f"--steps=1000,2000"
        ) from None
    for name, least in (("horizon", 0), ("levels", 1)):
        if own[name] < least:
            raise errors.UserError(f"--{name}={own[name]}: expected a number of at least {least}")
    others = {name: own[name] for name in table_lib.Options._fields if name != "steps"}
    return table_lib.Options(steps, **others)


def existing(text, flag):
    """Returns a folder that is there; raises UserError otherwise."""
    folder = pathlib.Path(text)
    if not folder.is_dir():
        raise errors.UserError(f"{folder} is not a folder: pass another {flag}")
    return folder


def identity_of(table, config):
    """Returns the identity of imported data: what they are, by their content, and whence."""
    digest = hashlib.sha256()
    for name in storage.FIELDS:
        digest.update(np.ascontiguousarray(table.fields[name]))
    ours = table.source.get("exported") or {}  # an identity, where we wrote the data ourselves
    made_in = ours.get("physics", "imported")
    asked = config_lib.data_identity(config)
    return {
        **{name: asked[name] for name in ("env", "suite", "tasks") if name in asked},
        "physics": made_in,
        "environment": ours.get("environment"),
        "behaviour": None,
        "random_episodes": ours.get("random_episodes", config.eval.random_episodes),
        # of the random policy: measured here, unless the source says
        "random_physics": ours.get("random_physics", made_in) if ours else config.run.physics,
        "source": {**table.source, "content": digest.hexdigest()[:12]},
    }


def write(table, meta, folder, flag):
    """Writes a Table as a dataset; raises UserError if the folder holds anything else already."""
    ours = {f"{name}.npy" for name in storage.FIELDS} | {".lock"}
    if storage.is_complete(folder):
        raise errors.UserError(
            f"{folder} holds a dataset already: train with --data={folder}, or pass another --to"
        )
    if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise errors.UserError(f"{folder} is not empty: pass another --to")
    shapes = {name: values.shape for name, values in table.fields.items()}
    computer.prepare_folder(folder, storage.num_bytes(shapes), flag)
    with computer.disk_may_fill(folder), computer.alone(folder):
        arrays = storage.open_arrays(folder, shapes)
        for level in range(len(table.levels)):
            fields = {name: values[:, level] for name, values in table.fields.items()}
            storage.write_level(arrays, level, fields)
        storage.commit(folder, meta)


def meta_of(table, identity, env, config):
    """Returns meta.json of imported data, with what `experiments.collect` writes.

    The reference is the known optimum, else what the source says, else the last level's mean.
    """
    scores = collect.returns_of(table.fields)
    known = dict(table.known)
    if "random_return" not in known:
        count = config.eval.random_episodes
        print(f"data: measuring the random policy, {count} episodes a task", flush=True)
        known["random_return"] = collect.random_of(config, env)
    return {
        "identity": identity,
        "tasks": {name: np.asarray(leaf).tolist() for name, leaf in env.tasks.items()},
        "train_ids": env.train_ids.tolist(),
        "test_ids": env.test_ids.tolist(),
        **task_tables.meta_of(config),
        "levels": table.levels,
        "behaviour_return": scores.tolist(),
        "expert_return": scores.tolist(),  # no other episodes are known
        "reference_return": collect.reference_of(env, scores[-1]),
        "environment": computer.environment(),
        **known,
    }


def export(line):
    """Writes a dataset in the format of another project."""
    if line.own["format"] != "minari":
        raise errors.unknown("--format of export", line.own["format"], ["minari"])
    writer = interop.load("minari")
    writer.require()
    folder, target = existing(line.shared["data"], "--data"), pathlib.Path(line.own["to"])
    fields, meta = storage.load(folder)
    size = storage.num_bytes({name: values.shape for name, values in fields.items()})
    # HDF5 spends some 20 kB on an episode, however short it is
    computer.prepare_folder(target, size + 20e3 * fields["mask"][..., 0].size, "--to")
    bars = []

    def progress(done, total):
        bars[:] = bars or [console.Progress("export", total)]
        bars[0].update(done)

    with computer.disk_may_fill(target):
        count = writer.export(fields, meta, target, progress)
    bars[0].close()
    print(f"data: {count} Minari datasets below {target}; set MINARI_DATASETS_PATH={target}")


def list_(line):
    """Prints a line for every dataset below --data."""
    rows = [["suite", "env", "source", "tasks x levels x episodes", "size", "reference", "folder"]]
    for folder in stored.below(existing(line.shared["data"], "--data")):
        size = console.megabytes(storage.stored_bytes(folder))
        if not storage.is_complete(folder):
            rows.append(["-", "-", "unfinished", "-", size, "-", str(folder)])
            continue
        try:
            meta = storage.read_meta(folder)
        except errors.UserError:
            rows.append(["-", "-", stored.unreadable(folder), "-", size, "-", str(folder)])
            continue
        source = (storage.source_of(meta) or {"format": "collected"})["format"]
        reference = f"{np.mean(meta['reference_return']):.2f}"
        names = [meta["identity"]["suite"], meta["identity"]["env"], source]
        rows.append([*names, stored.sizes_of(folder), size, reference, str(folder)])
    print(tables.plain_grid(rows, len(rows[0])))


def show(line):
    """Prints what is in a dataset and draws its returns."""
    folder = existing(line.shared["data"], "--data")
    fields, meta = storage.load(folder)
    identity = meta["identity"]
    print(f"data: {folder}")
    for name, value in identity.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key}={each}" for key, each in value.items())
        print(textwrap.fill(f"{name}: {value}", 100, subsequent_indent="    "))
    print(f"test tasks: {' '.join(map(str, meta['test_ids']))}")
    for text in imports.told(meta):
        print(textwrap.fill(text, 100, subsequent_indent="    "))
    print()
    print(tables.plain_grid(parameters_of(meta["tasks"]), 1) + "\n")
    scores = np.asarray(meta["behaviour_return"])
    there = (np.asarray(fields["mask"])[..., 0] > 0).sum((0, 2))
    rows = [["level", "step", "episodes", "mean return", "worst task", "best task"]]
    for level, step in enumerate(meta["levels"]):
        numbers = [scores[level].mean(), scores[level].min(), scores[level].max()]
        rows.append([str(level), str(step), str(there[level]), *(f"{n:.2f}" for n in numbers)])
    print(tables.plain_grid(rows, 0))
    random, reference = (np.asarray(meta[f"{name}_return"]) for name in ("random", "reference"))
    print(f"random policy {random.mean():.2f}, reference {reference.mean():.2f}")
    target = pathlib.Path(line.own["to"] or folder / "figures")
    computer.prepare_folder(target, 1e6, "--to")
    source = (storage.source_of(meta) or {"format": "collected"})["format"]
    title = f"{identity['env']}, suite {identity['suite']} ({source})"
    with computer.disk_may_fill(target):
        drawn = figures.behaviour_returns(target, meta["levels"], scores, random, reference, title)
    print(f"figure: {drawn[0]}")


def parameters_of(tasks):
    """Returns rows of texts, a heading first: the parameters of every task, as far as they fit."""
    columns = {}
    for name, values in tasks.items():
        flat = np.asarray(values).reshape(len(values), -1)
        for i in range(min(flat.shape[1], 4)):
            columns[name if flat.shape[1] == 1 else f"{name}[{i}]"] = flat[:, i]
    rows = zip(*columns.values(), strict=True)
    lines = [[str(task), *(f"{value:.4g}" for value in row)] for task, row in enumerate(rows)]
    return [["task", *columns], *lines]


def verify(line):
    """Checks the files of one dataset, or of all below --data; raises UserError naming bad ones."""
    bad, count = [], 0
    for folder in stored.below(existing(line.shared["data"], "--data")):
        if not storage.is_complete(folder):
            print(f"unfinished  {folder}")
            continue
        count += 1
        damage = damages(folder)
        print(f"{'damaged' if damage else 'whole':<11} {folder}", flush=True)
        bad += damage
    if bad:
        lines = "; ".join(table_lib.limited(bad))
        raise errors.UserError(
            f"damaged: {lines}; restore the files, or delete their folders to make the data anew"
        )
    print(f"data: {count} dataset(s) agree with their checksums")


def damages(folder):
    """Returns what is wrong with a finished dataset: a text for each file."""
    try:
        meta = storage.read_meta(folder)
    except errors.UserError as error:
        return [str(error)]
    paths = [folder / f"{name}.npy" for name in storage.FIELDS]
    damages = [f"{path} {damage}" for path in paths if (damage := storage.damage_of(path, meta))]
    if damages:
        return damages
    fields = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}
    field = storage.not_finite(fields)
    return [f"{folder} has NaN or infinite values in {field}"] if field else []


def tasks(line):
    """Prints a suite's tasks as a file for --tasks, or writes them to one."""
    run = line.shared
    env = assembly.make_env(run["env"], run["suite"])
    table = task_tables.of_env(env)
    if not line.own["to"]:
        print(task_tables.to_csv(table, env), end="")
        return
    target = pathlib.Path(line.own["to"])
    if target.exists():
        raise errors.UserError(f"{target} exists: pass another --to, or delete it")
    computer.prepare_folder(target.parent, 1e6, "--to")
    task_tables.write(target, table, env)
    print(f"data: {len(env.parameters)} tasks in {target}; change them and pass --tasks={target}")


OWN = {
    name: (name, kind, default, text)
    for name, kind, default, text in (
        ("format", str, "", f"the other side: {' '.join(interop.FORMATS)}; export writes minari"),
        ("from", str, "", "folder to import"),
        (
            "to",
            str,
            "",
            "folder to write to; import: else below --data, show: into the dataset; tasks: file",
        ),
        ("steps", str, "", "S1,S2,...: only these levels (focal, minari, npz); default: all"),
        (
            "horizon",
            int,
            0,
            "steps of an episode in the source (corro, metadt, spc); default: up to --env's",
        ),
        ("levels", int, 1, "metadt: parts of a training, each a level"),
        ("rewards", str, "dense", "sparse: there are no others (all but minari)"),
        (
            "episodes",
            str,
            "sampled",
            "focal: sampled (trj_evalsample*), deterministic (trj_eval*)",
        ),
        (
            "allow_pickle",
            bool,
            False,
            "focal, corro, metadt: read arrays by pickle, which can run code",
        ),
        (
            "accept_misfit",
            bool,
            False,
            "import rows that are not those of the environment; every run on them says so",
        ),
    )
}
TEXTS = (
    ("suite", f"task definitions that the imported data are of [{flags.DEFAULT.suite}]"),
    ("env", f"environment that the imported data are of [{flags.DEFAULT.env}]"),
    (
        "tasks",
        "file of the tasks that the data are of (.npz .csv), or fit: from the rows of a point "
        "robot, by least squares; default: those of the source, or the suite's",
    ),
    ("physics", "what the random policy's return is measured in; default: as `experiments.run`"),
)


def part(word, summary, function, own=(), shared=("data",), needed=()):
    """Returns the Command `data WORD`. Args: own, names in OWN."""
    flags_of_it = tuple(OWN[name] for name in own)
    return Command(f"data {word}", summary, function, flags_of_it, shared, (), needed, TEXTS)


PARTS = (
    part(
        "import", "reads a folder of another project as a dataset", import_, tuple(OWN),
        ("suite", "env", "tasks", "physics", "data"), ("format", "from"),
    ),
    part(
        "tasks", "prints a suite's tasks and split as a file for --tasks", tasks, ("to",),
        ("suite", "env"),
    ),
    part(
        "export", "writes a dataset for another project", export, ("format", "to"),
        needed=("format", "data", "to"),
    ),
    part("list", "lists every dataset below --data", list_),
    part(
        "show", "prints tasks and returns of a dataset, draws its returns", show, ("to",),
        needed=("data",),
    ),
    part("verify", "checks one dataset's files, or all below --data", verify),
)  # fmt: skip
SUMMARY = (
    "Imports and exports datasets; tells what there are, what is in one, whether they are whole."
)
COMMAND = Command("data", SUMMARY, None, parts=PARTS)

if __name__ == "__main__":
    start(COMMAND)
