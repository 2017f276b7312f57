"""Runs every cell of a comparison and writes its table: `python -m experiments.reproduce`.

A cell is a command line of `experiments.run`; finished cells are reused, so the command resumes.
"""

import functools
import pathlib
import shlex
import shutil
import tempfile

from gentle_jax import errors, storage, suites

from . import collect, run
from .cli import exit_codes, flags
from .cli.command import Command, start
from .host import computer
from .runs import cells, code_identity, outputs, paper_comparisons, remote
from .runs.comparisons import TABLES
from .show import (
    results_page,
    run_page,
    scores,
    table_figures,
    table_text,
)

SUMMARY = (
    "Runs every row of a table on every environment of the suite, and writes Markdown and JSON."
)
EXTRA = (
    ("table", str, "components", "which table: " + " ".join(TABLES)),
    ("list", bool, False, "only say which tables there are"),
    ("dry_run", bool, False, "only say each cell's command, state and about how long it takes"),
    (
        "shard",
        str,
        "",
        "k/n: only every n-th cell, from the k-th on; the table is then made of "
        "whatever is finished below --out",
    ),
    (
        "from",
        str,
        "",
        "a table's .json file, such as those of `experiments/results`: its statistics "
        "again, from it and the .npz file beside it, and nothing is run",
    ),
    ("html", str, "", "also write the table as a page for the browser to this file"),
    ("page", str, "", "only write this Markdown page from all tables of `experiments/results`"),
    ("export", str, "", "rliable: also a file {row: scores [runs, tasks]} for each protocol"),
    ("rows", list, [], "only these rows; repeatable; the others are taken if they are finished"),
    ("envs", list, [], "only these environments; repeatable"),
    (
        "to",
        str,
        "",
        "folder of the table's files; default: the folder `tables` below --out; with --from, that "
        "of the file",
    ),
)
BY_ROWS = "it is set by the rows of a table; choose with --rows and --envs"
REFUSED = (
    *((name, BY_ROWS) for name in ("algo", "env", "fidelity")),
    ("tasks", "a paper's table is of the tasks of its suite; leave it out"),
    ("sweep", "a table has one cell for each row and environment; sweep with "
     f"`{errors.command('run')}`"),
    ("multihost", "one process runs the cells one by one; leave it out, or run a cell with "
     f"`{errors.command('run')} --multihost`"),
)  # fmt: skip


def cells_of(table, words):
    """Returns {(row, env): Cell} of a table. Args: words, flags that reach every cell.

    Raises UserError for a flag that the table itself sets.
    """
    found, of = {}, TABLES[table]
    for row in of.rows:
        own = {env: flags_of(of, row, env) for env in of.envs}
        taken = {flag.partition("=")[0] for line in own.values() for flag in line}
        for word in words:
            if "--" + word.lstrip("-").partition("=")[0] in taken:
                raise errors.UserError(
                    f"{word} is set by the rows of table {table!r}: leave it out, or choose with "
                    f"--rows and --envs"
                )
        found |= {(row, env): cell_of(of, row, env, words) for env in of.envs}
    return found


def flags_of(of, row, env):
    """Returns the flags that a Comparison itself gives a cell."""
    return (*of.rows[row], *of.of_env.get(env, {}).get(row, ()))


def cell_of(of, row, env, words):
    """Returns one Cell of a Comparison. Args: words, flags beside its own."""
    seeded = any(word.lstrip("-").partition("=")[0] == "num_seeds" for word in words)
    seeds = () if seeded else (f"--num_seeds={of.num_seeds}",)
    line = (*seeds, *words, *flags_of(of, row, env), f"--env={env}")
    return cells.Cell(line, flags.parse(run.COMMAND, ["run", *line], computer.on_accelerator))


def file_name(table, summaries):
    """Returns a table's name, and behind it the backbone that the command chose for all rows."""
    if any(flag.startswith("--backbone=") for row in TABLES[table].rows.values() for flag in row):
        return table
    usual = {at: suites.backbone(s["suite"], at[1], s["preset"]) for at, s in summaries.items()}
    others = {s["backbone"] for at, s in summaries.items() if s["backbone"] != usual[at]}
    return "_".join([table, *sorted(others)])


def write(table, summaries, folder, note=None, found=None, words=()):
    """Writes `file_name`.json, .md and .npz from {(row, env): summary}; returns the Markdown.

    Args: note, a sentence below the table; found, its scores, of `scores.of_run`; words, the flags
    of the command that are not paths.
    """
    lines = table_text.lines(table, summaries, found or {})
    lines += ["", note] if note else []
    name = file_name(table, summaries)
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    stored = [{"row": row, "env": env, **summary} for (row, env), summary in summaries.items()]
    command = " ".join([errors.command("reproduce"), shlex.join([f"--table={table}", *words])])
    content = {"table": table, "command": command, "environment": computer.environment()}
    content["cells"] = stored
    storage.write_json(folder / f"{name}.json", content)
    if found:
        scores.write(folder / f"{name}.npz", found)
    return "\n".join(lines)


