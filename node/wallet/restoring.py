"""May a wallet be brought back from its words? Only while nothing that was signed with them is on its way.

A restored wallet does not know what the old one signed last. If such a record has reached a member, a new one in its
slot would contest it and stop the account. What no node has seen can't be known here: hence the warning never to use
two machines.
"""

from __future__ import annotations

from pathlib import Path

from node.addresses import Kind, encode_address
from node.client import NodeClient, fetch_founding
from node.errors import UserError
from node.keystore import Key
from node.mnemonics import derive_seed
from node.wallet.journal import Journal
from node.wallet.wallet import JOURNAL_NAME
from protocol.identifiers import compute_account_id
from protocol.records import account_scope


def check_nothing_pending(home: Path, node_url: str, words: str, federation: str | None) -> None:
    """Return when the words' account has no record on its way, as far as the node and a journal in `home` know.

    Raises: UserError when it has, or the node serves another federation; Unreachable.
    """
    founded = fetch_founding(node_url, federation)
    account = compute_account_id(founded.charter.federation, Key(derive_seed(words, "account")).public_key)
    if (home / JOURNAL_NAME).exists():
        with Journal(home / JOURNAL_NAME) as journal:
            signed = [entry for entry in journal.pending() if entry.scope == account_scope(account)]
        if signed:
            raise UserError(
                f"{home / JOURNAL_NAME} holds {len(signed)} signed records of this wallet that are not final: put "
                "wallet.json and wallet.key back beside it and run `allmende wallet pending --resend`"
            )
    client = NodeClient(node_url)
    try:
        on_the_way = client.get_account(encode_address(Kind.ACCOUNT, account)).pending
    finally:
        client.close()
    if on_the_way:
        raise UserError(
            f"{on_the_way[0]} of this account is on its way and not final: finish it on the old machine with "
            "`allmende wallet pending --resend`, then restore"
        )
