"""The leaderboard as Markdown and as one self-contained HTML page; both say the same.

Names in the lines of a bench are untrusted text: all of it passes `view.clean`, and is then escaped
for where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from backsweep.bench.figures import Board, Published, Row
from backsweep.bench.records import Fix, Scan
from backsweep.bench.splits import Chosen
from backsweep.core.statistics import Estimate, Share
from backsweep.core.text import in_markdown, policy_hash
from backsweep.render import view
from backsweep.render.boards.strip_plot import Plot, plot
from backsweep.render.pages.page import template

NONE = "–"  # noqa: RUF001
SPLIT_TEXT = {
    "judging": "No constant was chosen on these networks.",
    "calibration": "The null tables were made of these very networks: these figures are no result.",
    "choosing": "Constants were chosen on these very networks: these figures flatter, and are no result.",
}


@dataclass(frozen=True)
class Cell:
    """A figure, and in small what it is worth; `strong` figures stand out."""

    main: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under a head; the first column names the row."""

    head: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Section:
    """A part of the page; `folded` tables are long."""

    title: str
    text: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """All of a leaderboard."""

    title: str
    split: str
    intro: list[str]
    sections: list[Section]


def page(board: Board) -> Page:
    """The leaderboard of detectors."""
    return Page(
        f"Leaderboard: {board.chosen.split} networks",
        board.chosen.split,
        intro(board.chosen, "scan"),
        _sections(board),
    )


def joined(pages: Sequence[Page]) -> Page:
    """Several leaderboards of one split as one."""
    if len(pages) == 1:
        return pages[0]
    sections = [s for p in pages for s in p.sections]
    return Page(pages[0].title, pages[0].split, [line for p in pages for line in p.intro], sections)


def markdown(page: Page) -> str:
    """The leaderboard as a Markdown file."""
    parts = [f"# {in_markdown(page.title)}", *(in_markdown(line) for line in page.intro)]
    for section in page.sections:
        parts += [f"## {in_markdown(section.title)}", *(in_markdown(line) for line in section.text)]
        for caption, table in section.tables:
            parts += [f"### {in_markdown(caption)}"] if caption else []
            parts.append(_markdown_table(table))
        if section.items:
            parts.append("\n".join(f"- {in_markdown(item)}" for item in section.items))
    return "\n\n".join(parts) + "\n"


def html(page: Page) -> str:
    """The leaderboard as a page: nothing fetched; one script of its own filters and sorts, no other runs."""
    script = resources.files("backsweep.render.boards").joinpath("board.js").read_text(encoding="utf-8")
    return template("board.html.j2").render(
        title=page.title, split=page.split, intro=page.intro, sections=page.sections, script=script,
        script_hash=policy_hash(script.encode()),
    )  # fmt: skip


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def text(cell: Cell) -> str:
        main = f"**{in_markdown(cell.main)}**" if cell.strong else in_markdown(cell.main)
        return main + (in_markdown(f" ({cell.note})") if cell.note else "")

    rule = line(["---"] * len(table.head))
    rows = [line([text(c) for c in row]) for row in table.rows]
    return "\n".join([line([in_markdown(h) for h in table.head]), rule, *rows])


# ---------------------------------------------------------------------- words


def intro(chosen: Chosen[Any], noun: str) -> list[str]:
    """How many networks and lines, what they were made with, and what is left out."""
    split, lines = chosen.split, chosen.lines
    left = [
        (chosen.other, "of the other split"),
        (len(chosen.gate), "outside the gate of the zoo (listed at the end)"),
        (chosen.older, f"replaced by a later {noun} of the same network"),
        (chosen.damaged, "that cannot be read"),
    ]
    nets = {s.net: s for s in lines}
    bad = sum(s.attack is not None for s in nets.values())
    seeds = sorted({s.seed for s in nets.values()})
    span = f", seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else "".join(f", seed {s}" for s in seeds)
    made = dict.fromkeys(
        f"Backsweep {_text(s, 'backsweep')}, torch {_text(s, 'torch')}, Python {_text(s, 'python')}"
        for s in lines
    )
    said = [
        f"Split: {split}. {view.counted(len(nets), 'network')} ({bad:,} attacked, "
        f"{len(nets) - bad:,} clean{span}), {view.counted(len(lines), noun)}. " + SPLIT_TEXT[split]
    ]
    if made:
        said.append("Made with " + "; ".join(made) + ".")
    out = [f"{count:,} {what}" for count, what in left if count]
    return said + ([f"Lines that are not counted here: {view.join(out)}."] if out else [])


