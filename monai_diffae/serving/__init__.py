"""What the servers of this package share: which pages may use them, how errors are answered, and their ports."""

__all__: list[str] = []
