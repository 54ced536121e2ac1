"""Every bad study file is refused by one line that names the file, the key and what to do."""

from pathlib import Path

import pytest
from spec_files import spec_of, write, yaml_text

from tuner.spec.study_file import SpecError, apply_set, from_json, load, refuse_missing_secrets, refuse_unbuilt, to_json

# blocks that replace those of the good file, the key that the message must name, and a part of what it must say
BAD = [
    # required keys
    ({"name": None}, "name", "is missing; write for example name: my-study"),
    ({"objective": None}, "objective", "is missing"),
    ({"space": None}, "space", "is missing"),
    ({"trials": None}, "trials", "is missing"),
    ({"training": None}, "training", "is missing"),
    ({"training": "{source_dir: .}"}, "training.entry_point", "is missing"),
    ({"objective": "{metric: loss}"}, "objective.direction", "is missing"),
    ({"space": "{lr: {low: 1, high: 2}}"}, "space.lr.type", "is missing"),
    ({"space": "{lr: {type: float, low: 1}}"}, "space.lr.high", "is missing"),
    # unknown keys, with the nearest known one
    ({"trails": "3"}, "trails", "did you mean trials?"),
    ({"training": "{entry_point: train.py, max_rum: 1h}"}, "training.max_rum", "did you mean max_run?"),
    ({"budget": "{euro: 3}"}, "budget.euro", "known are usd, per_trial_usd, deadline"),
    ({"local": "{interruptions: {att: [1s]}}"}, "local.interruptions.att", "did you mean at?"),
    ({"space": "{lr: {type: int, low: 1, high: 2, choices: [1]}}"}, "space.lr.choices", "unknown key"),
    # names and words
    ({"name": "Digits"}, "name", "a-z, 0-9 and -"),
    ({"name": "digits-"}, "name", "neither begins nor ends in -"),
    ({"name": "../etc"}, "name", "a-z, 0-9 and -"),
    ({"name": "a" * 33}, "name", "at most 32"),
    ({"name": "42"}, "name", "put it in quotes"),
    ({"objective": "{metric: loss, direction: minimise}"}, "objective.direction", "did you mean minimize?"),
    ({"objective": "[]"}, "objective", "at least 1"),
    ({"objective": "[{metric: a, direction: minimize}, {metric: a, direction: maximize}]"}, "objective", "twice"),
    ({"backend": "aws"}, "backend", "must be local or sagemaker"),
    ({"description": "5"}, "description", "must be a text"),
    # numbers
    ({"trials": "0"}, "trials", "between 1 and 99999"),
    ({"trials": "2.5"}, "trials", "whole number"),
    ({"trials": "true"}, "trials", "whole number, not true"),
    ({"trials": "many"}, "trials", "must be a number, not 'many'"),
    ({"trials": "1:30"}, "trials", "must be a number, not '1:30'"),
    ({"trials": "010"}, "trials", "without the leading 0"),
    ({"trials": "9" * 5000}, "trials", "finite number"),
    ({"parallel": "-1"}, "parallel", "between 1 and"),
    ({"budget": "{usd: .inf}"}, "budget.usd", "finite"),
    ({"budget": "{usd: 1e999}"}, "budget.usd", "finite"),
    ({"budget": "{usd: 0}"}, "budget.usd", "above 0"),
    ({"budget": "{usd: 0.1234567}"}, "budget.usd", "six decimals"),
    ({"budget": "{usd: '1e-99999999'}"}, "budget.usd", "above 0"),
    ({"budget": "{usd: $60}"}, "budget.usd", "must be a number"),
    # durations
    ({"budget": "{deadline: 12}"}, "budget.deadline", "for example 12s"),
    ({"budget": "{deadline: 0s}"}, "budget.deadline", "above 0"),
    ({"budget": "{deadline: 30m1h}"}, "budget.deadline", "90s, 30m, 4h or 2d"),
    ({"budget": "{deadline: 99999d}"}, "budget.deadline", "below ten years"),
    ({"settings": "{poll: fast}"}, "settings.poll", "must be a duration"),
    ({"training": "{entry_point: train.py, max_run: 1.5s}"}, "training.max_run", "whole seconds"),
    ({"training": "{entry_point: train.py, max_run: 29d}"}, "training.max_run", "at most 28d"),
    ({"training": "{entry_point: train.py, max_run: 2h, max_wait: 1h}"}, "training.max_wait", "at least max_run"),
    # the space
    ({"space": "{}"}, "space", "at least one parameter"),
    ({"space": "[lr]"}, "space", "file.py:function"),
    ({"space": "{lr: 0.1}"}, "space.lr", "must be a mapping"),
    ({"space": "{lr: {type: double, low: 1, high: 2}}"}, "space.lr.type", "float or int or categorical"),
    ({"space": "{lr: {type: float, low: 2, high: 1}}"}, "space.lr.low", "swap them"),
    ({"space": "{lr: {type: float, low: 0, high: 1, log: true}}"}, "space.lr.low", "above 0 with log"),
    ({"space": "{lr: {type: float, low: 1, high: 2, log: true, step: 1}}"}, "space.lr.step", "beside log"),
    ({"space": "{lr: {type: float, low: 0, high: 1, step: 0.3}}"}, "space.lr.high", "write high: 0.9"),
    ({"space": "{lr: {type: float, low: 0, high: 1, step: 0}}"}, "space.lr.step", "above 0"),
    ({"space": "{lr: {type: float, low: 0, high: 1e300, step: 1e-300}}"}, "space.lr.step", "too small"),
    ({"space": "{lr: {type: float, low: -1e308, high: 1e308}}"}, "space.lr.high", "too wide"),
    ({"space": "{lr: {type: float, low: 0, high: 1, log: yes}}"}, "space.lr.log", "true, false or a quoted"),
    ({"space": "{lr: {type: float, low: 0, high: 1, log: 'true'}}"}, "space.lr.log", "true or false"),
    ({"space": "{n: {type: int, low: 0.5, high: 2}}"}, "space.n.low", "whole number"),
    ({"space": "{n: {type: int, low: 0, high: 8, log: true}}"}, "space.n.low", "at least 1"),
    ({"space": "{n: {type: int, low: 0, high: 9, step: 2}}"}, "space.n.high", "write high: 8"),
    ({"space": "{a: {type: categorical, choices: []}}"}, "space.a.choices", "at least 1"),
    ({"space": "{a: {type: categorical, choices: [[1]]}}"}, "space.a.choices[0]", "not a list"),
    ({"space": "{a: {type: categorical, choices: [x, x]}}"}, "space.a.choices", "twice"),
    ({"space": "{a: {type: categorical, choices: [1, true]}}"}, "space.a.choices", "twice"),
    ({"space": "{a: {type: categorical, choices: [1, '1']}}"}, "space.a.choices", "twice"),
    ({"space": "{a: {type: categorical, choices: [on, off]}}"}, "space.a.choices[0]", "read in different ways"),
    ({"space": "{'a b': {type: int, low: 1, high: 2}}"}, "space.a b", "becomes --name"),
    ({"space": "space.txt:space"}, "space", "file.py:function"),
    ({"space": "nowhere.py:space"}, "space", "no readable file"),
    # the search
    ({"search": "{sampler: TPESampler}"}, "search.sampler", "{name: TPESampler}"),
    ({"search": "{sampler: {seed: 1}}"}, "search.sampler.name", "is missing"),
    ({"search": "{sampler: {name: os.system}}"}, "search.sampler.name", "class name"),
    ({"search": "{sampler: {name: TPESampler, n-startup: 3}}"}, "search.sampler.n-startup", "name of an argument"),
    ({"search": "{warm_start: other}"}, "search.warm_start", "must be a list"),
    (
        {
            "search": "{pruner: {name: MedianPruner}}",
            "objective": "[{metric: a, direction: minimize}, {metric: cost_usd, direction: minimize}]",
        },
        "search.pruner",
        "several objectives",
    ),
    # training
    ({"training": "{entry_point: nowhere.py}"}, "training.entry_point", "there is no file 'nowhere.py'"),
    ({"training": "{entry_point: ../train.py}"}, "training.entry_point", "inside source_dir"),
    ({"training": "{entry_point: /bin/true}"}, "training.entry_point", "inside source_dir"),
    ({"training": "{entry_point: train.py, source_dir: gone}"}, "training.source_dir", "no directory"),
    ({"training": "{algorithm: xgboost, entry_point: train.py}"}, "training.entry_point", "beside algorithm"),
    ({"training": "{algorithm: xgboost}"}, "training.algorithm", "needs backend: sagemaker"),
    (
        {"training": "{entry_point: train.py, image_uri: x, framework: {name: a, version: '1', python: py3}}"},
        "training.framework",
        "beside image_uri",
    ),
    (
        {"training": "{entry_point: train.py, framework: {name: pytorch, version: 2.10, python: py311}}"},
        "training.framework.version",
        "put it in quotes",
    ),
    ({"training": "{entry_point: train.py, hyperparameters: {lr: 1}}"}, "training.hyperparameters.lr", "searched"),
    ({"training": "{entry_point: train.py, hyperparameters: {lr:}}"}, "training.hyperparameters.lr:", "no value"),
    (
        {"training": f"{{entry_point: train.py, hyperparameters: {{text: {'x' * 2501}}}}}"},
        "training.hyperparameters.text",
        "more than 2500",
    ),
    (
        {"training": "{entry_point: train.py, hyperparameters: {" + ", ".join(f"h{i}: 1" for i in range(99)) + "}}"},
        "training.hyperparameters",
        "99 fixed and 2 searched",
    ),
    (
        {"training": "{entry_point: train.py, environment: {TUNER_RUN: x}}"},
        "training.environment.TUNER_RUN",
        "reserved",
    ),
    *(
        ({"training": f"{{entry_point: train.py, environment: {{{name}: x}}}}"}, f"training.environment.{name}", says)
        for name, says in (
            ("SM_CHANNEL_TRAIN", "toolkit"),
            ("SM_MODEL_DIR", "toolkit"),
            ("TRAINING_JOB_NAME", "SageMaker sets it"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "SageMaker sets it"),
            ("AWS_SECRET_ACCESS_KEY", "training.secrets"),
        )
    ),
    (
        {"training": '{entry_point: train.py, environment: {A: "x\\0"}}'},
        "training.environment.A",
        "no program can be given",
    ),
    (
        {"training": f"{{entry_point: train.py, environment: {{A: {'x' * 513}}}}}"},
        "training.environment.A",
        "at most 512",
    ),
    ({"training": "{entry_point: train.py, environment: {A-B: x}}"}, "training.environment.A-B", "variable"),
    ({"training": "{entry_point: train.py, environment: {A: [1]}}"}, "training.environment.A", "not a list"),
    (
        {"training": "{entry_point: train.py, environment: {" + ", ".join(f"V{i}: 1" for i in range(96)) + "}}"},
        "training.environment",
        "at most 95",
    ),
    ({"training": "{entry_point: train.py, secrets: {KEY: hunter2}}"}, "training.secrets.KEY", "from_env"),
    (
        {"training": "{entry_point: train.py, environment: {K: x}, secrets: {K: {from_env: K}}}"},
        "training.secrets.K",
        "remove one",
    ),
    ({"training": "{entry_point: train.py, metrics: {a: b}}"}, "training.metrics", "must be a list"),
    (
        {"training": "{entry_point: train.py, metrics: [{name: a, regex: 'a='}]}"},
        "training.metrics[0].regex",
        "exactly one group",
    ),
    (
        {"training": "{entry_point: train.py, metrics: [{name: a, regex: '(a)(b)'}]}"},
        "training.metrics[0].regex",
        "not 2",
    ),
    (
        {"training": "{entry_point: train.py, metrics: [{name: a, regex: 'a=(.*', step_regex: x}]}"},
        "training.metrics[0].regex",
        "not a valid regular expression",
    ),
    (
        {"training": f"{{entry_point: train.py, metrics: [{{name: a, regex: '({'x' * 500})'}}]}}"},
        "training.metrics[0].regex",
        "at most 500",
    ),
    (
        {"training": "{entry_point: train.py, metrics: [{name: a, regex: (a)}, {name: a, regex: (b)}]}"},
        "training.metrics",
        "twice",
    ),
    (
        {"training": "{entry_point: train.py, metrics: [{name: cost_usd, regex: (a)}]}"},
        "training.metrics[0].name",
        "the tuner's own",
    ),
    (
        {"training": "{entry_point: train.py, instance_types: [g5.xlarge]}"},
        "training.instance_types[0]",
        "ml.g5.xlarge",
    ),
    ({"training": "{entry_point: train.py, instance_types: []}"}, "training.instance_types", "at least 1"),
    ({"training": "{entry_point: train.py, instance_count: 0}"}, "training.instance_count", "between 1"),
    ({"training": "{entry_point: train.py, inputs: {train: data/}}"}, "training.inputs.train", "S3 URI"),
    *(
        ({"training": f"{{entry_point: train.py, inputs: {{a: {{uri: 's3://bucket/', {given}}}}}}}"}, key, says)
        for given, key, says in (
            ("mode: Pipe", "training.inputs.a.mode", "write mode: FastFile"),
            ("mode: pipe", "training.inputs.a.mode", "did you mean Pipe?"),
            ("contenttype: text/csv", "training.inputs.a.contenttype", "did you mean content_type?"),
            ("distribution: Sharded", "training.inputs.a.distribution", "ShardedByS3Key"),
            ("compression: Gzip", "training.inputs.a.compression", "Gzip needs mode: Pipe"),
            ("record_wrapper: RecordIO", "training.inputs.a.record_wrapper", "RecordIO needs mode: Pipe"),
            ("data_type: AugmentedManifestFile", "training.inputs.a.data_type", "needs mode: Pipe"),
            ("mode: Pipe, data_type: AugmentedManifestFile", "training.inputs.a.attributes", "is missing"),
            ("attributes: [label]", "training.inputs.a.attributes", "needs an augmented manifest"),
            ("data_type: ManifestFile", "training.inputs.a.data_type", "needs backend: sagemaker"),
        )
    ),
    ({"training": "{entry_point: train.py, inputs: {train: 's3://bucket/a/../b'}}"}, "training.inputs.train", ".."),
    ({"training": "{entry_point: train.py, inputs: {train: file://gone}}"}, "training.inputs.train", "nothing at"),
    ({"training": "{entry_point: train.py, inputs: {code: 's3://bucket/'}}"}, "training.inputs.code", "code bundle"),
    ({"training": "{entry_point: train.py, retry_on: [75]}"}, "training.retry_on[0]", "must be a mapping"),
    (
        {"training": "{entry_point: train.py, retry_on: [{exit_code: 1, log: x}]}"},
        "training.retry_on[0]",
        "must be one of",
    ),
    (
        {"training": "{entry_point: train.py, retry_on: [{exit_code: 0}]}"},
        "training.retry_on[0].exit_code",
        "1 and 255",
    ),
    (
        {"training": "{entry_point: train.py, retry_on: [{log: '['}]}"},
        "training.retry_on[0].log",
        "not a valid regular",
    ),
    # the rest
    ({"capacity": "{policy: cheap}"}, "capacity.policy", "spot or on-demand or auto"),
    ({"capacity": "{on_demand_after: 3}"}, "capacity.on_demand_after", "must be a mapping"),
    ({"capacity": "{on_demand_after: {}}"}, "capacity.on_demand_after.losses", "is missing"),
    ({"budget": "{usd: 1}"}, "budget.usd", "reserves $1.69"),
    (
        {"budget": "{usd: 50}", "training": "{entry_point: train.py, instance_types: [ml.zz9.large]}"},
        "budget",
        "prices: {ml.zz9.large: 1.23}",
    ),
    ({"checkpoints": "{root: /data}"}, "checkpoints.root", "s3://bucket/"),
    ({"checkpoints": "{root: 's3://bucket//x'}"}, "checkpoints.root", "empty or .. parts"),
    ({"checkpoints": "{keep: some}"}, "checkpoints.keep", "best or latest or all or none"),
    ({"prices": "{ml.g5.xlarge: free}"}, "prices.ml.g5.xlarge", "must be a number"),
    ({"prices": "{g5.xlarge: 1}"}, "prices.g5.xlarge", "instance type"),
    ({"tags": "{'tuner:x': y}"}, "tags.tuner:x", "reserved"),
    ({"tags": "{a: '<b>'}"}, "tags.a", "letters, digits"),
    ({"sagemaker": "{region: Ireland}"}, "sagemaker.region", "us-east-1"),
    ({"sagemaker": "{vpc: {subnets: [subnet-1]}}"}, "sagemaker.vpc", "needs both"),
    ({"sagemaker": "{zones: {use1-az1: subnet-1}}"}, "sagemaker.zones", "need sagemaker.vpc.security_groups"),
    *(
        ({"sagemaker": f"{{request: {request}}}"}, f"sagemaker.request.{key}", says)
        for request, key, says in (
            ("{TrainingJobName: x}", "TrainingJobName", "by the tuner itself"),
            ("{EnableManagedSpotTraining: false}", "EnableManagedSpotTraining", "use capacity.policy"),
            ("{Environment: {TUNER_TRIAL: '1'}}", "Environment", "use training.environment"),
            ("{Tags: []}", "Tags", "use tags"),
            ("{CheckpointConfig: {S3Uri: s3://b/x/}}", "CheckpointConfig", "use checkpoints.root"),
            ("{StoppingCondition: {MaxRuntimeInSeconds: 1}}", "StoppingCondition", "use training.max_run"),
            ("{StoppingCondition: {MaxWaitTimeInSeconds: 1}}", "StoppingCondition.MaxW", "use training.max_wait"),
            ("{StoppingCondition: 5}", "StoppingCondition", "must be a structure"),
            ("{ResourceConfig: {InstanceCount: 9}}", "ResourceConfig.InstanceCount", "use training.instance_count"),
            ("{ResourceConfig: {KeepAlivePeriodInSeconds: 60}}", "ResourceConfig.KeepAlivePeriodInSeconds", "remove"),
            ("{AlgorithmSpecification: {ContainerEntrypoint: [x]}}", "AlgorithmSpecification.Contai", "training.entry"),
            ("{ResourceConfig: 5}", "ResourceConfig", "must be a structure"),
            ("{EnableInterContainerTrafficEncryption: 'yes'}", "EnableInterContainerTraffic", "must be a boolean"),
            ("{RemoteDebugConfg: {}}", "RemoteDebugConfg", "did you mean RemoteDebugConfig?"),
            (
                "{ProfilerConfig: {S3Path: s3://b/}}",
                "ProfilerConfig.S3Path",
                "not a member of SageMaker's ProfilerConfig",
            ),
        )
    ),
    ({"local": "{interruptions: {}}"}, "local.interruptions", "exactly one of"),
    ({"local": "{interruptions: {at: [1s], every: 2s}}"}, "local.interruptions", "exactly one of"),
    ({"local": "{interruptions: {at: [1s], seed: 2}}"}, "local.interruptions.seed", "no meaning beside at"),
    ({"local": "{interruptions: {at: [5s, 1s]}}"}, "local.interruptions.at", "rising order"),
    ({"local": "{interruptions: {trace: gone.csv}}"}, "local.interruptions.trace", "cannot be read"),
    ({"local": "{interruptions: {trace: train.py}}"}, "local.interruptions.trace", "start_s,duration_s,instances_up"),
]


