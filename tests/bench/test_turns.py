"""Contenders that take turns: who is called how often, and what becomes of the times."""

from __future__ import annotations

import time

import pytest

from camrt.bench.turns import Contender, Measured, noise_notes, take_turns
from camrt.errors import InvalidInputError


def sleeper(calls: list[str], name: str, seconds: float = 0.0) -> Contender:
    def run() -> None:
        calls.append(name)
        time.sleep(seconds)

    return Contender({"name": name}, run)


def test_every_contender_is_called_once_a_round_and_each_round_starts_with_another() -> None:
    calls: list[str] = []
    measured = take_turns([sleeper(calls, name) for name in "abc"], rounds=3, warmup=0, pause=0)
    assert ["".join(calls[start : start + 3]) for start in (0, 3, 6)] == ["abc", "bca", "cab"]
    assert [len(line.seconds) for line in measured] == [3, 3, 3]


def test_warm_up_is_run_and_not_timed() -> None:
    calls: list[str] = []
    rounds_done: list[int] = []
    (measured,) = take_turns([sleeper(calls, "a")], rounds=2, warmup=3, pause=0, on_round=rounds_done.append)
    assert len(calls) == 5
    assert len(measured.seconds) == 2
    assert rounds_done == [1, 2]


def test_a_slow_contender_takes_part_in_its_own_number_of_rounds() -> None:
    calls: list[str] = []
    slow = Contender({"name": "slow"}, lambda: calls.append("slow"), rounds=2)
    measured = take_turns([sleeper(calls, "fast"), slow], rounds=5, warmup=1, pause=0)
    assert [len(line.seconds) for line in measured] == [5, 2]
    assert calls.count("slow") == 3


def test_ratios_are_formed_pair_by_pair_with_the_contender_that_is_named() -> None:
    calls: list[str] = []
    fast, slow = sleeper(calls, "fast", 0.004), sleeper(calls, "slow", 0.020)
    third = Contender({"name": "third"}, slow.run, relative_to=1)
    free = Contender({"name": "free"}, fast.run, relative_to=None)
    measured = take_turns([fast, slow, third, free], rounds=7, warmup=1, pause=0)
    assert measured[0].ratio == 1.0
    assert measured[1].ratio is not None
    assert 2.0 < measured[1].ratio < 6.0
    assert measured[2].ratio is not None
    assert 0.5 < measured[2].ratio < 2.0
    assert measured[3].ratio is None


def test_rows_hold_labels_and_figures() -> None:
    line = Measured({"name": "a", "batch": 4}, 4, (0.1, 0.2, 0.3), 2.0, (1.5, 2.5))
    row = line.to_row()
    assert row["batch"] == 4
    assert row["median_ms"] == pytest.approx(200)
    assert row["images_per_second"] == pytest.approx(20)
    assert (row["ratio"], row["ratio_lower_quartile"], row["ratio_upper_quartile"]) == (2.0, 1.5, 2.5)


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        take_turns([], rounds=3)
    with pytest.raises(InvalidInputError, match="0 rounds"):
        take_turns([sleeper([], "a")], rounds=0)


def test_steady_times_make_no_notes() -> None:
    assert noise_notes([Measured({"name": "a"}, 1, (1.0, 1.01) * 10)]) == []


def test_spread_and_drift_are_told() -> None:
    wide = Measured({"name": "a"}, 1, (1.0,) * 16 + (2.0,) * 4)
    assert "other work" in " ".join(noise_notes([wide]))
    growing = Measured({"name": "a"}, 1, tuple(1 + 0.02 * number for number in range(20)))
    assert "Times grew by" in " ".join(noise_notes([growing], spread_limit=1.0))
