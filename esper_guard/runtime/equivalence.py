"""``assert_layout_equivalent``: the same numbers in both memory formats, eager and compiled."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides
from esper_guard.runtime.hazards import hazard_guard
from esper_guard.runtime.model_copy import check_module, copy_as_written
from esper_guard.runtime.tracing.comparison import is_nchw, same_strides

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class _Variant(NamedTuple):
    """A way to run the model."""

    channels_last: bool
    backend: str | None

    def __str__(self) -> str:
        return (
            f"{'channels_last' if self.channels_last else 'NCHW'} {'compiled' if self.backend else 'eager'}"
        )


class _Passage(NamedTuple):
    """A module that ran: what it returned, and the gradient that came back for that."""

    module: str
    values: list[Tensor]
    gradients: list[Tensor | None]


@dataclass
class _Run:
    """What a variant computed."""

    variant: _Variant
    outputs: list[Tensor] = field(default_factory=list)
    passages: list[_Passage] = field(default_factory=list)
    """In the order in which the modules finished."""
    input_gradients: list[Tensor | None] = field(default_factory=list)
    parameter_gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)


def assert_layout_equivalent(
    model: nn.Module,
    inputs: Any,
    rtol: float | None = None,
    atol: float | None = None,
    *,
    train: bool = False,
    strides: bool = True,
    backend: str | None = "inductor",
) -> None:
    """Fail if the model gives other numbers in channels_last than in NCHW, or compiled than eager.

    Four copies of the model run, forward and backward from gradients of ones: NCHW and channels_last, eager and
    compiled. Compared are the outputs, buffers, the gradients of inputs and parameters, and of eager runs what every
    module returns and the gradient that comes back to it. They run in float64, or in the model's own dtype if it can't.
    The model, its buffers and its gradients stay as they are. A native crash that this package knows of
    (`hazard_guard`) raises instead; wrong numbers are shown.

    Args:
        model: on any device. Dropout modules are switched off in the copies; what else is random (``F.dropout`` in
            training mode) must not depend on the memory format.
        inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments; 4-D tensors (N, C, H, W) and 5-D
            tensors (N, C, D, H, W) are converted to the format of the run.
        rtol: relative tolerance; both default to those of `torch.testing.assert_close` for the dtype.
        atol: absolute tolerance.
        train: in training mode, where BatchNorm uses the batch; else in evaluation mode.
        strides: also fail if a 4-D or 5-D output of the channels_last run is NCHW, or if compiled code returns other strides than eager code, apart from dimensions of size 1.
        backend: of torch.compile; None leaves the compiled runs out.

    Raises:
        AssertionError: something differs; the message names the first module that does, and by how much.
        TypeError: the model is no module or can't be copied; or only one of ``rtol`` and ``atol`` is given.
        HazardError: the process would have crashed.
        Other errors are the model's own.
    """
    check_module(model, "assert_layout_equivalent")
    if (rtol is None) != (atol is None):
        raise TypeError("assert_layout_equivalent() needs both of rtol and atol, or neither")
    tolerances = (rtol, atol)
    reference, double = _reference(model, inputs, train)
    last = _run(model, inputs, _Variant(True, None), train, double)
    _compare(reference, last, tolerances)
    if strides:
        own = (
            [_run(model, inputs, run.variant, train, double=False) for run in (reference, last)]
            if double
            else ()
        )
        _compare_formats(*(own or (reference, last)))  # float64 has other kernels, with strides of their own
    for eager in (reference, last) if backend is not None else ():
        compiled = _run(model, inputs, eager.variant._replace(backend=backend), train, double, modules=False)
        try:
            _compare(eager, compiled, tolerances)
        except AssertionError as error:
            _blame_module(error, eager, model, inputs, compiled.variant, train, double, tolerances)
        if strides:
            _compare_strides(eager, compiled)


def _reference(model: nn.Module, inputs: Any, train: bool) -> tuple[_Run, bool]:
    try:
        return _run(model, inputs, _Variant(False, None), train, double=True), True
    except (NotImplementedError, RuntimeError, TypeError):  # an operator or a device without float64
        return _run(model, inputs, _Variant(False, None), train, double=False), False


def _run(
    model: nn.Module, inputs: Any, variant: _Variant, train: bool, double: bool, modules: bool = True
) -> _Run:
    with _seeded(), hazard_guard(["group-norm-null-write"]), torch.enable_grad():
        copied = _prepared(model, variant, train, double)
        arguments, keywords, leaves = _arguments(inputs, variant, double)
        run = _Run(variant)
        handles = _watch(copied, run) if modules else []
        called: Callable[..., Any] = copied
        if variant.backend is not None:
            torch._dynamo.reset()
            called = torch.compile(copied, backend=variant.backend)
        with warnings.catch_warnings():  # Dynamo asks for the .grad of its inputs, which are no leaves
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            outputs = _tensors(called(*arguments, **keywords))
        run.outputs = [output.detach().clone() for output in outputs]
        wanted = [output for output in outputs if output.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.ones_like(output) for output in wanted])
        for handle in handles:
            handle.remove()
        run.input_gradients = [leaf.grad for leaf in leaves]
        run.buffers = {name: buffer.clone() for name, buffer in copied.named_buffers()}
        run.parameter_gradients = {name: parameter.grad for name, parameter in copied.named_parameters()}
    return run


@contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers in each run, and the caller's own afterwards."""
    state = random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)


