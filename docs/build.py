"""Build the site: `python docs/build.py build/docs`, then open build/docs/html/index.html.

The pages of docs/ are copied to build/docs/source, and beside them is written what is made from the program itself: a
page for every method and metric (from its yaml, its class's docstring and what methods.md and metrics.md say of it
by name), for their families, the lists of models, data sets and presets, and the tables of theses.csv. None of that is
committed. Every warning is an error, and nothing is fetched.
"""

import csv
import functools
import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import docstrings
import yaml
from sphinx.cmd.build import main as sphinx

from xaibench import listing
from xaibench.build import TARGET, build
from xaibench.listing import Item

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FAMILIES = {
    "methods": {
        "gradients": "Gradients",
        "rules": "Modified backpropagation",
        "pathways": "Pathway gradients",
        "bottleneck": "Information bottleneck",
        "cam": "Class activation maps",
        "removal": "Removal, Shapley values and masks",
        "controls": "Controls, and maps made elsewhere",
        "bridges": "Other libraries",
    },
    "metrics": {
        "removal": "Removal",
        "retraining": "Retraining",
        "randomisation": "Randomisation",
        "rules": "Rules of modified backpropagation",
        "pathways": "Paths of neurons",
        "scenes": "Scenes made by the network",
        "ground_truth": "Ground truth",
        "two_features": "Two features, and the factors of integrated gradients",
        "properties": "Maps alone",
        "network": "The network itself",
    },
}
NAMED = re.compile(r"^<!-- for: (.*?) -->\n", re.M)


class Texts:
    """The hand-written texts of methods.md and metrics.md, by the names of methods, metrics and families.

    In metrics.md a section is named after its metric, and a chapter after its family; in methods.md a comment
    `<!-- for: NAME NAME -->` under a heading says of which methods a section is, and an item may begin with a name.
    """

    def __init__(self, page: str, names: set[str]) -> None:
        text = (DOCS / page).read_text(encoding="utf-8")
        self.head, *chapters = re.split(r"^## ", text, flags=re.M)
        self.by_name: dict[str, list[str]] = {}
        self.by_family: dict[str, str] = {}
        for chapter in chapters:
            title, _, body = chapter.partition("\n")
            intro, *sections = re.split(r"^### ", body, flags=re.M)
            self.by_family[title] = intro.strip()
            self._read(title, intro)
            for section in sections:
                heading, _, words = section.partition("\n")
                if heading in names:
                    self.by_name.setdefault(heading, []).append(words.strip())
                else:
                    self._read(heading, words)
        if unknown := set(self.by_name) - names:
            raise SystemExit(f"docs/{page}: sections of what there is not: {', '.join(sorted(unknown))}")

    def _read(self, heading: str, text: str) -> None:
        if named := NAMED.search(text):
            whole = f"### {heading}\n\n{NAMED.sub('', text).strip()}"
            for name in named[1].split():
                self.by_name.setdefault(name, []).append(whole)
            return
        for item in re.findall(r"^- (`\w+` .*\n(?:  .*\n)*)", text, flags=re.M):
            self.by_name.setdefault(item.split("`")[1], []).append(re.sub(r"^  ", "", item, flags=re.M).strip())


