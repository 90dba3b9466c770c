"""One case: a program in a session of its own, watched until it ends or has to be ended.

Owns the time limits, what is done to the program from outside, and the clean-up. What it
gives, `Seen`, are facts; whether they are right is for `rows.py`.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import processes

# How long a program may take to end after its last observation.
TO_END = 5.0
# How long leftover processes may take to end.
TO_VANISH = 0.5
# The wait after each Ctrl-C, and how often it is pressed.
AFTER_CTRL_C = 3.0
MOST_CTRL_C = 3
# After the parent was killed: what is still alive then counts as left behind.
AFTER_KILL = 2.0


@dataclass
class Seen:
    """The outcome of one case."""

    facts: Dict[str, Any] = field(default_factory=dict)
    # Whether it ended by itself in time.
    ended: bool = False
    status: Optional[int] = None
    seconds: float = 0.0
    # Processes left behind by a program that ended by itself.
    left_behind: int = 0
    # Processes that survived SIGKILL: never any.
    survivors: int = 0
    stderr: List[str] = field(default_factory=list)


class Running:
    """The running program of a case."""

    def __init__(self, command: List[str], directory: Path) -> None:
        self.output = directory / "stdout"
        self.errors = directory / "stderr"
        # Files, not pipes: a leftover process would keep a pipe open.
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.child = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = self.child.pid

    def facts(self) -> Dict[str, Any]:
        facts: Dict[str, Any] = {}
        for line in self.output.read_text(errors="replace").splitlines(keepends=True):
            # The last line may be incomplete.
            if line.startswith("{") and line.endswith("}\n"):
                facts.update(json.loads(line))
        return facts

    def wait(self, until: Callable[[], bool], limit: float) -> bool:
        """Waits for a condition or the end of the program. Returns whether the condition holds."""
        deadline = time.monotonic() + limit
        while not until():
            if self.has_ended() or time.monotonic() > deadline:
                return until()
            time.sleep(0.005)
        return True

    def has_ended(self) -> bool:
        return self.child.poll() is not None

    def family(self) -> List[processes.Process]:
        return processes.of_case(self.pid, others=set())


def run(command: List[str], limit: float, act: Optional[str] = None) -> Seen:
    """Runs the case. Calls `act` once the program reports that it is ready."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as directory:
        # Resolved, because the programs of a case use relative paths.
        running = Running(command, Path(directory).resolve())
        try:
            return watch(running, limit, act)
        finally:
            clean_up(running)


def watch(running: Running, limit: float, act: Optional[str]) -> Seen:
    start = time.monotonic()
    seen = Seen()
    if act is not None:
        if running.wait(lambda: "ready" in running.facts(), limit):
            seen.facts = ACTS[act](running)
    else:
        running.wait(lambda: "done" in running.facts(), limit)
        running.wait(running.has_ended, TO_END if "done" in running.facts() else 0)
        seen.ended = running.has_ended()
        if seen.ended:
            left = processes.wait_gone(running.family(), TO_VANISH)
            # A process that was ending may have started others.
            seen.left_behind = len(left and running.family())
    seen.seconds = time.monotonic() - start
    seen.facts = {**running.facts(), **seen.facts}
    seen.stderr = running.errors.read_text(errors="replace").splitlines()
    clean_up(running)
    seen.status = running.child.returncode
    seen.survivors = len(running.family())
    return seen


def clean_up(running: Running) -> None:
    """Kills all processes, repeatedly, because a dying one may start others."""
    for _ in range(20):
        family = running.family()
        if not family:
            break
        processes.kill(family)
        processes.wait_gone(family, 1)
    running.child.wait()
    processes.bury_orphans(others={running.pid})


def kill_parent(running: Running) -> Dict[str, Any]:
    """Kills the program alone, and observes when its workers end."""
    family = [process for process in running.family() if process.pid != running.pid]
    os.kill(running.pid, signal.SIGKILL)
    start = time.monotonic()
    running.child.wait()
    left = processes.wait_gone(family, AFTER_KILL)
    elapsed = time.monotonic() - start
    return {
        "children": len(family),
        "live_on": len(left and running.family()),
        "gone_ms": None if left else 1000 * elapsed,
    }


def press_ctrl_c(running: Running) -> Dict[str, Any]:
    """Signals the whole foreground process group, as a terminal does."""
    # Until the program is in its map and the workers are in their tasks.
    time.sleep(0.8)
    for presses in range(1, MOST_CTRL_C + 1):
        start = time.monotonic()
        try:
            os.killpg(running.pid, signal.SIGINT)
        except ProcessLookupError:
            break
        deadline = start + AFTER_CTRL_C
        while time.monotonic() < deadline:
            if running.has_ended() and not running.family():
                elapsed = 1000 * (time.monotonic() - start)
                status = running.child.returncode
                return {"presses": presses, "gone_ms": elapsed, "ended_with": status}
            time.sleep(0.005)
    return {"presses": None, "live_on": len(running.family())}


ACTS: Dict[str, Callable[[Running], Dict[str, Any]]] = {
    "kill-parent": kill_parent,
    "ctrl-c": press_ctrl_c,
}
