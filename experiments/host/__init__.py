"""The computer and its processes: set-up of JAX, several hosts, signals, folders, memory."""
