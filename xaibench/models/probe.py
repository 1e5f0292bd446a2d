"""Is a network a function of one sample that returns logits? What a few forward passes say, and what is made of it.

A network is asked about two inputs, twice together and once each alone. One that answers differently has something
random or batch-wise in it, and every number would depend on the run or the batch size: it is refused. One that edits
its input gets a copy; one that returns its logits in a tuple or a dictionary is unwrapped; one that returns
probabilities is refused unless the model's configuration says so; a single logit stands for two classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import Refusal
from .classifier import Classifier

# Steps after which an autograd graph still shows what the last operation was.
_RESHAPES = ("View", "Reshape", "Squeeze", "Unsqueeze", "Clone", "Alias", "Slice", "Permute", "Transpose", "ToCopy")
PROBE = 1  # bumped when a probe finds something else
TINY = 1e-30  # least probability whose logarithm is taken


@dataclass(frozen=True)
class Findings:
    """What a network does with two inputs.

    outputs: K, or 0 where it returns no logits [B,K] or fails (`check_input` then says how).
    pick: the key or place of the logits in what it returns, None where it returns them.
    edits_input: whether it changed its input. varies, mixes: by how much its answers differ from one call to the next,
        and from a sample alone to the sample in a batch, relative to the largest; 0.0 below rounding.
    ends: `logits`, `probabilities` (rows that sum to 1), `log_probabilities` or `sigmoid`.
    """

    outputs: int = 0
    pick: str | int | None = None
    edits_input: bool = False
    varies: float = 0.0
    mixes: float = 0.0
    ends: str = "logits"


def probe(classifier: Classifier) -> Findings:
    """What a classifier's network does, from four calls on one or two inputs and one that is differentiated."""
    module, inputs = classifier.module, classifier.probe(2)
    given = inputs.clone()
    try:
        with torch.no_grad():
            answer = module(given)
            pick = _pick(answer)
            first = _picked(answer, pick)
            if not _are_logits(first, 2):
                return Findings(pick=pick)
            again = _picked(module(inputs.clone()), pick)
            alone = torch.cat([_picked(module(inputs[row : row + 1].clone()), pick) for row in range(2)])
    except (RuntimeError, ValueError):
        return Findings()
    return Findings(
        outputs=first.shape[1],
        pick=pick,
        edits_input=not torch.equal(given, inputs),
        varies=_difference(first, again),
        mixes=_difference(first, alone),
        ends=_end(module, inputs, first, pick),
    )


def adapted(classifier: Classifier, findings: Findings, by_recipe: bool = False) -> Classifier:
    """The classifier as everything else takes it: logits [B,K], K > 1 unless it returns values.

    by_recipe: a recipe trains a single output to the values of the labels. Raises Refusal, with the reason, for a
    network that is not a function of one sample, or whose answers are no logits.
    """
    name = classifier.name
    if findings.varies:
        raise Refusal(
            f"{name} answers the same inputs differently each time (by {findings.varies:.2g} of the largest answer)\n"
            "something random is on in evaluation mode, such as F.dropout without training=self.training: turn it off"
        )
    if findings.mixes:
        raise Refusal(
            f"{name}: an answer depends on the other samples of its batch (by {findings.mixes:.2g} of the largest)\n"
            "batch normalisation by batch statistics? Give it running statistics, in evaluation mode"
        )
    returns = classifier.returns
    if returns is None and by_recipe and findings.outputs == 1:
        returns = "values"
    if classifier.output == "raw":
        returns = "values"
    if returns is None:
        _refuse_probabilities(name, findings)
        returns = "logits"
    two_classes = findings.outputs == 1 and returns != "values"
    changes: dict[str, Any] = {}
    if findings.edits_input:
        changes["copies_input"] = True
    if findings.pick is not None:
        changes["pick"] = findings.pick
    if returns == "probabilities":
        changes["returns"] = returns
    if two_classes:
        changes["two_classes"] = True
    classifier = replace(classifier, returns=returns)
    if not changes:
        return classifier
    paths = {path: f"network.{path}" for path, _ in classifier.module.named_modules() if path}
    return replace(
        classifier,
        module=Adapted(classifier.module, **changes),
        layers=paths | {alias: paths.get(path, path) for alias, path in classifier.layers.items()},
        adapted=changes,
    )


