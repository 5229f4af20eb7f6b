"""Redeeming credits: plan, ask for a quote, put the money aside, hand over the inputs.

The order is the safety. Everything is priced before anything is spent. Keys, quote and inputs are on disk before the
hold is signed, the hold is journalled before it is sent, and the job is started only with a receipt that the hold is
final. So a crash at any point is taken up by `resume_job`, and no money is put aside twice.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node import api
from node.addresses import Kind as AddressKind
from node.addresses import encode_address
from node.errors import UserError
from node.files import write_atomically
from node.sealing import seal, seal_public_key
from node.wallet.calling import Line
from node.wallet.detaching import take_back
from node.wallet.job_inputs import JobInputs, pack_inputs
from node.wallet.job_records import (
    STARTED,
    WalletJob,
    find_signed_hold,
    get_inputs_path,
    get_job_directory,
    make_purpose,
    save_job,
)
from node.wallet.job_spec import JobSpec
from node.wallet.lots import Lot, choose_lots, read_lots
from node.wallet.matching import JobNeeds, KnownOffer, Match, Preference, find_matches, make_request
from node.wallet.offers import ask_about_donors, find_own_members, is_named, read_offers
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
from protocol.metering import JobState, sign_voucher
from protocol.quotes import check_quote, decode_quote
from protocol.records import Draw, Hold, Kind, Terms

if TYPE_CHECKING:
    from node.client import NodeClient
    from node.wallet.wallet import Wallet

QUOTE_SECONDS = 45.0
"""How long the wallet waits for a donor's answer."""
START_SECONDS_MIN = 30
"""A quote must be good for so long still when the money is put aside, so that the start comes in time."""
DONORS_ASKED_MAX = 3
"""How many donors are asked for a quote, one after the other, before a person is asked again."""
DONORS_LOOKED_UP_MAX = 50
"""Of so many fitting machines, the cheapest, the wallet asks its node who stands behind them."""

Connect = Callable[[str], "NodeClient"]
Tell = Callable[[str], None]


class Choice(NamedTuple):
    """What a person says about the machine."""

    donor: str = ""
    """Only this one: a machine's name or a donor's address."""
    prefer: Preference = Preference.EXPECTED_COST
    excluded: frozenset[bytes] = frozenset()
    """Public keys of donors that are not asked."""


ANY_MACHINE = Choice()


class JobPlan(NamedTuple):
    """What a job would cost, before anything is spent."""

    needs: JobNeeds
    matches: tuple[Match, ...]
    """The machines that can do it for the credits that it may take, best first; never none."""
    draws: tuple[tuple[Lot, int], ...]
    """What would be put aside on the first, soonest expiry first; what is not used comes back."""
    prefer: Preference
    reasons: tuple[str, ...]
    """Why the other machines can't do it."""

    @property
    def priced(self) -> Match:
        """The machine that is asked first."""
        return self.matches[0]

    @property
    def asked(self) -> tuple[Match, ...]:
        """The machines that are asked, one after the other, until one gives a quote."""
        return self.matches[:DONORS_ASKED_MAX]

    @property
    def amount_max(self) -> int:
        """Most millicredits that are put aside, on whichever of them it runs."""
        return max(match.amount_max for match in self.asked)


# -- planning ---------------------------------------------------------------------------------------------------------


def plan_job(wallet: Wallet, needs: JobNeeds, choice: Choice = ANY_MACHINE, spent: int = 0) -> JobPlan:
    """The best machines for the job and the credits that it would take. Signs nothing, tells no donor.

    `spent` are the millicredits that earlier runs of the job have taken of its `amount_max`.

    Raises: UserError when no machine fits, it would cost more than max_credits, or the credits don't suffice.
    """
    account = read_account(wallet)
    matches, reasons = find_matches(
        needs,
        _list_fitting(wallet, needs, choice),
        own_members=find_own_members(account),
        prefer=choice.prefer,
        payer=wallet.account,
    )
    affordable = [m for m in matches if needs.amount_max is None or m.amount_max + spent <= needs.amount_max]
    if not affordable:
        assert matches
        assert needs.amount_max is not None
        cheapest = min(match.amount_max for match in matches)
        left = f", of which {format_credits(spent)} are spent" if spent else ""
        raise UserError(
            f"the cheapest machine could cost {format_credits(cheapest)} credits for {needs.wall_seconds} s, "
            f"and max_credits is {format_credits(needs.amount_max)}{left}: raise it, or shorten max_duration"
        )
    draws = choose_draws(wallet, needs, affordable[0].amount_max, account)
    return JobPlan(needs, tuple(affordable), draws, choice.prefer, tuple(reasons))


