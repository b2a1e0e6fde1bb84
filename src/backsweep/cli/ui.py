"""`backsweep ui`: the dashboard over a store."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Annotated

import typer

from backsweep.cli.terminal import console
from backsweep.core.errors import BadInput

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
SHORTEST = 16  # characters of a token


def ui(
    store: Annotated[
        str | None, typer.Option(help="Path or postgresql://... Default: store.db in $BACKSWEEP_HOME.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(help="Folder that sweeps wrote their reports to (--out), for pictures.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs the token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="BACKSWEEP_TOKEN", show_envvar=True, help="Default: none on loopback, else drawn."
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A name that browsers may ask under, beside the address. May repeat."),
    ] = None,
) -> None:
    """Show the verdicts of a store in a browser: models, history, comparison, running sweeps."""
    from backsweep.guarding.service import listen, server
    from backsweep.inventory.store import Store
    from backsweep.render.dashboard.app import application

    own = is_loopback(host)
    if token is not None and len(token) < SHORTEST:
        raise BadInput(
            f"the token is short; give one of {SHORTEST} characters or more, or none to have it drawn"
        )
    drawn = token is None and not own
    token = secrets.token_urlsafe(24) if drawn else token
    names = allowed(host, name or [])
    with Store(store, create=False) as kept:
        service = server(application(kept, token, names, reports))
        with listen(host, port) as listening:
            shown = f"[{host}]" if ":" in host else host
            where = f"http://{shown}:{listening.getsockname()[1]}/"
            screen = console()
            screen.print(
                f"dashboard of {kept.where}: {where}; stop with Ctrl-C", markup=False, soft_wrap=True
            )
            if drawn:
                screen.print(f"token: {token}", markup=False, soft_wrap=True)
            if not own:
                screen.print("what is sent is not encrypted: put a server with TLS before it", markup=False)
            service.run([listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can ask there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed(host: str, more: list[str]) -> list[str]:
    """Names under which the dashboard may be asked; none: any, where it listens to all addresses."""
    if not is_loopback(host) and not more:
        return []  # behind a token
    return [*OWN_NAMES, host.lower(), *(n.lower() for n in more)]
