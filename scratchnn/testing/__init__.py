"""The equivalence toolkit: prove that a layer or a model computes what another one does."""
