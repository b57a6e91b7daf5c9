"""Contenders that take turns: the one way in which anything here is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from camrt.errors import InvalidInputError

Labels = Mapping[str, str | int]
PAUSE_SECONDS = 0.02
"""Rest before each call: idle threads of the contender before must have stopped spinning."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One line of a table.

    Attributes:
        labels: what is timed, column by column; unique in its table.
        run: one call.
        images: images that one call works on.
        rounds: takes part in so many rounds only, for calls that last seconds; None: in all.
        relative_to: place in the list of the contender whose time divides this one's; None for no ratio.
    """

    labels: Labels
    run: Callable[[], object]
    images: int = 1
    rounds: int | None = None
    relative_to: int | None = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """The calls of one contender.

    Attributes:
        labels, images: as in the contender.
        seconds: one a call, in the order of the rounds.
        ratio: median over the rounds of its time / the baseline's time in the same round; None without a baseline.
        ratio_quartiles: of the same.
        extra: other figures of this line, name -> number.
    """

    labels: Labels
    images: int
    seconds: tuple[float, ...]
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def percentile(self, percent: float) -> float:
        """Seconds."""
        return float(np.percentile(self.seconds, percent))

    def to_row(self) -> dict[str, str | int | float]:
        """Labels and figures, as reports keep them; times in milliseconds."""
        row: dict[str, str | int | float] = dict(self.labels)
        row["calls"] = len(self.seconds)
        row["median_ms"] = 1e3 * self.median
        row["p90_ms"] = 1e3 * self.percentile(90)
        row["p99_ms"] = 1e3 * self.percentile(99)
        row["min_ms"] = 1e3 * min(self.seconds)
        row["images_per_second"] = self.images / self.median
        if self.ratio is not None and self.ratio_quartiles is not None:
            row["ratio"] = self.ratio
            row["ratio_lower_quartile"], row["ratio_upper_quartile"] = self.ratio_quartiles
        return {**row, **self.extra}


def take_turns(
    contenders: Sequence[Contender],
    rounds: int,
    warmup: int = 3,
    pause: float = PAUSE_SECONDS,
    on_round: Callable[[int], None] | None = None,
) -> list[Measured]:
    """Times every contender once a round; each round starts with another one.

    Args:
        contenders: what to time, on the same inputs.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        pause: seconds of rest before each call.
        on_round: called after every timed round with the number of rounds done.

    Raises:
        InvalidInputError: nothing to time, or no rounds.
    """
    if not contenders or rounds < 1 or warmup < 0:
        raise InvalidInputError(
            f"{len(contenders)} contenders, {rounds} rounds, {warmup} rounds of warm-up.",
            "Give at least one contender and one round.",
        )
    seconds: list[dict[int, float]] = [{} for _ in contenders]
    order = list(range(len(contenders)))
    for number in range(-warmup, rounds):
        first = number % len(order)
        for index in (*order[first:], *order[:first]):
            contender = contenders[index]
            if contender.rounds is not None and number >= contender.rounds:
                continue
            time.sleep(pause)
            started = time.perf_counter()
            contender.run()
            if number >= 0:
                seconds[index][number] = time.perf_counter() - started
        if number >= 0 and on_round is not None:
            on_round(number + 1)
    bases = [None if item.relative_to is None else seconds[item.relative_to] for item in contenders]
    return [_measured(*entry) for entry in zip(contenders, seconds, bases, strict=True)]


def _measured(contender: Contender, times: Mapping[int, float], base: Mapping[int, float] | None) -> Measured:
    values = tuple(times[number] for number in sorted(times))
    if base is None:
        return Measured(contender.labels, contender.images, values)
    ratios = [times[number] / base[number] for number in sorted(times) if number in base]
    lower, middle, upper = np.percentile(ratios, (25, 50, 75))
    return Measured(contender.labels, contender.images, values, float(middle), (float(lower), float(upper)))


def noise_notes(measured: Sequence[Measured], spread_limit: float = 0.25, drift_limit: float = 0.10) -> list[str]:
    """Sentences about a machine that was not quiet: wide spread, or times that grew from first to last quarter.

    Args:
        measured: of one table.
        spread_limit: largest (p90 - median) / median that passes.
        drift_limit: largest growth of the median from the first to the last quarter of the rounds that passes.
    """
    notes = []
    noisy = [line for line in measured if line.percentile(90) > (1 + spread_limit) * line.median]
    if noisy:
        worst = max(noisy, key=lambda line: line.percentile(90) / line.median)
        notes.append(
            f"{len(noisy)} of {len(measured)} lines have a 90th percentile over {spread_limit:.0%} above the median "
            f"(worst {worst.percentile(90) / worst.median - 1:.0%}): other work ran on the machine."
        )
    growths = [_growth(line.seconds) for line in measured if len(line.seconds) >= 8]
    if growths and statistics.median(growths) > drift_limit:
        notes.append(
            f"Times grew by {statistics.median(growths):.0%} from the first to the last quarter of the rounds: the "
            "processor got slower (heat, power limits) or other work began."
        )
    return notes


def _growth(seconds: Sequence[float]) -> float:
    quarter = len(seconds) // 4
    return statistics.median(seconds[-quarter:]) / statistics.median(seconds[:quarter]) - 1
