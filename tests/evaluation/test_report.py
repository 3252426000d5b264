"""Summaries, tables and the picture of a run, from made-up books with known answers."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from evaluation.protocol import EpisodeKey
from evaluation.report import format_success, format_summary, markdown_table, write_report
from tests.evaluation.made_up_run import make_up_run

WANTED = [
    EpisodeKey(suite, task, state)
    for suite in ("libero_object", "libero_goal")
    for task in range(2)
    for state in range(5)
]


def outcome_of(key):
    """Object: 5 of 5 and 3 of 5; goal: 1 of 4 with an error, and 0 of 3 with two missing."""
    if key.suite == "libero_object":
        return "success" if key.task_id == 0 or key.initial_state < 3 else "step_limit"
    if key.task_id == 0:
        return {0: "success", 4: "error"}.get(key.initial_state, "step_limit")
    return None if key.initial_state > 2 else "step_limit"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = make_up_run(tmp_path_factory.mktemp("run"), {key: outcome_of(key) for key in WANTED})
    return folder, write_report(folder, WANTED, {"episodes": 5, "task_ids": []})


def test_rates_of_tasks_suites_and_average(written):
    summary = written[1]
    assert json.loads((written[0] / "summary.json").read_text()) == summary
    assert (summary["suite"], summary["episodes"], summary["successes"]) == ("libero_object, libero_goal", 17, 9)
    assert (summary["errors"], summary["missing"]) == (1, 2)
    found = {
        (name, number): (task["successes"], task["episodes"], task["errors"], task["missing"])
        for name, suite in summary["suites"].items()
        for number, task in suite["tasks"].items()
    }
    assert found == {
        ("libero_object", "0"): (5, 5, 0, 0),
        ("libero_object", "1"): (3, 5, 0, 0),
        ("libero_goal", "0"): (1, 4, 1, 0),
        ("libero_goal", "1"): (0, 3, 0, 2),
    }
    assert summary["suites"]["libero_object"]["tasks"]["1"]["interval_95"] == pytest.approx((0.2307, 0.8824), abs=1e-4)
    # The mean of 8/10 and 1/7, not 9/17.
    assert summary["average"]["success_rate"] == pytest.approx((8 / 10 + 1 / 7) / 2)
    assert summary["average"]["suites"] == 2
    # Successes take 10 steps, failures 30.
    assert summary["suites"]["libero_goal"]["mean_steps"] == pytest.approx((10 + 6 * 30) / 7)
    assert summary["suites"]["libero_goal"]["mean_steps_of_successes"] == 10


def test_what_was_not_judged_is_named(written):
    folder, summary = written
    assert [entry["episode"] for entry in summary["not_judged"]["errors"]] == ["libero_goal_task0_state4"]
    assert summary["not_judged"]["missing"] == ["libero_goal_task1_state3", "libero_goal_task1_state4"]
    text = (folder / "report.md").read_text()
    assert "| libero_goal_task0_state4 | 3 | RuntimeError: the arm \\| fell off |" in text
    assert "- libero_goal_task1_state4\n" in text


def test_speed_by_hand(written):
    # 9 successes of 10 steps, 8 failures of 30; a chunk every 5 steps of 0.5 s; 0.1 s a step in all; a frame a step.
    speed = written[1]["speed"]
    assert (speed["steps"], speed["chunks"], speed["frames"]) == (330, 66, 330)
    assert speed["seconds_per_chunk"] == pytest.approx(0.5)
    assert speed["policy_seconds_per_step"] == pytest.approx(0.1)
    assert speed["steps_per_second"] == speed["frames_per_second"] == pytest.approx(5)
    assert (speed["wall_seconds"], speed["overhead_share"], speed["restarts"]) == (50.0, pytest.approx(0.05), 2)


def test_the_report_shows_it_all(written):
    text = (written[0] / "report.md").read_text()
    assert "| libero_object | 8/10 | 80.0 % | 49.0 to 94.3 % | 0 | 0 | 14 | 10 |" in text
    assert "| average of 2 suites |  | 47.1 % |" in text
    assert "| 1 | task 1 of libero_goal | 0/3 | 0.0 % | 0.0 to 56.1 % | 0 | 2 | 30 |  |" in text
    assert "[libero_object_task1_state3.mp4](videos/libero_object_task1_state3.mp4)" in text
    assert "| protocol.seed | `0` |" in text
    assert "| seconds per action chunk, as an episode waits for it | 0.500 |" in text


def test_the_table_for_the_terminal(written):
    lines = format_summary(written[1]).splitlines()
    assert [line.split()[0] for line in lines] == ["suite", "libero_object", "libero_goal", "average"]
    assert "8/10" in lines[1] and "47.1 %" in lines[3]
    assert lines[1].index("8/10") == lines[2].index("1/7")


def test_the_picture_has_a_panel_a_suite(written):
    with Image.open(written[0] / "report.png") as picture:
        assert picture.width == 1700 and picture.height > 200
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert len(colours) > 50


def test_a_run_without_judged_episodes_is_told(tmp_path):
    key = EpisodeKey("libero_goal", 0, 0)
    summary = write_report(make_up_run(tmp_path, {key: "error"}), [key], {})
    assert summary["success_rate"] is summary["average"] is summary["speed"]["seconds_per_chunk"] is None
    assert (summary["episodes"], summary["errors"]) == (0, 1)
    assert "| libero_goal | 0/0 |  |  | 1 | 0 |  |  |" in (tmp_path / "report.md").read_text()


def test_without_matplotlib_the_numbers_are_written_first(tmp_path, monkeypatch):
    key = EpisodeKey("libero_goal", 0, 0)
    make_up_run(tmp_path, {key: "success"})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"report\.png is drawn with matplotlib.*pip install 'worldvla\[eval\]'"):
        write_report(tmp_path, [key], {})
    assert json.loads((tmp_path / "summary.json").read_text())["successes"] == 1
    assert not (tmp_path / "report.png").exists()


def test_reports_load_no_torch_and_no_matplotlib():
    code = "import sys, evaluation.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_success_is_told_with_its_interval():
    assert format_success(3, 5) == "3/5 (60 %, 95 % interval 23 to 88 %)"


def test_markdown_table():
    assert markdown_table(["a", "b"], [[1, "x"], [2.5, None]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n| 2.5 | None |"
    assert markdown_table(["a"], [["one\n|two"]]) == "| a |\n| --- |\n| one \\|two |"
