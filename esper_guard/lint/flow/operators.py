"""Which operator a call runs: a function of torch, a method of a tensor, or a module of a known class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from esper_guard.lint.modules import NONE, Made
from esper_guard.operators import effect_of

# Any order of dimensions survives these, not only channels_last: they write their result where they read it.
ELEMENTWISE = frozenset(
    """
    abs add addcdiv addcmul bfloat16 byte ceil celu clamp clip clone cpu cuda detach div dropout dropout1d dropout2d
    dropout3d alpha_dropout feature_alpha_dropout double elu erf exp expm1 float floor gelu half hardsigmoid hardswish
    hardtanh identity int leaky_relu log log1p long lerp mish mul nan_to_num neg pow prelu reciprocal relu relu6 round
    rsqrt selu sigmoid sign silu softplus softshrink softsign sqrt square sub tanh tanhshrink threshold to type
    empty_like full_like ones_like rand_like randn_like zeros_like requires_grad_ add_ mul_ div_ sub_ clamp_ relu_
    """.split()
)
CONVOLUTIONS = frozenset("conv2d conv3d conv_transpose2d conv_transpose3d".split())
POOLS = frozenset(
    """
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d avg_pool2d avg_pool3d lp_pool2d
    lp_pool3d max_pool2d max_pool3d
    """.split()
)
RESIZES = frozenset("interpolate upsample pixel_shuffle pixel_unshuffle".split())
NORMS = frozenset("batch_norm group_norm".split())
_RANKED = CONVOLUTIONS | POOLS
IMAGES = frozenset(name for name in _RANKED if name.endswith("2d"))
VOLUMES = _RANKED - IMAGES
BY_NAME = "convolution"  # of a class or function that is not torch's, going by its name
_CHILDREN_IN_ORDER = "torch.nn.Sequential"
_MAX_WAYS = 16
# Not torch's own, but by its name a convolution of images: conv3x3(...), ConvNormAct(...), PatchEmbed(...).
_CONVOLUTION_BY_NAME = re.compile(
    r"(?:\w+\.)*(?:[cC]onv_?[1-9]x[1-9]\w*|Conv(?:2d)?(?:_?(?:[bB]n|BN|Norm|Act|Layer|Module|Block|ReLU|Same|Bias))*(?:2d)?|\w+Conv2d\w*"
    r"|(?:\w*Overlap)?PatchEmbed(?:ding)?)\Z"
)
_OPERATORS = {
    "Conv2d": "conv2d",
    "Conv3d": "conv3d",
    "ConvTranspose2d": "conv_transpose2d",
    "ConvTranspose3d": "conv_transpose3d",
    "LazyConv2d": "conv2d",
    "Upsample": "interpolate",
    "UpsamplingNearest2d": "interpolate",
    "UpsamplingBilinear2d": "interpolate",
    "SyncBatchNorm": "batch_norm",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "PReLU": "prelu",
    "RReLU": "rrelu",
    "ELU": "elu",
    "CELU": "celu",
    "SELU": "selu",
    "GELU": "gelu",
    "SiLU": "silu",
    "LeakyReLU": "leaky_relu",
    "LogSigmoid": "logsigmoid",
}


def of_made(made: Made) -> list[tuple[str, ...]]:
    """The chains of operators that calling a module may run; ``("?",)`` where it can't be told."""
    if made.origin == NONE:
        return []
    if made.origin == _CHILDREN_IN_ORDER:
        ways: list[tuple[str, ...]] = [()]
        for part in made.parts:
            ways = [(*way, *more) for way in ways for more in (of_made(part) or [()])][:_MAX_WAYS]
        return ways
    return [(operator_of_class(made.origin),)]


def operator_of_class(origin: str) -> str:
    """``max_pool2d`` for ``torch.nn.MaxPool2d``; ``"?"`` where it can't be told."""
    module, _, name = origin.rpartition(".")
    if module in ("torch.nn", "torch.nn.modules") or module.startswith("torch.nn.modules."):
        return _OPERATORS.get(name) or _without_rank(_snake(name))
    return BY_NAME if _CONVOLUTION_BY_NAME.match(origin) else "?"


def is_known(operator: str) -> bool:
    """Whether anything is known of what the operator does to a layout."""
    return operator in ELEMENTWISE or effect_of(operator) is not None


def ranks_after(operator: str, ranks: int) -> int:
    """The ranks of an operator's result, for those of its first argument. Images may come without a batch."""
    if operator in IMAGES:
        return ranks & (1 << 3 | 1 << 4) or 1 << 3 | 1 << 4
    if operator in VOLUMES:
        return ranks & (1 << 4 | 1 << 5) or 1 << 4 | 1 << 5
    return ranks


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _without_rank(name: str) -> str:
    """``batch_norm`` for ``batch_norm2d``: norms are one function for all ranks."""
    return re.sub(r"(norm)[123]d\Z", r"\1", name)


def ways_of(made: Iterable[Made]) -> Iterator[tuple[str, ...]]:
    for one in made:
        yield from of_made(one)
