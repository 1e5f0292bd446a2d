"""Captum's own attributors under our metrics: any of them by name, with its arguments."""

import contextlib
import inspect
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...errors import Refusal, XaibenchError, first_line, nearest, one_of
from ...models.classifier import Classifier
from ...models.rectifiers import count_rectifiers
from ...rng import draw_seeds
from ..base import Method
from ..baselines import Baselines
from ..context import Context

# Not for images, or in need of functions that no yaml can hold.
UNFIT = ("DataLoaderAttribution", "LLMAttribution", "LLMGradientAttribution", "RemoteLLMAttribution", "LimeBase")
# These permute values between the samples of a batch.
PERMUTING = ("FeaturePermutation", "LayerFeaturePermutation")
# These draw from the global generators of torch and numpy.
RANDOM = ("NoiseTunnel", "GradientShap", "ShapleyValueSampling", "Lime", "KernelShap")
# These change the backward pass at modules of known types, and silently nothing at a ReLU that is none of them.
AT_MODULES = ("GuidedBackprop", "Deconvolution", "GuidedGradCam", "DeepLift", "DeepLiftShap")
# Their baselines [M,C,H,W] are a distribution for all inputs, not one baseline [B,C,H,W] for each.
DISTRIBUTION = ("GradientShap", "DeepLiftShap")
# What the bridge itself gives to the constructor and to `attribute`.
OURS = ("forward_func", "model", "layer", "inputs", "target", "additional_forward_args", "return_convergence_delta",
        "return_input_shape", "self", "kwargs")  # fmt: skip


