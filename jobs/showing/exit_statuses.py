"""Names the exit statuses of commands, and of the runs that commands show."""

FAILED, USAGE, SOME_FAILED, STOPPED = 1, 2, 3, 130
