"""Wrong inputs of every kind: an exit code that says so, one or two lines of ours, the value and what was expected."""

import shlex
from pathlib import Path

import pytest
import torch

NET = """\
import os
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, *more, classes: int = 10, depth: int = 1):
        super().__init__(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), *more, nn.Flatten(), nn.Linear(900, classes))

class One(Net):
    def __init__(self):
        super().__init__(classes=1)

class Softmaxed(nn.Sequential):
    def __init__(self):
        super().__init__(Net(), nn.Softmax(1))

class Powers(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))

class Halved(Net):
    def forward(self, x):
        return super().forward(x.bfloat16())

class Failing(Net):
    def forward(self, x):
        return super().forward(x.view(-1, 7))

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(10)
    def forward(self, x):
        return self.layer(x.reshape(1, -1, 5000))

def scripted():
    return torch.jit.script(Net())

def words():
    return "no network"

def raising():
    return {}["nothing"]
"""
HEAD = "input_size: [3, 64, 64]\nmean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\nresize: null\ncrop: null\n"
METHODS = {
    "broken": "_target_: [unclosed\n",
    "tab": "a:\n\tb: 1\n",
    "empty": "",
    "prose": "just words\n",
    "function": "_target_: nets.words\n",
    "dangling": "_target_: xaibench.methods.gradients.gradient.Gradient\nx: ${nope.nope}\n",
    "unsaid": "_target_: xaibench.methods.removal.occlusion.Occlusion\npatch: ???\n",
}


