"""Rewards by name and their sum: names, weights, arguments, columns, None, and each mistake's one clear line."""

import copy
import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from r1jax.core.errors import UserError
from r1jax.rewards.base import connect_rewards, load_rewards, read_rewards, score
from r1jax.rewards.judge import get_judge_reward
from r1jax.rewards.protocol import find_share, join_outcomes, take_outcome
from r1jax.rewards.registry import REWARDS, import_place
from r1jax.rewards.self_rank import get_self_rank_reward
from r1jax.rewards.tags import format_reward
from tests.core.test_distributed import start_two

# Where open-r1's short name is no part of the function's.
OPEN_R1_NAMES = {"len_reward": "length", "get_cosine_scaled_reward": "cosine"}
ROOT = Path(__file__).resolve().parents[2]
MINE = """
import functools
from r1jax.core.errors import UserError
from r1jax.rewards.protocol import OutOfLoss, RewardFunction, by_row

def length_reward(completions, **columns):
    return [float(len(text)) for text in completions]

def picky_reward(completions, level):
    return [1.0 if hard == "hard" else None for hard in level]

def ids_reward(completion_ids, prompts, **columns):
    return [float(len(ids)) + len(prompt) for ids, prompt in zip(completion_ids, prompts)]

def scaled_reward(completions, *, factor, **columns):
    return [factor * len(text) for text in completions]

def get_constant_reward(value=1.0):
    def constant_reward(completions, **columns):
        return [value] * len(completions)
    return constant_reward

def counting_reward(completions, group_ids=None, **columns):
    return [None if group_ids is None else float(group) for group in group_ids or completions]

def leaving_reward(completions, **columns):
    return [OutOfLoss(0.25) if text == "out" else 0.5 for text in completions]

def get_asking_reward(generate, question="?"):
    calls = []
    def asking_reward(completions, **columns):
        calls.extend({"prompt": question, "completion": reply} for reply in generate([question]))
        return [1.0] * len(completions)
    def take_calls():
        taken = list(calls)
        calls.clear()
        return taken
    asking_reward.take_calls = take_calls
    asking_reward.take_metrics = lambda: {"asked": 1.0}
    return asking_reward

class AskingReward(RewardFunction):  # all of the protocol
    def __init__(self, generate, question="?"):
        self.generate, self.question, self.warm = generate, question, 0

    def __call__(self, completions, **columns):
        self.reply, = self.generate([self.question])
        return [1.0] * len(completions)

    def warm_up(self):
        self.warm += 1

    def take_calls(self):
        return [{"prompt": self.question, "completion": self.reply}]

    def take_metrics(self):
        return {"warm": float(self.warm)}

class Careful:  # a part of it, without our base class
    by_row = True
    warm = {}

    def __call__(self, completions, level, bonus=0.0):
        return [bonus + (1.0 if hard == "hard" else 0.0) for hard in level]

    def warm_up(self, bonus):
        self.warm["bonus"] = bonus

careful = Careful()
partly = functools.partial(scaled_reward, factor=3.0)
placed = functools.partial(by_row(lambda shift, completions: [shift + len(text) for text in completions]), 10.0)

def get_picky_asking_reward(generate, most):
    if most < 1:
        raise UserError("most must be positive")
    return AskingReward(generate)

def short_reward(completions, **columns):
    return [1.0]

def endless_reward(completions, **columns):
    return [float("inf")] * len(completions)

not_a_function = 3
"""


@pytest.fixture(autouse=True)
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def score_texts(spec, texts, *, generate=None, group_size=None, **columns):
    return score(
        load_rewards(spec, generate=generate),
        prompts=["??"] * len(texts),
        completions=texts,
        completion_ids=[[1, 2, 3]] * len(texts),
        columns=columns,
        group_size=group_size,
    )


