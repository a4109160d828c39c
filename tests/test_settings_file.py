import time

import pytest

from dha import Config, DhaError
from dha.config import config_dict
from dha.settings_file import read_settings


def read(tmp_path, content):
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_settings(file)


def test_settings_are_read_as_their_types(tmp_path):
    config = read(tmp_path, "precision: 32\nsettle: 1\nseed: 3\nhyperparameters:\n  rate: 1e-3\n  learn: none\n")
    assert (config.precision, config.seed) == ("32", 3)
    assert (config.hyperparameters.rate, config.hyperparameters.learn) == (0.001, "none")


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "architecture:\n#  width: 3\naugmentation: {}\n", "\ufeffseed: 0\n"]
)
def test_what_is_empty_or_commented_out_leaves_the_defaults(text, tmp_path):
    assert config_dict(read(tmp_path, text)) == config_dict(Config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\n".encode("utf-16"), "is not written in UTF-8"),
        (b"\x00\x01\x02", "is not YAML"),
        ("seed: [1\n", "is not YAML"),
        ("seed: " + 5000 * "9", "cannot be read"),
        ("- 1\n", "expected lines of the form `name: value`"),
        ("architecture: 3\n", "architecture: expected lines"),
        ("seed: 1\nseed: 2\n", "seed is set twice"),
        ("sed: 1\n", "a setting sed that does not exist: did you mean seed?"),
        ("architecture:\n  widht: 1\n", "a setting architecture.widht that does not exist: did you mean width?"),
        ("a: " + 2**20 * "x", "more than 1048576 bytes"),
        ("seed: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_what_is_no_file_of_settings_is_refused_in_one_line(content, message, tmp_path):
    with pytest.raises(DhaError) as error:
        read(tmp_path, content)
    assert message in str(error.value)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join(9 * ['*' + a])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {k: 1}\n"
        + "".join(
            f"{b}: &{b}\n  <<: [{', '.join(9 * ['*' + a])}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "[" * 20_000,
    ],
)
def test_small_files_that_stand_for_large_trees_end_early(text, tmp_path):
    began = time.monotonic()
    with pytest.raises(DhaError, match=r"aliases|nested too deeply|is not YAML"):
        read(tmp_path, text)
    assert time.monotonic() - began < 5


def test_a_key_that_is_set_twice_among_thousands_is_named(tmp_path):
    lines = [f"c{number}: 1" for number in range(2000)]
    with pytest.raises(DhaError, match="c5 is set twice"):
        read(tmp_path, "\n".join([*lines, "c5: 9"]))
