"""A sweep that keeps rows as the store would and can lose its proposer at any moment."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

from tuner.core.records import TrialState
from tuner.search.proposer import Proposer, ViewTrial
from tuner.spec.records import CategoricalParam, Component, FloatParam, IntParam, Objective, Space

MIXED: Space = (
    FloatParam("lr", 1e-4, 1e-1, log=True),
    FloatParam("dropout", 0.0, 0.5),
    IntParam("hidden", 16, 256, log=True),
    CategoricalParam("activation", ("relu", "tanh", "gelu")),
)
NUMERIC: Space = (FloatParam("x", -5.0, 5.0), FloatParam("y", 1e-3, 1.0, log=True), IntParam("n", 1, 40))
FINITE: Space = (
    FloatParam("rate", 0.1, 0.4, step=0.1),
    IntParam("depth", 1, 5, step=2),
    CategoricalParam("kind", ("a", "b")),
)
ONE = (Objective("score", "maximize"),)
TWO = (Objective("score", "maximize"), Objective("cost_usd", "minimize"))


def proposer(
    sampler: str,
    space: Space = MIXED,
    *,
    pruner: str | None = None,
    objectives: tuple[Objective, ...] = ONE,
    name: str = "study",
    pruner_arguments: dict | None = None,
    **arguments: object,
) -> Proposer:
    return Proposer(
        study_name=name,
        objectives=objectives,
        space=space,
        sampler=Component(sampler, arguments),
        pruner=None if pruner is None else Component(pruner, pruner_arguments or {}),
    )


def through_json(value):
    """What the store gives back: nothing survives that is not JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


def score(params: dict, step: int) -> float:
    """A learning curve that depends on every parameter and is the same in every process."""
    base = sum(random.Random(f"{name}={value!r}").random() for name, value in params.items())
    return base * (1 - 0.8**step)


class Sweep:
    """Asks, reports and tells in a seeded order; `lose_every` n operations the proposer is replaced by a new one."""

    def __init__(
        self,
        make: Callable[[], Proposer],
        *,
        parallel: int = 1,
        order_seed: int = 0,
        lose_every: int | None = None,
        steps: int = 4,
        failures: float = 0.1,
    ) -> None:
        self.make = make
        self.proposer = make()
        self.parallel = parallel
        self.order = random.Random(order_seed)
        self.lose_every = lose_every
        self.steps = steps
        self.failures = failures
        self.rows: dict[int, ViewTrial] = {}
        self.study_attrs: dict = {}
        self.verdicts: list[tuple[int, int, bool]] = []
        self.seq = 0
        self.exhausted = False

    @property
    def proposals(self) -> list[dict]:
        return [dict(row.params) for row in self.rows.values()]

    @property
    def in_flight(self) -> list[int]:
        return [number for number, row in self.rows.items() if not row.state.terminal]

    def run(self, total: int) -> "Sweep":
        while True:
            room = len(self.rows) < total and not self.exhausted
            flying = self.in_flight
            if not room and not flying:
                return self
            if room and len(flying) < self.parallel:
                self.ask()
            else:
                self.advance(self.order.choice(flying))
            if self.lose_every and self.seq % self.lose_every == 0:
                self.lose()

    def lose(self) -> None:
        self.proposer = self.make()
        self.proposer.rebuild(tuple(self.rows.values()), self.study_attrs)

    def ask(self) -> None:
        number = len(self.rows)
        proposal = self.proposer.ask(number)
        if proposal is None:
            self.exhausted = True
            return
        self.study_attrs |= through_json(proposal.study_attrs)
        self.rows[number] = ViewTrial(
            number=number,
            state=TrialState.RUNNING,
            params=through_json(proposal.params),
            distributions=proposal.distributions,
            attrs=through_json(proposal.attrs),
            points=(),
            values=None,
            asked_seq=self.next_seq(),
            told_seq=None,
        )

    def advance(self, number: int) -> None:
        row = self.rows[number]
        step = len(row.points) + 1
        if self.order.random() < self.failures / self.steps:
            self.tell(number, TrialState.FAILED)
        elif step > self.steps:
            self.tell(number, TrialState.SUCCEEDED, row.points[-1][1])
        elif self.report(number, step, score(row.params, step)):
            self.tell(number, TrialState.PRUNED)

    def report(self, number: int, step: int, value: float) -> bool:
        row = self.rows[number]
        multiple = len(self.proposer.study.directions) > 1
        attrs = row.attrs
        prune = False
        if multiple:
            self.proposer.replay(number, step, value)
        else:
            verdict = self.proposer.report(number, step, value)
            attrs = {**attrs, **through_json(verdict.attrs)}
            self.study_attrs |= through_json(verdict.study_attrs)
            self.verdicts.append((number, step, verdict.prune))
            prune = verdict.prune
        self.rows[number] = replace(row, points=(*row.points, (step, value)), attrs=attrs)
        self.next_seq()
        return prune

    def tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        row = self.rows[number]
        values = (
            None if value is None else [value, len(row.params) / (1 + value)][: len(self.proposer.study.directions)]
        )
        delta = self.proposer.tell(number, state, values)
        self.study_attrs |= through_json(delta.study_attrs)
        attrs = {**row.attrs, **through_json(delta.attrs)}
        self.rows[number] = replace(row, state=state, values=values, attrs=attrs, told_seq=self.next_seq())

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq


def seen(proposer: Proposer) -> list[tuple]:
    """All that a sampler or pruner can see of the trials, except pickles, which contain uninitialised memory."""
    return [
        (
            t.number,
            t._trial_id,
            t.state,
            t.params,
            t.distributions,
            t.intermediate_values,
            t.values,
            known(t.system_attrs),
        )
        for t in proposer.study.get_trials(deepcopy=False)
    ]


def known(attrs: dict) -> dict:
    return {key: value for key, value in attrs.items() if ":optimizer:" not in key}
