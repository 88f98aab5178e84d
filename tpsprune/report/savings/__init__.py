"""The report of a comparison: one view of its records, as pages, plots, JSON and exports."""
