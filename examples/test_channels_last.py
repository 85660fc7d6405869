"""What a project expects of its seed slot, as tests. Run it with: pytest examples/test_channels_last.py"""

import pytest
import torch
from torch import nn

from esper_guard import MemoryFormatError, SeedSlot, expects, guard

LAST = torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)
GREY = torch.randn(2, 1, 8, 8)  # one channel: NCHW and channels_last at once
STATES = {"nchw": LAST.contiguous(), "ghost": LAST[0].unsqueeze(0), "strided": LAST[:, :2], "ambiguous": GREY}


@pytest.mark.memory_format("channels_last", max_copies=0)
def test_isolation_copies_nothing_and_does_not_crash():
    slot = SeedSlot().germinate(nn.Sequential(nn.GroupNorm(8, 64), nn.Conv2d(64, 64, 1))).advance("training")
    slot.to(memory_format=torch.channels_last)
    with guard(slot, inputs="channels_last", outputs={"*": "same as input"}, gradients="same as parameter"):
        slot(LAST.clone().requires_grad_()).square().sum().backward()


def test_the_output_has_the_hosts_format(memory_format):
    slot = SeedSlot().germinate(nn.Conv2d(64, 64, 1)).advance("training")
    expects(x=memory_format, returns="same as x", copies=0)(lambda x: slot(x))(
        LAST.to(memory_format=memory_format)
    )


@pytest.mark.parametrize("state", STATES)
def test_what_is_not_channels_last(state):
    checked = expects(x="channels_last", ambiguous="hint")(lambda x: x)
    assert checked(LAST) is LAST
    with pytest.raises(MemoryFormatError, match=rf"x is {state}.*expected channels_last"):
        checked(STATES[state])
