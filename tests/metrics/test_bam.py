"""The three BAM metrics on the generated scenes, with the bundled networks and maps made by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional

from xaibench.datasets.base import Dataset, Samples
from xaibench.datasets.shapes import Shapes
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.ground_truth._bam import BAM
from xaibench.metrics.ground_truth.bam_idr import BAMIDR
from xaibench.metrics.ground_truth.bam_iir import BAMIIR
from xaibench.metrics.ground_truth.bam_mcs import BAMMCS
from xaibench.models.loading import load_classifier

IDS = [3, 14, 15, 92]


@pytest.fixture
def loaded():
    """The bundled network of a task, its data, and a batch of them: loaded(task, ids)."""

    def load(task, ids=IDS, dtype=torch.float32):
        spec = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf" / "model" / "smallcnn.yaml"))
        classifier = load_classifier("smallcnn", {**spec, "weights": f"bundled:smallcnn_{task}.safetensors"})
        classifier.module.to(dtype)
        data = Samples(Shapes(task=task), classifier.preprocessing, ())
        batch = data.load(ids)
        return classifier, data, dataclasses.replace(batch, inputs=batch.inputs.to(dtype))

    return load


def one_hot(labels, classes=10):
    return functional.one_hot(labels, classes).double()


@pytest.mark.parametrize("percentile", [99.0, 100.0, 37.3])
def test_attribution_is_the_mean_of_the_clipped_and_stretched_map(percentile):
    maps, objects = torch.randn(5, 9, 11, dtype=torch.float64), torch.rand(5, 9, 11) < 0.3
    metric = BAMIDR(percentile=percentile)
    for values, inside, g in zip(maps.numpy(), objects.numpy(), metric.attribution(maps, objects)):
        low, high = values.min(), np.percentile(values, percentile)
        assert g.item() == pytest.approx(np.clip((values - low) / (high - low), 0, 1)[inside].mean(), rel=1e-12)
    plain = BAMIDR(percentile=None).attribution(maps, objects)
    torch.testing.assert_close(plain, torch.stack([m[o].mean() for m, o in zip(maps, objects)]))


def test_a_map_without_a_range_has_no_attribution_and_leaves_its_neighbours():
    maps = torch.rand(4, 20, 20)
    objects = torch.zeros(4, 20, 20, dtype=torch.bool)
    objects[:, :10] = True
    whole = BAMIDR().attribution(maps, objects)
    maps[0] = 0.25
    maps[1] = 0
    maps[1, 0, :3] = 1  # 3 of 400: the 99th percentile is 0 as well
    maps[2, 19, 19] = torch.nan
    g = BAMIDR().attribution(maps, objects)
    assert g.isnan().tolist() == [True, True, True, False] and g[3] == whole[3]


def test_mcs_of_maps_that_follow_their_network_and_of_those_that_do_not(loaded):
    _, data, batch = loaded("object")
    metric, objects = BAMMCS(), torch.stack([Shapes().object_mask(i) for i in IDS])
    scenes = torch.tensor([Shapes().scene_label(i) for i in IDS])
    inside, outside = objects.float(), (~objects).float()

    right, scenes_right = one_hot(batch.labels), one_hot(scenes)

    def mcs(maps, of_scenes, logits=right, scene_logits=scenes_right):
        others, answers = {"scene": of_scenes}, {"scene": scene_logits}
        context = Context(responses={"logits": logits}, others=others, other_logits=answers, data=data)
        return metric.evaluate(None, batch, maps, context)["mcs"]

    assert mcs(inside, outside).tolist() == [1, 1, 1, 1]
    assert mcs(outside, inside).tolist() == [-1, -1, -1, -1]
    noise = torch.rand(4, 64, 64)
    assert mcs(noise, noise).tolist() == [0, 0, 0, 0]
    halved = torch.where(objects, 0.5, 0.0)
    halved[:, :1] = 1.0  # more than a hundredth of the image: the range is up to 1
    expected = 1 - BAMMCS().attribution(halved, objects)
    assert ((mcs(inside, halved) - expected) == 0).all() and expected.max() == 0.5
    wrong, scene_wrong = right.clone(), scenes_right.clone()
    wrong[1] = one_hot((batch.labels[1] + 1) % 10)
    scene_wrong[2] = one_hot((scenes[2] + 1) % 10)
    assert mcs(inside, outside, wrong, scene_wrong).isnan().tolist() == [False, True, True, False]


def test_mcs_shares_the_maps_of_the_scene_network_with_its_own_runs(xaibench, here, loaded):
    common = ("method=saliency", "dataset.limit=3")
    assert xaibench("run", *common, "dataset.task=scene", "metric=pointing_game")[0] == 0
    assert xaibench("run", *common, "metric=bam_mcs")[0] == 0
    assert len(list(here.glob("cache/maps/smallcnn/*task*scene/saliency/*"))) == 1
    (path,) = here.glob("results/scores/*/*/bam_mcs/saliency-*.csv")
    rows = pd.read_csv(path).pivot(index="sample", columns="statistic", values="value")
    for sample, row in rows.iterrows():
        for task in ("object", "scene"):
            classifier, data, batch = loaded(task, [sample])
            maps = classifier.gradient(batch.inputs, batch.labels).abs().amax(1)
            values, inside = maps[0].numpy(), data.dataset.object_mask(sample).numpy()
            high = np.percentile(values, 99)
            expected = np.clip((values - values.min()) / (high - values.min()), 0, 1)[inside].mean()
            assert row[f"g_{task}"] == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(rows["mcs"], rows["g_object"] - rows["g_scene"], rtol=1e-5)


def test_idr_compares_the_same_place_with_and_without_the_object(loaded):
    classifier, data, batch = loaded("scene")
    objects = ~batch.masks
    inside, shown = objects.float(), []
    with_object = torch.stack([0.2 * inside[0], 0.2 * inside[1], 0.2 * inside[2], 0.1 * inside[3]])
    without = torch.stack([0.3 * inside[0], 0.1 * inside[1], 0.2 * inside[2], 0.2 * inside[3]])

    def explain(inputs, targets, purpose, masks):
        shown.append(inputs)
        assert torch.equal(targets, batch.targets) and masks.all()
        return without

    metric = BAMIDR(percentile=None)
    replies = metric.respond(classifier, batch, Context(data=data))
    context = Context(responses=replies, explain=explain, data=data)
    columns = metric.evaluate(classifier, batch, with_object, context)
    assert columns["idr"].tolist() == [1, 0, 0, 1]
    assert columns["g_with"].tolist() == pytest.approx([0.2, 0.2, 0.2, 0.1])
    (scenes,) = shown
    assert (scenes == batch.inputs).all(1).equal(~objects)
    torch.testing.assert_close(replies["logits"], classifier.module(batch.inputs))
    torch.testing.assert_close(replies["empty_logits"], classifier.module(scenes))

    wrong = one_hot((batch.labels + 1) % 10)
    replies["logits"][1], replies["empty_logits"][3] = wrong[1], wrong[3]
    again = metric.evaluate(classifier, batch, with_object, context)
    assert again["idr"].isnan().tolist() == [False, True, False, True]
    without = without.clone()
    without[0] = torch.nan
    assert metric.evaluate(classifier, batch, with_object, context)["idr"][0].isnan()


@pytest.mark.parametrize("method, expected", [("oracle", 1), ("constant", 0)])
def test_idr_of_controls_whose_maps_are_taken_as_they_are(xaibench, here, method, expected):
    settings = ("dataset.task=scene", "metric=bam_idr", "metric.percentile=null", "dataset.limit=3")
    assert xaibench("run", f"method={method}", *settings)[0] == 0
    (path,) = here.glob(f"results/scores/*/*/bam_idr/{method}-*.csv")
    rows = pd.read_csv(path)
    assert (rows[rows["statistic"] == "idr"]["value"] == expected).all()


def test_a_patch_is_visible_on_the_object_alone_and_not_noticed(loaded):
    classifier, data, batch = loaded("scene")
    metric = BAMIIR(steps=60)
    replies = metric.respond(classifier, batch, Context(data=data))
    scenes = torch.stack([data.preprocessing.image(data.dataset.background(i)) for i in IDS])
    assert ((replies["patched"] != scenes).any(1) & batch.masks).sum() == 0
    pixels = data.preprocessing.denormalise(replies["patched"])
    assert pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
    # What is said of the patch is true: the logits are those of the image that was kept.
    torch.testing.assert_close(replies["logits"], classifier.logits(scenes), rtol=0, atol=1e-4)
    torch.testing.assert_close(replies["patched_logits"], classifier.logits(replies["patched"]), rtol=0, atol=1e-4)
    change = (replies["patched_logits"] - replies["logits"]).abs().amax(1)
    of_object = (classifier.logits(batch.inputs) - replies["logits"]).abs().amax(1)
    assert (change < 0.2 * of_object).all()

    def explain(inputs, targets, purpose, masks):
        return torch.rand(4, 64, 64)

    columns = metric.evaluate(classifier, batch, None, Context(responses=replies, explain=explain, data=data))
    torch.testing.assert_close(columns["logit_change"], change)
    for b, size in enumerate(columns["patch"]):
        moved = (pixels[b] - data.dataset.background(IDS[b]))[:, ~batch.masks[b]]
        assert size.item() == pytest.approx(moved.square().mean().sqrt().item(), rel=1e-4) and size > 0.1


def test_a_patch_does_not_depend_on_the_batch(loaded):
    classifier, data, batch = loaded("scene", IDS, torch.float64)
    together = BAMIIR(steps=4).respond(classifier, batch, Context(data=data))
    _, _, one = loaded("scene", [IDS[2]], torch.float64)
    alone = BAMIIR(steps=4).respond(classifier, one, Context(data=data))
    classifier.batch_size = 3
    parts = BAMIIR(steps=4).respond(classifier, batch, Context(data=data))
    for name, values in together.items():
        torch.testing.assert_close(alone[name][0], values[2], rtol=0, atol=1e-9)
        torch.testing.assert_close(parts[name], values, rtol=0, atol=1e-9)


def test_iir_counts_changes_below_a_tenth_where_the_network_noticed_nothing(loaded):
    classifier, data, batch = loaded("scene", [3, 14, 15, 92, 65, 35, 89])
    inside = (~batch.masks).double()
    factors = torch.tensor([1.0, 1.09, 0.91, 1.11, 0.89, 1.0, 1.0], dtype=torch.float64).view(-1, 1, 1)

    def explain(inputs, targets, purpose, masks):
        assert torch.equal(targets, batch.targets) and masks.all()
        return inside * (factors if purpose == "patched" else 1.0)

    logits = 5 * one_hot(batch.labels)
    noticed = logits.clone()
    noticed[5, 0] += 0.11
    noticed[:5, 1] -= 0.09
    noticed[6] = 0.09 * one_hot((batch.labels + 1) % 10)[6]
    replies = {"patched": batch.inputs, "logits": logits.clone(), "patched_logits": noticed}
    replies["logits"][6] = 0.05 * one_hot(batch.labels)[6]  # hardly moved, but another class
    metric = BAMIIR(percentile=None)
    columns = metric.evaluate(classifier, batch, None, Context(responses=replies, explain=explain, data=data))
    assert columns["iir"][:5].tolist() == [1, 1, 1, 0, 0]
    assert columns["iir"][5:].isnan().all()


@pytest.mark.parametrize(
    "metric, task, named", [(BAMMCS, "scene", "object"), (BAMIDR, "object", "scene"), (BAMIIR, "object", "scene")]
)
def test_the_other_task_is_refused_with_the_setting_to_change(metric, task, named):
    with pytest.raises(Refusal, match=f"set dataset.task={named}"):
        metric().check_data(Shapes(task=task))
    metric().check_data(Shapes(task=named))


def test_refusals(linear, xaibench):
    class Plain(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise AssertionError

    with pytest.raises(Refusal, match="dataset=shapes has them"):
        BAMIDR().check_data(Plain())
    with pytest.raises(Refusal, match="bam_mcs needs classes"):
        BAMMCS().check(linear(classes=1, output="raw"))
    code, _, said = xaibench("run", "metric=bam_idr")
    assert code == 2 and "dataset.task=scene" in said
    code, _, said = xaibench("run", "metric=bam_mcs", "target=fixed:3")
    assert code == 2 and "target=label" in said


@pytest.mark.parametrize(
    "metric, parameters, named",
    [
        (BAMMCS, {"percentile": 0.0}, "percentile=0.0"),
        (BAMIDR, {"percentile": 101.0}, "percentile=101.0"),
        (BAMIIR, {"threshold": 0.0}, "threshold=0.0"),
        (BAMIIR, {"tolerance": -1.0}, "tolerance=-1.0"),
        (BAMIIR, {"steps": 0}, "steps=0"),
    ],
)
def test_mistakes_are_named(metric, parameters, named):
    assert issubclass(metric, BAM)
    with pytest.raises(ValueError, match=named):
        metric(**parameters)
