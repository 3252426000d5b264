"""`evaluation/demo_stages.py`: stages that are kept, gone on with, or started anew."""

import json
import logging
import subprocess
import sys
import types
from dataclasses import replace

import pytest

import evaluation.demo_stages
from evaluation.demo_stages import PeakMemory, Road, Stage, kept_when_interrupted, open_folder


@pytest.fixture
def make_stage(tmp_path):
    """A function that makes a stage which notes its run and ends with a code, or with the code in a file."""

    def make(name, code=0, note=None):
        program = f"import pathlib, sys; file = pathlib.Path(r'{tmp_path}') / 'ran'; "
        program += f"file.open('a').write('{note or name} '); code = pathlib.Path(r'{tmp_path}') / 'code-{name}'; "
        program += f"sys.exit(int(code.read_text()) if code.exists() else {code})"
        return Stage(name, f"the stage {name}", ["-c", program], tmp_path / f"result-{name}")

    return make


@pytest.fixture
def ran(tmp_path):
    """A function that tells which stages ran since the last call."""

    def read():
        path = tmp_path / "ran"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    return read


@pytest.fixture
def clock(monkeypatch):
    """The moments that the demo reads from its clock, in order."""
    moments = []
    monkeypatch.setattr(evaluation.demo_stages, "time", types.SimpleNamespace(monotonic=lambda: moments.pop(0)))
    return moments


def run_stages(stages, folder):
    road = Road(folder, len(stages))
    for stage in stages:
        road.take(stage)
    return road.record


def read_record(folder):
    return json.loads((folder / "stages.json").read_text())


# Stages


def test_peak_memory_counts_processes_below():
    program = "import time; block = bytearray(200 * 2**20); block[::4096] = b'1' * len(block[::4096]); time.sleep(1.5)"
    with PeakMemory(every=0.1) as alone:
        pass
    with PeakMemory(every=0.1) as memory:
        subprocess.run([sys.executable, "-c", program], check=True)
    assert 0 < alone.gib and alone.gib + 0.15 < memory.gib < alone.gib + 1


def test_finished_stages_are_skipped(make_stage, ran, tmp_path):
    stages = [make_stage("a"), make_stage("b")]
    record = run_stages(stages, tmp_path)
    assert ran() == ["a", "b"]
    assert list(record) == ["a", "b"] and record == read_record(tmp_path)
    for stage in stages:
        entry = record[stage.name]
        assert entry["command"] == stage.command and entry["done"] is True
        assert entry["peak_gib"] > 0
    assert run_stages(stages, tmp_path) == record
    assert ran() == []
    run_stages([*stages, make_stage("c")], tmp_path)
    assert ran() == ["c"]


def test_a_changed_command_starts_itself_and_all_that_follows_anew(make_stage, ran, tmp_path):
    run_stages([make_stage("a"), make_stage("b"), make_stage("c")], tmp_path)
    ran()
    for name in "abc":
        (tmp_path / f"result-{name}").mkdir()
    changed = [make_stage("a"), make_stage("b", note="b2"), make_stage("c")]
    record = run_stages(changed, tmp_path)
    assert ran() == ["b2", "c"]
    assert record["b"]["command"] == changed[1].command
    assert [(tmp_path / f"result-{name}").exists() for name in "abc"] == [True, False, False]


def test_another_reading_starts_a_stage_anew(make_stage, ran, tmp_path):
    stages = [replace(make_stage("a"), reads="weights"), make_stage("b")]
    run_stages(stages, tmp_path)
    ran()
    (tmp_path / "result-a").write_text("by the weights before")
    run_stages(stages, tmp_path)
    assert ran() == [] and (tmp_path / "result-a").exists()
    record = run_stages([replace(stages[0], reads="other weights"), stages[1]], tmp_path)
    assert ran() == ["a", "b"] and not (tmp_path / "result-a").exists()
    assert record["a"]["command"] == stages[0].command  # what a user types to have it again


def test_an_interrupted_stage_keeps_what_it_has(make_stage, tmp_path):
    with pytest.raises(SystemExit):
        run_stages([make_stage("a", code=1)], tmp_path)
    (tmp_path / "result-a").write_text("half")
    with pytest.raises(SystemExit):
        run_stages([make_stage("a", code=1)], tmp_path)
    assert (tmp_path / "result-a").read_text() == "half"


def test_a_stage_is_known_while_it_runs(make_stage, tmp_path, monkeypatch):
    """A process that is killed writes nothing any more; what its stage has made is gone on with all the same."""
    known = []

    def run(*_, **__):
        known.append(read_record(tmp_path)["a"])
        return types.SimpleNamespace(returncode=0)

    stage = make_stage("a")
    monkeypatch.setattr(evaluation.demo_stages.subprocess, "run", run)
    run_stages([stage], tmp_path)
    assert known == [{"command": stage.command, "road": [stage.command], "seconds": 0.0, "done": False}]


def test_a_changed_command_that_fails_is_not_taken_for_done(make_stage, ran, tmp_path):
    run_stages([make_stage("a")], tmp_path)
    for _ in range(2):
        ran()
        with pytest.raises(SystemExit):
            run_stages([make_stage("a", code=1)], tmp_path)
        assert ran() == ["a"]
        assert read_record(tmp_path)["a"]["done"] is False


def test_a_failing_stage_ends_with_its_code_and_the_time_adds_up(make_stage, ran, clock, tmp_path):
    stages = [make_stage("a"), make_stage("b"), make_stage("c")]
    (tmp_path / "code-b").write_text("3")
    clock += [0, 2, 10, 14.5]
    with pytest.raises(SystemExit) as error:
        run_stages(stages, tmp_path)
    assert error.value.code == 3
    assert ran() == ["a", "b"]
    record = read_record(tmp_path)
    assert [(name, entry["done"], entry["seconds"]) for name, entry in record.items()] == [
        ("a", True, 2.0),
        ("b", False, 4.5),
    ]
    (tmp_path / "code-b").write_text("0")
    clock += [100, 101, 200, 203]
    record = run_stages(stages, tmp_path)
    assert ran() == ["b", "c"]
    assert {name: entry["seconds"] for name, entry in record.items()} == {"a": 2.0, "b": 5.5, "c": 3.0}


def test_time_before_an_interruption_counts(make_stage, clock, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    clock += [0, 7]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation.demo_stages.subprocess, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stages([make_stage("a")], tmp_path)
    assert read_record(tmp_path)["a"]["seconds"] == 7
    clock += [50, 51]
    assert run_stages([make_stage("a")], tmp_path)["a"]["seconds"] == 8


def test_an_interruption_is_told(caplog):
    with pytest.raises(SystemExit) as error, kept_when_interrupted():
        raise KeyboardInterrupt
    assert error.value.code == 130
    assert "Run the same command again to go on." in caplog.text


def test_stages_say_where_they_are(make_stage, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_stages([make_stage("a"), make_stage("b")], tmp_path)
    Road(tmp_path).take(make_stage("a"))  # how many will follow is not known
    texts = [record.getMessage().split("\n")[0] for record in caplog.records]
    assert texts == ["[1/2] the stage a", "[2/2] the stage b", "[1] the stage a: done before"]
    assert f"      python {' '.join(make_stage('b').command)}" in caplog.text


def test_a_folder_lies_where_the_command_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_folder("out") == tmp_path / "out" and (tmp_path / "out").is_dir()
    monkeypatch.setattr(evaluation.demo_stages, "ROOT", tmp_path)
    assert str(open_folder("out")) == "out"  # short, for what the user reads
