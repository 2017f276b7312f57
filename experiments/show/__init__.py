"""What a reader sees: tables, figures, scenes and moving pictures."""
