"""Charges of jobs that ran on a real cluster, derived again from its accounting; and forged ones, which are found."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import msgspec
import pytest
import trio
from click.testing import CliRunner

from node import job_api
from node.addresses import Kind, decode_address, encode_address
from node.cli_audit import audit
from node.config import Federation, encode_json, make_home
from node.donor.agent import Agent
from node.donor.enrolling import ADDRESS_NAME
from node.donor.executors.choosing import make_executor
from node.donor.executors.slurm_commands import AccountedJob, SlurmCommands
from node.donor.executors.slurm_settings import SlurmSettings
from node.donor.job_file import JobFile
from node.donor.settings import Score
from node.donor.slurm_audit import compare, find_first_moment, find_hold
from node.storage.store import Store
from protocol.metering import JobState, compute_charge
from protocol.quotes import decode_job_receipt, decode_quote, decode_quote_request
from protocol.states import HoldPhase
from tests.node.donor.conftest import DONOR_KEY, SEAL_SEED, SETTINGS, WEIGHT
from tests.node.donor.test_agent import Payer

FUNDS = 10**6
PATIENCE_SECONDS = 120


@pytest.fixture
def home(donor_home, fake_node, donor_account, slurm_cluster, tmp_path):
    """A donor whose jobs run on the cluster."""
    slurm = SlurmSettings(
        str(slurm_cluster.shared / tmp_path.name), prefix=list(slurm_cluster.prefix), poll_seconds=0.1
    )
    donor_home.save_settings(msgspec.structs.replace(SETTINGS, executor="slurm", slurm=slurm))
    donor_home.charter_path.write_bytes(fake_node.founded.encode())
    (donor_home.directory / ADDRESS_NAME).write_text(encode_address(Kind.ACCOUNT, donor_account))
    return donor_home


@asynccontextmanager
async def serving(home, fake_node):
    """The donor's agent serves inside the block."""
    settings = home.load_settings()
    executor = make_executor(settings.executor, home.sandbox, settings.slurm)
    agent = Agent(
        home,
        settings,
        Score(WEIGHT, 1.0, 1.0, 1.0, 0),
        fake_node.charter,
        DONOR_KEY,
        SEAL_SEED,
        fake_node,
        executor,
        {},
        poll_seconds=1,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.run)
        with trio.fail_after(PATIENCE_SECONDS):
            while not fake_node.offers:
                await trio.sleep(0.05)
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
async def settled(home, fake_node, wallet, person_key, donor_account, write_job, slurm_cluster):
    """(job files, what Slurm accounts for, what was paid by hold) of two jobs, one of which failed."""
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    async with serving(home, fake_node):
        for program in ("sleep 2; cat input.txt >out/copy", "exit 3"):
            with trio.fail_after(PATIENCE_SECONDS):
                payer = Payer(wallet, fake_node)
                await trio.to_thread.run_sync(payer.run, write_job(program), abandon_on_cancel=True)
    documents = [job.document for job in JobFile.load_all(home.jobs)]
    slurm = home.load_settings().slurm
    first = find_first_moment(fake_node.charter, documents)
    assert first is not None
    accounted = await SlurmCommands(tuple(slurm.prefix), 1.0).list_accounted(first, 0)
    holds = {document.hold for document in documents}
    return documents, [job for job in accounted if find_hold(job) in holds], _list_paid(fake_node)


def _list_paid(fake_node):
    holds = fake_node.replica.ledger.holds
    return {name: hold.paid if hold.phase is HoldPhase.SETTLED else None for name, hold in holds.items()}


async def test_every_charge_follows_from_the_clusters_accounting_and_forged_ones_are_found(fake_node, settled):
    documents, accounted, paid = settled
    charter = fake_node.charter
    comparison = compare(charter, documents, accounted, paid)
    assert comparison.differences == []
    assert (comparison.compared, comparison.paid) == (2, comparison.derived)
    by_hold = {find_hold(job): job for job in accounted}
    for document in documents:
        rate = decode_quote(charter, document.quote).rate
        assert paid[document.hold] == compute_charge(by_hold[document.hold].elapsed_seconds * 1000, rate)
    hold = max(paid, key=paid.__getitem__)
    assert by_hold[hold].elapsed_seconds >= 2

    def find_kinds(documents=documents, accounted=accounted, paid=paid):
        return [found.kind for found in compare(charter, documents, accounted, paid).differences if found.hold == hold]

    assert find_kinds(paid={**paid, hold: paid[hold] + 1}) == ["amount"]
    assert find_kinds(paid={**paid, hold: None}) == ["ledger"]
    assert find_kinds(accounted=[job for job in accounted if find_hold(job) != hold]) == ["slurm"]
    assert find_kinds(documents=[document for document in documents if document.hold != hold]) == ["job file"]

    def forge(**changes):
        return [replace(job, **changes) if find_hold(job) == hold else job for job in accounted]

    shorter = by_hold[hold].elapsed_seconds - 1
    assert find_kinds(accounted=forge(elapsed_seconds=shorter)) == ["amount"]
    assert find_kinds(accounted=forge(elapsed_seconds=shorter + 2)) == ["amount"]
    assert find_kinds(accounted=forge(resources={"cpu": "1", "mem": "100M"})) == ["resources"]


