"""What runs on tables: every method and metric on a small network of rows, or the sentence that says why it does not.

`python -m tests.table_support` writes the table into docs/tables.md anew.
"""

import dataclasses
import tempfile
from pathlib import Path

import torch
import yaml

from xaibench.config import compose_job
from xaibench.engine import runner
from xaibench.engine.kept import Kept
from xaibench.errors import UserError
from xaibench.job import Job

ROOT = Path(__file__).parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "tables.md"
# The table stands behind this line of the page, which it ends.
MARK = "<!-- made by tests/table_support.py -->\n\n"
# Tables have columns in the place of tiles, and this one a value in the place of a class: what is tried where the yaml
# as it is does not work.
OTHERWISE = {
    "method": [
        {"patch": 1}, {"fill": "zero"}, {"segments": "grid"}, {"baseline": "zero"}, {"first": "square"},
        {"loss": "deviation"}, {"layer": "bottleneck"}, {"layer": "bottleneck", "loss": "deviation"},
        {"critic": "recurrent", "loss": "deviation"}, {"layers": ["linear1"], "loss": "deviation"},
    ],
    "metric": [
        {"output": "logit"}, {"tile": 1, "output": "logit"}, {"output": "logit", "insertion_fill": "zero"},
        {"tile": 1, "output": "logit", "fill": "zero"}, {"layer": "linear1"}, {"window": 1}, {"loss": "deviation"},
    ],
}  # fmt: skip
# Methods that some metrics are about, in the place of the gradient.
CHOOSERS = ("neuron_mct", "integrated_gradients")
# Few of everything, which changes nothing of what can be done.
FEW = {"samples": 4, "steps": 3, "references": 4, "players": 4, "train_limit": 40, "repeats": 1, "draws": 2, "sets": 4}
FEW |= {"warm_up": 1, "least": 1}
COMPOSED = (
    "model=mlp", "model.weights=random", "model.recipe.epochs=1", "dataset=friedman1", "dataset.samples=200",
    "dataset.limit=2", "fit.limit=40", "method=gradient", "metric=sparseness",
)  # fmt: skip


def rows() -> list[tuple[str, str, bool, str]]:
    """(group, name, whether it runs, the overrides that it takes or why it does not) of every method and metric."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        job = compose_job([*COMPOSED, f"paths.cache={folder}/cache", f"paths.results={folder}/results"])
        kept = Kept()
        for group in ("method", "metric"):
            for path in sorted((CONF / group).glob("*.yaml")):
                found.append((group, path.stem, *outcome(job, group, path, kept)))
    return found


def outcome(job: Job, group: str, path: Path, kept: Kept) -> tuple[bool, str]:
    """Whether it runs, as it is or otherwise, and what that takes; else the sentence."""
    spec = yaml.safe_load(path.read_text())
    reason = ""
    for change in [{}, *OTHERWISE[group]]:
        if not change.keys() <= spec.keys():
            continue
        said = refused(job, group, path.stem, {**spec, **change}, kept)
        if said is None:
            return True, " ".join(f"{group}.{name}={value}" for name, value in change.items())
        reason = reason or said
    for name in CHOOSERS if group == "metric" else ():
        method = yaml.safe_load((CONF / "method" / f"{name}.yaml").read_text())
        if refused(dataclasses.replace(job, method=name, method_spec=method), group, path.stem, spec, kept) is None:
            return True, f"method={name}"
    return False, reason


def refused(job: Job, group: str, name: str, spec: dict, kept: Kept) -> str | None:
    """What a run of this method or metric is refused with; None if it has scores."""
    spec = {key: FEW.get(key, value) if isinstance(value, int) else value for key, value in spec.items()}
    changed = dataclasses.replace(job, **{group: name, f"{group}_spec": spec})
    try:
        runner.run(changed, kept=kept)
    except UserError as error:
        return str(error).splitlines()[0]
    return None


def markdown(found: list[tuple[str, str, bool, str]]) -> str:
    """The table of docs/tables.md."""
    lines = ["| | | on tables |", "|---|---|---|"]
    for group, name, runs, words in found:
        said = (f"runs with `{words}`" if words else "runs") if runs else words.replace("|", "\\|")
        lines.append(f"| {group} | {name} | {said} |")
    counts = {group: sum(runs for kind, _, runs, _ in found if kind == group) for group in ("method", "metric")}
    return "\n".join(lines) + f"\n\n{counts['method']} methods and {counts['metric']} metrics run.\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    before = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(before + MARK + markdown(rows()))
