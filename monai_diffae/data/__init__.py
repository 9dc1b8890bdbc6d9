"""Scans on disk, cohorts of them, and datasets: no networks here."""
