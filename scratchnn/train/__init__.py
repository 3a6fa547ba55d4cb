"""Training image classifiers: ``scratchnn train``.

========== ==========================================================
config     every hyper-parameter of a run, with its unit
schedule   the learning rate as a function of the step
loop       the training loop itself
checkpoint saving and restoring a run, bit for bit
log        the tables and summaries that a run leaves
plot       the picture of its curves
stop       Ctrl-C as a request
command    the command line
========== ==========================================================
"""
