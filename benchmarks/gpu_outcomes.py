"""What became of the steps of a check, in a report that is never taken for complete where a step was not done."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["passed", "failed", "not done"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        status: of the step.
        reason: why it failed or was not done; empty where it passed.
        figures: what it found, of types that JSON has.
        parts: outcomes of parts that stand for themselves, by name.
    """

    status: Status
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Outcome] = field(default_factory=dict)


Step: TypeAlias = Callable[[], Outcome]


class Report:
    """The outcomes of all steps. A step that was not reached counts as not done from the start.

    Args:
        environment: what the figures belong to.
        steps: names of the steps.
        path: written anew after every step, so that a run that is cut off leaves a report that says so; None for none.
    """

    def __init__(self, environment: Mapping[str, Any], steps: Collection[str], path: Path | None = None) -> None:
        self._environment, self._path = environment, path
        self.outcomes = {name: Outcome("not done", "the check ended before it") for name in steps}
        self._write()

    def add(self, name: str, outcome: Outcome) -> None:
        """Takes the outcome of a step, and those of its parts as ``step: part``."""
        self.outcomes[name] = outcome
        self.outcomes.update({f"{name}: {part}": found for part, found in outcome.parts.items()})
        self._write()

    def with_status(self, status: Status) -> dict[str, str]:
        """Step to reason, of the steps with this status."""
        return {name: outcome.reason for name, outcome in self.outcomes.items() if outcome.status == status}

    def to_dict(self) -> dict[str, Any]:
        """The report, of types that JSON has. ``complete``: every step was done and passed."""
        return {
            "complete": len(self.with_status("passed")) == len(self.outcomes),
            "passed": list(self.with_status("passed")),
            "failed": self.with_status("failed"),
            "not done": self.with_status("not done"),
            "environment": dict(self._environment),
            "figures": {name: dict(outcome.figures) for name, outcome in self.outcomes.items() if outcome.figures},
        }

    def verdict(self) -> str:
        """One line: what failed, and what is still unproven."""
        failed, missing = self.with_status("failed"), self.with_status("not done")
        if not failed and not missing:
            return f"Complete: all {len(self.outcomes)} steps passed."
        unproven = [f"{name} (failed)" for name in failed]
        unproven += [f"{name} (not done: {' '.join(reason.split())})" for name, reason in missing.items()]
        return f"NOT COMPLETE, still unproven: {'; '.join(unproven)}."

    def exit_code(self, strict: bool, required: Collection[str] = ()) -> int:
        """0 where nothing failed; ``strict``, or for the steps of ``required``, what was not done fails too."""
        missing = self.with_status("not done")
        return 1 if self.with_status("failed") or any(strict or name in required for name in missing) else 0

    def _write(self) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
