"""The rows of the table: their names, their rules, and the text of their cells.

A row gets the same facts from every pool and judges them by the same rule; nothing here
knows which pool it looks at.
"""

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

from case import Seen

# An immediate error takes milliseconds. The rest is for a busy machine.
AT_ONCE_MS = 1000
# A failing initializer is retried with pauses, and the error comes after them.
INITIALIZER_MS = 8000
# More starts than this for two workers are a storm.
MOST_STARTS = 40
# The limit of an orderly end with a worker that does not reply.
BOUNDED_MS = 5000
GRANDCHILD_MS = 1000
PARENT_KILLED_MS = 100
# Of 300,000.
MOST_READ = 10_000
LIMIT_MS = 100
LIMIT_SLACK_MS = 10


@dataclass
class Verdict:
    text: str
    right: bool


@dataclass
class Row:
    case: str
    title: str
    # The rule in words.
    rule: str
    judge: Callable[[Seen], Verdict]
    # The action from outside; see case.py.
    act: Optional[str] = None
    # The limit in seconds for all observations.
    limit: float = 12.0


def milliseconds(ms: Optional[float]) -> str:
    if ms is None:
        return "?"
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def fate(bad: Dict[str, Any]) -> str:
    if "error" in bad:
        return f"error in {milliseconds(bad['ms'])}"
    return "answered" if "answer" in bad else "task hangs"


AFTERWARDS = {
    "answer": "pool goes on",
    "error": "pool dead",
    "nothing": "pool hangs",
    None: "pool hangs",
}


def others(facts: Dict[str, Any]) -> str:
    return f"{facts['answered']} of {facts['of']}" if "answered" in facts else "0 of 8"


def all_others(facts: Dict[str, Any]) -> bool:
    return facts.get("answered") == facts.get("of", 0)


def one_bad(names: str, same_workers: bool = False) -> Callable[[Seen], Verdict]:
    """Exactly one task must fail, with an error that matches `names`."""

    def judge(seen: Seen) -> Verdict:
        facts, bad = seen.facts, seen.facts.get("bad", {})
        parts = [fate(bad), others(facts), AFTERWARDS[facts.get("after")]]
        right = (
            bad.get("ms", AT_ONCE_MS) < AT_ONCE_MS
            and all_others(facts)
            and facts.get("after") == "answer"
        )
        if right and not re.search(names, bad.get("error", ""), re.IGNORECASE):
            parts.append("error names no cause")
            right = False
        if right and same_workers:
            kept = bool(facts.get("same_workers"))
            parts.append("workers live" if kept else "a worker lost")
            right = kept
        return Verdict(", ".join(parts), right)

    return judge


def idle_killed(seen: Seen) -> Verdict:
    first = seen.facts.get("first", {})
    right = first.get("answer") == 49 and all_others(seen.facts)
    if "answer" in first:
        text = f"right answer in {milliseconds(first['ms'])}"
    else:
        text = "pool dead" if "error" in first else "task hangs"
    return Verdict(f"{text}, then {others(seen.facts)}", right)


def killed_while_sent(seen: Seen) -> Verdict:
    """A task that succeeded in spite of the kill was sent again: it had not started."""
    facts = seen.facts
    kills: List[Dict[str, Any]] = facts.get("kills", [])
    errors = [kill["ms"] for kill in kills if "error" in kill]
    answers = [kill["ms"] for kill in kills if kill.get("answer") == facts.get("whole")]
    # There was no result before the kill, so it hit.
    hit = all(ms >= 0 for ms in errors + answers)
    parts = [] if hit else ["killed too late"]
    if errors:
        of = "" if len(kills) == 1 else f"{len(errors)} of {len(kills)} times "
        parts.append(f"{of}error in {milliseconds(max(errors))}")
    if answers:
        of = "" if len(kills) == 1 else f"{len(answers)} of {len(kills)} times "
        parts.append(f"{of}answered")
    if len(errors + answers) < len(kills) or not kills:
        parts.append("task hangs")
    parts += [others(facts), AFTERWARDS[facts.get("after")]]
    right = (
        hit
        and len(errors + answers) == len(kills) == 3
        and max(errors, default=0) < AT_ONCE_MS
        and all_others(facts)
        and facts.get("after") == "answer"
    )
    return Verdict(", ".join(parts), right)


