"""Study files for the tests: a good one in blocks, any of which a test replaces by other YAML text."""

from pathlib import Path

from jsonschema import Draft7Validator

from tuner.spec.schema import study_schema
from tuner.spec.study_file import StudySpec, load
from tuner.spec.yaml_text import assign, read_document

BASE_SCHEMA = study_schema()

GOOD = {
    "name": "digits",
    "objective": "{metric: val_accuracy, direction: maximize}",
    "space": "{lr: {type: float, low: 1e-4, high: 0.1, log: true}, act: {type: categorical, choices: [relu, tanh]}}",
    "trials": "24",
    "training": "{entry_point: train.py, instance_types: [ml.g5.xlarge]}",
}

# every key that a study file may have
WHOLE = """
name: digits
description: text
objective: {metric: val_accuracy, direction: maximize}
space:
  lr:         {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  hidden:     {type: int, low: 16, high: 256, log: true}
  dropout:    {type: float, low: 0, high: 0.5, step: 0.1}
  activation: {type: categorical, choices: [relu, tanh, null, 3]}
search:
  sampler: {name: TPESampler, seed: 7, n_startup_trials: null}
  pruner:  {name: PatientPruner, patience: 2, wrapped_pruner: {name: MedianPruner}}
  warm_start: [earlier-study]
trials: 24
parallel: 4
training:
  entry_point: train.py
  source_dir: .
  hyperparameters: {epochs: 30, optimizer: adam, layers: [64, 64]}
  environment: {OMP_NUM_THREADS: 4}
  secrets: {WANDB_API_KEY: {from_env: MY_KEY}}
  metrics: [{name: val_accuracy, regex: 'val_accuracy=([-+0-9.eEnaif]+)', step_regex: 'epoch=([0-9]+)'}]
  instance_types: [ml.g5.xlarge, ml.g4dn.xlarge]
  instance_count: 2
  launcher: torchrun
  entrypoint: image
  framework: {name: pytorch, version: 2.5.1, python: py311}
  inputs:
    train: s3://bucket/data/
    test: {uri: s3://bucket/test/, mode: FastFile, content_type: text/csv, distribution: ShardedByS3Key}
    piped:
      {uri: s3://bucket/m, mode: Pipe, compression: Gzip, record_wrapper: RecordIO, data_type: AugmentedManifestFile,
       attributes: [source-ref, label]}
  max_run: 1h
  max_wait: 4h
  stall_after: 1h30m
  retry_on: [{exit_code: 75}, {log: 'NCCL|ECC'}]
capacity: {policy: auto, on_demand_after: {losses: 3}, max_faults: 0}
budget: {usd: 60, per_trial_usd: 2.00, deadline: 12h}
checkpoints: {root: s3://bucket/tuner, keep: best}
prices: {ml.g5.xlarge: 1.41}
tags: {cost-center: ml-42}
backend: sagemaker
sagemaker:
  region: eu-west-1
  role: tuner
  profile:
  volume_gb: 50
  kms_key: alias/tuner
  vpc: {security_groups: [sg-1], subnets: [subnet-1]}
  zones: {eu-west-1a: subnet-1}
  network_isolation: true
  outputs: s3://bucket/outputs/
  request: {ExperimentConfig: {ExperimentName: digits}}
local: {interruptions: {at: [15s, 35s, 55s], down: 5s}}
settings: {poll: 2s, stop_within: 1m, stop_grace: 10s, upload_allowance: 20s}
"""


def yaml_text(**blocks: str | None) -> str:
    """The good file with these blocks in place of its own; None leaves one out."""
    merged = {**GOOD, **blocks}
    return "".join(f"{key}: {block}\n" for key, block in merged.items() if block is not None)


def write(folder: Path, text: str | bytes) -> Path:
    """A study file beside the script that it names."""
    (folder / "train.py").touch()
    file = folder / "study.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def spec_of(folder: Path, *overrides: str, **blocks: str | None) -> StudySpec:
    """A file that is accepted; the JSON schema must accept it as well."""
    file = write(folder, yaml_text(**blocks))
    spec = load(file, overrides)
    document = read_document(file)
    for assignment in overrides:
        assign(document, assignment)
    Draft7Validator(BASE_SCHEMA).validate(document)
    return spec
