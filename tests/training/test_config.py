"""Training configurations: YAML files, overrides and their errors."""

from pathlib import Path

import pytest

from drender import InputError
from drender.training import config as training_config
from drender.training.config import TrainConfig

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
SMALLEST = "objective: inverse\noutput: runs/x\ndata: {sources: [{path: clips}]}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_configs_are_valid(path):
    assert isinstance(training_config.read_config(path), TrainConfig)


@pytest.mark.parametrize("name", ["inverse", "small/inverse"])
def test_shipped_configs_are_found_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)  # of a run's results
    assert training_config.read_config(name) == training_config.read_config(FOLDER / f"{name}.yaml")


def test_configs_cover_every_objective_in_both_sizes():
    objectives = {"inverse", "forward", "environment", "vae"}
    for folder in (FOLDER, FOLDER / "small"):
        assert {training_config.read_config(path).objective for path in folder.glob("*.yaml")} == objectives


def test_overrides_are_yaml_under_dotted_keys(file):
    config = training_config.read_config(
        file,
        [
            "optimizer.learning_rate=1e-4",
            "data.size=[64, 96]",
            "init_from={unet: a, vae: b}",
            "trainable=[lora]",
            "model.unet.layers_per_block=1",
            "loss.condition_noise=null",
        ],
    )
    assert config.optimizer.learning_rate == 1e-4
    assert config.data.size == (64, 96)
    assert config.init_from == {"unet": "a", "vae": "b"}
    assert config.trainable == ("lora",)
    assert config.model == {"unet": {"layers_per_block": 1}}
    assert config.loss.condition_noise is None
    assert config.data.sources[0].path == "clips"  # what the file said beside the override stays


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rat=1", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("optimiser.steps=1", "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("optimizer.steps=many", "steps: expected int, got 'many'"),
        ("data.size=64", "size: expected tuple[int, int], got 64"),
        ("data.size=[64, 64, 3]", "size: expected 2 values, got 3: [64, 64, 3]"),
        ("objective=relight", "expected one of 'inverse', 'forward', 'environment', 'vae', got 'relight'"),
        ("lora.rank=many", "rank: expected int, got 'many'"),
        ("steps", "expected key=value, such as optimizer.learning_rate=1e-4"),
        ("data.size=[64", "invalid YAML"),
        ("data.sources=[{path: a, path: b}]", "the key 'path' is given twice"),
    ],
)
def test_a_bad_override_is_named_and_not_the_file(file, override, message):
    with pytest.raises(InputError) as error:
        training_config.read_config(file, [override])
    assert str(error.value).startswith(f"override {override!r}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.temporal_gradient=-1", "loss.temporal_gradient: expected at least 0, got -1.0"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: expected above 0, got 0.0"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas: expected at least 0 and below 1, got (0.9, 1.0)"),
        ("optimizer.steps=0", "optimizer.steps: expected at least 1, got 0"),
        ("seed=2147483648", "seed: expected at least 0 and below 2147483648, got 2147483648"),
        ("mesh.data=0", "mesh.data: expected at least 1, got 0"),
        ("keep_checkpoints=0", "keep_checkpoints: expected at least 1, got 0"),
        ("data.batch=0", "data.batch: expected at least 1, got 0"),
        ("data.flip=2", "data.flip: expected at least 0 and at most 1, got 2.0"),
        ("data.sources=[]", "data.sources: empty; give at least one folder of clips"),
        ("trainable=[]", "trainable: expected patterns of names, got none; leave it out"),
        ("data.passes=[]", "data.passes: empty; give at least one G-buffer"),
        ("data.sources=[{path: x, weight: 0}]", "data.sources: x: weight: expected above 0, got 0.0"),
    ],
)
def test_a_value_out_of_range_is_named(file, override, message):
    with pytest.raises(InputError) as error:
        training_config.read_config(file, [override])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_bad_key_of_the_file_names_the_file(file):
    file.write_text(SMALLEST + "optimizer: {learning_rat: 1}\n")
    with pytest.raises(
        InputError, match=r"run\.yaml: optimizer: unknown key 'learning_rat'; did you mean 'learning_rate'"
    ):
        training_config.read_config(file, ["optimizer.steps=1"])


def test_lora_needs_a_unet(file):
    with pytest.raises(InputError, match="lora belongs to the UNet, which objective 'vae' does not train"):
        training_config.read_config(file, ["objective=vae", "lora={rank: 4}"])


@pytest.mark.parametrize("other", ["loss.one_step=true", "objective=vae"])
def test_consistency_needs_a_renderer_that_is_sampled_from_noise(file, other):
    with pytest.raises(
        InputError, match=r"loss\.consistency: expected 0 unless a renderer samples from noise, got 0\.5"
    ):
        training_config.read_config(file, ["loss.consistency=0.5", other])


@pytest.mark.parametrize("single", ["data.frames=1", "data.image_fraction=1.0"])
def test_temporal_gradient_needs_clips(file, single):
    with pytest.raises(InputError, match=r"loss\.temporal_gradient: expected 0 for rows of single images, got 2\.0"):
        training_config.read_config(file, ["loss.temporal_gradient=2", single])


@pytest.mark.parametrize("others", [[], ["loss.one_step=true", "objective=vae"]])
def test_perceptual_loss_is_for_one_step_renderers(file, others):
    with pytest.raises(InputError, match=r"loss\.perceptual: expected 0 but for one-step renderers, got 1\.0"):
        training_config.read_config(file, ["loss.perceptual=1", *others])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_without_keys(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match="expected keys and values"):
        training_config.read_config(tmp_path / "run.yaml")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing\.yaml: No such file"):
        training_config.read_config(tmp_path / "nothing.yaml")
