"""What the methods cost beside Captum's and zennit's, and beside the bare passes that their definitions need.

    python scripts/bench_methods.py                                  # every row, on the default network
    python scripts/bench_methods.py --methods kernel_shap occlusion --model mobilenet_v2 --size 224
    python scripts/bench_methods.py --methods attention attention_grad gradcam_pp --model vit_b_16 --size 224
    python scripts/bench_methods.py --methods attention attnlrp --model smallvit --batch-size 8 --tokens 65

Ours, theirs and the bare passes run in turn on the same inputs, and the medians over the rounds of the ratios count,
so that a busy machine slows all alike. Captum gets as many perturbed images per call (`perturbations_per_eval`) as we
do; where it takes only one image at a time, it is called for one after the other. The bare passes are of as many
images as `cost` says, in the same batches, from a buffer that is there already. Weights are random: they change no
time.

Optimisations and attention have no counterpart in Captum: the same method stands there, one image at a time. A method
that refuses the network is named as such.

With `--tokens` memory is measured instead of time: how many attention maps [B,heads,tokens,tokens] of one layer and a
whole batch live at a time, with as many images as a batch holds and with four times as many.

To add a method: a function from a Bench to a Row, in ROWS.
"""

import argparse
import copy
import importlib.util
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import captum.attr
import torch
import zennit.attribution
import zennit.composites
import zennit.core
import zennit.rules
import zennit.types
from captum._utils.models.linear_model import SkLearnLinearModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer, get_model
from zennit.canonizers import SequentialMergeBatchNorm

from xaibench.errors import Refusal
from xaibench.methods.attention.attention import AttentionGradient, AttentionRollout, RawAttention
from xaibench.methods.attention.transformer_attribution import TransformerAttribution
from xaibench.methods.base import Method
from xaibench.methods.cam.gradcam import GradCAM, GradCAMPlusPlus, GuidedGradCAM
from xaibench.methods.context import Context
from xaibench.methods.gradients.expected_gradients import ExpectedGradients
from xaibench.methods.gradients.fullgrad import FullGrad
from xaibench.methods.gradients.gradient import Gradient, InputXGradient
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.gradients.smoothgrad import SmoothGrad
from xaibench.methods.removal._coalitions import Coalitions
from xaibench.methods.removal.exact_shapley import ExactShapley
from xaibench.methods.removal.extremal_perturbation import ExtremalPerturbation
from xaibench.methods.removal.kernel_shap import KernelShap
from xaibench.methods.removal.lime import Lime
from xaibench.methods.removal.meaningful_perturbation import MeaningfulPerturbation
from xaibench.methods.removal.occlusion import Occlusion
from xaibench.methods.removal.shapley_sampling import ShapleySampling
from xaibench.methods.rules.attention_lrp import AttentionLRP
from xaibench.methods.rules.deeplift import DeepLIFT
from xaibench.methods.rules.guided_backprop import DeconvNet, GuidedBackprop, RectGrad
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import AffineRule, AlphaBeta, Epsilon, Flat, Gamma, Square
from xaibench.models import relus
from xaibench.models.classifier import Classifier
from xaibench.models.smallcnn import SmallCNN
from xaibench.models.smallvit import SmallViT
from xaibench.perturb import fills
from xaibench.rng import sample_generators


@dataclass
class Bench:
    """What every row is measured on."""

    network: Classifier
    inputs: torch.Tensor
    targets: torch.Tensor

    def attribute(self, method: Method, fitted: dict[str, torch.Tensor], part: slice = slice(None)) -> torch.Tensor:
        inputs = self.inputs[part]
        generators = sample_generators(0, "bench", range(len(inputs)))
        return method.attribute(self.network, inputs, self.targets[part], Context(generators, fitted))

    def one_by_one(self, explain: Callable[[slice], object]) -> None:
        for sample in range(len(self.inputs)):
            explain(slice(sample, sample + 1))


@dataclass
class Row:
    """One method: ours, what it is compared with, what `theirs` is if it is not Captum's, and what ours has fitted."""

    ours: Method
    theirs: Callable[[], object]
    beside: str = "captum"
    fitted: dict[str, torch.Tensor] = field(default_factory=dict)