class Contrast(nn.Module):
    """Logits [B,K], each less the rival's of `target=contrast:a,b`."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.contrast = classifier.contrast

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return self.contrast(logits)


class Captum(Method):
    """The map of an attributor of captum.attr: [B,C,H,W], or [B,1,H,W] for a layer's, in Captum's units and signs.

    attributor: the name of its class, such as IntegratedGradients or LayerGradCam.
    arguments: of its `attribute`; lists become tuples. `baselines` may be a word or list of the words of `baselines`
        (`dataset`: `references` images of the fit split) or a number, and a number as `feature_mask` stands for
        square tiles of as many pixels, all channels together.
    constructor: further arguments of its constructor; of NoiseTunnel `attribution_method`, the name of another.
    layer: alias or module path, for attributors of a layer. Their channels are summed and enlarged bilinearly.
    references: see arguments.

    Attributors that draw at random are asked one sample at a time, with the global generators seeded by the sample's
    own and restored afterwards. The inner batch size is Captum's argument, where it has one.
    Raises ValueError for a name that Captum lacks or an argument that the attributor lacks, Refusal where Captum is
    not installed, and for attributors that change ReLUs on networks with ReLUs that they would silently pass over.
    """

    # Its LRP, by the default rules, is gradient x input but for epsilon.
    sign_of_logit = False

    def __init__(
        self,
        attributor: str = "IntegratedGradients",
        arguments: dict[str, Any] | None = None,
        constructor: dict[str, Any] | None = None,
        layer: str = "last_conv",
        references: int = 10,
    ) -> None:
        self.kind: Any = attributor_called(attributor)
        self.attributor, self.layer = attributor, layer
        self.arguments, self.constructor = dict(arguments or {}), dict(constructor or {})
        self.within = self._take_within() if attributor == "NoiseTunnel" else None
        self._check_names()
        self.baselines = self._take_baselines(references)
        self.fit = self.baselines.fit if self.baselines is not None and self.baselines.from_data else None

    def fingerprint(self) -> str:
        """Part of the key: another version of Captum may give other numbers."""
        from captum import __version__

        return f"captum {__version__}"

    def check(self, classifier: Classifier) -> None:
        self._build(classifier)
        if self.baselines:
            self.baselines.check(classifier)
        if self._is(AT_MODULES):
            reached, missed = count_rectifiers(classifier)
            sixes = sum(isinstance(module, nn.ReLU6) for module in classifier.module.modules())
            if missed or sixes:
                raise Refusal(
                    f"Captum's {self.attributor} changes nn.ReLU modules and would silently pass over ReLUs of "
                    f"{classifier.name}: {missed} of {reached + missed} are calls, {sixes} modules are nn.ReLU6"
                )
        if self.attributor == "ShapleyValues" and self._players(classifier) > 10:
            raise Refusal(
                f"ShapleyValues goes through all orders of {self._players(classifier)} features: use at most 10, such "
                "as method.arguments={feature_mask: 32}"
            )

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """From the definition, without what Captum asks the network besides."""
        if self.within is not None:
            forwards, backwards = self.within.cost(classifier)
            return (self._argument("nt_samples") * forwards, self._argument("nt_samples") * backwards)
        if (steps := self._argument("n_steps")) is not None:
            return (steps, steps)
        if self._is(("GradientShap",)):
            return (self._argument("n_samples"),) * 2
        if self._is(("DeepLift", "DeepLiftShap")):
            baselines = 1 if self.baselines is None else len(self.baselines)
            return (2 * baselines, baselines)
        if self.attributor in ("Lime", "KernelShap"):
            return (self._argument("n_samples"), 0)
        if self.attributor == "ShapleyValueSampling":
            return (1 + self._argument("n_samples") * self._players(classifier), 0)
        if self.attributor == "ShapleyValues":
            return (1 + math.factorial(self._players(classifier)) * self._players(classifier), 0)
        if self.attributor in ("FeatureAblation", "Occlusion"):
            return (1 + self._players(classifier), 0)
        return {"GuidedGradCam": (2, 2), "LayerActivation": (1, 0)}.get(self.attributor, (1, 1))

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        attributor = self._build(classifier)
        starts = self.baselines.of(classifier, inputs, context) if self.baselines else None
        seeds = draw_seeds(context.generators).tolist()
        alone = self._is(RANDOM) or self._is(DISTRIBUTION)

        def ask(part: slice) -> torch.Tensor:
            baselines = None
            if starts:
                every = self._is(DISTRIBUTION)
                baselines = torch.cat([s[part] for s in starts]) if every else starts[0][part]
            return self._ask(classifier, attributor, inputs[part], targets[part], baselines)

        maps = []
        for part in classifier.chunks(len(inputs)):
            if not alone:
                with _seeded(seeds[part.start], classifier.device) as untouched:
                    found = ask(part)
                    alone = not untouched()
                if not alone:
                    maps.append(found)
                    continue
            for sample in range(part.start, part.stop):
                with _seeded(seeds[sample], classifier.device):
                    maps.append(ask(slice(sample, sample + 1)))
        return torch.cat(maps).detach().to(inputs.dtype)

    def _ask(
        self,
        classifier: Classifier,
        attributor: Any,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        baselines: torch.Tensor | None,
    ) -> torch.Tensor:
        """Captum's answer for one call of it, as maps [B,C,H,W] or [B,1,H,W]."""
        arguments = self._arguments_for(inputs, targets, baselines, classifier.batch_size)
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")
                maps = attributor.attribute(inputs.clone(), **arguments)
        except Exception as error:
            raise XaibenchError(f"Captum's {self.attributor} failed: {first_line(error)}") from error
        if isinstance(maps, tuple) and len(maps) == 1:
            maps = maps[0]
        if not isinstance(maps, torch.Tensor) or maps.dim() != 4:
            shape = list(maps.shape) if isinstance(maps, torch.Tensor) else type(maps).__name__
            raise Refusal(f"Captum's {self.attributor} returns {shape}, which is no map of places [B,channels,h,w]")
        if maps.shape == inputs.shape:
            return maps
        return functional.interpolate(
            maps.sum(1, keepdim=True), size=inputs.shape[2:], mode="bilinear", align_corners=False
        )

    def _arguments_for(
        self, inputs: torch.Tensor, targets: torch.Tensor, baselines: torch.Tensor | None, batch_size: int
    ) -> dict[str, Any]:
        """The arguments of `attribute` for these inputs: those given, and what the bridge adds."""
        accepted = self._accepted()
        arguments = {name: _tuples(value) for name, value in self.arguments.items()}
        if "target" in accepted:
            arguments["target"] = targets
        if baselines is not None:
            arguments["baselines"] = baselines
        if isinstance(mask := arguments.get("feature_mask"), int):
            arguments["feature_mask"] = _tiles(inputs, mask)
        for name in ("internal_batch_size", "nt_samples_batch_size"):
            if name in accepted:
                arguments.setdefault(name, batch_size)
        if "perturbations_per_eval" in accepted and len(inputs) == 1:
            arguments.setdefault("perturbations_per_eval", batch_size)
        return arguments

    def _build(self, classifier: Classifier) -> Any:
        """The attributor around the network that returns what is explained."""
        if self.within is not None:
            return self.kind(self.within._build(classifier))
        module = classifier.module
        if classifier.explains_probability:
            last = nn.Sigmoid() if classifier.output == "sigmoid" else nn.Softmax(-1)
            module = nn.Sequential(module, last).eval()
        if classifier.rival is not None:
            module = nn.Sequential(module, Contrast(classifier)).eval()
        layer = (classifier.layer(self.layer),) if "layer" in inspect.signature(self.kind).parameters else ()
        return self.kind(module, *layer, **{name: _tuples(value) for name, value in self.constructor.items()})

    def _take_within(self) -> "Captum":
        """The attributor that NoiseTunnel's constructor names."""
        name = self.constructor.pop("attribution_method", None)
        if name is None:
            raise ValueError("NoiseTunnel needs constructor={attribution_method: <name of an attributor>}")
        within = Captum(name, layer=self.layer)
        # For what it costs; Captum hands them on.
        within.arguments = {n: v for n, v in self.arguments.items() if n in within._accepted()}
        return within

    def _take_baselines(self, references: int) -> Baselines | None:
        """The baselines that the arguments give by words; None if they give numbers or nothing."""
        words = self.arguments.get("baselines")
        several = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
        if not several and not isinstance(words, str):
            return None
        baselines = Baselines(self.arguments.pop("baselines"), 5.0, 0.5, references)
        if len(baselines) > 1 and not self._is(DISTRIBUTION):
            raise ValueError(f"baselines={words}: {self.attributor} takes one baseline for each input")
        return baselines

    def _check_names(self) -> None:
        """Refuse arguments that nobody would read, or that are the bridge's own."""
        accepted = self._accepted()
        constructed = tuple(inspect.signature(self.kind).parameters)
        for group, given, names, other in (
            ("arguments", self.arguments, accepted, constructed),
            ("constructor", self.constructor, constructed, accepted),
        ):
            names = tuple(name for name in names if name not in OURS)
            for name in given:
                if name in OURS:
                    raise ValueError(f"{group}.{name} is set by xaibench (target, method.layer)")
                if name not in names:
                    there = "constructor" if group == "arguments" else "arguments"
                    hint = f"it belongs to method.{there}" if name in other else nearest(name, names)
                    raise ValueError(f"{group}.{name} is no argument of {self.attributor}: {hint or 'it has none'}")

    def _accepted(self) -> tuple[str, ...]:
        """The arguments of `attribute`, of NoiseTunnel also those that it hands on."""
        own = tuple(inspect.signature(self.kind.attribute).parameters)
        return own if self.within is None else (*own, *self.within._accepted())

    def _argument(self, name: str) -> Any:
        """An argument of `attribute` as given or by default; None if there is none."""
        parameter = inspect.signature(self.kind.attribute).parameters.get(name)
        return None if parameter is None else self.arguments.get(name, parameter.default)

    def _is(self, names: Sequence[str]) -> bool:
        """Whether the attributor, or the one within it, is one of these or its variant for a layer or neuron."""
        name = self.attributor.removeprefix("Layer").removeprefix("Neuron")
        return self.attributor in names or name in names or (self.within is not None and self.within._is(names))

    def _players(self, classifier: Classifier) -> int:
        """How many features a perturbing attributor removes in turn."""
        channels, height, width = classifier.input_size
        if self.attributor == "Occlusion":
            window = _tuples(self._argument("sliding_window_shapes"))
            strides = _tuples(self._argument("strides")) or 1
            strides = strides if isinstance(strides, tuple) else (strides,) * len(window)
            sides = zip(classifier.input_size, window, strides)
            return math.prod(1 + math.ceil((side - size) / stride) for side, size, stride in sides)
        if isinstance(tile := self.arguments.get("feature_mask"), int):
            return math.ceil(height / tile) * math.ceil(width / tile)
        return channels * height * width


