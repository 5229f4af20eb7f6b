"""A federation of one behind a small HTTP server: the real rules and receipts, and faults on demand."""

from __future__ import annotations

import json
import os
import socket
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from node import api, job_api
from node.addresses import Kind as AddressKind
from node.addresses import decode_address, encode_address
from node.cli import run
from node.wallet.job_spec import read_job_file
from node.wallet.jobs import hold_job, open_job, plan_job, start_job
from node.wallet.wallet import Wallet
from protocol.budgets import decode_budget_request
from protocol.errors import InvalidInput, Rejected
from protocol.identifiers import compute_account_id
from protocol.records import (
    Kind,
    Sponsor,
    account_scope,
    hold_scope,
)
from protocol.statements import (
    encode_signed,
)
from tests.node.wallet.lone_federation import EPOCH_SECONDS, Federation
from tests.node.wallet.played_donors import Stage
from tests.node.wallet.scripted_donor import DONOR_PUBLIC, FUNDS, ScriptedDonor

WORDS = "legal winner thank year wave sausage worth useful legal winner thank year wave sausage worth useful " + (
    "legal winner thank year wave sausage worth title"
)
OTHER_WORDS = " ".join(["abandon"] * 23 + ["art"])


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
        self.proposals = []
        self.overrides = {}
        self.blobs = {}
        self.slot_overrides = {}
        self.forged_receipt = None


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

    def do_PUT(self):
        self._serve("PUT")

    def _serve(self, method):
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = parts.path.removeprefix(api.PREFIX).strip("/").split("/")
        if (method, path) == ("POST", ["records"]):
            self.server.received.append(body)
        if (method, path) == ("POST", ["proposals"]):
            self.server.proposals.append(body)
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
            case ["GET", "accounts", address, "slot"]:
                return self._slot(decode_address(AddressKind.ACCOUNT, address))
            case ["GET", "accounts", address, "records"]:
                before = int(query["before"][0]) if "before" in query else None
                limit = int(query.get("limit", ["50"])[0])
                ids, rest = federation.history.read(decode_address(AddressKind.ACCOUNT, address), before, limit)
                return api.RecordPage([self._record(record_id, False) for record_id in ids], rest)
            case ["GET", "records", record]:
                return self._record(decode_address(AddressKind.RECORD, record), True)
            case ["GET", "jobs", hold]:
                return self._job(decode_address(AddressKind.RECORD, hold))
            case ["PUT", "blobs", digest]:
                self.server.blobs[bytes.fromhex(digest)] = body
                return None
            case ["GET", "donors"]:
                return []
            case ["GET", "programs"]:
                return self._programs()
            case ["POST", "unlocks"]:
                return federation.unlock(body)
            case ["POST", "records" | "proposals" as what]:
                record = federation.submit(body) if what == "records" else federation.propose(body)
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

    def _slot(self, account):
        replica, scope = self.server.federation.replica, account_scope(account)
        slot = (scope, replica.ledger.get_next_sequence(scope))
        contest = replica.contests.get(slot)
        requests = sorted(contest.requests.values(), key=lambda request: request.attempt) if contest else []
        last = requests[-1] if requests else None
        records = [record.encoded for record in replica.get_claims(slot)]
        answer = api.AccountSlot(
            slot[1], last.attempt if last else 0, encode_signed(last) if last else None, records, bool(requests)
        )
        for name, value in self.server.slot_overrides.items():
            setattr(answer, name, value)
        return answer

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
            api.Enrolment(_text(AddressKind.RECORD, record_id), state.member, state.until_epoch)
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
            [
                api.Sponsorship(_text(AddressKind.RECORD, record_id), state.member, state.until_epoch)
                for record_id, state in ledger.sponsors.items()
                if state.donor == account
            ],
            ledger.get_key(account),
            [
                api.Suspension(
                    _text(AddressKind.ACCOUNT, account), 1, "Hochschule", until_epoch, 3, "board@x.org", None, ""
                )
                for until_epoch in ledger.suspensions.get(account, {}).values()
            ],
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

    def _job(self, hold):
        federation = self.server.federation
        ledger = federation.replica.ledger
        state, end = ledger.holds[hold], ledger.heads.get(hold_scope(hold))
        return job_api.Job(
            _text(AddressKind.RECORD, hold),
            _text(AddressKind.ACCOUNT, state.payer),
            _text(AddressKind.ACCOUNT, state.payee),
            state.terms.job_class,
            state.epoch,
            state.amount,
            None if state.is_open else state.paid,
            "HELD",
            "",
            None,
            _text(AddressKind.RECORD, end.record) if end else None,
            state.terms.grace_seconds,
            _text(AddressKind.RECORD, state.request) if state.request else None,
            federation.compute_seconds_left(state.request),
            disputes=[
                job_api.Dispute(
                    _text(AddressKind.RECORD, record), "payer", "", "", dispute.evidence.hex(), dispute.epoch
                )
                for record, dispute in ledger.disputes.get(hold, {}).items()
            ],
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
        return api.BudgetRequest(
            request_id,
            _text(AddressKind.PROGRAM, request.program),
            _text(AddressKind.ACCOUNT, request.account),
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
def donor(wallet, federation, fund):
    fund(wallet, FUNDS)
    account = compute_account_id(wallet.charter.federation, DONOR_PUBLIC)
    with federation.lock:
        sponsor = federation.sign(Kind.SPONSOR, federation.member_account, Sponsor(1, account, federation.epochs[-1]))
    donor = ScriptedDonor(wallet, wallet.client, sponsor.id)
    wallet.__dict__["client"] = donor
    yield donor
    wallet.__dict__["client"] = donor.client


@pytest.fixture
def stage(wallet, federation, fund, tmp_path):
    """A node at which several donors play what a test wants; none at first."""
    fund(wallet, FUNDS)
    (tmp_path / "stage").mkdir()
    stage = Stage(wallet, wallet.client, federation, tmp_path / "stage")
    wallet.__dict__["client"] = stage
    yield stage
    wallet.__dict__["client"] = stage.client


@pytest.fixture
def allmende(wallet, stage, monkeypatch, capsys):
    """Run a command of this wallet; (exit status, its JSON or nothing, what it told)."""
    monkeypatch.setattr("node.client.NodeClient", lambda place: stage)
    stage.close = lambda: None

    def call(*words):
        capsys.readouterr()
        status = run([*words, "--json", "--home", str(wallet.home)])
        printed = capsys.readouterr()
        assert printed.out, printed.err
        return status, json.loads(printed.out), printed.err

    return call


@pytest.fixture
def write_job(tmp_path):
    def write(**fields):
        folder = tmp_path / "work"
        folder.mkdir(exist_ok=True)
        (folder / "input.txt").write_text("seven\n")
        lines = ["name: count", "run: wc input.txt", "max_duration: 100s"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        (folder / "job.yaml").write_text("\n".join(lines) + "\n")
        return read_job_file(folder / "job.yaml")

    return write


@pytest.fixture
def connect(donor):
    return lambda url: donor


@pytest.fixture
def running(wallet, donor, write_job, connect):
    """A job that was paid for and started, and a follower of it."""
    spec = write_job()
    job = open_job(wallet, plan_job(wallet, spec), connect)
    hold_job(wallet, wallet.unlock(None), job, spec)
    start_job(wallet, job, connect)
    return job


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
