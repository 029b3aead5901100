"""What a captioner is.

Shape letters used in every docstring: N images in a batch, M captions in a batch,
K hypotheses of an image, P grid cells, F feature size of a cell, E embedding size,
H hidden size of a GRU, A attention size, T tokens, V vocabulary size.
"""
