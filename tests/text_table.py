"""What runs on sentences: every method and metric, tried on the bundled network of planted_words.

`python -m tests.text_table` writes docs/runs-on-text.csv, which the documentation shows.
"""

import csv
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from xaibench.config import compose_job
from xaibench.engine import runner
from xaibench.engine.kept import Kept
from xaibench.errors import UserError, first_line

CONF = Path(__file__).parents[1] / "conf"
FILE = Path(__file__).parents[1] / "docs" / "runs-on-text.csv"
# What is needed for a sentence, where the yaml's own setting is for pictures.
SETTINGS: dict[str, dict[str, Any]] = {
    "occlusion": {"patch": 1},
    "feature_ablation": {"patch": 1, "fill": "zero"},
    "lime": {"segments": "grid"},
    "expected_gradients": {"baseline": "zero"},
    "gradient_shap": {"baseline": "zero"},
    "integrated_gradients_half": {"baseline": "zero"},
    "iba_features": {"loss": "cross_entropy"},
    "input_iba": {"critic": "recurrent"},
    "input_iba_released": {"critic": "recurrent"},
    **{name: {"layer": "rnn_4"} for name in (
        "ablationcam", "cam", "concept", "concept_correlation", "eigencam", "gradcam", "gradcam_pp", "hirescam",
        "layercam", "scorecam", "xgradcam", "guided_gradcam", "guided_gradcam_pp",
    )},
    "insertion_deletion": {"insertion_fill": "zero"},
    "linear_probe": {"layers": ["rnn_4"]},
    "region_perturbation": {"fill": "zero", "tile": 1},
    "degradation": {"tile": 1},
    "sensitivity_n": {"sizes": "percent"},
    "precomputed": {"path": "FILE"},
}  # fmt: skip
# For speed alone.
FEW = {
    "samples": 6,
    "steps": 3,
    "copies": 2,
    "players": 4,
    "directions": 2,
    "target_samples": 10,
    "epochs": 1,
    "sets": 4,
}
FEW |= {"warm_up": 0, "least": 0, "batch_size": 5, "draws": 2, "references": 2, "iterations": 2, "points": 3}
BY = {"ig_decomposition": "integrated_gradients"}


def specs(group: str) -> dict[str, dict[str, Any]]:
    """The yaml files of a group, by name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / group).glob("*.yaml"))}


def rows() -> list[tuple[str, str, str, str]]:
    """(kind, name, settings beside the yaml's, `runs` or why not) of every method and metric."""
    methods, metrics = specs("method"), specs("metric")
    kept, found = Kept(), []
    with tempfile.TemporaryDirectory() as folder:
        where = [f"paths.cache={folder}", f"paths.results={folder}/results"]
        common = ["model=lstm_planted", "dataset=planted_words", "dataset.limit=2", "fit.limit=8", *where]
        maps = Path(folder) / "maps.npz"
        np.savez(maps, maps=np.ones((1000, 1, 1, 64), dtype=np.float32), sample=np.arange(1000))
        job = compose_job([*common, "method=gradient", "metric=sparseness"])
        for kind, names in (("method", methods), ("metric", metrics)):
            for name, spec in names.items():
                own = SETTINGS.get(name, {})
                tried = {**_small(spec), **own, **({"path": str(maps)} if name == "precomputed" else {})}
                if kind == "method":
                    one = dataclasses.replace(job, method=name, method_spec=tried)
                else:
                    by = BY.get(name, "gradient")
                    one = dataclasses.replace(
                        job, metric=name, metric_spec=tried, method=by, method_spec=_small(methods[by])
                    )
                settings = " ".join(f"{kind}.{key}={value}" for key, value in own.items())
                found.append((kind, name, settings, _tried(one, Path(folder), kept)))
    return found


def _small(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: _small(value) if isinstance(value, dict) else value for key, value in spec.items()} | {
        key: value for key, value in FEW.items() if isinstance(spec.get(key), int)
    }


def _tried(job: Any, folder: Path, kept: Kept) -> str:
    try:
        scoring = runner.prepare(job, folder, kept)
        runner.fill(scoring.stages)
    except UserError as error:
        return first_line(error)
    return "runs"


def table() -> str:
    """The file's text."""
    lines = [",".join(("kind", "name", "with", "on sentences"))]
    quoted = [[f'"{value}"' if "," in value or '"' in value else value for value in row] for row in rows()]
    return "\n".join([*lines, *map(",".join, quoted)]) + "\n"


def read() -> list[dict[str, str]]:
    """The committed table."""
    with open(FILE, newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(table())
    sys.stdout.write(f"{FILE}\n")
