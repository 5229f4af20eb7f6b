"""How reliable donors are, from the ledger alone: how their jobs ended, and a score that anybody can recompute.

Each hold that somebody else paid counts once. It was *kept* when its donor settled it and its payer does not dispute
it, *broken* when its payer disputes it or had to take everything back; settled for nothing, or still open, it says
neither. Old jobs count less: half as much after every six epochs. One payer counts as four fresh jobs at most, and only
if a member vouches for it: to put credits aside and take them back is free, so else one stranger could ruin a donor's
name, or a friend make it, with a thousand holds.

    score = 1000 * (kept + 1) / (kept + broken + 2), rounded down

which is the mean of the Beta distribution with one kept and one broken job before the first: 500 for who is new, or was
long away (spec 12.13). Nobody's opinion is asked and no clock is read; the epoch is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from protocol.ledger import Ledger
from protocol.states import DisputeState, HoldPhase, HoldState

SCORE_MAX = 1000
PRIOR_SCORE = SCORE_MAX // 2
"""Of a donor without any job that counts."""

HALF_LIFE_EPOCHS = 6
JOB_WEIGHT = 1 << 10
"""Of a job that ended in the present epoch; after 66 epochs nothing is left of it."""


PAYER_WEIGHT_MAX = 4 * JOB_WEIGHT
"""What all jobs of one payer count for together, in the proportion of those kept and broken."""


class Reliability(NamedTuple):
    """What the ledger tells of one donor: counts of holds paid to it by others, and millicredits."""

    settled: int = 0
    settled_millicredits: int = 0
    """Paid by the settled ones."""
    returned: int = 0
    """Of the settled ones, those that took nothing."""
    reclaimed: int = 0
    """Never settled; the payer took everything back."""
    reclaimed_millicredits: int = 0
    disputed_by_payer: int = 0
    disputed_by_donor: int = 0
    open: int = 0
    first_epoch: int = 0
    """Of the first hold; 0 without one."""
    last_epoch: int = 0
    """In which the last hold ended; 0 while none has."""
    kept_weight: int = 0
    """Sum of the weights of kept jobs at the epoch for which this was computed, each payer's bounded; JOB_WEIGHT is a
    fresh job's."""
    broken_weight: int = 0

    @property
    def score(self) -> int:
        """0 to 1000."""
        return compute_score(self.kept_weight, self.broken_weight)


def compute_score(kept_weight: int, broken_weight: int) -> int:
    """Never less with more kept, never more with more broken; always above 0 and below SCORE_MAX."""
    assert min(kept_weight, broken_weight) >= 0
    score = SCORE_MAX * (kept_weight + JOB_WEIGHT) // (kept_weight + broken_weight + 2 * JOB_WEIGHT)
    return max(1, min(score, SCORE_MAX - 1))


def compute_job_weight(age_epochs: int) -> int:
    """How much a job that ended so many epochs ago counts; what was signed for the next epoch is new."""
    return JOB_WEIGHT >> max(0, age_epochs) // HALF_LIFE_EPOCHS


def compute_reliability(ledger: Ledger, epoch: int) -> dict[bytes, Reliability]:
    """Account -> what the ledger tells of it, for whomever a member vouched for as a donor or a hold names as payee."""
    donors = {sponsor.donor for sponsor in ledger.sponsors.values()}
    persons = {enrolment.account for enrolment in ledger.enrolments.values()}
    vouched_for = donors | persons | ledger.charter.member_accounts.keys()
    found = {donor: Reliability() for donor in donors}
    weights: dict[tuple[bytes, bytes], tuple[int, int]] = {}
    for name, hold in ledger.holds.items():
        before = found.setdefault(hold.payee, Reliability())
        if hold.payer == hold.payee:  # who pays itself proves nothing
            continue
        disputes = ledger.disputes.get(name, {}).values()
        found[hold.payee] = _count_hold(before, hold, disputes)
        if hold.payer in vouched_for:
            kept, broken = weights.get((hold.payee, hold.payer), (0, 0))
            more_kept, more_broken = _weigh_hold(hold, disputes, epoch)
            weights[hold.payee, hold.payer] = kept + more_kept, broken + more_broken
    for (payee, _), jobs in weights.items():
        kept, broken = _bound_weights(*jobs)
        before = found[payee]
        found[payee] = before._replace(
            kept_weight=before.kept_weight + kept, broken_weight=before.broken_weight + broken
        )
    return found


def _bound_weights(kept: int, broken: int) -> tuple[int, int]:
    """One payer's (kept, broken), in the same proportion. More of one never makes it count less."""
    total = max(kept + broken, PAYER_WEIGHT_MAX)
    return kept * PAYER_WEIGHT_MAX // total, broken * PAYER_WEIGHT_MAX // total


def _find_accusation(hold: HoldState, disputes: Iterable[DisputeState]) -> int:
    """The epoch of the payer's first dispute; 0 without one."""
    return min((dispute.epoch for dispute in disputes if dispute.account == hold.payer), default=0)


def _weigh_hold(hold: HoldState, disputes: Iterable[DisputeState], epoch: int) -> tuple[int, int]:
    """What one job counts for, as a kept one and as a broken one."""
    accused_epoch = _find_accusation(hold, disputes)
    weight = compute_job_weight(epoch - (hold.end_epoch or accused_epoch))
    if hold.phase is HoldPhase.RECLAIMED or accused_epoch:
        return 0, weight
    return (weight if hold.phase is HoldPhase.SETTLED and hold.paid > 0 else 0), 0


def _count_hold(before: Reliability, hold: HoldState, disputes: Iterable[DisputeState]) -> Reliability:
    is_settled = hold.phase is HoldPhase.SETTLED
    is_reclaimed = hold.phase is HoldPhase.RECLAIMED
    return before._replace(
        settled=before.settled + is_settled,
        settled_millicredits=before.settled_millicredits + hold.paid,
        returned=before.returned + (is_settled and not hold.paid),
        reclaimed=before.reclaimed + is_reclaimed,
        reclaimed_millicredits=before.reclaimed_millicredits + (hold.amount if is_reclaimed else 0),
        disputed_by_payer=before.disputed_by_payer + bool(_find_accusation(hold, disputes)),
        disputed_by_donor=before.disputed_by_donor + any(dispute.account == hold.payee for dispute in disputes),
        open=before.open + hold.is_open,
        first_epoch=min(before.first_epoch or hold.epoch, hold.epoch),
        last_epoch=max(before.last_epoch, hold.end_epoch),
    )
