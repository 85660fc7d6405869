"""What a piece of syntax proves about the value it computes: is it a tensor, and of which rank."""

from __future__ import annotations

import re
from collections.abc import Sequence

import libcst as cst

from esper_guard.lint.flow import formats, operators
from esper_guard.lint.flow.dotted import dotted
from esper_guard.lint.flow.layouts import CHANNELS_LAST
from esper_guard.lint.flow.literals import whole_number
from esper_guard.lint.flow.values import ALL_RANKS, IMAGE_RANKS, NOTHING, Facts, Kind, rank
from esper_guard.lint.imports import Names
from esper_guard.lint.modules import NONE, Made
from esper_guard.lint.torch_names import (
    FUNCTIONAL,
    ONLY_TENSORS_HAVE,
    TENSOR_ATTRIBUTES,
    TENSOR_FUNCTIONS,
    TENSOR_METHODS,
    TENSORS_FUNCTIONS,
    VIEWS_OF_TENSORS,
)

TENSOR = Facts(Kind.TENSOR)
TENSORS = Facts(Kind.TENSORS)
OTHER = Facts(Kind.OTHER)
MODULE = Facts(Kind.MODULE)

_LAYOUT_FREE = frozenset(
    "is_cuda device dtype shape ndim requires_grad grad_fn names itemsize nbytes layout".split()
)
_OF_MATRICES = frozenset("TH")  # deprecated, and going to be an error, for any other rank
_MATRIX_RANKS = rank(0) | rank(1) | rank(2)
_FACTORIES = frozenset("empty ones rand randn zeros".split())
_SIZED_METHODS = frozenset("expand repeat reshape view new_empty new_ones new_zeros".split())
_RANK_KEEPING = frozenset(
    """
    abs bfloat16 byte clamp clip clone contiguous cpu cuda detach double exp flip float half int log long neg
    nan_to_num pin_memory pow relu requires_grad_ roll round rsqrt sigmoid softmax log_softmax sqrt tanh to
    transpose swapaxes swapdims movedim moveaxis type type_as index_select cumsum masked_fill
    """.split()
)
_PARAMETERS_OF_MODULES = frozenset(("parameters", "buffers"))
_CONVERSIONS = frozenset("to cuda cpu half float double bfloat16 type xpu".split())
_TENSOR_TYPES = re.compile(r"torch\.(?:cuda\.)?(?:\w*Tensor|nn\.Parameter|nn\.parameter\.\w*Parameter)\Z")
_JAXTYPING = frozenset(
    "Float Float16 Float32 Float64 BFloat16 Int Int32 Int64 UInt8 Bool Complex Inexact Num Real Shaped".split()
)
_PLAIN_TYPES = frozenset(
    """
    None bool bytes bytearray complex dict float frozenset int list range set slice str tuple type
    numpy.ndarray numpy.generic pathlib.Path PIL.Image.Image torch.device torch.dtype torch.Size
    typing.Callable typing.Dict typing.Iterable typing.Mapping typing.Text collections.abc.Callable
    collections.abc.Iterable collections.abc.Mapping torch.nn.utils.rnn.PackedSequence
    """.split()
)
_SEQUENCES = frozenset(
    "list tuple typing.List typing.Tuple typing.Sequence collections.abc.Sequence typing.Iterable".split()
)
_DEEPEST_BASES = 10
_KNOWN_BASES = frozenset(
    "object Exception dict list tuple str int float enum.Enum enum.IntEnum typing.NamedTuple typing.Protocol abc.ABC".split()
)


def from_annotation(annotation: cst.BaseExpression, names: Names) -> Facts:
    """What ``x: annotation`` says of ``x``. ``Optional[Tensor]`` counts as a tensor: None has no methods to call."""
    if isinstance(annotation, (cst.SimpleString, cst.ConcatenatedString)):
        text = annotation.evaluated_value
        try:
            return from_annotation(cst.parse_expression(text), names) if isinstance(text, str) else NOTHING
        except (cst.ParserSyntaxError, RecursionError):
            return NOTHING
    if isinstance(annotation, cst.BinaryOperation) and isinstance(annotation.operator, cst.BitOr):
        return _union((from_annotation(annotation.left, names), from_annotation(annotation.right, names)))
    if isinstance(annotation, cst.Subscript):
        return _from_generic(annotation, names)
    written = dotted(annotation)
    return from_type(written, names) if written else NOTHING


