"""The cases of the crash matrix, and a script that runs them, with a new child process after every death."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS
from esper_guard.runtime.hazards import HAZARDS, HazardError, harden, hazard_guard
from esper_guard.runtime.hazards.protection import cured

HAZARD = HAZARDS["group-norm-null-write"]
RAISED = f"HazardError: {HAZARD.id}"
SURVIVED = "the right gradients"

# what is called, and with which dtype: not all of one with all of the other, for time
CALLS = (
    ("module", "float64"),
    ("module", "float32"),
    ("module", "bfloat16"),
    ("module", "float16"),
    ("module", "autocast"),
    ("functional", "float32"),
    ("functional", "autocast"),
    ("after ReLU", "float32"),
)
# where the features come from, and which gradients are asked for
ROUTES = (
    ("leaf", "backward"),
    ("detached", "backward"),
    ("frozen backbone", "backward"),
    ("no_grad backbone", "backward"),
    ("needs grad", "grad"),
    ("needs grad", "backward(inputs)"),
)
LAYOUTS = ("channels_last", "permuted", "sliced")
SIZES = {  # shape and number of groups, by rank
    3: (((2, 8, 35), 2),),
    4: (
        ((2, 8, 1, 1), 2),
        ((2, 1, 5, 7), 1),
        ((2, 8, 45, 45), 4),
        ((2, 8, 23, 89), 8),
        ((2, 8, 32, 64), 1),
        ((2, 8, 56, 56), 2),
    ),
    5: (
        ((2, 8, 1, 1, 1), 2),
        ((2, 1, 3, 5, 7), 1),
        ((2, 8, 9, 15, 15), 4),
        ((2, 8, 1, 23, 89), 8),
        ((2, 8, 8, 16, 16), 1),
        ((2, 8, 4, 28, 28), 2),
    ),
}


class Case(NamedTuple):
    """A forward and a backward of a GroupNorm."""

    shape: tuple[int, ...]
    groups: int
    layout: str
    features: str = "leaf"
    ask: str = "backward"
    call: str = "module"
    dtype: str = "float32"
    affine: str = "weight and bias"
    """Which of its parameters are trained."""

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} in {', '.join(map(str, self[1:]))}"


MATRIX = [
    Case(shape, groups, layout, features, ask, call, dtype)
    for (call, dtype), (features, ask) in itertools.product(CALLS, ROUTES)
    for rank, layout in [*((4, layout) for layout in LAYOUTS), (5, "channels_last")]
    for shape, groups in SIZES[rank]
]
GROUP_COUNTS = [
    Case(shape, groups, layout)
    for layout, (shape, usual) in itertools.product(LAYOUTS, SIZES[4] + SIZES[5])
    for groups in (1, 2, 4, 8)
    if shape[1] % groups == 0 and (groups != usual or (len(shape) == 5 and layout != "channels_last"))
]
PARAMETERS = [
    Case((2, 8, 5, 7), 2, "channels_last", features, ask, call, affine=affine)
    for features, ask in [*ROUTES, ("leaf", "create_graph"), ("needs grad", "backward")]
    for call, affine in itertools.product(
        ("module", "after a trained convolution"), ("weight and bias", "weight", "bias")
    )
]
CONTROLS = [
    *(
        Case(shape, groups, "default", features, ask, call, dtype)
        for shape, groups in (*SIZES[3], *SIZES[4], *SIZES[5])
        for (call, dtype), (features, ask) in itertools.product(CALLS, ROUTES)
    ),
    *(
        Case(shape, groups, layout, "needs grad", "backward", call, dtype)
        for shape, groups in (*SIZES[4], *SIZES[5])
        for layout, (call, dtype) in itertools.product(LAYOUTS, CALLS)
    ),
    *(
        Case(shape, groups, layout, features, "create_graph")
        for shape, groups in (*SIZES[4], *SIZES[5])
        for layout, features in itertools.product(LAYOUTS, ("leaf", "needs grad"))
    ),
    *(
        Case(shape, groups, layout, "needs grad", affine=affine)
        for shape, groups in (*SIZES[4], *SIZES[5])
        for layout, affine in itertools.product(LAYOUTS, ("frozen", "none"))
    ),
    *(Case(shape, groups, "permuted", *route) for shape, groups in SIZES[3] for route in ROUTES),
    *(
        Case((1, *shape[1:]), 1, "ghost", *route)
        for shape in ((2, 8, 5, 7), (2, 8, 3, 5, 7))
        for route in ROUTES
    ),
]
BLOCKS = {
    "matrix": MATRIX,
    "group counts": GROUP_COUNTS,
    "parameters": PARAMETERS,
    "controls": CONTROLS,
}
CASES = [*MATRIX, *GROUP_COUNTS, *PARAMETERS, *CONTROLS]

_CONVOLUTION = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 2e-2}


class _FunctionalNorm(nn.Module):
    """A user's module that calls ``F.group_norm``."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        return functional.group_norm(features, self.groups, self.weight, self.bias)


