"""What a Peeky or a Stretchy looks like, as numbers: ten factors, and the biases of a sampler as plain data.

Every value comes from one uniform number through a quantile function, so that conditions need no rejection and a sample
is a fixed number of draws. Sixt 2022, chapter 6; the study's numbers are those of its released sampler.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
from scipy import special

from ..errors import UserError, nearest

CLASSES = ("peeky", "stretchy")
_SPELLINGS = {"peaky": "peeky", "pecky": "peeky"}
UNBIASED = "unbiased"
OVERLAP = (0.48, 0.52)  # positions of the legs that both classes have


@dataclass(frozen=True)
class Factor:
    """The values that a factor can take, and how it is distributed where no bias says otherwise."""

    low: float
    high: float
    unbiased: Mapping[str, Any]


# Lengths in units of two spine blocks' distance, angles in radians, the others from 0 to 1.
FACTORS = {
    "legs": Factor(0, 1, {"peeky": {"uniform": [0, OVERLAP[1]]}, "stretchy": {"uniform": [OVERLAP[0], 1]}}),
    "color": Factor(0, 1, {"uniform": [0, 1]}),
    "shape": Factor(0, 1, {"uniform": [0, 1]}),
    "position_y": Factor(-0.8, 0, {"uniform": [-0.8, 0]}),
    "position_x": Factor(-0.8, 0, {"uniform": [-0.8, 0]}),
    "background": Factor(0.05, 0.95, {"uniform": [0.05, 0.95]}),
    "yaw": Factor(0, 2 * pi, {"uniform": [0, 2 * pi]}),
    "roll": Factor(-pi / 4, pi / 4, {"truncnorm": [0, 0.03 * pi / 4]}),
    "pitch": Factor(-pi / 6, pi / 6, {"truncnorm": [0, pi / 8]}),
    "bending": Factor(-pi / 10, pi / 10, {"truncnorm": [0, pi / 20]}),
}
CIRCULAR = ("yaw",)  # where the ends of the range are the same posture


class Distribution(ABC):
    """How a factor is distributed, given the class and the legs' position."""

    @property
    def follows_legs(self) -> bool:
        """Whether it depends on the legs' position."""
        return False

    @abstractmethod
    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        """Values [N] from uniform numbers in [0, 1), labels and positions of the legs, each [N]."""


