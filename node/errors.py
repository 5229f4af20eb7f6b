"""What a person is told when something can't be done: one line, what is wrong and what to do next."""

from __future__ import annotations

from protocol.errors import Reason, Rejected


class UserError(Exception):
    """A failure that the person at the keyboard can mend. The text is one line; it is printed as `Error: ...`."""

    exit_status = 1


class Unreachable(UserError):
    """A node does not answer. Nothing was lost: the same command may be run again."""

    exit_status = 3


class Refused(UserError):
    """A rule of the federation forbids what was asked."""

    exit_status = 4


class RecordRefused(Refused, Rejected):
    """A rule forbids the record: a `Rejected` that a person may see. `reason` names the rule."""

    def __init__(self, reason: Reason, detail: str) -> None:
        Rejected.__init__(self, reason, detail)
        self.args = (detail,)


class Interrupted(UserError):
    """The person pressed Ctrl-C when something was under way already: the text says what, and how to go on."""

    exit_status = 130
