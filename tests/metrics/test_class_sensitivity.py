"""Class sensitivity of maps whose dependence on the class is known."""

from dataclasses import replace

import pytest
import torch

from xaibench.datasets.base import Samples
from xaibench.datasets.shapes import SIDE, Shapes
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.metrics.randomisation._other_class import OtherClass
from xaibench.metrics.randomisation.class_sensitivity import ClassSensitivity
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

from .helpers import evaluated

SIZE = (1, 30, 30)


def columns_of(metric, classifier, batch, attribute):
    """The columns, and the other classes: attribute(targets) -> maps."""
    asked = []

    def explain(inputs, targets, purpose, masks=None):
        assert inputs is batch.inputs and purpose == "" and masks is None
        asked.append(targets)
        return attribute(targets)

    maps = attribute(batch.targets)
    found = evaluated(metric, classifier, batch, maps, explain=explain)
    assert len(asked) == metric.explanations(classifier) == 1
    return found, asked[0]


def test_the_second_class_is_the_likeliest_other_one(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 12)
    _, others = columns_of(ClassSensitivity(), classifier, batch, lambda targets: batch.inputs[:, 0])
    for logits, target, other in zip(classifier.logits(batch.inputs).tolist(), batch.targets.tolist(), others.tolist()):
        ranking = sorted(range(4), key=lambda k: -logits[k])
        assert other == next(k for k in ranking if k != target)


def test_a_random_class_is_any_other_one_equally_often(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 600)
    metric = ClassSensitivity(other="random")
    _, others = columns_of(metric, classifier, batch, lambda targets: batch.inputs[:, 0, :30])
    steps = (others - batch.targets) % 4
    assert (steps > 0).all()
    counts = steps.bincount(minlength=4)[1:]
    assert (counts - 200).abs().max() < 4 * (600 * 2 / 9) ** 0.5


def test_a_present_class_is_the_likeliest_other_one_that_the_image_shows(linear, batch_for):
    classifier = linear(SIZE)
    batch = replace(batch_for(classifier, 40), vectors=(torch.rand(40, 4) < 0.5).float())
    metric = ClassSensitivity(other="present")
    found, others = columns_of(metric, classifier, batch, lambda targets: batch.inputs[:, 0, :30])
    alone = 0
    for row, logits in enumerate(classifier.logits(batch.inputs).tolist()):
        shown = [k for k in range(4) if batch.vectors[row, k] and k != int(batch.targets[row])]
        assert int(others[row]) == max(shown, key=lambda k: logits[k], default=int(batch.targets[row]))
        assert bool(found["ssim"][row].isnan()) == (not shown)
        alone += not shown
    assert 0 < alone < 40


def test_a_present_class_is_explained_with_its_own_truth(linear):
    """Of a scene with two objects, the truth of the other class is the mask that its own sample has."""
    data = Samples(Shapes(objects=2), Preprocessing(), range(8))
    batch, classifier = data.load(range(8)), linear((3, SIDE, SIDE), classes=10)
    context = Context(sample_generators(0, "maps", range(8)), data=data, explain=lambda *asked: asked[3].float())
    maps, same = OtherClass("present").maps(classifier, replace(batch, inputs=batch.inputs.double()), context)
    assert not same.any() and torch.equal(maps.bool(), batch.masks.view(4, 2, SIDE, SIDE).flip(1).flatten(0, 1))


def test_present_classes_are_asked_of_data_that_name_them():
    ClassSensitivity(other="present").check_data(Shapes(objects=2))
    with pytest.raises(Refusal, match=r"dataset\.objects=2"):
        ClassSensitivity(other="present").check_data(Shapes())


def test_a_fixed_class_is_undefined_where_it_is_the_explained_one(linear, batch_for):
    classifier = linear(SIZE)
    batch = batch_for(classifier, 12)
    found, others = columns_of(ClassSensitivity(other="fixed:2"), classifier, batch, lambda targets: batch.inputs[:, 0])
    assert (others == 2).all()
    for name, column in found.items():
        assert torch.equal(column.isnan(), batch.targets == 2), name


