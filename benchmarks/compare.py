"""Compares the ratios in `benchmarks/results` with the accepted ones: did something get slower?

    python -m benchmarks.compare                # exit code 1 if a ratio is worse by over 20 %
    python -m benchmarks.compare --accept       # the results present become the accepted ones

Ratios only (JAX beside PyTorch, MJX beside C MuJoCo, many runs beside one, ...), each from one
report, so that machines can be compared; seconds are not. A ratio near zero, such as an overhead,
is told as one plus itself. Ratios that only one side has are named and fail nothing: a report may
not have been measured here. Reports of `--small` runs are left out. Exit code 2: a file is not
what it should be.
"""

import math
import sys
from pathlib import Path

from absl import flags

from benchmarks import machine
from experiments.cli import exit_codes
from gentle_jax import errors

TOLERANCE = 0.2
HIGHER, LOWER = "higher", "lower"  # which is better


def make_flags():
    """Returns the flags of this command, apart from the global ones."""
    values = flags.FlagValues()
    define = lambda kind, name, default, text: kind(name, default, text, flag_values=values)
    define(flags.DEFINE_string, "results", "benchmarks/results", "folder of reports")
    define(flags.DEFINE_string, "baseline", "benchmarks/baseline.json", "file of accepted ratios")
    define(flags.DEFINE_boolean, "accept", False, "write the baseline instead of comparing")
    return values


def _name(*parts):
    return "/".join(str(part).replace(" ", "_") for part in parts)


def of_train_step(report):
    """Yields (name, ratio, better) of `train_step.json`."""
    for row in report["rows"]:
        if row["kind"] != "step":
            continue
        name = _name(row["algorithm"], row["shapes"], row["seeds"])
        yield f"{name}/torch_over_jax", row["torch_over_jax"], HIGHER
        yield f"{name}/square_share", row["square_share"], HIGHER
        yield f"{name}/short_over_long_chunks", 1.0 + row["chunk_overhead"], LOWER


def of_env_step(report):
    """Yields (name, ratio, better) of `env_step.json`."""
    for row in report["rows"]:
        if row["kind"] == "step":
            name = _name(row["family"], row["physics"], row["batch"])
        elif row["kind"] == "cost":
            options = (row["integrator"], row["iterations"], row["ls_iterations"])
            name = _name("cost", row["family"], *options, row["batch"])
        else:
            continue
        yield f"{name}/c_over_mjx", row["c_over_mjx"], LOWER


def of_scaling(report):
    """Yields (name, ratio, better) of `scaling.json`.

    An exponent b over sizes that grow k-fold is told as k^b, how much the fit says that it costs.
    """
    sizes = {}
    for row in report["rows"]:
        key = (row["series"], row["algorithm"], row["mapping"])
        sizes.setdefault(key, []).append(row)
    for fit in report["fits"]:
        key = (fit["series"], fit["algorithm"], fit["mapping"])
        x = [row[fit["against"]] for row in sizes[key]]
        if fit["power"]:
            grown = (x[-1] / x[0]) ** fit["power"]["exponent"]
            yield _name(*key, fit["quantity"].removesuffix("_seconds"), "growth"), grown, LOWER
    for key, rows in sizes.items():
        first, last = rows[0], rows[-1]
        if key[0] == "runs" and first is not last:
            speed = last["seed_steps_per_second"] / first["seed_steps_per_second"]
            yield _name(*key, "last_over_first_seed_steps"), speed, HIGHER
    for row in report["memory"]:
        name = _name("memory", row["algorithm"], row["mapping"])
        yield f"{name}/dataset_copies_per_device", row["dataset_copies_per_device"], LOWER
        yield f"{name}/states_per_run", row["states_per_run"], LOWER


def of_bars(report):
    """Yields (name, ratio, better) of `product_bars.json`: of its own rows that are no seconds."""
    rows = {row["name"]: row for row in report["rows"]}
    for name, better in (("normalized_return", HIGHER), ("compiled_once", LOWER)):
        yield name, rows[name]["measured"], better
    host, warm = rows["host_share"]["measured"], rows["warm_compile"]
    yield "whole_over_work", None if host is None else 1.0 + host, LOWER
    yield "warm_over_cold_compile", warm["measured"] / warm["without_cache"], LOWER