def attributor_called(name: str) -> type:
    """The class of captum.attr. Raises Refusal where Captum is missing, ValueError for a name that does not serve."""
    try:
        from captum import attr
    except ModuleNotFoundError as error:
        raise Refusal("method=captum needs the package captum, which is not installed: pip install captum") from error
    exported = {each: getattr(attr, each) for each in attr.__all__ if each not in UNFIT}
    kinds = {each: kind for each, kind in exported.items() if _is_attributor(kind, attr.Attribution)}
    one_of("attributor", name, kinds)
    if name in PERMUTING:
        raise ValueError(f"attributor={name} mixes the samples of a batch: a map would depend on the others")
    return kinds[name]


def _is_attributor(kind: Any, base: type) -> bool:
    return inspect.isclass(kind) and issubclass(kind, base) and hasattr(kind, "attribute")


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[Any]:
    """The global generators seeded, and afterwards as before. Gives a question: has anyone drawn from them since?"""
    outer = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        before = _states(device)
        try:
            yield lambda: before == _states(device)
        finally:
            random.setstate(outer[0])
            np.random.set_state(outer[1])


def _states(device: torch.device) -> tuple[Any, ...]:
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())
    return (*(state.numpy().tobytes() for state in states), kind, keys.tobytes(), *rest, random.getstate())


def _tiles(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """A feature mask [1,1,H,W]: square tiles numbered row by row."""
    height, width = inputs.shape[2:]
    down, across = (torch.arange(side, device=inputs.device) // size for side in (height, width))
    return (down[:, None] * math.ceil(width / size) + across)[None, None]


def _tuples(value: Any) -> Any:
    """Lists as tuples, which Captum wants, at any depth."""
    if isinstance(value, Mapping):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value