def test_a_map_without_the_class_is_one_and_opposite_maps_are_not(linear, batch_for):
    classifier = linear(SIZE, classes=2)
    batch = batch_for(classifier, 3)
    blind, _ = columns_of(ClassSensitivity(), classifier, batch, lambda targets: batch.inputs[:, 0])
    assert all((blind[name] == 1).all() for name in ("ssim", "spearman", "spearman_abs", "hog"))

    def signed(targets):
        return batch.inputs[:, 0] * (2.0 * targets - 1)[:, None, None]

    seeing, _ = columns_of(ClassSensitivity(), classifier, batch, signed)
    assert (seeing["spearman"] == -1).all() and (seeing["spearman_abs"] == 1).all() and (seeing["ssim"] < 0.5).all()
    # With flip_max the sign alone is no difference.
    flipped, _ = columns_of(ClassSensitivity(flip_max=True), classifier, batch, signed)
    assert (flipped["spearman"] == 1).all() and (flipped["ssim"] == 1).all()


def test_the_share_inside_the_mask_by_hand(linear, batch_for):
    classifier = linear(SIZE, classes=2)
    masks = torch.zeros(4, 30, 30, dtype=torch.bool)
    masks[:2, :10] = True  # the upper third
    masks[2] = True  # no outside
    batch = batch_for(classifier, 4, masks)

    def attribute(targets):
        """Of the explained class 3 inside to 1 outside per pixel, of the other 1 to 1; -9 counts for nothing."""
        maps = torch.ones(4, 30, 30, dtype=torch.float64)
        maps[targets == batch.targets, :10] = 3
        maps[:, 20:, 15:] = -9
        return maps

    found, _ = columns_of(ClassSensitivity(), classifier, batch, attribute)
    # Per column of 30 pixels: 10 inside, and outside 20 on the left half, 10 on the right half.
    inside, inside_other = 30 / (30 + 15), 10 / (10 + 15)
    torch.testing.assert_close(found["inside"][:2], torch.full((2,), inside, dtype=torch.float64))
    torch.testing.assert_close(found["inside_other"][:2], torch.full((2,), inside_other, dtype=torch.float64))
    torch.testing.assert_close(found["gain"][:2], torch.full((2,), inside - inside_other, dtype=torch.float64))
    assert found["gain"][2:].isnan().all()


def test_without_masks_there_is_no_localisation(linear, batch_for):
    classifier = linear(SIZE)
    batch, metric = batch_for(classifier, 2), ClassSensitivity()

    class Data:
        def __init__(self, has_masks, graded_masks):
            self.has_masks, self.graded_masks = has_masks, graded_masks

    found, _ = columns_of(metric, classifier, batch, lambda targets: batch.inputs[:, 0])
    assert "inside" not in found and {s.column for s in metric.statistics} <= set(found)
    for without in (Data(False, False), Data(True, True)):
        assert metric.statistics_on(without, classifier) == metric.statistics
    for _ in range(2):  # asking changes nothing
        further = metric.statistics_on(Data(True, False), classifier)[len(metric.statistics) :]
        assert [s.column for s in further] == ["inside", "inside_other", "gain"]


def test_networks_without_another_class_or_with_too_small_maps_are_refused(linear):
    ClassSensitivity().check(linear(SIZE))
    with pytest.raises(Refusal, match="no other class"):
        ClassSensitivity().check(linear(SIZE, classes=1))
    with pytest.raises(Refusal, match=r"metric\.hog_cell=8: linear has maps of 20 pixels"):
        ClassSensitivity().check(linear((1, 20, 40)))
    with pytest.raises(Refusal, match=r"metric\.window=5: linear has maps of only 4 pixels"):
        ClassSensitivity(hog_cell=1).check(linear((1, 4, 40)))
