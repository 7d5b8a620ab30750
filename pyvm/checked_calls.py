"""`checked`: a function whose arguments are compared with its annotations before it runs.

For functions that people call with what they have at hand: constructors of operators, tools, compilers. What is called
per instruction or per run says `vmcore.arguments` where it needs to.
"""

from __future__ import annotations

import builtins
import collections.abc as abc
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from vmcore import arguments, errors

P = ParamSpec("P")
R = TypeVar("R")


class _Fits(NamedTuple):
    """Whether a value is of an annotated type, and the words for the type."""

    test: Callable[[Any], bool]
    words: str


_ANYTHING = _Fits(lambda value: True, "anything")
_WORDS = {bool: "a bool", int: "an int", float: "a number", str: "a str", bytes: "bytes", type(None): "None"}
_UNIONS = (typing.Union, types.UnionType)


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_)) or (isinstance(value, (int, np.integer)) and value in (0, 1))


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer))


def _is_float(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating, np.bool_)) and not isinstance(value, np.timedelta64)


_SCALARS: dict[Any, Callable[[Any], bool]] = {bool: _is_bool, int: _is_int, float: _is_float}


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'AEIOUaeio' else 'a'} {word}"


def _of_class(cls: type) -> _Fits:
    if cls in _SCALARS:
        return _Fits(_SCALARS[cls], _WORDS[cls])
    return _Fits(lambda value: isinstance(value, cls), _WORDS.get(cls, _article(cls.__name__)))


def _of_union(members: tuple[Any, ...]) -> _Fits:
    fits = [_fits(member) for member in members]
    if any(one is _ANYTHING for one in fits):
        return _ANYTHING
    words = list(dict.fromkeys(one.words for one in fits))
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    return _Fits(lambda value: any(one.test(value) for one in fits), listed)


