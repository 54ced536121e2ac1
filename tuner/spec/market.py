"""The section `local` of a study file: when a local study loses its capacity."""

from dataclasses import replace
from typing import Any, Literal

from tuner.spec.keys import Key, Section, record, wrapped
from tuner.spec.records import Json, LocalMarket
from tuner.spec.values import SECONDS, Form, SpecError, duration, each, path, positive, whole

_MarketKind = Literal["at", "every", "trace"]
_MARKET_KEYS: dict[_MarketKind, tuple[str, ...]] = {"at": ("down",), "every": ("seed", "down"), "trace": ("speed",)}


def _check_market(section: Section) -> None:
    kinds = [key for key in _MARKET_KEYS if section.has(key)]
    if len(kinds) != 1:
        raise SpecError(f"{section.where}: needs exactly one of at, every and trace, as in {{every: 20s, seed: 1}}")
    for key in section.values:
        if section.has(key) and key not in (kinds[0], *_MARKET_KEYS[kinds[0]]):
            raise SpecError(f"{section.at(key)}: has no meaning beside {kinds[0]}; remove it")


def _settle_market(section: Section, values: dict[str, Any]) -> None:
    values["kind"] = next(key for key in _MARKET_KEYS if section.has(key))
    values["at_s"] = moments = values["at_s"] or ()
    if list(moments) != sorted(set(moments)):
        raise SpecError(f"{section.at('at')}: must be in rising order, each moment once")


def _write_market(market: LocalMarket, form: Form) -> Json:
    """The keys that have a meaning for this kind of market."""
    document = _ANY_MARKET.write(market, form)
    assert isinstance(document, dict), "a record is a mapping"
    used = (market.kind, *_MARKET_KEYS[market.kind])
    return {key: value for key, value in document.items() if key in used}


_ANY_MARKET = record(
    LocalMarket,
    (
        Key(
            name="at",
            field="at_s",
            kind=each(duration, least=1),
            about="Interrupt at these moments since launch, in rising order.",
            unit=SECONDS,
        ),
        Key(
            name="every",
            field="every_s",
            kind=duration,
            about="Interrupt at random gaps with this mean.",
            unit=SECONDS,
        ),
        Key(
            name="trace",
            kind=path,
            about="Interrupt as this recorded trace says: a CSV file of `start_s,duration_s,instances_up`.",
        ),
        Key(
            name="seed",
            kind=whole(0, 2**32 - 1),
            about="The seed of the gaps of `every`.",
            default=0,
        ),
        Key(name="speed", kind=positive, about="How many times faster `trace` runs.", default=1),
        Key(
            name="down",
            field="down_s",
            kind=duration,
            about="How long capacity is away; with `at` and `every`.",
            default="3s",
            unit=SECONDS,
        ),
    ),
    check=_check_market,
    settle=_settle_market,
    rules={
        "oneOf": [
            {
                "required": [kind],
                "properties": {
                    kind: {"not": {"type": "null"}},
                    **{
                        other: {"type": "null"}
                        for other in ("at", "every", "trace", "seed", "speed", "down")
                        if other not in (kind, *used)
                    },
                },
            }
            for kind, used in _MARKET_KEYS.items()
        ]
    },
)
_MARKET = replace(_ANY_MARKET, write=_write_market)
LOCAL = wrapped(
    Key(
        name="interruptions",
        kind=_MARKET,
        about="When a local study loses its whole pool: one of `at`, `every` and `trace`.",
    )
)
