"""What the command line names: targets and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from esper_guard.profiling.shapes import Shape, parse_shape
from esper_guard.profiling.target import Target, TargetError, load_target, parse_target
from esper_guard.profiling.workload import target_workload


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("package.models:make", ("package.models", "make", False)),
        ("model.py:make", ("model.py", "make", False)),
        ("a folder/sub.dir/model.py:make", ("a folder/sub.dir/model.py", "make", False)),
        ("model.py:Models.make", ("model.py", "Models.make", False)),
        (r"C:\work\model.py:make", (r"C:\work\model.py", "make", False)),
        ("C:/work/model.py:make", ("C:/work/model.py", "make", False)),
        ("C:model.py:make", ("C:model.py", "make", False)),
        ("model.py:make()", ("model.py", "make", True)),
    ],
)
def test_a_target(text: str, expected: tuple[str, str, bool]) -> None:
    target = parse_target(text)
    assert (target.source, target.attribute, target.called) == expected
    assert target.is_file == target.source.endswith(".py")


@pytest.mark.parametrize(
    ("call", "arguments", "keywords"),
    [
        ('("resnet18", num_classes=10)', ("resnet18",), {"num_classes": 10}),
        ('("a:b(c)", [1, (2, -3.5)])', ("a:b(c)", [1, (2, -3.5)]), {}),
        ("(None, True, {'a': 1}, b={2})", (None, True, {"a": 1}), {"b": {2}}),
    ],
)
def test_literal_arguments(call: str, arguments: tuple[object, ...], keywords: dict[str, object]) -> None:
    target = parse_target(f"timm:create_model{call}")
    assert target == Target(target.text, "timm", "create_model", True, arguments, keywords)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.py", "names no factory: write it as module:factory"),
        ("model.py:", "names no factory"),
        (":make", "names no factory"),
        ("model.py:make(", "names no factory"),
        ("model.py:a b", "names no factory"),
        ("model.py:make()()", "names no factory"),
        ("m:make(open('x'))", r"the argument open\('x'\) is no literal .* factory of your own"),
        ("m:make(__import__)", "the argument __import__ is no literal"),
        ("m:make(a=size)", "the argument size is no literal"),
        ("m:make(1 + x)", "no literal"),
        ("m:make(*[1])", "no literal"),
        ("m:make(**{'a': 1})", r"write each argument out: \*\*"),
    ],
)
def test_what_is_no_target(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        parse_target(text)


FACTORIES = """\
import torch
from torch import nn
import neighbour

ready = nn.Conv2d(3, 4, 1)
number = 3

def make(channels=4, classes=2):
    return nn.Sequential(nn.Conv2d(3, channels, 1), nn.Conv2d(channels, classes, 1))

def with_inputs():
    return make(), (torch.zeros(2, 3, 4, 4),)

def needs(channels):
    return make(channels)

def fails():
    return 1 / 0

def lacks_inside():
    return needs()

def exits():
    import sys
    sys.exit(0)

class Net(nn.Module):
    pass

class Models:
    make = staticmethod(make)
