"""The leaderboards of audits and guards in words and tables; `board.py` writes them as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from backsweep.bench.records import Look
from backsweep.bench.sample_figures import AuditRow, Board, GuardRow, Part
from backsweep.bench.samples import DEFAULT, FPR
from backsweep.core.statistics import Estimate
from backsweep.render import view
from backsweep.render.boards.board import NONE, Cell, Page, Section, Table, figure, intro, share_cell, spread

TPR_GOAL, FPR_GOAL, ALARM_GOAL, SUCCESS_GOAL = 0.95, 0.02, 0.05, 0.05
AUROC_GOAL, WORST_AUROC_GOAL, PASSES_GOAL, STRIP_FAR_GOAL = 0.95, 0.9, 6, 0.005
LEAST_CLEAN = 20  # unpoisoned sets, below which "one false alarm in 20" cannot be seen
STRIP = "strip"
GOAL = "goal"
NAMED_TEXT = "WaNet, input-aware, source-specific (tact) and latent-blend (adap_blend) attacks first"

READ_AUDITS = [
    "A set is the training set as the attack left it; unpoisoned sets are those of the clean twins. Poison "
    "rate and target class are told to no detector.",
    "Called poisoned and false alarms: sets in which a class is found poisoned, Wilson 95 %. “Cannot tell”: "
    "neither poisoned nor clean, attacked / unpoisoned. Sets that could not be audited are counted in the "
    "last column, listed below, and enter no figure.",
    "Right class: the most suspicious class, or one of the suspected, is a true target, among attacked sets "
    "with target classes.",
    "AUROC: scores of poisoned samples against those of all others in a set, whatever is flagged; the mean "
    "over sets, in brackets the 95 % interval of a bootstrap over sets.",
    "TPR and FPR: shares of the poisoned and of the other samples that are flagged, means over sets. Where "
    "nothing is flagged the TPR is 0. Missed: poisoned samples that are not flagged, all sets together.",
    "Retrained: attack success rate and clean accuracy, in points against the attacked network, of a fresh "
    "network that learned from the samples that were not flagged. It is only trained where something was "
    "flagged; the mean with the other sets as they were stands beside it.",
    "CPU seconds (of one core) are medians, of the whole audit and of the detector alone.",
    "Bold: the goal of the first row is reached, the TPR's together with the FPR's. Fewer than 20 unpoisoned "
    "sets cannot show one false alarm in 20.",
]
READ_GUARDS = [
    "A guard is fitted on clean samples of the training set and asked about test images: clean ones, and "
    "triggered ones that the network does send to their target; of several triggers the one that is noticed "
    "least.",
    "AUROC: triggered against clean images; mean over networks, in brackets the 95 % interval of a bootstrap "
    "over networks. Beside the worst its attack and network.",
    f"FRR: clean inputs that are flagged; {100 * FPR:g} % is asked for, and what fresh clean images show "
    "stands beside it. FAR: triggered inputs that pass at that threshold.",
    "Passes of the model for one answer (median), the answer itself included. Milliseconds of one core for "
    "an input, and how many times as long as without the guard, medians.",
    "Networks that could not be guarded are counted in the last column, listed below, and enter no figure.",
    "Bold: the goal of the first row is reached. Those of AUROC and passes are for the default guard, that "
    "of the FAR is for STRIP.",
]


def audits(board: Board[AuditRow]) -> Page:
    """The leaderboard of audits."""
    sections: list[Section] = []
    for part in board.parts:
        tables = [("", _audit_table(part.rows))]
        if part.common:
            tables.append((_common(part), _audit_table(part.common)))
        for name in dict.fromkeys(r.detector for r in part.rows):
            if own := [r for r in part.attacks if r.detector == name]:
                table = _audit_table(own, by_attack=True)
                tables.append((f"{_word(name)} by attack, the worst first", table))
        sections.append(Section(f"Audits on {view.clean(part.task)}", tables=tables))
    sections.append(Section("How to read the audits", items=READ_AUDITS))
    sections += _published("audit")
    sections += _networks(board, "Audited training sets", AUDIT_FIGURES, _classes)
    sections += _left(board, "Not audited", "training set")
    return _page(board, "Audits", "audit", sections)


def guards(board: Board[GuardRow]) -> Page:
    """The leaderboard of guards."""
    sections: list[Section] = []
    for part in board.parts:
        tables = [("", _guard_table(part.rows))]
        if part.common:
            tables.append((_common(part), _guard_table(part.common)))
        if part.attacks:
            tables.append((f"AUROC by attack; {NAMED_TEXT}, then the worst", _guard_attacks(part)))
        sections.append(Section(f"Guards on {view.clean(part.task)}", _default(part), tables=tables))
    sections.append(Section("How to read the guards", items=READ_GUARDS))
    sections += _published("guard")
    sections += _networks(board, "Guarded networks", GUARD_FIGURES, None)
    silent = [
        f"{_word(x.detector)}: {view.clean(x.net)}"
        for part in board.parts for row in part.rows for x in row.bad if x not in row.judged
    ]  # fmt: skip
    if silent:
        text = ["Too few triggered images reach their target: there is an FRR, and neither AUROC nor FAR."]
        sections.append(Section("Guarded, but not judged on triggered inputs", text, items=silent))
    sections += _left(board, "Not guarded", "network")
    return _page(board, "Guards", "guard", sections)


def _page(board: Board[Any], title: str, noun: str, sections: list[Section]) -> Page:
    gate = [view.clean(reason, 300) for reason in board.chosen.gate]
    end = Section(f"Outside the gate of the zoo: no {noun}", [] if gate else ["None."], items=gate)
    said = intro(board.chosen, noun)
    return Page(f"{title}: {board.chosen.split} networks", board.chosen.split, said, [*sections, end])


def _word(text: object) -> str:
    """Text without the separator of `Cell.note`."""
    return view.clean(text).replace(";", ",")


def _common(part: Part[Any]) -> str:
    nets = {x.net for row in part.common for x in (*row.bad, *row.good)}
    return f"On the {view.counted(len(nets), 'network')} that every detector was used on"


def _default(part: Part[Any]) -> list[str]:
    """What the default guard is made of."""
    found: dict[str, int] = {}
    for x in part.looks:
        names = x.raw.get("detectors")
        if x.method == DEFAULT and isinstance(names, list) and names:
            made = _word(" + ".join(str(n) for n in names))
            found[made] = found.get(made, 0) + 1
    if len(found) < 2:
        return [f"The default guard is {made}." for made in found]
    words = [f"{made} on {view.counted(n, 'network')}" for made, n in found.items()]
    return [f"The default guard is {view.join(words)}."]


def _published(kind: str) -> list[Section]:
    """Figures of others."""
    from backsweep.bench.sample_figures import published

    items = [
        f"{p.method}: {p.what}: {p.value}. On: {p.data}. Source: {p.source}"
        + ("." if p.checked else " (as remembered, not checked).")
        for p in published()
        if p.kind == kind
    ]
    text = [
        "These are other networks, attacks and data than here: no figure may be compared with ours alone."
    ]
    return [Section(f"Published figures of {kind}s", text, items=items)] if items else []


def _left(board: Board[Any], title: str, noun: str) -> list[Section]:
    """Why networks were left out: an item for every detector and reason."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for x in board.chosen.lines:
        if x.reason:
            found.setdefault((x.task, x.detector, x.reason), []).append(view.clean(x.net))
    items = [
        f"{_word(detector)} on {view.clean(task)}, {view.counted(len(nets), noun)}: "
        f"{view.clean(reason, 300)} ({', '.join(nets)})"
        for (task, detector, reason), nets in found.items()
    ]
    return [Section(title, items=items)] if items else []


