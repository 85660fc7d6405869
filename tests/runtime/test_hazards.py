"""The registry, the guard and the cures, each against native calls that go wrong."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper_guard import HAZARDS, HazardError, SeedSlot, harden, hazard_guard, is_hardened, unharden
from esper_guard.runtime.hazards import Consequence, protection
from esper_guard.runtime.hazards.diagnosis import diagnose
from esper_guard.runtime.hazards.hazard import OperatorCure
from tests.conftest import run_python

GROUP_NORM = HAZARDS["group-norm-null-write"]
BATCH_NORM = HAZARDS["batch-norm-ghost-gradient"]
crashes_here = pytest.mark.skipif(not GROUP_NORM.affects(), reason="this torch release has no such crash")


@pytest.fixture(autouse=True)
def _nothing_stays_protected() -> Iterator[None]:
    yield
    protection.end_all()


def nhwc(*shape: int, dtype: torch.dtype = torch.double) -> Tensor:
    return torch.randn(*shape, dtype=dtype).to(memory_format=torch.channels_last)


# The registry


def test_every_hazard_is_complete_and_named_once() -> None:
    assert len(HAZARDS) >= 5
    for id, hazard in HAZARDS.items():
        assert id == hazard.id == hazard.id.lower()
        assert hazard.title
        assert hazard.advice
        assert hazard.references
        assert hazard.devices is None or hazard.devices
        assert bool(hazard.operators) == isinstance(hazard.cure, OperatorCure)


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("1.13.1", False),
        ("2.0.1", True),
        ("2.4.0+cu121", True),
        ("2.13.0+cpu", True),
        ("2.14.0a0+git123", True),
        ("2.14.0", False),
        ("2.15.0", False),
        ("3.0", False),
    ],
)
def test_the_crash_is_known_by_version(version: str, affected: bool) -> None:
    assert GROUP_NORM.affects(version) is affected


@pytest.mark.parametrize("id", HAZARDS)
def test_the_probe_agrees_with_the_version_and_with_the_cure(id: str) -> None:
    diagnosis = diagnose(HAZARDS[id])
    assert diagnosis.verdict == ("affected" if HAZARDS[id].affects() else "not affected"), diagnosis.why
    if diagnosis.verdict == "affected" and isinstance(HAZARDS[id].cure, OperatorCure):
        assert diagnosis.cured is True


def test_a_probe_that_hangs_or_fails_could_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = diagnose(GROUP_NORM, timeout=0.01)
    assert hanging.verdict == "could not tell"
    assert "0.01 s" in hanging.why
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "did not start" in diagnose(GROUP_NORM).why


# GroupNorm


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Identity(), nn.GroupNorm(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.group_norm(x, 2, self.weight)


@crashes_here
def test_the_error_names_hazard_module_line_and_cure() -> None:
    block = Block()
    with hazard_guard():
        y = block(nhwc(2, 4, 3, 3, dtype=torch.float))
        with pytest.raises(HazardError) as raised:
            y.sum().backward()
    error = raised.value
    assert error.hazard == "group-norm-null-write"
    assert error.module == "features.1"
    assert error.location is not None
    path, _, line = error.location.rpartition(":")
    assert path == __file__
    assert Path(path).read_text().splitlines()[int(line) - 1].strip() == "return self.features(x)"
    for part in ("group-norm-null-write", "features.1", error.location, "esper_guard.harden"):
        assert part in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.hazard, again.module) == (str(error), error.hazard, error.module)


@crashes_here
def test_a_forward_outside_of_the_guard_is_stopped_as_well() -> None:
    loss = Functional()(nhwc(2, 4, 3, 3, dtype=torch.float)).sum()
    with hazard_guard(), pytest.raises(HazardError, match="not known; run it inside of hazard_guard"):
        loss.backward()


@crashes_here
def test_the_guard_reaches_other_threads() -> None:
    raised: list[HazardError] = []

    def step() -> None:
        try:
            Block()(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
        except HazardError as error:
            raised.append(error)

    with hazard_guard():
        threads = [threading.Thread(target=step) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [error.module for error in raised] == ["features.1"] * 4


def crash() -> None:
    Block()(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()


def test_the_guard_is_silent_about_devices_that_have_no_such_bug() -> None:
    features = torch.empty(2, 4, 3, 3, device="meta").to(memory_format=torch.channels_last)
    image = torch.empty(1, 4, 3, 3, device="meta", requires_grad=True)
    ghost = features[0].unsqueeze(0)
    statistics, weight = torch.empty(2, 2, device="meta"), torch.empty(4, device="meta")
    sizes = (2, 4, 9, 2, [False, True, True])
    with hazard_guard():
        nn.GroupNorm(2, 4, device="meta")(features).sum().backward()
        # called by itself, since F.group_norm copies to NCHW on other devices
        torch.ops.aten.native_group_norm_backward(features, features, statistics, statistics, weight, *sizes)
        nn.BatchNorm2d(4, device="meta")(image).backward(ghost)


@hazard_guard()
def guarded_function() -> None:
    crash()


@hazard_guard()
async def guarded_coroutine() -> None:
    await asyncio.sleep(0)
    crash()


@hazard_guard()
def guarded_generator() -> Iterator[None]:
    yield
    crash()


@crashes_here
@pytest.mark.parametrize(
    "call",
    [
        guarded_function,
        lambda: asyncio.run(guarded_coroutine()),
        lambda: list(guarded_generator()),
    ],
)
def test_as_a_decorator(call: Callable[[], object]) -> None:
    with pytest.raises(HazardError):
        call()


def test_what_the_decorator_could_not_guard_is_refused() -> None:
    async def items() -> Any:
        yield

    for target in (items, Block, Block()):
        with pytest.raises(TypeError, match="with hazard_guard"):
            hazard_guard()(target)
    for kind in (staticmethod, classmethod):
        with pytest.raises(TypeError, match=f"below @{kind.__name__}"):
            hazard_guard()(kind(crash))
    with pytest.raises(TypeError, match=r"write @hazard_guard\(\)"):
        hazard_guard(crash)


def test_the_decorator_keeps_the_function_as_it_is_known() -> None:
    assert guarded_function.__name__ == "guarded_function"
    assert asyncio.iscoroutinefunction(guarded_coroutine)


@crashes_here
def test_the_guard_nests_and_ends() -> None:
    outer = hazard_guard()
    with outer:
        with outer, hazard_guard(["group-norm-null-write"]):
            pass
        with pytest.raises(HazardError):
            crash()
    child = run_python(
        "import torch\n"
        "from esper_guard import hazard_guard\n"
        "with hazard_guard(), hazard_guard(): pass\n"
        "torch.nn.GroupNorm(2, 4)(torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)).sum().backward()"
    )
    assert child.returncode < 0


LEAVING = """
import threading, time, torch
from esper_guard import harden, hazard_guard, unharden

