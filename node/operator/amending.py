"""How a charter is changed: one member drafts the next version, every member's people read it, and approve it or not.

    charter in force + changes + fresh vote keys > draft > amendment record of one member > votes > adoption by all

The draft holds the canonical bytes that will be signed, and what they change in words. Both are compared whenever it is
read, so nobody can be shown one change and approve another (spec 9.5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from node.config import check_p2p_address
from node.errors import UserError
from node.operator.founding import FounderCard, compute_acceptable_use_hash, name_federation
from protocol.charter import Charter, Charters, Member, Rate, decode_charter
from protocol.credits import format_credits
from protocol.errors import InvalidInput


class AmendmentDraft(msgspec.Struct, frozen=True):
    """The file that members pass round before one of them proposes it."""

    federation: str
    version: int
    encoded: bytes
    changes: list[str]
    """What it changes, in words; computed from the canonical bytes."""
    acceptable_use: str = ""
    """The text of a new use policy."""


class Changes(NamedTuple):
    """What the drafter wants. Members are named as in the charter in force."""

    added: Sequence[tuple[FounderCard, int]] = ()
    """New members and their weights."""
    removed: Sequence[str] = ()
    weights: Mapping[str, int] = {}
    caps: Mapping[str, int] = {}
    """Millicredits for each epoch from the present one on; also for new members."""
    names: Mapping[str, str] = {}
    member_keys: Mapping[str, bytes] = {}
    rates: tuple[Rate, ...] | None = None
    acceptable_use: str | None = None


def compose_amendment(
    charters: Charters, changes: Changes, vote_keys: Mapping[int, bytes], epoch: int
) -> AmendmentDraft:
    """The next version of the charter, with the vote keys that members told; who told none keeps its own.

    `epoch` is the present one: a new member may issue from then on. Raises: UserError.
    """
    before = charters[max(charters)]
    members = _change_members(before, changes, vote_keys, epoch)
    number = max(it for charter in charters.values() for it in charter.members)
    for card, weight in changes.added:
        number += 1
        check_p2p_address(card.p2p)
        members[number] = _make_member(before, number, card, weight, changes.caps.get(card.name), epoch)
    policy = before.policy
    if changes.acceptable_use is not None:
        policy = policy._replace(acceptable_use=compute_acceptable_use_hash(changes.acceptable_use))
    fields = before.fields._replace(
        version=before.version + 1,
        prev=before.id,
        members=tuple(members.values()),
        rates=before.fields.rates if changes.rates is None else changes.rates,
        policy=policy,
    )
    try:
        after = decode_charter(Charter(fields, before.federation).encoded, before.federation)
        before.check_successor(after)
    except InvalidInput as error:
        raise UserError(f"no valid charter comes of this: {error}") from None
    changed = describe_changes(before, after)
    if not changed:
        raise UserError("nothing would change: name at least one change, such as --add or --weight")
    return AmendmentDraft(name_federation(before), after.version, after.encoded, changed, changes.acceptable_use or "")


def _change_members(before: Charter, changes: Changes, vote_keys: Mapping[int, bytes], epoch: int) -> dict[int, Member]:
    """The members that stay, by number. Raises: UserError for a name that is nobody's."""
    known = {member.name for member in before.fields.members}
    joining = {card.name for card, _ in changes.added}
    for names in (changes.removed, changes.weights, changes.names, changes.member_keys, changes.caps.keys() - joining):
        for name in names:
            if name not in known:
                raise UserError(f"{name!r} is no member; the members are {', '.join(sorted(known))}")
    members = {}
    for member in before.fields.members:
        if member.name in changes.removed:
            continue
        cap = changes.caps.get(member.name)
        members[member.number] = member._replace(
            name=changes.names.get(member.name, member.name),
            member_key=changes.member_keys.get(member.name, member.member_key),
            vote_key=vote_keys.get(member.number, member.vote_key),
            weight=changes.weights.get(member.name, member.weight),
            issuance_caps=member.issuance_caps if cap is None else _raise_caps(member.issuance_caps, cap, epoch),
        )
    return members


def _raise_caps(caps: tuple[int, ...], cap: int, epoch: int) -> tuple[int, ...]:
    return (*caps[: epoch - 1], *(cap for _ in caps[epoch - 1 :]))


def _make_member(before: Charter, number: int, card: FounderCard, weight: int, cap: int | None, epoch: int) -> Member:
    """A new member: from the present epoch on it may issue what was agreed, else no more than anybody else may."""
    epochs = max(len(member.issuance_caps) for member in before.fields.members)
    padded = [(*member.issuance_caps, *[0] * (epochs - len(member.issuance_caps))) for member in before.fields.members]
    lowest = tuple(min(column) for column in zip(*padded, strict=True))
    caps = tuple(0 if place < epoch - 1 else lowest[place] if cap is None else cap for place in range(epochs))
    ceiling = min(member.backing_ceiling for member in before.fields.members)
    return Member(number, card.name, card.member_key, card.vote_key, card.peer_key, weight, caps, ceiling)


