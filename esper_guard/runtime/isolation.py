"""Gradient isolation and the blends: no copy, and the result in the host's memory format.

Shapes: ``host`` and ``seed`` are (N, C, H, W) or (N, C, D, H, W) features, or (B, T, C) tokens, of one shape. An
``alpha`` or ``gate`` is a number, or a tensor of one element, of shape (N,) or (N, 1, ..., 1) with a value for each
sample, or of the features' rank and broadcastable to them. Both are clamped to [0, 1].

Dtypes: the result has the host's. A seed of another dtype, as autocast makes it, is converted once, dtype and
format together. With 16-bit features and alpha or gate a tensor, a mix is ``(1 - share) * host + share * seed`` rather
than a lerp, with one temporary more, since a lerp would round ``1 - share`` away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esper_guard.runtime.formats import AMBIGUOUS_CHANNELS_LAST, CHANNELS_LAST_FORMATS, layout_of


def isolate(x: Tensor) -> Tensor:
    """The same values in the same memory, cut off from the gradient: ``x.detach()``.

    Nothing is copied and the memory format stays, at any rank. As the memory is shared, what changes the result in
    place changes ``x``, too; so it does with ``x.contiguous().detach()`` where ``x`` is contiguous already.

    That copy is often made for fear of a crash. The crash is a null write in the backward of GroupNorm on the CPU
    (`esper_guard.runtime.hazards`, group-norm-null-write), which `esper_guard.harden` cures at its source.

    Raises:
        TypeError: ``x`` is not a tensor.

    Source: ``torch.Tensor.detach`` shares storage and strides; benchmarks/seed_slot.py measures the bytes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"isolate() takes a tensor, not {type(x).__qualname__}; isolate each tensor of a container by itself"
        )
    return x.detach()


def straight_through(host: Tensor, seed: Tensor) -> Tensor:
    """The host's values, with the seed's gradient: ``host + (seed - seed.detach())``.

    The gradients of host and seed are both the gradient of the result. An inf or NaN in ``seed`` becomes NaN in the
    result, so that a diverged seed is seen; so does a value that is too large for the host's dtype.

    Raises:
        TypeError: the host does not hold floating-point numbers.
        ValueError: the shapes differ.

    Source: the straight-through estimator, arXiv:1308.3432.
    """
    seed = _like_host(seed, host)
    return _in_format_of(host, host + (seed - seed.detach()))


def blend_add(host: Tensor, seed: Tensor, alpha: float | Tensor) -> Tensor:
    """A convex mix: ``lerp(host, seed, alpha)``, equal to the host at alpha 0 where ``seed - host`` is finite.

    Gradients: ``(1 - alpha) * g`` to the host and ``alpha * g`` to the seed.

    Raises:
        TypeError: the host does not hold floating-point numbers.
        ValueError: the shapes differ, alpha fits neither samples nor features, or a number alpha is NaN.
    """
    return _mix(host, _like_host(seed, host), _fit("alpha", alpha, host))


def blend_multiply(
    host: Tensor, seed: Tensor, alpha: float | Tensor, *, seed_input: Tensor | None = None
) -> Tensor:
    """The host, modulated: ``host * (1 + alpha * tanh(seed - seed_input))``.

    The factor stays within [1 - alpha, 1 + alpha]; it is 1 where alpha is 0 and where the seed returns its input,
    and NaN where the seed is NaN.

    Args:
        seed_input: what the seed was given, of the host's shape. It takes part in the gradient as it is: isolated,
            the modulation gives the host no gradient, only its factor does. Default: ``isolate(host)``.

    Raises:
        TypeError: the host does not hold floating-point numbers.
        ValueError: the shapes differ, alpha fits neither samples nor features, or a number alpha is NaN.
    """
    reference = isolate(host) if seed_input is None else _like_host(seed_input, host, "seed_input")
    modulation = torch.tanh(_like_host(seed, host) - reference)
    share = _in_dtype_of(host, _fit("alpha", alpha, host))
    return _in_format_of(host, host * (1 + share * modulation))


def blend_gate(host: Tensor, seed: Tensor, alpha: float | Tensor, gate: float | Tensor) -> Tensor:
    """`blend_add` with an alpha for each sample: ``lerp(host, seed, alpha * gate)``.

    Args:
        gate: what a gate network made of the seed's input, clamped to [0, 1]; outside of it, it gets no gradient.

    Raises:
        TypeError: the host does not hold floating-point numbers.
        ValueError: the shapes differ, alpha or gate fits neither samples nor features, or is a number and NaN.
    """
    seed = _like_host(seed, host)
    return _mix(host, seed, _fit("alpha", alpha, host) * _fit("gate", gate, host))


