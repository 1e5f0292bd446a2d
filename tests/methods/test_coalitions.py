"""LIME and the Shapley methods: on games whose values are known, against each other, and against plain loops."""

import itertools
import math

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from tests.methods.nets import SIZE, Linear, VGGLike, classifier, seeded
from tests.perturb.helpers import FILLS
from xaibench.errors import UserError
from xaibench.methods.context import Context
from xaibench.methods.removal._coalitions import every_coalition, grid_shape, shares, superpixels
from xaibench.methods.removal.exact_shapley import ExactShapley, joining_weights, shapley_values
from xaibench.methods.removal.kernel_shap import KernelShap
from xaibench.methods.removal.lime import Lime
from xaibench.methods.removal.shapley_sampling import ShapleySampling
from xaibench.models.preprocessing import Preprocessing
from xaibench.perturb.fills import filled
from xaibench.rng import sample_generators

SHAPLEY = {
    "exact": lambda **settings: ExactShapley(**settings),
    "sampling": lambda **settings: ShapleySampling(samples=4, **settings),
    "kernel": lambda **settings: KernelShap(samples=60, **settings),
}


class Game(nn.Module):
    """One logit: the value of a coalition of M players, the places of [B,1,1,M] inputs of zeros and ones.

    values [2^M] in the order of `every_coalition`.
    """

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        places = inputs.flatten(1).round().long()
        return self.values[(places << torch.arange(places.shape[1])).sum(1)][:, None]


def game(values: torch.Tensor) -> tuple:
    """A Classifier of a game, and the input and target that ask for its values."""
    players = len(values).bit_length() - 1
    size = (1, 1, players)
    return classifier(Game(values), size, output="raw", preprocessing=Preprocessing(), layers={}), torch.ones(1, *size)


def attribute(method, network, inputs, targets, seed=0):
    return method.attribute(network, inputs, targets, Context(sample_generators(seed, "maps", range(len(inputs)))))


def by_orders(values: torch.Tensor) -> torch.Tensor:
    """Shapley values of a game [2^M] by the definition: the mean over all M! orders of what each player adds."""
    players = len(values).bit_length() - 1
    total = torch.zeros(players, dtype=torch.float64)
    for order in itertools.permutations(range(players)):
        coalition = 0
        for player in order:
            total[player] += values[coalition | 1 << player] - values[coalition]
            coalition |= 1 << player
    return total / math.factorial(players)


def rides() -> torch.Tensor:
    """A game of four who share a ride (DS-TOY-shapley; the fares are ours): A, B, C, D pay 6, 12, 20, 42 for the
    farthest who rides, since they live along one road."""
    fares = torch.tensor([6, 12, 20, 42], dtype=torch.float64)
    return (every_coalition(4) * fares).amax(1)


def test_the_weights_of_four_players():
    """Joining nobody or all three others counts 1/4, joining each of the six coalitions between 1/3 of it."""
    assert joining_weights(4) == [1 / 4, 1 / 12, 1 / 12, 1 / 4]
    for players in (1, 2, 7, 16):
        weights = joining_weights(players)
        orders = math.factorial(players)
        expected = [math.factorial(s) * math.factorial(players - s - 1) / orders for s in range(players)]
        assert weights == pytest.approx(expected, rel=1e-12)


