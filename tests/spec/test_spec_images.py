"""Studies whose containers our bootstrap does not start: algorithms, and images that start themselves."""

from pathlib import Path

import pytest
from spec_files import spec_of

from tuner.spec.study_file import SpecError, StudySpec

METRIC = "{name: val_accuracy, regex: 'a=([-+0-9.e]+)'}"


def image(folder: Path, more: str = "", **blocks: str) -> StudySpec:
    """A study with an image of its own entrypoint; `more` of its training section."""
    training = f"{{entry_point: train.py, entrypoint: image, image_uri: x, max_run: 1h{more}}}"
    return spec_of(folder, training=training, backend="sagemaker", sagemaker="{region: us-east-1}", **blocks)


def test_an_objective_that_no_regex_finds_is_refused(tmp_path: Path) -> None:
    for metrics in ("", ", metrics: [{name: other, regex: 'b=(.*)'}]"):
        with pytest.raises(SpecError, match=r"objective\.metric: val_accuracy is not in training\.metrics"):
            image(tmp_path, metrics)
    assert image(tmp_path, f", metrics: [{METRIC}]").warnings == ()
    cost = "[{metric: cost_usd, direction: minimize}, {metric: val_accuracy, direction: maximize}]"
    assert image(tmp_path, f", metrics: [{METRIC}]", objective=cost).warnings == ()


def test_settings_without_use_without_the_bootstrap_are_warned_about(tmp_path: Path) -> None:
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


def test_an_algorithm_waits_by_default_as_long_as_sagemaker_allows(tmp_path: Path) -> None:
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


def test_values_that_the_toolkit_changes_are_warned_about(tmp_path: Path) -> None:
    fixed = f", metrics: [{METRIC}], hyperparameters: {{run: 12e4x, id: '12e4', lr: 0.1, num: 3, sizes: [1, 2]}}"
    space = "{opt: {type: categorical, choices: [adam, true, null, 2]}, depth: {type: int, low: 1, high: 3}}"
    (said,) = image(tmp_path, fixed, space=space).warnings
    assert "gives it other values (id: '12e4' as '120000.0'; opt: 'true' as 'True'; opt: 'null' as ''); write" in said
    (said,) = image(tmp_path, f", metrics: [{METRIC}]", space="{n: {type: int, low: 1, high: 3}}").warnings
    assert "gives it -n in place of --n; rename it" in said
    many = f", metrics: [{METRIC}], hyperparameters: {{a1: true, a2: true, a3: true, a4: true, a5: true}}"
    (said,) = image(tmp_path, many).warnings
    assert "a3: 'true' as 'True'; and 2 more)" in said
    with_bootstrap = "{entry_point: train.py, image_uri: x, hyperparameters: {id: '12e4', flag: true, x: 1}}"
    spec = spec_of(tmp_path, training=with_bootstrap, backend="sagemaker", sagemaker="{region: us-east-1}")
    assert spec.warnings == (), "the bootstrap passes on what was sent"


def test_a_framework_image_must_be_told_what_to_start(tmp_path: Path) -> None:
    def framework(more: str) -> StudySpec:
        kind = "{name: pytorch, version: '2.5.1', python: py311}"
        training = f"{{entry_point: train.py, entrypoint: image, framework: {kind}, metrics: [{METRIC}]{more}}}"
        return spec_of(tmp_path, training=training, backend="sagemaker", sagemaker="{region: us-east-1}")

    (said,) = framework("").warnings
    assert said.endswith("(the script) and sagemaker_submit_directory: /opt/ml/input/data/code")
    code = "{sagemaker_program: train.py, sagemaker_submit_directory: /opt/ml/input/data/code}"
    assert framework(f", hyperparameters: {code}").warnings == ()
