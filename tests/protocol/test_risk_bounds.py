"""Whatever the other side does or leaves undone, an honest payer or donor loses no more than its bound (spec 12.8).

Two machines: in each one side keeps the rules and hypothesis plays the other, the clock, crashes and the ledger. What
the honest side does is the code that wallets, nodes and donors run; what it may lose is computed here a second time.
Then each check is left out in turn, and the machine has to notice.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from protocol import countersigning, metering
from protocol.countersigning import CLOCK_SLACK_MS, PayersMeter
from protocol.errors import InvalidInput
from protocol.identifiers import compute_voucher_id
from protocol.metering import CHARGED_STATES, END_STATES, JobState, Rate, Tick, Voucher, compute_charge, sign_tick
from protocol.quotes import JobReceipt, Quote
from protocol.signatures import is_valid_signature

FEDERATION = bytes(range(32))
HOLD, OTHER_HOLD = b"h" * 32, b"o" * 32
DONOR = Ed25519PrivateKey.from_private_bytes(bytes([5]) * 32)
METER = Ed25519PrivateKey.from_private_bytes(bytes([6]) * 32)
DONOR_PUBLIC, METER_PUBLIC = DONOR.public_key().public_bytes_raw(), METER.public_key().public_bytes_raw()
RATE = Rate(1000, 3, 8, 0)
TICK_SECONDS, GRACE_SECONDS, WALL_SECONDS = 30, 120, 600
AMOUNT_MAX = compute_charge(WALL_SECONDS * 1000, RATE)
QUOTE = Quote(
    DONOR_PUBLIC, b"r" * 32, b"s" * 32, RATE, WALL_SECONDS, TICK_SECONDS, AMOUNT_MAX, GRACE_SECONDS, 1, 0, 0, b""
)
START = 1_000_000
CHECKPOINTS = (b"c" * 32, b"d" * 32, b"e" * 32)
FALSE_CHECKPOINT = b"f" * 32

pauses = st.sampled_from((1, 5, TICK_SECONDS, TICK_SECONDS, 200))
times_ms = st.one_of(st.integers(0, WALL_SECONDS * 1000), st.just(WALL_SECONDS * 1000 + 1000), st.just(0))
states = st.sampled_from(sorted(END_STATES))


class Hold:
    """The one slot of the hold on the ledger (spec 7.7 and 7.10), written again in a few lines."""

    def __init__(self) -> None:
        self.paid: int | None = None
        self.asked_at: int | None = None

    def settle(self, voucher: Voucher) -> None:
        """Pays whatever the meter key signed: the ledger can't see whose fault an end was."""
        is_good = voucher.hold == HOLD and voucher.amount <= AMOUNT_MAX
        if self.paid is None and is_good and is_valid_signature(METER_PUBLIC, name(voucher), voucher.signature):
            self.paid = voucher.amount

    def reclaim(self, now: int) -> None:
        if self.paid is None and self.asked_at is not None and now >= self.asked_at + GRACE_SECONDS:
            self.paid = 0


def name(voucher: Voucher) -> bytes:
    return compute_voucher_id(FEDERATION, voucher.hold, voucher.sequence, voucher.amount)


def sign_again(tick: Tick) -> Tick:
    return tick._replace(signature=DONOR.sign(tick.compute_id(FEDERATION)))


