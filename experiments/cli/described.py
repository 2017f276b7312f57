"""What `--help` says of the settings of an algorithm and a backbone that a command line names."""

import inspect
import re
import textwrap

from gentle_jax import errors, registry

from . import flags

NAMED = ("algo", "backbone")  # flags that ask for it
FIELD = re.compile(r"^    (\w+): [^=]+= .*?(?:  # (.*))?$")
GOES_ON = re.compile(r"^    #\s{3,}(.*)$")  # a comment behind a field that takes another line


def asked(argv):
    """Whether a command line names what can be told."""
    return any(word.lstrip("-").partition("=")[0] in NAMED for word in argv)


def lines(command, argv):
    """Returns the lines of --help on the settings of the algorithm and backbone that are named.

    Defaults are those of the command line's other flags. What is wrong with these is told instead:
    help is shown to whoever asks.
    """
    try:
        request = flags.resolve(flags.read(command, argv))
    except errors.UserError as error:
        return ["", *textwrap.wrap(f"no settings to list: {error}", 92)]
    run, text = request.config.run, []
    for section, kind, name in (
        ("algo", "algorithm", run.algorithm), ("backbone", "backbone", run.backbone),
    ):  # fmt: skip
        told = comments(registry.load(kind, name).Config)
        auto = " (that of a CPU)" if request.automatic else ""
        heading = f"settings of {kind} {name}, preset {run.preset}{auto}, suite {run.suite}:"
        text += ["", heading]
        for key, value in vars(getattr(request.config, section)).items():
            start = f"  --config.{section}.{key}={value}"
            wide = 46
            first, *more = textwrap.wrap(told.get(key, ""), 52) or [""]
            text.append(f"{start:{wide}} {first}".rstrip())
            text += [" " * (wide + 1) + line for line in more]
    return text


def comments(config):
    """Returns {field: the comment behind it} of a dataclass in its source."""
    try:
        source = inspect.getsource(config)
    except (OSError, TypeError):  # made by hand
        return {}
    found, last = {}, None
    for line in source.splitlines():
        field, more = FIELD.match(line), GOES_ON.match(line)
        if field:
            last = field[1]
            found[last] = field[2] or ""
        elif more and last:
            found[last] += f" {more[1]}"
    return found
