"""Worker processes."""

import os
import warnings

import pytest

from drender.errors import InputError
from drender.synthetic import pool


def work(job):
    warnings.warn("of a file that the parent has read", stacklevel=2)
    if job == 3:
        raise InputError("three will not do")
    if job == 4:
        os._exit(7)


def test_workers_run_jobs_and_report_errors(capfd):
    assert sorted(pool.run(work, [0, 1, 2], 2)) == [0, 1, 2]
    assert capfd.readouterr().err == ""
    with pytest.raises(InputError, match="three will not do"):
        list(pool.run(work, [3], 1))
    with pytest.raises(InputError, match=r"a worker process died \(exit code 7"):
        list(pool.run(work, [4], 1))
