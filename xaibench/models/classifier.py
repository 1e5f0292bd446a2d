"""The wrapper that every method and metric speaks to: a network returning logits, and what is known about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from .. import rng
from ..errors import Refusal, UserError, nearest
from .preprocessing import Preprocessing
from .questions import asked

OUTPUTS = ("logit", "probability", "sigmoid", "raw")
RETURNS = ("logits", "probabilities", "log_probabilities", "values")


def predicted(logits: torch.Tensor) -> torch.Tensor:
    """Logits [...,K] -> the predicted class [...]: the largest; of a scalar output, which is trained to 0 and 1, the
    nearer of the two."""
    return logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0.5).long()


@dataclass
class Classifier:
    """A network that returns logits [B,K], in evaluation mode, with everything a method or metric may ask.

    Args:
        name: What leaderboards call it.
        module: The network; its parameters do not require gradients.
        input_size: (C,H,W) of one input.
        preprocessing: From pixel values to inputs; `mean` and `std` give black and white their normalised values.
        class_names: One per output, or empty.
        layers: Alias -> module path, such as {"last_conv": "features"}.
        definition: Canonical description of the architecture (class and arguments), part of every key.
        weights_digest: Identity of the parameters.
        weights_state: `trained` or a randomisation (see `models.randomise`).
        returns: What the network returns, as its configuration says: one of RETURNS; None to have it found (`probe`).
        adapted: What `probe.adapted` has put around the network; `two_classes` is among it for a single logit.
        places: What a place of its inputs is: `pixels` of a picture, `words` of a sentence, of which there may be fewer
            than `input_size` has room for, or `columns` of a table's row.
        rival: A class whose logit is taken off the explained one's (`target=contrast:a,b` explains f_a - f_b); None
            explains the logit by itself.
        output: What is explained: the `logit`; the `probability`, its softmax; the `sigmoid` of a network whose
            classes do not exclude each other, which is then every probability of it; or `raw` for a single-output one.
        batch_size: Most inputs per call of the network. It bounds memory and never changes a number.
    """

    name: str
    module: nn.Module
    input_size: tuple[int, int, int]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_names: tuple[str, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    definition: Mapping[str, Any] = field(default_factory=dict)
    weights_digest: str = ""
    weights_state: str = "trained"
    returns: str | None = None
    adapted: Mapping[str, Any] = field(default_factory=dict)
    places: Literal["pixels", "words", "columns"] = "pixels"
    output: str = "logit"
    rival: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise UserError(f"output={self.output}: {nearest(self.output, OUTPUTS)}")
        if self.returns is not None and self.returns not in RETURNS:
            raise UserError(f"model.returns={self.returns}: {nearest(self.returns, RETURNS)}")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: expected at least 1")
        self.module.eval()
        for parameter in self.module.parameters():  # one by one: TorchScript has no `requires_grad_`
            parameter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters(), torch.empty(0)).dtype

    @property
    def has_classes(self) -> bool:
        """Whether its outputs are logits of classes, which have probabilities, and not values."""
        return self.output != "raw" and self.returns != "values"

    @property
    def explains_probability(self) -> bool:
        """Whether what is explained is behind a softmax or sigmoid, so that it has no parts that add up to it."""
        return self.output in ("probability", "sigmoid")

    def sized(self, inputs: torch.Tensor) -> "Classifier":
        """The classifier as one of inputs of this size.

        Args:
            inputs: [B,C,h,w], of a network of words perhaps fewer than its `input_size` says.

        Returns:
            The classifier with their size as its `input_size`; itself, if that is so already or its inputs have one
            size only.
        """
        channels, height, width = inputs.shape[1:]
        if self.places != "words" or (height, width) == self.input_size[1:]:
            return self
        return replace(self, input_size=(channels, height, width))

    def asked(self, questions: torch.Tensor | None) -> "Classifier":
        """The classifier as one of pictures alone, of each of which the same is asked.

        Args:
            questions: [b,Q], of a batch, all the same (`Batch.alike`); None where nothing is asked.

        Returns:
            The classifier whose network answers that question; itself for None.

        Raises:
            UserError: If the network reads no questions, or those of another length.
            ValueError: If the questions differ.
        """
        if questions is None:
            return self
        if not bool((questions == questions[:1]).all()):
            raise ValueError("a classifier is asked one question: see Batch.alike")
        return replace(self, module=asked(self.module, questions[0], self.name))

    def require_pictures(self, what: str) -> None:
        """Refuse what is made for pictures alone.

        Args:
            what: It, and what to do instead, as a clause.

        Raises:
            Refusal: If the places of this network's inputs are no pixels.
        """
        if self.places != "pixels":
            raise Refusal(f"{what}: the inputs of {self.name} are {self.places}, not pictures")

    @property
    def outputs(self) -> int:
        """How many outputs K the network has; asked with one forward pass."""
        return self.logits(self.blank).shape[1]

    @property
    def blank(self) -> torch.Tensor:
        """An input [1,C,H,W] of zeros, for asking about shapes."""
        return torch.zeros(1, *self.input_size, device=self.device, dtype=self.dtype)

    def probe(self, count: int) -> torch.Tensor:
        """Inputs on which to see what the network does.

        Args:
            count: How many.

        Returns:
            Normal inputs [count,C,H,W], always the same.
        """
        drawn = torch.randn(count, *self.input_size, generator=rng.generator("probe"))
        return drawn.to(self.device, self.dtype)

    def layer(self, name: str) -> nn.Module:
        """A layer of the network.

        Args:
            name: An alias of `layers`, or a module path.

        Returns:
            The module behind an alias or a module path.

        Raises:
            Refusal: For unknown names, with the nearest one.
        """
        path = self.layers.get(name, name)
        modules = dict(self.module.named_modules())
        if path not in modules or path == "":
            known = [*self.layers, *(key for key in modules if key)]
            raise Refusal(f"layer '{name}' is not in {self.name}: {nearest(name, known)}")
        self.refuse_torchscript(path)
        return modules[path]

    def refuse_torchscript(self, path: str | None = None) -> None:
        """Raise Refusal if the module at `path` lies inside of TorchScript, which neither hooks nor traces can look
        into; without one, if anything of the network does."""
        for outer, module in self.module.named_modules():
            within = path is None or not outer or path.startswith(f"{outer}.")
            if isinstance(module, torch.jit.ScriptModule) and within:
                what = f"'{outer}' of {self.name}" if outer else self.name
                raise Refusal(
                    f"{what} is TorchScript, into which nothing looks: give the Python module that it was made from\n"
                    "what needs answers and gradients alone does run, such as gradient, occlusion and rise"
                )

    def chunks(self, count: int) -> Iterator[slice]:
        """The inner batches of one long call.

        Args:
            count: Of inputs.

        Yields:
            Slices of at most `batch_size` that cover range(count).
        """
        for start in range(0, count, self.batch_size):
            yield slice(start, min(start + self.batch_size, count))

    def select(self, logits: torch.Tensor, targets: torch.Tensor, output: str | None = None) -> torch.Tensor:
        """The explained output of each sample; differentiable.

        Args:
            logits: [B,K].
            targets: [B].
            output: One of OUTPUTS, or `accuracy`: 1 where the target is the prediction, else 0.

        Returns:
            The explained output of each sample [B].
        """
        output = output or self.output
        if output == "logit":
            logits = self.contrast(logits)
        if output == "accuracy":
            return (logits.argmax(-1) == targets).to(logits)
        values = self.probabilities(logits) if output in ("probability", "sigmoid") else logits
        return values.gather(1, targets.view(-1, 1)).squeeze(1)

    def contrast(self, logits: torch.Tensor) -> torch.Tensor:
        """Each logit less the rival's; without a rival, the logits.

        Args:
            logits: [...,K].

        Returns:
            What may be explained, [...,K].
        """
        return logits if self.rival is None else logits - logits[..., self.rival, None]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The softmax of logits [...,K], or by `output=sigmoid` the sigmoid of each.

        For a network of one logit f, whose logits are -f and f, the sigmoids of both, either way.

        For a network that returns values it is meaningless.

        Args:
            logits: [...,K].

        Returns:
            Probabilities [...,K].
        """
        return logits.sigmoid() if self.output == "sigmoid" else self.softmax_logits(logits).softmax(-1)

    def softmax_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [...,K] as a softmax or a cross-entropy takes them, see `probabilities`."""
        return logits / 2 if self.adapted.get("two_classes") else logits

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the network answers, without gradients, in inner batches.

        Args:
            inputs: [B,C,H,W], preprocessed.

        Returns:
            Logits [B,K].
        """
        return torch.cat([self.module(inputs[part]) for part in self.chunks(len(inputs))])

    @torch.no_grad()
    def scores(self, inputs: torch.Tensor, targets: torch.Tensor, output: str | None = None) -> torch.Tensor:
        """The explained output (or `output`) of each input, without gradients, in inner batches.

        Args:
            inputs: [B,C,H,W], preprocessed.
            targets: [B].
            output: As for `select`.

        Returns:
            A value for each input [B].
        """
        return torch.cat(
            [self.select(self.module(inputs[part]), targets[part], output) for part in self.chunks(len(inputs))]
        )

    def gradient(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Gradient of the explained output with respect to each input, in inner batches.

        Samples do not interact in evaluation mode, so the gradient of the sum is each sample's own gradient.

        Args:
            inputs: [B,C,H,W], preprocessed.
            targets: [B].

        Returns:
            The gradient, same shape as inputs.
        """
        gradients = []
        for part in self.chunks(len(inputs)):
            x = inputs[part].detach().requires_grad_(True)
            with torch.enable_grad():
                total = self.select(self.module(x), targets[part]).sum()
            gradients.append(torch.autograd.grad(total, x)[0])
        return torch.cat(gradients)
