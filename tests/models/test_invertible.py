"""What a network that runs backwards takes, said before any work."""

SOURCE = """
import torch
from xaibench.datasets.base import Dataset, Example
class Bright(Dataset):
    fingerprint = 'bright'
    class_names = ('Peeky', 'Stretchy')
    def __init__(self, split: str = 'test'): pass
    def __len__(self): return 2
    def __getitem__(self, index): return Example(torch.linspace(0, 2, 3 * 64 * 64).view(3, 64, 64), index)
"""
YAML = """# Images of values from 0 to 2.
_target_: bright.Bright
split: test
limit: null
seed: 0
filter: {correct: false, min_probability: 0.0}
"""


def test_images_outside_the_range_are_refused(xaibench, here):
    (here / "bright.py").write_text(SOURCE)
    (here / "conf" / "dataset").mkdir(parents=True)
    (here / "conf" / "dataset" / "bright.yaml").write_text(YAML)
    code, _, said = xaibench("run", "--config-dir", "conf", "dataset=bright", "model=two4two_inn")
    assert code != 0 and "values from 0 to 2: two4two_inn decodes images of pixels from 0 to 1" in said, said
