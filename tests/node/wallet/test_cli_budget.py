"""Asking for a budget, and seeing what came of it."""

from __future__ import annotations

import io
import json

import pytest

from node.addresses import Kind, encode_address
from node.cli import run
from node.wallet.budget_requests import FILE_NAME, read_requests
from node.wallet.wallet import Wallet
from protocol.budgets import decode_budget_request
from protocol.charter import Charter
from protocol.records import Kind as RecordKind
from protocol.records import RecordDraft, decode_record, has_valid_signatures


@pytest.fixture
def program(federation):
    with federation.lock:
        return federation.declare("Students", is_transferable=0)


@pytest.fixture
def ask(wallet, monkeypatch, capsys):
    monkeypatch.setenv("ALLMENDE_HOME", str(wallet.home))
    monkeypatch.delenv("ALLMENDE_NODE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def call(*arguments, status=0):
        assert run(["budget", *arguments, "--json"]) == status
        said = capsys.readouterr()
        return json.loads(said.err if status else said.out)

    return call


def get_standings(ask, *arguments):
    return {budget["name"]: budget["standing"] for budget in ask("ls", *arguments)["budgets"]}


def test_a_budget_is_asked_for_approved_granted_and_shown(wallet, ask, federation, program):
    assert get_standings(ask) == {}
    asked = ask("request", "Students", "--text", "Ada, physics", "-y")
    assert asked["state"] == "open"
    assert get_standings(ask) == {"Students": "open"}
    request_bytes = federation.requests[asked["request"]][0]
    assert decode_budget_request(federation.charter, request_bytes).text == "Ada, physics"
    with federation.lock:
        enrolment = federation.enrol(request_bytes)
    assert get_standings(ask) == {"Students": "approved"}
    with federation.lock:
        federation.grant(program, enrolment, wallet.account, 10**6)
    shown = ask("show", encode_address(Kind.PROGRAM, program.id))
    assert (shown["standing"], shown["millicredits"]) == ("holds", 10**6)
    assert shown["lots"][0]["expiry_epoch"] == 3
    assert shown["lots"][0]["expires_seconds"] == wallet.compute_epoch_end(3)


def test_asking_twice_sends_the_same_request(ask, wallet, federation, program):
    first = ask("request", "Students", "-y")
    assert ask("request", "Students", "--text", "other words", "-y") == first
    assert len(federation.requests) == len(read_requests(wallet)) == 1


def test_a_request_is_kept_before_it_is_sent(ask, wallet, node, program):
    node.fault = lambda method, path: "drop" if path == "budget-requests" else None
    ask("request", "Students", "-y", status=3)
    (kept,) = read_requests(wallet)
    assert kept.node == ""
    assert get_standings(ask) == {"Students": "not sent"}
    node.fault = lambda method, path: None
    ask("request", "Students", "-y")
    assert read_requests(wallet) == [kept._replace(node=node.url)]
    assert get_standings(ask) == {"Students": "open"}


def test_two_requests_share_nothing_that_names_the_person_beside_the_account(ask, wallet, federation, program):
    with federation.lock:
        federation.declare("Others")
    ask("request", "Students", "-y")
    ask("request", "Others", "-y")
    first, second = (asked.request for asked in read_requests(wallet))
    assert first.tag != second.tag


def test_a_dry_run_asks_nobody(ask, wallet, federation, program):
    assert ask("request", "Students", "--dry-run")["dry_run"]
    assert federation.requests == {}
    assert not (wallet.home / FILE_NAME).exists()


def test_an_unknown_program_and_a_mistyped_address_are_told_apart(ask, program):
    assert "no program Nobody" in ask("show", "Nobody", status=1)["error"]
    mistyped = encode_address(Kind.PROGRAM, program.id)[:-1] + "x"
    assert "typing error" in ask("show", mistyped, status=1)["error"]


def test_a_damaged_file_of_requests_is_one_clear_error(ask, wallet, program):
    (wallet.home / FILE_NAME).write_text('{"version": 1, "requests": [{"request": "AA==", "asked_at_seconds": 0}]}')
    assert "damaged" in ask("ls", status=1)["error"]


def test_people_read_the_rules_of_a_budget(ask, wallet, federation, program, capsys):
    assert run(["budget", "show", "Students"]) == 0
    said = capsys.readouterr().out
    assert "1000.000 credits per person and epoch" in said
    assert "can be redeemed, not sent" in said
    assert run(["budget", "ls", "--all"]) == 0
    assert "not asked for" in capsys.readouterr().out


def test_what_went_to_the_institutions_own_node_is_known_at_another(ask, federation, start_node, program):
    institution = start_node(federation)
    ask("request", "Students", "-y", "--node", institution.url)
    assert get_standings(ask) == {"Students": "open"}


def test_leaving_writes_a_file_that_the_institution_completes(ask, wallet, federation, fund, tmp_path):
    fund(wallet, 1000)
    out = tmp_path / "ada.leave"
    assert ask("leave", "Students", "--out", str(out), "--dry-run")["member"] == 1
    assert not out.exists()
    assert "Nobody can be asked" in ask("leave", "--member", "1", "--out", str(out), status=1)["error"]
    ask("leave", "--member", "1", "--out", str(out), "-y")
    half = decode_record(federation.charter.federation, out.read_bytes())
    assert not has_valid_signatures(half), "it can't be handed in as it is"
    draft = RecordDraft(RecordKind.LEAVE, *half[1:7])
    signature = federation.member_key.sign(half.id)
    record = draft.assemble(federation.charter.federation, [signature, half.signatures[1]])
    with federation.lock:
        federation.submit(record.encoded)
        assert federation.receipt(record.id)
    assert "left it already" in ask("leave", "Students", "-y", status=1)["error"]
    assert get_standings(ask, "--all") == {"Students": "holds"}


def test_an_institution_that_left_the_federation_can_not_be_left_any_more(
    ask, wallet, federation, fund, tmp_path, monkeypatch
):
    fund(wallet, 1000)
    fields = federation.charter.fields
    others = tuple(member._replace(number=member.number + 1) for member in fields.members)
    later = Charter(
        fields._replace(version=1, prev=federation.charter.id, members=others), federation.charter.federation
    )
    monkeypatch.setattr(Wallet, "charter", later)
    out = tmp_path / "ada.leave"
    assert "has left the federation" in ask("leave", "--member", "1", "--out", str(out), "-y", status=1)["error"]
    assert not out.exists()
