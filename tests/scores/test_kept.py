"""Tests that were computed before: the same numbers, and none that were computed from anything else."""

import numpy as np
import pytest

from tests.cells import cell
from xaibench.scores import kept, paired, rank
from xaibench.scores.kept import TESTS, KnownTests

RNG = np.random.default_rng(0)
COLUMNS = RNG.normal(loc=[0.0, 0.3, 1.0], size=(20, 3))


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """How many methods each test had that was computed."""
    sizes, swap_test = [], paired.swap_test

    def counted(columns, *further):
        sizes.append(columns.shape[1])
        return swap_test(columns, *further)

    monkeypatch.setattr(paired, "swap_test", counted)
    return sizes


def p(folder=None, columns=COLUMNS, **declared) -> np.ndarray:
    """As a process of its own asks for it."""
    cells = [cell(f"m{k}", column, **declared) for k, column in enumerate(np.asarray(columns).T)]
    (found,) = rank.comparisons(cells, tests=KnownTests(folder))
    return found.p


def test_a_test_is_computed_once_and_has_the_same_bits(tmp_path, computed):
    first, again = p(tmp_path), p(tmp_path)
    assert computed == [3] and first.tobytes() == again.tobytes() == p().tobytes()


CHANGES = {
    "a number": {"columns": COLUMNS + np.eye(20, 3) * 1e-12},
    "a method less": {"columns": COLUMNS[:, :2]},
    "the order of samples": {"columns": COLUMNS[::-1]},
    "the direction": {"direction": "lower"},
    "the statistic": {"kind": "median"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_test_of_anything_else_is_computed(tmp_path, computed, change):
    p(tmp_path)
    found = p(tmp_path, **CHANGES[change])
    assert len(computed) == 2
    np.testing.assert_array_equal(found, p(**CHANGES[change]))


def test_other_code_computes_for_itself(tmp_path, computed, monkeypatch):
    p(tmp_path)
    monkeypatch.setattr(kept, "maker", lambda: "another")
    p(tmp_path)
    assert len(computed) == 2


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: d.replace(b"A", b"B"), lambda d: b"\xff\n" * 9]
)
def test_a_damaged_line_is_computed_again(tmp_path, computed, damage):
    first, path = p(tmp_path), tmp_path / TESTS
    path.write_bytes(damage(path.read_bytes()))
    assert p(tmp_path).tobytes() == first.tobytes() and len(computed) == 2
    assert p(tmp_path).tobytes() == first.tobytes() and len(computed) == 2


def test_where_nothing_can_be_kept_tests_are_computed(tmp_path, computed):
    (tmp_path / TESTS).mkdir()
    assert p(tmp_path).tobytes() == p(tmp_path).tobytes() and len(computed) == 2


def test_a_file_that_is_too_large_is_begun_anew(tmp_path, computed, monkeypatch):
    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    p(tmp_path)
    size = (tmp_path / TESTS).stat().st_size
    p(tmp_path, direction="lower")
    assert (tmp_path / TESTS).stat().st_size == size
    p(tmp_path, direction="lower")
    assert len(computed) == 2
