"""Scenes made from a network: patches on noise that are optimised until each has the role that a scenario gives it.

Khakzar et al. 2022 (Do explanations explain? Model knows best), equations 1 to 6, 12 and 13; the released code where
the text is silent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ... import rng
from ...models.classifier import Classifier
from ...perturb import fills
from ._generators import Generator

# Weights of the activation in the warm-up and after it, and of the difference terms; the focal function's exponent.
WARM, ACTIVATION, DIFFERENCE, GAMMA = 5.0, 10.0, 5.0, 0.8
# Of the running means that the focal function sees: the share of the newest value, and the start.
NEWEST, START = 0.1, 0.5
# RMSprop's decay and floor.
DECAY, FLOOR = 0.99, 1e-8
# A change is relative to the output, but to no less than this many logits, or it would explode where the output is 0.
LEAST = 1.0
# Fresh backgrounds (and places) on which an accepted scene is tried again.
FRESH = 20
# Places of pinned patches, as shares of the side (5 and 133 of 224 pixels).
PINNED = ((5 / 224, 5 / 224), (133 / 224, 133 / 224))

# Rows of a batch, and columns with a row for each.
Part = tuple[list[int], dict[str, torch.Tensor]]
Coalition = frozenset[int]
NOTHING, FIRST, SECOND, BOTH = frozenset[int](), frozenset({0}), frozenset({1}), frozenset({0, 1})


@dataclass(frozen=True)
class Difference:
    """For the class of patch `of`, the output with the coalition `full` shall equal that without the patch `owner`.

    It changes the owner's patch alone.
    """

    owner: int
    of: int
    full: Coalition

    @property
    def rest(self) -> Coalition:
        """The coalition without the owner."""
        return self.full - {self.owner}


@dataclass(frozen=True)
class Scenario:
    """Patches, each of which activates its class alone, and what they must not change.

    patches: how many. differences: see `Difference`. one_class: whether all patches are of one class. pinned: whether
    they stay in two corners; else each draw has places of its own.
    """

    patches: int
    differences: tuple[Difference, ...]
    one_class: bool = False
    pinned: bool = False

    @property
    def seen(self) -> list[tuple[Coalition, int]]:
        """Coalitions with the patch that is changed by what the network answers to them, the other one being given."""
        alone = [(frozenset({patch}), patch) for patch in range(self.patches)]
        return list(dict.fromkeys([*alone, *((each.full, each.owner) for each in self.differences)]))

    @property
    def given(self) -> list[Coalition]:
        """Coalitions whose outputs are compared with and change no patch, where no `seen` one has the same."""
        known = {coalition for coalition, _ in self.seen}
        return list(dict.fromkeys(each.rest for each in self.differences if each.rest not in known))


SCENARIOS = {
    "null": Scenario(2, (Difference(1, 0, BOTH), Difference(1, 0, SECOND))),
    "single": Scenario(1, (Difference(0, 1, FIRST),)),
    "double": Scenario(2, (Difference(0, 1, BOTH), Difference(1, 0, BOTH))),
    "saturation": Scenario(2, (Difference(0, 0, BOTH), Difference(1, 0, BOTH)), one_class=True, pinned=True),
}


@dataclass(frozen=True)
class Making:
    """How scenes are made.

    generator: of patches. steps: most of an attempt. warm_up: of these, without difference terms. least: steps before a
    scene may be accepted. tries: attempts, each with new classes. learning_rate: of RMSprop. probability, change: a
    scene is accepted at the first step at which each patch alone gives its class more than the one and every relative
    change c has tanh(c) below the other.
    """

    generator: Callable[[int, int], Generator]
    size: int
    steps: int
    warm_up: int
    least: int
    tries: int
    learning_rate: float
    probability: float
    change: float


def make(
    classifier: Classifier, scenario: Scenario, making: Making, generators: Sequence[torch.Generator]
) -> Iterator[Part]:
    """A scene for each generator; no scene's numbers depend on the others of the batch.

    Yields scenes as soon as they are accepted, or have failed for the last time: their rows among the generators, and
    by name: scene [B,C,H,W], the network's input as it was accepted (that of the last step otherwise); corners
    [B,patches,2], the upper left corners (row, column); classes [B,2]; accepted [B], 0 or 1; attempts [B] and steps [B]
    over all of them; probability [B], the least of the patches' own; change [B], the mean relative change of the
    differences; holds [B], the share of FRESH backgrounds and places on which the scene would be accepted again.
    """
    outputs, left = classifier.outputs, list(range(len(generators)))
    spent = torch.zeros(len(generators))
    for attempt in range(1, making.tries + 1):
        own = [generators[row] for row in left]
        classes = torch.stack([_classes(outputs, scenario.one_class, g) for g in own])
        failed: list[int] = []
        for places, made in _Attempt(classifier, scenario, making, classes, own).run():
            rows = torch.tensor(left)[places]
            spent[rows] += made["steps"]
            ends = (made["accepted"] > 0) | (attempt == making.tries)
            failed += rows[~ends].tolist()
            if ends.any():
                counted = {"attempts": torch.full((len(rows),), float(attempt)), "steps": spent[rows]}
                yield rows[ends].tolist(), {name: values.cpu()[ends] for name, values in (made | counted).items()}
        left = sorted(failed)
        if not left:
            return


def masks(corners: torch.Tensor, size: int, height: int, width: int) -> torch.Tensor:
    """Corners [B,patches,2] of patches of a size -> bool [B,patches,H,W]."""
    rows, columns = torch.arange(height, device=corners.device), torch.arange(width, device=corners.device)
    top, left = corners[..., 0, None], corners[..., 1, None]
    inside_rows, inside_columns = (rows >= top) & (rows < top + size), (columns >= left) & (columns < left + size)
    return inside_rows[..., :, None] & inside_columns[..., None, :]


def focal(value: torch.Tensor, goal: Literal[0, 1]) -> torch.Tensor:
    """-(1 - p)^gamma log p of p, the value for a goal of 1, 1 - value for one of 0: large while the goal is far."""
    p = (value if goal else 1 - value).clamp(1e-6, 1 - 1e-6)
    return -((1 - p) ** GAMMA) * p.log()


def relative(with_patch: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """|with - without| over the smaller of their sizes, which counts as at least LEAST logits."""
    size = torch.minimum(with_patch.abs(), without.abs()).clamp(min=LEAST)
    return (with_patch - without).abs() / size


class _Attempt:
    """One attempt at scenes of given classes [B,2]; those that are accepted leave the batch."""

    def __init__(
        self,
        classifier: Classifier,
        scenario: Scenario,
        making: Making,
        classes: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.classifier, self.scenario, self.making = classifier, scenario, making
        self.classes, self.generators = classes.to(classifier.device), list(generators)
        self.generator = making.generator(classifier.input_size[0], making.size)
        made = [self.generator.initial(self.generators) for _ in range(scenario.patches)]
        like = torch.empty(0, device=classifier.device, dtype=classifier.dtype)
        # [patches,B,n] and [patches,B,...].
        self.parameters, self.fed = (torch.stack(parts).to(like) for parts in zip(*made))
        self.squares = torch.zeros_like(self.parameters)
        count = len(self.generators)
        self.activity = like.new_full((count, scenario.patches), START)
        self.changes = like.new_full((count, len(scenario.differences)), START)
        self.seen, self.given = scenario.seen, scenario.given

    def run(self) -> Iterator[Part]:
        """Scenes as they leave, at the latest with the last step: their rows, and columns as those of `make`."""
        rows = torch.arange(len(self.generators))
        for step in range(1, self.making.steps + 1):
            patches = self._patches()
            backgrounds, corners = self._drawn()
            logits, scenes = self._logits(patches, backgrounds, corners)
            activity, changes, relatives = self._state(logits)
            good = self._good(activity, changes) if step > self.making.least else torch.zeros(len(rows)).bool()
            leaves = torch.ones_like(good) if step == self.making.steps else good
            if leaves.any():
                at = torch.nonzero(leaves)[:, 0].to(scenes.device)
                yield (
                    rows[leaves].tolist(),
                    {
                        "scene": scenes[at].detach(),
                        "corners": corners[at],
                        "classes": self.classes[at],
                        "accepted": good[leaves].float(),
                        "steps": torch.full((len(at),), float(step)),
                        "probability": activity[at].amin(1).detach(),
                        "change": relatives[at].mean(1).detach(),
                        "holds": self._holds(patches, at),
                    },
                )
                if leaves.all():
                    return
            gradients = self._gradients(logits, activity, changes, step)
            rows = rows[~leaves]
            self._keep(torch.nonzero(~leaves)[:, 0].to(scenes.device), gradients)

    # ---- a step --------------------------------------------------------------------------------------------------

    def _patches(self) -> torch.Tensor:
        """[patches,B,C,P,P], all in one call."""
        self.parameters = self.parameters.detach().requires_grad_(True)
        with torch.enable_grad():
            made = self.generator.patches(self.parameters.flatten(0, 1), self.fed.flatten(0, 1))
        return made.unflatten(0, self.fed.shape[:2])

    def _drawn(self, generators: Sequence[torch.Generator] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A background [B,C,H,W], in pixels, and corners [B,patches,2] for each scene."""
        generators = self.generators if generators is None else generators
        size, patches = self.classifier.input_size, self.scenario.patches
        backgrounds = torch.stack([fills.background(size, g) for g in generators])
        places = [_places(size[1:], self.making.size, patches, self.scenario.pinned, g) for g in generators]
        device = self.classifier.device
        return backgrounds.to(device, self.classifier.dtype), torch.tensor(places, device=device)

    def _logits(
        self, patches: torch.Tensor, backgrounds: torch.Tensor, corners: torch.Tensor
    ) -> tuple[dict[tuple[Coalition, int], torch.Tensor], torch.Tensor]:
        """Logits [B,K] of coalitions as patches see them, and the scenes with all patches [B,C,H,W].

        The key (coalition, owner) has a gradient for the owner's patch; (coalition, -1) for none. Those with a gradient
        in one call, the others in another, which keeps no activations and is not gone back through.
        """
        normalise = self.classifier.preprocessing.normalise
        inside = masks(corners, self.making.size, *self.classifier.input_size[1:])
        with torch.enable_grad():
            placed = [_placed(patch, corners[:, k], backgrounds) for k, patch in enumerate(patches)]

            def scene(coalition: Coalition, owner: int) -> torch.Tensor:
                values = backgrounds
                for k in coalition:
                    pixels = placed[k] if k == owner else placed[k].detach()
                    values = torch.where(inside[:, k, None], pixels, values)
                return normalise(values)

            seen = self._answers(torch.cat([scene(*key) for key in self.seen])).split(len(backgrounds))
        answers = dict(zip(self.seen, seen))
        if self.given:
            with torch.no_grad():
                given = self._answers(torch.cat([scene(coalition, -1) for coalition in self.given]))
            answers |= zip([(coalition, -1) for coalition in self.given], given.split(len(backgrounds)))
        everything = frozenset(range(len(patches)))
        return answers, scene(everything, -1)

    def _answers(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.classifier.module(inputs[part]) for part in self.classifier.chunks(len(inputs))])

    def _state(
        self, logits: dict[tuple[Coalition, int], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each scene: the probabilities that patches alone give their classes [B,patches], tanh of the relative
        changes, and these themselves [B,differences]."""
        with torch.no_grad():
            own = [
                self.classifier.probabilities(logits[frozenset({k}), k]).gather(1, self._class(k))[:, 0]
                for k in range(self.scenario.patches)
            ]
            relatives = torch.stack([relative(*self._pair(logits, d)) for d in self.scenario.differences], 1)
        return torch.stack(own, 1), relatives.tanh(), relatives

    def _class(self, patch: int) -> torch.Tensor:
        return self.classes[:, patch, None]

    def _pair(
        self, logits: dict[tuple[Coalition, int], torch.Tensor], difference: Difference
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output [B] with the owner's patch, and without it as a constant."""
        target = self._class(difference.of)
        rest = next(values for (coalition, _), values in logits.items() if coalition == difference.rest)
        full = logits[difference.full, difference.owner]
        return full.gather(1, target)[:, 0], rest.detach().gather(1, target)[:, 0]

    def _good(self, activity: torch.Tensor, changes: torch.Tensor) -> torch.Tensor:
        made = (activity > self.making.probability).all(1) & (changes < self.making.change).all(1)
        return made.cpu()

    def _gradients(
        self,
        logits: dict[tuple[Coalition, int], torch.Tensor],
        activity: torch.Tensor,
        changes: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Of the loss, for all parameters [patches,B,n]: equations 1 to 6, each term with its focal weight."""
        warm = step <= self.making.warm_up
        if not warm:
            self.activity = NEWEST * activity + (1 - NEWEST) * self.activity
            self.changes = NEWEST * changes + (1 - NEWEST) * self.changes
        with torch.enable_grad():
            total = torch.zeros(len(self.classes), device=activity.device, dtype=activity.dtype)
            for k in range(self.scenario.patches):
                weight = WARM if warm else ACTIVATION * focal(self.activity[:, k], 1)
                total = total - weight * logits[frozenset({k}), k].gather(1, self._class(k))[:, 0]
            for number, difference in enumerate(self.scenario.differences if not warm else ()):
                full, rest = self._pair(logits, difference)
                total = total + DIFFERENCE * focal(self.changes[:, number], 0) * (full - rest).square()
        return torch.autograd.grad(total.sum(), self.parameters)[0]

    @torch.no_grad()
    def _keep(self, at: torch.Tensor, gradients: torch.Tensor) -> None:
        """A step of RMSprop for the scenes that stay; the others are dropped."""
        gradients = gradients[:, at]
        self.squares = DECAY * self.squares[:, at] + (1 - DECAY) * gradients.square()
        step = self.making.learning_rate * gradients / (self.squares.sqrt() + FLOOR)
        self.parameters, self.fed = self.parameters[:, at] - step, self.fed[:, at]
        self.generators = [self.generators[row] for row in at.tolist()]
        self.classes, self.activity, self.changes = self.classes[at], self.activity[at], self.changes[at]

    @torch.no_grad()
    def _holds(self, patches: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The share of FRESH draws on which scenes would be accepted; what was drawn before changes nothing."""
        own = [self.generators[row] for row in at.tolist()]
        fresh = [list(row) for row in zip(*rng.offspring(own, FRESH))]
        before, self.classes = self.classes, self.classes[at]
        held = torch.zeros(len(at))
        for generators in fresh:
            logits, _ = self._logits(patches[:, at].detach(), *self._drawn(generators))
            held += self._good(*self._state(logits)[:2]).float()
        self.classes = before
        return held / FRESH


def _classes(outputs: int, one_class: bool, generator: torch.Generator) -> torch.Tensor:
    """Two different classes, or one twice."""
    drawn = torch.randperm(outputs, generator=generator)[:2]
    return drawn[:1].expand(2) if one_class else drawn


def _places(
    size: tuple[int, int], patch: int, patches: int, pinned: bool, generator: torch.Generator
) -> list[tuple[int, int]]:
    """Upper left corners (row, column) of patches that do not overlap."""
    height, width = size
    if pinned:
        return [(round(down * height), round(across * width)) for down, across in PINNED]
    if patches == 1:
        return [(_up_to(height - patch, generator), _up_to(width - patch, generator))]
    # A line between them across one of the two axes, then a place on each side of it.
    above, first = (bool(torch.rand((), generator=generator) < 0.5) for _ in range(2))
    along, across = (height, width) if above else (width, height)
    line = patch + _up_to(along - 2 * patch, generator)
    before = (_up_to(line - patch, generator), _up_to(across - patch, generator))
    behind = (line + _up_to(along - patch - line, generator), _up_to(across - patch, generator))
    places = [before, behind] if first else [behind, before]
    return places if above else [(row, column) for column, row in places]


def _up_to(most: int, generator: torch.Generator) -> int:
    return int(torch.randint(most + 1, (), generator=generator))


def _placed(patch: torch.Tensor, corners: torch.Tensor, backgrounds: torch.Tensor) -> torch.Tensor:
    """Patches [B,C,P,P] at their corners [B,2] of an empty image [B,C,H,W]; differentiable."""
    size, (height, width) = patch.shape[-1], backgrounds.shape[2:]
    rows = [
        torch.nn.functional.pad(own, (left, width - size - left, top, height - size - top))
        for own, (top, left) in zip(patch, corners.tolist())
    ]
    return torch.stack(rows)
