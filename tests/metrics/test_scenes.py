"""Scenes made from a network: hand-built networks whose answer is known, the optimisation, and the cache."""

import dataclasses
import io
import signal

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests import crashing
from tests.metrics.helpers import evaluated
from xaibench.config import compose_job
from xaibench.datasets.base import Batch
from xaibench.engine.runner import prepare
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.gradients.gradient import Gradient
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.removal.exact_shapley import ExactShapley
from xaibench.methods.removal.occlusion import Occlusion
from xaibench.metrics.scenes._generators import GENERATORS, DeepImagePrior
from xaibench.metrics.scenes._scenes import SCENARIOS, Making, focal, make, masks, relative
from xaibench.metrics.scenes.feature_leak import FeatureLeak
from xaibench.metrics.scenes.feature_saturation import FeatureSaturation
from xaibench.metrics.scenes.feature_switch import FeatureSwitch
from xaibench.metrics.scenes.null_feature import NullFeature
from xaibench.models.classifier import Classifier
from xaibench.perturb import fills
from xaibench.rng import sample_generators

SIDE, PATCH = 16, 4  # 0.25 of 16
COUNT = 6


def responses(classes=(0, 1), corners=((2, 2), (10, 10)), count=COUNT, **columns):
    """Scenes of noise with patches at known places, as `respond` gives them."""
    scene = torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = {
        "scene": scene,
        "corners": torch.tensor(corners).expand(count, -1, -1),
        "classes": torch.tensor(classes).expand(count, -1),
        **dict.fromkeys(("accepted", "attempts", "steps", "probability", "change", "holds"), torch.ones(count)),
    }
    return made | columns


class Known(nn.Module):
    """[B,1,16,16] -> logits of two classes."""

    def __init__(self, logit):
        super().__init__()
        self.logit, self.unused = logit, nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return torch.stack([self.logit(x), torch.zeros(len(x), dtype=x.dtype)], 1)


def known(logit):
    return Classifier("known", Known(logit), (1, SIDE, SIDE))


def inside(corner, places=PATCH):
    return masks(torch.tensor([[corner]]), places, SIDE, SIDE)[0, 0].double()


FIRST, SECOND = inside((2, 2)), inside((10, 10))


def columns(metric, network, explain, made):
    """A metric's columns, of `explain(inputs, targets, purpose, masks)` or of a method."""

    def by_method(inputs, targets, purpose, places):
        generators = sample_generators(0, purpose, range(len(inputs)))
        return explain.attribute(network, inputs, targets, Context(generators)).sum(1).abs()

    batch = Batch(
        tuple(range(len(made["scene"]))), made["scene"], made["classes"][:, 0], made["classes"][:, 0], None, ()
    )
    asked = by_method if hasattr(explain, "attribute") else explain
    return evaluated(metric, network, batch, None, responses=made, explain=asked)


def shapley():
    return ExactShapley(players=4)  # a grid of 2 x 2: each patch lies in a quarter of its own


@pytest.mark.parametrize(
    "method", [Occlusion(patch=4, stride=4), shapley(), IntegratedGradients(steps=5)], ids=lambda m: type(m).__name__
)
def test_a_patch_elsewhere_is_null(method):
    """Logit = sum over the first quarter: whatever lies in the last one contributes exactly nothing."""
    quarter = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    quarter[:8, :8] = 1
    network = known(lambda x: (x[:, 0] * quarter).sum((1, 2)))
    found = columns(NullFeature(patch=0.25), network, method, responses())
    for name in ("over_active", "of_total", "of_union"):
        assert (found[name] == 0).all(), name


def test_shapley_halves_a_maximum_and_the_gradient_picks_one():
    """Logit = max of the two patches' means, of scenes in which they are equal, or the first is a little more."""
    network = known(lambda x: torch.maximum((x[:, 0] * FIRST).sum((1, 2)), (x[:, 0] * SECOND).sum((1, 2))))
    made = responses(classes=(0, 0))
    equal = torch.zeros_like(made["scene"])
    equal[:, 0] = FIRST + SECOND
    halves = columns(FeatureSaturation(patch=0.25), network, shapley(), made | {"scene": equal})
    assert halves["imbalance"].abs().max() < 1e-12 and (halves["first"] > 0).all()
    more = equal + 0.01 * FIRST
    picked = columns(FeatureSaturation(patch=0.25), network, Gradient(), made | {"scene": more})
    assert (picked["imbalance"] == 1).all() and (picked["second"] == 0).all()


def drawn(law):
    """A method that draws its map anew for each class."""
    generator = torch.Generator().manual_seed(1)
    return lambda inputs, targets, purpose, places: law(len(inputs), SIDE, SIDE, generator=generator)


