"""What holds for every yaml under conf/method, and for its maps, the stochastic ones included."""

import inspect
import math

import pytest
import torch

from tests.methods.helpers import YAMLS, settings
from tests.methods.helpers import samples as images
from tests.methods.nets import (
    SIZE,
    FullyConnected,
    Pooled,
    VGGLike,
    classifier,
    photographs,
    seeded,
    transformer,
    unbiased,
)
from xaibench.build import build, locate
from xaibench.datasets.base import Dataset, Example, Samples
from xaibench.methods.attention.attention import OfAttention
from xaibench.methods.attention.transformer_attribution import TransformerAttribution
from xaibench.methods.base import Fitted
from xaibench.methods.bridges.captum import Captum
from xaibench.methods.cam.gradcam import GuidedGradCAM
from xaibench.methods.cam.without_gradients import AblationCAM, ScoreCAM
from xaibench.methods.context import Context
from xaibench.methods.counterfactual.counterfactual import Counterfactual
from xaibench.methods.gradients.dnnr_relevance import DNNRRelevance
from xaibench.methods.gradients.semantic_attribution import SemanticAttribution
from xaibench.methods.pathways.pathway import Pathway
from xaibench.methods.removal.anchors import Anchors
from xaibench.methods.removal.dasp import DASP
from xaibench.methods.removal.extremal_perturbation import ExtremalPerturbation
from xaibench.methods.removal.lime_text import LimeText
from xaibench.methods.removal.meaningful_perturbation import MeaningfulPerturbation
from xaibench.methods.rules._modified_backprop import ModifiedBackprop
from xaibench.methods.rules.dtd import FullDTD
from xaibench.models.dnnr import DNNR
from xaibench.models.glow import Glow
from xaibench.models.preprocessing import Preprocessing
from xaibench.rng import sample_generators

NAMES = [path.stem for path in YAMLS]


def classes(name):
    """That of a method and, if it is made of another one's maps, of this."""
    spec = settings(name)
    return [locate(part["_target_"], "method") for part in (spec, spec.get("method")) if part]


# Methods that fit something take hundreds of passes for a map; their own tests ask the same of them at a size that
# they can afford. `lime_text` has players of words alone (test_sentences.py).
DIRECT = [name for name in NAMES if not any(issubclass(one, Fitted | LimeText) for one in classes(name))]
# Pathways are chosen before their gradient is taken, a product has two factors, feature maps are there before each is
# tried out, and an anchor holds a prediction that is known first: passes that cannot share a call; Captum makes batches
# of its own; each step of an optimisation needs the one before it. Their own tests count them.
# DASP, modified backpropagation, full DTD and transformer attribution run the steps of a network, not its module,
# counterfactuals its two directions, and the relevance of DNNR asks for its neighbours alone.
STAGES = Pathway | GuidedGradCAM | ScoreCAM | AblationCAM | Captum | ExtremalPerturbation | MeaningfulPerturbation
STAGES |= ModifiedBackprop | FullDTD | Counterfactual | SemanticAttribution | DNNRRelevance | TransformerAttribution
STAGES |= DASP | Anchors
STAGED = [name for name in DIRECT if any(issubclass(one, STAGES) for one in classes(name))]


# Those whose maps turn their sign with the explained logit; the others' do not.
BY_SIGN = {
    "lrp_alphabeta", "lrp_cmp", "lrp_flat", "lrp_gamma", "lrp_wsquare", "lrp_zplus", "dtd", "dtd_full",
    "dtd_train_free",
    "rap", "pattern_net", "pattern_attribution", "attnlrp",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name != "precomputed"])
def test_every_method_declares_whether_the_logit_turns_its_sign(name, make):
    assert make(name).sign_of_logit is (name in BY_SIGN)


@pytest.mark.parametrize("name", ["lrp_zplus", "lrp_alphabeta", "lrp_wsquare", "lrp_flat", "dtd", "rap", "lrp_zero"])
def test_a_logit_pushed_below_zero_turns_the_whole_map(name, make):
    """By the bias of the last layer alone, so that nothing else changes: the map is the same, times a negative number;
    of LRP-z with its bias it is the same."""
    network, method = classifier(VGGLike()), make(name)
    inputs, targets = seeded(2).clamp(-1, 1), torch.tensor([1, 1])
    maps = []
    for bias in (50.0, -50.0):
        with torch.no_grad():
            network.module.head[-1].bias.fill_(bias)
        maps.append(method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(2)))))
    if not method.sign_of_logit:
        torch.testing.assert_close(maps[1], maps[0], rtol=1e-6, atol=1e-9)
        return
    for above, below in zip(*maps):
        factor = (above * below).sum() / (above * above).sum()
        assert factor < 0
        torch.testing.assert_close(below, factor * above, rtol=1e-6, atol=1e-9 * float(below.abs().max()))


def flow():
    """A network that runs backwards, of SIZE."""
    return Glow(steps=(1, 2), widths=(6, 8), tap=1, side=SIZE[1], channels=SIZE[0], num_classes=5)


def neighbours():
    """A regressor of rows as long as an image of SIZE has values."""
    module = DNNR(gradient_neighbours=4)
    module.fit(photographs(12), torch.arange(12.0), 0)
    return module


def net_for(name):
    """A network that the method can serve."""
    special = {"cam": Pooled, "dtd_full": FullyConnected, "dtd_train_free": FullyConnected, "counterfactual": flow}
    special |= {"dnnr_relevance": neighbours, "anchors": unbiased}
    if issubclass(locate(settings(name)["_target_"], "method"), OfAttention):
        return transformer()
    return special.get(name, VGGLike)()


