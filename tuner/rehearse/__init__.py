"""A script interrupted on this machine before money is spent."""
