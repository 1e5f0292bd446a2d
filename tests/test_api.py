"""The front door: the snippet as written, the user's module as it was, and the numbers of a run to the bit."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import xaibench as xb
from tests.engine.helpers import prepared, rows_of
from xaibench.models import checkpoint, smallcnn

SNIPPET = xb.__doc__.split("\n\n")
ARGV = list(sys.argv)


@pytest.fixture
def module():
    """The bundled network, in training mode with its gradients on."""
    net = smallcnn.SmallCNN()
    net.load_state_dict(
        checkpoint.read(Path(smallcnn.__file__).parent / "checkpoints/smallcnn_object.safetensors", "w")
    )
    return net.train()


@pytest.fixture
def net(module):
    return xb.Classifier(module, mean=[0.5] * 3, std=[0.25] * 3, layers={"last_conv": "features.12"})


def images_of(setting) -> torch.Tensor:
    """Pixels [B,C,H,W] of the samples of a setting."""
    return setting.preprocessing.denormalise(setting.split.load(setting.samples).inputs).clamp(0, 1)


def test_the_snippet_runs_as_written(here, module):
    (snippet,) = [text for text in SNIPPET if "xb.explain" in text or "xb.Classifier" in text][:1]
    names = {"module": module, "images": torch.rand(2, 3, 64, 64)}
    lines = "\n".join(line.strip() for text in SNIPPET for line in text.splitlines() if line.startswith("    "))
    lines = lines.replace('"iba", ', "").replace("limit=48", "limit=3")  # what takes minutes
    exec(lines, names)
    assert snippet and names["maps"].shape == (2, 3, 64, 64)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    assert sys.argv == ARGV and Path.cwd() == here
    board = xb.leaderboard("results")
    assert set(board["method"]) == {"gradcam", "random"}


def test_importing_loads_nothing_heavy():
    code = "import sys, xaibench; print(*sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)), dir(xaibench))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == str(sorted(xb.__all__)), found.stderr
    for name in xb.__all__:
        assert getattr(xb, name)


def test_without_what_windows_lacks_everything_imports_and_commands_say_so():
    code = """
import signal, sys
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios")))
del signal.SIGUSR2
import xaibench, xaibench.cli
for name in xaibench.__all__:
    getattr(xaibench, name)
sys.platform = "win32"
sys.exit(xaibench.cli.main(["list"]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert "the commands need Linux or macOS" in run.stderr and "WSL" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("gradient", {}), ("integrated_gradients", {"steps": 7}), ("gradcam", {}), ("occlusion", {}), ("lrp_epsilon", {})],
)
def test_maps_are_those_of_a_run_to_the_bit(here, net, method, parameters):
    overrides = [f"method.{name}={value}" for name, value in parameters.items()]
    scoring = prepared(here, f"method={method}", *overrides, "dataset.limit=5", "target=predicted")
    expected = rows_of(scoring, scoring.maps.stage)["maps"]
    inputs = scoring.setting.split.load(scoring.setting.samples).inputs
    images = images_of(scoring.setting)
    assert torch.equal(scoring.setting.preprocessing.normalise(images), inputs)
    assert np.array_equal(xb.explain(net, images, method, **parameters), expected)


def test_scores_are_those_of_a_run(here, net):
    for metric, parameters in (
        ("degradation", {"tile": 16}),
        ("insertion_deletion", {}),
        ("sensitivity_n", {"sets": 4}),
    ):
        overrides = [f"metric.{name}={value}" for name, value in parameters.items()]
        board = xb.run("gradient", metric, limit=6, overrides=["target=predicted", *overrides])
        setting = prepared(here, "dataset.limit=6", "target=predicted").setting
        maps = xb.explain(net, images_of(setting), "gradient")
        found = xb.score(net, images_of(setting), maps, metric, **parameters)
        assert found["statistic"].tolist() == board["statistic"].tolist()
        if metric == "sensitivity_n":  # its sets are drawn by sample id, and these images have others
            continue
        # Under other sample ids the same values are added up, and resampled, in another order.
        np.testing.assert_allclose(found["value"], board["value"], rtol=1e-12)
        assert found["n"].tolist() == board["n"].tolist()


