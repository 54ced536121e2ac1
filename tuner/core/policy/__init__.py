"""What the engine does and why: pure rules, one module for each question."""
