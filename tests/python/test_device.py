"""A model on the device that --backend names, against the same model on the CPU."""

import numpy as np
import pytest
import trivium

PROMPTS = ["Return the", "Create a new", "Close the file", "This module", "a"]


@pytest.fixture(scope="module")
def cpu_model(demo_folder):
    return trivium.load(demo_folder, device="cpu", precision="float32")


def test_the_model_is_on_the_device_asked_for(model, backend):
    assert model.device.split(":")[0] == backend


def test_greedy_tokens_are_those_of_the_cpu(model, cpu_model):
    ours = model.generate(PROMPTS, max_tokens=24)
    reference = cpu_model.generate(PROMPTS, max_tokens=24)
    assert [r.tokens for r in ours] == [r.tokens for r in reference]


def test_logits_are_close_to_those_of_the_cpu(model, cpu_model):
    ids = model.tokenizer.encode("Return the number of items in the list")
    np.testing.assert_allclose(model.logits(ids), cpu_model.logits(ids), rtol=2e-4, atol=2e-4)


def test_a_request_does_not_depend_on_its_batch(model):
    together = model.generate(PROMPTS, max_tokens=12, temperature=0.8, seed=3)
    for prompt, result in zip(PROMPTS, together):
        assert model.generate(prompt, max_tokens=12, temperature=0.8, seed=3).tokens == result.tokens


def test_two_runs_are_equal(model):
    runs = [model.generate(PROMPTS, max_tokens=12, temperature=1.0, seed=11) for _ in range(2)]
    assert [r.tokens for r in runs[0]] == [r.tokens for r in runs[1]]


@pytest.mark.parametrize("name", ["cuda", "hip"])
def test_a_device_that_cannot_be_had_is_an_error_that_says_why(demo_folder, name):
    backends = {b["name"]: b for b in trivium.backends()}
    if backends[name]["devices"]:
        pytest.skip(f"a {name} device is here")
    with pytest.raises(trivium.DeviceError) as error:
        trivium.load(demo_folder, device=name)
    assert f"device {name} cannot be had: {backends[name]['reason']}" in str(error.value)
