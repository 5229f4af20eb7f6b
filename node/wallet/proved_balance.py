"""What an account held at the federation's last certified checkpoint, proved: no node is trusted for it.

The proof is as old as the checkpoint, a day as a rule; so the date belongs to the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from node.addresses import Kind, decode_address, encode_address
from node.errors import UserError
from node.terminal import emit, format_date
from node.wallet.verify import verify_balance
from node.wallet.wallet import Wallet
from protocol.credits import format_credits
from protocol.errors import InvalidInput


def show_proved_balance(wallet: Wallet, as_json: bool) -> None:
    """Fetch, check and print it. Raises: UserError when there is no checkpoint yet, or nothing is proved."""
    answer = wallet.client.get_account_proof(wallet.address)
    if answer is None:
        raise UserError("the federation has certified no state yet: try again tomorrow, or without --verify")
    account = decode_address(Kind.ACCOUNT, wallet.address)
    try:
        proved = verify_balance(wallet.charters, answer.checkpoint, answer.facts, account)
    except InvalidInput as error:
        raise UserError(f"{wallet.node_url} proves no balance: {error}") from error
    charter = wallet.charters[proved.checkpoint.charter_version]
    epoch = charter.compute_epoch(proved.checkpoint.time_ms // 1000)
    lots = [
        {
            "program": encode_address(Kind.PROGRAM, lot.program) if lot.program else None,
            "expiry_epoch": lot.expiry_epoch,
            "is_expired": 0 < lot.expiry_epoch < epoch,
            "millicredits": amount,
        }
        for lot, amount in sorted(proved.lots.items())
    ]
    document: dict[str, Any] = {
        "address": wallet.address,
        "as_of_seconds": proved.checkpoint.time_ms // 1000,
        "state_root": proved.checkpoint.root.hex(),
        "certified_by": [charter.members[number].name for number in proved.checkpoint.members],
        "millicredits": sum(lot["millicredits"] for lot in lots if not lot["is_expired"]),
        "lots": lots,
    }
    emit(document, _iterate_lines(wallet, document), as_json)


def _iterate_lines(wallet: Wallet, document: dict[str, Any]) -> Iterator[str]:
    when = datetime.fromtimestamp(document["as_of_seconds"], UTC)
    yield f"{format_credits(document['millicredits'])} credits, proved as of {when:%Y-%m-%d %H:%M} UTC"
    for lot in document["lots"]:
        epoch = lot["expiry_epoch"]
        end = f"until {format_date(wallet.compute_epoch_end(epoch))}" if epoch else "no end"
        yield f"{format_credits(lot['millicredits']):>16}  {lot['program'] or 'free'}, {end}"
    yield f"Certified by {', '.join(document['certified_by'])}."
