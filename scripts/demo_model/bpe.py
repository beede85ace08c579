"""The demo's own tokenizer: a small byte-level BPE that behaves like Qwen2's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

END = "<|endoftext|>"
VOCABULARY = 1536
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""A chat of one message is the bare prompt, so both prompt formats ask the same."""


def train_tokenizer(texts: Sequence[str], folder: Path) -> PreTrainedTokenizerFast:
    """Train on `texts`, save to `folder` and return what `AutoTokenizer` makes of it.

    Raises:
        RuntimeError: `AutoTokenizer` splits texts differently from the trained tokenizer.
    """
    bpe = _trained(texts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=END,
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    # Transformers 5 writes a class that version 4 does not know; both know this one.
    text = settings.read_text(encoding="utf-8").replace("TokenizersBackend", "Qwen2Tokenizer")
    settings.write_text(text, encoding="utf-8")
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    # Whatever the files say, AutoTokenizer puts Qwen2's pre-tokenizer in place. A difference
    # would go unnoticed until the model talks nonsense.
    foreign = ["Ünïcode, 漢字 and 12345 digits\n\n\tdon't", "  - x: 'y'\n```yaml VISION \r\n# 🙂"]
    for text in [*texts[:200], *foreign]:
        ids = loaded(text)["input_ids"]
        if ids != bpe.encode(text).ids or loaded.decode(ids) != text:
            msg = f"AutoTokenizer reads the saved tokenizer differently: {text[:60]!r}"
            raise RuntimeError(msg)
    return loaded


def _trained(texts: Sequence[str]) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe
