"""The code bundle: what jobs run instead of the working tree.

A bundle is content-addressed: its digest covers the names and contents of its files. So each bundle is uploaded once,
an edited tree is another bundle, and a trial keeps its bundle for life. Files are read into memory once, so that the
uploaded bytes are the bytes of the digest.

A bundle holds the source directory without hidden files, caches, virtual environments, stores, folders of a local
service, files that the caller excludes, and files named in `.tunerignore`. It also holds an empty `tuner/__init__.py`
with the modules that travel, and the job's configuration. No importable file is left out silently: links that
cannot be packed and trees that are too large are refused.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tuner.storage.objects import STATE_MARK, ObjectNotFound, Objects, ReadableObjects

FORMAT = 1
CONFIG_NAME = "tuner_bundle.json"
IGNORE_FILE = ".tunerignore"
REQUIREMENTS = "requirements.txt"
_ASKING = ("-r", "-e", "--requirement", "--editable")  # options that ask for packages
MAX_BYTES = 50 << 20  # the code is copied at every start, on billed time; data belongs in channels
MAX_FILES = 5_000
_NEVER = ("__pycache__/", "*.pyc", "*.egg-info/", "tuner.db*")
_NO_CODE = ("pyvenv.cfg", STATE_MARK)  # marks of virtual environments and of folders of a local service
_OURS = "tuner/"  # the tuner's own folder in a bundle
_TRAVELLERS = ("training.py", "bootstrap.py", "_job_checkpoints.py", "_job_output.py")


class BundleRefused(Exception):  # noqa: N818 - an answer, not a bug
    """The source directory cannot be packed as it is; the message says what to change."""


@dataclass(frozen=True, slots=True)
class BundleFile:
    name: str  # relative, with slashes
    data: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    digest: str  # 32 hexadecimal digits
    files: tuple[BundleFile, ...]  # sorted by name

    @property
    def size_bytes(self) -> int:
        return sum(len(file.data) for file in self.files)


def make_bundle(
    source_dir: Path,
    entry_point: str,
    launcher: str,
    metrics: Sequence[tuple[str, str, str | None]],
    *,
    exclude: Iterable[Path] = (),
) -> Bundle:
    """Pack a source directory.

    `metrics` are the (name, regex, step regex) that the bootstrap searches the log for. `exclude` are files and folders
    that are not code: the study file, the store, the state directory.
    """
    source = source_dir.resolve()
    if not source.is_dir():
        raise BundleRefused(f"{source_dir} is not a directory: training.source_dir names the one that holds the script")
    files = {name: _read(source, name) for name in _names(source, {path.resolve() for path in exclude})}
    _check(source, files, entry_point)
    config = {
        "format": FORMAT,
        "entry_point": entry_point,
        "launcher": launcher,
        "metrics": [{"name": name, "regex": regex, "step_regex": step} for name, regex, step in metrics],
    }
    files[CONFIG_NAME] = json.dumps(config, indent=1).encode()
    files[f"{_OURS}__init__.py"] = b""
    for name in _TRAVELLERS:
        files[f"{_OURS}{name}"] = importlib.resources.files("tuner").joinpath(name).read_bytes()
    packed = tuple(BundleFile(name, files[name]) for name in sorted(files))
    return Bundle(_digest(packed), packed)


def upload(bundle: Bundle, objects: Objects, root_uri: str) -> str:
    """Write the bundle below `root_uri` unless it is there; returns its address, which ends in a slash.

    The mark of completeness is written last. It lies outside the bundle, so that jobs do not receive it.
    """
    base = f"{root_uri.rstrip('/')}/bundles/{bundle.digest}"
    try:
        objects.read(f"{base}.complete")
    except ObjectNotFound:
        for file in bundle.files:
            objects.write(f"{base}/{file.name}", file.data)
        objects.write(f"{base}.complete", b"")
    return f"{base}/"


def has_same_code(bundle: Bundle, objects: ReadableObjects, base: str) -> bool:
    """Whether the bundle stored at `base` has the same files of the user, with any version of the tuner's files.

    Only the tuner's files are read back: together with them, the digest must be the stored one. Raises ObjectsError.
    """
    ours = [info.uri for info in objects.list(f"{base}{_OURS}")]
    if not ours:
        raise ObjectNotFound(f"no bundle lies at {base}")
    files = [file for file in bundle.files if not file.name.startswith(_OURS)]
    files += [BundleFile(uri.removeprefix(base), objects.read(uri)) for uri in ours]
    return base.endswith(f"/{_digest(sorted(files, key=lambda file: file.name))}/")


def refuse_downloads(bundle: Bundle) -> None:
    """Raise BundleRefused if pip in a job may need a network, for containers without one.

    Pip does not look for packages that the image has in a fitting version, but we do not know the image. With a line
    --no-index the user states that every package is there; if that is wrong, each job fails at once.
    """
    text = next((file.data.decode(errors="replace") for file in bundle.files if file.name == REQUIREMENTS), "")
    lines = [line for each in text.splitlines() if (line := each.partition("#")[0].strip())]
    wanted = [line for line in lines if not line.startswith("-") or line.startswith(_ASKING)]
    if wanted and not any("--no-index" in line.split() for line in lines):
        raise BundleRefused(
            f"{REQUIREMENTS} asks for {wanted[0]!r}, but sagemaker.network_isolation leaves pip no network, so each job"
            f" would fail unless the image has it: if the image has every package, or the bundle has their wheels, add"
            f" a line --no-index (and --find-links FOLDER); else build them into the image, or name the file in"
            f" {IGNORE_FILE}"
        )


def _digest(files: Sequence[BundleFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{len(file.name.encode())} {len(file.data)}\n".encode())
        digest.update(file.name.encode() + file.data)
    return digest.hexdigest()[:32]


def _check(source: Path, files: dict[str, bytes], entry_point: str) -> None:
    if any(name == "tuner.py" or name.startswith(_OURS) for name in files):
        raise BundleRefused(
            f"{source} holds a package or module named tuner, which the bundle contains already: rename it, or set"
            f" training.source_dir to another folder"
        )
    if CONFIG_NAME in files:
        raise BundleRefused(f"{source / CONFIG_NAME}: the bundle already has a file of this name: rename yours")
    if entry_point not in files:
        raise BundleRefused(
            f"training.entry_point {entry_point!r} is not among the {len(files)} files of {source} that are packed:"
            f" it is a path below it with slashes, neither hidden nor named in {IGNORE_FILE}"
        )


def _names(source: Path, excluded: set[Path]) -> Iterator[str]:
    """The relative names of the files to pack, sorted; number and size are checked on the way."""
    rules = (*_NEVER, *_rules(source / IGNORE_FILE))
    size = 0
    for count, path in enumerate(_walk(source, source, rules, excluded), start=1):
        size += path.stat().st_size
        if count > MAX_FILES or size > MAX_BYTES:
            raise BundleRefused(
                f"{source} holds more than {MAX_BYTES >> 20} MiB or {MAX_FILES} files, at {path.name}: name what the"
                f" script does not need in {source / IGNORE_FILE}, and give data as training.inputs"
            )
        yield path.relative_to(source).as_posix()


def _walk(folder: Path, source: Path, rules: Sequence[str], excluded: set[Path]) -> Iterator[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise BundleRefused(f"{folder} cannot be read: {error.strerror}; name it in {IGNORE_FILE}") from error
    for path in children:
        name = path.relative_to(source).as_posix()
        is_folder = path.is_dir()
        if path.name.startswith(".") or path.resolve() in excluded or _ignored(name, rules, is_folder=is_folder):
            continue
        if path.is_symlink():
            _check_link(path, source)
        if not is_folder:
            if path.is_file():  # no sockets, pipes or devices
                yield path
        elif not any((path / mark).exists() for mark in _NO_CODE):
            yield from _walk(path, source, rules, excluded)


def _check_link(path: Path, source: Path) -> None:
    """Only a link to a file inside the tree can be packed, as that file."""
    target = path.resolve()
    if not target.is_relative_to(source):
        raise BundleRefused(
            f"{path} is a link that leads out of {source}: copy what it points to, or name it in {IGNORE_FILE}"
        )
    if not target.is_file():
        raise BundleRefused(f"{path} is a link to a folder or to nothing: replace it, or name it in {IGNORE_FILE}")


def _rules(path: Path) -> list[str]:
    """The rules of the ignore file, as in .gitignore but without negation."""
    if not path.is_file():
        return []
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    rules = [line for line in lines if line and not line.startswith("#")]
    if negated := next((rule for rule in rules if rule.startswith("!")), None):
        raise BundleRefused(f"{path}: {negated!r}: negation is not supported; name what is to be left out")
    return rules


def _ignored(name: str, rules: Sequence[str], *, is_folder: bool) -> bool:
    return any(_matches(name, rule, is_folder=is_folder) for rule in rules)


def _matches(name: str, rule: str, *, is_folder: bool) -> bool:
    """A final slash means folders only; any other slash, a path from the root; no slash, a name at any depth."""
    pattern = rule.rstrip("/")
    if rule.endswith("/") and not is_folder:
        return False
    if "/" in pattern:
        return fnmatchcase(name, pattern.lstrip("/"))
    return fnmatchcase(PurePosixPath(name).name, pattern)


def _read(source: Path, name: str) -> bytes:
    try:
        name.encode()
        return (source / name).read_bytes()
    except UnicodeEncodeError as error:
        raise BundleRefused(f"{name!r}: the name is not UTF-8: rename the file, or name it in {IGNORE_FILE}") from error
    except OSError as error:
        raise BundleRefused(f"{source / name} cannot be read: {error.strerror}; name it in {IGNORE_FILE}") from error