class Sampler:
    """Draws scenes: a class, each as likely as the other, then the legs, then all the other factors given both.

    bias: factor -> distribution, as `parse` reads it; factors that are not named are unbiased. Raises UserError for
    what is not one.
    """

    def __init__(self, bias: Mapping[str, Any], where: str = "dataset.bias") -> None:
        for name in bias:
            if name not in FACTORS:
                raise UserError(f"{where}.{name} is not a factor: {nearest(name, FACTORS)}")
        self.distributions = {name: parse(bias.get(name, UNBIASED), name, f"{where}.{name}") for name in FACTORS}

    def draw(self, noise: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Labels int64 [N] and factors, each [N], from uniform numbers [N,11]."""
        labels = (noise[:, 0] >= 0.5).astype(np.int64)
        factors: dict[str, np.ndarray] = {}
        for (name, distribution), numbers in zip(self.distributions.items(), noise.T[1:]):
            # The legs come first, and do not read the position that is not there yet.
            factors[name] = distribution.quantile(numbers, labels, factors.get("legs", numbers))
        return labels, factors

    def redraw(self, name: str, noise: np.ndarray, factors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Other values [N] of one factor, the rest left as it is, from uniform numbers [N,3].

        The value is drawn for a class and legs' position of its own, so that it depends on nothing that stays. A factor
        that fades with the legs' position keeps to the legs that it goes with, as in the study: the class is then the
        one with such legs, or either.
        """
        labels = (noise[:, 0] >= 0.5).astype(np.int64)
        legs = self.distributions["legs"].quantile(noise[:, 1], labels, noise[:, 1])
        if name == "legs":
            return legs
        distribution = self.distributions[name]
        if distribution.follows_legs:
            legs = factors["legs"]
            labels = np.where(legs > OVERLAP[1], 1, np.where(legs < OVERLAP[0], 0, labels))
        return distribution.quantile(noise[:, 2], labels, legs)


# ---- distributions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Uniform(Distribution):
    """Equally likely from `low` to `high`; one value if they are equal."""

    low: float
    high: float

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        return self.low + (self.high - self.low) * noise


@dataclass(frozen=True)
class Restricted(Distribution):
    """A distribution with this `cdf` and its inverse `ppf`, restricted to the values from `low` to `high`."""

    cdf: Callable[[float], float]
    ppf: Callable[[np.ndarray], np.ndarray]
    low: float
    high: float

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        below, up_to = self.cdf(self.low), self.cdf(self.high)
        return self.ppf(below + (up_to - below) * noise).clip(self.low, self.high)


@dataclass(frozen=True)
class Fading(Distribution):
    """Near legs in the middle the class shows, further out less and less (the study's colour).

    A Peeky has values uniform from `low` to low + m (high - low), m = 0.25 + slope (0.5 - legs) between 0 and 1; a
    Stretchy is its mirror image, from the high end and with legs - 0.5.
    """

    slope: float
    low: float
    high: float
    follows_legs = True

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        outward = np.where(labels == 1, legs - 0.5, 0.5 - legs)
        share = (0.25 + self.slope * outward).clip(0, 1) * noise
        return self.low + (self.high - self.low) * np.where(labels == 1, 1 - share, share)


@dataclass(frozen=True)
class ByClass(Distribution):
    """One distribution for each class."""

    peeky: Distribution
    stretchy: Distribution

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        both = [distribution.quantile(noise, labels, legs) for distribution in (self.peeky, self.stretchy)]
        return np.where(labels == 1, both[1], both[0])

    @property
    def follows_legs(self) -> bool:
        return self.peeky.follows_legs or self.stretchy.follows_legs


@dataclass(frozen=True)
class ByLegs(Distribution):
    """The first distribution whose `ends` the legs' position does not exceed."""

    ends: tuple[float, ...]
    parts: tuple[Distribution, ...]

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        which = np.searchsorted(self.ends, legs).clip(max=len(self.parts) - 1)
        return np.choose(which, [part.quantile(noise, labels, legs) for part in self.parts])


@dataclass(frozen=True)
class Mixture(Distribution):
    """Each of the parts as often as its share says. The number that chooses, stretched, is drawn with again."""

    shares: tuple[float, ...]
    parts: tuple[Distribution, ...]

    def quantile(self, noise: np.ndarray, labels: np.ndarray, legs: np.ndarray) -> np.ndarray:
        ends = np.cumsum(self.shares) / sum(self.shares)
        which = np.searchsorted(ends, noise, side="right").clip(max=len(self.parts) - 1)
        starts = np.concatenate([[0.0], ends[:-1]])
        rest = ((noise - starts[which]) / (ends - starts)[which]).clip(0, 1)
        return np.choose(which, [part.quantile(rest, labels, legs) for part in self.parts])

    @property
    def follows_legs(self) -> bool:
        return any(part.follows_legs for part in self.parts)


# ---- from a configuration --------------------------------------------------------------------------------------------


def parse(spec: Any, name: str, where: str) -> Distribution:
    """The distribution that a configuration describes, for the factor `name`. One of

        unbiased                                        what the factor has without a bias
        0.5                                             always this value
        {uniform: [low, high]}
        {truncnorm: [mean, std], within: [low, high]}   a normal distribution, cut off at the range, or at `within`
        {beta: [a, b], within: [low, high]}             over the factor's range, or what of it lies `within`
        {fading: slope}                                 see `Fading`
        {peeky: ..., stretchy: ...}                     one for each class
        {by_legs: [[0.45, ...], [1, ...]]}              one for legs up to 0.45, one for the others
        {mixture: [[0.85, ...], [0.15, ...]]}           one in so many of the samples, another in the others

    where ... is again one of these. Raises UserError, with the nearest name, for anything else, and for values outside
    of the factor's range.
    """
    factor = FACTORS[name]
    if spec == UNBIASED:
        spec = factor.unbiased
    if _is_number(spec):
        _check_range([spec, spec], factor, where)
        return Uniform(spec, spec)
    if not isinstance(spec, Mapping) or not spec:
        raise UserError(
            f"{where}={spec}: expected a distribution, such as {{uniform: [{factor.low:g}, {factor.high:g}]}}"
        )
    spec = {_SPELLINGS.get(key, key): value for key, value in spec.items()}
    if spec.keys() & set(CLASSES):
        return _by_class(spec, name, where)
    kind = _kind(spec, name, where)
    within = _pair(spec.get("within", [factor.low, factor.high]), f"{where}.within")
    _check_range(within, factor, f"{where}.within")
    if within[0] == within[1]:
        raise UserError(f"{where}.within={within}: expected a range; a single value is written as {within[0]:g}")
    return _KINDS[kind](spec[kind], within, name, f"{where}.{kind}")


def _kind(spec: Mapping[str, Any], name: str, where: str) -> str:
    """The one distribution that a configuration names."""
    kinds = [key for key in spec if key != "within"]
    unknown = [key for key in kinds if key not in _KINDS]
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is not a distribution: {nearest(unknown[0], (*_KINDS, *CLASSES))}")
    if len(kinds) != 1:
        raise UserError(f"{where}={spec}: expected one distribution, got {' and '.join(kinds) or 'none'}")
    kind = kinds[0]
    if "within" in spec and kind not in ("truncnorm", "beta"):
        raise UserError(f"{where}.within: only truncnorm and beta are cut off, not {kind}")
    if name == "legs" and kind in ("fading", "by_legs"):
        raise UserError(f"{where}.{kind}: the legs' position cannot depend on itself")
    return kind


def _uniform(value: Any, within: list[float], name: str, where: str) -> Distribution:
    low, high = _pair(value, where)
    _check_range([low, high], FACTORS[name], where)
    return Uniform(low, high)


def _truncnorm(value: Any, within: list[float], name: str, where: str) -> Distribution:
    mean, std = _pair(value, where)
    if std <= 0:
        raise UserError(f"{where}={value}: the second number is the standard deviation, expected more than 0")
    _check_range([mean, mean], FACTORS[name], where)
    return Restricted(lambda x: float(special.ndtr((x - mean) / std)), lambda p: mean + std * special.ndtri(p), *within)


def _beta(value: Any, within: list[float], name: str, where: str) -> Distribution:
    a, b = _pair(value, where)
    if min(a, b) <= 0:
        raise UserError(f"{where}={value}: expected two positive numbers")
    low, width = FACTORS[name].low, FACTORS[name].high - FACTORS[name].low
    return Restricted(
        lambda x: float(special.betainc(a, b, (x - low) / width)),
        lambda p: low + width * special.betaincinv(a, b, p),
        *within,
    )


def _fading(value: Any, within: list[float], name: str, where: str) -> Distribution:
    if not _is_number(value) or value < 0:
        raise UserError(f"{where}={value}: expected a slope of 0 or more")
    return Fading(value, *within)


def _by_class(spec: Mapping[str, Any], name: str, where: str) -> Distribution:
    for key in spec:
        if key not in CLASSES:
            raise UserError(f"{where}.{key} is not a class: {nearest(key, CLASSES)}")
    for key in CLASSES:
        if key not in spec:
            raise UserError(f"{where}.{key} is missing: {' and '.join(CLASSES)} need a distribution each")
    return ByClass(*(parse(spec[key], name, f"{where}.{key}") for key in CLASSES))


def _by_legs(value: Any, within: list[float], name: str, where: str) -> Distribution:
    ends, parts = _parts(value, name, where)
    if list(ends) != sorted(set(ends)) or ends[-1] < 1:
        raise UserError(f"{where}: expected positions in rising order, the last of them 1, not {list(ends)}")
    return ByLegs(ends, parts)


def _mixture(value: Any, within: list[float], name: str, where: str) -> Distribution:
    shares, parts = _parts(value, name, where)
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"{where}: expected positive shares that add up to 1, not {list(shares)}")
    return Mixture(shares, parts)


