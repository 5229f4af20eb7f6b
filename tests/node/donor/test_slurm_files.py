"""A job's folder on a cluster's file system, after a job that did its worst to it. Whatever lies there, the agent
counts it, takes the results over and removes the rest: else the job would cost its payer nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node.donor.executors import slurm_files
from node.donor.executors.slurm_files import JobFolder, TooMany
from tests.node.donor.jailed_jobs import fork_agent


def make_folder(path: Path) -> JobFolder:
    folder = JobFolder(path)
    path.mkdir()
    folder.stage({}, None, 1 << 20, None)
    (path / "printed").write_bytes(b"bye\n")
    return folder


def go_down(place: Path, folders: int) -> None:
    """Folders within folders, each made in the one before: no path is long enough to name the last."""
    here = os.open(place, os.O_RDONLY)
    for _ in range(folders):
        os.mkdir("d", dir_fd=here)
        above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)


def test_folders_within_folders_are_no_place_to_hide(tmp_path):
    folder = make_folder(tmp_path / "job")
    go_down(folder.work / "out", 3000)
    with pytest.raises(TooMany):
        folder.measure_work_bytes()
    assert folder.collect(1 << 20)[1] == 1
    folder.remove()
    assert not folder.path.exists()


def test_nothing_hides_behind_a_multitude_of_empty_files(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_files, "_ENTRIES_MAX", 100)
    folder = make_folder(tmp_path / "job")
    for number in range(98):
        (folder.work / f"{number}").touch()
    assert folder.measure_work_bytes() < 100_000
    (folder.work / "one too many").touch()
    (folder.work / "zeros").write_bytes(bytes(1 << 20))
    with pytest.raises(TooMany):
        folder.measure_work_bytes()


def test_a_checkpoint_in_too_many_parts_is_none(tmp_path):
    folder = make_folder(tmp_path / "job")
    go_down(folder.work, 1)
    os.rename(folder.work / "d", folder.work / "checkpoint")
    go_down(folder.work / "checkpoint", 200)
    copy = tmp_path / "copy"
    copy.mkdir()
    assert not folder.copy_checkpoint(copy, 1 << 20)


def close_a_folder(folder: JobFolder) -> None:
    (folder.work / "shut").mkdir()
    (folder.work / "shut" / "zeros").write_bytes(bytes(1 << 20))
    (folder.work / "shut").chmod(0o400)


@pytest.mark.parametrize(
    "close",
    [close_a_folder, lambda folder: (folder.work / "out").chmod(0), lambda folder: folder.work.chmod(0)],
    ids=["a folder", "the results", "everything"],
)
def test_an_agent_without_rights_of_its_own_copes_with_what_a_job_has_closed(home, close: Callable[[JobFolder], None]):
    def play() -> None:
        folder = make_folder(home / "job")
        close(folder)
        with pytest.raises(TooMany):
            folder.measure_work_bytes()
        assert folder.collect(1 << 20)[2].read_bytes() == b"bye\n"
        folder.remove()
        assert not folder.path.exists()

    assert os.waitpid(fork_agent("ordinary", home, play), 0)[1] == 0
