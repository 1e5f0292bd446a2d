"""Noise around any method, baselines, expected gradients: against closed forms and loops."""

import pytest
import torch

from tests.methods.helpers import samples
from tests.methods.nets import SIZE, Linear, VGGLike, classifier, seeded
from xaibench.errors import Refusal
from xaibench.methods.baselines import BASELINES, COUNTERFACTUALS, Baselines
from xaibench.methods.context import Context
from xaibench.methods.controls.controls import Random
from xaibench.methods.gradients.expected_gradients import ExpectedGradients
from xaibench.methods.gradients.gradient import Saliency
from xaibench.methods.gradients.integrated_gradients import IntegratedGradients
from xaibench.methods.gradients.smoothgrad import SmoothGrad
from xaibench.perturb.fills import OF_WORDS, filled, noise
from xaibench.rng import sample_generators


@pytest.fixture
def batch():
    return seeded(5), torch.arange(5)


def generators():
    return sample_generators(0, "maps", range(5))


def linear_weights(network, targets):
    return network.module.layer.weight[targets].view(-1, *SIZE)


# ---- noise around a method -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["mean", "square", "variance"])
@pytest.mark.parametrize("inner", [IntegratedGradients(3), Saliency()], ids=["ig", "saliency"])
def test_moments_of_any_method(inner, aggregate, batch):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=7)
    maps = SmoothGrad(6, 0.3, aggregate, method=inner).attribute(network, inputs, targets, Context(generators()))
    one = []
    for sample, generator in enumerate(generators()):
        std = 0.3 * (inputs[sample].max() - inputs[sample].min())
        noisy = torch.stack([inputs[sample] + std * torch.randn(SIZE, generator=generator).double() for _ in range(6)])
        one.append(inner.attribute(network, noisy, targets[sample].expand(6), Context()))
    one = torch.stack(one)
    expected = {"mean": one.mean(1), "square": one.square().mean(1), "variance": one.var(1, unbiased=False)}[aggregate]
    assert torch.allclose(maps, expected, rtol=1e-9, atol=1e-12)


def test_noise_in_units_of_the_input(batch):
    """Noise on integrated gradients of a linear model moves them by w times the noise."""
    inputs, targets = batch
    network = classifier(Linear())
    method = SmoothGrad(4000, 0.7, "variance", "input", IntegratedGradients(1))
    variance = method.attribute(network, inputs[:1], targets[:1], Context(generators()[:1]))
    expected = (0.7 * linear_weights(network, targets[:1])) ** 2
    assert (variance / expected).mean() == pytest.approx(1, abs=0.01)


def test_a_random_method_draws_anew_for_each_copy_whatever_the_batch(batch):
    method = SmoothGrad(400, method=Random())
    maps = [method.attribute(classifier(VGGLike(), batch_size=size), *batch, Context(generators())) for size in (3, 64)]
    assert maps[0].shape == (5, 1, *SIZE[1:])
    assert torch.allclose(*maps, rtol=1e-12, atol=1e-15)
    # The mean of 400 independent standard normal values.
    assert maps[0].var().sqrt() == pytest.approx(0.05, rel=0.05)


def test_a_wrapper_is_what_its_method_is():
    method = SmoothGrad(3, method=Saliency())
    assert method.collapse == "max_abs" and method.fit is None
    assert SmoothGrad(3, method=IntegratedGradients(7, ["black", "dataset"])).cost(None) == (3 * 7 * 11,) * 2
    network = classifier(VGGLike())
    fitting = SmoothGrad(2, 0, method=IntegratedGradients(3, "dataset", references=2))
    fitted = fitting.fit(network, samples(), torch.Generator().manual_seed(1))
    inputs, targets = seeded(3), torch.arange(3)
    maps = fitting.attribute(network, inputs, targets, Context(generators()[:3], fitted=fitted))
    plain = fitting.method.attribute(network, inputs, targets, Context(fitted=fitted))
    assert torch.allclose(maps, plain, rtol=1e-12)


# ---- baselines -------------------------------------------------------------------------------------------------------


def baselines_of(words, network, inputs, **keywords):
    settings = {"sigma": 2.0, "value": 0.3, "references": 3} | keywords
    baselines = Baselines(words, **settings)
    fitted = baselines.fit(network, samples(), torch.Generator().manual_seed(0)) if baselines.from_data else {}
    return baselines.of(network, inputs, Context(generators(), fitted))


def test_words(batch):
    inputs, _ = batch
    network = classifier(VGGLike())
    words = [word for word in BASELINES[:-1] if word not in (*COUNTERFACTUALS, *OF_WORDS)]
    found = dict(zip(words, baselines_of(words, network, inputs)))
    assert torch.equal(found["zero_normalised"], found["zero"]) and not found["zero"].any()
    pixels = {word: network.preprocessing.denormalise(tensor) for word, tensor in found.items()}
    for word, value in (("black", 0.0), ("white", 1.0), ("value", 0.3)):
        assert torch.allclose(pixels[word], torch.full_like(inputs, value), atol=1e-12)
    assert torch.equal(found["blur"], filled(inputs, "blur", network.preprocessing, 2.0))
    assert torch.equal(found["noise"], noise(inputs, network.preprocessing, generators()))
    assert 0 <= pixels["noise"].min() < 0.01 and 0.99 < pixels["noise"].max() <= 1
    assert pixels["noise"].std() == pytest.approx(12**-0.5, rel=0.05)
    assert pixels["reference"].min() >= 0 and pixels["reference"].max() <= 1
    assert pixels["reference"].mean() == pytest.approx(0.5, abs=0.01)
    assert pixels["reference"].std() == pytest.approx(0.1, rel=0.05)