def occlusion(bench: Bench) -> Row:
    side = bench.inputs.shape[-1] // 8
    oracle = captum.attr.Occlusion(bench.network.module)
    window = (bench.inputs.shape[1], side, side)
    return Row(
        Occlusion(side),
        lambda: oracle.attribute(
            bench.inputs, window, window, 0, bench.targets, perturbations_per_eval=together(bench)
        ),
    )


def exact_shapley(bench: Bench) -> Row:
    """Of four players: Captum asks about the coalitions of all M! orders."""
    method, oracle = ExactShapley(players=4), captum.attr.ShapleyValues(bench.network.module)
    return Row(method, on_players(bench, method, oracle.attribute))


def shapley_sampling(bench: Bench) -> Row:
    method = ShapleySampling(players=49, samples=4)
    oracle = captum.attr.ShapleyValueSampling(bench.network.module)
    return Row(method, on_players(bench, method, oracle.attribute, n_samples=4))


def kernel_shap(bench: Bench) -> Row:
    method, oracle = KernelShap(players=49, samples=198), captum.attr.KernelShap(bench.network.module)
    return Row(method, on_players(bench, method, oracle.attribute, n_samples=200, single=True))


def lime(bench: Bench) -> Row:
    """With the same regression; Captum's distance is between images, which changes the weights and not the passes."""
    method = Lime(players=49, segments="grid", samples=200)
    oracle = captum.attr.Lime(bench.network.module, SkLearnLinearModel("linear_model.Ridge", alpha=1.0))
    return Row(method, on_players(bench, method, oracle.attribute, n_samples=200, single=True))


def extremal_perturbation(bench: Bench) -> Row:
    return alone(bench, ExtremalPerturbation(steps=10))


def meaningful_perturbation(bench: Bench) -> Row:
    return alone(bench, MeaningfulPerturbation(steps=10))


def gradient(bench: Bench) -> Row:
    oracle = captum.attr.Saliency(bench.network.module)
    return Row(Gradient(), lambda: oracle.attribute(bench.inputs, bench.targets, abs=False))


def input_x_gradient(bench: Bench) -> Row:
    oracle = captum.attr.InputXGradient(bench.network.module)
    return Row(InputXGradient(), lambda: oracle.attribute(bench.inputs, bench.targets))


def guided_backprop(bench: Bench) -> Row:
    oracle = captum.attr.GuidedBackprop(bench.network.module)
    return Row(GuidedBackprop(), lambda: oracle.attribute(bench.inputs, bench.targets))


def deeplift(bench: Bench) -> Row:
    """Captum refuses networks that use a ReLU module twice, such as torchvision's ResNets."""
    oracle, blurred = captum.attr.DeepLift(bench.network.module), fills.blurred(bench.inputs, 5.0)
    return Row(DeepLIFT(baseline="blur"), lambda: oracle.attribute(bench.inputs, blurred, bench.targets))


def deepshap(bench: Bench) -> Row:
    """Captum puts all pairs of images and references into one call."""
    references = torch.randn(8, *bench.network.input_size, device=bench.inputs.device)
    oracle = captum.attr.DeepLiftShap(bench.network.module)
    return Row(
        DeepLIFT(baseline="dataset", references=8),
        lambda: oracle.attribute(bench.inputs, references, bench.targets),
        fitted={"references": references},
    )


def deconvnet(bench: Bench) -> Row:
    oracle = captum.attr.Deconvolution(bench.network.module)
    return Row(DeconvNet(), lambda: oracle.attribute(bench.inputs, bench.targets))


def rectgrad(bench: Bench) -> Row:
    return alone(bench, RectGrad())


def lrp_captum(bench: Bench) -> Row:
    """LRP-epsilon on a copy, since Captum leaves rules behind; not on a network with ReLU6, for which it has none."""
    oracle = captum.attr.LRP(copy.deepcopy(bench.network.module))
    return Row(LRP(Epsilon(1e-9)), lambda: oracle.attribute(bench.inputs, bench.targets))


def lrp_epsilon(bench: Bench) -> Row:
    return beside_zennit(bench, Epsilon(), zennit.rules.Epsilon())


def lrp_gamma(bench: Bench) -> Row:
    return beside_zennit(bench, Gamma(), zennit.rules.Gamma())


