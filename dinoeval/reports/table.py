"""Results and verdicts as text for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from dinoeval.paper.comparable import Comparison, comparable
from dinoeval.results import Result
from dinoeval.verdicts import Verdict

MAX_TABLE_ROWS = 50
"""Rows of a Result's table that are printed; --json writes all."""

MAX_REASONS = 1
"""Number of reasons against a comparison that are printed with a Result; `dinoeval check` lists all."""


def format_result(result: Result) -> str:
    """Format a Result with its metrics next to published scores.

    Args:
        result: The Result of any protocol.

    Returns:
        Several lines of text.
    """
    found = comparable(result)
    splits = result.splits
    sizes = [f"{split.get('images', 0):,} {split.get('split', name)}" for name, split in splits.items()]
    classes = next((split["classes"] for split in splits.values() if split.get("classes")), 0)
    sizes += [f"{classes} classes"] if classes else []
    name = result.data.get("name") or "unnamed data"
    backbone = result.backbone
    lines = [
        f"{result.protocol}@{result.version} on {name}" + (f" ({', '.join(sizes)})" if sizes else ""),
        f"{backbone.get('arch')}, weights {backbone.get('weights')}, {result.transform}, "
        + (f"{result.image_rule}, " if result.image_rule else "")
        + str(backbone.get("precision")),
        "",
        *_metrics(result, found),
        "",
        "percent ± standard error" + (" (standard deviation over runs)" if result.deviations else ""),
        *_table(result.table),
        *(f"published: {row.metric} {row.value:.{row.decimals}f} ({row.source})" for row in found.rows),
    ]
    if found.reasons:
        lines.append(f"no published score to compare with: {'; '.join(found.reasons[:MAX_REASONS])}")
        if len(found.reasons) > MAX_REASONS:
            lines.append(f"  and {len(found.reasons) - MAX_REASONS} more reasons, which `dinoeval check` lists")
    lines += [f"related: {row.source} prints {row.value:.{row.decimals}f} for {row.metric}" for row in found.related]
    lines += [f"note: {note}" for note in (*result.notes, *dict.fromkeys(remark for row in found.rows for remark in row.remarks))]
    for name, split in splits.items():
        if split.get("bad_images"):
            lines.append(f"left out of {name} because they cannot be read: {len(split['bad_images'])} images")
    lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items()))
    return "\n".join(line.rstrip() for line in lines)


def _metrics(result: Result, found: Comparison) -> list[str]:
    """Return one line per metric; or, if all are named like `top1@20`, one line per k and one column per metric."""
    by_k = all(metric.partition("@")[2].isdigit() for metric in result.metrics)
    rows: dict[str, dict[str, str]] = {}
    for metric, value in result.metrics.items():
        column, _, k = metric.partition("@") if by_k else ("percent", "", metric)
        error, deviation = result.standard_errors.get(metric), result.deviations.get(metric)
        cells = rows.setdefault(k, {"k" if by_k else "": k})
        cells[column] = (
            f"{value:6.2f}" + (f" ± {error:.2f}" if error is not None else "") + (f" ({deviation:.2f})" if deviation is not None else "")
        )
        published = [f"{row.value:.{row.decimals}f} ({value - row.value:+.2f})" for row in found.rows if row.metric == metric]
        if published:
            cells["published"] = ", ".join(published)
    return align(rows.values())


def _table(table: list[dict[str, Any]]) -> list[str]:
    """Return the rows of a Result's table; consecutive rows with the same columns are aligned together."""
    groups = [list(rows) for _, rows in itertools.groupby(table, key=lambda row: tuple(row))]
    lines = []
    for rows in groups:
        lines += ["", *align([{name: _cell(value) for name, value in row.items()} for row in rows[:MAX_TABLE_ROWS]])]
        if len(rows) > MAX_TABLE_ROWS:
            lines.append(f"  and {len(rows) - MAX_TABLE_ROWS:,} more rows; --json writes all")
    return [*lines, ""] if lines else []


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def align(rows: Iterable[dict[str, str]]) -> list[str]:
    """Align cells in columns.

    Args:
        rows: Cells by column name.

    Returns:
        A line of headings, then one line per row; columns of numbers are aligned to the right.

    Examples:
        >>> align([{"k": "10", "top1": "96.9"}, {"k": "200", "top1": "95.1"}])
        ['    k  top1', '   10  96.9', '  200  95.1']
    """
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [""] * (1 + len(rows))
    for column in columns:
        cells = [row.get(column, "") for row in rows]
        number = all(cell.replace(".", "", 1).replace("e-", "", 1).isdigit() for cell in cells if cell)
        width = max(map(len, [column, *cells]))
        for line, cell in enumerate([column, *cells]):
            lines[line] += "  " + (cell.rjust(width) if number else cell.ljust(width))
    return lines


def format_verdicts(path: str, verdicts: Sequence[Verdict], reasons: Sequence[str]) -> str:
    """Format what `dinoeval check` found about one Result.

    Args:
        path: The file of the Result.
        verdicts: One per compared metric.
        reasons: Why nothing could be compared.

    Returns:
        Several lines of text.
    """
    lines = [path, *(f"  not comparable: {reason}" for reason in reasons)]
    lines += [
        f"  {verdict.metric:<22}{verdict.measured:>10.2f}{verdict.reference:>11.2f}{verdict.difference:>+12.2f}"
        f"{verdict.tolerance:>11.2f}  {verdict.outcome}: {verdict.method}"
        for verdict in verdicts
    ]
    return "\n".join(lines)


VERDICT_HEADING = f"{'':<24}{'measured':>10}{'reference':>11}{'difference':>12}{'tolerance':>11}"