def uniform_map(inputs, targets, purpose, places):
    return torch.ones(len(inputs), SIDE, SIDE)


def test_uniform_and_random_maps_are_at_their_floors():
    network, many = known(lambda x: x.sum((1, 2, 3))), responses(count=400)
    flat = columns(NullFeature(patch=0.25), network, uniform_map, many)
    assert (flat["over_active"] == 1).all() and (flat["of_union"] == 0.5).all()
    assert torch.allclose(flat["of_total"], torch.full((400,), PATCH**2 / SIDE**2).double())
    assert (columns(FeatureSwitch(patch=0.25), network, uniform_map, many)["switch"] == 1).all()
    assert (columns(FeatureSaturation(patch=0.25), network, uniform_map, many)["imbalance"] == 0).all()
    # E min(u, v) / E u of two uniform numbers is (1 / 3) / (1 / 2).
    switch = columns(FeatureSwitch(patch=0.25), network, drawn(torch.rand), many)["switch"]
    assert float(switch.mean()) == pytest.approx(2 / 3, abs=0.01)
    one = torch.tensor(((2, 2),)).expand(400, -1, -1)
    leak = columns(FeatureLeak(patch=0.25), network, drawn(torch.rand), many | {"corners": one})
    assert abs(pd.Series(leak["own"].numpy()).corr(pd.Series(leak["other"].numpy()), method="spearman")) < 0.15
    assert leak["own"].mean() == pytest.approx(0.5, abs=0.01)


def test_equations_on_maps_of_known_values():
    """First patch 3, second 1, outside 0.5, for the first class; 2, 1 and 0 for the second."""
    maps = [3 * FIRST + SECOND + 0.5 * (1 - FIRST - SECOND), 2 * FIRST + SECOND]

    def explain(inputs, targets, purpose, places):
        assert purpose == ""  # the same noise for both classes
        return maps[int(targets[0])].expand(len(inputs), -1, -1)

    network, made = known(lambda x: x.sum((1, 2, 3))), responses()
    null = columns(NullFeature(patch=0.25), network, explain, made)
    outside = 0.5 * (SIDE**2 - 2 * PATCH**2) / PATCH**2
    assert null["over_active"][0].item() == pytest.approx(1 / 3)
    assert null["of_total"][0].item() == pytest.approx(1 / (4 + outside)) and null["of_union"][0].item() == 0.25
    switch = columns(FeatureSwitch(patch=0.25), network, explain, made)["switch"]
    assert switch[0].item() == pytest.approx((2 + 1) / (3 + 1))
    leak = columns(FeatureLeak(patch=0.25), network, explain, made | {"corners": made["corners"][:, :1]})
    around = (0.5 * (SIDE**2 - 2 * PATCH**2) + PATCH**2) / (SIDE**2 - PATCH**2)
    assert leak["own"][0].item() == pytest.approx(3 / (3 + around))
    saturation = columns(FeatureSaturation(patch=0.25), network, explain, made)
    assert saturation["imbalance"][0].item() == pytest.approx(0.5)


def test_no_scene_and_no_map_are_undefined_and_counted():
    accepted = torch.tensor([1.0, 0, 1, 1, 1, 1])

    def explain(inputs, targets, purpose, places):
        maps = torch.ones(len(inputs), SIDE, SIDE)
        maps[2] = 0
        return maps

    network, made = known(lambda x: x.sum((1, 2, 3))), responses(accepted=accepted)
    for metric, name in ((NullFeature, "over_active"), (FeatureSwitch, "switch"), (FeatureSaturation, "imbalance")):
        found = columns(metric(patch=0.25), network, explain, made)
        assert found["made"].tolist() == accepted.tolist()
        assert found[name].isnan().tolist() == [False, True, True, False, False, False]
        assert found["empty"][2] == 1 and found["change"].isnan().sum() == 1


# ---- making scenes ---------------------------------------------------------------------------------------------------


def small_network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.append(nn.Linear(8, 4)).double()
    with torch.no_grad():
        for layer in (module[0], module[-1]):
            layer.weight.mul_(6)
    return Classifier("small", module, (3, 24, 24))


def all_made(*arguments):
    """What `make` yields, the rows of each part at their places."""
    parts = list(make(*arguments))
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
    return {name: torch.cat([columns[name] for _, columns in parts])[order] for name in parts[0][1]}


MAKING = Making(GENERATORS["pixel"], 8, steps=80, warm_up=30, least=10, tries=2, learning_rate=0.05, probability=0.6,
                change=0.5)  # fmt: skip


