"""The network that emits masks: its loss by hand, its training on planted squares, and that a map is one pass."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from tests.methods.helpers import samples
from tests.methods.nets import VGGLike, classifier, seeded
from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.removal.real_time_saliency import MASKER, Masker, RealTimeSaliency
from xaibench.models.preprocessing import Preprocessing

READOUTS = ("features.0", "features.5")
SIDE, SQUARE = 16, 4


def saliency(**changes) -> RealTimeSaliency:
    return RealTimeSaliency(**({"readouts": READOUTS, "width": 8, "epochs": 1, "sigma": 1.0} | changes))


def fit(method, network, data=None):
    return method.fit(network, data or samples(), torch.Generator().manual_seed(0))


def maps_of(method, network, inputs, targets, found):
    return method.attribute(network, inputs, targets, Context(fitted=found))


class Squares(Dataset):
    """A square of one of three colours somewhere on grey noise; the colour is the class."""

    def __len__(self) -> int:
        return 200

    def place(self, index: int) -> tuple[int, int]:
        return (5 * index) % (SIDE - SQUARE + 1), (7 * index) % (SIDE - SQUARE + 1)

    def __getitem__(self, index: int) -> Example:
        image = 0.3 + 0.1 * torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
        top, left = self.place(index)
        image[:, top : top + SQUARE, left : left + SQUARE] = 0.1
        image[index % 3, top : top + SQUARE, left : left + SQUARE] = 0.9
        return Example(image, index % 3)

    def masks(self, ids) -> torch.Tensor:
        found = torch.zeros(len(ids), SIDE, SIDE)
        for mask, index in zip(found, ids):
            top, left = self.place(index)
            mask[top : top + SQUARE, left : left + SQUARE] = 1
        return found


def of_colours():
    """A network of the colours: how much one exceeds the others, at its largest."""
    convolution = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        convolution.weight.copy_((3 * torch.eye(3) - 1.5).view(3, 3, 1, 1))
        convolution.bias.fill_(-0.3)
    module = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(SIDE), nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        module[-1].weight.copy_(6 * torch.eye(3))
    return classifier(module, (3, SIDE, SIDE), preprocessing=Preprocessing(), layers={})


def test_masks_find_planted_squares():
    """By their area under the ROC curve on squares that were not trained on; before training the masker knows nothing,
    and where squares lie on average is no help. What the mask shows keeps the class, what it leaves does not."""
    network, data = of_colours(), Squares()
    train, test = (Samples(data, Preprocessing(), ids) for ids in (range(128), range(128, 200)))
    method = saliency(readouts=("1",), fill="black", epochs=15, learning_rate=2e-2)
    batch = test.load(list(test.ids))
    inputs, truth = batch.inputs.double(), data.masks(test.ids)
    assert (network.logits(inputs).argmax(1) == batch.targets).all()
    found = fit(method, network, train)
    masks = maps_of(method, network, inputs, batch.targets, found)
    untrained = fit(saliency(readouts=("1",), fill="black", learning_rate=1e-12), network, train)
    before = maps_of(method, network, inputs, batch.targets, untrained)
    centre = data.masks(train.ids).mean(0).expand(len(truth), -1, -1)
    trained, blank, middle = (roc_auc_score(truth.flatten(), values.flatten()) for values in (masks, before, centre))
    assert trained > 0.99 and trained > middle + 0.2 and trained > blank + 0.05
    inside = (masks[:, 0] > 0.5).double()
    assert ((inside * truth).sum() / (inside + truth).clamp(max=1).sum()).item() > 0.8
    kept, left = (network.scores(inputs * shown, batch.targets, "probability") for shown in (masks, 1 - masks))
    assert kept.min() > 0.8 and left.max() < 0.6
    # At best the mask has no area, and without it a class has its share of three.
    losses, least = (method.loss(network, inputs, batch.targets, m) for m in (masks, before)), 5 * (1 / 3) ** 0.3
    after, at_first = (loss.mean().item() - least for loss in losses)
    assert 0 < after < 0.4 and at_first > 2


def test_the_loss_and_its_gradient_by_hand():
    """Of a network that is linear in the mean of the image, with two classes: p = sigmoid(w mean)."""

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

        def forward(self, inputs):
            mean = self.weight * inputs.mean((1, 2, 3))
            return torch.stack([mean, torch.zeros_like(mean)], dim=1)

    network = classifier(Means(), (1, 2, 3), preprocessing=Preprocessing(), layers={})
    image = torch.tensor([[[[1.0, 2.0, -1.0], [0.5, 3.0, 1.0]]]], dtype=torch.float64)
    mask = torch.tensor([[[[0.2, 0.9, 0.4], [0.7, 0.1, 0.6]]]], dtype=torch.float64).requires_grad_()
    method = RealTimeSaliency(fill="black", smoothness=0.7, area=2.0, destroy=1.5, power=0.3)
    loss = method.loss(network, image, torch.zeros(1, dtype=torch.long), mask)
    m, x = mask.detach()[0, 0], image[0, 0]
    across = (0.2 - 0.9) ** 2 + (0.9 - 0.4) ** 2 + (0.7 - 0.1) ** 2 + (0.1 - 0.6) ** 2
    down = (0.2 - 0.7) ** 2 + (0.9 - 0.1) ** 2 + (0.4 - 0.6) ** 2
    p = 1 / (1 + math.exp(-3 * float((m * x).mean())))
    q = 1 / (1 + math.exp(-3 * float(((1 - m) * x).mean())))
    expected = 0.7 * (across + down) / 6 + 2.0 * float(m.mean()) - math.log(p) + 1.5 * q**0.3
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    # d(-log p) = -(1 - p) w x / 6, d(q^0.3) = -0.3 q^0.3 (1 - q) w x / 6 and of the squares twice the differences.
    slope = torch.zeros(2, 3, dtype=torch.float64)
    slope[:, :-1] += 2 * (m[:, :-1] - m[:, 1:])
    slope[:, 1:] += 2 * (m[:, 1:] - m[:, :-1])
    slope[0] += 2 * (m[0] - m[1])
    slope[1] += 2 * (m[1] - m[0])
    by_hand = 0.7 * slope / 6 + 2.0 / 6 - (1 - p) * 3 * x / 6 - 1.5 * 0.3 * q**0.3 * (1 - q) * 3 * x / 6
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), mask)[0][0, 0], by_hand)


def test_a_class_filters_the_last_readout():
    """By sigmoid(features . vector), written out place by place."""
    masker = Masker([2, 3], 4, 5).double()
    first, last = torch.randn(1, 2, 6, 6).double(), torch.randn(1, 3, 6, 6).double()
    found = masker(([first, last]), torch.tensor([4]))
    vector = masker.classes.weight[4]
    for y, x in ((0, 0), (3, 5)):
        features = last[0, :, y, x]
        read = torch.cat([first[0, :, y, x], features * torch.sigmoid(features @ vector)])
        one, _, two = masker.layers
        hidden = (one.weight[:, :, 0, 0] @ read + one.bias).clamp(min=0)
        torch.testing.assert_close(found[0, 0, y, x], (two.weight[0, :, 0, 0] @ hidden + two.bias)[0])
    assert not torch.equal(found, masker([first, last], torch.tensor([1])))


def test_fit_depends_on_its_generator_only():
    network, method, state = classifier(VGGLike()), saliency(), torch.get_rng_state()
    first, second = fit(method, network), fit(method, network)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())
    split = fit(method, classifier(network.module, batch_size=5))
    assert all(torch.allclose(first[name], split[name], rtol=1e-9, atol=1e-9) for name in first)
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in first.values())
    assert {name for name in first if name.startswith(MASKER)} == {
        f"{MASKER}classes.weight",
        *(f"{MASKER}layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")),
    }


def test_a_map_is_one_pass_and_does_not_depend_on_the_batch():
    network, inputs, targets = classifier(VGGLike(), batch_size=64), seeded(7), torch.arange(7) % 5
    method, rows = saliency(learning_rate=1e-2), []
    found, state = fit(method, network), torch.get_rng_state()
    handle = network.module.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    whole = maps_of(method, network, inputs, targets, found)
    handle.remove()
    assert sum(rows) == 7 * method.cost(network)[0] and whole.shape == (7, 1, 16, 16)
    assert torch.equal(state, torch.get_rng_state()) and (whole > 0).all() and (whole < 1).all()
    parts = maps_of(method, classifier(network.module, batch_size=2), inputs, targets, found)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(Refusal, match=r"features\.9"):
        saliency(readouts=("features.9",)).check(classifier(VGGLike()))
    with pytest.raises(Refusal, match="sigmoid no class excludes"):
        saliency().check(classifier(VGGLike(), output="sigmoid"))


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("readouts", [], r"readouts=\[\]: expected at least one layer"),
        ("fill", "grey", "fill=grey"),
        ("area", -1, "area=-1.0"),
        ("power", 0, "power=0.0"),
        ("epochs", 0, "epochs=0"),
    ],
)
def test_bad_parameters_are_named(parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make("real_time_saliency", **{parameter: value})
