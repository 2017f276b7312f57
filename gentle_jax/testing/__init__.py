"""Contract tests that anyone can run on a module of their own: `docs/own.md` has the command."""
