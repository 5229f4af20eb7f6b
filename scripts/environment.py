"""Lets a script be started by any Python: it goes on in the repository's environment, where its packages are.

Nothing but the standard library here: this is imported before anything else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv"


def enter_environment(script: str) -> None:
    """Start `script` again under the environment's Python, unless it runs there or another one was activated."""
    python = ENVIRONMENT / "bin" / "python"
    if Path(sys.executable) != python and python.exists() and "VIRTUAL_ENV" not in os.environ:
        os.environ["VIRTUAL_ENV"] = str(ENVIRONMENT)
        os.execv(python, [str(python), script, *sys.argv[1:]])
