"""How far a job has come: its own word, its time, and nothing of it where there is no terminal."""

from __future__ import annotations

import io

import pytest

from node.wallet.job_progress import JobScreen, describe_progress, split_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("text", "shown", "percent"),
    [
        ("a\n::progress 42%\nb\n", "a\nb\n", 42),
        ("::progress 7\n::progress 8.5 %\n", "", 8),
        ("::progress 400%\n", "", 100),
        ("see ::progress 42%\n", "see ::progress 42%\n", None),
        ("::progress soon\n", "::progress soon\n", None),
    ],
)
def test_a_jobs_own_word_is_a_line_of_its_own_and_not_shown_as_log(text, shown, percent):
    assert split_progress(text) == (shown, percent)


def test_the_line_says_time_and_credits_and_the_bar_the_jobs_word():
    assert describe_progress(90, 3600, 1500, 6250, None) == (
        "[--------------------]  0:01:30 of 1:00:00, 1.500 of 6.250 credits"
    )
    assert describe_progress(90, 3600, 1500, 6250, 50).startswith("[##########----------] 50 %  0:01:30")
    assert describe_progress(7200, 3600, 0, 1, None).startswith("[####################]")


def test_progress_is_drawn_on_a_terminal_only_and_control_characters_nowhere(wallet, running, donor):
    running.ticks = [donor.make_tick(running.hold, 30_000).encode()]
    for kind in (Terminal, io.StringIO):
        output, errors = kind(), kind()
        screen = JobScreen(wallet, output, errors)
        screen.show_log(b"one\033[2J\n::progress 30%\n")
        screen.look(running)
        assert output.getvalue() == "one?[2J\n"
        assert ("30 %  0:00:30 of 0:01:40" in errors.getvalue()) == (kind is Terminal)
