"""What people see of the service: the page at `/`, and what its OpenAPI document says of requests."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from backsweep.core.text import policy_hash

PAGE = (files("backsweep") / "guarding" / "front.html").read_bytes()
_SCRIPT, _STYLE = (
    policy_hash(re.findall(rb"<%s>(.*?)</%s>" % (t, t), PAGE, re.DOTALL)[0]) for t in (b"script", b"style")
)
HEADERS = {  # the page's own script and style run, and no others; it asks this service alone
    "Content-Security-Policy": f"default-src 'none'; script-src {_SCRIPT}; "
    f"style-src {_STYLE}; connect-src 'self'; img-src blob: data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip


def described(shape: list[int], most: int) -> dict[str, Any]:
    """The part of an OpenAPI document that says what /predict takes and answers.

    Args:
        shape: of one input of the model.
        most: inputs in one request.
    """
    binary = {"schema": {"type": "string", "format": "binary"}}
    one: dict[str, Any] = {"type": "number"}
    for size in reversed(shape):
        one = {"type": "array", "items": one, "minItems": size, "maxItems": size}
    inputs = {
        "description": f"Inputs of shape {' x '.join(map(str, shape))}, or texts, or pairs of texts.",
        "oneOf": [
            {"type": "array", "items": one, "maxItems": most},
            {"type": "array", "items": {"type": "string"}, "maxItems": most},
            {"type": "array", "items": {"type": "array", "items": {"type": "string"}}, "maxItems": most},
        ],
    }  # fmt: skip
    body = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": inputs},
        "additionalProperties": False,
    }
    fields = {
        "label": {"type": "integer", "description": "The class that the model answers."},
        "name": {"type": "string", "description": "Its name."},
        "score": {"type": "number", "description": "Higher is more suspicious."},
        "flagged": {"type": "boolean", "description": "Whether the score is above the threshold."},
        "abstained": {
            "type": "boolean",
            "description": "Whether to use the answer: not where it is flagged.",
        },
        "threshold": {"type": "number"},
    }
    row = {"type": "object", "required": list(fields), "properties": fields}
    answers = {"type": "object", "properties": {"predictions": {"type": "array", "items": row}}}
    error = {"type": "object", "properties": {"error": {"type": "string"}}}
    refused = {
        400: "The body is damaged.", 408: "The body did not arrive in time.",
        413: "Too large, or too many inputs.",
        415: "Another kind of body.", 422: "No inputs of this model.", 503: "Too busy; try again later.",
    }  # fmt: skip
    return {
        "requestBody": {
            "required": True,
            "description": "JSON, or the bytes of one image, or those of a .npy file with inputs.",
            "content": {
                "application/json": {"schema": body}, "image/png": binary, "image/jpeg": binary,
                "application/octet-stream": binary,
            },
        },
        "responses": {
            "200": {"description": "An answer for every input, in their order.",
                    "content": {"application/json": {"schema": answers}}},
            **{str(status): {"description": said, "content": {"application/json": {"schema": error}}}
               for status, said in refused.items()},
        },
    }  # fmt: skip
