"""What is shown of a study: views, comparisons, audits, narration and downloads."""
