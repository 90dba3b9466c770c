#!/usr/bin/env python3
"""Runs the commands that files show, and compares what they print with what the files show.

`.ci/shown.py FILE...` reads the headers of examples (`.rs`) and the console blocks of pages (`.md`): a line
that starts with `$ ` is a command, and what follows is what it prints on standard output. A line `…` stands for
any lines. `mpirun` needs other machines, so its commands are left out. Two blocks of a header with the same command are two possible outputs. What differs between runs and
machines is blurred: times, sizes, ratios, PIDs, the machine. Commands run from the root in the debug profile,
whatever they say, with their pictures in `target/`.

`--update` writes what the commands print into the files instead. With `--release`, they run as they say.
"""

import difflib
import pathlib
import re
import subprocess
import sys
import tempfile

LIMIT = 120
# Printed by workers, in any order.
ANY_ORDER = ("Making plot ", "arrived: ")
# Commands that need more than this machine, and a service, which its own tests start.
ELSEWHERE = ("mpirun ", "cargo run --release --example service", "curl ")
# Commands whose order of lines depends on time, which a busy machine can change. They have three tries.
TIMED = ("--example squares", "--unordered")
NUMBER = r"\d[\d.,]*"


def blocks(path, lines):
    """Yields the command and the range of lines of its output, for each command that is shown."""
    comment = "//! " if path.suffix == ".rs" else ""
    fence, command, start = None, None, 0
    for at, line in enumerate([*lines, ""]):
        text = line.removeprefix(comment) if line.startswith(comment) else line.removeprefix(comment.strip())
        if fence is None:
            if re.match(r"```(text|console)$", text):
                fence = text
            elif comment and not line.startswith("//!"):
                return
            continue
        is_end = text.startswith("```")
        if is_end or text.startswith("$ "):
            if command is not None:
                yield command, start, at
            command, start = (None if is_end else text[2:]), at + 1
        if is_end:
            fence = None


def run(command, release):
    """Returns what the command prints on standard output."""
    if not release:
        command = command.replace(" --release", "")
    command = re.sub(r"\bcargo run\b", "cargo run --locked --quiet", command)
    with tempfile.TemporaryFile("w+") as errors:
        try:
            ended = subprocess.run(
                ["bash", "-c", "set -o pipefail; " + command], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True, timeout=LIMIT)
            code = ended.returncode
        except subprocess.TimeoutExpired as ended:
            code = f"none within {LIMIT} s"
        if code != 0:
            errors.seek(0)
            sys.exit(f"{errors.read()}shown: exit code {code}: {command}")
    return ended.stdout.splitlines()


def blur(lines, command):
    text = "\n".join(re.sub(r"\s+", " ", line).rstrip() for line in lines)
    text = re.sub(rf"{NUMBER} ?(ns|µs|ms|s)\b", "TIME", text)
    text = re.sub(rf"{NUMBER} (B|KiB|MiB|GiB)\b", "BYTES", text)
    text = re.sub(rf"{NUMBER} ?(×|%)", "RATIO", text)
    text = re.sub(r"\bPID \d+", "PID", text)
    text = re.sub(r"\bGPU \d+ of \d+: .*$", "GPU", text, flags=re.M)
    text = re.sub(r"^( ?\d+) \d+ TIME", r"\1 PID TIME", text, flags=re.M)  # a row of the command
    text = re.sub(r"^ ?\d+ (\d+ \d+ TIME BYTES)$", r"PID \1", text, flags=re.M)  # a worker
    text = re.sub(r" \d+ (\d+) TIME$", r" PID \1 TIME", text, flags=re.M)  # a row of `pids`
    text = re.sub(rf"{NUMBER} (a second|times as fast)", r"N \1", text)
    if " compare " in command:
        text = re.sub(r"^.*; Linux .*; procpool .*$", "MACHINE", text, flags=re.M)
        text = re.sub(r"; the machine was shared: .*$", "", text, flags=re.M)
        text = re.sub(r"(from TIME per item|at no measured duration)", "WHERE", text)
        text = re.sub(rf"(\b{NUMBER}( [kM]\b)?|no limit)", "N", text)
    lines = text.splitlines()
    for prefix in ANY_ORDER:
        places = [at for at, line in enumerate(lines) if line.startswith(prefix)]
        for at, line in zip(places, sorted(lines[at] for at in places)):
            lines[at] = line
    return lines


def is_shown(shown, printed):
    """Compares two lists of lines, of which the first may have `…` for any lines."""
    if "…" not in shown:
        return shown == printed
    at = shown.index("…")
    rest = shown[at + 1:]
    return shown[:at] == printed[:at] and any(
        is_shown(rest, printed[place:]) for place in range(at, len(printed) + 1))


def check(path, update, release):
    lines = path.read_text().splitlines()
    prefix = "//! " if path.suffix == ".rs" else ""
    strip = lambda line: line.removeprefix(prefix) if line.startswith(prefix) else line.removeprefix("//!")
    shown = list(blocks(path, lines))
    found = [block for block in shown if not block[0].startswith(ELSEWHERE)]
    if not shown:
        sys.exit(f"shown: {path} shows no command")
    printed, wrong = {}, []
    for command in dict.fromkeys(command for command, _, _ in found):
        variants = [[strip(line) for line in lines[start:end]]
                    for other, start, end in found if other == command]
        for _ in range(3 if command.endswith(TIMED) else 1):
            printed[command] = run(command, release)
            got = blur(printed[command], command)
            matches = any(is_shown(blur(variant, command), got) for variant in variants)
            if matches:
                break
        if not matches:
            difference = difflib.unified_diff(
                blur(variants[0], command), got, f"{path} shows", "printed", lineterm="")
            wrong.append("\n".join([f"$ {command}", *difference]))
    if not update:
        return wrong
    counts = [command for command, _, _ in found]
    for command, start, end in reversed(found):
        # One of several possible outputs, or one with a gap, is a person's to update.
        if counts.count(command) == 1 and "…" not in lines[start:end]:
            lines[start:end] = [(prefix + line).rstrip() for line in printed[command]]
    path.write_text("\n".join(lines) + "\n")
    return []


def main(arguments):
    options = {argument for argument in arguments if argument.startswith("--")}
    files = [pathlib.Path(argument) for argument in arguments if argument not in options]
    if not files or options - {"--update", "--release"}:
        sys.exit(__doc__)
    pathlib.Path("target").mkdir(exist_ok=True)
    failed = False
    for path in files:
        wrong = check(path, "--update" in options, "--release" in options)
        print("\n\n".join(wrong) or path, flush=True)
        failed = failed or bool(wrong)
    sys.exit("shown: printed is not what is shown" if failed else None)


main(sys.argv[1:])