def run(case: Case, mode: str) -> str:
    """What a case does in a mode, in a few words. May kill the process."""
    torch.manual_seed(0)
    norm = _norm(case)
    model = _model(case, norm)
    features = _features(case)
    asked = norm if case.ask in ("grad", "backward(inputs)") else model
    wanted = [parameter for parameter in asked.parameters() if parameter.requires_grad]

    safe = features.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = torch.autograd.grad(_loss(_forward(case, model, safe)), [*wanted, safe])
    unprotected = _forward(case, model, features)
    if features.requires_grad and case.ask == "backward":
        wanted.append(features)

    if mode == "harden":
        harden(model)
    if (HAZARD in cured()) != (mode == "harden" and HAZARD.affects()):
        return "cured where there is nothing to cure, or not cured"
    try:
        with hazard_guard() if mode == "guard" else nullcontext():
            result = _forward(case, model, features)
            gradients = _gradients(case.ask, _loss(result), wanted)
    except HazardError as error:
        return f"HazardError: {error.hazard}"
    if not torch.equal(result, unprotected):
        return "another forward"
    return SURVIVED if all(map(_close, gradients, expected)) else "wrong gradients"


def _norm(case: Case) -> nn.Module:
    norm: nn.Module
    if case.call == "functional":
        norm = _FunctionalNorm(case.groups, case.shape[1])
    else:
        norm = nn.GroupNorm(case.groups, case.shape[1], affine=case.affine != "none")
    for name, parameter in norm.named_parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(name in case.affine)
    return norm.to(_parameter_type(case))


def _model(case: Case, norm: nn.Module) -> nn.Module:
    if case.call == "after ReLU":
        return nn.Sequential(nn.ReLU(), norm)
    if case.call == "after a trained convolution":
        return nn.Sequential(_convolution(case), norm)
    return norm


def _features(case: Case) -> Tensor:
    """The input of the model, in the layout of the case."""
    x = torch.randn(case.shape).to(torch.bfloat16 if case.dtype == "autocast" else _parameter_type(case))
    if case.features == "leaf":
        return _laid_out(x, case.layout)
    if case.features == "needs grad":
        return _laid_out(x, case.layout).requires_grad_()
    if case.features == "detached":
        return _laid_out(x.requires_grad_(), case.layout).detach()
    backbone = _convolution(case).requires_grad_(case.features != "frozen backbone")
    with torch.set_grad_enabled(case.features != "no_grad backbone"):
        return _laid_out(_forward(case, backbone, _laid_out(x, case.layout)), case.layout)


def _laid_out(x: Tensor, layout: str) -> Tensor:
    match layout:
        case "channels_last":
            return x.to(memory_format=CHANNELS_LAST_FORMATS[x.dim()])
        case "permuted":  # a clone, since contiguous() would keep the strides of one channel or one position
            return x.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        case "sliced":
            return torch.cat([x, x], 1).to(memory_format=CHANNELS_LAST_FORMATS[x.dim()])[:, : x.shape[1]]
        case "ghost":  # channels_last in memory, but NCHW to kernels, by the stride of its one sample
            return x.to(memory_format=CHANNELS_LAST_FORMATS[x.dim()])[0].unsqueeze(0)
    return x


def _convolution(case: Case) -> nn.Module:
    channels = case.shape[1]
    convolution = _CONVOLUTION[len(case.shape)](channels, channels, 1)
    nn.init.dirac_(convolution.weight)  # a random weight may be so small that only rounding is left
    return convolution.to(_parameter_type(case))


def _parameter_type(case: Case) -> torch.dtype:
    return torch.float32 if case.dtype == "autocast" else getattr(torch, case.dtype)


def _forward(case: Case, model: nn.Module, features: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == "autocast"):
        return model(features)


def _loss(result: Tensor) -> Tensor:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    return (result * weights.to(result.dtype)).sum()


def _gradients(ask: str, loss: Tensor, wanted: list[Tensor]) -> Sequence[Tensor | None]:
    if ask in ("grad", "create_graph"):
        return torch.autograd.grad(loss, wanted, create_graph=ask == "create_graph")
    loss.backward(inputs=wanted if ask == "backward(inputs)" else None)
    return [tensor.grad for tensor in wanted]


def _close(gradient: Tensor | None, expected: Tensor) -> bool:
    if gradient is None or gradient.dtype != expected.dtype:
        return False
    scale = max(1.0, expected.abs().max().item())
    return (gradient - expected).abs().max().item() <= _TOLERANCE[gradient.dtype] * scale


def outcomes(cases: list[Case], mode: str) -> list[str]:
    """What each case does in a mode: in one child process until it dies, then in the next."""
    answers: list[str] = []
    while len(answers) < len(cases):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            _answer(cases[len(answers) :], mode, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answers += [line.rstrip("\n") for line in pipe]
        _, status = os.waitpid(child, 0)
        if len(answers) < len(cases):
            answers.append(
                signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "no answer"
            )
    return answers


def _answer(cases: list[Case], mode: str, writing: int) -> NoReturn:
    try:
        with os.fdopen(writing, "w") as pipe:
            for case in cases:
                try:
                    answer = run(case, mode)
                except Exception as error:  # noqa: BLE001 - it is the answer
                    answer = f"{type(error).__name__}: {error}".partition("\n")[0]
                print(answer, file=pipe, flush=True)
    finally:
        os._exit(0)


def main(mode: str, part: int, parts: int) -> None:
    """Print what every ``parts``-th case, from number ``part`` on, does in a mode, as a JSON list."""
    import resource  # Unix only, and the test is collected everywhere

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    print(json.dumps(outcomes(CASES[part::parts], mode)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
