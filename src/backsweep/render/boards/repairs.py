"""The leaderboard of repairs in words and tables; `board.py` writes them as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backsweep.bench.records import NO_REPAIR, Fix
from backsweep.bench.repair_figures import Board, Part, Row
from backsweep.render import view
from backsweep.render.boards.board import NONE, Cell, Page, Section, Table, figure, intro, spread

HOW_TO_READ = [
    "Before and after, on the whole test set with the triggers that were planted, which no repair has seen: "
    "with several triggers the one that works best. Accuracy lost is in points; negative is gained.",
    "Worst attack success: the network on which the trigger works best after the repair. A mean hides it.",
    "DER, the defence effectiveness rating: (max(0, success removed) - max(0, accuracy lost) + 1) / 2, the "
    "mean over networks; in brackets the 95 % interval of a bootstrap over networks. Doing nothing has 50 %.",
    "Robust accuracy: triggered inputs that are classified as what they are.",
    "Re-tuned: attack success after 20 updates on clean samples and five poisoned ones, with the true "
    "trigger. What stays at 20 % or below does not relapse. The clean twins of the same networks, which "
    "never had the backdoor, are the yardstick.",
    "Clean networks have nothing to repair: what a repair costs them is the price of a false alarm.",
    "Networks that a repair skipped, or on which it failed, are in none of its means. What the attack "
    "success is with these as they were stands in brackets beside it.",
    "CPU seconds (of one core) are medians; beside them the same in epochs of the network's own training on "
    "the whole training set. The scan that gives a repair its triggers is not part of it.",
]


def page(board: Board) -> Page:
    """The leaderboard of repairs."""
    title = f"Repairs: {board.chosen.split} networks"
    return Page(title, board.chosen.split, intro(board.chosen, "repair"), _sections(board))


def _sections(board: Board) -> list[Section]:
    sections = []
    for part in board.parts:
        tables = [("", _table(part.rows))]
        if part.common:
            nets = len({f.net for r in part.common for f in (*r.bad, *r.good, *r.missed[0], *r.missed[1])})
            tables.append((f"On the {nets:,} networks that every repair was given", _table(part.common)))
        if part.attacks:
            tables.append(("Attack success after the repair, by attack (accuracy lost)", _by_attack(part)))
        sections.append(Section(f"Repairs on {_place(part)}", tables=tables))
    sections.append(Section("How to read the repairs", items=HOW_TO_READ))
    sections += _published(board)
    for part in board.parts:
        names = dict.fromkeys(f.repair for f in part.fixes if f.outcome == "repaired")
        tables = [(view.clean(n), _networks([f for f in part.fixes if f.repair == n])) for n in names]
        if tables:
            sections.append(Section(f"Repaired networks, {_place(part)}", tables=tables, folded=True))
    if missed := _missed(board):
        sections.append(Section("Not repaired", items=missed))
    gate = [view.clean(reason, 300) for reason in board.chosen.gate]
    text = [] if gate else ["None."]
    sections.append(Section("Networks not repaired: outside the gate of the zoo", text, items=gate))
    return sections


def _missed(board: Board) -> list[str]:
    """Why networks are not repaired: an item for every repair and reason."""
    found: dict[tuple[str, float, str, str], list[str]] = {}
    for f in board.chosen.lines:
        if f.outcome != "repaired":
            found.setdefault((f.repair, f.share, f.outcome, f.reason), []).append(view.clean(f.net))
    return [
        f"{view.clean(repair)}, {_percent(share)}: {outcome} on {view.counted(len(nets), 'network')}, "
        f"{view.clean(reason, 300)} ({', '.join(nets)})"
        for (repair, share, outcome, reason), nets in found.items()
    ]


def _place(part: Part) -> str:
    return f"{view.clean(part.task)} with {_percent(part.share)} of the training set"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


# ---------------------------------------------------------------------- tables

HEAD = (
    "repair", "attacked / clean", "worst attack success", "accuracy lost, CLEAN networks", "attack success",
    "DER", "accuracy lost", "re-tuned", "robust accuracy", "CPU s", "skipped / failed",
)  # fmt: skip


def _table(rows: Sequence[Row]) -> Table:
    return Table(list(HEAD), [_row(r) for r in rows])


def _row(row: Row) -> list[Cell]:
    skipped, failed = (len(m) for m in row.missed)
    der = Cell(f"{row.der.value:.1%}", spread(row.der, ".1%")) if row.der else Cell(NONE)
    tuned = [
        f"worst {_worst(row.worst_retuned, lambda f: f.figure('retuned'))}",
        f"{row.held.hits}/{row.held.n} at most 20 %",
        *([f"clean twins {row.twins:.1%}"] if row.twins is not None else []),
    ]
    mean = Cell(figure(row.success, ".1%"))
    if row.unrepaired is not None:
        mean = Cell(mean.main, f"{row.unrepaired:.1%} with those not repaired")
    return [
        Cell(view.clean(row.repair)), Cell(f"{len(row.bad):,} / {len(row.good):,}"),
        _worst_cell(row.worst), _lost(row.clean_lost, row.worst_clean, strong=True),
        mean, der, _lost(row.lost, row.worst_lost),
        Cell(figure(row.retuned, ".1%"), "; ".join(tuned)) if row.retuned is not None else Cell(NONE),
        Cell(figure(row.robust, ".1%")),
        Cell(
            figure(row.seconds, ",.1f"), "" if row.epochs is None else f"{row.epochs:,.1f} epochs"
        ),
        Cell(f"{skipped} / {failed}"),
    ]  # fmt: skip


def _worst_cell(fix: Fix | None) -> Cell:
    """The network with the highest attack success: how much, of which attack, which one."""
    if fix is None:
        return Cell(NONE)
    return Cell(f"{fix.figure('success_after'):.1%}", f"{_word(fix.group)}; {_word(fix.net)}", strong=True)


def _word(text: str) -> str:
    """Text without the separator of `Cell.note`."""
    return view.clean(text).replace(";", ",")


def _worst(fix: Fix | None, value: Callable[[Fix], float]) -> str:
    return NONE if fix is None else f"{value(fix):.1%} {_word(fix.group)}".strip()


def _lost(mean: float | None, worst: Fix | None, strong: bool = False) -> Cell:
    if mean is None or worst is None:
        return Cell(NONE)
    return Cell(_points(mean), f"worst {_points(worst.lost)}; {_word(worst.net)}", strong)


def _points(lost: float) -> str:
    return f"{100 * lost + 0.0:.2f}"


def _by_attack(part: Part) -> Table:
    names = [r.repair for r in part.rows if r.repair != NO_REPAIR]
    rows = []
    for group, own in part.attacks:
        before = next((r for r in own if r.repair == NO_REPAIR), None)
        count = len({f.net for f in part.fixes if f.group == group})
        cells = [Cell(view.clean(group), view.counted(count, "network"))]
        cells.append(Cell(figure(before.success if before else None, ".1%")))
        for name in names:
            found = next((r for r in own if r.repair == name), None)
            cells.append(_attack_cell(found, count) if found else Cell(NONE))
        rows.append(cells)
    return Table(["attack", "before", *(view.clean(n) for n in names)], rows)


def _attack_cell(row: Row, networks: int) -> Cell:
    if row.success is None or row.lost is None or row.worst is None:
        return Cell("skipped" if row.missed[0] else "failed")
    worst = row.worst.figure("success_after")
    more = [f"up to {worst:.1%}"] if len(row.bad) > 1 and f"{worst:.1%}" != f"{row.success:.1%}" else []
    left = sum(len(m) for m in row.missed)
    notes = [f"lost {_points(row.lost)}", *more, *([f"{left} not repaired"] if left else [])]
    if len(row.bad) + left < networks:
        notes.append(f"{view.counted(len(row.bad), 'network')} only")
    return Cell(f"{row.success:.1%}", "; ".join(notes))


NETWORK_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("success before", "success_before", ".1%"), ("after", "success_after", ".1%"),
    ("robust after", "robust_after", ".1%"), ("re-tuned", "retuned", ".1%"),
    ("twin re-tuned", "twin_retuned", ".1%"), ("accuracy before", "accuracy_before", ".2%"),
    ("after", "accuracy_after", ".2%"), ("held out before", "held_out_before", ".2%"),
    ("after", "held_out_after", ".2%"), ("triggers recovered", "recovered", ",.0f"),
    ("CPU s", "cpu_seconds", ",.1f"), ("scan CPU s", "scan_cpu_seconds", ",.0f"),
    ("epoch CPU s", "epoch_cpu_seconds", ",.1f"),
)  # fmt: skip


def _networks(fixes: Sequence[Fix]) -> Table:
    """The worst first."""
    done = [f for f in fixes if f.outcome == "repaired"]
    order: Callable[[Fix], tuple[bool, float, str]] = lambda f: (  # noqa: E731
        f.attack is None, -(f.figure("success_after") if f.attack else f.lost), f.net
    )  # fmt: skip
    shown = [(t, k, form) for t, k, form in NETWORK_FIGURES if any(f.number(k) is not None for f in done)]
    rows = []
    for f in sorted(done, key=order):
        der = f"{f.der:.1%}" if f.attack else NONE
        cells = [Cell(view.clean(f.net)), Cell(view.clean(f.raw.get("verdict") or "?", 20)), Cell(_ways(f))]
        cells += [Cell(figure(f.number(k), form)) for _, k, form in shown]
        rows.append([*cells[:3], Cell(der), *cells[3:]])
    head = ["network", "scan", "suspected / true target", "DER", *(t for t, _, _ in shown)]
    return Table(head, rows)


def _ways(fix: Fix) -> str:
    """What the scan suspected, and the planted targets."""
    found = fix.raw.get("suspected")
    ways = [w for w in found if isinstance(w, list) and len(w) == 2] if isinstance(found, list) else []
    words = [f"{'' if s is None else f'{s} to '}{'next' if t is None else t}" for s, t in ways]
    targets = fix.raw.get("targets")
    true = ", ".join(str(t) for t in targets) if isinstance(targets, list) else ""
    return view.clean((", ".join(words) or NONE) + (f" / {true}" if true else ""))


def _published(board: Board) -> list[Section]:
    """Figures of others, beside ours of the same repair."""
    from backsweep.bench.repair_figures import published

    source, figures = published()
    parts: dict[str, Part] = {}
    for part in board.parts:
        parts.setdefault(part.task, part)  # the largest share
    rows = []
    for p in figures:
        own = []
        for part in parts.values():
            found = next((r for r in part.rows if r.repair == p.repair), None)
            if found is None or found.der is None or found.success is None or found.worst is None:
                own.append(Cell(NONE))
            else:
                worst = f"worst {found.worst.figure('success_after'):.1%}"
                note = f"success {found.success:.1%}; {worst}; lost {_points(found.lost or 0.0)}"
                own.append(
                    Cell(f"{found.der.value:.1%}", f"{note}; {view.counted(len(found.bad), 'network')}")
                )
        rows.append([
            Cell(p.title), Cell(f"{p.der:g} %"), Cell(f"{p.success:g} %"), Cell(p.worst),
            Cell(f"{p.robust:g} %"), Cell(f"{p.accuracy:g} %"), *own,
        ])  # fmt: skip
    if not rows or not board.chosen.lines:
        return []
    ours = [f"DER here, {_place(part)}" for part in parts.values()]
    head = ["repair", "DER", "attack success", "worst, %", "robust accuracy", "clean accuracy", *ours]
    text = [
        "These are other networks, attacks and images than here: the columns must not be compared figure by "
        f"figure. Source: {source}."
    ]
    return [
        Section("Published figures of repairs, on other networks", text, tables=[("", Table(head, rows))])
    ]
