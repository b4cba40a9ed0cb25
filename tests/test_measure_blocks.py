from types import SimpleNamespace

import pytest
import torch

import tinymodels
from bayesqid.errors import BadInput
from bayesqid.measure import blocks, layers

KINDS = sorted(tinymodels.CONFIGS)
BATCHES = [torch.randint(0, 256, (3, 24), generator=torch.Generator().manual_seed(i)) for i in range(2)]


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_run_one_by_one_reproduce_the_whole_model(kind):
    model = tinymodels.model(kind)
    inputs = blocks.capture(model, BATCHES, blocks.returns_tuple(model, BATCHES[0]))
    for batch, hidden in enumerate(inputs.hidden):
        for depth, block in enumerate(layers.blocks(model)):
            hidden = blocks.run(block, hidden, inputs.calls[batch][depth])
        parts = next(blocks.logits(model, BATCHES[batch], [hidden], blocks.returns_tuple(model, BATCHES[0])))
        assert torch.equal(parts, model(input_ids=BATCHES[batch], use_cache=False).logits), "not to the bit"


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_works_as_before_once_it_was_taken_apart(kind):
    model = tinymodels.model(kind)
    before = model(input_ids=BATCHES[0], use_cache=False).logits
    as_tuple = blocks.verify(model, BATCHES[1])
    inputs = blocks.capture(model, BATCHES, as_tuple)
    list(blocks.logits(model, BATCHES[0], [inputs.hidden[0]] * 2, as_tuple))
    assert torch.equal(model(input_ids=BATCHES[0], use_cache=False).logits, before)
    assert all("forward" not in vars(module) for module in model.modules())


@torch.inference_mode()
def test_a_model_that_is_no_chain_of_blocks_is_refused():
    model = tinymodels.model("neox")
    plain = model.gpt_neox.forward

    def twice(*args, **kwargs):
        output = plain(*args, **kwargs)
        # something that happens besides the blocks, and depends on what came out of them
        skipped = vars(layers.blocks(model)[0]).get("forward") is not None
        output.last_hidden_state = output.last_hidden_state * (1.0 if skipped else 1.5)
        return output

    model.gpt_neox.forward = twice
    with pytest.raises(BadInput, match="no plain chain"):
        blocks.verify(model, BATCHES[0])


class Far:
    """Stands in for a tensor that lies on another device, which this machine may not have."""

    def __init__(self, place: str):
        self.device = SimpleNamespace(type=place)
        self.data = SimpleNamespace(to=lambda device, **_: f"on {device.type}")


def test_lent_tensors_go_home_and_those_that_lie_there_already_are_not_touched():
    far, near = Far("cuda"), Far("cpu")
    homes = far.data, near.data
    module = SimpleNamespace(parameters=lambda: [far], buffers=lambda: [near])
    with layers.lent(module, torch.device("cpu")):
        assert (far.data, near.data) == ("on cpu", homes[1])
    assert (far.data, near.data) == homes
    with pytest.raises(RuntimeError, match="half way"), layers.lent(module, torch.device("cpu")):
        raise RuntimeError("half way")
    assert (far.data, near.data) == homes
