"""Records to words, tables and pictures; nothing is computed here that is not shown."""
