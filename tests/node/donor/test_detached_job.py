"""A person starts a job, switches the computer off and comes back: with a donor's agent and a home node as they are."""

from __future__ import annotations

import json
import shutil
from typing import cast

import pytest
import trio

from node.cli import run
from node.member import LedgerMember
from node.metering_agent import MeteringAgent
from node.metering_orders import load
from node.storage.store import Store
from node.wallet.job_records import list_jobs
from protocol.conversation import compute_metering_ticket

FUNDS = 10**6
NODE = ("--node", "https://node")

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")


class MemberHere:
    """The member of a federation of one, as far as the metering agent looks at it."""

    number = 1

    def __init__(self, fake_node):
        self._node = fake_node
        self.charter, self.replica = fake_node.charter, fake_node.replica

    def compute_open_epochs(self):
        return range(self._node.epoch, self._node.epoch + 1)

    def build_receipt(self, record_id):
        return self._node.build_receipt(record_id)


@pytest.fixture
def allmende(wallet, fake_node, monkeypatch, capsys):
    """Run a command in a thread, as if in a process of its own; (exit status, what it printed)."""
    monkeypatch.setattr("node.client.NodeClient", lambda place: fake_node)
    home = str(wallet.home)

    async def call(*words):
        capsys.readouterr()
        with trio.fail_after(15):
            status = await trio.to_thread.run_sync(run, [*words, "--home", home])
        return status, capsys.readouterr()

    return call


@pytest.fixture
def home_node(fake_node, monkeypatch):
    """Lets the wallet's node meter; its store and its agent."""
    monkeypatch.setattr(fake_node, "check_blob", fake_node.get_blob, raising=False)
    monkeypatch.setattr(
        fake_node, "build_receipt", lambda name: fake_node.get_record(_name(name)).receipt, raising=False
    )
    store = Store.open(":memory:", fake_node.charter.federation)
    member = cast(LedgerMember, MemberHere(fake_node))
    agent = MeteringAgent(member, store, connect=lambda url, is_public: fake_node, poll_seconds=1)

    def post_metering(order):
        for offer in fake_node.get_offers():
            store.put_offer(fake_node.get_hold().payee, offer.encoded, offer.expires_seconds)
        return trio.from_thread.run_sync(agent.accept, order)

    def take_metering_back(ticket, turn):
        return trio.from_thread.run(agent.give_back, ticket, turn)

    monkeypatch.setattr(fake_node, "post_metering", post_metering, raising=False)
    monkeypatch.setattr(fake_node, "take_metering_back", take_metering_back, raising=False)
    return agent, store


def _name(record_id):
    from node.addresses import Kind, encode_address

    return encode_address(Kind.RECORD, record_id)


async def test_a_job_goes_on_while_nobody_watches_and_the_person_finds_its_end(
    fake_node, person_key, donor_account, start_agent, allmende, home_node, write_job, wallet, tmp_path
):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    agent, store = home_node
    path = str(write_job("echo hello; sleep 3; echo 42 > out/answer"))
    async with start_agent(), trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        status, printed = await allmende("job", "run", path, "-y", "--detach", *NODE)
        assert status == 0, printed.err
        assert "https://node may agree to at most 3.750 credits for this job on your behalf" in printed.out
        (job,) = list_jobs(wallet)
        ticket = compute_metering_ticket(job.meter_seed)
        with trio.fail_after(30):
            while fake_node.get_hold().is_open:
                await trio.sleep(0.05)
        status, printed = await allmende("job", "fetch", job.job_id, *NODE)
        assert "job attach" in printed.err
        status, printed = await allmende("job", "attach", job.job_id, *NODE)
        assert status == 0, printed.err
        assert printed.out.startswith("hello\n")
        metered = load(store, ticket)
        assert metered is not None
        assert metered.order.meter_seed == b""
        nursery.cancel_scope.cancel()
    status, printed = await allmende("job", "fetch", job.job_id, "--to", str(tmp_path / "made"))
    assert (tmp_path / "made" / "answer").read_text() == "42\n"
    status, printed = await allmende("job", "show", job.job_id, "--json")
    shown = json.loads(printed.out)
    assert (shown["state"], shown["ended"], shown["is_agreed"], shown["dispute"]) == ("SETTLED", "DONE", True, None)
    assert shown["paid_millicredits"] == shown["metered_millicredits"] > 0


async def test_a_job_is_left_and_taken_back_while_it_runs(
    fake_node, person_key, donor_account, start_agent, allmende, home_node, write_job, wallet
):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    agent, _ = home_node
    path = str(write_job("sleep 5; echo done"))
    async with start_agent(), trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        status, printed = await allmende("job", "run", path, "-y", "--detach", *NODE)
        (job,) = list_jobs(wallet)
        status, printed = await allmende("job", "detach", job.job_id, "-y", *NODE)  # it is there already
        assert status == 0, printed.err
        status, printed = await allmende("job", "attach", job.job_id, *NODE)
        assert status == 0, printed.err
        nursery.cancel_scope.cancel()
    status, printed = await allmende("job", "show", job.job_id, "--json")
    shown = json.loads(printed.out)
    assert (shown["ended"], shown["is_agreed"], shown["is_detached"]) == ("DONE", True, False)
