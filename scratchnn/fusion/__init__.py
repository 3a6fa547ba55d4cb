"""How :func:`scratchnn.fuse` works: which layers are joined, what a joined call does, what becomes of a block's class.

- ``parts.py``: which layers can be joined, and with what numbers;
- ``joined.py``: the call that stands for convolution, batch norm, addition and activation;
- ``graph.py``: a block's ``forward``, traced and rewritten to such calls;
- ``block.py``: the class that a block gets.
"""
