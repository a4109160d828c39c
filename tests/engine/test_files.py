import pytest

from dha.engine import replaced_folder, write_text


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    for content in ("one", "two"):
        with replaced_folder(folder) as partial:
            (partial / content).write_text(content)
            assert not (folder / content).exists()
    assert [f.name for f in folder.iterdir()] == ["two"]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_an_error_while_writing_leaves_the_old_folder_as_it_was(tmp_path):
    folder = tmp_path / "model"
    with replaced_folder(folder) as partial:
        (partial / "weights").write_text("good")

    def fail():
        with replaced_folder(folder) as partial:
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
