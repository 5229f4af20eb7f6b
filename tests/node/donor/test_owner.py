"""The owner's rules: the machine is back at once, is lent again only after a while, and no job waits for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from node.donor.owner import Decision, Moment, Readings, Verdict, decide, judge
from node.donor.owner_load import OwnerWatch, read_busy_us
from node.donor.settings import Settings

SETTINGS = Settings("http://node", "bench", 4, 10**9, 10**9, ["batch"], [], load_max=0.2, away_seconds=60)
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)
QUIET = Readings(0.0)
AT_WORK = st.sampled_from([Readings(0.3), Readings(0.0, (4711,)), Readings(None, (4711,))])
AWAY = st.sampled_from([QUIET, Readings(), Readings(0.2)])
READINGS = st.one_of(AT_WORK, AWAY)
LENT = Verdict(True)


def change(**fields):
    return msgspec.structs.replace(SETTINGS, **fields)


def at(seconds):
    return Moment(seconds * 1000, MONDAY + timedelta(seconds=seconds))


def follow(readings, settings=SETTINGS, wish="run"):
    """The verdict of each second."""
    verdicts, before = [], None
    for second, reading in enumerate(readings):
        before = judge(settings, wish, at(second), reading, before)
        verdicts.append(before)
    return verdicts


@given(st.lists(READINGS, min_size=1, max_size=200))
def test_the_machine_is_lent_exactly_when_the_owner_was_away_long_enough(readings):
    for second, verdict in enumerate(follow(readings)):
        busy = [
            before
            for before, reading in enumerate(readings[: second + 1])
            if reading.gpu_processes or (reading.load or 0) > SETTINGS.load_max
        ]
        assert verdict.is_lent == (not busy or second - busy[-1] >= SETTINGS.away_seconds)
        assert bool(verdict.reason) != verdict.is_lent


@given(st.lists(READINGS, max_size=50), READINGS)
def test_a_pause_gives_the_machine_back_at_once_and_ends_at_once(readings, reading):
    before = (follow(readings) or [None])[-1]
    verdict = judge(SETTINGS, "pause", at(len(readings)), reading, before)
    assert not verdict.is_lent
    after = judge(SETTINGS, "run", at(len(readings)), QUIET, judge(SETTINGS, "pause", at(0), QUIET, None))
    assert after.is_lent


def test_finishing_ends_no_job():
    assert judge(SETTINGS, "finish", at(0), QUIET, None).is_lent


def test_hours_open_and_close_on_time():
    settings = change(hours=["mon 00:00-01:00"])
    assert judge(settings, "run", at(3599), QUIET, None).is_lent
    closed = judge(settings, "run", at(3600), QUIET, LENT)
    assert (closed.is_lent, closed.reason) == (False, "it is not lent at this time of the week")
    assert judge(settings, "run", at(7 * 86400), QUIET, closed).is_lent


def test_what_the_owner_does_not_ask_for_is_not_looked_at():
    settings = change(load_max=0.0, is_idle_gpu_needed=False)
    assert judge(settings, "run", at(0), Readings(1.0, (4711,)), None).is_lent


@given(st.booleans(), st.one_of(st.none(), st.integers(0, 10**7)), st.integers(0, 3600))
def test_a_running_job_never_outlasts_a_verdict_against_it(is_lent, suspended_ms, seconds_max):
    decision = decide(change(suspend_seconds_max=seconds_max), Verdict(is_lent, "" if is_lent else "x"), suspended_ms)
    if suspended_ms is None:
        against = Decision.SUSPEND if seconds_max else Decision.EVICT
        assert decision is (Decision.KEEP if is_lent else against)
    else:
        against = Decision.EVICT if suspended_ms >= seconds_max * 1000 else Decision.KEEP
        assert decision is (Decision.RESUME if is_lent else against)


@given(st.lists(READINGS, min_size=1, max_size=150), st.integers(0, 30))
def test_followed_once_a_second_a_job_waits_no_longer_than_allowed_and_starts_only_on_a_lent_machine(
    readings, seconds_max
):
    settings = change(suspend_seconds_max=seconds_max, away_seconds=5)
    suspended_since: int | None = None
    for second, verdict in enumerate(follow(readings, settings)):
        suspended_ms = None if suspended_since is None else (second - suspended_since) * 1000
        match decide(settings, verdict, suspended_ms):
            case Decision.SUSPEND:
                suspended_since = second
            case Decision.RESUME:
                suspended_since = None
            case Decision.EVICT:
                assert seconds_max == 0 or suspended_since is not None
                return
            case Decision.KEEP:
                pass
        assert (suspended_since is None) == verdict.is_lent
        assert suspended_since is None or second - suspended_since < seconds_max


# -- reading the machine ------------------------------------------------------------------------------------------


def test_busy_time_leaves_out_idling_waiting_and_guests(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9999 9999 4 5 9999 9999 9999\ncpu0 1 1\n")
    assert read_busy_us(stat) == 1_590_000
    stat.write_text("nonsense")
    assert read_busy_us(stat) is None
    assert read_busy_us(tmp_path / "none") is None


class Clock:
    """A machine of two cores whose owner and jobs use what the test says."""

    def __init__(self, monkeypatch, tmp_path):
        self.seconds, self.busy_seconds, self.path = 0.0, 0.0, tmp_path / "stat"
        monkeypatch.setattr("node.donor.owner_load.time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("node.donor.owner_load.time.process_time", lambda: 0.0)
        monkeypatch.setattr("node.donor.owner_load.os.cpu_count", lambda: 2)
        self.watch = OwnerWatch(proc_stat=self.path)

    def pass_second(self, owner, jobs):
        """`owner` is how many cores it uses; `jobs` holds what each job has used by now."""
        self.seconds += 1
        self.busy_seconds += owner
        self.path.write_text(f"cpu {round(self.busy_seconds * 100)} 0 0 0 0 0 0\n")
        return self.watch.read(jobs).load


def test_what_jobs_use_is_not_the_owners(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path)
    assert clock.pass_second(0, {}) is None
    for second in range(1, 20):
        assert clock.pass_second(1.5, {"a": round(second * 1.5e6)}) == 0
    # The job's last words, then nobody but the owner: seen within the window, so well within ten seconds.
    clock.pass_second(1.5, {"a": round(20 * 1.5e6)})
    seen = [clock.pass_second(1.0, {}) for _ in range(6)]
    assert seen[0] == 0.1
    assert seen[-1] == 0.5


def test_a_job_without_a_counter_makes_the_load_unknown_until_it_is_gone(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path)
    clock.pass_second(0, {})
    assert clock.pass_second(1, {"a": None}) is None
    assert [clock.pass_second(1, {}) for _ in range(8)][-1] == 0.5


def test_the_gpus_are_asked_for_processes_of_others(tmp_path):
    class Gpus:
        def list_foreign_processes(self):
            return [4711]

    assert OwnerWatch(Gpus(), tmp_path / "none").read({}) == Readings(None, (4711,))
