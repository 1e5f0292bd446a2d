"""Loading: safe, exact about what does not fit, and with digests that mean the numbers."""

import io
import os
import pickle
import urllib.error
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from torchvision.transforms.functional import to_pil_image

from xaibench.datasets.base import Samples
from xaibench.datasets.imagefolder import ImageFolder
from xaibench.errors import Refusal, UserError
from xaibench.methods.context import Context
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import Epsilon
from xaibench.models import loading, torchvision_nets
from xaibench.models.accuracy import accuracy
from xaibench.models.classifier import Classifier
from xaibench.models.digest import weights_digest
from xaibench.models.loading import check_input, load_classifier
from xaibench.models.preprocessing import Preprocessing

CONF = Path(__file__).parents[2] / "conf" / "model"
LENET = {"_target_": "xaibench.models.lenet.LeNet", "input_size": [1, 28, 28]}


def spec_of(name: str, **changes) -> dict:
    """The yaml of a model, as the command line composes it."""
    return yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changes


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Weights of a LeNet, other than those of seed 0."""
    return loading.build_module(LENET, seed=7).state_dict()


@pytest.mark.shared
def test_mobilenet_on_photographs(shared):
    """Every tenth photograph: 39 of 50 right. Over all 500 it is 385, 77.0 %, as the data's README says."""
    spec = spec_of(
        "mobilenet_v2",
        weights=str(shared / "models" / "mobilenet_v2_imagenet.pt"),
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
    )
    classifier = load_classifier("mobilenet_v2", spec)
    assert (classifier.preprocessing.resize, classifier.preprocessing.crop) == (256, 224)
    assert classifier.input_size == (3, 224, 224) and classifier.weights_state == "trained"
    dataset = ImageFolder(
        str(shared / "data" / "imagenet-samples"), classes=str(shared / "data" / "imagenet_classes.csv")
    )
    right = accuracy(classifier, Samples(dataset, classifier.preprocessing, range(0, 500, 10)))
    assert right * 50 == pytest.approx(39, abs=1), "another machine's kernels may tip one image"


def test_formats_and_wrappings_give_the_same_digest(tmp_path, state):
    paths = [tmp_path / name for name in ("a.pt", "b.pth", "c.safetensors", "d.pt", "e.pt")]
    torch.save(state, paths[0])
    torch.save({"state_dict": state, "epoch": 3}, paths[1])
    save_file(state, paths[2])
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, paths[3])
    torch.save({name: tensor.double() for name, tensor in state.items()}, paths[4])
    loaded = [load_classifier("lenet", LENET | {"weights": str(path)}) for path in paths]
    assert len({c.weights_digest for c in loaded}) == 1
    assert all(torch.equal(c.module.conv1.weight, state["conv1.weight"]) for c in loaded)
    assert loaded[0].weights_digest != load_classifier("lenet", LENET | {"weights": None}).weights_digest


def test_the_digest_changes_with_any_weight_dtype_name_shape_or_argument(state):
    definition = {"_target_": "some.Net", "depth": 8}
    changed = {name: tensor.clone() for name, tensor in state.items()}
    changed["linear3.bias"][9] += 1e-7
    digests = [
        weights_digest(state, definition),
        weights_digest(changed, definition),
        weights_digest({n: t.double() for n, t in state.items()}, definition),
        weights_digest({n.upper(): t for n, t in state.items()}, definition),
        weights_digest({n: t[None] for n, t in state.items()}, definition),
        weights_digest(state, definition | {"depth": 20}),
        weights_digest(state, definition | {"_target_": "other.Net"}),
    ]
    assert len(set(digests)) == len(digests)
    assert weights_digest(dict(reversed(state.items())), definition) == digests[0]


def test_random_weights_are_the_same_every_time_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first = load_classifier("resnet8", spec_of("resnet8", weights=None))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    second = load_classifier("resnet8", spec_of("resnet8", weights="random"))
    assert first.weights_digest == second.weights_digest and first.weights_state == "random:0"
    assert not any(p.requires_grad for p in first.module.parameters()) and not first.module.training


def test_recipe_weights_are_asked_for_only_then(tmp_path, state):
    def trained() -> Path:
        asked.append(True)
        save_file(state, tmp_path / "trained.safetensors")
        return tmp_path / "trained.safetensors"

    asked = []
    load_classifier("lenet", spec_of("lenet", weights=None), trained=trained)
    assert not asked
    classifier = load_classifier("lenet", spec_of("lenet"), trained=trained)
    assert asked and torch.equal(classifier.module.conv1.weight, state["conv1.weight"])
    assert classifier.layers["last_conv"] == "relu2" and classifier.preprocessing.mean == (0.1307,)
    with pytest.raises(UserError, match="xaibench train"):
        load_classifier("lenet", spec_of("lenet"))