@pytest.mark.parametrize(
    ("scenario", "generator"), [*((scenario, "pixel") for scenario in SCENARIOS), ("double", "deep_image_prior")]
)
def test_a_scene_is_the_same_whoever_is_beside_it(scenario, generator):
    network, making = small_network(), dataclasses.replace(MAKING, generator=GENERATORS[generator], steps=16, least=5)
    making = dataclasses.replace(making, warm_up=8)
    together = all_made(network, SCENARIOS[scenario], making, sample_generators(0, "x", range(4)))
    for row in (3, 1):
        alone = all_made(network, SCENARIOS[scenario], making, sample_generators(0, "x", [row]))
        for name, values in together.items():
            assert torch.allclose(values[row].double(), alone[name][0].double(), rtol=0, atol=1e-9), name
    assert not torch.equal(together["scene"][0], together["scene"][1])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_accepted_scene_has_the_property_of_its_scenario(scenario, monkeypatch):
    """Seen from outside: on grey, so that what lies under a patch is known, patches are taken out of the saved scene,
    and the network is asked again."""
    monkeypatch.setattr(fills, "BACKGROUND", (0.5, 0.0))
    network = small_network()
    made = all_made(network, SCENARIOS[scenario], MAKING, sample_generators(0, "y", range(6)))
    accepted = torch.nonzero(made["accepted"])[:, 0].tolist()
    assert accepted
    places = masks(made["corners"], 8, 24, 24)
    assert (places.sum((2, 3)) == 64).all() and (places.sum(1) <= 1).all()
    for row in accepted:
        scene, (first, second) = made["scene"][row].double(), made["classes"][row].tolist()
        assert (first == second) == (scenario == "saturation")

        def output(*patches, scene=scene, row=row):
            kept = sum((places[row, k].double() for k in patches), torch.zeros(24, 24).double())
            return network.logits((kept * scene + (1 - kept) * 0.5)[None])[0]

        if scenario == "null":
            pairs = [(output(0, 1), output(0), first), (output(1), output(), first)]
        elif scenario == "single":
            pairs = [(output(0), output(), second)]
        else:
            pairs = [(output(0, 1), output(1), second), (output(0, 1), output(0), first)]
        changes = [abs(float(a[k] - b[k])) / max(min(abs(float(a[k])), abs(float(b[k]))), 1) for a, b, k in pairs]
        assert max(np.tanh(changes)) < MAKING.change
        assert float(made["change"][row]) == pytest.approx(np.mean(changes), abs=1e-5)
        own = [float(output(k).softmax(0)[made["classes"][row][k]]) for k in range(places.shape[1])]
        assert min(own) > MAKING.probability and float(made["probability"][row]) == pytest.approx(min(own), abs=1e-5)
        assert 0 <= made["holds"][row] <= 1


@pytest.mark.parametrize(
    ("metric", "scenario", "asked"),
    [(NullFeature, "null", (1, 3)), (FeatureLeak, "single", (1, 1)), (FeatureSwitch, "double", (0, 4)),
     (FeatureSaturation, "saturation", (0, 4))],
)  # fmt: skip
def test_only_what_teaches_a_patch_is_gone_back_through(metric, scenario, asked):
    """Passes of a step, counted by hand from equations 1 to 7: without a gradient, with one."""
    network, making = small_network(), dataclasses.replace(MAKING, steps=3, warm_up=1, least=2, tries=1, probability=1)
    seen = {False: 0, True: 0}  # by whether the patches can be differentiated

    def count(module, inputs):
        seen[inputs[0].requires_grad] += len(inputs[0])

    network.module.register_forward_pre_hook(count)
    all_made(network, SCENARIOS[scenario], making, sample_generators(0, "x", range(2)))
    fresh = 20 * sum(asked)
    outputs = 1  # a pass that says how many there are
    assert seen == {False: 2 * (3 * asked[0] + fresh) + outputs, True: 2 * 3 * asked[1]}
    assert metric(steps=3, warm_up=1, least=2).cost(network) == (3 * sum(asked) + fresh, 3 * asked[1])


def test_the_focal_function_and_relative_changes():
    values = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(focal(values, 1), -((1 - values) ** 0.8) * values.log())
    assert torch.allclose(focal(values, 0), -(values**0.8) * (1 - values).log())
    pair = torch.tensor([4.0, 0.1, -2.0]), torch.tensor([5.0, 0.3, 2.0])
    assert torch.allclose(relative(*pair), torch.tensor([0.25, 0.2, 2.0]))


