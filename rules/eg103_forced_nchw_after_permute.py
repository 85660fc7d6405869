"""# forced-nchw-after-permute (EG103)

NHWC data is permuted to NCHW, which makes it channels_last for free, and then converted to `contiguous_format`.

## What it does

Flags `x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format)` and its other spellings: `clone` and
`contiguous` with that format; a permute made of several transposes or `movedim`; `einops.rearrange(x, "b h w c -> b c h
w")`; over several statements; volumes, `permute(0, 4, 1, 2, 3)`.

## Why is this bad?

A permuted NHWC batch has the strides of channels_last: convolutions read it as it is, and faster on many machines. The
conversion copies every batch to undo that. A conversion that names the format is kept by whoever reads the code later,
because it looks needed.

## Example

```python
def get_input(self, batch):
    x = batch["image"]  # (N, H, W, C), as it was decoded
    x = x.permute(0, 3, 1, 2)
    return x.to(memory_format=torch.contiguous_format).float()
```

## Use instead

```python
def get_input(self, batch):
    return batch["image"].permute(0, 3, 1, 2).float()
```

## When it stays silent

- Where the permuted tensor's layout is not in sight, or a permute before took it from NCHW to NHWC: the two cancel out.
- After `torch.stack`, factories and operators whose result is laid out like its shape: there is nothing to copy.
- Where the copy goes where its layout matters (a file, a pointer, an array, `view`, native code).
- In functions that exist for the conversion, by their name (`nhwc_to_nchw`), and where a comment on the line, or above
  it, gives a reason. In tests.
- It can't see who consumes what a function returns: something behind it may want NCHW.

## Fix safety

The fix is unsafe: it removes the conversion, so strides change, and the result may share memory with the original.

## References

- [Channels last memory format](https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html)
- [torch.Tensor.to](https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to.html)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from esper_guard.lint.rule import Claim, Finding, Fix, Invalid, Proof, Rule, Severity

if TYPE_CHECKING:
    from esper_guard.lint.flow import Flow
    from esper_guard.lint.outline import Outline


class ForcedNchwAfterPermute(Rule):
    """Looks at each conversion that names contiguous_format."""

    code = "EG103"
    name = "forced-nchw-after-permute"
    severity = Severity.WARNING
    heeds_reasons = True
    in_tests = False
    triggers = (
        rb"contiguous",
        rb"contiguous_format",
        rb"permute|rearrange|transpose|movedim|moveaxis|swapaxes|swapdims",
        rb"(?:permute|rearrange|transpose|movedim|moveaxis|swapaxes|swapdims)(?:[\s\\]*\(|[ \t]+as\b)",
    )

    @classmethod
    def may_apply(cls, outline: Outline) -> bool:
        """Whether something is converted by name that may be a permuted image."""
        from ._permuted import may_be_permuted_image

        if "contiguous_format" not in outline.words:
            return False
        converted = (part for call in outline.conversions for part in (call.func, *call.args[:1]))
        return any(may_be_permuted_image(tensor, outline) for tensor in converted)

    valid = (
        "import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2)\n",
        "import torch\ndef f(x):\n    return x.to(memory_format=torch.contiguous_format)\n",
        "import torch\ndef f(x):\n    return x.permute(0, 2, 3, 1).to(memory_format=torch.contiguous_format)\n",
        "import torch\ndef f(x):\n    return x.permute(2, 0, 1).to(memory_format=torch.contiguous_format)\n",
        "import torch\ndef f(x, d):\n    return x.permute(d).to(memory_format=torch.contiguous_format)\n",
        "import torch\ndef f(x):\n    x = x.permute(0, 3, 1, 2)\n    return x.to(memory_format=torch.channels_last)\n",
        (
            "import torch\ndef f(x):\n    x = x.to(memory_format=torch.channels_last)\n"
            "    return x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format)\n"
        ),
        (
            "import torch\ndef f(x):\n    x = x.permute(0, 2, 3, 1)\n"
            "    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format)\n"
        ),
        "import torch\ndef nhwc_to_nchw(x):\n    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format)\n",
        (
            "import torch\ndef f(x):\n    x = x.permute(0, 3, 1, 2)\n"
            "    return x.to(memory_format=torch.contiguous_format)  # the CUDA kernel needs NCHW\n"
        ),
        "import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).numpy()\n",
        (
            "import torch\ndef f(x):\n    x = x.permute(0, 3, 1, 2)\n    x = g(x)\n"
            "    return x.to(memory_format=torch.contiguous_format)\n"
        ),
        (
            "import torch\ndef f(x):\n    y = x.permute(0, 3, 1, 2)\n    if not y.is_contiguous():\n"
            "        y = y.to(memory_format=torch.contiguous_format)\n    return y\n"
        ),
        (
            "import torch\ndef f(xs):\n    x = torch.stack([x.permute(0, 3, 1, 2) for x in xs])\n"
            "    return x.to(memory_format=torch.contiguous_format)\n"
        ),
        "import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2).contiguous()\n",
        (
            "import torch\nfrom einops import rearrange\ndef f(x):\n    x = rearrange(x, 'b h w c -> b c (h w)')\n"
            "    return x.to(memory_format=torch.contiguous_format)\n"
        ),
    )
    invalid = (
        Invalid(
            "import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()\n",
            safe=False,
            fixed="import torch\ndef f(x):\n    return x.permute(0, 3, 1, 2).float()\n",
            message="it is channels_last already",
        ),
        Invalid(
            "import torch\nfrom einops import rearrange\ndef f(x):\n    x = rearrange(x, 'b h w c -> b c h w')\n"
            "    x = x.to(memory_format=torch.contiguous_format).float()\n    return x\n",
            fixed="import torch\nfrom einops import rearrange\ndef f(x):\n    x = rearrange(x, 'b h w c -> b c h w')\n"
            "    x = x.float()\n    return x\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    b, h, w, c = x.shape\n    x = x.transpose(2, 3).transpose(1, 2)\n"
            "    return x.clone(memory_format=torch.contiguous_format)\n",
            fixed="import torch\ndef f(x):\n    b, h, w, c = x.shape\n    x = x.transpose(2, 3).transpose(1, 2)\n"
            "    return x.clone()\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    assert x.ndim == 4\n"
            "    return torch.movedim(x, -1, 1).contiguous(memory_format=torch.contiguous_format)\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.permute([0, -1, 1, 2]).to('cuda', memory_format=torch.contiguous_format)\n",
            fixed="import torch\ndef f(x):\n    return x.permute([0, -1, 1, 2]).to('cuda')\n",
        ),
        Invalid(
            "import torch\ndef f(x):\n    return x.permute(0, 4, 1, 2, 3).to(memory_format=torch.contiguous_format)\n",
            message="channels_last_3d",
        ),
        Invalid(
            "import torch\nfrom torch.nn import functional as F\ndef f(x):\n    x = F.layer_norm(x.permute(0, 2, 3, 1), (3,))\n"
            "    return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format)\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    if len(x.shape) == 3:\n        x = x[..., None]\n"
            "    x = x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()\n    return x\n"
        ),
        Invalid(
            "import torch\ndef f(x):\n    # the CUDA kernel of something else\n    x = x.permute(0, 3, 1, 2)\n"
            "    return x.to(memory_format=torch.contiguous_format)  # NHWC -> NCHW\n"
        ),
        Invalid(
            "import torch\ndef f(x, y):\n    x, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2).contiguous()\n"
            "    x = x.to(memory_format=torch.contiguous_format)\n    return x, y\n",
            fixed="import torch\ndef f(x, y):\n    x, y = x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2).contiguous()\n"
            "    x = x.to(memory_format=torch.contiguous_format)\n    return x, y\n",
            message="`x.to(",
        ),
    )
    proof = Proof(
        Claim.COPIES,
        flagged="def run(x, conv):\n    x = x.permute(0, 3, 1, 2)\n"
        "    return conv(x.to(memory_format=torch.contiguous_format))\n",
        recommended="def run(x, conv):\n    x = x.permute(0, 3, 1, 2)\n    return conv(x)\n",
        inputs="(torch.rand(2, 6, 6, 8), nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last))",
    )

    def check(self, flow: Flow) -> Iterator[Finding]:
        from ._chains import removal
        from ._needs import needs_contiguous
        from ._permuted import copies_of_permuted, is_by_name

        for copy in copies_of_permuted(flow):
            if not is_by_name(copy) or needs_contiguous(flow, copy.call):
                continue
            shown, receiver = flow.positions.shown(copy.call), flow.positions.shown(copy.receiver)
            layout = flow.facts(copy.receiver).layout
            assert layout is not None
            memory_format = "channels_last" if len(layout.order) == 4 else "channels_last_3d"
            edit = removal(flow, copy)
            yield self.finding(
                flow,
                copy.call,
                f"`{shown}` copies `{receiver}` to NCHW order on every call: permuted from NHWC, it is {memory_format} already",
                help="leave the conversion out: convolutions, pools and elementwise operators read it as it is",
                fix=None if edit is None else Fix("Remove the conversion; strides change", False, (edit,)),
            )
