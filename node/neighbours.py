"""The other members' nodes: who is let in, who is called, and where; it follows the charter.

Let in are the members of every version from the one before the one in force to the newest that is known: a new member
can fetch the ledger before its version is in force, and one that left still hears that it left when it calls, until
the charter changes again. Addresses are no part of the charter: they come from the founding file, the settings and the
members' own cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from node.config import check_p2p_address
from node.errors import UserError
from node.network.peer_ids import compute_peer_id
from protocol.charter import Charter, Charters, Member


class Neighbours:
    """Peer id -> the member behind it, and the addresses of its node."""

    def __init__(self, own_number: int, charters: Charters, addresses: Mapping[str, str], extra: Sequence[str]) -> None:
        """`addresses` are those of the founding file, by members' names; `extra` those of the settings.

        Raises: UserError when the settings name a peer that never was a member: it would never be let in.
        """
        self._own_number = own_number
        self._members: dict[str, Member] = {}
        self._current: dict[str, Member] = {}
        self._addresses: dict[str, list[str]] = {}
        for charter in charters.values():
            for member in charter.fields.members:
                known = self._addresses.setdefault(compute_peer_id(member.peer_key), [])
                if member.name in addresses and addresses[member.name] not in known:
                    known.append(addresses[member.name])
        for address in extra:
            peer_id = address.rpartition("/p2p/")[2]
            if peer_id not in self._addresses:
                raise UserError(
                    f"no other member of the federation has the peer id {peer_id}: correct peers in config.toml"
                )
            self._addresses[peer_id].append(address)
        self.follow(charters.values())

    def follow(self, charters: Iterable[Charter], before: Iterable[Charter] = ()) -> None:
        """Let in the members of these versions, the last one's names counting; of the versions `before` them, too, but
        call those that left no more: a node that is gone for good would be called for ever."""
        self._current = _list_peers(charters)
        self._members = _list_peers(before) | self._current

    def __contains__(self, peer_id: object) -> bool:
        """True when the peer may connect."""
        member = self._members.get(peer_id) if isinstance(peer_id, str) else None
        return member is not None and member.number != self._own_number

    def get_number(self, peer_id: str) -> int:
        """The member behind a peer that was let in; 0 for one that was let in before and is not any more."""
        member = self._members.get(peer_id)
        return member.number if member is not None else 0

    def list_others(self) -> dict[str, Member]:
        """Peer id -> member, of all that did not leave."""
        return {peer_id: it for peer_id, it in self._current.items() if it.number != self._own_number}

    def list_calls(self) -> dict[str, list[str]]:
        """Peer id -> addresses to call, of all that did not leave."""
        return {peer_id: list(self._addresses.get(peer_id, ())) for peer_id in self.list_others()}

    def list_addresses(self) -> dict[str, str]:
        """Name -> first known address, our own node's too."""
        known = {it.name: self._addresses.get(peer_id, []) for peer_id, it in self._current.items()}
        return {name: addresses[0] for name, addresses in known.items() if addresses}

    def has_address(self, peer_id: str) -> bool:
        """True when the peer can be called."""
        return bool(self._addresses.get(peer_id))

    def note_address(self, peer_id: str, address: str) -> bool:
        """Take in what a member's card says of its node; False for what is no address."""
        try:
            check_p2p_address(address)
        except UserError:
            return False
        self._addresses[peer_id] = [address]
        return True


def _list_peers(charters: Iterable[Charter]) -> dict[str, Member]:
    return {compute_peer_id(member.peer_key): member for charter in charters for member in charter.fields.members}
