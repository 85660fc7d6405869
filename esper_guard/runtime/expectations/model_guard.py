"""``guard``: what memory formats the modules of a model take, return, and pass back."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from esper_guard.nearest import did_you_mean
from esper_guard.runtime.expectations.check import Check, References, remember
from esper_guard.runtime.expectations.error import Violation
from esper_guard.runtime.expectations.leaves import is_uninitialised, leaves_of
from esper_guard.runtime.expectations.places import Place
from esper_guard.runtime.expectations.switch import report, switch, warn
from esper_guard.runtime.expectations.wanted import (
    Ambiguous,
    Expectation,
    Written,
    check_ambiguous,
    parse,
    relations,
)
from esper_guard.runtime.model_copy import check_module

if TYPE_CHECKING:
    from typing_extensions import Self

Named = TypeVar("Named")

_WHERE = "guard()"
_INPUT, _OUTPUT, _PARAMETER = (Place(name) for name in ("input", "output", "parameter"))


class guard:  # noqa: N801 - used like a function
    """Check the memory formats that flow through a model, with hooks, until it is removed.

    >>> with guard(model, inputs="channels_last", outputs={"backbone.*": "same as input"}):
    ...     loss(model(images), labels).backward()
    >>> guarded = guard(model, gradients="same as parameter", fail_fast=False)
    >>> ...
    >>> guarded.remove()  # raises with all that was found

    Expectations are those of `expects`, or a dict of them by pattern: shell patterns (``*``, ``?``, ``[...]``) of the
    names in ``model.named_modules()``, or of parameters; the model itself is ``""``. Where several match, the last one
    counts, so that ``{"*": "channels_last", "head.*": None}`` leaves out the head. Everywhere tensors that can't have
    the format, such as logits of shape (N, K), are passed over.

    A module that runs in code of ``torch.compile`` is checked while that is traced, as with `expects`; gradients of
    outputs are not. Code that was compiled before does not notice the hooks: make the guard first. Copies of the model
    that are made meanwhile are guarded too, but for the gradients of their parameters.

    Cost: a microsecond or two for each tensor, for each module that a pattern matches. A GPU is never waited for.

    Args:
        model: its modules and parameters of now are watched, not those that are added later.
        inputs: of the arguments of a module's forward. Without patterns, of the model's own.
        outputs: of what it returns; "same as input" compares with its arguments. Without patterns, the model's own.
        gradients: of the gradients that arrive at the outputs of matching modules ("same as output" compares with
            the output), and that matching parameters have accumulated ("same as parameter"). A relation to one is
            not asked of the other. Without patterns, of all.
        parameters: of parameters, whenever the model itself is called. Without patterns, of all.
        ambiguous: as for `expects`.
        fail_fast: raise at the first violation. Otherwise all are collected, each once, and raised together by
            `remove`, or at the end of the ``with`` block if nothing else is raised there.

    Raises:
        MemoryFormatError: something is not as expected. With ``ESPER_GUARD=warn``, a MemoryFormatWarning; with
            ``ESPER_GUARD=off`` there are no hooks at all.
        TypeError: it is no module, or nothing is expected.
        ValueError: no module or parameter matches a pattern, or there is no such format, state or relation.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        inputs: Written = None,
        outputs: Written = None,
        gradients: Written = None,
        parameters: Written = None,
        ambiguous: Ambiguous = "accept",
        fail_fast: bool = True,
    ) -> None:
        check_module(model, "guard")
        check_ambiguous(ambiguous)
        if inputs is outputs is gradients is parameters is None:
            raise TypeError("guard() has nothing to expect: give inputs, outputs, gradients or parameters")
        self._ambiguous = ambiguous
        self._fail_fast = fail_fast
        self._found: dict[tuple[str, str, str], Violation] = {}
        self._looked = False
        self._removed = False
        self._handles: list[Any] = []
        modules = dict(model.named_modules(remove_duplicate=False))
        tensors = dict(model.named_parameters(remove_duplicate=False))
        taken = _by_name(inputs, "", modules, "inputs", ())
        given = _by_name(outputs, "", modules, "outputs", (_INPUT,))
        passed = _by_name(gradients, "*", {**modules, **tensors}, "gradients", (_OUTPUT, _PARAMETER))
        held = _by_name(parameters, "*", tensors, "parameters", ())
        if switch() == "off":
            return
        try:
            for name, module in _each_once(modules, taken):
                self._watch_inputs(name, module, taken[name])
            for name, module in _each_once(modules, given):
                self._watch_outputs(name, module, given[name])
            for name, module in _each_once(modules, passed):
                self._watch_gradients(name, module, passed[name])
            for name, parameter in _each_once(tensors, passed):
                self._watch_parameter(name, parameter, passed[name])
            if held:
                self._watch_parameters(model, {name: held[name] for name, _ in _each_once(tensors, held)})
        except BaseException:
            self._remove()
            raise

    @property
    def violations(self) -> tuple[Violation, ...]:
        """What was not as expected so far, each once."""
        return tuple(self._found.values())

    def remove(self) -> None:
        """Take the hooks away; unless ``fail_fast``, raise if something was not as expected. Again: do nothing."""
        if not self._removed:
            self._remove()
            if self._found and not self._fail_fast:
                report(_WHERE, list(self._found.values()))

    def __enter__(self) -> Self:
        if self._removed:
            raise RuntimeError("this guard was removed: make another one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._remove()
            return
        if self._handles and not self._looked:
            warn(
                "guard() has checked nothing: the model was not called, or ran as code that was compiled before the "
                "guard was made"
            )
        self.remove()

    def _remove(self) -> None:
        self._removed = True
        while self._handles:
            self._handles.pop().remove()

    # Hooks are plain functions, which deepcopy of a model leaves as they are.

    def _watch_inputs(self, name: str, module: nn.Module, expectation: Expectation) -> None:
        path = f"{name or type(module).__name__}: input"

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            __tracebackhide__ = True
            self._look(expectation, _input(args, kwargs), path)

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))

    def _watch_outputs(self, name: str, module: nn.Module, expectation: Expectation) -> None:
        path = f"{name or type(module).__name__}: output"
        compared = relations(expectation)
        entered = _Entered()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            __tracebackhide__ = True
            if not torch.compiler.is_compiling():
                entered.enter(module, references_of(args, kwargs))

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            __tracebackhide__ = True
            compiling = torch.compiler.is_compiling()
            references = references_of(args, kwargs) if compiling else entered.leave(module)
            self._look(expectation, output, path, references, made=True)

        def references_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> References:
            return remember([(place, _input(args, kwargs)) for place in compared])

        if compared:
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def _watch_gradients(self, name: str, module: nn.Module, expectation: Expectation) -> None:
        compared = relations(expectation)
        root = f"{name or type(module).__name__}: gradient of output"

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            __tracebackhide__ = True
            if torch.compiler.is_compiling() or self._removed:
                return
            self._looked = True
            for path, tensor in leaves_of(output, root):
                if tensor.grad_fn is not None:  # a leaf would keep its hooks
                    references = remember([(place, tensor) for place in compared])
                    tensor.register_hook(looking(path, references))  # type: ignore[no-untyped-call]

        def looking(path: Any, references: References) -> Callable[[Tensor], None]:
            def look(gradient: Tensor) -> None:
                __tracebackhide__ = True
                self._look(expectation, gradient, path, references, made=True)

            return look

        if _PARAMETER not in compared:
            self._handles.append(module.register_forward_hook(after))

    def _watch_parameter(self, name: str, parameter: nn.Parameter, expectation: Expectation) -> None:
        compared = relations(expectation)

        def accumulated(parameter: Tensor) -> None:
            __tracebackhide__ = True
            references = remember([(place, parameter) for place in compared])
            self._look(expectation, parameter.grad, f"{name}: gradient", references, made=True)

        if parameter.requires_grad and _OUTPUT not in compared and not is_uninitialised(parameter):
            handle = parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def _watch_parameters(self, model: nn.Module, held: Mapping[str, Expectation]) -> None:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            __tracebackhide__ = True
            for name, expectation in held.items():
                self._look(expectation, _attribute(module, name), name)

        self._handles.append(model.register_forward_pre_hook(before))

    def _look(
        self,
        expectation: Expectation | None,
        value: Any,
        path: Any,
        references: References | None = None,
        made: bool = False,
    ) -> None:
        """``made``: by the module or the backward, and not by whoever called it."""
        __tracebackhide__ = True
        if self._removed:
            return
        self._looked = True
        check = Check(self._ambiguous, references or {}, lenient=True, made=made)
        check.value(expectation, value, path)
        if not check.violations:
            return
        for violation in check.violations:
            self._found.setdefault((violation.path, violation.found, violation.wanted), violation)
        if self._fail_fast:
            report(_WHERE, check.violations)


