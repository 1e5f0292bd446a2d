"""How often the intervals of statistics about units hold the truth: by percentiles of the draws, and reflected.

    python scripts/coverage_units.py

Two populations of images, made of Gaussian and gamma variables: 40 units whose IoUs with 3 concepts are alike, which is
the worst case for a largest value, and units that differ. The truth is the statistic of 60 000 images.
"""

import argparse

import numpy as np

from xaibench.scores import statistics, units

UNITS, CONCEPTS, TRUTH = 40, 3, 60_000
SIZES = (100, 300, 1000)
WANTED = [
    {
        "name": name,
        "kind": name,
        "column": "inside",
        "per": "marked",
        "units": {"level": 0.04, "area": "area", "concept": concept},
    }
    for name, concept in (("detectors", None), ("variety", None), ("best_iou", None), ("ceiling", 0))
]
Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=120)
    options = parser.parse_args()
    random, found = np.random.default_rng(0), {}
    places = {
        "alike": random.uniform(-0.3, 0.9, (CONCEPTS, UNITS)),
        "spread": random.exponential(0.35, (CONCEPTS, UNITS)) - 0.4,
    }
    for population, place in places.items():
        truth = values(images(TRUTH, random, place))[0]
        for n in SIZES:
            for trial in range(options.trials):
                held(images(n, np.random.default_rng(trial), place), truth, (population, n), found)
    print(f"| statistic, interval | {' | '.join(f'{p}, n = {n}' for p in places for n in SIZES)} |")
    for name in (statistic["name"] for statistic in WANTED):
        for how in ("percentile", "basic"):
            shares = (np.mean(found[p, n, name, how]) for p in places for n in SIZES)
            print(f"| {name}, {how} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")


def images(n: int, random: np.random.Generator, place: np.ndarray) -> Tables:
    """Tables of n images: concepts in two of five, units active in one of four, most of what they mark at a concept."""
    area = random.gamma(4, 25, (n, CONCEPTS)) * (random.random((n, CONCEPTS)) < 0.4)
    active = random.random((n, UNITS)) < 0.25
    marked = active * random.gamma(2, 12, (n, UNITS))
    share = np.clip(random.normal(place, 0.25, (n, CONCEPTS, UNITS)), 0, 1)
    return np.minimum(marked[:, None] * share, area[..., None]), marked, area


def values(tables: Tables, times: np.ndarray | None = None) -> np.ndarray:
    """The statistics [R,S] of draws that have each image so many times [R,n]; None: once."""
    return units.values(np.ones((1, len(tables[0]))) if times is None else times, *tables, WANTED)


def held(tables: Tables, truth: np.ndarray, where: tuple[str, int], found: dict[tuple, list[bool]]) -> None:
    """Note for each statistic whether either interval of a sample holds the truth."""
    value = values(tables)[0]
    drawn = np.concatenate([values(tables, counts[:500].astype(float)) for counts in statistics.draws(len(tables[0]))])
    low, high = np.quantile(drawn, statistics.ENDS, axis=0)
    for place, statistic in enumerate(WANTED):
        ends = {"percentile": (low, high), "basic": (2 * value - high, 2 * value - low)}
        for how, (a, b) in ends.items():
            inside = a[place] <= truth[place] + 1e-12 and truth[place] <= b[place] + 1e-12
            found.setdefault((*where, statistic["name"], how), []).append(bool(inside))


if __name__ == "__main__":
    main()