def lrp_zplus(bench: Bench) -> Row:
    return beside_zennit(bench, AlphaBeta(), zennit.rules.ZPlus(zero_params="bias"))


def lrp_alphabeta(bench: Bench) -> Row:
    return beside_zennit(bench, AlphaBeta(2, 1), zennit.rules.AlphaBeta(zero_params="bias"))


def lrp_wsquare(bench: Bench) -> Row:
    return beside_zennit(bench, Square(), zennit.rules.WSquare(zero_params="bias"))


def lrp_flat(bench: Bench) -> Row:
    return beside_zennit(bench, Flat(), zennit.rules.Flat())


def attnlrp(bench: Bench) -> Row:
    """As its yaml has it: LRP-gamma, whose products are for contributions of either sign."""
    return alone(bench, AttentionLRP(Gamma(0.25), Gamma(0.05), residual="proportional"))


def attnlrp_epsilon(bench: Bench) -> Row:
    """Beside LXT's explicit functions, where they are installed: the same rules (`through_lxt.py`)."""
    method = AttentionLRP(Epsilon())
    if not bench.network.name.startswith(("vit", "smallvit")) or importlib.util.find_spec("lxt") is None:
        return alone(bench, method)
    import through_lxt

    return Row(method, lambda: through_lxt.attribution(bench.network.module, bench.inputs, bench.targets), "lxt")


def lrp_conservative(bench: Bench) -> Row:
    """Beside LXT's efficient form, where it is installed: input x gradient of a patched VisionTransformer."""
    method = AttentionLRP(Epsilon(), attention="conservative")
    if not isinstance(bench.network.module, VisionTransformer) or importlib.util.find_spec("lxt") is None:
        return alone(bench, method)
    from lxt.efficient.models.vit_torch import cp_LRP

    def theirs() -> torch.Tensor:
        plain = {kind: kind.forward for kind in cp_LRP}
        for kind, patch in cp_LRP.items():
            patch(kind)
        try:
            return bench.inputs * bench.network.gradient(bench.inputs, bench.targets)
        finally:
            for kind, forward in plain.items():
                kind.forward = forward

    return Row(method, theirs, "lxt")


def integrated_gradients(bench: Bench) -> Row:
    settings = {"n_steps": 20, "method": "riemann_right", "internal_batch_size": bench.network.batch_size}
    oracle = captum.attr.IntegratedGradients(bench.network.module)
    return Row(IntegratedGradients(20), lambda: oracle.attribute(bench.inputs, target=bench.targets, **settings))


def smoothgrad(bench: Bench) -> Row:
    return Row(SmoothGrad(20), noisy(bench, "smoothgrad"))


def vargrad(bench: Bench) -> Row:
    return Row(SmoothGrad(20, aggregate="variance"), noisy(bench, "vargrad"))


def gradient_shap(bench: Bench) -> Row:
    """Captum puts all draws of all images into one call."""
    oracle, references = captum.attr.GradientShap(bench.network.module), torch.zeros_like(bench.inputs[:2])
    method = ExpectedGradients(20, ["black", "white"], noise=0.1, unit="input")
    return Row(method, lambda: oracle.attribute(bench.inputs, references, 20, 0.1, bench.targets))


def gradcam(bench: Bench) -> Row:
    """The limit has a backward pass through the whole network; Grad-CAM's ends at the layer."""
    oracle = captum.attr.LayerGradCam(bench.network.module, bench.network.layer(last_conv(bench)))
    side = tuple(bench.inputs.shape[2:])
    return Row(
        GradCAM(last_conv(bench)),
        lambda: captum.attr.LayerAttribution.interpolate(
            oracle.attribute(bench.inputs, bench.targets), side, "bilinear"
        ),
    )


def guided_gradcam(bench: Bench) -> Row:
    oracle = captum.attr.GuidedGradCam(bench.network.module, bench.network.layer(last_conv(bench)))
    return Row(
        GuidedGradCAM(last_conv(bench)),
        lambda: oracle.attribute(bench.inputs, bench.targets, interpolate_mode="bilinear"),
    )


def gradcam_pp(bench: Bench) -> Row:
    return alone(bench, GradCAMPlusPlus(last_conv(bench)))


def fullgrad(bench: Bench) -> Row:
    return alone(bench, FullGrad())