def test_weighted_sum_and_breakdown():
    texts = ["<think>a</think><answer>7</answer>", "<answer>7</answer>", "7"]
    scores = score_texts({"answer_reward": 1.0, "r1_format_reward": 0.2, "number_reward": 0}, texts, solution=["7"] * 3)
    np.testing.assert_allclose(scores.total, [1.2, 1.0, 0.0])
    assert list(scores.by_name) == ["answer_reward", "r1_format_reward", "number_reward"]
    np.testing.assert_array_equal(scores.by_name["r1_format_reward"], [1.0, 0.0, 0.0])
    assert scores.total.dtype == np.float64


def test_none_is_left_out_of_the_sum():
    scores = score_texts({"answer_reward": 2.0, "format_reward": 1.0}, ["<answer>7</answer>"] * 2, solution=["7", None])
    np.testing.assert_array_equal(scores.total, [2.0, 0.0])
    np.testing.assert_array_equal(scores.by_name["answer_reward"], [1.0, np.nan])


def test_accuracy_reward_by_open_r1s_short_name():
    scores = score_texts({"accuracy": 1.0, "tag_count": 1.0}, [r"\boxed{7}", "7"], solution=["7", "7"])
    np.testing.assert_array_equal(scores.by_name["accuracy_reward"], [1.0, 0.0])
    assert list(scores.by_name) == ["accuracy_reward", "tag_count_reward"]


def test_registered_names_are_the_functions_names():
    for name, place in REWARDS.items():
        function = import_place(place)
        plain = function.__name__.removeprefix("get_")
        short = plain.removesuffix("_reward")
        assert name in (plain, short, OPEN_R1_NAMES.get(function.__name__))


def test_own_functions_by_module_and_by_a_free_name():
    spec = {
        "my_package.mine:length_reward": 0.5,
        "brevity": {"function": "my_package.mine:scaled_reward", "weight": -1, "factor": 2.0},
        "my_package.mine:picky_reward": {},
        "my_package.mine:ids_reward": 1,
        "my_package.mine:get_constant_reward": {"value": 3.0},
    }
    scores = score_texts(spec, ["abc", "a"], level=["hard", "easy"], other=[1, 2])
    assert {name: values.tolist() for name, values in scores.by_name.items() if name != "picky_reward"} == {
        "length_reward": [3.0, 1.0],
        "scaled_reward": [6.0, 2.0],
        "ids_reward": [5.0, 5.0],
        "constant_reward": [3.0, 3.0],
    }
    np.testing.assert_array_equal(scores.by_name["picky_reward"], [1.0, np.nan])
    np.testing.assert_allclose(scores.total, [1.5 - 6 + 1 + 5 + 3, 0.5 - 2 + 5 + 3])


def test_a_config_dict_is_a_spec():
    spec = ml_collections.ConfigDict(
        {"answer_reward": 1.0, "r1_format_reward": {"weight": 0.5, "think_in_prompt": True}}
    )
    scores = score_texts(spec.lock(), ["x</think><answer>7</answer>"], solution=["7"])
    np.testing.assert_allclose(scores.total, [1.5])


def test_columns_named_like_our_own_give_way():
    scores = score_texts({"my_package.mine:length_reward": 1.0}, ["abc"], completions=["x"], prompts=["y"])
    np.testing.assert_array_equal(scores.total, [3.0])


def test_a_reward_of_a_domain_sees_its_rows_alone():
    """Group ids and columns are those of its rows; elsewhere it does not apply; its calls name rows of the whole."""
    replies = iter([["Score: 8", "Score: 4"]])
    judge = {"weight": 1.0, "domain": "general", "template": "{question} {response}"}
    rewards = load_rewards({"answer_reward": 1.0, "judge_reward": judge}, generate=lambda prompts: next(replies))
    scores = score(
        rewards,
        prompts=["a", "b", "c"],
        completions=["<answer>1</answer>", "<answer>2</answer>", "three"],
        completion_ids=[(1,), (2,), (3,)],
        columns={"solution": ["1", "", ""], "domain": ["math", "general", "general"]},
    )
    assert scores.total.tolist() == [1.0, 0.8, 0.4]
    assert np.isnan(scores.by_name["judge_reward"]).tolist() == [True, False, False]
    shown = [(call["row"], call["prompt"][:2], call["prompt"].split("\n")[1:-1]) for call in scores.calls]
    assert shown == [(1, "b ", ["(answer)2(/answer)"]), (2, "c ", ["three"])]


