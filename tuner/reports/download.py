"""Copies a trial's model and checkpoints to a directory of the user.

Rules: scripts choose the names in a checkpoint prefix, so no name may lead out of the directory. A file gets its final
name only once it is whole (`read_to_file` of the object store does this). Existing files of the same name are replaced;
all other files stay.
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
        return []  # the script saved no model


def _checkpoints(prefix: str, objects: Objects, target: Path) -> list[Path]:
    """The newest complete checkpoint, and the script's files outside its step folders."""
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
