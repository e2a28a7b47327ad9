"""python -m k8s.monitoring: writes what is generated. A test holds the committed files to it."""

from __future__ import annotations

import json
from pathlib import Path

from k8s.monitoring.fleet import FLEET
from k8s.monitoring.model import MODEL
from k8s.monitoring.rules import prometheus_rule
from k8s.monitoring.service import SERVICE

K8S = Path(__file__).resolve().parent.parent
RULES = K8S / "alerts" / "rules.yml"
DASHBOARDS = (SERVICE, MODEL, FLEET)


def generated() -> dict[Path, str]:
    files = {
        K8S / "dashboards" / f"{one.uid}.json": json.dumps(one.to_json(), indent=1, ensure_ascii=False) + "\n"
        for one in DASHBOARDS
    }
    return files | {K8S / "alerts" / "prometheus-rule.yaml": prometheus_rule(RULES.read_text())}


def main() -> None:
    for path, text in generated().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