class _Entered(threading.local):
    """The calls of modules that one thread has entered, with what shall be compared when they are left."""

    _MOST = 256
    """Deeper calls than these are none; they have ended with an exception, of which no hook is told."""

    def __init__(self) -> None:
        self._calls: deque[tuple[int, References]] = deque(maxlen=self._MOST)

    def enter(self, module: nn.Module, references: References) -> None:
        """Begin a call."""
        self._calls.append((id(module), references))

    def leave(self, module: nn.Module) -> References:
        """End the innermost call of a module."""
        while self._calls:
            entered, references = self._calls.pop()
            if entered == id(module):
                return references
        return {}


def _each_once(objects: Mapping[str, Named], expected: Mapping[str, object]) -> list[tuple[str, Named]]:
    """The objects that something is expected of, by one of their names."""
    found: dict[int, tuple[str, Named]] = {}
    for name, value in objects.items():
        if name in expected:
            found.setdefault(id(value), (name, value))
    return list(found.values())


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What "input" means: the only argument, or all of them."""
    return args[0] if len(args) == 1 and not kwargs else (*args, kwargs) if kwargs else args


def _attribute(module: nn.Module, name: str) -> Any:
    """What stands under a parameter's name, which need not be a parameter any more; None if nothing does."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _by_name(
    written: Written, default: str, names: Iterable[str], argument: str, related: tuple[Place, ...]
) -> dict[str, Expectation]:
    """Expectations by the names that patterns match."""
    patterns = written if isinstance(written, Mapping) else {} if written is None else {default: written}
    expected: dict[str, Expectation | None] = {}
    for pattern, part in patterns.items():
        expectation = parse(part)
        _check_relations(expectation, argument, related)
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            raise ValueError(
                f"guard({argument}=...): nothing in the model matches '{pattern}'{did_you_mean(pattern, names)}"
            )
        expected.update(dict.fromkeys(found, expectation))
    return {name: expectation for name, expectation in expected.items() if expectation is not None}


def _check_relations(expectation: Expectation | None, argument: str, related: tuple[Place, ...]) -> None:
    for place in relations(expectation):
        if all(place.name != other.name for other in related):
            allowed = " or ".join(f"'same as {other.text}'" for other in related) or "none"
            raise ValueError(
                f"guard({argument}=...): 'same as {place.text}' is no relation here: {allowed} is"
            )