class Adapted(nn.Module):
    """A network whose answers are made logits; what it needs for that, `adapted` finds.

    copies_input: of a network that edits it. pick: where the logits lie in what it returns. returns: `probabilities`
    are made logarithms, whose softmax they are; a single one log p - log(1 - p). two_classes: a logit f becomes those
    of class 0, -f, and of class 1, f, whose probabilities are sigmoids (`Classifier.probabilities`).
    """

    def __init__(
        self,
        network: nn.Module,
        copies_input: bool = False,
        pick: str | int | None = None,
        returns: str = "logits",
        two_classes: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.copies_input, self.pick, self.returns, self.two_classes = copies_input, pick, returns, two_classes

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of inputs [B,C,H,W]."""
        answer = _picked(self.network(inputs.clone() if self.copies_input else inputs), self.pick)
        if self.returns == "probabilities":
            log = answer.clamp_min(TINY).log()
            answer = log - (1 - answer).clamp_min(TINY).log() if self.two_classes else log
        return torch.cat([answer * -1.0, answer], 1) if self.two_classes else answer


def _refuse_probabilities(name: str, findings: Findings) -> None:
    one, end = findings.outputs == 1, findings.ends
    if end == "logits":
        return
    if end == "sigmoid" and not one:
        raise Refusal(
            f"{name} ends in a sigmoid for each of {findings.outputs} classes, expected logits of a softmax\n"
            "take it out of the network and set output=sigmoid, or explain its values as they are by output=raw"
        )
    found = {"sigmoid": "a probability (a sigmoid)", "probabilities": "probabilities (its rows sum to 1)"}
    setting = "probabilities" if end == "sigmoid" else end
    raw = "; for a regressor output=raw" if one else ""
    raise Refusal(
        f"{name} returns {found.get(end, 'log-probabilities')}, expected logits\n"
        f"take the last step out of the network, or set +model.returns={setting}{raw}"
    )


def _pick(answer: Any) -> str | int | None:
    """Where the logits lie in what a network returns: under `logits`, or first of several."""
    if isinstance(answer, Mapping):
        return "logits" if "logits" in answer else next(iter(answer), None)
    return 0 if isinstance(answer, tuple | list) and answer else None


def _picked(answer: Any, pick: str | int | None) -> Any:
    return answer if pick is None else answer[pick]


def _are_logits(answer: Any, count: int) -> bool:
    return isinstance(answer, torch.Tensor) and answer.ndim == 2 and len(answer) == count


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference relative to the largest value; 0.0 where it is rounding, or not finite in both."""
    if first.shape != second.shape:
        return float("inf")
    same = (first == second) | ~(first.isfinite() | second.isfinite())
    largest = first[first.isfinite()].abs().max().item() if first.isfinite().any() else 1.0
    difference = (first - second).abs().masked_fill(same, 0).max().item() / max(largest, 1e-30)
    return difference if not difference < torch.finfo(first.dtype).eps ** 0.5 else 0.0


def _end(module: nn.Module, inputs: torch.Tensor, answer: torch.Tensor, pick: str | int | None) -> str:
    """What the answers [2,K] are, by their values, or by the operation that they come from."""
    if answer.shape[1] > 1:
        if (answer >= 0).all() and ((answer.sum(1) - 1).abs() < 1e-3).all():
            return "probabilities"
        if (answer <= 1e-6).all() and (answer.logsumexp(1).abs() < 1e-3).all():
            return "log_probabilities"
    with torch.enable_grad():
        node = _picked(module(inputs.clone().requires_grad_().clone()), pick).grad_fn
    while node is not None and node.name().removesuffix("Backward0").removeprefix("Unsafe") in _RESHAPES:
        node = node.next_functions[0][0]
    return "sigmoid" if node is not None and node.name().startswith("Sigmoid") else "logits"
