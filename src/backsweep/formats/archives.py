"""Zip archives of tensors, and what messages say of a file."""

from __future__ import annotations

import io
import zipfile

from backsweep.core.errors import BadInput

WAY_OUT = (
    'save the weights with torch.save(model.state_dict(), "model.pth") and name the code that '
    'builds the network with arch="package.module:factory" (--arch)'
)


def members(blob: bytes) -> set[str]:
    """Names in a zip archive of tensors, which stores and does not compress.

    Raises:
        BadInput: damaged, or it would unpack to far more than its own size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            infos = archive.infolist()
    except Exception as e:
        raise BadInput(f"the zip archive is damaged or cut short ({e}); get it again") from e
    total = sum(i.file_size for i in infos)
    if total > 16 * len(blob) + 2**20:
        raise BadInput(f"it unpacks from {len(blob):,} bytes to {total:,}, as a zip bomb does; do not use it")
    names = {i.filename for i in infos}
    if len(names) < len(infos):
        raise BadInput("the zip archive has two members of one name; do not use it")
    return names
