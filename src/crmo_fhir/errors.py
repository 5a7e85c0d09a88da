"""The error tree: every failure a user can meet, each with the exit code of its kind.

    CrmoFhirError
    ├── UsageError        2  the call itself is wrong (arguments, folders, configuration)
    ├── IncompleteError   3  the data are incomplete or contradict themselves
    ├── SignInError       4  the server does not let us in, or not far enough
    ├── NetworkError      5  the server could not be reached within the retry budget
    ├── IntegrityError    6  files of the study are not what was written
    ├── LockError         7  another run holds the study
    ├── ConflictError     8  the server holds something else than we expected to write over
    └── PrivacyError      9  what was asked for may not leave the hospital

A message is one line: what happened, where, and what to do. It never holds a value out of a record, a token or a name.
"""

import errno

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
"""What a disk says that is full or failing: an IntegrityError, whatever was to be written."""


class CrmoFhirError(Exception):
    """Base of the tree; `cli` catches it, prints its message and exits with its code."""

    exit_code = 1


class UsageError(CrmoFhirError):
    """The call itself is wrong."""

    exit_code = 2


class IncompleteError(CrmoFhirError):
    """The data are incomplete or contradict themselves."""

    exit_code = 3


class SignInError(CrmoFhirError):
    """The server refuses the credentials or their scope."""

    exit_code = 4


class NetworkError(CrmoFhirError):
    """The server could not be reached within the retry budget."""

    exit_code = 5


class IntegrityError(CrmoFhirError):
    """A file of the study is not what was written."""

    exit_code = 6


class LockError(CrmoFhirError):
    """Another run holds the study."""

    exit_code = 7


class ConflictError(CrmoFhirError):
    """The server holds something else than what we expected to write over."""

    exit_code = 8


class PrivacyError(CrmoFhirError):
    """What was asked for may not leave the hospital."""

    exit_code = 9