def attention(bench: Bench) -> Row:
    return alone(bench, RawAttention())


def attention_rollout(bench: Bench) -> Row:
    return alone(bench, AttentionRollout())


def attention_grad(bench: Bench) -> Row:
    return alone(bench, AttentionGradient())


def transformer_attribution(bench: Bench) -> Row:
    return alone(bench, TransformerAttribution())


ROWS: dict[str, Callable[[Bench], Row]] = {
    row.__name__: row
    for row in (
        gradient,
        input_x_gradient,
        guided_backprop,
        deeplift,
        deepshap,
        deconvnet,
        rectgrad,
        lrp_captum,
        lrp_epsilon,
        lrp_gamma,
        lrp_zplus,
        lrp_alphabeta,
        lrp_wsquare,
        lrp_flat,
        attnlrp,
        attnlrp_epsilon,
        lrp_conservative,
        smoothgrad,
        vargrad,
        integrated_gradients,
        gradient_shap,
        gradcam,
        gradcam_pp,
        guided_gradcam,
        fullgrad,
        occlusion,
        exact_shapley,
        shapley_sampling,
        kernel_shap,
        lime,
        extremal_perturbation,
        meaningful_perturbation,
        attention,
        attention_rollout,
        attention_grad,
        transformer_attribution,
    )
}


