"""Two runs side by side, from made-up books with known answers."""

import json

import pytest

from evaluation.compare import compare, main
from evaluation.protocol import EpisodeKey
from evaluation.run_ledger import read_results
from tests.evaluation.made_up_run import make_up_run

ENDS = {True: "success", False: "step_limit"}


def keys_of(suite, count):
    return [EpisodeKey(suite, number // 10, number % 10) for number in range(count)]


def outcomes(suite, both, first, second, neither):
    """Outcomes of both runs by episode."""
    ends = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second + [(False, False)] * neither
    keys = keys_of(suite, len(ends))
    return [{key: ENDS[end[run]] for key, end in zip(keys, ends, strict=True)} for run in (0, 1)]


@pytest.fixture
def make_runs(tmp_path):
    """Write two runs from pairs of outcomes; options of the second may differ."""

    def make(*suites, **changes):
        for number, name in enumerate(("first", "second")):
            merged = {key: end for suite in suites for key, end in suite[number].items()}
            make_up_run(tmp_path / name, merged, **(changes if number else {}))
        return [read_results(tmp_path / name) for name in ("first", "second")]

    return make


def test_a_published_table(make_runs):
    # Fagerland, Lydersen, Laake (2014), table of 21 pairs; exact McNemar: 2 * (1 + 8) / 2^8
    result = compare(*make_runs(outcomes("libero_goal", 1, 7, 1, 12)))
    suite = result["suites"]["libero_goal"]
    assert result["pairs"] == suite["pairs"] == 21
    assert suite["counts"] == {"both": 1, "only_first": 7, "only_second": 1, "neither": 12}
    assert [run["successes"] for run in suite["runs"]] == [8, 2]
    assert suite["difference"] == pytest.approx(-6 / 21)
    assert suite["interval_95"] == pytest.approx((-0.507, -0.026), abs=6e-4)
    assert suite["p_value"] == pytest.approx(0.0703125)
    assert len(result["differing"]) == 8
    assert result["differing"][0] == {
        **EpisodeKey("libero_goal", 0, 1)._asdict(),
        "instruction": "task 0 of libero_goal",
        "solved_by": "first",
        "num_steps": [10, 30],
    }


def test_suites_count_once_in_the_average_and_pairs_once_in_the_test(make_runs):
    runs = make_runs(outcomes("libero_goal", 5, 0, 5, 0), outcomes("libero_object", 30, 3, 0, 7))
    result = compare(*runs)
    assert result["overall"]["difference"] == pytest.approx((0.5 - 3 / 40) / 2)
    assert result["overall"]["counts"] == {"both": 35, "only_first": 3, "only_second": 5, "neither": 7}
    assert result["overall"]["p_value"] == pytest.approx(2 * (1 + 8 + 28 + 56) / 2**8)
    low, high = result["overall"]["interval_95"]
    below = [suite["difference"] - suite["interval_95"][0] for suite in result["suites"].values()]
    assert low == pytest.approx(result["overall"]["difference"] - (below[0] ** 2 + below[1] ** 2) ** 0.5 / 2)
    assert low < result["overall"]["difference"] < high


def test_errors_and_lonely_episodes_are_left_out_and_counted(make_runs):
    first, second = outcomes("libero_goal", 3, 1, 2, 4)
    keys = keys_of("libero_goal", 10)
    second[keys[0]], first[keys[9]], first[keys[8]] = "error", None, None
    result = compare(*make_runs((first, second)))
    assert result["pairs"] == 7
    assert result["errors"] == ["libero_goal_task0_state0"] and result["only_in"] == [0, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"different protocols \(protocol\.seed: 0 -> 7\): their episodes do not pair"),
        ({"step_limits": {"libero_goal": 300}}, r"protocol\.step_limits\.libero_goal: 30 -> 300"),
        ({"settling_steps": 0}, r"protocol\.settling_steps: 10 -> 0"),
    ],
)
def test_other_protocols_are_refused_by_name(make_runs, changes, message):
    with pytest.raises(ValueError, match=message):
        compare(*make_runs(outcomes("libero_goal", 1, 1, 1, 1), protocol=changes))


def test_other_policies_and_what_they_look_at_are_compared_and_told(make_runs):
    limits = {"libero_goal": 30, "libero_object": 99}  # no episode of libero_object is compared
    protocol = {"cameras": ["agentview", "wrist"], "step_limits": limits, "step_limits_source": "elsewhere"}
    result = compare(*make_runs(outcomes("libero_goal", 1, 1, 1, 1), protocol=protocol, policy="expert"))
    assert result["settings_that_differ"] == [
        "protocol.cameras: ['agentview'] -> ['agentview', 'wrist']",
        "policy.policy: noop -> expert",
    ]


def test_runs_without_a_pair_are_refused(make_runs):
    with pytest.raises(
        ValueError, match=r"share 0 episodes, and none that both judged: the first holds 4, the second"
    ):
        goal, object_ = outcomes("libero_goal", 1, 1, 1, 1), outcomes("libero_object", 1, 1, 1, 1)
        compare(*make_runs((goal[0], object_[1])))


def test_the_command_writes_tables(make_runs, tmp_path, caplog):
    make_runs(outcomes("libero_goal", 1, 7, 1, 12), outcomes("libero_object", 5, 0, 0, 0))
    folders = [str(tmp_path / name) for name in ("first", "second")]
    with caplog.at_level("INFO", logger="worldvla.compare"):
        result = main(["--runs", *folders, "--output_dir", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == {"runs": folders, **result}
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| libero_goal | 21 | 8/21 (38.1 %) | 2/21 (9.5 %) | -28.6 | -50.7 to -2.6 | 7 | 1 | 0.07 |" in text
    assert "| average of 2 suites | 26 |  |  | -14.3 |" in text
    assert "| libero_goal | 0 | task 0 of libero_goal | 1 | first |" in text
    assert text in caplog.text


def test_the_command_wants_two_runs():
    with pytest.raises(ValueError, match=r"`--runs` takes two results folders, got 1: a\."):
        main(["--runs", "a"])
