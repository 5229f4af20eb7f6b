"""What must come before a record applies, beside the record in the slot before: the funds that it takes, and the
records that it names (spec 6.2)."""

from __future__ import annotations

from protocol.disputes import Dispute
from protocol.records import FREE_LOT, Grant, Hold, Kind, Lot, Reclaim, ReclaimRequest, Record, Settle, Transfer


def get_outgoing(record: Record) -> dict[Lot, int]:
    """Millicredits by lot that the record takes out of its own scope's account; empty when it takes none."""
    body = record.body
    total: dict[Lot, int] = {}
    if isinstance(body, Transfer):
        for _, program, expiry_epoch, amount in body.outputs:
            lot = Lot(program, expiry_epoch)
            total[lot] = total.get(lot, 0) + amount
    elif isinstance(body, Hold):
        for program, expiry_epoch, amount in body.draws:
            lot = Lot(program, expiry_epoch)
            total[lot] = total.get(lot, 0) + amount
    elif isinstance(body, Grant):
        total[FREE_LOT] = sum(output.amount for output in body.outputs)
    return total


def get_named_records(record: Record) -> tuple[tuple[Kind, bytes], ...]:
    """Kind and id of the records that must have applied before this one, beside its predecessor (spec 6.2)."""
    body = record.body
    if isinstance(body, Grant):
        return ((Kind.PROGRAM, body.program), *((Kind.ENROL, output.enrolment) for output in body.outputs))
    if isinstance(body, Hold):
        programs = dict.fromkeys(draw.program for draw in body.draws if draw.program)
        return ((Kind.SPONSOR, body.terms.sponsor), *((Kind.PROGRAM, program) for program in programs))
    if isinstance(body, Settle):
        hold = (Kind.HOLD, record.account)
        return (hold, (Kind.PROGRAM, body.gift_program)) if body.gift_program else (hold,)
    if isinstance(body, (ReclaimRequest, Dispute)):
        return ((Kind.HOLD, body.hold),)
    if isinstance(body, Reclaim):
        return ((Kind.HOLD, record.account), (Kind.RECLAIM_REQUEST, body.request))
    return ()
