"""The generated data set: any image alone, exact masks, balanced labels."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from xaibench.build import build
from xaibench.datasets.shapes import OBJECTS, SCENES, SIDE, SPLITS, Shapes, draw
from xaibench.errors import UserError

COUNT = 400


@pytest.fixture(scope="module")
def drawings():
    return [draw(0, position) for position in range(SPLITS["test"].start, SPLITS["test"].start + COUNT)]


def test_an_image_is_the_same_alone_in_any_order_and_in_threads(drawings):
    dataset = Shapes()
    order = random.Random(0).sample(range(100), 100)
    with ThreadPoolExecutor(max_workers=4) as pool:
        examples = dict(zip(order, pool.map(dataset.__getitem__, order)))
    for index in order:
        expected = torch.from_numpy(drawings[index].image).float() / 255
        assert torch.equal(examples[index].image, expected)
        assert torch.equal(Shapes()[index].image, expected)
        assert examples[index].label == drawings[index].object_label


def test_pixels_have_not_changed():
    """The sums of a few images: where these have to change, raise VERSION."""
    sums = [int(draw(0, position).image.astype(np.int64).sum()) for position in (0, 1, 50_000, 52_000)]
    assert sums == [1_666_020, 1_179_801, 1_135_435, 1_109_774]


def test_examples_are_what_the_contract_says():
    example = Shapes()[3]
    assert example.image.shape == (3, SIDE, SIDE) and example.image.dtype == torch.float32
    assert example.image.min() >= 0 and example.image.max() <= 1
    assert example.mask.shape == (SIDE, SIDE) and example.mask.dtype == torch.bool


def test_the_mask_is_where_the_image_differs_from_its_background(drawings):
    for drawing in drawings:
        assert np.array_equal((drawing.image != drawing.background).any(0), drawing.mask)
    dataset = Shapes()
    for index in range(20):
        differs = (dataset[index].image != dataset.background(index)).any(0)
        assert torch.equal(differs, dataset[index].mask)
        assert torch.equal(differs, dataset.object_mask(index))


def test_the_two_tasks_show_the_same_images_with_complementary_masks():
    objects, scenes = Shapes(task="object"), Shapes(task="scene")
    assert objects.class_names == tuple(OBJECTS) and scenes.class_names == tuple(SCENES)
    for index in range(20):
        assert torch.equal(objects[index].image, scenes[index].image)
        assert torch.equal(objects[index].mask, ~scenes[index].mask)
        assert objects[index].label == scenes.object_label(index)
        assert scenes[index].label == objects.scene_label(index)


def test_an_object_lies_inside_the_scene_and_spans_a_third_to_a_half_of_it(drawings):
    spans = [max(np.ptp(where) + 1 for where in np.nonzero(drawing.mask)) for drawing in drawings]
    assert min(spans) >= SIDE / 3 and max(spans) <= SIDE / 2
    areas = np.array([drawing.mask.mean() for drawing in drawings])
    assert areas.min() > 0.02 and areas.max() < 0.25


def test_labels_are_balanced_and_independent(drawings):
    table = np.zeros((10, 10))
    for index in range(2000):
        table[Shapes().object_label(index), Shapes().scene_label(index)] += 1
    assert (table == 20).all()
    # Also where the blocks of 100 are cut: a prefix of 50 of each block.
    table = np.zeros((10, 10))
    for drawing in (drawings[i] for i in range(COUNT) if i % 100 < 50):
        table[drawing.object_label, drawing.scene_label] += 1
    assert chi2_contingency(table).pvalue > 0.001


def test_place_turn_and_colour_do_not_follow_the_class(drawings):
    """The mean colour and the centre of an object vary within its class as much as between all objects."""
    labels = np.array([d.object_label for d in drawings])
    features = np.array([[*d.image[:, d.mask].mean(1), *np.argwhere(d.mask).mean(0)] for d in drawings])
    within = np.stack([features[labels == k].var(0) for k in range(10)]).mean(0)
    assert (within > 0.9 * features.var(0)).all()


def test_splits_are_disjoint_and_seeds_differ():
    covered = [position for positions in SPLITS.values() for position in positions]
    assert len(covered) == len(set(covered))
    assert {split: len(Shapes(split)) for split in SPLITS} == {"train": 50_000, "validation": 2000, "test": 2000}
    datasets = [Shapes("train"), Shapes("validation"), Shapes("test"), Shapes("test", generator_seed=1)]
    assert len({dataset[0].image.numpy().tobytes() for dataset in datasets}) == 4
    assert len({dataset.fingerprint for dataset in [*datasets, Shapes(task="scene")]}) == 5


def test_an_index_outside_the_split_ends_iteration_and_a_wrong_split_is_named():
    with pytest.raises(IndexError):
        Shapes()[2000]
    with pytest.raises(UserError, match="did you mean 'test'"):
        Shapes(split="tset")
    with pytest.raises(UserError, match="task"):
        build({"_target_": "xaibench.datasets.shapes.Shapes", "task": "objekt"}, "dataset")


def test_an_image_takes_about_a_millisecond():
    start = time.process_time()
    for position in range(100):
        draw(0, position)
    assert time.process_time() - start < 0.3  # three times the target: the machine may be busy


def test_two_objects_lie_apart_and_each_is_explained_in_its_turn():
    dataset, alone = Shapes(objects=2), Shapes()
    assert dataset.fingerprint != alone.fingerprint and len(dataset) == len(alone)
    for scene in range(30):
        first, second = dataset[2 * scene], dataset[2 * scene + 1]
        assert torch.equal(first.image, second.image) and torch.equal(first.labels, second.labels)
        assert (
            first.labels.nonzero()[:, 0].tolist() == sorted({first.label, second.label}) and first.label != second.label
        )
        assert first.label == alone.object_label(scene) == dataset.object_label(2 * scene)
        assert not (first.mask & second.mask).any()
        for index, example in ((2 * scene, first), (2 * scene + 1, second)):
            # Without one object the other remains, and nothing else has changed.
            assert torch.equal((example.image != dataset.background(index)).any(0), example.mask)
            span = max(np.ptp(where) + 1 for where in np.nonzero(example.mask.numpy()))
            assert SIDE / 3 <= span <= SIDE / 2
        marked = dataset.concepts([2 * scene])
        assert torch.equal(marked[dataset.class_names[first.label]][0], first.mask)
        assert torch.equal(marked[dataset.class_names[second.label]][0], second.mask)
        assert sum(int(mask.any()) for mask in marked.values()) == 2


def test_any_two_classes_meet():
    dataset = Shapes(objects=2)
    pairs = {(dataset.object_label(k), dataset.object_label(k + 1)) for k in range(0, 2000, 2)}
    assert len(pairs) == 90 and all(first != second for first, second in pairs)


@pytest.mark.parametrize("settings", [{"objects": 3}, {"objects": 2, "task": "scene"}])
def test_what_two_objects_cannot_be_is_said(settings):
    with pytest.raises(UserError, match=r"dataset\.objects="):
        Shapes(**settings)
