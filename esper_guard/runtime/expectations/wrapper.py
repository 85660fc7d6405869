"""A function with checks around it, that is called, inspected, compiled and scripted as the function itself.

It is generated, because a wrapper that takes ``*args, **kwargs`` costs more than the check (benchmarks/expects.py): it has
the function's parameters, and tests for the usual format right there. Its globals are the function's own, so that
torch.jit.script, which reads the source of what is wrapped, finds the names in it.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.expectations.places import MISSING

FILENAME = "<esper_guard.expects {}>"
"""Of generated code; whoever looks for the user's line passes over it."""

_QUICK = {
    # A ghost is is_contiguous(memory_format=channels_last), too, but has a dimension of size 1.
    "channels_last": "{p}isinstance({0}, {p}Tensor) and {0}.is_contiguous(memory_format={p}channels_last) and 1 not in {0}.shape",
    "channels_last_3d": "{p}isinstance({0}, {p}Tensor) and {0}.is_contiguous(memory_format={p}channels_last_3d) and 1 not in {0}.shape",
    "nchw": "{p}isinstance({0}, {p}Tensor) and {0}.is_contiguous()",
}
_P = "_esper_guard_"  # no parameter begins like this


_FORMS: dict[Any, str] = {
    Parameter.POSITIONAL_ONLY: "{0}",
    Parameter.POSITIONAL_OR_KEYWORD: "{0}",
    Parameter.VAR_POSITIONAL: "*{0}",
    Parameter.KEYWORD_ONLY: "{0}={0}",
    Parameter.VAR_KEYWORD: "**{0}",
}
"""How a parameter is passed on."""


@dataclass(frozen=True)
class Checks:
    """What the wrapper calls."""

    entering: Callable[..., Any] | None
    """Takes the values of `names`; what it returns is what ``leaving`` gets. Called if `quick` says no."""
    leaving: Callable[[Any, Any], None] | None
    """Takes a result, and what ``entering`` returned."""
    names: Sequence[str]
    """Parameters that ``entering`` looks at."""
    quick: Sequence[str | None]
    """For each of them the format that the wrapper can test by itself, if that is all there is to it."""
    quick_result: str | None
    """The same, of the result."""


def wrap(function: Callable[..., Any], checks: Checks) -> Callable[..., Any]:
    """The function, with ``checks`` before and after it.

    Of a generator, each yielded value is a result. If the function is itself a wrapper, any arguments are passed on.
    """
    signature = inspect.signature(function)
    exact = _is_plain(function)
    source = _source(function, signature, checks, exact)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    filename = FILENAME.format(name)
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    made: dict[str, Any] = {}
    own_globals = getattr(function, "__globals__", None) or {"__builtins__": __builtins__}
    exec(compile(source, filename, "exec", dont_inherit=True), own_globals, made)  # noqa: S102 - of our own making
    wrapped: Callable[..., Any] = made["make"](
        function=function,
        entering=checks.entering,
        leaving=checks.leaving,
        defaults={name: parameter.default for name, parameter in signature.parameters.items()},
        Tensor=Tensor,
        channels_last=torch.channels_last,
        channels_last_3d=torch.channels_last_3d,
        MISSING=MISSING,
        isinstance=isinstance,  # since parameters and globals of the user's may have these names
        len=len,
    )
    return as_itself(wrapped, function)


