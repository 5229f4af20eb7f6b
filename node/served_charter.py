"""The charter that a node serves, with all that proves it: whoever pins the federation's id believes nothing else.

Each version was made final under the one before, so the founding document's id vouches for all of them (spec 9.5).
"""

from __future__ import annotations

from typing import NamedTuple

from node import api
from node.addresses import Kind, decode_address, encode_address
from node.client import NodeClient
from node.errors import UserError
from protocol.charter import Charters, FoundedCharter, decode_founded_charter
from protocol.errors import InvalidInput
from protocol.receipts import verify_amendments


class ServedCharter(NamedTuple):
    """What a node serves of the charter, all of it verified, and the answer it came with."""

    founded: FoundedCharter
    charters: Charters
    answer: api.Charter


def verify_charter(answer: api.Charter, node_name: str) -> ServedCharter:
    """The founding document and the amendments that a node tells of. Raises: UserError when they do not hold."""
    try:
        founded = decode_founded_charter(answer.founded)
        receipts = [amendment.receipt for amendment in answer.amendments]
        charters = verify_amendments({0: founded.charter}, receipts)
    except InvalidInput as error:
        raise UserError(f"the charter of {node_name} does not hold ({error}): choose another node") from error
    return ServedCharter(founded, charters, answer)


def fetch_charter(node_url: str, expected: str | None = None) -> ServedCharter:
    """The charter that the node at this address serves.

    Raises: UserError when it does not hold or is not of the `expected` federation (an address); Unreachable.
    """
    with NodeClient(node_url) as client:
        served = verify_charter(client.get_charter(), node_url)
    federation = served.founded.charter.federation
    found = encode_address(Kind.FEDERATION, federation)
    if served.answer.federation != found:
        raise UserError(f"{node_url} says it serves {served.answer.federation}, but its charter founds {found}")
    if expected is not None and decode_address(Kind.FEDERATION, expected) != federation:
        raise UserError(f"{node_url} serves the federation {found}, and {expected.strip()} was expected")
    return served
