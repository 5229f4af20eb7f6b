"""A node's refusal in words for the person who pays: what is wrong, and what to do.

The rules speak of slots, rounds and references; a person has payments. What a rule says for itself is left as it is.
"""

from __future__ import annotations

from protocol.errors import Reason, Rejected

ANOTHER_NODE = "try again in a moment, or another node with --node"
TEXTS = {
    Reason.WRITER_WRONG: "this account may not sign that, or its key was changed: see `allmende wallet balance`",
    Reason.EPOCH_WRONG: "it was signed for another epoch than the node's clock shows: set the clock right, or run "
    "`allmende wallet unlock` if that epoch is over",
    Reason.SLOT_TAKEN: "another payment of this account became final in its place: see `allmende wallet history`",
    Reason.SLOT_CONTESTED: "another payment was signed for the same place of this account: `allmende wallet unlock` "
    "lets one of them win",
    Reason.PREDECESSOR_WRONG: "it follows a payment that is not this account's last: run `allmende wallet unlock`",
    Reason.PREDECESSOR_MISSING: f"the node lacks an earlier payment of this account: {ANOTHER_NODE}",
    Reason.REFERENCE_MISSING: f"the node lacks something that it names: {ANOTHER_NODE}",
    Reason.ATTEMPT_CLOSED: "another machine of this wallet is unlocking the account, too: try again in a moment",
    Reason.TURN_WRONG: "somebody else unlocks just now: try again in a moment",
    Reason.CHARTER_CHANGING: "the members change their charter just now: try again in a moment",
}
"""What a person reads instead of the rule's own words."""


def describe_refusal(rejection: Rejected) -> str:
    """One line for people."""
    if rejection.reason in TEXTS:
        return TEXTS[rejection.reason]
    reason = rejection.reason.name.lower().replace("_", " ")
    return f"{reason}: {rejection.detail}" if rejection.detail else reason
