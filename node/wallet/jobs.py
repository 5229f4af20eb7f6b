"""Redeeming credits: plan, ask for a quote, put the money aside, hand over the inputs.

The order is the safety. Everything is priced before anything is spent. Keys, quote and inputs are on disk before the
hold is signed, the hold is journalled before it is sent, and the job is started only with a receipt that the hold is
final. So a crash at any point is taken up by `resume_job`, and no money is put aside twice.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.bundles import pack_bundle
from node.errors import UserError
from node.files import write_atomically
from node.sealing import compute_sealed_bytes, seal, seal_public_key
from node.wallet.calling import Line
from node.wallet.detaching import take_back
from node.wallet.job_records import STARTED, WalletJob, find_signed, get_job_directory, save_job
from node.wallet.journal import Entry
from node.wallet.lots import Lot, choose_lots, read_lots
from node.wallet.offers import PricedOffer, make_request, price_offers, read_offers
from node.wallet.payments import spend
from node.wallet.sending import read_account, submit_entry
from node.wallet.stopped import check_not_stopped
from protocol.conversation import (
    Message,
    Quoted,
    Refused,
    Start,
    compute_inbox_name,
    compute_seal_context,
)
from protocol.credits import format_credits
from protocol.errors import InvalidInput
from protocol.limits import DRAWS_MAX
from protocol.metering import sign_voucher
from protocol.quotes import check_quote, decode_quote
from protocol.records import Draw, Hold, Kind, Terms

if TYPE_CHECKING:
    from node.client import NodeClient
    from node.wallet.job_spec import JobSpec
    from node.wallet.wallet import Wallet

QUOTE_SECONDS = 45.0
"""How long the wallet waits for a donor's answer."""
START_SECONDS_MIN = 30
"""A quote must be good for so long still when the money is put aside, so that the start comes in time."""
IGNORED_NAMES = (".git", "__pycache__", ".venv")

Connect = Callable[[str], "NodeClient"]


class JobPlan(NamedTuple):
    """What a job would cost, before anything is spent."""

    spec: JobSpec
    priced: PricedOffer
    draws: tuple[tuple[Lot, int], ...]
    """What would be put aside, soonest expiry first; what is not used comes back."""
    others: int
    """How many more offers fit."""


def plan_job(wallet: Wallet, spec: JobSpec) -> JobPlan:
    """The cheapest machine for the job and the credits that it would take. Signs nothing, tells nobody.

    Raises: UserError when no machine fits, it would cost more than max_credits, or the credits don't suffice.
    """
    fitting = price_offers(read_offers(wallet), spec)
    priced = fitting[0]
    if spec.amount_max is not None and priced.amount_max > spec.amount_max:
        raise UserError(
            f"the cheapest machine could cost {format_credits(priced.amount_max)} credits for {spec.wall_seconds} s, "
            f"and max_credits is {format_credits(spec.amount_max)}: raise it, or shorten max_duration"
        )
    draws = choose_draws(wallet, spec, priced.amount_max, read_account(wallet))
    return JobPlan(spec, priced, draws, len(fitting) - 1)


def choose_draws(wallet: Wallet, spec: JobSpec, amount: int, account: api.Account) -> tuple[tuple[Lot, int], ...]:
    """The lots to put aside: only those whose program allows this class of job, and the named program's if any."""
    check_not_stopped(wallet, account)
    programs = {program.id: program for program in wallet.client.get_programs()}

    def is_usable(lot: Lot) -> bool:
        program = programs.get(encode_address(AddressKind.PROGRAM, lot.program)) if lot.program else None
        if spec.program is not None and (program is None or spec.program not in (program.id, program.name)):
            return False
        if program is None:
            return not lot.program
        return not program.job_classes or spec.job_class in program.job_classes

    verb = f"spent on {spec.job_class} jobs" + (f" from {spec.program}" if spec.program else "")
    return tuple(choose_lots(read_lots(account), amount, account.epoch, is_usable, verb, count_max=DRAWS_MAX))


