"""SageMaker on this machine, below boto3: training jobs are process trees, `s3://` is a folder, capacity is a market.

`transport.make_client(state_dir)` gives a boto3 client whose requests never leave the process; `service.LocalSageMaker`
answers them from a state directory. There is no daemon: each job has a supervising process of its own
(`supervisor.py`), which outlives the process that created the job.

This module stays empty: the supervisor imports its siblings through it with the standard library alone.
"""
