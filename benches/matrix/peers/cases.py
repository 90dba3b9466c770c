"""The cases, for any of the Python pools; `procpool.rs` has the same for procpool.

A case prints what it sees as it sees it, one JSON object a line, and judges nothing.
Facts are merged, so a case that hangs half-way has still told the first half.
"""

import json
import os
import signal
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Type

from . import tasks
from .adapter import Adapter, NoSuchFeature

WORKERS = 2
HEALTHY = 8
# The bad task is the third: by then some healthy tasks are done, and most are not.
BAD_POSITION = 2
# A task without a result or an error after this time hangs.
PATIENCE = 4.0
# The same for the task that tests whether the pool continues.
AFTERWARDS = 2.0
# The same for initializers: they are retried with pauses, and a busy machine starts workers slowly.
INITIALIZER_PATIENCE = 8.0
HUGE = 400_000_000
# How many kills may come after the result before the case ends.
MOST_MISSES = 3
LAZY_INPUTS = 300_000
LIMIT = 0.1
LIMIT_TRIES = 5

Outcome = Dict[str, Any]


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def finish(pool: Adapter) -> None:
    """Marks the end of the observations. The end of the process is observed from outside."""
    tell(done=True)
    pool.terminate()


def submit(pool: Adapter, f: Callable, argument: Any, **options: Any) -> Any:
    """Returns a handle, or the error with which the pool refuses the task."""
    try:
        return pool.submit(f, argument, **options)
    except Exception as error:
        return error


def outcome(pool: Adapter, handle: Any, since: float, deadline: float) -> Outcome:
    """Returns `answer`, `error` or nothing, and when."""

    def failed(error: BaseException) -> Outcome:
        elapsed = 1000 * (time.monotonic() - since)
        return {"error": f"{type(error).__name__}: {error}", "ms": elapsed}

    if isinstance(handle, Exception):
        return failed(handle)
    if not pool.ready(handle, max(0.0, deadline - time.monotonic())):
        return {}
    try:
        answer = pool.result(handle)
    except BaseException as error:
        return failed(error)
    return {"answer": answer, "ms": 1000 * (time.monotonic() - since)}


def ask(pool: Adapter, f: Callable, argument: Any, seconds: float) -> Outcome:
    start = time.monotonic()
    return outcome(pool, submit(pool, f, argument), start, start + seconds)


def goes_on(pool: Adapter) -> Dict[str, str]:
    """Returns the outcome of one more task."""
    last = ask(pool, tasks.square, 11, AFTERWARDS)
    if last.get("answer") == 121:
        return {"after": "answer"}
    return {"after": "error" if "error" in last else "nothing"}


def worker_pids(pool: Adapter, workers: int = WORKERS) -> List[int]:
    """Returns the PIDs of the workers, and starts those that are started on demand."""
    pids = set()
    for _ in range(5):
        handles = [pool.submit(tasks.pid, 0) for _ in range(2 * workers)]
        pids = {pool.result(h) for h in handles if pool.ready(h, PATIENCE)}
        if len(pids) == workers:
            break
    return sorted(pids)


def count_healthy(pool: Adapter, handles: List[Any], deadline: float) -> int:
    now = time.monotonic()
    answers = [outcome(pool, handle, now, deadline) for handle in handles]
    return sum(answer.get("answer") == n * n for n, answer in enumerate(answers))


def one_bad(pool_type: Type[Adapter], f: Callable, argument: Any) -> None:
    pool = pool_type(WORKERS)
    before = worker_pids(pool)
    handles, bad, since = [], None, 0.0
    for n in range(HEALTHY):
        if n == BAD_POSITION:
            since = time.monotonic()
            bad = submit(pool, f, argument)
        handles.append(submit(pool, tasks.healthy, n))
    deadline = time.monotonic() + PATIENCE
    bad_outcome = outcome(pool, bad, since, deadline)
    # The result may have no JSON form.
    tell(bad={k: v if k != "answer" else str(v) for k, v in bad_outcome.items()})
    tell(answered=count_healthy(pool, handles, deadline + 1), of=HEALTHY)
    after = goes_on(pool)
    tell(**after)
    if after["after"] == "answer":
        tell(same_workers=worker_pids(pool) == before)
    finish(pool)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


def wait_dead(pids: List[int]) -> None:
    while any(map(is_alive, pids)):
        time.sleep(0.001)


