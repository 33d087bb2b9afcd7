"""Arguments that several commands take."""

import pytest

from Miniproject_1.__main__ import main, make_parser

CALLS = ["denoise a.tif -o b.tif", "inspect a.npy b.npy", "evaluate a.npy b.npy", "train a.npy b.npy -o c.pth"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("black", ["-1e-05", "-1.5E+3", "-.5e1", "-2.", "-3"])
def test_a_range_takes_negative_numbers_as_they_are_printed(call, black):
    options = make_parser(call.split()[0]).parse_args([*call.split(), "--range", black, "1e-05"])
    assert options.range == (float(black), 1e-05)


@pytest.mark.parametrize("call", CALLS)
def test_a_range_takes_no_option_for_a_number(call, capsys):
    with pytest.raises(SystemExit):
        main([*call.split(), "--range", "-e5", "1"])
    assert "--range: expected 2 arguments" in capsys.readouterr().err
