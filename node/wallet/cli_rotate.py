"""The command that gives the wallet's account a new key."""

from __future__ import annotations

from pathlib import Path

import click

from node.errors import Refused, Unreachable
from node.terminal import confirm, dry_run_option, emit, explain_interruption, home_option, json_option, yes_option
from node.wallet.cli_unlock import tell_lost
from node.wallet.options import make_passphrase, node_option, passphrase_option, wait_option

AGAIN = "`allmende wallet rotate` goes on with it"


@click.command()
@home_option
@node_option
@passphrase_option
@wait_option
@dry_run_option
@yes_option
@json_option
def rotate(
    home: Path,
    node_url: str | None,
    passphrase_file: Path | None,
    wait_seconds: float,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Give the account a new key. Its address, its credits and the 24 words stay as they are.

    For a key that may have become known, alone. It grows from the same 24 words: if these, or wallet.key with its
    passphrase, became known, make a new wallet instead and send the credits there.

    Example: allmende wallet rotate
    """
    from node.addresses import Kind, encode_address
    from node.wallet.rotating import rotate_key
    from node.wallet.wallet import Wallet

    with Wallet.open(home, node_url) as wallet:
        if dry_run:
            document = {"dry_run": True, "address": wallet.address, "key_index": wallet.settings.key_index}
            emit(document, [f"It would give {wallet.address} a new key."], as_json)
            return
        confirm(f"Give {wallet.address} a new key? The 24 words stay its backup.", yes)
        key, next_key = wallet.unlock_with_next(make_passphrase(passphrase_file))
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
        emit(document, lines, as_json)
