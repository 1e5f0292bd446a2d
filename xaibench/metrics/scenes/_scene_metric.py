"""What the metrics of scenes share: scenes made once for a network, and maps of their two classes."""

from typing import Any, ClassVar

import torch

from ...datasets.base import Batch
from ...errors import Refusal, one_of
from ...methods.context import Context
from ...models.classifier import Classifier
from ..base import Columns, Metric, Statistic
from ..ranking import Collapse, Sign
from ._generators import GENERATORS
from ._scenes import FRESH, SCENARIOS, Making, make, masks

# What is shown of the scenes themselves.
AUDIT = (
    Statistic("accepted", "higher", "made", kind="proportion", low=0, high=1, unit="share of scenes"),
    Statistic("output_change", "lower", "change", low=0, unit="of the output"),
    Statistic("class_probability", "higher", "probability", low=0, high=1, unit="probability"),
    Statistic("holds_on_fresh", "higher", "holds", low=0, high=1, unit="share of fresh backgrounds"),
    Statistic("empty_maps", "lower", "empty", low=0, high=1, unit="share of scenes"),
)


class SceneMetric(Metric):
    """Explains scenes that are made from the network: patches on noise, optimised so that each has a known role.

    Khakzar et al. 2022 (Do explanations explain? Model knows best). A scene is a background of normal noise, the
    reference that contributions are measured from, with patches that activate a class each, drawn at random, and leave
    another output as it is (see the metric's scenario). It depends on the network and on the sample's number alone, not
    on the image of that number: `dataset.limit` is the number of scenes. They are made once and shared by all methods.

    An attempt ends with the first step after `least` at which every patch alone gives its class a probability above
    `probability`, and every output that shall not change has a relative change c with tanh(c) < `change`, on that
    step's own draw of background and places; that draw is the scene. Else another one begins with new classes, up to
    `tries`; a scene that none of them makes is undefined, and counted. The change is relative to at least one logit.

    generator: of patches: `pixel`, whose pixels are optimised, or `deep_image_prior`, an untrained network whose
        weights are, as in the paper: slower, and fewer of its scenes are accepted (docs/metrics.md).
    patch: side of the square patches, as a share of the input's side (86 of 224 in the paper).
    steps, warm_up: most steps of an attempt, and how many of them only activate. learning_rate: of RMSprop.
    least, tries, probability, change: see above.
    collapse, sign: see `Metric`. Shares of signed maps have no range, so that maps are read by their absolute values;
        the released code takes signed ones for the null feature alone.

    Columns of the scenes beside the metric's own: made, whether there is one (0 or 1), and of those that are: change,
    the mean relative change of outputs that shall not change (published: 0.0712, and 0.0649 for one patch);
    probability, the least of the patches' own; holds, the share of 20 fresh backgrounds and places on which the scene
    would be accepted; attempts, steps; empty, whether a map of it is 0 everywhere.
    """

    reads_maps = False
    scenario: ClassVar[str]

    def __init__(
        self,
        generator: str = "pixel",
        patch: float = 0.384,
        steps: int = 300,
        warm_up: int = 60,
        least: int = 50,
        tries: int = 3,
        learning_rate: float = 0.02,
        probability: float = 0.94,
        change: float = 0.14,
        collapse: Collapse | None = None,
        sign: Sign = "absolute",
    ) -> None:
        one_of("generator", generator, GENERATORS)
        if not 0 < patch <= 0.5:
            raise ValueError(f"patch={patch}: expected a share of the side in (0, 0.5], two have to fit")
        for name, value in (("steps", steps), ("tries", tries)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        for name, value in (("warm_up", warm_up), ("least", least)):
            if not 0 <= value < steps:
                raise ValueError(f"{name}={value}: expected 0 or more, and fewer than steps={steps}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number")
        for name, share in (("probability", probability), ("change", change)):
            if not 0 < share < 1:
                raise ValueError(f"{name}={share}: expected a number in (0, 1)")
        self.generator, self.patch, self.steps, self.warm_up, self.least = generator, patch, steps, warm_up, least
        self.tries, self.learning_rate, self.probability, self.change = tries, learning_rate, probability, change
        self.collapse, self.sign = collapse, sign

    def check(self, classifier: Classifier) -> None:
        if classifier.outputs < 2 or not classifier.has_classes:
            raise Refusal(f"{classifier.name} has no two classes, of which scenes are made")
        size = min(classifier.input_size[1:])
        if round(self.patch * size) < 4:
            raise Refusal(f"patch={self.patch}: fewer than 4 pixels of {classifier.name}'s {size}")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Of one attempt that takes all its steps, and of the fresh backgrounds: a scene made early takes less."""
        scenario = SCENARIOS[self.scenario]
        coalitions = len(scenario.seen) + len(scenario.given)
        return coalitions * (self.steps + FRESH), len(scenario.seen) * self.steps

    def explanations(self, classifier: Classifier) -> int:
        return 2

    def at_once(self, classifier: Classifier) -> int:
        """Scenes whose step is one call of the network."""
        return max(classifier.batch_size // len(SCENARIOS[self.scenario].seen), 1)

    def responses_spec(self) -> dict[str, Any]:
        names = ("generator", "patch", "steps", "warm_up", "least", "tries", "learning_rate", "probability", "change")
        return {name: getattr(self, name) for name in names}

    def respond(self, classifier: Classifier, batch: Batch, context: Context) -> dict[str, torch.Tensor]:
        """The scenes, see `_scenes.make`, handed over one by one; of the batch only the count is looked at."""
        making = Making(
            generator=GENERATORS[self.generator],
            size=self.side(classifier),
            **{name: getattr(self, name) for name in list(self.responses_spec())[2:]},
        )
        found: dict[str, torch.Tensor] = {}
        for rows, part in make(classifier, SCENARIOS[self.scenario], making, context.generators):
            context.keep(rows, part)
            for name, values in part.items():
                whole = found.setdefault(name, values.new_zeros(len(context.generators), *values.shape[1:]))
                whole[rows] = values
        return found

    def side(self, classifier: Classifier) -> int:
        """The patches' side in pixels."""
        return round(self.patch * min(classifier.input_size[1:]))

    def explained(
        self, classifier: Classifier, context: Context, both: bool = True
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The maps [B,H,W] of the first class, and if wanted of the second, and where patches are [B,patches,H,W].

        Both draw the same noise, so that what differs comes from the class.
        """
        answers = context.responses
        scenes, classes = answers["scene"].to(classifier.device, classifier.dtype), answers["classes"]
        places = masks(answers["corners"], self.side(classifier), *classifier.input_size[1:])
        # What a class is about in the scene: its patch; of the second class of a single patch, that patch.
        about = (places[:, 0], places[:, -1])
        wanted = range(2 if both else 1)
        return [context.explain(scenes, classes[:, k], "", about[k]).double() for k in wanted], places

    def audited(self, context: Context, maps: list[torch.Tensor], columns: Columns) -> Columns:
        """The columns, undefined where there is no scene, and those of the scenes."""
        answers = context.responses
        made = answers["accepted"] > 0
        empty = torch.stack([(values == 0).flatten(1).all(1) for values in maps]).any(0)
        of_scenes = {name: answers[name] for name in ("change", "probability", "holds", "attempts", "steps")}
        found = {**columns, **of_scenes, "empty": empty.double()}
        return {"made": made.double()} | {
            name: values.double().where(made, torch.nan) for name, values in found.items()
        }


def sums(maps: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The attribution [B] of maps [B,H,W] within places [B,H,W]."""
    return (maps * places).flatten(1).sum(1)


def share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """part / whole; NaN where whole is 0."""
    return part / whole.where(whole != 0, torch.nan)
