"""Talks to a node over HTTP: one method for each route, with the standard library alone, so that a command starts fast.

Calls block. Several threads may use one client: each call takes a connection of its own from a small pool. What a node
answers is not trusted here: it is decoded into the shapes of `node/api.py`, bounded in size and time, and what matters
in it (records, receipts, offers) is verified by the caller.

*Error handling.* `Unreachable` when the node does not answer, or says that it can't at the moment: nothing is lost,
the same call may be made again. `RecordRefused` when a rule forbids a record. `UserError` for the rest. Each in one
line. Whatever may be repeated without harm is repeated here, a few times.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from node import api
from node.connections import Connection, SocketConnection, make_secure_connection
from node.errors import Refused, Unreachable, UserError
from node.terminal import make_printable
from protocol.errors import Reason, Rejected

ARCHIVE_SECONDS_MAX = 6 * 3600.0
"""A ledger of years over a slow line."""

TIMEOUT_SECONDS = 15.0
"""For a connection, and for each silence in an answer."""

ANSWER_SECONDS_MAX = 120.0
BLOB_SECONDS_MAX = 900.0
"""For an answer as a whole: a node that drips does not hold a caller for ever."""

JSON_BYTES_MAX = 32 * 1024 * 1024
"""A page of history with 200 of the largest records is 7 MB."""

RETRY_PAUSES_SECONDS = (0.2, 0.8)
IDLE_SECONDS_MAX = 5.0
"""Nodes close a connection that was idle for 15 s; one that was idle for less may still be used."""

IDLE_CONNECTIONS_MAX = 8
_PIECE_BYTES = 256 * 1024
_DETAIL_CHARACTERS_MAX = 500

Shape = TypeVar("Shape")


class RecordRefused(Refused, Rejected):
    """A rule forbids the record: a `Rejected` that a person may see. `reason` names the rule."""

    def __init__(self, reason: Reason, detail: str) -> None:
        Rejected.__init__(self, reason, detail)
        self.args = (detail,)


class NodeClient:
    """The client of one node, at an http:// or https:// address or at the path of its operator's socket."""

    def __init__(
        self,
        place: str | Path,
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        json_bytes_max: int = JSON_BYTES_MAX,
        is_public_only: bool = False,
    ) -> None:
        """Nothing is sent yet. `is_public_only`: a stranger named the address. Raises: UserError when it is none."""
        self.place = os.fspath(place)
        self._timeout_seconds = timeout_seconds
        self._json_bytes_max = json_bytes_max
        self._is_public_only = is_public_only
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._path_prefix = ""
        self._is_socket = isinstance(place, Path) or self.place.startswith("/")
        if self._is_socket:
            return
        try:
            address = urlsplit(self.place)
            self._host, self._port = address.hostname or "", address.port
        except ValueError:
            raise UserError(f"{self.place} is no address of a node: write http://HOST:PORT or https://HOST") from None
        if address.scheme not in ("http", "https") or not self._host or address.query or address.username:
            raise UserError(f"{self.place} is no address of a node: write http://HOST:PORT or https://HOST")
        self._is_secure = address.scheme == "https"
        self._path_prefix = address.path.rstrip("/")

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client may be used again."""
        with self._lock:
            connections, self._idle = self._idle, []
        for connection in connections:
            connection.close()

    # -- the node and the ledger --------------------------------------------------------------------------------------

    def get_health(self) -> api.Health:
        """Whether the node answers."""
        return self._read(api.Health, "/health")

    def get_status(self) -> api.Status:
        """How far the node is, and whom it is connected to."""
        return self._read(api.Status, "/status")

    def get_evidence(self) -> list[api.Evidence]:
        """Proofs of wrongdoing; the caller verifies them."""
        return self._read(list[api.Evidence], "/evidence")

    def get_charter(self) -> api.Charter:
        """The constitution; the caller pins the federation and checks the founding document."""
        return self._read(api.Charter, "/charter")

    def get_checkpoint(self) -> api.Checkpoint | None:
        """The last state that a quorum certified, if there is one. Its proof is the caller's to check."""
        return self._find(api.Checkpoint, "/checkpoint")

    def get_snapshot(self, bytes_max: int) -> bytes:
        """The whole certified state with its proof, which is the caller's to check."""
        return self._call("GET", "/checkpoint/facts", bytes_max=bytes_max, answer_seconds=BLOB_SECONDS_MAX)[1]

    def get_account_proof(self, address: str) -> api.AccountProof | None:
        """Proof of what an account held at the last checkpoint, if there is one."""
        return self._find(api.AccountProof, f"/accounts/{_quote(address)}/proof")

    def get_account(self, address: str) -> api.Account:
        """What an account holds."""
        return self._read(api.Account, f"/accounts/{_quote(address)}")

    def get_account_records(self, address: str, limit: int = 50, before: int | None = None) -> api.RecordPage:
        """What touched an account, newest first."""
        return self._read(api.RecordPage, f"/accounts/{_quote(address)}/records", limit=limit, before=before)

    def get_record(self, record_id: str, wait: int = 0) -> api.Record | None:
        """A record, or None when the node knows none. With `wait`, as soon as it is final."""
        return self._find(api.Record, f"/records/{_quote(record_id)}", wait)

    def submit_record(self, record: bytes, wait: int = 0) -> api.Submitted:
        """Hand in a record, and wait up to so many seconds for it to become final. Raises: RecordRefused."""
        path = _add_query("/records", wait=wait or None)
        return _decode(api.Submitted, self._call("POST", path, record, wait=wait)[1])

    def get_slot(self, address: str) -> api.AccountSlot:
        """Who claims the next slot of an account."""
        return self._read(api.AccountSlot, f"/accounts/{_quote(address)}/slot")

    def post_unlock(self, request: bytes, wait: int = 0) -> api.Promises:
        """Ask for another attempt at a slot, and wait for a quorum's promises. Raises: RecordRefused."""
        path = _add_query("/unlocks", wait=wait or None)
        return _decode(api.Promises, self._call("POST", path, request, wait=wait)[1])

    def post_proposal(self, proposal: bytes, record: bytes, wait: int = 0) -> api.Submitted:
        """Propose a record for a slot's attempt, and wait for it to become final. Raises: RecordRefused."""
        from protocol.codec import encode

        path = _add_query("/proposals", wait=wait or None)
        return _decode(api.Submitted, self._call("POST", path, encode((proposal, record)), wait=wait)[1])

    def submit(self, record: bytes, wait_seconds: float) -> api.Submitted:
        """Hand in a record again and again until it is final or the time is over; the last answer.

        Raises: RecordRefused; Unreachable when the node never answered.
        """
        deadline = time.monotonic() + wait_seconds
        answer: api.Submitted | None = None
        pause = RETRY_PAUSES_SECONDS[0]
        while True:
            left = max(0.0, deadline - time.monotonic())
            started = time.monotonic()
            try:
                answer = self.submit_record(record, wait=int(min(left, api.WAIT_SECONDS_MAX)))
            except Unreachable:
                if left <= pause and answer is None:
                    raise
            if (answer is not None and answer.receipt is not None) or left <= pause:
                assert answer is not None
                return answer
            if time.monotonic() - started < 1:  # it did not wait: do not ask in a tight loop
                time.sleep(min(pause, left))
                pause = min(2 * pause, 5.0)

    # -- budgets and jobs ---------------------------------------------------------------------------------------------

    def get_suspensions(self) -> list[api.Suspension]:
        """Accounts that a member has stopped for a while."""
        return self._read(list[api.Suspension], "/suspensions")

    def get_programs(self) -> list[api.Program]:
        """All compute budgets."""
        return self._read(list[api.Program], "/programs")

    def post_budget_request(self, request: bytes) -> api.BudgetRequest:
        """Ask this node's institution for a budget."""
        return _decode(api.BudgetRequest, self._call("POST", "/budget-requests", request)[1])

    def get_budget_request(self, request_id: str) -> api.BudgetRequest | None:
        """Whether the institution has answered; None when this node knows no such request."""
        return self._find(api.BudgetRequest, f"/budget-requests/{_quote(request_id)}")

    def get_offers(self) -> list[api.Offer]:
        """Machines on offer; the caller checks their signatures."""
        return self._read(list[api.Offer], "/offers")

    def get_donors(self) -> list[api.Donor]:
        """Every donor with its reliability, the most reliable first; the node's word."""
        return self._read(list[api.Donor], "/donors")

    def put_offer(self, offer: bytes) -> None:
        """Publish or renew a donor's offer."""
        self._call("PUT", "/offers", offer)

    def get_jobs(self) -> list[api.Job]:
        """The newest jobs."""
        return self._read(list[api.Job], "/jobs")

    def get_job(self, hold_id: str) -> api.Job | None:
        """A job, named by its hold."""
        return self._find(api.Job, f"/jobs/{_quote(hold_id)}")

    # -- letters and bundles ------------------------------------------------------------------------------------------

    def post_message(self, mailbox: bytes, content: bytes) -> int:
        """Put a letter into a mailbox; its sequence. Not repeated here: the letter could arrive twice."""
        path = f"/mailboxes/{mailbox.hex()}/messages"
        return _decode(api.Posted, self._call("POST", path, content, may_repeat=False)[1]).sequence

    def get_messages(self, mailbox: bytes, after: int = 0, wait: int = 0) -> list[api.Message]:
        """Letters after a sequence; with `wait`, as soon as there is one, and perhaps none."""
        path = f"/mailboxes/{mailbox.hex()}/messages"
        return self._read(api.Messages, path, wait=wait or None, after=after).messages

    def put_blob(self, content: bytes) -> bytes:
        """Store a bundle; its name, the SHA-256 of the content."""
        from hashlib import sha256

        digest = sha256(content).digest()
        self._call("PUT", f"/blobs/{digest.hex()}", content, answer_seconds=BLOB_SECONDS_MAX)
        return digest

    def check_blob(self, digest: bytes) -> None:
        """Read a bundle through and drop it. Raises: UserError unless the node gives the content of this hash."""
        from hashlib import sha256

        hashed, path, seconds = sha256(), f"/blobs/{digest.hex()}", BLOB_SECONDS_MAX
        self._call(
            "GET", path, bytes_max=api.BLOB_BYTES_MAX, answer_seconds=seconds, may_repeat=False, take=hashed.update
        )
        if hashed.digest() != digest:
            raise UserError(f"{self._name} gives another content than the bundle {digest.hex()[:16]}...: try again")

    def get_blob(self, digest: bytes) -> bytes:
        """A bundle whose content has this hash. Raises: UserError when the node does not hold it."""
        from hashlib import sha256

        path = f"/blobs/{digest.hex()}"
        content = self._call("GET", path, bytes_max=api.BLOB_BYTES_MAX, answer_seconds=BLOB_SECONDS_MAX)[1]
        if sha256(content).digest() != digest:
            raise UserError(f"{self._name} gives another content than the bundle {digest.hex()[:16]}...: try again")
        return content

    # -- metering for an absent wallet --------------------------------------------------------------------------------

    def post_metering(self, order: api.MeteringOrder) -> api.Metered:
        """Leave a job's meter to the node. Repeating it changes nothing."""
        content = msgspec.json.encode(order)
        return _decode(api.Metered, self._call("POST", "/metering", content, content_type="application/json")[1])

    def take_metering_back(self, ticket: bytes, turn: int) -> api.Metered | None:
        """Let the node stop, and say how far it came; None when it knows no such job. May be repeated."""
        path = _add_query(f"/metering/{ticket.hex()}/return", turn=turn)
        status, content = self._call("POST", path, is_missing_allowed=True, wait=ANSWER_SECONDS_MAX)
        return None if status == 404 else _decode(api.Metered, content)

    # -- the operator's socket ----------------------------------------------------------------------------------------

    def create_program(self, draft: api.ProgramDraft, dry_run: bool = False) -> api.Signed:
        """Declare a compute budget."""
        return self._order("/operator/programs", draft, dry_run)

    def list_budget_requests(self) -> list[api.BudgetRequest]:
        """People who ask for a budget."""
        return self._read(list[api.BudgetRequest], "/operator/budget-requests")

    def approve_budget_request(self, request_id: str, dry_run: bool = False) -> api.Signed:
        """Enrol the person who asked."""
        return self._order(f"/operator/budget-requests/{_quote(request_id)}/approve", None, dry_run)

    def grant(self, order: api.GrantOrder, dry_run: bool = False) -> api.Signed:
        """Pay allowances."""
        return self._order("/operator/grants", order, dry_run)

    def sponsor(self, order: api.SponsorOrder, dry_run: bool = False) -> api.Signed:
        """Vouch for a donor."""
        return self._order("/operator/sponsors", order, dry_run)

    def pick_checkpoint(self) -> None:
        """Ask the members to certify the state now."""
        self._call("POST", "/operator/checkpoint", may_repeat=False)

    def fetch_archive(self) -> api.FetchedArchive:
        """Let the node fetch old batches back from other members."""
        content = self._call("POST", "/operator/archive", may_repeat=False, answer_seconds=ARCHIVE_SECONDS_MAX)[1]
        return _decode(api.FetchedArchive, content)

    def collect_vote_cards(self) -> list[api.VoteCard]:
        """The vote keys for the next charter version, of this member and all that answer it."""
        return self._read(list[api.VoteCard], "/operator/vote-cards")

    def propose_amendment(self, order: api.AmendmentOrder, dry_run: bool = False) -> api.Signed:
        """Sign an amendment of the charter, and approve it."""
        return self._order("/operator/amendments", order, dry_run)

    def approve_amendment(self, record_id: str, dry_run: bool = False) -> api.Signed:
        """Let the member vote for an amendment."""
        return self._order(f"/operator/amendments/{_quote(record_id)}/approve", None, dry_run)

    def unlock_amendment(self, record_id: str, dry_run: bool = False) -> api.Signed:
        """Make another attempt at an amendment, when the votes are split."""
        return self._order(f"/operator/amendments/{_quote(record_id)}/unlock", None, dry_run)

    def suspend(self, order: api.SuspendOrder, dry_run: bool = False) -> api.Signed:
        """Stop an account for a while."""
        return self._order("/operator/suspensions", order, dry_run)

    def reinstate(self, order: api.ReinstateOrder, dry_run: bool = False) -> api.Signed:
        """End a suspension before its time."""
        return self._order("/operator/reinstatements", order, dry_run)

    def complete_leave(self, order: api.LeaveOrder, dry_run: bool = False) -> api.Signed:
        """Let a person go who signed for it."""
        return self._order("/operator/leaves", order, dry_run)

    def _order(self, path: str, order: msgspec.Struct | None, dry_run: bool) -> api.Signed:
        # An act of the institution waits for its records to become final, and is not repeated unasked.
        content = msgspec.json.encode(order) if order is not None else b""
        path = _add_query(path, dry_run="true" if dry_run else None)
        media = "application/json"
        answer = self._call("POST", path, content, wait=ANSWER_SECONDS_MAX, may_repeat=False, content_type=media)
        return _decode(api.Signed, answer[1])

    # -- calling ------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"the node at {self.place}"

    def _read(self, shape: type[Shape], path: str, wait: int | None = None, **query: int | None) -> Shape:
        return _decode(shape, self._call("GET", _add_query(path, wait=wait, **query), wait=wait or 0)[1])

    def _find(self, shape: type[Shape], path: str, wait: int = 0) -> Shape | None:
        status, content = self._call("GET", _add_query(path, wait=wait or None), wait=wait, is_missing_allowed=True)
        return None if status == 404 else _decode(shape, content)

    def _call(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        wait: float = 0,
        may_repeat: bool = True,
        is_missing_allowed: bool = False,
        bytes_max: int | None = None,
        answer_seconds: float = ANSWER_SECONDS_MAX,
        content_type: str = api.OCTETS,
        take: Callable[[bytes], object] | None = None,
    ) -> tuple[int, bytes]:
        """One request, repeated where that does no harm; status and content of the answer (none when `take` takes it).

        Raises: UserError and its kinds.
        """
        headers = {"Accept": "application/json, application/octet-stream"}
        if content is not None:
            headers["Content-Type"] = content_type
        target = self._path_prefix + api.PREFIX + path
        for pause in (*(RETRY_PAUSES_SECONDS if may_repeat else ()), None):
            connection = self._take_connection(self._timeout_seconds + wait)
            try:
                connection.request(method, target, content, headers)
                response = connection.getresponse()
                until = time.monotonic() + wait + answer_seconds
                is_taken = take is not None and response.status < 300
                answer = self._receive(response, bytes_max or self._json_bytes_max, until, take if is_taken else None)
            except (OSError, HTTPException) as error:
                connection.close()
                if pause is None or not isinstance(error, (ConnectionResetError, BrokenPipeError)):
                    # RemoteDisconnected is a ConnectionResetError, too.
                    raise Unreachable(self._explain(error)) from error
            else:
                self._give_back(connection, response)
                if response.status not in (429, 503) or pause is None:
                    if response.status < 300 or (response.status == 404 and is_missing_allowed):
                        return response.status, answer
                    raise self._explain_problem(response.status, answer)
            time.sleep(pause)
        raise AssertionError("the last round returns or raises")

    def _take_connection(self, timeout_seconds: float) -> Connection:
        now = time.monotonic()
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if now - connection.idle_since < IDLE_SECONDS_MAX and connection.sock is not None:
                    connection.sock.settimeout(timeout_seconds)
                    return connection
                connection.close()
        if self._is_socket:
            return SocketConnection(self.place, timeout_seconds)
        connection = (
            make_secure_connection(self._host, self._port, timeout_seconds)
            if self._is_secure
            else Connection(self._host, self._port, timeout=timeout_seconds)
        )
        connection.is_public_only = self._is_public_only
        return connection

    def _give_back(self, connection: Connection, response: HTTPResponse) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            if not response.will_close and len(self._idle) < IDLE_CONNECTIONS_MAX:
                self._idle.append(connection)
                return
        connection.close()

    def _receive(
        self, response: HTTPResponse, bytes_max: int, deadline: float, take: Callable[[bytes], object] | None
    ) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := response.read(_PIECE_BYTES):
            (take or pieces.append)(piece)
            size += len(piece)
            if size > bytes_max:
                raise HTTPException(f"its answer is larger than {bytes_max} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return b"".join(pieces)

    def _explain(self, error: Exception) -> str:
        """Why there is no answer, and what to do."""
        remedy = "start it with `allmende node run`, or choose another with --node"
        if self._is_socket and isinstance(error, PermissionError):
            return f"{self.place} belongs to the node's operator: run this as the user that runs the node"
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
            return f"{self._name} does not answer: {remedy}"
        if isinstance(error, TimeoutError):
            return f"{self._name} does not answer in time: try again, or choose another with --node"
        if isinstance(error, socket.gaierror):
            return f"{self._name} can't be found: check the address and the network, or choose another with --node"
        reason = _make_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        return f"{self._name} can't be reached ({reason}): try again, or choose another with --node"

    def _explain_problem(self, status: int, answer: bytes) -> UserError:
        """What the node says is wrong."""
        detail, reason = "", None
        try:
            problem = msgspec.json.decode(answer, type=api.Problem)
            detail, reason = _make_line(problem.detail), problem.reason
        except msgspec.DecodeError:
            pass
        if reason is not None and reason in Reason.__members__:
            return RecordRefused(Reason[reason], detail or reason.lower())
        if status in (429, 503):
            return Unreachable(f"{self._name} is busy ({detail or status}): try again in a moment")
        if status >= 500:
            return Unreachable(f"{self._name} failed ({status} {detail}): try again, or choose another with --node")
        if 300 <= status < 400:
            return UserError(f"{self._name} points elsewhere ({status}): use the address that it points to")
        return UserError(detail or f"{self._name} refuses the request ({status}): is it an Allmende node?")


def _quote(text: str) -> str:
    return quote(text.strip(), safe="")


def _add_query(path: str, **query: int | str | None) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _decode(shape: type[Shape], content: bytes) -> Shape:
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.DecodeError as error:
        raise UserError(f"the node's answer can't be read ({error}): is it an Allmende node of this version?") from None


def _make_line(text: str) -> str:
    """Foreign text for a terminal: one line, printable, bounded."""
    return " ".join(make_printable(text).split())[:_DETAIL_CHARACTERS_MAX]
