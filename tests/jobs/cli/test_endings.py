import pytest

from promptmill.configs.errors import ConfigError
from promptmill.jobs.cli.endings import one_line_errors


def test_each_line_of_what_is_wrong_is_said_and_ends_with_the_status_of_its_kind(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise ConfigError(["steps: 0 is too few", "width: 3 is too small"])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "steps: 0 is too few\nwidth: 3 is too small\n")


def test_ctrl_c_ends_with_130_and_one_line(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "stopped; what is done is durable, and the same command goes on\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError, match="a bug"), one_line_errors():
        raise KeyError("a bug")