def initializer(seen: Seen) -> Verdict:
    facts = seen.facts
    starts, later = facts.get("starts", 0), facts.get("starts_a_second_later", 0)
    if later > starts:
        return Verdict(f"endless respawning: {later} starts and counting", False)
    text = f"{facts.get('errors', 0)} of {facts.get('of')} told"
    if facts.get("ms") is not None:
        text += f" after {milliseconds(facts['ms'])}"
    text += f", {later} starts"
    clear = "no such model" in (facts.get("text") or "")
    right = (
        facts.get("errors") == facts.get("of")
        and facts.get("ms", INITIALIZER_MS) < INITIALIZER_MS
        and later <= MOST_STARTS
        and clear
    )
    return Verdict(text + (", says why" if clear else ", doesn't say why"), right)


def callback(seen: Seen) -> Verdict:
    facts = seen.facts
    reported = any("the callback went wrong" in line for line in seen.stderr)
    called = f"{facts.get('called', 0)} callbacks"
    parts = [others(facts), called, AFTERWARDS[facts.get("after")]]
    parts.append("reported" if reported else "not reported")
    right = (
        all_others(facts)
        and facts.get("called") == facts.get("of")
        and facts.get("after") == "answer"
        and reported
    )
    return Verdict(", ".join(parts), right)


def terminated(seen: Seen) -> Verdict:
    facts = seen.facts
    woken, of = facts.get("woken", 0), facts.get("of")
    right = woken == of and facts["ms"] < AT_ONCE_MS and facts["terminate_returned"]
    text = f"{woken} of {of} wake"
    if woken:
        text += f", the last after {milliseconds(facts['ms'])}"
    if not facts.get("terminate_returned"):
        text += ", terminate hangs"
    return Verdict(text, right)


def stopped(seen: Seen) -> Verdict:
    ms = seen.facts.get("shutdown_ms")
    if ms is None:
        return Verdict("hangs", False)
    return Verdict(f"ends after {milliseconds(ms)}", ms < BOUNDED_MS)


def grandchild(seen: Seen) -> Verdict:
    facts = seen.facts
    if "terminate_ms" not in facts:
        return Verdict("the stop hangs", False)
    if facts.get("grandchild_alive", True):
        return Verdict("alive", False)
    return Verdict(f"gone after {milliseconds(facts['ms'])}", facts["ms"] < GRANDCHILD_MS)


def parent_killed(seen: Seen) -> Verdict:
    facts = seen.facts
    if facts.get("gone_ms") is None:
        return Verdict(f"{facts.get('live_on')} of {facts.get('children')} live on", False)
    text = f"all {facts['children']} gone after {milliseconds(facts['gone_ms'])}"
    return Verdict(text, facts["gone_ms"] < PARENT_KILLED_MS and facts["children"] >= 2)


def interrupted(seen: Seen) -> Verdict:
    facts, lines = seen.facts, len(seen.stderr)
    spoken = f"{lines} line{'' if lines == 1 else 's'}"
    if facts.get("presses") is None:
        return Verdict(f"not in 3×, {facts.get('live_on')} live on, {spoken}", False)
    text = f"{facts['presses']}×, gone after {milliseconds(facts['gone_ms'])}, {spoken}"
    return Verdict(text, facts["presses"] == 1 and lines <= 1)


def lazy(seen: Seen) -> Verdict:
    facts = seen.facts
    keys = ("read", "read_later", "read_in_the_end", "of")
    read, later, end, of = (facts.get(key) for key in keys)
    if read is None or later is None or end is None:
        so_far = facts.get("read_so_far", 0)
        return Verdict(f"none in {seen.seconds:.0f} s, {so_far:,} read by then", False)
    if read == of:
        return Verdict("all", False)
    # A slow machine explains a small number, but not one that keeps growing.
    text = f"{read:,}, then " + ("no more" if end == read else f"{end:,} a second later")
    bounded = end == later and end <= MOST_READ
    return Verdict(text, bounded and facts.get("first") == 0)


