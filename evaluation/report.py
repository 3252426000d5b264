"""What a run of `evaluation/run.py` found: summary.json, report.md and report.png. Loads no torch."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.atomic_files import write_json, write_text
from evaluation.intervals import Estimate, average_estimates, success_interval
from evaluation.protocol import EpisodeKey
from evaluation.report_picture import draw_report
from evaluation.run_ledger import Results, read_results

SUMMARY, REPORT, PICTURE = "summary.json", "report.md", "report.png"
HOW = (
    "Intervals are 95 %: Wilson's for rates; that of the average is made from those of the suites. They tell how far "
    "a rate can be trusted for these tasks and this policy, not how another training run would do. Errors and missing "
    "episodes are in no rate."
)
Records = Mapping[EpisodeKey, dict[str, Any]]


def format_success(successes: int, episodes: int) -> str:
    """A success rate with its sample size and interval, such as `3/5 (60 %, 95 % interval 23 to 88 %)`."""
    low, high = success_interval(successes, episodes)
    rate = successes / episodes
    return f"{successes}/{episodes} ({100 * rate:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as a Markdown table; no cell can break out of it."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def write_report(output_dir: Path, wanted: Sequence[EpisodeKey], options: Mapping[str, Any]) -> dict[str, Any]:
    """Sum up a results folder: numbers first, the picture last.

    Args:
        output_dir (`Path`): the results folder.
        wanted (`Sequence[EpisodeKey]`): episodes that the command asked for.
        options (`Mapping`): of the command, flat.

    Returns:
        `dict`: what was written to `summary.json`; see docs/reports.md.

    Raises:
        ValueError: if the folder is none of results.
        ImportError: if matplotlib is not installed; the numbers are written by then.
    """
    results = read_results(output_dir)
    summary = summarise(results, wanted, options)
    write_json(output_dir / SUMMARY, summary)
    records = [results.records[key] for key in wanted if key in results.records]
    write_text(output_dir / REPORT, format_report(summary, records))
    draw_report(summary, output_dir / PICTURE)
    return summary


def summarise(results: Results, wanted: Sequence[EpisodeKey], options: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers of a run.

    Args:
        results (`Results`): see `read_results`.
        wanted (`Sequence[EpisodeKey]`): episodes that the command asked for.
        options (`Mapping`): of the command, flat.

    Returns:
        `dict`: JSON values; see docs/reports.md.
    """
    records = {key: results.records[key] for key in wanted if key in results.records}
    suites = {suite: _suite(records, wanted, suite) for suite in dict.fromkeys(key.suite for key in wanted)}
    settings = results.settings
    return {
        "suite": ", ".join(suites),
        **_rates(records, wanted),
        "average": _average(suites),
        "suites": suites,
        "not_judged": {
            "errors": [
                {"episode": key.name, "attempts": record["attempts"], "error": record["error"]}
                for key, record in records.items()
                if record["outcome"] == "error"
            ],
            "missing": [key.name for key in wanted if key not in records],
        },
        "speed": _speed(list(records.values()), results.sessions),
        "settings": {
            **options,
            **settings,
            "checkpoint_fingerprint": settings["policy"].get("checkpoint_fingerprint"),
            "commit": ", ".join(settings["commits"]),
        },
        "sessions": results.sessions,
    }


def _rates(records: Records, wanted: Sequence[EpisodeKey]) -> dict[str, Any]:
    """Success and length over some of the wanted episodes."""
    found = [records[key] for key in wanted if key in records]
    judged = [record for record in found if record["outcome"] != "error"]
    succeeded = [record for record in judged if record["success"]]
    return {
        "episodes": len(judged),
        "successes": len(succeeded),
        "success_rate": _ratio(len(succeeded), len(judged)),
        "interval_95": list(success_interval(len(succeeded), len(judged))) if judged else None,
        "errors": len(found) - len(judged),
        "missing": len(wanted) - len(found),
        "mean_steps": _ratio(sum(record["num_steps"] for record in judged), len(judged)),
        "mean_steps_of_successes": _ratio(sum(record["num_steps"] for record in succeeded), len(succeeded)),
    }


def _suite(records: Records, wanted: Sequence[EpisodeKey], suite: str) -> dict[str, Any]:
    """One suite and each of its tasks."""
    of_suite = [key for key in wanted if key.suite == suite]
    tasks = {}
    for task_id in dict.fromkeys(key.task_id for key in of_suite):
        of_task = [key for key in of_suite if key.task_id == task_id]
        instruction = next((records[key]["instruction"] for key in of_task if key in records), None)
        tasks[str(task_id)] = {"instruction": instruction, **_rates(records, of_task)}
    return {**_rates(records, of_suite), "tasks": tasks}


