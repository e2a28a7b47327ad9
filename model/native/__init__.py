"""The decoder's forward as native code for CPUs; torch's own operations where it cannot be built."""
