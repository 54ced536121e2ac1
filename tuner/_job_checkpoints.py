"""What the bootstrap finds in the checkpoint directory, and what it puts there before the script starts.

It exists so that a run's record says from which checkpoint the run starts: the proof of resume. `tuner.training` writes
the checkpoints; what it shares with this module is the format on disk.

Rules: this module travels into containers: standard library only, Python 3.8. A file that cannot be read, or that says
something else than a manifest should, counts as missing: a script may write whatever it likes here.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

IGNORED = ".sagemaker-ignore"
AGENT_SUFFIXES = (IGNORED, ".sagemaker-uploading", ".sagemaker-uploaded")

_OWN_FOLDER = re.compile(r"metrics|runs")
_OWN_OR_STEP_FOLDER = re.compile(r"metrics|runs|step-[0-9]{8,}")
_METRICS_FILE = re.compile(r"\d{3,}-[0-9a-z]+-[\w.-]+\.jsonl")
_STEP_FOLDER = re.compile(r"step-([0-9]{8,18})")


class ResumePoint(NamedTuple):
    step: int
    saved_at: float


def manifests(directory: Path) -> List[Tuple[Path, Dict[str, Any]]]:
    """Each step's folder and manifest, newest step first; without those that cannot be read."""
    found = []
    for path in directory.glob("step-*/manifest.json"):
        try:
            manifest = read_json(path)
            if path.parent.name == "step-{:08d}".format(manifest["step"]):
                found.append((path.parent, manifest))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda item: int(item[1]["step"]), reverse=True)


def resume_point(directory: Path) -> Optional[ResumePoint]:
    """The newest checkpoint that is complete by sizes and hashes, as `tuner.training` will find it."""
    for folder, manifest in manifests(directory):
        try:
            if all(_holds(folder, item) for item in manifest["files"]):
                return ResumePoint(int(manifest["step"]), float(manifest["saved_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _holds(folder: Path, item: Dict[str, Any]) -> bool:
    if ".." in item["name"].split("/") or not (folder / item["name"]).is_file():  # a pipe would never end
        return False
    digest, size = hashlib.sha256(), 0
    with (folder / item["name"]).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size += len(block)
    return bool(size == item["size"] and digest.hexdigest() == item["sha256"])


def own_files(directory: Path, ours: "re.Pattern[str]" = _OWN_FOLDER) -> int:
    """How many files of the script's lie there: without those in folders of our own, and the agent's."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sum(
        not ours.fullmatch(path.parts[0]) and not any(part.endswith(AGENT_SUFFIXES) for part in path.parts)
        for path in files
    )


def newest_step(directory: Path) -> Optional[int]:
    """The newest step that has a folder, complete or torn; None where none has."""
    matches = (_STEP_FOLDER.fullmatch(path.name) for path in directory.iterdir() if path.is_dir())
    return max((int(match.group(1)) for match in matches if match), default=None)


def found(directory: Path, resume: Optional[ResumePoint]) -> Dict[str, Any]:
    """What a run's record says about the checkpoints that were there when the run started."""
    return {
        "resume_step": None if resume is None else resume.step,
        "resume_saved_at": None if resume is None else resume.saved_at,
        # Where no step is complete, parts of steps are nothing to resume from: such a run restarts nothing.
        "own_files": own_files(directory, _OWN_FOLDER if resume else _OWN_OR_STEP_FOLDER),
        "newest_step": newest_step(directory),
    }


def restore_metrics(directory: Path, host: str) -> None:
    """Put back the reports of earlier runs of `host` that were in a checkpoint's manifest, but not in their file.

    The store receives files in any order: a checkpoint may have survived without the metrics reported before it. They
    go to the file of the run that they belong to, which is over.
    """
    lines: Dict[str, Dict[bytes, None]] = {}
    for _, manifest in reversed(manifests(directory)):
        try:
            repeated = manifest.get("metrics") or {"file": "", "entries": []}
            entries = [json.dumps(entry, allow_nan=False).encode() for entry in repeated["entries"]]
            name = str(repeated["file"])
        except (KeyError, TypeError, ValueError):
            continue
        if _METRICS_FILE.fullmatch(name) and name.endswith("-{}.jsonl".format(host)):
            lines.setdefault(name, {}).update(dict.fromkeys(entries))
    for name, repeated_lines in lines.items():
        _complete(directory / "metrics" / name, repeated_lines)


def _complete(path: Path, missing: Dict[bytes, None]) -> None:
    """Add the lines that the file does not hold. It may have millions, and is not read into memory."""
    whole = 0  # a line that was cut off is among the repeated ones
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                whole += len(line)
                missing.pop(line[:-1], None)
        if missing:
            file.truncate(whole)
            file.write(b"".join(line + b"\n" for line in missing))


def write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + IGNORED)
    temporary.write_bytes(data)
    temporary.replace(path)


def read_json(path: Path) -> Dict[str, Any]:
    """The object in a file of SageMaker's; empty where there is no such file."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def make_folder(path: Path) -> None:
    """Make a folder of our own, whatever the script put in its place."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)
