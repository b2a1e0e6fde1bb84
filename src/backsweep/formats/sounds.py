"""Which networks take waveforms, and at which rate: what a user, the network or the samples say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from backsweep.core.errors import BadInput
from backsweep.inputs.image.modality import IMAGE
from backsweep.inputs.modality import Modality
from backsweep.inputs.sound.modality import Sound


class Read(Protocol):
    """A network that was read, with what its file says."""

    modality: Modality
    shape: Sequence[int] | None
    notes: list[str]


def said_by(net: nn.Module) -> Modality:
    """What a network takes: one with a `sample_rate` waveforms."""
    rate = getattr(net, "sample_rate", None)
    return Sound(rate) if type(rate) is int else IMAGE


def settle(found: Read, rate: int | None, data: Modality) -> None:
    """Decide in place what a network takes.

    Args:
        found: with what its file says.
        rate: what the user says; None: nothing.
        data: what the samples at hand are, which counts where neither says anything.

    Raises:
        BadInput: what is said contradicts itself.
    """
    own = found.modality
    if rate is not None:
        if not isinstance(own, Sound) and own != IMAGE:
            raise BadInput(f"it takes {own.noun}s; leave out rate= (--rate)")
        if isinstance(own, Sound) and own.rate != rate:
            raise BadInput(f"it says itself that it takes {own.rate:,} samples a second, not {rate:,}")
        found.modality = Sound(rate)
    elif own == IMAGE and isinstance(data, Sound) and (found.shape is None or data.fits(found.shape)):
        found.modality = data
        found.notes.append(
            f"the network does not say at which rate it takes sounds: that of the samples, {data.rate:,} a "
            "second, is taken (--rate)"
        )