@pytest.mark.parametrize(("blocks", "key", "says"), BAD, ids=[f"{i}-{case[1]}" for i, case in enumerate(BAD)])
def test_a_bad_file_is_refused_by_one_line_that_names_the_key(
    tmp_path: Path, blocks: dict[str, str | None], key: str, says: str
):
    with pytest.raises(SpecError) as refusal:
        spec_of(tmp_path, **blocks)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'study.yaml'}: {key}"), message
    assert says in message
    assert message.isprintable(), "one line, no control characters"


# each line repeats the one before ten times
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)

# whole files: what they hold, and a part of what must be said
BROKEN = {
    "empty": ("", "is empty"),
    "only comments": ("# nothing\n", "is empty"),
    "a list": ("- name: digits\n", "must be a mapping"),
    "a text": ("digits", "must be a mapping"),
    "two documents": (yaml_text() + "---\nname: b\n", "not valid YAML: line 6"),
    "a tab": ("name: digits\nspace:\n\tlr: 1\n", "indent with spaces, not tabs"),
    "an open bracket": ("space: {lr: [1, 2}\n", "not valid YAML: line 1"),
    "a duplicate key": (yaml_text() + "trials: 3\n", "trials: stands twice (line 6)"),
    "an inner duplicate": (yaml_text(budget="{usd: 1, usd: 2}"), "budget.usd: stands twice"),
    "a key that is a number": ("1: x\n", "a key must be text, not '1'"),
    "a key that is a boolean": ("on: x\n", "a key must be text, not 'on'"),
    "a key that is a list": ("? [a]\n: x\n", "a key must be text, not a list"),
    "a python tag": ("name: !!python/object/apply:os.system [ls]\n", "name: line 1: the tag"),
    "a scalar tag": ("name: !secret abc\n", "name: line 1: the tag '!secret' is not allowed"),
    "a false tag": ("trials: !!float abc\n", "trials: line 1: must be a finite number"),
    "a merge key": ("<<: {name: a}\n", "<<: unknown key"),
    "an unknown alias": ("name: *gone\n", "undefined alias"),
    "an alias of itself": ("name: &a [*a]\n", "nested deeper"),
    "an alias bomb": (BOMB, "counting what aliases repeat"),
    "deep": ("name: " + "[" * 50 + "]" * 50, "nested deeper"),
    "very deep": ("name: " + "[" * 5_000, "nested too deeply"),
    "large": ("#" * 300_000, "is larger than"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x01", "not a text file"),
    "zeros": (b"name: a\x00b\n", "control characters"),
    "an escaped zero": ('name: "a\\0b"\n', "no program can be given"),
    "half a character": ('name: "\\ud800"\n', "no program can be given"),
    "latin-1": ("name: caf\xe9\n".encode("latin-1"), "not a text file in UTF-8"),
    "escape sequences": ('"\\e[31mred": 1\n', "unknown key"),
    "a line break in a key": ('"a\\nb": 1\n', "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_by_one_line(tmp_path: Path, kind: str):
    text, says = BROKEN[kind]
    with pytest.raises(SpecError) as refusal:
        load(write(tmp_path, text))
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'study.yaml'}: ")
    assert says in message
    assert message.isprintable()
    assert len(message) < 400


def test_a_path_that_is_not_a_file_is_refused(tmp_path: Path):
    for path, says in ((tmp_path, "is a directory"), (tmp_path / "gone", "no such file"), (Path("a\0b"), "read")):
        with pytest.raises(SpecError, match=says) as refusal:
            load(path)
        assert str(refusal.value).isprintable()


def test_an_entry_point_must_not_be_a_link_out_of_the_source(tmp_path: Path):
    source = tmp_path / "src"
    source.mkdir()
    (source / "train.py").symlink_to("/bin/sh")
    with pytest.raises(SpecError, match=r"training\.entry_point: is a link that leaves source_dir"):
        spec_of(tmp_path, training="{entry_point: train.py, source_dir: src}")


@pytest.mark.parametrize("secret", ["hunter2", "20250401"])
def test_a_secret_is_not_repeated_in_the_refusal(tmp_path: Path, secret: str):
    with pytest.raises(SpecError) as refusal:
        spec_of(tmp_path, training=f"{{entry_point: train.py, secrets: {{KEY: {secret}}}}}")
    assert secret not in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("budget.usd", "must read key=value"),
        ("=3", "must read key=value"),
        ("budget..usd=3", "must read key=value"),
        ("budget.usd=", "must read key=value"),
        ("budget.usd=[", "budget.usd is not valid YAML"),
        ("trials=lots", "trials: must be a number"),
        ("trails=3", "trails: unknown key; did you mean trials?"),
        ("trials.total=3", "trials.total: cannot be set, since trials is no mapping"),
        ("training.instance_types.0=x", "training.instance_types is no mapping"),
    ],
)
def test_a_bad_override_is_refused_by_one_line(tmp_path: Path, override: str, says: str):
    with pytest.raises(SpecError) as refusal:
        spec_of(tmp_path, override)
    assert says in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("name=other", "cannot be changed while the study lives"),
        ("budget=5", "did you mean budget.usd?"),
        ("deadline=5h", "did you mean budget.deadline?"),
        ("trials=0", "trials: must be between"),
        ("budget.usd=0.5", "cannot pay for one trial"),
    ],
)
def test_a_bad_live_change_is_refused(tmp_path: Path, assignment: str, says: str):
    spec = spec_of(tmp_path, budget="{usd: 60}")
    with pytest.raises(SpecError) as refusal:
        apply_set(spec, [assignment])
    assert says in str(refusal.value)