HOW_TO_READ = [
    "Suspicion of a network is -log10 of its p-value; equal p-values are ordered by the detector's score. A "
    "scan without a p-value ranks below all others: it catches nothing, raises no alarm, and counts under "
    "“cannot tell”.",
    "AUROC and TPR at 5 % and 1 % FPR: in brackets the 95 % interval of a bootstrap over networks, attacked "
    "and clean apart. The threshold is set on the same clean networks; with fewer than 20 (100) of them no "
    "false alarm at all is allowed. The FPR that was reached stands beside it.",
    "“No spread”: every draw of the bootstrap gives the same figure, as where each attacked network ranks "
    "above each clean one. That is no certainty: what so few networks can show is said by the Wilson "
    "intervals of the columns at alpha.",
    "TPR and FPR at alpha: share that the tool calls backdoored at its own level, Wilson 95 %. “Cannot "
    "tell”: inconclusive, skipped or failed, attacked / clean.",
    "Target right: the class suspected first is a planted target, among networks called backdoored. "
    "All-to-all attacks have no target class.",
    "Overlap: mean Jaccard index of recovered and planted mask / share of the recovered mask inside the "
    "planted one.",
    "CPU seconds (of one core) and passes (an input forward and backward) are medians over the row's scans. "
    "Published figures are of other networks; their sources are listed below.",
]


def _sections(board: Board) -> list[Section]:
    numbers = _numbered(board)
    sections = []
    for task in dict.fromkeys(r.task for r in board.rows):
        rows = [r for r in board.rows if r.task == task]
        plots = [plot(part) for part in _by_detector(rows)] if task else []
        table = Table(list(HEAD), [_row(r, numbers) for r in rows])
        sections.append(Section(view.clean(task) or "All tasks", [], plots, [("", table)]))
    sections.append(Section("How to read this", items=HOW_TO_READ))
    if numbers:
        sections.append(Section("Published figures", items=[_source(p, n) for p, n in numbers.items()]))
    paper = _paper_rule(board)
    if paper.rows:
        text = ["Neural Cleanse's authors call a network infected when the index of a class exceeds 2."]
        sections.append(Section("The paper's own rule", text, tables=[("", paper)]))
    cost = _cost(board)
    if cost.rows:
        sections.append(Section("Cost on the same networks", tables=[("", cost)]))
    if board.chosen.lines:
        detectors = dict.fromkeys(s.detector for s in board.chosen.lines)
        tables = [
            (view.clean(d), _networks([s for s in board.chosen.lines if s.detector == d])) for d in detectors
        ]
        sections.append(Section("Networks", tables=tables, folded=True))
    unclear = [s for s in board.chosen.lines if s.reason or s.undecided]
    if unclear:
        items = [
            f"{view.clean(s.net)}, {view.clean(s.detector)}: {view.clean(s.verdict)}"
            + (f", {view.clean(s.reason, 300)}" if s.reason else "")
            for s in unclear
        ]
        sections.append(Section("Cannot tell", items=items))
    gate = [view.clean(reason, 300) for reason in board.chosen.gate]
    sections.append(Section("Not admitted by the gate of the zoo", [] if gate else ["None."], items=gate))
    return sections


def _by_detector(rows: Sequence[Row]) -> list[list[Row]]:
    return [[r for r in rows if r.detector == d] for d in dict.fromkeys(r.detector for r in rows)]


def _numbered(board: Board) -> dict[Published, int]:
    found = dict.fromkeys(p for r in board.rows for p in r.published)
    return {p: i for i, p in enumerate(found, 1)}


def _source(p: Published, n: int) -> str:
    about = ", ".join(view.title(part) for part in (p.detector, p.task, p.attack) if part)
    note = f" ({p.note})" if p.note else ""
    return f"({n}) {about}: {p.metric} {p.value}. {p.source}{note}."


# ---------------------------------------------------------------------- cells

HEAD = (
    "attack", "detector", "attacked / clean", "AUROC", "TPR at 5 % FPR", "TPR at 1 % FPR", "TPR at alpha",
    "FPR at alpha", "cannot tell", "target right", "overlap", "CPU s", "published",
)  # fmt: skip


def _row(row: Row, numbers: dict[Published, int]) -> list[Cell]:
    ranked = row.ranking
    overlap = (
        f"{row.jaccard:.2f} / {row.inside:.2f}"
        if row.jaccard is not None and row.inside is not None
        else NONE
    )
    cited = [
        f"{p.metric} {p.value} ({numbers[p]}{'' if p.checked else ', unchecked'})" for p in row.published
    ]
    return [
        Cell(view.clean(row.group) or "overall", view.clean(row.strength)), Cell(view.clean(row.detector)),
        Cell(f"{len(row.bad):,} / {len(row.good):,}"),
        Cell(f"{ranked.auroc.value:.3f}", spread(ranked.auroc, ".3f")) if ranked else Cell(NONE),
        _rate(ranked.tpr5 if ranked else None), _rate(ranked.tpr1 if ranked else None),
        share_cell(row.caught), share_cell(row.alarms), Cell(f"{row.undecided[0]} / {row.undecided[1]}"),
        share_cell(row.target), Cell(overlap if row.jaccard is not None else NONE),
        Cell(figure(row.cpu_seconds, ",.0f"), "" if row.passes is None else f"{row.passes:,.0f} passes"),
        Cell("; ".join(cited) or NONE),
    ]  # fmt: skip


