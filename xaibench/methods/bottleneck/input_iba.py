"""Information bottleneck attribution at the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from ...datasets.base import Samples
from ...errors import Refusal
from ...models.classifier import Classifier
from ..base import Fitted
from ..context import Context
from ._bottleneck import (
    LAYER,
    Bottleneck,
    Optimisation,
    bits_per_pixel,
    find_mask,
    noise_share,
    require_loss,
    require_maps,
    seeded,
)
from .iba import IBA, Solution


def input_information(standardised: torch.Tensor, noise: torch.Tensor, generated: torch.Tensor | float) -> torch.Tensor:
    """KL(P(Z_I|I) || P(Z_I)) per element, in nats, >= 0 (Zhang et al. 2021, Proposition 3).

    standardised: (I - mean) / std. noise: s = 1 - Lambda in (0, 1]. generated: lambda_G in [0, 1]; 0 gives the IBA's
    information, 1 gives 0. In the thesis's letters, with q = 1 - lambda_G Lambda:
    log(q / s) + s^2 / 2q^2 + (I - mean)^2 (Lambda - lambda_G Lambda)^2 / (2 q^2 std^2) - 1/2.
    """
    news = (1 - generated) * (1 - noise)  # q - s: what the mask keeps beyond the prior
    prior = news + noise
    return 0.5 * news * (news * standardised**2 - noise - prior) / prior**2 + torch.log1p(news / noise)


def prior_noise(noise: torch.Tensor, generated: torch.Tensor | float) -> torch.Tensor:
    """1 - lambda_G Lambda: the share of noise in Z_I = Lambda Z_G + (1 - Lambda) E, if Z_G has the same noise E."""
    return (1 - generated) + generated * noise


class InputBottleneck(Bottleneck):
    """Noise on the image, measured against what the generator lets through.

    generated: lambda_G [B,C,H,W]. through: whether samples go through Z_G, Z = Lambda Z_G + (1 - Lambda) E (the
    thesis's step 3, with one noise for both as Remark 1 needs it), or start from the image, Z = Lambda I +
    (1 - Lambda) E (Remark 2, the released code).
    """

    def __init__(
        self, inputs: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, generated: torch.Tensor, through: bool
    ) -> None:
        super().__init__(inputs, mean, std)
        self.generated, self.through = generated, through

    def information(self, noise: torch.Tensor) -> torch.Tensor:
        return input_information(self.standardised, noise, self.generated)

    def share(self, noise: torch.Tensor) -> torch.Tensor:
        return prior_noise(noise, self.generated) if self.through else noise


@dataclass(frozen=True)
class Adversary:
    """How the generator is trained against the critic: a Wasserstein distance with clipped weights.

    samples: drawn from the target per epoch, in batches of `batch`. Of the batches of an epoch, numbered from 0, the
    critic is trained on every `critic_every`-th and the generator on every `generator_every`-th.
    widths: of the critic's hidden linear layers. rates: of RMSprop for the mask's logits, the mean, the deviation.
    """

    samples: int
    epochs: int
    batch: int
    critic_every: int
    generator_every: int
    critic_rate: float
    widths: tuple[int, ...]
    clip: float
    rates: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "batch", "critic_every", "generator_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        if min(self.critic_rate, self.clip, *self.rates) <= 0:
            raise ValueError("learning rates and weight_clip: expected positive numbers")
        if 1 in self.sizes:
            # The critic normalises over the batch.
            raise ValueError(f"target_samples={self.samples} and batch_size={self.batch} leave a batch of one sample")

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch of an epoch."""
        return [min(self.batch, self.samples - start) for start in range(0, self.samples, self.batch)]


@dataclass(frozen=True)
class Generated:
    """What the generator learned about one image: mask lambda_G [C,H,W], mean and deviation of its noise [C,1,1]."""

    mask: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


@dataclass(kw_only=True, eq=False)
class InputIBA(Optimisation, Fitted):
    """Input information bottleneck (Zhang et al. 2021; Khakzar 2022, chapter 6): a mask with the input's resolution.

    1. IBA at a layer gives the mask lambda* and the bottleneck variable Z* = lambda* R + (1 - lambda*) E.
    2. A generator Z_G = lambda_G I + (1 - lambda_G) E_G is fitted, such that the layer's features of Z_G are
       distributed like Z* (Wasserstein distance). It is the prior knowledge of what the input has to hold.
    3. A second bottleneck on the input is solved against that prior: min CE + beta I[Z_I, I] (Proposition 3).
    The map is the second mask Lambda, averaged over channels, in [0, 1].

    Defaults are the thesis's; `conf/method/input_iba_released.yaml` has the released code's.

    layer: of the first bottleneck. feature_beta, feature_steps, feature_learning_rate, feature_smoothing: its
        parameters, as `beta`, `steps`, `learning_rate` and `smoothing` of `IBA`.
    target_mask: Z* is mixed by the `mask` (thesis) or by the `information` in nats per feature, which is no share and
        may exceed 1 (released). target_noise: E of Z* as in step 1, `features`, or `random`: ten groups, each with
        one mean from U(-2, 2) and one deviation from U(0, 5) (released).
    target_samples, epochs, batch_size: samples of Z* per epoch, epochs, samples per step; every batch draws anew.
    critic_every, generator_every: which batches of an epoch train which, see `Adversary`. 5 and 1: the critic after
        every five generator steps (thesis). 1 and 5: the usual order for this distance (released).
    critic_learning_rate, critic_widths, weight_clip: of the critic, three convolutions and then linear layers. The
        thesis has two of those (one hidden), the released code three.
    mask_rate, mean_rate, std_rate: learning rates of the generator. The thesis gives one number for both players,
        5e-5, with which the generator stays close to where it starts (on smallcnn the mask within 0.004, mean and
        deviation within 0.02). The released code's 0.003, 0.1 and 0.05 need its schedule too: with the thesis's
        they carried the mean to -10 and the deviation to 0.01, past a critic that had hardly been trained.
    beta, steps, learning_rate, smoothing: of the second bottleneck, whose alpha starts at `initial` as the first.
    input_noise: noise of the second bottleneck: N(mean_G, std_G^2), as Remark 1 needs it (`generated`), or
        N(0, 1) in normalised inputs (`standard`, released). input_sample: see `through` of `InputBottleneck`:
        `generated` or `image` (released).
    critic: `convolutions` (pictures, from 4x4 features on) or, of sentences, `recurrent`: an LSTM over the places, of
        which `critic_widths` says what follows.
    map: Lambda as it is in force (`mask`), or sigmoid(alpha) before its smoothing (`unsmoothed`, released).
    copies, initial, min_std, min_active: as for `IBA`, both bottlenecks.
    """

    sign_of_logit = False

    beta: float = 20.0
    steps: int = 60
    layer: str = LAYER
    feature_beta: float = 10.0
    feature_steps: int = 10
    feature_learning_rate: float = 1.0
    feature_smoothing: float = 1.0
    target_mask: Literal["mask", "information"] = "mask"
    target_noise: Literal["features", "random"] = "features"
    target_samples: int = 200
    epochs: int = 20
    batch_size: int = 32
    critic_every: int = 5
    generator_every: int = 1
    critic_learning_rate: float = 5e-5
    critic_widths: tuple[int, ...] = (512,)
    weight_clip: float = 0.01
    mask_rate: float = 5e-5
    mean_rate: float = 5e-5
    std_rate: float = 5e-5
    input_noise: Literal["generated", "standard"] = "generated"
    input_sample: Literal["generated", "image"] = "generated"
    map: Literal["mask", "unsmoothed"] = "mask"
    critic: Literal["convolutions", "recurrent"] = "convolutions"

    fit_parameters = ("layer",)
    added = {"critic": "convolutions"}

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {name: getattr(self, name) for name in ("layer", "copies", "initial", "min_std", "min_active")}
        of_feature = {
            name: getattr(self, f"feature_{name}") for name in ("beta", "steps", "learning_rate", "smoothing")
        }
        self.feature = IBA(**own, **of_feature)
        self.adversary = Adversary(
            samples=self.target_samples,
            epochs=self.epochs,
            batch=self.batch_size,
            critic_every=self.critic_every,
            generator_every=self.generator_every,
            critic_rate=self.critic_learning_rate,
            widths=tuple(self.critic_widths),
            clip=self.weight_clip,
            rates=(self.mask_rate, self.mean_rate, self.std_rate),
        )

    def check(self, classifier: Classifier) -> None:
        shape = require_maps(classifier, self.layer, "input_iba")
        where = f"layer '{self.layer}' of {classifier.name} has maps of {shape[1]}x{shape[2]}"
        if self.critic == "recurrent" and shape[1] > 1:
            raise Refusal(f"{where}, no sequence: set method.critic=convolutions")
        if self.critic == "convolutions" and min(shape[1:]) < 4:
            raise Refusal(f"{where}: the critic needs 4x4, or is method.critic=recurrent for a sequence")
        require_loss(classifier, "cross_entropy")

    def cost(self, classifier: Classifier) -> tuple[int, int]:
        """Both bottlenecks, and one pass per generated sample; parts of the network are counted as whole passes."""
        forwards, backwards = self.feature.cost(classifier)
        sizes, passes = self.adversary.sizes, self.steps * self.copies
        trained = sum(size for i, size in enumerate(sizes) if i % self.adversary.generator_every == 0)
        forwards += passes + self.adversary.epochs * sum(sizes[i] for i in self._used(sizes))
        return (forwards, backwards + passes + self.adversary.epochs * trained)

    def fit(self, classifier: Classifier, samples: Samples, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The moments of the layer, as for `IBA`."""
        return self.feature.fit(classifier, samples, generator)

    def attribute(
        self, classifier: Classifier, inputs: torch.Tensor, targets: torch.Tensor, context: Context
    ) -> torch.Tensor:
        maps = []
        for solution in self.feature.solve(classifier, inputs, targets, context.generators, context.fitted):
            images, draws = inputs[solution.rows], context.generators[solution.rows]
            with torch.enable_grad():
                learned = [
                    self.generate(classifier, solution, row, image, generator)
                    for row, (image, generator) in enumerate(zip(images, draws))
                ]
                bottleneck = self.bottleneck(images, learned)

                def losses(z: torch.Tensor, copies: int, labels: torch.Tensor = targets[solution.rows]) -> torch.Tensor:
                    logits = classifier.softmax_logits(classifier.module(z))
                    return F.cross_entropy(logits, labels.repeat_interleave(copies), reduction="none")

                alpha = find_mask(bottleneck, losses, self, draws, classifier.batch_size)
            mask = alpha.sigmoid() if self.map == "unsmoothed" else 1 - noise_share(alpha, self.smoothing)
            maps.append(mask.mean(1, keepdim=True))
        return torch.cat(maps)

    def bottleneck(self, images: torch.Tensor, learned: Sequence[Generated]) -> InputBottleneck:
        """The second bottleneck of a few images [b,C,H,W], given what their generators learned."""
        mean, std, mask = (torch.stack([getattr(one, name) for one in learned]) for name in ("mean", "std", "mask"))
        if self.input_noise == "standard":
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        return InputBottleneck(images, mean, std, mask, through=self.input_sample == "generated")

    def generate(
        self, classifier: Classifier, solution: Solution, row: int, image: torch.Tensor, generator: torch.Generator
    ) -> Generated:
        """Train the generator of one image [C,H,W], `row` of a solved group of images."""
        plan, cut = self.adversary, solution.cut
        bits = bits_per_pixel(solution.information[row : row + 1], image.shape[1:])[0]
        # Starts at what the layer's bottleneck lets through; bits are >= 0, so lambda_G >= 1/2.
        logits = bits.expand_as(image).clone().requires_grad_(True)
        mean = torch.zeros_like(image[:, :1, :1]).requires_grad_(True)
        std = torch.ones_like(image[:, :1, :1]).requires_grad_(True)
        shape = solution.noise.shape[1:]
        kind = RecurrentCritic if self.critic == "recurrent" else critic_network
        critic = seeded(lambda: kind(shape, plan.widths), generator).to(image)
        rates = [{"params": p, "lr": rate} for p, rate in zip((logits, mean, std), plan.rates)]
        players = torch.optim.RMSprop(rates), torch.optim.RMSprop(critic.parameters(), lr=plan.critic_rate)
        target = self._target(solution, row, generator)
        sizes = plan.sizes
        for _ in range(plan.epochs):
            order = torch.randperm(plan.samples, generator=generator).split(plan.batch)
            for i in self._used(sizes):
                draws = torch.empty(sizes[i], *image.shape, dtype=torch.float32).normal_(generator=generator)
                train_generator = i % plan.generator_every == 0
                with torch.set_grad_enabled(train_generator):
                    mask = logits.sigmoid()
                    z = mask * image + (1 - mask) * (mean + std * draws.to(image))
                    features = torch.cat([cut.before(z[part]).values for part in classifier.chunks(len(z))])
                if i % plan.critic_every == 0:
                    players[1].zero_grad()
                    (critic(features.detach()).mean() - critic(target(order[i])).mean()).backward()
                    players[1].step()
                    with torch.no_grad():
                        for parameter in critic.parameters():
                            parameter.clamp_(-plan.clip, plan.clip)
                if train_generator:
                    players[0].zero_grad()
                    (-critic(features).mean()).backward()
                    players[0].step()
        return Generated(logits.detach().sigmoid(), mean.detach(), std.detach().abs().clamp_min(self.min_std))

    def _target(self, solution: Solution, row: int, generator: torch.Generator) -> Any:
        """A function that draws the samples of Z* with the given numbers [n] -> [n,c,h,w]."""
        bottleneck, rows = solution.bottleneck, slice(row, row + 1)
        features, shape = bottleneck.features[rows], solution.noise.shape[1:]
        kept = 1 - solution.noise[rows] if self.target_mask == "mask" else solution.information[rows]
        means, stds = (torch.rand(10, generator=generator).to(features) for _ in range(2))

        def draw(numbers: torch.Tensor) -> torch.Tensor:
            noise = torch.empty(len(numbers), *shape, dtype=torch.float32).normal_(generator=generator).to(features)
            if self.target_noise == "features":
                noise = bottleneck.mean + bottleneck.std * noise
            else:
                group = (numbers * 10 // self.adversary.samples).to(features.device)
                mean, std = 4 * means[group] - 2, 5 * stds[group]
                noise = mean.view(-1, 1, 1, 1) + std.view(-1, 1, 1, 1) * noise
            return kept * features + (1 - kept) * noise

        return draw

    def _used(self, sizes: list[int]) -> list[int]:
        """The batches of an epoch that train either player."""
        plan = self.adversary
        return [i for i in range(len(sizes)) if i % plan.critic_every == 0 or i % plan.generator_every == 0]


def critic_network(shape: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Features [n,c,h,w], h and w at least 4 -> one unbounded value each [n,1]."""
    channels, height, width = shape
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in [
        (channels, 2 * channels, 4, 2),
        (2 * channels, 4 * channels, 4, 2),
        (4 * channels, channels, 3, 1),
    ]:
        layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
    layers.append(nn.Flatten())
    sizes = [channels * (height // 4) * (width // 4), *widths]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))


class RecurrentCritic(nn.Module):
    """Features [n,c,1,t] -> one unbounded value each [n,1], from the last output of an LSTM as wide as they."""

    def __init__(self, shape: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.lstm = nn.LSTM(shape[0], shape[0], batch_first=True)
        layers: list[nn.Module] = []
        sizes = [shape[0], *widths]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.head = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """How real they look."""
        return self.head(self.lstm(features[:, :, 0].mT)[0][:, -1])
