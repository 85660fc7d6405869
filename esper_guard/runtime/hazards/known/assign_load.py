"""``load_state_dict(assign=True)`` takes over the checkpoint's memory format with its tensors."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from esper_guard.runtime.formats import has_strides, layout_of
from esper_guard.runtime.hazards.hazard import Consequence, Hazard, Target, TargetCure

_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def triggers(module: nn.Module, state_dict: dict[str, Tensor], assign: bool = False) -> bool:
    """A load by assignment, of an NCHW tensor for a channels_last parameter."""
    return assign and any(
        _channels_last(parameter) and name in state_dict and not _channels_last(state_dict[name])
        for name, parameter in module.named_parameters()
    )


def _channels_last(tensor: Tensor) -> bool:
    return (
        not nn.parameter.is_lazy(tensor)
        and tensor.dim() in _MEMORY_FORMATS
        and has_strides(tensor)
        and layout_of(tensor).taken_for == "channels_last"
    )


class _KeepFormat:
    """Hooks around a module's load: what was channels_last before is so after."""

    def __init__(self) -> None:
        self._formats: dict[str, torch.memory_format] = {}

    def before(self, module: nn.Module, *arguments: Any) -> None:
        self._formats = {
            name: _MEMORY_FORMATS[parameter.dim()]
            for name, parameter in module.named_parameters(recurse=False)
            if _channels_last(parameter)
        }

    def after(self, module: nn.Module, incompatible_keys: Any) -> None:
        for name, memory_format in self._formats.items():
            loaded = module.get_parameter(name)
            if not _channels_last(loaded):  # a new parameter: the loaded one may be another model's
                values = loaded.detach().to(memory_format=memory_format)
                module.register_parameter(name, nn.Parameter(values, loaded.requires_grad))


def _apply(module: nn.Module) -> None:
    keep, hooks = _KeepFormat(), cast(Any, module)  # torch left both methods untyped
    hooks._register_load_state_dict_pre_hook(keep.before, with_module=True)
    hooks.register_load_state_dict_post_hook(keep.after)


def _undo(module: nn.Module) -> None:
    for hooks in (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):
        for number, hook in list(hooks.items()):
            function = getattr(hook, "hook", hook)
            if isinstance(getattr(function, "__self__", None), _KeepFormat):
                del hooks[number]


def _concerns(target: Target) -> bool:
    return isinstance(target, nn.Module) and any(
        nn.parameter.is_lazy(parameter) or parameter.dim() in _MEMORY_FORMATS
        for parameter in target.parameters(recurse=False)
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