def test_bundled_weights(tmp_path, state, monkeypatch):
    monkeypatch.setattr(loading, "BUNDLED", tmp_path)
    save_file(state, tmp_path / "lenet_digits.safetensors")
    classifier = load_classifier("lenet", LENET | {"weights": "bundled:lenet_digits.safetensors"})
    assert torch.equal(classifier.module.conv1.weight, state["conv1.weight"])
    with pytest.raises(UserError, match=r"did you mean 'lenet_digits\.safetensors'"):
        load_classifier("lenet", LENET | {"weights": "bundled:lenet_digit.safetensors"})


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("protocol", ["torch", 2, 4])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, state, protocol, suffix):
    proof, path = tmp_path / "it_ran", tmp_path / f"weights{suffix}"
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists(), "the pickle must be a working one"
    proof.unlink()
    content = {"state_dict": state, "extra": Evil(proof)}
    torch.save(content, path) if protocol == "torch" else path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError) as refused:
        load_classifier("lenet", LENET | {"weights": str(path)})
    assert not proof.exists()
    assert str(path) in str(refused.value) and len(str(refused.value).splitlines()) <= 2
    if suffix != ".safetensors":
        assert "refused" in str(refused.value)
    if suffix == ".pt" and protocol == "torch":
        assert "posix.system" in str(refused.value)


def test_a_whole_pickled_network_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"refused, it holds torch\.nn\.modules\.linear\.Linear"):
        load_classifier("lenet", LENET | {"weights": str(tmp_path / "net.pt")})


@pytest.mark.parametrize("name", ["cut.pt", "empty.pt", "text.pth", "cut.safetensors", "empty.safetensors"])
def test_damaged_files_are_named(tmp_path, state, name):
    whole = io.BytesIO()
    torch.save(state, whole)
    save_file(state, tmp_path / "whole.safetensors")
    content = {
        "cut.pt": whole.getvalue()[:5000],
        "text.pth": b"<html>404</html>",
        "cut.safetensors": (tmp_path / "whole.safetensors").read_bytes()[:5000],
    }.get(name, b"")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as refused:
        load_classifier("lenet", LENET | {"weights": str(tmp_path / name)})
    assert len(str(refused.value).splitlines()) <= 2


@pytest.mark.parametrize("content, words", [([1, 2], "holds a list"), ({"epoch": 3, "loss": [1.0]}, "epoch, loss")])
def test_a_file_without_a_state_dict_is_named(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=words):
        load_classifier("lenet", LENET | {"weights": str(tmp_path / "w.pt")})


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, state):
    torch.save(state, tmp_path / "mnist_lenet.pt")
    with pytest.raises(UserError, match=r"did you mean 'mnist_lenet\.pt'"):
        load_classifier("lenet", LENET | {"weights": str(tmp_path / "mnist_lnet.pt")})
    with pytest.raises(UserError, match=f"no '{tmp_path.name}x'"):
        load_classifier("lenet", LENET | {"weights": str(tmp_path.parent / f"{tmp_path.name}x" / "mnist_lenet.pt")})


def test_what_does_not_fit_is_counted_and_named(tmp_path, state):
    def refusal(content) -> str:
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(UserError) as refused:
            load_classifier("lenet", LENET | {"weights": str(tmp_path / "w.pt")})
        assert len(str(refused.value).splitlines()) == 2
        return str(refused.value)

    assert "1 differ in shape: linear3.bias is [7] where the network has [10]" in refusal(
        state | {"linear3.bias": torch.zeros(7)}
    )
    renamed = {f"backbone.{name}": tensor for name, tensor in state.items()}
    message = refusal(renamed)
    assert "10 missing: conv1.weight, conv1.bias, conv2.weight, ..." in message
    assert "10 not in the network: backbone.conv1.weight" in message
    assert "1 missing: conv1.bias" in refusal({n: t for n, t in state.items() if n != "conv1.bias"})