def as_itself(wrapped: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper that looks like the function, to Python and to torch.jit.script."""
    if getattr(getattr(function, "__code__", None), "co_flags", 0) & inspect.CO_ITERABLE_COROUTINE:
        wrapped = types.coroutine(wrapped)
    wrapped = functools.wraps(function)(wrapped)
    wrapped.__prepare_scriptable__ = lambda: function  # type: ignore[attr-defined]
    return wrapped


def _is_plain(function: Callable[..., Any]) -> bool:
    """Whether its signature is really its own, and not that of what it wraps."""
    return (
        inspect.isfunction(function)
        and not hasattr(function, "__wrapped__")
        and not hasattr(function, "__signature__")
    )


def _source(function: Callable[..., Any], signature: inspect.Signature, checks: Checks, exact: bool) -> str:
    parameters = list(signature.parameters.values())
    declared = _declared(parameters) if exact else f"*{_P}args, **{_P}kwargs"
    passed = _passed(parameters) if exact else f"*{_P}args, **{_P}kwargs"
    values = {
        parameter.name: parameter.name if exact else f"{_P}value_{index}"
        for index, parameter in enumerate(parameters)
    }
    body = ["__tracebackhide__ = True"]
    if not exact:
        body += _fetched(parameters, {name: values[name] for name in checks.names})
    body += _entering(checks, [values[name] for name in checks.names])
    call = f"{_P}function({passed})"
    is_async, lines = _around(function, call, _leaving(checks))
    keyword = "async def" if is_async else "def"
    given = "function entering leaving defaults Tensor channels_last channels_last_3d MISSING isinstance len".split()
    return "\n".join(
        [
            f"def make({', '.join(given)}):",
            *(f"    {_P}{name} = {name}" for name in given),
            f"    {keyword} wrapped({declared}):",
            *(f"        {line}" for line in [*body, *lines]),
            "    return wrapped",
            "",
        ]
    )


def _declared(parameters: Sequence[Parameter]) -> str:
    parts: list[str] = []
    for index, parameter in enumerate(parameters):
        kind, name = parameter.kind, parameter.name
        before = parameters[index - 1].kind if index else None
        if before is Parameter.POSITIONAL_ONLY and kind is not Parameter.POSITIONAL_ONLY:
            parts.append("/")
        if kind is Parameter.KEYWORD_ONLY and before not in (
            Parameter.VAR_POSITIONAL,
            Parameter.KEYWORD_ONLY,
        ):
            parts.append("*")
        star = "*" if kind is Parameter.VAR_POSITIONAL else "**" if kind is Parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is Parameter.empty else f"={_P}defaults[{name!r}]"
        parts.append(f"{star}{name}{default}")
    if parameters and parameters[-1].kind is Parameter.POSITIONAL_ONLY:
        parts.append("/")
    return ", ".join(parts)


def _passed(parameters: Sequence[Parameter]) -> str:
    return ", ".join(_FORMS[parameter.kind].format(parameter.name) for parameter in parameters)


def _fetched(parameters: Sequence[Parameter], values: dict[str, str]) -> list[str]:
    """Lines that find parameters among arguments that are passed on as they come."""
    lines = []
    args, kwargs = f"{_P}args", f"{_P}kwargs"
    positions = [
        p.name for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    named = {
        p.name for p in parameters if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    }
    for parameter in parameters:
        name, value = parameter.name, values.get(parameter.name)
        if value is None:
            continue
        missing = f"{_P}MISSING" if parameter.default is Parameter.empty else f"{_P}defaults[{name!r}]"
        by_keyword = f"{kwargs}.get({name!r}, {missing})"
        if parameter.kind is Parameter.VAR_POSITIONAL:
            lines.append(f"{value} = {args}[{len(positions)}:]")
        elif parameter.kind is Parameter.VAR_KEYWORD:
            lines.append(
                f"{value} = {{key: {kwargs}[key] for key in {kwargs} if key not in {sorted(named)!r}}}"
            )
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            lines.append(f"{value} = {by_keyword}")
        else:
            at = positions.index(name)
            lines.append(f"{value} = {args}[{at}] if {_P}len({args}) > {at} else {by_keyword}")
    return lines


def _entering(checks: Checks, values: Sequence[str]) -> list[str]:
    if checks.entering is None:
        return []
    call = f"{_P}entered = {_P}entering({', '.join(values)})"
    if None in checks.quick:
        return [call]
    tests = " and ".join(_quick(format, value) for format, value in zip(checks.quick, values, strict=True))
    return [f"{_P}entered = None", *_unless(tests, call)]


def _leaving(checks: Checks) -> Callable[[str], list[str]]:
    """Lines that look at a result of this name."""

    def lines(result: str) -> list[str]:
        if checks.leaving is None:
            return []
        entered = "None" if checks.entering is None else f"{_P}entered"
        call = f"{_P}leaving({result}, {entered})"
        return [call] if checks.quick_result is None else _unless(_quick(checks.quick_result, result), call)

    return lines


def _quick(format: str | None, value: str) -> str:
    return _QUICK[format or ""].format(value, p=_P)


def _unless(test: str, call: str) -> list[str]:
    # What has no strides, such as a sparse tensor, raises; so does a batched one within vmap.
    return [
        "try:",
        f"    {_P}held = {test}",
        "except RuntimeError:",
        f"    {_P}held = False",
        f"if not {_P}held:",
        f"    {call}",
    ]


def _around(
    function: Callable[..., Any], call: str, leaving: Callable[[str], list[str]]
) -> tuple[bool, list[str]]:
    """Whether the wrapper is asynchronous, and the lines that call the function and look at what comes out."""
    result = f"{_P}result"
    checked = leaving(result)
    if inspect.isasyncgenfunction(function):
        return True, _delegating(
            call,
            checked,
            "await {}.asend({})",
            "await {}.athrow({})",
            "await {}.aclose()",
            "StopAsyncIteration",
            "return",
        )
    if inspect.iscoroutinefunction(function):
        return True, [f"{result} = await {call}", *checked, f"return {result}"]
    if inspect.isgeneratorfunction(function):
        return False, _delegating(
            call,
            checked,
            "{}.send({})",
            "{}.throw({})",
            "{}.close()",
            "StopIteration",
            f"return {_P}error.value",
        )
    return False, [f"{result} = {call}", *checked, f"return {result}"]


def _delegating(
    call: str, checked: list[str], send: str, throw: str, close: str, stop: str, ended: str
) -> list[str]:
    """``yield from``, with a look at each value on its way out; there is none for asynchronous generators."""
    inner, result, sent, thrown, error = (f"{_P}{name}" for name in "inner result sent thrown error".split())
    return [
        f"{inner} = {call}",
        f"{sent} = {thrown} = None",
        "while True:",
        "    try:",
        f"        if {thrown} is None:",
        f"            {result} = {send.format(inner, sent)}",
        "        else:",
        f"            {result} = {throw.format(inner, thrown)}",
        f"    except {stop} as {error}:",
        f"        {ended}",
        "    finally:",
        f"        {sent} = {thrown} = None  # which would keep alive what they hold",
        "    try:",
        *(f"        {line}" for line in checked or ["pass"]),
        f"    except BaseException as {error}:",
        "        try:",
        f"            {close.format(inner)}",
        "        finally:  # whatever that raises, the violation is what happened",
        f"            raise {error}",
        "    try:",
        f"        {sent} = yield {result}",
        f"    except BaseException as {error}:  # it is the generator's to handle, and so is GeneratorExit",
        f"        {thrown} = {error}",
        f"    {result} = None",
    ]
