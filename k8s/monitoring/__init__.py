"""The one source of the Grafana dashboards and of the Kubernetes form of the alerting rules.

`python -m k8s.monitoring` writes `k8s/dashboards/*.json` and `k8s/alerts/prometheus-rule.yaml`.
"""
