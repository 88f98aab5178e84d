"""Published predictions put to the test: predicted beside measured, and a verdict in one word.

A study is a module of this room, named in ``catalogue``, with two pure functions: ``plan``, the trainings
still due and those to come, and ``finding``, what the finished ones say. ``conduct`` does the rest for all.
"""
