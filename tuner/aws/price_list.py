"""On-demand prices as AWS publishes them, asked of the Price List API and kept in the store.

The shipped table ages. So a study on AWS asks once, when it is planned or launched, and only where the
store's copy is older than a week; its rates are then fixed for life, so that a budget is kept in the dollars in which
it was promised.

Rules: a service that does not answer is a notice, never an error: an older copy serves, else the shipped table with
its date. An answer is checked before it is believed: hours, dollars, above zero, one price a type. Where two prices
are given for one type, the higher one counts: a budget may be kept too well, never broken.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from tuner.aws.connections import Aws, AwsError, ask
from tuner.core.prices import PriceUnknown, Rate, RateCard
from tuner.core.records import ListedPrice
from tuner.spec.study_file import StudySpec

MAX_AGE = timedelta(days=7)
BASIS = "price list"

_API_REGION = "us-east-1"  # the API lives in few regions and knows the prices of all
_SERVICE = "AmazonSageMaker"
_SUFFIX = "-Training"
_USD_PER_HOUR_MAX = 100_000  # beyond it is a mistake, not an instance
_PAGES_MAX = 50  # of 100 products: several times what there is


class PriceCache(Protocol):
    """The part of the store that keeps prices."""

    def prices(self, region: str) -> list[ListedPrice]: ...

    def put_prices(self, prices: Sequence[ListedPrice]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """Rates by instance type, and why they are older than they might be (empty: they are not)."""

    rates: Mapping[str, Rate]
    notice: str = ""


def listed(aws: Aws, region: str, cache: PriceCache | None, now: datetime) -> Listed:
    """The prices of the Price List API, at most a week old; older ones if it does not answer."""
    kept = [] if cache is None else cache.prices(region)
    if any(now - price.fetched_at < MAX_AGE for price in kept):
        return Listed(rates=_rates(kept))
    try:
        fetched = fetch(aws, region, now)
    except AwsError as error:
        source = f"those of {max(price.fetched_at for price in kept):%Y-%m-%d}" if kept else "the shipped table's"
        return Listed(rates=_rates(kept), notice=f"prices are {source}: the Price List API gave none: {error}")
    if cache is not None:
        cache.put_prices(fetched)
    return Listed(rates=_rates(fetched))


def fetch(aws: Aws, region: str, now: datetime) -> list[ListedPrice]:
    """Ask for every training instance of a region. Raises AwsError, also where nothing usable came."""
    client = aws.client("pricing", region=_API_REGION)
    found: dict[str, ListedPrice] = {}
    for text in _products(client, region):
        price = _price(text, region, now)
        known = None if price is None else found.get(price.instance_type)
        if price is not None and (known is None or price.usd_per_hour > known.usd_per_hour):
            found[price.instance_type] = price
    if not found:
        raise AwsError(f"GetProducts: no training prices of {region} in the answer", "NoPrices")
    return [found[name] for name in sorted(found)]


def pinned(spec: StudySpec, rates: Mapping[str, Rate]) -> StudySpec:
    """The study with a price written down for each of its instance types that has one. Its own prices stay."""
    card, prices = RateCard(spec.prices, rates), dict(spec.prices)
    for instance_type in spec.training.instance_types:
        try:
            prices[instance_type] = card.rate(instance_type, spec.region).usd_per_hour
        except PriceUnknown:
            continue
    return replace(spec, prices=prices)


def _products(client: Any, region: str) -> Iterator[str]:  # noqa: ANN401 - botocore makes its methods at run time
    query: dict[str, Any] = {
        "ServiceCode": _SERVICE,
        "FormatVersion": "aws_v1",
        "Filters": [
            {"Type": "TERM_MATCH", "Field": "regionCode", "Value": region},
            {"Type": "TERM_MATCH", "Field": "component", "Value": "Training"},
        ],
        "MaxResults": 100,
    }
    for _ in range(_PAGES_MAX):
        page = ask(client.get_products, **query)
        yield from page.get("PriceList", ())
        token = page.get("NextToken")
        if not token:
            return
        query["NextToken"] = token
    raise AwsError(f"GetProducts: more than {_PAGES_MAX} pages for {region}", "TooManyPages")


def _price(text: str, region: str, now: datetime) -> ListedPrice | None:
    """One product; None where it is not an hour of a training instance at one price."""
    try:
        product = json.loads(text)
        attributes = product["product"]["attributes"]
        name = str(attributes.get("instanceName") or attributes["instanceType"]).removesuffix(_SUFFIX)
        [term] = product["terms"]["OnDemand"].values()
        [dimension] = term["priceDimensions"].values()
        usd_per_hour = Decimal(dimension["pricePerUnit"]["USD"])
        as_of = str(term.get("effectiveDate", ""))[:10]
    except (ValueError, KeyError, TypeError, AttributeError, InvalidOperation):
        return None
    usable = usd_per_hour.is_finite() and 0 < usd_per_hour < _USD_PER_HOUR_MAX
    ours = name.startswith("ml.") and attributes.get("regionCode", region) == region
    if not usable or not ours or dimension.get("unit") != "Hrs":
        return None
    return ListedPrice(region=region, instance_type=name, usd_per_hour=usd_per_hour, as_of=as_of, fetched_at=now)


def _rates(prices: list[ListedPrice]) -> dict[str, Rate]:
    return {price.instance_type: Rate(price.usd_per_hour, BASIS, f"{price.fetched_at:%Y-%m-%d}") for price in prices}
