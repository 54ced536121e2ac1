"""The Search operation's language: filters on the members of a training job, joined by And and Or.

Rules: a filter on a member that a job does not have is false, except NotExists and NotEquals; numbers and times are
compared as such where both sides are; an unknown operator or a text that is no number is refused.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from operator import ge, gt, le, lt
from typing import Any

from tuner.local.validate import invalid

_ORDER: dict[str, Callable[[float, float], bool]] = {
    "GreaterThan": gt,
    "GreaterThanOrEqualTo": ge,
    "LessThan": lt,
    "LessThanOrEqualTo": le,
}


def matches(record: Mapping[str, Any], expression: Mapping[str, Any]) -> bool:
    """Whether a job's record satisfies a SearchExpression. Raises `Refused`."""
    if expression.get("NestedFilters"):
        raise invalid("The local SageMaker does not search with NestedFilters")
    answers = [_holds(record, rule) for rule in expression.get("Filters", [])]
    answers += [matches(record, inner) for inner in expression.get("SubExpressions", [])]
    return any(answers) if expression.get("Operator") == "Or" and answers else all(answers)


def sort_key(record: Mapping[str, Any], name: str) -> tuple[str, float, str]:
    """How records are ordered by a member: numbers as such, everything else as text."""
    found = member(record, name)
    return (type(found).__name__, found, "") if isinstance(found, int | float) else ("", 0.0, str(found))


def member(record: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - any member of the record
    """What `name`, a dotted path, leads to; None if nothing. Tags are `Tags.<key>`."""
    if name.startswith("Tags."):
        key = name.removeprefix("Tags.")
        return next((tag["Value"] for tag in record.get("Tags", []) if tag["Key"] == key), None)
    found: Any = record
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _holds(record: Mapping[str, Any], rule: Mapping[str, str]) -> bool:
    found, operator, wanted = member(record, rule["Name"]), rule.get("Operator", "Equals"), rule.get("Value", "")
    if operator in {"Exists", "NotExists"}:
        return (found is not None) == (operator == "Exists")
    if found is None:
        return operator == "NotEquals"
    if operator in _ORDER:
        return _ORDER[operator](_number(found), _number(wanted))
    if operator == "Contains":
        return wanted in str(found)
    if operator == "In":
        return any(_equal(found, value.strip()) for value in wanted.split(","))
    return _equal(found, wanted) == (operator == "Equals")


def _equal(found: object, wanted: str) -> bool:
    if isinstance(found, bool):
        return wanted.lower() == str(found).lower()
    return _number(found) == _number(wanted) if isinstance(found, int | float) else found == wanted


def _number(value: Any) -> float:  # noqa: ANN401 - a member, or what it is compared with
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise invalid(f"Invalid value {value!r}: a number or an ISO 8601 time is needed to compare") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