"""


@pytest.fixture
def factories(folder: Path) -> Path:
    (folder / "sub").mkdir()
    (folder / "sub" / "factories.py").write_text(FACTORIES)
    (folder / "sub" / "neighbour.py").write_text("")
    (folder / "broken.py").write_text("import torch\nraise KeyError('at import')\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "quits.py").write_text("import sys\nsys.exit('bye')\n")
    (folder / "lost.py").write_text("from .neighbour import make\n")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "models.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(3, 4)\n"
    )
    (folder / "outer" / "inner").mkdir(parents=True)
    (folder / "outer" / "__init__.py").write_text("")
    (folder / "outer" / "inner" / "__init__.py").write_text("")
    (folder / "outer" / "inner" / "relative.py").write_text(
        "from ..models import make as made\nimport beside\ndef make():\n    return made()\n"
    )
    (folder / "outer" / "models.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Linear(3, 4)\n"
    )
    (folder / "outer" / "inner" / "beside.py").write_text("")
    (folder / "outer" / "inner" / "types.py").write_text("raise KeyError('shadows the standard library')\n")
    return folder


def test_what_can_be_loaded(factories: Path) -> None:
    def load(text: str) -> object:
        return load_target(parse_target(text))

    called = load("sub/factories.py:make(8, classes=5)")
    assert isinstance(called, nn.Sequential)
    assert [(layer.in_channels, layer.out_channels) for layer in called] == [(3, 8), (8, 5)]
    assert isinstance(load("sub/factories.py:Models.make"), nn.Sequential)
    assert isinstance(load("sub/factories.py:ready"), nn.Conv2d)
    assert type(load("sub/factories.py:Net")).__name__ == "Net"
    assert isinstance(load(f"{factories}/sub/factories.py:make"), nn.Sequential)
    assert isinstance(load("pack.models:make"), nn.Linear)
    assert isinstance(load("outer/inner/relative.py:make"), nn.Linear)


def test_the_inputs_of_a_factory(factories: Path) -> None:
    workload = target_workload(parse_target("sub/factories.py:with_inputs"), [], seed=0)
    assert [tensor.shape for tensor in workload.inputs] == [(2, 3, 4, 4)]
    shapes = [Shape((1, 3, 2, 2), None), Shape((5,), "int64")]
    own = target_workload(parse_target("sub/factories.py:with_inputs"), shapes, seed=0)
    assert [(tensor.shape, tensor.dtype) for tensor in own.inputs] == [
        ((1, 3, 2, 2), torch.float32),
        ((5,), torch.int64),
    ]
    again = target_workload(parse_target("sub/factories.py:with_inputs"), shapes, seed=0)
    assert own.inputs[0].equal(again.inputs[0])
    weights = [next(each.models[None].parameters()) for each in (own, again)]
    assert weights[0].equal(weights[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.py:make", "there is no file 'none.py'"),
        ("no_such_module:make", "there is no module 'no_such_module' in .*write its path"),
        ("pack.none:make", "there is no module 'pack.none'"),
        ("sub/factories.py:mak", "has no 'mak'; it has make, with_inputs, needs"),
        ("sub/factories.py:ready(1)", "ready is a module already"),
        ("sub/factories.py:number(1)", "number is a int, not a function"),
        ("sub/factories.py:number", "gives a int: it has to give an nn.Module"),
        ("sub/factories.py:fails", r"raised ZeroDivisionError: division by zero \(sub/factories.py:18\)$"),
        ("sub/factories.py:exits", r"raised SystemExit: 0 \(sub/factories.py:25\)$"),
        ("sub/factories.py:lacks_inside", r"raised TypeError: .* 'channels' \(sub/factories.py:21\)$"),
        ("quits.py:make", r"running quits.py raised SystemExit: bye \(quits.py:2\)"),
        ("quits:make", r"importing quits raised SystemExit: bye \(quits.py:2\)"),
        ("lost.py:make", "no known parent package.*: name it from the folder above its package"),
        ("sub/factories.py:needs", "raised TypeError.*pass arguments as in sub/factories.py:needs"),
        ("sub/factories.py:make", "gives no inputs: name their shapes, as in --input"),
        ("broken.py:make", r"running broken.py raised KeyError: 'at import' \(.*broken.py:2\)"),
        ("broken:make", "importing broken raised KeyError"),
        ("syntax.py:make", "running syntax.py raised SyntaxError"),
    ],
)
def test_what_can_not_be_loaded(factories: Path, text: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        target_workload(parse_target(text), [], seed=0)
    assert "ProfileError" in [kind.__name__ for kind in type(caught.value).__mro__]


def test_shapes() -> None:
    assert parse_shape("8x3x224x224") == ((8, 3, 224, 224), None)
    assert parse_shape("8x128:int64") == ((8, 128), "int64")
    assert parse_shape("5") == ((5,), None)
    for wrong in ("", "8x", "8*3", "8x-3", "axb", "8x3:"):
        with pytest.raises(ValueError, match="is no shape: write sizes as in 8x3x224x224"):
            parse_shape(wrong)
    with pytest.raises(ValueError, match="there is no dtype 'float'; there are float16"):
        parse_shape("8x3:float")
