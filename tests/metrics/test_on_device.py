"""Every metric on a device that is not the CPU: nothing mixed, the CPU's numbers, few copies and few waits."""

import pytest

from tests.golden_jobs import JOBS
from tests.metrics.test_metric_configs import SPECS
from xaibench.config import compose_job
from xaibench.engine.runner import fill, prepare
from xaibench.engine.setting import Kept

# Few of whatever a metric makes.
SMALL = {
    "steps": 4,
    "sets": 3,
    "points": 2,
    "draws": 3,
    "seeds": 1,
    "blocks": 3,
    "vectors": 4,
    "warm_up": 1,
    "least": 1,
}
SMALL |= {"tries": 1, "probability": 0.2, "change": 10.0}
FLOW = "model=two4two_inn dataset=two4two output=raw method=counterfactual fit.limit=8 dataset.limit=2"
OVERRIDES = {
    **dict.fromkeys(("bam_idr", "bam_iir"), "dataset.task=scene"),
    **dict.fromkeys(("counterfactual_agreement", "counterfactual_audit", "factor_audit"), FLOW),
    **dict.fromkeys(("path_dead", "path_output", "path_overlap"), "method=neuron_mct"),
    "ig_decomposition": "method=integrated_gradients method.steps=3",
    "kar": "metric.train_limit=16 metric.fractions=[0.5] metric.repeats=1 model.recipe.epochs=1 dataset.limit=4",
    "label_randomization": "model.weights=recipe model.recipe.epochs=1 +dataset.train_size=32",
    "path_linearity": "method=neuron_mct metric.neurons=8 metric.directions=2 dataset.limit=1",
    "region_shares": "model=two4two_cnn dataset=two4two output=raw",
}
# Columns whose float32 says less than the others', see their tests.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def kept():
    """What the jobs of a device share."""
    return {}


def columns(name, device, kept, folder):
    """The scores of a metric's small job."""
    if name in JOBS:
        overrides = JOBS[name].split()
    else:
        small = [f"metric.{key}={value}" for key, value in SMALL.items() if key in SPECS[name]]
        overrides = ["method=gradient", f"metric={name}", "dataset.limit=2", "fit.limit=16", *small]
        overrides += OVERRIDES.get(name, "").split()
    job = compose_job([*overrides, f"runner.device={device}"])
    scoring = prepare(job, folder / device, kept.setdefault(device, Kept()))
    fill(scoring.stages)
    return scoring.scores.rows(scoring.scores.order)
