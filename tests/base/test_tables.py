"""Tables as text."""

from __future__ import annotations

import pytest

from hf_condense.base.tables import markdown_table, plain_table, visible


def test_columns_are_as_wide_as_their_longest_cell_and_lines_end_without_spaces():
    table = plain_table([("a", "bb", "c"), ("long", "b", ""), ("", "", "")])
    assert table.split("\n") == ["a     bb  c", "long  b", ""]


def test_columns_named_in_right_are_aligned_to_the_right():
    assert plain_table([("rows", "n"), ("1", "100")], right={0}).split("\n") == ["rows  n", "   1  100"]


def test_names_stay_whole_where_a_blank_is_near():
    text = plain_table([("options", "augment=color_crop_cutout, teacher_updates=5000")], width=40)
    assert text.split("\n") == ["options  augment=color_crop_cutout,", "         teacher_updates=5000"]


def test_wide_cells_are_folded_behind_a_mark_where_the_table_would_be_too_wide():
    rows = [("name", "n"), ("a_name_of_many_parts", "1"), ("x" * 20, "2")]
    assert plain_table(rows, right={1}, width=19).split("\n") == [
        "name              n",
        "a_name_of_many_   1",
        "parts",
        "xxxxxxxxxxxxxxxx  2",
        "xxxx",
    ]
    assert plain_table(rows, right={1}, width=23) == plain_table(rows, right={1})
    assert plain_table(rows, right={0, 1}, width=9) == plain_table(rows, right={0, 1})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jcat", "\\x1b[2Jcat"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("cat\u202egod\u2066", "cat\\u202egod\\u2066"),
        ("a\u2028b\U000e0041", "a\\u2028b\\U000e0041"),
    ],
)
def test_controls_are_written_as_escapes(text, shown):
    assert visible(text) == shown
    assert plain_table([(text, "n"), ("a", "b")], width=80).split("\n")[0] == f"{shown}  n"


def test_words_of_every_language_stay_as_they_are():
    text = "Käfer, 猫, कुत्ता, \u06a9\u062a\u0627\u0628\u200c\u0647\u0627, \U0001f469\u200d\U0001f680, a\\b"
    assert visible(text) == text


def test_table_without_rows_is_empty():
    assert plain_table([]) == ""


def test_row_of_another_length_raises_value_error():
    with pytest.raises(ValueError, match="zip"):
        plain_table([("a", "b"), ("a",)])


def test_markdown_table_has_a_rule_below_the_head():
    assert markdown_table(["a", "b"], []) == "| a | b |\n| --- | --- |"


def test_wide_characters_and_accents_are_counted_as_a_terminal_shows_them():
    lines = plain_table([("猫猫", "1"), ("cats", "2"), ("e\u0301te\u0301", "3"), ("a", "4")]).split("\n")
    assert lines == ["猫猫  1", "cats  2", "e\u0301te\u0301   3", "a     4"]


def test_wide_characters_are_folded_where_a_terminal_ends():
    lines = plain_table([("name", "猫" * 30)], width=40).split("\n")
    assert "".join(line[6:] for line in lines) == "猫" * 30
    assert [len(line) - 6 for line in lines] == [17, 13], "two columns for each"
