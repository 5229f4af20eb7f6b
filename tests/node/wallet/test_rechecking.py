"""Donors checked by other donors: the same inputs elsewhere, and jobs whose result is known before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from node.errors import UserError
from node.wallet.canaries import Verdict, judge, write_canary
from node.wallet.job_spec import read_job_file
from node.wallet.jobs import ANY_MACHINE, open_job, plan_job
from node.wallet.rechecking import plan_recheck
from node.wallet.running import Watcher, run_to_end
from protocol.conversation import decode_script
from protocol.metering import JobState

ANSWER = {"answer": b"42\n", "log.txt": b"done\n"}


@pytest.fixture
def finished(wallet, stage, write_job):
    """A job that a donor called `first` has done."""
    stage.add("first", (JobState.DONE, ANSWER, {}), weight=500)
    job = open_job(wallet, plan_job(wallet, write_job()), lambda _: stage)
    run_to_end(wallet, wallet.unlock(None), job, lambda _: stage, Watcher())
    return job


def test_two_donors_that_compute_the_same_are_said_to_be_equal(stage, finished, allmende):
    second = stage.add("second", (JobState.DONE, ANSWER, {}))
    status, found, _ = allmende("job", "recheck", finished.job_id, "-y")
    assert (status, found["is_equal"], found["same"]) == (0, True, ["answer", "log.txt"])
    assert second.inputs == stage.players[0].inputs
    _, shown, _ = allmende("job", "show", found["recheck"])
    assert (shown["recheck_of"], shown["machine"]) == (finished.job_id, "second")


def test_files_that_differ_or_are_missing_are_named_and_the_command_fails(stage, finished, allmende):
    stage.add("second", (JobState.DONE, {"answer": b"41\n", "more": b""}, {}))
    status, found, _ = allmende("job", "recheck", finished.job_id, "-y")
    assert status == 1
    assert (found["is_equal"], found["same"], found["different"]) == (False, [], ["answer"])
    assert (found["only_first"], found["only_second"]) == (["log.txt"], ["more"])


def test_a_second_run_that_does_not_finish_says_nothing_about_the_first(stage, finished, allmende):
    stage.add("second", (JobState.DONOR_FAILED, {}, {}))
    status, found, _ = allmende("job", "recheck", finished.job_id, "-y")
    assert (status, found["is_equal"]) == (1, None)


def test_a_recheck_needs_another_donor_and_the_files_as_they_were(stage, wallet, finished, tmp_path):
    with pytest.raises(UserError, match="no other donor"):
        plan_recheck(wallet, finished, ANY_MACHINE)
    stage.add("second", (JobState.DONE, ANSWER, {}))
    (tmp_path / "work" / "input.txt").write_text("eight\n")
    with pytest.raises(UserError, match="has changed since"):
        plan_recheck(wallet, finished, ANY_MACHINE)


def test_a_recheck_can_be_tried_without_paying(stage, finished, allmende):
    stage.add("second", (JobState.DONE, ANSWER, {}))
    status, found, _ = allmende("job", "recheck", finished.job_id, "--dry-run")
    assert (status, found["dry_run"], found["machine"]) == (0, True, "second")
    assert len(stage.conversations) == 1


# -- canaries -------------------------------------------------------------------------------------------------------


def compute_honestly(tmp_path):
    """What a donor does that really runs its jobs."""

    def act(files):
        folder = tmp_path / f"sandbox-{len(list(tmp_path.iterdir()))}"
        (folder / "out").mkdir(parents=True)
        for path, content in files.items():
            if path.startswith("work/"):
                (folder / path.removeprefix("work/")).write_bytes(content)
        program = decode_script(files["job"]).run.split()
        subprocess.run([sys.executable, *program[1:]], cwd=folder, check=True)
        return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}

    return act


def test_canaries_pass_honest_donors_and_find_those_that_invent_or_do_nothing(stage, allmende, tmp_path):
    honest = compute_honestly(tmp_path)
    stage.add("honest", (JobState.DONE, honest, {}))
    stage.add("liar", (JobState.DONE, lambda files: dict.fromkeys(honest(files), b"0" * 64), {}))
    stage.add("lazy", (JobState.DONE, {}, {}))
    stage.add("broken", (JobState.DONOR_FAILED, {}, {}))
    stage.add("busy", "refuse")
    status, found, told = allmende("job", "canary", "--all", "-y")
    assert status == 1, told
    assert {one["machine"]: one["verdict"] for one in found["canaries"]} == {
        "honest": "passed",
        "liar": "wrong",
        "lazy": "wrong",
        "broken": "failed",
        "busy": "failed",
    }


def test_one_donor_can_be_asked_and_a_pass_is_exit_status_zero(stage, allmende, tmp_path):
    stage.add("liar", (JobState.DONE, {"answer": b""}, {}), weight=10)
    stage.add("honest", (JobState.DONE, compute_honestly(tmp_path), {}))
    status, found, _ = allmende("job", "canary", "--donor", "honest", "-y")
    assert (status, [one["verdict"] for one in found["canaries"]]) == (0, ["passed"])
    status, found, _ = allmende("job", "canary", "--all", "--dry-run")
    assert (status, found["machines"]) == (0, ["liar", "honest"])


def test_an_answer_that_was_right_once_is_wrong_for_every_other_canary(stage, wallet, tmp_path):
    honest, seen = compute_honestly(tmp_path), []

    def replay(files):
        seen.append(honest(files))
        return {name: next(iter(seen[0].values())) for name in seen[-1]}

    stage.add("replayer", (JobState.DONE, replay, {}))
    verdicts = []
    for number in range(2):
        place = tmp_path / f"canary-{number}"
        place.mkdir()
        canary = write_canary(place, bytes([number]) * 32)
        job = open_job(wallet, plan_job(wallet, read_job_file(canary.path)), lambda _: stage)
        run_to_end(wallet, wallet.unlock(None), job, lambda _: stage, Watcher())
        verdicts.append(judge(wallet, job, canary))
    assert verdicts == [Verdict.PASSED, Verdict.WRONG]


def test_no_two_canaries_share_a_word_that_would_tell_them_apart_from_other_jobs(tmp_path):
    texts = []
    for number in range(2):
        place = tmp_path / str(number)
        place.mkdir()
        write_canary(place, bytes([number]) * 32)
        texts.append({path.name: path.read_text() for path in place.iterdir()})
    names = [set(text) - {"job.yaml"} for text in texts]
    assert not names[0] & names[1]
    for text in texts:
        assert "canary" not in "".join([*text, *text.values()]).lower()
        assert "allmende" not in "".join(text.values()).lower()
