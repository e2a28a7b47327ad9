"""Kubernetes manifests; the one package in it writes the dashboards and the alert rules."""
