"""Commands in texts: what is quoted, what is repeated, what is stored; and that no other text is touched."""

import shlex

import pytest

from tuner.core.commands import Command, Message, from_stored, render, stored
from tuner.core.errors import UserError, left_behind
from tuner.core.records import Intent

STORE = ("--store", "sqlite:////tmp/my studies/tuner.db")
RESUME = Command("resume", "digits", "--accept-changes")


def test_a_command_repeats_the_options_of_the_call_before_its_verb() -> None:
    line = RESUME.line(STORE)
    assert line == "tuner --store 'sqlite:////tmp/my studies/tuner.db' resume digits --accept-changes"
    assert str(RESUME) == "tuner resume digits --accept-changes"


@pytest.mark.parametrize("word", ["my study.yaml", "it's", "$HOME", "a;b", "", "…", "a b=…", "…x"])
def test_a_shell_reads_each_word_as_it_was_given(word: str) -> None:
    assert shlex.split(Command("launch", word).line()) == ["tuner", "launch", word]


def test_a_value_that_the_user_is_to_fill_in_is_not_quoted() -> None:
    assert str(Command("set", "digits", "budget.usd=…")) == "tuner set digits budget.usd=…"


def test_a_text_is_put_together_and_keeps_its_commands() -> None:
    inner = Message("go on: ", RESUME)
    whole = Message("left; ", inner, ", or ", Command("cancel", "digits"), ".")
    assert whole.commands == (RESUME, Command("cancel", "digits"))
    assert str(whole) == "left; go on: tuner resume digits --accept-changes, or tuner cancel digits."
    assert render(whole, ("--store", "x")) == (
        "left; go on: tuner --store x resume digits --accept-changes, or tuner --store x cancel digits."
    )


@pytest.mark.parametrize("text", ["tuner resume foo", "`tuner trials x` of it", "spot-tuner resumed it; tuner: stop"])
def test_text_that_only_reads_like_a_command_stays_as_it_is(text: str) -> None:
    assert render(text, STORE) == text
    assert render(Message(text, ": ", RESUME), ("-s",)) == f"{text}: tuner -s resume digits --accept-changes"


def test_a_refusal_carries_its_command() -> None:
    error = UserError(Message("taken; go on with it: ", RESUME))
    assert str(error) == "taken; go on with it: tuner resume digits --accept-changes"
    assert render(error.message, ("-s",)).endswith("tuner -s resume digits --accept-changes")


def test_a_store_keeps_the_text_and_its_remedy_apart() -> None:
    kept = stored("the image is gone. Mend it", Command("resume", "digits", "--retry-failed"))
    assert kept == {"message": "the image is gone. Mend it", "remedy": ["resume", "digits", "--retry-failed"]}
    read = from_stored(kept)
    assert render(read, ("-s",)) == "the image is gone. Mend it, then: tuner -s resume digits --retry-failed"


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: {"message": text}], ids=["attribute", "event"])
def test_what_version_0_1_0_stored_as_one_string_is_shown_as_it_is(wrap) -> None:
    old = "no trial can be proposed. Mend it, then: tuner resume digits"
    assert render(from_stored(wrap(old)), STORE) == old


@pytest.mark.parametrize("intent", Intent)
def test_who_leaves_a_study_is_told_what_brings_about_what_was_asked(intent: Intent) -> None:
    first = left_behind("digits", intent).commands[0]
    assert first.verb == {Intent.RUN: "resume", Intent.CANCEL: "cancel"}.get(intent, "stop")
    assert first.args[0] == "digits"
