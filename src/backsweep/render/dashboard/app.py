"""The dashboard as a web application: who may ask, and what is answered.

It only reads. Every page is made on the server and holds no script; a policy forbids scripts and connections
in case some text of a stranger were to get through. Who may ask is checked before anything is looked up: the
name in the request must be one of the server's own (so that no page of a stranger can ask through a browser),
and a token is needed where one is set.
"""

# FastAPI reads the annotations of functions inside `application`, so they are no mere texts here.

import hashlib
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import parse_qs

from backsweep.core.errors import BadInput
from backsweep.inventory import overview
from backsweep.inventory.running import sweeps
from backsweep.inventory.store import Record, Store
from backsweep.render import view
from backsweep.render.dashboard import comparison, lists
from backsweep.render.exchange.cyclonedx import cyclonedx
from backsweep.render.exchange.sarif import sarif
from backsweep.render.pages import scan
from backsweep.render.pages.page import template
from backsweep.reports.report import Report

COOKIE, LARGEST_LOGIN = "backsweep", 4096
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
FILES = {"report.json": "JSON", "report.sarif": "SARIF", "bom.json": "CycloneDX"}
OPEN = ("/login", "/health")  # answered without a token


def application(
    store: Store, token: str | None = None, hosts: Sequence[str] = (), reports: Path | None = None
) -> Any:
    """The application, for uvicorn.

    Args:
        store: whose verdicts are shown.
        token: what whoever asks must know; None lets everybody in.
        hosts: names under which it may be asked; none: any.
        reports: folder that the sweeps wrote their reports to (`scan --out`): pictures of triggers are there.

    Raises:
        BadInput: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, HTTPException, Query, Request, Response
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import HTMLResponse, RedirectResponse
        from starlette.exceptions import HTTPException as Refused
    except ImportError as e:
        raise BadInput("the dashboard needs FastAPI; pip install 'backsweep[serve]'") from e

    app = FastAPI(title="Backsweep", docs_url=None, redoc_url=None, openapi_url=None)
    # what a browser keeps is not the token itself
    ticket = hashlib.sha256(f"backsweep/{token}".encode()).hexdigest()

    def page(file: str, status: int = 200, **values: Any) -> Any:
        where = view.clean(store.where, 200)
        text = template(f"{file}.html.j2").render(where=where, locked=token is not None, **values)
        return HTMLResponse(text, status)

    def failed(status: int, said: str) -> Any:
        return page("message", status, title="This cannot be shown", said=view.sentence(said))

    def known(request: Request) -> bool:
        if token is None:
            return True
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        kept = request.cookies.get(COOKIE, "")
        return secrets.compare_digest(given.encode(), token.encode()) | secrets.compare_digest(
            kept.encode(), ticket.encode()
        )

    @app.middleware("http")
    async def guard(request: Request, go: Callable[[Request], Awaitable[Response]]) -> Response:
        asked = request.headers.get("host", "")
        name = re.sub(r":\d+$", "", asked).strip("[]").lower()
        answer: Response
        if hosts and name not in hosts:
            answer = Response("asked under a name that this server does not have\n", 400)
        elif request.url.path not in OPEN and not known(request):
            if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
                answer = page("login", 401, wrong=False)
            else:
                answer = Response("give the token: Authorization: Bearer TOKEN\n", 401)
        else:
            answer = await go(request)
        for header, value in HEADERS.items():
            answer.headers[header] = value
        return answer

    @app.exception_handler(BadInput)
    async def unusable(_: Request, error: BadInput) -> Response:
        return failed(503, str(error))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return failed(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def misasked(_: Request, __: RequestValidationError) -> Response:
        return failed(400, "A part of this address cannot be used.")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/login")
    def ask_token() -> HTMLResponse:
        return page("login", wrong=False)

    @app.post("/login")
    async def login(request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_LOGIN:
                raise HTTPException(413, "This is more than a token.")
        given = parse_qs(body.decode(errors="replace")).get("token", [""])[0]
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            return page("login", 401, wrong=True)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, ticket, max_age=12 * 3600, httponly=True, samesite="strict", secure=secure)
        return answer

    @app.get("/")
    def models(
        verdict: str = "",
        text: Annotated[str, Query(max_length=200)] = "",
        since: Annotated[str, Query(max_length=30)] = "",
        order: str = "newest",
        number: Annotated[int, Query(alias="page", ge=1, le=1_000_000)] = 1,
    ) -> HTMLResponse:
        if order not in overview.ORDERS or verdict not in ("", *overview.VERDICT_NAMES):
            raise HTTPException(400, "There is no such order or verdict.")
        if since and not re.fullmatch(r"\d{4}-\d\d-\d\d", since):
            raise HTTPException(400, "Give a date such as 2026-11-21.")
        asked = {"verdict": verdict, "text": text.strip(), "since": since, "order": order}
        found = overview.newest(
            store, verdict=verdict or None, text=text.strip(), since=since or None, order=order, page=number
        )
        return page("models", **lists.models(found, asked, number))

    @app.get("/models/{digest}")
    def history(digest: str) -> HTMLResponse:
        records = overview.of_model(store, digest)
        if not records:
            raise HTTPException(404, "There is no verdict on such a model in this store.")
        return page("model", **lists.history(records, overview.ids(store, digest)))

    @app.get("/reports/{verdict}")
    def report(verdict: int) -> HTMLResponse:
        record = kept(verdict)
        files = [(f"/reports/{verdict}/{n}", w) for n, w in FILES.items()]
        links = [(f"/models/{record.model}", "All verdicts on this model"), *files]
        return HTMLResponse(scan.html(read(record, reports), links))

    @app.get("/reports/{verdict}/{name}")
    def download(verdict: int, name: str) -> Response:
        record = kept(verdict)
        made: dict[str, Callable[[], Any]] = {
            "report.json": lambda: record.report,
            "report.sarif": lambda: sarif(read(record, None)),
            "bom.json": lambda: cyclonedx([record]),
        }
        if name not in made:
            raise HTTPException(404, f"There are {view.join(list(made))} of a verdict.")
        file = f"{record.model[:12]}-{name}"
        text = json.dumps(made[name](), indent=2, allow_nan=False) + "\n"
        headers = {"Content-Disposition": f'attachment; filename="{file}"'}
        return Response(text, media_type="application/json", headers=headers)

    @app.get("/compare")
    def compare(verdicts: Annotated[list[int], Query(alias="id", max_length=8)]) -> HTMLResponse:
        if len(verdicts) != 2:
            raise HTTPException(400, f"Two verdicts can be compared; {len(verdicts)} were chosen.")
        both = [(i, record, read(record, reports)) for i in verdicts for record in [kept(i)]]
        return page("compare", **comparison.compared(*both))

    @app.get("/sweeps")
    def running(live: bool = False) -> HTMLResponse:
        made = page("sweeps", live=live, **lists.running(found := sweeps(store)))
        if live and any(s.alive for s in found):  # whoever reads slowly must not lose the place unasked
            made.headers["Refresh"] = "5"
        return cast(HTMLResponse, made)

    def kept(verdict: int) -> Record:
        record = overview.one(store, verdict) if 0 < verdict < 2**31 else None
        if record is None:
            raise HTTPException(404, "There is no such verdict in this store.")
        return record

    return app


def read(record: Record, reports: Path | None) -> Report:
    """The report of a record; with pictures where the folder of the sweeps holds the same report.

    Raises:
        BadInput: it is damaged.
    """
    plain = Report.from_json(record.report, name="the report that is kept")
    if reports is None or not re.fullmatch("[0-9a-f]{16,64}", record.model):
        return plain
    try:
        drawn = Report.load(reports / record.model[:16])
    except BadInput:
        return plain
    same = json.dumps(drawn.to_json(), sort_keys=True) == json.dumps(record.report, sort_keys=True)
    return drawn if same else plain
