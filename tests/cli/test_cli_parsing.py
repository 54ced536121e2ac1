"""Verbs, usage errors and exit codes: what holds before anything is read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import Call, Faked

from tuner.cli import main

VERBS = [
    *(["launch"], ["resume"], ["status"], ["trials"], ["show"], ["logs"], ["best"], ["compare"], ["stop"], ["cancel"]),
    *(
        ["set"],
        ["audit"],
        ["gc"],
        ["doctor"],
        ["db"],
        ["db", "upgrade"],
        ["db", "current"],
        ["local"],
        ["local", "jobs"],
        ["local", "serve"],
        ["rehearse"],
        ["schema"],
    ),
]
READING = [
    "status",
    "trials x",
    "show x 1",
    "logs x 1",
    "best x",
    "compare x",
    "audit x",
    "gc x",
    "doctor",
    "db current",
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_has_help(call: Call, verb: list[str]) -> None:
    code, out, err = call(*verb, "--help")
    assert (code, err) == (0, "")
    usage, sentence, *_ = out.split("\n\n")
    assert usage.startswith(f"usage: tuner {' '.join(verb)}")
    assert len(sentence) > 10  # it says what it does


def test_help_names_every_verb_and_no_other(call: Call) -> None:
    _, out, _ = call("--help")
    named = {line.split()[0] for line in out.splitlines() if line.startswith("    ") and line.strip()}
    assert named == {verb[0] for verb in VERBS}


@pytest.mark.parametrize("words", [*READING, "local jobs"])
def test_every_reading_verb_takes_json(words: str) -> None:
    assert main.parser().parse_args([*words.split(), "--json"]).json is True


@pytest.mark.parametrize(
    "words",
    [
        *("plan f", "plan --help", "export x", "--store u ui", "compare x --format html"),
    ],
)
def test_a_verb_of_a_later_day_says_so(call: Call, words: str) -> None:
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert "is not built yet" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: VERB"),
        ("frobnicate", "invalid choice: 'frobnicate'"),
        ("launch", "required: FILE"),
        ("show digits", "required: TRIAL"),
        ("show digits -1", "-1"),
        ("show digits one", "'one' is not a whole number of at least 0"),
        ("best digits -n 0", "'0' is not a whole number of at least 1"),
        ("status --sto x", "unrecognized arguments: --sto"),
        ("stop digits --now --drain", "not allowed with argument"),
        ("resume", "which STUDY?"),
        ("resume --all", "--all goes with --once"),
        ("resume digits --all --once", "without a STUDY"),
        ("status -w --json", "choose one"),
        ("logs digits 0 -f --json", "choose one"),
        ("compare digits --format png", "-o FILE"),
        ("compare digits --format csv --json", "exclude each other"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(call: Call, words: str, said: str) -> None:
    code, out, err = call(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("tuner: ")
    assert said in err
    assert err.count("\n") == 1


def test_the_store_may_be_named_before_or_after_the_verb() -> None:
    for words in (["--store", "u", "status"], ["status", "--store", "u"], ["db", "current", "--store", "u"]):
        assert main.parser().parse_args(words).store == "u"
    assert main.parser().parse_args(["status"]).store is None


def test_the_version_is_one_line(call: Call) -> None:
    code, out, err = call("--version")
    assert (code, out.split()[0], len(out.splitlines()), err) == (0, "tuner", 1, "")


@pytest.mark.parametrize("option", ["--accept-changes", "--retry-failed"])
def test_what_is_decided_for_one_study_is_refused_for_all(call: Call, folder: Path, option: str) -> None:
    code, _, err = call("resume", "--all", "--once", option)
    assert code == 2
    assert option in err


def test_help_loads_no_library() -> None:
    heavy = ["sqlalchemy", "optuna", "boto3", "botocore", "pandas", "rich", "yaml", "matplotlib", "alembic"]
    code = (
        "import sys, tuner.cli.main as c\ntry: c.main(['--help'])\n"
        f"finally: print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, tuner; print(sorted(m for m in sys.modules if m.startswith('tuner.'))); print(dir(tuner))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, names = done.stdout.splitlines()
    assert modules == "[]"
    assert "'launch'" in names


def test_an_interrupted_look_ends_quietly(call: Call) -> None:
    def pressed(_: object) -> int:
        raise KeyboardInterrupt

    code, _, err = call("doctor", "--policy", use_cases=Faked(policies=pressed))
    assert code == 130
    assert "jobs go on" in err


def test_foreign_text_in_an_error_is_shown_not_obeyed(call: Call) -> None:
    err = call("frobnicate\x1b[2J\n").err
    assert "\x1b" not in err
    assert err.count("\n") == 1


def test_a_terminal_without_unicode_is_no_reason_to_fail() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "tuner.cli.main", "frobnicate é"]
    done = subprocess.run(words, capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert b"\\xe9" in done.stderr
