"""Processes, read from /proc: which are in a session, and which are alive.

Everything here concerns only what the harness has started: a case's session and, since
the harness is a subreaper, whatever of it was orphaned.
"""

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Iterable, List, NamedTuple, Optional, Set

PR_SET_CHILD_SUBREAPER = 36
# The poll interval.
PAUSE = 0.001


class Process(NamedTuple):
    """A PID and the start time of its process, because PIDs are reused."""

    pid: int
    start: int


class Stat(NamedTuple):
    process: Process
    state: str
    parent: int
    session: int


def become_subreaper() -> None:
    """Makes this process the subreaper of its descendants: orphans become its children.

    So nothing that a case has started can leave its family, not even with setsid.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def stat(pid: int) -> Optional[Stat]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return None
    start = int(fields[19])
    return Stat(Process(pid, start), fields[0], int(fields[1]), int(fields[3]))


def is_alive(process: Process) -> bool:
    """Whether it runs or is stopped. A zombie does not count."""
    now = stat(process.pid)
    return now is not None and now.process == process and now.state not in "ZX"


def of_case(leader: int, others: Set[int]) -> List[Process]:
    """Returns the live processes of the session that `leader` started, and of its descendants.

    `others` are the harness's own children that have nothing to do with the case.
    """
    everything = [stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    stats = {s.process.pid: s for s in everything if s is not None}

    def belongs(pid: int) -> bool:
        while pid in stats and pid not in others:
            if stats[pid].session == leader:
                return True
            if stats[pid].parent == os.getpid():
                return True
            pid = stats[pid].parent
        return False

    return [
        s.process for s in stats.values() if s.state not in "ZX" and belongs(s.process.pid)
    ]


def wait_gone(processes: Iterable[Process], limit: float) -> List[Process]:
    """Waits until all have ended, with a limit. Returns those that have not."""
    left = list(processes)
    deadline = time.monotonic() + limit
    while True:
        left = [process for process in left if is_alive(process)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(PAUSE)


def kill(processes: Iterable[Process]) -> None:
    for process in processes:
        if is_alive(process):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def bury_orphans(others: Set[int]) -> None:
    """Reaps orphans that became children of this process and have ended."""
    for name in os.listdir("/proc"):
        now = stat(int(name)) if name.isdigit() else None
        if now is None or now.parent != os.getpid() or now.state != "Z":
            continue
        if now.process.pid not in others:
            try:
                os.waitpid(now.process.pid, os.WNOHANG)
            except ChildProcessError:
                pass
