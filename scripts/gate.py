"""Does the gate catch what it should, and only that? Damaged maps, and reruns under other seeds, on real runs.

python scripts/gate.py damage     three kinds of damage to the maps of four methods, the metrics of experiment=baseline
python scripts/gate.py seeds      100 reruns of what is chance alone, under other seeds: how many raise an alarm
"""

import argparse
import contextlib
import io
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xaibench.cli import main
from xaibench.scores import check, leaderboard
from xaibench.scores.leaderboard import Cell

# A method of a user's: one of ours with its maps damaged, as by a bug. The yaml's values are what a variant is measured
# against, so that the damage leaves the row's name as it is, and only its numbers change.
CODE = """
import torch

from xaibench.methods.base import Method


class Damaged(Method):
    def __init__(self, base, damage: str = "none"):
        self.base, self.damage, self.collapse = base, damage, base.collapse

    def check(self, classifier):
        self.base.check(classifier)

    def cost(self, classifier):
        return self.base.cost(classifier)

    def attribute(self, classifier, inputs, targets, context):
        maps = self.base.attribute(classifier, inputs, targets, context)
        if self.damage == "flip":
            return -maps
        if self.damage == "shift":
            return maps.roll((4, 4), (-2, -1))
        if self.damage == "noise":
            noise = torch.stack([torch.randn(maps.shape[1:], generator=g) for g in context.generators]).to(maps)
            return maps + 0.2 * maps.std((1, 2, 3), keepdim=True) * noise
        return maps
"""
DAMAGES = ("flip", "shift", "noise")
BASES = {
    "integrated_gradients": "integrated_gradients.IntegratedGradients",
    "input_x_gradient": "gradient.InputXGradient",
    "gradcam": "gradcam.GradCAM",
    "occlusion": "occlusion.Occlusion",
}
# Chance alone, under metrics that ask no network: the smallest configuration there is.
CHANCE = ("method=random,constant", "metric=pointing_game,roc_auc", "dataset.limit=12")
RERUNS, CHECKS = 9, 100


def write(folder: Path, base: str, damage: str) -> None:
    """The method `damaged` below folder/mine, importable from the folder."""
    (folder / "damaged.py").write_text(CODE)
    (folder / "mine" / "method").mkdir(parents=True, exist_ok=True)
    text = (
        f"# Damaged.\n_target_: damaged.Damaged\ndamage: {damage}\nbase:\n  _target_: xaibench.methods.{BASES[base]}\n"
    )
    (folder / "mine" / "method" / "damaged.yaml").write_text(text)


def verdicts(before: pd.DataFrame, cells: Sequence[Cell]) -> list[check.Compared]:
    """What `xaibench check` finds of these cells."""
    after = leaderboard.read_text(leaderboard.to_csv(leaderboard.table(cells)))
    return check.check(before, after, check.floors(list(cells)))


def damage(metrics: str) -> Iterator[str]:
    """A line per method and damage: the exit code, and the rows that are called a regression."""
    for base in BASES:
        boards = {}
        for kind in ("none", *DAMAGES):
            write(Path.cwd(), base, kind)
            results = f"{base}-{kind}"
            run(
                "method=damaged",
                "--config-dir=mine",
                f"metric={metrics}",
                "dataset.limit=12",
                f"paths.results={results}",
            )
            boards[kind] = leaderboard.read_cells(Path(results))
        before = leaderboard.read_text(leaderboard.to_csv(leaderboard.table(boards["none"])))
        for kind in DAMAGES:
            rows = verdicts(before, boards[kind])
            worse = [row.identity[-1] for row in rows if row.mark == check.WORSE]
            yield f"{base:21} {kind:6} exit {check.exit_code(rows)}  {len(worse)} of {len(rows)}: {', '.join(worse)}"


def false_alarms(results: Path, reruns: int, checks: int, baselines: int = 5000) -> Iterator[str]:
    """How often a run under a further seed is called a regression by a baseline of one run and its reruns."""
    cells: dict[int, list[Cell]] = {}
    for cell in leaderboard.read_cells(results):
        cells.setdefault(cell.card["config"]["seed"], []).append(cell)
    seeds = sorted(cells)
    alarms = alarmed(cells, seeds[: reruns + 1], seeds[reruns + 1 :][:checks])
    rows = Counter(itertools.chain.from_iterable(alarms))
    yield f"{sum(map(bool, alarms))} of {len(alarms)} reruns raise an alarm; rows: {dict(rows)}"
    # One baseline may be lucky: the same arithmetic with others drawn from these runs.
    boards = [leaderboard.table([as_seed(cell, None) for cell in cells[seed]]) for seed in seeds]
    bad = np.stack([np.where(board["direction"] == "higher", -1, 1) * board["value"] for board in boards])
    chance, count = np.random.default_rng(0), 0
    for _ in range(baselines):
        before, now, *others = bad[chance.permutation(len(seeds))[: reruns + 2]]
        varying = np.ptp(others, axis=0) > 0
        spread = check.rerun_tolerance(np.array(others), max(varying.sum(), 1))
        count += bool((now - before > np.maximum(spread, check.FLOOR)).any())
    yield f"with {baselines} baselines drawn from the same runs: {100 * count / baselines:.1f} %"


def alarmed(cells: dict[int, list[Cell]], baseline: Sequence[int], checked: Sequence[int]) -> list[list[str]]:
    """Of each checked seed, the rows that are called a regression against the first seed of the baseline."""
    first = baseline[0]
    before = [as_seed(cell, None if seed == first else seed) for seed in baseline for cell in cells[seed]]
    frame = leaderboard.read_text(leaderboard.to_csv(leaderboard.table(before)))
    outcomes = (verdicts(frame, [as_seed(cell, None) for cell in cells[seed]]) for seed in checked)
    return [[f"{r.identity[2]} {r.identity[-1]}" for r in rows if r.mark == check.WORSE] for rows in outcomes]


def as_seed(cell: Cell, seed: int | None) -> Cell:
    """The cell with this seed in its variant, or none."""
    variant = [leaderboard.without_seed(cell.card["method_variant"]), f"seed={seed}" if seed is not None else ""]
    return Cell({**cell.card, "method_variant": ",".join(part for part in variant if part)}, cell.columns)


def run(*arguments: str) -> None:
    """`xaibench run -m`, without its tables. Raises RuntimeError if a cell fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        if main(["run", "-m", *arguments]):
            raise RuntimeError(" ".join(arguments))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("damage", "seeds"))
    parser.add_argument("--folder", default=None, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(options.folder or temporary)
        if options.what == "damage":
            lines = damage("degradation,insertion_deletion,pointing_game,roc_auc,sparseness")
        else:
            swept = f"seed=range({1 + RERUNS + CHECKS})"
            run(swept, *CHANCE)
            lines = false_alarms(Path("results"), RERUNS, CHECKS)
        for line in lines:
            print(line, flush=True)
