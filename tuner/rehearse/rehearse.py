"""The rehearsal of a script: before money is spent, it is run here, interrupted, and seen to resume.

It puts together the study as it can be run here, a stage in a directory of its own, the runs that are made there, and
the verdict on them.

Rules: nothing is left behind, whatever ends the rehearsal; where it differs from what will run, a note says so.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tuner.core.clock import Clock
from tuner.local.namespace import find_isolation
from tuner.operations import backend
from tuner.rehearse.advice import advise, measures
from tuner.rehearse.records import Rehearsal, RehearsalRefused
from tuner.rehearse.runs import RehearsalOptions, Runs, RunWatcher
from tuner.rehearse.stage import ROOT, Stage
from tuner.rehearse.verdict import checks
from tuner.spec.records import Input
from tuner.spec.study_file import StudySpec, load, refuse_missing_secrets, refuse_unbuilt


def rehearse(
    file: Path, wish: RehearsalOptions, watcher: RunWatcher, clock: Clock, learned: Mapping[str, float]
) -> Rehearsal:
    """Run a study's script here. `learned` are interruptions per hour of running, by instance type.

    Raises SpecError, BundleRefused, RehearsalRefused for what has to be changed first, RehearsalBroken for what
    something else than the script broke.
    """
    written = load(file, wish.overrides)
    spec, notes = prepared(written, wish.inputs or {})
    proposal = backend.make_proposer(spec).ask(0)
    params = {} if proposal is None else proposal.params
    bundle = backend.make_bundle(spec)
    with _folder(wish.keep) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as probe:
            isolated = find_isolation(Path(probe)).is_private
        stage = Stage(folder, spec, bundle, clock, wish.grace_s)
        try:
            evidence = Runs(stage, params, wish, watcher, isolated=isolated).make()
        finally:
            stage.close()
    measured = measures(evidence)
    return Rehearsal(
        study=spec.name,
        params=params,
        checks=checks(evidence),
        evidence=evidence,
        measures=measured,
        advice=advise(written, measured, learned),
        notes=notes,
    )


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="tuner-rehearsal-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise RehearsalRefused(f"--keep {keep}: the directory is not empty; give a new one")
    yield keep.absolute()


def prepared(spec: StudySpec, inputs: Mapping[str, Path]) -> tuple[StudySpec, tuple[str, ...]]:
    """The study as it can be run here, and where that differs from what will run. Raises RehearsalRefused."""
    training = spec.training
    if training.entry_point is None:
        raise RehearsalRefused(
            "training.algorithm: a built-in algorithm runs in its own container only; nothing to rehearse"
        )
    notes = []
    if training.entrypoint == "image":
        notes.append("training.entrypoint: image: rehearsed with the bootstrap in its place")
    if training.instance_count > 1:
        notes.append(f"training.instance_count: rehearsed on 1 instance, not on {training.instance_count}")
    here = replace(
        training,
        entrypoint="bootstrap",
        instance_count=1,
        image_uri=None,
        framework=None,
        inputs=tuple(_local_input(each, inputs) for each in training.inputs),
    )
    if unknown := sorted(inputs.keys() - {each.channel for each in training.inputs}):
        raise RehearsalRefused(f"--input {unknown[0]}: training.inputs names no such channel")
    cloud = replace(
        spec.sagemaker,
        role=None,
        profile=None,
        kms_key=None,
        security_groups=(),
        subnets=(),
        zones={},
        network_isolation=False,
        outputs=None,
        request={},
    )
    changed = replace(
        spec,
        backend="local",
        local=None,
        training=here,
        sagemaker=cloud,
        checkpoints=replace(spec.checkpoints, root=ROOT),
    )
    refuse_unbuilt(changed)
    refuse_missing_secrets(changed, os.environ)  # the script is given them, as it will be
    return changed, tuple(notes)


def _local_input(channel: Input, given: Mapping[str, Path]) -> Input:
    folder = given.get(channel.channel)
    if folder is not None:
        if not folder.exists():
            raise RehearsalRefused(f"--input {channel.channel}={folder}: there is no such directory")
        return Input(channel.channel, folder.absolute().as_uri(), "File", content_type=channel.content_type)
    if channel.uri.startswith("file://"):
        return channel
    raise RehearsalRefused(
        f"training.inputs.{channel.channel} is {channel.uri}, and a rehearsal reads nothing from S3: "
        f"copy some of it here and pass --input {channel.channel}=DIR"
    )
