"""Which jobs a list shows, in which order, page by page.

Rules: a page's token names its last record, so records that appear meanwhile neither hide nor repeat others; it is
anybody's text, so it is checked.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.local.search import sort_key
from tuner.local.validate import invalid

_SORT_MEMBER = {"Name": "TrainingJobName", "Status": "TrainingJobStatus"}


def list_page(jobs: Sequence[dict[str, Any]], params: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of ListTrainingJobs over these summaries."""
    # Documented twice and differently: by default ascending, and by default newest first. The latter is so.
    default = "Ascending" if "SortBy" in params else "Descending"
    by = _SORT_MEMBER.get(params.get("SortBy", ""), "CreationTime")
    chosen = [job for job in jobs if _is_listed(job, params)]
    page, token = turn_page(chosen, params, by=by, order=params.get("SortOrder", default))
    wanted = params.get("StatusEquals")
    # Filtered after paging, as documented: pages may be short, or empty with a token.
    return {"TrainingJobSummaries": [job for job in page if wanted in {None, job["TrainingJobStatus"]}]} | token


def turn_page(
    records: Sequence[dict[str, Any]], params: Mapping[str, Any], *, by: str, order: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The page that the request asks for, and the token of the next."""

    def key(record: Mapping[str, Any]) -> list[Any]:
        return [*sort_key(record, by), record["TrainingJobName"]]

    descending = order == "Descending"
    rest = sorted(records, key=key, reverse=descending)
    if token := params.get("NextToken"):
        last = _read_token(token)
        rest = [record for record in rest if (key(record) < last if descending else key(record) > last)]
    size = params.get("MaxResults", 10)
    more = len(rest) > size
    text = json.dumps(key(rest[size - 1])) if more else ""
    return rest[:size], ({"NextToken": base64.urlsafe_b64encode(text.encode()).decode()} if more else {})


def _is_listed(job: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    if params.get("NameContains", "") not in job["TrainingJobName"]:
        return False
    return all(
        job[member] > params.get(f"{member}After", float("-inf"))
        and job[member] < params.get(f"{member}Before", float("inf"))
        for member in ("CreationTime", "LastModifiedTime")
    )


def _read_token(token: str) -> list[Any]:
    try:
        match json.loads(base64.urlsafe_b64decode(token)):
            case [str() as kind, int() | float() as number, str() as text, str() as name]:
                return [kind, number, text, name]
    except ValueError:  # of the base64, of the UTF-8, or of the JSON
        pass
    raise invalid("Invalid NextToken")
