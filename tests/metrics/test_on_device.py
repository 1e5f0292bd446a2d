"""Every metric on a device that is not the CPU: nothing mixed, the CPU's numbers, few copies and few waits."""

import pytest
import torch

from tests.golden_jobs import JOBS
from tests.metrics.test_metric_configs import SPECS
from xaibench.config import compose_job
from xaibench.engine.kept import Kept
from xaibench.engine.runner import fill, prepare

# Few of whatever a metric makes.
SMALL = {
    "steps": 4,
    "sets": 3,
    "points": 2,
    "draws": 3,
    "seeds": 1,
    "blocks": 3,
    "vectors": 4,
    "images": 40,
    "epochs": 1,
}
FLOW = "model=two4two_inn dataset=two4two output=raw method=counterfactual fit.limit=8"
SCENE = "metric.warm_up=1 metric.least=1 metric.tries=1 metric.probability=0.1 metric.change=0.9"
OVERRIDES = {
    **dict.fromkeys(("bam_idr", "bam_iir"), "dataset.task=scene"),
    **dict.fromkeys(("counterfactual_agreement", "counterfactual_audit", "factor_audit"), FLOW),
    **dict.fromkeys(("path_dead", "path_output", "path_overlap"), "method=neuron_mct"),
    **dict.fromkeys(("null_feature", "feature_switch", "feature_leak", "feature_saturation"), SCENE),
    "ig_decomposition": "method=integrated_gradients method.steps=3",
    "kar": "metric.train_limit=16 metric.fractions=[0.5] metric.repeats=1 model.recipe.epochs=1 dataset.limit=4",
    "path_linearity": "method=neuron_mct metric.neurons=8 metric.directions=2 dataset.limit=1",
    "region_shares": "model=two4two_inn dataset=two4two output=raw",
}
# What these need is no small job: networks trained on permuted labels, of the recipes and the code that `roar` trains
# with; and radiographs, with the code of `mask_correlation`.
ELSEWHERE = {"label_randomization", "mask_correlation_within"}
# On the CPU a convolution is laid out otherwise, so that float32 differs in its last digits: by this share of a column's
# largest value, or of 1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def kept():
    """What the jobs of each device share."""
    return {"cpu": Kept(), "fakegpu": Kept()}


def columns(name, device, kept, folder):
    """The scores of a metric's small job."""
    if name in JOBS:
        overrides = JOBS[name].split()
    else:
        small = [f"metric.{key}={value}" for key, value in SMALL.items() if key in SPECS[name]]
        overrides = ["method=gradient", f"metric={name}", "dataset.limit=2", "fit.limit=16", *small]
        overrides += OVERRIDES.get(name, "").split()
    scoring = prepare(compose_job([*overrides, f"runner.device={device}"]), folder / device, kept[device])
    fill(scoring.stages)
    return scoring.scores.rows(scoring.scores.order)


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ELSEWHERE])
def test_a_metric_keeps_to_its_device(name, kept, tmp_path, fakegpu):
    expected = columns(name, "cpu", kept, tmp_path)
    found = columns(name, "fakegpu", kept, tmp_path)
    assert found.keys() == expected.keys()
    for column, values in expected.items():
        a, b = (torch.from_numpy(array).double() for array in (values, found[column]))
        size = max(1.0, float(a.nan_to_num().abs().max())) if a.numel() else 1.0
        torch.testing.assert_close(
            b, a, rtol=0, atol=TOLERANCE * size, equal_nan=True, msg=lambda m, c=column: f"{c}: {m}"
        )