def test_the_prior_normalises_as_batch_normalisation_of_one_scene():
    """The hourglass of one scene, written with torch's own layers."""
    prior = DeepImagePrior(3, 10)
    parameters, fed = prior.initial(sample_generators(0, "prior", [0, 1]))
    found = prior.patches(parameters, fed)
    assert found.shape == (2, 3, 10, 10)
    for row in range(2):
        values = fed[row : row + 1]
        for number in range(6):
            if number in (1, 2):
                values = nn.functional.avg_pool2d(values, 2)
            if number in (4, 5):
                values = nn.functional.interpolate(values, scale_factor=2, mode="bilinear")
            weight, scale, shift = (part[row] for part in prior.layers(parameters)[number])
            values = nn.functional.conv2d(nn.functional.pad(values, (1,) * 4, mode="reflect"), weight)
            if number < 5:
                values = nn.functional.batch_norm(values, None, None, scale, shift, training=True)
                values = nn.functional.leaky_relu(values, 0.2)
            else:
                values = values + shift[None, :, None, None]
        assert torch.allclose(found[row], values[0, :, :10, :10].sigmoid(), atol=1e-5)


FEW = ("metric.steps=60", "metric.warm_up=20", "metric.learning_rate=0.05", "metric.tries=1")


def test_scenes_are_made_once_for_all_methods_and_further_ones_are_added(xaibench, here):
    """Other methods and a larger limit leave the shards that are there as they are."""

    def shards():
        return {path: path.read_bytes() for path in here.glob("cache/responses/*/*/null_feature/*/shard-*.h5")}

    job = ("metric=null_feature", *FEW)
    assert xaibench("run", "method=random", *job, "dataset.limit=2")[0] == 0
    before = shards()
    assert xaibench("run", "method=gradient", *job, "dataset.limit=2")[0] == 0
    assert before and shards() == before
    assert xaibench("run", "method=gradient", *job, "dataset.limit=3")[0] == 0
    assert len(shards()) == len(before) + 1 and before.items() <= shards().items()
    assert not list((here / "cache" / "maps").glob("*/*/*"))  # no image of the data set is explained
    board = pd.read_csv(io.StringIO(xaibench("leaderboard", "--csv")[1]))
    assert set(board["method"]) == {"random", "gradient"}
    named = {"null_feature", "null_share_total", "null_share_union", "accepted", "holds_on_fresh", "output_change"}
    assert named <= set(board["statistic"])


def test_scenes_are_made_side_by_side_however_long_each_takes(tmp_path):
    """Blocks are small where samples take long, so that a kill loses little; scenes are kept one by one."""
    for metric, together in (("feature_leak", 32), ("null_feature", 10), ("feature_switch", 8)):
        job = compose_job([f"metric={metric}", "metric.steps=1000000", "dataset.limit=40"])
        scoring = prepare(job, tmp_path)
        assert len(next(scoring.responses.blocks())) == together, metric
        assert len(next(scoring.scores.blocks())) == 1


def test_a_killed_run_makes_no_scene_again(tmp_path):
    """Killed when the first scenes of a block are accepted: their files stay as they are, and the others are made."""

    def kept():
        """Sample -> its file, when it was written, and the scene."""
        found = {}
        for path in tmp_path.glob("cache/responses/*/*/null_feature/*/shard-*.h5"):
            with h5py.File(path) as shard:
                written = path.stat().st_mtime_ns
                found |= {int(n): (path, written, scene) for n, scene in zip(shard["sample"], shard["scene"][:])}
        return found

    arguments = ["run", "method=random", "metric=null_feature", *FEW, "metric.least=30", "dataset.limit=4"]
    # The first rows kept are the logits of the four samples.
    process = crashing.run(tmp_path, arguments, "rows kept", 2)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    before = kept()
    assert 0 < len(before) < 4
    process = crashing.run(tmp_path, arguments)
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "log.txt").read_text()
    after = kept()
    assert len(after) == 4
    for sample, (path, written, scene) in before.items():
        assert after[sample][:2] == (path, written) and (after[sample][2] == scene).all()


def test_what_cannot_make_scenes_is_refused():
    one = Classifier("one", nn.Sequential(nn.Flatten(), nn.Linear(192, 1)), (3, 8, 8))
    with pytest.raises(Refusal, match="one has no two classes"):
        NullFeature().check(one)
    with pytest.raises(Refusal, match=r"patch=0\.384: fewer than 4 pixels"):
        NullFeature().check(Classifier("two", nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), (3, 8, 8)))
    for mistake, message in (
        ({"generator": "deep_prior"}, "did you mean 'deep_image_prior'"),
        ({"patch": 0.6}, "patch=0.6: expected a share"),
        ({"warm_up": 300}, "warm_up=300: expected 0 or more, and fewer than steps=300"),
    ):
        with pytest.raises(ValueError, match=message):
            FeatureLeak(**mistake)
    assert np.isfinite(NullFeature().cost(one)).all()