def open_amendment(draft: AmendmentDraft, charters: Charters, where: Path) -> Charter:
    """The charter that a draft holds, if it may follow the newest one and says what it changes. Raises: UserError."""
    before = charters[max(charters)]
    if draft.federation != name_federation(before):
        raise UserError(f"{where} is for the federation {draft.federation}, and this one is {name_federation(before)}")
    try:
        after = decode_charter(draft.encoded, before.federation)
        before.check_successor(after)
    except InvalidInput as error:
        raise UserError(f"{where} holds no charter that may follow version {before.version}: {error}") from None
    policy = after.policy.acceptable_use
    is_text_meant = not draft.acceptable_use or compute_acceptable_use_hash(draft.acceptable_use) == policy
    if draft.version != after.version or draft.changes != describe_changes(before, after) or not is_text_meant:
        raise UserError(f"what {where} shows is not what would be signed: ask the drafter for a fresh draft")
    return after


# -- in words ---------------------------------------------------------------------------------------------------


def describe_changes(before: Charter, after: Charter) -> list[str]:
    """What the later charter says otherwise, one line for each change."""
    lines: list[str] = []
    for number in sorted(before.members.keys() | after.members.keys()):
        lines += _describe_member_change(before.members.get(number), after.members.get(number))
    if before.quorum != after.quorum or before.total_weight != after.total_weight:
        lines.append(
            f"The quorum becomes weight {after.quorum} of {after.total_weight}; it was {before.quorum} of "
            f"{before.total_weight}."
        )
    lines += _describe_rates(before, after)
    for field in ("epoch_grace_seconds", "is_dev"):
        old, new = getattr(before.fields, field), getattr(after.fields, field)
        if old != new:
            lines.append(f"{_say(field)} becomes {new}; it was {old}.")
    for field in before.policy._fields:
        old, new = getattr(before.policy, field), getattr(after.policy, field)
        if old != new:
            shown = (new.hex(), old.hex()) if isinstance(new, bytes) else (new, old)
            lines.append(f"{_say(field)} becomes {shown[0]}; it was {shown[1]}.")
    return lines


def _say(field: str) -> str:
    return field.removeprefix("is_").replace("_", " ").capitalize()


def _describe_member_change(before: Member | None, after: Member | None) -> Iterator[str]:
    if after is None:
        assert before is not None
        yield f"{before.name} (member {before.number}) leaves the federation."
        return
    if before is None:
        cap = format_credits(max(after.issuance_caps, default=0))
        yield (
            f"{after.name} joins as member {after.number} with weight {after.weight}; it may grant up to {cap} credits "
            f"an epoch. Its key: {after.member_key.hex()[:16]}."
        )
        return
    who = before.name
    if before.name != after.name:
        yield f"{who} is called {after.name} from now on."
    if before.weight != after.weight:
        yield f"The weight of {who} becomes {after.weight}; it was {before.weight}."
    if before.issuance_caps != after.issuance_caps:
        old, new = (format_credits(max(caps, default=0)) for caps in (before.issuance_caps, after.issuance_caps))
        epochs = len(after.issuance_caps)
        yield f"{who} may grant up to {new} credits an epoch, in epochs up to {epochs}; it was {old}."
    if before.backing_ceiling != after.backing_ceiling:
        old, new = format_credits(before.backing_ceiling), format_credits(after.backing_ceiling)
        yield f"The backing ceiling of {who} becomes {new} credits an epoch; it was {old}."
    purposes: tuple[tuple[str, Callable[[Member], bytes]], ...] = (
        ("member", lambda member: member.member_key),
        ("vote", lambda member: member.vote_key),
        ("peer", lambda member: member.peer_key),
    )
    for purpose, get in purposes:
        if get(before) != get(after):
            yield f"The {purpose} key of {who} becomes {get(after).hex()[:16]}; it was {get(before).hex()[:16]}."


def _describe_rates(before: Charter, after: Charter) -> Iterator[str]:
    old = {rate.device: rate.weight for rate in before.fields.rates}
    new = {rate.device: rate.weight for rate in after.fields.rates}
    for device in sorted(old.keys() | new.keys()):
        if old.get(device) != new.get(device):
            said = f"becomes {new[device]}" if device in new else "is no longer named"
            was = f"it was {old[device]}" if device in old else "it is new"
            yield f"The rate of {device} {said}; {was}."
