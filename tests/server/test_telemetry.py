from __future__ import annotations

import contextvars
import io
import json
import logging
import urllib.request
import warnings
from collections.abc import Iterator

import pytest
from grpc._cython import cygrpc

from camrt.server.logs import JsonFormatter, set_up_logs
from camrt.server.models import ModelStatus
from camrt.server.telemetry import Telemetry, current_method, current_request_id, enter_scope, note_model


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        root.handlers = []
        set_up_logs("info", stream)
        yield stream
    finally:
        logging.captureWarnings(False)
        root.handlers = before
        root.setLevel(level)


HOSTILE = 'cat\n{"level": "error"}\r\x1b[2J\x00\u2028\u202e"\\ \ud800'


def test_nothing_that_a_client_sends_breaks_a_line(lines: io.StringIO) -> None:
    logging.getLogger("camrt.test").warning("model %s", HOSTILE, extra={"model": HOSTILE})
    text = lines.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    assert not any(ord(letter) < 32 for letter in text[:-1])
    assert json.loads(text)["model"] == HOSTILE
    assert json.loads(text)["message"] == f"model {HOSTILE}"


def test_lines_have_time_level_logger_and_exception(lines: io.StringIO) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("camrt.test").exception("failed")
    fields = json.loads(lines.getvalue())
    assert fields["level"] == "error"
    assert fields["logger"] == "camrt.test"
    assert fields["time"].endswith("Z")
    assert "ValueError" in fields["exception"]


def test_long_texts_are_cut_and_objects_are_told(lines: io.StringIO) -> None:
    logging.getLogger("camrt.test").info("x" * 100_000, extra={"what": object(), "data": {"a": 1}})
    assert len(lines.getvalue()) < 10_000
    assert "object" in json.loads(lines.getvalue())["what"]


def test_lines_of_one_of_several_workers_have_its_number() -> None:
    record = logging.makeLogRecord({"msg": "hello"})
    assert json.loads(JsonFormatter(0).format(record))["worker"] == 0
    assert "worker" not in json.loads(JsonFormatter().format(record))


def test_levels_below_the_set_one_and_warnings(lines: io.StringIO) -> None:
    logging.getLogger("camrt.test").debug("silent")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [json.loads(line)["logger"] for line in lines.getvalue().splitlines()] == ["py.warnings"]


@pytest.mark.parametrize("wanted", ["abc-123", "A.b_C", "x" * 64])
def test_a_harmless_request_id_is_kept(wanted: str) -> None:
    assert contextvars.copy_context().run(enter_scope, "/m", wanted).request_id == wanted


@pytest.mark.parametrize("wanted", [None, "", "a b", "a\nb", "x" * 65, "é"])
def test_another_request_id_is_made(wanted: str | None) -> None:
    made = contextvars.copy_context().run(enter_scope, "/m", wanted).request_id
    assert made != wanted
    assert len(made) == 16


def test_the_scope_names_the_request_in_logs() -> None:
    def inside() -> tuple[str, str, str]:
        scope = enter_scope("/camrt.v1.ExplainerService/Explain", "id-1")
        note_model("shapes")
        record = logging.makeLogRecord({"msg": "hello"})
        return json.loads(JsonFormatter().format(record))["request_id"], current_method(), scope.model

    assert contextvars.copy_context().run(inside) == ("id-1", "/camrt.v1.ExplainerService/Explain", "shapes")
    assert current_request_id() == current_method() == ""
    note_model("nobody asks")


def test_metrics_are_served_with_the_states_of_the_models() -> None:
    telemetry = Telemetry()
    telemetry.watch_models(lambda: [ModelStatus("cats", "2", "failed", "damaged")])
    telemetry.gauge("camrt_test", "A test.", lambda: 2.5)
    telemetry.rejected("bytes")
    telemetry.stage("decode", 0.01)
    port, stop = telemetry.listen("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            text = response.read().decode()
    finally:
        stop()
    for line in (
        'camrt_model_state{model="cats",state="failed",version="2"} 1.0',
        'camrt_model_state{model="cats",state="ready",version="2"} 0.0',
        "camrt_test 2.5",
        'camrt_rejected_total{reason="bytes"} 1.0',
        'camrt_stage_seconds_count{stage="decode"} 1.0',
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text


def test_two_servers_of_one_process_count_apart() -> None:
    first, second = Telemetry(), Telemetry()
    first.rejected("items")
    assert first.registry.get_sample_value("camrt_rejected_total", {"reason": "items"}) == 1
    assert second.registry.get_sample_value("camrt_rejected_total", {"reason": "items"}) is None


def test_a_caller_that_left_before_its_reply_is_no_error(lines: io.StringIO) -> None:
    grpc_logger = logging.getLogger(cygrpc.__name__)
    for error in (cygrpc.ExecuteBatchError("Failed"), RuntimeError("Failed")):
        try:
            raise error
        except Exception:
            grpc_logger.exception("%s raised in core by servicer method [/a/B]", type(error).__name__)
    left, failed = map(json.loads, lines.getvalue().splitlines())
    assert left["level"] == "info"
    assert left["message"].endswith("servicer method [/a/B]: the reply could not be sent, as where the caller left")
    assert "exception" not in left
    assert failed["level"] == "error"
    assert "RuntimeError: Failed" in failed["exception"]
    logging.getLogger().setLevel("WARNING")
    try:
        raise cygrpc.ExecuteBatchError
    except cygrpc.ExecuteBatchError:
        grpc_logger.exception("again")
    assert lines.getvalue().count("\n") == 2
