"""One short line a run: what its ratios were, and how they differ from those of the run before on the same machine.

    python -m benchmarks.history build/bench benchmarks/results/history.jsonl

Only ratios are kept, so lines of one machine compare although it is never equally busy; the reports themselves are
compared line by line with ``camrt bench compare OLD.json NEW.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.tables import MEANS, PEERS, Run, arcc_ratios, server_ratios
from camrt.bench.environment import describe_machine
from camrt.errors import CamrtError


def key_ratios(run: Run) -> dict[str, float]:
    """What tells whether a run is better than an earlier one, camrt = 1; what was not measured is left out."""
    found: dict[str, float] = {}
    for kind in PEERS:
        for row in run.rows(kind, MEANS):
            found[f"{kind} {row['key']}"] = float(row["mean_ratio"])
    found |= {f"arcc {name}": value for name, value in arcc_ratios(run)}
    found |= {f"server {name}": value for name, value in server_ratios(run)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def entry(run: Run, commit: str) -> dict[str, Any]:
    """The line of a run: date and machine of its comparison with the peers, commit, ratios."""
    report = run.report(PEERS[0])
    machine = describe_machine() if report is None else report.environment
    return {
        "date": machine.get("date"),
        "commit": commit,
        "processor": machine["processor"],
        "cores": machine["cores"],
        "ratios": key_ratios(run),
    }


def previous(history: Path, machine: dict[str, Any]) -> dict[str, Any] | None:
    """The last line of the same machine."""
    lines = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    same = [line for line in lines if all(line[name] == machine[name] for name in ("processor", "cores"))]
    return same[-1] if same else None


def main() -> None:
    """Prints the ratios beside those of the run before, and appends the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("history", type=Path)
    options = parser.parse_args()
    describe = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
        line = entry(Run(options.folder), commit)
        if not line["ratios"]:
            raise SystemExit(f"{options.folder} holds no report with ratios")
        before = previous(options.history, line)
        with options.history.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except (CamrtError, OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from error
    for name, value in line["ratios"].items():
        old = before and before["ratios"].get(name)
        print(f"{name:<40} {value:>8.2f}" + (f" {value / old - 1:>+8.1%} since {before['commit']}" if old else ""))


if __name__ == "__main__":
    main()
