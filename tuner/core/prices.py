"""The rate card: on-demand dollars per hour of SageMaker training instances.

`prices.csv` is a table of facts with a date on each row, not a live feed. Prices of the study file stand before it,
and after those what the Price List API gave lately (`tuner.aws.price_list`); every figure carries its basis. A basis is

- `list`: AWS's published price of that date;
- `price list`: AWS's published price, asked for on that date;
- `billed`: taken from a line of a real bill of that date;
- `derived`: the EC2 on-demand price times the factor (1.25 for GPU types, 1.40 for the `.xlarge` of g4dn, g5 and g6,
  1.20 for m5 and c5) that reproduces nearly all listed and billed rows: good for estimates, not for accounting;
- `study file`: the user's own.

Rules: amounts are integer micro-dollars, rounded half to even once, at the end of one computation; an instance type
without a price is an error, never a guess.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from importlib import resources

# S3 Standard, first 50 TB, us-east-1: list price as of 2025.
S3_STANDARD_USD_PER_GB_MONTH = Decimal("0.023")

_MICROUSD = 1_000_000
_HOUR_S = 3600


class PriceUnknown(LookupError):  # noqa: N818 - errors are named after what happened
    """No price for this instance type in this region: the user has to give one, or choose another type."""


@dataclass(frozen=True, slots=True)
class Rate:
    """On-demand price of one instance. `as_of` is the date of the source (ISO, year and month at least) or empty."""

    usd_per_hour: Decimal
    basis: str
    as_of: str

    @property
    def microusd_per_hour(self) -> int:
        return round(self.usd_per_hour * _MICROUSD)


class RateCard:
    """Prices of the study file first, then those of the Price List API by type, then the shipped table."""

    def __init__(
        self, overrides: Mapping[str, Decimal] | None = None, listed: Mapping[str, Rate] | None = None
    ) -> None:
        self._overrides = dict(overrides or {})
        self._listed = dict(listed or {})

    def rate(self, instance_type: str, region: str) -> Rate:
        """The on-demand rate of one instance. Raises `PriceUnknown`, whose message names the remedy."""
        if instance_type in self._overrides:
            return Rate(self._overrides[instance_type], "study file", "")
        if instance_type in self._listed:
            return self._listed[instance_type]
        try:
            return _shipped()[region, instance_type]
        except KeyError:
            raise PriceUnknown(
                f"no price is known for {instance_type} in {region}: "
                f"write its on-demand $/h in the study file, prices: {{{instance_type}: 1.23}}"
            ) from None


@cache
def _shipped() -> Mapping[tuple[str, str], Rate]:
    text = (resources.files("tuner") / "prices.csv").read_text(encoding="utf-8")
    return {
        (row["region"], row["instance_type"]): Rate(Decimal(row["usd_per_hour"]), row["basis"], row["as_of"])
        for row in csv.DictReader(text.splitlines())
    }


def cost_microusd(billable_s: int, instance_count: int, microusd_per_hour: int) -> int:
    """The cost of these billed seconds on these instances, rounded half to even, once."""
    return round(Fraction(billable_s * instance_count * microusd_per_hour, _HOUR_S))


def usd(microusd: int) -> str:
    """An amount as people read it: cents from one dollar on, below that as many digits as local runs need."""
    digits = 2 if microusd == 0 or abs(microusd) >= _MICROUSD else 4
    sign = "-" if microusd < 0 else ""
    return f"{sign}${Decimal(abs(microusd)) / _MICROUSD:,.{digits}f}"
