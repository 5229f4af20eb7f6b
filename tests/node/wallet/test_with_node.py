"""A wallet at a real node: the member's own writer, its store and its web server, in one thread."""

from __future__ import annotations

import io
import json
import threading
from queue import SimpleQueue

import pytest
import trio

from node.cli import run
from node.client import NodeClient
from node.keystore import Key
from node.member import LedgerMember
from node.storage.blobs import BlobStore
from node.storage.store import Store
from node.vote_keys import VoteKeys
from node.wallet.budget_requests import read_requests
from node.wallet.wallet import Wallet
from node.web.application import make_application
from node.web.server import HttpServer, open_public_listeners
from node.web.services import WebServices


async def serve(federation, blobs, started):
    store = Store.open(":memory:", federation.charter.federation)
    member = LedgerMember(
        federation.founded, 1, VoteKeys([Key(federation.vote_key.private_bytes_raw(), "vote")]), store
    )
    services = WebServices(member, store, BlobStore(blobs), None)
    listeners = await open_public_listeners("127.0.0.1", 0)
    server = HttpServer(make_application(services, with_operator=False), listeners, services.closing)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.speak)
            (url,) = await nursery.start(server.run)
            started.put((url, trio.lowlevel.current_trio_token(), scope))
            await trio.sleep_forever()
    store.close()


@pytest.fixture
def url(federation, tmp_path):
    started: SimpleQueue = SimpleQueue()
    thread = threading.Thread(target=trio.run, args=(serve, federation, tmp_path / "blobs", started), daemon=True)
    thread.start()
    url, token, scope = started.get(timeout=30)
    yield url
    token.run_sync_soon(scope.cancel)
    thread.join(timeout=30)


@pytest.fixture
def ask(url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ALLMENDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ALLMENDE_NODE", url)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(*arguments, status=0):
        assert run([*arguments, "--json"]) == status, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def make_final(url):
    """Hand records of the institution in, and wait until they are final."""

    def submit(record):
        with NodeClient(url) as client:
            assert client.submit_record(record.encoded, wait=20).receipt is not None
        return record

    return submit


def test_from_the_first_word_to_a_payment_that_anybody_can_check(
    ask, federation, make_final, receiver, url, tmp_path, founding_file
):
    address = ask("wallet", "init", "--no-passphrase")["address"]
    assert ask("wallet", "balance")["millicredits"] == 0
    program = make_final(federation.declare("Students"))
    assert ask("budget", "request", "Students", "--text", "Ada", "-y")["state"] == "open"
    with Wallet.open(tmp_path / "home") as wallet:
        (asked,) = read_requests(wallet)
        account = wallet.account
    enrolment = make_final(federation.enrol(asked.request.encode()))
    make_final(federation.grant(program, enrolment, account, 10_000))
    (budget,) = ask("budget", "ls")["budgets"]
    assert (budget["standing"], budget["millicredits"]) == ("holds", 10_000)
    paid = ask("wallet", "send", receiver, "2.5", "--memo", "thank you", "-y")
    assert (paid["state"], paid["members"]) == ("final", [1])
    assert ask("wallet", "balance")["millicredits"] == 7500
    records = ask("wallet", "history", "--verify")["records"]
    assert [(record["change_millicredits"], record["is_proven"]) for record in records] == [
        (-2500, True),
        (10_000, True),
        (0, True),
    ]
    out = tmp_path / "payment.receipt"
    ask("receipt", "get", paid["record"], "--out", str(out))
    proven = ask("receipt", "verify", str(out), "--charter", str(founding_file))
    assert (proven["record"]["from"], proven["record"]["memo"]) == (address, "thank you")


def test_an_unknown_record_and_an_unknown_program_are_clear_errors(ask, tmp_path, capsys):
    from node.addresses import Kind, encode_address

    ask("wallet", "init", "--no-passphrase")
    record = encode_address(Kind.RECORD, b"x" * 32)
    assert run(["receipt", "get", record, "--out", str(tmp_path / "out")]) == 1
    assert "knows no record" in capsys.readouterr().err
    assert run(["budget", "show", "Nobody"]) == 1
    assert "no program Nobody" in capsys.readouterr().err
