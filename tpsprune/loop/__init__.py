"""What a training loop of one's own uses: ``TPS``, ``Watch``, ``Meter``, ``Comparison``, ``extract``.

The command line (``tpsprune.pipeline``) is made of the same parts. A file each; nothing is imported here, so
that who uses one of them does not load the others.
"""
