"""Which checkpoints and outputs of terminal trials the study file does not keep, their size, and their deletion.

`checkpoints.keep` says what stays of a trial that has ended: `all` of it, its `latest` complete step, the latest of the
`best` trials only, or `none`. Failed trials count as best: `resume --retry-failed` starts from their checkpoints. What
a script saved without manifests cannot be told apart, and stays whole where its latest step would stay. What jobs
put out, their models, are results: they stay with the latest step, and those of the best trials under `none` too.

Rules: a trial that has not ended is never looked at, so no job writes where this deletes. Before a step goes because a
later one stays, that one is read and its hashes compared: what stays is what a script would resume from. Where none
holds, nothing goes. Metrics and records of runs
always stay. A trial is only found below the study's own folder, and deletion goes through `delete_prefix` alone, which
refuses everything else. What is deleted once is not there the second time, so it may be repeated at any moment. An
engine that deletes renews its lease before each batch, and leaves when it is lost: its successor may copy from what
would go, or keep more.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

from tuner.core.prices import S3_STANDARD_USD_PER_GB_MONTH
from tuner.core.records import Json, Study, Trial, TrialState
from tuner.reports import views
from tuner.spec import workload
from tuner.spec.study_file import StudySpec, spec_of
from tuner.storage.checkpoints import METRICS, RUNS, Renew, delete_prefix, newest_whole, no_lease, scan
from tuner.storage.objects import ObjectInfo, Objects
from tuner.store.store import Store

_GB = 1 << 30
_OUTPUTS = "outputs"  # as jobs are told


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What nobody keeps of one trial. `kept_step` is the checkpoint that stays, if one does."""

    trial: int
    state: TrialState
    prefix: str
    kept_step: int | None
    outputs: tuple[str, ...] = ()  # folders of its jobs
    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A study's checkpoints: what `keep` leaves over, and the size of everything under the study's folder."""

    keep: Literal["best", "latest", "all", "none"]
    waste: tuple[Waste, ...]
    total_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.waste)


def usd_per_month(size_bytes: int) -> float:
    """What it costs to keep so much in S3 Standard, at list price."""
    return size_bytes / _GB * float(S3_STANDARD_USD_PER_GB_MONTH)


def survey(store: Store, study: Study, objects: Objects, *, renew: Renew = no_lease) -> Survey:
    """Look at everything under the study's folder once. Raises ObjectsError, and what `renew` raises."""
    spec = spec_of(study)
    ended = {trial.prefix: trial for trial in store.trials(study.id) if trial.state.terminal}
    kept = _whose_latest_stays(store, study, spec, ended.values())
    models = kept or _best(store, study, spec, ended.values())
    listed: dict[str, list[ObjectInfo]] = {}
    total_bytes = 0
    root = study_root(study)
    for info in objects.list(root):
        total_bytes += info.size
        listed.setdefault(_folder(root, info.uri), []).append(info)
    outputs = _outputs(store, study, listed)
    found = (
        _waste(
            objects,
            trial,
            listed.get(prefix, []),
            {} if trial.number in models else outputs.get(trial.number, {}),
            latest_stays=trial.number in kept,
            renew=renew,
        )
        for prefix, trial in ended.items()
    )
    waste = tuple(each for each in found if each is not None) if spec.checkpoints.keep != "all" else ()
    return Survey(keep=spec.checkpoints.keep, waste=waste, total_bytes=total_bytes)


def sweep(store: Store, study: Study, objects: Objects, *, dry_run: bool, renew: Renew = no_lease) -> Survey:
    """Delete what the study file does not keep; `dry_run` only says what that is.

    Raises ObjectsError, and what `renew` raises.
    """
    found = survey(store, study, objects, renew=renew)
    if not dry_run:
        collect(found, study, objects, renew=renew)
    return found


def collect(found: Survey, study: Study, objects: Objects, *, renew: Renew = no_lease) -> None:
    """Delete what a survey found. Raises as `sweep` does; what is left then is found again."""
    for waste in found.waste:
        stays = partial(_stays, kept_step=waste.kept_step)
        delete_prefix(objects, waste.prefix, study_root=study_root(study), stays=stays, renew=renew)
        for folder in waste.outputs:
            delete_prefix(objects, folder, study_root=study_root(study), renew=renew)


