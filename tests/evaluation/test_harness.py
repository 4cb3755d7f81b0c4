"""The harness's requests answered by a model whose every probability is known: bigrams."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Tuple

import pytest
import torch
from torch import Tensor

from tests.dist import ranks

pytest.importorskip("lm_eval")

VOCABULARY, LENGTH = 11, 6


def bigrams() -> Tensor:
    """Logits of the next token: the present one alone decides, so no cut of the text may matter."""
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))


class Digits:
    """Token n is the letter n; 0 ends documents."""

    eod_id = 0

    def encode(self, text: str) -> List[int]:
        return [ord(letter) - ord("`") for letter in text]

    def decode(self, ids: List[int]) -> str:
        return "".join(chr(ord("`") + token) for token in ids)


def scorer() -> Any:
    from loopmoe_train.evaluation.harness import Scorer

    run = SimpleNamespace(sequence_length=LENGTH, micro_batch_size=2)
    return Scorer(run, [_model()], Digits())


def _model() -> Any:
    from tests.evaluation.known_model import KnownModel

    table = bigrams()

    def answer(tokens: Tensor, labels: Any) -> Tensor:
        assert tokens.shape[1] <= LENGTH
        return table[tokens]

    return KnownModel(answer)


def asked(*arguments: Any) -> List[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


PAIRS = [("abc", "de"), ("", "a"), ("abcdefghij", "ab"), ("a", "bcdefghijabcdefg"), ("jj", "")]


def by_hand(context: str, more: str) -> Tuple[float, bool]:
    logs = bigrams().double().log_softmax(-1)
    ids = [0, *Digits().encode(context + more)]
    steps = list(zip(ids, ids[1:]))[len(context) :]
    greedy = all(int(logs[a].argmax()) == b for a, b in steps)
    return sum(float(logs[a, b]) for a, b in steps), greedy


@pytest.mark.usefixtures("one_rank")
def test_log_probabilities_whatever_the_length() -> None:
    table = bigrams()
    best = "abc"
    for _ in range(3):
        best += chr(ord("`") + int(table[Digits().encode(best[-1])[0], 1:].argmax()) + 1)
    pairs = [*PAIRS, ("abc", best[3:])]
    found = scorer().loglikelihood(asked(*pairs))
    for (score, greedy), pair in zip(found, pairs):
        wanted, is_greedy = by_hand(*pair)
        assert score == pytest.approx(wanted, abs=1e-5) and greedy == is_greedy
    rolled = scorer().loglikelihood_rolling(asked(("abcdefghijab",), ("a",)))
    assert rolled == pytest.approx([by_hand("", "abcdefghijab")[0], by_hand("", "a")[0]], abs=1e-5)


@pytest.mark.usefixtures("one_rank")
def test_greedy_text_ends_where_it_should() -> None:
    table = bigrams()
    wanted, token = "", 3
    for _ in range(9):
        token = int(table[token].argmax())
        if token == 0:
            break
        wanted += Digits().decode([token])
    whole = scorer().generate_until(asked(("abc", {"max_gen_toks": 9})))[0]
    assert whole == wanted and whole
    stop = whole[1:2]
    cut = scorer().generate_until(asked(("abc", {"until": [stop], "max_gen_toks": 9})))[0]
    assert cut == whole.split(stop)[0]
    with pytest.raises(ValueError, match="greedy"):
        scorer().generate_until(asked(("abc", {"do_sample": True, "temperature": 0.5})))


def shared() -> Tuple[List[Tuple[float, bool]], int]:
    """On a rank: the scores, and how often the model was called."""
    from loopmoe_train.config.compose import compose
    from loopmoe_train.device.accelerator import select
    from loopmoe_train.parallel import groups

    select("cpu")
    groups.join(compose(["cluster.devices=2", "parallel=data"]))
    one = scorer()
    found = one.loglikelihood(asked(*PAIRS))
    groups.leave()
    return found, one.model[0].calls


def test_two_ranks_share_the_windows_and_agree() -> None:
    (first, calls), (second, other_calls) = ranks.run("tests.evaluation.test_harness:shared", 2)
    assert first == second
    assert [score for score, _ in first] == pytest.approx([by_hand(*p)[0] for p in PAIRS], abs=1e-5)
    # 6 windows, 2 rows a batch: three batches, of which a rank computes two (one is empty).
    assert calls == other_calls == 2
