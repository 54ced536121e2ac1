"""Which calls of AWS the code can make, read from its syntax: what no test run can miss.

Every name that is used as an attribute, or given to `get_paginator`, and that is a method of one of the clients that
the code makes, is a call. A method that two of these services share would be ambiguous and is refused, unless it is
told apart below. `getattr` with a computed name would hide a call: it is allowed in one place, where names come from
attributes that are seen here.
"""

import ast
from functools import cache
from pathlib import Path

import botocore.session
from botocore import xform_name

import tuner

PACKAGE = Path(tuner.__file__).parent
# They play AWS, or travel into containers: they call nobody.
_NOT_CALLERS = (
    "local/",
    "cli/local.py",
    "simulator/",
    "bootstrap.py",
    "_job_",
    "training.py",
    "aws/first_dollar_probe.py",
)
# boto3's transfers are not operations of the model, but make some.
_TRANSFERS = {
    "upload_file": {"PutObject"},
    "download_file": {"HeadObject", "GetObject"},
    "copy": {"HeadObject", "CopyObject"},
}
# Names of operations that are something else here: (service, method) -> what its use as a call would look like.
_COMMON_WORDS = {
    ("sagemaker", "search"): "Resource=",  # of regular expressions
    ("sagemaker", "create_trial"): "TrialName=",  # Optuna's
}


@cache
def modules():
    paths = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
    return [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for name, path in paths.items()
        if not name.startswith(_NOT_CALLERS)
    ]


def source(name):
    return (PACKAGE / name).read_text(encoding="utf-8")


@cache
def services():
    """The names given to `.client(…)` and `.lasting(…)`."""
    found = {"sagemaker", "s3"}  # the adapter and the object store are given theirs
    for _, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                first = node.args[0]
                if node.func.attr in ("client", "lasting") and isinstance(first, ast.Constant):
                    found.add(first.value)
    return found


@cache
def operations(service):
    """Method -> operation."""
    model = botocore.session.get_session().get_service_model(service)
    return {xform_name(name): name for name in model.operation_names}


@cache
def used_names():
    """Attribute -> the modules that use it."""
    found = {}
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found.setdefault(node.attr, set()).add(name)
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "get_paginator"
            ):
                [method] = node.args
                assert isinstance(method, ast.Constant), f"{name}: a paginator with a computed name hides a call"
                found.setdefault(method.value, set()).add(name)
    return found


@cache
def computed_names():
    """Where `getattr` is called with a name that is not written down."""
    return [
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and not isinstance(node.args[1], ast.Constant)
    ]


@cache
def calls():
    """All (service, operation) that the code can make, with the modules that make them."""
    found = {}
    for method, where in used_names().items():
        for operation in _TRANSFERS.get(method, ()):
            found.setdefault(("s3", operation), set()).update(where)
        for service in sorted(services()):
            if method in operations(service) and not _is_common_word(service, method, where):
                found.setdefault((service, operations(service)[method]), set()).update(where)
    return found


def _is_common_word(service, method, where):
    looks_like = _COMMON_WORDS.get((service, method))
    return looks_like is not None and not any(
        f".{method}({looks_like}" in source(name) or f".{method}, {looks_like}" in source(name) for name in where
    )
