"""Studies: published predictions put to the test with ``tpsprune``, and the command ``tpsprune study``.

A separate package, which ``tpsprune`` never imports. A study is a module of this package that is
named in ``catalogue``, where ``Study`` lists what it holds; ``conduct`` runs one.
"""
