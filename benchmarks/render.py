"""The tables of the benchmarks: on the terminal after a run, and in README.md from the committed results.

`python benchmarks/render.py` prints the committed tables and rewrites the block between the markers in README.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
# ceilings of the machine that times in microseconds are stated for; elsewhere they scale with the one that a row names
TARGET_CEILINGS = {"copy": (17.0, "GB/s"), "sgemm_1": (72.6, "GFLOP/s")}


def committed() -> list[dict[str, Any]]:
    """The results in the repository, by machine."""
    return [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]


def terminal(results: dict[str, Any]) -> str:
    """All columns, aligned."""
    rows = [["case", "jets", "n", "thr", "us/jet", "jets/s", "GB/s", "of limit", "compared with", "target"]]
    for row in results["rows"]:
        rows.append(
            [
                f"{row['op']} {row['case']}",
                f"{row['jets']}",
                f"{row['constituents']:.0f}",
                f"{row['threads']}",
                _short(row["us"]),
                f"{row['jets_per_s']:,.0f}",
                f"{row['GB_per_s']:.1f}" if row["bytes"] else "-",
                _share(row),
                _peers(row) or "-",
                _target(row, results["ceilings"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip() for cells in rows]
    return "\n".join(["", *lines, "", _caption(results)])


def markdown(results: dict[str, Any]) -> str:
    """What README.md shows of one machine."""
    lines = [
        "| operation | µs per jet | compared with (µs per jet) | share of the limit |",
        "|---|---:|---|---:|",
    ]
    for row in results["rows"]:
        threads = f", {row['threads']} threads" if row["threads"] > 1 else ""
        lines.append(
            f"| `{row['op']}` {row['case']}{threads} | {_short(row['us'])} | {_peers(row) or '–'} | {_share(row)} |"
        )
    return "\n".join([*lines, "", _caption(results)])


def readme_block() -> str:
    """The text between the markers."""
    return "\n\n".join([BEGIN, *map(markdown, committed()), END])


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value < 1e5 else f"{value * 1e-6:.2f} s"


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.0f} %" if row["limit_us"] else "–"


def _peers(row: dict[str, Any]) -> str:
    told = []
    for name, found in row["peers"].items():
        told.append(f"{name} {_short(found['us'])} ({found['ratio']:.3g}x)" if found else f"{name}: not installed")
    return "; ".join(told)


def _target(row: dict[str, Any], ceilings: dict[str, float]) -> str:
    target = row["target"]
    if "us" in target:
        name = target.get("ceiling", "copy")
        rate, unit = TARGET_CEILINGS[name]
        bound = target["us"] * rate / ceilings[name]
        stated = f"{target['us']} at {rate:.0f} {unit}: {_met(row['us'] <= target['us'])}"
        return f"<= {bound:.2f} us: {_met(row['us'] <= bound)} ({stated})"
    if "s" in target:
        return f"<= {target['s']} s: {_met(row['us'] <= 1e6 * target['s'])}"
    if "ratio" in target:
        bound = target["ratio"]
        ratios = [found["ratio"] for found in row["peers"].values() if found]
        return f">= {bound:.0f}x: {_met(min(ratios) >= bound) if ratios else 'not measured'}"
    if "share" in target:
        return f">= {target['share']:.0%} of the limit: {_met(row['share'] >= target['share'])}"
    return "-"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def _caption(results: dict[str, Any]) -> str:
    machine, ceilings = results["machine"], results["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, one thread where not said, float32, medians of alternating "
        f"rounds in one run; {versions}; commit {machine['commit']}, {machine['date']}.",
        f"Ceilings of the same run: copy {ceilings['copy']:.1f} GB/s, writing fresh memory {ceilings['fresh']:.1f} "
        f"GB/s, sgemm {ceilings['sgemm_1']:.0f} GFLOP/s with one thread, {ceilings['sgemm_2']:.0f} with two.",
    ]
    for row in results["rows"]:
        if "memory" in row:
            memory = row["memory"]
            bound = 1.5 * memory["chunk"] + memory["result"]
            lines.append(
                f"Peak memory of {row['op']} {row['case']}: {memory['peak'] / 1e6:.1f} MB; 1.5 times a chunk of rows "
                f"({memory['chunk'] / 1e6:.1f} MB) plus the result ({memory['result'] / 1e6:.1f} MB) are "
                f"{bound / 1e6:.1f} MB: {_met(memory['peak'] <= bound)}."
            )
        if "step_memory" in row:
            told = ", ".join(f"{name} {bytes / 1e6:.0f} MB" for name, bytes in row["step_memory"].items())
            lines.append(f"Memory of a step beyond the model and its inputs, {row['op']} {row['case']}: {told}.")
    return "\n".join(lines)


if __name__ == "__main__":
    for found in committed():
        print(terminal(found))
    text = README.read_text()
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    README.write_text(head + readme_block() + rest.partition(END)[2])
