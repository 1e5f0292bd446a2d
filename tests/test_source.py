"""An edited class of a user's is another one: real files, edited, and real processes that run them."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from xaibench.build import SOURCE, describe

MAIN = "import sys; sys.path.insert(0, '.'); from xaibench.cli import main; sys.exit(main(sys.argv[1:]))"
DIGEST = (
    "import sys; sys.path.insert(0, '.'); from xaibench.build import describe; print(describe({'_target_': %r}, 'x'))"
)
METHOD = """
from xaibench.methods.base import Method
from mine_parts.formula import formula


class Mine(Method):
    def attribute(self, classifier, inputs, targets, context):
        return formula(classifier.gradient(inputs, targets), inputs)
"""
FORMULA = """
def formula(gradient, inputs):
    return gradient * inputs
"""


def python(code, *arguments, text=""):
    done = subprocess.run([sys.executable, "-c", code, *arguments] if code else [sys.executable, "-", *arguments],
                          input=text, capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def described(target):
    code, out, said = python(DIGEST % target)
    assert code == 0, said
    return out


@pytest.fixture
def mine(here):
    """A method of a user's in two files, of which the formula is in the other."""
    (here / "mine_parts").mkdir()
    (here / "mine_parts" / "__init__.py").touch()
    (here / "mine_parts" / "formula.py").write_text(FORMULA)
    (here / "mine.py").write_text(METHOD)
    (here / "conf" / "method").mkdir(parents=True)
    (here / "conf" / "method" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\n")
    return here


CASES = {
    "a comment": ("mine.py", lambda text: "# a comment\n" + text, True),
    "a docstring": ("mine.py", lambda text: text.replace("(Method):\n", "(Method):\n    '''A docstring.'''\n\n"), True),
    "the layout": ("mine.py", lambda text: text.replace("inputs, targets)", "inputs,\n            targets)"), True),
    "a comment beside": ("mine_parts/formula.py", lambda text: text + "# a comment\n", True),
    "the formula": ("mine.py", lambda text: text.replace("return formula", "return -formula"), False),
    "the formula beside": ("mine_parts/formula.py", lambda text: text.replace("* inputs", "+ inputs"), False),
    "the package beside": ("mine_parts/__init__.py", lambda text: "import torch\n", False),
    "an unrelated file": ("other.py", lambda text: "x = 1\n", True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changes_the_code_is_another_key_and_what_does_not_is_none(mine, case):
    name, edit, same = CASES[case]
    before, path = described("mine.Mine"), mine / name
    path.write_text(edit(path.read_text() if path.exists() else ""))
    assert (described("mine.Mine") == before) is same


def test_a_compiled_module_has_no_source(mine):
    assert subprocess.run([sys.executable, "-m", "compileall", "-b", "-q", "mine.py"]).returncode == 0
    Path("mine.py").unlink()
    assert f"'{SOURCE}': ''" in described("mine.Mine")


def test_relative_imports_functions_and_what_pip_installed(here):
    (here / "pack" / "deep").mkdir(parents=True)
    for name in ("pack/__init__.py", "pack/deep/__init__.py"):
        (here / name).touch()
    (here / "pack" / "shared.py").write_text("factor = 1\n")
    (here / "pack" / "deep" / "net.py").write_text("def net():\n    from ..shared import factor\n    return factor\n")
    before = described("pack.deep.net.net")
    (here / "pack" / "shared.py").write_text("factor = 2\n")
    assert described("pack.deep.net.net") != before
    # Of an installed distribution pip knows the digests; its thousands of files are not read.
    assert len(describe({"_target_": "torchvision.models.resnet18"}, "model")[SOURCE]) == 16
    assert SOURCE not in describe({"_target_": "xaibench.methods.gradients.gradient.Gradient"}, "method")


RUN = ("run", "--config-dir=conf", "method=mine", "metric=sparseness", "dataset.limit=3")


def value():
    board = pd.read_csv("results/leaderboard.csv")
    return board["value"][0], board["method_key"][0]


def test_an_edited_formula_is_computed_and_an_edited_comment_is_not(mine):
    """From the command line: the number is the edited method's, and `1 / 0` is an error, not the number of before."""
    assert python(MAIN, *RUN)[0] == 0
    gini, key = value()
    Path("mine.py").write_text("# a comment\n" + METHOD)
    assert python(MAIN, *RUN, "runner.reuse=only-cache")[0] == 0 and value() == (gini, key)
    Path("mine_parts/formula.py").write_text(FORMULA.replace("gradient * inputs", "(gradient * inputs) ** 3"))
    assert python(MAIN, *RUN)[0] == 0
    edited, other = value()
    assert edited > gini + 0.05 and other != key
    assert python(MAIN, *RUN, "paths.cache=fresh", "paths.results=fresh")[0] == 0
    assert pd.read_csv("fresh/leaderboard.csv")["value"][0] == edited
    # The rows of the formula before are gone: there is one row of the method.
    assert len(pd.read_csv("results/leaderboard.csv")) == len(pd.read_csv("fresh/leaderboard.csv"))
    Path("mine_parts/formula.py").write_text("def formula(gradient, inputs):\n    return 1 / 0\n")
    code, _, said = python(MAIN, *RUN)
    assert code == 1 and "division by zero" in said


def test_a_class_within_a_class_and_a_model_and_a_data_set_are_known_by_their_code_too(mine):
    Path("outer.py").write_text(
        "from xaibench.methods.base import Method\n"
        "class Outer(Method):\n"
        "    def __init__(self, base): self.base = base\n"
        "    def attribute(self, *arguments): return self.base.attribute(*arguments)\n"
    )
    Path("conf/method/mine.yaml").write_text("# Mine.\n_target_: outer.Outer\nbase:\n  _target_: mine.Mine\n")
    Path("net.py").write_text(
        "from xaibench.models.smallcnn import SmallCNN\nclass Net(SmallCNN):\n    def forward(self, x):\n"
        "        return super().forward(x)\n"
    )
    Path("data.py").write_text("from xaibench.datasets.shapes import Shapes\nclass Data(Shapes):\n    pass\n")
    for group, target in (("model", "net.Net"), ("dataset", "data.Data")):
        Path("conf", group).mkdir()
        theirs = {"model": "smallcnn", "dataset": "shapes"}[group]
        text = (Path(__file__).parents[1] / "conf" / group / f"{theirs}.yaml").read_text()
        lines = [f"_target_: {target}" if line.startswith("_target_") else line for line in text.splitlines()]
        Path("conf", group, "mine.yaml").write_text("\n".join(lines) + "\n")
    run = (*RUN, "model=mine", "model.weights=random", "dataset=mine")
    code, _, said = python(MAIN, *run)
    assert code == 0, said
    keys = [value()[1]]
    for name, old, new in (
        ("mine_parts/formula.py", "* inputs", "- inputs"),
        ("net.py", "(x)\n", "(x) * 2\n"),
        ("data.py", "pass", "extra = 1"),
    ):
        Path(name).write_text(Path(name).read_text().replace(old, new))
        assert python(MAIN, *run, "paths.results=" + name.replace(".", "_"))[0] == 0
        keys.append(pd.read_csv(Path(name.replace(".", "_"), "leaderboard.csv"))["method_key"][0])
    assert len(set(keys)) == 4


def test_a_class_without_source_is_never_cached_and_it_is_said_once(mine):
    """A class of an interactive session, which lives in no file."""
    Path("conf/method/mine.yaml").write_text("# Mine.\n_target_: __main__.Mine\n")
    Path("mine_parts/__init__.py").touch()
    twice = "arguments = sys.argv[1:]\nsys.exit(max(main(arguments) for _ in range(2)))\n"
    text = f"import sys; sys.path.insert(0, '.')\n{METHOD}\nfrom xaibench.cli import main\n{twice}"
    code, _, said = python("", *RUN, text=text)
    assert code == 0, said
    assert said.count("no source file") == 1 and "__main__.Mine" in said
    assert not Path("cache").exists() and len(pd.read_csv("results/leaderboard.csv")) == 1
    before = value()[0]
    Path("mine_parts/formula.py").write_text(FORMULA.replace("gradient * inputs", "(gradient * inputs) ** 3"))
    assert python("", *RUN, text=text)[0] == 0
    assert value()[0] > before + 0.05
