"""The charter as people and programs read it: the version in force, its history with proofs, and what is proposed."""

from __future__ import annotations

from collections.abc import Mapping

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.member import LedgerMember
from node.network.peer_ids import compute_peer_id
from node.storage.store import MarkKind
from protocol.ledger import read_amendment
from protocol.records import Record, charter_scope


class CharterViews:
    """Reads one member's replica; every method is one moment's state."""

    def __init__(self, member: LedgerMember) -> None:
        self._member = member
        self._replica = member.replica
        self._scope = charter_scope(member.charter.federation)
        self._receipts: dict[bytes, bytes] = {}
        """Of applied amendments: computed once."""

    def build_charter(self, epoch: int, addresses: Mapping[str, str]) -> api.Charter:
        """The constitution in force, with all that proves it."""
        charter = self._member.charter
        return api.Charter(
            federation=encode_address(AddressKind.FEDERATION, charter.federation),
            name=charter.fields.name,
            founded=self._member.founded.encode(),
            epoch=epoch,
            epoch_seconds=charter.fields.epoch_seconds,
            quorum=charter.quorum,
            members=[
                api.Member(
                    number=member.number,
                    name=member.name,
                    address=encode_address(AddressKind.ACCOUNT, charter.get_member_account(member.number)),
                    weight=member.weight,
                    peer_id=compute_peer_id(member.peer_key),
                    is_forked=member.number in self._replica.forks,
                )
                for member in charter.fields.members
            ],
            version=charter.version,
            encoded=charter.encoded,
            amendments=self._list_amendments(),
            proposals=self._list_proposals(),
            addresses={name: address for name, address in addresses.items() if address},
        )

    def _list_amendments(self) -> list[api.Amendment]:
        """All that are final and applied, the first one first."""
        moments = self._member.store.get_marks(MarkKind.IN_FORCE)
        head = self._replica.ledger.heads.get(self._scope)
        record_id = head.record if head else b""
        found: list[api.Amendment] = []
        while record_id:
            record = self._member.get_record(record_id)
            assert record is not None, "what has applied stands in a batch"
            version = record.sequence + 1
            since = moments.get(version.to_bytes(8, "big")) if version <= self._replica.version else None
            name = encode_address(AddressKind.RECORD, record_id)
            found.append(api.Amendment(version, name, self._get_receipt(record_id), since))
            record_id = record.prev
        return found[::-1]

    def _get_receipt(self, record_id: bytes) -> bytes:
        if record_id not in self._receipts:
            receipt = self._member.build_receipt(record_id)
            assert receipt is not None, "what has applied is final"
            self._receipts[record_id] = receipt
        return self._receipts[record_id]

    def _list_proposals(self) -> list[api.Proposal]:
        """Amendments of the next slot that somebody introduced, or that wait here for our people's word."""
        slot = (self._scope, self._replica.ledger.get_next_sequence(self._scope))
        records = self._replica.get_claims(slot)
        waiting = self._member.submissions.list_of(self._member.charter.federation)
        known = {record.id: record for record in (*records, *waiting) if record.scope == self._scope}
        return [proposal for record in known.values() if (proposal := self._describe(record)) is not None]

    def _describe(self, record: Record) -> api.Proposal | None:
        charter = self._member.charter
        after = read_amendment(charter.federation, record)
        if after is None:
            return None
        author = charter.members_by_key.get(record.signers[0])
        voters = self._find_voters(record.id) & charter.members.keys()
        return api.Proposal(
            record=encode_address(AddressKind.RECORD, record.id),
            version=after.version,
            encoded=after.encoded,
            proposed_by=charter.members[author].name if author is not None else "?",
            voted_by=[charter.members[number].name for number in sorted(voters)],
            weight=sum(charter.weights[number] for number in voters),
            is_approved_here=self._member.has_approved(record.id),
        )

    def _find_voters(self, record_id: bytes) -> set[int]:
        """Members that voted for it under the version in force, in whatever attempt."""
        located = self._replica.locate(record_id)
        if located is None:
            return set()
        introduction, position = located
        return {
            number
            for (vote_round, *_), tally in introduction.votes.items()
            if vote_round.version == self._replica.version
            for number, mask in tally.masks.items()
            if mask >> position & 1
        }
