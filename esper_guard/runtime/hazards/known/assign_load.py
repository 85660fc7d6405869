"""``load_state_dict(assign=True)`` takes over the checkpoint's memory format with its tensors.

The cure converts the tensors before they are assigned. It leaves alone what is a parameter already
(``keep_vars=True``), since torch assigns that very object, which may be another model's or an optimizer's. Tensors
that share memory go on sharing it within the module that was hardened.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from esper_guard.runtime.formats import CHANNELS_LAST_FORMATS, has_strides, layout_of
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, Target, TargetCure


def triggers(module: nn.Module, state_dict: dict[str, Tensor], assign: bool = False) -> bool:
    """A load by assignment, of an NCHW tensor for a channels_last parameter."""
    return assign and any(
        _channels_last(parameter) and name in state_dict and not _channels_last(state_dict[name])
        for name, parameter in module.named_parameters()
    )


def _channels_last(tensor: Tensor) -> bool:
    return (
        not nn.parameter.is_lazy(tensor)
        and tensor.dim() in CHANNELS_LAST_FORMATS
        and has_strides(tensor)
        and layout_of(tensor).taken_for == "channels_last"
    )


def _keep_format(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *others: Any
) -> None:
    """A hook before a load: convert what is to be assigned, in the copy of the state dict that this load has."""
    if not local_metadata.get("assign_to_params_buffers", False):
        return
    parameters = dict(module.named_parameters(remove_duplicate=False))
    entries = {
        name: state_dict[prefix + name]
        for name in parameters
        if _assigned_anew(state_dict.get(prefix + name))
    }
    losing = {_memory(entry) for name, entry in entries.items() if _loses_format(entry, parameters[name])}
    converted: dict[object, Tensor] = {}
    for name, entry in entries.items():
        memory = _memory(entry)
        if memory in losing:
            if memory not in converted:
                converted[memory] = entry.to(memory_format=CHANNELS_LAST_FORMATS[entry.dim()])
            state_dict[prefix + name] = converted[memory]


def _assigned_anew(entry: object) -> bool:
    return isinstance(entry, Tensor) and not isinstance(entry, nn.Parameter) and has_strides(entry)


def _loses_format(entry: Tensor, parameter: Tensor) -> bool:
    return _channels_last(parameter) and entry.shape == parameter.shape and not _channels_last(entry)


def _memory(entry: Tensor) -> object:
    if type(entry) is not Tensor:
        return id(entry)
    return entry.untyped_storage()._cdata, entry.storage_offset(), entry.stride(), entry.shape, entry.dtype


def _apply(module: nn.Module) -> None:
    hooks = cast(Any, module)  # torch left the method untyped
    hooks._register_load_state_dict_pre_hook(_keep_format, with_module=True)


def _undo(module: nn.Module) -> None:
    hooks = module._load_state_dict_pre_hooks
    for number, hook in list(hooks.items()):
        if getattr(hook, "hook", None) is _keep_format:
            del hooks[number]


def _concerns(target: Target) -> bool:
    return isinstance(target, nn.Module) and any(
        nn.parameter.is_lazy(parameter) or parameter.dim() in CHANNELS_LAST_FORMATS
        for parameter in target.parameters()
    )


def probe() -> bool:
    """An NCHW checkpoint into a channels_last convolution."""
    module = nn.Conv2d(4, 4, 3)
    module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    module.load_state_dict(nn.Conv2d(4, 4, 3).state_dict(), assign=True)
    return not _channels_last(module.weight)


HAZARD = Hazard(
    id="assign-load-format",
    title="load_state_dict(assign=True) turns a channels_last model back to the checkpoint's format",
    consequence=Consequence.SLOW,
    devices=None,
    triggers=triggers,
    probe=probe,
    cure=TargetCure(_apply, _undo),
    concerns=_concerns,
    advice='convert the model after loading, or esper_guard.harden(model, ["assign-load-format"])',
    references=(
        "https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict",
        "https://github.com/pytorch/pytorch/pull/127549",
    ),
)
