"""loopmoe tokenizer [setting=value ...] [--force]

Train the SentencePiece tokenizer of a corpus, on its training documents only, without tokenising
it; `loopmoe data` and `loopmoe train` then use it. --force trains it again.

  tokenizer.kind=bpe|unigram   tokenizer.vocab_size=N   tokenizer.train_bytes=N
  data.source=DIR   data.path=DIR   as for `loopmoe data`
"""

from __future__ import annotations

from typing import List

from loopmoe_train.config.compose import compose

_EXAMPLE = 'def mean(values):\n    """Average of a list."""\n    return sum(values) / len(values)\n'


def run(argv: List[str]) -> int:
    """Train the tokenizer of the configuration and show it at work; returns the exit code."""
    from loopmoe_train.data.prepare import ensure_tokenizer

    config = compose([word for word in argv if word != "--force"])
    tokenizer = ensure_tokenizer(config, print, force="--force" in argv)
    ids = tokenizer.encode(_EXAMPLE)
    print(f"tokenizer    {tokenizer.path}, {tokenizer.vocab_size} tokens")
    print(f"fingerprint  {tokenizer.fingerprint}")
    print("example      " + "|".join(repr(tokenizer.decode([token]))[1:-1] for token in ids))
    return 0
