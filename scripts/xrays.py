"""The tables of docs/xrays.md, from what `xaibench run` has written.

    python scripts/xrays.py brixia --results results --root FOLDER --out xray_brixia.csv
    python scripts/xrays.py findings --results results --out xray_findings.csv
    python scripts/xrays.py copies model=chest_cnn dataset=chest dataset.redundancy=or method=iba ...

`brixia` pools the folds of `dataset=brixia`: errors beside those of the training folds' mean, correlations with the
severities, IoU per detector. Intervals are percentiles of a bootstrap that draws cases, since pictures of one case are
alike. `findings` splits scores on `dataset=chest` by finding. `copies` says how a method shares what it finds between
the two copies of a finding (`dataset.redundancy=or`).
"""

import argparse
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xaibench.config import compose_job
from xaibench.datasets.brixia import Brixia
from xaibench.datasets.chest import Chest
from xaibench.engine.runner import prepare

DRAWS = 2000
OURS = ("_target_", "limit", "seed", "filter")  # of a data set's configuration, what is not its constructor's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("brixia", "findings", "copies"))
    parser.add_argument("overrides", nargs="*", help="of `copies`, as for xaibench run")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--root", help="of `brixia`: the folder of the data set")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    if options.table == "copies":
        table = copies(options.overrides)
    elif options.table == "findings":
        table = findings(options.results)
    else:
        table = brixia(options.results, options.root)
    print(table.to_string(index=False, float_format="%.3f"))
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.4g", lineterminator="\n")


