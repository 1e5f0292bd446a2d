"""Generated chest pictures: what is said of them is what they show."""

import numpy as np
import pytest
import torch

from xaibench.datasets.base import Samples
from xaibench.datasets.chest import FINDINGS, PREVALENCE, Chest
from xaibench.datasets.zones import Task, lungs_of, zones_of
from xaibench.errors import UserError
from xaibench.models.preprocessing import Preprocessing

ALONE = {name: tuple(float(other == name) for other in FINDINGS) for name in FINDINGS}
NOTHING = (0.0,) * len(FINDINGS)


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_exactly_the_pixels_of_its_mask(name):
    for redundancy, copies in (("none", 1), ("or", 2)):
        data = Chest(prevalence=ALONE[name], redundancy=redundancy)
        assert len(data) == 2000
        for index in range(3):
            example, boxes = data[index], data.boxes(index)
            k = list(FINDINGS).index(name)
            assert example.label == k and example.labels.tolist() == list(ALONE[name])
            assert len(boxes.corners) == copies
            # Every box is tight, and holds a part of the mask that touches its four sides.
            inside = boxes.mask(64, 64)
            assert not (example.mask & ~inside).any()
            for xmin, ymin, xmax, ymax in boxes.corners:
                part = example.mask[int(ymin) : int(ymax), int(xmin) : int(xmax)]
                assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            # The noise, at most 0.015 either way, tells the lung beside the finding from the finding.
            lung = data.regions([index])["lungs"][0]
            lit, dark = example.image[0][example.mask & lung], example.image[0][lung & ~example.mask]
            assert (lit.mean() < dark.mean() - 0.08) if name == "rim" else (lit.mean() > dark.mean() + 0.08)


def test_one_copy_is_in_either_lung_and_redundancy_says_how_many():
    where = {"none": set(), "or": set(), "and": set()}
    for redundancy, found in where.items():
        data = Chest("train", prevalence=(0.5,) * 8, redundancy=redundancy)
        for image in range(20):
            present = data.draw(image).present
            found |= {(tuple(sides), bool(there)) for sides, there in zip(data._sides(image), present)}
    assert where["none"] == {((), False), ((0,), True), ((1,), True)}
    assert where["or"] == {((), False), ((0,), True), ((1,), True), ((0, 1), True)}
    assert where["and"] == {((), False), ((0,), False), ((1,), False), ((0, 1), True)}
    assert {tuple(sides) for image in range(9) for sides in Chest(redundancy="or")._sides(image)} == {(), (0, 1)}


def test_prevalence_samples_and_what_a_training_sees():
    train, test = Chest("train"), Chest("test")
    present = torch.stack([train[index].labels for index in range(200)])
    # Four standard errors of a share of 400.
    for share, expected in zip(present.mean(0).tolist(), PREVALENCE):
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 400) ** 0.5)
    assert len(train) == 4000 and min(present.sum(1)) == 0
    # Elsewhere, a sample for each finding of each image.
    counts = sum(int(test.draw(image).present.sum()) for image in range(100))
    assert sum(test.image_of(index) < 100 for index in range(len(test))) == counts
    assert len(Chest("test", samples="images")) == 2000
    batch = Samples(test, Preprocessing(), range(4)).load([2, 0])
    assert batch.vectors.tolist() == [test[2].labels.tolist(), test[0].labels.tolist()]


@pytest.mark.parametrize("redundancy", ["none", "and"])
def test_a_weak_label_says_whether_any_finding_is_there(redundancy):
    """The same pictures as of `findings`; what is not enough for a finding makes nobody unhealthy."""
    weak = Chest(task="healthy", redundancy=redundancy)
    full = Chest(redundancy=redundancy, samples="images")
    assert weak.class_names == ("healthy", "unhealthy") and len(weak) == 2000 and not weak.multi_label
    for index in range(10):
        one, other, drawn = weak[index], full[index], weak.draw(index)
        assert torch.equal(one.image, other.image) and one.label == int(other.labels.any())
        union = np.zeros((64, 64), dtype=bool)
        for k in np.flatnonzero(other.labels):
            union |= np.any(drawn.copies[int(k)], axis=0)
        assert np.array_equal(one.mask, union) and not (union & ~weak.boxes(index).mask(64, 64).numpy()).any()
    # Nothing is there with the probability that none of eight is.
    healthy = np.mean([not weak.draw(index).present.any() for index in range(200)])
    assert healthy == pytest.approx(np.prod([1 - share for share in PREVALENCE]), abs=0.07)