class Halves(Dataset):
    """64 inputs of which a region is known: the left half, more or less."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return Example(torch.zeros(SIZE), 0)

    def regions(self, ids):
        columns = torch.arange(SIZE[2]).expand(len(ids), SIZE[1], SIZE[2])
        return {"lungs": columns < SIZE[2] // 2 + torch.tensor(ids).view(-1, 1, 1) % 3}


def maps_of(method, network, inputs, ids):
    """Maps of the samples `ids` in one call, with everything a method may ask for."""
    inputs, generators = inputs[list(ids)], sample_generators(0, "maps", ids)
    fitted = method.fit(network, images(10), torch.Generator().manual_seed(0)) if method.fit else {}
    data = Samples(Halves(), Preprocessing(), range(64))
    context = Context(generators, fitted, samples=tuple(ids), masks=inputs[:, 0] > 0, data=data)
    return method.attribute(network, inputs, torch.tensor([i % 5 for i in ids]), context)


def state(network):
    """Everything of a network that a method could leave changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.module.state_dict().items()},
        "training": [module.training for module in network.module.modules()],
        "gradients": [(parameter.requires_grad, parameter.grad) for parameter in network.module.parameters()],
        "hooks": [len(getattr(module, name)) for module in network.module.modules() for name in hooks],
        "random": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def same(before, after):
    tensors = before.pop("tensors"), after.pop("tensors")
    randomness = before.pop("random"), after.pop("random")
    return (
        before == after
        and torch.equal(*randomness)
        and all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    )


@pytest.mark.parametrize("path", YAMLS, ids=NAMES)
def test_yaml_is_complete(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith(".")
    assert lines[1].startswith("# source: ") and lines[2].startswith("# needs: ")
    spec = settings(path.stem)
    target = locate(spec["_target_"], "method")
    assert inspect.getdoc(target) and target.__doc__
    assert list(spec)[1:] == list(inspect.signature(target).parameters)
    assert isinstance(target.version, int)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "precomputed"])
def test_defaults_build(name):
    build(settings(name), "method")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", DIRECT)
def test_maps_are_finite_deterministic_and_leave_no_trace(name, dtype, make):
    network = classifier(net_for(name), dtype=dtype, batch_size=4)
    method, inputs = make(name), photographs(10, dtype=dtype)
    copy, before = inputs.clone(), state(network)
    method.check(network)
    maps = maps_of(method, network, inputs, range(10))
    assert same(before, state(network))
    assert torch.equal(inputs, copy)
    # Maps of a file have its precision.
    assert maps.dtype == (torch.float64 if name == "precomputed" else dtype) and not maps.requires_grad
    assert maps.shape in [(10, *SIZE), (10, 1, *SIZE[1:])]
    assert maps.isfinite().all() and maps.abs().sum() > 0
    assert torch.equal(maps, maps_of(method, network, inputs, range(10)))


@pytest.mark.parametrize("name", DIRECT)
def test_sample_does_not_depend_on_batch_or_order(name, make):
    method, inputs = make(name), photographs(64)
    module = net_for(name)
    whole = maps_of(method, classifier(module, batch_size=64), inputs, range(64))
    scale = whole.abs().max()
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    for ids, together, batch_size in [
        (list(range(64)), 1, 64),
        (list(range(64)), 64, 7),
        (shuffled, 7, 1),
        (shuffled, 64, 64),
    ]:
        network = classifier(module, batch_size=batch_size)
        groups = [ids[start : start + together] for start in range(0, 64, together)]
        maps = torch.cat([maps_of(method, network, inputs, group) for group in groups])
        assert (maps - whole[ids]).abs().max() <= 1e-9 * scale, (together, batch_size)


@pytest.mark.parametrize("name", DIRECT)
def test_single_precision_differs_little_between_batches(name, make):
    method, inputs = make(name), photographs(21, dtype=torch.float32)
    module = net_for(name)
    whole = maps_of(method, classifier(module, dtype=torch.float32, batch_size=64), inputs, range(21))
    network = classifier(module, dtype=torch.float32, batch_size=7)
    parts = torch.cat([maps_of(method, network, inputs, [sample]) for sample in range(21)])
    difference = (whole - parts).abs().amax((1, 2, 3)) / whole.abs().amax((1, 2, 3)).clamp(min=1e-30)
    assert difference.median() <= 1e-5


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (1, 4), (5, 32)])
@pytest.mark.parametrize("name", [name for name in DIRECT if name not in STAGED])
def test_network_is_called_as_rarely_as_the_batch_size_allows(name, samples, batch_size, make, passes):
    network = classifier(net_for(name), batch_size=batch_size)
    method = make(name)
    method.check(network)
    calls = passes(network)
    maps_of(method, network, photographs(samples), range(samples))
    assert max(calls, default=0) <= batch_size
    forwards, backwards = method.cost(network)
    assert sum(calls) == samples * forwards
    assert len(calls) == math.ceil(samples * forwards / batch_size)
    assert backwards in (0, forwards)


@pytest.mark.parametrize("name", ["gradient", "smoothgrad", "integrated_gradients", "gradcam", "occlusion"])
@pytest.mark.parametrize(("output", "end"), [("probability", torch.nn.Softmax(-1)), ("sigmoid", torch.nn.Sigmoid())])
def test_the_explained_output_is_the_classifiers(name, output, end, make):
    """A probability is explained like the logit of a network that ends in a softmax, or in sigmoids."""
    module, method, inputs = VGGLike(), make(name), photographs(3)
    asked = classifier(module, output=output)
    built_in = classifier(torch.nn.Sequential(module.features, module.head, end))
    built_in.layers = {"last_conv": "0"}
    maps = [maps_of(method, network, inputs, range(3)) for network in (asked, built_in)]
    assert torch.allclose(*maps, rtol=1e-9, atol=1e-12)
