"""Good study files: every key is understood, defaults are filled in, paths and overrides resolve."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from spec_files import WHOLE, spec_of, write, yaml_text

from tuner.spec.study_file import (
    Budget,
    Capacity,
    CategoricalParam,
    Component,
    FloatParam,
    Framework,
    Input,
    IntParam,
    LocalMarket,
    Metric,
    Objective,
    RetryRule,
    SpaceFunction,
    SpecChange,
    StudySpec,
    apply_set,
    as_begun,
    changes,
    describe,
    from_json,
    load,
    to_json,
)


@pytest.fixture
def whole(tmp_path: Path) -> StudySpec:
    return load(write(tmp_path, WHOLE))


def test_every_key_is_understood(whole: StudySpec, tmp_path: Path):
    assert whole.objectives == (Objective("val_accuracy", "maximize"),)
    assert whole.space == (
        FloatParam("lr", 1e-4, 0.1, None, log=True),
        IntParam("hidden", 16, 256, 1, log=True),
        FloatParam("dropout", 0.0, 0.5, 0.1),
        CategoricalParam("activation", ("relu", "tanh", None, 3)),
    )
    assert whole.search.sampler == Component("TPESampler", {"seed": 7, "n_startup_trials": None})
    assert whole.search.pruner == Component(
        "PatientPruner", {"patience": 2, "wrapped_pruner": {"name": "MedianPruner"}}
    )
    assert whole.search.warm_start == ("earlier-study",)
    assert (whole.trials, whole.parallel) == (24, 4)
    assert whole.capacity == Capacity("auto", 3, 0)
    assert whole.budget == Budget(Decimal(60), Decimal(2), 43_200)
    assert (whole.checkpoints.root, whole.checkpoints.keep) == ("s3://bucket/tuner/", "best")
    assert whole.local == LocalMarket("at", at_s=(15, 35, 55), down_s=5)
    assert whole.sagemaker.zones == {"eu-west-1a": "subnet-1"}
    assert whole.sagemaker.request == {"ExperimentConfig": {"ExperimentName": "digits"}}
    assert whole.settings.stop_grace_s == 10
    assert whole.file == tmp_path / "study.yaml"


def test_the_training_section_is_understood(whole: StudySpec, tmp_path: Path):
    training = whole.training
    assert (training.entry_point, training.source_dir) == ("train.py", tmp_path)
    assert training.hyperparameters == {"epochs": 30, "optimizer": "adam", "layers": [64, 64]}
    assert training.environment == {"OMP_NUM_THREADS": "4"}
    assert training.secrets == {"WANDB_API_KEY": "MY_KEY"}
    assert training.metrics == (Metric("val_accuracy", "val_accuracy=([-+0-9.eEnaif]+)", "epoch=([0-9]+)"),)
    assert training.framework == Framework("pytorch", "2.5.1", "py311")
    assert training.inputs == (
        Input("train", "s3://bucket/data/", "File"),
        Input("test", "s3://bucket/test/", "FastFile", content_type="text/csv", distribution="ShardedByS3Key"),
        Input(
            "piped",
            "s3://bucket/m",
            "Pipe",
            compression="Gzip",
            record_wrapper="RecordIO",
            data_type="AugmentedManifestFile",
            attributes=("source-ref", "label"),
        ),
    )
    assert (training.max_run_s, training.max_wait_s, training.stall_after_s) == (3600, 14_400, 5400)
    assert training.retry_on == (RetryRule(75, None), RetryRule(None, "NCCL|ECC"))


def test_a_local_channel_is_a_folder_next_to_the_file(tmp_path: Path):
    given = "{uri: file://., mode: FastFile, content_type: text/csv, distribution: ShardedByS3Key"
    given += ", compression: None, record_wrapper: None, data_type: S3Prefix}"
    spec = spec_of(tmp_path, training=f"{{entry_point: train.py, inputs: {{test: {given}}}}}")
    assert spec.training.inputs == (
        Input("test", f"file://{tmp_path}", "FastFile", "text/csv", "ShardedByS3Key", "None", "None", "S3Prefix"),
    )


def test_defaults_are_filled_in(tmp_path: Path):
    spec = spec_of(tmp_path)
    assert spec.search.sampler == Component("TPESampler")
    assert spec.search.pruner is None
    assert spec.parallel == 1
    assert spec.capacity == Capacity("spot", None, 3)
    assert spec.budget == Budget(None, None, None)
    assert spec.checkpoints.root == "s3://tuner-local/"
    assert spec.checkpoints.keep == "all"
    assert (spec.training.max_run_s, spec.training.max_wait_s) == (3600, 14_400)
    assert (spec.backend, spec.region, spec.local) == ("local", "us-east-1", None)
    assert spec.settings.poll_interval_s == 1
    assert spec_of(tmp_path, backend="sagemaker").settings.poll_interval_s == 30
    assert spec.warnings == ()


def test_null_is_the_same_as_absent(tmp_path: Path):
    assert spec_of(tmp_path, budget="{usd: null, deadline: }", local="null", search="", tags="~") == spec_of(tmp_path)


def test_numbers_are_read_as_people_write_them(tmp_path: Path):
    spec = spec_of(
        tmp_path,
        space="{a: {type: float, low: 1e-4, high: '1E-1'}, b: {type: int, low: 1e1, high: '20'}}",
        budget="{usd: '60.50'}",
    )
    assert spec.space == (FloatParam("a", 1e-4, 0.1), IntParam("b", 10, 20))
    assert spec.budget.microusd == 60_500_000


def test_dates_and_times_stay_text(tmp_path: Path):
    spec = spec_of(tmp_path, training="{entry_point: train.py, hyperparameters: {day: 2024-01-01, at: 1:30, v: 1_0}}")
    assert spec.training.hyperparameters == {"day": "2024-01-01", "at": "1:30", "v": "1_0"}


def test_aliases_may_be_used(tmp_path: Path):
    spec = spec_of(tmp_path, space="{a: &range {type: int, low: 1, high: 2}, b: *range}")
    assert spec.space == (IntParam("a", 1, 2), IntParam("b", 1, 2))


def test_paths_are_relative_to_the_file_and_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("src/train.py", "space.py", "trace.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("start_s,duration_s,instances_up\n0,60,1\n")
    write(
        tmp_path,
        yaml_text(
            space="space.py:suggest",
            training="{entry_point: ./train.py, source_dir: ./src}",
            local="{interruptions: {trace: sub/../trace.csv, speed: 600}}",
        ),
    )
    monkeypatch.chdir(tmp_path / "src")
    spec = load(Path("../study.yaml"))
    assert spec.file == tmp_path / "study.yaml"
    assert (spec.training.source_dir, spec.training.entry_point) == (tmp_path / "src", "train.py")
    assert spec.space == SpaceFunction(str(tmp_path / "space.py"), "suggest")
    assert spec.local == LocalMarket("trace", trace=tmp_path / "trace.csv", speed=600)


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    assert load(write(tmp_path, b"\xef\xbb\xbf" + yaml_text().encode())).name == "digits"


def test_overrides_take_dotted_keys(tmp_path: Path):
    spec = spec_of(
        tmp_path,
        "trials=5",
        "budget.usd=80",
        "space.lr.low=1e-3",
        "training.hyperparameters.a.b=x=y",
        "prices.ml.g5.xlarge=1.5",
        "local.interruptions={every: 20s, seed: 1}",
        "search.pruner=null",
        budget="{usd: 60, deadline: 2h}",
        search="{pruner: {name: MedianPruner}}",
    )
    assert spec.trials == 5
    assert spec.budget == Budget(Decimal(80), None, 7200)
    assert isinstance(spec.space, tuple)
    assert spec.space[0] == FloatParam("lr", 1e-3, 0.1, log=True)
    assert spec.training.hyperparameters == {"a.b": "x=y"}
    assert spec.prices == {"ml.g5.xlarge": Decimal("1.5")}
    assert spec.local == LocalMarket("every", every_s=20, seed=1)
    assert spec.search.pruner is None


STEPLESS = "metrics: [{name: val_accuracy, regex: (a)}]"


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"local": "{interruptions: {every: 20s}}"}, True),
        ({"backend": "sagemaker"}, True),
        ({"backend": "sagemaker", "capacity": "{policy: on-demand}"}, False),
        ({}, False),  # a local study that nothing interrupts
        ({"local": "{interruptions: {every: 20s}}", "training": "{entry_point: train.py}"}, False),
        (
            {
                "local": "{interruptions: {every: 20s}}",
                "training": "{entry_point: train.py, metrics: [{name: val_accuracy, regex: (a), step_regex: (b)}]}",
            },
            False,
        ),
    ],
)
def test_an_objective_without_steps_is_warned_about_if_capacity_may_be_lost(tmp_path: Path, changes, warned):
    spec = spec_of(tmp_path, **{"training": f"{{entry_point: train.py, {STEPLESS}}}"} | changes)
    said = [line for line in spec.warnings if line.startswith("training.metrics[0].step_regex: is not set")]
    assert len(said) == warned


def test_odd_settings_are_warned_about(tmp_path: Path):
    spec = spec_of(
        tmp_path,
        objective="{metric: val_acuracy, direction: maximize}",
        parallel="25",
        training="{entry_point: train.py, instance_types: [ml.zz9.large], metrics: [{name: val_accuracy, regex: (a)}]}",
        prices="{ml.g5.xlarge: 1}",
        budget="{deadline: 10m}",
    )
    said = "\n".join(spec.warnings)
    assert "parallel: 25 is more than the 24 trials" in said
    assert "prices: {ml.zz9.large: 1.23}" in said
    assert "did you mean val_accuracy?" in said
    assert "prices.ml.g5.xlarge: is not one of" in said
    assert "budget.deadline: is shorter" in said


def test_the_budget_must_pay_for_a_first_attempt_to_the_micro_dollar(tmp_path: Path):
    # (3600 + 1 + 300 + 120 + 300) s x 2 x $1.00/h
    training, prices = "{entry_point: train.py, instance_count: 2, instance_types: [ml.g5.xlarge]}", "{ml.g5.xlarge: 1}"
    blocks = {"training": training, "prices": prices, "backend": "sagemaker", "settings": "{poll: 1s}"}
    assert spec_of(tmp_path, **blocks, budget="{usd: 2.400556}").reservation_s == 4321
    with pytest.raises(ValueError, match=r"budget\.usd"):
        spec_of(tmp_path, **blocks, budget="{usd: 2.400555}")


@pytest.mark.parametrize(("allowed", "fits"), [("0.80", "35m59s"), ("0.205", "17s"), ("0.05", None)])
def test_a_trial_budget_below_max_run_names_what_would_fit(tmp_path: Path, allowed, fits):
    def read(max_run: str) -> StudySpec:
        training = f"{{entry_point: train.py, max_run: {max_run}, max_wait: 9h, instance_types: [ml.g5.xlarge]}}"
        return spec_of(tmp_path, training=training, prices="{ml.g5.xlarge: 1}", budget=f"{{per_trial_usd: {allowed}}}")

    (warning,) = [line for line in read("4h").warnings if line.startswith("budget.per_trial_usd")]
    assert "stops a trial before it has used its max_run of 4h, which may cost $4.20" in warning
    if fits is None:
        assert "no max_run fits" in warning
    else:
        named = warning.rpartition("max_run: ")[2].removesuffix(" would fit")
        assert named == fits
        assert read(named).warnings == ()
        assert read("36m" if fits == "35m59s" else "18s").warnings != ()


def test_a_stored_spec_is_read_back_without_its_files(whole: StudySpec, tmp_path: Path):
    stored = to_json(whole)
    (tmp_path / "train.py").unlink()
    (tmp_path / "study.yaml").unlink()
    assert from_json(stored) == whole


def test_describe_lists_every_effective_setting(tmp_path: Path):
    settings = dict(describe(spec_of(tmp_path)))
    assert settings["trials"] == "24"
    assert settings["training.max_wait"] == "4h"
    assert settings["budget.usd"] == "-"
    assert settings["training.hyperparameters"] == "-"
    assert settings["space.act.choices"] == "relu, tanh"
    assert settings["search.sampler.name"] == "TPESampler"


def test_live_changes_change_totals_only(whole: StudySpec):
    changed = apply_set(whole, ["budget.usd=80.5", "trials=30", "budget.deadline=null"])
    assert (changed.trials, changed.budget) == (30, Budget(Decimal("80.5"), Decimal(2), None))
    assert changes(whole, changed) == [
        SpecChange("trials", 24, 30, "harmless"),
        SpecChange("budget.usd", "60", "80.5", "harmless"),
        SpecChange("budget.deadline", "12h", None, "harmless"),
    ]


@pytest.mark.parametrize(
    ("blocks", "key", "kind"),
    [
        ({"description": "better"}, "description", "harmless"),
        ({"parallel": "2"}, "parallel", "harmless"),
        ({"budget": "{usd: 60}"}, "budget.usd", "harmless"),
        ({"local": "{interruptions: {every: 5s}}"}, "local.interruptions.every", "harmless"),
        ({"search": "{sampler: {name: RandomSampler}}"}, "search.sampler.name", "needs_accept"),
        ({"training": "{entry_point: other.py}"}, "training.entry_point", "needs_accept"),
        ({"objective": "{metric: loss, direction: minimize}"}, "objective", "never"),
        ({"training": "{entry_point: train.py, max_run: 2h}"}, "training.max_run", "needs_accept"),
        ({"name": "other"}, "name", "never"),
        ({"checkpoints": "{root: 's3://elsewhere/'}"}, "checkpoints.root", "never"),
        ({"space": "space.py:space"}, "space", "needs_accept"),
    ],
)
def test_each_change_has_its_kind(tmp_path: Path, blocks: dict[str, str], key: str, kind: str):
    for name in ("other.py", "space.py"):
        (tmp_path / name).touch()
    found = changes(spec_of(tmp_path), spec_of(tmp_path, **blocks))
    assert (key, kind) in [(change.key, change.kind) for change in found]


def test_the_number_of_instances_never_changes(whole: StudySpec):
    """A budget and a result would not mean the same before and after."""
    more = replace(whole, training=replace(whole.training, instance_count=whole.training.instance_count + 1))
    assert [(change.key, change.kind) for change in changes(whole, more)] == [("training.instance_count", "never")]


@pytest.mark.parametrize(
    ("key", "spared"),
    [
        ("training.hyperparameters.batch", True),
        ("training.image_uri", True),
        ("space.lr.low", True),
        ("space (order)", True),
        ("training.max_run", False),
        ("training.instance_types", False),
        ("search.pruner.name", False),
        ("sagemaker.role", False),
    ],
)
def test_which_changes_are_for_new_trials_only(key: str, *, spared: bool):
    assert SpecChange(key, 1, 2, "needs_accept").for_new_trials is spared


def test_a_trial_keeps_the_settings_that_shape_its_result(whole: StudySpec):
    """Also if the new file removes a setting or moves it to another section."""
    other = replace(
        whole.training,
        hyperparameters={"new": 1},
        environment={},
        secrets=dict.fromkeys(whole.training.environment, "X"),
        max_run_s=whole.training.max_run_s + 1,
    )
    begun = as_begun(replace(whole, training=other), to_json(whole)).training
    assert begun == replace(whole.training, secrets=other.secrets, max_run_s=other.max_run_s)


@pytest.mark.parametrize(
    ("param", "key", "kind"),
    [
        ("lr: {type: float, low: 1e-4, high: 0.2, log: true}", "space.lr.high", "needs_accept"),
        ("lr: {type: float, low: 1e-4, high: 0.1}", "space.lr.log", "never"),
        ("lr: {type: categorical, choices: [0.1]}", "space.lr.type", "never"),
        ("rate: {type: float, low: 1e-4, high: 0.1, log: true}", "space.lr.type", "never"),
    ],
)
def test_each_change_of_the_space_has_its_kind(tmp_path: Path, param: str, key: str, kind: str):
    act = "act: {type: categorical, choices: [relu, tanh]}"
    found = changes(spec_of(tmp_path), spec_of(tmp_path, space=f"{{{param}, {act}}}"))
    assert (key, kind) in [(change.key, change.kind) for change in found]
    swapped = changes(spec_of(tmp_path), spec_of(tmp_path, space=f"{{{act}, {param}}}"))
    assert "space (order)" in [change.key for change in swapped]


def test_choices_that_are_equal_in_python_alone_are_a_change(tmp_path: Path):
    one, true = "{a: {type: categorical, choices: [1]}}", "{a: {type: categorical, choices: [true]}}"
    (change,) = changes(spec_of(tmp_path, space=one), spec_of(tmp_path, space=true))
    assert (change.key, change.kind, str(change)) == ("space.a.choices", "never", "space.a.choices: 1 -> true")


def test_the_same_file_has_no_changes(tmp_path: Path):
    written = spec_of(tmp_path, budget="{usd: 60, deadline: 90m}")
    assert changes(written, spec_of(tmp_path, budget="{usd: 60.00, deadline: 1h30m}", parallel="1")) == []
