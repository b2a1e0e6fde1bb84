"""AUROC of MNTD against the number of shadows, from lines of the bench: a table, and a drawing.

    python benchmarks/mntd_curve.py docs/results/mntd*.jsonl --out docs/images/mntd-curve.svg

Judging networks; suspicion as in the leaderboard (p-value, then score); 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from backsweep.bench.figures import Ranking, ranking
from backsweep.bench.records import Scan, read, scan_of
from backsweep.zoo.build import JUDGING

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEAST = 740, 340, 56, 24, 54, 0.8
COLOURS = ("#1f5fa8", "#c2571a", "#2e7d4f", "#8a3ffc", "#a2191f", "#5c6670", "#007d79", "#b28600")
CURVES = {("jumbo", False): "jumbo", ("robust", True): "robust, two-sided"}  # variant, two_sided
Curves = Mapping[str, Sequence[tuple[int, Ranking]]]


def curves(paths: Sequence[Path]) -> Curves:
    """AUROC by number of shadows, for each task, method and kind of trigger."""
    groups: dict[tuple[str, str, int], list[Scan]] = defaultdict(list)
    for raw in (line for path in paths for line in read(path)):
        scan = scan_of(raw)
        if scan is None or raw.get("split") != JUDGING or raw["detector"] != "mntd" or scan.gate:
            continue
        settings, kind = raw["settings"], raw["options"].get("kind")
        sided = settings["two_sided"]
        if "paper" in settings["bank"] or (settings["variant"], sided) not in CURVES:
            continue
        if raw["attack"] is None or (raw["attack"] == "jumbo" and kind):
            name = f"{raw['task']}, {CURVES[settings['variant'], sided]}"
            groups[name, kind or "", int(raw["detail_shadows"])].append(scan)
    found: dict[str, list[tuple[int, Ranking]]] = defaultdict(list)
    for (name, kind, shadows), attacked in sorted(groups.items()):
        made = ranking(attacked, groups.get((name, "", shadows), [])) if kind else None
        if made is not None:
            found[f"{name}, {kind}"].append((shadows, made))
    return found


def table(found: Curves) -> str:
    """Markdown."""
    counts = sorted({n for points in found.values() for n, _ in points})
    rows = ["| shadows a side | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for name, points in found.items():
        by_count = {n: f"{r.auroc.value:.3f} ({r.auroc.low:.2f} to {r.auroc.high:.2f})" for n, r in points}
        rows.append(f"| {name} | " + " | ".join(by_count.get(n, "") for n in counts) + " |")
    return "\n".join(rows)


def drawing(found: Curves) -> str:
    """SVG: a line for each curve, the number of shadows on a logarithmic axis."""
    counts = sorted({n for points in found.values() for n, _ in points})
    plot = WIDTH - LEFT - 290

    def x(n: int) -> float:
        return LEFT + plot * math.log2(n / counts[0]) / max(math.log2(counts[-1] / counts[0]), 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (max(value, LEAST) - LEAST) / (1 - LEAST))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#22262a">',
        "<title>AUROC of MNTD against the number of shadow networks</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for tick in (0.8, 0.85, 0.9, 0.95, 1.0):
        parts.append(f'<path d="M{LEFT} {y(tick):.1f}h{plot}" stroke="#dfe3e6"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for n in counts:
        parts.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{n}</text>')
    middle = LEFT + plot / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">shadows a side</text>')
    parts.append(f'<text x="{LEFT - 40}" y="{TOP - 8}">AUROC</text>')
    for i, (name, points) in enumerate(found.items()):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 4"' if "two-sided" in name else ""
        line = " ".join(f"{x(n):.1f},{y(r.auroc.value):.1f}" for n, r in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts += [
            f'<circle cx="{x(n):.1f}" cy="{y(r.auroc.value):.1f}" r="3" fill="{colour}"/>' for n, r in points
        ]
        at = TOP + 6 + 22 * i
        left = WIDTH - 270
        parts.append(f'<path d="M{left} {at}h22" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{left + 28}" y="{at + 4}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = curves(args.lines)
    print(table(found))
    if args.out is not None:
        args.out.write_text(drawing(found), encoding="utf-8")


if __name__ == "__main__":
    main()
