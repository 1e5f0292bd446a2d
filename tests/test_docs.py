"""The files and commands of README and docs: what is fenced runs as it stands, the others are run, planned or composed.

A file is a block under a line with its path in backticks; a command is a line of a block. Fenced blocks are for the
reader to copy: those of the tutorials and of the README are run in order, in an empty folder.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torchvision.utils import save_image

import xaibench as xb
from xaibench.config import compose_job

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "results" / "reference" / "README.md"]
# Composed and not run: what cannot be had offline (downloads of data and weights, a cluster), long presets, and what
# takes no limit.
ELSEWHERE = re.compile(r"(model|dataset|hydra/launcher|experiment)=|metric=effective_rank")
# Left out of a command for the reader to fill in.
ELLIPSIS = re.compile(r"\.\.\.|\(the same\)|\(weights and data")
COMMANDS = ("xaibench ", "pip ", "python ", "cp ")


def blocks(text: str, fenced: bool) -> list[tuple[str, str]]:
    """(path, content) of each file and ("", line) of each command of a text, in order; of fenced or indented blocks."""
    found, text = [], text.replace("\\\n", " ")
    fence = r"^```(?:bash|python|yaml|toml)\n(.*?)^```\n"
    text = text if fenced else re.sub(fence, "", text, flags=re.M | re.S)
    block = fence if fenced else r"((?:^(?: {4}.*)?\n)+)"
    for match in re.finditer(rf"(?:^`([^`\n ]+)`:\n\n)?{block}", text, flags=re.M | (re.S if fenced else 0)):
        content = match[2] if fenced else "\n".join(line[4:] for line in match[2].split("\n")).strip("\n") + "\n"
        if match[1]:
            found.append((match[1], content))
        else:
            found += [("", line) for line in content.split("\n") if line.startswith(COMMANDS)]
    return found


def commands(page: Path) -> list[list[str]]:
    """The xaibench commands of a page that are not fenced, as the shell splits them."""
    found = blocks(page.read_text(encoding="utf-8"), fenced=False)
    lines = [line for path, line in found if not path and not ELLIPSIS.search(line.partition(" #")[0])]
    parts = [part for line in lines for part in line.partition(" #")[0].split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.strip().startswith("xaibench ")]


@pytest.fixture
def photos(here):
    for name in ("cats", "dogs"):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(2):
            save_image(torch.rand(3, 80, 100), here / "photos" / name / f"{number}.jpg")


@pytest.fixture
def follow(xaibench, here, photos, monkeypatch):
    """Do what a text says: write its files and run its commands; what was printed, all of it."""

    def do(text: str) -> str:
        printed = []
        for path, content in blocks(text, fenced=True):
            if path:
                (here / path).parent.mkdir(parents=True, exist_ok=True)
                (here / path).write_text(content)
                continue
            line, _, remark = content.partition(" #")
            words = shlex.split(line)
            if words[0] == "xaibench":
                code, out, said = xaibench(*words[1:])
                expected = int(remark.split()[-1]) if "exit code" in remark else 0
                assert code == expected, f"{line}\n{said}"
                printed.append(out + said)
                # A class that the text writes anew is imported anew.
                for name in [name for name in sys.modules if (here / f"{name}.py").is_file()]:
                    del sys.modules[name]
            else:
                if words[0] == "pip":
                    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
                    words = ["python", "-m", *words, *options]
                    monkeypatch.syspath_prepend(str(here / "site"))
                words[0] = sys.executable if words[0] == "python" else words[0]
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stderr}"
                printed.append(done.stdout)
        return "\n".join(printed)

    return do


# Page -> what it leaves on the leaderboard and what it prints.
RESULTS = {
    "first-leaderboard": (["gradcam", "sobel", "pointing_game"], ["degradation", "saliency"]),
    "gate": (["contribution", "roc_auc"], ["regressed"]),
    "own-method": (["absolute_input", "positive_share", "factor=2.0"], ["Absolute input times gradient"]),
    "own-model": (["tiny", "imagefolder"], ["gradcam", "integrated_gradients", "ci_low"]),
    "plugin": (["brightness"], ["brightness"]),
    "report": (["sparseness", "integrated_gradients"], ["report"]),
}


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_work_as_they_are_written(page, follow, here):
    printed = follow(page.read_text(encoding="utf-8"))
    board = (here / "results" / "leaderboard.csv").read_text()
    on_board, said = RESULTS[page.stem]
    assert not [name for name in on_board if name not in board]
    assert not [name for name in said if name not in printed], printed


def test_the_readme_works_as_it_is_written(follow, here):
    """An own method, and an own model with own photographs."""
    printed = follow((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "mine" in (here / "results" / "leaderboard.csv").read_text()
    assert re.search(r"gradcam\n.*random\n.*degradation", printed, flags=re.S)


def test_the_readme_is_short_and_has_the_snippet_of_the_package():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= 7000
    snippet = [line.strip() for line in xb.__doc__.splitlines() if line.startswith("    ")]
    for page in ("README.md", "docs/api.md"):
        shown = re.search(r"^```python\n(import xaibench as xb\n.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)
        assert [line for line in shown[1].splitlines() if line] == snippet, page


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / unquote(target)).resolve() if target else page
        assert path.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {link}"


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_what_the_program_takes(page, xaibench, here):
    if not commands(page):
        return
    shutil.copytree(ROOT / "results", here / "results", ignore=shutil.ignore_patterns("scores", "*.png"))
    assert xaibench("run", "-m", "method=gradient", "metric=degradation,road", "dataset.limit=2")[0] == 0
    for words in commands(page):
        said = take(words, xaibench)
        assert said is None, f"{page.name}: xaibench {shlex.join(words)}\n{said}"


def take(words, xaibench):
    """What is wrong with a command, or None."""
    if any("--config-dir" in word for word in words):
        return None  # of files that the page describes in words
    if words[0] == "train":
        compose_job(words[1:])
        return None
    if words[0] == "decode":
        words = [*words, "dataset.limit=1", "--steps=1"]
    if words[0] == "run":
        # Of a sweep its first cell.
        words = [re.sub(r"^([^\[]*?=[^,\[]*),.*", r"\1", word) for word in words if word != "-m"]
        words += ["--cfg", "job"] if any(map(ELSEWHERE.match, words)) else ["runner.plan=true", "dataset.limit=2"]
    code, _, said = xaibench(*words)
    # 1 and 3 are answers too: a regression, nothing to compare.
    return said if code not in (0, 1, 3) or (words[0] == "run" and code) else None


def test_every_test_that_the_page_of_checks_names_is_there():
    """docs/checks.md says for each check which test holds it."""
    text = (ROOT / "docs" / "checks.md").read_text()
    tests = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    defined = {name for code in tests.values() for name in re.findall(r"def (test_\w+)", code)}
    named = set(re.findall(r"\btest_\w+", text))
    assert len(named) > 60 and named <= defined | tests.keys(), named - defined - tests.keys()
