"""How many drafts a round may take, by what rounds cost here and what of their drafts is accepted. No torch.

Drafting pays where the verifier waits for memory and costs where it waits for arithmetic, so the limit is
found for each batch size and, in steps of four, for how many tokens its rows hold: pruned and unpruned
answers cost differently. What a limit yields follows from acceptance by position, which every round
measures; what it costs has to be timed at that limit, or lies between two limits that were, or grows with
the limit as it does for nearly as many rows. A trial costs what it loses, so it is short, and the less often
the more the last one lost.
Invariant: only the number of drafts is decided here, so no result depends on it.
Knows rows and seconds, not sequences or tensors; the clock is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

# A higher limit must promise so much more before it is taken; a lower one is taken where it is no worse.
HYSTERESIS = 1.03
# Rounds at a limit that was never timed, before it is judged.
TRIAL_ROUNDS = 2
# The cost that counts is the median of so many last rounds.
REMEMBERED_ROUNDS = 5
# How often a limit that is known well is thought over: a small model's round takes ten such thoughts.
ROUNDS_A_CHOICE = 8
# Rounds until the best other limit is timed again; twice as many each time it loses, and so many at least
# that the trial costs no more than this share of the rounds.
FIRST_PAUSE_ROUNDS, LAST_PAUSE_ROUNDS = 64, 1024
TRIAL_SHARE = 0.01
# Rounds until a neighbour that was never timed gets its trial, and what it must promise of the best rate, its
# cost taken on the line between timed limits or as going on the way it grew so far, whichever is less.
SHORT_PAUSE_ROUNDS, PLAUSIBLE = 48, 0.9
# How much a row's round moves the acceptance of a position.
ACCEPTANCE_STEP = 0.01
# Before anything is known; drafts are tried first.
ASSUMED_ACCEPTANCE = 0.7
# What a clock too coarse for a round is taken for.
LEAST_S = 1e-9


Load = tuple[int, int]  # rows, and the class of what they hold


class Acceptance:
    """chances[i]: how probably a row's draft at position i is made and accepted."""

    def __init__(self, positions: int) -> None:
        self.chances = [ASSUMED_ACCEPTANCE ** (i + 1) for i in range(positions)]
        self._seen = [0] * positions

    def observe(self, limit: int, accepted: int) -> None:
        for position in range(limit):
            self._seen[position] += 1
            step = max(ACCEPTANCE_STEP, 1 / (self._seen[position] + 4))
            self.chances[position] += step * ((accepted > position) - self.chances[position])

    def tokens(self, limit: int) -> float:
        """Expected tokens of a row's round, the base's own included."""
        return 1.0 + sum(self.chances[:limit])


@dataclass
class Costs:
    """Of one load. seconds: the last rounds by limit; timed: what they tell; limit: the one in force."""

    limit: int
    seconds: dict[int, deque[float]] = field(default_factory=dict)
    timed: dict[int, float] = field(default_factory=dict)
    trial: int | None = None
    trial_rounds: int = 0
    trial_s: float = 0.0
    trial_tokens: float = 0.0  # of a row
    pause: int = FIRST_PAUSE_ROUNDS
    until_trial: int = FIRST_PAUSE_ROUNDS

    def observe(self, limit: int, seconds: float) -> None:
        """Of the first rounds the fastest counts: a twig that has fallen behind reads more in its first."""
        rounds = self.seconds.setdefault(limit, deque(maxlen=REMEMBERED_ROUNDS))
        rounds.append(seconds)
        self.timed[limit] = median(rounds) if len(rounds) > TRIAL_ROUNDS else min(rounds)

    def is_new(self, limit: int) -> bool:
        return len(self.seconds.get(limit, ())) < REMEMBERED_ROUNDS

    def cost(self, limit: int, like: Costs | None = None) -> float:
        """Seconds of a round; between two limits that were timed by interpolation.

        like: a load whose rounds grow with the limit as these do.
        """
        if limit in self.timed:
            return self.timed[limit]
        if like is not None and like.seconds:
            nearest = min(self.timed, key=lambda timed: abs(timed - limit), default=None)
            return like.cost(limit) * (
                1.0 if nearest is None else self.timed[nearest] / max(like.cost(nearest), LEAST_S)
            )
        low = max((timed for timed in self.timed if timed < limit), default=min(self.timed))
        high = min((timed for timed in self.timed if timed > limit), default=max(self.timed))
        share = (limit - low) / (high - low) if high > low else 0.0
        return self.timed[low] + share * (self.timed[high] - self.timed[low])

    def try_out(self, limit: int) -> None:
        self.trial, self.trial_rounds = limit, TRIAL_ROUNDS
        self.trial_s = self.trial_tokens = 0.0


