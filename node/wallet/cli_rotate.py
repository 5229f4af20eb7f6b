"""The command that gives the wallet's account a new key."""

from __future__ import annotations

import click

from node.errors import Refused, Unreachable
from node.terminal import emit, explain_interruption
from node.wallet.cli_unlock import tell_lost
from node.wallet.options import Signing, signing_options, wait_option

AGAIN = "`allmende wallet rotate` goes on with it"


@click.command()
@wait_option
@signing_options
def rotate(signing: Signing, wait_seconds: float) -> None:
    """Give the account a new key. Its address, its credits and the 24 words stay as they are.

    For a key that may have become known, alone. It grows from the same 24 words: if these, or wallet.key with its
    passphrase, became known, make a new wallet instead and send the credits there.

    Example: allmende wallet rotate
    """
    from node.addresses import Kind, encode_address
    from node.wallet.rotating import rotate_key

    with signing.open_wallet() as wallet:
        if signing.dry_run:
            document = {"dry_run": True, "address": wallet.address, "key_index": wallet.settings.key_index}
            emit(document, [f"It would give {wallet.address} a new key."], signing.as_json)
            return
        signing.confirm(f"Give {wallet.address} a new key? The 24 words stay its backup.")
        key, next_key = wallet.unlock_with_next(signing.passphrase)
        with explain_interruption(f"the new key may be signed already; {AGAIN}"):
            outcome = rotate_key(wallet, key, next_key, wait_seconds)
        tell_lost(outcome.lost)
        if outcome.verified is None:
            if outcome.refusal:
                raise Refused(f"{wallet.node_url} refused it: {outcome.refusal}")
            raise Unreachable(f"not final yet; it is signed and kept: {AGAIN}")
        record = encode_address(Kind.RECORD, outcome.entry.record_id)
        document = {"address": wallet.address, "record": record, "key_index": wallet.settings.key_index}
        lines = [
            f"Final: key number {wallet.settings.key_index + 1} signs for {wallet.address} now.",
            f"Record {record}",
        ]
        emit(document, lines, signing.as_json)
