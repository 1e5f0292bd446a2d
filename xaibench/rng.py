"""The one place that makes random generators.

Randomness belongs to the sample: a generator is seeded by (run seed, purpose, sample id), so what a sample draws
does not depend on the batch it is in, on the order of the samples, or on a crash in between.
"""

import hashlib
from collections.abc import Sequence

import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from sha256 over the parts: the same on every platform and in every Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator seeded by the parts, such as ("shapes", seed, index)."""
    return torch.Generator().manual_seed(seed_of(*parts))


def sample_generators(seed: int, purpose: str, samples: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per sample, for `attribute` and `evaluate`; draw whole images, one draw per copy."""
    return [generator(seed, purpose, int(sample)) for sample in samples]


def draw_seeds(generators: Sequence[torch.Generator]) -> torch.Tensor:
    """A seed from each generator: int64 [B], to keep beside what was made with `from_seeds` and make it again."""
    return torch.stack([torch.randint(2**62, (), generator=g) for g in generators])


def from_seeds(seeds: torch.Tensor) -> list[torch.Generator]:
    """CPU generators for seeds [B] that `draw_seeds` returned."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def offspring(generators: Sequence[torch.Generator], count: int) -> list[list[torch.Generator]]:
    """`count` further generators from each generator, which stays where it is."""
    copies = [torch.Generator() for _ in generators]
    for copy, generator in zip(copies, generators):
        copy.set_state(generator.get_state())
    return [from_seeds(torch.randint(2**62, (count,), generator=copy)) for copy in copies]


def permutation(count: int, seed: int) -> list[int]:
    """The order in which `limit` takes samples: a smaller limit is a prefix of a larger one."""
    return torch.randperm(count, generator=generator("samples", seed)).tolist()
