"""What a network does with a sample is looked at before its numbers are believed."""

from collections import OrderedDict, namedtuple
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xaibench.errors import Refusal
from xaibench.models.classifier import Classifier
from xaibench.models.cut import Cut
from xaibench.models.probe import adapted, probe
from xaibench.models.randomise import Randomisation, blocks, randomised
from xaibench.models.tracing.graph import Graph

SIZE = (3, 8, 8)
Outputs = namedtuple("Outputs", ["logits", "aux"])


class Net(nn.Module):
    """A small network whose last step, and what it does besides, can be chosen."""

    def __init__(self, outputs: int = 4, end=None, start=None) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, outputs)
        self.end, self.start = end or (lambda logits: logits), start or (lambda x, net: x)

    def forward(self, x):
        x = self.start(x, self)
        return self.end(self.last(F.relu(self.conv(x)).mean((2, 3))))


def classifier(module: nn.Module, **options) -> Classifier:
    return Classifier("net", module, SIZE, layers={"last_conv": "conv"}, **options)


def edits(x, net):
    x -= 0.5
    return x * 2


def test_a_plain_network_is_left_as_it_is():
    net = classifier(Net())
    findings = probe(net)
    assert (findings.outputs, findings.pick, findings.edits_input, findings.ends) == (4, None, False, "logits")
    assert findings.varies == findings.mixes == 0
    assert adapted(net, findings).module is net.module


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda x, net: F.dropout(x, 0.5), "differently each time"),
        (lambda x, net: x + 0.1 * torch.randn_like(x), "differently each time"),
        (lambda x, net: F.batch_norm(x, None, None, training=True), "other samples of its batch"),
        (lambda x, net: x - x.mean(0, keepdim=True), "other samples of its batch"),
    ],
)
def test_what_is_no_function_of_one_sample_is_refused(start, words):
    net = classifier(Net(start=start))
    with pytest.raises(Refusal, match=words):
        adapted(net, probe(net))


def test_batch_norm_without_running_statistics_is_refused():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    net = classifier(Net(start=lambda x, net: norm(x)))
    with pytest.raises(Refusal, match="batch statistics"):
        adapted(net, probe(net))


def test_an_input_that_is_edited_is_copied():
    module, plain = Net(start=edits), Net(start=lambda x, net: (x - 0.5) * 2)
    plain.load_state_dict(module.state_dict())
    net = classifier(module)
    found = adapted(net, probe(net))
    inputs, targets = net.probe(3), torch.tensor([0, 1, 2])
    given = inputs.clone()
    assert torch.equal(found.logits(given), plain(inputs))
    assert torch.equal(given, inputs)
    torch.testing.assert_close(found.gradient(inputs, targets), classifier(plain).gradient(inputs, targets))


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda logits: (logits, logits.sum()), 0),
        (lambda logits: Outputs(logits, None), 0),
        (lambda logits: OrderedDict(loss=logits.sum(), logits=logits), "logits"),
        (lambda logits: {"logits": logits}, "logits"),
    ],
)
def test_logits_in_a_tuple_or_a_dictionary_are_unwrapped(wrap, pick):
    module, plain = Net(end=wrap), Net()
    plain.load_state_dict(module.state_dict())
    net = classifier(module)
    findings = probe(net)
    assert findings.pick == pick
    assert torch.equal(adapted(net, findings).logits(net.probe(3)), plain(net.probe(3)))


@pytest.mark.parametrize(
    ("end", "outputs", "found"),
    [
        (lambda x: x.softmax(1), 4, "probabilities"),
        (lambda x: x.softmax(1).reshape(-1, 4), 4, "probabilities"),
        (lambda x: F.log_softmax(x, 1), 4, "log_probabilities"),
        (torch.sigmoid, 4, "sigmoid"),
        (lambda x: torch.sigmoid(x).clone(), 1, "sigmoid"),
        (lambda x: x.abs() / 9, 2, "logits"),
        (lambda x: -x.abs(), 2, "logits"),
    ],
)
def test_what_the_answers_are(end, outputs, found):
    net = classifier(Net(outputs, end))
    assert probe(net).ends == found
    if found == "logits":
        adapted(net, probe(net))
        return
    with pytest.raises(Refusal, match=r"model\.returns=|output=raw"):
        adapted(net, probe(net))
    # Raw values, and what the configuration says, are believed.
    assert adapted(replace(net, output="raw"), probe(net)).module is net.module
    assert adapted(replace(net, returns="logits"), probe(net)).returns == "logits"


def test_probabilities_become_logits_of_themselves():
    net = classifier(Net(4, lambda x: x.softmax(1)), returns="probabilities")
    found = adapted(net, probe(net))
    inputs = net.probe(5)
    torch.testing.assert_close(found.probabilities(found.logits(inputs)), net.module(inputs))
    # The gradient of log p ranks the pixels as that of p does, p times as large.
    targets = torch.arange(4)
    of_p = net.gradient(inputs[:4], targets)
    p = net.module(inputs[:4]).gather(1, targets[:, None])[:, :, None, None]
    torch.testing.assert_close(found.gradient(inputs[:4], targets) * p, of_p)


@pytest.mark.parametrize("returns", [None, "probabilities"])
def test_a_single_logit_stands_for_two_classes(returns):
    module = Net(1, torch.sigmoid if returns else None)
    logit = Net(1)
    logit.load_state_dict(module.state_dict())
    net = classifier(module, returns=returns)
    found = adapted(net, probe(net))
    inputs = net.probe(6)
    f = logit(inputs)[:, 0]
    logits = found.logits(inputs)
    torch.testing.assert_close(logits, torch.stack([-f, f], 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.probabilities(logits), torch.stack([torch.sigmoid(-f), torch.sigmoid(f)], 1))
    zeros, ones = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    of_f = classifier(logit, output="raw").gradient(inputs, zeros)
    torch.testing.assert_close(found.gradient(inputs, ones), of_f, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.gradient(inputs, zeros), -of_f, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.scores(inputs, ones, "probability"), torch.sigmoid(f))
    assert found.outputs == 2 and found.has_classes


def test_layers_keep_their_names_and_the_network_can_still_be_taken_apart():
    net = classifier(Net(1))
    found = adapted(net, probe(net))
    inputs = net.probe(3)
    assert found.layer("last_conv") is found.layer("conv") is net.module.conv
    cut = Cut(found, "last_conv", inputs[:1])
    with torch.no_grad():
        torch.testing.assert_close(cut.behind(cut.before(inputs).values, cut.before(inputs)), found.logits(inputs))
    graph = Graph.of(found)
    torch.testing.assert_close(graph.run(inputs)[-1], found.logits(inputs))
    assert all("network" in block for block in blocks(found, 2))
    other = randomised(found, Randomisation("cascade", blocks(found, 2)[-1], 0))
    changed = other.logits(inputs)
    assert torch.equal(changed[:, 0], -changed[:, 1]) and not torch.allclose(changed, found.logits(inputs))


def test_a_recipe_trains_a_single_output_to_values():
    net = classifier(Net(1))
    found = adapted(net, probe(net), by_recipe=True)
    assert found.module is net.module and not found.has_classes


def test_a_network_that_fails_is_left_to_the_check_of_its_input():
    net = classifier(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
    assert probe(net).outputs == 0
    assert adapted(net, probe(net)).module is net.module
