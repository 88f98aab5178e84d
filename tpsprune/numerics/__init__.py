"""Pure mathematics on tensors and arrays: no model zoo, no files, no settings. Import the modules by name."""
