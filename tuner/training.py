"""What a training script may import: checkpoints that survive an interruption, and metric reports.

    checkpoints = Checkpoints()
    latest = checkpoints.latest()
    state = load(latest.path) if latest else fresh()
    for epoch in range(latest.step + 1 if latest else 1, until_step(30) + 1):
        accuracy = train(state)
        report(epoch, val_accuracy=accuracy)
        with checkpoints.save(epoch) as folder:
            write(state, folder)

The script may be killed at any moment, and the folder is copied to the object store file by file, in any order, with
deletions. Therefore:

- a folder per step, whose `manifest.json` with sizes and hashes appears last; what does not match it is not loaded;
- old steps are removed by age, not by count: a count can leave nothing complete in a store that lags behind;
- the manifest repeats the latest reports, so that a step that can be resumed from never lost its metric: what did not
  reach the store is put back at the next start.

This module travels into containers: standard library only, Python 3.8, no other module of ours. Without a tuner
around it works just the same, in `./checkpoints`.
"""

import contextlib
import hashlib
import json
import math
import operator
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, SupportsFloat, SupportsIndex, Union

FORMAT = 1
MANIFEST = "manifest.json"
IGNORED = ".sagemaker-ignore"  # the checkpoint agent does not upload names that end so
UPLOADING = ".sagemaker-uploading"
AGENT_SUFFIXES = (IGNORED, UPLOADING, ".sagemaker-uploaded")
DEFAULT_KEEP_S = 60.0
KEEP_AT_LEAST = 2
MAX_STEP = 10**18 - 1
MAX_NAME = 256
# A manifest repeats the reports since the last save or of the last `keep_s`, whichever are more, but at most these.
MAX_REPEATED = 1000

_STEP_FOLDER = re.compile(r"step-(\d{8,})")

Entry = Dict[str, Any]  # {"step": int or null, "at": epoch seconds, "metrics": {name: number, "nan", "inf" or "-inf"}}


class Checkpoint(NamedTuple):
    """A complete checkpoint: its step, its folder, and when it was saved (epoch seconds)."""

    step: int
    path: Path
    saved_at: float


