"""Training configurations: YAML, overrides, and what is said of a wrong one."""

from pathlib import Path

import pytest

from drender import InputError
from drender.training import config as training_config
from drender.training.config import TrainConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALLEST = "objective: inverse\noutput: runs/x\ndata: {sources: [{path: clips}]}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_files_in_configs(path):
    assert isinstance(training_config.read(path), TrainConfig)


def test_there_is_one_of_each_objective_and_size():
    objectives = {"inverse", "forward", "environment", "vae"}
    assert {path.stem for path in CONFIGS} >= objectives | {f"small-{name}" for name in objectives}


def test_overrides_are_yaml_under_dotted_keys(file):
    config = training_config.read(
        file,
        [
            "optimizer.learning_rate=1e-4",
            "data.size=[64, 96]",
            "start={unet: a, vae: b}",
            "trainable=[lora]",
            "model.unet.layers_per_block=1",
            "loss.condition_noise=null",
        ],
    )
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.size == (64, 96)
    assert config.start == {"unet": "a", "vae": "b"}
    assert config.trainable == ("lora",)
    assert config.model == {"unet": {"layers_per_block": 1}}
    assert config.loss.condition_noise is None
    assert config.data.sources[0].path == "clips"  # what the file said beside the override stays


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "run.yaml: optimizer: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("optimiser.steps=1", "run.yaml: unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("optimizer.steps=many", "run.yaml: optimizer: steps: expected int, got 'many'"),
        ("loss.temporal=-1", "loss.temporal is -1.0; it must be 0 or more"),
        ("data.size=64", "run.yaml: data: size: expected tuple[int, int], got 64"),
        ("data.size=[64, 64, 3]", "run.yaml: data: size: expected 2 values, got 3: [64, 64, 3]"),
        (
            "objective=relight",
            "run.yaml: objective: expected one of 'inverse', 'forward', 'environment', 'vae', got 'relight'",
        ),
        ("data.batch=0", "data.batch is 0; it must be 1 or more"),
        ("data.flip=2", r"data.flip is 2.0; it must be in [0, 1]"),
        ("data.sources=[]", "data.sources is empty; give at least one folder of clips"),
        (
            "data.sources=[{path: x, weight: 0}]",
            "data.sources: every weight must be over 0; leave a source out instead",
        ),
        ("steps", "override 'steps': expected key=value, such as optimizer.learning_rate=1e-4"),
        ("data.size=[64", "override 'data.size=[64': no YAML"),
    ],
)
def test_what_is_wrong_is_one_line(file, override, message):
    with pytest.raises(InputError) as error:
        training_config.read(file, [override])
    assert str(error.value).endswith(message) or message in str(error.value)
    assert "\n" not in str(error.value)


def test_factors_belong_to_a_unet(file):
    with pytest.raises(InputError, match="lora belongs to the UNet, which objective 'vae' does not train"):
        training_config.read(file, ["objective=vae", "lora={rank: 4}"])


@pytest.mark.parametrize("single", ["data.frames=1", "data.images=1.0"])
def test_single_images_have_no_change_to_learn_from(file, single):
    with pytest.raises(
        InputError, match=r"loss\.temporal is 2\.0, but every row is of single images; give it data\.fram"
    ):
        training_config.read(file, ["loss.temporal=2", single])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_without_keys(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match="expected keys and values"):
        training_config.read(tmp_path / "run.yaml")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing\.yaml: No such file"):
        training_config.read(tmp_path / "nothing.yaml")
