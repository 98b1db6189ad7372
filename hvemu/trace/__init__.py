"""One stream of typed, positioned events; the ledger counts, observers watch."""
