"""Run folders that are not on a local disk: `--out=gs://bucket/runs`, any URL of `etils.epath`."""

import pathlib

from etils import epath

from gentle_jax import errors


def is_remote(text):
    """Whether a path is a URL rather than a folder of this machine."""
    return "://" in str(text)


def path(text):
    """Returns a path: pathlib's here, epath's for a URL; raises UserError for an unknown scheme."""
    if not is_remote(text):
        return pathlib.Path(text)
    try:
        return epath.Path(str(text))
    except KeyError as error:
        raise errors.UserError(
            f"{text} is of an unknown kind ({error.args[0]}): expected a folder, or gs://, s3://, "
            f"az:// or hf://"
        ) from None


def copy_tree(local, folder, last=()):
    """Copies the files of a local folder into another one, here or not.

    Args: last, names of files that are copied after all the others, in this order.
    """
    paths = sorted(path for path in local.rglob("*") if path.is_file())
    names = [path.relative_to(local).as_posix() for path in paths]
    for name in sorted(names, key=lambda name: last.index(name) if name in last else -1):
        copy_file(local / name, epath.Path(folder) / name)


def copy_file(source, target):
    """Copies one file, here or not; the folder of the target is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
