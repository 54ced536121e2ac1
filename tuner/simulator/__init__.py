"""A job service in virtual time: the other implementation of the port."""
