"""The documentation site: built once without a network and without a warning; nothing is missing, no link is broken."""

import html
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml
from filelock import FileLock

import xaibench
from xaibench import listing

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Runs a script in a process that cannot open a connection.
OFFLINE = """
import runpy, socket, sys
def refuse(*_): raise OSError("the site is built without a network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages; built by the first worker that asks."""
    pytest.importorskip("sphinx", reason="Sphinx is absent (the extra docs)")
    pytest.importorskip("myst_parser", reason="MyST-Parser is absent (the extra docs)")
    pytest.importorskip("furo", reason="furo is absent (the extra docs)")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / "site"
    with FileLock(shared / "site.lock"):
        if not (out / "log.txt").is_file():
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", OFFLINE, str(DOCS / "build.py"), str(out)]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            out.mkdir(exist_ok=True)
            (out / "log.txt").write_text(f"{done.stdout}{done.stderr}\nexit code {done.returncode}")
    return out / "html"


class Page(HTMLParser):
    """What a page has: its anchors, its links, and what a browser would load for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.anchors.add(found["id"])
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loaded.append(found["href"])


def text_of(path: Path) -> str:
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))).split())


def test_it_is_built_without_a_warning(site):
    log = (site.parent / "log.txt").read_text()
    assert log.strip() == "exit code 0", log


@pytest.mark.parametrize("group", ["method", "metric"])
def test_every_yaml_has_its_page(site, group):
    """With its summary, its settings, its class, and a link from the list."""
    paths = sorted((listing.CONF / group).glob("*.yaml"))
    assert len(paths) == {"method": 102, "metric": 63}[group]
    built = {path.stem for path in (site / f"{group}s").glob("*.html")}
    assert built == {path.stem for path in paths}
    linked = " ".join(path.read_text() for path in (site / f"{group}s" / "families").glob("*.html"))
    for path in paths:
        text = text_of(site / f"{group}s" / f"{path.stem}.html")
        item, spec = listing.read_item(path), yaml.safe_load(path.read_text())
        assert spec["_target_"] in text, path.stem
        for word in re.findall(r"\w+", item.summary) + [f"{group}.{key}" for key in spec if key != "_target_"]:
            assert word in text, (path.stem, word)
        assert f'href="../{path.stem}.html"' in linked, path.stem


def test_what_was_written_by_hand_is_on_the_page_of_its_name(site):
    chapters = re.split(r"^##+ ", (DOCS / "metrics.md").read_text(), flags=re.M)[1:]
    written = {chapter.partition("\n")[0]: chapter.partition("\n")[2] for chapter in chapters}
    found = 0
    for path in (listing.CONF / "metric").glob("*.yaml"):
        if path.stem in written:
            words = re.findall(r"[A-Za-z]{6,}", re.sub(r"\]\([^)]*\)", "]", written[path.stem]))
            text = text_of(site / "metrics" / f"{path.stem}.html")
            missing = [word for word in words if word not in text]
            assert words and not missing, (path.stem, missing)
            found += 1
    assert found == len(list((listing.CONF / "metric").glob("*.yaml")))
    for name, words in {
        "lrp_gamma": "favours the contributions that point where the output does",
        "neuron_mct": "side of a morphological opening",
        "lime": "in some images (4 of 200 of shapes, mostly fine textures) SLIC finds a single one",
        "deepshap": "Multipliers are differences of the output over differences of a value",
    }.items():
        assert words in text_of(site / "methods" / f"{name}.html"), name


def test_every_setting_is_described(site):
    """In the column beside its default: by the docstring of the class, or the yaml."""
    bare = []
    for group in ("method", "metric"):
        for path in (site / f"{group}s").glob("*.html"):
            rows = re.findall(r"<tr[^>]*>(.*?)</tr>", path.read_text(), flags=re.S)
            for row in rows:
                cells = [
                    re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td>(.*?)</td>", row, flags=re.S)
                ]
                if len(cells) == 3 and cells[0].startswith(f"{group}.") and not cells[2]:
                    bare += [f"{path.stem}: {cells[0]}"] if not cells[0].endswith("_target_") else []
    assert not bare


def test_promised_names_are_documented_with_their_arguments(site):
    page = (site / "api.html").read_text()
    anchors = Page(site / "api.html").anchors
    assert {f"xaibench.{name}" for name in xaibench.__all__ if name != "__version__"} <= anchors
    for name in ("explain", "score", "run", "leaderboard", "Classifier"):
        part = page[page.index(f'id="xaibench.{name}"') :]
        part = part[: part.index("</dd></dl>")]
        assert "Parameters:" in text_of_html(part), name


def text_of_html(text: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 130
    broken = []
    for path, page in pages.items():
        assert not [source for source in page.loaded if "//" in source], path
        for link in [*page.links, *page.loaded]:
            target, anchor = urldefrag(link.partition("?")[0])
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            known = pages.get(file)
            if not file.is_file() or (anchor and known and unquote(anchor) not in known.anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken


def test_a_broken_link_or_reference_fails_the_build(site, tmp_path):
    """A warning is an error: a small site with the same settings."""
    for name in ("conf.py", "docstrings.py"):
        shutil.copy(DOCS / name, tmp_path)
    (tmp_path / "_static").mkdir()
    for said in ("[there](nowhere.md)", "```{eval-rst}\n:py:class:`xaibench.Nothing`\n```", "fine"):
        (tmp_path / "index.md").write_text(f"# Page\n\n{said}\n")
        command = [sys.executable, "-m", "sphinx", "-W", "-q", "-E", str(tmp_path), str(tmp_path / "out")]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode == 0) == (said == "fine"), done.stderr


def test_docstrings_of_ours_become_field_lists(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import docstrings

    class Thing:
        """What it is: |x| times *y*, as in `Method` and `other`.

        size: of a side,
            in pixels. low, high [B]: the range.
        More of it. Raises ValueError for no size.
        """

        def __init__(self, size, low, high, *, depth=1):
            pass

    text = "\n".join(docstrings.converted([line.strip("\n") for line in _clean(Thing).splitlines()], Thing))
    assert "\\|x\\| times \\*y\\*, as in :py:obj:`~xaibench.Method` and ``other``." in text
    assert ":param size: of a side, in pixels.\n:param low: (and high) [B]: the range." in text
    assert "More of it.\n" in text and ":raises ValueError: for no size." in text


def _clean(thing: type) -> str:
    import inspect

    return inspect.getdoc(thing)
