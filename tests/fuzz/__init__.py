"""Fuzzing of files of weights: damaged files, writers that are killed, hostile names, random state dicts.

    python -m tests.fuzz mutations --count 2000     # changed files through `parity inspect` and `parity convert`
    python -m tests.fuzz guided --count 2000        # the same; what reaches new lines is changed further
    python -m tests.fuzz kills --count 60           # a writer is killed at a random moment
    python -m tests.fuzz names --count 10           # names that no terminal should see raw
    python -m tests.fuzz states --count 50          # random state dicts through every format and back
    python -m tests.fuzz all --minutes 5            # all of them
    python -m tests.fuzz replay FOLDER              # one case that was kept

Each case follows from the seed, the format and its index. A case with a fault is kept in a folder of its own, with the
command that repeats it; the exit code is 1 then.
"""
