"""Task families behind the `Env` contract."""
