import numpy as np
import pytest
import torch

from sgmgm.utils.errors import InputError, check_choice, check_count, listed, reason


def test_a_list_of_many_names_is_ten_and_a_count():
    assert listed(["a", 3]) == "a, 3" and listed([]) == ""
    assert listed(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert listed(range(900_000)).endswith("9 and 899,990 more")
    assert len(listed(["x" * 10**6] * 20)) < 2200


def test_a_reason_is_one_line_of_bounded_length():
    assert reason(ValueError("two\n  lines.")) == "two lines"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 10**6))) < 510


WHOLE = (3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3).short())


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: type(value).__name__)
def test_whole_numbers_of_all_libraries_count(value):
    number = check_count("steps", value)
    assert number == 3 and type(number) is int


OTHERS = (True, np.bool_(1), torch.tensor(True), 3.0, np.float32(3), torch.tensor(3.0), "3", None)


@pytest.mark.parametrize("value", (*OTHERS, [3], torch.tensor([3, 4]), np.array([3])), ids=repr)
def test_nothing_else_counts(value):
    with pytest.raises(InputError, match="steps must be a whole number of at least 1, not"):
        check_count("steps", value)


def test_a_choice_names_the_choices():
    with pytest.raises(InputError, match="unknown colour 'x': choose one of red, green"):
        check_choice("colour", "x", ("red", "green"))