def idle_killed(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    pids = worker_pids(pool)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_dead(pids)
    first = ask(pool, tasks.square, 7, PATIENCE)
    tell(first=first)
    deadline = time.monotonic() + PATIENCE
    handles = [submit(pool, tasks.healthy, n) for n in range(HEALTHY)]
    tell(answered=count_healthy(pool, handles, deadline), of=HEALTHY)
    finish(pool)


def resident(pid: int) -> int:
    """Returns a process's memory in bytes; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def wait_grown(pid: int, seconds: float) -> None:
    """Waits until a process holds a tenth of the huge argument."""
    enough = resident(pid) + HUGE // 10
    deadline = time.monotonic() + seconds
    while resident(pid) < enough and time.monotonic() < deadline:
        time.sleep(0.001)


def killed_while_sent(pool_type: Type[Adapter]) -> None:
    """Kills a worker while it receives an argument. The pool has one, so that it is known which.

    It is killed three times, if the pool lives on: as soon as it has part of the argument,
    and after half and three quarters of the time that an undisturbed call takes.
    """
    pool = pool_type(1)
    worker_pids(pool, 1)
    huge = bytes(HUGE)
    start = time.monotonic()
    handle = pool.submit(tasks.length, huge)
    assert pool.ready(handle, tasks.FOREVER) and pool.result(handle) == HUGE
    undisturbed = time.monotonic() - start
    tell(undisturbed_ms=1000 * undisturbed)
    kills = []
    parts: List[Optional[float]] = [None, 0.5, 0.75]
    misses = 0
    while parts:
        part = parts.pop(0)
        victim = worker_pids(pool, 1)[0]
        killed_at: List[float] = []

        def kill() -> None:
            if part is None:
                wait_grown(victim, 2 * undisturbed)
            else:
                time.sleep(part * undisturbed)
            killed_at.append(time.monotonic())
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        start = time.monotonic()
        handle = submit(pool, tasks.length, huge)
        ended = outcome(pool, handle, start, start + 2 * undisturbed + PATIENCE)
        killer.join()
        if "ms" in ended:
            ended["ms"] -= 1000 * (killed_at[0] - start)
            if ended["ms"] < 0 and "answer" in ended and misses < MOST_MISSES:
                # The call was done before the kill: once more, and earlier.
                misses += 1
                parts.insert(0, 0.7 * (part or 1))
                tell(misses=misses)
                wait_dead([victim])
                continue
        kills.append(ended)
        tell(kills=kills, whole=HUGE)
        after = goes_on(pool)
        tell(**after)
        if after["after"] != "answer":
            break
    deadline = time.monotonic() + AFTERWARDS
    handles = [submit(pool, tasks.healthy, n) for n in range(HEALTHY)]
    tell(answered=count_healthy(pool, handles, deadline), of=HEALTHY)
    finish(pool)


def starts() -> int:
    try:
        return os.stat("starts").st_size
    except OSError:
        return 0


def initializer(pool_type: Type[Adapter]) -> None:
    begin = time.monotonic()
    pool = pool_type(WORKERS, tasks.failing_initializer)
    handles = [submit(pool, tasks.square, n) for n in range(HEALTHY)]
    deadline = begin + INITIALIZER_PATIENCE
    outcomes = [outcome(pool, h, begin, deadline) for h in handles]
    errors = [o["error"] for o in outcomes if "error" in o]
    ms = max((o["ms"] for o in outcomes if "error" in o), default=None)
    tell(errors=len(errors), of=HEALTHY, text=errors[0] if errors else None, ms=ms)
    # Starts that were under way at the last error may still count.
    time.sleep(1)
    tell(starts=starts())
    time.sleep(1)
    tell(starts_a_second_later=starts())
    finish(pool)


def callback(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    worker_pids(pool)
    called: List[int] = []

    def fails(_: Any) -> None:
        raise RuntimeError("the callback went wrong")

    bad = pool.submit(tasks.healthy, 3, callback=fails)
    handles = [
        submit(pool, tasks.healthy, n, callback=lambda _: called.append(1))
        for n in range(HEALTHY)
    ]
    deadline = time.monotonic() + PATIENCE
    tell(bad=outcome(pool, bad, time.monotonic(), deadline))
    tell(answered=count_healthy(pool, handles, deadline), of=HEALTHY)
    # A result may be available a moment before its callback has run.
    while len(called) < HEALTHY and time.monotonic() < deadline:
        time.sleep(0.001)
    tell(called=len(called))
    tell(**goes_on(pool))
    finish(pool)


def terminated(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    worker_pids(pool)
    handles = [pool.submit(tasks.sleep, tasks.FOREVER) for _ in range(HEALTHY)]
    woken: List[float] = []

    def wait(handle: Any) -> None:
        if pool.ready(handle, tasks.FOREVER):
            woken.append(time.monotonic())

    for handle in handles:
        threading.Thread(target=wait, args=(handle,), daemon=True).start()
    time.sleep(0.3)
    start = time.monotonic()
    stopper = threading.Thread(target=pool.terminate, daemon=True)
    stopper.start()
    stopper.join(PATIENCE)
    tell(terminate_returned=not stopper.is_alive())
    while len(woken) < HEALTHY and time.monotonic() < start + PATIENCE:
        time.sleep(0.001)
    ms = 1000 * (max(woken) - start) if woken else None
    tell(woken=len(woken), of=HEALTHY, ms=ms, done=True)


def stopped(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    os.kill(worker_pids(pool)[0], signal.SIGSTOP)
    tell(stopped=True)
    start = time.monotonic()
    pool.shutdown()
    tell(shutdown_ms=1000 * (time.monotonic() - start), done=True)


def grandchild(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    worker_pids(pool)
    task = pool.submit(tasks.start_grandchild, "grandchild")
    while not os.path.exists("grandchild"):
        time.sleep(0.001)
    with open("grandchild") as file:
        pid = int(file.read())
    tell(grandchild_alive=is_alive(pid))
    start = time.monotonic()
    pool.terminate()
    tell(terminate_ms=1000 * (time.monotonic() - start))
    while is_alive(pid) and time.monotonic() < start + 2:
        time.sleep(0.001)
    tell(grandchild_alive=is_alive(pid), ms=1000 * (time.monotonic() - start), done=True)
    del task


def parent_killed(pool_type: Type[Adapter]) -> None:
    """One worker computes and one sleeps. Then this process is killed from outside."""
    pool = pool_type(WORKERS)
    pids = worker_pids(pool)
    handles = [pool.submit(tasks.spin, 0), pool.submit(tasks.sleep, tasks.FOREVER)]
    time.sleep(0.5)
    tell(workers=pids, ready=True)
    pool.ready(handles[0], tasks.FOREVER)


def interrupted(pool_type: Type[Adapter]) -> None:
    """A program that is interrupted from outside."""
    tell(ready=True)
    pool_type.idiom(WORKERS, tasks.sleep, [60.0] * 20)


def lazy(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    worker_pids(pool)
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for n in range(LAZY_INPUTS):
            read += 1
            # For pools that are still reading at the time limit.
            if read % 10_000 == 0:
                tell(read_so_far=read)
            yield n

    results = iter(pool.lazy(tasks.square, numbers()))
    first: Optional[int] = next(results)
    tell(first=first, read=read, of=LAZY_INPUTS)
    time.sleep(0.5)
    tell(read_later=read)
    time.sleep(0.5)
    tell(read_in_the_end=read)
    finish(pool)


def limit(pool_type: Type[Adapter]) -> None:
    pool = pool_type(WORKERS)
    worker_pids(pool)
    times = []
    try:
        for _ in range(LIMIT_TRIES):
            start = time.monotonic()
            handle = pool.limited(tasks.spin, 0, LIMIT)
            ended = outcome(pool, handle, start, start + AFTERWARDS)
            times.append(ended.get("ms"))
            tell(times=times, text=ended.get("error"))
            # Waits for a ready worker: otherwise its start would be measured too.
            worker_pids(pool)
    except NoSuchFeature:
        tell(none=True)
    tell(**goes_on(pool))
    finish(pool)


CASES: Dict[str, Callable[[Type[Adapter]], None]] = {
    "sigkill": lambda pool: one_bad(pool, tasks.kill_self, 0),
    "exit": lambda pool: one_bad(pool, tasks.exit_zero, 0),
    "argument": lambda pool: one_bad(pool, tasks.ignore, tasks.Picky()),
    "result": lambda pool: one_bad(pool, tasks.make_picky, 0),
    "idle-killed": idle_killed,
    "killed-while-sent": killed_while_sent,
    "initializer": initializer,
    "callback": callback,
    "terminated": terminated,
    "stopped": stopped,
    "grandchild": grandchild,
    "parent-killed": parent_killed,
    "interrupted": interrupted,
    "lazy": lazy,
    "limit": limit,
}
