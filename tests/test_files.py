import resource

import pytest

from dha.files import replaced_file, replaced_folder, write_bytes, write_text


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with replaced_folder(folder, ["one", "two", "weights"]) as partial:
            (partial / content).write_text(content)
            assert not (folder / content).exists()
    assert [f.name for f in folder.iterdir()] == ["two"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_an_error_while_writing_leaves_the_old_folder_as_it_was(tmp_path):
    folder = tmp_path / "model"
    with replaced_folder(folder, ["one", "two", "weights"]) as partial:
        (partial / "weights").write_text("good")

    def fail():
        with replaced_folder(folder, ["one", "two", "weights"]) as partial:
            (partial / "weights").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert (folder / "weights").read_text() == "good"


def test_text_is_replaced_in_one_piece(tmp_path):
    file = tmp_path / "config.yaml"
    write_text(file, "one")
    write_text(file, "two")
    assert file.read_text() == "two"
    assert [f.name for f in tmp_path.iterdir()] == ["config.yaml"]


def test_the_content_before_is_kept_where_that_is_wanted(tmp_path):
    file, previous = tmp_path / "state", tmp_path / "previous"
    for content in (b"one", b"two", b"three"):
        with replaced_file(file, keep=previous) as handle:
            handle.write(content)
    assert (previous.read_bytes(), file.read_bytes()) == (b"two", b"three")


def test_what_cannot_be_written_leaves_everything_as_it_was(tmp_path):
    file, previous = tmp_path / "state", tmp_path / "previous"
    write_bytes(file, b"one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"), replaced_file(file, keep=previous) as handle:
            handle.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [f.name for f in tmp_path.iterdir()] == ["state"]
    assert file.read_bytes() == b"one"
