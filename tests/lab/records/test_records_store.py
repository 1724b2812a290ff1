"""A run directory is whole and proven, or visibly not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, LaunchError
from headrace.lab.records.environment import describe_environment
from headrace.lab.records.schema import ChunkStamp, RequestRecord
from headrace.lab.records.store import INTERRUPTED, MANIFEST, REQUESTS, is_done, read_run, write_run

RECORDS = [
    RequestRecord(
        index=0,
        planned_ns=1,
        admitted_ns=2,
        sent_ns=3,
        headers_ns=4,
        done_ns=99,
        chunks=[ChunkStamp(5, "role"), ChunkStamp(6, "content"), ChunkStamp(7, "empty"), ChunkStamp(8, "reasoning")],
        prompt_tokens_client=3,
        output_tokens_server=2,
        max_tokens=2,
        status=200,
        finish_reason="length",
        output_text="größe 🚀\u2028a line separator\nand a line",
        extra={"new_connection": True},
    ),
    RequestRecord(index=1, planned_ns=1, error_class="http_4xx", error="prompt too long", status=400),
]
MANIFEST_BODY: dict[str, Any] = {"kind": "run", "model": "tiny", "schedule_ns": [0, 1]}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)
    manifest, records = read_run(tmp_path / "run")
    assert records == RECORDS
    assert {key: manifest[key] for key in MANIFEST_BODY} == MANIFEST_BODY
    assert sorted(os.listdir(tmp_path / "run")) == [MANIFEST, REQUESTS]  # no temporary files left
    assert len((tmp_path / "run" / REQUESTS).read_text().splitlines()) == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([MANIFEST, REQUESTS]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_detected(tmp_path: Path, name: str, share: float) -> None:
    run = tmp_path / "run"
    if not is_done(run):
        write_run(run, MANIFEST_BODY, RECORDS)
    path = run / name
    whole = path.read_bytes()
    # The manifest ends in a line end; without it, it still says the same.
    length = int(share * (len(whole) - 1))
    path.write_bytes(whole[:length])
    try:
        with pytest.raises(ConfigError, match="damaged"):
            read_run(run)
    finally:
        path.write_bytes(whole)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_changed_byte_in_the_records_is_detected(tmp_path: Path, at: float, value: int) -> None:
    run = tmp_path / "run"
    if not is_done(run):
        write_run(run, MANIFEST_BODY, RECORDS)
    path = run / REQUESTS
    whole = path.read_bytes()
    i = int(at * len(whole))
    path.write_bytes(whole[:i] + bytes([value]) + whole[i + 1 :])
    try:
        if whole[i] == value:
            read_run(run)
        else:
            with pytest.raises(ConfigError, match="damaged"):
                read_run(run)
    finally:
        path.write_bytes(whole)


def test_an_edited_manifest_is_detected(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)
    path = tmp_path / "run" / MANIFEST
    path.write_text(path.read_text().replace('"tiny"', '"huge"'))
    with pytest.raises(ConfigError, match="checksum"):
        read_run(tmp_path / "run")


def test_a_run_without_its_manifest_did_not_end(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)
    (tmp_path / "run" / MANIFEST).unlink()
    assert not is_done(tmp_path / "run")
    with pytest.raises(ConfigError, match="did not end"):
        read_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="did not end"):
        read_run(tmp_path / "nowhere")


def test_records_gone_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)
    (tmp_path / "run" / REQUESTS).unlink()
    with pytest.raises(ConfigError, match=REQUESTS):
        read_run(tmp_path / "run")


def test_an_interrupted_run_keeps_its_records_and_is_not_done(tmp_path: Path) -> None:
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS, interrupted=True)
    assert not is_done(tmp_path / "run") and (tmp_path / "run" / INTERRUPTED).is_file()
    with pytest.raises(ConfigError, match="was interrupted"):
        read_run(tmp_path / "run")
    write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)  # measured again
    assert read_run(tmp_path / "run")[1] == RECORDS


def test_another_schema_version_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ConfigError, match="version 99"):
        read_run(tmp_path)
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(ConfigError, match="not a run's manifest"):
        read_run(tmp_path)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LaunchError, match="No space left"):
        write_run(tmp_path / "run", MANIFEST_BODY, RECORDS)


def test_the_environment_is_json_and_says_where_it_was() -> None:
    environment = describe_environment()
    json.dumps(environment)
    assert environment["cpus"] >= 1 and environment["packages"]["numpy"] and environment["headrace"]
