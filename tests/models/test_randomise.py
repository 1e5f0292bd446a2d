"""Randomised networks: exactly the named parameters are new, and a layer is the same in every mode and step."""

import math

import pytest
import torch
from torch import nn

from xaibench.errors import UserError
from xaibench.models.classifier import Classifier
from xaibench.models.lenet import LeNet
from xaibench.models.randomise import Randomisation, blocks, layers, randomised
from xaibench.models.resnet_cifar import ResNetCifar

LENET = ["conv1", "conv2", "linear1", "linear2", "linear3"]


@pytest.fixture
def lenet() -> Classifier:
    return Classifier("lenet", LeNet(), (1, 28, 28), weights_digest="abc")


@pytest.fixture
def resnet() -> Classifier:
    """ResNet-8 whose batch normalisations have been used."""
    module = ResNetCifar(8)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight, part.bias, part.running_mean, part.running_var):
                tensor.data.uniform_(0.5, 1.5)
    return Classifier("resnet8", module, (3, 32, 32))


def changed(before: Classifier, after: Classifier) -> set[str]:
    """The modules whose parameters or buffers differ."""
    theirs = after.module.state_dict()
    names = [name for name, tensor in before.module.state_dict().items() if not torch.equal(tensor, theirs[name])]
    return {name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize(
    "mode, block, expected",
    [
        ("cascade", "linear3", LENET[4:]),
        ("cascade", "conv2", LENET[1:]),
        ("cascade", "conv1", LENET),
        ("independent", "conv2", ["conv2"]),
        ("independent", "conv2..linear1", ["conv2", "linear1"]),
        ("bottom_up", "conv1", ["conv1"]),
        ("bottom_up", "conv2..linear2", LENET[:4]),
    ],
)
def test_exactly_the_named_layers_change(lenet, mode, block, expected):
    before = {name: tensor.clone() for name, tensor in lenet.module.state_dict().items()}
    other = randomised(lenet, Randomisation(mode, block, 0))
    assert changed(lenet, other) == set(expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lenet.module.state_dict().items())
    assert other.weights_digest == "abc" and other.weights_state == f"{mode}:{block}:0:he_normal:reset"
    assert not any(parameter.requires_grad for parameter in other.module.parameters()) and not other.module.training


def test_a_module_path_names_all_layers_inside(resnet):
    other = randomised(resnet, Randomisation("independent", "layer2", 0))
    assert changed(resnet, other) == {f"layer2.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2")}


def test_a_layer_is_the_same_in_every_mode_and_differs_by_seed(lenet):
    weights = {
        (mode, block, seed): randomised(lenet, Randomisation(mode, block, seed)).module.conv2.weight
        for mode, block, seed in [
            ("cascade", "conv2", 0), ("cascade", "conv1", 0), ("independent", "conv2", 0), ("bottom_up", "linear3", 0),
            ("cascade", "conv2", 1),
        ]
    }  # fmt: skip
    first, *same, other = weights.values()
    assert all(torch.equal(first, weight) for weight in same)
    assert not torch.equal(first, other)


def test_randomising_leaves_the_global_generator_alone(lenet):
    state = torch.get_rng_state()
    randomised(lenet, Randomisation("cascade", "conv1", 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_he_normal_has_the_variance_of_its_definition_and_no_biases(lenet):
    module = randomised(lenet, Randomisation("cascade", "conv1", 0)).module
    for layer, fan_in in ((module.linear1, 256), (module.linear2, 120), (module.conv2, 150)):
        count, expected = layer.weight.numel(), math.sqrt(2 / fan_in)
        assert abs(layer.weight.std().item() / expected - 1) < 4 / math.sqrt(2 * count)
        assert abs(layer.weight.mean().item()) < 4 * expected / math.sqrt(count)
        assert not layer.bias.any()


def test_normal_draws_every_parameter_with_a_deviation_of_a_tenth(resnet):
    module = randomised(resnet, Randomisation("cascade", "conv1", 0, init="normal", batch_norm="affine")).module
    for tensor in (module.layer3[0].conv1.weight, module.linear.weight, module.layer3[0].bn1.weight):
        assert abs(tensor.std().item() / 0.1 - 1) < 4 / math.sqrt(2 * tensor.numel())
        assert abs(tensor.mean().item()) < 0.4 / math.sqrt(tensor.numel())


@pytest.mark.parametrize("treatment", ["reset", "affine", "keep"])
def test_batch_norm_is_treated_as_it_says(resnet, treatment):
    trained = resnet.module.layer1[0].bn1
    bn = randomised(resnet, Randomisation("independent", "layer1", 0, batch_norm=treatment)).module.layer1[0].bn1
    new = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    renewed = {"reset": set(new), "affine": {"weight", "bias"}, "keep": set()}[treatment]
    for name, value in new.items():
        expected = torch.full((16,), value) if name in renewed else getattr(trained, name)
        assert torch.equal(getattr(bn, name), expected), name


def test_blocks_cover_the_network_once_with_the_last_layer_alone(resnet):
    assert blocks(Classifier("lenet", LeNet(), (1, 28, 28)), 8) == LENET
    # conv1 with 6 convolutions in 3 residual blocks and the linear layer: 8 units
    assert blocks(resnet, 8)[0] == "conv1..bn1" and blocks(resnet, 8)[-1] == "linear"
    assert blocks(resnet, 4) == ["conv1..layer1.0.bn2", "layer2", "layer3", "linear"]
    assert len(blocks(resnet, 1)) == 1
    for count in (1, 2, 3, 5, 8):
        names, seen = blocks(resnet, count), []
        for name in names:
            first, to, last = name.partition("..")
            paths = layers(resnet)
            inside = [p for p in paths if p == first or p.startswith(first + ".")]
            seen += paths[paths.index(first) : paths.index(last) + 1] if to else inside
        assert seen == layers(resnet) and len(names) == count


class Backwards(nn.Module):
    """Registered in another order than it runs, with a layer that never runs and one that is only read."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Linear(4, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        x = self.body(inputs.flatten(1))[:, None]
        return self.head(self.attention(x, x, x)[0][:, 0])


def test_layers_come_in_the_order_of_the_forward_pass():
    found = layers(Classifier("backwards", Backwards(), (1, 2, 2)))
    assert found == ["body", "attention", "attention.out_proj", "head"]


def test_states_are_read_back_and_mistakes_named(lenet):
    state = Randomisation("bottom_up", "a.b..c.d", 3, "normal", "keep")
    assert Randomisation.parse(str(state)) == state
    for wrong in ("trained", "cascade:conv1:0", "cascade:conv1:x:he_normal:reset", "cascade:conv1:0:he:reset"):
        with pytest.raises(UserError, match="expected MODE:BLOCK:SEED"):
            Randomisation.parse(wrong)
    with pytest.raises(UserError, match="block conv3 is not in lenet: did you mean"):
        randomised(lenet, Randomisation("cascade", "conv3", 0))
