"""What a link to the broker says of itself, and why one was lost; known to those who never see pika."""

from dataclasses import dataclass
from typing import Literal

StateName = Literal["connecting", "ready", "blocked", "paused", "locked", "down", "refused", "stopped"]


@dataclass(frozen=True)
class LinkState:
    """The state of a link and, unless all is well, a sentence for the operator.

    connecting: not yet up for the first time. ready: in use. blocked: the broker takes nothing because of an
    alarm. paused: by its owner. locked: another relay holds the cluster's lock. down: lost or unreachable,
    tried again. refused: the broker says no. stopped: ended by its owner.
    """

    name: StateName
    reason: str | None = None


@dataclass(frozen=True)
class Loss:
    """Why a link is lost.

    `fatal`: trying again cannot help. `away`: a queue lives on a node of the broker that is down.
    """

    name: Literal["down", "locked", "refused"]
    reason: str
    fatal: bool = False
    away: bool = False


def explain_close(code: int, text: str, *, broker: str, user: str, step: str | None) -> Loss:
    """What the broker's closing of a connection or channel means.

    `broker` is host:port, `step` the object being declared or used, None once the link is in use. The codes
    are AMQP 0-9-1's as RabbitMQ uses them (TRAPS 25).
    """
    at, on = f"the broker at {broker}", f" while opening {step}" if step else ""
    loss = Loss("down", f"{at} closed the link{on} ({code}: {text})")
    if code == 320:
        loss = Loss("down", f"{at} closed the connection, as it does when it stops ({text})")
    elif code == 403:
        loss = Loss("refused", f"{at} denies access to user {user}{on} ({text}); {_CREDENTIALS}", fatal=True)
    elif code == 530 and not any(passing in text for passing in _PASSING):
        loss = Loss("refused", f"{at} denies user {user} the virtual host ({text}); {_VHOST}", fatal=True)
    elif code == 405 and step:
        loss = Loss("locked", f"{at} reserves {step} for another connection ({text}); {_LOCK}")
    elif code == 404 and "down or inaccessible" in text:
        loss = Loss("down", f"{at} cannot reach {step or 'a queue'} ({text}); {_AWAY}", away=True)
    elif code == 404:
        loss = Loss("refused", f"{at} misses {step or 'an exchange or queue'} ({text}); {_MISSING}")
    elif code == 406 and step:
        loss = Loss("refused", f"{at} has {step} with other properties ({text}); {_DIFFERS}")
    return loss


_PASSING = ("connection limit", "is down")  # reasons to deny a virtual host that go away
_CREDENTIALS = "check user and password in broker.urls and the user's permissions (`stsync broker definitions`)"
_VHOST = "check the virtual host in broker.urls and the user's permissions on it"
_LOCK = "another relay of this cluster runs, or the broker has not yet noticed the end of the last one"
_AWAY = "waiting for the node of the broker that holds it"
_MISSING = "import the output of `stsync broker definitions`, or set broker.declare = true"
_DIFFERS = "make broker.queue_type and broker.queue_max_bytes the same on all nodes, or delete it so that it is made anew"
