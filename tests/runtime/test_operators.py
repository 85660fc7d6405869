"""Every line of the table of operators is true of the installed torch, and no operator is missing.

The table is esper_guard/operator_table.py. Where a line fails, the message says what was measured.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as users write it
from torch import Tensor

from esper_guard import layout_of, trace_layouts
from esper_guard.operators import OPERATORS, Effect, Operator, cases_of, effect_of, page, why_lost
from tests.conftest import ROOT, run_python

SECOND = frozenset({"y", "j", "m", "w", "w3"})
"""Names that stand for a second operand in a line's call."""
ALL_FORMATS = [("channels_last", "channels_last"), ("channels_last", "nchw"), ("nchw", "channels_last")]
"""Of the first and the second operand."""
MEANS = {
    Effect.KEEPS: {"channels_last"},
    Effect.DROPS: {"nchw", "nchw, nchw, nchw"},
    Effect.FIRST: {"channels_last, channels_last, nchw"},
    Effect.SECOND: {"channels_last, nchw, channels_last"},
    Effect.ALL: {"channels_last, nchw, nchw"},
    Effect.ANY: {"channels_last, channels_last, channels_last"},
}
"""What an effect looks like: formats of the result, for one format or for `ALL_FORMATS`."""
NOT_SEEN = {"split_copy", "split_with_sizes_copy", "unbind_copy", "one_hot"}
"""Lose the format in a list of results, or in place, of which a tracer doesn't tell (docs/tracing.md)."""

NO_OPERATOR_OF_IMAGES = {
    "of sequences and points, not of images": """
        adaptive_avg_pool1d adaptive_max_pool1d adaptive_max_pool1d_with_indices avg_pool1d conv1d conv_tbc
        conv_transpose1d dropout1d embedding embedding_bag lp_pool1d max_pool1d max_pool1d_with_indices max_unpool1d
        multi_head_attention_forward pdist""",
    "the result has fewer dimensions": """
        cosine_embedding_loss cosine_similarity cross_entropy ctc_loss linear_cross_entropy multi_margin_loss
        multilabel_margin_loss multilabel_soft_margin_loss nll_loss pairwise_distance triplet_margin_loss
        triplet_margin_with_distance_loss unfold""",
    "makes an image of something else": "affine_grid fold",
    "of matrices": """
        cholesky_inverse cholesky_solve geqrf grouped_mm inverse lobpcg lu matrix_power pca_lowrank pinverse qr
        scaled_addmm scaled_grouped_mm scaled_mm svd svd_lowrank triangular_solve""",
    "the dimensions of the result mean something else, so that its strides tell of no format": """
        adjoint as_strided moveaxis movedim permute permute_copy reshape_as swapaxes swapdims transpose transpose_copy
        unflatten unfold_copy unravel_index unsqueeze unsqueeze_copy view view_as view_as_real view_as_real_copy""",
    "reduces to dimensions of size 1": "norm_except_dim sum_to_size",
    "returns its argument": "atleast_1d atleast_2d atleast_3d from_dlpack module_load sym_sum",
    "for torch's own use": """
        assert_int_or_pair boolean_dispatch fbgemm_linear_quantize_weight handle_torch_function has_torch_function
        has_torch_function_unary has_torch_function_variadic index new resize_as slice_inverse""",
}
CALLS = re.split(
    r"\s{2,}",
    """(x)  (x, y)  ([x, y])  (x, y, x)  (i)  (i, j)  (c)  (x, w)  (x, g)  (x, m, 2.0)
    (x, 1)  (x, 2.0)  (x, 1, 2)  (x, 1, 1, 2)  (x, (2, 3))  (x, (2, 4, 6, 6))
    (x, 1, idx)  (x, 1, idx, 1.0)  (x, 1, j % 4, y)""",
)
"""Arguments that a function of images is likely to take."""
EXCLUDED = {name for names in NO_OPERATOR_OF_IMAGES.values() for name in names.split()}


def laid_out(tensor: Tensor, state: str) -> Tensor:
    last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return tensor.contiguous(memory_format=last if state == "channels_last" else torch.contiguous_format)


