"""One serving engine: scheduler, block pool, and the SimPy process around them."""