UNBUILT = [
    ("search.pruner.name: Promotion", {"search": "{pruner: {name: Promotion}}"}),
    ("capacity.policy: auto", {"capacity": "{policy: auto}"}),
]


@pytest.mark.parametrize(("key", "blocks"), UNBUILT, ids=[key for key, _ in UNBUILT])
def test_a_setting_that_is_not_built_is_read_and_refused_by_name(tmp_path: Path, key: str, blocks: dict[str, str]):
    spec = spec_of(tmp_path, **blocks)
    with pytest.raises(SpecError, match=rf"study\.yaml: {key}.* is not built yet; remove it$"):
        refuse_unbuilt(spec)


LOCALLY = [
    ("training.algorithm", "{algorithm: xgboost}"),
    ("training.framework", "{entry_point: train.py, framework: {name: a, version: '1', python: py3}}"),
    (
        "training.entrypoint",
        "{entry_point: train.py, entrypoint: image, metrics: [{name: val_accuracy, regex: 'a=(.*)'}]}",
    ),
    ("training.instance_count", "{entry_point: train.py, instance_count: 2}"),
]


@pytest.mark.parametrize(("key", "training"), LOCALLY, ids=[key for key, _ in LOCALLY])
def test_settings_that_need_sagemaker_are_refused_locally(tmp_path: Path, key: str, training: str):
    with pytest.raises(SpecError, match=rf"study\.yaml: {key}: .*needs backend: sagemaker"):
        spec_of(tmp_path, training=training)
    refuse_unbuilt(spec_of(tmp_path, training=training, backend="sagemaker"))


