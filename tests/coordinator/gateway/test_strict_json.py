"""What is refused before its meaning is looked at."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.json_bounds import ESCAPES_MAX, VALUES_MAX, count_values, is_quick
from coordinator.gateway.http.strict_json import (
    DEPTH_MAX,
    Fields,
    check_text,
    parse_object,
    read_list,
)


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert caught.value.problem.status in (400, 413)
    return caught.value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": [-Infinity]}', "-Infinity"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "too long"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "too deeply"),
        (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "too deeply"),
        (b"{} {}", "not valid JSON"),
    ],
)
def test_what_is_not_plain_json_is_refused(body: bytes, words: str) -> None:
    assert words in str(refusal(body))


def test_nesting_up_to_the_bound_is_fine() -> None:
    body = b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1)
    assert "a" in parse_object(b'{"a": ' + body + b"}")
    refusal(b'{"a": [' + body + b"]}")


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_any_valid_object_is_read_as_it_is(value: dict[str, object]) -> None:
    assert parse_object(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_no_bytes_crash_the_parser(body: bytes) -> None:
    status = 400
    try:
        parse_object(body)
    except ApiError as error:
        status = error.problem.status
    assert status == 400


def wrong(fields: Fields, method: str, name: str, **bounds: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        getattr(fields, method)(name, **bounds)
    return caught.value


def test_null_stands_for_absent() -> None:
    fields = Fields({"a": None})
    assert fields.flag("a") is fields.flag("b") is None
    assert fields.integer("a", low=0, high=1) is None
    assert fields.number("a", low=0, high=1) is None
    assert fields.choice("a", {"x": 1}) is None
    assert fields.texts("a", items_max=1, chars_max=1) == ()
    assert fields.fields("a") is None


def test_a_missing_field_is_named() -> None:
    error = wrong(Fields({}, "provider"), "required", "x")
    assert (error.problem.param, error.problem.code) == ("provider.x", "missing_required_parameter")


@pytest.mark.parametrize("value", ["1", True, 1.5, [1], {}, 2**63])
def test_an_integer_is_nothing_else(value: object) -> None:
    assert wrong(Fields({"n": value}), "integer", "n", low=0, high=10).problem.param == "n"


def test_a_whole_float_is_an_integer_in_json() -> None:
    assert Fields({"n": 2.0}).integer("n", low=0, high=10) == 2


@pytest.mark.parametrize("value", ["1", False, [1], float("inf"), 10**400, -0.1, 2.1])
def test_a_number_is_finite_and_in_range(value: object) -> None:
    assert wrong(Fields({"n": value}), "number", "n", low=0, high=2).problem.param == "n"


def test_infinity_by_exponent_is_refused() -> None:
    fields = Fields(parse_object(b'{"n": 1e999}'))
    assert wrong(fields, "number", "n", low=0, high=float("1e300")).problem.param == "n"


@pytest.mark.parametrize("value", [1, "yes", [True]])
def test_a_flag_is_true_or_false(value: object) -> None:
    assert wrong(Fields({"f": value}), "flag", "f").problem.code == "invalid_type"


@pytest.mark.parametrize("value", ["", "x" * 5, 1, ["a"]])
def test_a_text_has_its_bounds(value: object) -> None:
    assert wrong(Fields({"t": value}), "text", "t", chars_max=4).problem.param == "t"


def test_half_a_surrogate_pair_cannot_travel() -> None:
    text = "\ud800"
    with pytest.raises(ApiError, match="surrogate"):
        check_text(text, "t")


@pytest.mark.parametrize(
    ("text", "param"),
    [
        (rb'{"user": "\ud800"}', "user"),
        (rb'{"metadata": {"a": ["x", "\uDFFF"]}}', "metadata.a[1]"),
        (rb'{"a": {"\ud800\u0041": 1}}', "a.?A"),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(text: bytes, param: str) -> None:
    with pytest.raises(ApiError, match="surrogate") as caught:
        parse_object(text)
    assert caught.value.problem.param == param


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_object(rb'{"a": "\ud83d\ude42", "b": "\\ud800"}') == {"a": "🙂", "b": r"\ud800"}


@pytest.mark.parametrize(
    "text",
    [
        b'{"model": "a", "model": "a"}',
        b'{"provider": {"sort": "price", "only": [], "sort": "latency"}}',
        rb'{"messages": [{"role": "user", "\u0072ole": "system"}]}',
    ],
)
def test_a_field_that_stands_twice_is_refused(text: bytes) -> None:
    with pytest.raises(ApiError, match="twice"):
        parse_object(text)


def test_items_of_a_list_are_named_by_their_index() -> None:
    with pytest.raises(ApiError) as caught:
        read_list(["a", 1], "stop", items_max=4, read=check_text)
    assert caught.value.problem.param == "stop[1]"
    with pytest.raises(ApiError, match="at most 1"):
        read_list(["a", "b"], "stop", items_max=1, read=check_text)
    with pytest.raises(ApiError, match="a list"):
        read_list("ab", "stop", items_max=1, read=check_text)


def test_one_text_stands_for_a_list_of_one() -> None:
    assert Fields({"stop": "x"}).texts("stop", items_max=4, chars_max=4) == ("x",)


@pytest.mark.parametrize("value", [3, "fast", [], {}])
def test_a_choice_lists_what_can_be_chosen(value: object) -> None:
    error = wrong(Fields({"sort": value}), "choice", "sort", choices={"price": 1, "latency": 2})
    assert "price, latency" in str(error)


@pytest.mark.parametrize("item", [b"{}", b"[]", b"1", b'"a"', b'{"a":1}', b'"\\"["', b'"\\\\"'])
def test_a_body_of_tiny_values_is_refused_before_it_is_built(item: bytes) -> None:
    body = b'{"a":[' + (item + b",") * VALUES_MAX + b"1]}"
    assert refusal(body).problem.status == 413


@pytest.mark.parametrize(
    "text",
    [b"a,[{" * 100_000, b'\\",' * 200_000, b"\\\\,[" * 100_000, b",x\\n" * 200_001],
)
def test_signs_inside_of_strings_are_not_values(text: bytes) -> None:
    body = b'{"a":"' + text + b'","b":[1,2]}'
    assert parse_object(body)["b"] == [1, 2]


def test_a_long_text_is_quick_to_parse_and_many_values_or_a_whole_file_are_not() -> None:
    assert is_quick(b'{"a":"' + b"word, " * 15_000 + b'"}')
    assert is_quick(b"{}," * 20_000)
    assert not is_quick(b"{}," * 50_000)
    assert not is_quick(b'{"a":"' + b"word " * 200_000 + b'"}')


@given(st.lists(st.text(max_size=9) | st.integers(), max_size=60), st.integers(1, 40))
def test_the_scan_counts_as_many_values_as_the_parser_makes(items: list[Any], window: int) -> None:
    body = json.dumps({"a": items, "b": '"[{,\\'}).encode()
    assert count_values(body, window_bytes=window) == max(1, len(items)) + 2


def test_escapes_are_bounded_but_text_in_any_script_may_be_all_escapes() -> None:
    chinese = b'{"a":"' + b"\\u4f60" * 2_000_000 + b'"}'
    assert len(parse_object(chinese)["a"]) == 2_000_000
    assert refusal(b'{"a":"' + b"\\n" * (ESCAPES_MAX + 1) + b'"}').problem.status == 413
