"""The network of sentences: its recurrences, its words, its padding."""

import numpy as np
import pytest
import torch

from tests import text
from xaibench.config import compose_job
from xaibench.engine.kept import Kept
from xaibench.engine.setting import Setting
from xaibench.errors import UserError
from xaibench.models import checkpoint
from xaibench.models.lstm_sentiment import LstmSentiment
from xaibench.models.randomise import layers
from xaibench.models.sentences import Sentences


def by_hand(net: LstmSentiment, vectors: np.ndarray) -> np.ndarray:
    """The logits of vectors [T,E], from the equations of an LSTM with its gates in PyTorch's order."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for layer in (net.rnn_1, net.rnn_2, net.rnn_3, net.rnn_4):
        weights = {name: value.numpy() for name, value in layer.lstm.state_dict().items()}
        hidden = cell = np.zeros(layer.lstm.hidden_size)
        outputs = []
        for vector in vectors:
            gates = weights["weight_ih_l0"] @ vector + weights["bias_ih_l0"]
            gates = gates + weights["weight_hh_l0"] @ hidden + weights["bias_hh_l0"]
            enter, forget, new, leave = np.split(gates, 4)
            cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
            hidden = sigmoid(leave) * np.tanh(cell)
            outputs.append(hidden)
        vectors = np.stack(outputs)
    return net.head.weight.detach().numpy() @ vectors.mean(0) + net.head.bias.detach().numpy()


def test_logits_by_hand():
    net = text.network(dtype=torch.float64)
    vectors = torch.randn(1, 5, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        assert net(vectors)[0].numpy() == pytest.approx(by_hand(net, vectors[0, :, 0].T.numpy()), abs=1e-12)


def test_ids_with_padding_answer_as_vectors_without():
    net = text.network(dtype=torch.float64)
    lines = ["a b c", "d", "e f g h i nobody", "c d e f g h i j k a b c"]
    read = Sentences.of(net)
    with torch.no_grad():
        padded = net.answers(torch.stack([read.pixels(tuple(line.split()))[0] for line in lines]))
        for line, answer in zip(lines, padded):
            ids, _ = net.places(line.split())
            assert net(net.table.weight[ids].T[None, :, None])[0].numpy() == pytest.approx(answer.numpy(), abs=1e-9)


def test_words_are_the_most_frequent_that_occur_twice():
    net = LstmSentiment(vocabulary=2, embedding=2, hidden=2)
    net.learn([("b", "c", "c"), ("a", "b", "c", "once"), ("a",)])
    assert net.places(["c", "a", "b", "once"]) == ([2, 3, 1, 1], [0, 1, 2, 3])  # a before b, and no room for b


def test_a_checkpoint_reads_the_same_sentences(tmp_path):
    net = text.network()
    checkpoint.write(tmp_path / "net.safetensors", net.state_dict())
    other = LstmSentiment(num_classes=3, embedding=5, hidden=6, length=12, vocabulary=16)
    checkpoint.fit(other, checkpoint.read(tmp_path / "net.safetensors", "weights"), "weights")
    words = ("a", "k", "nobody")
    assert Sentences.of(other).image(words).equal(Sentences.of(net).image(words))
    assert Sentences.of(other) == Sentences.of(net) != Sentences.of(text.network(seed=1))


def test_long_sentences_are_cut_and_empty_ones_refused():
    read = Sentences.of(text.network(length=3))
    assert read.valid(("a", "b", "c", "d")).tolist() == [[True, True, True]]
    assert read.truth(torch.tensor([[False, True, False, True]]), ("a", "b", "c", "d")).tolist() == [
        [False, True, False]
    ]
    with pytest.raises(UserError, match="without words"):
        read.image(())


def test_the_table_comes_before_the_network_and_is_not_randomised():
    assert layers(text.classifier(text.network())) == ["rnn_1.lstm", "rnn_2.lstm", "rnn_3.lstm", "rnn_4.lstm", "head"]


def test_recurrent_layers_stay_in_training_mode_for_cudnn():
    net = text.network().eval()
    assert net.rnn_1.lstm.training and not net.dropout.training


def test_the_bundled_network_is_right_on_every_planted_sentence(tmp_path):
    setting = Setting(compose_job(["model=lstm_planted", "dataset=planted_words"]), tmp_path, Kept())
    samples = list(range(300))
    logits = torch.from_numpy(setting._compute_logits(samples)["logits"])
    assert logits.argmax(1).equal(setting.load(samples).labels)
