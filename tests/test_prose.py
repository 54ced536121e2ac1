"""Prose that needs a second reading is a defect: phrases that readers stumbled over do not come back.

Rules: everything that people read is searched, code, tests and documentation. None of it holds one of the phrases.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = {
    "whoever": "name the person or the process",
    "whomever": "name the person or the process",
    "is none": "say what there is not",
    "are none": "say what there is not",
    "for want of": "without",
    "but for": "except",
    "anew": "again",
    "alike": "in the same way",
    "beside it": "next to it, or in addition to it",
    "beside its": "next to its, or in addition to its",
    "beside them": "next to them, or in addition to them",
    "so many": "the number",
    "whence": "from where",
}
_SUFFIXES = {".md", ".py", ".toml", ".yaml", ".yml"}
# The first letter may be a capital; "is None" is Python, and "there is none" is plain. Words may be parted by a line
# break and the sign of a comment.
_EITHER = "|".join(f"[{each[0].upper()}{each[0]}]{each[1:]}" for each in sorted(PHRASES, reverse=True))
_PHRASE = re.compile(r"(?<!there\s)" + rf"\b(?:{_EITHER})\b".replace(" ", r"[\s#>]+"))


def files() -> list[Path]:
    """What is part of the project: no hidden folders (environments, caches), nor what was built."""
    top = [path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name not in ("build", "dist")]
    found = [file for path in top for file in ([path] if path.is_file() else path.rglob("*"))]
    return sorted(file for file in found if file.suffix in _SUFFIXES and file != Path(__file__).resolve())


def found() -> list[str]:
    """Where each phrase stands, and what to write instead."""
    places: list[str] = []
    for file in files():
        text = file.read_text(encoding="utf-8")
        for match in _PHRASE.finditer(text):
            phrase = " ".join(re.findall(r"\w+", match[0])).lower()
            line = text.count("\n", 0, match.start()) + 1
            places.append(f"{file.relative_to(ROOT)}:{line}: {phrase!r}; write: {PHRASES[phrase]}")
    return places


def test_no_riddles() -> None:
    assert not (places := found()), "\n".join(places)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Whoever asks", "whoever"),
        ("what is in use is none.", "is none"),
        ("if it is\n    # none", "is none"),
        ("read for\nwant of time", "for want of"),
        ("beside it", "beside it"),
    ],
)
def test_a_phrase_is_found_over_line_ends(text: str, phrase: str) -> None:
    (there,) = _PHRASE.findall(text)
    assert re.findall(r"\w+", there.lower()) == phrase.split()


@pytest.mark.parametrize("text", ["x is None", "if there is none", "draw_alike()", "besides it", "renewed"])
def test_what_only_looks_like_a_phrase_is_not_found(text: str) -> None:
    assert not _PHRASE.search(text)
