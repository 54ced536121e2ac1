"""The form of README and `docs/`: links resolve, lines and pages are short, every page can be reached."""

import re

import pytest

from tests.docs.pages import PAGES, ROOT, TEXTS, without_fences

LINKS = sorted({(page, target) for page, text in TEXTS.items() for target in re.findall(r"\]\(([^)]+)\)", text)})


def anchors(page: str) -> set[str]:
    """What a link to this page may point to: its headings, as they are rendered."""
    headings = re.findall(r"^#+ (.*)$", without_fences(TEXTS[page]).lower(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_leads_somewhere(page, target):
    if target.startswith("https://"):
        return
    path, _, anchor = target.partition("#")
    led = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    assert led.is_file()
    assert not anchor or anchor in anchors(led.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", [*sorted(TEXTS), "CHANGELOG.md"])
def test_lines_are_short(page):
    """What a program printed stays as it was printed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```console\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) >= 120] == []


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_no_page_is_long(page):
    assert len((ROOT / page).read_bytes()) <= 15 * 1024


@pytest.mark.parametrize("page", [*sorted(TEXTS), "CHANGELOG.md"])
def test_a_page_has_one_title_and_no_conflict(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(re.findall(r"^# ", without_fences(text), re.MULTILINE)) == 1
    assert not re.search(r"^(<{7}|={7}|>{7})", text, re.MULTILINE)


def test_the_index_names_every_page():
    named = {target.partition("#")[0] for page, target in LINKS if page == "docs/README.md"}
    there = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.is_relative_to(ROOT / "docs")}
    assert named == there - {"README.md"}


def test_the_distribution_carries_the_pages():
    (line,) = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("include = ")]
    assert '"docs"' in line


def test_the_picture_is_a_picture_of_the_live_table():
    picture = (ROOT / "docs" / "pictures" / "live.svg").read_text(encoding="utf-8").replace("&#160;", " ")
    assert "RESUMED_FROM" in picture
    assert "resumed from step" in picture
