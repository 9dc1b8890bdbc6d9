"""What a cohort is like before a model is trained on it: its scans and labels, twins, and what is wrong with it."""

__all__ = ["listing", "survey", "twins"]
