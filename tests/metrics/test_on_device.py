"""Every metric on a device that is not the CPU: nothing mixed, the CPU's numbers, few copies and few waits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden_jobs import JOBS
from tests.metrics.helpers import evaluated, responded
from tests.metrics.test_metric_configs import SPECS
from xaibench.build import build
from xaibench.config import compose_job
from xaibench.engine.kept import Kept
from xaibench.engine.runner import fill, prepare
from xaibench.metrics.network import counterfactual_audit
from xaibench.models.randomise import Randomisation, blocks, randomised

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
PLANE = "model=xor_net model.weights=random dataset=xor dataset.split=grid:9 output=raw dataset.limit=null"
FLOW = "model=two4two_inn dataset=two4two output=raw method=counterfactual fit.limit=8"
SCENE = "metric.warm_up=1 metric.least=1 metric.tries=1 metric.probability=0.1 metric.change=0.9"
OVERRIDES = {
    **dict.fromkeys(("bam_idr", "bam_iir"), "dataset.task=scene"),
    **dict.fromkeys(("counterfactual_agreement", "factor_audit"), f"{FLOW} dataset.limit=1"),
    **dict.fromkeys(("path_dead", "path_output", "path_overlap"), "method=neuron_mct"),
    "effective_rank": PLANE,
    **dict.fromkeys(("null_feature", "feature_switch", "feature_leak", "feature_saturation"), SCENE),
    "ice": "model=mlp model.weights=random dataset=friedman1 output=raw",
    "ig_decomposition": "method=integrated_gradients method.steps=3",
    **dict.fromkeys(
        ("roar", "kar"), "metric.train_limit=16 metric.fractions=[0.5] metric.repeats=1 model.recipe.epochs=1"
    ),
    "path_linearity": "method=neuron_mct metric.neurons=8 metric.directions=2 dataset.limit=1",
    "question_sensitivity": "model=relation_network dataset=sort_of_clevr",
    "region_shares": "model=two4two_inn dataset=two4two output=raw dataset.limit=1",
    "counterfactual_audit": f"{FLOW} metric.images=8 dataset.limit=1",
    "mask_correlation_within": "model=chest_regressor model.weights=random dataset=chest dataset.task=global "
    "output=raw",
    "label_randomization": "model.weights=recipe model.recipe.epochs=1 model.num_classes=2 dataset=imagefolder "
    "dataset.root={folder}/pictures",
}
# Smaller than among JOBS.
SMALLER = {"parameter_randomization", "singular_ratio", "roar", "class_sensitivity"}
# On the CPU a convolution is laid out otherwise, so that float32 differs in its last digits: by this share of the
# largest value of a column, or of 1.
TOLERANCE = 1e-4
# Of randomised networks more, see the last test. Of road up to 1.2e-4 was seen, with systems solved in float64 too; of
# the audit 2e-3 in the logit of images in 8 bits, where a pixel between two of them becomes the other one.
TOLERANCES = {"parameter_randomization": 0.05, "road": 5e-4, "counterfactual_audit": 5e-3}


@pytest.fixture(scope="module")
def kept():
    """What the jobs of each device share."""
    return {"cpu": Kept(), "fakegpu": Kept()}


def columns(name, device, kept, folder):
    """The scores of a metric's small job."""
    if name in JOBS and name not in SMALLER:
        overrides = JOBS[name].split()
    else:
        small = [f"metric.{key}={value}" for key, value in SMALL.items() if key in SPECS[name]]
        overrides = ["method=gradient", f"metric={name}", "dataset.limit=2", "fit.limit=16", *small]
        overrides += OVERRIDES.get(name, "").format(folder=folder).split()
    scoring = prepare(compose_job([*overrides, f"runner.device={device}"]), folder / device, kept[device])
    fill(scoring.stages)
    return scoring.scores.rows(scoring.scores.order)


