"""Copying what a trial left behind, its model and its checkpoints, to a directory of the user's.

Rules: names in a checkpoint prefix are chosen by scripts, so none of them may lead out of the directory. A file is
written under its final name only when it is whole (the object store's `read_to_file` sees to that); existing files of
the same name are replaced, nothing else is touched.
"""

from pathlib import Path, PurePosixPath

from tuner.core.errors import Exit, UserError
from tuner.reports.views import View
from tuner.storage.checkpoints import wanted_files
from tuner.storage.objects import ObjectNotFound, Objects, ObjectsError


def download(trial: View, objects: Objects, directory: Path) -> list[Path]:
    """Copy one trial (an entry of `best_view`) to `directory/trial-00007/`; returns the files. Raises UserError."""
    target = directory / f"trial-{trial['number']:05d}"
    try:
        return [*_model(trial, objects, target), *_checkpoints(str(trial["checkpoint_prefix"]), objects, target)]
    except ObjectsError as error:
        raise UserError(f"trial {trial['number']} cannot be copied: {error}", Exit.REFUSED) from error
    except OSError as error:
        raise UserError(f"cannot write to {target}: {error.strerror or error}", Exit.USAGE) from error


def _model(trial: View, objects: Objects, target: Path) -> list[Path]:
    uri = trial["model_uri"]
    if not isinstance(uri, str):
        return []
    try:
        return [_copy(uri, PurePosixPath(uri).name, objects, target)]
    except ObjectNotFound:
        return []  # a script that saved no model


def _checkpoints(prefix: str, objects: Objects, target: Path) -> list[Path]:
    """The newest complete checkpoint, and what the script keeps beside its steps."""
    names = wanted_files(objects, prefix)
    return [_copy(prefix + name, name, objects, target / "checkpoints") for name in names]


def _copy(uri: str, name: str, objects: Objects, target: Path) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise UserError(f"{uri} would be written outside of {target}: copy it by hand if you trust it", Exit.REFUSED)
    path = target / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    objects.read_to_file(uri, path)
    return path
