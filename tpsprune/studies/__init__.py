"""Published predictions put to the test: predicted beside measured, and a verdict in one word.

A study is a module of this room, named in ``catalogue``: ``plan`` says which trainings are needed, ``run``
does one, ``finding`` says what they come to (``conduct.Study`` has the whole list). ``conduct`` has the rest.
"""