def test_torchvision_weights_by_name(tmp_path, monkeypatch):
    """What torchvision finds in its own cache, with the preprocessing and the names that belong to it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "checkpoints" / weights.url.rsplit("/", 1)[1])
    classifier = load_classifier("resnet18", spec_of("resnet18"))
    assert torch.equal(classifier.module.state_dict()["fc.weight"], state["fc.weight"])
    assert classifier.weights_state == "trained"
    assert classifier.class_names[:2] == ("tench", "goldfish") and len(classifier.class_names) == 1000
    pil = to_pil_image(torch.randint(0, 256, (3, 300, 280), dtype=torch.uint8))
    assert torch.equal(classifier.preprocessing.image(pil), weights.transforms()(pil))


def test_automatic_preprocessing_is_the_weights_own():
    assert torchvision_nets.preprocessing_of("resnet50", "DEFAULT")["resize"] == 232
    assert torchvision_nets.preprocessing_of("inception_v3", "DEFAULT")["crop"] == 299
    classifier = load_classifier("resnet18", spec_of("torchvision", arch="resnet18", weights=None))
    assert classifier.preprocessing == Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert classifier.layers == {"last_conv": "layer4"} and classifier.input_size == (3, 224, 224)
    changed = load_classifier("resnet18", spec_of("resnet18", weights=None, crop=96, resize=96, mean=[0.5] * 3))
    assert changed.input_size == (3, 96, 96) and changed.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_failed_download_is_explained(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"could not be downloaded.*not known") as refused:
        load_classifier("resnet18", spec_of("resnet18"))
    assert "model.weights=FILE.pt" in str(refused.value) and len(str(refused.value).splitlines()) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["IMAGENET1K_V9", "resnet18.bin"])
def test_unknown_weights_of_a_torchvision_network(name):
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        load_classifier("resnet18", spec_of("resnet18", weights=name))


def test_unknown_weights_of_another_network():
    with pytest.raises(UserError, match=r"model\.weights=DEFAULT: expected null"):
        load_classifier("lenet", LENET | {"weights": "DEFAULT"})


def test_published_files_with_auxiliary_heads_load(tmp_path):
    published = models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(published.state_dict(), tmp_path / "googlenet.pth")
    classifier = load_classifier("googlenet", spec_of("googlenet", weights=str(tmp_path / "googlenet.pth")))
    assert torch.equal(classifier.module.fc.weight, published.fc.weight)
    assert not [name for name, _ in classifier.module.named_modules() if "aux" in name]


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "resnet18", "googlenet", "densenet121", "lenet", "cifar_cnn", "resnet8", "resnet20", "resnet56"],
)
def test_every_model_yaml_builds_and_answers(name):
    classifier = load_classifier(name, spec_of(name, weights=None))
    outputs = spec_of(name)["num_classes"]
    assert check_input(classifier, torch.zeros(classifier.input_size), classes=outputs) == outputs
    assert classifier.layer("last_conv") is not None


def test_an_own_network_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text(
        "from torch import nn\n"
        "def make(width: int = 3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, width), nn.ReLU(inplace=True), nn.Linear(width, 4))\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    classifier = load_classifier("mine", {"_target_": "my_own_net.make", "input_size": [3, 2, 2]})
    assert check_input(classifier, torch.rand(3, 2, 2)) == 4
    described = dict(classifier.definition)
    assert len(described.pop("_source_")) == 16  # its code is part of what it is
    assert described == {"_target_": "my_own_net.make", "width": 3}
    assert classifier.preprocessing == Preprocessing() and classifier.module[2].inplace is False
    wider = load_classifier("mine", {"_target_": "my_own_net.make", "input_size": [3, 2, 2], "width": 5})
    assert wider.weights_digest != classifier.weights_digest
    with pytest.raises(UserError, match=r"model\.input_size is missing"):
        load_classifier("mine", {"_target_": "my_own_net.make"})
    with pytest.raises(UserError, match="gives a int, expected a torch"):
        load_classifier("mine", {"_target_": "my_own_net.nothing", "input_size": [3, 2, 2]})
    with pytest.raises(UserError, match="did you mean 'width'"):
        load_classifier("mine", {"_target_": "my_own_net.make", "input_size": [3, 2, 2], "widht": 5})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"input_size": [28, 28]}, r"model\.input_size"),
        ({"input_size": [1, 28, -28]}, r"model\.input_size"),
        ({"mean": [0.1, 0.2]}, r"model\.mean"),
        ({"resize": -1}, r"model\.resize=-1"),
        ({"crop": "big"}, r"model\.crop=big"),
        ({"layers": {"last_conv": "rel2"}}, "did you mean 'relu2'"),
        ({"batch": 3}, r"model\.batch is not a parameter"),
    ],
)
def test_mistakes_in_a_model_yaml(changes, words):
    with pytest.raises(UserError, match=words):
        load_classifier("lenet", LENET | {"weights": None} | changes)


def test_a_layer_that_is_not_there_is_a_refusal_and_no_device_a_mistake():
    with pytest.raises(Refusal):
        load_classifier("lenet", LENET | {"layers": {"last_conv": "nowhere"}})
    with pytest.raises(UserError, match="device=cuda:99"):
        load_classifier("lenet", LENET, device="cuda:99")
    with pytest.raises(UserError, match="batch_size=0"):
        load_classifier("lenet", LENET, batch_size=0)


def test_check_input_names_both_shapes():
    classifier = load_classifier("lenet", LENET)
    assert check_input(classifier, torch.zeros(1, 28, 28), classes=10) == 10
    with pytest.raises(UserError, match=r"\[3, 64, 64\] after preprocessing, lenet takes \[1, 28, 28\]"):
        check_input(classifier, torch.zeros(3, 64, 64))
    with pytest.raises(UserError, match="10 outputs, the data set 200 classes"):
        check_input(classifier, torch.zeros(1, 28, 28), classes=200)
    wrong = load_classifier("lenet", LENET | {"input_size": [3, 32, 32]})
    with pytest.raises(UserError, match="cannot take an input"):
        check_input(wrong, torch.zeros(3, 32, 32))


# ---- networks of other kinds than a module of float32 ----------------------------------------------------------------

SMALL = {"input_size": [3, 12, 12]}


class Small(nn.Sequential):
    """A convolution, a ReLU in place, a linear layer."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(400, classes))


