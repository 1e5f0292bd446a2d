"""What there is to run, read from the yaml files alone: neither torch nor Hydra is imported, so it is instant.
Only what methods cost (`passes`) is asked of the methods themselves.

The first comment line of a yaml is its summary; `# source:`, `# needs:` and `# tuned_on:` lines follow.
"""

import functools
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError, XaibenchError, nearest
from .trust import PLUGINS

PACKAGE = Path(__file__).parent
# A wheel carries conf/ inside the package; in a checkout it stands beside it.
CONF = PACKAGE / "conf" if (PACKAGE / "conf" / "config.yaml").is_file() else PACKAGE.parent / "conf"
GROUPS = ("model", "dataset", "method", "metric")
LISTED = (*GROUPS, "experiment")


@dataclass(frozen=True)
class Item:
    """One choice of a group: its name, one line about it, where it comes from, what it needs, and whose file it is.

    tuned_on: the metrics by which a method's parameters were chosen; leaderboards mark its rows under them.
    shadowed: the user's file has the name of one of ours, and Hydra takes ours.
    """

    name: str
    summary: str
    source: str
    needs: str
    tuned_on: tuple[str, ...]
    path: Path
    shadowed: bool = False


def group_of(words: str) -> str:
    """`methods` or `method` -> `method`. Raises UserError with the nearest name."""
    group = words.removesuffix("s")
    if group not in LISTED:
        raise UserError(f"list {words}: {nearest(words, [name + 's' for name in LISTED])}")
    return group


def plugin_folders() -> list[Path]:
    """The folders `conf` of installed packages that are entry points of the group `xaibench.plugins`."""
    found = (importlib.util.find_spec(entry.value) for entry in importlib.metadata.entry_points(group=PLUGINS))
    return [Path(folder) / "conf" for spec in found if spec for folder in spec.submodule_search_locations or ()]


def items(group: str, config_dirs: tuple[Path, ...] = ()) -> list[Item]:
    """Every choice of a group, ours first, then those of installed plugins and of the user's folders."""
    found: dict[str, Item] = {}
    listed = []
    for folder in (CONF, *plugin_folders(), *config_dirs):
        for path in sorted((folder / group).glob("*.yaml")):
            item = read_item(path, shadowed=path.stem in found)
            found.setdefault(path.stem, item)
            listed.append(item)
    return listed


def read_item(path: Path, shadowed: bool = False) -> Item:
    """What the comments at the head of a yaml say about it."""
    summary, facts = "", {"source": "", "needs": "", "tuned_on": ""}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("# @package"):
                continue
            if not line.startswith("#"):
                break
            text = line.lstrip("# ").strip()
            key, _, value = text.partition(":")
            if key in facts:
                facts[key] = value.strip()
            elif not summary:
                summary = text
    tuned_on = tuple(name.strip() for name in facts["tuned_on"].split(",") if name.strip())
    return Item(path.stem, summary, facts["source"], facts["needs"], tuned_on, path, shadowed)


def passes(item: Item) -> str:
    """What one map of a method takes on the bundled network, fitting not counted: `forward + backward` passes, nominal.

    `-` for a method that its yaml alone does not make, such as one that needs a file, and for one that is not ours: no
    list runs code from outside.
    """
    if not item.path.is_relative_to(CONF):
        return "-"
    import yaml

    from .build import build

    try:
        forwards, backwards = build(yaml.safe_load(item.path.read_text(encoding="utf-8")), "method").cost(_bundled())
    except XaibenchError:
        return "-"
    return f"{forwards} + {backwards}"


@functools.cache
def _bundled() -> Any:
    import yaml

    from .models.loading import load_classifier

    spec = yaml.safe_load((CONF / "model" / "smallcnn.yaml").read_text(encoding="utf-8"))
    return load_classifier("smallcnn", {**spec, "weights": "random"})