class Checkpoints:
    """The checkpoints of one trial: a folder per step.

    In a job of several processes one of them saves. `directory` is where the tuner says, else SageMaker's
    `/opt/ml/checkpoints` where that exists, else `./checkpoints`. `keep_s` is for how long a step is kept after newer
    ones were saved: several times what an upload takes; the newest two always are.
    """

    def __init__(self, directory: Union[str, "os.PathLike[str]", None] = None, keep_s: Optional[float] = None) -> None:
        self.directory = Path(directory) if directory is not None else _default_directory()
        self.keep_s = float(os.environ.get("TUNER_KEEP_S", DEFAULT_KEEP_S)) if keep_s is None else keep_s

    def latest(self) -> Optional[Checkpoint]:
        """The newest checkpoint that is complete by its manifest's sizes and hashes, or None."""
        for step in sorted(self._steps(), reverse=True):
            folder = self._folder(step)
            try:
                saved_at = _verified(folder, step)
            except (OSError, ValueError) as problem:
                _warn("checkpoint {} is not complete ({}): trying the one before".format(folder.name, problem))
            else:
                return Checkpoint(step, folder, saved_at)
        return None

    @contextlib.contextmanager
    def save(self, step: SupportsIndex) -> Iterator[Path]:
        """Give an empty folder to write files into; they become the checkpoint of `step` when the block ends well.

        Report the metrics of a step before its checkpoint. An exception in the block leaves no checkpoint behind.
        """
        number = _step(step)
        folder = self._folder(number)
        staging = self.directory / (folder.name + IGNORED)
        for left in self.directory.glob("step-*" + IGNORED):  # by a process that was killed while saving
            shutil.rmtree(str(left), ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            yield staging
            self._publish(staging, folder, number)
        finally:
            shutil.rmtree(str(staging), ignore_errors=True)
        self._expire()

    def _folder(self, step: int) -> Path:
        return self.directory / "step-{:08d}".format(step)

    def _steps(self) -> List[int]:
        if not self.directory.is_dir():
            return []
        matches = (_STEP_FOLDER.fullmatch(path.name) for path in self.directory.iterdir())
        return [int(match.group(1)) for match in matches if match]

    def _publish(self, staging: Path, folder: Path, step: int) -> None:
        """Move the files to their place one by one, as the agent wants to see them, and the manifest last of all.

        Nothing is flushed to the disk: what interrupts us ends the machine with its disk, and hashes tell the rest.
        """
        names = [name for name in _files(staging) if not name.endswith(AGENT_SUFFIXES)]
        if not names or MANIFEST in names:
            raise ValueError(
                "step {}: write at least one file into the folder that save() gives, and none named {}".format(
                    step, MANIFEST
                )
            )
        described = [_describe(staging, name) for name in names]
        _remove(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(folder / name)
        now = time.time()
        manifest = {"format": FORMAT, "step": step, "saved_at": now, "files": described}
        manifest["metrics"] = _reports.recent(now - self.keep_s)
        _write(folder / MANIFEST, json.dumps(manifest, allow_nan=False))
        _reports.saved(now)

    def _expire(self) -> None:
        """Remove what is older than `keep_s`, but never the newest two complete steps."""
        oldest = time.time() - self.keep_s
        complete = 0
        for step in sorted(self._steps(), reverse=True):
            folder = self._folder(step)
            manifest = folder / MANIFEST
            has_manifest = manifest.is_file()
            # By when its last part was written: the manifest's own clock may have been another machine's.
            written_at = (manifest if has_manifest else folder).stat().st_mtime
            if complete >= KEEP_AT_LEAST and written_at < oldest and not _uploading(folder):
                _remove(folder)
            complete += has_manifest


def report(step: Optional[SupportsIndex], /, **metrics: SupportsFloat) -> None:
    """Report metrics of a step (None: of the whole run), for the sampler, the pruner and the summary.

    In a job of several processes one of them reports. Prints one line; where there is no bootstrap to read it, also
    appends to the run's metrics file. Values are anything that `float` takes; NaN and infinity are fine.
    """
    _reports.add(step, metrics)


def until_step(last: int) -> int:
    """Give the step to train up to: `last`, or less where the tuner wants to look at the trial before it goes on."""
    rung = os.environ.get("TUNER_UNTIL_STEP")
    return min(last, int(rung)) if rung else last


class _Reports:
    """What this process reported: printed, remembered for the next manifest, written where nobody else does."""

    def __init__(self) -> None:
        self._entries: List[Entry] = []
        self._saved_at = 0.0
        self._own_run: Optional[str] = None

    def add(self, step: Optional[SupportsIndex], metrics: Dict[str, SupportsFloat]) -> None:
        number = None if step is None else _step(step)
        values = {name: float(value) for name, value in metrics.items()}
        if not values or not all(map(_is_name, values)):
            raise ValueError(
                "report(step, name=value, ...) takes one or more short names without spaces or '=', not {}".format(
                    sorted(values)
                )
            )
        at = round(time.time(), 6)
        encoded = {name: value if math.isfinite(value) else repr(value) for name, value in values.items()}
        entry = {"step": number, "at": at, "metrics": encoded}
        if "TUNER_RUN" not in os.environ:
            self._append(json.dumps(entry, allow_nan=False))
        shown = " ".join("{}={!r}".format(name, value) for name, value in values.items())
        # One write of one short line: the lines of several processes do not mix.
        sys.stdout.write("[tuner {:.6f}] step={} {}\n".format(at, "none" if number is None else number, shown))
        sys.stdout.flush()
        self._entries = [*self._entries[-(MAX_REPEATED - 1) :], entry]

    def recent(self, since: float) -> Dict[str, Any]:
        """The entries that the store may not have yet, and the metrics file that they belong to."""
        since = min(since, self._saved_at)
        return {"file": self._file_name(), "entries": [entry for entry in self._entries if entry["at"] >= since]}

    def saved(self, at: float) -> None:
        self._saved_at = at

    def _append(self, line: str) -> None:
        path = _default_directory() / "metrics" / self._file_name()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write(line + "\n")

    def _file_name(self) -> str:
        """`<attempt>-<run>-<host>.jsonl`; the run is the bootstrap's, else one of our own."""
        run = os.environ.get("TUNER_RUN") or self._own_run
        if run is None:
            run = self._own_run = "{:016x}{}".format(time.time_ns(), os.urandom(2).hex())
        attempt = int(os.environ.get("TUNER_ATTEMPT") or 0)
        return "{:03d}-{}-{}.jsonl".format(attempt, run, os.environ.get("SM_CURRENT_HOST") or "algo-1")


_reports = _Reports()


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable() and not re.search(r"[\s=]", name)


def _step(step: SupportsIndex) -> int:
    number = operator.index(step)
    if not 0 <= number <= MAX_STEP:
        raise ValueError("a step is 0 or more, with at most 18 digits, not {}".format(number))
    return number


def _default_directory() -> Path:
    given = os.environ.get("TUNER_CHECKPOINT_DIR")
    if given:
        return Path(given)
    container = Path("/opt/ml/checkpoints")
    return container if container.is_dir() else Path("checkpoints")


def _files(folder: Path) -> List[str]:
    """The names of all files below `folder`, relative and with slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _describe(folder: Path, name: str) -> Dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with (folder / name).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return {"name": name, "size": size, "sha256": digest.hexdigest()}


def _verified(folder: Path, step: int) -> float:
    """When the checkpoint was saved. Raises OSError or ValueError, saying why, where it is not complete."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError("it has no manifest yet") from None
    manifest = json.loads(text)
    try:
        same_step, saved_at = manifest["step"] == step, float(manifest["saved_at"])
        files = {str(item["name"]): item for item in manifest["files"]}
    except (KeyError, TypeError):
        raise ValueError("its manifest is not one of ours") from None
    if not same_step:
        raise ValueError("its manifest is of another step")
    for name, expected in files.items():
        if ".." in name.split("/") or _describe(folder, name) != expected:
            raise ValueError("{} is not as it was saved".format(name))
    return saved_at


def _uploading(folder: Path) -> bool:
    """Deleting a file while the agent uploads it may corrupt the upload."""
    return any(name.endswith(UPLOADING) for name in _files(folder))


def _remove(folder: Path) -> None:
    """The manifest goes first, so that what is left behind at any moment never looks complete."""
    with contextlib.suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(str(folder), ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Write so that the name appears with its whole content or not at all."""
    temporary = path.with_name(path.name + IGNORED)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _warn(message: str) -> None:
    sys.stderr.write("[tuner] warning: {}\n".format(message))
    sys.stderr.flush()
