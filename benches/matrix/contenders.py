"""The contenders: procpool, and the other pools that can be imported."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# The adapter's module, and the name in the table.
PEERS = {
    "multiprocessing_pool": "multiprocessing.Pool",
    "executor": "ProcessPoolExecutor",
    "loky_pool": "loky",
    "pebble_pool": "pebble",
}
PROCPOOL = "procpool"
BUILD = ["cargo", "build", "--release", "--example", "matrix", "--no-default-features"]


@dataclass
class Contender:
    name: str
    version: str
    # The command, to which the name of the case is appended.
    command: List[str]


def install(directory: Path) -> str:
    """Creates an environment with the peers that can be installed. Returns its Python."""
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "loky", "pebble"]
    subprocess.run(pip, check=True)
    return str(python)


def default_environment() -> Path:
    target = os.environ.get("CARGO_TARGET_DIR", str(REPOSITORY / "target"))
    return Path(target).resolve() / "matrix-peers"


def find_peers(python: str) -> List[Contender]:
    """Returns the pools whose library this Python can import."""
    found = []
    for module, name in PEERS.items():
        command = [python, "-B", str(HERE / "peer.py"), module]
        answer = subprocess.run(command + ["version"], capture_output=True, text=True)
        if answer.returncode == 0:
            found.append(Contender(name, answer.stdout.strip(), command))
        else:
            reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"matrix: without {name}: {reason}", file=sys.stderr)
    return found


def procpool(binary: Optional[str]) -> Contender:
    """Returns the program `procpool.rs`. Builds it unless a path is given."""
    path = str(Path(binary).resolve()) if binary else build()
    answer = subprocess.run([path, "version"], capture_output=True, text=True, check=True)
    return Contender(PROCPOOL, answer.stdout.strip(), [path])


def build() -> str:
    command = BUILD + ["--message-format", "json-render-diagnostics"]
    built = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("target", {}).get("name") == "matrix" and message.get("executable"):
            return str(message["executable"])
    raise FileNotFoundError("cargo has built no example `matrix`")
