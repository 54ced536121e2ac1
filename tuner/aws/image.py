"""What only the SageMaker SDK knows: which image a framework is, and which role a notebook has.

Rules: the SDK is an extra. Its core (`sagemaker-core`) is enough; the whole SDK brings the core along. It takes seconds
to import, so a function imports it when it asks. The answers are written into the recorded study, so that a resumed
study needs no SDK. Every refusal is one line (`SdkRefused`), since the SDK raises exceptions of every kind.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from tuner.spec.records import Framework

INSTALL = "pip install 'spot-tuner[sagemaker]'"


class SdkRefused(Exception):  # noqa: N818 - an answer, not an error of ours
    """The SDK is not there, or does not know what it was asked; the message says what to do."""


def find_image(framework: Framework, *, region: str, instance_types: Sequence[str]) -> str:
    """The URI of a framework's training image. Raises SdkRefused, also where the types need different images."""
    sdk = _sdk("sagemaker.core.image_uris", "training.framework", "write training.image_uri")
    found = {kind: _retrieve(sdk, framework, region, kind) for kind in instance_types}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{uri.rpartition('/')[2]} on {kind}" for kind, uri in found.items())
        raise SdkRefused(
            f"training.framework: these instance types need different images ({each}): list types with GPUs or types"
            " without, or write one image for both as training.image_uri"
        )
    return next(iter(found.values()))


def find_role(session: Any) -> str:  # noqa: ANN401 - a boto3 session, which has no type without its stubs
    """The role of this notebook or of any caller with a role. Raises SdkRefused."""
    remedy = "write sagemaker: {role: NAME or ARN}"
    sdk = _sdk("sagemaker.core.helper.session_helper", "a study without sagemaker.role", remedy)
    try:
        return str(sdk.get_execution_role(sdk.Session(boto_session=session)))
    except Exception as error:
        raise SdkRefused(f"no execution role was found ({_line(error)}): {remedy}") from error


def _retrieve(sdk: ModuleType, framework: Framework, region: str, instance_type: str) -> str:
    try:
        uri = sdk.retrieve(
            framework.name,
            region=region,
            version=framework.version,
            py_version=framework.python,
            instance_type=instance_type,
            image_scope="training",
        )
    except FileNotFoundError:
        raise SdkRefused(f"training.framework.name: the SageMaker SDK knows no {framework.name}; correct it") from None
    except Exception as error:
        raise SdkRefused(f"training.framework: no image for {instance_type}: {_line(error)}") from error
    return str(uri)


def _sdk(module: str, who: str, otherwise: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise SdkRefused(f"{who} needs the SageMaker SDK, version 3: {INSTALL}; or {otherwise}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