async def test_an_end_by_the_donors_fault_may_cost_less_and_never_more(fake_node, settled):
    documents, accounted, paid = settled
    charter, (document, *_) = fake_node.charter, documents
    quote, request = decode_quote(charter, document.quote), decode_quote_request(charter, document.request)
    receipt = decode_job_receipt(charter, document.receipt, quote.donor_key, request.meter_key)
    forgiven = receipt._replace(
        state=JobState.DONOR_FAILED, amount=0, tick=b"", donor_signature=b"", meter_signature=b""
    )
    document.receipt = forgiven.sign_as_donor(charter.federation, DONOR_KEY).encode()
    for amount, kinds in ((0, []), (paid[document.hold], []), (paid[document.hold] + 1, ["amount"])):
        found = compare(charter, [document], accounted, {**paid, document.hold: amount}).differences
        assert [difference.kind for difference in found if difference.hold == document.hold] == kinds


async def test_a_job_that_the_clusters_owners_end_costs_its_payer_nothing(
    home, fake_node, wallet, person_key, donor_account, write_job, slurm_cluster
):
    fake_node.fund(person_key, FUNDS)
    fake_node.sponsor(donor_account)
    payer = Payer(wallet, fake_node)

    def find_job():
        return [job.document for job in JobFile.load_all(home.jobs)]

    async with serving(home, fake_node):
        with trio.fail_after(PATIENCE_SECONDS):
            await trio.to_thread.run_sync(payer.begin, write_job("sleep 50"), abandon_on_cancel=True)
            while [document.state for document in find_job()] != [JobState.RUNNING]:
                await trio.sleep(0.05)
            slurm_cluster.call("scancel", "--user", "root")
            await trio.to_thread.run_sync(payer.follow, abandon_on_cancel=True)
    (document,) = find_job()
    quote, request = (
        decode_quote(fake_node.charter, document.quote),
        decode_quote_request(fake_node.charter, document.request),
    )
    receipt = decode_job_receipt(fake_node.charter, document.receipt, quote.donor_key, request.meter_key)
    assert (receipt.state, receipt.amount) == (JobState.EVICTED, 0)
    assert _list_paid(fake_node) == {document.hold: 0}


def test_a_job_at_slurm_that_no_hold_paid_for_is_listed(fake_node):
    hold = bytes(range(32))
    job = AccountedJob(7, f"allmende-{hold.hex()}-0123abcd", "", "COMPLETED", 0, 0, True, 5, {"cpu": "1"}, 0, None)
    (found,) = compare(fake_node.charter, [], [job], {}).differences
    assert (found.hold, found.kind) == (hold, "ledger")
    assert compare(fake_node.charter, [], [replace(job, resources={})], {}).differences == []


class Ledger:
    """What a running node tells: of this donor what a test says, and that all other holds are somebody else's."""

    def __init__(self, donor: str, paid: dict[bytes, int | None]) -> None:
        self._donor, self._paid = donor, paid

    def get_job(self, address: str) -> job_api.Job:
        paid = self._paid.get(decode_address(Kind.RECORD, address))
        payee = "another" if paid is None else self._donor
        return job_api.Job(address, "", payee, "", 1, 0, paid, "SETTLED", "", None)

    def get_jobs(self) -> list[job_api.Job]:
        return [self.get_job(encode_address(Kind.RECORD, hold)) for hold in self._paid]


def make_node_home(path, fake_node):
    """A node's home with the very ledger of the fake one."""
    home = make_home(path)
    name = encode_address(Kind.FEDERATION, fake_node.charter.federation)
    home.federation.write_bytes(encode_json(Federation(fake_node.founded.encode(), name, {})))
    store = Store.open(home.ledger, fake_node.charter.federation)
    store.append_batches([(batch.id, batch.encoded) for batch in fake_node.batches.values()])
    store.close()
    return home


async def test_the_command_compares_and_fails_for_a_difference(
    settled, home, fake_node, donor_account, monkeypatch, tmp_path
):
    _, _, paid = settled
    hold = max(paid, key=paid.__getitem__)
    node_home = make_node_home(tmp_path / "node", fake_node)
    line = ["--home", str(node_home.path), "--against", "slurm", "--donor-home", str(home.directory.parent), "--json"]

    def run_audit(*options):
        done = CliRunner().invoke(audit, [*line, *options], catch_exceptions=False)
        return done.exit_code, json.loads(done.stdout)

    def ask_node(told):
        @contextmanager
        def connect(home, url):
            yield Ledger(encode_address(Kind.ACCOUNT, donor_account), told)

        monkeypatch.setattr("node.operator.connection.connect", connect)
        return run_audit("--url", "http://node")

    status, document = await trio.to_thread.run_sync(ask_node, paid)
    assert (status, document["compared"], document["differences"]) == (0, 2, [])
    status, document = await trio.to_thread.run_sync(ask_node, {**paid, hold: paid[hold] - 1})
    assert (status, document["underpaid"]) == (0, 1)
    status, document = await trio.to_thread.run_sync(ask_node, {**paid, hold: paid[hold] + 1})
    assert status == 1
    assert [(entry["hold"], entry["kind"]) for entry in document["differences"]] == [(hold.hex(), "amount")]
    # The ledger itself, verified anew. Jobs of other tests at the same cluster are none of its holds.
    status, document = await trio.to_thread.run_sync(run_audit)
    assert (document["compared"], document["paid_millicredits"]) == (2, sum(paid.values()))
    assert not {hold.hex() for hold in paid} & {entry["hold"] for entry in document["differences"]}
