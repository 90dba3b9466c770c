#!/usr/bin/env python3
"""One bad task among eight healthy ones: what each pool does. See README.md.

Exits with 0 if all of procpool's rows are right, 1 if one is not, 2 if it could not be run.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import List

import case
import contenders
import processes
import rows
import table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    option = parser.add_argument
    option("--format", choices=["markdown", "json"], default="markdown")
    option("--row", action="append", metavar="CASE", help="only this row (repeatable)")
    option("--pool", action="append", metavar="NAME", help="only this pool (repeatable)")
    option("--procpool", metavar="PATH", help="the example `matrix`, already built")
    option("--python", default=sys.executable, help="the Python that has the peers")
    option("--install", action="store_true", help="install loky and pebble in --venv")
    option("--venv", type=Path, default=contenders.default_environment())
    option("--list", action="store_true", help="print the rows and what is right in them")
    args = parser.parse_args()
    known = {row.case for row in rows.ROWS}
    names = {contenders.PROCPOOL, *contenders.PEERS.values()}
    for given, allowed in ((args.row, known), (args.pool, names)):
        for name in given or []:
            if name not in allowed:
                parser.error(f"{name!r} is not one of {', '.join(sorted(allowed))}")
    return args


def find(args: argparse.Namespace) -> List[contenders.Contender]:
    python = contenders.install(args.venv) if args.install else args.python
    wanted = set(args.pool or [contenders.PROCPOOL, *contenders.PEERS.values()])
    found = []
    if wanted - {contenders.PROCPOOL}:
        found = [peer for peer in contenders.find_peers(python) if peer.name in wanted]
    if contenders.PROCPOOL in wanted:
        found.append(contenders.procpool(args.procpool))
    return found


def run(args: argparse.Namespace) -> List[table.Cell]:
    cells = []
    taking_part = find(args)
    for row in rows.ROWS:
        if args.row and row.case not in args.row:
            continue
        for contender in taking_part:
            seen = case.run(contender.command + [row.case], row.limit, row.act)
            verdict = rows.judge(row, seen)
            cells.append(table.Cell(row, contender, seen, verdict))
            progress = f"{row.case}: {contender.name}: {table.mark(verdict)}"
            print(f"{progress} [{seen.seconds:.1f} s]", file=sys.stderr, flush=True)
            if seen.survivors:
                sys.exit(f"matrix: {seen.survivors} processes could not be killed")
    return cells


def main() -> int:
    args = arguments()
    if args.list:
        for row in rows.ROWS:
            print(f"{row.case:18} {row.title}: {row.rule}")
        return 0
    # In the background of a shell, SIGINT is ignored, and the cases would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Cleans up running cases.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    processes.become_subreaper()
    before = os.getloadavg()[0]
    try:
        cells = run(args)
    except (subprocess.CalledProcessError, OSError) as error:
        # This is not a verdict on a row.
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"matrix: {os.cpu_count()} CPUs, {load}", file=sys.stderr)
    print(table.as_json(cells) if args.format == "json" else table.markdown(cells))
    own = [cell for cell in cells if cell.contender.name == contenders.PROCPOOL]
    return 0 if all(cell.verdict.right for cell in own) else 1


if __name__ == "__main__":
    sys.exit(main())
