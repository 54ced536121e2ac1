"""Where every verb begins: it opens the store, finds the study, and turns errors into one line.

Rules: every operating error that reaches a verb becomes a `UserError`, one line with an exit code. Programmer errors
pass through, because they are bugs.
"""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tuner.aws.connections import AwsError
from tuner.core.errors import Exit, UserError
from tuner.core.jobs import JobError
from tuner.core.prices import PriceUnknown
from tuner.core.records import Study
from tuner.operations.lease_holder import gone
from tuner.spec.study_file import SpecError
from tuner.store.schema import forgets
from tuner.store.store import LeaseHeld, LeaseLost, Store, StoreInUse, StoreTooNew, StoreUnreachable, StudyNotFound

STORE_VARIABLE = "TUNER_STORE"
DEFAULT_STORE = "sqlite:///tuner.db"


@contextmanager
def operating_errors() -> Iterator[None]:
    """Every error that is not a bug, as one line with its exit code."""
    from tuner.storage.bundle import BundleRefused  # noqa: PLC0415
    from tuner.storage.objects import ObjectsError  # noqa: PLC0415 - small

    try:
        yield
    except (SpecError, PriceUnknown, BundleRefused, StudyNotFound) as error:
        raise UserError(str(error), Exit.USAGE) from error
    except (LeaseHeld, LeaseLost, StoreInUse) as error:
        raise UserError(str(error), Exit.NOT_FINISHED) from error
    except AwsError as error:
        # of another account: that one says itself what to do
        no_login = error.is_about_credentials and error.code != "CredentialsOfAnotherAccount"
        remedy = ": log in (aws sso login, aws configure), or name a profile that works: AWS_PROFILE"
        raise UserError(f"{error}{remedy if no_login else ''}", Exit.REFUSED) from error
    except (StoreUnreachable, StoreTooNew, ObjectsError) as error:
        raise UserError(str(error), Exit.REFUSED) from error
    except JobError as error:
        raise UserError(f"the job service did not answer: {error}", Exit.REFUSED) from error


def open_store(url: str | None) -> Store:
    """The store that the user means: `url`, else TUNER_STORE, else `sqlite:///tuner.db`; made on first use."""
    with operating_errors():
        chosen = url or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
        if forgets(chosen):
            raise UserError(
                f"the store {chosen} is in memory and would forget its jobs, which go on: use a file, for example "
                f"{DEFAULT_STORE}",
                Exit.REFUSED,
            )
        return Store.open(chosen, gone)


def find(name: str, store: Store) -> Study:
    """The study of this name, or a line that names those there are."""
    with operating_errors():
        return store.study(name)


def owner_to_ask(name: str, store: Store) -> str | None:
    """Whose study this is, where it is not the user's own: who spends or destroys there is asked first.

    This is a courtesy among people who share a database, not a guard: a user who can write to it can do everything.
    """
    owner = find(name, store).owner
    return None if owner == user_name() else owner


def user_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"  # a container without a user database
