from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopmoe_train.config.schema import TokenizerConfig
from loopmoe_train.data.tokenizer import EOD_PIECE, UNK_ID, Tokenizer, train_tokenizer
from loopmoe_train.errors import Refused
from tests.data.conftest import VOCAB, make_texts

_HARD = [
    "\0", "\u2581", " ", "  ", "\n", "\r\n", "\t", "<unk>", "<s>", "</s>", EOD_PIECE, "<0x41>",
    "\u2585", "\u2047", "🙂", "👩‍👩‍👧", "\ufeff", "\ufffd", "\x85", "\u2028",
    "def f", "return value",
]  # fmt: skip
# every character utf-8 can store, and strings glued from what SentencePiece treats specially
_TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.one_of(st.sampled_from(_HARD), st.text(max_size=3))).map("".join),
).filter(lambda text: not any(0xD800 <= ord(character) < 0xE000 for character in text))


@settings(max_examples=300, deadline=None)
@given(text=_TEXTS)
@example(text="a\u2581b \u2581\u2581 c")
@example(text="".join(_HARD))
def test_round_trip_is_lossless_and_counts_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert tokenizer.eod_id not in ids and UNK_ID not in ids


@pytest.mark.parametrize("character", [chr(code) for code in range(0x20)] + ["\x7f", "\u2581"])
def test_every_control_character_survives_at_each_place(
    tokenizer: Tokenizer, character: str
) -> None:
    for text in (character, "a" + character, character + "a", f" {character} {character * 2} "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_lone_surrogate_is_an_error_not_a_loss(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud800b")


def test_special_tokens_hold_no_text(tokenizer: Tokenizer) -> None:
    counts = tokenizer.token_bytes()
    assert counts.shape == (VOCAB,) == (tokenizer.vocab_size,)
    assert counts.dtype.name == "int64"
    assert counts[tokenizer.eod_id] == 0 and counts[UNK_ID] == 0
    assert (counts == 0).sum() == 2
    assert tokenizer.decode([tokenizer.eod_id]) == ""


def test_cut_characters_decode_to_replacements(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\U0001f98a")  # not in the training text: four byte tokens
    assert len(ids) == 4
    assert tokenizer.decode(ids[:2]) == "\ufffd"


def test_it_learned_something(tokenizer: Tokenizer) -> None:
    text = make_texts()[0]
    assert len(text.encode()) / len(tokenizer.encode(text)) > 3


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_twice_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=400)
    first, second = (train_tokenizer(iter(make_texts()), config) for _ in range(2))
    assert first == second
    assert train_tokenizer(make_texts()[:20], config) != first
    path = tmp_path / "tokenizer.model"
    path.write_bytes(first)
    text = "x = '\u2581 \0' # größe\r\n"
    assert Tokenizer(path).decode(Tokenizer(path).encode(text)) == text


def test_long_lines_and_reserved_characters_train() -> None:
    texts = ["abc " * 30_000, *("\u2585\u2581\0" + text for text in make_texts())]
    usual = train_tokenizer(make_texts(), TokenizerConfig(vocab_size=400))
    assert len(train_tokenizer(texts, TokenizerConfig(vocab_size=400))) > 0.9 * len(usual)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (TokenizerConfig(kind="wordpiece"), "wordpiece"),
        (TokenizerConfig(vocab_size=100), "vocab_size"),
        (TokenizerConfig(vocab_size=60_000), "vocab_size"),
    ],
)
def test_impossible_training_is_refused(config: TokenizerConfig, word: str) -> None:
    with pytest.raises(Refused) as caught:
        train_tokenizer(make_texts(), config)
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_in_the_texts_comes_out_unchanged() -> None:
    def broken():
        yield "text"
        raise Refused("the disk is gone", "find it")

    with pytest.raises(Refused, match="the disk is gone -> find it"):
        train_tokenizer(broken(), TokenizerConfig(vocab_size=400))


def test_files_that_are_no_tokenizer_of_ours_are_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.model"
    garbage.write_bytes(b"not a model")
    foreign = tmp_path / "foreign"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_texts()),
        model_prefix=str(foreign),
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    for path in (garbage, Path(f"{foreign}.model"), tmp_path / "missing.model"):
        with pytest.raises(Refused) as caught:
            Tokenizer(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