def _from_generic(annotation: cst.Subscript, names: Names) -> Facts:
    written = dotted(annotation.value)
    origin = names.resolve(written) if written else ""
    items = [e.slice.value for e in annotation.slice if isinstance(e.slice, cst.Index)]
    last = origin.rpartition(".")[2]
    if last in ("Optional", "Final", "ClassVar", "Annotated") and items:
        return from_annotation(items[0], names)
    if last == "Union":
        return _union(tuple(from_annotation(item, names) for item in items))
    if last in _JAXTYPING and len(items) == 2:
        facts = from_annotation(items[0], names)
        return facts.refined(Facts(ranks=_jaxtyping_ranks(items[1]))) if facts.kind is Kind.TENSOR else facts
    if origin in _SEQUENCES:
        elements = [item for item in items if not isinstance(item, cst.Ellipsis)]
        kinds = {from_annotation(item, names).kind for item in elements}
        return TENSORS if kinds == {Kind.TENSOR} else OTHER
    return OTHER if origin in _PLAIN_TYPES else NOTHING


def _jaxtyping_ranks(shape: cst.BaseExpression) -> int:
    text = shape.evaluated_value if isinstance(shape, cst.SimpleString) else None
    if not isinstance(text, str) or "..." in text or "*" in text:
        return ALL_RANKS
    return rank(len(text.split()))


def _union(members: tuple[Facts, ...]) -> Facts:
    """A union is a tensor if all but None are; it is no tensor if none of its members is one."""
    kinds = {member.kind for member in members}
    if kinds == {Kind.TENSOR, Kind.OTHER}:
        others = [m for m in members if m.kind is Kind.OTHER]
        return TENSOR if others == [OTHER._replace(ranks=0)] else NOTHING
    if len(kinds) == 1:
        return Facts(kinds.pop())
    return OTHER if kinds <= {Kind.OTHER, Kind.MODULE} else NOTHING


def from_type(written: str, names: Names) -> Facts:
    """What ``isinstance(x, written)`` proves. None is told apart by its empty set of ranks."""
    if written == "None":
        return OTHER._replace(ranks=0)
    if written in names.classes:
        return _from_local_class(written, names, depth=0)
    origin = names.resolve(written)
    if _TENSOR_TYPES.match(origin):
        return TENSOR
    if origin in _PLAIN_TYPES:
        return OTHER
    if origin in ("torch.nn.Module", "torch.nn.modules.module.Module"):
        return MODULE
    if _is_module_class(origin):
        return Facts(Kind.MODULE, made=frozenset((Made(origin),)))
    return NOTHING


def _is_module_class(origin: str) -> bool:
    return origin.startswith("torch.nn.") and origin.rpartition(".")[2][:1].isupper()


def from_made(made: frozenset[Made], names: Names) -> Facts:
    """What is known of something that one of these calls made: a module, if all of them make one."""
    kinds = {_kind_made(one.origin, names) for one in made}
    return Facts(kinds.pop() if len(kinds) == 1 else Kind.UNKNOWN, made=made)


def _kind_made(origin: str, names: Names) -> Kind:
    if origin == NONE:
        return Kind.MODULE
    kind = from_type(origin, names).kind
    # Other methods may bind the attribute, too: ``self.total = float(0)`` and ``self.total += loss``.
    return kind if kind is Kind.MODULE or origin in names.classes else Kind.UNKNOWN


def from_modules(made: frozenset[Made], arguments: list[Facts]) -> Facts:
    """What calling a module returns that one of these calls made."""
    ways = list(operators.ways_of(made))
    if not ways or not arguments:
        return NOTHING
    if not all(operators.is_known(operator) for way in ways for operator in way):
        return NOTHING
    argument = arguments[0]
    ranks = {_ranks_after(way, argument.ranks) for way in ways}
    layout = formats.after_modules(ways, argument)
    return Facts(Kind.TENSOR, ranks.pop() if len(ranks) == 1 else ALL_RANKS, layout=layout)


def _ranks_after(way: tuple[str, ...], ranks: int) -> int:
    for operator in way:
        ranks = operators.ranks_after(operator, ranks)
    return ranks


def _from_local_class(name: str, names: Names, depth: int) -> Facts:
    """A class of this file is no tensor if all of its bases are known not to be."""
    bases = [base for base in names.classes[name] if "=" not in base]
    kinds = set()
    for base in bases:
        origin = names.resolve(base)
        if base in names.classes:
            if depth >= _DEEPEST_BASES:  # ``class Config(Config)``, after an import of that name
                return NOTHING
            kinds.add(_from_local_class(base, names, depth + 1).kind)
        elif base in _KNOWN_BASES or origin in _KNOWN_BASES:
            kinds.add(Kind.OTHER)
        else:
            kinds.add(from_type(base, names).kind)
    if Kind.MODULE in kinds:
        return MODULE
    return OTHER if kinds <= {Kind.OTHER} else NOTHING


