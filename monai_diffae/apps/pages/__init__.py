"""The pages of ``start``, ``report`` and ``compare``: one set of templates, filled with results of other commands."""

__all__: list[str] = []
