"""The request of a job, from study file, trial and attempt; and what is wrong with it before any job exists."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests import factories
from tuner.core.jobs import Channel, JobRequest
from tuner.core.records import AttemptState
from tuner.sagemaker.request import request_of, request_parameters
from tuner.spec.study_file import StudySpec, from_json, load, to_json
from tuner.spec.workload import ENTRYPOINT, job_request, request_violations, specimen

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = {
    "name": "digits",
    "objective": {"metric": "loss", "direction": "minimize"},
    "space": {
        "lr": {"type": "float", "low": 1e-4, "high": 0.1},
        "n": {"type": "int", "low": -1000, "high": 8},
        "kind": {"type": "categorical", "choices": ["a", "much longer"]},
    },
    "trials": 2,
    "training": {"entry_point": "train.py", "image_uri": "000000000000.dkr.ecr.us-east-1.amazonaws.com/x:1"},
    "checkpoints": {"root": "s3://bucket/tuner/"},
    "backend": "sagemaker",
    "sagemaker": {"region": "us-east-1", "role": "arn:aws:iam::000000000000:role/training"},
}


def spec_with(folder: Path, **changes: dict[str, object]) -> StudySpec:
    """The study with members of its sections replaced; None removes one."""
    document = dict(STUDY)
    for section, members in changes.items():
        merged = {**(document.get(section) or {}), **members}  # type: ignore[dict-item]
        document[section] = {key: value for key, value in merged.items() if value is not None}
    (folder / "train.py").touch()
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(document))
    return load(file)


def request(spec: StudySpec, *, zone: str | None = None) -> JobRequest:
    study = factories.study(
        key="digits-bcdfgh", backend="sagemaker", bundle_uri="s3://bucket/tuner/bundles/x/", created_at=NOW
    )
    trial = factories.trial(
        1,
        params={"lr": 0.1, "n": 3, "kind": "a"},
        prefix="s3://bucket/tuner/digits-bcdfgh/00001/",
        bundle_uri=study.bundle_uri,
    )
    attempt = factories.attempt(
        1,
        key=study.key,
        state=AttemptState.SUBMITTING,
        instance_type="ml.m5.xlarge",
        instance_count=spec.training.instance_count,
        zone=zone,
    )
    return job_request(spec, study, trial, attempt)


def test_a_plain_request_has_nothing_that_was_not_asked_for(tmp_path: Path) -> None:
    made = request(spec_with(tmp_path))
    assert made.entrypoint == ENTRYPOINT
    assert made.channels == (Channel(name="code", uri="s3://bucket/tuner/bundles/x/"),)
    assert made.hyperparameters == {"lr": "0.1", "n": "3", "kind": "a"}
    assert (made.algorithm, made.kms_key, made.security_groups, made.subnets, made.raw) == ("", "", (), (), {})
    assert made.environment.keys() == {"TUNER_STUDY", "TUNER_TRIAL", "TUNER_ATTEMPT", "TUNER_DIGEST"}


def test_everything_of_the_study_file_is_in_it(tmp_path: Path) -> None:
    made = request(
        spec_with(
            tmp_path,
            training={
                "instance_count": 4,
                "inputs": {"train": {"uri": "s3://bucket/d/", "mode": "FastFile"}},
                "secrets": {"KEY": {"from_env": "MY_KEY"}},
            },
            sagemaker={
                "kms_key": "alias/k",
                "vpc": {"security_groups": ["sg-1"], "subnets": ["subnet-1", "subnet-2"]},
                "network_isolation": True,
                "request": {"RemoteDebugConfig": {"EnableRemoteDebug": True}},
                "outputs": "s3://bucket/outputs/",
            },
        )
    )
    assert made.instance_count == 4
    assert made.channels[0] == Channel(name="train", uri="s3://bucket/d/", mode="FastFile")
    assert made.secrets == {"KEY": "MY_KEY"}
    assert (made.kms_key, made.network_isolation, made.output_uri) == ("alias/k", True, "s3://bucket/outputs/")
    assert (made.security_groups, made.subnets) == (("sg-1",), ("subnet-1", "subnet-2"))
    assert made.raw == {"RemoteDebugConfig": {"EnableRemoteDebug": True}}


def test_a_job_runs_in_the_subnet_of_its_attempt_s_zone(tmp_path: Path) -> None:
    zones = {"use1-az1": "subnet-1", "use1-az2": "subnet-2"}
    spec = spec_with(tmp_path, sagemaker={"zones": zones, "vpc": {"security_groups": ["sg-1"]}})
    assert request(spec, zone="use1-az2").subnets == ("subnet-2",)
    assert request(spec).subnets == ("subnet-1", "subnet-2")


def test_an_image_of_its_own_entrypoint_still_finds_the_code(tmp_path: Path) -> None:
    made = request(
        spec_with(tmp_path, training={"entrypoint": "image", "metrics": [{"name": "loss", "regex": "l=(.*)"}]})
    )
    assert made.entrypoint == ()
    assert [channel.name for channel in made.channels] == ["code"]


@pytest.mark.parametrize(
    ("image", "as_image", "as_algorithm"),
    [(None, "", "my-algorithm"), ("registry/xgboost:1", "registry/xgboost:1", "")],
)
def test_an_algorithm_runs_none_of_our_code(
    tmp_path: Path, image: str | None, as_image: str, as_algorithm: str
) -> None:
    training = {
        "algorithm": "my-algorithm",
        "entry_point": None,
        "image_uri": image,
        "max_run": "30m",
        "max_wait": "1h",
        "metrics": [{"name": "validation:auc", "regex": "auc=(.*)"}],
    }
    spec = spec_with(tmp_path, training=training)
    made = request(spec)
    assert made.metrics == (), "SageMaker refuses others than the algorithm's own"
    assert (made.image_uri, made.algorithm, made.entrypoint, made.channels) == (as_image, as_algorithm, (), ())
    assert request_violations(spec) == ()
    assert not any("max_wait" in warning for warning in spec.warnings)
    longer = spec_with(tmp_path, training={**training, "max_wait": "2h"})
    assert any("at most 1h" in warning for warning in longer.warnings)


# --- before any job exists


def test_the_specimen_is_the_longest_of_all_requests(tmp_path: Path) -> None:
    made = specimen(spec_with(tmp_path), "ml.m5.xlarge")
    assert made.hyperparameters["kind"] == "much longer"
    assert made.hyperparameters["n"] == "-1000"
    assert len(made.hyperparameters["lr"]) == len(repr(-1.2345678901234567e-300))
    assert made.name.endswith("-99999-999")


def test_a_good_study_has_no_violations(tmp_path: Path) -> None:
    kinds = ["ml.m5.xlarge", "ml.g5.xlarge", "ml.p4d.24xlarge", "ml.trn1.32xlarge"]
    spec = spec_with(tmp_path, training={"instance_types": kinds}, sagemaker={"kms_key": "alias/k"})
    assert request_violations(spec) == ()
    assert request_violations(replace(spec, capacity=replace(spec.capacity, policy="on-demand"))) == ()


def test_what_single_trials_would_be_refused_for_is_found_before_the_first(tmp_path: Path) -> None:
    spec = spec_with(
        tmp_path,
        training={"instance_types": ["ml.g5.xlarge", "ml.g5.huge"]},
        sagemaker={"role": "arn:aws:iam::0:role/x-of-a-short-account"},
    )
    types, role = sorted(request_violations(spec), reverse=True)
    assert "ml.g5.huge" in types
    assert "roleArn" in role  # once, though both types have it


def test_a_merged_request_is_checked_as_a_whole(tmp_path: Path) -> None:
    raw = {"ExperimentConfig": {"ExperimentName": "x" * 200}, "OutputDataConfig": {"CompressionType": "ZIP"}}
    lines = request_violations(spec_with(tmp_path, sagemaker={"request": raw}))
    assert any("experimentConfig.experimentName" in line for line in lines)
    assert any("outputDataConfig.compressionType" in line and "GZIP" in line for line in lines)


def test_the_channels_of_an_algorithm_say_all_that_sagemaker_knows_of_them(tmp_path: Path) -> None:
    inputs = {
        "train": {"uri": "s3://bucket/d/", "content_type": "text/csv", "distribution": "ShardedByS3Key"},
        "lines": {
            "uri": "s3://bucket/m",
            "mode": "Pipe",
            "data_type": "AugmentedManifestFile",
            "attributes": ["source-ref", "label"],
            "record_wrapper": "RecordIO",
            "compression": "Gzip",
        },
    }
    spec = spec_with(tmp_path, training={"algorithm": "mine", "entry_point": None, "image_uri": None, "inputs": inputs})
    assert from_json(to_json(spec)) == spec
    assert request_violations(spec) == ()
    parameters = request_parameters(specimen(spec, "ml.m5.xlarge"))
    lines, train = parameters["InputDataConfig"]
    assert train == {
        "ChannelName": "train",
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": "s3://bucket/d/",
                "S3DataDistributionType": "ShardedByS3Key",
            }
        },
        "InputMode": "File",
        "ContentType": "text/csv",
    }
    source = lines["DataSource"]["S3DataSource"]
    assert (source["S3DataType"], source["AttributeNames"]) == ("AugmentedManifestFile", ["source-ref", "label"])
    assert (lines["InputMode"], lines["RecordWrapperType"], lines["CompressionType"]) == ("Pipe", "RecordIO", "Gzip")
    assert request_of(parameters).channels == specimen(spec, "ml.m5.xlarge").channels


@pytest.mark.parametrize("backend", ["sagemaker", "local"])
def test_the_largest_environment_fits_beside_ours(tmp_path: Path, backend: str) -> None:
    environment = {f"V{number}": "x\ny" for number in range(95)}
    spec = spec_with(tmp_path, training={"environment": environment})
    assert request_violations(replace(spec, backend=backend)) == ()


def test_a_leaf_of_a_structure_of_ours_is_merged_and_held_to_sagemaker_s_rules(tmp_path: Path) -> None:
    def with_pending(seconds: int, kind: str) -> StudySpec:
        raw = {"StoppingCondition": {"MaxPendingTimeInSeconds": seconds}}
        return spec_with(tmp_path, training={"instance_types": [kind]}, sagemaker={"request": raw})

    spec = with_pending(7200, "ml.g5.xlarge")
    assert request_violations(spec) == ()
    sent = request_parameters(specimen(spec, "ml.g5.xlarge"))["StoppingCondition"]
    assert sent == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 14_400, "MaxPendingTimeInSeconds": 7200}
    assert "accelerated instances only" in request_violations(with_pending(7200, "ml.m5.large"))[0]
    assert "have value greater than or equal to" in request_violations(with_pending(60, "ml.g5.xlarge"))[0]