_KINDS = {
    "uniform": _uniform,
    "truncnorm": _truncnorm,
    "beta": _beta,
    "fading": _fading,
    "by_legs": _by_legs,
    "mixture": _mixture,
}


def _parts(value: Any, name: str, where: str) -> tuple[tuple[float, ...], tuple[Distribution, ...]]:
    """[[number, distribution], ...] -> the numbers and the distributions."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not is_list or not all(isinstance(v, Sequence) and len(v) == 2 and _is_number(v[0]) for v in value):
        raise UserError(f"{where}: expected a list of [number, distribution], such as [[1, {{uniform: [0, 1]}}]]")
    numbers, specs = zip(*value)
    return numbers, tuple(parse(spec, name, f"{where}[{i}]") for i, spec in enumerate(specs))


def _pair(value: Any, where: str) -> list[float]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_number(v) for v in value):
        raise UserError(f"{where}={value}: expected two numbers, such as [0, 1]")
    return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check_range(values: list[float], factor: Factor, where: str) -> None:
    low, high = values
    slack = 1e-4  # a yaml's 6.2832 is a full turn
    if low > high or low < factor.low - slack or high > factor.high + slack:
        raise UserError(
            f"{where}={values}: expected values from {factor.low:g} to {factor.high:g}, the lower one first"
        )
