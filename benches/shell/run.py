#!/usr/bin/env python3
"""The cost of a job at the shell: `procpool run` beside xargs and GNU parallel, in one run.

Each round runs them in turn, in another order each time, so that what else the machine does meets
all of them. Ratios are of one round; the spread is from the smallest to the largest. CPU time is of
the program and of all that it waited for. A bare loop of posix_spawn is the limit. Then the same for
one job that prints a lot, to a pipe and to a file; then inputs that are packed into commands, and
standard input that is split into blocks; and whether memory is flat over many inputs.

    $ apt-get install parallel          # xargs is there
    $ cargo build --release
    $ python3 benches/shell/run.py
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--procpool", type=Path, default=Path("target/release/procpool"))
    option("--jobs", type=int, default=2000, help="jobs in a round")
    option("--rounds", type=int, default=5)
    option("--procs", type=int, default=2)
    option("--inputs", type=int, default=1_000_000, help="inputs of the built-in task, for memory")
    option("--commands", type=int, default=20_000, help="jobs of a command, for memory")
    option("--bytes", type=int, default=1_000_000_000, help="what the job prints that prints a lot")
    option("--packed", type=int, default=1_000_000, help="inputs that are packed into commands")
    option("--only", choices=["jobs", "output", "memory", "packing", "pipe"],
           help="measure this part alone")
    args = parser.parse_args()
    if not args.procpool.exists():
        parser.error(f"{args.procpool} is missing: cargo build --release")
    return args


def measure(command: list[str], lines: Path) -> tuple[float, float]:
    """Returns the wall and CPU time in seconds of a command that reads these lines."""
    with lines.open() as stdin:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{command[0]} failed: status {status}")
    return wall, usage.ru_utime + usage.ru_stime


def compare(args: argparse.Namespace, scratch: Path) -> None:
    lines = scratch / "lines"
    lines.write_text("".join(f"{number}\n" for number in range(args.jobs)))
    procs, procpool = str(args.procs), str(args.procpool)
    commands = {
        "xargs": ["xargs", f"-P{procs}", "-n1", "true"],
        "procpool": [procpool, "run", "--quiet", "--procs", procs, "--", "true"],
        "procpool --journal": [
            procpool, "run", "--quiet", "--procs", procs, "--journal", str(scratch / "journal"),
            "--", "true",
        ],
        "GNU parallel": ["parallel", "--will-cite", f"-j{procs}", "true"],
    }
    if shutil.which("parallel") is None:
        print("GNU parallel is not installed and is left out", file=sys.stderr)
        del commands["GNU parallel"]
    if shutil.which("cc") is None:
        print("there is no C compiler: the bare loop is left out", file=sys.stderr)
    else:
        loop = scratch / "spawn_loop"
        source = Path(__file__).with_name("spawn_loop.c")
        subprocess.run(["cc", "-O2", "-o", str(loop), str(source)], check=True)
        commands["a bare loop of posix_spawn"] = [str(loop), procs, str(args.jobs), "true", "1"]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    names = list(commands)
    for turn in range(args.rounds):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            (scratch / "journal").unlink(missing_ok=True)
            times[name].append(measure(commands[name], lines))
            print(f"round {turn + 1}: {name} {times[name][-1][0]:.2f} s", file=sys.stderr)

    print(f"{args.jobs * args.rounds:,} jobs `true`, {procs} at a time, in {args.rounds} rounds\n")
    print("| | µs a job, least | CPU µs a job, least | wall ÷ xargs | CPU ÷ xargs |")
    print("|---|---|---|---|---|")
    def ratios(mine: str, theirs: str, kind: int) -> str:
        each = [one[kind] / other[kind] for one, other in zip(times[mine], times[theirs])]
        return f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"

    for name, measured in times.items():
        least = [min(values) / args.jobs * 1e6 for values in zip(*measured)]
        shown = [ratios(name, "xargs", kind) for kind in (0, 1)]
        print(f"| {name} | {least[0]:.0f} | {least[1]:.0f} | {shown[0]} | {shown[1]} |")
    for other in ("GNU parallel", "a bare loop of posix_spawn"):
        if other in times:
            shown = [ratios("procpool", other, kind) for kind in (0, 1)]
            print(f"\nprocpool ÷ {other}: wall {shown[0]}, CPU {shown[1]}")


def drain(source: int) -> None:
    while os.read(source, 1 << 20):
        pass


def print_a_lot(command: list[str], to: Path | None) -> tuple[float, float]:
    """Wall time in seconds and the most memory of the process itself in MiB, of a command whose
    output goes to a file, or to a pipe."""
    start = time.perf_counter()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=to.open("wb") if to else subprocess.PIPE
    )
    if not to:
        reader = threading.Thread(target=drain, args=[child.stdout.fileno()])
        reader.start()
    peak = 0
    while child.poll() is None:
        try:
            peak = max(peak, resident(child.pid, "VmHWM:"))
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            pass  # it has just ended
        time.sleep(0.002)
    if not to:
        reader.join()
    wall = time.perf_counter() - start
    if child.returncode != 0:
        sys.exit(f"{command[0]} failed: status {child.returncode}")
    return wall, peak / 1024


def output(args: argparse.Namespace, scratch: Path) -> None:
    if shutil.which("parallel") is None:
        print("GNU parallel is not installed: no comparison of output", file=sys.stderr)
        return
    job = ["head", "-c", str(args.bytes), "/dev/zero"]
    commands = {
        "procpool": [str(args.procpool), "run", "--quiet", "--procs", "1", "--", *job[:3], "{}",
                     ":::", job[3]],
        "GNU parallel": ["parallel", "--will-cite", "-j1", *job[:3], "{}", ":::", job[3]],
    }
    print(f"\nOne job that prints {args.bytes:,} bytes, {args.rounds} rounds\n")
    print("| to | | s, least | MiB of the parent, most | wall ÷ GNU parallel | MiB ÷ GNU parallel |")
    print("|---|---|---|---|---|---|")
    for to in (None, scratch / "output"):
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        names = list(commands)
        for turn in range(args.rounds):
            for name in names if turn % 2 else reversed(names):
                seen[name].append(print_a_lot(commands[name], to))
                if to and to.stat().st_size != args.bytes:
                    sys.exit(f"{name} wrote {to.stat().st_size} bytes")
        for name in names:
            ratios = []
            for kind in (0, 1):
                each = [one[kind] / other[kind]
                        for one, other in zip(seen[name], seen["GNU parallel"])]
                ratios.append(f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})")
            least, most = min(it[0] for it in seen[name]), max(it[1] for it in seen[name])
            where = "a file" if to else "a pipe"
            print(f"| {where} | {name} | {least:.2f} | {most:.1f} | {ratios[0]} | {ratios[1]} |")


def resident(pid: int, field: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


def turns(args: argparse.Namespace, commands: dict[str, list[str]], lines: Path) -> None:
    """Prints wall times of commands that read this file, and ratios to the second of them."""
    walls: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    for turn in range(args.rounds):
        for name in names if turn % 2 else reversed(names):
            walls[name].append(measure(commands[name], lines)[0])
    mine, theirs = names
    each = [one / other for one, other in zip(walls[mine], walls[theirs])]
    for name in names:
        print(f"- {name}: {min(walls[name]):.2f} s at least")
    print(f"- {mine} ÷ {theirs}: {statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})")


def packing(args: argparse.Namespace, scratch: Path) -> None:
    lines = scratch / "packed"
    lines.write_text("".join(f"{number}\n" for number in range(args.packed)))
    procs = str(args.procs)
    print(f"\n{args.packed:,} inputs, as many for each command as fit, {procs} at a time\n")
    turns(args, {
        "procpool": [str(args.procpool), "run", "-q", "-p", procs, "-m", "--", "true"],
        "xargs": ["xargs", f"-P{procs}", "true"],
    }, lines)


def pipe(args: argparse.Namespace, scratch: Path) -> None:
    if shutil.which("parallel") is None:
        print("GNU parallel is not installed: no comparison of --pipe", file=sys.stderr)
        return
    text = scratch / "text"
    line = b"x" * 99 + b"\n"
    with text.open("wb") as file:
        for _ in range(args.bytes // 1_000_000):
            file.write(line * 10_000)
    procs = str(args.procs)
    print(f"\n{args.bytes:,} bytes in blocks of 1 MiB to `wc -l`, {procs} at a time\n")
    procpool = [str(args.procpool), "run", "-q", "-p", procs, "--pipe", "--", "wc", "-l"]
    turns(args, {
        "procpool": procpool,
        "GNU parallel": ["parallel", "--will-cite", f"-j{procs}", "--pipe", "wc", "-l"],
    }, text)
    with text.open() as stdin:
        child = subprocess.Popen(procpool, stdin=stdin, stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(child.pid, 0)
    print(f"- memory of procpool itself, at most: {usage.ru_maxrss / 1024:.0f} MiB")


def memory(args: argparse.Namespace, what: str, count: int, command: list[str]) -> None:
    """Prints how much memory the parent has at each fifth of its inputs."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    seen = []

    def write() -> None:
        try:
            with child.stdin as stdin:
                for start in range(0, count, 1000):
                    numbers = range(start, min(start + 1000, count))
                    stdin.write("".join(f"{number}\n" for number in numbers).encode())
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    for number, _ in enumerate(child.stdout, 1):
        if number % (count // 5) == 0 and number < count:
            seen.append(resident(child.pid, "VmRSS:") / 1024)
    writer.join()
    if child.wait() != 0 or number < count:
        sys.exit(f"{what} failed")
    print(f"| {what} | {count:,} | " + " | ".join(f"{it:.1f}" for it in seen) + " |")


def main() -> None:
    args = arguments()
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs\n")
    with tempfile.TemporaryDirectory() as scratch:
        if args.only in (None, "jobs"):
            compare(args, Path(scratch))
        if args.only in (None, "output"):
            output(args, Path(scratch))
        if args.only in (None, "packing"):
            packing(args, Path(scratch))
        if args.only in (None, "pipe"):
            pipe(args, Path(scratch))
    if args.only not in (None, "memory"):
        return
    run = [str(args.procpool), "run", "--quiet", "--procs", str(args.procs)]
    print("\n| the parent's memory in MiB | inputs | at 1/5 | at 2/5 | at 3/5 | at 4/5 |")
    print("|---|---|---|---|---|---|")
    square = run + ["--task", "square", "--input", "-", "--format", "json"]
    memory(args, "`--task square`", args.inputs, square)
    memory(args, "`-- echo`", args.commands, run + ["--", "echo"])


if __name__ == "__main__":
    main()