torch.set_num_threads(1)
norm, features = torch.nn.GroupNorm(2, 4), torch.randn(2, 4, 3, 3, requires_grad=True)
end, steps = time.monotonic() + 4, []

def train():
    while time.monotonic() < end:
        norm(features).sum().backward()
    steps.append("finished")

threads = [threading.Thread(target=train) for _ in range(3)]
for thread in threads:
    thread.start()
while time.monotonic() < end:
    with hazard_guard():
        unharden(harden(norm))
for thread in threads:
    thread.join()
print(*steps)
"""


UNGUARDED = """
import sys, threading, time, torch
from esper_guard import harden, unharden

sys.setswitchinterval(1e-5)
torch.set_num_threads(1)
norm = torch.nn.InstanceNorm2d(4, affine=True)
features = torch.randn(1, 4, 3, 3, requires_grad=True)
gradient = torch.randn(1, 4, 3, 3).to(memory_format=torch.channels_last)
end, raised = time.monotonic() + 3, []

def train():
    while time.monotonic() < end:
        try:
            norm(features).backward(gradient)
        except Exception as error:
            raised.append(error)

threads = [threading.Thread(target=train) for _ in range(2)]
for thread in threads:
    thread.start()
while time.monotonic() < end:
    unharden(harden(norm))