def limit(seen: Seen) -> Verdict:
    facts = seen.facts
    if facts.get("none"):
        return Verdict("none", False)
    times: List[Optional[float]] = facts.get("times", [])
    known = sorted(ms for ms in times if ms is not None)
    if not known or len(known) < len(times):
        return Verdict(f"{len(known)} of {len(times)} ended", False)
    middle = known[len(known) // 2]
    text = f"100 ms: told after {middle:.0f} ms (at most {known[-1]:.0f})"
    text += f", {AFTERWARDS[facts.get('after')]}"
    on_time = known[0] >= LIMIT_MS and middle <= LIMIT_MS + LIMIT_SLACK_MS
    return Verdict(text, on_time and facts.get("after") == "answer")


def judge(row: Row, seen: Seen) -> Verdict:
    """The row's own verdict, and what no row allows: a program that fails, does not end,
    or leaves processes behind."""
    over = row.act is None and not seen.ended and not seen.facts.get("done")
    broke_off = seen.ended and not seen.facts.get("done")
    if broke_off or (row.act and not seen.facts.get("ready")):
        last = seen.stderr[-1] if seen.stderr else f"status {seen.status}"
        return Verdict(f"the case itself failed: {last}", False)
    verdict = row.judge(seen)
    if row.act is None and seen.facts.get("done") and not seen.ended:
        verdict = Verdict(f"{verdict.text}, program never ends", False)
    if over and "kills" in seen.facts and seen.facts["kills"][-1]:
        # It was slow, and may not hang.
        verdict = Verdict(f"{verdict.text}, not finished in {row.limit:.0f} s", False)
    if seen.left_behind:
        noun = "process" if seen.left_behind == 1 else "processes"
        verdict = Verdict(f"{verdict.text}, left {seen.left_behind} {noun} behind", False)
    return verdict


ROWS = [
    Row(
        "sigkill",
        "task kills its own worker (SIGKILL)",
        "that task gets an error that names a signal or a death, at once; 8 of 8; the pool goes on",
        one_bad(r"SIGKILL|signal 9|died|killed|termina|expired"),
    ),
    Row(
        "exit",
        "task calls exit(0)",
        "that task gets an error that names the exit code 0, at once; 8 of 8; the pool goes on",
        one_bad(r"\bexit.*\b0\b"),
    ),
    Row(
        "argument",
        "argument that the worker can't decode",
        "that task gets the decoder's error, at once; 8 of 8; the worker lives",
        one_bad("would rather not", same_workers=True),
    ),
    Row(
        "result",
        "result that the parent can't decode",
        "that task gets the decoder's error, at once; 8 of 8; the worker lives",
        one_bad("would rather not", same_workers=True),
    ),
    Row(
        "idle-killed",
        "all idle workers killed, then a task",
        "the right answer, and then those of 8 more",
        idle_killed,
        limit=16,
    ),
    Row(
        "killed-while-sent",
        "worker killed while it is being sent 400 MB",
        "three kills: each time an error at once, or the answer from another worker; "
        "then 8 of 8, the pool goes on",
        killed_while_sent,
        limit=90,
    ),
    Row(
        "initializer",
        "initializer always fails",
        f"all 8 tasks get an error that says why; at most {MOST_STARTS} starts, "
        "none from a second later on",
        initializer,
        limit=16,
    ),
    Row(
        "callback",
        "callback fails",
        "8 of 8 and their callbacks, the pool goes on, the failure is on standard error",
        callback,
        limit=16,
    ),
    Row(
        "terminated",
        "waiting on a result when the pool is terminated",
        "all 8 waiting threads wake at once",
        terminated,
    ),
    Row(
        "stopped",
        "worker stopped (SIGSTOP), then shutdown",
        f"ends within {BOUNDED_MS // 1000} s",
        stopped,
    ),
    Row(
        "grandchild",
        "grandchild after a hard stop",
        f"gone within {GRANDCHILD_MS // 1000} s",
        grandchild,
    ),
    Row(
        "parent-killed",
        "parent killed with -9, workers busy",
        f"all processes gone within {PARENT_KILLED_MS} ms",
        parent_killed,
        act="kill-parent",
    ),
    Row(
        "interrupted",
        "Ctrl-C",
        "needed once, everything gone, at most one line on standard error",
        interrupted,
        act="ctrl-c",
    ),
    Row(
        "lazy",
        "300,000 lazy inputs, read before the first result",
        f"at most {MOST_READ:,}, and no more are read while nothing is taken",
        lazy,
        limit=30,
    ),
    Row(
        "limit",
        "time limit per task",
        f"a limit of {LIMIT_MS} ms is told of within {LIMIT_SLACK_MS} ms after it (median of 5)",
        limit,
    ),
]
