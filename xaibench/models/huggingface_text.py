"""A sequence classifier of Hugging Face's transformers, behind its word vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..errors import UserError, first_line


class HuggingFaceText(nn.Module):
    """Vectors [B,E,1,T] of a sentence's tokens -> logits [B,K] of a sequence classifier of `transformers`.

    A place is a token of the model's own tokeniser, a word or a part of one. The special tokens that the model was
    trained with (BERT's [CLS] and [SEP]) stand around them and are no places: nobody attributes to them or takes them
    out. Positions and token types are added by the model, behind the vectors.

    path: a folder that `save_pretrained` wrote, with the tokeniser's files, or a name of the hub, which downloads.
    length: the most tokens of a sentence; longer ones are cut.
    Code that a repository brings along is never run, and weights are read from safetensors alone. Raises UserError if
    transformers is not installed, or if there is no such classifier.
    """

    def __init__(self, path: str, length: int = 64) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                "model=huggingface_text needs transformers: pip install 'xaibench[transformers]'"
            ) from error
        local = Path(path).expanduser()
        where = str(local) if local.is_dir() else path
        safe: dict[str, Any] = {"trust_remote_code": False}
        transformers.utils.logging.disable_progress_bar()
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(where, **safe)
            network = transformers.AutoModelForSequenceClassification.from_pretrained(
                where, use_safetensors=True, **safe
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"model.path={path}: no sequence classifier with a tokeniser and safetensors ({first_line(error)})\n"
                "expected a folder that save_pretrained wrote, or a name of the hub and a network to fetch it"
            ) from error
        self.network: nn.Module = network.float()
        self.length = length
        before, after = self._around()
        room = getattr(network.config, "max_position_embeddings", None)
        if room is not None and length + len(before) + len(after) > room:
            raise UserError(
                f"model.length={length}: {path} has {room} positions, {len(before) + len(after)} of them its own"
            )
        self.register_buffer("before", torch.tensor(before, dtype=torch.int64), persistent=False)
        self.register_buffer("after", torch.tensor(after, dtype=torch.int64), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [B,K] of vectors [B,E,1,T], none of them padding."""
        vectors = inputs[:, :, 0].mT
        around = [self.table(cast(torch.Tensor, ids)).expand(len(inputs), -1, -1) for ids in (self.before, self.after)]
        return self.network(inputs_embeds=torch.cat([around[0], vectors, around[1]], 1)).logits

    @property
    def table(self) -> nn.Embedding:
        """The vectors of tokens."""
        return cast(Any, self.network).get_input_embeddings()

    @property
    def unknown(self) -> int:
        """The id of the unknown token; of tokenisers that have none, that of padding, else 0."""
        ids = (self.tokenizer.unk_token_id, self.tokenizer.pad_token_id, 0)
        return next(number for number in ids if number is not None)

    def places(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """The ids of the first `length` tokens, and the word each is of."""
        found = self.tokenizer(list(words), is_split_into_words=True, add_special_tokens=False)
        return found["input_ids"][: self.length], found.word_ids()[: self.length]

    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a sentence."""
        bare, whole = (
            self.tokenizer(["a"], is_split_into_words=True, add_special_tokens=special)["input_ids"]
            for special in (False, True)
        )
        starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
        start = next(starts, 0)
        return whole[:start], whole[start + len(bare) :]