def draw_pictures(folder):
    """Eight pictures of two classes to train on, which are few enough, and two to explain."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for name in ("one", "other"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(256, size=(64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


@pytest.mark.parametrize("name", SPECS)
def test_a_metric_keeps_to_its_device(name, kept, tmp_path, fakegpu, monkeypatch):
    monkeypatch.setattr(counterfactual_audit, "TARGETS", 2)
    monkeypatch.setattr(counterfactual_audit, "PIXEL_STEPS", 2)
    if "{folder}" in OVERRIDES.get(name, ""):
        draw_pictures(tmp_path / "pictures")
    expected = columns(name, "cpu", kept, tmp_path)
    found = columns(name, "fakegpu", kept, tmp_path)
    assert found.keys() == expected.keys()
    for column, values in expected.items():
        a, b = (torch.from_numpy(array).double() for array in (values, found[column]))
        size = max(1.0, float(a.nan_to_num().abs().max())) if a.numel() else 1.0
        torch.testing.assert_close(
            b,
            a,
            rtol=0,
            atol=TOLERANCES.get(name, TOLERANCE) * size,
            equal_nan=True,
            msg=lambda m, c=column: f"{c}: {m}",
        )


# Those that read maps and ask the network about changed inputs, with few steps.
ASKING = {
    "degradation": {"steps": 4, "tile": 4},
    "insertion_deletion": {"steps": 4},
    "lerf": {"steps": 4},
    "region_perturbation": {"regions": 4, "tile": 4},
    "road": {"percentages": [20, 60]},
    "sensitivity_n": {"points": 2, "sets": 3},
    "smallest_sufficient_region": {},
}


@pytest.mark.parametrize("name", ASKING)
def test_in_float64_the_numbers_are_the_cpus_to_1e_9(name, convnet, batch_for, fakegpu):
    """And neither copies nor waits grow with the images."""
    metric = build({**SPECS[name], **ASKING[name]}, "metric")
    network = convnet((3, 16, 16), batch_size=64)
    batch = batch_for(network, 4)
    maps = torch.randn(4, 16, 16, dtype=torch.float64)
    expected = evaluated(metric, network, batch, maps, responses=responded(metric, network, batch))

    network.module = network.module.to(fakegpu.DEVICE)
    for parameter in network.module.parameters():
        parameter.requires_grad_(False)
    moved = {key: getattr(batch, key).to(fakegpu.DEVICE) for key in ("inputs", "labels", "targets")}
    batch, maps, counts = replace(batch, **moved), maps.to(fakegpu.DEVICE), []
    for count in (2, 4):
        before = dict(fakegpu.COUNT)
        responses = responded(metric, network, batch[:count])
        found = evaluated(metric, network, batch[:count], maps[:count], responses=responses)
        spent = {kind: fakegpu.COUNT[kind] - before[kind] for kind in before}
        counts.append((spent["to_gpu"] + spent["to_cpu"], spent["sync"]))
    for column, values in expected.items():
        torch.testing.assert_close(found[column].cpu(), values, rtol=1e-9, atol=1e-9, equal_nan=True)
    (copies, waits), more = counts
    assert copies <= 16 and waits <= 24, counts  # the imputer looks at each of its steps whether it has converged
    # Among more images there may be one for which the imputer takes another step.
    assert more[0] <= copies and more[1] <= waits + (name == "road"), counts


def test_what_randomised_networks_differ_by_is_float32(tmp_path, fakegpu):
    """Similarities of their maps differ by up to a few hundredths between devices, weights by nothing: the CPU draws
    them. On a CPU convolutions have their channels last, whose sums round otherwise; a ReLU or a maximum that is
    close to another decision then takes it, and the map of that network jumps. The device gives the bits of a CPU
    without channels last; in float64 no layout differs from another."""
    scoring = prepare(compose_job(["metric=parameter_randomization", "dataset.limit=2"]), tmp_path)
    trained, batch = scoring.setting.network.trained, scoring.setting.load(scoring.setting.samples)
    jumps = {}
    for dtype in (torch.float32, torch.float64):
        by_layout = {}
        for layout in (torch.channels_last, torch.contiguous_format, None):
            module = copy.deepcopy(trained.module).to(dtype).to(memory_format=layout or torch.contiguous_format)
            device = "cpu" if layout else fakegpu.DEVICE
            found = []
            for block in blocks(trained, 8):
                network = randomised(replace(trained, module=module), Randomisation("cascade", block, 0))
                network.module = network.module.to(device)
                for parameter in network.module.parameters():
                    parameter.requires_grad_(False)
                inputs, targets = batch.inputs.to(device, dtype), batch.targets.to(device)
                found.append(network.gradient(inputs, targets).cpu())
            by_layout[layout] = torch.stack(found)
        assert torch.equal(by_layout[None], by_layout[torch.contiguous_format])
        scale = by_layout[None].abs().amax((2, 3, 4))
        jumps[dtype] = (by_layout[None] - by_layout[torch.channels_last]).abs().amax((2, 3, 4)) / scale
    assert jumps[torch.float64].max() < 1e-9
