"""`tuner doctor --events`: the rule and the queue that notify engines of changed jobs early.

Rules: printing the template calls no service and needs no account. Only `create` and `remove` change an account.
"""

from tuner.aws import events_setup
from tuner.aws.connections import Aws
from tuner.aws.rates import scope
from tuner.cli.arguments import Arguments
from tuner.cli.read import out, out_json, reading, say
from tuner.core.clock import SystemClock
from tuner.core.commands import Command, Message, render
from tuner.core.errors import Exit
from tuner.core.text import safe
from tuner.operations import context
from tuner.spec import study_file

_HOW = Message(
    f"This template makes a queue and a rule named {events_setup.NAME}, for all studies of an account in a region. "
    "Either\n  ",
    Command("doctor", "--events"),
    f" > events.json\n  aws cloudformation deploy --stack-name {events_setup.NAME} --template-file events.json\n  ",
    Command("doctor", "--events", "use"),
    "       (records the queue in the store, where engines find it)\n"
    "or let the tuner make them, and remove them again:\n  ",
    Command("doctor", "--events", "create"),
    "\n  ",
    Command("doctor", "--events", "remove"),
)


def run(args: Arguments) -> int:
    """Print the template, or create, record or remove its resources. FILE names region and profile."""
    if args.events == "print":
        say(render(_HOW, args.options))
        out_json(events_setup.template())
        return Exit.DONE
    with context.operating_errors(), reading(args.store) as store:
        settings = None if args.file is None else study_file.load(args.file).sagemaker
        aws = Aws() if settings is None else Aws(region=settings.region, profile=settings.profile)
        where = scope(aws.identity.account, aws.region)
        if args.events == "remove":
            events_setup.remove(aws, store, where)
            url = None
        else:
            make = events_setup.create if args.events == "create" else events_setup.use
            url = make(aws, store, where, SystemClock().now())
    if args.json:
        out_json({"scope": where, "queue": url})
    elif url is None:
        out(f"{where}: queue and rule {events_setup.NAME} are gone; engines list more often again")
    else:
        out(f"{where}: engines that start from now on look into {safe(url)}")
    return Exit.DONE
