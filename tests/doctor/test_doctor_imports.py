"""A local study whose script imports what is not installed: found before all its trials fail of it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tuner.core.clock import SystemClock
from tuner.operations import doctor

STUDY = """
name: small
objective: {metric: loss, direction: minimize}
space: {lr: {type: float, low: 0.1, high: 1.0}}
trials: 1
training: {source_dir: ., entry_point: train.py, instance_types: [ml.m5.large], max_run: 1h}
"""


def missing(folder: Path, script: str, level: str = "error") -> list[str]:
    (folder / "study.yaml").write_text(STUDY)
    (folder / "train.py").write_text(script)
    (folder / "beside.py").write_text("")
    found = doctor.doctor(folder / "study.yaml", f"sqlite:///{folder}/tuner.db", SystemClock())
    return [each.what for each in found if each.level == level and "imports" in each.what]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import json, no_such_package.sub\nfrom another_missing import x\n", ["another_missing", "no_such_package"]),
        ("import json\nimport beside\nfrom tuner.training import report\nimport pytest as test\n", []),
        ("try:\n    import no_such_package\nexcept ImportError:\n    pass\n", []),
        ("from . import nothing\n", []),
        ("this is no Python", []),
        ("import __main__\nimport json\n", []),
        ("import sys\nsys.path.append('lib')\nimport in_lib\n", []),
    ],
)
def test_what_the_script_imports_has_to_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the state directory would be made here: the checkout may be read-only
    assert missing(tmp_path, script) == [f"train.py imports {name}, which is not installed here" for name in told]


def test_a_package_that_may_lie_on_a_path_of_the_script_s_own_is_a_warning(tmp_path: Path) -> None:
    assert missing(tmp_path, "import sys\nsys.path.append('lib')\nimport in_lib\n", level="warn") == [
        "train.py imports in_lib, which is not installed here"
    ]


def test_a_module_that_does_not_say_where_it_is_from_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `__main__` of the installed command is, by which the look itself ended."""
    monkeypatch.setitem(sys.modules, "of_nowhere", ModuleType("of_nowhere"))
    assert missing(tmp_path, "import of_nowhere\n") == []
