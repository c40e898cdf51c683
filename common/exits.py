"""The exit codes that scripts rely on, in one place."""

OK = 0
NO = 1  # the question was answered with no: not in sync, something remains, not equal
MISCONFIGURED = 2
REFUSED = 3
BROKER_REFUSED = 4
FAULT = 5