def of_accelerator(report):
    """Yields (name, ratio, better) of `accelerator/suite.json`, which lists its own."""
    for piece in report["pieces"]:
        for name, (value, better) in piece.get("ratios", {}).items():
            yield _name(piece["device"], piece["piece"], name), value, better


SOURCES = {  # report: how its ratios are read
    "train_step.json": of_train_step,
    "env_step.json": of_env_step,
    "scaling.json": of_scaling,
    "product_bars.json": of_bars,
    "accelerator/suite.json": of_accelerator,
}


def ratios(folder):
    """Returns ({name: {"value", "better"}}, {report: where it is from}) of a results folder.

    Raises UserError for a report that cannot be read.
    """
    ratios, origins = {}, {}
    for file, read in SOURCES.items():
        path = Path(folder) / file
        if not path.exists():
            continue
        report = machine.read(path)
        if report.get("small"):
            continue
        try:
            origins[file] = {**report["machine"], "date": report["date"]}
            stem = _name(file.removesuffix(".json").removesuffix("/suite"))
            for name, value, better in read(report):
                if value is not None and math.isfinite(value):
                    ratios[f"{stem}/{name}"] = {"value": value, "better": better}
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise errors.UserError(
                f"{path} is not what its benchmark writes ({type(error).__name__}: {error}): "
                f"measure anew"
            ) from error
    if not ratios:
        raise errors.UserError(f"{folder} has no ratios: expected one of {', '.join(SOURCES)}")
    return ratios, origins


def accepted(path):
    """Returns {name: {"value", "better"}} of a baseline; raises UserError for what is none."""
    if not Path(path).exists():
        raise errors.UserError(f"there is no {path} to compare with: --accept writes one")
    entries = machine.read(path).get("ratios")
    valid = isinstance(entries, dict) and all(
        isinstance(entry, dict)
        and entry.get("better") in (HIGHER, LOWER)
        and isinstance(entry.get("value"), int | float)
        and math.isfinite(entry["value"])
        for entry in entries.values()
    )
    if not valid:
        raise errors.UserError(f"{path} is not a baseline: --accept writes one")
    return entries


def worse_by(entry, value):
    """Returns by how much `value` is worse than an accepted one, as a share; < 0: better."""
    change = (value - entry["value"]) / abs(entry["value"]) if entry["value"] else 0.0
    return change if entry["better"] == LOWER else -change


def compare(before, now):
    """Returns (lines to print, names that are worse by more than the tolerance)."""
    lines, failed = [], []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            lines.append(f"missing: {name}: accepted {before[name]['value']:.4g}, not measured")
        elif name not in before:
            lines.append(f"new: {name}: {now[name]['value']:.4g}")
        else:
            old, new = before[name], now[name]["value"]
            worse = worse_by(old, new)
            change = f"{name}: {new:.4g}, accepted {old['value']:.4g} ({old['better']} is better)"
            if worse > TOLERANCE:
                failed.append(name)
                lines.append(f"REGRESSION by {worse:.0%}: {change}")
            elif worse < -TOLERANCE:
                lines.append(f"better by {-worse:.0%}: {change}")
    return lines, failed


def write_baseline(path, now, origins):
    """Writes the baseline file."""
    machine.check_writable(path)
    ordered = {name: now[name] for name in sorted(now)}
    machine.write({"tolerance": TOLERANCE, "from": origins, "ratios": ordered}, path)


def run(args):
    """Compares or accepts; returns the exit code."""
    now, origins = ratios(args.results)
    if args.accept:
        write_baseline(args.baseline, now, origins)
        print(f"{len(now)} ratios of {', '.join(origins)} accepted in {args.baseline}")
        return exit_codes.DONE
    before = accepted(args.baseline)
    lines, failed = compare(before, now)
    print("\n".join(lines), end="\n" if lines else "")
    both = len(before.keys() & now.keys())
    print(f"{both} ratios compared, {len(failed)} worse by over {TOLERANCE:.0%}")
    return exit_codes.FAILED if failed else exit_codes.DONE


def main(argv):
    """Runs the command; returns the exit code: 1 for a regression, 2 for bad input."""
    return machine.command(argv, make_flags(), run, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
