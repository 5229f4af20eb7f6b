"""A federation of one (a dev charter) behind a small HTTP server: the real rules and receipts, and faults on demand."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.history import AccountHistory
from node.wallet.wallet import Wallet
from protocol.batches import LogPosition, build_batch
from protocol.budgets import decode_budget_request
from protocol.charter import Charter, CharterFields, Member, Policy, found_charter
from protocol.errors import WAITING_REASONS, InvalidInput, Reason, Rejected
from protocol.identifiers import compute_account_id
from protocol.receipts import ProvableBatch, build_receipt
from protocol.records import (
    Grant,
    GrantOutput,
    Kind,
    Program,
    RecordDraft,
    account_scope,
    decode_record,
    has_valid_signatures,
    sign_record,
)
from protocol.replica import Replica
from protocol.rules import Circumstances
from protocol.statements import VoteBatch
from protocol.voting import Voter

EPOCH_SECONDS = 30 * 24 * 3600
WORDS = "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful " + (
    "legal winner thank year wave sausage worth title"
)
OTHER_WORDS = " ".join(["abandon"] * 23 + ["art"])


def _key(number):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def _public(key):
    return key.public_key().public_bytes_raw()


class Federation:
    """One member, which is enough for receipts that hold. Methods are called under `lock`."""

    def __init__(self, name="Test", nonce=b"n" * 16):
        self.member_key, self.vote_key = _key(1), _key(2)
        keys = _public(self.member_key), _public(self.vote_key), _public(_key(3))
        member = Member(1, "Hochschule", *keys, 1, (10**9, 10**9), 0)
        policy = Policy(bytes(32), 3600, 7200, 0, 50, 2**20)
        genesis = int(time.time()) - 1000
        self.charter = Charter(
            CharterFields(0, b"", name, nonce, genesis, EPOCH_SECONDS, 3600, 1, (member,), (), policy)
        )
        self.founded = found_charter(self.charter, {1: self.member_key.sign(self.charter.id)})
        self.replica = Replica(self.charter)
        self.voter = Voter(self.replica, 1)
        self.history = AccountHistory()
        self.batches = {}
        self.last = LogPosition(0, b"")
        self.lock = threading.Lock()
        self.requests = {}

    @property
    def epochs(self):
        return self.charter.compute_open_epochs(int(time.time()))

    def say(self, records=()):
        statements = self.voter.take_statements(1000)
        if records:
            statements = [VoteBatch(b"", 0), *statements]
        batch = build_batch(
            self.charter, self.vote_key, 1, self.last, seen=[], time_ms=0, records=list(records), statements=statements
        )
        self.last = LogPosition(self.last.index + 1, batch.id)
        self.batches[batch.id] = batch
        admission = self.replica.admit(batch, self.batches.__getitem__)
        assert admission is not None
        self.voter.handle_admission(admission)
        for record in admission.applied:
            self.history.note(record, self.replica.ledger)

    def submit(self, encoded):
        """Make a record final, or raise Rejected; one that has to wait is left alone."""
        record = decode_record(self.charter.federation, encoded)
        if self.replica.locate(record.id) is None:
            if not has_valid_signatures(record):
                raise Rejected(Reason.SIGNATURE_INVALID)
            try:
                self.voter.check_introduction(record, Circumstances(self.epochs))
            except Rejected as rejection:
                if rejection.reason in WAITING_REASONS:
                    return record
                raise
            self.voter.note_introduction(record)
            self.say([record])
            while self.voter.has_statements:
                self.say()
        return record

    def receipt(self, record_id):
        located = self.replica.locate(record_id) is not None and self.replica.is_final(record_id)
        if not located:
            return None
        return build_receipt(self.replica, record_id, lambda batch_id: ProvableBatch(self.batches[batch_id]))

    def sign(self, kind, account, body, *, keys=None):
        """The next record of an account that the member writes, made final."""
        keys = keys or [self.member_key]
        head = self.replica.ledger.heads.get(account_scope(account))
        sequence, prev = (head.sequence + 1, head.record) if head else (0, b"")
        draft = RecordDraft(
            kind, self.epochs[-1], account_scope(account), sequence, prev, body, tuple(map(_public, keys))
        )
        record = sign_record(self.charter.federation, draft, keys)
        self.submit(record.encoded)
        assert self.receipt(record.id)
        return record

    @property
    def member_account(self):
        return next(iter(self.charter.member_accounts))

    def declare(self, name, *, is_transferable=1, expiry_epochs=2):
        body = Program(1, name, "for a test", 10**6, expiry_epochs, is_transferable, ())
        return self.sign(Kind.PROGRAM, self.member_account, body)

    def enrol(self, request_bytes):
        request = decode_budget_request(self.charter, request_bytes)
        draft = request.build_enrolment(self.charter)
        signature = self.member_key.sign(draft.compute_id(self.charter.federation))
        record = draft.assemble(self.charter.federation, [signature, request.enrolment_signature])
        self.submit(record.encoded)
        return record

    def grant(self, program, enrolment, account, amount):
        epoch = self.epochs[-1]
        expiry = epoch + program.body.expiry_epochs
        issuance = self.charter.get_issuance_account(1, epoch)
        body = Grant(program.id, expiry, (GrantOutput(enrolment.id, account, amount),))
        return self.sign(Kind.GRANT, issuance, body)


def _text(kind, identifier):
    return encode_address(kind, identifier)


class Node(ThreadingHTTPServer):
    """Serves a federation. `fault(method, path)` may answer None (go on), "drop" (no answer) or (status, reason);
    with "drop after" the request is carried out, and the answer is lost."""

    daemon_threads = True

    def __init__(self, federation):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.federation = federation
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.fault = lambda method, path: None
        self.received = []
        self.overrides = {}
        self.forged_receipt = None
        self.on_the_way = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Node

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._serve("GET")

    def do_POST(self):
        self._serve("POST")

    def _serve(self, method):
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = parts.path.removeprefix(api.PREFIX).strip("/").split("/")
        if (method, path) == ("POST", ["records"]):
            self.server.received.append(body)
        fault = self.server.fault(method, "/".join(path))
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, tuple):
            self._answer(fault[0], self._problem(fault[0], fault[1]))
            return
        try:
            with self.server.federation.lock:
                status, answer = 200, self._route(method, path, parse_qs(parts.query), body)
            if isinstance(answer, api.Submitted) and answer.receipt is None:
                status = 202
        except Rejected as rejection:
            status, answer = 409, self._problem(409, rejection.reason.name, rejection.detail)
        except InvalidInput as error:
            status, answer = 400, self._problem(400, None, str(error))
        except KeyError:
            status, answer = 404, self._problem(404, None, "not found")
        if fault == "drop after":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, answer)

    def _problem(self, status, reason, detail=""):
        return api.Problem("about:blank", "problem", status, detail or str(reason), reason)

    def _answer(self, status, answer):
        content = msgspec.json.encode(answer)
        self.send_response(status)
        kind = "application/problem+json" if status >= 400 else "application/json"
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, method, path, query, body):
        federation = self.server.federation
        match [method, *path]:
            case ["GET", "charter"]:
                charter = federation.charter
                return api.Charter(
                    _text(AddressKind.FEDERATION, charter.federation),
                    charter.fields.name,
                    federation.founded.encode(),
                    federation.epochs[-1],
                    EPOCH_SECONDS,
                    charter.quorum,
                    [],
                )
            case ["GET", "accounts", address]:
                return self._account(decode_address(AddressKind.ACCOUNT, address))
            case ["GET", "accounts", address, "records"]:
                before = int(query["before"][0]) if "before" in query else None
                limit = int(query.get("limit", ["50"])[0])
                ids, rest = federation.history.read(decode_address(AddressKind.ACCOUNT, address), before, limit)
                return api.RecordPage([self._record(record_id, False) for record_id in ids], rest)
            case ["GET", "records", record]:
                return self._record(decode_address(AddressKind.RECORD, record), True)
            case ["GET", "programs"]:
                return self._programs()
            case ["POST", "records"]:
                record = federation.submit(body)
                receipt = federation.receipt(record.id)
                state: api.RecordState = "applied" if receipt else "waiting"
                receipt = self.server.forged_receipt or receipt
                return api.Submitted(_text(AddressKind.RECORD, record.id), state, receipt)
            case ["POST", "budget-requests"]:
                request = decode_budget_request(federation.charter, body)
                request_id = _text(AddressKind.RECORD, request.compute_id(federation.charter.federation))
                federation.requests.setdefault(request_id, [body, "open"])
                return self._budget_request(request_id)
            case ["GET", "budget-requests", request_id]:
                return self._budget_request(request_id)
        raise KeyError(path)

    def _account(self, account):
        ledger = self.server.federation.replica.ledger
        head = ledger.heads.get(account_scope(account))
        balances = ledger.balances.get(account, {})
        lots = [
            api.Lot(
                _text(AddressKind.PROGRAM, lot.program) if lot.program else None,
                ledger.programs[lot.program].body.name if lot.program else "",
                lot.expiry_epoch,
                amount,
            )
            for lot, amount in balances.items()
        ]
        enrolments = [
            api.Enrolment(_text(AddressKind.RECORD, record_id), state.member)
            for record_id, state in ledger.enrolments.items()
            if state.account == account
        ]
        answer = api.Account(
            _text(AddressKind.ACCOUNT, account),
            self.server.federation.epochs[-1],
            head.sequence + 1 if head else 0,
            _text(AddressKind.RECORD, head.record) if head else None,
            sum(balances.values()),
            lots,
            enrolments,
            [],
            list(self.server.on_the_way),
        )
        for name, value in self.server.overrides.items():
            setattr(answer, name, value)
        return answer

    def _record(self, record_id, with_receipt):
        federation = self.server.federation
        introduction, position = federation.replica.locate(record_id) or (None, 0)
        if introduction is None:
            raise KeyError(record_id)
        record = federation.batches[introduction.batch].records[position]
        return api.Record(
            _text(AddressKind.RECORD, record.id),
            Kind(record.kind).name.lower(),
            record.epoch,
            _text(AddressKind.ACCOUNT, record.account),
            record.sequence,
            "applied" if federation.replica.is_final(record_id) else "introduced",
            {},
            record.encoded,
            federation.receipt(record_id) if with_receipt else None,
        )

    def _programs(self):
        ledger = self.server.federation.replica.ledger
        return [
            api.Program(
                _text(AddressKind.PROGRAM, program),
                state.member,
                "Hochschule",
                state.body.name,
                state.body.purpose,
                state.body.allowance,
                state.body.expiry_epochs,
                bool(state.body.is_transferable),
                list(state.body.job_classes),
                0,
            )
            for program, state in ledger.programs.items()
        ]

    def _budget_request(self, request_id):
        federation = self.server.federation
        body, state = federation.requests[request_id]
        request = decode_budget_request(federation.charter, body)
        account = compute_account_id(federation.charter.federation, request.person_key)
        return api.BudgetRequest(
            request_id,
            _text(AddressKind.PROGRAM, request.program),
            _text(AddressKind.ACCOUNT, account),
            request.text,
            state,
        )


def _start(federation):
    node = Node(federation)
    thread = threading.Thread(target=node.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    return node, thread


@pytest.fixture
def federation():
    return Federation()


@pytest.fixture
def start_node():
    """Start a node; all are stopped at the end."""
    started = []

    def start(federation):
        started.append(_start(federation))
        return started[-1][0]

    yield start
    for node, thread in started:
        node.shutdown()
        node.server_close()
        thread.join()


@pytest.fixture
def node(federation, start_node):
    return start_node(federation)


@pytest.fixture
def make_federation():
    return Federation


@pytest.fixture
def words():
    return WORDS


@pytest.fixture
def other_words():
    return OTHER_WORDS


@pytest.fixture
def wallet(tmp_path, node, words):
    """A wallet without a passphrase; `fund` gives it credits."""
    with Wallet.create(tmp_path / "home", node.url, words, None) as wallet:
        yield wallet


@pytest.fixture
def receiver():
    """The address of somebody else."""
    return encode_address(AddressKind.ACCOUNT, b"r" * 32)


@pytest.fixture
def fund(federation):
    """Give a wallet credits of a new program: enrolment and grant, as an institution does it."""

    def give(wallet, amount, name="Students", *, is_transferable=1, expiry_epochs=2):
        from node.wallet.budget_requests import sign_request

        with federation.lock:
            program = federation.declare(name, is_transferable=is_transferable, expiry_epochs=expiry_epochs)
        request = sign_request(wallet, wallet.unlock(None), program.id, 1, "")
        with federation.lock:
            enrolment = federation.enrol(request.encode())
            federation.grant(program, enrolment, wallet.account, amount)
        return program

    return give


@pytest.fixture
def environment(tmp_path):
    """For commands run as processes: this project, and nothing of the machine's own settings."""
    root = Path(__file__).parents[3]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ALLMENDE")}
    path = os.pathsep.join(filter(None, [str(root), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "ALLMENDE_HOME": str(tmp_path / "home")}


@pytest.fixture
def founding_file(tmp_path, federation):
    """The founding document as a node keeps it."""
    path = tmp_path / "federation.json"
    path.write_text(json.dumps({"founded": b64encode(federation.founded.encode()).decode()}))
    return path
