"""Prices of the Price List API: what is believed of an answer, how long it is kept, what stands in when there is none.

moto has no Price List API: a real boto3 client is answered by botocore's Stubber, which also checks each request
against AWS's own description of the call, with replies in the shape that the API gives.
"""

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from botocore.stub import Stubber
from fake_account import pretend

from tests.spec.spec_files import spec_of
from tuner.aws.connections import Aws, AwsError
from tuner.aws.price_list import fetch, listed, pinned
from tuner.core.prices import PriceUnknown, Rate, RateCard
from tuner.core.records import ListedPrice
from tuner.store.store import Store

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
REGION = "eu-central-1"
FILTERS = [
    {"Type": "TERM_MATCH", "Field": "regionCode", "Value": REGION},
    {"Type": "TERM_MATCH", "Field": "component", "Value": "Training"},
]
QUERY = {"ServiceCode": "AmazonSageMaker", "FormatVersion": "aws_v1", "Filters": FILTERS, "MaxResults": 100}


def product(name="ml.g5.xlarge-Training", usd="1.7600000000", *, unit="Hrs", key="instanceName", region=REGION):
    """One entry of a price list, as AWS writes it."""
    dimension = {
        "unit": unit,
        "endRange": "Inf",
        "description": f"${usd} per hour for {name} in EU (Frankfurt)",
        "appliesTo": [],
        "rateCode": "VXE3WDJXX6P8ECXB.JRTCKXETXF.6YS6EN2CT7",
        "beginRange": "0",
        "pricePerUnit": {"USD": usd},
    }
    term = {
        "priceDimensions": {"VXE3WDJXX6P8ECXB.JRTCKXETXF.6YS6EN2CT7": dimension},
        "sku": "VXE3WDJXX6P8ECXB",
        "effectiveDate": "2026-11-01T00:00:00Z",
        "offerTermCode": "JRTCKXETXF",
        "termAttributes": {},
    }
    attributes = {"regionCode": region, key: name, "component": "Training", "operation": "RunInstance"}
    return json.dumps(
        {
            "product": {"productFamily": "ML Instance", "attributes": attributes, "sku": "VXE3WDJXX6P8ECXB"},
            "serviceCode": "AmazonSageMaker",
            "terms": {"OnDemand": {"VXE3WDJXX6P8ECXB.JRTCKXETXF": term}},
            "version": "20261101000000",
            "publicationDate": "2026-11-01T00:00:00Z",
        }
    )


@dataclass
class PriceList:
    aws: Aws
    stub: Stubber
    pages: list[str] = field(default_factory=list)

    def says(self, *products, token=None, after=None):
        reply = {"FormatVersion": "aws_v1", "PriceList": list(products)}
        query = QUERY | ({"NextToken": after} if after else {})
        self.stub.add_response("get_products", reply | ({"NextToken": token} if token else {}), query)

    def refuses(self, code="AccessDeniedException"):
        self.stub.add_client_error("get_products", code, "not you")


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """Made once: a client takes longer than all that is asked of it here."""
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch, tmp_path_factory.mktemp("account"), REGION)
        made = Aws(region=REGION)
        made.client("pricing", region="us-east-1")
        yield made


@pytest.fixture
def api(aws):
    with Stubber(aws.client("pricing", region="us-east-1")) as stub:
        yield PriceList(aws, stub)
        stub.assert_no_pending_responses()


@pytest.fixture
def store(sqlite_url):
    opened = Store.open(sqlite_url)
    yield opened
    opened.close()


def test_a_product_is_a_type_and_its_price(api):
    api.says(product())
    [found] = fetch(api.aws, REGION, NOW)
    assert found == ListedPrice(
        region=REGION, instance_type="ml.g5.xlarge", usd_per_hour=Decimal("1.76"), as_of="2026-11-01", fetched_at=NOW
    )


def test_all_pages_are_read_and_both_spellings_of_a_type_are_one(api):
    api.says(product("ml.m5.large-Training", "0.138"), token="more")
    api.says(
        product("ml.g5.xlarge", "1.76"), product("ml.c5.xlarge-Training", "0.24", key="instanceType"), after="more"
    )
    assert {price.instance_type: str(price.usd_per_hour) for price in fetch(api.aws, REGION, NOW)} == {
        "ml.c5.xlarge": "0.24",
        "ml.g5.xlarge": "1.76",
        "ml.m5.large": "0.138",
    }


@pytest.mark.parametrize(
    "odd",
    [
        product("ml.p4d.24xlarge", unit="GB-Mo"),
        product("ml.p4d.24xlarge", unit="Quantity"),
        product("ml.p4d.24xlarge", "0.0000000000"),
        product("ml.p4d.24xlarge", "-1"),
        product("ml.p4d.24xlarge", "NaN"),
        product("ml.p4d.24xlarge", "1e9"),
        product("ml.p4d.24xlarge", "gratis"),
        product("ml.p4d.24xlarge", region="us-east-1"),
        product("db.m5.large"),
        json.dumps({"product": {"attributes": {"instanceName": "ml.p4d.24xlarge"}}, "terms": {}}),
        json.dumps({"product": {"attributes": {"instanceName": "ml.p4d.24xlarge"}}, "terms": {"OnDemand": {}}}),
        json.dumps(["no", "object"]),
        "not json",
    ],
)
def test_what_is_no_hourly_price_of_a_training_instance_is_left_out(api, odd):
    api.says(odd, product())
    assert [price.instance_type for price in fetch(api.aws, REGION, NOW)] == ["ml.g5.xlarge"]


