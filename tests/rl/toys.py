"""Tasks that a tiny model learns in seconds, and runs of them."""

import numpy as np
import torch
from cwm_core.inference import Engine
from cwm_core.model import Transformer, initialize, preset
from cwm_core.rl.algorithm import Algorithm
from cwm_core.rl.controller import RolloutConfig, RolloutLoader
from cwm_core.rl.exact import ExactSampler
from cwm_core.rl.generation import EngineSampler, EpisodeGenerator
from cwm_core.rl.loss import LossConfig, PolicyLoss
from cwm_core.rl.tasks import Curriculum, Reward, Stage
from cwm_core.training import TrainConfig, Trainer, World, parallelize

VOCAB, STOP = 12, 11
MODEL = preset(
    "tiny",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=8,
    full_attention_interval=2,
    max_position_embeddings=64,
)


class Successor:
    """Say the next digit and stop: 1 for both, 0 for the digit alone."""

    name, stop_tokens, max_tokens = "successor", frozenset({STOP}), 4

    def prompt(self, item):
        return [10, item]

    def score(self, item, tokens):
        right = bool(tokens) and tokens[0] == (item + 1) % 10
        solved = right and list(tokens[1:]) == [STOP]
        return Reward(
            float(solved) if right else -1.0, ("right" if right else "wrong",), solved, ((0, 1, 0.5 * right),)
        )


class Guess:
    """Two turns: the first action is answered with a digit, which the second has to repeat."""

    name, stop_tokens, max_tokens = "guess", frozenset({STOP}), 3

    def start(self, item):
        return _Guess(item)


class _Guess:
    closed = 0

    def __init__(self, item):
        self.item, self.prompt, self.turns = item, [10, 10], 0

    def step(self, tokens):
        self.turns += 1
        if self.turns == 1 and tokens and tokens[-1] == STOP:
            return [self.item, 10]
        solved = self.turns == 2 and bool(tokens) and tokens[0] == self.item
        return Reward(1.0 if solved else -1.0, (), solved)

    def close(self):
        _Guess.closed += 1


class Broken(Successor):
    """Fails on even items."""

    def score(self, item, tokens):
        if item % 2 == 0:
            raise OSError("the machine is gone")
        return super().score(item, tokens)


TASKS = {"successor": Successor(), "guess": Guess(), "broken": Broken()}
ITEMS = {"successor": [2, 5], "guess": list(range(10)), "broken": list(range(10))}


def new_model(seed=0):
    model = Transformer(MODEL)
    initialize(model, seed)
    return model


def rl(
    folder="",
    *,
    steps=4,
    shares=None,
    rollouts=None,
    algorithm=None,
    loss=None,
    exact=False,
    generator=None,
    on_step=None,
    seed=0,
    seq_len=24,
    batch_size=8,
    model=None,
    **settings,
):
    """Train and return the progress of each step, the weights, the loader, and its log."""
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.0, **settings}
    config = TrainConfig(max_steps=steps, checkpoint_folder=folder, **settings)
    world = World.create(config)
    model = model or new_model(seed)
    if world.size > 1:
        parallelize(model, config, world)
    tasks = {name: TASKS[name] for name in shares or {"successor": 1.0}}
    if generator is not None:
        pass
    elif exact:
        generator = EpisodeGenerator(ExactSampler(model, seq_len, config.dtype), tasks, seed=seed)
    else:
        sampler = EngineSampler(Engine(new_model(seed + 1), max_batch=64, max_length=seq_len))
        generator = EpisodeGenerator(sampler, tasks, seed=seed)
    log = []
    loader = RolloutLoader(
        model,
        generator,
        items={name: ITEMS[name] for name in tasks},
        curriculum=Curriculum(
            {name: len(ITEMS[name]) for name in tasks}, [Stage(shares or {"successor": 1.0})], seed=seed
        ),
        algorithm=algorithm or Algorithm(max_length=8),
        config=RolloutConfig(**{"group_size": 4, "groups": 8, **(rollouts or {})}),
        world=world,
        seq_len=seq_len,
        batch_size=1 if exact else batch_size,
        batches=config.grad_accumulation,
        whole_rows=exact,
        log=log.append,
    )
    found = []

    def note(progress):
        found.append((progress, dict(loader.metrics)))
        if on_step:
            on_step(progress)

    objective = PolicyLoss(loss or LossConfig(), world.device)
    try:
        Trainer(model, loader, config, note, world, objective=objective).run()
    finally:
        generator.close()
    weights = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]
    return found, weights, loader, log


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def mean(found, name, last):
    return float(np.mean([metrics[name] for _, metrics in found[-last:]]))