def _prepared(model: nn.Module, variant: _Variant, train: bool, double: bool) -> nn.Module:
    copied = copy_as_written(model, "assert_layout_equivalent")
    copied.train(train)
    copied.zero_grad(set_to_none=True)
    for module in copied.modules():
        if isinstance(module, _DROPOUTS):
            module.eval()
    if double:
        copied = copied.double()
    for tensor in (*copied.parameters(), *copied.buffers()):
        tensor.data = _converted(tensor.data, variant)
    return copied


def _arguments(
    inputs: Any, variant: _Variant, double: bool
) -> tuple[Sequence[Any], Mapping[str, Any], list[Tensor]]:
    leaves: list[Tensor] = []

    def prepare(tensor: Tensor) -> Tensor:
        wanted = torch.float64 if double and tensor.is_floating_point() else tensor.dtype
        prepared = _converted(tensor.detach().to(wanted), variant).clone()
        if not prepared.is_floating_point():
            return prepared
        leaves.append(prepared.requires_grad_())
        return prepared.clone()  # no leaf, so that the model may write into it

    ready = pytree.tree_map_only(Tensor, prepare, inputs)
    if isinstance(ready, Mapping):
        return (), ready, leaves
    return (ready if isinstance(ready, tuple | list) else (ready,)), {}, leaves


def _converted(tensor: Tensor, variant: _Variant) -> Tensor:
    rank = tensor.dim()
    if rank not in CHANNELS_LAST_FORMATS or not has_strides(tensor):
        return tensor
    return tensor.to(
        memory_format=CHANNELS_LAST_FORMATS[rank] if variant.channels_last else torch.contiguous_format
    )


def _watch(model: nn.Module, run: _Run) -> list[Any]:
    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, arguments: Any, result: Any) -> None:
            tensors = _tensors(result)
            passage = _Passage(name, [tensor.detach().clone() for tensor in tensors], [None] * len(tensors))
            for at, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    tensor.register_hook(_keeper(passage.gradients, at))  # type: ignore[no-untyped-call]
            run.passages.append(passage)

        return watch

    return [
        module.register_forward_hook(hook(name or type(model).__name__))
        for name, module in model.named_modules()
    ]


def _keeper(kept: list[Tensor | None], at: int) -> Callable[[Tensor], None]:
    def keep(gradient: Tensor) -> None:
        kept[at] = gradient.detach().clone()

    return keep


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and has_strides(leaf)]


def _compare(expected: _Run, actual: _Run, tolerances: tuple[float | None, float | None]) -> None:
    between = f"{actual.variant} against {expected.variant}"
    if actual.passages:
        names = [passage.module for passage in expected.passages]
        if names != [passage.module for passage in actual.passages]:
            raise AssertionError(f"{between}: other modules run, or in another order")
        for one, other in zip(expected.passages, actual.passages, strict=True):
            _close(one.values, other.values, tolerances, f"{between}: what '{one.module}' returns differs")
    _close(expected.outputs, actual.outputs, tolerances, f"{between}: the outputs differ")
    later = "the loss"
    if actual.passages:
        for one, other in zip(reversed(expected.passages), reversed(actual.passages), strict=True):
            what = f"{between}: the gradient differs that comes to the result of '{one.module}' from {later}"
            _close(one.gradients, other.gradients, tolerances, what)
            own = [name for name in expected.parameter_gradients if name.rpartition(".")[0] == one.module]
            _close_parameters(own, expected, actual, tolerances, between)
            later = f"'{one.module}'"
    _close_parameters(list(expected.parameter_gradients), expected, actual, tolerances, between)
    what = f"{between}: the gradient of the inputs differs"
    _close(expected.input_gradients, actual.input_gradients, tolerances, what)
    for name, buffer in expected.buffers.items():
        _close([buffer], [actual.buffers[name]], tolerances, f"{between}: buffer '{name}' differs")