def _is_listing(value: Any) -> bool:
    """Whether it is a sequence of things, not a text; an array of one axis counts."""
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return False
    return isinstance(value, abc.Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _of_items(kind: Callable[[Any], bool], what: str, item: Any) -> _Fits:
    fit = _fits(item)
    if fit is _ANYTHING:
        return _Fits(kind, _article(what))
    return _Fits(
        lambda value: kind(value) and (not _is_listing(value) or all(map(fit.test, value))),
        f"{_article(what)} of {fit.words.removeprefix('an ').removeprefix('a ')}",
    )


def _of_tuple(args: tuple[Any, ...]) -> _Fits:
    if len(args) == 2 and args[1] is Ellipsis:
        return _of_items(lambda value: isinstance(value, tuple), "tuple", args[0])
    fits = [_fits(arg) for arg in args]
    return _Fits(
        lambda value: isinstance(value, tuple)
        and len(value) == len(fits)
        and all(one.test(item) for one, item in zip(fits, value, strict=True)),
        f"a tuple ({', '.join(one.words for one in fits)})",
    )


def _of_mapping(cls: type, args: tuple[Any, ...]) -> _Fits:
    keys, values = (_fits(arg) for arg in args)

    def test(value: Any) -> bool:
        return isinstance(value, cls) and all(keys.test(k) and values.test(v) for k, v in value.items())  # type: ignore

    return _Fits(
        test,
        f"{_article('mapping' if cls is abc.Mapping else cls.__name__)} of {keys.words} to {values.words}",
    )


def _fits(hint: Any) -> _Fits:
    """The test of an annotation; of one that says nothing at run time (Any, a TypeVar), one that takes anything."""
    if hint is Any:
        return _ANYTHING
    if hint is None:
        hint = type(None)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return _of_union(args)
    if origin is typing.Literal:
        return _Fits(lambda value: any(value == one and type(value) is type(one) for one in args), f"one of {args}")
    if origin is abc.Callable or hint is abc.Callable:
        return _Fits(callable, "a callable")
    if origin is tuple:
        return _of_tuple(args)
    if isinstance(origin, type) and issubclass(origin, abc.Mapping) and len(args) == 2:
        return _of_mapping(origin, args)
    if origin is abc.Sequence:
        return _of_items(_is_listing, "sequence", args[0])
    if origin is abc.Iterable:
        return _of_items(arguments.is_iterable, "iterable", args[0])
    if origin in (list, set, frozenset):
        kind: type = origin
        return _of_items(lambda value: isinstance(value, kind), kind.__name__, args[0])
    if isinstance(origin, type):
        if origin in (np.ndarray, os.PathLike):
            return _of_class(origin)
        return _ANYTHING if not args else _of_class(origin)
    if isinstance(hint, type) and hint is not object and not getattr(hint, "_is_protocol", False):
        return _ANYTHING if hint is numbers.Number else _of_class(hint)
    return _ANYTHING


class _Names(dict[str, Any]):
    """The names that an annotation may use; what only a type checker sees stands for anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _annotation(function: Callable[..., Any], hint: Any) -> _Fits:
    if hint is inspect.Parameter.empty:
        return _ANYTHING
    if isinstance(hint, str):
        try:
            hint = eval(hint, {}, _Names(getattr(inspect.unwrap(function), "__globals__", {})))
        except TypeError:  # a subscript of what stands for anything
            return _ANYTHING
    return _fits(hint)


class _Plan:
    """The tests of the arguments of one function."""

    def __init__(self, function: Callable[..., Any], name: str, bound: bool) -> None:
        parameters = list(inspect.signature(function).parameters.values())[int(bound) :]
        fits = {p.name: _annotation(function, p.annotation) for p in parameters}
        self.name = name
        self.positional = [
            (p.name, *fits[p.name]) for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        self.by_name = {p.name: fits[p.name] for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        self.more = next((fits[p.name] for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self.options = next((fits[p.name] for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self.required = [
            p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises ArgumentTypeError unless the arguments fit, in number, names and types."""
        positional = self.positional
        for (name, test, words), value in zip(positional, args, strict=False):
            if not test(value):
                raise arguments.wrong_type(self.name, name, words, value)
        for name, value in kwargs.items():
            fit = self.by_name.get(name, self.options)
            if fit is None:
                names = ", ".join(self.by_name) or "none"
                raise errors.ArgumentTypeError(f"{self.name}: no parameter is called {name!r}; they are: {names}")
            if not fit.test(value):
                raise arguments.wrong_type(self.name, name, fit.words, value)
        n = len(args)
        if n > len(positional):
            if self.more is None:
                listed = ", ".join(name for name, _, _ in positional)
                raise errors.ArgumentTypeError(f"{self.name}: takes {len(positional)} arguments ({listed}), got {n}")
            for value in args[len(positional) :]:
                if not self.more.test(value):
                    raise arguments.wrong_type(self.name, "each argument", self.more.words, value)
        given = {name for name, _, _ in positional[:n]}
        missing = [name for name in self.required if name not in given and name not in kwargs]
        twice = [name for name in kwargs if name in given and name in self.by_name]
        if missing or twice:
            problem = f"{', '.join(missing)} missing" if missing else f"{', '.join(twice)} given twice"
            raise errors.ArgumentTypeError(f"{self.name}: {problem}, got {n + len(kwargs)} arguments")


def checked(function: Callable[P, R], name: str = "") -> Callable[P, R]:
    """`function`, which gets arguments of the annotated types only: others are an ArgumentTypeError.

    `name` is what errors call it. An int may be one of numpy, a float an int, a bool 0 or 1; items of sequences and
    mappings are looked at, those of other iterables are not.
    """
    plan: _Plan | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal plan
        if plan is None:
            plan = _Plan(function, name or getattr(function, "__name__", "function"), False)
        plan.check(args, kwargs)
        return function(*args, **kwargs)

    return call


def checked_method(function: Callable[P, R]) -> Callable[P, R]:
    """`checked` for a function that is called on an object, which is its first argument."""
    plan: _Plan | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal plan
        if plan is None:
            plan = _Plan(function, function.__qualname__.removesuffix(".__init__"), True)
        plan.check(args[1:], kwargs)
        return function(*args, **kwargs)

    return call


_PYTHONS_OWN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def explained(function: Callable[P, R], method: bool = False) -> Callable[P, R]:
    """`checked` for what passes call for every node: the arguments are compared after `function` failed on them.

    What it stores without looking at it is checked where a module is (`pyvm.ir.check_well_formed`).
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except _PYTHONS_OWN as error:
            if not isinstance(error, errors.VMError):
                name = function.__qualname__.removesuffix(".__init__")
                _Plan(function, name, method).check(args[1:] if method else args, kwargs)
            raise

    return call


def check_functions(namespace: dict[str, Any], names: Iterable[str], asked_often: Container[str] = ()) -> None:
    """Puts `checked` around the functions of a module that have these names; `explained` around those asked often."""
    for name in names:
        value = namespace[name]
        if isinstance(value, types.FunctionType):
            namespace[name] = explained(value) if name in asked_often else checked(value, name)


def check_constructors(namespace: dict[str, Any], names: Iterable[str], made_seldom: Container[str]) -> None:
    """The same for the constructors of classes: `checked` for those made seldom, `explained` for all others."""
    for name in names:
        value = namespace[name]
        if isinstance(value, type) and isinstance(make := vars(value).get("__init__"), types.FunctionType):
            made = checked_method(make) if name in made_seldom else explained(make, method=True)
            type.__setattr__(value, "__init__", made)