def together(bench: Bench) -> int:
    """Perturbations of each of the images that fill one call of the network."""
    return max(1, bench.network.batch_size // len(bench.inputs))


def noisy(bench: Bench, kind: str) -> Callable[[], object]:
    """Captum's noise around the gradient, 20 copies."""
    oracle = captum.attr.NoiseTunnel(captum.attr.Saliency(bench.network.module))
    settings = {"nt_samples": 20, "stdevs": 0.5, "abs": False, "nt_samples_batch_size": together(bench)}
    return lambda: oracle.attribute(bench.inputs, kind, target=bench.targets, **settings)


def last_conv(bench: Bench) -> str:
    """The layer of class activation maps."""
    found = {"smallcnn": "features.12", "smallvit": "blocks.3.norm1"}.get(bench.network.name)
    return found or relus.last_conv(bench.network.module) or "layer4"


def on_players(
    bench: Bench, method: Coalitions, attribute: Callable, single: bool = False, **settings: int
) -> Callable[[], object]:
    """Captum's method on our players. single: it takes one image at a time."""
    mask = method.labels(bench.network, bench.inputs)[:1, None]
    if not single:
        settings = settings | {"perturbations_per_eval": together(bench)}
        return lambda: attribute(bench.inputs, 0, bench.targets, feature_mask=mask, **settings)
    settings = settings | {"perturbations_per_eval": bench.network.batch_size}
    return lambda: bench.one_by_one(
        lambda one: attribute(bench.inputs[one], 0, bench.targets[one], feature_mask=mask, **settings)
    )


def beside_zennit(bench: Bench, rule: AffineRule, theirs: zennit.core.Hook) -> Row:
    """LRP beside zennit's, whose hooks are on a copy, and its batch normalisation merged, before the clock runs."""
    layers = [
        (zennit.types.Activation, zennit.rules.Pass()),
        (zennit.types.AvgPool, zennit.rules.Norm()),
        ((zennit.types.Convolution, zennit.types.Linear), theirs),
    ]
    module = copy.deepcopy(bench.network.module)
    composite = zennit.composites.LayerMapComposite(layers, canonizers=[SequentialMergeBatchNorm()])
    attributor = zennit.attribution.Gradient(module, composite)
    attributor.__enter__()
    chosen = torch.nn.functional.one_hot(bench.targets, bench.network.logits(bench.inputs[:1]).shape[1])
    return Row(LRP(rule), lambda: attributor(bench.inputs, lambda logits: logits * chosen), "zennit")


def alone(bench: Bench, method: Method) -> Row:
    """A method beside itself without neighbours."""
    return Row(method, lambda: bench.one_by_one(lambda one: bench.attribute(method, {}, one)), "alone")


def bare(bench: Bench, method: Method) -> Callable[[], None]:
    """The passes of a method's cost for these inputs, and nothing else."""
    network = bench.network
    forwards, backwards = (passes * len(bench.inputs) for passes in method.cost(network))
    buffer = torch.randn(min(network.batch_size, forwards), *network.input_size, device=bench.inputs.device)
    targets = bench.targets[:1].expand(len(buffer))

    def passes() -> None:
        for part in network.chunks(forwards):
            rows = slice(part.stop - part.start)
            if part.start < backwards:
                network.gradient(buffer[rows], targets[rows])
            else:
                network.scores(buffer[rows], targets[rows])

    return passes


class LiveMaps(TorchDispatchMode):
    """Counts the bytes of the tensors [...,tokens,tokens] that live at a time, views once. peak: the most."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.living, self.peak = tokens, 0, 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-2:] == (self.tokens, self.tokens):
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    weakref.finalize(storage, self._gone, storage.nbytes())
                    self.living += storage.nbytes()
                    self.peak = max(self.peak, self.living)
        return found

    def _gone(self, size: int) -> None:
        self.living -= size


def attention_maps(bench: Bench, row: Row, tokens: int, times: int) -> float:
    """The most attention maps of one layer and one whole batch that live at a time, of `times` batches of images."""
    network = bench.network
    heads = next(part.num_heads for part in network.module.modules() if isinstance(part, nn.MultiheadAttention))
    inputs = torch.randn(times * network.batch_size, *network.input_size, device=bench.inputs.device)
    larger = Bench(network, inputs, torch.arange(len(inputs), device=inputs.device) % 10)
    with LiveMaps(tokens) as live:
        larger.attribute(row.ours, row.fitted)
    return live.peak / (network.batch_size * heads * tokens**2 * inputs.element_size())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--model", default="mobilenet_v2", help="smallcnn, smallvit or a name of torchvision's")
    parser.add_argument("--size", type=int, default=64, help="side of the inputs in pixels")
    parser.add_argument("--samples", type=int, default=4, help="images side by side")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, help="of one image: measure memory, for networks of MultiheadAttention")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="1: the processor is timed, not the clock")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    ours = {"smallcnn": SmallCNN, "smallvit": SmallViT}
    # A vision transformer's position embeddings are for one size.
    of_size = {"image_size": options.size} if options.model.startswith("vit") else {}
    module = ours[options.model]() if options.model in ours else get_model(options.model, weights=None, **of_size)
    size = (3, options.size, options.size)
    network = Classifier(options.model, module.to(options.device), size, batch_size=options.batch_size)
    inputs = torch.randn(options.samples, *size, device=options.device)
    bench = Bench(network, inputs, torch.arange(options.samples, device=options.device) % 10)
    print(f"{options.model}, {options.size} pixels, {options.samples} images, {options.batch_size} per call")
    print(f"{options.device}, {options.threads} threads, torch {torch.__version__}, captum {captum.__version__}")
    print("method                          passes  seconds    limit   theirs   ours/limit   ours/theirs")
    for name in options.methods:
        row = ROWS[name](bench)
        works = [lambda: bench.attribute(row.ours, row.fitted), bare(bench, row.ours), row.theirs]  # noqa: B023
        try:
            row.ours.check(network)
        except Refusal as refusal:
            print(f"{name:25s} refuses: {str(refusal)[:80]}", flush=True)
            continue
        if options.tokens:
            one, four = (attention_maps(bench, row, options.tokens, times) for times in (1, 4))
            print(f"{name:25s} attention maps at a time: {one:.2f} with one batch, {four:.2f} with four", flush=True)
            continue
        try:
            row.theirs()
        except (TypeError, KeyError) as error:
            print(f"{name:25s} {row.beside} cannot: {str(error)[:80]}", flush=True)
            continue
        rounds = [[seconds(work, options.device) for work in works] for _ in range(1 + options.rounds)][1:]
        ours, limit, theirs = (statistics.median(column) for column in zip(*rounds))
        over_limit = statistics.median(a / b for a, b, _ in rounds)
        over_theirs = statistics.median(a / c for a, _, c in rounds)
        passes = "{}+{}".format(*row.ours.cost(network))
        times = f"{ours:8.2f} {limit:8.2f} {theirs:8.2f}   {over_limit:10.3f}   {over_theirs:11.3f} ({row.beside})"
        print(f"{name:25s} {passes:>12s} {times}", flush=True)


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of a call, the device's queue emptied before and after; processor time where there is one thread."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
