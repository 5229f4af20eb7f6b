"""Every `spec 5.4` in the code names a heading of the specification, and no link in a document is dead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPECIFICATION = ROOT / "protocol" / "README.md"

HEADING = re.compile(r"^#{1,6}\s+(?P<number>\d+(?:\.\d+)*)\.?\s+\S", re.MULTILINE)
# A citation may break over two lines of a comment, and may name several: "spec 5.4, 6.1 and 7".
CITATION = re.compile(r"\bspec\s+(?:#\s*)?(?P<numbers>\d+(?:\.\d+)*(?:(?:, | and |, and | to )\d+\.\d+)*)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(<?(?P<target>[^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
TITLE = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*#*$", re.MULTILINE)
FOLDERS = ("node", "protocol", "tests", "scripts")


def list_sources() -> list[Path]:
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in files if path.suffix == ".py" or (path.suffix == "" and path.is_file()))


def list_documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])


def read_headings(document: str) -> list[str]:
    return [match["number"] for match in HEADING.finditer(FENCE.sub("", document))]


def find_citations(text: str) -> list[tuple[int, str]]:
    """Line and section number of every citation."""
    return [
        (text.count("\n", 0, match.start()) + 1, number)
        for match in CITATION.finditer(text)
        for number in re.findall(r"\d+(?:\.\d+)*", match["numbers"])
    ]


def compute_anchors(document: str) -> set[str]:
    """The anchors that a forge gives to headings: lower case, no punctuation, hyphens for spaces."""
    titles = (match["title"] for match in TITLE.finditer(FENCE.sub("", document)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def find_dead_links(path: Path) -> list[str]:
    dead = []
    for match in LINK.finditer(FENCE.sub("", path.read_text(encoding="utf-8"))):
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        other = (path.parent / place) if place else path
        is_heading_named = anchor and other.suffix == ".md" and other.is_file()
        if not other.exists() or (
            is_heading_named and anchor not in compute_anchors(other.read_text(encoding="utf-8"))
        ):
            dead.append(target)
    return dead


def test_every_citation_names_a_heading_of_the_specification() -> None:
    headings = set(read_headings(SPECIFICATION.read_text(encoding="utf-8")))
    unknown = [
        f"{path.relative_to(ROOT)}:{line}: spec {number} does not exist"
        for path in list_sources()
        for line, number in find_citations(path.read_text(encoding="utf-8"))
        if number not in headings and path != Path(__file__)
    ]
    if unknown:
        pytest.fail("\n".join(unknown), pytrace=False)


def test_every_section_number_is_given_once() -> None:
    headings = read_headings(SPECIFICATION.read_text(encoding="utf-8"))
    assert headings
    assert sorted(number for number in set(headings) if headings.count(number) > 1) == []


def test_no_document_has_a_dead_link() -> None:
    dead = [f"{path.relative_to(ROOT)}: {link}" for path in list_documents() for link in find_dead_links(path)]
    if dead:
        pytest.fail("\n".join(dead), pytrace=False)


def test_citations_are_found_across_lines_and_in_lists() -> None:
    text = "as spec 5.4 says\n# (spec\n# 6.1, 7.2 and 8.1); see spec 9, 3 members; inspect 4.2"
    assert find_citations(text) == [(1, "5.4"), (2, "6.1"), (2, "7.2"), (2, "8.1"), (3, "9")]


def test_headings_inside_code_are_no_sections() -> None:
    assert read_headings("## 5. Final\n### 5.4 Unlock\n```sh\n# 6. no heading\n```\n## Known gaps\n") == [
        "5",
        "5.4",
    ]
