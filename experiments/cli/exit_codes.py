"""What the exit code of a command says; batch systems act on it."""

import signal

DONE = 0
FAILED = 1  # what a command checks is not so; also an error of the program itself
USAGE = 2  # a mistake of the user's, told in one line: a second try repeats it
DIVERGED = 3  # finished, but some run became NaN
LEFT_OUT = 4  # a measurement that this device cannot make
INTERRUPTED = 42  # asked to stop, state saved: the same command resumes
UNHEARD = 128 + signal.SIGTERM  # a shell's code for a process that SIGTERM ended before it listened