for thread in threads:
    thread.join()
print(len(raised), "raised", *raised[:1])
"""


def test_nothing_raises_without_a_guard() -> None:
    child = run_python(UNGUARDED)
    assert child.stdout == "0 raised\n", child.stderr


FORKING = """
import os, signal, threading, torch
from esper_guard import harden, hazard_guard, unharden

norm, done = torch.nn.GroupNorm(2, 4), threading.Event()

def enter_and_leave():
    while not done.is_set():
        with hazard_guard():
            unharden(harden(norm))

thread = threading.Thread(target=enter_and_leave)
thread.start()
hung = 0
for _ in range(40):
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        with hazard_guard():
            unharden(harden(norm))
        os._exit(0)
    hung += os.waitpid(child, 0)[1] != 0
done.set()
thread.join()
print(hung, "hung")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_while_a_thread_enters_a_guard() -> None:
    child = run_python(FORKING)
    assert child.stdout == "0 hung\n", child.stderr


def test_a_guard_that_ends_leaves_the_calls_of_other_threads_alone() -> None:
    child = run_python(LEAVING)
    assert child.stdout.split() == ["finished"] * 3, child.stderr


@pytest.mark.parametrize("id", ["flat-parameter-view", "group-norm-null-writ"])
def test_the_guard_refuses_what_it_cannot_stop(id: str) -> None:
    with pytest.raises(ValueError, match=id):
        hazard_guard([id])


