"""What all commands share: their flags, how they report errors, progress on the terminal."""