def from_function(origin: str, call: cst.Call, names: Names, arguments: list[Facts]) -> Facts:
    """What a call of a function, known by its full name, returns."""
    facts = _from_function(origin, call, names, arguments)
    if facts.kind not in (Kind.TENSOR, Kind.UNKNOWN):
        return facts
    return facts._replace(layout=formats.after_function(origin, call, arguments, names))


def _from_function(origin: str, call: cst.Call, names: Names, arguments: list[Facts]) -> Facts:
    if any(arg.keyword and arg.keyword.value.startswith("return_") for arg in call.args):
        return NOTHING
    module, _, name = origin.rpartition(".")
    if module == "torch":
        if name in TENSORS_FUNCTIONS:
            return TENSORS
        if name in _FACTORIES:
            return Facts(Kind.TENSOR, _ranks_of_sizes(call.args))
        if name == "permute":
            return Facts(Kind.TENSOR, _ranks_of_sizes(call.args[1:]))
        if name == "flatten":
            return Facts(Kind.TENSOR, _flatten_ranks(call.args[1:]))
        if name in TENSOR_FUNCTIONS:
            keeps = name.endswith("_like") or (name in _RANK_KEEPING and name not in ("clamp", "clip", "pow"))
            return Facts(Kind.TENSOR, arguments[0].ranks if keeps and arguments else ALL_RANKS)
    if module == "torch.nn.functional" and name in FUNCTIONAL:
        return TENSOR
    if origin == "einops.rearrange" and len(call.args) > 1:
        kind = arguments[0].kind if arguments[0].kind is Kind.TENSOR else Kind.UNKNOWN
        return Facts(kind, einops_ranks(call.args[1].value, right=True))
    return OTHER if module == "numpy" else from_type(origin, names)


def from_method(method: str, call: cst.Call, receiver: Facts, names: Names) -> Facts:
    """What ``receiver.method(...)`` returns."""
    facts = _from_method(method, call, receiver)
    if facts.kind not in (Kind.TENSOR, Kind.UNKNOWN, Kind.BATCH):
        return facts
    layout = formats.after_method(method, call.args, receiver, names)
    ranks = facts.ranks
    if (
        layout is not None and layout.order in CHANNELS_LAST.values()
    ):  # nothing else can be laid out like that
        ranks = ranks & rank(len(layout.order)) or ranks
    return facts._replace(ranks=ranks, layout=layout)


def _from_method(method: str, call: cst.Call, receiver: Facts) -> Facts:
    if method in TENSORS_FUNCTIONS and receiver.kind is Kind.TENSOR:
        return TENSORS
    is_tensor = receiver.kind is Kind.TENSOR or (
        receiver.kind is Kind.UNKNOWN and method in ONLY_TENSORS_HAVE
    )
    if is_tensor and (method in TENSOR_METHODS or method.endswith("_")):
        return Facts(Kind.TENSOR, _method_ranks(method, call, receiver))
    if method in _CONVERSIONS and receiver.kind is Kind.BATCH:
        return Facts(Kind.TENSOR if names_memory_format(call) else Kind.BATCH)
    if method in _CONVERSIONS and receiver.kind in (Kind.MODULE, Kind.OTHER):
        return Facts(receiver.kind)
    if method in _PARAMETERS_OF_MODULES:
        return TENSORS
    if method == "generate" and _is_text_generation(call):
        return TENSOR
    if method in TENSOR_METHODS:
        return Facts(ranks=_method_ranks(method, call, receiver))
    return NOTHING


def _is_text_generation(call: cst.Call) -> bool:
    """``model.generate(..., max_new_tokens=n)`` of transformers: token ids, unless a dictionary is asked for.

    Source: the documentation of transformers' ``GenerationMixin.generate``.
    """
    keywords = {arg.keyword.value for arg in call.args if arg.keyword is not None}
    return bool(keywords & {"max_new_tokens", "num_beams"}) and "return_dict_in_generate" not in keywords


_NUMBERS = (cst.Integer, cst.Float, cst.UnaryOperation)


def names_memory_format(call: cst.Call) -> bool:
    return any(arg.keyword is not None and arg.keyword.value == "memory_format" for arg in call.args)


