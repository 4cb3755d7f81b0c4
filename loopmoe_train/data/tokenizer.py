"""SentencePiece tokenizer: lossless, deterministic, and exact about how many bytes a token is."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Iterable, Iterator, List

import numpy as np
import sentencepiece

from loopmoe_train.config.schema import TokenizerConfig
from loopmoe_train.errors import Refused

EOD_PIECE = "<|endoftext|>"
UNK_ID = 0
EOD_ID = 1

_SPACE_MARK = "\u2581"  # SentencePiece writes a space like this and so loses the character itself
_TRAINER_RESERVED = re.compile("[\u2581\u2585\0]")  # its trainer drops sentences that hold these
# it would otherwise learn from nothing longer than a line's worth; spans let it see indentation
_SPAN_CHARACTERS = 4000
_ASCII = "".join(map(chr, range(33, 127))) + "\n\t"


class Tokenizer:
    """A trained ``tokenizer.model``.

    ``decode(encode(text)) == text`` for every text that utf-8 can store: characters outside the
    vocabulary become byte tokens, and no text, whatever it spells, becomes a special token.

    Raises:
        Refused: the file is missing or was not trained by :func:`train_tokenizer`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            model = self.path.read_bytes()
        except OSError as error:
            raise Refused(
                f"cannot read the tokenizer {self.path}: {error.strerror}",
                "run `loopmoe data`, or name its file with tokenizer.path",
            ) from None
        self._set_model(model)

    def _set_model(self, model: bytes) -> None:
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            self._bytes = [self._bytes_of_piece(i) for i in range(self.vocab_size)]
        except RuntimeError:
            raise self._not_ours("is no SentencePiece model") from None
        byte_ids = [self._processor.piece_to_id(f"<0x{value:02X}>") for value in range(256)]
        if self._processor.id_to_piece(EOD_ID) != EOD_PIECE or UNK_ID in byte_ids:
            raise self._not_ours(f"lacks {EOD_PIECE} or byte fallback")
        self._space_mark_ids = [byte_ids[value] for value in _SPACE_MARK.encode("utf-8")]

    def _not_ours(self, why: str) -> Refused:
        return Refused(f"{self.path} {why}", "train one with `loopmoe tokenizer --force`")

    def _bytes_of_piece(self, token: int) -> bytes:
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return piece.replace(_SPACE_MARK, " ").encode("utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, special and byte tokens included."""
        return int(self._processor.vocab_size())

    @property
    def eod_id(self) -> int:
        """Id that ends every document; no text encodes to it."""
        return EOD_ID

    def encode(self, text: str) -> List[int]:
        """Token ids of ``text``, without an end-of-document token.

        Raises:
            UnicodeEncodeError: ``text`` holds a lone surrogate.
        """
        text.encode("utf-8")  # SentencePiece would replace a lone surrogate without a word
        ids: List[int] = []
        for index, span in enumerate(text.split(_SPACE_MARK)):
            if index:
                ids.extend(self._space_mark_ids)
            if span:
                ids.extend(self._processor.encode(span))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; special tokens vanish, bytes that are not utf-8 become U+FFFD."""
        return b"".join(self._bytes[int(token)] for token in ids).decode("utf-8", "replace")

    def token_bytes(self) -> np.ndarray:
        """Utf-8 bytes each token stands for: int64 [vocab_size], 0 for special tokens.

        Summed over ``encode(text)`` it is exactly the utf-8 length of ``text``.
        """
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Train on ``texts`` and return the bytes of ``tokenizer.model``.

    The same texts in the same order give the same bytes: one thread, no sampling inside.

    Raises:
        Refused: unknown ``tokenizer.kind``, or a vocabulary that the text cannot fill.
    """
    if config.kind not in ("bpe", "unigram"):
        raise Refused(f"tokenizer.kind={config.kind} is unknown", "use bpe or unigram")
    # read before training starts: errors raised inside its iterator come out disfigured
    spans = list(_training_spans(texts))
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(spans),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            byte_fallback=True,
            unk_id=UNK_ID,
            eos_id=EOD_ID,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            # bpe pieces may cross spaces, scripts and digits ("):\n        return" is one token);
            # unigram gains nothing from that and would train for minutes
            split_by_whitespace=config.kind == "unigram",
            split_by_unicode_script=config.kind == "unigram",
            split_by_number=config.kind == "unigram",
            allow_whitespace_only_pieces=True,
            max_sentencepiece_length=24,
            required_chars=_ASCII,
            max_sentence_length=16 * _SPAN_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise Refused(
            f"SentencePiece cannot train a {config.kind} vocabulary of {config.vocab_size}"
            f" on this corpus: {error}",
            "change tokenizer.vocab_size accordingly (400 is the least that is useful) or add text",
        ) from None
    return model.getvalue()


def _training_spans(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        span = ""
        for line in _TRAINER_RESERVED.sub(" ", text).splitlines(keepends=True):
            if span and len(span) + len(line) > _SPAN_CHARACTERS:
                yield span
                span = ""
            while len(line) > _SPAN_CHARACTERS:
                yield line[:_SPAN_CHARACTERS]
                line = line[_SPAN_CHARACTERS:]
            span += line
        if span:
            yield span