def choose(own, found):
    """Returns the names (row, env) of the cells that the flags `own` choose, in order.

    Raises UserError for a name that the table lacks.
    """
    of = TABLES[own["table"]]
    for name, allowed in (("rows", of.rows), ("envs", of.envs)):
        for value in own[name]:
            if value not in allowed:
                raise errors.unknown(name, value, allowed)
    rows, envs = own["rows"] or of.rows, own["envs"] or of.envs
    return cells.part([at for at in found if at[0] in rows and at[1] in envs], own["shard"])


def dataset_of(request):
    """Returns the folder of a Request's dataset."""
    return collect.dataset_folder(request.config, request.data)


def folder_of_tables(own, out):
    """Returns the local folder of a table's files, made; raises UserError where it cannot be.

    Args: out, the folder without --to.
    """
    if remote.is_remote(own["to"] or out):
        raise errors.UserError(
            f"--to is {own['to'] or 'missing'}: the table's files go to a folder of this machine, "
            f"pass --to=FOLDER"
        )
    to = pathlib.Path(own["to"] or out)
    computer.prepare_folder(to, 1e6, "--to")
    return to


def check(line):
    """Raises UserError for flags of this command that do not go together."""
    own = line.own
    for kind, allowed in (("list", ()), ("page", ()), ("from", ("html", "export", "to"))):
        for name in line.given if own[kind] else ():
            if name not in (kind, *allowed):
                raise errors.UserError(
                    f"--{kind} runs no table, and takes no --{name}: leave one of them out"
                )
    if own["from"] and own["to"] and not own["export"]:
        raise errors.UserError("--to with --from is the folder of --export=rliable: add it")
    if own["dry_run"] and (own["html"] or own["export"]):
        raise errors.UserError("--dry_run makes no table: leave --html and --export out")
    if own["export"] not in ("", scores.RLIABLE):
        raise errors.unknown("export", own["export"], [scores.RLIABLE])
    if own["html"]:
        run_page.check(own["html"])


def main(line):
    """The command; returns its exit code, DIVERGED if a run of the table became NaN."""
    own = line.own
    check(line)
    if own["list"]:
        print("\n".join(described()))
        return exit_codes.DONE
    if own["page"]:
        path = pathlib.Path(own["page"])
        if path.is_dir() or remote.is_remote(own["page"]):
            raise errors.UserError(f"--page is {own['page']}: expected a file of this machine")
        computer.prepare_folder(path.parent, 1e6, "--page")
        files, part = cells.RESULTS.glob("*.json"), functools.partial(part_of_page, path.parent)
        papers = paper_comparisons.TABLES
        path.write_text(results_page.page(files, TABLES, papers, part, can_run))
        return exit_codes.DONE
    if own["from"]:
        again(own)
        return exit_codes.DONE
    computer.start(**flags.devices_of(line))
    table = own["table"]
    if table not in TABLES:
        raise errors.unknown("table", table, TABLES)
    found = cells_of(table, line.words)
    chosen = choose(own, found)
    if own["dry_run"]:
        wanted = {at: found[at] for at in chosen}
        print("\n".join(cells.lines(wanted, cells.plans(wanted, run.folder_of, dataset_of))))
        return exit_codes.DONE
    out = next(iter(found.values())).request.out
    to = folder_of_tables(own, f"{out}/tables")
    why = {at: cells.impossible(found[at].request, run.folder_of(found[at].request))
           for at in chosen}  # fmt: skip
    if chosen and all(why.values()):  # that is a flag of the command
        raise errors.UserError(why[chosen[0]])
    ran = {}
    try:
        for at in chosen:
            print(f"\n=== {table}: {' on '.join(at)}", flush=True)
            if why[at]:
                print(f"left out: {why[at]}", flush=True)
            else:
                ran[at] = run.execute(found[at].request)
        done = [run.folder_of(found[at].request) for at in finished(found, ran)]
        table_figures.explore(TABLES[table], done)
    finally:  # whatever ends the command: what is finished, by now, of any shard
        summaries = finished(found, ran)
        if summaries:
            finish(line, to, found, summaries)
    if not summaries:
        print("nothing to do: no cell of the table is in this shard")
    diverged = any(summary["failed_seeds"] for summary in summaries.values())
    return exit_codes.DIVERGED if diverged else exit_codes.DONE


def finished(found, ran):
    """Returns {(row, env): summary} of the cells that are finished, in the table's order."""
    summaries = {}
    for at, cell in found.items():
        folder = run.folder_of(cell.request)
        if at in ran:
            summaries[at] = ran[at]
        elif (folder / "summary.json").exists():
            try:
                summaries[at] = outputs.read_summary(folder)
            except errors.UserError as error:  # of another row: it ends no command
                print(f"left out: {error}", flush=True)
    return summaries