# ---------------------------------------------------------------------- tables

AUDIT_HEAD = (
    "detector", "attacked / unpoisoned", "called poisoned", "false alarms", "right class", "AUROC", "TPR",
    "worst TPR", "FPR", "missed", "retrained: attack success", "retrained: accuracy change", "CPU s",
    "cannot tell", "not audited",
)  # fmt: skip


def _audit_table(rows: Sequence[AuditRow], by_attack: bool = False) -> Table:
    """By detector; or by attack, which unpoisoned sets say nothing of, but the poison rate does."""
    goal = {
        "false alarms": "≤ 1 in 20", "TPR": f"≥ {TPR_GOAL:.0%}", "FPR": f"≤ {FPR_GOAL:.0%}",
        "retrained: attack success": f"≤ {SUCCESS_GOAL:.0%}",
    }  # fmt: skip
    head = list(AUDIT_HEAD)
    cells = [_audit_cells(r, by_attack) for r in rows]
    body = [[Cell(GOAL), *(Cell(goal.get(h, "")) for h in head[1:])], *cells]
    if by_attack:
        head[:2] = ["attack", "sets"]
        without = head.index("false alarms")
        where = head.index("worst TPR") - 1
        for row, cell in zip(body, [Cell(""), *(_rates(r) for r in rows)], strict=True):
            del row[without]
            row.insert(where, cell)
        del head[without]
        head.insert(where, "TPR by poison rate")
    return Table(head, body)


