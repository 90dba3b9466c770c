"""The tasks of the Python pools.

Nothing here knows of a pool. Paths are relative: a case runs in a directory of its own.
"""

import os
import signal
import subprocess
import time
from typing import Any

HEALTHY_SECONDS = 0.02
FOREVER = 3600.0


class Picky:
    """A value that only the process that created it can decode."""

    def __init__(self) -> None:
        self.home = os.getpid()

    def __reduce__(self) -> Any:
        return rebuild, (self.home,)


def rebuild(home: int) -> Picky:
    if home != os.getpid():
        raise ValueError("would rather not be decoded")
    return Picky()


def healthy(n: int) -> int:
    time.sleep(HEALTHY_SECONDS)
    return n * n


def square(n: int) -> int:
    return n * n


def pid(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def length(data: bytes) -> int:
    return len(data)


def kill_self(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_zero(_: int) -> None:
    os._exit(0)


def ignore(_: Any) -> int:
    return 0


def make_picky(_: int) -> Picky:
    return Picky()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def spin(_: int) -> None:
    while True:
        pass


def start_grandchild(path: str) -> None:
    child = subprocess.Popen(["sleep", str(FOREVER)])
    with open(path + ".new", "w") as file:
        file.write(str(child.pid))
    os.rename(path + ".new", path)
    time.sleep(FOREVER)


def failing_initializer() -> None:
    with open("starts", "ab") as file:
        file.write(b".")
    raise RuntimeError("no such model")