class HonestPayer(RuleBasedStateMachine):
    """An honest payer, and a donor that may say anything that its key can sign."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.hold = Hold()
        self.said: list[Tick] = []
        """What the donor ever signed."""
        self.agreed: list[Tick] = []
        """What the payer signed for, as it left the payer."""
        self.fetched: set[bytes] = set()
        self.vouchers = [metering.sign_voucher(FEDERATION, METER, HOLD, 0, 0)]
        self.receipts: list[JobReceipt] = []
        self.durable: tuple[Tick | None, Tick | None, bool] = (None, None, False)
        self.started_at = 0

    @initialize(is_started=st.sampled_from((True, True, True, False)))
    def start(self, is_started: bool) -> None:
        """Sometimes a donor ticks before it was told to start."""
        self.started_at = START if is_started else 0
        self.restart()

    @rule()
    def restart(self) -> None:
        """The payer crashes and goes on from its disk."""
        last, checkpoint, is_closed = self.durable
        self.meter = PayersMeter(FEDERATION, QUOTE, HOLD, METER, self.started_at, last=last, checkpoint=checkpoint)
        self.meter.is_closed = is_closed

    @rule(seconds=st.one_of(pauses, st.just(WALL_SECONDS + 60)))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    def follow(self, **changes: Any) -> Tick:
        """An honest tick but for the changes."""
        last = self.meter.last
        fields = {"before": last, "elapsed_ms": min((self.now - START) * 1000, WALL_SECONDS * 1000)} | changes
        return sign_tick(FEDERATION, DONOR, HOLD, RATE, **fields)

    @rule(checkpoint=st.sampled_from((b"", b"", *CHECKPOINTS, FALSE_CHECKPOINT)), is_lost=st.booleans())
    def say_honestly(self, checkpoint: bytes, is_lost: bool) -> None:
        self.deliver(self.follow(checkpoint=checkpoint), is_lost)

    @rule(ms=times_ms, is_lost=st.booleans())
    def say_another_time(self, ms: int, is_lost: bool) -> None:
        """Also backwards, beyond what can have passed, and beyond the wall time."""
        self.deliver(self.follow(elapsed_ms=ms), is_lost)

    @rule(
        change=st.sampled_from(
            (
                {"hold": OTHER_HOLD},
                {"sequence": 1},
                {"sequence": 99},
                {"prev": b"x" * 32},
                {"prev": b""},
                {"amount": 0},
                {"amount": AMOUNT_MAX},
                {"amount": AMOUNT_MAX + 1},
                {"elapsed_ms": 0},
            )
        )
    )
    def say_what_does_not_follow(self, change: dict[str, Any]) -> None:
        self.deliver(sign_again(self.follow()._replace(**change)), is_lost=False)

    @rule()
    def say_without_a_signature(self) -> None:
        self.deliver(self.follow()._replace(signature=bytes(64)), is_lost=False)

    @precondition(lambda self: self.agreed)
    @rule(ms=st.integers(0, WALL_SECONDS * 1000))
    def fork(self, ms: int) -> None:
        """Another tick in the place of the last."""
        before = self.agreed[-2] if len(self.agreed) > 1 else None
        self.deliver(self.follow(before=before, elapsed_ms=ms), is_lost=False)

    @precondition(lambda self: self.said)
    @rule(choice=st.data())
    def repeat(self, choice: st.DataObject) -> None:
        self.deliver(choice.draw(st.sampled_from(self.said)), is_lost=False)

    def deliver(self, tick: Tick, is_lost: bool) -> None:
        """As a wallet does it: fetch, decide, write down, then speak. With `is_lost` it dies before it writes."""
        self.said.append(tick)
        checkpoint = self.meter.find_new_checkpoint(tick)
        if checkpoint in CHECKPOINTS:
            self.fetched.add(checkpoint)
        had = checkpoint if checkpoint in self.fetched else b""
        before = (self.meter.last, self.meter.checkpoint)
        try:
            voucher = self.meter.answer(tick, self.now, had)
        except InvalidInput:
            assert (self.meter.last, self.meter.checkpoint) == before
            return
        if is_lost:
            self.restart()
            return
        self.durable = (self.meter.last, self.meter.checkpoint, self.meter.is_closed)
        if self.meter.last is not before[0]:
            assert self.meter.last is not None
            self.agreed.append(self.meter.last)
        if voucher is not None:
            self.check_new_voucher(voucher)
            self.vouchers.append(voucher)

    def check_new_voucher(self, voucher: Voucher) -> None:
        """P1 and P2, at the moment at which it leaves the payer."""
        assert self.started_at
        assert 0 <= voucher.amount <= AMOUNT_MAX
        assert voucher.amount <= compute_charge((self.now - START + 1) * 1000 + CLOCK_SLACK_MS, RATE)
        assert not self.meter.is_closed or voucher in self.vouchers
        for other in self.vouchers:
            assert (voucher.sequence == other.sequence) <= (voucher.amount == other.amount)
            assert (voucher.sequence >= other.sequence) <= (voucher.amount >= other.amount)

    @precondition(lambda self: self.now > START + 300)
    @rule(
        state=states, amount=st.sampled_from((None, 0, AMOUNT_MAX, AMOUNT_MAX + 1)), hold=st.sampled_from((HOLD, b""))
    )
    def end(self, state: JobState, amount: int | None, hold: bytes) -> None:
        """The donor says how it ended; the payer signs or does not."""
        self.meter.is_closed = True
        self.durable = (*self.durable[:2], True)
        asked = self.compute_due(state) if amount is None else amount
        receipt = JobReceipt(
            hold or OTHER_HOLD, QUOTE.compute_id(FEDERATION), state, 0, 0, 0, 0, 0, b"", asked, b"", b"", b""
        )
        try:
            self.receipts.append(self.meter.agree(receipt))
        except InvalidInput:
            assert hold != HOLD or asked != self.compute_due(state)

    def compute_due(self, state: JobState) -> int:
        """P3, from the list of all ticks that were agreed to."""
        if state in CHARGED_STATES:
            return self.agreed[-1].amount if self.agreed else 0
        amount, before = 0, b""
        for tick in self.agreed:
            if tick.checkpoint and tick.checkpoint != before:
                amount, before = tick.amount, tick.checkpoint
        return amount

    @rule(choice=st.data(), change=st.sampled_from((0, 0, 1)))
    def settle(self, choice: st.DataObject, change: int) -> None:
        """With any voucher, or with more than one says."""
        voucher = choice.draw(st.sampled_from(self.vouchers))
        self.hold.settle(voucher._replace(amount=voucher.amount + change))

    @rule()
    def ask_back(self) -> None:
        if self.hold.asked_at is None:
            self.hold.asked_at = self.now

    @rule()
    def reclaim(self) -> None:
        self.hold.reclaim(self.now)

    @invariant()
    def the_payer_loses_at_most_what_it_signed(self) -> None:
        assert (self.hold.paid or 0) <= max(voucher.amount for voucher in self.vouchers)

    @invariant()
    def what_was_agreed_to_is_one_chain_that_the_donor_signed(self) -> None:
        before: Tick | None = None
        for tick in self.agreed[-2:] if len(self.agreed) > 1 else self.agreed:
            if before is not None or tick.sequence == 1:
                assert tick.prev == (before.compute_id(FEDERATION) if before else b"")
                assert tick.sequence == (before.sequence + 1 if before else 1)
                assert tick.elapsed_ms >= (before.elapsed_ms if before else 0)
            assert tick.hold == HOLD
            assert tick.amount == compute_charge(tick.elapsed_ms, RATE)
            assert is_valid_signature(DONOR_PUBLIC, tick.compute_id(FEDERATION), tick.signature)
            before = tick
        assert not self.agreed or self.agreed[-1].sequence == len(self.agreed)

    @invariant()
    def what_is_owed_for_lost_work_is_saved_in_a_checkpoint_that_the_payer_has(self) -> None:
        assert {tick.checkpoint for tick in self.agreed} <= self.fetched | {b""}

    @invariant()
    def a_signed_receipt_asks_for_what_is_due(self) -> None:
        for receipt in self.receipts:
            assert receipt.hold == HOLD
            assert receipt.amount == self.compute_due(receipt.state)


class HonestDonor(RuleBasedStateMachine):
    """An honest donor, and a payer that may answer anything that its key can sign, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.hold = Hold()
        self.worked_ms = 0
        self.until_tick = TICK_SECONDS
        self.ticks: list[Tick] = []
        self.vouchers = [metering.sign_voucher(FEDERATION, METER, HOLD, 0, 0)]
        self.is_suspended = False
        self.handover_seconds = 0
        """How long it takes to hand over a checkpoint, before the tick that names it is signed."""
        self.handed_over = [0, 0]
        """How long it took for the last two ticks."""
        self.end_state: JobState | None = None

    @property
    def last(self) -> Tick | None:
        return self.ticks[-1] if self.ticks else None

    def has_ended(self) -> bool:
        return self.end_state is not None

    @precondition(lambda self: self.end_state is None)
    @rule(seconds=pauses)
    def work(self, seconds: int) -> None:
        """Second by second, as the agent's timer goes: a tick falls due every tick length."""
        for _ in range(seconds):
            if self.has_ended():
                return
            self.now += 1
            self.worked_ms += 0 if self.is_suspended else 1000
            self.until_tick -= 1
            if not self.until_tick:
                self.until_tick = TICK_SECONDS
                self.fall_due()
            if not self.has_ended() and self.worked_ms >= WALL_SECONDS * 1000:
                self.finish(JobState.WALLTIME)

    def fall_due(self) -> None:
        is_asked = self.hold.asked_at is not None
        if countersigning.must_stop(self.last, self.vouchers[-1].sequence, is_asked):
            self.finish(JobState.POLICY_KILLED)
        else:
            elapsed_ms = self.worked_ms
            seconds = 0 if self.is_suspended else self.handover_seconds
            self.now += seconds
            self.worked_ms = min(self.worked_ms + 1000 * seconds, WALL_SECONDS * 1000)
            self.handed_over = [self.handed_over[1], seconds]
            self.add_tick(elapsed_ms)

    def add_tick(self, elapsed_ms: int | None = None) -> None:
        counted_ms = self.worked_ms if elapsed_ms is None else elapsed_ms
        self.ticks.append(sign_tick(FEDERATION, DONOR, HOLD, RATE, self.last, counted_ms))

    @rule(seconds=st.sampled_from((0, 0, 0, 1, TICK_SECONDS)))
    def change_line(self, seconds: int) -> None:
        self.handover_seconds = seconds

    @precondition(lambda self: self.end_state is None)
    @rule()
    def pause_or_go_on(self) -> None:
        self.is_suspended = not self.is_suspended

    @precondition(lambda self: self.end_state is None and self.now > START + 60)
    @rule(state=states.filter(lambda state: state not in (JobState.POLICY_KILLED, JobState.WALLTIME)))
    def finish(self, state: JobState) -> None:
        """The last tick is for the time up to the end; a crash leaves none, and what was on disk counts."""
        if state in CHARGED_STATES:
            self.add_tick()
        self.end_state = state

    @precondition(lambda self: self.ticks)
    @rule(back=st.sampled_from((1, 1, 1, 1, 2, 3)))
    def answer(self, back: int) -> None:
        """Honestly, though perhaps late: a voucher for the newest tick or one before."""
        tick = self.ticks[-min(back, len(self.ticks))]
        self.hear(metering.sign_voucher(FEDERATION, METER, HOLD, tick.sequence, tick.amount))

    @precondition(lambda self: self.end_state is None)
    @rule(ticks=st.integers(1, 6))
    def work_and_answer(self, ticks: int) -> None:
        for _ in range(ticks):
            if self.end_state is None:
                self.work(TICK_SECONDS)
            if self.ticks:
                self.answer(1)

    @precondition(lambda self: self.ticks)
    @rule()
    def answer_with_another_key(self) -> None:
        self.hear(metering.sign_voucher(FEDERATION, DONOR, HOLD, self.ticks[-1].sequence, self.ticks[-1].amount))

    @rule(
        sequence=st.integers(0, 30),
        amount=st.one_of(st.just(0), st.integers(0, AMOUNT_MAX + 1), st.none()),
        hold=st.sampled_from((HOLD, HOLD, HOLD, OTHER_HOLD)),
        key=st.sampled_from((METER, METER, DONOR)),
    )
    def answer_anything(self, sequence: int, amount: int | None, hold: bytes, key: Ed25519PrivateKey) -> None:
        if amount is None:  # the right amount, so that only the key or the hold is wrong
            amount = self.ticks[sequence - 1].amount if 0 < sequence <= len(self.ticks) else 0
        self.hear(metering.sign_voucher(FEDERATION, key, hold, sequence, amount))

    def hear(self, voucher: Voucher) -> None:
        """As the donor's meter does it."""
        if voucher.sequence <= self.vouchers[-1].sequence:
            return
        try:
            countersigning.check_follows_tick(self.ticks, voucher.sequence, voucher.amount)
            metering.check_voucher(FEDERATION, METER_PUBLIC, HOLD, AMOUNT_MAX, voucher)
        except InvalidInput:
            return
        self.vouchers.append(voucher)

    @rule()
    def ask_back(self) -> None:
        if self.hold.asked_at is None:
            self.hold.asked_at = self.now

    @rule()
    def reclaim(self) -> None:
        self.hold.reclaim(self.now)

    def compute_due(self) -> int:
        assert self.end_state is not None
        checkpoint = countersigning.find_saved_tick(self.ticks)
        return metering.compute_amount_due(1, self.end_state, self.last, checkpoint)

    @precondition(lambda self: self.end_state is not None and self.hold.paid is None)
    @rule()
    def settle(self) -> None:
        due = self.compute_due()
        self.hold.settle(countersigning.choose_voucher(self.vouchers, due))
        assert self.hold.paid is not None, "an honest donor always has a voucher that the ledger pays"
        assert self.hold.paid <= due
        if self.end_state in CHARGED_STATES:
            assert due - self.hold.paid <= compute_charge(self.unpaid_ms_max, RATE)

    @property
    def unpaid_ms_max(self) -> int:
        """D1: never more than four tick lengths, and two where no checkpoint is handed over."""
        return (2 * TICK_SECONDS + sum(self.handed_over)) * 1000

    @invariant()
    def the_donor_works_unpaid_for_no_longer_than_its_bound(self) -> None:
        answered = {tick.sequence: tick.elapsed_ms for tick in self.ticks}
        paid_ms = max((answered.get(voucher.sequence, 0) for voucher in self.vouchers), default=0)
        assert self.worked_ms - paid_ms <= self.unpaid_ms_max <= 4 * TICK_SECONDS * 1000

    @invariant()
    def a_donor_that_is_asked_stops_in_time_to_settle(self) -> None:
        """The shortest grace is longer than that, and a donor waits for no more than half of what is left."""
        if self.end_state is None and self.hold.asked_at is not None:
            assert self.now - self.hold.asked_at <= 2 * TICK_SECONDS
            assert self.hold.paid is None

    @invariant()
    def what_it_could_settle_with_is_always_paid(self) -> None:
        best = max(self.vouchers, key=lambda voucher: voucher.amount)
        assert best.amount <= AMOUNT_MAX
        assert is_valid_signature(METER_PUBLIC, name(best._replace(hold=HOLD)), best.signature)