def test_a_domain_needs_its_column():
    rewards = load_rewards({"r1_format_reward": {"domain": "math"}})
    with pytest.raises(UserError, match=r"config.rewards.r1_format_reward.domain = 'math' needs a data column"):
        score(rewards, prompts=["a"], completions=["b"], completion_ids=[(1,)], columns={})


def test_gates_multiply_what_the_others_pay_and_shield_from_no_punishment():
    spec = {
        "number_reward": 1.0,
        "tag_count_reward": {"gate": True},
        "my_package.mine:get_constant_reward": {"value": -3.0, "weight": 0.0},
    }
    texts = ["<think>\nx\n</think>\n7", "7", "8"]
    scores = score_texts(spec, texts, solution=["7"] * 3)
    np.testing.assert_allclose(scores.total, [0.5, 0.0, 0.0])
    spec["my_package.mine:get_constant_reward"] = {"value": -3.0, "weight": 1.0}
    np.testing.assert_allclose(score_texts(spec, texts, solution=["7"] * 3).total, [-2.0, -2.0, -3.0])


def test_a_gate_with_a_number_opens_from_there_on_and_none_leaves_it_open():
    texts = ["<think>\nx\n</think>\n7", "<think>\n7", "7"]
    spec = {"number_reward": 1.0, "tag_count_reward": {"gate": 0.5, "weight": 0.2}}
    np.testing.assert_allclose(score_texts(spec, texts, solution=["7"] * 3).total, [1.1, 0.0, 0.0])
    spec = {"number_reward": 1.0, "my_package.mine:picky_reward": {"gate": True}}
    np.testing.assert_allclose(
        score_texts(spec, texts, solution=["7"] * 3, level=["hard", "easy", "easy"]).total, [1.0, 1.0, 1.0]
    )


