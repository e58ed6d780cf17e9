"""The errors a user is meant to see: one line that names the thing and the fix, no traceback."""


class VimpacError(Exception):
    """An expected failure, such as a corrupt shard or a missing file; the CLI exits with 1."""

    exit_code = 1


class UsageError(VimpacError):
    """A wrong argument or configuration value; the CLI exits with 2."""

    exit_code = 2
