"""The boundary to Optuna."""