class Lazy(nn.Sequential):
    """The same, without its sizes."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))


class Mixed(Small):
    """A part of another precision."""

    def __init__(self) -> None:
        super().__init__()
        self[3].double()


class PartlyCompiled(nn.Module):
    """Compiled in one place, and in another by the method."""

    def __init__(self) -> None:
        super().__init__()
        network = Small()
        self.first = torch.compile(network[0], backend="eager")
        self.rest = nn.Sequential(*[network[place] for place in (1, 2, 3)])
        self.rest.compile(backend="eager")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(x))


def double() -> nn.Module:
    return Small().double()


def half() -> nn.Module:
    return Small().bfloat16()


def compiled() -> nn.Module:
    return torch.compile(Small(), backend="eager")


def scripted() -> nn.Module:
    return torch.jit.script(Small())


def traced() -> nn.Module:
    return torch.jit.trace(Small().eval(), torch.zeros(1, 3, 12, 12))


def partly_scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(Small(6)), nn.Linear(6, 4))


KINDS = ["double", "Mixed", "half", "compiled", "PartlyCompiled", "Lazy", "scripted", "traced"]


def made(name: str) -> Classifier:
    return load_classifier(name, {"_target_": f"{__name__}.{name}", **SMALL})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", KINDS)
def test_a_network_of_another_kind_has_the_numbers_of_the_plain_one(name, caplog):
    """Of bfloat16 the weights are rounded once, and everything after them is exact."""
    plain, other = made("Small"), made(name)
    if name == "half":
        plain.module.load_state_dict({k: v.bfloat16().float() for k, v in plain.module.state_dict().items()})
    if name == "Lazy":  # draws in another order
        assert all(torch.equal(a, b) for a, b in zip(other.module.parameters(), made("Lazy").module.parameters()))
        plain.module.load_state_dict(other.module.state_dict())
    inputs, targets = torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 3])
    torch.testing.assert_close(other.logits(inputs), plain.logits(inputs))
    torch.testing.assert_close(other.gradient(inputs, targets), plain.gradient(inputs, targets))
    assert other.dtype == torch.float32
    assert ("run in float32" in caplog.text) == (name in ("double", "Mixed", "half"))
    if name not in ("scripted", "traced"):
        check_rules(plain, other, inputs, targets)


def check_rules(plain, other, inputs, targets):
    for network in (plain, other):
        LRP(Epsilon()).check(network)
    maps = [LRP(Epsilon()).attribute(network, inputs, targets, Context()) for network in (plain, other)]
    torch.testing.assert_close(*maps)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_refused_by_what_looks_inside():
    for name, what in (("scripted", "scripted"), ("traced", "traced"), ("partly_scripted", "'0' of partly_scripted")):
        network = made(name)
        with pytest.raises(Refusal, match=f"^{what} is TorchScript, into which nothing looks"):
            LRP(Epsilon()).check(network)
        with pytest.raises(Refusal, match=f"^{what} is TorchScript"):
            network.layer("0.0" if name == "partly_scripted" else "0")
    assert made("partly_scripted").layer("0") is not None  # what it returns can be seen


def test_lazy_layers_take_weights_from_a_file(tmp_path):
    other = made("Small").module.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in other.items()}, tmp_path / "net.safetensors")
    spec = {"_target_": f"{__name__}.Lazy", **SMALL, "weights": str(tmp_path / "net.safetensors")}
    found = load_classifier("lazy", spec).module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in other.items())


def test_weights_saved_of_a_compiled_network_fit_the_one_behind_it(tmp_path):
    compiled_state = compiled().state_dict()
    assert all(name.startswith("_orig_mod.") for name in compiled_state)
    torch.save(compiled_state, tmp_path / "net.pt")
    network = load_classifier("small", {"_target_": f"{__name__}.Small", **SMALL, "weights": str(tmp_path / "net.pt")})
    assert torch.equal(network.module[0].weight, compiled_state["_orig_mod.0.weight"])
