"""What the metric yamls say: every parameter with its default, and mistakes named."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xaibench.build import bind, build
from xaibench.errors import UserError
from xaibench.metrics.base import OF_TWO, Measure, Statistic

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


def test_what_is_declared_decides_what_a_metric_is_given(convnet):
    """By what the metrics are known to ask of their context: the engine looks at nothing else."""
    metrics = {name: build(spec, "metric") for name, spec in SPECS.items()}
    per_sample = {name: metric for name, metric in metrics.items() if metric.kind == "per_sample"}
    assert {name: m.kind for name, m in metrics.items() if name not in per_sample} == {
        **dict.fromkeys(("dim_diff", "effective_rank", "masked_pearson"), "pooled"),
        **dict.fromkeys(("roar", "kar"), "retraining"),
    }
    capacity = ("bottleneck_capacity", "readout_capacity")
    dissecting = ("network_dissection", "semantic_attribution")
    counterfactual = ("counterfactual_agreement", "counterfactual_audit")
    explaining = {"bam_idr", "bam_iir", "grid_pointing_game", "completeness_soundness", "max_sensitivity", "axioms"}
    explaining |= {"class_difference", "class_sensitivity", "random_logit", "question_sensitivity"}
    explaining |= {"null_feature", "feature_switch", "feature_leak", "feature_saturation"}
    assert {name for name, metric in per_sample.items() if metric.explanations(convnet()) > 0} == explaining
    for attribute, names in (
        ("propagates", {"csc", "singular_ratio"}),
        ("reads_paths", {"path_dead", "path_output", "path_overlap", "path_linearity"}),
        ("reads_other_logits", {"bam_mcs", "label_randomization"}),
        ("own_networks", {"axioms"}),
        (
            "fit",
            {*capacity, "concept_correlation", "ice", "factor_audit", "linear_probe", *dissecting, *counterfactual},
        ),
    ):
        assert {name for name, metric in metrics.items() if getattr(metric, attribute)} == names


@pytest.mark.parametrize("kind", OF_TWO)
def test_a_line_over_nothing_is_no_statistic(kind):
    with pytest.raises(ValueError, match=f"statistic slope: kind={kind} needs `per`"):
        Statistic("slope", "higher", "change", kind=kind)
