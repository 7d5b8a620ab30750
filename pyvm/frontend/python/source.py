"""The text of a Python function as a tree, with the lines of its file."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vmcore.errors import FrontendError


@dataclass
class Source:
    """One function definition.

    Attributes
    ----------
    tree : ast.FunctionDef
        Its line numbers are those of the file.
    file : str
        Name of the file without its folder: programs do not depend on where they lie.
    lines : list of str
        Text of the definition, from `first` on.
    first : int
    outside : Mapping
        Names that the function reads from around it: of closures and globals.
    """

    tree: ast.FunctionDef
    file: str
    lines: list[str]
    first: int
    function: Any
    outside: dict[str, Any] = field(default_factory=dict)

    def line(self, number: int) -> str:
        """Text of one line of the file."""
        index = number - self.first
        return self.lines[index].strip() if 0 <= index < len(self.lines) else ""


def source_of(function: Callable[..., Any]) -> Source:
    """Reads the definition of a Python function.

    Raises
    ------
    FrontendError
        If it is no plain function or its text cannot be had.
    """
    code = getattr(function, "__code__", None)
    if code is None or not inspect.isfunction(function):
        raise FrontendError(f"{function!r} is no Python function")
    if function.__name__ == "<lambda>":
        return _source_of_lambda(function)
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        command = _command_line(code.co_filename)
        if command is None:
            raise FrontendError(
                f"the source of {function.__name__} ({code.co_filename}) cannot be read: define it in a file"
            ) from error
        first = code.co_firstlineno
        lines = inspect.getblock([line + "\n" for line in command.splitlines()[first - 1 :]])
    try:
        tree = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (SyntaxError, IndexError) as error:
        raise FrontendError(f"the source of {function.__name__} is no definition of a function by itself") from error
    if not isinstance(tree, ast.FunctionDef):
        kind = "an async function" if isinstance(tree, ast.AsyncFunctionDef) else "no `def`"
        raise FrontendError(f"{os.path.basename(code.co_filename)}:{first}: {function.__name__} is {kind}")
    ast.increment_lineno(tree, first - 1)
    return Source(tree, os.path.basename(code.co_filename), lines, first, function)


def _source_of_lambda(function: Any) -> Source:
    """A lambda as a definition: found in its file by the place of its code."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    columns = [(line, column) for line, _, column, _ in code.co_positions() if column is not None and line is not None]
    found = []
    for node in ast.walk(ast.parse("".join(lines))) if lines else ():
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            body = node.body
            begin, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
            if all(begin <= place <= end for place in columns if place[1] > 0):
                found.append(node)
    if not found:
        raise FrontendError(f"the source of a lambda ({code.co_filename}:{code.co_firstlineno}) cannot be read")
    node = min(found, key=lambda n: (n.end_lineno or 0, n.end_col_offset or 0))  # the one that contains no other
    result = ast.copy_location(ast.Return(node.body), node.body)
    tree = ast.copy_location(ast.FunctionDef("lambda", node.args, [result], [], None), node)
    return Source(tree, os.path.basename(code.co_filename), lines, 1, function)


def _command_line(filename: str) -> str | None:
    """The program of `python -c program`."""
    args = sys.orig_argv
    if filename != "<string>" or "-c" not in args:
        return None
    return args[args.index("-c") + 1]


_NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes in order, without the bodies of functions defined inside."""
    waiting = [iter(nodes)]  # not recursive: a sum of a thousand terms is as deep as it is long
    while waiting:
        node = next(waiting[-1], None)
        if node is None:
            waiting.pop()
            continue
        yield node
        if not isinstance(node, _NESTED):
            waiting.append(ast.iter_child_nodes(node))


def assigned(nodes: Iterable[ast.AST]) -> list[str]:
    """Names that statements give a value to, in order; those of comprehensions are their own."""
    found: dict[str, None] = {}

    waiting = [iter(nodes)]
    while waiting:
        node = next(waiting[-1], None)
        if node is None:
            waiting.pop()
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = None
            continue
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:  # x[i] = v gives x another value
                while isinstance(target, ast.Subscript):
                    target = target.value
                    if isinstance(target, ast.Name):
                        found[target.id] = None
        waiting.append(ast.iter_child_nodes(node))
    return list(found)


def leaves_early(statements: Iterable[ast.stmt], kinds: tuple[type[ast.AST], ...]) -> bool:
    """Whether statements contain one of `kinds` (return, break, continue) that leaves them."""
    for statement in statements:
        if isinstance(statement, kinds):
            return True
        if isinstance(statement, (ast.While, ast.For)):
            # An unrolled loop has no function of its own that `break` and `continue` could end.
            unrolled = isinstance(statement, ast.For) and not _is_range(statement.iter)
            inner = (ast.Return, ast.Break, ast.Continue) if unrolled else (ast.Return,)
            if leaves_early(statement.body, inner) or leaves_early(statement.orelse, kinds):
                return True
        elif isinstance(statement, (ast.If, ast.With)):
            if leaves_early(statement.body, kinds) or leaves_early(getattr(statement, "orelse", ()), kinds):
                return True
    return False


def _is_range(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"
