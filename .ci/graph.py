#!/usr/bin/env python3
"""Prints which files of each package import which, and fails where files import each other in a circle.

Run from the root: `.ci/graph.py [--quiet]`. Tests are left out: `#[cfg(test)]` modules, and files that are
such modules. A path counts for the file of its longest prefix that is a module; what a macro expands to isn't
seen.
"""

import pathlib
import re
import sys

PACKAGES = {"procpool": "src", "procpool-worker": "worker/src", "procpool-cli": "cli/src"}
ROOTS = ("lib.rs", "main.rs")
USE = re.compile(r"^ *(?:pub(?:\([^)]*\))? )?use ([^;]+);", re.M)


def without_comments_and_tests(text):
    text = re.sub(r"^\s*//.*$", "", text, flags=re.M)
    text = re.sub(r"\s//[^\"\n]*$", "", text, flags=re.M)
    # From a `#[cfg(test)]` module to the closing brace in its column.
    module = r"^( *)#\[cfg\((?:test|all\(test[^\]]*)\)\]\n(?: *#\[[^\n]*\n)*(?: *(?:pub[^ ]* )?mod \w+ \{.*?^\1\}|[^\n]*\n)"
    return re.sub(module, "", text, flags=re.M | re.S)


def modules(root):
    """Maps each file's module path, a tuple of names, to the file."""
    found = {}
    for file in sorted(root.rglob("*.rs")):
        names = file.relative_to(root).with_suffix("").parts
        if file.name in ROOTS and len(names) == 1:
            names = ()
        elif file.name == "mod.rs":
            names = names[:-1]
        found[names] = file
    return found


def expand(tree):
    """Yields the paths of `a::{b, c::d}`."""
    depth, start, parts = 0, 0, []
    for at, char in enumerate(tree):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append(tree[start:at])
            start = at + 1
    parts.append(tree[start:])
    for part in (part.strip() for part in parts):
        head, brace, rest = part.partition("{")
        if brace:
            for path in expand(rest[: rest.rindex("}")]):
                yield head + path
        elif part:
            yield re.sub(r"\s+as\s+\w+$", "", part)


def imports(names, file, found):
    text = without_comments_and_tests(file.read_text())
    paths = set()
    for tree in re.findall(USE, text):
        paths.update(expand(tree))
    text = re.sub(USE, "", text)
    paths.update(re.findall(r"(?<!\$)\b(?:crate|super|self)(?:::\w+)+", text))
    children = {path[-1] for path in found if len(path) == len(names) + 1 and path[:-1] == names}
    if children:
        paths.update(re.findall(r"(?<![:\w])(?:%s)(?:::\w+)+" % "|".join(sorted(children)), text))
    for path in paths:
        parts = [part.strip() for part in path.split("::")]
        at = names
        if parts[0] == "crate":
            at, parts = (), parts[1:]
        elif parts[0] in ("self", "super"):
            while parts and parts[0] in ("self", "super"):
                at, parts = (at[:-1] if parts[0] == "super" else at), parts[1:]
        elif names + (parts[0],) not in found:
            continue
        target = at
        for part in parts:
            if target + (part,) not in found:
                break
            target += (part,)
        if target != names and target in found:
            yield found[target]


def circles(graph):
    """Returns the strongly connected components of more than one file (Tarjan)."""
    index, low, stack, result = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                result.append(sorted(map(str, stack[at:])))
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return result


def main():
    failed = False
    for package, root in PACKAGES.items():
        root = pathlib.Path(root)
        found = modules(root)
        graph = {file: sorted(set(imports(names, file, found))) for names, file in found.items()}
        if "--quiet" not in sys.argv:
            print(f"{package}:")
            for file, others in graph.items():
                print(f"  {file.relative_to(root)} -> {' '.join(str(o.relative_to(root)) for o in others)}")
        for circle in circles(graph):
            failed = True
            print(f"{package}: files import each other in a circle:\n  " + "\n  ".join(circle), file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
