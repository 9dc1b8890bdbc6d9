"""Probes: how well z_sem and other features predict labels of held-out patients."""