def plain(text: str) -> str:
    """Words of a yaml in a table: nothing in them is markup but what is quoted."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "".join(part if index % 2 else re.sub(r"([<>*|\[\]])", r"\\\1", part) for index, part in enumerate(parts))


def code(value: Any) -> str:
    """A value as one writes it as an override."""
    if value is None or isinstance(value, bool):
        return f"`{yaml.safe_dump(value).split()[0]}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def spec_of(item: Item) -> dict[str, Any]:
    return yaml.safe_load(item.path.read_text(encoding="utf-8"))


@functools.cache
def passes(item: Item) -> str:
    return listing.passes(item)


def class_of(spec: dict[str, Any]) -> type:
    module, _, name = spec[TARGET].rpartition(".")
    return getattr(importlib.import_module(module), name)


def family_of(item: Item) -> str:
    """`xaibench.methods.gradients.gradient.Gradient` -> `gradients`."""
    return spec_of(item)[TARGET].split(".")[2]


def settings(item: Item, group: str) -> str:
    """A row per parameter of the yaml: how it is set, its default, and what the class and the yaml say of it."""
    remarks, path = {}, []
    for line in item.path.read_text(encoding="utf-8").splitlines():
        if found := re.match(r"^( *)([a-z_0-9]+):([^#]*)(?:#\s*(.*))?$", line):
            path = [*path[: len(found[1]) // 2], found[2]]
            remarks[".".join(path)] = found[4] or ""
    rows: list[str] = []

    def walk(values: dict[str, Any], before: str) -> None:
        says = docstrings.described(class_of(values))
        for name, value in values.items():
            if name == TARGET:
                if before:
                    rows.append(f"| `{group}.{before}{TARGET}` | `{value}` | |")
            elif isinstance(value, dict):
                walk(value, f"{before}{name}.")
            else:
                said = [says.get(name, ""), remarks.get(before + name, "")]
                text = "<br>".join(plain(part) for part in said if part)
                rows.append(f"| `{group}.{before}{name}` | {code(value)} | {text} |")

    walk(spec_of(item), "")
    if not rows:
        return "There is nothing to set.\n"
    return "\n".join(["| setting | default | what |", "|---|---|---|", *rows]) + "\n"


def remarks(item: Item) -> str:
    """What else the comments at the head of a yaml say."""
    lines = []
    for line in item.path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#"):
            break
        if not re.match(r"# (source|needs|tuned_on):", line):
            lines.append(line.lstrip("#").strip())
    text = " ".join(line for line in lines if not line.startswith("xaibench "))
    commands = [f"    {line}" for line in lines if line.startswith("xaibench ")]
    return "\n".join([plain(text), "", *commands, ""])


def facts(item: Item, **more: str) -> str:
    """What the head of a yaml says, as a table of two columns."""
    rows = {"source": plain(item.source), "needs": plain(item.needs), "tuned on": ", ".join(item.tuned_on), **more}
    return "\n".join(["| | |", "|---|---|", *(f"| **{name}** | {text} |" for name, text in rows.items() if text), ""])


def page(item: Item, group: str, texts: Texts, **more: str) -> str:
    """The page of a method or metric."""
    target = spec_of(item)[TARGET]
    command = {"method": f"method={item.name} metric=degradation", "metric": f"method=gradient metric={item.name}"}
    notes = "\n\n".join(texts.by_name.get(item.name, []))
    family = family_of(item)
    title = FAMILIES[f"{group}s"].get(family, family)
    where = f"[{title}](/{group}s/families/{family}.md)"
    statistics = statistics_of(item) if group == "metric" else ""
    return "\n".join(
        [
            f"# {item.name}",
            "",
            plain(item.summary),
            "",
            facts(item, family=where, **more),
            remarks(item),
            f"    xaibench run {command[group]}",
            "",
            statistics,
            *(["## Notes", "", notes, ""] if notes else []),
            "## Settings",
            "",
            f"From `conf/{group}/{item.name}.yaml`.",
            "",
            settings(item, group),
            "## Definition",
            "",
            "```{eval-rst}",
            f".. autoclass:: {target}",
            "   :no-index:",
            "```",
            "",
        ]
    )


def statistics_of(item: Item) -> str:
    """What a metric puts on the leaderboard."""
    made = build(spec_of(item), "metric")
    rows = ["## On the leaderboard", "", "| statistic | better | range | unit |", "|---|---|---|---|"]
    for one in made.statistics:
        better = f"{one.target:g} is best" if one.direction == "target" else one.direction
        low, high = ("" if end is None else f"{end:g}" for end in (one.low, one.high))
        span = f"{low} to {high}" if low and high else f"from {low}" if low else f"up to {high}" if high else ""
        rows.append(f"| `{one.name}` | {better} | {span} | {plain(one.unit)} |")
    return "\n".join([*rows, "", "The first is the headline.", ""])


def family_page(group: str, family: str, members: list[Item], texts: Texts) -> str:
    title = FAMILIES[f"{group}s"].get(family, family)
    lines = [f"# {title}", "", NAMED.sub("", texts.by_family.get(title, ""))]
    lines += ["", f"| {group} | what | source |", "|---|---|---|"]
    lines += [f"| [{m.name}](/{group}s/{m.name}.md) | {plain(m.summary)} | {plain(m.source)} |" for m in members]
    return "\n".join([*lines, "", toctree([f"/{group}s/{member.name}" for member in members]), ""])


def toctree(entries: list[str], *options: str) -> str:
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *entries, "```"])


def table_of_methods(methods: list[Item]) -> str:
    """Every method with what it costs."""
    lines = ["| method | what, and its source | passes | needs |", "|---|---|---|---|"]
    for item in methods:
        tuned = f"<br>Tuned on {', '.join(item.tuned_on)}." if item.tuned_on else ""
        said = f"{plain(item.summary)}<br>*{plain(item.source)}*{tuned}"
        cost = passes(item).replace(" ", "&nbsp;")
        lines.append(f"| [{item.name}](/methods/{item.name}.md) | {said} | {cost} | {plain(item.needs)} |")
    return "\n".join(lines)


def lists() -> str:
    """Models, data sets and presets, a table each."""
    """Models, data sets and presets."""
    lines = []
    for group, title in (("model", "Models"), ("dataset", "Data sets"), ("experiment", "Presets")):
        lines += [f"## {title}", "", f"| {group} | what | source | needs |", "|---|---|---|---|"]
        lines += [
            f"| `{i.name}` | {plain(i.summary)} | {plain(i.source)} | {plain(i.needs)} |" for i in listing.items(group)
        ]
        lines.append("")
    return "\n".join(lines)


def theses() -> str:
    """How many systems of each thesis work, differ and are not built, then a table of each thesis."""
    with (DOCS / "theses.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names, statuses = list(dict.fromkeys(row["thesis"] for row in rows)), ("works", "differs", "not built")
    lines = ["| thesis | " + " | ".join(statuses) + " |", "|---|" + "---:|" * len(statuses)]
    for name in [*names, "all"]:
        found = [row["status"] for row in rows if name in (row["thesis"], "all")]
        lines.append(f"| {name} | " + " | ".join(str(found.count(status)) for status in statuses) + " |")
    for name in names:
        lines += ["", f"## {name}", "", "| id | system | status | where, and its test | difference, reason |"]
        lines.append("|---|---|---|---|---|")
        for row in rows:
            if row["thesis"] == name:
                named = [f"`{item}`" for column in ("where", "test") for item in row[column].split("; ") if item]
                said = [plain(row[column]) for column in ("difference", "reason") if row[column]]
                cells = (f"`{row['id']}`", plain(row["system"]), row["status"], "<br>".join(named), "<br>".join(said))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def linked(text: str, page: Path, metrics: set[str]) -> str:
    """Links of a page of the repository as they are on the site."""

    def moved(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        if "://" in target or target.startswith("/"):
            return found[0]
        path = (page.parent / target).resolve() if target else page
        anchored = f"#{anchor}" if anchor else ""
        if path == DOCS / "metrics.md" and anchor:
            return f"](/metrics/{anchor}.md)" if anchor in metrics else "](/metrics.md)"
        pages = {
            ROOT / "results" / "reference" / "README.md": "/results.md",
            ROOT / "CONTRIBUTING.md": "/contributing.md",
            ROOT / "CHANGELOG.md": "/changelog.md",
            ROOT / "README.md": "/index.md",
        }
        if path in pages:
            return f"]({pages[path]}{anchored})"
        if path.is_relative_to(DOCS):
            return f"](/{path.relative_to(DOCS)}{anchored})" if target else found[0]
        return f"]({shown(path)}{anchored})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def shown(path: Path) -> str:
    """A file of the repository that is no page: copied beside the pages."""
    if not path.exists():
        raise SystemExit(f"docs: a link to {path}, which is not there")
    return f"/files/{path.relative_to(ROOT)}"


def lay_out(source: Path) -> None:
    """Write all pages to `source`."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("__pycache__", "*.py", "_static"))
    items = {
        group: [i for i in listing.items(group) if listing.CONF in i.path.parents] for group in ("method", "metric")
    }
    names = {group: {item.name for item in found} for group, found in items.items()}
    made: dict[str, str] = {}
    for name, path in {
        "results.md": ROOT / "results" / "reference" / "README.md",
        "contributing.md": ROOT / "CONTRIBUTING.md",
        "changelog.md": ROOT / "CHANGELOG.md",
    }.items():
        made[name] = linked(path.read_text(encoding="utf-8"), path, names["metric"])
    for path in DOCS.rglob("*.md"):
        made[str(path.relative_to(DOCS))] = linked(path.read_text(encoding="utf-8"), path, names["metric"])
    words = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    made["glossary.md"] = "# Glossary\n" + words.partition("## Words\n")[2].partition("\n## ")[0]
    made["catalog.md"] = made["catalog.md"].replace("<!-- lists -->", lists())
    made["theses.md"] = made["theses.md"].replace("<!-- theses -->", theses())
    for group, found in items.items():
        texts = Texts(f"{group}s.md", names[group])
        path = DOCS / f"{group}s.md"
        families: dict[str, list[Item]] = {name: [] for name in FAMILIES[f"{group}s"]}
        for item in found:
            families.setdefault(family_of(item), []).append(item)
            more = {"passes": passes(item) + " (forwards + backwards, per map)"} if group == "method" else {}
            made[f"{group}s/{item.name}.md"] = linked(page(item, group, texts, **more), path, names["metric"])
        for family, members in families.items():
            made[f"{group}s/families/{family}.md"] = linked(
                family_page(group, family, members, texts), path, names["metric"]
            )
        tree = toctree([f"/{group}s/families/{family}" for family, members in families.items() if members])
        if group == "metric":
            text = texts.head
        else:
            text = made["methods.md"].replace("<!-- table of methods -->", table_of_methods(found))
        made[f"{group}s.md"] = linked(f"{text.rstrip()}\n\n{tree}\n", path, names["metric"])
    for name, text in made.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
        for link in re.findall(r"\]\(/files/([^)#\s]+)", text):
            (source / "files" / link).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / link).is_dir():
                raise SystemExit(f"{name}: a link to the folder {link}")
            shutil.copy(ROOT / link, source / "files" / link)


def main(out: Path) -> int:
    """The site under out/html; the exit code of Sphinx, 0 if there was no warning."""
    source = out / "source"
    lay_out(source)
    options = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-c", str(DOCS), "-d", str(out / "doctrees")]
    return sphinx([*options, str(source), str(out / "html")])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
