"""The lock of a run folder: one process at a time, which says who it is."""

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nobody is seen at work
    fcntl = None  # type: ignore[assignment]

from sanakit.errors import SanakitError


def take_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of the file at `path`. Raises SK0131 where another process does."""
    if fcntl is None:
        return None
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                return handle  # else it was removed by the process that held it before
        except BlockingIOError as error:
            holder = os.pread(handle, 4096, 0).decode(errors="replace")
            os.close(handle)
            raise SanakitError("SK0131", f"{path.parent} is in use{_told(holder)}") from error
        except OSError:
            os.close(handle)
            return None
        os.close(handle)


def own_name() -> dict[str, Any]:
    """This process, for others to read: its number, machine, user and the time."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or (str(os.getuid()) if hasattr(os, "getuid") else "")
    return {"process": os.getpid(), "host": platform.node(), "user": user, "since": now}


def _told(holder: str) -> str:
    try:
        who = json.loads(holder)
        return f" by process {who['process']} of {who['user']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return ""
