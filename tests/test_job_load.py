"""A small load of jobs, with kills: the same script that runs a thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from node.donor.executors.sandbox import find_missing_tools

ROOT = Path(__file__).resolve().parents[1]
SECONDS_MAX = 600


@pytest.mark.slow
@pytest.mark.skipif(bool(find_missing_tools()), reason="the sandbox's programs are not installed")
def test_the_books_agree_after_a_load_of_jobs_with_kills(tmp_path):
    words = ("--jobs", "12", "--wallets", "3", "--kill-seconds", "8", "--without-slurm", "--folder", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "scripts.job_loads.run", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["problems"] == [], done.stderr[-2000:]
    assert (done.returncode, result["jobs"]) == (0, 12)
    assert result["paid_millicredits"] == sum(result["earned_millicredits"].values()) > 0
    assert sum(result["kills"].values()) >= 1
