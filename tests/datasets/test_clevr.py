"""CLEVR's archive in its own form: questions in words, answers, and the network that reads them."""

import json

import pytest
import torch
from PIL import Image

from xaibench.datasets.base import Samples
from xaibench.datasets.clevr import ANSWERS, Clevr
from xaibench.errors import UserError
from xaibench.methods.context import Context
from xaibench.methods.rules.lrp import LRP
from xaibench.methods.rules.rules import Epsilon
from xaibench.models.classifier import Classifier
from xaibench.models.relation_network import ClevrRelationNetwork

VALIDATION = [
    ("Are there more big green things than large purple shiny cubes?", "yes", 0),
    ("What color is the cube; is it red?", "red", 0),
    ("How many cubes are there?", "10", 1),
]
TRAIN = [("How many red things are there?", "0", 0)]


def archive(folder, **splits):
    """An archive of these questions, with scenes of two colours."""
    for split, asked in splits.items():
        (folder / "questions").mkdir(exist_ok=True)
        rows = [
            {
                "question": question, "answer": answer, "image_filename": f"CLEVR_{split}_{image:06d}.png",
                "image_index": image, "split": split, "program": [],
            }
            for question, answer, image in asked
        ]  # fmt: skip
        (folder / "questions" / f"CLEVR_{split}_questions.json").write_text(json.dumps({"info": {}, "questions": rows}))
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for row in rows:
            colour = (255, 0, 0) if row["image_index"] else (0, 0, 255)
            Image.new("RGB", (480, 320), colour).save(folder / "images" / split / row["image_filename"])
    return str(folder)


def test_the_folder_of_clevr(tmp_path):
    root = archive(tmp_path, val=VALIDATION, train=TRAIN)
    data = Clevr(root, longest=12)
    assert len(data) == 3 and len(ANSWERS) == 28
    for index, (question, answer, image) in enumerate(VALIDATION):
        example = data[index]
        assert data.class_names[example.label] == answer and data.words_of(index) == question
        assert example.image.size == (128, 128) and example.image.getpixel((5, 5)) == ((0, 0, 255), (255, 0, 0))[image]
        numbers = example.question[example.question > 0].long().tolist()
        said = [data.vocabulary[number - 1] for number in numbers]
        assert said == question.lower().replace("?", "").replace(";", "").split()
        assert not example.question[len(numbers) :].any()
    # A word has one number in both splits.
    train = Clevr(root, "train", longest=12)
    assert train.vocabulary == data.vocabulary
    assert train.questions[0, :2].equal(data.questions[2, :2])
    assert [sorted(data.class_names[label] for label in group) for group in data.categories[-2:]] == [
        ["large", "small"],
        ["metal", "rubber"],
    ]


def test_another_answer_or_scene_is_another_data_set(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    changed = [*VALIDATION[:2], (VALIDATION[2][0], "9", 1)]
    moved = [*VALIDATION[:2], (VALIDATION[2][0], "10", 0)]
    prints = {Clevr(archive(f, val=v)).fingerprint for f, v in zip(folders, (VALIDATION, changed, moved))}
    assert len(prints) == 3


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    root = archive(tmp_path, val=VALIDATION, train=[("How many toruses are there?", "0", 0)])
    for arguments, said in (
        ((root, "test"), "choose from"),
        ((root, "validation", 5), r"dataset\.longest=5: a question has 11 words: Are there more"),
        ((root, "validation", 0), r"dataset\.longest=0: expected a positive number"),
        ((root, "train"), "no validation question has the word toruses"),
    ):
        with pytest.raises(UserError, match=said):
            Clevr(*arguments)
    archive(
        tmp_path,
        val=[(" ".join(f"w{number}" for number in range(30 * part, 30 * part + 30)), "yes", 0) for part in range(4)],
    )
    with pytest.raises(UserError, match="120 different words"):
        Clevr(root)
    archive(tmp_path, val=[*VALIDATION, ("How many cubes are there?", "eleven", 0)])
    with pytest.raises(UserError, match="the answer eleven"):
        Clevr(root)
    (tmp_path / "questions" / "CLEVR_val_questions.json").write_text('{"questions": [{"question": "Why?"}]}')
    with pytest.raises(UserError, match="expected CLEVR's questions"):
        Clevr(root)


def test_its_network_reads_words_backwards_and_pads_in_front(tmp_path):
    """The LSTM's last state is that of torch's cell, word by word from the last to the first."""
    torch.manual_seed(0)
    network = ClevrRelationNetwork(questions=8, channels=4, embedding=3, state=5, width=7).eval().double()
    question = torch.tensor([[4.0, 2, 7, 0, 0, 0, 0, 0]], dtype=torch.float64)
    cell = torch.nn.LSTMCell(3, 5).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in network.lstm.state_dict().items()})
    state = (torch.zeros(1, 5).double(),) * 2
    for number in (0, 0, 0, 0, 0, 7, 2, 4):
        state = cell(network.embedding.weight[number][None], state)
    torch.testing.assert_close(network.read(question), state[0], rtol=1e-12, atol=1e-12)


def test_relevance_goes_through_it_to_the_picture(tmp_path):
    """LRP-z of ReLUs is the gradient times the input; of a question from the folder, bound to the network."""
    data = Clevr(archive(tmp_path, val=VALIDATION), longest=12)
    torch.manual_seed(0)
    network = ClevrRelationNetwork(questions=12, channels=4, embedding=3, state=5, width=7).eval().double()
    classifier = Classifier("clevr_relation_network", network, (3, 128, 128))
    (batch,) = [Samples(data, classifier.preprocessing, [1]).load([1])]
    bound, inputs = classifier.asked(batch.questions), batch.inputs.double()
    expected = inputs * bound.gradient(inputs, batch.targets)
    assert expected.abs().max() > 0
    maps = LRP(Epsilon(0.0)).attribute(bound, inputs, batch.targets, Context())
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def test_a_training_on_the_command_line_is_judged_on_the_split_that_has_answers(xaibench, here):
    """The network of one epoch has an accuracy on the validation questions: one of three questions is a third."""
    root = archive(here, val=VALIDATION, train=[(question, answer, 0) for question, answer, _ in VALIDATION])
    network = ("model=clevr_relation_network", "model.width=8", "model.recipe.epochs=1", "model.recipe.batch_size=3")
    code, said, _ = xaibench("train", *network, "dataset=clevr", f"dataset.root={root}")
    assert code == 0 and "\nvalidation accuracy 0." in said, said
    accuracy = float(said.split("validation accuracy ")[1].split(";")[0])
    assert min(abs(accuracy - third / 3) for third in range(4)) < 1e-4
