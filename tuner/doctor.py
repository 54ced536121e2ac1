"""What could keep a study from running on this machine, found before it is launched; each finding with its remedy.

The local part only: Python, the store, the state directory, whether jobs see a real `/opt/ml`, and the study file.
"""

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tuner import worlds
from tuner.local.namespace import find_isolation
from tuner.spec import StudySpec
from tuner.store import StoreError, current, masked
from tuner.verbs import Finding, UserError

_FREE_MIN_BYTES = 1 << 30
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def doctor(file: Path | None, store_url: str) -> list[Finding]:
    """Look at everything; nothing is created."""
    findings = [*_python(), *_store(store_url), *_state_directory(), *_mounts()]
    return findings if file is None else [*findings, *_study_file(file)]


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(level="ok", what=f"Python {version} at {sys.executable}: local jobs run with it")


def _store(url: str) -> Iterator[Finding]:
    try:
        revision = current(url)
    except StoreError as error:
        yield Finding(level="error", what=str(error), remedy="give a store that can be reached: --store or TUNER_STORE")
        return
    state = f"schema {revision}" if revision else "not there yet, made on first use"
    yield Finding(level="ok", what=f"store {masked(url)}: {state}")


def _state_directory() -> Iterator[Finding]:
    directory = worlds.default_local_dir()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            level="error",
            what=f"state directory {directory}: {existing} cannot be written",
            remedy=f"set {worlds.LOCAL_DIR_VARIABLE} to a directory that can",
        )
        return
    free = shutil.disk_usage(existing).free
    if free < _FREE_MIN_BYTES:
        yield Finding(
            level="warn",
            what=f"state directory {directory}: {free >> 20} MiB free",
            remedy="checkpoints need room: free some, or set TUNER_LOCAL elsewhere",
        )
    else:
        yield Finding(level="ok", what=f"state directory {directory}: writable, {free >> 30} GiB free")


def _mounts() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        isolation = find_isolation(Path(folder))
    if isolation.is_private:
        yield Finding(level="ok", what="local jobs see a private /opt/ml")
    else:
        yield Finding(
            level="warn",
            what=f"local jobs do not see /opt/ml here: {isolation.refusal}",
            remedy="read folders from SM_MODEL_DIR, SM_CHANNEL_* and TUNER_CHECKPOINT_DIR, as in the shipped studies",
        )


def _study_file(file: Path) -> Iterator[Finding]:
    from tuner.study import plan  # noqa: PLC0415 - imports Optuna

    try:
        planned = plan(file)
    except UserError as error:
        yield Finding(level="error", what=str(error), remedy="mend the study file")
        return
    yield Finding(level="ok", what=f"study {planned.spec.name}: the file, its sampler, space and code are sound")
    yield from (Finding(level="warn", what=warning) for warning in planned.warnings)
    yield from _requirements(planned.spec)


def _requirements(spec: StudySpec) -> Iterator[Finding]:
    """Local jobs install nothing: what `requirements.txt` names has to be here."""
    path = (spec.training.source_dir or Path()) / "requirements.txt"
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        found = _REQUIREMENT.match(line)
        if found is None:
            continue
        try:
            importlib.metadata.version(found[1])
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                level="error",
                what=f"{path.name} names {found[1]}, which is not installed here",
                remedy=f"pip install {found[1]}",
            )
