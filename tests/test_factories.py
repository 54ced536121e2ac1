"""Each record is made in one place: nobody else spells all of its fields out."""

import ast
import inspect
from pathlib import Path

from tests import factories

TESTS = Path(__file__).parent
# Small records whose values are the point of a test.
MADE_ELSEWHERE = {"Holder", "HistoryRow"}
NO_RECORDS = {"at", "history"}


MAKERS = {
    name: function
    for name, function in vars(factories).items()
    if inspect.isfunction(function) and name not in NO_RECORDS
}


def test_each_function_makes_its_record_without_being_told_anything() -> None:
    assert len(MAKERS) > 10
    for name, make in MAKERS.items():
        assert isinstance(make(), inspect.signature(make).return_annotation), name


def test_no_record_has_a_second_builder() -> None:
    records = {inspect.signature(make).return_annotation.__name__ for make in MAKERS.values()} - MADE_ELSEWHERE
    assert {"Study", "Trial", "Attempt", "Run", "Event", "Point", "JobRequest", "Observation", "Policy"} <= records
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}: {node.func.id}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name != "factories.py" and "fixtures" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in records
    ]
    assert found == []
