"""Who pins a federation's id can check every later version of its charter, and believes no node."""

import pytest

from node.errors import UserError
from node.known_charters import KnownCharters
from node.web.charter_views import CharterViews
from protocol.errors import InvalidInput
from protocol.receipts import verify_amendments, verify_receipt
from scripts.benchmarks.federation_in_memory import Cast, make_final
from tests.amendments import put_in_force, sign_amendment


@pytest.fixture
async def cast():
    return Cast(4, 4)


@pytest.fixture
async def members(cast, members):
    for _ in range(2):
        await put_in_force(members, sign_amendment(cast, members[0], {}, speakers=members), members[:3])
    return members


@pytest.fixture
def receipts(cast, members):
    answer = CharterViews(members[3]).build_charter(1, {})
    assert (answer.version, len(answer.amendments)) == (2, 2)
    assert all(amendment.in_force_since for amendment in answer.amendments)
    return [amendment.receipt for amendment in answer.amendments]


async def test_the_chain_is_learnt_kept_and_asked_for_only_when_it_is_needed(cast, members, receipts, tmp_path):
    asked = []

    def ask():
        asked.append(1)
        return receipts

    charters = KnownCharters(cast.founded.charter, tmp_path / "amendments", ask)
    assert charters[0] is cast.founded.charter
    assert not asked
    payment = cast.make_payments()[0]
    await make_final(members, [payment])
    assert verify_receipt(charters, members[0].build_receipt(payment.id)).round.version == 2
    assert asked == [1]
    assert charters.newest.id == members[0].charter.id
    again = KnownCharters(cast.founded.charter, tmp_path / "amendments")
    assert again.newest.id == members[0].charter.id
    assert 3 not in again


async def test_a_chain_that_lacks_a_link_or_hangs_elsewhere_proves_nothing(cast, members, receipts, tmp_path):
    payment = cast.make_payments()[0]
    await make_final(members, [payment])
    genesis = {0: cast.founded.charter}
    for wrong in (receipts[1:], receipts[::-1], [receipts[0], receipts[0]], [members[0].build_receipt(payment.id)]):
        with pytest.raises(InvalidInput):
            verify_amendments(genesis, wrong)
        with pytest.raises(UserError, match="do not hold"):
            KnownCharters(cast.founded.charter, tmp_path / "amendments").learn(wrong)
    assert verify_amendments(genesis, receipts).keys() == {0, 1, 2}
    with pytest.raises(InvalidInput):
        verify_amendments({0: Cast(5, 0).founded.charter}, receipts)


async def test_a_damaged_file_is_made_anew(cast, members, receipts, tmp_path):
    path = tmp_path / "amendments"
    path.write_bytes(b"rubbish")
    charters = KnownCharters(cast.founded.charter, path, lambda: receipts)
    assert charters[2].version == 2
    assert KnownCharters(cast.founded.charter, path).newest.version == 2


async def test_an_open_proposal_names_who_voted_for_it(cast, members):
    amendment = sign_amendment(cast, members[0], {5: cast.make_member(5)}, speakers=members)
    await members[0].submit(amendment.encoded)
    await members[1].approve(amendment.id)
    waiting = CharterViews(members[0]).build_charter(1, {}).proposals
    assert [(it.voted_by, it.is_approved_here) for it in waiting] == [([], False)]
    await members[0].approve(amendment.id)
    batch = members[0].say_next()
    await members[1].ingest([batch.encoded], "peer")
    members[1].say_next()
    (proposal,) = CharterViews(members[1]).build_charter(1, {"member 1": "/ip4/192.0.2.1/tcp/4001"}).proposals
    assert (proposal.proposed_by, proposal.voted_by, proposal.weight) == ("member 1", ["member 1", "member 2"], 2)
    assert proposal.is_approved_here