class Governor:
    """`begin` before a round, `end` after it; a round that failed is simply not ended."""

    def __init__(self, draft_tokens: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = draft_tokens, clock
        self._acceptance = Acceptance(draft_tokens)
        self._costs: dict[Load, Costs] = {}
        self._load, self._given, self._started = (0, 0), draft_tokens, 0.0

    def begin(self, rows: int, cached_tokens: int = 0) -> int:
        """The most drafts of each row in the round that starts now, of so many rows.

        cached_tokens: what the verifying layers hold of all of them.
        """
        self._load = rows, cached_tokens.bit_length() // 2
        costs = self._costs.get(self._load)
        if costs is None:
            costs = Costs(self._nearest_limit(*self._load))
            if self._like(self._load) is None:
                costs.try_out(costs.limit)
            self._costs[self._load] = costs
        self._given = costs.limit if costs.trial is None else costs.trial
        self._started = self._clock()
        return self._given

    def end(self, accepted: Sequence[int]) -> None:
        """accepted: of each row that could draft."""
        seconds = self._clock() - self._started
        costs = self._costs[self._load]
        costs.observe(self._given, seconds)
        costs.trial_s += seconds
        costs.trial_tokens += 1.0 + sum(accepted) / max(len(accepted), 1)
        for count in accepted:
            self._acceptance.observe(self._given, count)
        self._advance(costs)

    def _like(self, load: Load) -> Costs | None:
        """The costs of the nearest load that holds as much, has about as many rows, and was looked at."""
        rows, held = load
        near = [
            known
            for known, costs in self._costs.items()
            if known != load
            and known[1] == held
            and 2 * max(rows, known[0]) <= 3 * min(rows, known[0])
            and costs.seconds.keys() >= {0, self._most}
        ]
        return self._costs[min(near, key=lambda known: abs(known[0] - rows))] if near else None

    def _nearest_limit(self, rows: int, held: int) -> int:
        """What the load nearest to this one has settled on."""
        nearest = min(
            self._costs, key=lambda known: (abs(known[1] - held), abs(known[0] - rows)), default=None
        )
        return self._most if nearest is None else self._costs[nearest].limit

    def _advance(self, costs: Costs) -> None:
        if costs.trial is not None:
            self._go_on_trying(costs)
            return
        costs.until_trial -= 1
        if costs.until_trial <= 0:
            costs.try_out(self._rival(costs))
        elif costs.until_trial % ROUNDS_A_CHOICE == 0 or costs.is_new(costs.limit):
            self._choose(costs)

    def _go_on_trying(self, costs: Costs) -> None:
        costs.trial_rounds -= 1
        if costs.trial_rounds:
            return
        costs.trial = None
        for end in (self._most, 0):  # between them costs can be told
            if end not in costs.seconds and self._like(self._load) is None:
                costs.try_out(end)
                return
        before = costs.limit
        self._choose(costs)
        if costs.limit != before:
            costs.pause = FIRST_PAUSE_ROUNDS
        else:
            costs.pause = min(max(2 * costs.pause, self._worth(costs)), LAST_PAUSE_ROUNDS)
        costs.until_trial = SHORT_PAUSE_ROUNDS if self._untimed_neighbours(costs) else costs.pause

    def _worth(self, costs: Costs) -> int:
        """Rounds of which the trial that ended cost its share: all of it, a twig's catching up included."""
        lost_s = costs.trial_s - costs.trial_tokens / self._rate(costs, costs.limit)
        return round(lost_s / (TRIAL_SHARE * max(costs.cost(costs.limit), LEAST_S)))

    def _rival(self, costs: Costs) -> int:
        others = [limit for limit in range(self._most + 1) if limit != costs.limit]
        return max(self._untimed_neighbours(costs) or others, key=lambda limit: self._rate(costs, limit))

    def _untimed_neighbours(self, costs: Costs) -> list[int]:
        if self._like(self._load) is not None:
            return []
        near = (costs.limit - 1, costs.limit + 1)
        untimed = [limit for limit in near if 0 <= limit <= self._most and limit not in costs.seconds]
        least = PLAUSIBLE * self._rate(costs, costs.limit)
        return [limit for limit in untimed if self._hope(costs, limit) >= least]

    def _hope(self, costs: Costs, limit: int) -> float:
        lower = [timed for timed in costs.seconds if timed < min(limit, costs.limit)]
        seconds = costs.cost(limit)
        if limit > costs.limit and lower:
            here, below = costs.cost(costs.limit), max(lower)
            grown = (here - costs.cost(below)) / (costs.limit - below)
            seconds = min(seconds, here + max(grown, 0.0))
        return self._acceptance.tokens(limit) / max(seconds, LEAST_S)

    def _choose(self, costs: Costs) -> None:
        best = max(range(self._most + 1), key=lambda limit: self._rate(costs, limit))
        needed = HYSTERESIS if best > costs.limit else 1.0
        if self._rate(costs, best) > needed * self._rate(costs, costs.limit):
            costs.limit = best

    def _rate(self, costs: Costs, limit: int) -> float:
        """Tokens of a row a second."""
        return self._acceptance.tokens(limit) / max(costs.cost(limit, self._like(self._load)), LEAST_S)
