"""How the rows of a new vocabulary begin, one rule a file.

Every rule takes a base table [V, D], the operator T and a generator, and gives the table of the new vocabulary
[U, D] in float32, which may be computed as it is read; the caller casts once.
"""
