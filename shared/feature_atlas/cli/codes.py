"""Exit codes; stable, because others script against them.  2 and 5 also come with the errors themselves."""

DONE = 0
#: Wrong usage or request.
REQUEST = 2
#: Something is missing or failed.
PARTIAL = 3
#: Stored bytes are not what their record says.
INTEGRITY = 4
#: Store, broker, device or this machine.
ENVIRONMENT = 5
INTERRUPTED = 130