def test_rewards_see_the_groups():
    spec = {"my_package.mine:counting_reward": 1.0}
    np.testing.assert_array_equal(score_texts(spec, ["a"] * 6, group_size=3).total, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(score_texts(spec, ["a"] * 6).by_name["counting_reward"], [np.nan] * 6)


def test_rows_are_taken_out_of_the_loss():
    scores = score_texts(
        {"my_package.mine:leaving_reward": 2.0, "number_reward": 1.0}, ["a", "out"], solution=["7"] * 2
    )
    assert scores.out_of_loss.tolist() == [False, True]
    np.testing.assert_array_equal(scores.total, [1.0, 0.5])


def test_makers_get_generate_and_their_calls_and_metrics_are_handed_on():
    spec = {"my_package.mine:get_asking_reward": {"weight": 1.0, "question": "how?"}}
    scores = score_texts(spec, ["a"], generate=lambda prompts: [prompt.upper() for prompt in prompts])
    assert scores.calls == [{"reward": "asking_reward", "prompt": "how?", "completion": "HOW?"}]
    assert scores.metrics == {"rewards/asking_reward/asked": 1.0}
    assert score_texts({"number_reward": 1.0}, ["a"], solution=["7"]).calls == []


def test_a_class_is_a_reward_with_the_whole_protocol():
    spec = {"my_package.mine:AskingReward": {"weight": 2.0, "question": "how?"}}
    scores = score_texts(spec, ["a"], generate=lambda prompts: [prompt.upper() for prompt in prompts])
    assert scores.total.tolist() == [2.0]
    assert scores.calls == [{"reward": "AskingReward", "prompt": "how?", "completion": "HOW?"}]
    assert scores.metrics == {"rewards/AskingReward/warm": 1.0}


def test_an_object_of_any_class_may_offer_a_part_of_the_protocol():
    (reward,) = load_rewards({"my_package.mine:careful": {"bonus": 0.5}})
    assert (reward.name, reward.function.by_row, reward.arguments) == ("Careful", True, {"bonus": 0.5})
    assert sys.modules["my_package.mine"].Careful.warm == {"bonus": 0.5}
    assert score_texts({"my_package.mine:careful": {"bonus": 0.5}}, ["a"], level=["hard"]).total.tolist() == [1.5]


def test_partials_are_rewards_and_no_column_displaces_what_they_hold():
    scores = score_texts({"my_package.mine:partly": 1.0, "my_package.mine:placed": 1.0}, ["aa"], factor=[7.0])
    assert {name: values.tolist() for name, values in scores.by_name.items()} == {
        "scaled_reward": [6.0],
        "<lambda>": [12.0],
    }
    (changed,) = load_rewards({"my_package.mine:partly": {"factor": 5.0}})
    assert changed.arguments == {"factor": 5.0}
    assert load_rewards({"my_package.mine:placed": 1.0})[0].function.by_row


def test_rewards_are_checked_before_their_model_is_there():
    spec = {"my_package.mine:get_picky_asking_reward": {"most": 1}, "my_package.mine:length_reward": 1.0}
    rewards = read_rewards(spec)
    assert [reward.name for reward in rewards] == ["AskingReward", "length_reward"]
    given = dict(prompts=["q"], completions=["a"], completion_ids=[[1]], columns={})
    with pytest.raises(RuntimeError, match="before connect_rewards"):
        score(rewards, **given)
    connected = connect_rewards(rewards, lambda prompts: ["yes"] * len(prompts))
    assert connected[1] is rewards[1]  # nothing that asks no model is built again
    scores = score(connected, **given)
    assert scores.total.tolist() == [2.0] and scores.metrics == {"rewards/AskingReward/warm": 1.0}
    with pytest.raises(UserError, match="get_picky_asking_reward needs generate, not given here"):
        connect_rewards(rewards, None)
    for arguments, message in (({"most": 0}, "must be positive"), ({}, "needs most"), ({"mots": 1}, "'mots'; .*most")):
        with pytest.raises(UserError, match=message):
            read_rewards({"my_package.mine:get_picky_asking_reward": arguments})


def test_a_marked_function_is_called_copied_and_pickled_like_any_other():
    assert copy.deepcopy(format_reward) is format_reward
    assert pickle.loads(pickle.dumps(format_reward)) is format_reward
    assert format_reward(completions=["x"]) == format_reward(["x"]) == [0.0]
    assert format_reward.__doc__.startswith("1.0 if the text opens") and repr(format_reward) == "<reward format_reward>"


def test_agreement_with_the_truth_counts_ordered_pairs_within_groups():
    spec = {
        "my_package.mine:length_reward": {"weight": 1.0, "compare_to": "truth"},
        "truth": {"function": "number_reward", "weight": 0.0},
    }
    texts = ["7 7", "8", "7", "8 8 8", "8", "8"]  # right, wrong; right, wrong; no difference
    scores = score_texts(spec, texts, solution=["7"] * 6, group_size=2)
    assert scores.metrics == {"rewards/length_reward/agreement": 0.5}
    texts[3] = "8"  # a tie
    assert score_texts(spec, texts, solution=["7"] * 6, group_size=2).metrics == {
        "rewards/length_reward/agreement": 0.75
    }
    assert np.isnan(score_texts(spec, ["8"] * 2, solution=["7"] * 2).metrics["rewards/length_reward/agreement"])


def test_warm_up_is_called_once(monkeypatch):
    calls = []
    monkeypatch.setattr(import_place(REWARDS["accuracy_reward"]), "warm_up", functools.partial(calls.append, 1))
    load_rewards({"accuracy_reward": 1.0, "format_reward": 1.0})
    assert calls == [1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"acuracy_reward": 1.0}, r"config.rewards.acuracy_reward: .*did you mean accuracy_reward"),
        ({}, "config.rewards must name at least one reward"),
        ({"zzz": 1.0}, "accuracy_reward.*r1_format_reward"),
        ({"no_such_module:f": 1.0}, "cannot import 'no_such_module:f'"),
        ({"my_package.mine:nothing": 1.0}, "cannot import 'my_package.mine:nothing'"),
        ({"my_package.mine:not_a_function": 1.0}, "must be a function, got int"),
        ({":f": 1.0}, "cannot import ':f'"),
        ({"answer_reward": "much"}, r"config.rewards.answer_reward: a weight must be a finite number, got 'much'"),
        ({"answer_reward": True}, "got True"),
        ({"answer_reward": {"weight": None}}, "got None"),
        ({"answer_reward": float("nan")}, "got nan"),
        ({"r1_format_reward": {"wieght": 1.0}}, "unknown argument 'wieght'; r1_format_reward takes .*think_in_prompt"),
        ({"my_package.mine:get_constant_reward": {"worth": 1.0}}, "unknown argument 'worth'"),
        ({"accuracy": 1.0, "accuracy_reward": 1.0}, "accuracy_reward twice"),
        (
            {"format_reward": {"gate": "wide"}},
            "config.rewards.format_reward: a gate must be True or the smallest value",
        ),
        ({"format_reward": {"compare_to": "accuracy"}}, "format_reward.compare_to must name another reward"),
        ({"format_reward": {"compare_to": "format_reward"}}, "must name another reward"),
        (
            {"self_rank_reward": 1.0},
            "self_rank_reward needs a model that ranks: set endpoint and model",
        ),
        ({"repetition_penalty": {"max_penalty": 1.0}}, "max_penalty 1.0 should not be positive"),
    ],
)
def test_mistakes_in_the_spec(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        load_rewards(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"answer_reward": 1.0}, "reward answer_reward needs a data column 'solution'.*config.data"),
        ({"accuracy_reward": 1.0}, "reward accuracy_reward needs a data column 'solution'.*config.data"),
        ({"my_package.mine:picky_reward": 1.0}, "picky_reward needs a data column 'level'"),
        ({"my_package.mine:short_reward": 1.0}, "short_reward must return one value a completion: 2, got 1"),
        ({"my_package.mine:endless_reward": 1.0}, "endless_reward must return finite numbers or None, got inf"),
    ],
)
def test_mistakes_while_scoring(spec, message):
    with pytest.raises(UserError, match=message):
        score_texts(spec, ["a", "b"], question=["?", "?"])


