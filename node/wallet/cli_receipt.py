"""Receipts: fetch one, and check one offline, with the charter alone and no trust in any node.

`verify` opens no connection. What it prints is what the members' signatures prove, nothing that a node said.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.errors import UserError
from node.terminal import FILE, emit, home_option, json_option
from node.wallet.options import node_option

if TYPE_CHECKING:
    from protocol.charter import Charter, Charters
    from protocol.receipts import VerifiedReceipt

FILE_BYTES_MAX = 1 << 20


@click.group()
def group() -> None:
    """Check a receipt, offline, trusting no node."""


@group.command()
@click.argument("file", type=FILE)
@click.option("--charter", "charter_file", type=FILE, help="The founding document; default: the wallet's own.")
@click.option("--federation", metavar="ADDRESS", help="Refuse a charter of any federation but this (almf1...).")
@click.option("--hold", "hold_file", type=FILE, help="The receipt of the hold that paid for the job.")
@click.option("--job", "job_file", type=FILE, help="The job's receipt; FILE is then that of its settle.")
@home_option
@json_option
def verify(
    file: Path,
    charter_file: Path | None,
    federation: str | None,
    hold_file: Path | None,
    job_file: Path | None,
    home: Path,
    as_json: bool,
) -> None:
    """Check the receipt in FILE, and print what it proves. Uses no network; exit status 1 when it proves nothing.

    Example: allmende receipt verify payment.receipt --charter federation.json
    """
    from protocol.errors import InvalidInput
    from protocol.receipts import verify_receipt

    if (hold_file is None) != (job_file is None):
        raise click.UsageError("a job's receipt is checked with --job and --hold together")
    charters = _read_charters(charter_file, home, federation)
    charter = charters[0]
    try:
        verified = verify_receipt(charters, _read_file(file))
    except InvalidInput as error:
        raise UserError(f"{file} proves nothing in the federation {charter.fields.name}: {error}") from error
    document, lines = _describe_verified(charters[verified.round.version], verified)
    if job_file is not None and hold_file is not None:
        from node.wallet.job_receipts import describe_job, verify_job

        try:
            proven = verify_job(charters, verified.record, _read_file(hold_file), _read_file(job_file))
        except InvalidInput as error:
            raise UserError(f"{job_file} does not hold: {error}") from error
        job_document, job_lines = describe_job(proven)
        document["job"] = job_document
        lines += job_lines
    emit(document, lines, as_json)


def _describe_verified(charter: Charter, verified: VerifiedReceipt) -> tuple[dict[str, Any], list[str]]:
    from node.addresses import Kind, encode_address
    from node.wallet.wording import describe, to_document

    names = [charter.members[number].name for number in verified.members]
    weight = sum(charter.weights[number] for number in verified.members)
    document = {
        "federation": encode_address(Kind.FEDERATION, charter.federation),
        "federation_name": charter.fields.name,
        "record": to_document(verified.record),
        "attempt": verified.round.attempt,
        "members": [{"number": number, "name": name} for number, name in zip(verified.members, names, strict=True)],
        "weight": weight,
        "quorum": charter.quorum,
    }
    lines = [
        f"Proven: final in the federation {charter.fields.name} ({document['federation']})",
        *(f"  {line}" for line in describe(verified.record)),
        f"Committed by {', '.join(names)}"
        + (f" in attempt {verified.round.attempt}" if verified.round.attempt else ""),
        f"  weight {weight} of {charter.total_weight}, where {charter.quorum} is a quorum",
    ]
    return document, lines


def _read_charters(path: Path | None, home: Path, federation: str | None) -> Charters:
    """The charter's versions to check against: from a file, else those that the wallet knows."""
    from node.addresses import Kind, decode_address, encode_address

    if path is None:
        from node.wallet.wallet import SETTINGS_NAME, Wallet

        if not (home / SETTINGS_NAME).exists():
            raise UserError("name the federation's founding document with --charter federation.json: no wallet is here")
        charters: Charters = Wallet.open(home).charters
    else:
        charters = read_charters(path)
    if federation is not None and decode_address(Kind.FEDERATION, federation) != charters[0].federation:
        found = encode_address(Kind.FEDERATION, charters[0].federation)
        raise UserError(f"that is the charter of {found}, and {federation.strip()} was expected")
    return charters


def read_charters(path: Path) -> Charters:
    """The versions in a founding document: its bytes, or JSON that has them as base64 under `founded`, with receipts
    of its amendments under `amendments`.

    That JSON is a node's `federation.json`, its answer to `GET /v1/charter`, or a `wallet.json`.

    Raises: UserError when it is none of them, or a signature does not hold.
    """
    import json
    from base64 import b64decode

    from protocol.charter import decode_founded_charter
    from protocol.errors import InvalidInput
    from protocol.receipts import verify_amendments

    content = _read_file(path)
    receipts: list[bytes] = []
    try:
        if content.lstrip()[:1] == b"{":
            document = json.loads(content)
            content = b64decode(document["founded"], validate=True)
            for entry in document.get("amendments", []):
                receipts.append(b64decode(entry["receipt"] if isinstance(entry, dict) else entry, validate=True))
        return verify_amendments({0: decode_founded_charter(content).charter}, receipts)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{path} is no founding document: use the federation.json of a node") from None
    except InvalidInput as error:
        raise UserError(f"the founding document {path} does not hold: {error}") from error


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise UserError(f"{path} is too large to be a receipt or a charter")
    return content


@group.command()
@click.argument("record")
@click.option("--out", type=FILE, required=True, help="Where to write it.")
@home_option
@node_option
@json_option
def get(record: str, out: Path, home: Path, node_url: str | None, as_json: bool) -> None:
    """Fetch the receipt of RECORD (almr1...), check it and write it to a file.

    A receipt that this wallet has already is taken from its journal.
    """
    from node.addresses import Kind, decode_address
    from node.files import write_atomically
    from node.wallet.wallet import Wallet
    from protocol.errors import InvalidInput
    from protocol.receipts import verify_receipt

    record_id = decode_address(Kind.RECORD, record)
    with Wallet.open(home, node_url) as wallet:
        entry = wallet.journal.find(record_id)
        receipt = entry.receipt if entry is not None else None
        if receipt is None:
            answer = wallet.client.get_record(record.strip())
            if answer is None:
                raise UserError(f"{wallet.node_url} knows no record {record.strip()}: ask another node with --node")
            receipt = answer.receipt
        if receipt is None:
            raise UserError(f"{record.strip()} is not final yet, so there is no receipt: try again in a moment")
        try:
            verified = verify_receipt(wallet.charters, receipt)
        except InvalidInput as error:
            raise UserError(f"the receipt that {wallet.node_url} gives proves nothing: {error}") from error
        if verified.record.id != record_id:
            raise UserError(f"{wallet.node_url} gives the receipt of another record")
        write_atomically(out, receipt, mode=0o644)
        document, lines = _describe_verified(wallet.charters[verified.round.version], verified)
        emit(document | {"file": str(out)}, [*lines, f"Written to {out}"], as_json)
