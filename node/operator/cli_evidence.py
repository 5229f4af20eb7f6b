"""The commands about wrongdoing: list what a node can prove, export a proof as a file, check one offline.

`verify` opens no connection. What it prints is what the signatures of the convicted prove, nothing that a node said.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from node import api
from node.config import NodeHome
from node.errors import UserError
from node.operator.connection import connect
from node.operator.homes import node_home_option
from node.terminal import FILE, emit, json_option

if TYPE_CHECKING:
    from protocol.charter import Charters

ID_CHARACTERS = 16


@click.group("evidence")
def group() -> None:
    """Proofs that a member or an owner contradicted itself: list, export, check offline.

    \b
    Example:
        allmende evidence ls
        allmende evidence export 5f0c2a91 --out member-3.evidence
        allmende evidence verify member-3.evidence --charter federation.json
    """


@group.command("ls")
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def list_evidence(home: NodeHome, url: str | None, as_json: bool) -> None:
    """List the proofs that the node holds.

    \b
    Example:
        allmende evidence ls
    """
    with connect(home, url) as client:
        found = client.get_evidence()
    lines = [
        f"{evidence.id[:ID_CHARACTERS]}  {datetime.fromtimestamp(evidence.seen_seconds, UTC):%Y-%m-%d %H:%M} UTC"
        f"  {evidence.text}"
        for evidence in found
    ]
    emit({"evidence": msgspec.to_builtins(found)}, lines or ["Nobody contradicted itself, as far as this node knows."],
         as_json)  # fmt: skip


@group.command()
@click.argument("evidence_id", metavar="ID")
@click.option("--out", type=FILE, required=True, help="Where to write it.")
@node_home_option
@click.option("--url", help="Ask the node at this address.")
@json_option
def export(evidence_id: str, out: Path, home: NodeHome, url: str | None, as_json: bool) -> None:
    """Write a proof to a file that anybody can check. The first characters of its ID suffice.

    \b
    Example:
        allmende evidence export 5f0c2a91 --out member-3.evidence
    """
    from node.files import write_atomically

    with connect(home, url) as client:
        evidence = find_evidence(client.get_evidence(), evidence_id)
    write_atomically(out, evidence.encoded, mode=0o644)
    emit({"id": evidence.id, "file": str(out), "text": evidence.text}, [f"Written to {out}: {evidence.text}"], as_json)


def find_evidence(known: list[api.Evidence], text: str) -> api.Evidence:
    """The proof whose id starts with `text`. Raises: UserError unless there is exactly one."""
    found = [evidence for evidence in known if text and evidence.id.startswith(text.strip().lower())]
    if len(found) != 1:
        problem = "no proof's id starts" if not found else f"the ids of {len(found)} proofs start"
        raise UserError(f"{problem} with {text}: see `allmende evidence ls`")
    return found[0]


@group.command()
@click.argument("file", type=FILE)
@click.option("--charter", "charter_file", type=FILE, required=True, help="The founding document: federation.json.")
@json_option
def verify(file: Path, charter_file: Path, as_json: bool) -> None:
    """Check the proof in FILE and print whom it convicts. Uses no network; exit status 1 when it proves nothing.

    FILE may also be the evidence of a disputed job: then it is said what that proves, and what is only asserted.

    \b
    Example:
        allmende evidence verify member-3.evidence --charter federation.json
    """
    from node.config import read_federation
    from node.evidence import describe_verdict, list_accounts
    from protocol.errors import InvalidInput
    from protocol.evidence import EVIDENCE_BYTES_MAX, verify_evidence
    from protocol.job_evidence import JOB_EVIDENCE_BYTES_MAX, is_job_evidence

    charters = read_federation(charter_file).decode_charters()
    with file.open("rb") as opened:
        content = opened.read(max(EVIDENCE_BYTES_MAX, JOB_EVIDENCE_BYTES_MAX) + 1)
    try:
        if is_job_evidence(content):
            emit(*_judge_job(charters, content), as_json)
            return
        verdict = verify_evidence(charters, content)
    except InvalidInput as error:
        raise UserError(f"{file} proves nothing in the federation {charters[0].fields.name}: {error}") from error
    text = describe_verdict(charters, verdict)
    document = {
        "kind": verdict.kind.name.lower(),
        "members": list(verdict.members),
        "accounts": list_accounts(charters[0].federation, verdict),
        "text": text,
    }
    emit(document, [f"Proven: {text}"], as_json)


def _judge_job(charters: Charters, content: bytes) -> tuple[dict[str, Any], list[str]]:
    """What the evidence of a disputed job proves, for programs and for people. Raises: InvalidInput."""
    from hashlib import sha256

    from node.addresses import Kind, encode_address
    from node.evidence import iterate_job_verdict
    from protocol.job_evidence import verify_job_evidence

    verdict = verify_job_evidence(charters, content)
    document = {
        "kind": "job",
        "evidence": sha256(content).hexdigest(),
        "hold": encode_address(Kind.RECORD, verdict.hold.id),
        "payer": encode_address(Kind.ACCOUNT, verdict.hold.account),
        "payee": encode_address(Kind.ACCOUNT, verdict.payee),
        "reason": verdict.reason.name.lower(),
        "proven": [claim.name.lower() for claim in verdict.claims],
        "is_reason_proven": verdict.is_reason_proven,
    }
    return document, [f"A disputed job, hold {document['hold']}", *iterate_job_verdict(verdict)]
