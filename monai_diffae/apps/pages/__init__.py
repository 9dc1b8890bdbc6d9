"""The pages of ``start`` and ``report``: one set of templates, filled with results of other commands."""