def cells(results: Path, dataset: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """The card and the rows [samples x columns] of every finished cell of a data set."""
    for path in sorted((results / "scores").rglob("*.json")):
        card = json.loads(path.read_text())
        if card.get("config", {}).get("dataset", {}).get("_target_") == dataset and path.with_suffix(".csv").is_file():
            rows = pd.read_csv(path.with_suffix(".csv"))
            rows = rows[(rows["status"] == "ok") & (rows["sample"] >= 0)]
            yield card, rows.pivot_table(index="sample", columns="statistic", values="value")


def built(kind: Callable[..., Any], card: dict[str, Any], **changes: Any) -> Any:
    """The data set of a cell; each is made once."""
    spec = {key: value for key, value in card["config"]["dataset"].items() if key not in OURS} | changes
    return _built(kind, json.dumps(spec))


@functools.cache
def _built(kind: Callable[..., Any], spec: str) -> Any:
    logging.disable(logging.WARNING)  # what is left out, the runs have said
    return kind(**json.loads(spec))


def interval(values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0) -> tuple[float, float, float]:
    """The mean and its 95 % interval; groups: draws are of these as wholes."""
    names, index = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sums, counts = (np.bincount(index, weights) for weights in (values, np.ones(len(values))))
    drawn = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def brixia(results: Path, root: str) -> pd.DataFrame:
    """Rows of what is measured by method, pooled over folds."""
    pooled: dict[tuple[str, str, str, str], list[pd.DataFrame]] = {}
    for card, columns in cells(results, "xaibench.datasets.brixia.Brixia"):
        data = built(Brixia, card, root=root)
        columns = columns.copy()
        columns["case"] = [data.picture_of(sample)[1] for sample in columns.index]
        if card["metric"] == "quality" and data.task.name == "global":
            columns["reader"] = [sum(data._severities[data._samples[sample][0]]) for sample in columns.index]
            train = built(Brixia, card, root=root, split="train")
            mean = np.mean([sum(train._severities[i]) for i in train._images])
            columns["mean_error"] = (columns["reader"] - mean).abs()
            columns["gain"] = columns["mean_error"] - columns["absolute_error"]
        parts = [""] * len(columns)
        if card["metric"] == "iou":
            parts = [data.class_names[data._samples[sample][1]] for sample in columns.index]
        grouping = f"{data.task.name}, folds by {card['config']['dataset']['grouping']}"
        for part in sorted(set(parts)):
            rows = columns[[own == part for own in parts]]
            variant = ",".join(word for word in card["method_variant"].split(",") if not word.startswith("output="))
            name = f"{card['method']} {variant}".strip()
            pooled.setdefault((grouping, card["metric"], part, name), []).append(rows)
    found = []
    for (task, metric, part, method), folds in pooled.items():
        rows = pd.concat(folds)
        shown = [name for name in rows if name not in ("case", "label", "reader") and rows[name].dtype == float]
        if metric == "quality" and not task.startswith("global"):
            shown = ["correct"]
        for name in shown:
            values = rows[["case", name]].dropna()
            mean, low, high = interval(values[name].to_numpy(), values["case"].to_numpy())
            what = f"{name} {part}".strip()
            found.append([task, metric, what, method, mean, low, high, len(values), len(folds)])
    names = ["task", "metric", "statistic", "method", "mean", "ci_low", "ci_high", "n", "folds"]
    return pd.DataFrame(found, columns=names).sort_values(["task", "metric", "statistic", "mean"], ignore_index=True)


def findings(results: Path) -> pd.DataFrame:
    """Rows of each method, metric and loss by finding, and over all samples, which weights findings by their boxes."""
    found = []
    for card, columns in cells(results, "xaibench.datasets.chest.Chest"):
        data = built(Chest, card)
        if data.task is not None or card["metric"] not in columns:
            continue
        labels = np.array([data._samples[sample][1] for sample in columns.index])
        values = columns[card["metric"]].to_numpy()
        recipe, redundancy = card["config"]["model"]["recipe"], card["config"]["dataset"]["redundancy"]
        trained = [redundancy, recipe["loss"], recipe["epochs"]]
        name = f"{card['method']} {card['method_variant']}".strip()
        for k, finding in [*enumerate(data.class_names), (None, "all")]:
            chosen = values[np.isfinite(values) & ((labels == k) if k is not None else True)]
            if len(chosen):
                found.append([*trained, card["metric"], finding, name, *interval(chosen), len(chosen)])
    names = ["redundancy", "loss", "epochs", "metric", "finding", "method", "mean", "ci_low", "ci_high", "n"]
    return pd.DataFrame(found, columns=names)


def copies(overrides: list[str]) -> pd.DataFrame:
    """How the positive part of the maps is shared between two copies of a finding.

    lesser: of what lies in either, the share of the one that has less: 0.5 for two alike, 0 for one alone. both: in how
    many images the lesser has at least a quarter. inside: the share of the whole map that lies in the two, whose share
    of the image is `area`.
    """
    job = compose_job(overrides)
    scoring = prepare(job, job.cache)
    setting, stage = scoring.setting, scoring.maps.stage
    lesser, inside, area = [], [], []
    for block in stage.blocks():
        for needed in (*stage.reads, stage):
            if needed.misses(block):
                needed.fill(block)
        maps, _ = scoring.maps.collapsed(block, scoring.maps.method.collapse, "positive")
        for one, sample in zip(maps.double().cpu().numpy(), block):
            image, part = setting.dataset._samples[sample]
            two = setting.dataset.draw(image).copies[part]
            if len(two) == 2 and one.sum() > 0:
                shares = sorted(one[copy].sum() for copy in two)
                inside.append(sum(shares) / one.sum())
                area.append(np.any(two, axis=0).mean())
                lesser.append(shares[0] / sum(shares) if sum(shares) > 0 else 0.0)
    rows = {"lesser": lesser, "both": [float(share >= 0.25) for share in lesser], "inside": inside, "area": area}
    found = [
        [job.method, job.method_variant, name, *interval(np.array(values)), len(values)]
        for name, values in rows.items()
    ]
    return pd.DataFrame(found, columns=["method", "variant", "statistic", "mean", "ci_low", "ci_high", "n"])


if __name__ == "__main__":
    main()
