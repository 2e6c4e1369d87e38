"""The secret of an API key."""

from protocol.programs.api_key_secret import ApiKeySecret, hash_secret


def entropy(size: int) -> bytes:
    return bytes(range(size))


def test_a_secret_says_whose_key_it_is_and_is_told_apart_by_a_short_prefix() -> None:
    secret = ApiKeySecret.new(entropy)

    assert secret.text == "sk-capa-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert secret.prefix == "sk-capa-AAE"


def test_a_secret_is_not_in_its_repr() -> None:
    secret = ApiKeySecret.new(entropy)

    assert secret.text not in repr(secret)


def test_what_is_no_valid_text_has_a_hash_of_its_own() -> None:
    hashes = {hash_secret(text) for text in ("", "\udc80", "\udcff", "sk-capa-")}

    assert len(hashes) == 4