def _audit_cells(row: AuditRow, by_attack: bool) -> list[Cell]:
    from backsweep.bench.records import strength

    bad, good = len(row.bad), len(row.good)
    missed, poisoned = row.missed
    reached = row.tpr is not None and row.fpr is not None and row.tpr >= TPR_GOAL and row.fpr <= FPR_GOAL
    alarms = share_cell(row.alarms)
    quiet = good >= LEAST_CLEAN and row.alarms.hits <= ALARM_GOAL * good
    name = Cell(_word(row.group), _word(strength(row.bad)) if row.bad else "") if by_attack else None
    worst = row.worst
    clean = "" if row.clean_fpr is None else f"unpoisoned {row.clean_fpr:.2%}"
    own = "" if row.own_seconds is None else f"detector {row.own_seconds:,.1f}"
    return [
        name or Cell(_word(row.detector)), Cell(f"{bad:,}" if by_attack else f"{bad:,} / {good:,}"),
        share_cell(row.caught), Cell(alarms.main, alarms.note, quiet), share_cell(row.right),
        _estimate(row.auroc, ".3f"),
        Cell(figure(row.tpr, ".1%"), strong=reached),
        Cell(f"{worst.figure('tpr'):.1%}", _where(worst, by_attack)) if worst else Cell(NONE),
        Cell(figure(row.fpr, ".2%"), clean, reached),
        Cell(f"{missed:,.0f} of {poisoned:,.0f}") if bad else Cell(NONE),
        _success(row, by_attack), _change(row), Cell(figure(row.seconds, ",.1f"), own),
        Cell(f"{row.undecided[0]} / {row.undecided[1]}"), Cell(f"{len(row.left)}"),
    ]  # fmt: skip


def _rates(row: AuditRow) -> Cell:
    """TPR by poison rate."""
    parts = [f"{r:g}: {tpr:.1%}" + (f" ({n} sets)" if n > 1 else "") for r, tpr, n in row.rates]
    return Cell(", ".join(parts) or NONE)


def _success(row: AuditRow, by_attack: bool) -> Cell:
    worst = row.worst_success
    if row.success is None or worst is None:
        return Cell(NONE)
    every = row.success if row.unflagged is None else row.unflagged
    notes = [f"worst {worst.figure('retrained_success'):.1%}", _where(worst, by_attack)]
    notes += [f"{every:.1%} with those of which nothing was flagged"] if row.unflagged is not None else []
    notes.append(view.counted(len(row.retrained), "set"))
    return Cell(f"{row.success:.1%}", "; ".join(notes), every <= SUCCESS_GOAL)


