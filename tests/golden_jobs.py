"""Jobs over methods, metrics and data sets whose keys and numbers must outlive every change of the code's layout.

`python -m tests.golden_jobs FOLDER` runs them there and writes FOLDER/golden.json and FOLDER/results.
"""

import csv
import json
import sys
from pathlib import Path

import torch
import yaml

from xaibench.build import describe, locate
from xaibench.cli import main
from xaibench.models.loading import network_spec
from xaibench.store.keys import digest

CONF = Path(__file__).parents[1] / "conf"
FILE = Path(__file__).with_name("golden.json")

JOBS = {
    "degradation": "method=gradient metric=degradation dataset.limit=4",
    "insertion_deletion": "method=integrated_gradients method.steps=5 metric=insertion_deletion dataset.limit=3",
    "bbox": "method=iba method.steps=3 metric=bbox dataset.limit=3 fit.limit=16",
    "csc": "method=lrp_gamma metric=csc dataset.limit=2",
    "singular_ratio": "model=vgg_small model.weights=random model.resize=32 model.crop=32 method=lrp_zplus "
    "metric=singular_ratio dataset.limit=1",
    "sensitivity_n": "method=random metric=sensitivity_n metric.sets=4 dataset.limit=3",
    "road": "method=gradcam metric=road dataset.limit=2",
    "infidelity": "method=deeplift metric=infidelity dataset.limit=2 seed=3",
    "lerf": "method=occlusion metric=lerf dataset.limit=2 target=predicted",
    "parameter_randomization": "method=saliency metric=parameter_randomization dataset.limit=2",
    "random_logit": "method=guided_backprop metric=random_logit dataset.limit=2",
    "class_sensitivity": "method=input_x_gradient metric=class_sensitivity dataset.limit=2",
    "grid_pointing_game": "method=lrp_epsilon metric=grid_pointing_game dataset.limit=3",
    "pointing_game": "method=pattern_attribution metric=pointing_game dataset.limit=3 fit.limit=32 runner.batch_size=2",
    "max_sensitivity": "method=smoothgrad method.samples=3 metric=max_sensitivity metric.draws=2 dataset.limit=2",
    "bam_mcs": "method=fullgrad metric=bam_mcs dataset.limit=2",
    "iou": "method=oracle metric=iou dataset.limit=3 dataset.filter.correct=true dataset.filter.min_probability=0.9999",
    "region_perturbation": "method=rise method.samples=20 metric=region_perturbation dataset.limit=2 target=fixed:3",
    "dim_diff": "model=xor_net model.weights=random dataset=xor dataset.split=grid:9 output=raw "
    "method=integrated_gradients metric=dim_diff",
    "masked_pearson": "model=rog_net model.weights=random dataset=ring_of_gaussians dataset.split=grid:9 "
    "output=raw method=saliency metric=masked_pearson",
    "factor_importance": "model=two4two_cnn model.weights=random dataset=two4two output=raw "
    "metric=factor_importance metric.factors=[legs,color] dataset.limit=2",
    "bottleneck_capacity": "metric=bottleneck_capacity metric.steps=3 dataset.limit=2 fit.limit=16",
    "roar": "method=gradient metric=roar metric.train_limit=16 metric.fractions=[0.5] metric.repeats=2 "
    "model.recipe.epochs=1 dataset.limit=4",
}  # fmt: skip


def run(folder: Path, *extra: str) -> None:
    """All jobs, with cache and results under `folder`."""
    for job in JOBS.values():
        code = main(["run", *job.split(), f"paths.cache={folder}/cache", f"paths.results={folder}/results", *extra])
        assert code == 0, job


def found(folder: Path) -> dict:
    """Of each metric's one score file: its name, its keys, and the sums of its columns."""
    outcome = {}
    for card in sorted((folder / "results" / "scores").rglob("*.json")):
        sums: dict[str, float] = {}
        with open(card.with_suffix(".csv"), newline="") as file:
            for row in csv.DictReader(file):
                name = row["statistic"]
                sums[name] = sums.get(name, 0.0) + (float(row["value"]) if row["value"] else 0.0)
        content = json.loads(card.read_text())
        outcome[content["metric"]] = {
            "file": str(card.relative_to(folder / "results")),
            "keys": content["keys"],
            "sums": sums,
        }
    return outcome


def artefacts(folder: Path) -> list[str]:
    """The folders of the cache: kind, names for people, key."""
    return sorted(str(path.parent.relative_to(folder / "cache")) for path in (folder / "cache").rglob("spec.json"))


def descriptions() -> dict[str, str]:
    """The digest of every configuration's canonical description: what a key says of it."""
    digests = {}
    for group in ("model", "dataset", "method", "metric"):
        for path in sorted((CONF / group).glob("*.yaml")):
            spec = yaml.safe_load(path.read_text())
            if group == "model":
                spec = network_spec(spec)
            if group == "dataset":
                spec = {key: value for key, value in spec.items() if key not in ("limit", "seed", "filter")}
            missing = {"precomputed": "path", "torchvision": "arch", "imagefolder": "root", "imagenet": "root"}
            if path.stem in missing:
                spec[missing[path.stem]] = "resnet18"
            version = getattr(locate(spec["_target_"], group), "version", 0)
            digests[f"{group}/{path.stem}"] = digest({**describe(spec, group), "version": version})
    return digests


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1]).absolute()
    run(target, *sys.argv[2:])
    golden = {"jobs": found(target), "artefacts": artefacts(target), "descriptions": descriptions()}
    text = json.dumps(golden, indent=1, sort_keys=True)
    (target / "golden.json").write_text(text + "\n")