def _rate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(NONE)
    reached = f"{estimate.fpr:.1%}" if estimate.fpr else "0%"
    return Cell(f"{estimate.value:.0%}", f"{spread(estimate, '.0%')}; FPR {reached}")


def spread(estimate: Estimate, form: str) -> str:
    """The interval; a bootstrap in which nothing varies has none."""
    if estimate.low == estimate.high:
        return "no spread"
    return f"{estimate.low:{form}}–{estimate.high:{form}}"  # noqa: RUF001


def share_cell(share: Share) -> Cell:
    if not share.n:
        return Cell(NONE)
    low, high = share.interval
    return Cell(f"{share.hits}/{share.n}", f"{low:.0%}–{high:.0%}")  # noqa: RUF001


def figure(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _text(scan: Scan | Fix, key: str) -> str:
    return view.clean(scan.raw.get(key) or "?", 40)


def _paper_rule(board: Board) -> Table:
    """How often the rule of the Neural Cleanse paper, index above 2, fires."""

    def fires(scans: Sequence[Scan]) -> Cell:
        index = [v for s in scans if (v := s.number("detail_paper_index")) is not None]
        return Cell(f"{sum(v > 2 for v in index)}/{len(index)}" if index else NONE)

    rows = [r for r in board.rows if r.task and not r.group]
    cells = [
        [Cell(view.clean(r.task)), Cell(view.clean(r.detector)), fires(r.bad), fires(r.good)] for r in rows
    ]
    head = ["task", "detector", "attacked networks, index above 2", "clean networks, index above 2"]
    return Table(head, [row for row in cells if any(c.main != NONE for c in row[2:])])


def _cost(board: Board) -> Table:
    """CPU seconds of several detectors on the networks that they all scanned."""
    by: dict[str, list[Scan]] = {}
    for scan in board.chosen.lines:
        if scan.number("cpu_seconds"):
            by.setdefault(scan.net, []).append(scan)
    rows = []
    for net, scans in sorted(by.items()):
        seconds = [s.number("cpu_seconds") or 0.0 for s in scans]
        for scan, cost in zip(scans, seconds, strict=True):
            if len(scans) > 1:
                work = [Cell(figure(scan.number(k), ",.0f")) for k in ("updates", "passes")]
                ratio = Cell(f"{cost / min(seconds):.1f}")
                rows.append(
                    [
                        Cell(view.clean(net)),
                        Cell(view.clean(scan.detector)),
                        Cell(f"{cost:,.0f}"),
                        *work,
                        ratio,
                    ]
                )
    return Table(["network", "detector", "CPU s", "updates", "passes", "ratio"], rows)


NETWORK_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("log index", "score", ".2f"), ("p", "p_value", ".2g"), ("paper's index", "detail_paper_index", ".2f"),
    ("its chance", "detail_paper_index_chance", ".2g"), ("norm", "norm", ".1f"),
    ("overlap (Jaccard)", "jaccard", ".2f"), ("share inside", "inside", ".2f"),
    ("success planted", "attack_success_rate", ".1%"),
    ("success recovered", "recovered_success_rate", ".1%"), ("clean accuracy", "clean_accuracy", ".1%"),
    ("CPU s", "cpu_seconds", ",.0f"), ("updates", "updates", ",.0f"),
)  # fmt: skip


def _networks(scans: Sequence[Scan]) -> Table:
    def named(scan: Scan) -> str:
        most = scan.number("most_suspicious")
        found = NONE if most is None else f"{most:.0f}"
        return found + (" / " + ", ".join(str(t) for t in scan.targets) if scan.targets else "")

    order: Callable[[Scan], tuple[str, str, int, str]] = lambda s: (s.task, s.group, s.seed, s.net)  # noqa: E731
    figures = [(k, form) for _, k, form in NETWORK_FIGURES if any(s.number(k) is not None for s in scans)]
    rows = [
        [Cell(view.clean(s.net)), Cell(view.clean(s.verdict, 20)), Cell(named(s))]
        + [Cell(figure(s.number(k), form)) for k, form in figures]
        for s in sorted(scans, key=order)
    ]
    heads = [title for title, k, _ in NETWORK_FIGURES if k in dict(figures)]
    return Table(["network", "verdict", "suspected / true target", *heads], rows)