def _average(suites: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Mean of the suites' rates, each suite counted once; None where a suite has no judged episode."""
    if any(suite["success_rate"] is None for suite in suites.values()):
        return None
    average = average_estimates([Estimate(suite["success_rate"], *suite["interval_95"]) for suite in suites.values()])
    return {"suites": len(suites), "success_rate": average.value, "interval_95": [average.low, average.high]}


def _speed(records: Sequence[Mapping[str, Any]], sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the time went; episodes that ended in errors are left out."""
    judged = [record for record in records if record["outcome"] != "error"]
    steps, chunks, frames = (
        sum(record[name] for record in judged) for name in ("num_steps", "num_chunks", "num_frames")
    )
    total, policy = (sum(record["seconds"][name] for record in judged) for name in ("total", "policy"))
    wall = sum(session["wall_seconds"] for session in sessions)
    return {
        "steps": steps,
        "chunks": chunks,
        "frames": frames,
        "seconds_per_chunk": _ratio(policy, chunks),
        "policy_seconds_per_step": _ratio(policy, steps),
        "steps_per_second": _ratio(steps, total),
        "frames_per_second": _ratio(frames, total) if frames else None,
        "wall_seconds": wall,
        "overhead_share": _ratio(sum(session["overhead_seconds"] for session in sessions), wall),
        "restarts": sum(session["restarts"] for session in sessions),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# As people read it


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table for the terminal: a line a suite, and the average.

    Args:
        summary (`Mapping`): see `summarise`.

    Returns:
        `str`: several lines.
    """
    rows = [["suite", *_HEADER], *_suite_rows(summary)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def format_report(summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The summary as Markdown.

    Args:
        summary (`Mapping`): see `summarise`.
        records (`Sequence[Mapping]`): the episodes, for the list of videos.

    Returns:
        `str`: the report.
    """
    policy = summary["settings"]["policy"]
    parts = [
        "# LIBERO evaluation",
        f"Policy: `{policy.get('policy')}`. {summary['episodes']} episodes judged, {summary['errors']} errors, "
        f"{summary['missing']} missing.",
        markdown_table(["suite", *_HEADER], _suite_rows(summary)),
        HOW,
        f"![success of every task]({PICTURE})",
    ]
    for name, suite in summary["suites"].items():
        rows = [[number, task["instruction"] or "", *_cells(task)] for number, task in suite["tasks"].items()]
        parts += [f"## {name}", markdown_table(["task", "instruction", *_HEADER], rows)]
    parts += _not_judged_parts(summary["not_judged"])
    parts += ["## Speed", markdown_table(["", ""], _speed_rows(summary["speed"]))]
    parts += _video_parts(records)
    parts += ["## Settings", markdown_table(["setting", "value"], _setting_rows(summary["settings"]))]
    return "\n\n".join(parts) + "\n"


_HEADER = ["success", "rate", "95 % interval", "errors", "missing", "steps", "steps of successes"]


def format_percent(rate: float | None, interval: Sequence[float] | None) -> tuple[str, str]:
    """Rate and interval in percent; empty where no episode was judged."""
    if rate is None or interval is None:
        return "", ""
    return f"{100 * rate:.1f} %", f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def _cells(rates: Mapping[str, Any]) -> list[str]:
    return [
        f"{rates['successes']}/{rates['episodes']}",
        *format_percent(rates["success_rate"], rates["interval_95"]),
        str(rates["errors"]),
        str(rates["missing"]),
        _number(rates["mean_steps"], 0),
        _number(rates["mean_steps_of_successes"], 0),
    ]


def _suite_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, *_cells(suite)] for name, suite in summary["suites"].items()]
    average = summary["average"]
    if average is not None and average["suites"] > 1:
        percent = format_percent(average["success_rate"], average["interval_95"])
        rows.append([f"average of {average['suites']} suites", "", *percent, "", "", "", ""])
    return rows


def _not_judged_parts(not_judged: Mapping[str, Any]) -> list[str]:
    """Errors and missing episodes by name; nothing where there are none."""
    parts = []
    if not_judged["errors"]:
        rows = [[entry["episode"], entry["attempts"], _last_line(entry["error"])] for entry in not_judged["errors"]]
        parts += ["## Errors", "The same command tries them again. Whole texts: episodes.jsonl."]
        parts.append(markdown_table(["episode", "attempts", "error"], rows))
    if not_judged["missing"]:
        parts += ["## Missing", "\n".join(f"- {name}" for name in not_judged["missing"])]
    return parts


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else ""


def _speed_rows(speed: Mapping[str, Any]) -> list[list[str]]:
    overhead = speed["overhead_share"]
    rows = [
        ["seconds per action chunk, as an episode waits for it", _number(speed["seconds_per_chunk"], 3)],
        ["policy seconds per step", _number(speed["policy_seconds_per_step"], 4)],
        ["steps per second of a simulator process", _number(speed["steps_per_second"], 2)],
        ["frames rendered per second of a simulator process", _number(speed["frames_per_second"], 2)],
        ["steps, chunks, frames", f"{speed['steps']}, {speed['chunks']}, {speed['frames']}"],
        ["wall seconds of the processes that came to their end", _number(speed["wall_seconds"], 1)],
        ["of these, neither simulator nor policy", "" if overhead is None else f"{100 * overhead:.1f} %"],
        ["restarts of simulators", str(speed["restarts"])],
    ]
    return [row for row in rows if row[1]]


def _video_parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [record["instruction"], record["initial_state"], record["outcome"], f"[{name}](videos/{name})"]
        for record in records
        if (name := record["video"])
    ]
    return ["## Videos", markdown_table(["instruction", "state", "outcome", "video"], rows)] if rows else []


def _setting_rows(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict):
            rows += _setting_rows(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            rows.append([prefix + name, f"`{value}`"])
    return rows


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
