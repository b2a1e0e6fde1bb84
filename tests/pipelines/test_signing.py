"""Signed verdicts: what holds is said in one line, what was changed is refused, and others can check it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from backsweep.formats.opening import digest
from backsweep.render.exchange import attestation
from backsweep.reports.report import Report
from many import make_models
from reporting import make_report
from shells import Shell

MAKERS: dict[str, Callable[[], Any]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


def write_keys(folder: Path, kind: str = "ed25519", name: str = "key", password: bytes | None = None) -> Any:
    """A key pair, key.pem and key.pub."""
    key = MAKERS[kind]()
    hidden = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
    own = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, hidden)
    public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pem").write_bytes(own)
    (folder / f"{name}.pub").write_bytes(public)
    return key.public_key()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, its report and a key."""
    (model,) = make_models(tmp_path / "nets", 1)
    report = make_report(10, bad=(3,), triggers=False)
    report.model.update(source=str(model), sha256=digest(model), sha256_of="file")
    report.save(tmp_path / "report")
    write_keys(tmp_path)
    return tmp_path


def signed(place: Path, shell: Shell, *words: object) -> Path:
    status, _, text = shell("sign", place / "report", "--key", place / "key.pem", *words)
    assert status == 0, text
    return place / "report" / "report.intoto.json"


def verify(place: Path, shell: Shell, *words: object, of: str = "report") -> tuple[int, str, str]:
    return shell("verify", place / of, "--key", place / "key.pub", *words)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_signed_verdict_is_checked_in_one_command(place: Path, shell: Shell, kind: str) -> None:
    write_keys(place, kind)
    envelope = signed(place, shell)
    status, out, text = verify(place, shell, "--model", place / "nets" / "0000.safetensors")
    assert status == 1, text
    assert out.startswith("backdoored: class 3; on 0000.safetensors, SHA-256 ") and "signature holds" in out
    assert "the model is the one that was judged" in text
    moved = place / "elsewhere.json"  # the envelope travels alone
    moved.write_bytes(envelope.read_bytes())
    status, out, text = verify(place, shell, "--json", of="elsewhere.json")
    said = json.loads(out)
    assert status == 1 and said["predicate"]["verificationResult"] == "FAILED"
    assert said["_type"] == "https://in-toto.io/Statement/v1" and "model not checked" in text


def test_the_signature_is_that_of_dsse_whoever_checks_it(place: Path, shell: Shell) -> None:
    public = write_keys(place)
    envelope = json.loads(signed(place, shell).read_text())
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    public.verify(signature, b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload))
    about = json.loads(payload)["predicate"]
    assert (
        about["inputAttestations"][0]["digest"]["sha256"]
        == hashlib.sha256((place / "report" / "report.json").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize(("bad", "status", "result"), [((), 0, "PASSED"), (None, 3, "FAILED")])
def test_only_a_clean_verdict_passes(place: Path, shell: Shell, bad: Any, status: int, result: str) -> None:
    report = make_report(10, bad=bad or (), unreached=() if bad == () else range(10), triggers=False)
    known = Report.load(place / "report").model
    report.model.update(known)
    report.save(place / "report")
    signed(place, shell)
    found, out, text = verify(place, shell, "--json")
    assert (found, json.loads(out)["predicate"]["verificationResult"]) == (status, result), text


def test_what_was_changed_is_refused(place: Path, shell: Shell) -> None:
    envelope = signed(place, shell)
    kept, report = envelope.read_text(), place / "report" / "report.json"

    def refused(*words: object, of: str = "report") -> str:
        status, out, text = verify(place, shell, *words, of=of)
        assert status == 2 and out == "" and len(text.splitlines()) == 1, text
        return text

    document = json.loads(kept)
    said = json.loads(base64.b64decode(document["payload"]))
    said["predicate"]["backsweep_verdict"], said["predicate"]["verificationResult"] = "clean", "PASSED"
    forged = base64.b64encode(json.dumps(said).encode()).decode()
    envelope.write_text(json.dumps({**document, "payload": forged}))
    assert "the signature does not hold" in refused()
    envelope.write_text(json.dumps({**document, "payloadType": "text/plain"}))
    assert "the signature does not hold" in refused()
    for damaged in ("", "[]", "{", '{"payload": 3}', json.dumps({**document, "signatures": [7]}), "[" * 9999):
        envelope.write_text(damaged)
        assert "is no signed verdict" in refused()
    envelope.write_text(json.dumps({**document, "signatures": []}))
    assert "the signature does not hold" in refused()
    envelope.write_text(kept)
    text = report.read_text()
    report.write_text(text.replace('"alpha": 0.05', '"alpha": 0.06'))
    assert "is not the report that was signed" in refused()
    report.write_text(text)
    other = make_models(place / "others", 2)[1]
    assert "is not the model that was judged" in refused("--model", other)
    assert "no such file" in refused("--model", place / "nowhere")
    write_keys(place, name="key")  # somebody else's
    assert "another key signed it" in refused()


def test_what_another_signs_with_the_key_is_no_verdict(place: Path, shell: Shell) -> None:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    key = pem.load_pem_private_key((place / "key.pem").read_bytes(), None)
    envelope = signed(place, shell)
    own = json.loads(base64.b64decode(json.loads(envelope.read_text())["payload"]))
    for payload, kind in (
        (b"{}", attestation.MEDIA), (b"no", attestation.MEDIA), (b"{}", "text/plain"),
        (json.dumps({**own, "predicateType": "https://slsa.dev/provenance/v1"}).encode(), attestation.MEDIA),
        (json.dumps({**own, "subject": own["subject"] * 2}).encode(), attestation.MEDIA),
        (json.dumps({**own, "predicate": {**own["predicate"], "backsweep_verdict": "clean"}}).encode(),
         attestation.MEDIA),
    ):  # fmt: skip
        made = Envelope(payload, kind, {})
        made.sign(CryptoSigner(key))
        envelope.write_text(json.dumps(made.to_dict()))
        status, _, text = verify(place, shell)
        assert status == 2 and "is signed, but holds no" in text and len(text.splitlines()) == 1, text


def test_keys_that_are_none_say_how_to_make_one(
    place: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: object) -> str:
        status, _, text = shell(*words)
        assert status == 2 and len(text.splitlines()) == 1, text
        return text

    report = place / "report"
    assert "openssl genpkey" in refused("sign", report, "--key", place / "nowhere")
    assert "is no private key" in refused("sign", report, "--key", place / "key.pub")
    assert "cannot be read" in refused("verify", report, "--key", place / "key.pub")  # not signed yet
    signed(place, shell)
    assert "is a private key" in refused("verify", report, "--key", place / "key.pem")
    assert "is no public key" in refused("verify", report, "--key", report / "report.json")
    write_keys(place, password=b"secret")
    assert "needs its password" in refused("sign", report, "--key", place / "key.pem")
    monkeypatch.setenv("BACKSWEEP_KEY_PASSWORD", "wrong")
    refused("sign", report, "--key", place / "key.pem")
    monkeypatch.setenv("BACKSWEEP_KEY_PASSWORD", "secret")
    signed(place, shell)
    assert verify(place, shell)[0] == 1
    unsigned = make_report(10, triggers=False)
    unsigned.model.update(sha256_of="answers")
    unsigned.save(place / "answers")
    assert "only answers" in refused("sign", place / "answers", "--key", place / "key.pem")
