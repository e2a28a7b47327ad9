"""The API's description as it stands in `openapi.json` beside this file.

`python -m tests.service.openapi_snapshot` writes it anew: do so when the API is meant to change, and
read the difference before it is committed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from service.app import create_app
from service.settings import GatewaySettings

SNAPSHOT = Path(__file__).with_name("openapi.json")
KEPT = ("paths", "components")


def described() -> dict[str, Any]:
    """Paths and schemas; not the versions of the API and of OpenAPI."""
    api = create_app(GatewaySettings()).openapi()
    return {name: api[name] for name in KEPT}


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(described(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
