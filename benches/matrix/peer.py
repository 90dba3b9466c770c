#!/usr/bin/env python3
"""Runs one case with one Python pool: `peer.py POOL CASE`, or `peer.py POOL version`.

Prints JSON lines; started by `run.py`, in a session and a directory of its own.
"""

import importlib
import sys


def main() -> None:
    module, case = sys.argv[1:]
    pool = importlib.import_module(f"peers.{module}").Pool
    if case == "version":
        print(pool.version())
        return
    from peers import cases

    cases.CASES[case](pool)


if __name__ == "__main__":
    main()
