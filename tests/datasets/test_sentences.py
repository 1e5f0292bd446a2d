"""Sentences from files and folders, and the world whose truth is known."""

from collections import Counter

import pytest

from xaibench.datasets.planted_words import DECIDING, PlantedWords
from xaibench.datasets.reviews import Imdb, Reviews, tokens
from xaibench.errors import UserError


@pytest.fixture
def pair(tmp_path):
    """Two files of 20 lines."""
    for name, word in (("pos", "good"), ("neg", "bad")):
        (tmp_path / f"films.{name}").write_text("".join(f"{word} film no. {n}\n" for n in range(20)))
    return tmp_path


def test_words_and_signs():
    text = "It's <b>a</b> co-writer's film.<br />NO!"
    words = ("it's", "<", "b", ">", "a", "<", "/", "b", ">", "co-writer's", "film", ".", "no", "!")
    assert tokens(text) == words


def test_the_splits_of_a_file_pair_share_nothing_and_lose_nothing(pair):
    splits = {split: Reviews(str(pair), split) for split in ("train", "validation", "test")}
    assert [len(splits[name]) for name in splits] == [32, 4, 4]
    assert all(split.class_names == ("neg", "pos") for split in splits.values())
    found = Counter(words for split in splits.values() for words in split.words())
    assert set(found) == {tokens(f"{word} film no. {n}") for word in ("good", "bad") for n in range(20)}
    assert set(found.values()) == {1}
    example = splits["test"][0]
    assert (example.image[0], example.label) == ("bad", 0)
    assert len({split.fingerprint for split in splits.values()}) == 3


def test_folders_are_classes_too(tmp_path):
    for name in ("anger", "joy"):
        (tmp_path / name).mkdir()
        for number in range(10):
            (tmp_path / name / f"{number}.txt").write_bytes(b"\xef\xbb\xbf" + f"{name}\n{number}".encode())
    reviews = Reviews(str(tmp_path), "train")
    assert (len(reviews), reviews.class_names, reviews[0].image[0]) == (16, ("anger", "joy"), "anger")


def test_what_is_no_sentence_is_counted_or_refused(pair):
    path = pair / "films.pos"
    path.write_text(path.read_text() + "\n   \n")
    left_out = Counter()
    for split in ("train", "validation", "test"):
        left_out.update(Reviews(str(pair), split).left_out)
    assert left_out == {"without a word": 2}
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"films.pos: no UTF-8 text \(byte 3 is 0xe9\)"):
        Reviews(str(pair))
    path.write_text("\n")
    with pytest.raises(UserError, match="texts of two classes at least"):
        Reviews(str(pair), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"expected a text file for each of two classes .* found films.neg"):
        Reviews(str(pair))


def test_lines_end_where_lines_end(pair):
    path = pair / "films.pos"
    path.write_text("".join(f"one\x85line {n}\n" for n in range(20)), encoding="utf-8")
    assert (
        sum(
            sum(row[0] == 1 for row in Reviews(str(pair), split).sentences) for split in ("train", "validation", "test")
        )
        == 20
    )


def test_the_folder_of_imdb(tmp_path):
    for split in ("train", "test"):
        for name in ("neg", "pos", "unsup"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(20):
                (tmp_path / split / name / f"{number}_7.txt").write_text(f"{split} {name}<br /><br />{number}")
    sizes = {split: len(Imdb(str(tmp_path), split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 36, "validation": 4, "test": 40}
    assert Imdb(str(tmp_path), "test")[0].image[:2] == ("test", "neg")
    with pytest.raises(UserError, match="no folder test/neg"):
        Imdb(str(tmp_path / "train"))


def test_real_reviews(shared):
    sizes = [len(Reviews(str(shared / "data" / "rt-polarity"), split)) for split in ("train", "validation", "test")]
    assert sizes == [8530, 1066, 1066]


def test_one_word_decides_and_nothing_else_says_anything():
    world = PlantedWords("train")
    examples = [world[index] for index in range(len(world))]
    lengths: dict[int, list[int]] = {0: [], 1: []}
    shares: dict[int, list[float]] = {0: [], 1: []}
    others: dict[int, Counter] = {0: Counter(), 1: Counter()}
    for example in examples:
        words, label = example.image, example.label
        place = example.mask[0].nonzero().item()
        assert words[place] == DECIDING[label] and sum(word in DECIDING for word in words) == 1
        lengths[label].append(len(words))
        shares[label].append((place + 0.5) / len(words))
        others[label].update(word for word in words if word not in DECIDING)

    def mean(values):
        return sum(values) / len(values)

    assert len(lengths[0]) == len(lengths[1]) == 1000
    assert {min(lengths[0]), max(lengths[0])} == {6, 20}
    # Six standard errors: of uniform numbers 0.29 / sqrt(1000) = 0.009, of lengths 4.3 / sqrt(1000) = 0.14.
    assert [mean(shares[label]) for label in (0, 1)] == pytest.approx([0.5, 0.5], abs=0.055)
    assert mean(lengths[0]) == pytest.approx(mean(lengths[1]), abs=1.2)
    for word in others[0] | others[1]:  # about 200 each, and so 6 x sqrt(400) apart at most
        assert abs(others[0][word] - others[1][word]) < 120


def test_sentences_are_a_function_of_seed_split_and_number():
    assert (
        PlantedWords("test")[5].image
        == PlantedWords("test")[5].image
        != PlantedWords("test", generator_seed=1)[5].image
    )
    assert PlantedWords("test")[5].image != PlantedWords("train")[5].image
    with pytest.raises(UserError, match="1 <= shortest <= longest"):
        PlantedWords(shortest=5, longest=4)
