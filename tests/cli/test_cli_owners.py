"""A team on one database: a user who spends money or deletes in another's study is asked first."""

from pathlib import Path

import cli_store
import pytest
from cli_calls import Call, Faked

from tuner.core.errors import Exit, UserError
from tuner.core.records import Study, StudyState
from tuner.operations.backend import Backend, Backends
from tuner.operations.records import StudyOutcome
from tuner.operations.use_cases import UseCases
from tuner.reports import views
from tuner.store.store import Store

VERBS = [("resume", "digits"), ("stop", "digits"), ("cancel", "digits"), ("set", "digits", "trials=40")]


@pytest.fixture
def done(folder: Path) -> list[str]:
    """The studies of the verbs that went ahead."""
    return []


@pytest.fixture
def call(call: Call, done: list[str]) -> Call:
    """On use cases that only note for which study they were called."""

    def drive(name: str, store: Store, **_: object) -> StudyOutcome:
        done.append(name)
        summary = views.summary_view(store, store.study(name), cli_store.NOW)
        return StudyOutcome(study_state=StudyState.STOPPED, exit_code=0, summary=summary)

    def change(name: str, *_: object) -> list[str]:
        done.append(name)
        return ["changed"]

    noting = Faked(resume=drive, request_stop=drive, request_cancel=drive, request_set=change)
    return lambda *words, use_cases=noting: call(*words, use_cases=use_cases)


def answer(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda: line)

    monkeypatch.setattr("sys.stdin", Terminal())


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_ones_own_study_is_nobody_elses_business(call: Call, done: list[str], words: tuple[str, ...]) -> None:
    assert call(*words).code == 0
    assert done == ["digits"]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
class TestOfAnother:
    @pytest.fixture(autouse=True)
    def another(self, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGNAME", "bob")

    def test_without_a_terminal_it_is_refused(self, call: Call, done: list[str], words: tuple[str, ...]) -> None:
        code, out, err = call(*words)
        assert (code, out, done) == (Exit.USAGE, "", [])
        expected = f"tuner: {words[0]}: study digits belongs to ann and there is no terminal to ask on: pass --force\n"
        assert err == expected

    def test_force_asks_nobody(self, call: Call, done: list[str], words: tuple[str, ...]) -> None:
        assert call(*words, "--force").code == 0
        assert done == ["digits"]


@pytest.mark.parametrize("line", ["y\n", "n\n", ""])
@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_the_answer_counts(
    call: Call, done: list[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    monkeypatch.setenv("LOGNAME", "bob")
    answer(monkeypatch, line)
    code, _, err = call(*words)
    goes_ahead = line == "y\n"
    assert (code, done) == ((0, ["digits"]) if goes_ahead else (Exit.USAGE, []))
    assert f"study digits belongs to ann: {words[0]} it? [y/N] " in err


def test_an_unknown_study_belongs_to_nobody(call: Call, done: list[str]) -> None:
    code, _, err = call("stop", "digit")
    assert (code, done) == (Exit.USAGE, [])
    assert "no study 'digit'" in err


def test_a_cycle_over_all_passes_over_what_belongs_to_others(
    call: Call, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "bob")

    class Noting(Backends):
        def of(self, study: Study) -> Backend:
            done.append(study.name)
            raise UserError("taken up", Exit.NOT_FINISHED)

    use_cases = UseCases(Noting())
    code, out, _ = call("resume", "--all", "--once", use_cases=use_cases)
    assert (code, done) == (0, [])
    assert "digits: belongs to ann: passed over (--force takes it along)" in out
    call("resume", "--all", "--once", "--force", use_cases=use_cases)
    assert "digits" in done