def test_a_raw_request_may_hold_members_that_the_tuner_does_not_set(tmp_path: Path):
    raw = "{EnableInterContainerTrafficEncryption: true, OutputDataConfig: {CompressionType: NONE}}"
    assert spec_of(tmp_path, sagemaker=f"{{request: {raw}}}").sagemaker.request == {
        "EnableInterContainerTrafficEncryption": True,
        "OutputDataConfig": {"CompressionType": "NONE"},
    }
    entrypoint = "{AlgorithmSpecification: {ContainerArguments: [--fast]}}"
    metrics = "[{name: val_accuracy, regex: 'a=(.*)'}]"
    training = f"{{entry_point: train.py, entrypoint: image, metrics: {metrics}}}"
    spec_of(tmp_path, backend="sagemaker", training=training, sagemaker=f"{{request: {entrypoint}}}")


def test_variables_that_nobody_else_sets_are_accepted(tmp_path: Path):
    given = "{A: \"x\\ny\", AWS_DEFAULT_REGION: eu-west-1, AWS_PROFILE: p, SM_FRAMEWORK_MODULE: m, EMPTY: ''}"
    secrets = "{AWS_SECRET_ACCESS_KEY: {from_env: KEY}}"
    spec = spec_of(tmp_path, training=f"{{entry_point: train.py, environment: {given}, secrets: {secrets}}}")
    assert dict(spec.training.environment) == {
        "A": "x\ny",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_PROFILE": "p",
        "SM_FRAMEWORK_MODULE": "m",
        "EMPTY": "",
    }
    assert from_json(to_json(spec)) == spec


def test_secrets_must_be_in_the_environment(tmp_path: Path):
    spec = spec_of(tmp_path, training="{entry_point: train.py, secrets: {KEY: {from_env: MY_KEY}}}")
    refuse_missing_secrets(spec, {"MY_KEY": "hunter2"})
    for environment in ({}, {"MY_KEY": ""}, {"MY_KEY": "hunter2" * 100}):
        with pytest.raises(SpecError, match=r"^training\.secrets\.KEY: .*MY_KEY") as refusal:
            refuse_missing_secrets(spec, environment)
        assert "hunter2" not in str(refusal.value)


def test_settings_that_are_built_are_accepted(tmp_path: Path):
    refuse_unbuilt(spec_of(tmp_path, local="{interruptions: {every: 20s, seed: 1}}", budget="{usd: 60}"))