def _list_fitting(wallet: Wallet, needs: JobNeeds, choice: Choice) -> list[KnownOffer]:
    """The offers that can do the job, with what is known of their donors. Raises: UserError that says why none can."""
    offers = [offer for offer in read_offers(wallet) if offer.donor_key not in choice.excluded]
    if choice.donor:
        offers = [offer for offer in offers if is_named(wallet, offer, choice.donor)]
    matches, reasons = find_matches(needs, map(KnownOffer, offers), prefer=Preference.PRICE)
    if matches:
        return ask_about_donors(wallet, [match.offer for match in matches[:DONORS_LOOKED_UP_MAX]])
    if choice.donor and not offers:
        raise UserError(f"no donor or machine {choice.donor!r} is offered at the moment: see `allmende offers`")
    if not offers:
        other = "other " if choice.excluded else ""
        raise UserError(f"no {other}donor offers a machine at the moment: try again later (`allmende offers`)")
    raise UserError(f"none of {len(offers)} offered machines can run this job: {'; '.join(reasons[:3])}")


def choose_draws(wallet: Wallet, needs: JobNeeds, amount: int, account: api.Account) -> tuple[tuple[Lot, int], ...]:
    """The lots to put aside: only those whose program allows this class of job, and the named program's if any."""
    check_not_stopped(wallet, account)
    programs = {program.id: program for program in wallet.client.get_programs()}

    def is_usable(lot: Lot) -> bool:
        program = programs.get(encode_address(AddressKind.PROGRAM, lot.program)) if lot.program else None
        if needs.program is not None and (program is None or needs.program not in (program.id, program.name)):
            return False
        if program is None:
            return not lot.program
        return not program.job_classes or needs.job_class in program.job_classes

    verb = f"spent on {needs.job_class} jobs" + (f" from {needs.program}" if needs.program else "")
    return tuple(choose_lots(read_lots(account), amount, account.epoch, is_usable, verb, count_max=DRAWS_MAX))


# -- asking -----------------------------------------------------------------------------------------------------------


def open_job(
    wallet: Wallet,
    plan: JobPlan,
    connect: Connect,
    inputs: JobInputs | None = None,
    tell: Tell = lambda _: None,
) -> WalletJob:
    """Ask the best donors of a plan, one after the other, for a binding quote. Costs nothing, needs no passphrase.

    `inputs` is what is sent, unless the plan is of a job file.

    Raises: UserError when each of them refuses, asks for more than its offer says, or does not answer.
    """
    if inputs is None:
        assert isinstance(plan.needs, JobSpec)
        inputs = pack_inputs(plan.needs)
    for number, match in enumerate(plan.asked, 1):
        try:
            return _ask_donor(wallet, plan, match, inputs, connect)
        except (UserError, InvalidInput) as error:
            failure = f"{match.offer.machine} gave no quote that holds, and nothing was spent: {error}"
            if number == len(plan.asked):
                asked = f" ({number} machines were asked)" if number > 1 else ""
                raise UserError(failure + asked) from error
            tell(f"{failure}; asking {plan.asked[number].offer.machine}")
    raise AssertionError("a plan has a machine")


