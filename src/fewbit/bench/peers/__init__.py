"""Other libraries as they come from the index, each made of the same float network.

`make peers` sets up the environment that has them; none is imported before it is asked for. What
makes one may change the network that it is given, and returns what computes in its place.
"""
