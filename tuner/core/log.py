"""The loggers of the rooms: `tuner.aws`, `tuner.store` and so on.

Rules: a library prints nothing by itself, so the tree has a handler that drops everything; `tuner -v` and TUNER_LOG add
others (`tuner.cli.log`), and so may any program that imports `tuner`. No record holds a secret, nor the content of
a request or an answer. INFO: a call to AWS, a lease, a new schema. DEBUG: a call to the local service.
"""

import logging

ROOT = logging.getLogger("tuner")
ROOT.addHandler(logging.NullHandler())


def logger_of(room: str) -> logging.Logger:
    """The logger of one room."""
    return ROOT.getChild(room)
