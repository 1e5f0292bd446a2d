"""The fill `background` of the metrics: what is removed shows training samples, and answers are averaged over them."""

import pytest
import torch

from tests.methods.nets import Rows
from xaibench.datasets.base import Batch, Samples
from xaibench.datasets.tables import Friedman1
from xaibench.errors import Refusal
from xaibench.metrics.removal.completeness import Completeness
from xaibench.metrics.removal.completeness_soundness import CompletenessSoundness
from xaibench.metrics.removal.degradation import Degradation
from xaibench.metrics.removal.infidelity import Infidelity
from xaibench.metrics.removal.insertion_deletion import InsertionDeletion
from xaibench.metrics.removal.lerf import LeRF
from xaibench.metrics.removal.region_perturbation import RegionPerturbation
from xaibench.metrics.removal.sensitivity_n import SensitivityN
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing
from xaibench.perturb.background import REFERENCES

from .helpers import evaluated, responded

WEIGHTS = torch.tensor([[2.0, -1.0, 0.5, 0.25, 3.0, -2.0]], dtype=torch.float64)
VALUE = {"output": "logit"}


class BothSigns(Rows):
    """The value of a row, and its negative."""

    def forward(self, inputs):
        value = super().forward(inputs)
        return torch.cat([value, -value], dim=1)


class World:
    """Five rows, the references that a metric draws, and the contributions w (x - mean) of a linear network."""

    def __init__(self, metric, product: float = 0.0):
        self.metric, self.module = metric, BothSigns(WEIGHTS, product)
        self.classifier = Classifier("rows", self.module, (1, 1, 6), places="columns")
        metric.check(self.classifier)
        train = Friedman1("train", samples=60, features=6)
        self.fitted = metric.fit(self.classifier, Samples(train, Preprocessing(), range(len(train))), torch.Generator())
        self.references = self.fitted["references"].flatten(1).double()
        self.rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        targets = torch.zeros(5, dtype=torch.int64)
        self.batch = Batch(tuple(range(5)), self.rows[:, None, None], targets, targets, None, (0,) * 5)

    @property
    def contributions(self):
        return WEIGHTS * (self.rows - self.references.mean(0))

    def scored(self, maps=None, **context):
        maps = self.contributions if maps is None else maps
        responses = responded(self.metric, self.classifier, self.batch, fitted=self.fitted)
        context = {"responses": responses, "fitted": self.fitted, **context}
        return evaluated(self.metric, self.classifier, self.batch, maps[:, None], **context)

    def value(self, rows):
        """The first value of rows [n,6], by the formula."""
        return rows @ WEIGHTS[0] + 0.7 + self.module.product * rows[:, 0] * rows[:, 1]

    def without(self, row, removed, answer=None):
        """The mean answer to a row [6] whose columns `removed` are those of each reference."""
        shown = row.repeat(REFERENCES, 1)
        shown[:, removed] = self.references[:, removed]
        return float((answer or self.value)(shown).mean())


def test_on_a_linear_network_w_times_x_less_the_mean_is_exact():
    world = World(SensitivityN(points=5, fill="background"))
    assert world.scored()["sensitivity_n"].tolist() == pytest.approx([1.0] * 5, abs=1e-9)
    world = World(Completeness(fill="background"))
    assert world.scored(world.contributions[:, None])["error"].abs().max() < 1e-9
    world = World(Infidelity(draws=20, fill="background", normalize=False))
    found = world.scored(world.contributions[:, None])
    assert found["infidelity"].max() < 1e-12 < found["power"].min()


def orders(world):
    """The columns of each row, most relevant first."""
    return world.contributions.argsort(1, descending=True)


@pytest.mark.parametrize("product", [0.0, 4.0])
def test_curves_are_the_mean_answer_over_the_references(product):
    world = World(Degradation(tile=1, fill="background", **VALUE), product)
    found = world.scored()
    for row, order, morf, lerf in zip(world.rows, orders(world), found["morf_curve"], found["lerf_curve"]):
        assert morf.tolist() == pytest.approx([world.without(row, order[:count]) for count in range(7)], abs=1e-9)
        kept = [world.without(row, order[6 - count :]) for count in range(7)]
        assert lerf.tolist() == pytest.approx(kept, abs=1e-9)


def test_each_of_the_path_metrics_averages_probabilities():
    """Probabilities of the mean would be others: the network is far from linear in them."""

    def probability(world):
        return lambda rows: (2 * world.value(rows)).sigmoid()

    world = World(InsertionDeletion(None, "background", "background"), product=1.0)
    found = world.scored()
    for row, order, deletion, insertion in zip(
        world.rows, orders(world), found["deletion_curve"], found["insertion_curve"]
    ):
        deleted = [world.without(row, order[:count], probability(world)) for count in range(7)]
        inserted = [world.without(row, order[count:], probability(world)) for count in range(7)]
        assert deletion.tolist() == pytest.approx(deleted, abs=1e-9)
        assert insertion.tolist() == pytest.approx(inserted, abs=1e-9)
    world = World(LeRF(largest=1.0, steps=6, fill="background"), product=1.0)
    for row, order, curve in zip(world.rows, orders(world), world.scored()["output_curve"]):
        kept = [world.without(row, order[6 - count :], probability(world)) for count in range(7)]
        assert curve.tolist() == pytest.approx(kept, abs=1e-9)
    world = World(RegionPerturbation(tile=1, draws=3, fill="background"), product=1.0)
    for row, order, curve in zip(world.rows, orders(world), world.scored()["morf_curve"]):
        removed = [world.without(row, order[:count], probability(world)) for count in range(7)]
        assert curve.tolist() == pytest.approx(removed, abs=1e-9)
    world = World(CompletenessSoundness(labels=1, steps=None, fill="background"), product=1.0)
    found = world.scored()
    for row, order, completeness in zip(world.rows, orders(world), found["completeness"].tolist()):
        path = [world.without(row, order[count:], probability(world)) for count in range(7)]
        area = (sum(path) - (path[0] + path[-1]) / 2) / 6
        assert completeness == pytest.approx(min(max(area, 0.05) / path[-1], 1))


@pytest.mark.parametrize(
    "metric",
    [
        Degradation(tile=1, fill="background"),
        LeRF(largest=1.0, fill="background"),
        InsertionDeletion(None, "background", "zero"),
        RegionPerturbation(tile=1, fill="background"),
        SensitivityN(points=3, fill="background"),
        Infidelity(draws=7, fill="background"),
        Completeness(fill="background"),
        CompletenessSoundness(labels=1, fill="background"),
    ],
    ids=lambda metric: type(metric).__name__,
)
def test_the_cost_counts_a_pass_for_each_reference(metric):
    world, seen = World(metric), []
    world.module.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    maps = world.contributions[:, None] if metric.collapse in ("none", "sum") else world.contributions
    world.scored(maps)
    assert sum(seen) == 5 * metric.cost(world.classifier)[0]


def test_sentences_are_refused():
    words = Classifier("text", BothSigns(WEIGHTS, 0.0), (1, 1, 6), places="words")
    with pytest.raises(Refusal, match=r"metric\.fill=background: other sentences have words at other places"):
        Degradation(tile=1, fill="background").check(words)
    with pytest.raises(Refusal, match=r"metric\.insertion_fill=background: other sentences"):
        InsertionDeletion(insertion_fill="background").check(words)