def _close_parameters(
    names: list[str],
    expected: _Run,
    actual: _Run,
    tolerances: tuple[float | None, float | None],
    between: str,
) -> None:
    for name in names:
        one, other = expected.parameter_gradients[name], actual.parameter_gradients.get(name)
        _close([one], [other], tolerances, f"{between}: the gradient of parameter '{name}' differs")


def _close(
    expected: Sequence[Tensor | None],
    actual: Sequence[Tensor | None],
    tolerances: tuple[float | None, float | None],
    what: str,
) -> None:
    rtol, atol = tolerances
    if len(expected) != len(actual):
        raise AssertionError(f"{what}: {len(actual)} tensors instead of {len(expected)}")
    for one, other in zip(expected, actual, strict=True):
        if one is None or other is None:
            if one is not other:
                raise AssertionError(f"{what}: only one of them exists")
            continue
        try:
            torch.testing.assert_close(other, one, rtol=rtol, atol=atol, equal_nan=True)
        except AssertionError as error:
            raise AssertionError(f"{what}\n{error}") from None


def _compare_formats(expected: _Run, actual: _Run) -> None:
    """Whether channels_last stayed, all the way."""
    for at, (one, other) in enumerate(zip(expected.outputs, actual.outputs, strict=True)):
        if is_nchw(one) and is_nchw(other):
            lost = next((passage.module for passage in actual.passages if _loses(passage)), None)
            where = f"; the first module to return NCHW is '{lost}'" if lost is not None else ""
            raise AssertionError(
                f"{actual.variant}: output {at} of shape {tuple(other.shape)} is NCHW, strides {other.stride()}{where}"
            )


def _loses(passage: _Passage) -> bool:
    return any(map(is_nchw, passage.values))


def _compare_strides(expected: _Run, actual: _Run) -> None:
    """Whether compiled code returns the strides of eager code."""
    for at, (one, other) in enumerate(zip(expected.outputs, actual.outputs, strict=True)):
        if not same_strides(one.shape, one.stride(), other.stride()):
            raise AssertionError(
                f"{actual.variant} against {expected.variant}: output {at} of shape {tuple(one.shape)} "
                f"has the strides {other.stride()} instead of {one.stride()}"
            )


def _blame_module(
    error: AssertionError,
    expected: _Run,
    model: nn.Module,
    inputs: Any,
    variant: _Variant,
    train: bool,
    double: bool,
    tolerances: tuple[float | None, float | None],
) -> NoReturn:
    """Compile every module on its own, in the order in which they finish, and name the first that differs."""
    for name, module, arguments in _calls(model, inputs, expected.variant, train, double):
        alone = _run(module, arguments, expected.variant, train, double, modules=False)
        try:
            _compare(alone, _run(module, arguments, variant, train, double, modules=False), tolerances)
        except AssertionError as difference:
            raise AssertionError(f"in '{name}', compiled on its own as well: {difference}") from None
    raise AssertionError(
        f"{error}\nno module compiled on its own differs, so that none can be named"
    ) from None


def _calls(
    model: nn.Module, inputs: Any, variant: _Variant, train: bool, double: bool
) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """Each module's name, a copy of it, and the arguments of its first call."""
    copied = _prepared(model, variant, train, double)
    calls: dict[str, tuple[str, nn.Module, tuple[Any, ...]]] = {}
    begun: dict[str, tuple[Any, ...]] = {}

    def begin(name: str) -> Callable[..., None]:
        return lambda module, arguments: begun.update(
            {name: pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), arguments)}
        )

    def finish(name: str) -> Callable[..., None]:
        return lambda module, arguments, result: calls.update({name: (name, module, begun[name])})

    handles = []
    for path, module in copied.named_modules():
        name = path or type(model).__name__
        handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(finish(name))]
    arguments, keywords, _ = _arguments(inputs, variant, double)
    with _seeded(), torch.no_grad():
        copied(*arguments, **keywords)
    for handle in handles:
        handle.remove()
    return list(calls.values())
