"""The budgets that this wallet asked for, and whether they came.

A request is kept before it is sent, so asking again sends the same bytes, and one person is not enrolled twice. The
tag in it is drawn at random: it says nothing about the person, and only this file links it to the wallet.
"""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind, encode_address
from node.errors import UserError
from node.files import write_atomically
from node.wallet.payments import check_text
from protocol.budgets import BudgetRequest, decode_budget_request
from protocol.errors import InvalidInput
from protocol.identifiers import ID_BYTES
from protocol.limits import PURPOSE_BYTES_MAX
from protocol.signatures import NO_SIGNATURE

if TYPE_CHECKING:
    from pathlib import Path

    from node.wallet.wallet import Wallet

FILE_NAME = "budget_requests.json"
VERSION = 1


class Asked(NamedTuple):
    """A request that this wallet signed."""

    request: BudgetRequest
    asked_at_seconds: int
    node: str
    """The node that took it; empty until one has."""


def read_requests(wallet: Wallet) -> list[Asked]:
    """All requests that this wallet signed, oldest first. Raises: UserError when their file is damaged."""
    path = _path(wallet)
    try:
        document = json.loads(path.read_bytes())
        if document["version"] > VERSION:
            raise UserError(f"{path} was written by a later version: update allmende")
        return [
            Asked(
                decode_budget_request(wallet.charter, b64decode(entry["request"])),
                int(entry["asked_at_seconds"]),
                str(entry["node"]),
            )
            for entry in document["requests"]
        ]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, InvalidInput, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a backup, or move it away") from error


def find_open(wallet: Wallet, program: bytes) -> Asked | None:
    """The request for a program that an institution can still approve: one of an epoch that is open now."""
    open_epochs = wallet.charter.compute_open_epochs(wallet.now())
    for asked in reversed(read_requests(wallet)):
        if asked.request.program == program and asked.request.epoch in open_epochs:
            return asked
    return None


def sign_request(wallet: Wallet, key: Ed25519PrivateKey, program: bytes, member: int, text: str) -> BudgetRequest:
    """Draw a tag, sign the enrolment for it and keep the request; it is not sent yet.

    A request that is still open is returned instead of a second one. Raises: UserError.
    """
    check_text(text, PURPOSE_BYTES_MAX, "text")
    with wallet.lock():
        before = find_open(wallet, program)
        if before is not None:
            return before.request
        public_key = key.public_key().public_bytes_raw()
        request = BudgetRequest(
            program,
            member,
            wallet.compute_epoch(),
            secrets.token_bytes(ID_BYTES),
            wallet.account,
            public_key,
            text,
            NO_SIGNATURE,
            NO_SIGNATURE,
        ).sign(wallet.charter, key)
        decode_budget_request(wallet.charter, request.encode())
        _write(wallet, [*read_requests(wallet), Asked(request, wallet.now(), "")])
        return request


def mark_taken(wallet: Wallet, request: BudgetRequest) -> None:
    """The wallet's present node has taken the request."""
    with wallet.lock():
        requests = read_requests(wallet)
        _write(
            wallet, [asked._replace(node=wallet.node_url) if asked.request == request else asked for asked in requests]
        )


def read_state(wallet: Wallet, account: api.Account, asked: Asked) -> str:
    """What became of a request: approved, open, lapsed or not sent. Only the node that took it is asked."""
    enrolment = asked.request.build_enrolment(wallet.charter).compute_id(wallet.federation)
    if encode_address(Kind.RECORD, enrolment) in {applied.record for applied in account.enrolments}:
        return "approved"
    if asked.request.epoch not in wallet.charter.compute_open_epochs(wallet.now()):
        return "lapsed"
    if not asked.node:
        return "not sent"
    if asked.node != wallet.node_url:
        return "open"
    request_id = encode_address(Kind.RECORD, asked.request.compute_id(wallet.federation))
    answer = wallet.client.get_budget_request(request_id)
    return answer.state if answer is not None else "not sent"


def _path(wallet: Wallet) -> Path:
    return wallet.home / FILE_NAME


def _write(wallet: Wallet, requests: list[Asked]) -> None:
    document: dict[str, Any] = {
        "version": VERSION,
        "requests": [
            {
                "request": b64encode(asked.request.encode()).decode(),
                "asked_at_seconds": asked.asked_at_seconds,
                "node": asked.node,
            }
            for asked in requests
        ],
    }
    write_atomically(_path(wallet), (json.dumps(document, indent=2) + "\n").encode())
