"""A recipe: read from TOML, every fault at once, frozen thereafter."""
