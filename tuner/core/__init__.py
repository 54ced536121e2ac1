"""Records, states, clock, ports, errors and the policy: pure, and known to every room above."""
