"""The study file, and the way from a study to a job."""
