"""Transfer learning: what is frozen stays, the rest is trained as by an obvious loop, and weights are taken by name."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from tests.models.helpers import images_of
from xaibench.engine import keys
from xaibench.errors import UserError
from xaibench.models.loading import build_module, start_from
from xaibench.models.recipe import Recipe
from xaibench.models.torchvision_nets import TransferNet
from xaibench.models.train import train
from xaibench.models.transfer import Features
from xaibench.rng import generator

RECIPE = Recipe(epochs=3, batch_size=10, lr=0.05, momentum=0.5, frozen="body.3")


class Net(nn.Module):
    """A body with batch normalisation, which a frozen part has to leave as it is, and a head."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(100, outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs))


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_the_head_is_trained_as_by_an_obvious_loop_on_features_that_are_computed_once(monkeypatch):
    images, ours, theirs = images_of(), Net().double(), Net().double().eval()
    before, runs = state_of(ours), []
    ours.body[0].register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    cached = Features.batch
    monkeypatch.setattr(Features, "batch", lambda self, *rest: runs.append("features") or cached(self, *rest))
    history = train(ours, RECIPE, images, seed=5)
    # The frozen part saw every image once, before the first of 15 steps.
    assert runs[-17:] == [32, 18, *["features"] * 15]

    inputs, labels = images.batch(torch.arange(50), next(theirs.parameters()))
    with torch.no_grad():
        features = theirs.body(inputs)
    optimizer = torch.optim.SGD(theirs.head.parameters(), lr=0.05, momentum=0.5)
    losses = []
    for epoch in range(3):
        total = 0.0
        for rows in torch.randperm(50, generator=generator(5, "recipe", epoch)).split(10):
            loss = F.cross_entropy(theirs.head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows) / 50
        losses.append(total)
    assert history["loss"] == pytest.approx(losses, abs=1e-12)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=0, atol=1e-12)
        assert torch.equal(tensor, before[name]) == name.startswith("body")
    assert not ours.training and not any(p.requires_grad for p in ours.parameters())


def test_weights_of_another_task_are_taken_by_name_and_shape(tmp_path):
    source, net = Net(outputs=5), Net()
    for parameter in source.parameters():
        parameter.data += 1
    file = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), file)
    own = state_of(net)
    start_from(net, str(file), {}, "body.3")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, own[name] if name.startswith("head") else source.state_dict()[name])
    # The key of a training is of the content of the file, wherever it lies.
    again = tmp_path / "copy.safetensors"
    again.write_bytes(file.read_bytes())
    spec = {"_target_": "xaibench.models.recipe.Recipe"}
    described = [keys.recipe(Recipe(epochs=1, batch_size=1, lr=1.0, initial=str(f)), spec) for f in (file, again)]
    assert described[0] == described[1] and str(tmp_path) not in str(described)

    save_file({name: t for name, t in source.state_dict().items() if "1.running" not in name}, file)
    with pytest.raises(UserError, match=r"what is frozen by body.3, such as body.1.running_mean"):
        start_from(Net(), str(file), {}, "body.3")
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="any layer"):
        start_from(Net(), str(file), {})


def test_a_transfer_net_is_torchvisions_up_to_its_layer():
    spec = {"_target_": "xaibench.models.torchvision_nets.TransferNet", "layer": "features.3", "num_classes": 3}
    net = build_module(spec).eval()
    whole = torchvision.models.mobilenet_v2(weights=None).eval()
    missing, _ = net.load_state_dict(whole.state_dict(), strict=False)
    assert missing == ["head.weight", "head.bias"]
    inputs = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        features = whole.features[:4](inputs).mean((2, 3))
        torch.testing.assert_close(net(inputs), F.linear(features, net.head.weight, net.head.bias), rtol=0, atol=1e-5)


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match=r"frozen=body.3.*augment=none"):
        Recipe(epochs=1, batch_size=1, lr=1.0, frozen="body.3", augment="crop_flip")
    with pytest.raises(UserError, match=r"is not in Net: did you mean 'body.3'"):
        train(Net(), Recipe(epochs=1, batch_size=1, lr=1.0, frozen="body.33"), images_of())
    with pytest.raises(UserError, match=r"did you mean 'features.14'"):
        TransferNet(layer="feature.14")
    with pytest.raises(UserError, match="no sequence `features`"):
        TransferNet("resnet18")
    around = SimpleNamespace(net=Net())
    around.net.forward = lambda inputs: around.net.head(around.net.body(inputs)) + inputs.mean()
    with pytest.raises(UserError, match="cannot be cut there"):
        train(around.net, RECIPE, images_of())