# -- asking -----------------------------------------------------------------------------------------------------------


def open_job(wallet: Wallet, plan: JobPlan, connect: Connect) -> WalletJob:
    """Ask the donor for a binding quote. Costs nothing, needs no passphrase.

    Raises: UserError when the donor refuses, asks for more than its offer says, or does not answer.
    """
    spec, offer = plan.spec, plan.priced.offer
    meter_key = Ed25519PrivateKey.generate()
    seal_seed, result_seed = secrets.token_bytes(32), secrets.token_bytes(32)
    request = (
        make_request(spec, plan.priced.runtime)
        ._replace(
            account=wallet.account,
            meter_key=meter_key.public_key().public_bytes_raw(),
            seal_key=seal_public_key(seal_seed),
            result_key=seal_public_key(result_seed),
            mailbox_to_donor=secrets.token_bytes(32),
            mailbox_to_wallet=secrets.token_bytes(32),
        )
        .sign(wallet.federation, meter_key)
    )
    job = WalletJob(
        job_id=request.compute_id(wallet.federation).hex()[:10],
        name=spec.name,
        created_at_seconds=wallet.now(),
        offer=offer.encode(),
        request=request.encode(),
        meter_seed=meter_key.private_bytes_raw(),
        seal_seed=seal_seed,
        result_seed=result_seed,
    )
    _pack_inputs(wallet, job, spec)
    save_job(wallet, job)
    line = Line(wallet, job, connect)
    inbox = compute_inbox_name(offer.compute_donor(wallet.federation))
    sealed = seal(offer.seal_key, job.request, compute_seal_context(b"inbox", inbox))
    try:
        line.post(inbox, sealed)
        _wait_for_quote(wallet, job, line)
        check_quote(wallet.federation, job.decode_quote(wallet), request, offer)
    except (UserError, InvalidInput) as error:
        wallet.journal.remove_job(job.job_id)
        shutil.rmtree(get_job_directory(wallet, job), ignore_errors=True)
        raise UserError(f"{offer.machine} gave no quote that holds, and nothing was spent: {error}") from error
    save_job(wallet, job)
    return job


def _wait_for_quote(wallet: Wallet, job: WalletJob, line: Line) -> None:
    refusal: list[str] = []

    def take(message: Message) -> None:
        if isinstance(message, Quoted):
            decode_quote(wallet.charter, message.quote)
            job.quote = message.quote
        elif isinstance(message, Refused):
            refusal.append(message.reason)

    deadline = time.monotonic() + QUOTE_SECONDS
    while not job.quote:
        remaining = deadline - time.monotonic()
        if refusal:
            raise UserError(f"it says: {refusal[0]}")
        if remaining <= 0:
            raise UserError("it does not answer: is its agent running?")
        line.hear(take, wait_seconds=min(remaining, 5.0))


def _pack_inputs(wallet: Wallet, job: WalletJob, spec: JobSpec) -> None:
    """Keep what will be sent: as it is now, whatever changes in the folder later. Raises: UserError."""
    directory = get_job_directory(wallet, job)
    directory.mkdir(mode=0o700, parents=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=directory) as staging:
        root = Path(staging)
        try:
            ignore = shutil.ignore_patterns(*IGNORED_NAMES)
            shutil.copytree(spec.workdir, root / "work", symlinks=True, ignore=ignore)
            for place, source in spec.mounts:
                target = root / "work" / place
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
                else:
                    shutil.copy2(source, target)
        except (OSError, shutil.Error) as error:
            raise UserError(f"the job's files can't be collected: {error}") from error
        (root / "job").write_bytes(spec.script.encode())
        content = pack_bundle(root)
    if compute_sealed_bytes(len(content)) > api.BLOB_BYTES_MAX:
        raise UserError(
            f"the job's files have {len(content) / 1e6:.0f} MB; {api.BLOB_BYTES_MAX / 1e6:.0f} MB can be sent: "
            "leave something out of the workdir"
        )
    if len(content) > spec.disk_bytes:
        raise UserError("the job's files are larger than its disk: raise resources.disk_size")
    write_atomically(directory / "inputs", content)


