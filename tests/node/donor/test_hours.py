"""The hours in which a machine is lent, against a slow but plain reading of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.donor.hours import DAYS, compute_seconds_left, is_within_hours, parse_hours
from node.errors import UserError

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(day, clock):
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("entry", "lent", "not_lent"),
    [
        ("mon-fri 18:00-08:00", ["mon 18:00", "tue 07:59", "sat 07:59"], ["mon 07:59", "mon 17:59", "sat 08:00"]),
        ("sat-sun 00:00-24:00", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("sat-sun", ["sat 00:00", "sun 23:59"], ["fri 23:59", "mon 00:00"]),
        ("sun 22:00-06:00", ["sun 22:00", "mon 05:59"], ["mon 06:00", "sun 21:59", "sun 05:00"]),
        ("sat-mon 08:00-10:00", ["sat 09:00", "sun 09:00", "mon 09:00"], ["tue 09:00", "fri 09:00"]),
        ("22:00-06:00", ["wed 23:00", "thu 05:00"], ["wed 21:00", "thu 06:00"]),
        ("Fri 8:00-00:00", ["fri 08:00", "fri 23:59"], ["sat 00:00"]),
    ],
)
def test_hours_mean_what_a_person_means_by_them(entry, lent, not_lent):
    for moment in lent:
        assert is_within_hours([entry], at(*moment.split())), moment
    for moment in not_lent:
        assert not is_within_hours([entry], at(*moment.split())), moment


@pytest.mark.parametrize(
    "entry", ["", "monday", "mon 25:00-26:00", "mon 08:00", "8-9", "mon 08:00-08:00", "24:00-02:00"]
)
def test_other_words_are_refused_with_an_example(entry):
    with pytest.raises(UserError, match="mon-fri 18:00-08:00"):
        parse_hours(entry)


def test_without_hours_a_machine_is_always_lent():
    assert is_within_hours([], MONDAY)
    assert compute_seconds_left([], MONDAY) is None


def test_hours_that_follow_each_other_are_one_time():
    hours = ["mon-fri 18:00-08:00", "sat-sun"]
    assert compute_seconds_left(hours, at("fri", "18:00")) == (6 + 48) * 3600
    assert compute_seconds_left(hours, at("mon", "09:00")) == 0
    assert compute_seconds_left(["mon-sun"], at("wed", "12:00")) is None


CLOCKS = st.integers(0, 23).map(lambda hour: f"{hour:02}:00")
ENTRIES = st.builds(
    lambda first, last, start, end: f"{first}-{last} {start}-{end}",
    st.sampled_from(DAYS),
    st.sampled_from(DAYS),
    CLOCKS,
    CLOCKS,
).filter(lambda entry: entry[-11:-6] != entry[-5:])


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.integers(0, 7 * 24 - 1))
def test_the_time_left_is_what_one_would_count_hour_by_hour(hours, hour):
    moment = MONDAY + timedelta(hours=hour)
    counted = 0
    while counted < 7 * 24 and is_within_hours(hours, moment + timedelta(hours=counted)):
        counted += 1
    left = compute_seconds_left(hours, moment)
    assert left == (None if counted == 7 * 24 else counted * 3600)