def _change(row: AuditRow) -> Cell:
    from backsweep.bench.sample_figures import change

    worst = row.worst_change
    if row.change is None or worst is None:
        return Cell(NONE)
    return Cell(_points(row.change), f"worst {_points(change(worst) or 0.0)}; {_word(worst.net)}")


def _points(gained: float) -> str:
    return f"{round(100 * gained, 2) + 0.0:+.2f}"


def _where(look: Look, by_attack: bool = False) -> str:
    """Attack and network; the network alone where a row is of one attack."""
    return _word(look.net) if by_attack else f"{_word(look.group)}; {_word(look.net)}"


def _estimate(estimate: Estimate | None, form: str, strong: bool = False) -> Cell:
    if estimate is None:
        return Cell(NONE)
    return Cell(f"{estimate.value:{form}}", spread(estimate, form), strong)


GUARD_HEAD = (
    "guard", "attacked / clean", "AUROC", "worst AUROC", f"FAR at FRR {100 * FPR:g} %", "worst FAR",
    "FRR, attacked networks", "FRR, clean networks", "passes", "ms per input", "times the model alone",
    "not guarded",
)  # fmt: skip


def _guard_table(rows: Sequence[GuardRow]) -> Table:
    goal = {
        "AUROC": (f"≥ {AUROC_GOAL:g}", "default guard"),
        "worst AUROC": (f"≥ {WORST_AUROC_GOAL:g}", "default guard"),
        GUARD_HEAD[4]: (f"≤ {STRIP_FAR_GOAL:.1%}", "strip"), "passes": (f"≤ {PASSES_GOAL}", "default guard"),
        **dict.fromkeys(GUARD_HEAD[6:8], (f"{FPR:.0%}", "asked for")),
    }  # fmt: skip
    first = [Cell(GOAL), *(Cell(*goal.get(h, ("", ""))) for h in GUARD_HEAD[1:])]
    return Table(list(GUARD_HEAD), [first, *(_guard_cells(r) for r in rows)])


def _guard_cells(row: GuardRow) -> list[Cell]:
    default, strip = row.detector == DEFAULT, row.detector == STRIP
    worst, far = row.worst, row.worst_far
    counted = Cell(
        f"{len(row.bad):,} / {len(row.good):,}",
        f"{len(row.judged):,} with triggered inputs" if len(row.judged) < len(row.bad) else "",
    )
    least = NONE if worst is None else f"{worst.figure('auroc'):.3f}"
    most = "" if row.most_passes == row.passes else f"at most {figure(row.most_passes, 'g')}"
    return [
        Cell(_word(row.detector)), counted,
        _estimate(row.auroc, ".3f", default and row.auroc is not None and row.auroc.value >= AUROC_GOAL),
        Cell(
            least, _where(worst) if worst else "",
            default and worst is not None and worst.figure("auroc") >= WORST_AUROC_GOAL,
        ),
        Cell(figure(row.far, ".2%"), strong=strip and row.far is not None and row.far <= STRIP_FAR_GOAL),
        Cell(f"{far.figure('far'):.2%}", _where(far)) if far else Cell(NONE),
        _estimate(row.frr_bad, ".2%"), _estimate(row.frr_good, ".2%"),
        Cell(
            figure(row.passes, "g"), most,
            default and row.most_passes is not None and row.most_passes <= PASSES_GOAL,
        ),
        Cell(figure(row.milliseconds, ",.2f")), Cell(figure(row.ratio, ",.2f")), Cell(f"{len(row.left)}"),
    ]  # fmt: skip


