"""The rules of the house that no linter knows: lengths, docstrings, no unpickling."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ALL = SOURCES + sorted(p for room in ("tests", "bench") for p in (ROOT / room).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
LONGER = {("fit.py", "_fit"): 150}  # the training loop is one visible function
Function = ast.FunctionDef | ast.AsyncFunctionDef
UNSAFE = {"pickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = ("torch.load", "np.load", "numpy.load")


def parsed(paths: list[Path]) -> Iterator[tuple[str, str, ast.Module]]:
    for path in paths:
        text = path.read_text("utf-8")
        yield path.relative_to(ROOT).as_posix(), text, ast.parse(text)


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of classes that inherit none."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from (n for n in node.body if isinstance(n, Function) and not n.name.startswith("_"))


def test_files_and_functions_are_short() -> None:
    found = {}
    for name, text, tree in parsed(ALL):
        if text.count("\n") > LONGEST_FILE:
            found[name] = text.count("\n")
        for node in ast.walk(tree):
            if isinstance(node, Function):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGER.get((Path(name).name, node.name), LONGEST_FUNCTION):
                    found[f"{name}: {node.name}"] = lines
    assert not found


def test_what_is_public_is_described() -> None:
    found = []
    for name, _, tree in parsed(SOURCES):
        found += [name] if tree.body and not ast.get_docstring(tree) else []
        found += [f"{name}: {node.name}" for node in public(tree) if not ast.get_docstring(node)]
    assert not found


def test_nothing_is_unpickled() -> None:
    found = []
    for name, _, tree in parsed(SOURCES):
        for node in ast.walk(tree):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{name}: {module}" for module in modules if module.split(".")[0] in UNSAFE]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in LOADERS:
                how = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if how.get("weights_only") != "True" and how.get("allow_pickle") != "False":
                    found.append(f"{name}: line {node.lineno}")
    assert not found