def test_rewards_need_no_jax():
    code = "import r1jax.rewards.base, sys; assert not {'jax', 'sympy', 'math_verify'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- Several processes ---

SHARED = """
import json
import numpy as np
from r1jax.core import distributed
from r1jax.rewards.base import Reward, score
from r1jax.rewards.endpoint import Endpoint
from r1jax.rewards.judge import get_judge_reward
from r1jax.rewards.protocol import OutOfLoss, by_row, declare_reward
distributed.start()
seen = {"alone": [], "whole": [], "batch": [], "ungrouped": [], "asked": []}

@by_row
def alone_reward(completions, **columns):
    seen["alone"] += completions
    values = [None if text == "c3" else len(text) / 7 + int(text[1]) for text in completions]
    return [OutOfLoss(value) if text == "c2" else value for value, text in zip(values, completions)]

def whole_reward(completions, **columns):
    seen["whole"] += completions
    return [float(len(completions))] * len(completions)

@declare_reward(by_batch=True)
def batch_reward(completions, **columns):
    seen["batch"] += completions
    return [len(completions) / 7] * len(completions)

def first_only_reward(completions, **columns):
    seen["ungrouped"] += completions
    return [np.float32(0.1)] * len(completions)

def ask(self, prompts):
    seen["asked"] += prompts
    return [None if "c5" in prompt else "Score: 7" for prompt in prompts]

Endpoint.__call__ = ask
texts = [f"c{i}" for i in range(8)]
judge = get_judge_reward(endpoint="http://localhost:1/v1", model="m", template="{question} {response}", as_written=True)
rewards = [Reward(f.__name__, f, 1.0, domain=d) for f, d in (
    (alone_reward, "math"), (whole_reward, ""), (batch_reward, ""), (judge, "code"))]
domains = ["math"] * 4 + ["code"] * 4
given = dict(prompts=["q"] * 8, completions=texts, completion_ids=[[1]] * 8, columns={"domain": domains})
scores = score(rewards, **given, processes=distributed, group_size=2)
expected = [2 / 7, 2 / 7 + 1, 2 / 7 + 2, np.nan, *[np.nan] * 4]
np.testing.assert_array_equal(scores.by_name["alone_reward"], expected)
np.testing.assert_array_equal(scores.by_name["whole_reward"], np.full(8, 4.0))
np.testing.assert_array_equal(scores.by_name["batch_reward"], np.full(8, 8 / 7))
np.testing.assert_array_equal(scores.by_name["judge_reward"], [*[np.nan] * 4, 0.7, np.nan, 0.7, 0.7])
assert scores.metrics == {"rewards/judge_reward/judgements": 4.0, "rewards/judge_reward/readable": 0.75}
assert [call["row"] for call in scores.calls] == [4, 5, 6, 7]
assert scores.out_of_loss.tolist() == [text == "c2" for text in texts]
scores = score([Reward("first", first_only_reward, 1.0)], **given, processes=distributed)
np.testing.assert_array_equal(scores.total, np.full(8, np.float64(np.float32(0.1))))
distributed.wait("the end")
print(f"SEEN{json.dumps(seen)}")
"""