def _guard_attacks(part: Part[GuardRow]) -> Table:
    """An attack in each line, a guard in each column."""
    names = [r.detector for r in part.rows]
    rows = []
    for group in dict.fromkeys(r.group for r in part.attacks):
        own = {r.detector: r for r in part.attacks if r.group == group}
        nets = {x.net for r in own.values() for x in (*r.bad, *r.left)}
        cells = [_attack_cell(own[n], len(nets)) if n in own else Cell(NONE) for n in names]
        rows.append([Cell(view.clean(group), view.counted(len(nets), "network")), *cells])
    return Table(["attack", *(view.clean(n) for n in names)], rows)


def _attack_cell(row: GuardRow, networks: int) -> Cell:
    if row.auroc is None or row.worst is None or row.far is None:
        return Cell(NONE, "not guarded" if row.left else "not judged")
    least = f"{row.worst.figure('auroc'):.3f}"
    notes = [f"least {least}"] if len(row.judged) > 1 and least != f"{row.auroc.value:.3f}" else []
    notes.append(f"FAR {row.far:.1%}")
    if len(row.judged) < networks:
        notes.append(f"{view.counted(len(row.judged), 'network')} only")
    return Cell(f"{row.auroc.value:.3f}", "; ".join(notes))


AUDIT_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("poisoned", "poisoned", ",.0f"), ("flagged", "flagged", ",.0f"), ("missed", "missed", ",.0f"),
    ("TPR", "tpr", ".1%"), ("FPR", "fpr", ".2%"), ("AUROC", "auroc", ".3f"), ("statistic", "score", ".3g"),
    ("p", "p_value", ".2g"), ("attack success", "attack_success_rate", ".1%"),
    ("retrained", "retrained_success", ".1%"), ("accuracy", "clean_accuracy", ".2%"),
    ("retrained", "retrained_accuracy", ".2%"), ("CPU s", "cpu_seconds", ",.1f"),
    ("detector CPU s", "detector_cpu_seconds", ",.1f"),
)  # fmt: skip
GUARD_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("AUROC", "auroc", ".3f"), ("FAR", "far", ".2%"), ("FRR", "frr", ".2%"),
    ("triggered images", "triggered", ",.0f"), ("clean images", "shown", ",.0f"),
    ("clean samples to fit", "clean_samples", ",.0f"), ("passes", "passes", "g"),
    ("ms per input", "milliseconds", ",.2f"), ("times the model alone", "ratio", ",.2f"),
    ("CPU s to fit", "fit_cpu_seconds", ",.1f"),
)  # fmt: skip


def _classes(look: Look) -> list[Cell]:
    """The verdict; the class that is suspected most, and the true targets."""
    most, targets = look.number("most_suspicious"), look.classes("targets")
    found = figure(most, ".0f") + (" / " + ", ".join(str(t) for t in targets) if targets else "")
    return [Cell(view.clean(look.raw.get("verdict") or "?", 20)), Cell(view.clean(found))]


def _networks(
    board: Board[Any], title: str, figures: Sequence[tuple[str, str, str]],
    more: Callable[[Look], list[Cell]] | None,
) -> list[Section]:  # fmt: skip
    """A table for every detector, a row for every network."""
    sections = []
    for part in board.parts:
        tables = []
        for name in dict.fromkeys(r.detector for r in part.rows):
            done = [x for x in part.looks if x.detector == name and not x.reason]
            shown = [(t, k, form) for t, k, form in figures if any(x.number(k) is not None for x in done)]
            rows = [
                [
                    Cell(view.clean(x.net)), *(more(x) if more else []),
                    *(Cell(figure(x.number(k), form)) for _, k, form in shown),
                ]
                for x in sorted(done, key=lambda x: (x.group, x.rate or 0.0, x.seed, x.net))
            ]  # fmt: skip
            head = ["network", *(["verdict", "suspected / true target"] if more else [])]
            if rows:
                tables.append((_word(name), Table([*head, *(t for t, _, _ in shown)], rows)))
        if tables:
            sections.append(Section(f"{title}, {view.clean(part.task)}", tables=tables, folded=True))
    return sections
