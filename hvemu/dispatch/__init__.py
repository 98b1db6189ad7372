"""Exit -> handler: one table, loud about doubles and gaps."""