HonestPayer.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
HonestDonor.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestHonestPayer = HonestPayer.TestCase
TestHonestDonor = HonestDonor.TestCase


# -- each check is needed -------------------------------------------------------------------------------------------

CHECKED = (
    (metering, "check_tick", HonestPayer),
    (PayersMeter, "_check_new", HonestPayer),
    (PayersMeter, "agree", HonestPayer),
    (metering, "check_voucher", HonestDonor),
    (countersigning, "check_follows_tick", HonestDonor),
    (countersigning, "must_stop", HonestDonor),
)


REDUNDANT = {
    "voucher.hold != hold": "the signature is checked for our hold, whatever the voucher says",
    "voucher.amount > amount_max": "no tick of an honest donor asks for more, and a voucher is for one of its ticks",
}


def find_conditions(tree: ast.AST) -> list[ast.expr]:
    """Each condition under which a function refuses or stops; the operands of an `or` one by one."""
    whole = [node.test for node in ast.walk(tree) if isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise)]
    whole += [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    found: list[ast.expr] = []
    for test in whole:
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
            found += test.values
        elif not isinstance(test, ast.Call):  # a value that is returned
            found.append(test)
    return found


def read_tree(owner: Any, function: str) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(getattr(owner, function))))


class WithoutCondition(ast.NodeTransformer):
    def __init__(self, condition: ast.expr) -> None:
        self.condition = condition

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.Constant(value=False) if node is self.condition else super().visit(node)


def list_faults() -> list[Any]:
    return [
        pytest.param(owner, function, number, machine, id=f"{function}: {ast.unparse(condition)}")
        for owner, function, machine in CHECKED
        for number, condition in enumerate(find_conditions(read_tree(owner, function)))
        if ast.unparse(condition) not in REDUNDANT
    ]


@pytest.mark.parametrize(("owner", "function", "number", "machine"), list_faults())
def test_no_check_can_be_left_out(monkeypatch, owner, function, number, machine):
    tree = read_tree(owner, function)
    changed = WithoutCondition(find_conditions(tree)[number]).visit(tree)
    assert isinstance(changed, ast.Module)
    ast.fix_missing_locations(changed)
    module = metering if owner is metering else countersigning
    names = dict(vars(module))
    exec(compile(changed, "planted", "exec"), names)
    for place in {owner, countersigning} if hasattr(countersigning, function) else {owner}:
        monkeypatch.setattr(place, function, names[function])
    quickly = settings(max_examples=300, stateful_step_count=40, phases=[Phase.generate], print_blob=False)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=quickly)
