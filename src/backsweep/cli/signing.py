"""`backsweep sign` and `backsweep verify`: a verdict that travels with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backsweep.cli.options import grouped
from backsweep.cli.saying import Saying

Password = Annotated[
    str | None,
    typer.Option(
        "--password", envvar="BACKSWEEP_KEY_PASSWORD", show_envvar=True, help="Of the key, if it has one."
    ),
]


def sign(
    report: Annotated[Path, typer.Argument(help="Folder of a scan.")],
    key: Annotated[Path, typer.Option(help="Private key, PEM: Ed25519, ECDSA or RSA.")],
    password: Password = None,
    verifier: Annotated[str | None, typer.Option(help="URI of whoever answers for the verdict.")] = None,
) -> None:
    """Sign the verdict of a scan (in-toto, DSSE), so that others can check it."""
    from backsweep.cli.terminal import console
    from backsweep.render.exchange import attestation

    made = attestation.sign(report, key, password, verifier or attestation.VERIFIER)
    console().print(f"signed: {made}", markup=False, soft_wrap=True)


@grouped
def verify(
    report: Annotated[Path, typer.Argument(help="Folder of a scan, or its report.intoto.json alone.")],
    key: Annotated[Path, typer.Option(help="Public key, PEM, of whoever you trust.")],
    saying: Saying,
    model: Annotated[
        str | None, typer.Option(help="The model at hand, a file or folder: is it the one that was judged?")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Of an adapter, the folder that it was scanned with.")
    ] = None,
) -> None:
    """Check a signed verdict: the signature, the report, and that it is on this model; then say the verdict.

    Exit status: that of the scan, and 2 where something does not hold.
    """
    from backsweep.formats.opening import digest
    from backsweep.render.exchange import attestation
    from backsweep.render.view import clean

    found = attestation.verify(report, key, None if model is None else digest(model, base))
    if model is None:
        saying.notes(["no model was compared with; --model FILE does"])
    on = f"on {clean(found.name, 120)}, SHA-256 {found.digest[:12]}..., signed {clean(found.time, 40)}"
    checked = "the model is the one that was judged" if model is not None else "model not checked"
    saying.notes([f"the signature holds (key {found.key[:12]}...); {checked}"])
    count = len(found.targets)
    classes = f"{'class' if count == 1 else 'classes'} {', '.join(map(str, found.targets[:8]))}"
    said = f"{found.verdict}: {(classes + ', ...' * (count > 8)) if count else 'no class'}; {on}"
    saying.result(said, found.exit_status, "signature holds", lambda: dict(found.statement))
    raise typer.Exit(found.exit_status)
