"""Compare two runs on the same initial states: paired difference of the success rates, and whether it may be chance.

    python evaluation/compare.py --runs results/base results/finetuned --output_dir comparison/

An episode counts where both runs judged it; the difference is the second run minus the first. See docs/reports.md.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evaluation.atomic_files import write_json, write_text
from evaluation.intervals import (
    Estimate,
    PairCounts,
    average_estimates,
    mcnemar_p_value,
    paired_difference,
    success_interval,
)
from evaluation.protocol import EpisodeKey
from evaluation.report import markdown_table
from evaluation.run_ledger import Results, read_results
from evaluation.run_settings import list_changes

logger = logging.getLogger("worldvla.compare")

# What a policy looks at is a part of the policy; where step limits come from changes none of them.
NOT_PROTOCOL = ("cameras", "n_obs_steps", "image_size", "step_limits", "step_limits_source")
HOW = (
    "Difference: second run minus first, in percentage points, with Newcombe's interval for paired rates (95 %); that "
    "of the average is made from those of the suites. p: exact McNemar test, two-sided, over the states that only one "
    "run solved."
)


@dataclass
class CompareArguments:
    """Options of `evaluation/compare.py`."""

    runs: list[str] = field(metadata={"help": "Two results folders of evaluation/run.py: first and second run."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for comparison.md and comparison.json; by default only the table."}
    )

    def __post_init__(self) -> None:
        """Check every option before anything is read."""
        if len(self.runs) != 2:
            raise ValueError(f"`--runs` takes two results folders, got {len(self.runs)}: {' '.join(self.runs)}.")


def compare(first: Results, second: Results) -> dict[str, Any]:
    """Pair the episodes of two runs.

    Args:
        first (`Results`): see `read_results`.
        second (`Results`): the other run.

    Returns:
        `dict`: `pairs`, `overall`, `suites`, `differing` (states that only one run solved), `only_in`, `errors` and
        `settings_that_differ`.

    Raises:
        ValueError: if the protocols differ, naming what does, or no episode was judged in both runs.
    """
    suites = [{key.suite for key in run.records} for run in (first, second)]
    check_protocols(first, second, suites[0] & suites[1])
    shared = sorted(first.records.keys() & second.records.keys())
    pairs = [key for key in shared if not any(run.records[key]["outcome"] == "error" for run in (first, second))]
    if not pairs:
        raise ValueError(
            f"The runs share {len(shared)} episodes, and none that both judged: the first holds "
            f"{len(first.records)}, the second {len(second.records)}. Run both on the same suites, tasks and states."
        )
    by_suite = {
        suite: _compare_pairs(first, second, [key for key in pairs if key.suite == suite])
        for suite in dict.fromkeys(key.suite for key in pairs)
    }
    counts = PairCounts(*(sum(suite["counts"][name] for suite in by_suite.values()) for name in PairCounts._fields))
    average = average_estimates([Estimate(suite["difference"], *suite["interval_95"]) for suite in by_suite.values()])
    return {
        "pairs": len(pairs),
        "overall": {
            "counts": counts._asdict(),
            "difference": average.value,
            "interval_95": [average.low, average.high],
            "p_value": mcnemar_p_value(counts),
        },
        "suites": by_suite,
        "differing": [_describe_pair(first, second, key) for key in pairs if _differs(first, second, key)],
        "errors": [key.name for key in shared if key not in pairs],
        "only_in": [len(run.records) - len(shared) for run in (first, second)],
        "settings_that_differ": [
            change
            for change in list_changes(first.settings, second.settings)
            if not change.startswith("protocol.step_limits")
        ],
    }


def check_protocols(first: Results, second: Results, suites: set[str]) -> None:
    """Refuse to compare runs whose episodes were not run alike.

    Args:
        first (`Results`): a run.
        second (`Results`): the other one.
        suites (`set[str]`): those of both runs; only their step limits matter.

    Raises:
        ValueError: names what differs.
    """
    protocols = []
    for run in (first, second):
        protocol = run.settings["protocol"]
        limits = {suite: protocol["step_limits"].get(suite) for suite in sorted(suites)}
        kept = {name: value for name, value in protocol.items() if name not in NOT_PROTOCOL}
        protocols.append({**kept, "step_limits": limits})
    if changes := list_changes(protocols[0], protocols[1], "protocol."):
        raise ValueError(
            f"The runs follow different protocols ({'; '.join(changes)}): their episodes do not pair. Run one of them "
            "again with the other's options."
        )


def _compare_pairs(first: Results, second: Results, keys: Sequence[EpisodeKey]) -> dict[str, Any]:
    """One suite."""
    ends = [(first.records[key]["success"], second.records[key]["success"]) for key in keys]
    order = ((True, True), (True, False), (False, True), (False, False))
    counts = PairCounts(*(ends.count(end) for end in order))
    difference = paired_difference(counts)
    rates = []
    for successes in (counts.both + counts.only_first, counts.both + counts.only_second):
        interval = list(success_interval(successes, len(keys)))
        rates.append({"successes": successes, "success_rate": successes / len(keys), "interval_95": interval})
    return {
        "pairs": len(keys),
        "counts": counts._asdict(),
        "runs": rates,
        "difference": difference.value,
        "interval_95": [difference.low, difference.high],
        "p_value": mcnemar_p_value(counts),
    }


def _differs(first: Results, second: Results, key: EpisodeKey) -> bool:
    return first.records[key]["success"] != second.records[key]["success"]


def _describe_pair(first: Results, second: Results, key: EpisodeKey) -> dict[str, Any]:
    records = [run.records[key] for run in (first, second)]
    solved_by = "first" if records[0]["success"] else "second"
    return {
        **key._asdict(),
        "instruction": records[0]["instruction"],
        "solved_by": solved_by,
        "num_steps": [record["num_steps"] for record in records],
    }


def format_comparison(result: Mapping[str, Any], names: Sequence[str]) -> str:
    """The comparison as Markdown.

    Args:
        result (`Mapping`): see `compare`.
        names (`Sequence[str]`): of the two runs.

    Returns:
        `str`: the tables.
    """
    parts = [
        "# Comparison",
        f"First: `{names[0]}`. Second: `{names[1]}`. {result['pairs']} pairs of episodes from the same initial "
        f"states; left out: {len(result['errors'])} with an error in a run, {result['only_in'][0]} only in the first, "
        f"{result['only_in'][1]} only in the second.",
        markdown_table(
            ["suite", "pairs", "first", "second", "difference", "95 % interval", "only first", "only second", "p"],
            _suite_rows(result),
        ),
        HOW,
    ]
    if result["differing"]:
        rows = [
            [pair["suite"], pair["task_id"], pair["instruction"], pair["initial_state"], pair["solved_by"]]
            for pair in result["differing"]
        ]
        parts += ["## States that only one run solved"]
        parts.append(markdown_table(["suite", "task", "instruction", "state", "solved by"], rows))
    if result["settings_that_differ"]:
        parts += ["## What differs", "\n".join(f"- `{change}`" for change in result["settings_that_differ"])]
    return "\n\n".join(parts) + "\n"


def _suite_rows(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, suite in result["suites"].items():
        runs = [f"{run['successes']}/{suite['pairs']} ({100 * run['success_rate']:.1f} %)" for run in suite["runs"]]
        rows.append([name, str(suite["pairs"]), *runs, *_difference_cells(suite)])
    if len(rows) > 1:
        rows.append(
            [f"average of {len(rows)} suites", str(result["pairs"]), "", "", *_difference_cells(result["overall"])]
        )
    return rows


def _difference_cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval_95"]
    counts = row["counts"]
    shown = [f"{100 * row['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
    return [*shown, str(counts["only_first"]), str(counts["only_second"]), f"{row['p_value']:.2g}"]


def main(argv: list[str]) -> dict[str, Any]:
    """Command line entry.

    Args:
        argv (`list[str]`): the options.

    Returns:
        `dict`: see `compare`.
    """
    from evaluation.arguments import parse_arguments  # loads torch, which nothing else here needs

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parse_arguments(CompareArguments, argv)
    result = compare(*(read_results(Path(run)) for run in arguments.runs))
    text = format_comparison(result, arguments.runs)
    logger.info("%s", text)
    if arguments.output_dir is not None:
        output = Path(arguments.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "comparison.json", {"runs": arguments.runs, **result})
        write_text(output / "comparison.md", text)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
