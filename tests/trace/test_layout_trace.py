"""The trace as data: sums, bounds, files, tables. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_guard import Cost, LayoutEvent, LayoutTrace, load_trace, merge
from esper_guard.trace.saved import schema
from esper_guard.trace.sizes import format_size, parse_size
from esper_guard.trace.span import Span
from esper_guard.trace.table import render_costs, why
from esper_guard.trace.tally import prototype_of
from tests.conftest import ROOT, run_python, run_without_torch

jsonschema = pytest.importorskip("jsonschema")


def event(**fields: Any) -> LayoutEvent:
    values: dict[str, Any] = {
        "kind": "hidden",
        "operator": "aten.clone.default",
        "source": "channels_last",
        "destination": "nchw",
        "source_shape": (8, 64, 28, 28),
        "shape": (8, 64, 28, 28),
        "dtype": "float32",
        "device": "cpu",
        "phase": "forward",
        "bytes": 1000,
        "file": "/home/me/project/model.py",
        "line": 41,
        "module": "features.3",
        **fields,
    }
    return LayoutEvent(**values)


def trace_of(*events: LayoutEvent, **options: Any) -> LayoutTrace:
    trace = LayoutTrace(**options)
    for one in events:
        trace.tally(prototype_of(one)).include(one)
    return trace


EVENTS = (
    event(),
    event(line=50, kind="explicit", bytes=5000, count=2, module=None),
    event(line=60, kind="loss", operator="aten._softmax.default", bytes=700),
    event(line=41, kind="internal", bytes=300),
    event(line=70, changes_format=False, source="strided(nchw)", bytes=9000),
    event(file=None, line=None, parameter="conv.weight", module=None, phase="backward", bytes=200),
)

texts = st.text(max_size=8)
sizes = st.integers(0, 2**40)
shapes = st.lists(st.integers(0, 9), max_size=5).map(tuple)
events = st.builds(
    event,
    kind=st.sampled_from(["explicit", "hidden", "loss", "internal"]),
    operator=texts,
    source=texts,
    source_shape=shapes,
    shape=shapes,
    bytes=sizes,
    count=st.integers(1, 1000),
    changes_format=st.booleans(),
    shapes_vary=st.booleans(),
    file=st.none() | texts,
    line=st.none() | st.integers(0, 10**6),
    module=st.none() | texts,
    parameter=st.none() | texts,
    phase=st.sampled_from(["forward", "backward", "recompute"]),
)


class TestQuestions:
    def test_what_is_counted_where(self) -> None:
        trace = trace_of(*EVENTS)
        assert [one.line for one in trace.copies] == [41, 50, None]
        assert [one.line for one in trace.other_copies] == [70]
        assert [one.line for one in trace.losses] == [60]
        assert [one.line for one in trace.internal] == [41]
        assert trace.total_bytes == 6200
        assert trace.events == EVENTS

    def test_by_line_module_and_operator(self) -> None:
        trace = trace_of(*EVENTS)
        lines = trace.by_line()
        assert list(lines) == [
            "/home/me/project/model.py:50",
            "/home/me/project/model.py:41",
            "parameter conv.weight",
            "/home/me/project/model.py:60",
            "/home/me/project/model.py:70",
        ]
        assert lines["/home/me/project/model.py:41"] == Cost(
            copies=1, bytes=1000, internal=1, internal_bytes=300
        )
        assert trace.by_module()["(no module)"] == Cost(copies=3, bytes=5200)
        assert trace.by_operator()["aten._softmax.default"] == Cost(losses=1)
        assert lines["/home/me/project/model.py:70"] == Cost(other_copies=1, other_bytes=9000)

    def test_the_first_loss_is_a_loss_or_a_copy_to_nchw(self) -> None:
        to_last = event(line=1, source="nchw", destination="channels_last")
        assert trace_of(to_last).first_loss is None
        assert trace_of(to_last, EVENTS[4], EVENTS[2], EVENTS[0]).first_loss == EVENTS[2]
        assert trace_of(to_last, EVENTS[0], EVENTS[2]).first_loss == EVENTS[0]

    def test_equal_occurrences_are_one_event(self) -> None:
        trace = trace_of(
            event(bytes=10, shape=(1, 2)), event(bytes=90, shape=(9, 2)), event(bytes=20, shape=(2, 2))
        )
        (one,) = trace.events
        assert (one.count, one.bytes, one.shape, one.shapes_vary) == (3, 120, (9, 2), True)


class TestBounds:
    def test_what_is_within_passes(self) -> None:
        trace_of(*EVENTS).assert_max(copies=4, bytes=6200, losses=1)
        LayoutTrace().assert_max(copies=0, bytes=0, losses=0)

    @pytest.mark.parametrize(
        ("bound", "message"),
        [
            ({"copies": 3}, "4 layout copies, at most 3 allowed"),
            ({"bytes": "6 KiB"}, "6.1 KiB copied, at most 6.0 KiB allowed"),
            ({"losses": 0}, "1 format loss, at most 0 allowed"),
        ],
    )
    def test_what_exceeds_fails_with_the_worst_lines(self, bound: dict[str, Any], message: str) -> None:
        with pytest.raises(AssertionError) as error:
            trace_of(*EVENTS).assert_max(**bound)
        lines = str(error.value).splitlines()
        assert lines[0] == message
        if "losses" in bound:
            assert "model.py:60 (features.3): loss, once: aten._softmax.default" in lines[1]
        else:
            assert (
                "model.py:50: explicit, 4.9 KiB, 2 times: aten.clone.default channels_last -> nchw"
                in lines[1]
            )
            assert len(lines) == 4

    def test_long_lists_are_cut(self) -> None:
        trace = trace_of(*(event(line=line) for line in range(20)))
        with pytest.raises(AssertionError, match="and 16 more") as error:
            trace.assert_max(copies=0)
        assert len(str(error.value).splitlines()) == 6

    def test_what_was_not_seen_is_said(self) -> None:
        trace = trace_of(*EVENTS)
        trace.note_unseen("what torch.compile made of f (a.py:1)")
        with pytest.raises(AssertionError, match=r"not seen: what torch.compile made of f \(a.py:1\)"):
            trace.assert_max(copies=0)

    def test_what_was_not_seen_warns(self) -> None:
        trace = LayoutTrace()
        trace.note_unseen("what torch.compile made of f (a.py:1)")
        with pytest.warns(UserWarning, match=r"can't tell of what torch.compile made of f \(a.py:1\)"):
            trace.assert_max(copies=0)

    @pytest.mark.parametrize(
        "pattern",
        [
            "model.py",
            "model.py:41",
            "project/*.py",
            "/home/me/project/model.py:41",
            "features.*",
            "aten.clone.*",
            "*",
        ],
    )
    def test_ignored_by_place_module_or_operator(self, pattern: str) -> None:
        trace_of(EVENTS[0]).assert_max(copies=0, bytes=0, ignore=[pattern])

    @pytest.mark.parametrize("pattern", ["odel.py", "model.py:4", "features", "clone", "parameter *", ""])
    def test_not_ignored_by_half_a_name(self, pattern: str) -> None:
        with pytest.raises(AssertionError):
            trace_of(EVENTS[0]).assert_max(copies=0, ignore=[pattern])

    def test_a_parameter_is_ignored_by_its_name(self) -> None:
        trace_of(EVENTS[5]).assert_max(copies=0, ignore=["parameter conv.*"])

    @pytest.mark.parametrize(
        ("bound", "error"),
        [
            ({}, TypeError),
            ({"copies": True}, TypeError),
            ({"copies": 1.5}, TypeError),
            ({"copies": -1}, ValueError),
            ({"bytes": "2 miles"}, ValueError),
            ({"bytes": -5}, ValueError),
            ({"bytes": 1.5}, TypeError),
            ({"losses": "1"}, TypeError),
            ({"copies": 0, "ignore": "model.py"}, TypeError),
        ],
    )
    def test_misuse(self, bound: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            LayoutTrace().assert_max(**bound)


class TestFiles:
    @given(st.lists(events, max_size=6), st.lists(events, max_size=3), st.none() | st.integers(0, 9))
    def test_what_is_saved_is_loaded(
        self, collected: list[LayoutEvent], raw: list[LayoutEvent], rank: int | None
    ) -> None:
        import tempfile

        trace = trace_of(*collected, level="deep", keep_events=5, torch_version="2.13.0", rank=rank)
        for one in raw:
            trace.keep(one)
        trace.count("aten.clone.default", 7)
        trace.note_unseen("something")
        trace.note_executed("model.py", Span(3), Span(1, 4, 2, 9))
        with tempfile.TemporaryDirectory() as folder:
            path = trace.save(Path(folder) / "t.json")
            loaded = load_trace(path)
            jsonschema.validate(json.loads(path.read_text()), schema())
        for name in "events raw_events calls unseen level rank torch_version kernel_copies keep_events executed_calls".split():
            assert getattr(loaded, name) == getattr(trace, name), name
        assert str(loaded) == str(trace)

    @given(st.lists(events, max_size=5), st.lists(events, max_size=5))
    def test_merging_adds_up(self, some: list[LayoutEvent], others: list[LayoutEvent]) -> None:
        first, second = trace_of(*some), trace_of(*others)
        merged, both = merge([first, second]), trace_of(*some, *others)
        assert merged.events == both.events
        assert merged.total_bytes == first.total_bytes + second.total_bytes
        assert merge([second, first]).by_line() == merged.by_line()

    def test_merging_ranks(self) -> None:
        first, second = trace_of(event(), rank=0), trace_of(event(), rank=1)
        first.note_unseen("a")
        second.note_unseen("b")
        merged = merge([first, second])
        assert (merged.rank, merged.events[0].count, merged.unseen) == (None, 2, ("a", "b"))

    def test_merging_what_can_not_be(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            merge([])
        with pytest.raises(ValueError, match="different levels"):
            merge([LayoutTrace("deep"), LayoutTrace()])
        with pytest.raises(TypeError, match="takes traces"):
            merge(["a.json"])  # type: ignore[list-item]

    def test_the_sources_are_saved_as_they_were(self, tmp_path: Path) -> None:
        model = tmp_path / "model.py"
        model.write_text("a\nb\n")
        trace = trace_of(event(file=str(model), line=2), event(file=str(tmp_path / "gone.py")))
        trace.note_executed(str(model), Span(1))
        saved = trace.save(tmp_path / "t.json")
        model.write_text("changed\n")
        loaded = load_trace(saved)
        assert loaded.sources == {str(model): "a\nb\n"}
        assert loaded.executed == {str(model): {1}}
        assert load_trace(loaded.save(tmp_path / "again.json")).sources == loaded.sources

    def test_the_text_report_shows_the_lines_as_they_were(self, tmp_path: Path) -> None:
        model = tmp_path / "model.py"
        model.write_text("y = x.reshape(-1)\n")
        saved = trace_of(event(file=str(model), line=1), event(file="model\0.py", line=1)).save(
            tmp_path / "t.json"
        )
        model.write_text("changed\n")
        done = run_without_torch("report", str(saved))
        assert "y = x.reshape(-1)" in done.stdout
        assert "changed" not in done.stdout

    def test_merging_says_what_changed_in_between(self) -> None:
        first, second, third = LayoutTrace(), LayoutTrace(), LayoutTrace()
        first.sources, second.sources, third.sources = (
            {"a.py": "1"},
            {"a.py": "1", "b.py": "2"},
            {"b.py": "3"},
        )
        first.note_executed("a.py", Span(1))
        second.note_executed("a.py", Span(2))
        merged = merge([first, second])
        assert (merged.sources, merged.executed, merged.unseen) == (
            {"a.py": "1", "b.py": "2"},
            {"a.py": {1, 2}},
            (),
        )
        assert "b.py" in merge([merged, third]).unseen[0]

    def test_version_1_is_read(self, tmp_path: Path) -> None:
        path = trace_of(*EVENTS).save(tmp_path / "t.json")
        old = {**json.loads(path.read_text()), "version": 1}
        del old["files"]
        path.write_text(json.dumps(old))
        loaded = load_trace(path)
        assert (len(loaded.events), loaded.sources, loaded.executed) == (len(EVENTS), {}, {})

    def test_the_published_schema_is_current(self) -> None:
        published = json.loads((ROOT / "docs" / "trace.schema.json").read_text())
        assert published == schema()
        jsonschema.Draft202012Validator.check_schema(published)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (b"", "no layout trace"),
            (b"\xff\xfe", "no layout trace"),
            (b"[]", "no layout trace"),
            (b"{}", "no layout trace"),
            (b'{"format": "coverage", "version": 1}', "no layout trace"),
            (b"[" * 100_000, "no layout trace"),
            (
                b'{"format": "esper-guard profile", "version": 1}',
                "no layout trace: it is an esper-guard profile;",
            ),
            ({"version": 3}, "version 3.*upgrade"),
            ({"version": 0}, "no layout trace"),
            ({"level": "deepest"}, "damaged"),
            ({"events": [{"kind": "hidden"}]}, "damaged"),
            ({"events": [None]}, "damaged"),
            ({"calls": {"a": -1}}, "damaged"),
            ({"files": {"a.py": {"executed": ["1"]}}}, "damaged"),
            ({"calls": {"a": 1e400}}, "damaged|no layout trace"),
            ({"surprise": 1}, "damaged"),
            ({"keep_events": 2**70}, "damaged"),
            ({"events": [{"kind": "hidden", "count": 0}]}, "damaged"),
            (
                b'{"format": "esper-guard layout trace", "version": 1, "x": ' + b"[" * 100_000,
                "no layout trace",
            ),
            ({"unseen": "abc"}, "damaged"),
        ],
    )
    def test_what_is_no_trace_is_named(
        self, tmp_path: Path, change: bytes | dict[str, Any], message: str
    ) -> None:
        path = trace_of(*EVENTS).save(tmp_path / "t.json")
        if isinstance(change, bytes):
            path.write_bytes(change)
        else:
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match=message) as error:
            load_trace(path)
        assert str(error.value).startswith(str(path))

    def test_a_failed_save_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = trace_of(*EVENTS).save(tmp_path / "t.json")
        before = path.read_bytes()

        def fail(*arguments: object) -> None:
            raise OSError("no space")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="no space"):
            LayoutTrace().save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_trace(tmp_path / "none.json")
        with pytest.raises(FileNotFoundError):
            LayoutTrace().save(tmp_path / "no folder" / "t.json")

    def test_no_torch_is_imported(self, tmp_path: Path) -> None:
        path = trace_of(*EVENTS).save(tmp_path / "t.json")
        code = (
            "import sys, esper_guard; t = esper_guard.load_trace(sys.argv[1]); print(esper_guard.merge([t, t])); "
            "assert not {'torch', 'libcst', 'click'} & set(sys.modules)"
        )
        run_python(code, str(path), check=True)


class TestChrome:
    def test_single_events_have_their_times(self, tmp_path: Path) -> None:
        trace = LayoutTrace(keep_events=2)
        for line in (1, 2, 3):
            one = event(line=line)
            trace.tally(prototype_of(one)).include(one)
            trace.keep(trace.tally(prototype_of(one)).single(10, ((1,), (1,)), (line * 1000, 500), 77))
        entries = json.loads(trace.to_chrome(tmp_path / "c.json").read_text())["traceEvents"]
        assert [(e["ts"], e["dur"], e["tid"], e["ph"]) for e in entries] == [
            (2.0, 0.5, 77, "X"),
            (3.0, 0.5, 77, "X"),
        ]
        assert entries[0]["name"] == "hidden: channels_last -> nchw at /home/me/project/model.py:2"
        assert entries[0]["args"]["bytes"] == 10

    def test_without_single_events_it_says_how(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="keep_events"):
            trace_of(*EVENTS).to_chrome(tmp_path / "c.json")
        LayoutTrace().to_chrome(tmp_path / "c.json")


class TestText:
    def test_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        trace = trace_of(*EVENTS, torch_version="2.13.0")
        monkeypatch.setattr("os.getcwd", lambda: "/home/me/project")
        lines = str(trace).splitlines()
        assert lines[0] == (
            "4 layout copies, 6.1 KiB; 1 format loss; 1 other copy, 8.8 KiB; 1 internal copy, 300 B "
            "(dispatch level, torch 2.13.0)"
        )
        assert lines[2].split() == ["bytes", "times", "kind", "what", "where"]
        assert lines[3].split("float32")[1].split() == ["model.py:50"]
        assert [line.split()[-1] for line in lines[3:9]][-1] == "(features.3)"
        assert lines[-3:] == [
            "channels_last first became NCHW at model.py:41 (features.3): hidden copy, aten.clone.default",
            "why: model.py:60: softmax writes NCHW whatever it reads (CPU)",
            "  write instead: F.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2) (along channels)",
        ]

    @pytest.mark.parametrize(
        "fields", [{"phase": "backward"}, {"shape": (8, 64, 4, 28, 28)}, {"operator": "aten.triu.default"}]
    )
    def test_remedies_are_for_what_was_written_and_measured(self, fields: dict[str, Any]) -> None:
        lost = {"kind": "loss", "operator": "aten._softmax.default"}
        assert "write instead" in str(trace_of(event(**lost)))
        text = str(trace_of(event(**{**lost, **fields})))
        assert "why: " in text
        assert "write instead" not in text

    def test_each_reason_is_given_once_and_only_for_what_nobody_asked_for(self, tmp_path: Path) -> None:
        source = tmp_path / "model.py"
        source.write_text("y = F.instance_norm(x)\nz = x.contiguous()\n")
        copy = {"file": str(source), "line": 1}
        softmax = {"kind": "loss", "operator": "aten._softmax.default"}
        assert (
            why(event(**copy), "y = F.instance_norm(x)")
            == "instance_norm writes NCHW whatever it reads (CPU)"
        )
        for silent in (
            event(),
            event(**copy, phase="backward"),
            event(**copy, source="nchw", destination="channels_last"),
            event(**copy, changes_format=False),
            event(**softmax, device="cuda:0"),
            event(**{**copy, "line": 2, "kind": "explicit"}),
        ):
            assert why(silent, "y = F.instance_norm(x)" if silent.line == 1 else "") is None
        softmaxes = [event(**softmax, file="a.py", line=line) for line in (5, 4, 3, 2, 2)]
        text = str(trace_of(*softmaxes, event(**copy)))
        assert [line for line in text.splitlines() if line.startswith("why")] == [
            f"why: {source}:1: instance_norm writes NCHW whatever it reads (CPU)",
            "why: a.py:2, a.py:5, a.py:4 and 1 more: softmax writes NCHW whatever it reads (CPU)",
        ]

    def test_costs_show_the_columns_that_say_something(self) -> None:
        lines = render_costs("line", trace_of(EVENTS[0]).by_line()).splitlines()
        assert [line.split() for line in lines] == [
            ["bytes", "copies", "line"],
            ["1000", "B", "1", "/home/me/project/model.py:41"],
        ]
        assert render_costs("line", {}) == "nothing was copied or lost"

    def test_what_is_no_image_is_contiguous_or_strided(self) -> None:
        matrix = event(shape=(2, 3), changes_format=False, source="strided(nchw)")
        assert "hidden, strides only  aten.clone.default strided -> contiguous, 2x3" in str(trace_of(matrix))

    def test_an_empty_trace_is_one_line(self) -> None:
        assert str(LayoutTrace()) == "0 layout copies, 0 B; 0 format losses (dispatch level)"
        assert repr(trace_of(*EVENTS)) == "<LayoutTrace: 4 copies, 6200 bytes, 1 losses>"


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2 MiB", 2 * 2**20),
            ("2mib", 2 * 2**20),
            ("1.5 kB", 1500),
            ("4096", 4096),
            (" 7 B ", 7),
            (12, 12),
            ("1GiB", 2**30),
            ("0", 0),
        ],
    )
    def test_read(self, text: int | str, expected: int) -> None:
        assert parse_size(text) == expected

    @pytest.mark.parametrize("text", ["", "MiB", "-1", "1 TiB?", "1,5 MB", "0x10", "1e6", "nan"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is no size"):
            parse_size(text)

    @given(st.integers(0, 2**50))
    def test_what_is_written_can_be_read(self, size: int) -> None:
        assert abs(parse_size(format_size(size)) - size) <= max(1, size * 0.06)
