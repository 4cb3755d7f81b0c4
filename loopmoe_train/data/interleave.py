"""Which member of a mixture a sample comes from: a pure function of the weights and its number.

The chairman assignment of R. Tijdeman (Discrete Mathematics 32, 1980): after any number n of
samples, a member with share w has got between w*n - 1 and w*n + 1 of them, as evenly spread as
that. Shares are whole parts of a period, after which everybody has got exactly that many and the
sequence repeats; so sample 10**12 is found as fast as sample 0.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import List, Sequence, Tuple

import numpy as np

PERIOD_LIMIT = 100_000  # samples; finer shares are rounded to parts of it


def parts_of(weights: Sequence[float]) -> List[int]:
    """Smallest whole numbers in the proportions of ``weights``, read as the decimals they show.

    Exact where the numbers add up to at most ``PERIOD_LIMIT`` (0.7 and 0.3; 3, 5 and 11.25);
    else the nearest that add up to it. 0 for a weight too small for that.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = min(math.lcm(*(share.denominator for share in shares)), PERIOD_LIMIT)
    parts = [math.floor(share * period) for share in shares]
    # what is left goes to the largest remainders
    order = sorted(range(len(parts)), key=lambda i: (parts[i] - shares[i] * period, i))
    for i in order[: period - sum(parts)]:
        parts[i] += 1
    common = math.gcd(*parts)
    return [part // common for part in parts]


class Interleave:
    """Maps a sample number of the mixture to a member and a sample number of that member.

    Args:
        parts: of each member, samples in a period; at least 1 each.
    """

    def __init__(self, parts: Sequence[int]) -> None:
        self.parts = np.asarray(parts, dtype=np.int64)
        self.period = int(self.parts.sum())
        self._member = _assign([int(part) for part in parts])
        self._turn = np.empty(self.period, dtype=np.int64)
        for member in range(len(parts)):
            places = np.flatnonzero(self._member == member)
            self._turn[places] = np.arange(len(places))

    def locate(self, sample: int) -> Tuple[int, int]:
        """(member, its sample number) of mixture sample ``sample`` >= 0."""
        periods, place = divmod(sample, self.period)
        member = int(self._member[place])
        return member, periods * int(self.parts[member]) + int(self._turn[place])

    def counts(self, samples: int) -> np.ndarray:
        """int64 [members]: how many of the first ``samples`` samples each member gives."""
        periods, rest = divmod(samples, self.period)
        return periods * self.parts + np.bincount(self._member[:rest], minlength=len(self.parts))


def _assign(parts: List[int]) -> np.ndarray:
    """int32 [period]: member of each sample of a period.

    A member may get sample n when it lacks at least 1/(2k-2) of a sample (k members); of those,
    the one goes first that would soonest lack more than 1 - 1/(2k-2).
    """
    period, scale = sum(parts), 2 * len(parts) - 2
    members = np.zeros(period, dtype=np.int32)
    if len(parts) == 1:
        return members
    given = [0] * len(parts)
    for n in range(1, period + 1):
        chosen, chosen_slack = -1, 0
        for i, part in enumerate(parts):
            lacks = scale * (part * n - period * given[i])  # in units of 1 / (scale * period)
            slack = (scale - 1) * period - lacks  # over `part`: time until it is late
            if lacks >= period and (chosen < 0 or slack * parts[chosen] < chosen_slack * part):
                chosen, chosen_slack = i, slack
        given[chosen] += 1
        members[n - 1] = chosen
    return members