def _ask_donor(wallet: Wallet, plan: JobPlan, match: Match, inputs: JobInputs, connect: Connect) -> WalletJob:
    offer = match.offer
    meter_key = Ed25519PrivateKey.generate()
    seal_seed, result_seed = secrets.token_bytes(32), secrets.token_bytes(32)
    request = (
        make_request(plan.needs, match.gpus, match.runtime)
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
    needs = plan.needs.needs if isinstance(plan.needs, JobSpec) else plan.needs
    job = WalletJob(
        job_id=request.compute_id(wallet.federation).hex()[:10],
        name=inputs.name,
        created_at_seconds=wallet.now(),
        offer=offer.encode(),
        request=request.encode(),
        meter_seed=meter_key.private_bytes_raw(),
        seal_seed=seal_seed,
        result_seed=result_seed,
        needs=needs if needs.amount_max is not None else replace(needs, amount_max=plan.amount_max),
        source_digest=inputs.source_digest,
        secrets=list(inputs.secrets),
        path=inputs.path,
        retry_of=inputs.retry_of,
        recheck_of=inputs.recheck_of,
    )
    try:
        get_job_directory(wallet, job).mkdir(mode=0o700, parents=True)
        write_atomically(get_inputs_path(wallet, job), inputs.bundle)
        save_job(wallet, job)
        line = Line(wallet, job, connect)
        inbox = compute_inbox_name(offer.compute_donor(wallet.federation))
        line.post(inbox, seal(offer.seal_key, job.request, compute_seal_context(b"inbox", inbox)))
        _wait_for_quote(wallet, job, line)
        check_quote(wallet.federation, job.decode_quote(wallet), request, offer)
    except BaseException:
        wallet.journal.remove_job(job.job_id)
        shutil.rmtree(get_job_directory(wallet, job), ignore_errors=True)
        raise
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


# -- paying -----------------------------------------------------------------------------------------------------------


def hold_job(wallet: Wallet, key: Ed25519PrivateKey, job: WalletJob, needs: JobNeeds) -> None:
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
        draws = choose_draws(wallet, needs, quote.amount_max, account)
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

    outcome = spend(wallet, key, Kind.HOLD, make_purpose(job), build_body, entry=find_signed_hold(wallet, job))
    if outcome.verified is None:
        raise UserError(
            f"the credits for this job are not put aside yet ({outcome.refusal or 'the node gave no proof'}): "
            f"`allmende job logs -f {job.job_id}` goes on with it"
        )
    assert outcome.entry.receipt is not None
    job.hold, job.hold_receipt = outcome.entry.record_id, outcome.entry.receipt
    job.state = JobState.HELD
    save_job(wallet, job)


# -- starting ---------------------------------------------------------------------------------------------------------


def start_job(wallet: Wallet, job: WalletJob, connect: Connect) -> None:
    """Seal and upload the inputs, tell the donor to start. Repeating it changes nothing at the donor's."""
    offer, line = job.decode_offer(wallet), Line(wallet, job, connect)
    bundle = get_inputs_path(wallet, job).read_bytes()
    sealed = seal(offer.seal_key, bundle, compute_seal_context(b"inputs", job.hold))
    job.inputs = line.put_blob(sealed)
    if not job.started_at_seconds:
        job.started_at_seconds = wallet.now()
    nothing = sign_voucher(wallet.federation, job.meter_key, job.hold, 0, 0)
    save_job(wallet, job)
    line.say(Start(job.hold_receipt, job.inputs, nothing.signature))
    job.state = STARTED
    save_job(wallet, job)


def resume_job(wallet: Wallet, job: WalletJob, connect: Connect) -> None:
    """Take up a job that was interrupted between the first signature and the start, or left to the node. Signs no new
    record.

    Raises: UserError when the money can't be proven to be put aside yet.
    """
    take_back(wallet, job)
    if job.state == JobState.QUOTED:
        entry = find_signed_hold(wallet, job)
        if entry is None:
            raise UserError(f"job {job.job_id} was never paid for, and nothing was spent: run it again")
        outcome = submit_entry(wallet, entry)
        if outcome.verified is None or outcome.entry.receipt is None:
            raise UserError(f"the credits for this job are not put aside yet: {outcome.refusal or 'no proof'}")
        job.hold, job.hold_receipt, job.state = entry.record_id, outcome.entry.receipt, JobState.HELD
        save_job(wallet, job)
    if job.state == JobState.HELD:
        start_job(wallet, job, connect)