@pytest.fixture
def wrong(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of every wrong kind."""
    monkeypatch.syspath_prepend(str(here))
    (here / "nets.py").write_text(NET)
    for name in ("Net", "One", "Softmaxed", "Powers", "Halved", "Failing", "Deep", "scripted", "words", "raising"):
        (here / "mine" / "model").mkdir(parents=True, exist_ok=True)
        (here / "mine" / "model" / f"{name.lower()}.yaml").write_text(f"_target_: nets.{name}\n{HEAD}")
    (here / "mine" / "method").mkdir()
    for name, text in METHODS.items():
        (here / "mine" / "method" / f"{name}.yaml").write_text(text)
    for folder in ("folder", "photos", "results"):
        (here / folder).mkdir()
    (here / "empty.pt").write_bytes(b"")
    (here / "text.safetensors").write_text("no tensors")
    (here / "notes.txt").write_text("hello")
    torch.save({"a": torch.zeros(2)}, here / "other.pt")
    torch.save([1, 2], here / "list.pt")
    torch.save(torch.nn.Linear(2, 2), here / "whole.pth")
    (here / "board.csv").write_text("a,b\n1,2\n")
    (here / "bytes.csv").write_bytes(bytes(range(256)))
    (here / "empty.csv").write_text("")


# Command, and words of the answer.
CASES = [
    # names
    ("run model=nan", "model=nan: there is no such model; did you mean 'dnnr'?"),
    ("run model=1", "model=1: there is no such model"),
    ("run model=null", "model=null: there is no such model"),
    ("run model=", "model=: there is no such model"),
    ("run model=[smallcnn]", "did you mean 'smallcnn'"),
    ("run model={a:1}", "model={a:1}: there is no such model"),
    ("run method=1e5", "method=1e5: there is no such method"),
    ("run experiment=1", "experiment=1: there is no such experiment"),
    ("run -m method=gradient,nan", "method=gradient,nan: there is no such method"),
    ("run ~model", "~model: every cell has a model"),
    ("train model=nan", "model=nan: there is no such model"),
    ("train dataset=shape", "did you mean 'shapes'"),
    # keys
    ("run device=cuda", "'device' is not a setting of xaibench: did you mean 'runner.device'?"),
    ("run limit=3", "did you mean 'dataset.limit' or 'fit.limit'?"),
    ("run steps=3", "did you mean 'metric.steps'?"),
    ("run model.interpolation=bicubic", "write +model.interpolation=..."),
    ("run --config-dir mine model=net model.depth=2", "it is not in the yaml of model; to add it write +model.depth"),
    ("run --config-dir=mine model=net model.dept=2", "did you mean 'depth'"),
    ("run +model.foo=1", "model.foo is not a parameter"),
    ("run ~model.nope", "model has no 'nope'"),
    ("run hydra.nope=1", "'hydra.nope' is not a setting"),
    ("run =3", "=3: expected key=value"),
    ("run ++", "++: expected key=value"),
    ("run method", "method: this cannot be read as key=value"),
    ("run method=a=b", "method=a=b: this cannot be read as key=value"),
    ("run dataset.filter=3", "dataset.filter=3: expected keys of it"),
    # options
    ("run --nope", "--nope: xaibench run has no such option"),
    ("run -x", "-x: xaibench run has no such option"),
    ("run --config-dri=mine", "did you mean '--config-dir'"),
    ("run --cfg nope", "'nope' (choose from"),
    ("run --config-dir", "expected one argument"),
    ("list", "required: what"),
    ("list methods --fo", "unrecognized arguments: --fo"),
    ("rank --csv nope", "'nope' (choose from"),
    ("report --images many", "'many'"),
    ("report --images -1", "--images -1: expected a number"),
    ("cache nope", "'nope' (choose from"),
    ("cache prune --max-size big", "--max-size big: expected a number and one of M, G, T"),
    # numbers
    ("run dataset.limit=nan", "dataset.limit=nan: expected a finite number"),
    ("run dataset.limit=1.5", "dataset.limit=1.5: expected a whole number"),
    ("run dataset.filter.min_probability=2", "expected 0 to 1"),
    ("run model.input_size=64", "model.input_size=64: expected a list"),
    ("run model.input_size=[3,64]", "expected three positive numbers"),
    ("run model.std=[0,0,0]", "every value must be positive"),
    ("run metric.steps=0", "steps=0: expected a positive number"),
    ("run metric=roar metric.fractions=[2]", "expected rising numbers between 0 and 1"),
    ("run method=occlusion method.patch=1000", "patch=1000 does not fit"),
    # files and folders
    ("run model.weights=/nope.pt", "there is no 'nope.pt' in /"),
    ("run model.weights=nowhere/deep/nope.pt", "there is no 'nowhere' in"),
    ("run model.weights=othr.pt", "did you mean 'other.pt'"),
    ("run model.weights=empty.pt", "empty.pt: not a readable checkpoint"),
    ("run model.weights=text.safetensors", "text.safetensors: not a readable safetensors file"),
    ("run model.weights=notes.txt", "notes.txt: expected null, random, recipe"),
    ("run model.weights=other.pt", "does not fit the network"),
    ("run model.weights=list.pt", "expected a state dict"),
    ("run model.weights=whole.pth", "refused, it holds torch.nn.modules.linear.Linear"),
    ("run dataset=imagefolder dataset.root=photos", "no class folder"),
    ("run dataset=imagefolder dataset.root=notes.txt", "notes.txt"),
    ("run method=precomputed method.path=notes.txt", "notes.txt: expected npz or HDF5"),
    ("run paths.cache=notes.txt", "notes.txt: it is a file, expected a folder"),
    ("run paths.results=notes.txt", "folders that you may write"),
    ("report --leaderboard board.csv", "board.csv: it cannot be read as a leaderboard"),
    ("check --baseline bytes.csv", "bytes.csv: it cannot be read as a leaderboard"),
    ("check --baseline empty.csv", "empty.csv: it cannot be read as a leaderboard"),
    # configurations of one's own
    ("run --config-dir nope", "--config-dir=nope: there is no such folder"),
    ("run --config-dir mine method=broken", "broken.yaml: this is no yaml"),
    ("run --config-dir mine method=tab", "tab.yaml: this is no yaml"),
    ("run --config-dir mine method=empty", "expected the name of a method configuration"),
    ("run --config-dir mine method=prose", "expected the name of a method configuration"),
    ("run --config-dir mine method=function", "gives a str"),
    ("run --config-dir mine method=dangling", "a value cannot be resolved"),
    ("run --config-dir mine method=unsaid", "method.patch is missing: set method.patch=..."),
    # networks
    ("run --config-dir mine model=words", "gives a str, expected a torch.nn.Module"),
    ("run --config-dir mine model=raising", "model: nets.raising failed"),
    ("run --config-dir mine model=failing", "failing cannot take an input of [3, 64, 64]"),
    ("run --config-dir mine model=halved", "halved cannot take an input of [3, 64, 64]"),
    ("run --config-dir mine model=deep", "its lazy layers cannot be initialised by an input of [3, 64, 64]"),
    ("run --config-dir mine model=softmaxed", "returns probabilities (its rows sum to 1), expected logits"),
    ("run --config-dir mine model=one output=raw", "has no classes, hence no probability"),
    ("run --config-dir mine model=one output=raw metric=random_logit", "has one output, there is no other class"),
    ("run --config-dir mine model=powers method=lrp_zplus", "which is a module LPPool2d"),
    ("run --config-dir mine model=scripted method=lrp_zplus", "scripted is TorchScript"),
    ("run --config-dir mine model=scripted method=gradcam method.layer='\"1\"'", "scripted is TorchScript"),
    ("run --config-dir mine model=scripted method=pathway_active", "scripted is TorchScript"),
    ("run --config-dir mine model=scripted method=fullgrad", "scripted is TorchScript"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "words"), CASES, ids=[command for command, _ in CASES])
def test_a_wrong_input_is_told_in_a_line_or_two(wrong, xaibench, command, words):
    code, out, said = xaibench(
        *shlex.split(command), *(["dataset.limit=1"] if "run --config-dir mine" in command else [])
    )
    assert code == 2, said
    assert out == "" and "Traceback" not in said and "not foreseen" not in said
    lines = [line for line in said.splitlines() if "nothing is cached" not in line]
    assert 1 <= len(lines) <= 2 and lines[0].startswith("xaibench: "), said
    assert words in said, said


def test_what_nobody_has_thought_of_has_a_sentence_of_ours_before_it(xaibench, monkeypatch):
    from xaibench import listing

    def fails(*arguments):
        raise RuntimeError("mat1 and mat2\nshapes")

    monkeypatch.setattr(listing, "items", fails)
    code, _, said = xaibench("list", "methods")
    assert code == 1
    assert said == (
        "xaibench: this failed in a way that was not foreseen: RuntimeError: mat1 and mat2\n(--debug shows where)\n"
    )