@crashes_here
@pytest.mark.parametrize("module", [Block, Functional])
def test_hardening_ends_for_good_when_it_is_undone(module: type[nn.Module]) -> None:
    model = module()
    assert harden(model) is model
    assert is_hardened(model)
    with hazard_guard():
        model(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    assert unharden(model) is model
    assert not is_hardened(model)
    with hazard_guard(), pytest.raises(HazardError):
        model(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()


@crashes_here
def test_one_hardened_module_stays_so_when_another_is_unhardened() -> None:
    first, second = harden(Block()), harden(Block())
    unharden(first)
    with hazard_guard():
        second(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    assert is_hardened(second)


@crashes_here
def test_parts_of_a_hardened_model_are_hardened() -> None:
    part = harden(Block()).features
    assert is_hardened(part)
    part(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()


@crashes_here
def test_a_backward_to_come_keeps_the_cure() -> None:
    slot = SeedSlot().germinate(nn.GroupNorm(2, 4)).advance("training")
    loss = slot(nhwc(2, 4, 3, 3, dtype=torch.float).requires_grad_()).sum()
    slot.prune()
    gc.collect()
    unharden(harden(nn.GroupNorm(2, 4)))
    loss.backward()


@crashes_here
def test_unhardening_a_shallow_copy_leaves_the_original_hardened() -> None:
    original = harden(nn.GroupNorm(2, 4))
    unharden(copy.copy(original))
    original(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    unharden(original)
    assert not protection.cured()


def through_pickle(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@crashes_here
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, through_pickle, lambda module: module.to(torch.double).to(torch.float)]
)
def test_hardening_survives(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = harden(Block())
    keys = list(Block().state_dict())
    again = copied(model)
    unharden(model) if again is not model else None
    assert is_hardened(again)
    assert list(again.state_dict()) == keys
    again(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()


@crashes_here
def test_hardening_travels_into_another_process() -> None:
    model = pickle.dumps(harden(nn.GroupNorm(2, 4)))
    child = run_python(
        f"import pickle, torch; model = pickle.loads({model!r})\n"
        "model(torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)).sum().backward()\n"
        "print('alive')"
    )
    assert child.stdout.strip() == "alive", child.stderr


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # Inductor imports it
@crashes_here
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_hardening_survives_compilation(backend: str) -> None:
    model = torch.compile(harden(Block()), backend=backend)
    model(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    assert is_hardened(model)


@crashes_here
def test_hardening_survives_ddp() -> None:
    child = run_python(
        "import os, tempfile, torch; from torch import nn; from esper_guard import harden\n"
        "store = 'file://' + tempfile.mkdtemp() + '/store'\n"
        "torch.distributed.init_process_group('gloo', init_method=store, rank=0, world_size=1)\n"
        "model = nn.parallel.DistributedDataParallel(harden(nn.GroupNorm(2, 4)))\n"
        "model(torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)).sum().backward()\n"
        "print('alive'); torch.distributed.destroy_process_group()"
    )
    assert child.stdout.endswith("alive\n"), child.stderr


def test_hardening_leaves_alone_what_has_no_such_call() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.LayerNorm(4))
    assert not is_hardened(harden(model))
    on_meta = nn.GroupNorm(2, 4, device="meta")
    assert is_hardened(harden(on_meta)) is GROUP_NORM.affects()  # it may be moved to the CPU


@pytest.mark.skipif(GROUP_NORM.affects(), reason="this torch release has the crash")
def test_a_sound_release_is_neither_hardened_nor_guarded() -> None:
    model = nn.GroupNorm(2, 4)
    assert not is_hardened(harden(model))
    with hazard_guard(["group-norm-null-write"]):
        assert not set(GROUP_NORM.operators) & set(protection._installed)
        model(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()


@pytest.mark.parametrize("call", [harden, unharden, is_hardened])
def test_only_modules_and_optimizers_can_be_hardened(call: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match="Tensor"):
        call(torch.ones(1))


def test_an_unknown_hazard_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'group-norm-null-write'"):
        harden(nn.Identity(), ["group-norm-null-rite"])


@crashes_here
def test_hardening_changes_no_number() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, 4).double()
    x, gradient = nhwc(2, 4, 5, 5), nhwc(2, 4, 5, 5)

    def step(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = norm(x)
        return y, torch.autograd.grad(y, [norm.weight, norm.bias], gradient)

    native, _ = step(x.clone().requires_grad_()) if not GROUP_NORM.affects() else (norm(x), None)
    reference, expected = step(x.contiguous())
    harden(norm)
    hardened, gradients = step(x)
    assert torch.equal(hardened, native)
    assert all(
        torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in zip(gradients, expected, strict=True)
    )
    torch.testing.assert_close(hardened, reference)


# InstanceNorm and BatchNorm


def layouts(dense: Tensor) -> Iterator[Tensor]:
    """The same values in every layout that the kernel may meet."""
    channels_last = torch.channels_last if dense.dim() == 4 else torch.channels_last_3d
    yield dense
    yield dense.to(memory_format=channels_last)
    doubled = torch.cat([dense, dense]).to(memory_format=channels_last)
    if dense.shape[0] == 1:
        yield doubled[0].unsqueeze(0)  # a ghost
        yield dense.to(memory_format=channels_last).reshape(dense.shape)
    yield doubled[: dense.shape[0]]
    wide = torch.cat([dense, dense], dim=-1)
    yield wide[..., : dense.shape[-1]]


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 5, 6), (2, 4, 5, 6), (1, 1, 5, 6), (1, 4, 1, 1), (1, 4, 1, 6), (1, 4, 5, 1), (1, 3, 2, 4, 5)],
)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_wrong_exactly_where_it_triggers_and_right_where_it_is_cured(
    shape: tuple[int, ...], training: bool
) -> None:
    torch.manual_seed(0)
    features, gradient = torch.randn(2, *shape, dtype=torch.double)
    weight = torch.randn(shape[1], dtype=torch.double)
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)
    saved = torch.native_batch_norm(
        features, weight, None, mean.clone(), variance.clone(), training, 0.1, 1e-5
    )
    rest = (weight, mean, variance, saved[1], saved[2], training, 1e-5, [True, True, True])
    native = torch.ops.aten.native_batch_norm_backward
    expected = native(gradient, features, *rest)

    def is_right(results: Any) -> bool:
        return all(torch.allclose(ours, theirs) for ours, theirs in zip(results, expected, strict=True))

    for x in layouts(features):
        for g in layouts(gradient):
            assert is_right(native(g, x, *rest)) is not BATCH_NORM.triggers(g, x, *rest), (
                x.stride(),
                g.stride(),
            )
            protection.cure([BATCH_NORM])
            assert is_right(native(g, x, *rest))
            protection.end_cure([BATCH_NORM])


def instance_norm_step(norm: nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 6, dtype=torch.double, requires_grad=True)
    norm(x).backward(nhwc(1, 4, 5, 6))
    gradients = [x.grad, *(parameter.grad for parameter in norm.parameters())]
    norm.zero_grad()
    return gradients


def test_instance_norm_is_guarded_and_cured() -> None:
    norm = nn.Sequential(nn.InstanceNorm2d(4, affine=True)).double()
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 6, dtype=torch.double, requires_grad=True)
    expected = torch.autograd.grad(norm(x), [x, *norm.parameters()], nhwc(1, 4, 5, 6).contiguous())
    assert not torch.allclose(instance_norm_step(norm)[1], expected[1])
    with hazard_guard(), pytest.raises(HazardError) as raised:
        instance_norm_step(norm)
    assert raised.value.module == "0"
    harden(norm)
    for ours, theirs in zip(instance_norm_step(norm), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("ghost", ["features", "gradient"])
@pytest.mark.parametrize("operator", ["_batch_norm_with_update", "_batch_norm_no_update"])
def test_the_newer_batch_norm_operator_is_guarded_and_cured(operator: str, ghost: str) -> None:
    torch.manual_seed(0)
    features, gradient = torch.randn(2, 1, 4, 5, 6, dtype=torch.double)
    weight = torch.randn(4, dtype=torch.double, requires_grad=True)
    bias, mean, variance = (torch.full((4,), value, dtype=torch.double) for value in (0, 0, 1))

    def weight_gradient(features: Tensor, gradient: Tensor) -> Tensor:
        call = getattr(torch.ops.aten, operator)
        result = call(features, weight, bias, mean.clone(), variance.clone(), 0.1, 1e-5)[0]
        return torch.autograd.grad(result, weight, gradient)[0]

    expected = weight_gradient(features, gradient)
    as_ghost = (
        (features if ghost == "features" else gradient).to(memory_format=torch.channels_last)[0].unsqueeze(0)
    )
    call = (as_ghost, gradient) if ghost == "features" else (features, as_ghost)
    assert not torch.allclose(weight_gradient(*call), expected)
    with hazard_guard(), pytest.raises(HazardError, match="test_hazards"):
        weight_gradient(*call)
    harden(nn.BatchNorm2d(4))
    assert torch.allclose(weight_gradient(*call), expected)


@crashes_here
def test_modules_that_torch_makes_are_not_named() -> None:
    model = torch.compile(Block(), backend="aot_eager")
    with hazard_guard(), pytest.raises(HazardError) as raised:
        model(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    assert raised.value.module == "Block"


@crashes_here
def test_a_recomputing_checkpoint_is_named_by_its_whole_path() -> None:
    model = nn.Sequential(nn.Identity(), Block())

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.blocks[1], self.blocks[0](x), use_reentrant=False)

    checkpointed = Checkpointed()
    with hazard_guard(), pytest.raises(HazardError) as raised:
        checkpointed(nhwc(2, 4, 3, 3, dtype=torch.float)).sum().backward()
    assert raised.value.module == "blocks.1.features.1"


# Optimizers


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.1)}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adagrad, {}),
]


