"""A bank of shadow networks in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from backsweep.render import view
from backsweep.shadows.bank import Bank


def show(bank: Bank, screen: Console) -> None:
    """What it is for, its shadows, and each meta-classifier on the shadows that were held out."""
    about = bank.about
    kinds = view.join([view.clean(name, 60) for name in about["archs"]])
    shape = " x ".join(str(n) for n in about["shape"])
    screen.print(f"For {kinds}, inputs {shape}, {about['classes']} classes.", markup=False)
    source = view.clean(about["data"]["source"], 60)
    screen.print(
        f"{about['shadows']} clean and as many trojaned shadows, and {about['held_out']} of each held out; "
        f"trained on {about['data']['samples']:,} samples of {source}, of which they get "
        f"{view.percent(about['accuracy'])} right. {view.percent(about['work'])} of the triggers work.",
        markup=False,
    )
    table = Table(
        "variant", "answers", "shadows\na side", "AUC on held-\nout shadows", "p-values rest on", "at least"
    )
    for m in sorted(bank.metas, key=lambda m: (m.variant, m.form, m.shadows)):
        null, other = m.null.tolist(), m.held_out.tolist()
        auc = roc_auc_score([0] * len(null) + [1] * len(other), [*null, *other])
        rests = f"{len(m.clean)} clean networks" if len(m.clean) else f"{len(null)} clean shadows"
        least = 1 / (1 + len(m.clean if len(m.clean) else m.null))
        table.add_row(m.variant, m.form, str(m.shadows), f"{auc:.3f}", rests, f"{least:.3f}")
    screen.print(table)