def operands(first: str, second: str, depth: int | None = None) -> dict[str, Any]:
    """What a call is evaluated with; with ``depth``, images are volumes."""
    torch.manual_seed(0)
    shape = (2, 4, 6, 6) if depth is None else (2, 4, depth, 6, 6)

    def image() -> Tensor:
        return torch.rand(shape) * 0.8 + 0.1

    of_first = {
        "x": image(),
        "i": (image() * 6).long(),
        "c": torch.complex(image(), image()),
        "z": torch.rand(2, 4, 4, 6, 6),
    }
    of_second = {
        "y": image(),
        "j": (image() * 6).long(),
        "m": image() > 0.5,
        "w": torch.rand(4, 4, 3, 3),
        "w3": torch.rand(4, 4, 3, 3, 3),
    }
    return {
        "torch": torch,
        "F": F,
        "g": torch.rand(4).sort()[0],
        "idx": torch.tensor([0, 2, 1]),
        "square": torch.rand(6, 6),
        "grid": torch.zeros(2, 6, 6, 2),
        **{name: laid_out(value, first) for name, value in of_first.items()},
        **{name: laid_out(value, second) for name, value in of_second.items()},
    }


def run(call: str, first: str, second: str, depth: int | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated names, and experimental dtypes
        return eval(call, operands(first, second, depth))


def images_in(result: Any) -> Iterator[Tensor]:
    for value in result if isinstance(result, tuple | list) else [result]:
        if isinstance(value, Tensor) and value.layout is torch.strided and value.dim() in (4, 5):
            yield value


def format_of(result: Any) -> str:
    """What kernels take the results for; an error if there is none, or several, or one could be either."""
    layouts = [layout_of(image) for image in images_in(result)]
    assert layouts
    assert not [layout for layout in layouts if layout.state in ("ambiguous", "ghost")]
    (taken,) = {layout.taken_for for layout in layouts}
    return taken


def formats_of(call: str) -> list[tuple[str, str]]:
    two = SECOND & set(compile(call, "call", "eval").co_names)
    return ALL_FORMATS if two else ALL_FORMATS[:1]


def measured(call: str, depth: int | None = None) -> str:
    return ", ".join(format_of(run(call, *formats, depth)) for formats in formats_of(call))


def line_of(case: Operator) -> str:
    return f"{case.name}, {case.when}" if case.when else case.name


@pytest.mark.parametrize("case", OPERATORS, ids=line_of)
def test_the_effect(case: Operator) -> None:
    assert measured(case.call) in MEANS[case.cpu], case.call


def test_volumes_are_as_images() -> None:
    same = 0
    for case in OPERATORS:
        try:
            found = measured(case.call, depth=3)
        except (RuntimeError, AssertionError, ValueError, IndexError, NotImplementedError):
            continue  # of images only, or a result of six dimensions
        assert "4-D" in case.when or found in MEANS[case.cpu], case.call
        same += 1
    assert same > 300


@pytest.mark.parametrize(
    "operand", ["2.0", "g[:, None, None]", "g[None, :, None, None]", "m[:, :1]", "square"]
)
def test_operands_without_channels_or_positions_do_not_count(operand: str) -> None:
    for call in (f"{operand} * x", f"x * {operand}"):
        assert format_of(run(call, "channels_last", "nchw")) == "channels_last"


def test_operands_without_a_batch_count() -> None:
    assert format_of(run("y[0] + x", "channels_last", "nchw")) == "nchw"


@pytest.mark.parametrize(
    "case", [case for case in OPERATORS if case.cpu not in (Effect.KEEPS, Effect.ANY)], ids=line_of
)
def test_the_tracer_shows_it_by_its_name(case: Operator) -> None:
    shown: set[str] = set()
    for formats in formats_of(case.call):
        namespace = operands(*formats)
        with warnings.catch_warnings(), trace_layouts() as trace:
            warnings.simplefilter("ignore")
            eval(case.call, namespace)
        shown |= {event.operator for event in trace.events if event.leaves_channels_last}
    assert bool(shown) is (case.name not in NOT_SEEN)
    names = {operator.split(".", 1)[1] for operator in shown}
    assert not shown or set(case.aten) & {*names, *(name.split(".")[0] for name in names)}, shown


def test_every_name_is_there() -> None:
    homes = {
        "torch": torch,
        "torch.nn.functional": F,
        "torch.Tensor": Tensor,
        "torch.utils.data": torch.utils.data,
    }
    for case in OPERATORS:
        assert case.homes
        for home in case.homes:
            assert hasattr(homes[home], case.name), f"{home}.{case.name}"
        for module in case.modules:
            assert issubclass(getattr(torch.nn, module), torch.nn.Module)
        for operator in case.aten:
            assert case.cpu in (Effect.KEEPS, Effect.ANY) or hasattr(torch.ops.aten, operator.split(".")[0])


ARGUMENTS = {
    "4, 4, 3": "Conv2d Conv3d ConvTranspose2d ConvTranspose3d",
    "4, 3": "LazyConv2d LazyConv3d LazyConvTranspose2d LazyConvTranspose3d",
    "4": "BatchNorm2d BatchNorm3d InstanceNorm2d InstanceNorm3d SyncBatchNorm",
    "2, 4": "GroupNorm",
    "(4, 6, 6)": "LayerNorm RMSNorm",
    "2, 2": "LPPool2d LPPool3d",
    "2, output_size=2": "FractionalMaxPool2d FractionalMaxPool3d",
    "2": """
        AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool2d AdaptiveMaxPool3d AvgPool2d AvgPool3d ChannelShuffle
        LocalResponseNorm MaxPool2d MaxPool3d MaxUnpool2d MaxUnpool3d PixelShuffle PixelUnshuffle""",
    "1": """
        CircularPad2d CircularPad3d ReflectionPad2d ReflectionPad3d ReplicationPad2d ReplicationPad3d ZeroPad2d
        ZeroPad3d""",
    "1, 0.0": "ConstantPad2d ConstantPad3d",
    "None, 2": "Upsample UpsamplingBilinear2d UpsamplingNearest2d",
    "0.5, 0.0": "Threshold",
    "6, 6": "Linear",
    "6": "LazyLinear",
    "6, 6, 3": "Bilinear",
}
"""How to make modules; all others without arguments."""
INPUTS = {
    "Bilinear": "(x, x)",
    "MaxUnpool2d": "(*F.max_pool2d(x, 2, return_indices=True))",
    "MaxUnpool3d": "(*F.max_pool3d(z, 2, return_indices=True))",
    "PixelShuffle": "(torch.cat([x, x], 1))",
    "SyncBatchNorm": ".eval()(x)",  # trains on a GPU only
}


@pytest.mark.parametrize("module", sorted({module for case in OPERATORS for module in case.modules}))
def test_a_module_does_what_its_operator_does(module: str) -> None:
    case = next(case for case in cases_of(module) if module != "Upsample" or not case.when)
    arguments = next((text for text, modules in ARGUMENTS.items() if module in modules.split()), "")
    inputs = INPUTS.get(module, "(z)" if module.endswith("3d") else "(x)")
    made = format_of(run(f"torch.nn.{module}({arguments}){inputs}", "channels_last", "nchw"))
    assert made == ("nchw" if case.cpu is Effect.DROPS else "channels_last")


def test_no_line_is_there_twice() -> None:
    lines = [(case.name, home, case.when) for case in OPERATORS for home in case.homes]
    assert len(lines) == len(set(lines))
    assert {case.cpu for case in OPERATORS} == set(Effect) - {Effect.DEPENDS}


def public(home: Any) -> set[str]:
    """Functions that write no argument."""
    return {
        name
        for name, value in vars(home).items()
        if not name.startswith("_")
        and not name.endswith("_")
        and (inspect.isroutine(value) or callable(value))
        and not isinstance(value, type)
        and "typing" not in str(getattr(value, "__module__", ""))
    }


def test_no_function_of_functional_is_missing() -> None:
    missing = {name for name in public(F) if not cases_of(name)} - EXCLUDED
    assert not missing, "add a line to esper_guard/operator_table.py, or a reason here"
    assert not {name for name in EXCLUDED if cases_of(name)}


@pytest.mark.parametrize("home", [torch, Tensor], ids=["torch", "Tensor"])
def test_no_operator_that_takes_an_image_is_missing(home: Any) -> None:
    unasked = {"compile", "init_num_threads"}  # of functions, and for the tests after this one
    names = {
        name
        for name in dir(home)
        if not name.startswith(("_", "is_", "set_", "share", "use_", "manual_"))
        and not name.endswith("_")
        and callable(getattr(home, name))
        and not isinstance(getattr(home, name), type)
        and name not in unasked | EXCLUDED
        and not cases_of(name)
    }
    missing = set()
    namespace = operands("channels_last", "channels_last")
    for name, call in product(sorted(names), CALLS):
        namespace["called"] = getattr(home, name)
        with contextlib.suppress(Exception):  # it is not called like this
            if any(1 not in image.shape for image in images_in(eval(f"called{call}", namespace))):
                missing.add(f"{name}{call}")
    assert not missing


def test_what_is_known_of_an_operator() -> None:
    for name in ("softmax", "torch.softmax", "torch.Tensor.softmax", "torch.nn.Softmax2d"):
        assert effect_of(name) is Effect.DROPS
    assert effect_of("torch.nn.Conv2d") is effect_of("Conv2d") is Effect.ANY
    assert effect_of("torch.where") is Effect.FIRST
    assert effect_of("torch.Tensor.where") is Effect.SECOND
    assert effect_of("torch.Tensor.grid_sample") is None
    assert effect_of("no_operator") is None
    assert effect_of("softmax", "cuda:0") is None
    assert effect_of("softmax", "cpu:0") is Effect.DROPS


def test_what_is_known_of_an_operator_that_depends_on_an_argument() -> None:
    assert effect_of("pad") is Effect.DEPENDS
    assert effect_of("pad", arguments={}) is Effect.KEEPS
    assert effect_of("pad", arguments={"mode": "circular"}) is Effect.DROPS
    assert effect_of("torch.nn.CircularPad2d") is Effect.DROPS
    assert effect_of("clone", arguments={"memory_format": "torch.contiguous_format"}) is Effect.DROPS
    assert effect_of("interpolate", arguments={"mode": "area"}) is Effect.DEPENDS
    assert effect_of("roll", arguments={}) is Effect.DEPENDS
    assert effect_of("torch.pow", arguments={}) is Effect.DEPENDS
    assert effect_of("torch.Tensor.pow", arguments={}) is Effect.FIRST


@pytest.mark.parametrize(
    ("operator", "line", "reason"),
    [
        ("aten._softmax.default", "", "softmax writes NCHW whatever it reads (CPU)"),
        ("aten._softmax.default", "F.softmin(x, 1)", "softmin writes NCHW whatever it reads (CPU)"),
        ("aten.cat.default", "", "cat writes channels_last only if all operands are (CPU)"),
        ("aten.pow.Tensor_Tensor", "a ** b", "pow writes the format of its first operand (CPU)"),
        ("aten.pow.Scalar", "", "pow (the base is a number) writes NCHW whatever it reads (CPU)"),
        ("aten.clone.default", "", None),
        ("aten.clone.default", "F.instance_norm(x)", "instance_norm writes NCHW whatever it reads (CPU)"),
        ("aten.clone.default", "F.instance_norm(x).contiguous()", None),
        ("aten.relu.default", "", None),
        ("mine.own.default", "", None),
    ],
)
def test_why_it_was_lost(operator: str, line: str, reason: str | None) -> None:
    assert why_lost(operator, "cpu", line) == reason
    assert why_lost(operator, "cuda:0", line) is None


def test_the_page_is_current() -> None:
    """Regenerate with ``python -m esper_guard.operators > docs/operators.md``."""
    done = subprocess.run(
        [sys.executable, "-m", "esper_guard.operators"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "operators.md").read_text() == done.stdout == page()
    assert all(f"`{case.name}`" in done.stdout for case in OPERATORS)


def test_the_table_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from esper_guard.operators import *; print(len(OPERATORS))"
    )
    assert run_python(code).stdout == f"{len(OPERATORS)}\n"
