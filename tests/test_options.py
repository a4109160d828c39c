import pytest

from dha import Config, DhaError
from dha.options import GROUPS, in_options, parse, parser_of, settings


def main_help(name="fit", expert=False):
    return " ".join(parser_of(name, expert).format_help().split())


def test_help_has_the_settings_of_a_run_in_groups_and_expert_help_those_of_its_parts_too():
    shown, all_shown = main_help(), main_help(expert=True)
    for name, _, _ in settings():
        option = f"--{name.replace('_', '-')} "
        assert (option in shown) == ("." not in name)
        assert option in all_shown
    assert all(f" {title}: " in shown for title in GROUPS)
    assert shown.count(" --") <= 35 + 7, "settings, and what else there is to fit"


def test_every_setting_has_a_text_in_both_helps():
    for expert in (False, True):
        for action in parser_of("fit", expert)._actions[1:]:
            assert action.help, action.option_strings


@pytest.mark.parametrize("before", [True, False])
def test_options_stand_before_and_behind_arguments_and_are_written_with_dashes_or_underscores(before):
    options = ["--image-size=16", "--image_size", "32", "--architecture.code_size", "3", "--resume"]
    given = parse("fit", [*options, "photos"] if before else ["photos", *options])
    config = given["config"]
    assert (given["source"], given["resume"], given["out"]) == ("photos", True, None)
    assert (config.image_size, config.architecture.code_size) == (32, 3)


def test_values_become_what_their_settings_are():
    words = ["--mirrored=false", "--seed", "-1", "--max-flops=5e7", "--settle=1", "--precision=32", "--budget=90"]
    config = parse("fit", ["digits", *words, "--network=my_net.py:make", "--epochs=none"])["config"]
    assert (config.mirrored, config.seed, config.max_flops, config.settle) == (False, -1, 50_000_000, 1.0)
    assert (config.precision, config.budget, config.network, config.epochs) == ("32", 90.0, "my_net.py:make", None)


def test_what_follows_two_dashes_is_an_argument_whatever_it_is_called():
    given = parse("predict", ["model", "--json", "a.png", "--", "--two-dashes.png", "--json", "--"])
    assert given["images"] == ["a.png", "--two-dashes.png", "--json", "--"]
    assert parse("fit", ["--", "--x"])["source"] == "--x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "SOURCE is missing: `dha fit SOURCE "),
        (["a", "b"], "an argument too many, 'b'"),
        (["a", "--epoch=3"], "there is no option --epoch: did you mean --epochs?"),
        (["a", "--image_sise", "3"], "there is no option --image-sise: did you mean --image-size?"),
        (["a", "--width", "3"], "there is no option --width: did you mean --architecture.width?"),
        (["a", "--zzzz"], "there is no option --zzzz: `dha fit --help` lists all"),
        (["a", "--epochs"], "--epochs: a value is missing"),
        (["a", "--resume=yes"], "--resume: takes no argument 'yes'"),
    ],
)
def test_what_is_written_wrong_is_named_with_what_is_nearest(words, message):
    with pytest.raises(DhaError) as error:
        parse("fit", words)
    assert message in str(error.value)


def test_a_choice_of_a_command_that_does_not_exist_is_named_with_what_is_nearest():
    with pytest.raises(DhaError, match=r"^--on-bad-image='skp': choose from error, skip: did you mean skip\?$"):
        parse("predict", ["m", "i", "--on-bad-image=skp"])


def test_options_win_over_the_file_of_settings(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\nepochs: 2\narchitecture:\n  width: 8\n")
    config = parse("fit", ["digits", "--seed=3", "--config", str(tmp_path / "run.yaml")])["config"]
    assert (config.seed, config.epochs, config.architecture.width) == (3, 2, 8)
    assert config.batch_size == Config().batch_size


def test_errors_name_settings_as_options():
    assert in_options("image_size=3: expected more") == "--image-size=3: expected more"
    assert in_options("budget='1m' and epochs=3: give one") == "--budget='1m' and --epochs=3: give one"
    assert in_options("architecture.code_size=0: no") == "--architecture.code-size=0: no"
    assert in_options("the file epochs=3.png is bad") == "the file epochs=3.png is bad"
