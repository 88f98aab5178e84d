"""What a training loop of one's own uses without a recipe: ``TPS``, ``Watch``, ``Meter``, ``Comparison``.

A file each; nothing is imported here, so that who uses one of them does not load the others.
"""