def test_of_two_prices_of_a_type_the_higher_one_counts(api):
    api.says(product(usd="1.5"), product(usd="1.9"), product(usd="1.7"))
    assert [str(price.usd_per_hour) for price in fetch(api.aws, REGION, NOW)] == ["1.9"]


def test_an_answer_without_prices_is_no_answer(api):
    api.says()
    with pytest.raises(AwsError, match="no training prices of eu-central-1"):
        fetch(api.aws, REGION, NOW)


def test_a_list_without_end_is_given_up(api):
    for turn in range(50):
        api.says(product(), token="again", after="again" if turn else None)
    with pytest.raises(AwsError, match="more than 50 pages"):
        fetch(api.aws, REGION, NOW)


def test_prices_are_asked_for_once_a_week(api, store):
    api.says(product(usd="1.76"))
    assert listed(api.aws, REGION, store, NOW).rates == {
        "ml.g5.xlarge": Rate(Decimal("1.76"), "price list", "2026-11-23")
    }
    later = listed(api.aws, REGION, store, NOW + timedelta(days=6, hours=23))  # the stub would refuse a second call
    assert later.rates["ml.g5.xlarge"].as_of == "2026-11-23"
    api.says(product(usd="1.80"))
    renewed = listed(api.aws, REGION, store, NOW + timedelta(days=7))
    assert renewed.rates == {"ml.g5.xlarge": Rate(Decimal("1.80"), "price list", "2026-11-30")}
    assert not renewed.notice


def test_another_region_is_asked_for_itself(api, store):
    store.put_prices(
        [ListedPrice(region="us-east-1", instance_type="ml.x", usd_per_hour=Decimal(1), as_of="", fetched_at=NOW)]
    )
    api.says(product())
    assert set(listed(api.aws, REGION, store, NOW).rates) == {"ml.g5.xlarge"}


def test_an_api_that_fails_leaves_the_older_copy_with_its_date(api, store):
    api.says(product())
    listed(api.aws, REGION, store, NOW)
    api.refuses()
    found = listed(api.aws, REGION, store, NOW + timedelta(days=30))
    assert found.rates["ml.g5.xlarge"].as_of == "2026-11-23"
    assert found.notice.startswith(
        "prices are those of 2026-11-23: the Price List API gave none: GetProducts: AccessDenied"
    )


def test_an_api_that_fails_leaves_the_shipped_table(api, store):
    api.refuses("ThrottlingException")
    found = listed(api.aws, REGION, store, NOW)
    assert found.rates == {}
    assert found.notice.startswith("prices are the shipped table's")
    api.refuses()
    assert listed(api.aws, REGION, None, NOW).notice


def test_without_a_network_it_is_one_line(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path, REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", "http://127.0.0.1:9")
    found = listed(Aws(region=REGION), REGION, None, NOW)
    assert "EndpointConnectionError" in found.notice
    assert "\n" not in found.notice


def test_the_order_is_study_file_then_price_list_then_shipped_table():
    rates = {"ml.g5.xlarge": Rate(Decimal("1.76"), "price list", "2026-11-23")}
    card = RateCard(
        {"ml.c5.xlarge": Decimal(9)}, rates | {"ml.c5.xlarge": Rate(Decimal(8), "price list", "2026-11-23")}
    )
    assert card.rate("ml.g5.xlarge", "us-east-1") == rates["ml.g5.xlarge"]
    assert card.rate("ml.c5.xlarge", "us-east-1").basis == "study file"
    assert card.rate("ml.m5.xlarge", "us-east-1").basis == "list"
    with pytest.raises(PriceUnknown):
        card.rate("ml.zz9.large", "us-east-1")


def test_a_study_keeps_the_rates_that_it_was_promised(tmp_path):
    spec = spec_of(tmp_path)
    kinds = ("ml.g5.xlarge", "ml.c5.xlarge", "ml.m5.xlarge", "ml.zz9.large")
    spec = replace(spec, prices={"ml.c5.xlarge": Decimal(9)}, training=replace(spec.training, instance_types=kinds))
    fixed = pinned(spec, {"ml.g5.xlarge": Rate(Decimal("1.76"), "price list", "2026-11-23")})
    assert fixed.prices == {
        "ml.c5.xlarge": Decimal(9),  # the user's own stays
        "ml.g5.xlarge": Decimal("1.76"),
        "ml.m5.xlarge": Decimal("0.230"),  # a table that is upgraded later changes nothing
    }
