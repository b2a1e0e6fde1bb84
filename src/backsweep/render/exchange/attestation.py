"""A verdict that travels with a model: an in-toto statement about it, signed, and its check.

The statement is a verification summary (SLSA, https://slsa.dev/spec/v1.0/verification_summary) in an envelope
of DSSE (https://github.com/secure-systems-lab/dsse). Keys, signatures and the envelope are those of
securesystemslib. What is signed is short: the digest of the model, the verdict, and the digest of the report.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any

from backsweep.core import documents
from backsweep.core.errors import BadInput
from backsweep.core.text import one_line
from backsweep.render import view
from backsweep.render.exchange.sarif import uri
from backsweep.reports.audit import Audit
from backsweep.reports.report import CLEAN, EXIT_STATUS, Report

FILE = "report.intoto.json"  # in the folder of a scan
STATEMENT, MEDIA = "https://in-toto.io/Statement/v1", "application/vnd.in-toto+json"
SUMMARY = "https://slsa.dev/verification_summary/v1"
VERIFIER = "pkg:pypi/backsweep"
NOTHING_FOUND, FAILED = "BACKSWEEP_NOTHING_FOUND", "FAILED"
SHA256 = re.compile("[0-9a-f]{64}")
MOST_BYTES = 2**20  # of an envelope or a key
NEW_KEY = "openssl genpkey -algorithm ed25519 -out key.pem makes one"
PUBLIC = "openssl pkey -in key.pem -pubout -out key.pub writes it"


@dataclass(frozen=True)
class Signed:
    """What a checked envelope says.

    Attributes:
        verdict: "clean", "backdoored" or "inconclusive".
        targets: classes that are suspected.
        p_value: of the scan, None where it is not calibrated.
        name, digest: of the model, as the scan had it; the digest is a SHA-256.
        report: SHA-256 of report.json.
        time: when it was signed, UTC.
        key: id of the key that signed.
        statement: all that was signed.
    """

    verdict: str
    targets: tuple[int, ...]
    p_value: float | None
    name: str
    digest: str
    report: str
    time: str
    key: str
    statement: Mapping[str, Any]

    @property
    def exit_status(self) -> int:
        """0 clean, 1 backdoored, 3 inconclusive."""
        return EXIT_STATUS[self.verdict]


def statement(report: Report, blob: bytes, time: str, verifier: str = VERIFIER) -> dict[str, Any]:
    """The in-toto statement of a scan.

    Args:
        report: the scan.
        blob: its report.json, byte for byte.
        time: when it is signed, UTC, as 2026-11-30T07:00:00Z.
        verifier: URI of whoever answers for it.

    Raises:
        BadInput: it is an audit, or of a model that has no file.
    """
    if isinstance(report, Audit):
        raise BadInput("this is an audit of a training set; a verdict on a model is signed, scan the model")
    digest, source = str(report.model.get("sha256") or ""), str(report.model.get("source") or "model")
    if report.model.get("sha256_of") == "answers" or not SHA256.fullmatch(digest):
        raise BadInput(
            "the scanned model has no digest, as it only answers; a model in a file can be signed for"
        )
    settings = {k: report.settings.get(k) for k in ("detectors", "alpha", "seed", "confirm")}
    policy = json.dumps(documents.finite(settings), sort_keys=True, separators=(",", ":"))
    return {
        "_type": STATEMENT,
        "subject": [{"name": PurePath(source).name or "model", "digest": {"sha256": digest}}],
        "predicateType": SUMMARY,
        "predicate": {
            "verifier": {"id": verifier, "version": {k: str(v) for k, v in report.versions.items()}},
            "timeVerified": time,
            "resourceUri": uri(source),
            "policy": {"name": "settings of the scan", "digest": _sha256(policy.encode())},
            "inputAttestations": [{"name": "report.json", "digest": _sha256(blob)}],
            "verificationResult": "PASSED" if report.verdict == CLEAN else "FAILED",
            "verifiedLevels": [NOTHING_FOUND if report.verdict == CLEAN else FAILED],
            "backsweep_verdict": report.verdict,
            "backsweep_targets": list(report.targets),
            "backsweep_pValue": report.p_value,
            "backsweep_settings": documents.finite(settings),
        },
    }


def sign(folder: Path, key: Path, password: str | None = None, verifier: str = VERIFIER) -> Path:
    """Sign the verdict in the folder of a scan; the envelope is written there.

    Args:
        folder: of the scan.
        key: private key, PEM (PKCS #8): Ed25519, ECDSA or RSA.
        password: of the key.
        verifier: URI of whoever answers for it.

    Raises:
        BadInput: no report is there, the key cannot be used, or the model has no file.
    """
    from backsweep.core.files import write_json

    report, blob = Report.load(folder), _read(folder / "report.json", "the report", None)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = json.dumps(statement(report, blob, now, verifier), sort_keys=True, allow_nan=False)
    signer, envelope = _signer(key, password), _library().Envelope(said.encode(), MEDIA, {})
    envelope.sign(signer)
    write_json(folder / FILE, envelope.to_dict())
    return folder / FILE


def verify(place: Path, key: Path, digest: str | None = None) -> Signed:
    """Check an envelope: its signature, the report beside it, and the model.

    Args:
        place: the folder of a scan, whose report is checked too; or an envelope alone.
        key: public key, PEM, of whoever is trusted.
        digest: SHA-256 of the model at hand; None leaves it unchecked.

    Raises:
        BadInput: something does not hold, and what.
    """
    file = place / FILE if place.is_dir() else place
    found = _opened(_read(file, "the signed verdict", MOST_BYTES), file, key)
    if place.is_dir():
        blob = _read(place / "report.json", "the report", None)
        if _sha256(blob)["sha256"] != found.report:
            raise BadInput(f"{place / 'report.json'} is not the report that was signed: it was changed since")
    if digest is not None and digest != found.digest:
        raise BadInput(
            f"this is not the model that was judged: its SHA-256 is {digest[:12]}..., the verdict is on "
            f"{found.digest[:12]}... ({view.clean(found.name, 80)})"
        )
    return found


def _opened(blob: bytes, file: Path, key: Path) -> Signed:
    """What an envelope says, once its signature holds."""
    from securesystemslib.exceptions import VerificationError

    library, public = _library(), _public(key)
    try:
        envelope = library.Envelope.from_dict(documents.parsed(blob))
    except Exception as e:  # any error while foreign bytes are read means that they are no envelope
        raise BadInput(f"{file} is no signed verdict (DSSE), or is damaged ({one_line(str(e))[:120]})") from e
    try:
        envelope.verify([public], 1)
    except (VerificationError, ValueError) as e:
        raise BadInput(
            f"{file}: the signature does not hold with {key}: it was changed, or another key signed it"
        ) from e
    if envelope.payload_type != MEDIA:
        raise BadInput(f"{file} is signed, but holds no in-toto statement")
    try:
        return _signed(documents.parsed(envelope.payload), public.keyid)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise BadInput(
            f"{file} is signed, but holds no verdict of Backsweep ({one_line(repr(e))[:80]})"
        ) from e


def _signed(said: Any, key: str) -> Signed:
    """The statement as data; anything but our own kind is an error of Python."""
    about = said["predicate"]
    (subject,), (report,) = said["subject"], about["inputAttestations"]
    digests = [subject["digest"]["sha256"], report["digest"]["sha256"]]
    if (said["_type"], said["predicateType"]) != (STATEMENT, SUMMARY):
        raise ValueError("another kind of statement")
    if not all(isinstance(d, str) and SHA256.fullmatch(d) for d in digests):
        raise ValueError("no digest")
    verdict, p = about["backsweep_verdict"], about["backsweep_pValue"]
    if verdict not in EXIT_STATUS or (about["verificationResult"] == "PASSED") != (verdict == CLEAN):
        raise ValueError("no verdict")
    return Signed(
        verdict, tuple(int(t) for t in about["backsweep_targets"]), None if p is None else float(p),
        str(subject["name"]), digests[0], digests[1], str(about["timeVerified"]), key, said,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ keys


def _library() -> Any:
    try:
        import cryptography  # noqa: F401
        from securesystemslib import dsse
    except ImportError as e:
        raise BadInput(f"signing needs {e.name}; pip install 'backsweep[sign]'") from e
    return dsse


def _signer(path: Path, password: str | None) -> Any:
    """Who signs with a private key."""
    _library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    secret = None if password is None else password.encode()
    blob = _read(path, f"the key ({NEW_KEY})", MOST_BYTES)
    try:
        return CryptoSigner(load_pem_private_key(blob, secret))
    except TypeError as e:  # a password that is missing, or that is not needed
        needs = "needs its password: set $BACKSWEEP_KEY_PASSWORD" if secret is None else "has no password"
        raise BadInput(f"the key {path} {needs}") from e
    except Exception as e:
        raise BadInput(f"{path} is no private key (PEM, Ed25519, ECDSA or RSA); {NEW_KEY}") from e


def _public(path: Path) -> Any:
    """A public key."""
    _library()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    blob = _read(path, f"the public key ({PUBLIC})", MOST_BYTES)
    if b"PRIVATE KEY" in blob:
        raise BadInput(f"{path} is a private key; a check needs the public one: {PUBLIC}")
    return _made(lambda: SSlibKey.from_crypto(load_pem_public_key(blob)), path)


def _made(make: Callable[[], Any], path: Path) -> Any:
    try:
        return make()
    except Exception as e:
        raise BadInput(f"{path} is no public key (PEM, Ed25519, ECDSA or RSA); {PUBLIC}") from e


def _read(path: Path, what: str, most: int | None) -> bytes:
    """The bytes of a file.

    Raises:
        BadInput: it cannot be read, or is larger than such a thing is.
    """
    try:
        with path.open("rb") as file:
            blob = file.read() if most is None else file.read(most + 1)
    except OSError as e:
        raise BadInput(f"{path}: {what} cannot be read: {e.strerror}") from e
    if most is not None and len(blob) > most:
        raise BadInput(f"{path}: {what} is larger than {most / 2**20:g} MB; it is something else")
    return blob


def _sha256(blob: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(blob).hexdigest()}
