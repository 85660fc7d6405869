"""What a project expects of its seed slot, as tests. Run it with: pytest examples/test_channels_last.py"""

import pytest
import torch
from torch import nn

from esper_guard import MemoryFormatError, SeedSlot, expects, first_loss, guard

ambiguous, ghost = (
    torch.randn(2, 1, 4, 5),
    torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)[0].unsqueeze(0),
)


@pytest.fixture
def slot():
    return (
        SeedSlot()
        .germinate(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64)))
        .advance("training")
    )


@pytest.mark.memory_format("channels_last", max_copies=0)
def test_isolation_copies_nothing(slot):
    host = torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    slot = slot.to(memory_format=torch.channels_last)
    with guard(slot, inputs="channels_last", outputs={"": "same as input", "seed.*": "channels_last"}):
        slot(host).square().sum().backward()


def test_the_output_has_the_hosts_format(slot, memory_format):
    checked = expects(x=memory_format, returns="same as x", copies=0)(lambda x: slot(x))
    checked(torch.randn(2, 64, 8, 8).to(memory_format=memory_format))
    assert first_loss(slot, torch.randn(2, 64, 8, 8).to(memory_format=torch.channels_last)) is None


@pytest.mark.parametrize(
    ("x", "policy", "accepted"),
    [(ambiguous, "accept", True), (ambiguous, "hint", False), (ghost, "accept", False)],
)
def test_what_counts_as_channels_last(x, policy, accepted):
    checked = expects(x="channels_last", ambiguous=policy)(lambda x: True)
    if not accepted:
        with pytest.raises(MemoryFormatError, match="expected channels_last"):
            checked(x)
    else:
        assert checked(x)
