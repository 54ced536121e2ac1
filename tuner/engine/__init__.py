"""The loop that runs a study: observe, decide, commit, act, wait."""
