"""How a model with any vocabulary is judged: scoring primitives, metrics, the micro benchmark, bits per byte."""
