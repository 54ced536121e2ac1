"""The job service as SageMaker offers it: one of two implementations of the port."""
