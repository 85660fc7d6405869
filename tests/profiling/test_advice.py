"""What is said about results that nobody measured."""

from __future__ import annotations

import pytest

from esper_guard.profiling.advice import advise
from esper_guard.profiling.result import Comparison, LineCost, Memory
from tests.profiling.made_up import MACHINE, comparison, line, ratio, settings, variant


def advice(found: Comparison) -> list[str]:
    return advise(found, MACHINE, settings())


def judged(low: float, high: float, lines: list[LineCost] | None = None, **changes: object) -> list[str]:
    variants = [variant("NCHW", seconds=1.0), variant("NHWC", lines, seconds=1.0)]
    return advice(comparison(variants, [ratio("NHWC", "NCHW", low, high)], **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interval", "changes", "verdict"),
    [
        (
            (0.68, 0.74),
            {},
            "channels_last is worth it here: the step takes 0.71 (0.68 to 0.74) of the time, and copies nothing",
        ),
        (
            (1.18, 1.22),
            {},
            "channels_last is not worth it here: the step takes 1.20 (1.18 to 1.22) times as long, and",
        ),
        (
            (0.98, 1.02),
            {},
            "channels_last makes no difference that this machine can tell: the step takes 1.00 (0.98 to",
        ),
        (
            (0.90, 0.96),
            {"noise": (0.88, 1.02)},
            "Can't tell whether channels_last is worth it here: the step takes 0.93 (0.90 to 0.96) of the time, and this "
            "machine is too noisy to tell differences below 13.6 %",
        ),
        ((0.60, 0.62), {"noise": (0.88, 1.02)}, "channels_last is worth it here"),
        (
            (0.68, 0.74),
            {"rounds": 5},
            "Can't tell whether channels_last is worth it here: 5 rounds are too few",
        ),
        ((0.68, 0.74), {"noise": None}, "Time was not measured. In channels_last the step copies nothing"),
    ],
)
def test_the_verdict(interval: tuple[float, float], changes: dict[str, object], verdict: str) -> None:
    assert judged(*interval, **changes)[0].startswith(verdict)


def test_the_bytes_are_part_of_the_verdict() -> None:
    assert judged(0.7, 0.8, [line(bytes=3 * 2**20, count=2), line(line=9, bytes=2**20)])[0].endswith(
        "and copies 4.0 MiB between memory formats (3 copies)."
    )


def test_lines_with_what_helps() -> None:
    lines = [
        line(rule="EG101", finding="copies", help="write `x.detach()`."),
        line(line=9, text="", why="softmax writes NCHW (CPU)", remedy="y"),
        line(line=11, rule="EG201", finding="thrown away"),
        line(line=12, kind="explicit", text="x = x.contiguous()"),
        line(line=13, kind="loss", operator="aten.cat.default", why="cat writes NCHW (CPU)"),
        line(line=14),
    ]
    assert judged(0.7, 0.8, lines)[2:8] == [
        "model.py:7 `x = x.reshape(8, -1)` copies 512.0 KiB a step, in head (channels_last -> nchw). EG101: write `x.detach()`.",
        "model.py:9 copies 512.0 KiB a step, in head (channels_last -> nchw). Why: softmax writes NCHW (CPU). Write instead: y.",
        "model.py:11 `x = x.reshape(8, -1)` copies 512.0 KiB a step, in head (channels_last -> nchw). EG201: thrown away.",
        "model.py:12 `x = x.contiguous()` copies 512.0 KiB a step, in head (channels_last -> nchw). The line asks for it: leave it "
        "out unless something there needs NCHW.",
        "model.py:14 `x = x.reshape(8, -1)` copies 512.0 KiB a step, in head (channels_last -> nchw).",
        "model.py:13 `x = x.reshape(8, -1)` loses channels_last: its result is NCHW, in head (channels_last -> nchw). "
        "Why: cat writes NCHW (CPU).",
    ]


def test_a_line_is_named_once() -> None:
    lines = [line(), line(phase="backward"), line(line=9, changes_format=False)]
    about = [sentence for sentence in judged(0.7, 0.8, lines) if sentence.startswith("model.py")]
    assert len(about) == 1
    assert "copies 1.0 MiB a step" in about[0]


def test_many_lines_are_summed_up() -> None:
    said = judged(0.7, 0.8, [line(line=number) for number in range(1, 12)])
    assert len([sentence for sentence in said if sentence.startswith("model.py")]) == 8
    assert "3 lines more copy 1.5 MiB or lose channels_last." in said


def test_what_is_meant_is_not_blamed() -> None:
    said = judged(0.7, 0.8, [line(kind="explicit", source_format="nchw", result_format="channels_last")])
    assert said[2].startswith(
        "512.0 KiB of the copies are conversions into channels_last that a line asks for"
    )
    assert said[3] == "No line copies out of channels_last or loses it."


def test_gradients_in_another_format() -> None:
    lines = [
        line(
            file=None,
            line=None,
            text="",
            parameter="position",
            phase="backward",
            result_format="channels_last",
        ),
        line(kind="loss", phase="backward"),
    ]
    assert judged(0.7, 0.8, lines)[2:4] == [
        "parameter position has a gradient in another format, of which 512.0 KiB are copied a step, in head (channels_last -> "
        "channels_last).",
        "model.py:7 `x = x.reshape(8, -1)` loses channels_last in the backward: its gradient is NCHW, in head (channels_last -> "
        "nchw).",
    ]


def test_memory_is_part_of_the_advice() -> None:
    variants = [
        variant("NCHW", seconds=1.0),
        variant("NHWC", seconds=1.0, memory=Memory(forward=2**20, backward=2**20, peak=3 * 2**19)),
    ]
    said = advice(comparison(variants, [ratio("NHWC", "NCHW", 0.7, 0.8)]))
    assert said[0].startswith("channels_last is worth it here, if memory allows: the step takes")
    assert said[1] == (
        "Memory: at its peak the step needs 1.5 MiB, against 1.0 MiB in NCHW (+50 %); in all it allocates 2.0 MiB, "
        "against 3.0 MiB in NCHW (-33 %)."
    )


def test_what_was_not_seen_is_not_called_nothing() -> None:
    variants = [variant("NCHW"), variant("NHWC", unseen=["what torch.compile made of f"])]
    said = advice(comparison(variants, noise=None))
    assert "copies what could not be seen" in said[0]
    assert said[2].startswith(
        "Not seen: what torch.compile made of f. To see the lines of eager code, run eagerly"
    )
    assert "Bytes are exact, and the same in every run" in said[3]
    compiled = advise(comparison(variants, noise=None), MACHINE, settings(compiled=True))
    assert "To see the lines of eager code, measure without --compile." in compiled[2]
    assert "No line copies out of channels_last or loses it." not in said


def isolation(**changes: object) -> list[str]:
    variants = [
        variant("NCHW detach", seconds=1.0),
        variant("NCHW copy", seconds=1.0),
        variant("NHWC detach", seconds=1.0),
        variant(
            "NHWC copy",
            [line(bytes=2**21)],
            seconds=1.0,
            memory=Memory(forward=2**20 + 3 * 2**21, backward=2**21 - 2**10, peak=2**20 + 2**21),
        ),
    ]
    ratios = [ratio("NHWC detach", "NCHW detach", 0.7, 0.8), ratio("NCHW copy", "NCHW detach", 0.99, 1.01)]
    said = advice(comparison(variants, [*ratios, ratio("NHWC copy", "NHWC detach", 1.1, 1.2)], **changes))  # type: ignore[arg-type]
    return [sentence for sentence in said if "instead of" in sentence]


def test_what_isolation_costs() -> None:
    assert isolation() == [
        "`x.contiguous().detach()` instead of `x.detach()` in NCHW: no byte more is copied or allocated; no difference "
        "in time that this machine can tell: 1.00 (0.99 to 1.01).",
        "`x.contiguous().detach()` instead of `x.detach()` in NHWC: the step copies 2.0 MiB more, allocates 6.0 MiB more "
        "in the forward, allocates 1.0 KiB less in the backward, needs 2.0 MiB more at its peak; it takes 1.15 (1.10 to "
        "1.20) times as long.",
    ]
    assert isolation(noise=None)[1].endswith("needs 2.0 MiB more at its peak.")
    assert "no difference in time" in isolation(noise=(0.8, 1.3))[1]


def test_how_sure_it_is() -> None:
    quiet = judged(0.7, 0.8)
    assert quiet[-2].startswith("How sure: 20 rounds, ")
    assert (
        "the same code against itself is 1.00 (0.99 to 1.01), so differences below 1.0 % are not claimed"
        in quiet[-2]
    )
    assert quiet[-2].endswith("torch 2.13.0, A CPU, threads: 4.")
    assert "oneDNN" in quiet[-1]
    loud = judged(0.7, 0.8, noise=(0.8, 1.2))
    assert "too noisy here to tell differences below 25.0 %" in loud[-2]
    gpu = judged(0.7, 0.8, device="cuda:0")
    assert gpu[-2].endswith("torch 2.13.0, A GPU.")
    assert "cuDNN" in gpu[-1]


def test_hardening_is_said() -> None:
    """First, of a model of the user's own."""
    assert judged(0.7, 0.8, hardened="a crash")[0] == (
        "As it stands, this model is not safe in channels_last on this torch: a crash. Call `esper_guard.harden(model)` "
        "before you train it."
    )
    each = comparison([variant("NCHW"), variant("NHWC")], [], noise=None, hardened="a crash")
    assert advise(each, MACHINE, settings(target=None))[0] == "Hardened: a crash."
