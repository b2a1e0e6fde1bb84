"""Detectors by the names of their classes: of models, of training sets and of single inputs.

The methods themselves live with what uses them. Beside them stands what a detector of one's own is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backsweep.auditing.detector import SetDetector as SetDetector
from backsweep.auditing.detector import TrainingSet as TrainingSet
from backsweep.auditing.detector import class_evidence as class_evidence
from backsweep.core.discovery import class_named, class_names
from backsweep.guarding.detector import SampleDetector as SampleDetector
from backsweep.scanning.detector import ModelDetector as ModelDetector
from backsweep.scanning.detector import Unit as Unit
from backsweep.scanning.outliers import outlier_findings as outlier_findings

if TYPE_CHECKING:  # for type checkers alone; methods are found, not listed
    from backsweep.auditing.detectors.activation_clustering import (
        ActivationClustering as ActivationClustering,
    )
    from backsweep.auditing.detectors.contamination_analyzer import (
        ContaminationAnalyzer as ContaminationAnalyzer,
    )
    from backsweep.auditing.detectors.cross_confusion import CrossConfusion as CrossConfusion
    from backsweep.auditing.detectors.cube import Cube as Cube
    from backsweep.auditing.detectors.flare import Flare as Flare
    from backsweep.auditing.detectors.network_scan import NetworkScan as NetworkScan
    from backsweep.auditing.detectors.reclassification import Reclassification as Reclassification
    from backsweep.auditing.detectors.spectral_signatures import SpectralSignatures as SpectralSignatures
    from backsweep.auditing.detectors.spectre import Spectre as Spectre
    from backsweep.auditing.detectors.z_defence import ZDefence as ZDefence
    from backsweep.guarding.detectors.activation_filter import ActivationFilter as ActivationFilter
    from backsweep.guarding.detectors.bad_acts import BadActs as BadActs
    from backsweep.guarding.detectors.beatrix import Beatrix as Beatrix
    from backsweep.guarding.detectors.cognitive_distillation import (
        CognitiveDistillation as CognitiveDistillation,
    )
    from backsweep.guarding.detectors.column_transplant import ColumnTransplant as ColumnTransplant
    from backsweep.guarding.detectors.confused_expert import ConfusedExpert as ConfusedExpert
    from backsweep.guarding.detectors.frequency import Frequency as Frequency
    from backsweep.guarding.detectors.ibd_psc import IbdPsc as IbdPsc
    from backsweep.guarding.detectors.onion import Onion as Onion
    from backsweep.guarding.detectors.prompt_perplexity import PromptPerplexity as PromptPerplexity
    from backsweep.guarding.detectors.pupil import Pupil as Pupil
    from backsweep.guarding.detectors.rap import Rap as Rap
    from backsweep.guarding.detectors.scale_up import ScaleUp as ScaleUp
    from backsweep.guarding.detectors.sequence_lock import SequenceLock as SequenceLock
    from backsweep.guarding.detectors.step import Step as Step
    from backsweep.guarding.detectors.strip import Strip as Strip
    from backsweep.guarding.detectors.teco import TeCo as TeCo
    from backsweep.guarding.detectors.washed_reference import WashedReference as WashedReference
    from backsweep.scanning.detectors.babi import Babi as Babi
    from backsweep.scanning.detectors.bait import Bait as Bait
    from backsweep.scanning.detectors.black_box_path import BlackBoxPath as BlackBoxPath
    from backsweep.scanning.detectors.cascade import Cascade as Cascade
    from backsweep.scanning.detectors.cepa import Cepa as Cepa
    from backsweep.scanning.detectors.clibe import Clibe as Clibe
    from backsweep.scanning.detectors.column_sweep import ColumnSweep as ColumnSweep
    from backsweep.scanning.detectors.dbs import DBS as DBS
    from backsweep.scanning.detectors.dfb_scanner import DfbScanner as DfbScanner
    from backsweep.scanning.detectors.haystack import Haystack as Haystack
    from backsweep.scanning.detectors.htell import HTell as HTell
    from backsweep.scanning.detectors.inversion import Inversion as Inversion
    from backsweep.scanning.detectors.lora_spectrum import LoraSpectrum as LoraSpectrum
    from backsweep.scanning.detectors.mm_bd import MmBd as MmBd
    from backsweep.scanning.detectors.mntd import MNTD as MNTD
    from backsweep.scanning.detectors.neural_cleanse import NeuralCleanse as NeuralCleanse
    from backsweep.scanning.detectors.piccolo import Piccolo as Piccolo
    from backsweep.scanning.detectors.unicorn import Unicorn as Unicorn

_KINDS = [ModelDetector, SampleDetector, SetDetector]
_BASES = [
    "ModelDetector",
    "SampleDetector",
    "SetDetector",
    "TrainingSet",
    "Unit",
    "class_evidence",
    "outlier_findings",
]


def __getattr__(name: str) -> Any:
    return class_named(_KINDS, name, __name__)


def __dir__() -> list[str]:
    return sorted([*_BASES, *class_names(_KINDS)])
