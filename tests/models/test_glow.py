"""The flow against closed forms, autograd and another implementation (normflows 1.7.3, where it is installed)."""

import copy
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tests.models.helpers import Stripes
from xaibench.datasets.base import Samples
from xaibench.datasets.images import Images
from xaibench.datasets.two4two import Two4Two
from xaibench.errors import Refusal, UserError
from xaibench.models.glow import ActNorm, AffineCoupling, FadeOut, Glow, InvertibleConv, Squeeze
from xaibench.models.loading import BUNDLED, load_classifier
from xaibench.models.losses import loss_of, objective
from xaibench.models.preprocessing import Preprocessing
from xaibench.models.recipe import Recipe
from xaibench.models.stacked import train_stacked
from xaibench.models.train import train
from xaibench.rng import generator

IMAGES = Images(Samples(Stripes((8,)), Preprocessing(), range(50)))


def disturbed(module: nn.Module, size: float = 0.2) -> nn.Module:
    """A network in float64 none of whose layers is the identity any more."""
    draw = generator("glow")
    for parameter in module.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=draw) / max(1, parameter[0].numel()) ** 0.5
    return module.double().eval().requires_grad_(False)


def make(**changes) -> Glow:
    torch.manual_seed(0)
    shape = dict(steps=(1, 2), widths=(8, 8), tap=1, side=8, channels=3)
    return disturbed(Glow(**{**shape, **changes}))


def images(count: int, *shape: int) -> torch.Tensor:
    return torch.rand(count, *shape, generator=generator("images"), dtype=torch.float64)


def jacobian(function, x: torch.Tensor) -> torch.Tensor:
    """[D,D] of a function of one input [1,C,H,W] that returns as many numbers."""
    return torch.autograd.functional.jacobian(lambda row: function(row.view_as(x)).flatten(), x.flatten())


