"""Monitoring of the service: process log, request log, metrics, drift, and a report on them."""
