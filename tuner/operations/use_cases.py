"""Everything that a user can ask for, as one object with its backends.

The command line and `import tuner` are given this object, so that a test hands in other use cases, and a program its
own backends.

Rules: nothing is decided here; each method calls the function of its name. Their modules are imported when a method is
called: the engine and Optuna are slow to import, and most verbs need neither.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.operations.backend import BACKENDS, Backends
from tuner.store.store import Store

if TYPE_CHECKING:
    from tuner.core.clock import Clock
    from tuner.core.commands import Message
    from tuner.core.errors import Finding
    from tuner.core.records import Fact, Json
    from tuner.operations.records import LaunchPlan, Signals, StudyOutcome
    from tuner.operations.retention import Survey
    from tuner.reports.records import Audit, Display


class UseCases:
    """The use cases, on the backends that they are given."""

    def __init__(self, backends: Backends = BACKENDS) -> None:
        self.backends = backends

    # --- begin a study, or go on with it

    def plan(self, file: Path, overrides: Sequence[str] = ()) -> "LaunchPlan":
        from tuner.operations.launch import plan  # noqa: PLC0415 - see the module

        return plan(file, overrides)

    def prepare(self, planned: "LaunchPlan", store: Store) -> "LaunchPlan":
        from tuner.operations.launch import prepare  # noqa: PLC0415

        return prepare(planned, store)

    def launch(self, planned: "LaunchPlan", store: Store, *, display: "Display", signals: "Signals") -> "StudyOutcome":
        from tuner.operations.launch import launch  # noqa: PLC0415

        return launch(planned, store, display=display, signals=signals, backends=self.backends)

    def resume(
        self,
        name: str,
        store: Store,
        *,
        display: "Display",
        signals: "Signals",
        accept_changes: bool = False,
        retry_failed: bool = False,
        once: bool = False,
        no_wait: bool = False,
    ) -> "StudyOutcome":
        from tuner.operations.launch import resume  # noqa: PLC0415

        return resume(
            name,
            store,
            display=display,
            signals=signals,
            accept_changes=accept_changes,
            retry_failed=retry_failed,
            once=once,
            no_wait=no_wait,
            backends=self.backends,
        )

    def resume_all_once(
        self, store: Store, *, display: "Display", signals: "Signals", others_too: bool = False
    ) -> "list[tuple[str, StudyOutcome]]":
        from tuner.operations.launch import resume_all_once  # noqa: PLC0415

        return resume_all_once(store, display=display, signals=signals, others_too=others_too, backends=self.backends)

    # --- change it

    def request_set(self, name: str, store: Store, assignments: Sequence[str]) -> "list[Message]":
        from tuner.operations.change import request_set  # noqa: PLC0415

        return request_set(name, store, assignments)

    def request_stop(
        self,
        name: str,
        store: Store,
        *,
        display: "Display",
        signals: "Signals",
        now_: bool = False,
        drain: bool = False,
    ) -> "StudyOutcome":
        from tuner.operations.change import request_stop  # noqa: PLC0415

        return request_stop(
            name, store, display=display, signals=signals, now_=now_, drain=drain, backends=self.backends
        )

    def request_cancel(self, name: str, store: Store, *, display: "Display", signals: "Signals") -> "StudyOutcome":
        from tuner.operations.change import request_cancel  # noqa: PLC0415

        return request_cancel(name, store, display=display, signals=signals, backends=self.backends)

    # --- look at it, clean up

    def check(self, name: str, store: Store) -> "list[str | Message]":
        from tuner.operations.look import check  # noqa: PLC0415

        return check(name, store)

    def log_chunks(
        self,
        name: str,
        store: Store,
        trial: int,
        *,
        attempt: int | None = None,
        tail: int | None = None,
        follow: bool = False,
    ) -> Iterator[str]:
        from tuner.operations.look import log_chunks  # noqa: PLC0415

        return log_chunks(name, store, trial, attempt=attempt, tail=tail, follow=follow, backends=self.backends)

    def audit(self, name: str, store: Store, *, stop_orphans: bool = False) -> "Audit":
        from tuner.operations.look import audit  # noqa: PLC0415

        return audit(name, store, stop_orphans=stop_orphans, backends=self.backends)

    def gc(self, name: str, store: Store, *, dry_run: bool = False) -> "Survey":
        from tuner.operations.look import gc  # noqa: PLC0415

        return gc(name, store, dry_run=dry_run, backends=self.backends)

    # --- look at the machine and the account

    def doctor(self, file: Path | None, store_url: str, clock: "Clock") -> "list[Finding]":
        from tuner.operations.doctor import doctor  # noqa: PLC0415

        return doctor(file, store_url, clock)

    def known_facts(self, file: Path, store_url: str) -> "list[Fact]":
        from tuner.operations.doctor import known  # noqa: PLC0415

        return known(file, store_url)

    def policies(self, file: Path | None) -> "dict[str, Json]":
        from tuner.operations.doctor import policies  # noqa: PLC0415

        return policies(file)
