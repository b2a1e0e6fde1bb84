"""Repairs by the names of their classes. The methods themselves live with what uses them.

Beside them stands what a repair of one's own is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backsweep.core.discovery import class_named, class_names
from backsweep.models.training import Recipe as Recipe
from backsweep.models.training import thawed as thawed
from backsweep.models.training import tuned as tuned
from backsweep.repairing.method import Case as Case
from backsweep.repairing.method import Repair as Repair

if TYPE_CHECKING:  # for type checkers alone; methods are found, not listed
    from backsweep.repairing.methods.anp import Anp as Anp
    from backsweep.repairing.methods.answer_unlearning import AnswerUnlearning as AnswerUnlearning
    from backsweep.repairing.methods.bti_dbf import BtiDbf as BtiDbf
    from backsweep.repairing.methods.clp import Clp as Clp
    from backsweep.repairing.methods.column_unlearning import ColumnUnlearning as ColumnUnlearning
    from backsweep.repairing.methods.contrastive_unlearning import (
        ContrastiveUnlearning as ContrastiveUnlearning,
    )
    from backsweep.repairing.methods.fine_mixing import FineMixing as FineMixing
    from backsweep.repairing.methods.fine_pruning import FinePruning as FinePruning
    from backsweep.repairing.methods.fine_tuning import FineTuning as FineTuning
    from backsweep.repairing.methods.fst import Fst as Fst
    from backsweep.repairing.methods.ft_sam import FtSam as FtSam
    from backsweep.repairing.methods.gn_ft import GnFt as GnFt
    from backsweep.repairing.methods.i_bau import IBau as IBau
    from backsweep.repairing.methods.nad import Nad as Nad
    from backsweep.repairing.methods.neuron_pruning import NeuronPruning as NeuronPruning
    from backsweep.repairing.methods.rnp import Rnp as Rnp
    from backsweep.repairing.methods.sau import Sau as Sau
    from backsweep.repairing.methods.unlearning import Unlearning as Unlearning

_KINDS = [Repair]
_BASES = ["Case", "Recipe", "Repair", "thawed", "tuned"]


def __getattr__(name: str) -> Any:
    return class_named(_KINDS, name, __name__)


def __dir__() -> list[str]:
    return sorted([*_BASES, *class_names(_KINDS)])
