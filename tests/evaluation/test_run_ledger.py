"""The books of a run: nothing lost, nothing mixed, whoever writes and whenever it is killed."""

import json
import os

import pytest

from evaluation.protocol import EpisodeKey
from evaluation.run_ledger import RunLedger, read_results
from evaluation.run_settings import collect_settings, current_commit, list_changes, package_versions

SETTINGS = {
    "protocol": {"seed": 0, "step_limits": {"libero_goal": 300}},
    "policy": {"policy": "noop"},
    "commits": ["a"],
}
KEYS = [EpisodeKey("libero_goal", task, state) for task in range(2) for state in range(3)]


def record_of(key, outcome="success", **changes):
    return {**key._asdict(), "outcome": outcome, "success": outcome == "success", "num_steps": 5, **changes}


def fill(folder, keys, rank=0, world_size=1, outcome="success"):
    with RunLedger(folder, SETTINGS, rank, world_size) as ledger:
        for key in keys:
            ledger.append(record_of(key, outcome))


def read(folder):
    with RunLedger(folder, SETTINGS) as ledger:
        return ledger.finished(KEYS)


def test_a_record_is_on_disk_before_the_next(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    fill(tmp_path, KEYS[:2])
    line = len(json.dumps(record_of(KEYS[0]))) + 1
    assert synced == [line, 2 * line]


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_a_line_that_was_cut_off_anywhere_is_left_out(tmp_path, cut):
    fill(tmp_path, KEYS[:2])
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read(tmp_path)) in ([KEYS[:1]] if cut > 1 else [KEYS[:2]])
    fill(tmp_path, KEYS[1:3])
    assert read(tmp_path) == {key: record_of(key) for key in KEYS[:3]}


def test_other_settings_are_refused_by_name_and_nothing_is_touched(tmp_path):
    fill(tmp_path, KEYS[:1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = {"protocol": {"seed": 1, "step_limits": {"libero_goal": 600}}, "policy": {}, "commits": ["a"]}
    message = (
        r"holds results of other settings \(protocol\.seed: 0 -> 1; protocol\.step_limits\.libero_goal: 300 -> 600; "
        r"policy\.policy: noop -> None\)\. Choose another `--output_dir`"
    )
    with pytest.raises(ValueError, match=message):
        RunLedger(tmp_path, changed)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_commits_go_on_and_are_noted(tmp_path):
    fill(tmp_path, KEYS[:1])
    with RunLedger(tmp_path, {**SETTINGS, "commits": ["b"]}) as ledger:
        assert list(ledger.finished(KEYS)) == KEYS[:1]
        assert ledger.settings()["commits"] == ["a", "b"]


def test_lines_without_settings_are_refused(tmp_path):
    (tmp_path / "episodes.jsonl").write_text(json.dumps(record_of(KEYS[0])) + "\n")
    with pytest.raises(ValueError, match="nobody knows how these numbers came about"):
        RunLedger(tmp_path, SETTINGS)


def test_ranks_write_parts_of_their_own_that_are_merged(tmp_path):
    fill(tmp_path, KEYS[:1])
    with RunLedger(tmp_path, SETTINGS, 0, 2) as zero, RunLedger(tmp_path, SETTINGS, 1, 2) as one:
        zero.append(record_of(KEYS[3]))
        one.append(record_of(KEYS[2]))
        one.append(record_of(KEYS[1]))
        assert list(zero.finished(KEYS)) == KEYS[:4]
        zero.merge()
        one.append(record_of(KEYS[4]))  # whoever is still at work begins a new part
        assert list(zero.finished(KEYS)) == KEYS[:5]
        one.merge()
    assert not list(tmp_path.glob("episodes.rank*"))
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert lines == [record_of(key) for key in KEYS[:5]]


def test_one_process_takes_over_the_parts_of_several(tmp_path):
    fill(tmp_path, KEYS[:2], rank=0, world_size=3)
    fill(tmp_path, KEYS[2:4], rank=2, world_size=3)
    fill(tmp_path, KEYS[4:])
    assert list(read(tmp_path)) == KEYS and not list(tmp_path.glob("episodes.rank*"))


def test_an_error_gives_way_to_an_outcome_and_never_the_other_way_round(tmp_path):
    fill(tmp_path, KEYS[:2], outcome="error")
    fill(tmp_path, KEYS[:1])
    fill(tmp_path, KEYS[:1], outcome="error")
    assert [record["outcome"] for record in read(tmp_path).values()] == ["success", "error"]


def test_two_processes_of_one_rank_are_refused(tmp_path):
    with RunLedger(tmp_path, SETTINGS), pytest.raises(RuntimeError, match=r"Another evaluation \(rank 0\) is at work"):
        RunLedger(tmp_path, SETTINGS)
    assert read(tmp_path) == {}


def test_a_merge_that_changes_nothing_leaves_the_file_alone(tmp_path):
    fill(tmp_path, KEYS)
    before = (tmp_path / "episodes.jsonl").stat().st_ino
    assert len(read(tmp_path)) == len(KEYS)
    assert (tmp_path / "episodes.jsonl").stat().st_ino == before


def test_settings_name_versions_renderer_and_commit(monkeypatch):
    monkeypatch.setattr("evaluation.run_settings.choose_renderer", lambda requested: "egl")
    found = collect_settings({"seed": 1}, {"policy": "noop"})
    assert (found["protocol"], found["policy"], found["renderer"]) == ({"seed": 1}, {"policy": "noop"}, "egl")
    assert {"python", "numpy", "torch", "transformers"} <= set(found["versions"]) and len(package_versions()) > 4
    assert found["commits"] == [current_commit()] != [""]
    json.dumps(found)


def test_changes_are_listed_by_name():
    assert list_changes({"a": {"b": 1, "c": 2}, "commits": [1]}, {"a": {"b": 1, "d": 3}, "commits": [2]}) == [
        "a.c: 2 -> None",
        "a.d: None -> 3",
    ]


# Reading without taking part


def test_a_results_folder_is_read_while_a_run_is_at_work(tmp_path):
    fill(tmp_path, KEYS[:2], rank=0, world_size=2)
    with RunLedger(tmp_path, SETTINGS, 1, 2) as ledger:
        ledger.append(record_of(KEYS[3], "error"))
        ledger.append_session({"wall_seconds": 2.0})
        before = sorted(path.name for path in tmp_path.iterdir())
        results = read_results(tmp_path)
    assert results.settings == SETTINGS and results.sessions == [{"wall_seconds": 2.0}]
    assert {key: record["outcome"] for key, record in results.records.items()} == {
        KEYS[0]: "success",
        KEYS[1]: "success",
        KEYS[3]: "error",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no settings\.json: it is no results folder of evaluation/run\.py\."):
        read_results(tmp_path / "absent")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json` is no JSON: "):
        read_results(tmp_path)
    for content in ("[]", '{"seed": 0}', '{"protocol": {}, "policy": "noop"}'):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ValueError, match=r"settings\.json` names no protocol and policy: it was not written by"):
            read_results(tmp_path)
