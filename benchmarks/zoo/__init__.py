"""The benchmark's networks: data, training, and weights kept so that nothing is trained twice."""
