"""Metrics of several processes; prometheus_client decides when it is imported, hence processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client import generate_latest

from camrt.server.shared_metrics import FOLDER_VARIABLE, WorkersMetrics

_WORKER = """
import sys
from camrt.server.model_status import ModelStatus
from camrt.server.shared_metrics import SharedTelemetry

number = int(sys.argv[1])
rows = [ModelStatus("cats", "1", "ready"), ModelStatus("dogs", "1", "failed")]
telemetry = SharedTelemetry()
telemetry.gauge("camrt_queue_length", "How many.", lambda: 10 + number)
telemetry.gauge("camrt_queue_age_seconds", "How long.", lambda: 10 + number)
telemetry.watch_models(lambda: rows)
telemetry.publish()
telemetry.rejected("items")
telemetry.stage("decode", 0.01)
del rows[number:]
telemetry.publish()
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_processes_count_is_added_up(tmp_path: Path) -> None:
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in (1, 2)
    ]
    metrics = WorkersMetrics(tmp_path, lambda: {n: p.pid for n, p in enumerate(processes) if p.poll() is None})

    def lines() -> set[str]:
        return set(generate_latest(metrics.registry).decode().splitlines())

    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        assert {
            "camrt_queue_length 23.0",
            "camrt_queue_age_seconds 12.0",
            'camrt_rejected_total{reason="items"} 2.0',
            'camrt_stage_seconds_count{stage="decode"} 2.0',
            'camrt_stage_seconds_bucket{le="0.01",stage="decode"} 2.0',
            'camrt_model_state{model="cats",state="ready",version="1"} 2.0',
            'camrt_model_state{model="dogs",state="failed",version="1"} 1.0',
            'camrt_model_state{model="cats",state="failed",version="1"} 0.0',
        } <= lines()
        processes[0].communicate()
        metrics.ended(processes[0].pid)
        left = lines()
        assert {
            "camrt_queue_length 12.0",
            'camrt_rejected_total{reason="items"} 2.0',
            'camrt_model_state{model="cats",state="ready",version="1"} 1.0',
        } <= left
        told = {line.partition("{")[2].partition("}")[0] for line in left if line.startswith("process_open_fds")}
        assert told == {'worker="supervisor"', 'worker="1"'}
    finally:
        for process in processes:
            process.communicate()