# -- paying -----------------------------------------------------------------------------------------------------------


def hold_job(wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, spec: JobSpec) -> None:
    """Put the money aside, and wait until a receipt proves it. Repeating it never puts more aside.

    Raises: UserError when it can't be, or is not final yet (then `job logs -f` goes on later).
    """
    quote, request = job.decode_quote(wallet), job.decode_request(wallet)
    offer = job.decode_offer(wallet)

    def build_body(account: api.Account) -> Hold:
        if quote.valid_until < wallet.now() + START_SECONDS_MIN:
            raise UserError("the quote has run out, and nothing was spent: run the job again")
        charter = wallet.charters.get(quote.charter_version)
        if charter is None:
            raise UserError("the quote names a charter version that its node does not know: run the job again")
        draws = choose_draws(wallet, spec, quote.amount_max, account)
        terms = Terms(
            quote.charter_version,
            quote.compute_id(wallet.federation),
            request.meter_key,
            quote.grace_seconds,
            charter.policy.acceptable_use,
            quote.sponsor,
            request.job_class,
        )
        payee = offer.compute_donor(wallet.federation)
        return Hold(payee, tuple(Draw(*lot, amount) for lot, amount in draws), terms)

    outcome = spend(wallet, key, Kind.HOLD, _make_purpose(job), build_body, entry=_find_hold(wallet, job))
    if outcome.verified is None:
        raise UserError(
            f"the credits for this job are not put aside yet ({outcome.refusal or 'the node gave no proof'}): "
            f"`allmende job logs -f {job.job_id}` goes on with it"
        )
    assert outcome.entry.receipt is not None
    job.hold, job.hold_receipt = outcome.entry.record_id, outcome.entry.receipt
    job.state = "HELD"
    save_job(wallet, job)


def _make_purpose(job: WalletJob) -> str:
    return f"job {job.job_id} ({job.name})"


def _find_hold(wallet: Wallet, job: WalletJob) -> Entry | None:
    return find_signed(wallet, _make_purpose(job))


# -- starting ---------------------------------------------------------------------------------------------------------


def start_job(wallet: Wallet, job: WalletJob, connect: Connect) -> None:
    """Seal and upload the inputs, tell the donor to start. Repeating it changes nothing at the donor's."""
    offer, line = job.decode_offer(wallet), Line(wallet, job, connect)
    inputs_path = get_job_directory(wallet, job) / "inputs"
    sealed = seal(offer.seal_key, inputs_path.read_bytes(), compute_seal_context(b"inputs", job.hold))
    job.inputs = line.put_blob(sealed)
    if not job.started_at_seconds:
        job.started_at_seconds = wallet.now()
    nothing = sign_voucher(wallet.federation, job.meter_key, job.hold, 0, 0)
    save_job(wallet, job)
    line.say(Start(job.hold_receipt, job.inputs, nothing.signature))
    job.state = STARTED
    save_job(wallet, job)
    inputs_path.unlink(missing_ok=True)


def resume_job(wallet: Wallet, job: WalletJob, connect: Connect) -> None:
    """Take up a job that was interrupted between the first signature and the start, or left to the node. Signs no new
    record.

    Raises: UserError when the money can't be proven to be put aside yet.
    """
    take_back(wallet, job)
    if job.state == "QUOTED":
        entry = _find_hold(wallet, job)
        if entry is None:
            raise UserError(f"job {job.job_id} was never paid for, and nothing was spent: run it again")
        outcome = submit_entry(wallet, entry)
        if outcome.verified is None or outcome.entry.receipt is None:
            raise UserError(f"the credits for this job are not put aside yet: {outcome.refusal or 'no proof'}")
        job.hold, job.hold_receipt, job.state = entry.record_id, outcome.entry.receipt, "HELD"
        save_job(wallet, job)
    if job.state == "HELD":
        start_job(wallet, job, connect)