def test_zones_of_two_lungs_by_hand():
    mask = np.zeros((12, 12), dtype=bool)
    mask[1:10, 7:11] = mask[2:8, 1:5] = True  # 9 and 6 rows
    mask[11, 0] = True  # a speck is no lung
    lungs = lungs_of(mask)
    assert lungs[0].nonzero()[1].max() == 4
    rows = [sorted({int(row) for row in zone.nonzero()[0]}) for zone in zones_of(lungs)]
    assert rows == [[2, 3], [4, 5], [6, 7], [1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with pytest.raises(ValueError, match="1 connected parts"):
        lungs_of(mask & (np.arange(12) > 5))


def test_what_each_task_asks():
    severities, zones = (0, 1, 3, 0, 2, 3), np.eye(6, dtype=bool)[:, None]  # six zones of one pixel each
    asked = Task("global")
    assert (asked.parts(severities), asked.label(severities, 0)) == ([0], 9.0)
    assert asked.mask(severities, zones, 0)[0].tolist() == pytest.approx([0, 1 / 3, 1, 0, 2 / 3, 1])
    asked = Task("zones")
    assert asked.parts(severities) == list(range(6)) and asked.class_names[asked.label(severities, 4)] == "E2"
    assert asked.mask(severities, zones, 4)[0].tolist() == [False] * 4 + [True, False]
    asked = Task("detector")
    assert asked.parts(severities) == [0, 1, 2] and asked.parts((0, 1, 3, 0, 1, 3)) == [0, 2]
    assert asked.mask(severities, zones, 0)[0].tolist() == [True, True, False, True, False, False]
    assert asked.labels((3,) * 6).tolist() == [0, 0, 1]
    assert Task("detector:2").parts(severities) == [1] and Task("detector:2").parts((3,) * 6) == []
    with pytest.raises(UserError, match="did you mean"):
        Task("detector:4")


def test_severe_zones_are_brighter_and_the_score_is_their_sum():
    data = Chest(task="global", prevalence=NOTHING)
    slopes = []
    for index in range(40):
        example, regions = data[index], data.regions([index])
        levels = example.labels.tolist()
        assert example.label == sum(levels)
        means = [example.image[0][regions[zone][0]].mean().item() for zone in "ABCDEF"]
        for zone, level in zip("ABCDEF", levels):
            assert set(example.mask[regions[zone][0]].tolist()) == {np.float32(level) / np.float32(3)}
        if len(set(levels)) > 1:
            slopes.append(np.corrcoef(levels, means)[0, 1])
        assert not example.mask[~regions["lungs"][0]].any()
    assert np.mean(slopes) > 0.9


def test_concepts_are_the_findings_of_the_whole_image():
    data, zoned = Chest(redundancy="or"), Chest(task="zones")
    found = data.concepts([0, 1, 2])
    assert tuple(found) == data.concept_names == (*FINDINGS, "lungs") and set(zoned.concepts([0])) == set(
        zoned.concept_names
    )
    for place in range(3):
        example = data[place]
        assert torch.equal(found[data.class_names[example.label]][place], example.mask)
        assert [bool(found[name][place].any()) for name in FINDINGS] == (example.labels > 0).tolist()


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="redundancy=xor"):
        Chest(redundancy="xor")
    with pytest.raises(UserError, match="expected 8 numbers"):
        Chest(prevalence=(0.1,))
    assert Chest("test").fingerprint != Chest("test", redundancy="or").fingerprint


def test_a_network_of_several_labels_on_the_command_line(xaibench, here):
    """A sample for each label, or each picture with one fixed; sigmoid outputs; the quality of every output."""
    run = ("run", "model=chest_cnn", "model.weights=random", "dataset=chest", "dataset.limit=3", "output=sigmoid")
    code, out, said = xaibench(*run, "metric=quality", "target=fixed:3", "dataset.samples=images")
    assert code == 0 and "roc_auc_patches" in out, said
    code, out, said = xaibench(*run, "metric=iou", "method=oracle")
    assert code == 0 and "1.0000" in out, said
    code, _, said = xaibench(*run, "metric=quality", "dataset.task=global")
    assert code == 2 and "real labels" in said
