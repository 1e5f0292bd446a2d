"""Sort-of-CLEVR: the answers by a solver that sees pixels and bits only, and what the questions leave to guess."""

import itertools
import math
from collections import Counter, defaultdict

import pytest
import torch

from xaibench.datasets.sort_of_clevr import ANSWERS, COLOURS, SortOfClevr
from xaibench.errors import UserError


def objects_of(image):
    """By colour, from the pixels alone: the centre (column, row), and whether it is a square."""
    places = defaultdict(list)
    for row, line in enumerate(image.permute(1, 2, 0).tolist()):
        for column, colour in enumerate(line):
            places[tuple(colour)].append((column, row))
    found = []
    for colour in COLOURS.values():
        pixels = places[colour]
        centre = tuple(sum(values) / len(pixels) for values in zip(*pixels))
        wide, high = (max(values) - min(values) + 1 for values in zip(*pixels))
        found.append((centre, len(pixels) == wide * high, pixels))
    return found


def solved(image, question):
    """The answer in words, and the pixels of the object that is asked about."""
    objects = objects_of(image)
    bits = [int(bit) for bit in question]
    assert sum(bits[:6]) == sum(bits[6:8]) == sum(bits[8:]) == 1
    colour, relational, which = bits[:6].index(1), bits[7] == 1, bits[8:].index(1)
    centre, square, pixels = objects[colour]
    name = {True: "square", False: "circle"}
    if not relational:
        # The middle lies between columns 31 and 32.
        return [name[square], *("yes" if place < 31.5 else "no" for place in centre)][which], pixels
    others = [one for place, one in enumerate(objects) if place != colour]
    ordered = sorted(others, key=lambda one: math.dist(one[0], centre))
    if which == 2:
        return str(1 + sum(one[1] == square for one in others)), pixels
    chosen, next_one = (ordered[0], ordered[1]) if which == 0 else (ordered[-1], ordered[-2])
    assert abs(math.dist(chosen[0], centre) - math.dist(next_one[0], centre)) >= 1.5
    return name[chosen[1]], pixels


def test_answers_and_masks_are_those_of_a_solver_that_sees_the_picture():
    data = SortOfClevr()
    for index in range(0, 3600, 25):  # 25 and 36 have no common factor: every question comes up
        example = data[index]
        answer, pixels = solved(example.image, example.question)
        assert ANSWERS[example.label] == answer, data.words_of(index)
        assert {tuple(place) for place in example.mask.nonzero().flip(1).tolist()} == set(pixels)


def test_questions_take_turns_and_objects_do_not_touch():
    data = SortOfClevr("validation")
    assert Counter(data.question_of(index) for index in range(len(data))) == Counter(dict.fromkeys(range(36), 100))
    assert data.questions.unique(dim=0).shape == (36, 11)
    for index in range(30):
        pixels = [set(found) for _, _, found in objects_of(data[index].image)]
        for first, second in itertools.combinations(pixels, 2):
            around = {(x + u, y + v) for x, y in first for u in (-1, 0, 1) for v in (-1, 0, 1)}
            assert not around & second


def test_concepts_are_the_colours_and_shapes_of_the_picture():
    data = SortOfClevr()
    found = data.concepts([3, 4])
    assert tuple(found) == data.concept_names
    for row, index in enumerate((3, 4)):
        objects = objects_of(data[index].image)
        for name, (_, _, pixels) in zip(COLOURS, objects):
            assert {tuple(place) for place in found[name][row].nonzero().flip(1).tolist()} == set(pixels)
        for name, square in (("square", True), ("circle", False)):
            expected = set().union(*(pixels for _, is_square, pixels in objects if is_square is square))
            assert {tuple(place) for place in found[name][row].nonzero().flip(1).tolist()} == expected


def test_what_guessing_the_likeliest_answer_gets():
    """Halves for two answers; for the count, one and how many of five others have its shape: at best C(5,2)/32."""
    data = SortOfClevr()
    answers = defaultdict(Counter)
    for index in range(len(data)):
        kind, _ = data.asked[data.question_of(index)]
        answers[kind][data[index].label] += 1
    shares = {kind: max(counts.values()) / 600 for kind, counts in answers.items()}
    for kind, share in shares.items():
        expected = 10 / 32 if kind == "count" else 0.5
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 600))


def test_the_same_sequence_always_and_another_one_by_its_seed():
    images = [SortOfClevr(generator_seed=seed)[7].image for seed in (0, 0, 1)]
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    only = SortOfClevr(questions="count")
    assert {only.asked[only.question_of(index)][0] for index in range(12)} == {"count"}
    assert len({SortOfClevr(questions=name).fingerprint for name in ("all", "count", "relational")}) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"split": "tset"}, "dataset.split=tset: .*'test'"),
        ({"questions": "relations"}, "dataset.questions=relations: .*'relational'"),
    ],
)
def test_wrong_words_are_answered_with_the_nearest(given, said):
    with pytest.raises(UserError, match=said):
        SortOfClevr(**given)
