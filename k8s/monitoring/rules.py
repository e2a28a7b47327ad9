"""Prometheus's own rule file, wrapped for the Prometheus operator. The rules themselves are not touched."""

from __future__ import annotations

import textwrap

HEAD = """\
# Generated from rules.yml by `python -m k8s.monitoring`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: twigserve
  labels:
    app.kubernetes.io/name: twigserve
spec:
"""


def prometheus_rule(rules: str) -> str:
    return HEAD + textwrap.indent(rules, "  ")