def stored(path):
    """Returns (table, {(row, env): summary}, its scores) of a table's .json file.

    Raises UserError for a file that is none.
    """
    if not path.is_file():
        raise errors.UserError(f"there is no file {path}: expected the .json file of a table")
    content = storage.read_json(path)
    known = content if isinstance(content, dict) else {}
    table, kept = known.get("table"), known.get("cells")
    good = isinstance(table, str) and table in TABLES and isinstance(kept, list)
    if not (good and kept and all(map(outputs.is_cell, kept))):
        raise errors.UserError(
            f"{path} is no table of this version: expected the .json file that "
            f"`{errors.command('reproduce')}` wrote"
        )
    arrays = path.with_suffix(".npz")
    found = scores.read(arrays) if arrays.exists() else {}
    return table, {(cell["row"], cell["env"]): outputs.with_nan(cell) for cell in kept}, found


def part_of_page(folder, path):
    """Returns (Markdown of a table's .json file, where its curves lie below a page's folder)."""
    table, summaries, found = stored(path)
    name = "_".join([table, next(iter(summaries.values()))["preset"]])
    with tempfile.TemporaryDirectory() as made:
        paths = table_figures.curves(name, TABLES[table], summaries, found, made)
        paths += table_figures.planes(name, summaries, made)
        paths = [one for one in paths if one.suffix == ".svg"]  # a page needs one of each
        for one in paths:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copy(one, folder / "figures")
    text = "\n".join(table_text.lines(table, summaries, found))
    return text, [f"figures/{one.name}" for one in paths]


def can_run(table, preset, row, env):
    """Returns whether the settings of a table's cell fit its tasks."""
    request = cell_of(TABLES[table], row, env, [f"--preset={preset}"]).request
    return not cells.impossible(request, run.folder_of(request))


def again(own):
    """Prints the table of a .json file, and writes its page and export. Args: own, of the flags.

    Raises UserError for a file that is none, and one without scores to export.
    """
    path = pathlib.Path(own["from"])
    table, summaries, found = stored(path)
    text = "\n".join(table_text.lines(table, summaries, found))
    print(text)
    if own["html"]:
        show(own["html"], text, table, summaries, found)
    if own["export"]:
        if not found:
            raise errors.UserError(
                f"--export needs {path.with_suffix('.npz')}, which is not there: choose a table "
                f"that has one"
            )
        export(folder_of_tables(own, str(path.parent)), path.stem, found)


def export(folder, name, found):
    """Writes the scores of a table for rliable, and says where they are."""
    for path in scores.export(folder, name, found):
        print(f"export: {path}")


def show(target, text, table, summaries, found):
    """Writes the page of a table to a file, and says where it is. Args: text, its Markdown."""
    run_page.write(target, *run_page.of_table(table, TABLES[table], text, summaries, found))
    print(f"page: {target}")


def finish(line, to, found, summaries):
    """Writes and prints the whole table. Args: line, the command's; found, {(row, env): Cell}."""
    own, table = line.own, line.own["table"]
    folders = {at: run.folder_of(found[at].request) for at in summaries}
    data = {at: code_identity.environment_of(folders[at]).get(table_text.DATA) for at in summaries}
    summaries = {at: summary | {table_text.DATA: data[at]} for at, summary in summaries.items()}
    hashes = [(folders[at], code_identity.hash_of(s)) for at, s in summaries.items()]
    metric = {at: s["results"][0]["metric"] for at, s in summaries.items()}  # the suite's own
    known = {at: scores.of_run(folders[at], metric[at]) for at in summaries}
    name, of = file_name(table, summaries), TABLES[table]
    summaries = table_figures.contexts(of, folders, summaries)
    part = [f"--{name}={one}" for name in ("rows", "envs") for one in own[name]]
    words = [*flags.without_paths(line.words), *part]
    if "preset" not in line.given:  # what `auto` was here
        words.append(f"--preset={next(iter(summaries.values()))['preset']}")
    print("\n" + write(table, summaries, to, code_identity.note(hashes), known, words))
    print(f"\ntable: {to / name}.md")
    drawn = table_figures.curves(name, of, summaries, known, to)
    for path in [*drawn, *table_figures.planes(name, summaries, to)]:
        print(f"figure: {path}")
    if own["html"]:
        text = "\n".join(table_text.lines(table, summaries, known))
        show(own["html"], text, table, summaries, known)
    if own["export"]:
        export(to, name, known)


def described():
    """Returns a line for each table: its size, and what it is."""
    wide = max(map(len, TABLES))
    places = lambda of: "1 environment" if len(of.envs) == 1 else f"{len(of.envs)} environments"
    return [
        f"{name:{wide}}  {len(of.rows)} rows x {places(of)}: {of.about}"
        for name, of in TABLES.items()
    ]


COMMAND = Command(
    "reproduce",
    SUMMARY,
    main,
    own=EXTRA,
    shared=flags.but(*(name for name, _ in REFUSED)),
    refused=REFUSED,
)

if __name__ == "__main__":
    start(COMMAND)
