"""A run directory: its ledger, its files, and what its rounds have done."""
