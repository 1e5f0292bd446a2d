"""Integrated contributions of hidden units: closed forms, completeness, and the unit on top with its concept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.methods.nets import SIZE, VGGLike, classifier
from tests.metrics.helpers import evaluated
from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import Refusal
from xaibench.methods.context import Context
from xaibench.methods.gradients.integrated_gradients import points
from xaibench.methods.gradients.semantic_attribution import SemanticAttribution, contributions, whole
from xaibench.methods.pathways._pathway_neurons import integrated_contributions
from xaibench.metrics.network.semantic_attribution import SemanticAttribution as Audit
from xaibench.models.classifier import Classifier
from xaibench.models.preprocessing import Preprocessing

EXACT = points("gausslegendre", 4)


class Powers(nn.Module):
    """Units that are the colours; logits a0 a1 summed over places, and the cubes of a2."""

    def __init__(self) -> None:
        super().__init__()
        self.units = nn.Conv2d(3, 3, 1, bias=False).double()
        self.units.weight.data = torch.eye(3).double().view(3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.units(x)
        return torch.stack([(a[:, 0] * a[:, 1]).sum((1, 2)), (a[:, 2] ** 3).sum((1, 2)) + 5], 1)


def powers(**settings) -> Classifier:
    return Classifier("powers", Powers(), (3, 4, 4), layers={"last_conv": "units"}, **settings)


def test_a_product_is_shared_and_a_cube_has_its_value():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    product, cube = contributions(powers(), "last_conv", x, torch.tensor([0, 1]), EXACT)
    half = x[0, 0] * x[0, 1] / 2
    torch.testing.assert_close(product, torch.stack([half, half, 0 * half]))
    torch.testing.assert_close(cube, torch.stack([0 * x[1, 2], 0 * x[1, 2], x[1, 2] ** 3]))


@pytest.mark.parametrize(("layer", "batch_size"), [("features.0", 32), ("features.2", 3), ("features", 32)])
def test_contributions_sum_to_what_the_layer_changes(layer, batch_size):
    net = classifier(VGGLike().double(), batch_size=batch_size)
    x, targets = torch.randn(4, *SIZE, dtype=torch.float64), torch.tensor([0, 2, 4, 1])
    found = contributions(net, layer, x, targets, points("riemann_middle", 300))
    change = whole(net, layer, x, targets)
    handle = net.layer(layer).register_forward_hook(lambda module, given, output: 0 * output)
    without = net.scores(x, targets)
    handle.remove()
    torch.testing.assert_close(change, net.scores(x, targets) - without)
    torch.testing.assert_close(found.sum((1, 2, 3)), change, atol=5e-3 * change.abs().max().item(), rtol=0)


def test_at_a_relu_they_are_those_of_the_pathways():
    net = classifier(VGGLike().double())
    x, targets = torch.randn(3, *SIZE, dtype=torch.float64), torch.tensor([0, 2, 4])
    quadrature = points("riemann_middle", 7)
    expected = integrated_contributions(net, x, targets, *quadrature)[0]
    torch.testing.assert_close(contributions(net, "features.1", x, targets, quadrature), expected)


def test_a_map_is_that_of_the_top_unit_or_of_the_named_one_at_the_size_of_the_input():
    net = Classifier("strided", nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(320, 2)),
                     (3, 16, 16), layers={"last_conv": "0"})  # fmt: skip
    x, targets = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    found = contributions(net, "0", x, targets, points("riemann_middle", 20))
    assert found.shape == (4, 5, 8, 8)
    tops = [max(range(5), key=lambda k, one=one: float(one[k].abs().sum())) for one in found]
    assert len(set(tops)) > 1
    for unit, chosen in (("top", tops), (3, [3] * 4)):
        maps = SemanticAttribution(unit).attribute(net, x, targets, Context())
        for row, k in enumerate(chosen):
            expected = F.interpolate(found[row, k][None, None], size=(16, 16), mode="bilinear")
            torch.testing.assert_close(maps[row : row + 1], expected)


def test_refuses():
    for unit in ("topp", -1):
        with pytest.raises(ValueError, match=f"unit={unit}"):
            SemanticAttribution(unit)
    with pytest.raises(Refusal, match=r"unit=3: .* has units 0 to 2"):
        SemanticAttribution(3).check(powers())


# ---- the metric: what the top units detect ---------------------------------------------------------------------------


class Colours(Dataset):
    """Images with a spot of the first or the last colour, each a concept, besides a label."""

    fingerprint = "colours"
    concept_names = ("red", "blue")

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        self.images = torch.rand(20, 3, 4, 4, generator=random, dtype=torch.float64) / 10
        self.spots = torch.zeros(20, 2, 4, 4, dtype=torch.bool)
        for index in range(20):
            y, x = torch.randint(4, (2,), generator=random).tolist()
            self.spots[index, index % 2, y, x] = True
            self.images[index, 2 * (index % 2), y, x] = 1
            self.images[index, 1] = index % 4 == 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], index % 2)

    def concepts(self, indices):
        return {name: self.spots[list(indices), k] for k, name in enumerate(self.concept_names)}


def test_the_top_unit_is_named_by_what_it_detects():
    """Logit 0 reads red and green in equal parts, logit 1 blue: red's images have red's unit on top where there is
    green, of which there is in every fourth image; elsewhere the two units tie at nothing."""
    dataset, net = Colours(), powers()
    samples = Samples(dataset, Preprocessing(), range(20))
    audit = Audit(quantile=10 / 320, level=0.5)
    fitted = audit.fit(net, samples, torch.Generator())
    # Ten of 320 places are bright red, and blue: each is its concept exactly. Green is everywhere or nowhere.
    assert fitted["iou"][0, 0] == fitted["iou"][1, 2] == 1
    assert fitted["iou"][:, 1].max() < 0.2
    batch = samples.load(samples.ids)
    columns = evaluated(audit, net, batch, None, data=samples, fitted=fitted)
    blue = torch.arange(20) % 2 == 1
    assert columns["unit"][blue].eq(2).all() and columns["known"][blue].all() and columns["present"][blue].eq(1).all()
    assert columns["top_1"].tolist() == blue.tolist()
    assert columns["top_share"][blue].min() == 1
    # Without green nothing changes red's logit, so that there is no share of the change.
    assert columns["gap"].nan_to_num(0).max() < 1e-3
    assert columns["gap"].isnan().tolist() == [k % 4 == 2 for k in range(20)]
    # Of another image half show blue.
    assert 0.1 < columns["present_other_image"][blue].mean() < 0.9
    names = [statistic.name for statistic in audit.statistics_on(dataset, net)]
    assert names[-2:] == ["top_red", "top_blue"]
