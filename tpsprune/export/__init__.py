"""The ticket as something to hand on: a bundle that proves itself whole."""

from tpsprune.export.bundle import BUNDLE_SCHEMA, Bundle, bundle_schema, read_bundle, write_bundle

__all__ = ["BUNDLE_SCHEMA", "Bundle", "bundle_schema", "read_bundle", "write_bundle"]
