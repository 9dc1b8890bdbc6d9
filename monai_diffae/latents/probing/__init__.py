"""Probes: how well z_sem and other features predict labels of patients that they were not fitted to."""
