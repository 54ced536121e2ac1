"""Lists the jobs in a state directory of the local service, and reads the output of their scripts.

Rules: it only reads files and never calls the service's API: a call could restart a job, which only the engine may do.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tuner.core.clock import Clock
from tuner.local.billing import bill
from tuner.local.jobdir import job_names, log_paths, open_job
from tuner.reports.records import LocalJobRow

_CHUNK_BYTES = 1 << 16
_FOLLOW_POLL_S = 0.3
_FINAL = {
    "Completed": "Completed",
    "Failed": "Failed",
    "Stopped": "Stopped",
    "MaxRuntimeExceeded": "Stopped",
    "MaxWaitTimeExceeded": "Stopped",
}


def local_jobs(state_dir: Path) -> list[LocalJobRow]:
    """Every job of a state directory, oldest first."""
    return sorted((_row(state_dir, name) for name in job_names(state_dir)), key=lambda row: row.created_at)


def _row(state_dir: Path, name: str) -> LocalJobRow:
    job = open_job(state_dir, name)
    assert job is not None, f"job {name} has just been listed"
    rows = job.rows()
    secondary = rows[-1].status
    final = secondary in _FINAL
    return LocalJobRow(
        name=name,
        status=_FINAL.get(secondary, "Stopping" if secondary == "Stopping" else "InProgress"),
        secondary=secondary,
        instance_type=job.request["ResourceConfig"]["InstanceType"],
        created_at=datetime.fromtimestamp(rows[0].at, UTC),
        interruptions=sum(row.status == "Interrupted" for row in rows),
        billable_s=bill(state_dir, name).billable_s if final else None,
    )


def read_logs(
    state_dir: Path,
    jobs: Callable[[], tuple[Sequence[str], bool]],
    *,
    tail: int | None,
    follow: bool,
    clock: Clock,
) -> Iterator[str]:
    """The output of jobs, run after run, in chunks; `jobs` returns their names and whether more may come.

    `tail` keeps only the last lines of the present output. With `follow` it continues until no more may come.
    """
    places: dict[Path, int] = {}
    text = "".join(_new_text(state_dir, jobs()[0], places))
    yield text if tail is None else "".join(text.splitlines(keepends=True)[-tail:] if tail else [])
    while follow:
        names, more = jobs()  # asked before reading, so that the last output is not missed
        yield from _new_text(state_dir, names, places)
        if not more:
            return
        clock.wait(clock.now() + timedelta(seconds=_FOLLOW_POLL_S))


def _new_text(state_dir: Path, names: Sequence[str], places: dict[Path, int]) -> Iterator[str]:
    for path in (path for name in names for path in log_paths(state_dir, name)):
        with path.open("rb") as file:
            file.seek(places.get(path, 0))
            while data := file.read(_CHUNK_BYTES):
                yield data.decode("utf-8", errors="replace")
            places[path] = file.tell()
