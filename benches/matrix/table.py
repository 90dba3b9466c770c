"""The results, as a Markdown table or as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Dict, List, Sequence

from case import Seen
from contenders import Contender
from rows import Row, Verdict

RIGHT, WRONG = "✓", "✗"


@dataclass
class Cell:
    row: Row
    contender: Contender
    seen: Seen
    verdict: Verdict


def markdown(cells: Sequence[Cell]) -> str:
    contenders = list({c.contender.name: c.contender for c in cells}.values())
    rows = list({c.row.case: c.row for c in cells}.values())
    at: Dict[tuple, Cell] = {(c.row.case, c.contender.name): c for c in cells}
    lines = [line(["case"] + [f"{c.name} ({c.version})" for c in contenders])]
    lines.append("|---" * (1 + len(contenders)) + "|")
    for row in rows:
        texts = [mark(at[row.case, c.name].verdict) for c in contenders]
        lines.append(line([row.title] + texts))
    lines.append(line(["**right**"] + [score(cells, c) for c in contenders]))
    return "\n".join(lines)


def line(texts: List[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def mark(verdict: Verdict) -> str:
    return f"{RIGHT if verdict.right else WRONG} {verdict.text}"


def score(cells: Sequence[Cell], contender: Contender) -> str:
    own = [c for c in cells if c.contender.name == contender.name]
    return f"**{sum(c.verdict.right for c in own)} of {len(own)}**"


def as_json(cells: Sequence[Cell]) -> str:
    return json.dumps(
        [
            {
                "case": c.row.case,
                "title": c.row.title,
                "rule": c.row.rule,
                "pool": c.contender.name,
                "version": c.contender.version,
                "right": c.verdict.right,
                "text": c.verdict.text,
                "seen": asdict(c.seen),
            }
            for c in cells
        ],
        indent=2,
    )