def gc_view(found: Survey, study: str, *, simulated: bool, dry_run: bool) -> views.View:
    """The document of `tuner gc STUDY`."""
    trials: list[Json] = [
        {
            "trial": each.trial,
            "state": each.state.value,
            "checkpoint_prefix": each.prefix,
            "kept_step": each.kept_step,
            "objects": each.objects,
            "size_bytes": each.size_bytes,
            "usd_per_month": usd_per_month(each.size_bytes),
        }
        for each in found.waste
    ]
    return {
        "study": study,
        "simulated": simulated,
        "dry_run": dry_run,
        "keep": found.keep,
        "trials": trials,
        "size_bytes": found.size_bytes,
        "usd_per_month": usd_per_month(found.size_bytes),
        "left_bytes": found.total_bytes - found.size_bytes,
        "left_usd_per_month": usd_per_month(found.total_bytes - found.size_bytes),
    }


def study_root(study: Study) -> str:
    """The folder that holds this study's trials and nothing of any other study's."""
    return f"{workload.root(spec_of(study))}{study.key}/"


def _whose_latest_stays(store: Store, study: Study, spec: StudySpec, ended: Collection[Trial]) -> set[int]:
    """The trials of which the latest complete checkpoint is kept."""
    match spec.checkpoints.keep:
        case "best":
            return _best(store, study, spec, ended)
        case "latest":
            return {trial.number for trial in ended}
        case _:
            return set()


def _best(store: Store, study: Study, spec: StudySpec, ended: Collection[Trial]) -> set[int]:
    best = views.best_trials(store, study, spec, limit=len(ended) if len(spec.objectives) > 1 else 1)
    return {trial.number for trial in ended if trial.state is TrialState.FAILED} | {trial.number for trial in best}


def _folder(root: str, uri: str) -> str:
    """The folder of a trial, or of a job's outputs, that an object below the study's root is in."""
    names = uri[len(root) :].split("/")
    return root + "/".join(names[: 2 if names[0] == _OUTPUTS else 1]) + "/"


def _outputs(
    store: Store, study: Study, listed: Mapping[str, list[ObjectInfo]]
) -> dict[int, dict[str, list[ObjectInfo]]]:
    """By trial: its jobs' folders with what is in them. `sagemaker.outputs` leads elsewhere: that is not ours."""
    found: dict[int, dict[str, list[ObjectInfo]]] = {}
    for attempt in store.attempts(study.id):
        folder = f"{study_root(study)}{_OUTPUTS}/{attempt.job_name}/"
        if folder in listed:
            found.setdefault(attempt.trial, {})[folder] = listed[folder]
    return found


def _waste(
    objects: Objects,
    trial: Trial,
    listed: list[ObjectInfo],
    outputs: Mapping[str, list[ObjectInfo]],
    *,
    latest_stays: bool,
    renew: Renew,
) -> Waste | None:
    kept_step: int | None = None
    if latest_stays and listed:
        newest = scan(objects, trial.prefix).newest_complete
        if newest is None or not _doomed(trial, listed, newest.step):
            return None  # most of the time: nothing has to be read to know it
        newest = newest_whole(objects, trial.prefix, renew=renew)
        if newest is None:
            return None
        kept_step = newest.step
    doomed = _doomed(trial, listed, kept_step)
    doomed += chain.from_iterable(outputs.values())
    if not doomed:
        return None
    return Waste(
        trial=trial.number,
        state=trial.state,
        prefix=trial.prefix,
        kept_step=kept_step,
        outputs=tuple(outputs),
        objects=len(doomed),
        size_bytes=sum(info.size for info in doomed),
    )


def _doomed(trial: Trial, listed: list[ObjectInfo], kept_step: int | None) -> list[ObjectInfo]:
    return [info for info in listed if not _stays(info.uri[len(trial.prefix) :], kept_step)]


def _stays(name: str, kept_step: int | None) -> bool:
    """Whether an object of a trial stays, by its name under the prefix."""
    return name.startswith((METRICS, RUNS)) or (kept_step is not None and name.startswith(f"step-{kept_step:08d}/"))