def _method_ranks(method: str, call: cst.Call, receiver: Facts) -> int:
    args = call.args
    if method in ("clamp", "clip", "pow") and not all(isinstance(arg.value, _NUMBERS) for arg in args):
        return ALL_RANKS  # a tensor there may broadcast
    if method in _RANK_KEEPING or (
        method.endswith("_") and method not in ("squeeze_", "unsqueeze_", "resize_")
    ):
        return receiver.ranks
    if method == "permute":
        return _ranks_of_sizes(args)
    if method in _SIZED_METHODS:
        return _ranks_of_sizes(args)
    if method == "flatten":
        return _flatten_ranks(args)
    if method == "unsqueeze":
        return receiver.ranks << 1 & ALL_RANKS if receiver.ranks != ALL_RANKS else ALL_RANKS
    if method == "ravel":
        return rank(1)
    if method == "t":
        return rank(2) | rank(1) | rank(0)
    return ALL_RANKS


def _ranks_of_sizes(args: Sequence[cst.Arg]) -> int:
    """``(2, 3)`` and ``((2, 3))`` both name two sizes; one bare name may be either a size or a shape."""
    sizes = [arg for arg in args if arg.keyword is None or arg.keyword.value in ("size", "dims")]
    if any(arg.star for arg in sizes) or not sizes:
        return ALL_RANKS
    if len(sizes) > 1:
        return rank(len(sizes))
    only = sizes[0].value
    if isinstance(only, (cst.Tuple, cst.List)):
        if any(isinstance(element, cst.StarredElement) for element in only.elements):
            return ALL_RANKS
        return rank(len(only.elements))
    if isinstance(only, (cst.Integer, cst.UnaryOperation)):
        return rank(1)
    return ALL_RANKS


def _flatten_ranks(args: Sequence[cst.Arg]) -> int:
    """``flatten(start)`` leaves the dimensions before ``start`` and one more; with an end, it depends on the input."""
    if not args:
        return rank(1)
    only = args[0]
    starts = only.keyword is None or only.keyword.value == "start_dim"
    if starts and len(args) == 1 and isinstance(only.value, cst.Integer):
        return rank(int(only.value.value) + 1)
    return ALL_RANKS


def einops_ranks(pattern: cst.BaseExpression, right: bool) -> int:
    """The rank on one side of an einops pattern such as ``"b c h w -> b (h w) c"``."""
    text = pattern.evaluated_value if isinstance(pattern, cst.SimpleString) else None
    if not isinstance(text, str) or text.count("->") != 1 or "..." in text:
        return ALL_RANKS
    side = text.split("->")[1 if right else 0]
    return rank(len(re.sub(r"\([^)]*\)", "x", side).split()))


def from_attribute(base: Facts, attribute: str) -> Facts:
    """What ``base.attribute`` is."""
    if base.kind is Kind.TENSOR:
        if attribute in _LAYOUT_FREE:
            return OTHER
        if attribute in VIEWS_OF_TENSORS and attribute not in _OF_MATRICES:
            return Facts(Kind.TENSOR, base.ranks)
    if attribute in _OF_MATRICES and base.kind in (Kind.TENSOR, Kind.UNKNOWN):
        return Facts(base.kind, base.ranks & _MATRIX_RANKS or base.ranks)
    return TENSOR if attribute in TENSOR_ATTRIBUTES and base.kind is not Kind.OTHER else NOTHING


def from_subscript(base: Facts, node: cst.Subscript) -> Facts:
    """What ``base[...]`` is; an integer index takes one dimension away."""
    if base.kind is Kind.TENSORS:
        return TENSOR
    if base.kind is Kind.BATCH:
        return base
    if base.kind is not Kind.TENSOR:
        return NOTHING
    if base.ranks == ALL_RANKS:
        return TENSOR
    ranks = base.ranks
    for element in node.slice:
        index = element.slice
        if isinstance(index, cst.Slice):
            continue
        if not isinstance(index, cst.Index) or whole_number(index.value) is None:
            return TENSOR  # a name may be a number, a mask or None
        ranks >>= 1
    return Facts(Kind.TENSOR, ranks)


def element_of(iterable: Facts) -> Facts:
    """What a loop over a value with these facts yields."""
    if iterable.kind is Kind.TENSORS:
        return TENSOR
    if iterable.kind is Kind.TENSOR:
        return Facts(Kind.TENSOR, iterable.ranks >> 1 if iterable.ranks != ALL_RANKS else ALL_RANKS)
    return Facts(Kind.BATCH) if iterable.kind is Kind.BATCH else NOTHING


def can_be_image(facts: Facts) -> bool:
    """Whether the value may be a 4-D or 5-D tensor: the only ones that channels_last is defined for."""
    if facts.kind in (Kind.OTHER, Kind.MODULE, Kind.TENSORS):
        return False
    return bool(facts.ranks & IMAGE_RANKS)
