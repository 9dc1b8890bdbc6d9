"""The commands ``report`` and ``compare``: one page about what a model has learnt, made of ordinary commands."""

__all__: list[str] = []