def test_dataset_is_images_of_the_fit_split(batch):
    network = classifier(VGGLike())
    references = baselines_of("dataset", network, batch[0])
    there = samples().load(range(40)).inputs.double()
    assert len(references) == 3
    for reference in references:
        assert (there == reference[0]).all(dim=(1, 2, 3)).sum() == 1
        assert torch.equal(reference[0], reference[4])
    with pytest.raises(Refusal, match="references=41: there are 40 samples"):
        baselines_of("dataset", network, batch[0], references=41)


def test_two_noises_differ(batch):
    first, second = baselines_of(["noise", "noise"], classifier(VGGLike()), batch[0])
    assert not torch.equal(first, second)


def test_several_baselines_are_averaged(batch):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=4)
    words = ["black", "value", "blur"]
    maps = IntegratedGradients(5, words).attribute(network, inputs, targets, Context(generators()))
    each = [IntegratedGradients(5, word).attribute(network, inputs, targets, Context(generators())) for word in words]
    assert torch.allclose(maps, torch.stack(each).mean(0), rtol=1e-12)


def test_the_two_factors(batch):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=4)
    product, gradient, difference = (
        IntegratedGradients(5, "white", factor=factor).attribute(network, inputs, targets, Context())
        for factor in ("product", "average_gradient", "difference")
    )
    assert torch.allclose(product, gradient * difference, rtol=1e-12)
    assert torch.equal(difference, inputs - filled(inputs, "white", network.preprocessing))
    path = [filled(inputs, "white", network.preprocessing) + k / 5 * difference for k in range(1, 6)]
    average = torch.stack([network.gradient(point, targets) for point in path]).mean(0)
    assert torch.allclose(gradient, average, rtol=1e-5)  # the points differ in the last bits of single precision


# ---- expected gradients ----------------------------------------------------------------------------------------------


def test_expected_gradients_of_a_linear_model(batch):
    """With every baseline drawn many times the mean goes to w (x - mean baseline), and sums to f(x) - mean f(x')."""
    inputs, targets = batch
    network = classifier(Linear())
    method = ExpectedGradients(3000, references=4)
    fitted = method.fit(network, samples(), torch.Generator().manual_seed(0))
    maps = method.attribute(network, inputs, targets, Context(generators(), fitted=fitted))
    mean = fitted["references"].double().mean(0)
    expected = linear_weights(network, targets) * (inputs - mean)
    assert (maps - expected).abs().max() < 0.05 * expected.abs().max()


def test_expected_gradients_of_one_baseline_go_to_integrated_gradients(batch):
    inputs, targets = batch
    network = classifier(VGGLike(), batch_size=500)
    maps = ExpectedGradients(3000, "black").attribute(network, inputs[:2], targets[:2], Context(generators()[:2]))
    expected = IntegratedGradients(300, "black").attribute(network, inputs[:2], targets[:2], Context())
    assert (maps - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        (IntegratedGradients, {"baseline": []}, "expected at least one word"),
        (IntegratedGradients, {"baseline": ["black", "wihte"]}, "baseline=wihte: did you mean 'white'"),
        (IntegratedGradients, {"value": 1.5}, "value=1.5: expected a pixel value from 0 to 1"),
        (IntegratedGradients, {"factor": "both"}, "factor=both: choose from: product"),
        (IntegratedGradients, {"references": 0}, "references=0: expected at least 1"),
        (ExpectedGradients, {"samples": 0}, "samples=0: expected at least 1"),
        (ExpectedGradients, {"noise": -1}, "noise=-1: expected 0 or more"),
        (ExpectedGradients, {"unit": "pixel"}, "unit=pixel: choose from: range, input"),
        (SmoothGrad, {"unit": "pixel"}, "unit=pixel: choose from: range, input"),
    ],
)
def test_bad_parameters_are_named(kind, parameters, message):
    with pytest.raises(ValueError, match=message):
        kind(**parameters)


def test_dataset_needs_its_fit(batch):
    with pytest.raises(Refusal, match="baseline=dataset needs the references"):
        ExpectedGradients().attribute(classifier(VGGLike()), *batch, Context(generators()))


# ---- on the command line ---------------------------------------------------------------------------------------------


QUICK = ("dataset.limit=2", "metric.steps=2", "fit.limit=5", "fit.split=test")


def test_runs_fit_only_where_there_is_something_to_fit(xaibench, here):
    assert xaibench("run", "method=integrated_gradients", "method.steps=2", *QUICK)[0] == 0
    assert not list(here.glob("cache/fits"))
    words = ("method.baseline=[black,dataset]", "method.references=2", "method.steps=2")
    assert xaibench("run", "method=integrated_gradients", *words, *QUICK)[0] == 0
    assert len(list(here.glob("cache/fits/*/*/integrated_gradients/*/spec.json"))) == 1
    found = "\n".join(path.read_text() for path in here.glob("results/scores/**/*.json"))
    assert "fit.limit=5" in found


def test_a_method_within_a_method_is_part_of_the_key(xaibench, here):
    for steps in (1, 2):
        inner = f"method.method.steps={steps}"
        assert xaibench("run", "method=smoothgrad_ig", "method.samples=2", inner, *QUICK)[0] == 0
    specs = [path.read_text() for path in here.glob("cache/maps/*/*/smoothgrad_ig/*/spec.json")]
    assert len(specs) == 2
    assert all(spec.count('"version"') >= 2 for spec in specs)
    code, _, said = xaibench("run", "method=smoothgrad", "+method.method.stpes=1", *QUICK)
    assert code == 2 and "method.method.stpes is not a parameter" in said


def test_unknown_words_get_the_nearest(xaibench):
    for value in ("blakc", "[white,blakc]"):
        code, _, said = xaibench("run", "method=integrated_gradients", f"method.baseline={value}", *QUICK)
        assert code == 2 and "'black'" in said, said
