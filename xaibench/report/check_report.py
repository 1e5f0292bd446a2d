"""The outcome of a check for other programs (JSON) and for a pull request (Markdown)."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from ..scores.check import BETTER, FAILED, INCOMPARABLE, MISSING, NEW, REGRESSED, SAME, WORSE, Compared, exit_code
from ..scores.leaderboard import ARROWS, IDENTITY

WORDS = {
    WORSE: "regressed", FAILED: "failed", MISSING: "missing", INCOMPARABLE: "not comparable", BETTER: "better",
    NEW: "new", SAME: "same",
}  # fmt: skip
# More rows than this make no reader wiser.
SHOWN = 50


def counts(rows: Sequence[Compared]) -> str:
    """One line: how many rows were compared, and what became of them."""
    count = Counter(row.mark for row in rows)
    compared = sum(count[mark] for mark in (WORSE, BETTER, SAME))
    said = ", ".join(f"{count[mark]} {word}" for mark, word in WORDS.items() if count[mark])
    return f"compared {compared} rows: {said or 'nothing to compare'}"


def verdict(rows: Sequence[Compared]) -> str:
    """The outcome in words; a check of which only a part can be compared says how large the part is."""
    code = exit_code(list(rows))
    if code in (0, REGRESSED):
        return "regressed" if code else "no regression"
    count = Counter(row.mark for row in rows)
    apart, compared = count[INCOMPARABLE], count[BETTER] + count[SAME]
    if not apart or not compared:
        return "not comparable"
    return f"no regression in {compared} rows, {apart} of {apart + compared} not comparable"


def to_junit(rows: Sequence[Compared]) -> str:
    """A test case per row, for the test reports of CI systems: what the exit code calls a regression is a failure,
    what cannot be compared an error."""
    suite = ElementTree.Element("testsuite", name="xaibench check", tests=str(len(rows)))
    count: Counter[str] = Counter()
    for row in rows:
        model, dataset, method, variant, metric, metric_variant, statistic = map(_printable, row.identity)
        named = [f"{metric} ({metric_variant})" if metric_variant else metric, statistic]
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{model}.{dataset}.{f'{method} ({variant})' if variant else method}",
            name=" ".join(named),
        )
        kind = {WORSE: "failure", FAILED: "failure", MISSING: "failure", INCOMPARABLE: "error"}.get(row.mark)
        if kind:
            count[kind] += 1
            said = f"{WORDS[row.mark]}: before {_number(row.before)}, after {_number(row.after)}"
            said += f", tolerance {_number(row.tolerance, '.3g')}" if row.tolerance is not None else ""
            ElementTree.SubElement(case, kind, message=_printable(f"{said}. {row.why}".strip()))
    suite.set("failures", str(count["failure"]))
    suite.set("errors", str(count["error"]))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Without the characters that no XML can hold."""
    return "".join(c for c in str(text) if c.isprintable() or c in "\n\t")


def to_json(rows: Sequence[Compared]) -> str:
    """Everything: the exit code, the counts, and every row with its identity."""
    count = Counter(row.mark for row in rows)
    found = {
        "exit_code": exit_code(list(rows)),
        "counts": {word: count[mark] for mark, word in WORDS.items()},
        "rows": [{**dict(zip(IDENTITY, row.identity)), "verdict": WORDS[row.mark], **_facts(row)} for row in rows],
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def to_markdown(rows: Sequence[Compared], baseline: str) -> str:
    """The verdict in a heading, then a table of what is not simply the same, the worst first."""
    lines = [f"### xaibench: {verdict(rows)}", "", f"Against `{baseline}`, {counts(rows)}."]
    order = list(WORDS)
    notable = sorted((row for row in rows if row.mark != SAME or row.why), key=lambda row: order.index(row.mark))
    if notable:
        lines += ["", "| | method | metric | before | after | change | tolerance | samples changed |"]
        lines.append("|---|---|---|---:|---:|---:|---:|---:|")
    for row in notable[:SHOWN]:
        model, dataset, method, variant, metric, metric_variant, statistic = row.identity
        word = f"**{WORDS[row.mark]}**" if row.mark in (WORSE, FAILED, MISSING) else WORDS[row.mark]
        word += f": {row.why}" if row.why else ""
        where = f"{method} {f'({variant})' if variant else ''} on {model}, {dataset}".replace("  ", " ")
        measure = f"{metric} {f'({metric_variant}) ' if metric_variant else ''}{statistic} {ARROWS[row.direction]}"
        change = None if row.before is None or row.after is None else row.after - row.before
        changed = "" if row.changed is None else str(row.changed)
        numbers = (_number(row.before), _number(row.after), _number(change, "+.4f"), _number(row.tolerance, ".3g"))
        cells = [cell.replace("|", "/") for cell in (word, where, measure, *numbers, changed)]
        lines.append(f"| {' | '.join(cells)} |")
    if len(notable) > SHOWN:
        lines += ["", f"... and {len(notable) - SHOWN} more rows (`--format json` has them all)."]
    return "\n".join(lines) + "\n"


def _facts(row: Compared) -> dict[str, Any]:
    facts = {name: value for name, value in asdict(row).items() if name not in ("identity", "mark")}
    return {n: None if isinstance(value, float) and math.isnan(value) else value for n, value in facts.items()}


def _number(value: float | None, how: str = ".4f") -> str:
    if value is None:
        return ""
    return "undefined" if math.isnan(value) else format(value, how)
