"""What could keep a study from running, found before it is launched; each finding with its remedy.

Here what this machine knows: Python, the store, the study file, and for a local study the state directory and whether
jobs see a real `/opt/ml`. What an account of AWS knows is looked at in `doctor_aws`.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tuner.aws import doctor as doctor_aws
from tuner.aws import iam_policy
from tuner.aws.connections import AwsError
from tuner.aws.prepare import connection
from tuner.aws.rates import scope
from tuner.core.clock import Clock
from tuner.core.errors import Finding, UserError
from tuner.core.records import Fact, Json
from tuner.local.namespace import find_isolation
from tuner.operations.backend import LOCAL_DIR_VARIABLE, default_local_dir
from tuner.operations.context import DEFAULT_STORE, operating_errors
from tuner.spec.study_file import StudySpec, load
from tuner.store.schema import SCHEMA, forgets
from tuner.store.store import Store, StoreError, current, masked

_FREE_MIN_BYTES = 1 << 30
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def doctor(file: Path | None, store_url: str, clock: Clock) -> list[Finding]:
    """Check everything; nothing is created except one small object in S3, which is deleted again."""
    spec, of_file = (None, []) if file is None else _study_file(file)
    found = [*_python(), *_store(store_url)]
    if spec is None or spec.backend == "local":
        found += [*_state_directory(), *_mounts()]
    found += of_file
    if spec is not None and spec.backend == "sagemaker":
        found += doctor_aws.examine(connection(spec), spec, clock.now())
    elif spec is not None:
        found += [*_requirements(spec), *_imports(spec)]
    return found


def known(file: Path, store_url: str) -> list[Fact]:
    """What was found out about the account and region of a study; nothing where it is local, or none can be asked.

    Why that is stands among the findings. A look neither makes a store nor changes its schema.
    """
    try:
        with operating_errors():
            spec = load(file)
            if spec.backend == "local" or current(store_url) != SCHEMA:
                return []
            aws = connection(spec)
            where = scope(aws.identity.account, aws.region)
            with closing(Store.open(store_url)) as store:
                return store.facts(where)
    except (UserError, StoreError):
        return []


def policies(file: Path | None) -> dict[str, Json]:
    """The IAM policies of a study, or with words to fill in. Raises UserError if the study does not run on AWS."""
    if file is None:
        return iam_policy.documents(iam_policy.place(None, None, None))
    with operating_errors():
        spec = load(file)
    if spec.backend == "local":
        raise UserError(f"{file}: study {spec.name} runs on this machine and needs no rights; set backend: sagemaker")
    aws = connection(spec)
    try:
        identity, region = aws.identity, aws.region
    except AwsError:  # who asks for a policy may not have any rights yet
        return iam_policy.documents(iam_policy.place(spec, None, spec.sagemaker.region))
    return iam_policy.documents(iam_policy.place(spec, identity, region))


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding(level="ok", what=f"Python {version} at {sys.executable}, with which local jobs run")


def _store(url: str) -> Iterator[Finding]:
    try:
        revision = current(url)
    except StoreError as error:
        yield Finding(level="error", what=str(error), remedy="give a store that can be reached: --store or TUNER_STORE")
        return
    if revision is not None and revision > SCHEMA:
        what = f"store {masked(url)}: its schema {revision} is newer than this version's {SCHEMA}"
        yield Finding(level="error", what=what, remedy="upgrade spot-tuner to the version that made it, or newer")
        return
    if forgets(url):
        what = f"store {masked(url)} is in memory and would forget its jobs, which go on: no study runs with it"
        yield Finding(level="error", what=what, remedy=f"use a file, for example {DEFAULT_STORE}")
        return
    state = "not there yet, made on first use" if revision is None else f"schema {revision}"
    if revision not in (None, SCHEMA):
        state += f", brought to {SCHEMA} on first use"
    yield Finding(level="ok", what=f"store {masked(url)}: {state}")


def _state_directory() -> Iterator[Finding]:
    directory = default_local_dir()
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            level="error",
            what=f"state directory {directory}: {existing} cannot be written",
            remedy=f"set {LOCAL_DIR_VARIABLE} to a directory that can",
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
        inside = Path(folder) / "ml"  # files that the mount needs are made next to this folder
        inside.mkdir()
        isolation = find_isolation(inside)
    if isolation.is_private:
        yield Finding(level="ok", what="local jobs see a private /opt/ml")
    else:
        yield Finding(
            level="warn",
            what=f"local jobs do not see /opt/ml here: {isolation.refusal}",
            remedy="read folders from SM_MODEL_DIR, SM_CHANNEL_* and TUNER_CHECKPOINT_DIR, as in the shipped studies",
        )


def _study_file(file: Path) -> tuple[StudySpec | None, list[Finding]]:
    """What it says, where it can be read."""
    from tuner.operations.launch import plan  # noqa: PLC0415 - imports Optuna

    try:
        planned = plan(file)
    except UserError as error:
        return None, [Finding(level="error", what=str(error), remedy="mend the study file")]
    sound = Finding(level="ok", what=f"study {planned.spec.name}: the file, its sampler, space and code are sound")
    return planned.spec, [sound, *(Finding(level="warn", what=warning) for warning in planned.warnings)]


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


def _imports(spec: StudySpec) -> Iterator[Finding]:
    """What the script imports by name has to be here, too; nothing of it is run."""
    folder, entry_point = spec.training.source_dir, spec.training.entry_point
    if folder is None or entry_point is None or not entry_point.endswith(".py"):
        return
    script = folder / entry_point
    own = {path.stem for part in (folder, script.parent) for path in part.iterdir()} | {"tuner", "__main__"}
    source = script.read_bytes()
    # where else it looks is not known from here
    elsewhere = b"sys.path" in source or "PYTHONPATH" in spec.training.environment
    for name in sorted(_imported(source) - own - sys.stdlib_module_names):
        if not _is_installed(name):
            yield Finding(
                level="warn" if elsewhere else "error",
                what=f"{entry_point} imports {name}, which is not installed here",
                remedy="install it into the Python above: local jobs run with it",
            )


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # one that is imported already and does not say from where
        return True


def _imported(source: bytes) -> set[str]:
    """The packages that a module imports whatever happens: at its top, outside of any condition."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()  # the job will say so
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} - {""}