def test_noise_is_drawn_by_sample_id_as_in_a_run_over_a_folder(here, net):
    for number in range(3):
        (here / "photos" / "a").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(here / "photos" / "a" / f"{number}.png")
    folder = ("dataset=imagefolder", "dataset.root=photos", "target=predicted")
    scoring = prepared(here, *folder, "method=smoothgrad", "method.samples=4", "seed=3")
    rows = rows_of(scoring, scoring.maps.stage)
    order = np.argsort(rows["sample"])
    setting = scoring.setting
    images = setting.preprocessing.denormalise(setting.split.load(range(3)).inputs).clamp(0, 1)
    maps = xb.explain(net, images, "smoothgrad", samples=4, seed=3)
    np.testing.assert_allclose(maps, rows["maps"][order], rtol=1e-4, atol=1e-6)


def test_integrated_gradients_are_captums(net, module):
    from captum.attr import IntegratedGradients

    images, targets = torch.rand(3, 3, 64, 64), torch.tensor([1, 5, 0])
    inputs = (images - 0.5) / 0.25
    theirs = IntegratedGradients(module.eval()).attribute(inputs, torch.zeros_like(inputs), targets, n_steps=20)
    ours = xb.explain(net, images, "integrated_gradients", steps=20, quadrature="gausslegendre", targets=targets)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-5)


def test_own_methods_and_metrics(net):
    class Half(xb.Method):
        """Half of the gradient."""

        def attribute(self, classifier, inputs, targets, context):
            return classifier.gradient(inputs, targets) / 2

    class Positive(xb.Metric):
        """The share of positive values."""

        statistics = (xb.Statistic("positive", "target", "share", target=0.5),)

        def evaluate(self, classifier, batch, maps, context):
            return {"share": (maps > 0).double().mean((1, 2))}

    images = torch.rand(3, 3, 64, 64)
    maps = xb.explain(net, images, Half())
    assert torch.equal(maps * 2, xb.explain(net, images, "gradient"))
    found = xb.score(net, images, maps, Positive())
    expected = (maps.sum(1) > 0).double().mean((1, 2)).mean().item()
    assert found["value"].tolist() == pytest.approx([expected]) and found["n"].tolist() == [3]


def test_methods_that_estimate_something_get_images_to_do_so(net, module):
    images = torch.rand(2, 3, 64, 64)
    with pytest.raises(xb.UserError, match="fit=images"):
        xb.explain(net, images, "iba", layer="features.6", steps=2)
    maps = xb.explain(net, images, "iba", layer="features.6", steps=2, fit=torch.rand(8, 3, 64, 64))
    assert maps.shape == (2, 1, 64, 64) and maps.min() >= 0 and maps.max() > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, x: xb.explain(net, x, "integrated_gradient"), ["method=integrated_gradient", "did you mean"]),
        (lambda net, x: xb.explain(net, x, "gradient", stepz=3), ["method.stepz", "is not a parameter"]),
        (lambda net, x: xb.explain(net, x * 255, "gradient"), ["expected 0 to 1", "Classifier"]),
        (lambda net, x: xb.explain(net, x[0], "gradient"), ["[3, 64, 64]", "[B,C,H,W]"]),
        (lambda net, x: xb.explain(net, x, "gradient", targets=10), ["classes 0 to 9"]),
        (lambda net, x: xb.explain(net, x[:, :1], "gradient"), ["the image has 1 channels", "model.mean has 3"]),
        (lambda net, x: xb.score(net, x, x, "pointing_game"), ["metric=pointing_game", "masks"]),
        (lambda net, x: xb.score(net, x, x, "grid_pointing_game"), ["inputs of its own", "method=maps"]),
        (lambda net, x: xb.score(net, x, x[:1], "degradation"), ["1 for 2 images"]),
        (lambda net, x: xb.score(net, x, x, "roar"), ["has no recipe"]),
        (lambda net, x: xb.run("gradcm", limit=2), ["method=gradcm", "did you mean 'gradcam'"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(here, net, call, words):
    with warnings.catch_warnings(), pytest.raises(xb.UserError) as error:
        warnings.simplefilter("ignore")
        call(net, torch.rand(2, 3, 64, 64))
    assert all(word in str(error.value) for word in words), error.value
    assert len(str(error.value).splitlines()) <= 2


def test_a_run_leaves_logging_and_the_working_directory_alone(here, caplog):
    handlers = list(logging.getLogger("xaibench").handlers), list(logging.getLogger().handlers)
    before = os.getcwd(), dict(os.environ)
    with pytest.warns(UserWarning, match="method=dtd_full"):
        board = xb.run(["gradient", "dtd_full"], "sparseness", limit=2)
    assert board["method"].tolist() == ["gradient"]
    assert (list(logging.getLogger("xaibench").handlers), list(logging.getLogger().handlers)) == handlers
    assert (os.getcwd(), dict(os.environ)) == before