@pytest.mark.parametrize(
    "layer",
    [Squeeze(), ActNorm(4), InvertibleConv(4), AffineCoupling(4, 6), AffineCoupling(4, 6, kernel=1)],
    ids=["squeeze", "actnorm", "conv", "coupling", "coupling_1x1"],
)
def test_a_layer_inverts_and_its_log_determinant_is_that_of_autograds_jacobian(layer):
    layer, x = disturbed(layer), images(2, 4, 4, 4)
    y, log_det = layer.transform(x)
    torch.testing.assert_close(layer.inverse(y), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    for row in range(2):
        expected = torch.linalg.slogdet(jacobian(layer, x[row : row + 1]))[1]
        assert log_det[row].item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_log_determinant_of_a_network_is_that_of_autograds_jacobian():
    net, x = make(channels=2, side=4), images(1, 2, 4, 4)

    def flat(x: torch.Tensor) -> torch.Tensor:
        z, kept, _ = net.encode(x)
        return torch.cat([part.flatten() for part in (z, *kept)])

    expected = torch.linalg.slogdet(jacobian(flat, x))[1].item()
    assert abs(expected) > 0.1 and net.encode(x)[2].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("net, bound", [(make(), 1e-9), (disturbed(Glow(), 0.05), 1e-9), (Glow().eval(), 1e-4)])
def test_decoding_undoes_encoding(net, bound):
    """The last two are of the default size: in float64, and in float32 as it is run."""
    channels = 3
    x = images(3, channels, *((64, 64) if len(net.flow) > 20 else (8, 8))).to(net.head.weight)
    z, kept, _ = net.encode(x)
    assert (net.decode(z, kept) - x).abs().max() < bound
    torch.testing.assert_close(net.head(z.flatten(1)), net(x), rtol=0, atol=0)


def test_decoding_can_start_at_any_layer_of_the_flow():
    net, x = make(), images(2, 3, 8, 8)
    _, kept, _ = net.encode(x)
    values = x
    for number, layer in enumerate(net.flow):
        values = layer(values)
        if not isinstance(layer, FadeOut):
            assert (net.decode_from(f"flow.{number}", values, kept) - x).abs().max() < 1e-9, number
    with pytest.raises(ValueError, match=r"tail\.0 is not in the flow"):
        net.decode_from("tail.0", values, kept)


def test_a_step_along_the_heads_weights_moves_the_logit_by_its_length():
    """f(decode(z + a w)) - f(x) = a |w|^2, with f one logit, or the difference of two and w that of their weights."""
    net, x = make(num_classes=3), images(4, 3, 8, 8)
    z, kept, _ = net.encode(x)
    weight = net.head.weight
    for first, second in ((0, None), (2, 0)):
        w = weight[first] - (0 if second is None else weight[second])
        before, after = net(x), net(net.decode(z + 0.7 * w.view_as(z[:1]), kept))
        change = (after - before)[:, first] - (0 if second is None else (after - before)[:, second])
        torch.testing.assert_close(change, (0.7 * w @ w).expand(4), rtol=0, atol=1e-6)


def test_fresh_couplings_leave_a_linear_map():
    torch.manual_seed(0)
    net = Glow(steps=(2,), widths=(4,), tap=2, side=4, channels=1).double().eval()
    squeeze, _, one, _, _, two, _ = net.flow
    x = images(2, 1, 4, 4)
    matrix = torch.linalg.multi_dot([a @ b for layer in (two, one) for a, b in [layer.factors()]])
    expected = torch.einsum("ij,bjhw->bihw", matrix, squeeze(x))
    torch.testing.assert_close(net.encode(x)[0], expected)
    assert net.encode(x)[2].abs().max() < 1e-5  # rotations, made in float32


def test_the_first_batch_of_a_training_sets_the_actnorm_and_no_other():
    layer, x = ActNorm(3).double(), 5 + 2 * torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=generator(0))
    torch.testing.assert_close(layer.eval()(x), x)
    y = layer.train()(x)
    assert y.mean((0, 2, 3)).abs().max() < 1e-12 and (y.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-12
    layer(100 * x)
    torch.testing.assert_close(layer(x), y)
    again = ActNorm(3).double().train()
    again.load_state_dict(layer.state_dict())
    again(100 * x)
    torch.testing.assert_close(again(x), y)
    alone = ActNorm(3).double().train()
    assert alone(x[:1, :, :1, :1]).isfinite().all()


def test_bits_per_dimension_are_those_of_the_density_of_gaussian_pixels():
    """A flow of one linear step makes the images a Gaussian, whose density scipy knows."""
    stats = pytest.importorskip("scipy.stats")
    net, x = disturbed(Glow(steps=(1,), widths=(4,), tap=0, side=4, channels=1)), images(3, 1, 4, 4)
    for layer in net.tail:
        if isinstance(layer, AffineCoupling):
            layer.net[-1].weight.zero_(), layer.net[-1].bias.zero_()  # s = 1, t = 0

    def prior(x: torch.Tensor) -> torch.Tensor:
        z = net.encode(x)[0]
        for layer in net.tail:
            z = layer(z)
        return z.flatten()

    matrix = jacobian(prior, x[:1])
    mean = torch.linalg.solve(matrix, -prior(torch.zeros_like(x[:1])))
    gaussian = stats.multivariate_normal(mean.numpy(), torch.linalg.inv(matrix.T @ matrix).numpy())
    expected = [math.log2(255) - gaussian.logpdf(row.flatten().numpy()) / math.log(2) / 16 for row in x]
    torch.testing.assert_close(net.answers_and_bits(x)[1], torch.tensor(expected, dtype=torch.float64))


def test_the_layers_behind_the_latent_learn_from_the_flow_alone():
    inputs, labels = images(4, 3, 8, 8).float(), torch.tensor([0, 1, 0, 1])
    gradients = []
    for supervised in (0.0, 5.0):
        net = make().float().requires_grad_(True)
        objective("flow", net, inputs, labels, generator(0), supervised).loss.backward()
        gradients.append(net)
    one, other = gradients
    for ours, theirs in zip(one.tail.parameters(), other.tail.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert not one.head.weight.grad.abs().any() and other.head.weight.grad.abs().any()
    assert not torch.allclose(one.flow[2].log_s.grad, other.flow[2].log_s.grad)


def test_the_flow_loss_is_bits_plus_weighted_cross_entropy_of_dequantised_inputs():
    net, inputs, labels = make(), images(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    found = objective("flow", net, inputs, labels, generator(7), 0.25)
    logits, bits = net.answers_and_bits(inputs + torch.rand(4, 3, 8, 8, generator=generator(7)) / 255)
    expected = bits.mean() - 0.25 * logits.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.reported["bits_per_dimension"], bits.mean())


def test_a_flow_is_trained_by_recipe_and_says_its_bits():
    torch.manual_seed(0)
    net = Glow(steps=(1, 1), widths=(8, 8), tap=1, side=8).train()
    recipe = Recipe(epochs=3, batch_size=10, lr=0.005, optimizer="adam", loss="flow")
    history = train(net, recipe, IMAGES)
    assert set(history) == {"loss", "accuracy", "bits_per_dimension"}
    assert history["bits_per_dimension"][-1] < history["bits_per_dimension"][0] - 0.1
    x, _ = IMAGES.batch(torch.arange(5), net.head.weight)
    z, kept, _ = net.encode(x)
    assert (net.decode(z, kept) - x).abs().max() < 1e-4


def test_losses_by_name():
    logits, labels = torch.randn(5, 1, generator=generator(0)), torch.tensor([0, 1, 1, 0, 1])
    assert loss_of(logits, labels) == loss_of(logits, labels, "squared_error") == ((logits[:, 0] - labels) ** 2).mean()
    assert loss_of(logits, torch.zeros(5, dtype=torch.int64), "cross_entropy") == 0
    with pytest.raises(UserError, match="squared_error: the network has 2 outputs, expected one"):
        loss_of(torch.zeros(5, 2), labels, "squared_error")


def test_recipes_that_name_no_loss_keep_their_keys():
    old = dict(epochs=1, batch_size=2, lr=0.1, optimizer="sgd", momentum=0.9, weight_decay=0.0, schedule="constant")
    old |= dict(augment="none", batch_norm="as_is", select="last", seed=0)
    assert Recipe(epochs=1, batch_size=2, lr=0.1).described() == old
    assert Recipe(epochs=1, batch_size=2, lr=0.1, loss="flow").described() == {**old, "loss": "flow"}


@pytest.fixture(scope="module")
def bundled() -> tuple[Glow, torch.Tensor, torch.Tensor]:
    """The bundled network in evaluation mode, and 300 test images of the study's set with their labels."""
    conf = Path(__file__).parents[2] / "conf"
    spec = yaml.safe_load((conf / "model" / "two4two_inn.yaml").read_text())
    bias = yaml.safe_load((conf / "dataset" / "two4two.yaml").read_text())["bias"]
    data = Two4Two("test", bias)
    labels, factors = data.scenes(range(300))
    classifier = load_classifier("two4two_inn", spec)
    return classifier.module, data.draw(factors)[0].float() / 255, torch.from_numpy(labels)


@torch.no_grad()
def test_the_bundled_network_is_right_and_small(bundled):
    net, x, labels = bundled
    # 94.0 % of these; results/reference has all of the 5000 test images.
    assert (net(x).argmax(1) == labels).float().mean() >= 0.93
    assert (BUNDLED / "two4two_inn.safetensors").stat().st_size < 4_000_000
    # Two classes, logits f and -f: a map of one explains their difference.
    assert net(x).sum(1).abs().max() < 1e-3


@torch.no_grad()
def test_the_bundled_network_codes_images_better_than_gaussian_pixels(bundled, script):
    net, x, _ = bundled
    noisy = x + torch.rand(x.shape, generator=generator("dequantise")) / 255
    gaussian = script("train_two4two_inn").gaussian_bits(x)
    assert net.answers_and_bits(noisy)[1].mean() < gaussian - 1


@torch.no_grad()
def test_the_bundled_network_runs_backwards(bundled):
    net, x, _ = bundled
    z, kept, _ = net.encode(x[:32])
    assert (net.decode(z, kept) - x[:32]).abs().max() < 1e-4
    exact = copy.deepcopy(net).double()
    z, kept, _ = exact.encode(x[:8].double())
    assert (exact.decode(z, kept) - x[:8]).abs().max() < 1e-9
    # The head's identity, before clipping.
    w = exact.head.weight[1] - exact.head.weight[0]
    moved = exact(exact.decode(z + (0.5 * w).view_as(z[:1]), kept)) - exact(x[:8].double())
    torch.testing.assert_close(moved[:, 1] - moved[:, 0], (0.5 * w @ w).expand(8), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_bundled_networks_flips_are_pictures(bundled):
    """A short step, hardly out of the range of pixels, after which the clipped 8-bit image has the other class."""
    net, x, _ = bundled
    z, kept, _ = net.encode(x[:64])
    f = net(x[:64]) @ torch.tensor([-1.0, 1.0])
    w = net.head.weight[1] - net.head.weight[0]
    step = -2 * f[:, None] / (w @ w) * w
    flipped = net.decode(z + step.view_as(z), kept)
    assert (step.norm(dim=1) / z.flatten(1).norm(dim=1)).max() < 0.1
    assert ((flipped > -0.3) & (flipped < 1.3)).float().mean() > 0.995
    pixels = (flipped.clamp(0, 1) * 255).round() / 255
    assert (net(pixels).argmax(1) != net(x[:64]).argmax(1)).all()


def test_what_cannot_be_is_refused():
    recipe = Recipe(epochs=1, batch_size=10, lr=0.1, loss="flow")
    with pytest.raises(UserError, match=r"loss=flow: Sequential does not say how likely[^*]*model=two4two_inn"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), recipe, IMAGES)
    with pytest.raises(Refusal, match=r"metric\.stack=1"):
        train_stacked([Glow()], recipe, [IMAGES], [0])
    with pytest.raises(ValueError, match="side=12: 3 blocks"):
        Glow(steps=(1, 1, 1), widths=(4, 4, 4), side=12)
    with pytest.raises(ValueError, match="one of each per block"):
        Glow(steps=(1, 1), widths=(4,))
    with pytest.raises(ValueError, match="tap=3: the last block has 1 steps"):
        Glow(steps=(1,), widths=(4,), tap=3)
    with pytest.raises(UserError, match="supervised=-1"):
        Recipe(epochs=1, batch_size=1, lr=0.1, supervised=-1)


@pytest.mark.parametrize("name", ["actnorm", "conv", "coupling"])
def test_layers_equal_those_of_normflows(name):
    """Their `inverse` goes from data to latent, as our `transform`; their sigmoid has no 0.5, so scale is `exp`."""
    flows = pytest.importorskip("normflows").flows
    x = images(3, 4, 5, 5)
    if name == "actnorm":
        ours, theirs = disturbed(ActNorm(4)), flows.ActNorm((4, 1, 1)).double()
        # Theirs is x -> (x - t) / exp(s).
        theirs.s.data, theirs.t.data = -ours.log_scale[None], -ours.shift[None]
        theirs.data_dep_init_done.fill_(1)
    elif name == "conv":
        ours, theirs = disturbed(InvertibleConv(4)), flows.Invertible1x1Conv(4, use_lu=True).double()
        theirs.P.copy_(torch.eye(4)[ours.order])
        theirs.L.data, theirs.U.data = ours.triangles.tril(-1), ours.triangles.triu(1)
        theirs.sign_S.copy_(ours.sign)
        theirs.log_S.data = ours.log_s.data
    else:
        ours = disturbed(AffineCoupling(4, 6))

        class Net(nn.Module):
            def forward(self, a):
                scale, shift = ours.scale_and_shift(a)
                # Theirs takes shift and log-scale from alternating channels, and applies them the other way round.
                return torch.stack([-shift / scale, -scale.log()], 2).flatten(1, 2)

        theirs = flows.AffineCouplingBlock(Net(), scale_map="exp")
    y, log_det = ours.transform(x)
    their_y, their_log_det = theirs.inverse(x)
    torch.testing.assert_close(y, their_y)
    torch.testing.assert_close(log_det, their_log_det.expand(3))


def test_label_smoothing_is_the_mean_over_labels_drawn_anew():
    """A tenth of the labels, drawn anew among two classes, are wrong half of the time."""
    logits, labels = torch.randn(6, 2, generator=generator(1), dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = 0.95 * loss_of(logits, labels) + 0.05 * loss_of(logits, 1 - labels)
    torch.testing.assert_close(loss_of(logits, labels, label_smoothing=0.1), expected)
    net, inputs = make(), images(6, 3, 8, 8)
    plain, smooth = (objective("flow", net, inputs, labels, generator(7), 2.0, None, share) for share in (0.0, 0.1))
    change = loss_of(plain.logits, labels, label_smoothing=0.1) - loss_of(plain.logits, labels)
    torch.testing.assert_close(smooth.loss - plain.loss, 2 * change)


def test_images_outside_the_range_are_refused():
    inputs = 2 * images(2, 3, 8, 8) - 0.5
    with pytest.raises(UserError, match=r"loss=flow: inputs from -0\.\d+ to 1\.\d+, expected pixels from 0 to 1"):
        objective("flow", make(), inputs, torch.tensor([0, 1]))
