"""Studies whose containers our bootstrap does not start: algorithms, and images that start themselves."""

from pathlib import Path

import pytest
from spec_files import spec_of

from tuner.spec import SpecError, StudySpec

METRIC = "{name: val_accuracy, regex: 'a=([-+0-9.e]+)'}"


def image(folder: Path, more: str = "", **blocks: str) -> StudySpec:
    """A study with an image of its own entrypoint; `more` of its training section."""
    training = f"{{entry_point: train.py, entrypoint: image, image_uri: x, max_run: 1h{more}}}"
    return spec_of(folder, training=training, backend="sagemaker", sagemaker="{region: us-east-1}", **blocks)


def test_an_objective_that_nobody_could_find_is_refused(tmp_path: Path) -> None:
    for metrics in ("", ", metrics: [{name: other, regex: 'b=(.*)'}]"):
        with pytest.raises(SpecError, match=r"objective\.metric: val_accuracy is not in training\.metrics"):
            image(tmp_path, metrics)
    assert image(tmp_path, f", metrics: [{METRIC}]").warnings == ()
    cost = "[{metric: cost_usd, direction: minimize}, {metric: val_accuracy, direction: maximize}]"
    assert image(tmp_path, f", metrics: [{METRIC}]", objective=cost).warnings == ()


def test_what_has_no_use_without_the_bootstrap_is_said(tmp_path: Path) -> None:
    steps = "{name: val_accuracy, regex: 'a=(.*)', step_regex: 'e=(.*)'}"
    (said,) = image(tmp_path, f", metrics: [{steps}]").warnings
    assert said.startswith("training.metrics[0].step_regex: is not used")
    (said,) = image(tmp_path, f", metrics: [{METRIC}], stall_after: 9m").warnings
    assert said.startswith("training.stall_after: metrics come from CloudWatch minutes late; below 10m")
    assert image(tmp_path, f", metrics: [{METRIC}], stall_after: 10m").warnings == ()


def algorithm(folder: Path, more: str = "", policy: str = "spot") -> StudySpec:
    return spec_of(
        folder,
        training=f"{{algorithm: mine{more}}}",
        backend="sagemaker",
        sagemaker="{region: us-east-1}",
        capacity=f"{{policy: {policy}}}",
    )


def test_what_an_algorithm_may_wait_by_default_is_what_sagemaker_takes(tmp_path: Path) -> None:
    spec = algorithm(tmp_path)
    assert (spec.training.max_run_s, spec.training.max_wait_s, spec.warnings) == (3600, 3600, ())
    assert algorithm(tmp_path, ", max_run: 10m").training.max_wait_s == 3600
    (said,) = algorithm(tmp_path, ", max_wait: 2h").warnings
    assert said.startswith("training.max_wait: SageMaker takes at most 1h")
    longer = algorithm(tmp_path, ", max_run: 2h")
    assert longer.training.max_wait_s == 7200
    (said,) = longer.warnings
    assert said.startswith("training.max_run: 2h, but SageMaker takes at most 1h, waiting included")
    assert algorithm(tmp_path, ", max_run: 2h", policy="on-demand").warnings == ()
