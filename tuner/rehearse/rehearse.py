"""Rehearse a script: run it on this machine, interrupt it, and prove that it resumes, before money is spent.

This module prepares the study for this machine, makes a stage in a temporary directory, lets `runs` run the script
there, and asks `verdict` for the checks.

Rules: a rehearsal leaves nothing behind, however it ends. A note names each difference from the real run.
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
from tuner.rehearse.runs import RehearsalOptions, RehearsalProgress, Runs
from tuner.rehearse.stage import ROOT, Stage
from tuner.rehearse.verdict import checks
from tuner.spec.records import Input, Vpc
from tuner.spec.study_file import StudySpec, load, refuse_missing_secrets, refuse_unbuilt


def rehearse(
    file: Path, options: RehearsalOptions, progress: RehearsalProgress, clock: Clock, learned: Mapping[str, float]
) -> Rehearsal:
    """Run a study's script here. `learned` are interruptions per hour of running, by instance type.

    Raises SpecError, BundleRefused or RehearsalRefused if the study must be changed first, and RehearsalBroken if
    something other than the script failed.
    """
    written = load(file, options.overrides)
    spec, notes = prepared(written, options.inputs or {})
    proposal = backend.make_proposer(spec).ask(0)
    params = {} if proposal is None else proposal.params
    bundle = backend.make_bundle(spec)
    with _folder(options.keep) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as probe:
            isolated = find_isolation(Path(probe)).is_private
        stage = Stage(folder, spec, bundle, clock, options.grace_s, options.after_look)
        try:
            evidence = Runs(stage, params, options, progress, isolated=isolated).make()
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
    """The study as this machine can run it, and a note for each difference. Raises RehearsalRefused."""
    training = spec.training
    if training.entry_point is None:
        raise RehearsalRefused(
            "training.algorithm: a built-in algorithm runs in its own container only; nothing to rehearse"
        )
    notes = []
    if training.entrypoint == "image":
        notes.append("training.entrypoint: image: the rehearsal starts it through the bootstrap")
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
        vpc=Vpc(),
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
    refuse_missing_secrets(changed, os.environ)  # the script gets them, as in the real run
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