def test_shared_ride():
    """Each stretch of the road is paid in equal parts by those who need it (the airport game, Littlechild & Owen)."""
    a = 6 / 4
    b = a + (12 - 6) / 3
    c = b + (20 - 12) / 2
    expected = torch.tensor([a, b, c, c + 42 - 20], dtype=torch.float64)
    network, inputs = game(rides())
    for method in (ExactShapley(players=4), KernelShap(players=4), ShapleySampling(players=4, samples=1)):
        maps = attribute(method, network, inputs.double(), torch.zeros(1, dtype=torch.long))
        assert maps.sum().item() == pytest.approx(42, abs=1e-12)
        if not isinstance(method, ShapleySampling):
            torch.testing.assert_close(maps.flatten(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("players", [1, 2, 5])
def test_random_games_by_all_orders(players):
    values = torch.randn(2**players, dtype=torch.float64)
    expected = by_orders(values)
    torch.testing.assert_close(shapley_values(values[None])[0], expected, rtol=0, atol=1e-12)
    network, inputs = game(values)
    for method in (ExactShapley(players=players), KernelShap(players=players)):
        maps = attribute(method, network, inputs.double(), torch.zeros(1, dtype=torch.long))
        torch.testing.assert_close(maps.flatten(), expected, rtol=0, atol=1e-8)


def test_the_value_of_a_group_is_not_the_sum_of_its_members():
    """Of a product of three features each is worth a third; two of them, shown and hidden together, are worth half."""
    product = every_coalition(4)[:, :3].all(1).double()
    network, inputs = game(product)
    target = torch.zeros(1, dtype=torch.long)
    alone, pairs = (attribute(ExactShapley(players=n), network, inputs.double(), target).flatten() for n in (4, 2))
    torch.testing.assert_close(alone, torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]).double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(pairs.view(2, 2).sum(1), torch.tensor([1 / 2, 1 / 2]).double())


def test_groups_of_a_random_game_by_its_dividends():
    """What a coalition adds to all smaller ones (Harsanyi 1963) is shared equally by its members, or by the groups that
    it touches: the two differ from three on."""
    values = torch.randn(64, dtype=torch.float64)
    network, inputs = game(values)
    groups, members = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    dividends: dict[tuple[int, ...], float] = {}
    for size in range(7):
        for coalition in itertools.combinations(range(6), size):
            within = itertools.chain.from_iterable(itertools.combinations(coalition, n) for n in range(size))
            value = values[sum(1 << player for player in coalition)].item()
            dividend = dividends[coalition] = value - sum(dividends[smaller] for smaller in within)
            touched = {player // 2 for player in coalition}
            groups[list(touched)] += dividend / max(len(touched), 1)
            for player in coalition:
                members[player // 2] += dividend / size
    target = torch.zeros(1, dtype=torch.long)
    pairs, alone = (attribute(ExactShapley(players=n), network, inputs.double(), target).view(3, 2) for n in (3, 6))
    torch.testing.assert_close(pairs.sum(1), groups)
    torch.testing.assert_close(alone.sum(1), members)
    assert (groups - members).abs().max() > 0.1 and groups.sum().item() == pytest.approx(members.sum().item())


@pytest.mark.parametrize("segments", ["grid", "slic"])
def test_kernel_shap_of_all_coalitions_is_exact(segments):
    network = classifier(VGGLike(), batch_size=64)
    inputs, targets = blobs(3), torch.arange(3)
    settings = {"players": 9, "segments": segments, "fill": "channel_mean"}
    exact = attribute(ExactShapley(**settings), network, inputs, targets)
    fitted = attribute(KernelShap(samples=2**9 - 2, **settings), network, inputs, targets)
    assert (exact - fitted).abs().max() <= 1e-8 * exact.abs().max()
    assert exact.flatten(1).std(1).min() > 1e-3 * exact.abs().max()


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["sampling", "kernel"])
def test_estimates_come_to_the_exact_values(name, antithetic):
    """300 estimates of one game: their mean is within 4.5 of its own standard errors. The fit of KernelSHAP to few
    coalitions is biased, but by less than that at this many."""
    network, inputs = game(torch.randn(2**9, dtype=torch.float64))
    maps = attribute(ESTIMATES[name](antithetic), network, *repeated(inputs, 300))
    error = maps.std(0) / math.sqrt(300)
    assert error.max() > 0
    exact = shapley_values(network.module.values[None]).view(1, 1, 9)
    assert ((maps.mean(0) - exact).abs() <= 4.5 * error).all()


@pytest.mark.parametrize("name", ["sampling", "kernel"])
def test_antithetic_estimates_vary_less(name):
    network, inputs = classifier(VGGLike(), batch_size=512), seeded(1)
    variances = [
        attribute(ESTIMATES[name](antithetic), network, *repeated(inputs, 40)).var(0).mean()
        for antithetic in (False, True)
    ]
    assert variances[1] < 0.8 * variances[0]


ESTIMATES = {
    "sampling": lambda antithetic: ShapleySampling(players=9, samples=4, antithetic=antithetic),
    "kernel": lambda antithetic: KernelShap(players=9, samples=100, antithetic=antithetic),
}


def repeated(inputs, count):
    return inputs.double().expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.long)


class Pairs(nn.Module):
    """Logits x^T A x: players interact in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(5, math.prod(SIZE), math.prod(SIZE)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        flat = inputs.flatten(1)
        return torch.einsum("bi,kij,bj->bk", flat, self.matrix, flat)


def test_an_order_and_its_reverse_are_exact_for_pairs():
    network, inputs, targets = classifier(Pairs(), batch_size=64), seeded(2), torch.tensor([0, 3])
    exact = attribute(ExactShapley(players=9), network, inputs, targets)
    sampled = attribute(ShapleySampling(players=9, samples=2), network, inputs, targets)
    torch.testing.assert_close(sampled, exact, rtol=0, atol=1e-9 * exact.abs().max().item())
    alone = attribute(ShapleySampling(players=9, samples=2, antithetic=False), network, inputs, targets)
    assert (alone - exact).abs().max() > 0.01 * exact.abs().max()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("segments", ["grid", "slic"])
@pytest.mark.parametrize("name", SHAPLEY)
def test_linear_model_in_closed_form(name, segments, fill):
    """Each player's value is the sum of w (x - fill) over its pixels, however few coalitions are asked."""
    network, inputs, targets = classifier(Linear(), batch_size=100), blobs(3), torch.tensor([0, 4, 2])
    method = SHAPLEY[name](players=6, segments=segments, fill=fill)
    labels = method.labels(network, inputs)
    change = inputs - filled(inputs, fill, network.preprocessing)
    change = (network.module.layer.weight[targets].view_as(inputs) * change).sum(1)
    maps = attribute(method, network, inputs, targets)
    for sample in range(3):
        for player in range(int(labels[sample].max()) + 1):
            place = labels[sample] == player
            assert place.any()
            expected = change[sample][place].mean().item()
            torch.testing.assert_close(maps[sample, 0][place], torch.full_like(maps[sample, 0][place], expected))


@pytest.mark.parametrize("antithetic", [False, True])
def test_few_coalitions_leave_players_close_to_each_other(antithetic):
    """One coalition of four players: its members share what it is worth, the others the rest."""
    values = torch.randn(16, dtype=torch.float64)
    network, inputs = game(values)
    method = KernelShap(players=4, samples=1, antithetic=antithetic)
    maps = attribute(method, network, inputs.double(), torch.zeros(1, dtype=torch.long)).flatten()
    chosen, _ = method._coalitions(4, 1, sample_generators(0, "maps", [0])[0])
    inside, code = chosen[0], int((chosen[0].long() << torch.arange(4)).sum())
    expected = torch.where(
        inside, (values[code] - values[0]) / inside.sum(), (values[15] - values[code]) / (~inside).sum()
    )
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


def test_sizes_of_drawn_coalitions_follow_the_kernel():
    method = KernelShap(players=6, samples=40000, antithetic=False)
    coalitions, weights = method._coalitions(30, 40000, torch.Generator().manual_seed(0))
    sizes = coalitions.sum(1)
    expected = torch.tensor([1 / (size * (30 - size)) for size in range(1, 30)])
    expected = 40000 * expected / expected.sum()
    counts = torch.bincount(sizes, minlength=31)[1:30]
    assert ((counts - expected).abs() < 4.5 * expected.sqrt()).all()
    # Within a size everybody is present equally often.
    present = coalitions.sum(0)
    assert ((present - sizes.sum() / 30).abs() < 4.5 * math.sqrt(40000) / 2).all()
    assert (weights == 1).all()


@pytest.mark.parametrize("segments", ["grid", "slic"])
def test_lime_is_the_ridge_regression_of_what_the_network_saw(segments):
    """The images are read off the network, the regression is scikit-learn's."""
    network = classifier(VGGLike(), batch_size=16)
    inputs, targets = blobs(2), torch.tensor([1, 4])
    method = Lime(players=9, segments=segments, samples=40, kernel_width=0.3, ridge=0.5, fill="black")
    labels, black = method.labels(network, inputs), filled(inputs, "black", network.preprocessing)
    shown = []
    hook = network.module.register_forward_pre_hook(lambda _, images: shown.append(images[0].clone()))
    maps = attribute(method, network, inputs, targets)
    hook.remove()
    for sample, images in enumerate(torch.cat(shown).split(40)):
        players = int(labels[sample].max()) + 1
        present = torch.zeros(40, players, dtype=torch.float64)
        for player in range(players):
            place = labels[sample] == player
            present[:, player] = (images[:, :, place] == inputs[sample][:, place]).all(2).all(1)
            absent = (images[:, :, place] == black[sample][:, place]).all(2).all(1)
            assert (present[:, player].bool() ^ absent).all()
        assert present[0].all() and not present[1:].all(1).all()
        distance = 1 - (present.sum(1) / players).sqrt()
        weights = torch.exp(-(distance**2) / 0.3**2).sqrt()
        answers = network.scores(images, targets[sample].expand(40))
        fit = Ridge(alpha=0.5).fit(present.numpy(), answers.numpy(), sample_weight=weights.numpy())
        expected = torch.tensor(fit.coef_, dtype=torch.float64) / torch.bincount(labels[sample].flatten())
        torch.testing.assert_close(maps[sample, 0], expected[labels[sample]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("players", "size", "shape"),
    [
        (49, (224, 224), (7, 7)),
        (16, (32, 32), (4, 4)),
        (50, (32, 32), (7, 7)),
        (8, (10, 20), (2, 4)),
        (9, (1, 2), (1, 2)),
        (9, (16, 1), (9, 1)),
        (1, (8, 8), (1, 1)),
        (10**6, (8, 6), (8, 6)),
    ],
)
def test_grids(players, size, shape):
    assert grid_shape(players, *size) == shape
    network = classifier(Linear((3, *size)), (3, *size))
    method = Lime(players=players, segments="grid")
    labels = method.labels(network, torch.zeros(2, 3, *size))
    assert method.most_players(network) == math.prod(shape) <= players
    sizes = torch.bincount(labels[1].flatten())
    assert len(sizes) == math.prod(shape) and sizes.min() > 0
    # Rectangles: a row's labels are a shift of the first row's; sides differ by a pixel at most.
    assert (labels[0] - labels[0, :, :1] == labels[0, 0] - labels[0, 0, 0]).all()
    for line in (labels[0, 0], labels[0, :, 0]):
        sides = line.unique_consecutive(return_counts=True)[1]
        assert sides.max() - sides.min() <= 1


def test_superpixels_follow_the_picture():
    """A picture of two colours: no superpixel has both."""
    image = torch.zeros(3, 32, 32, dtype=torch.float64)
    image[0, :, 13:] = 1
    labels = superpixels(image, 16)
    count = int(labels.max()) + 1
    assert 4 <= count <= 16 and len(labels.unique()) == count
    assert not set(labels[:, :13].unique().tolist()) & set(labels[:, 13:].unique().tolist())


@pytest.mark.parametrize("players", [1, 2, 3, 5, 7, 11, 16])
def test_superpixels_are_never_more_than_asked(players):
    for image in seeded(4):
        labels = superpixels(image, players)
        assert labels.unique().tolist() == list(range(int(labels.max()) + 1)) and labels.max() < players


def test_superpixels_are_those_of_the_pixels():
    """They are found before normalisation, in the pixel values of the image, as floats or of one channel too."""
    pixels = torch.rand(1, 3, 4, 4, dtype=torch.float64).repeat_interleave(8, 2).repeat_interleave(8, 3)
    network = classifier(Linear((3, 32, 32)), (3, 32, 32))
    method = Lime(players=20, segments="slic")
    found = method.labels(network, network.preprocessing.normalise(pixels))
    assert torch.equal(found[0], superpixels(pixels[0], 20))
    grey = classifier(Linear((1, 32, 32)), (1, 32, 32), preprocessing=Preprocessing())
    assert torch.equal(method.labels(grey, pixels[:, :1])[0], superpixels(pixels[0, :1].expand(3, -1, -1), 20))


def test_shares_are_equal_and_complete():
    labels = torch.tensor([[[0, 0, 1], [0, 2, 1]]])
    maps = shares(torch.tensor([[6.0, 1.0, -5.0, 7.0]]), labels, torch.zeros(1, dtype=torch.float64))
    assert maps.tolist() == [[[[2, 2, 0.5], [2, -5, 0.5]]]]


def test_costs():
    network = classifier(Linear())
    assert ExactShapley(players=10).cost(network) == (2**9, 0)
    assert ExactShapley(players=10, segments="slic").cost(network) == (2**10, 0)
    assert KernelShap(players=4, samples=1000).cost(network) == (16, 0)
    assert KernelShap(players=49, samples=1000).cost(network) == (1002, 0)
    assert ShapleySampling(players=49, samples=20).cost(network) == (2 + 20 * 48, 0)
    assert Lime(samples=1000).cost(network) == (1000, 0)


@pytest.mark.parametrize("segments", ["grid", "slic"])
@pytest.mark.parametrize("name", ["exact_shapley", "kernel_shap", "shapley_sampling", "lime"])
def test_neither_batch_size_nor_neighbours_change_a_map(name, segments, make):
    """Of pictures that fall into several superpixels, each into another number of them."""
    method = make(name, players=9, segments=segments, **({} if name == "exact_shapley" else {"samples": 12}))
    module, inputs = VGGLike(), blobs(6)
    targets = torch.arange(6) % 5
    whole = attribute(method, classifier(module, batch_size=10_000), inputs, targets)
    network = classifier(module, batch_size=7)
    counts = method.labels(network, inputs).flatten(1).amax(1)
    assert len(counts.unique()) > 1 or segments == "grid"
    generators = sample_generators(0, "maps", range(6))
    for part in ([4, 1], [3], [5, 0, 2]):
        maps = method.attribute(network, inputs[part], targets[part], Context([generators[i] for i in part]))
        assert (maps - whole[part]).abs().max() <= 1e-9 * whole.abs().max()


def blobs(count: int) -> torch.Tensor:
    """Normalised pictures of coloured patches, which have superpixels."""
    draw = torch.Generator().manual_seed(7)
    patches = torch.rand(count, 3, 4, 4, generator=draw, dtype=torch.float64)
    pixels = nn.functional.interpolate(patches, size=SIZE[1:], mode="bicubic").clamp(0, 1)
    return classifier(Linear()).preprocessing.normalise(pixels)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "message"),
    [
        ("exact_shapley", "players", 17, "players=17: expected at most 16"),
        ("exact_shapley", "players", 0, "players=0: expected at least 1"),
        ("kernel_shap", "segments", "slick", "did you mean 'slic'"),
        ("kernel_shap", "samples", 0, "samples=0: expected at least 1"),
        ("shapley_sampling", "samples", 0, "samples=0: expected at least 1 order"),
        ("shapley_sampling", "fill", "zeros", "did you mean 'zero'"),
        ("lime", "samples", 1, "samples=1: expected at least 2"),
        ("lime", "kernel_width", 0, "kernel_width=0.0: expected a positive"),
        ("lime", "ridge", 0, "ridge=0.0: expected a positive"),
        ("lime", "sigma", 0, "sigma=0.0: expected a positive number"),
    ],
)
def test_bad_parameters_are_named(name, parameter, value, message, make):
    with pytest.raises(UserError, match=message):
        make(name, **{parameter: value})


@pytest.mark.parametrize("parameter", [{"segments": "hex"}, {"fill": "grey"}])
def test_unknown_words_are_refused_without_build_too(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        KernelShap(**parameter)


def test_lime_is_undefined_where_one_superpixel_is_all_there_is():
    """A chequered image is one superpixel to SLIC; a flat one beside it has as many as asked for, and its map."""
    network = classifier(VGGLike())
    chequered = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    pixels = torch.stack([chequered.double().expand(SIZE), torch.full(SIZE, 0.5, dtype=torch.float64)])
    inputs = network.preprocessing.normalise(pixels)
    method, targets = Lime(players=9, samples=20), torch.zeros(2, dtype=torch.long)
    maps = method.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(2))))
    assert maps[0].isnan().all() and maps[1].isfinite().all()
    whole = Lime(players=1, segments="grid", samples=20)
    assert whole.attribute(network, inputs, targets, Context(sample_generators(0, "maps", range(2)))).isfinite().all()
