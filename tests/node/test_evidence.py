"""A verdict in words names the guilty, and says so when it names nobody."""

from __future__ import annotations

import pytest

from node.evidence import describe_verdict
from protocol.attempts import Round
from protocol.equivocation import EvidenceKind
from protocol.records import person_scope
from tests.strategies import make_federation
from tests.wrongdoing import make_evidence

CHARTER = make_federation().charter


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (EvidenceKind.FORK, "(member 3) signed two batches with number 4 of its log"),
        (EvidenceKind.VOTES, "voted for two records in slot 0 of account alm1"),
        (EvidenceKind.COMMITS, "committed to two records in slot 0 of account alm1"),
        (EvidenceKind.HIDDEN_COMMIT, "Institution 3 (member 3) promised to leave slot 0 of account alm1"),
        (EvidenceKind.FINALS, "Institution 3 (member 3) and Institution 4 (member 4) made two records final"),
        (EvidenceKind.RECORDS, "the owner of alm1"),
    ],
    ids=lambda value: value.name if isinstance(value, EvidenceKind) else "",
)
def test_each_kind_is_told_in_one_line(kind, words):
    text = describe_verdict({0: CHARTER}, make_evidence()[kind].verdict)
    assert words in text
    assert "\n" not in text


def test_a_proof_that_names_nobody_says_so():
    verdict = make_evidence()[EvidenceKind.FINALS].verdict
    of_two_rounds = verdict._replace(members=(), rounds=(Round(0, 0), Round(0, 1)), scope=person_scope(b"t" * 32))
    text = describe_verdict({0: CHARTER}, of_two_rounds)
    assert text.startswith("members that hold a third of the weight or more, whom this proof does not name,")
    assert f"slot 0 of person {(b't' * 32).hex()}" in text


def test_a_member_that_left_is_named_as_it_was():
    federation = make_federation((1,) * 5)
    staying = tuple(member for member in federation.charter.fields.members if member.number != 3)
    left = federation.amended(federation.amend(members=staying)).charter
    fork = make_evidence()[EvidenceKind.FORK].verdict
    text = describe_verdict({0: federation.charter, 1: left}, fork._replace(members=(3,)))
    assert text.startswith("Institution 3 (member 3) signed two batches")
