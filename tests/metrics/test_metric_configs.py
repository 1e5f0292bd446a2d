"""What the metric yamls say: every parameter with its default, and mistakes named."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xaibench.build import bind, build
from xaibench.errors import UserError
from xaibench.metrics.base import Measure

YAMLS = sorted((Path(__file__).parents[2] / "conf" / "metric").glob("*.yaml"))
SPECS = {path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in YAMLS}


@pytest.mark.parametrize("name", SPECS)
def test_yaml_names_every_parameter_with_its_default(name):
    target, bound = bind(SPECS[name], "metric")
    defaults = {key: parameter.default for key, parameter in inspect.signature(target).parameters.items()}
    assert list(bound) == list(defaults) == list(SPECS[name])[1:]
    # Two yamls may share a class: one of them states its defaults.
    sharing = [spec for spec in SPECS.values() if spec["_target_"] == SPECS[name]["_target_"]]
    assert defaults in [bind(spec, "metric")[1] for spec in sharing]
    assert isinstance(build(SPECS[name], "metric"), Measure)


@pytest.mark.parametrize(
    "name, mistake, message",
    [
        ("degradation", {"tiles": 8}, "did you mean 'tile'"),
        ("degradation", {"fill": "channel-mean"}, "did you mean 'channel_mean'"),
        ("degradation", {"tile": -8}, "tile=-8"),
        ("degradation", {"tile": 2.5}, "expected a whole number"),
        ("insertion_deletion", {"steps": 0}, "steps=0"),
        ("insertion_deletion", {"collapse": "max"}, "did you mean 'max_abs'"),
        ("insertion_deletion", {"sign": "absolut"}, "did you mean 'absolute'"),
        ("pointing_game", {"tolerance": -1}, "tolerance=-1.0"),
    ],
)
def test_mistakes_are_named(name, mistake, message):
    with pytest.raises(UserError, match=message):
        build({**SPECS[name], **mistake}, "metric")
