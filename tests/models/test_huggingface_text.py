"""A sequence classifier of transformers, tiny and random, made here: no network is asked for anything."""

import pytest
import torch

from tests.text import Lines
from xaibench.datasets.base import Samples
from xaibench.errors import UserError
from xaibench.models.loading import load_classifier

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "good", "##ness", "bad", "."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bert")
    model = tokenizers.models.WordPiece({word: id for id, word in enumerate(VOCABULARY)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def classifier(folder):
    target = "xaibench.models.huggingface_text.HuggingFaceText"
    return load_classifier("bert", {"_target_": target, "path": str(folder), "length": 6})


def test_logits_are_those_of_transformers_and_places_are_tokens(folder, classifier):
    import transformers

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = ["a goodness film .", "bad", "a nobody ."]
    batch = Samples(Lines(*lines), classifier.preprocessing, ()).load(range(3))
    assert batch.valid[:, 0].sum(1).tolist() == [5, 1, 3]
    for rows, part in batch.alike():
        for row, logits in zip(rows.tolist(), classifier.logits(part.inputs)):
            expected = theirs(**tokenizer(lines[row], return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, expected.detach())
    # The truth of sentence 1 is its first word, of sentence 2 the third, which is its third place too.
    assert classifier.preprocessing.truth(torch.tensor([[False, True, False]]), ("a", "goodness", ".")).tolist() == [
        [False, True, True, False, False, False]
    ]


def test_what_is_no_classifier_is_said(folder, tmp_path):
    target = "xaibench.models.huggingface_text.HuggingFaceText"
    with pytest.raises(UserError, match=r"model.path=.*: no sequence classifier with a tokeniser"):
        load_classifier("bert", {"_target_": target, "path": str(tmp_path)})
    with pytest.raises(UserError, match=r"model.length=64: .* has 32 positions, 2 of them its own"):
        load_classifier("bert", {"_target_": target, "path": str(folder)})


def test_a_run(folder, xaibench):
    (root := folder / "films").mkdir()
    for name in ("neg", "pos"):
        (root / f"films.{name}").write_text("a good film .\na goodness\nbad .\n" * 5)
    common = f"model=huggingface_text model.path={folder} dataset=reviews dataset.root={root} model.length=8"
    more = "dataset.split=train runner.classes=any method=integrated_gradients"
    metric = "metric=sensitivity_n metric.sizes=percent metric.sets=5"
    code, said, wrong = xaibench("run", *f"{common} {more} {metric} dataset.limit=5".split())
    assert code == 0, wrong
    assert "sensitivity_n" in said
