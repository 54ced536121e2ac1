"""Objects, checkpoints and code bundles."""