def test_processes_share_rewards_so_that_each_group_is_scored_once():
    processes = start_two(SHARED)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(output.partition("SEEN")[2].splitlines()[0]) for output, _ in outputs)
    texts = [f"c{i}" for i in range(8)]
    assert (first["alone"], second["alone"]) == (texts[:2], texts[2:4])
    assert (first["whole"], second["whole"]) == (texts[:4], texts[4:])
    assert (first["asked"], second["asked"]) == (["q c4", "q c5"], ["q c6", "q c7"])
    assert (first["batch"], second["batch"]) == (first["ungrouped"], second["ungrouped"]) == (texts, [])


def test_outcomes_of_processes_are_those_of_one():
    class Two:
        def __init__(self, index):
            self.index, self.told = index, []

        def my_share(self, count):
            return slice(self.index * count // 2, (self.index + 1) * count // 2)

        def is_writer(self):
            return self.index == 0

        def texts_from_all(self, text):
            sent.append(text)
            return sent

    def ask(prompts):
        return ["Ranking: 1 > 2"] * len(prompts)

    reward = get_self_rank_reward(ask, judgements=1)
    groups = [row // 2 for row in range(6)]
    columns = dict(prompts=["q"] * 6, completions=[f"c{row}" for row in range(6)], group_ids=groups)

    def take(rows, before):
        values = reward(**{name: [column[row] for row in rows] for name, column in columns.items()})
        return take_outcome(reward, rows, values, before)

    whole = take(list(range(6)), 0)
    sent: list[str] = []
    shares = [find_share(reward, range(6), groups, Two(index)) for index in range(2)]
    assert shares == [([0, 1], 0), ([2, 3, 4, 5], 1)]
    for index, share in enumerate(shares):
        joined = join_outcomes(reward, take(*share), Two(index))
    assert joined == whole and [call["group"] for call in joined.calls] == [0, 1, 2]


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_all_judge_rows_by_themselves_but_those_that_see_others_or_ask_a_model(name):
    function = import_place(REWARDS[name])
    if not function.__name__.startswith("get_"):
        made = function
    elif function in (get_judge_reward, get_self_rank_reward):
        made = function(lambda prompts: [None] * len(prompts))
    else:
        arguments = {"get_repetition_penalty_reward": dict(ngram_size=2, max_penalty=-1.0)}
        arguments["get_soft_overlong_punishment"] = dict(max_completion_len=9, soft_punish_cache=4)
        arguments["get_reward_model"] = dict(model="runs/rm")
        made = function(**arguments.get(function.__name__, {}))
    whole = {"environment_reward", "len_reward", "judge_reward", "reward_model", "self_rank_reward"}
    assert getattr(made, "by_row", False) == (made.__name__ not in whole)
