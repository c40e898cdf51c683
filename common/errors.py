"""One hierarchy of errors, split by what to do about them, so that callers decide by class and never by message.

StsyncError
├── Misconfigured        fix a setting, a list, a key or the schema, then start again     (exit 2)
├── Refused              the command may not run here or now                              (exit 3)
├── BrokerRefused        the broker is reached and says no: credentials, rights, topology (exit 4)
├── Unavailable          a database, broker or disk is away for the moment: retry
├── MessageRefused       a message failed a check: count it, change nothing, go on
├── NotApplicable        a change cannot be applied by its own fault: quarantine it
│   └── LeftBehind       on the primary it left other rows as they were, and would not here: apply it without foreign keys
├── NeedsFullSync        this node cannot go on from the log: only a full synchronization heals it
└── Fault                the program is in a state it must not be in: stop, say why       (exit 5)
"""

from common import exits


class StsyncError(Exception):
    """Base of all errors of stsync; its text is a sentence for an operator."""

    exit_code = exits.FAULT


class Misconfigured(StsyncError):
    """A setting, a list, a key or the schema is wrong; the text names the file, the key and the remedy."""

    exit_code = exits.MISCONFIGURED


class Refused(StsyncError):
    """The command may not run on this node or at this time; the text says where or when it may."""

    exit_code = exits.REFUSED


class BrokerRefused(StsyncError):
    """The broker was reached and refused: credentials, permissions or a topology that differs (TRAPS 25)."""

    exit_code = exits.BROKER_REFUSED


class Unavailable(StsyncError):
    """A database, the broker or a disk cannot be used at the moment; trying again later may succeed."""


class MessageRefused(StsyncError):
    """A message failed a check and must change nothing (TRAPS 34).

    `kind` is a short stable word for counting and for `status`: signature, certificate, sender, cluster, audience, malformed,
    version, seal, expired, replayed, epoch, size.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class NotApplicable(StsyncError):
    """A change cannot be applied here by its own fault (constraint, missing table or column): TRAPS 29."""


class LeftBehind(NotApplicable):
    """Here a change takes other rows along, by foreign keys, which it left as they were where it was made: they were not enforced
    there (TRAPS 2)."""


class NeedsFullSync(StsyncError):
    """The log no longer leads from this node's position to the primary's; the text says why."""


class Fault(StsyncError):
    """A broken invariant or a dead thread; the process ends rather than go on wrongly."""