def weights_after(
    kind: type[torch.optim.Optimizer],
    options: dict[str, Any],
    *,
    fused: bool,
    convert: bool,
    protect: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> Tensor:
    """Two steps, the second with a channels_last weight if asked for."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 2, 5, dtype=torch.double))
    optimizer = kind([weight], **{"lr": 0.1, **options}, fused=fused)
    protect(optimizer)
    for step in range(3):
        weight.grad = torch.randn(4, 3, 2, 5, dtype=torch.double)
        if convert and step:
            weight.data = weight.data.to(memory_format=torch.channels_last)
            weight.grad = weight.grad.to(
                memory_format=torch.channels_last if step == 1 else torch.contiguous_format
            )
        optimizer.step()
    unharden(optimizer)
    return weight.detach().contiguous()


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_fused_optimizers_are_guarded_and_cured(
    kind: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    expected = weights_after(kind, options, fused=False, convert=False)
    assert not torch.allclose(weights_after(kind, options, fused=True, convert=True), expected, atol=1e-3)
    with hazard_guard(), pytest.raises(HazardError, match="fused-optimizer-layout") as raised:
        weights_after(kind, options, fused=True, convert=True)
    assert raised.value.location is not None
    assert raised.value.location.startswith(__file__)
    with hazard_guard():
        weights_after(kind, options, fused=True, convert=False)  # no false alarm
    cured = weights_after(kind, options, fused=True, convert=True, protect=harden)
    assert torch.allclose(cured, expected, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("layout", ["sliced", "sliced with its gradient", "expanded gradient"])
def test_fused_optimizers_with_gaps_and_overlaps(layout: str, scaled: bool) -> None:
    def step(optimizer_options: dict[str, Any], protect: Callable[..., object]) -> Tensor:
        memory = torch.zeros(4, 6)
        weight = nn.Parameter(memory if layout == "expanded gradient" else memory[:, :3])
        if layout == "expanded gradient":
            weight.grad = torch.ones(1, 1).expand(4, 6)
        else:
            weight.grad = torch.ones(4, 6)[:, :3] if "gradient" in layout else torch.ones(4, 3)
        optimizer = torch.optim.SGD([weight], lr=1.0, **optimizer_options)
        protect(optimizer)
        if scaled and "fused" in optimizer_options:
            optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
        optimizer.step()
        unharden(optimizer)
        return memory

    expected = step({}, lambda optimizer: None)
    assert torch.equal(step({"fused": True}, harden), expected)
    with hazard_guard(), pytest.raises(HazardError):
        step({"fused": True}, lambda optimizer: None)


def test_a_size_1_stride_is_no_misfit() -> None:
    weight = nn.Parameter(torch.randn(4, 1, 2, 5).to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.randn(4, 1, 2, 5)
    with hazard_guard():
        optimizer.step()


def minimise_with_lbfgs(memory_format: torch.memory_format, *, protect: bool) -> Tensor:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 2).double().to(memory_format=memory_format)
    x = torch.randn(2, 3, 5, 5, dtype=torch.double)
    optimizer = torch.optim.LBFGS(convolution.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    if protect:
        assert is_hardened(harden(optimizer))

    def closure() -> float:
        optimizer.zero_grad()
        loss = convolution(x).square().mean()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    return convolution.weight.detach().contiguous()


def test_lbfgs_raises_on_channels_last_weights_and_is_cured() -> None:
    with pytest.raises(RuntimeError, match="view"):
        minimise_with_lbfgs(torch.channels_last, protect=False)
    expected = minimise_with_lbfgs(torch.contiguous_format, protect=False)
    assert torch.allclose(minimise_with_lbfgs(torch.channels_last, protect=True), expected)


def test_unhardening_an_optimizer_restores_it() -> None:
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(2))])
    before = set(vars(optimizer))
    unharden(harden(optimizer))
    assert set(vars(optimizer)) == before


def test_flat_parameters_trigger_where_view_raises() -> None:
    triggers = HAZARDS["flat-parameter-view"].triggers
    assert triggers([torch.ones(2), nhwc(4, 3, 2, 2)])
    assert not triggers([torch.ones(2), nhwc(4, 3, 1, 1), torch.ones(2, 3, 4, 5)])


# load_state_dict(assign=True)


def test_assign_load_keeps_the_format_where_that_is_asked_for() -> None:
    hazard = HAZARDS["assign-load-format"]
    assert hazard.consequence is Consequence.SLOW
    checkpoint = nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict()
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    assert hazard.triggers(model, checkpoint, assign=True)
    assert not hazard.triggers(model, checkpoint, assign=False)

    def is_channels_last_after_load(model: nn.Module) -> bool:
        model.load_state_dict(checkpoint, assign=True)
        assert torch.equal(model[0].weight, checkpoint["0.weight"])
        return model[0].weight.is_contiguous(memory_format=torch.channels_last)

    assert not is_channels_last_after_load(copy.deepcopy(harden(model)))  # only slow: not by default
    harden(model, ["assign-load-format"])
    assert is_channels_last_after_load(pickle.loads(pickle.dumps(model)))
    assert is_channels_last_after_load(copy.deepcopy(model))
    assert not is_channels_last_after_load(unharden(copy.deepcopy(model)))


def test_assign_load_takes_parameters_as_they_are() -> None:
    source = nn.Conv2d(3, 4, 3)
    model = harden(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), ["assign-load-format"])
    model.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    assert model.weight is source.weight
    assert source.weight.is_contiguous()
    harden(nn.LazyConv2d(4, 1), ["assign-load-format"])


class Tied(nn.Module):
    """Two pairs of convolutions with one weight; the second pair is of two formats after `formatted`."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)) for _ in range(2))
        for first, second in self.pairs:
            second.weight = first.weight

    def formatted(self) -> Tied:
        first, second = self.to(memory_format=torch.channels_last).pairs[1]
        second.weight = nn.Parameter(first.weight.detach().contiguous())
        return self


def test_assign_load_keeps_shared_memory_shared() -> None:
    checkpoint = Tied().state_dict()
    plain, kept = Tied().formatted(), harden(Tied().formatted(), ["assign-load-format"])
    for model in (plain, kept):
        model.load_state_dict(checkpoint, assign=True)
        for first, second in model.pairs:
            assert first.weight.data_ptr() == second.weight.data_ptr()
    for name, weight in kept.named_parameters():
        assert weight.requires_grad
        assert torch.equal(weight, checkpoint[name])
        assert weight.dim() != 4 or weight.is_contiguous(memory_format=torch.channels_last)
        assert checkpoint[name].is_contiguous()


def test_unhardening_a_shallow_copy_leaves_the_hooks_of_the_original() -> None:
    original = harden(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), ["assign-load-format"])
    unharden(copy.copy(original))
    original.load_state_dict(nn.Conv2d(3, 4, 3).state_dict(), assign=True)
    assert original.weight.is_contiguous(memory_format=torch.channels_last)
    unharden(original).load_state_dict(nn.Conv2d(3, 4, 3).state_dict(), assign=True)
    assert original.weight.is_contiguous()


def test_assign_load_reports_what_does_not_fit_as_torch_does() -> None:
    model = harden(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), ["assign-load-format"])
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        model.load_state_dict(nn.Conv2d(3, 4, 5).state_dict(), assign=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({}, assign=True)


# SeedSlot


@crashes_here
def test_a_slot_hardens_its_seed_unless_told_not_to() -> None:
    assert is_hardened(SeedSlot().germinate(nn.GroupNorm(2, 4)))
    assert not is_hardened(SeedSlot().germinate(nn.GroupNorm(2, 4), harden=False))
