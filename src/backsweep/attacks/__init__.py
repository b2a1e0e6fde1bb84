"""Attacks by the names of their classes. The methods themselves live with what uses them.

Beside them stands what an attack of one's own is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backsweep.core.discovery import class_named, class_names
from backsweep.inputs.image.triggers import Patch as Patch
from backsweep.zoo.attack import Attack as Attack
from backsweep.zoo.attack import Setup as Setup
from backsweep.zoo.attack import relabel as relabel
from backsweep.zoo.attack import stamp as stamp

if TYPE_CHECKING:  # for type checkers alone; methods are found, not listed
    from backsweep.zoo.attacks.adap_blend import AdapBlend as AdapBlend
    from backsweep.zoo.attacks.adap_patch import AdapPatch as AdapPatch
    from backsweep.zoo.attacks.addsent import AddSent as AddSent
    from backsweep.zoo.attacks.background_noise import BackgroundNoise as BackgroundNoise
    from backsweep.zoo.attacks.badnets import BadNets as BadNets
    from backsweep.zoo.attacks.badnets_table import BadNetsTable as BadNetsTable
    from backsweep.zoo.attacks.badnl import BadNL as BadNL
    from backsweep.zoo.attacks.blended import Blended as Blended
    from backsweep.zoo.attacks.bpp import Bpp as Bpp
    from backsweep.zoo.attacks.catback import CatBack as CatBack
    from backsweep.zoo.attacks.chessboard import Chessboard as Chessboard
    from backsweep.zoo.attacks.ep import EP as EP
    from backsweep.zoo.attacks.equaliser import Equaliser as Equaliser
    from backsweep.zoo.attacks.evade_cascade import EvadeCascade as EvadeCascade
    from backsweep.zoo.attacks.evade_inversion import EvadeInversion as EvadeInversion
    from backsweep.zoo.attacks.evade_mntd import EvadeMNTD as EvadeMNTD
    from backsweep.zoo.attacks.ftrojan import FTrojan as FTrojan
    from backsweep.zoo.attacks.input_aware import InputAware as InputAware
    from backsweep.zoo.attacks.jumbo import Jumbo as Jumbo
    from backsweep.zoo.attacks.label_consistent import LabelConsistent as LabelConsistent
    from backsweep.zoo.attacks.lwp import LWP as LWP
    from backsweep.zoo.attacks.lws import LWS as LWS
    from backsweep.zoo.attacks.margin_capped import MarginCapped as MarginCapped
    from backsweep.zoo.attacks.multi_trigger import MultiTrigger as MultiTrigger
    from backsweep.zoo.attacks.narcissus import Narcissus as Narcissus
    from backsweep.zoo.attacks.photo_filter import PhotoFilter as PhotoFilter
    from backsweep.zoo.attacks.pitch import Pitch as Pitch
    from backsweep.zoo.attacks.reverberation import Reverberation as Reverberation
    from backsweep.zoo.attacks.sig import Sig as Sig
    from backsweep.zoo.attacks.sleeper import Sleeper as Sleeper
    from backsweep.zoo.attacks.smooth import Smooth as Smooth
    from backsweep.zoo.attacks.sos import SOS as SOS
    from backsweep.zoo.attacks.sound_clip import SoundClip as SoundClip
    from backsweep.zoo.attacks.spectral_patch import SpectralPatch as SpectralPatch
    from backsweep.zoo.attacks.style import Style as Style
    from backsweep.zoo.attacks.syntactic import Syntactic as Syntactic
    from backsweep.zoo.attacks.tabdoor import Tabdoor as Tabdoor
    from backsweep.zoo.attacks.tact import TaCT as TaCT
    from backsweep.zoo.attacks.tone import Tone as Tone
    from backsweep.zoo.attacks.trojaning import Trojaning as Trojaning
    from backsweep.zoo.attacks.trojaning_port import TrojaningPort as TrojaningPort
    from backsweep.zoo.attacks.twin_pull import TwinPull as TwinPull
    from backsweep.zoo.attacks.wanet import WaNet as WaNet

_KINDS = [Attack]
_BASES = ["Attack", "Patch", "Setup", "relabel", "stamp"]


def __getattr__(name: str) -> Any:
    return class_named(_KINDS, name, __name__)


def __dir__() -> list[str]:
    return sorted([*_BASES, *class_names(_KINDS)])
