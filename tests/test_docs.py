"""The files and commands of README and docs: docs/own.md runs as it stands, the others are run, planned or composed."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.utils import save_image

from xaibench.config import compose_job

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Composed and not run: what cannot be had offline (downloads of data and weights, a cluster), and long presets.
ELSEWHERE = re.compile(r"(model|dataset|hydra/launcher|experiment)=")
# Left out of a command for the reader to fill in.
ELLIPSIS = re.compile(r"\.\.\.|\(the same\)|\(weights and data")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(path, content) of each file and ("", line) of each command of a page, in order."""
    found, text = [], page.read_text(encoding="utf-8").replace("\\\n", " ")
    for match in re.finditer(r"(?:^`([^`\n ]+)`:\n\n)?((?:^(?: {4}.*)?\n)+)", text, flags=re.M):
        content = "\n".join(line[4:] for line in match[2].split("\n")).strip("\n") + "\n"
        if match[1]:
            found.append((match[1], content))
        else:
            found += [("", line) for line in content.split("\n") if line.startswith(("xaibench ", "pip "))]
    return found


def commands(page: Path) -> list[list[str]]:
    """The xaibench commands of a page, as the shell splits them."""
    lines = [line for path, line in blocks(page) if not path and not ELLIPSIS.search(line.partition(" #")[0])]
    parts = [part for line in lines for part in line.partition(" #")[0].split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.strip().startswith("xaibench ")]


@pytest.fixture
def photos(here):
    for name in ("cats", "dogs"):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(2):
            save_image(torch.rand(3, 64, 64), here / "photos" / name / f"{number}.png")


def test_own_md_works_as_it_is_written(xaibench, here, photos, monkeypatch):
    """A method, a metric, a model and images of one's own, and a package from outside of the tree."""
    ran = 0
    for path, text in blocks(ROOT / "docs" / "own.md"):
        if path:
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).write_text(text)
        elif text.startswith("pip "):
            options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
            subprocess.run([sys.executable, "-m", "pip", *text.split()[1:], *options], check=True, cwd=here)
            monkeypatch.syspath_prepend(str(here / "site"))
        else:
            code, out, said = xaibench(*shlex.split(text)[1:])
            assert code == 0, f"{text}\n{said}"
            ran += 1
            if "method=brightness" in text:
                assert "brightness" in out and "Brightness" not in said
    assert ran >= 8
    rows = (here / "results" / "leaderboard.csv").read_text()
    for name in ("absolute_input", "brightness", "positive_share", "factor=2.0", "tiny"):
        assert name in rows, name
    assert "brightness" in xaibench("list", "methods")[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_what_the_program_takes(page, xaibench, here):
    if page.stem == "own":
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
    if words[0] == "run":
        # Of a sweep its first cell.
        words = [re.sub(r"^([^\[]*?=[^,\[]*),.*", r"\1", word) for word in words if word != "-m"]
        words += ["--cfg", "job"] if any(map(ELSEWHERE.match, words)) else ["runner.plan=true", "dataset.limit=2"]
    code, _, said = xaibench(*words)
    # 1 and 3 are answers too: a regression, nothing to compare.
    return said if code not in (0, 1, 3) or (words[0] == "run" and code) else None