def _like_host(seed: Tensor, host: Tensor, name: str = "seed") -> Tensor:
    """The seed in the host's dtype; its format is only touched if its dtype has to be."""
    if not (host.is_floating_point() or host.is_complex()):
        raise TypeError(f"the host has dtype {host.dtype}: features are floating-point numbers")
    if seed.shape != host.shape:
        raise ValueError(
            f"the {name} has shape {tuple(seed.shape)}, the host {tuple(host.shape)}: they have to be the same"
        )
    if seed.dtype == host.dtype:
        return seed
    return seed.to(dtype=host.dtype, memory_format=_memory_format(host))


def _memory_format(host: Tensor) -> torch.memory_format:
    if host.dim() not in CHANNELS_LAST_FORMATS:
        return torch.preserve_format
    if "channels_last" not in layout_of(host):  # torch 2.4 can't compile its property taken_for
        return torch.contiguous_format
    return CHANNELS_LAST_FORMATS[host.dim()]


def _fit(name: str, value: float | Tensor, host: Tensor) -> Any:
    """A number, or a tensor that broadcasts against the host without growing it; in [0, 1]."""
    if not isinstance(value, Tensor):
        if value != value:  # noqa: PLR0124 - NaN; torch.compile can't trace math.isnan
            raise ValueError(f"{name} is NaN")
        return min(max(float(value), 0.0), 1.0)
    if value.dim() != host.dim():
        value = _per_sample(name, value, host)
    elif any(size not in (1, wanted) for size, wanted in zip(value.shape, host.shape, strict=True)):
        raise ValueError(_misfit(name, value, host))
    return value.clamp(0, 1)


def _per_sample(name: str, value: Tensor, host: Tensor) -> Tensor:
    if value.numel() == 1:
        return value.reshape(())
    if value.numel() == value.shape[0] == host.shape[0]:
        return value.reshape([value.shape[0]] + [1] * (host.dim() - 1))
    raise ValueError(_misfit(name, value, host))


def _misfit(name: str, value: Tensor, host: Tensor) -> str:
    per_sample = (host.shape[0], *[1] * (host.dim() - 1))
    return (
        f"{name} has shape {tuple(value.shape)}, which does not broadcast to features of shape "
        f"{tuple(host.shape)}: give a number, or a value for each sample, of shape {per_sample}"
    )


def _mix(host: Tensor, seed: Tensor, share: float | Tensor) -> Tensor:
    if isinstance(share, Tensor) and host.dtype.itemsize <= 2:
        # Rounded to 16 bits, a share near 1 would leave the host no gradient, or twice its own.
        rest = _in_dtype_of(host, 1 - share)
        return _in_format_of(host, torch.addcmul(host * rest, seed, _in_dtype_of(host, share)))
    return _in_format_of(host, torch.lerp(host, seed, _in_dtype_of(host, share)))


def _in_dtype_of(host: Tensor, share: float | Tensor) -> Any:
    return share.to(host.dtype) if isinstance(share, Tensor) else share


def _in_format_of(host: Tensor, result: Tensor) -> Tensor:
    """Give the host's strides to a result that differs from it in dimensions of size 1 alone; moves no bytes in eager.

    Elementwise kernels write NCHW strides where both formats fit (C == 1, 1x1 features), and the format that later
    kernels take such a tensor for would be lost (evidence: tests/runtime/test_isolation.py).
    """
    if torch.compiler.is_compiling():
        return _compiled_in_format_of(host, result)
    if result.stride() == host.stride():
        return result
    if result.numel() == 0:
        return result.as_strided(host.shape, host.stride())
    if any(
        size != 1 and ours != theirs
        for size, ours, theirs in zip(host.shape, result.stride(), host.stride(), strict=True)
    ):
        return result
    # Outermost first, as the host has them: a dimension put back by unsqueeze takes its stride from the next one in.
    # Not as_strided: its backward copies.
    sizes, strides = host.shape, host.stride()
    order = sorted(range(len(sizes)), key=lambda dimension: (-strides[dimension], sizes[dimension] == 1))
    rebuilt = result.permute(order)
    unit = [place for place, dimension in enumerate(order) if sizes[dimension] == 1]
    rebuilt = rebuilt.squeeze(unit)
    for place in unit:
        rebuilt = rebuilt.unsqueeze(place)
    return rebuilt.permute([order.index(dimension) for dimension in range(len(sizes))])


def _compiled_in_format_of(host: Tensor, result: Tensor) -> Tensor:
    # Where both formats fit, the kernel will not write the strides that it is traced with, and a view would lose its
    # own at the edge of the graph.
    host_layout = layout_of(host)
    keeps_format = ("channels_last" in host_layout) == ("channels_last" in layout_of(result))
    if keeps_format and host_layout != AMBIGUOUS_CHANNELS_LAST:
        return result
    return result.clone(memory_format=_memory_format(host))
